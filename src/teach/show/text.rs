//! One row per field: place, bytes, name, value, meaning.

use std::fmt::Write as _;
use std::io::{self, Write};

use super::{Palette, Shown, headline, is_header, sum_line, value};
use crate::teach::dissect::{Field, Layer, Value};

/// Bytes in a row of a field, and of a payload.
const ROW: usize = 8;
const PAYLOAD_ROW: usize = 16;
/// Rows of a payload that are shown.
const PAYLOAD_ROWS: usize = 4;

/// Writes the line that sums the frame up.
///
/// # Errors
/// Those of `out`.
pub fn brief(shown: &Shown<'_>, palette: Palette, out: &mut impl Write) -> io::Result<()> {
    let mark = if shown.dissection.problems.is_empty() {
        ""
    } else {
        " !"
    };
    write!(out, "{}", headline(shown))?;
    writeln!(out, "{}", palette.paint(palette.problem(), mark))
}

/// Writes the frame: a line that sums it up, its layers with `layer`, what it costs, what is wrong.
pub(super) fn frame<W: Write>(
    shown: &Shown<'_>,
    palette: Palette,
    out: &mut W,
    mut layer: impl FnMut(&Layer, &mut W) -> io::Result<()>,
) -> io::Result<()> {
    writeln!(out, "{}", palette.paint(palette.frame(), headline(shown)))?;
    let dissection = shown.dissection;
    for part in &dissection.layers {
        let indent = indent(part);
        let name = palette.paint(palette.layer(part.depth), part.name);
        let quoted = if part.quoted { ", quoted" } else { "" };
        let source = if part.source.is_empty() { "" } else { ", " };
        let (len, at) = (part.bytes.len(), part.bytes.start);
        writeln!(
            out,
            "{indent}{name}: {} at {at}{quoted}{source}{}",
            plural(len),
            part.source
        )?;
        for sentence in part.note.split_inclusive(". ") {
            writeln!(
                out,
                "{indent}  {}",
                palette.paint(palette.quiet(), sentence.trim_end())
            )?;
        }
        if is_header(part.role) {
            layer(part, out)?;
        } else {
            payload(&shown.frame.bytes[part.bytes.clone()], part, palette, out)?;
        }
    }
    if let Some(sum) = &dissection.sum {
        writeln!(out, "  sum: {}", sum_line(dissection, sum))?;
    }
    for problem in &dissection.problems {
        let mark = palette.paint(palette.problem(), "!");
        writeln!(out, "  {mark} byte {}: {}", problem.at, problem.text)?;
    }
    writeln!(out)
}

/// Writes the frame, a row for each field.
///
/// # Errors
/// Those of `out`.
pub fn rows(shown: &Shown<'_>, palette: Palette, out: &mut impl Write) -> io::Result<()> {
    let mut cells = Cells::default();
    frame(shown, palette, out, |layer, out| {
        for field in shown.dissection.fields_of(layer) {
            row(shown.frame.bytes, layer, field, palette, &mut cells, out)?;
        }
        Ok(())
    })
}

pub(super) fn indent(layer: &Layer) -> &'static str {
    const SPACES: &str = "                          ";
    &SPACES[..(2 + 2 * usize::from(layer.depth)).min(SPACES.len())]
}

fn plural(bytes: usize) -> String {
    if bytes == 1 {
        "1 byte".to_owned()
    } else {
        format!("{bytes} bytes")
    }
}

/// Buffers that serve row after row.
#[derive(Default)]
struct Cells {
    bytes: String,
    value: String,
}

fn row(
    frame: &[u8],
    layer: &Layer,
    field: &Field,
    palette: Palette,
    cells: &mut Cells,
    out: &mut impl Write,
) -> io::Result<()> {
    let indent = indent(layer);
    let range = field.bytes();
    cells.bytes.clear();
    let whole = field.bit % 8 == 0 && field.bits % 8 == 0;
    let first = range.start..range.end.min(range.start + ROW);
    if whole {
        hex(&frame[first], &mut cells.bytes);
    } else {
        partial(frame, field, &mut cells.bytes);
    }
    cells.value.clear();
    match field.value {
        Value::Number(number) => {
            let _ = write!(cells.value, "{number}");
        }
        _ => cells.value.push_str(&value(field)),
    }
    let at = range.start;
    let (bytes, name, value) = (&cells.bytes, field.name, &cells.value);
    write!(
        out,
        "{indent}{}",
        palette.paint(palette.quiet(), format_args!("{at:>6}  {bytes:<23}"))
    )?;
    // Without anything behind it, a value is not padded.
    if field.meaning.is_empty() && field.source.is_empty() && field.checksum.is_none() {
        write!(out, "  {name:<25} {value}")?;
    } else {
        write!(out, "  {name:<25} {value:<17}")?;
    }
    if let Some(verdict) = field.checksum {
        write!(
            out,
            "  {}",
            palette.paint(palette.verdict(verdict), verdict)
        )?;
    }
    if !field.meaning.is_empty() {
        write!(out, "  {}", field.meaning)?;
    }
    if !field.source.is_empty() {
        write!(
            out,
            "  {}",
            palette.paint(palette.quiet(), format_args!("[{}]", field.source))
        )?;
    }
    writeln!(out)?;
    let mut at = range.start + ROW;
    while whole && at < range.end {
        cells.bytes.clear();
        hex(&frame[at..range.end.min(at + ROW)], &mut cells.bytes);
        let bytes = &cells.bytes;
        writeln!(
            out,
            "{indent}{}",
            palette.paint(palette.quiet(), format_args!("{at:>6}  {bytes}"))
        )?;
        at += ROW;
    }
    Ok(())
}

fn hex(bytes: &[u8], text: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (index, byte) in bytes.iter().enumerate() {
        if index > 0 {
            text.push(' ');
        }
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

/// A field that shares its bytes: hex digits or, where that does not do, bits, and dots for what belongs to others.
fn partial(frame: &[u8], field: &Field, text: &mut String) {
    let unit = if field.bit % 4 == 0 && field.bits % 4 == 0 {
        4
    } else {
        1
    };
    let range = field.bytes();
    for at in range.clone() {
        if at > range.start {
            text.push(' ');
        }
        for bit in (0..8).step_by(unit) {
            let mine = (field.bit..field.bit + field.bits).contains(&(at * 8 + bit));
            let digit = u32::from(frame[at]) >> (8 - unit - bit) & ((1 << unit) - 1);
            text.push(match char::from_digit(digit, 16) {
                Some(digit) if mine => digit,
                _ => '.',
            });
        }
    }
}

fn payload(bytes: &[u8], layer: &Layer, palette: Palette, out: &mut impl Write) -> io::Result<()> {
    let indent = indent(layer);
    let mut text = String::new();
    for (row, at) in bytes
        .chunks(PAYLOAD_ROW)
        .zip((layer.bytes.start..).step_by(PAYLOAD_ROW))
        .take(PAYLOAD_ROWS)
    {
        text.clear();
        hex(row, &mut text);
        write!(
            out,
            "{indent}{}",
            palette.paint(palette.quiet(), format_args!("{at:>6}  {text:<47}"))
        )?;
        text.clear();
        text.extend(row.iter().map(|&byte| match byte {
            0x20..0x7f => char::from(byte),
            _ => '.',
        }));
        writeln!(out, "  {text}")?;
    }
    match bytes.len().checked_sub(PAYLOAD_ROW * PAYLOAD_ROWS) {
        None | Some(0) => Ok(()),
        Some(more) => writeln!(out, "{indent}        and {} more", plural(more)),
    }
}
