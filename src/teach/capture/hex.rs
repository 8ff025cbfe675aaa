//! Hex text, as people paste it.
//!
//! ```text
//!  plain            45 00 00 54 ...   or 45000054..., 0x45,0x00, 45:00:00:54; a blank line ends the frame
//!  xxd              00000000: 4500 0054 1c46 4000 4001 ....  E..T.F@.@.......
//!  tcpdump -x -X    \t0x0000:  4500 0054 1c46 4000 4001 ....  E..T.F@.@.......
//!  hexdump -C       00000000  45 00 00 54 1c 46 40 00  40 01 ..  |E..T.F@.@.......|
//!  tshark -x, od    0000  45 00 00 54 1c 46 40 00 40 01 ..   E..T.F@.@.......
//!  hexdump          0000000 0045 5400 461c 0040 0140 ..        (words of two bytes, the second one first)
//! ```
//!
//! In those with offsets, offset 0 begins a frame, and lines that are none of these are taken for talk, such as tcpdump's
//! line for each packet. What `tshark -x` shows beside frames, such as a packet reassembled from fragments, is left out.

use std::io::{BufRead, Read as _};

use super::{Error, MAX_FRAME, Record};

/// Longer lines are taken in parts: the longest frame is shorter, however it is written (`0x45, `).
const MAX_LINE: u64 = 6 * MAX_FRAME as u64;
/// Lines left out that are told of one by one, in one input.
const MOST_LEFT_OUT: u64 = 20;
/// Bytes of text that a message quotes.
const QUOTE: usize = 40;

/// Can this byte be part of hex text, or of the talk around it?
pub(super) fn is_text(byte: u8) -> bool {
    byte >= 0x20 && byte != 0x7f || matches!(byte, b'\t' | b'\n' | b'\r')
}

/// How the frames are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Plain,
    /// Offsets with a colon behind.
    Colon,
    /// Offsets of so many digits with white space behind.
    Bare(usize),
}

enum Line {
    Blank,
    /// Bytes alone.
    Plain(Vec<u8>),
    /// An offset as it is written, and the bytes there.
    Row(String, Vec<u8>),
    /// `*`: the line before, repeated up to the next offset.
    Repeated,
    /// The name of a part that is no frame: see [`is_derived`].
    Derived,
    Talk,
}

pub(super) struct Reader<R> {
    input: std::io::Chain<std::io::Cursor<Vec<u8>>, R>,
    style: Option<Style>,
    line: u64,
    /// The first line of talk, while no style is known.
    puzzle: Option<(u64, String)>,
    /// A line that was read and belongs to the next frame.
    pending: Option<Line>,
    any: bool,
    /// Lines left out.
    left_out: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) complaints: Vec<String>,
}

impl<R: BufRead> Reader<R> {
    /// `start` was read from the input already.
    pub(super) fn new(input: R, start: Vec<u8>) -> Self {
        Self {
            input: std::io::Cursor::new(start).chain(input),
            style: None,
            line: 0,
            puzzle: None,
            pending: None,
            any: false,
            left_out: 0,
            bytes: Vec::new(),
            complaints: Vec::new(),
        }
    }

    pub(super) fn next_record(&mut self) -> Result<Option<Record>, Error> {
        self.bytes.clear();
        let mut repeated = false;
        let mut misplaced = false;
        // A piece of a file does not begin at 0.
        let mut base = 0;
        loop {
            let line = match self.pending.take() {
                Some(line) => line,
                None => match self.read_line()? {
                    Some(line) => line,
                    None => break,
                },
            };
            let is_new = self.bytes.is_empty();
            match line {
                Line::Blank | Line::Talk if is_new => {}
                Line::Blank | Line::Talk => break,
                Line::Derived if is_new => self.skip_part()?,
                Line::Derived => {
                    self.pending = Some(Line::Derived);
                    break;
                }
                Line::Repeated => repeated = true,
                Line::Plain(bytes) => self.bytes.extend(bytes),
                Line::Row(offset, bytes) => {
                    let is_first = is_zero(&offset);
                    if is_first && !is_new {
                        self.pending = Some(Line::Row(offset, bytes));
                        break;
                    }
                    if is_new {
                        base = usize::from_str_radix(&offset, 16).unwrap_or(0);
                    }
                    if repeated {
                        self.repeat(&offset, base);
                        repeated = false;
                    }
                    if bytes.is_empty() {
                        self.end_at(&offset, base);
                        break;
                    }
                    if !agrees(&offset, base.saturating_add(self.bytes.len())) && !misplaced {
                        misplaced = true;
                        self.complain(&format!(
                            "offset {offset}, where {:#x} bytes came before: some are missing, or too many",
                            self.bytes.len()
                        ));
                    }
                    self.bytes.extend(bytes);
                }
            }
            if self.bytes.len() > MAX_FRAME {
                return Err(self.garbled(&format!(
                    "a frame of more than {MAX_FRAME} bytes; a blank line ends a frame"
                )));
            }
        }
        if self.bytes.is_empty() {
            return match self.puzzle.take() {
                Some((line, text)) if !self.any => Err(Error::Garbled {
                    at: format!("line {line}"),
                    what: format!("no hex digits in pairs, nor a capture file: {text:?}"),
                }),
                _ if !self.any => Err(self.garbled("no hex digits at all")),
                _ => Ok(None),
            };
        }
        self.any = true;
        Ok(Some(Record {
            time: None,
            link: None,
            wire_len: self.bytes.len(),
        }))
    }

    /// Leaves out the rows of a part that is no frame.
    fn skip_part(&mut self) -> Result<(), Error> {
        let mut any = false;
        while let Some(line) = self.read_line()? {
            match line {
                Line::Row(offset, _) if !any || !is_zero(&offset) => any = true,
                Line::Repeated => {}
                Line::Blank | Line::Talk if !any => {}
                other => {
                    self.pending = Some(other);
                    break;
                }
            }
        }
        Ok(())
    }

    fn garbled(&self, what: &str) -> Error {
        Error::Garbled {
            at: format!("line {}", self.line),
            what: what.to_owned(),
        }
    }

    fn complain(&mut self, what: &str) {
        self.complaints.push(format!("line {}: {what}", self.line));
    }

    /// Fills up to the offset with copies of the last 16 bytes, as hexdump leaves them out.
    fn repeat(&mut self, offset: &str, base: usize) {
        let Some(end) = usize::from_str_radix(offset, 16)
            .ok()
            .and_then(|end| end.checked_sub(base))
            .filter(|&end| end <= MAX_FRAME)
        else {
            return;
        };
        let Some(from) = self.bytes.len().checked_sub(16) else {
            return;
        };
        while self.bytes.len() < end {
            let room = 16.min(end - self.bytes.len());
            self.bytes.extend_from_within(from..from + room);
        }
    }

    /// An offset alone is the length. Words of two bytes may have had a byte too many.
    fn end_at(&mut self, offset: &str, base: usize) {
        let len = self.bytes.len();
        if len > 0 && agrees(offset, base.saturating_add(len - 1)) {
            self.bytes.truncate(len - 1);
        } else if !agrees(offset, base.saturating_add(len)) {
            self.complain(&format!(
                "ends at offset {offset}, but {len:#x} bytes were read"
            ));
        }
    }

    fn read_line(&mut self) -> Result<Option<Line>, Error> {
        let mut line = Vec::new();
        let read = (&mut self.input)
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(None);
        }
        self.line += 1;
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        let line = self.parse(text);
        if let Line::Talk = line {
            let quote: String = text.chars().take(QUOTE).collect();
            match self.style {
                None => {
                    self.puzzle.get_or_insert((self.line, quote));
                }
                Some(Style::Plain) => {
                    self.left_out += 1;
                    if self.left_out <= MOST_LEFT_OUT {
                        self.complain(&format!("no hex digits in pairs: {quote:?}: left out"));
                    } else if self.left_out == MOST_LEFT_OUT + 1 {
                        self.complain(
                            "and more without hex digits in pairs: left out, not told of",
                        );
                    }
                }
                Some(Style::Colon | Style::Bare(_)) => {}
            }
        }
        Ok(Some(line))
    }

    fn parse(&mut self, text: &str) -> Line {
        let content = text.trim_start();
        if content.is_empty() || content.starts_with('#') {
            return Line::Blank;
        }
        if self.style != Some(Style::Plain) {
            if content == "*" {
                return Line::Repeated;
            }
            if let Some((style, offset, rest)) = self.offset(content) {
                self.style = Some(style);
                let bytes = self.row(style, rest);
                return Line::Row(offset.to_owned(), bytes);
            }
        }
        match (self.style, plain(content)) {
            (None, Some(bytes)) => {
                self.style = Some(Style::Plain);
                if let Some((line, quote)) = self.puzzle.take() {
                    self.complaints.push(format!(
                        "line {line}: no hex digits in pairs: {quote:?}: left out"
                    ));
                }
                Line::Plain(bytes)
            }
            (Some(Style::Plain), Some(bytes)) => Line::Plain(bytes),
            (None | Some(Style::Bare(_)), None) if is_derived(content) => Line::Derived,
            _ => Line::Talk,
        }
    }

    /// Takes the offset off a line that has one.
    fn offset<'t>(&self, text: &'t str) -> Option<(Style, &'t str, &'t str)> {
        let end = text.find([':', ' ', '\t']).unwrap_or(text.len());
        let (token, rest) = text.split_at(end);
        let digits = token.strip_prefix("0x").unwrap_or(token);
        if !(4..=16).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        {
            return None;
        }
        if let Some(rest) = rest.strip_prefix(':') {
            let is_offset = rest.starts_with([' ', '\t'])
                && self.style.is_none_or(|style| style == Style::Colon);
            return is_offset.then_some((Style::Colon, digits, rest));
        }
        let style = Style::Bare(digits.len());
        let is_offset = match self.style {
            Some(known) => known == style,
            // Plain hex may begin with two bytes of zero; an offset has two spaces behind, an odd number of digits,
            // or bytes that stand alone behind it.
            None => {
                let is_zero = digits.bytes().all(|digit| digit == b'0');
                let is_apart = rest.starts_with("  ");
                // hexdump -C of a piece out of the middle.
                let is_dump = is_apart && rest.ends_with('|');
                let is_odd = digits.len() % 2 == 1;
                let of_bytes = || {
                    rest.split_whitespace()
                        .take(16)
                        .all(|token| token.len() == 2)
                };
                !rest.trim().is_empty()
                    && (is_dump || is_zero && (is_apart || is_odd || of_bytes()))
            }
        };
        is_offset.then_some((style, digits, rest))
    }

    /// The bytes of a row, without the characters beside them.
    fn row(&mut self, style: Style, rest: &str) -> Vec<u8> {
        let rest = rest.trim_start();
        let end = match style {
            Style::Colon => rest.find("  "),
            // Two spaces may stand between the halves of sixteen bytes.
            Style::Bare(_) | Style::Plain => rest.find(['|', '>']).or_else(|| rest.find("   ")),
        };
        let mut bytes = Vec::new();
        for token in rest[..end.unwrap_or(rest.len())].split_whitespace() {
            // Sixteen bytes are a row where characters may follow after less than three spaces.
            if matches!(style, Style::Bare(_)) && bytes.len() == 16 {
                break;
            }
            let Some(mut part) = pairs(token) else {
                self.complain(&format!(
                    "{token:?} is not hex digits in pairs: the rest of the line is left out"
                ));
                break;
            };
            if matches!(style, Style::Bare(_)) && part.len() == 2 {
                part.reverse();
            }
            bytes.extend(part);
        }
        bytes
    }
}

fn is_zero(offset: &str) -> bool {
    offset.bytes().all(|digit| digit == b'0')
}

/// Does this line name what `tshark -x` prints behind a frame: what it put together from several, or deciphered? Its name
/// and length stand there as Wireshark has them on tabs: `Reassembled IPv4 (1508 bytes):`. The frame's own is `Frame`.
fn is_derived(line: &str) -> bool {
    line.strip_suffix(" bytes):")
        .or_else(|| line.strip_suffix(" byte):"))
        .and_then(|line| line.rsplit_once(" ("))
        .is_some_and(|(name, len)| name != "Frame" && len.parse::<u64>().is_ok())
}

/// Is this offset, in whatever base, the number? `od` writes octal ones.
fn agrees(offset: &str, number: usize) -> bool {
    [16, 8, 10]
        .into_iter()
        .any(|radix| usize::from_str_radix(offset, radix) == Ok(number))
}

/// A line of bytes alone, however separated.
fn plain(text: &str) -> Option<Vec<u8>> {
    let separators = |c: char| c.is_whitespace() || ":,;-{}".contains(c);
    let mut bytes = Vec::new();
    for token in text.split(separators).filter(|token| !token.is_empty()) {
        let digits = token
            .strip_prefix("0x")
            .or_else(|| token.strip_prefix("\\x"));
        bytes.extend(pairs(digits.unwrap_or(token))?);
    }
    (!bytes.is_empty()).then_some(bytes)
}

fn pairs(digits: &str) -> Option<Vec<u8>> {
    let nibble = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    if digits.len() % 2 != 0 {
        return None;
    }
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| Some(nibble(pair[0])? << 4 | nibble(pair[1])?))
        .collect()
}
