//! One JSON object per frame, one per line.

use std::io::{self, Write};
use std::ops::Range;

use serde::Serialize;

use super::{Shown, value};
use crate::teach::dissect::{Field, Role, Value, Verdict};

/// The version of the objects' form. It grows when a key changes its meaning or goes; keys may be added without.
pub const VERSION: u32 = 1;

#[derive(Serialize)]
struct FrameObject<'a> {
    version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    frame: u64,
    /// Seconds since 1970, as text: a JSON number would lose digits.
    time: Option<String>,
    captured: usize,
    wire: usize,
    summary: &'a str,
    layers: Vec<LayerObject<'a>>,
    sum: Option<SumObject>,
    problems: Vec<ProblemObject<'a>>,
}

#[derive(Serialize)]
struct LayerObject<'a> {
    name: &'static str,
    source: &'static str,
    role: &'static str,
    depth: u8,
    quoted: bool,
    offset: usize,
    length: usize,
    #[serde(skip_serializing_if = "str::is_empty")]
    note: &'static str,
    fields: Vec<FieldObject<'a>>,
}

#[derive(Serialize)]
struct FieldObject<'a> {
    name: &'static str,
    /// The first bit, from the frame's start.
    bit: usize,
    bits: usize,
    #[serde(flatten)]
    value: ValueObject,
    #[serde(skip_serializing_if = "str::is_empty")]
    meaning: &'a str,
    source: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    checksum: Option<&'static str>,
    /// Of a wrong or unfinished checksum: the right one.
    #[serde(skip_serializing_if = "Option::is_none")]
    right: Option<u16>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum ValueObject {
    #[serde(rename = "value")]
    Number(u64),
    #[serde(rename = "value")]
    Text(String),
    Hex(String),
}

#[derive(Serialize)]
struct SumObject {
    original: usize,
    overhead: usize,
    padding: usize,
    wire: usize,
}

#[derive(Serialize)]
struct ProblemObject<'a> {
    offset: usize,
    text: &'a str,
}

/// Writes the frame as a line of JSON.
///
/// # Errors
/// Those of `out`.
pub fn line(shown: &Shown<'_>, out: &mut impl Write) -> io::Result<()> {
    let dissection = shown.dissection;
    let bytes = shown.frame.bytes;
    let object = FrameObject {
        version: VERSION,
        file: shown.file,
        frame: shown.frame.number,
        time: shown
            .frame
            .time
            .map(|time| format!("{}.{:09}", time.as_secs(), time.subsec_nanos())),
        captured: bytes.len(),
        wire: shown.frame.wire_len,
        summary: &dissection.summary,
        layers: dissection
            .layers
            .iter()
            .map(|layer| LayerObject {
                name: layer.name,
                source: layer.source,
                role: match layer.role {
                    Role::Header => "header",
                    Role::Payload => "payload",
                    Role::Padding => "padding",
                },
                depth: layer.depth,
                quoted: layer.quoted,
                offset: layer.bytes.start,
                length: layer.bytes.len(),
                note: layer.note,
                fields: dissection
                    .fields_of(layer)
                    .iter()
                    .map(|field| object(field, layer.source, bytes))
                    .collect(),
            })
            .collect(),
        sum: dissection.sum.map(|sum| SumObject {
            original: sum.original,
            overhead: sum.overhead,
            padding: sum.padding,
            wire: sum.wire,
        }),
        problems: dissection
            .problems
            .iter()
            .map(|problem| ProblemObject {
                offset: problem.at,
                text: &problem.text,
            })
            .collect(),
    };
    serde_json::to_writer(&mut *out, &object)?;
    writeln!(out)
}

fn object<'a>(field: &'a Field, source: &'static str, frame: &[u8]) -> FieldObject<'a> {
    let (checksum, right) = match field.checksum {
        None => (None, None),
        Some(Verdict::Right) => (Some("right"), None),
        Some(Verdict::Wrong(right)) => (Some("wrong"), Some(right)),
        Some(Verdict::Unfinished(right)) => (Some("unfinished"), Some(right)),
        Some(Verdict::Deferred) => (Some("deferred"), None),
        Some(Verdict::Absent) => (Some("absent"), None),
        Some(Verdict::Unknown(_)) => (Some("unknown"), None),
    };
    FieldObject {
        name: field.name,
        bit: field.bit,
        bits: field.bits,
        value: match field.value {
            Value::Number(number) | Value::Hex(number) => ValueObject::Number(number),
            Value::Bytes => ValueObject::Hex(hex(frame, field.bytes())),
            Value::Mac(_) | Value::Ip(_) => ValueObject::Text(value(field)),
        },
        meaning: &field.meaning,
        source: if field.source.is_empty() {
            source
        } else {
            field.source
        },
        checksum,
        right,
    }
}

fn hex(frame: &[u8], range: Range<usize>) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    frame[range]
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|nibble| char::from(DIGITS[usize::from(nibble)]))
        .collect()
}
