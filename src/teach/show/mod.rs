//! Dissections for people and programs.
//!
//! - [`text`]: one row per field; [`drawing`]: headers as the RFCs draw them; [`json`]: one object per frame.

pub mod drawing;
pub mod json;
mod piece;
pub mod text;

use std::fmt::{self, Write as _};
use std::net::IpAddr;

use anstyle::{AnsiColor, Style};

use super::capture::Frame;
use super::dissect::{Dissection, Field, Role, Sum, Value, Verdict};

/// A frame, what it is made of, and which file it is from.
#[derive(Clone, Copy)]
pub struct Shown<'a> {
    /// The file's name, if there are several.
    pub file: Option<&'a str>,
    /// The frame.
    pub frame: Frame<'a>,
    /// Seconds since the first frame of the file.
    pub since_first: Option<f64>,
    /// What it is made of.
    pub dissection: &'a Dissection,
}

/// Colours, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Palette {
    /// Are there colours?
    pub colours: bool,
}

impl Palette {
    fn paint<T: fmt::Display>(self, style: Style, what: T) -> Painted<T> {
        let style = if self.colours { style } else { Style::new() };
        Painted { style, what }
    }

    fn frame(self) -> Style {
        Style::new().bold().underline()
    }

    /// Headers of one encapsulation have one colour.
    fn layer(self, depth: u8) -> Style {
        let colours = [
            AnsiColor::Cyan,
            AnsiColor::Green,
            AnsiColor::Magenta,
            AnsiColor::Blue,
        ];
        Style::new()
            .bold()
            .fg_color(Some(colours[usize::from(depth) % colours.len()].into()))
    }

    fn quiet(self) -> Style {
        Style::new().dimmed()
    }

    fn problem(self) -> Style {
        Style::new().bold().fg_color(Some(AnsiColor::Red.into()))
    }

    fn verdict(self, verdict: Verdict) -> Style {
        let colour = match verdict {
            Verdict::Right => AnsiColor::Green,
            Verdict::Wrong(_) => AnsiColor::Red,
            Verdict::Unfinished(_) | Verdict::Deferred | Verdict::Absent | Verdict::Unknown(_) => {
                AnsiColor::Yellow
            }
        };
        Style::new().fg_color(Some(colour.into()))
    }
}

struct Painted<T> {
    style: Style,
    what: T,
}

impl<T: fmt::Display> fmt::Display for Painted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.style.render())?;
        self.what.fmt(f)?;
        write!(f, "{}", self.style.render_reset())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Right => f.write_str("right"),
            Self::Wrong(right) => write!(f, "wrong: {right:#06x} would be right"),
            Self::Unfinished(right) => {
                write!(
                    f,
                    "unfinished: only the pseudo-header's sum, a network card would make it {right:#06x}"
                )
            }
            Self::Deferred => {
                f.write_str("right as soon as the unfinished one further in is finished")
            }
            Self::Absent => f.write_str("absent"),
            Self::Unknown(why) => write!(f, "cannot be judged: {why}"),
        }
    }
}

/// Appends the field's value for people. Bytes are told by number only.
fn append_value(field: &Field, text: &mut String) {
    match field.value {
        Value::Number(number) | Value::Little(number) => piece::number(text, number),
        Value::Hex(number) => {
            text.push_str("0x");
            piece::digits(text, number, field.bits.div_ceil(4));
        }
        Value::Mac(mac) => piece::hex(text, &mac.0, ":"),
        Value::Ip(IpAddr::V4(ip)) => piece::ipv4(text, ip),
        Value::Ip(IpAddr::V6(ip)) => {
            let _ = write!(text, "{ip}");
        }
        Value::Bytes if field.bits % 8 == 0 => piece::bytes(text, field.bits / 8),
        Value::Bytes => {
            let _ = write!(text, "{} bits", field.bits);
        }
    }
}

/// `84 (IPv4 packet) + 64 overhead (Ethernet 14 + IPv4 20 + UDP 8 + VXLAN 8 + Ethernet 14) = 148 bytes on the wire`
fn append_sum(dissection: &Dissection, sum: &Sum, line: &mut String) {
    piece::number(line, sum.original as u64);
    for text in [" (", dissection.layers[sum.layer].name, " packet) + "] {
        line.push_str(text);
    }
    piece::number(line, sum.overhead as u64);
    line.push_str(" overhead");
    let mut separator = " (";
    for layer in &dissection.layers[..sum.layer] {
        for text in [separator, layer.name, " "] {
            line.push_str(text);
        }
        piece::number(line, layer.bytes.len() as u64);
        separator = " + ";
    }
    if separator == " + " {
        line.push(')');
    }
    if sum.padding > 0 {
        line.push_str(" + ");
        piece::number(line, sum.padding as u64);
        line.push_str(" padding");
    }
    line.push_str(" = ");
    piece::number(line, sum.wire as u64);
    line.push_str(" bytes on the wire");
}

/// The line that stands for the whole frame.
fn append_headline(shown: &Shown<'_>, line: &mut String) {
    if let Some(file) = shown.file {
        line.push_str(file);
        line.push_str(": ");
    }
    line.push_str("frame ");
    piece::number(line, shown.frame.number);
    line.push_str(", ");
    piece::number(line, shown.frame.wire_len as u64);
    line.push_str(" bytes");
    if shown.frame.bytes.len() < shown.frame.wire_len {
        line.push_str(" (");
        piece::number(line, shown.frame.bytes.len() as u64);
        line.push_str(" captured)");
    }
    if let Some(seconds) = shown.since_first {
        let _ = write!(line, ", {seconds:+.6} s");
    }
    let summary = &shown.dissection.summary;
    if !summary.is_empty() {
        line.push_str(": ");
        line.push_str(summary);
    }
}

/// Is this layer taken apart?
fn is_header(role: Role) -> bool {
    role == Role::Header
}

#[cfg(test)]
mod tests;
