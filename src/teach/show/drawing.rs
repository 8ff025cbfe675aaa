//! Headers as the RFCs draw them, 32 bits to a row, with the values in them.

use std::io::{self, Write};

use super::{Palette, Shown, append_value, piece, text};
use crate::teach::dissect::{Field, Layer};

const ROW: usize = 32;

/// How RFCs number the bits of a row.
const TENS: &str = " 0                   1                   2                   3  ";
const ONES: &str = " 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1";

/// The owner of a bit behind the header's end.
const NOBODY: usize = usize::MAX;

/// Which field, by its index, each bit of a row belongs to.
type Owners = [usize; ROW];

/// Writes the frame, a drawing for each header.
///
/// # Errors
/// Those of `out`.
pub fn drawings(shown: &Shown<'_>, palette: Palette, out: &mut impl Write) -> io::Result<()> {
    let mut lines = Lines::default();
    text::frame(shown, palette, out, |layer, out| {
        let indent = text::indent(layer);
        let fields = shown.dissection.fields_of(layer);
        lines.draw(layer, fields, indent);
        out.write_all(lines.text.as_bytes())?;
        for field in fields {
            if let Some(verdict) = field.checksum {
                let verdict = palette.paint(palette.verdict(verdict), verdict);
                writeln!(out, "{indent}  {}: {verdict}", field.name)?;
            }
        }
        Ok(())
    })
}

/// The text of a drawing, and what it is put together in: kept, as a capture has many headers.
#[derive(Default)]
struct Lines {
    text: String,
    names: String,
    values: String,
    value: String,
}

impl Lines {
    /// Draws the header, line by line.
    fn draw(&mut self, layer: &Layer, fields: &[Field], indent: &str) {
        self.text.clear();
        let drawing = Drawing {
            start: layer.bytes.start * 8,
            bits: layer.bytes.len() * 8,
            fields,
        };
        if drawing.bits == 0 {
            return;
        }
        let columns = drawing.bits.min(ROW);
        self.line(indent, &TENS[..2 * columns]);
        self.line(indent, &ONES[..2 * columns]);
        let mut skipped = false;
        let mut above = [NOBODY; ROW];
        let mut row = 0;
        while row * ROW < drawing.bits {
            let here = drawing.owners(row);
            if !drawing.is_middle(row) {
                skipped = false;
                self.separator(indent, &above, &here);
                self.row(indent, &drawing, row);
            } else if !skipped {
                skipped = true;
                self.separator(indent, &above, &here);
                self.names.clear();
                self.names.push('/');
                centre(&mut self.names, "...", 2 * ROW - 1);
                self.names.push('/');
                push_line(&mut self.text, indent, &self.names);
            }
            above = here;
            row += 1;
        }
        self.separator(indent, &above, &[NOBODY; ROW]);
    }

    fn line(&mut self, indent: &str, line: &str) {
        push_line(&mut self.text, indent, line);
    }

    /// The line between two rows: open where a field goes on.
    fn separator(&mut self, indent: &str, above: &Owners, below: &Owners) {
        let same = |column: usize| above[column] != NOBODY && above[column] == below[column];
        let columns = (0..ROW)
            .take_while(|&column| above[column] != NOBODY || below[column] != NOBODY)
            .count();
        let line = &mut self.names;
        line.clear();
        let mut open_before = false;
        for column in 0..columns {
            let open = same(column);
            line.push_str(match (open_before, open) {
                (true, true) => "  ",
                (_, true) => "+ ",
                (_, false) => "+-",
            });
            open_before = open;
        }
        line.push('+');
        push_line(&mut self.text, indent, line);
    }

    /// Names and values of the fields in a row.
    fn row(&mut self, indent: &str, drawing: &Drawing<'_>, row: usize) {
        let start = row * ROW;
        let end = (start + ROW).min(drawing.bits);
        for line in [&mut self.names, &mut self.values] {
            line.clear();
            line.push('|');
        }
        let mut bit = start;
        let mut begins = false;
        while let Some(index) = drawing.field(bit).filter(|_| bit < end) {
            let field = &drawing.fields[index];
            let from = field.bit - drawing.start;
            let stop = (from + field.bits).min(end);
            let width = 2 * (stop - bit) - 1;
            let is_first = from == bit;
            begins |= is_first;
            self.value.clear();
            let name = match is_first {
                true if field.name.len() <= width => field.name,
                true => field.short,
                false => "",
            };
            if is_first {
                append_value(field, &mut self.value);
            }
            centre(&mut self.names, name, width);
            self.names.push('|');
            centre(&mut self.values, &self.value, width);
            self.values.push('|');
            bit = stop;
        }
        push_line(&mut self.text, indent, &self.names);
        if begins {
            push_line(&mut self.text, indent, &self.values);
        }
    }
}

fn push_line(text: &mut String, indent: &str, line: &str) {
    for part in [indent, "  ", line.trim_end(), "\n"] {
        text.push_str(part);
    }
}

/// Appends what there is room for in the middle of so many columns. What is drawn is ASCII.
fn centre(line: &mut String, what: &str, width: usize) {
    let what = what.get(..width).unwrap_or(what);
    let room = width.saturating_sub(what.len());
    piece::spaces(line, room / 2);
    line.push_str(what);
    piece::spaces(line, room - room / 2);
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

    /// The fields of a row, bit by bit.
    fn owners(&self, row: usize) -> Owners {
        let mut owners = [NOBODY; ROW];
        let mut index = self.field(row * ROW).unwrap_or(NOBODY);
        for (owner, bit) in owners.iter_mut().zip(row * ROW..self.bits) {
            let next = index.wrapping_add(1);
            if self
                .fields
                .get(next)
                .is_some_and(|field| field.bit <= self.start + bit)
            {
                index = next;
            }
            *owner = index;
        }
        owners
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
}
