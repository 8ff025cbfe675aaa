//! One row per field: place, bytes, name, value, meaning.

use std::fmt::Write as _;
use std::io::{self, Write};

use anstyle::Style;

use super::{Palette, Shown, append_headline, append_sum, append_value, is_header, piece};
use crate::teach::dissect::{Field, Layer, Verdict};

/// Bytes in a row of a field, and of a payload.
const ROW: usize = 8;
const PAYLOAD_ROW: usize = 16;
/// Rows of a payload that are shown.
const PAYLOAD_ROWS: usize = 4;

/// About how long a line is: a buffer that grows to it step by step costs more than what is put in it.
pub(super) const LINE: usize = 192;

/// Writes the line that sums the frame up, with a mark where something is wrong.
///
/// # Errors
/// Those of `out`.
pub fn brief(shown: &Shown<'_>, palette: Palette, out: &mut impl Write) -> io::Result<()> {
    let is_wrong = |field: &Field| matches!(field.checksum, Some(Verdict::Wrong(_)));
    let is_well =
        shown.dissection.problems.is_empty() && !shown.dissection.fields.iter().any(is_wrong);
    let mark = if is_well { "" } else { " !" };
    let mut line = String::with_capacity(LINE);
    append_headline(shown, &mut line);
    out.write_all(line.as_bytes())?;
    writeln!(out, "{}", palette.paint(palette.problem(), mark))
}

/// Writes the frame: a line that sums it up, its layers with `layer`, what it costs, what is wrong.
pub(super) fn frame<W: Write>(
    shown: &Shown<'_>,
    palette: Palette,
    out: &mut W,
    mut layer: impl FnMut(&Layer, &mut W) -> io::Result<()>,
) -> io::Result<()> {
    let dissection = shown.dissection;
    let mut line = String::with_capacity(LINE);
    styled(palette, palette.frame(), &mut line, |line| {
        append_headline(shown, line);
    });
    line.push('\n');
    out.write_all(line.as_bytes())?;
    for part in &dissection.layers {
        let indent = indent(part);
        let quoted = if part.quoted { ", quoted" } else { "" };
        let source = if part.source.is_empty() { "" } else { ", " };
        line.clear();
        line.push_str(indent);
        styled(palette, palette.layer(part.depth), &mut line, |line| {
            line.push_str(part.name)
        });
        line.push_str(": ");
        piece::bytes(&mut line, part.bytes.len());
        line.push_str(" at ");
        piece::number(&mut line, part.bytes.start as u64);
        for text in [quoted, source, part.source, "\n"] {
            line.push_str(text);
        }
        out.write_all(line.as_bytes())?;
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
            let bytes = &shown.frame.bytes[part.bytes.clone()];
            payload(bytes, part, palette, &mut line, out)?;
        }
    }
    if let Some(sum) = &dissection.sum {
        line.clear();
        line.push_str("  sum: ");
        append_sum(dissection, sum, &mut line);
        line.push('\n');
        out.write_all(line.as_bytes())?;
    }
    for problem in &dissection.problems {
        let mark = palette.paint(palette.problem(), "!");
        writeln!(out, "  {mark} byte {}: {}", problem.at, problem.text)?;
    }
    out.write_all(b"\n")
}

/// Writes the frame, a row for each field.
///
/// # Errors
/// Those of `out`.
pub fn rows(shown: &Shown<'_>, palette: Palette, out: &mut impl Write) -> io::Result<()> {
    let mut line = String::with_capacity(LINE);
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
    piece::spaces(line, width.saturating_sub(have));
}

/// The row's offset, right-aligned, and the bytes of it.
fn place(line: &mut String, at: usize, append: impl FnOnce(&mut String)) {
    let width = at
        .checked_ilog10()
        .map_or(1, |tens| usize::try_from(tens).unwrap_or(0) + 1);
    piece::spaces(line, 6usize.saturating_sub(width));
    piece::number(line, at as u64);
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
                let shown = range.start..range.end.min(range.start + ROW);
                piece::hex(line, &frame[shown], " ");
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
    append_value(field, line);
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
                piece::hex(line, &frame[at..range.end.min(at + ROW)], " ");
            });
        });
        line.push('\n');
        at += ROW;
    }
}

const DOTS: &str = "........";

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
        // The field's part of this byte, in bits from the byte's first.
        let from = field.bit.saturating_sub(at * 8);
        let to = (field.bit + field.bits - at * 8).min(8);
        text.push_str(&DOTS[..from / unit]);
        if unit == 4 {
            let pair = piece::pair(frame[at]);
            text.push_str(&pair[from / 4..to / 4]);
        } else {
            for bit in from..to {
                text.push(if frame[at] & 0x80 >> bit == 0 {
                    '0'
                } else {
                    '1'
                });
            }
        }
        text.push_str(&DOTS[to / unit..8 / unit]);
    }
}

fn payload(
    bytes: &[u8],
    layer: &Layer,
    palette: Palette,
    text: &mut String,
    out: &mut impl Write,
) -> io::Result<()> {
    let indent = indent(layer);
    for (row, at) in bytes
        .chunks(PAYLOAD_ROW)
        .zip((layer.bytes.start..).step_by(PAYLOAD_ROW))
        .take(PAYLOAD_ROWS)
    {
        text.clear();
        text.push_str(indent);
        styled(palette, palette.quiet(), text, |text| {
            place(text, at, |text| {
                let start = text.len();
                piece::hex(text, row, " ");
                pad(text, start, 3 * PAYLOAD_ROW - 1);
            });
        });
        text.push_str("  ");
        text.extend(row.iter().map(|&byte| match byte {
            0x20..0x7f => char::from(byte),
            _ => '.',
        }));
        text.push('\n');
        out.write_all(text.as_bytes())?;
    }
    match bytes.len().checked_sub(PAYLOAD_ROW * PAYLOAD_ROWS) {
        None | Some(0) => Ok(()),
        Some(more) => {
            text.clear();
            piece::bytes(text, more);
            writeln!(out, "{indent}        and {text} more")
        }
    }
}
