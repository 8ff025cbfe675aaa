//! Headers as the RFCs draw them, 32 bits to a row, with the values in them.

use std::io::{self, Write};

use super::{Palette, Shown, text, value};
use crate::teach::dissect::{Field, Layer};

const ROW: usize = 32;

/// Writes the frame, a drawing for each header.
///
/// # Errors
/// Those of `out`.
pub fn drawings(shown: &Shown<'_>, palette: Palette, out: &mut impl Write) -> io::Result<()> {
    text::frame(shown, palette, out, |layer, out| {
        let indent = text::indent(layer);
        for line in draw(layer, shown.dissection.fields_of(layer)) {
            writeln!(out, "{indent}  {}", line.trim_end())?;
        }
        for field in shown.dissection.fields_of(layer) {
            if let Some(verdict) = field.checksum {
                let verdict = palette.paint(palette.verdict(verdict), verdict);
                writeln!(out, "{indent}  {}: {verdict}", field.name)?;
            }
        }
        Ok(())
    })
}

/// The header's drawing, line by line.
fn draw(layer: &Layer, fields: &[Field]) -> Vec<String> {
    let drawing = Drawing {
        start: layer.bytes.start * 8,
        bits: layer.bytes.len() * 8,
        fields,
    };
    if drawing.bits == 0 {
        return Vec::new();
    }
    let columns = drawing.bits.min(ROW);
    let tens: String = (0..columns)
        .map(|bit| if bit % 10 == 0 { digit(bit / 10) } else { ' ' })
        .flat_map(|c| [' ', c])
        .collect();
    let ones: String = (0..columns)
        .flat_map(|bit| [' ', digit(bit % 10)])
        .collect();
    let mut lines = vec![tens, ones];
    let mut skipped = false;
    let mut row = 0;
    while row * ROW < drawing.bits {
        if drawing.is_middle(row) {
            if !skipped {
                lines.push(drawing.separator(row));
                lines.push(format!("/{:^width$}/", "...", width = 2 * ROW - 1));
            }
            skipped = true;
        } else {
            skipped = false;
            lines.push(drawing.separator(row));
            lines.extend(drawing.row(row));
        }
        row += 1;
    }
    lines.push(drawing.separator(row));
    lines
}

fn digit(number: usize) -> char {
    u32::try_from(number % 10)
        .ok()
        .and_then(|number| char::from_digit(number, 10))
        .unwrap_or(' ')
}

struct Drawing<'a> {
    start: usize,
    bits: usize,
    fields: &'a [Field],
}

impl Drawing<'_> {
    /// The field that holds this bit of the header.
    fn field(&self, bit: usize) -> Option<usize> {
        if bit >= self.bits {
            return None;
        }
        let bit = self.start + bit;
        let after = self.fields.partition_point(|field| field.bit <= bit);
        after.checked_sub(1)
    }

    /// Is the row within a field that fills it, and those beside it?
    fn is_middle(&self, row: usize) -> bool {
        let Some(before) = row.checked_sub(2) else {
            return false;
        };
        let first = self.field(before * ROW);
        // An address of four rows is drawn in full.
        first.is_some()
            && self
                .fields
                .get(first.unwrap_or(0))
                .is_some_and(|field| field.bits > 4 * ROW)
            && (first == self.field((row + 2) * ROW - 1))
    }

    /// The line above a row: open where a field goes on.
    fn separator(&self, row: usize) -> String {
        let same = |column: usize| {
            let above = row
                .checked_sub(1)
                .and_then(|above| self.field(above * ROW + column));
            above.is_some() && above == self.field(row * ROW + column)
        };
        let is_there = |column: usize| {
            row > 0 && self.field((row - 1) * ROW + column).is_some()
                || self.field(row * ROW + column).is_some()
        };
        let columns = (0..ROW).take_while(|&column| is_there(column)).count();
        let mut line = String::new();
        for column in 0..=columns {
            let open_before = column > 0 && same(column - 1);
            let open = column < columns && same(column);
            line.push(if open && open_before { ' ' } else { '+' });
            if column < columns {
                line.push(if open { ' ' } else { '-' });
            }
        }
        line
    }

    /// Names and values of the fields in a row.
    fn row(&self, row: usize) -> Vec<String> {
        let start = row * ROW;
        let end = (start + ROW).min(self.bits);
        let (mut names, mut values) = ("|".to_owned(), "|".to_owned());
        let mut bit = start;
        let mut begins = false;
        while let Some(index) = self.field(bit).filter(|_| bit < end) {
            let field = &self.fields[index];
            let from = field.bit - self.start;
            let stop = (from + field.bits).min(end);
            let width = 2 * (stop - bit) - 1;
            let is_first = from == bit;
            begins |= is_first;
            let (name, value) = if is_first {
                let name = if field.name.len() <= width {
                    field.name
                } else {
                    field.short
                };
                (name, value(field))
            } else {
                ("", String::new())
            };
            for (text, line) in [(name, &mut names), (value.as_str(), &mut values)] {
                let text: String = text.chars().take(width).collect();
                line.push_str(&format!("{text:^width$}|"));
            }
            bit = stop;
        }
        if begins {
            vec![names, values]
        } else {
            vec![names]
        }
    }
}
