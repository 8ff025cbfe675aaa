//! One JSON object per frame, one per line.

use std::io::{self, Write};

use serde::{Serialize, Serializer};

use super::{Shown, append_value, piece};
use crate::teach::dissect::{Dissection, Field, Role, Value, Verdict};

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
    layers: Layers<'a>,
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
    fields: Fields<'a>,
}

/// The layers of a frame: each is made when it is written, so that none is kept.
struct Layers<'a>(&'a Dissection, &'a [u8]);

impl Serialize for Layers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(dissection, bytes) = *self;
        serializer.collect_seq(dissection.layers.iter().map(|layer| LayerObject {
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
            fields: Fields(dissection.fields_of(layer), layer.source, bytes),
        }))
    }
}

/// The fields of a layer, whose source they have where they have none of their own.
struct Fields<'a>(&'a [Field], &'static str, &'a [u8]);

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(fields, source, bytes) = *self;
        serializer.collect_seq(fields.iter().map(|field| object(field, source, bytes)))
    }
}

#[derive(Serialize)]
struct FieldObject<'a> {
    name: &'static str,
    /// The first bit, from the frame's start.
    bit: usize,
    bits: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<ValueObject>,
    /// Of bytes without further meaning, instead of a value.
    #[serde(skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
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
#[serde(untagged)]
enum ValueObject {
    Number(u64),
    Text(String),
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
        layers: Layers(dissection, bytes),
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
    out.write_all(b"\n")
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
            Value::Number(number) | Value::Hex(number) | Value::Little(number) => {
                Some(ValueObject::Number(number))
            }
            Value::Mac(_) | Value::Ip(_) => {
                let mut text = String::new();
                append_value(field, &mut text);
                Some(ValueObject::Text(text))
            }
            Value::Bytes => None,
        },
        hex: matches!(field.value, Value::Bytes).then(|| hex(&frame[field.bytes()])),
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

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    piece::hex(&mut text, bytes, "");
    text
}
