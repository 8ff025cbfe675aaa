//! One row per field: place, bytes, name, value, meaning.

use std::fmt::Write as _;
use std::io::{self, Write};

use anstyle::Style;

use super::{Palette, Shown, headline, is_header, sum_line, value};
use crate::teach::dissect::{Field, Layer, Value, Verdict};

/// Bytes in a row of a field, and of a payload.
const ROW: usize = 8;
const PAYLOAD_ROW: usize = 16;
/// Rows of a payload that are shown.
const PAYLOAD_ROWS: usize = 4;

/// Writes the line that sums the frame up, with a mark where something is wrong.
///
/// # Errors
/// Those of `out`.
pub fn brief(shown: &Shown<'_>, palette: Palette, out: &mut impl Write) -> io::Result<()> {
    let is_wrong = |field: &Field| matches!(field.checksum, Some(Verdict::Wrong(_)));
    let is_well =
        shown.dissection.problems.is_empty() && !shown.dissection.fields.iter().any(is_wrong);
    let mark = if is_well { "" } else { " !" };
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
    let mut line = String::new();
    frame(shown, palette, out, |layer, out| {
        for field in shown.dissection.fields_of(layer) {
            row(shown.frame.bytes, layer, field, palette, &mut line);
            out.write_all(line.as_bytes())?;
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

/// Appends in a style, where there are colours. Most of what a capture costs is spent on rows, so they are put together
/// piece by piece in one buffer.
fn styled(palette: Palette, style: Style, line: &mut String, append: impl FnOnce(&mut String)) {
    if palette.colours {
        let _ = write!(line, "{}", style.render());
        append(line);
        let _ = write!(line, "{}", style.render_reset());
    } else {
        append(line);
    }
}

/// Appends spaces up to `width` bytes behind `start`. What is padded here is ASCII.
fn pad(line: &mut String, start: usize, width: usize) {
    let have = line.len() - start;
    line.extend(std::iter::repeat_n(' ', width.saturating_sub(have)));
}

/// The row's offset, right-aligned, and the bytes of it.
fn place(line: &mut String, at: usize, append: impl FnOnce(&mut String)) {
    let width = at
        .checked_ilog10()
        .map_or(1, |tens| usize::try_from(tens).unwrap_or(0) + 1);
    line.extend(std::iter::repeat_n(' ', 6usize.saturating_sub(width)));
    let _ = write!(line, "{at}");
    line.push_str("  ");
    append(line);
}

fn row(frame: &[u8], layer: &Layer, field: &Field, palette: Palette, line: &mut String) {
    let indent = indent(layer);
    let range = field.bytes();
    let whole = field.bit % 8 == 0 && field.bits % 8 == 0;
    line.clear();
    line.push_str(indent);
    styled(palette, palette.quiet(), line, |line| {
        place(line, range.start, |line| {
            let start = line.len();
            if whole {
                hex(&frame[range.start..range.end.min(range.start + ROW)], line);
            } else {
                partial(frame, field, line);
            }
            pad(line, start, 23);
        });
    });
    line.push_str("  ");
    let start = line.len();
    line.push_str(field.name);
    pad(line, start, 25);
    line.push(' ');
    let start = line.len();
    match field.value {
        Value::Number(number) => {
            let _ = write!(line, "{number}");
        }
        _ => line.push_str(&value(field)),
    }
    // Without anything behind it, a value is not padded.
    if !field.meaning.is_empty() || !field.source.is_empty() || field.checksum.is_some() {
        pad(line, start, 17);
    }
    if let Some(verdict) = field.checksum {
        line.push_str("  ");
        styled(palette, palette.verdict(verdict), line, |line| {
            let _ = write!(line, "{verdict}");
        });
    }
    if !field.meaning.is_empty() {
        line.push_str("  ");
        line.push_str(&field.meaning);
    }
    if !field.source.is_empty() {
        line.push_str("  ");
        styled(palette, palette.quiet(), line, |line| {
            line.push('[');
            line.push_str(field.source);
            line.push(']');
        });
    }
    line.push('\n');
    let mut at = range.start + ROW;
    while whole && at < range.end {
        line.push_str(indent);
        styled(palette, palette.quiet(), line, |line| {
            place(line, at, |line| {
                hex(&frame[at..range.end.min(at + ROW)], line)
            });
        });
        line.push('\n');
        at += ROW;
    }
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
