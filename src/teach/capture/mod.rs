//! Frames out of files: pcap, pcapng, and hex text as people paste it.
//!
//! [`Capture::open`] looks at the first bytes and knows which it is. One frame is held at a time, so a capture of any size
//! is read in constant memory. Where a file is cut or garbled, the frames before that place are given, and then an
//! [`Error`] that says where and how.

mod hex;
mod pcap;
mod pcapng;

use std::fmt;
use std::io::{self, BufRead};
use std::time::Duration;

/// The most bytes of one frame that we read: libpcap's own limit (`MAXIMUM_SNAPLEN`). A file that states more is garbled.
pub const MAX_FRAME: usize = 262_144;

/// What a frame begins with: the link types of <https://www.tcpdump.org/linktypes.html> that we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet header.
    Ethernet,
    /// An IP packet, of either version.
    Raw,
    /// The header of captures on all devices at once (`-i any`), first version.
    Cooked,
    /// The same, second version.
    Cooked2,
    /// None that we know.
    Unknown(u32),
}

impl Link {
    /// The link type with this number in a capture file.
    #[must_use]
    pub fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Ethernet,
            // 12 and 14 are what BSDs wrote for 101; 228 and 229 promise one family.
            12 | 14 | 101 | 228 | 229 => Self::Raw,
            113 => Self::Cooked,
            276 => Self::Cooked2,
            other => Self::Unknown(other),
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ethernet => f.write_str("Ethernet"),
            Self::Raw => f.write_str("raw IP"),
            Self::Cooked => f.write_str("Linux cooked"),
            Self::Cooked2 => f.write_str("Linux cooked v2"),
            Self::Unknown(number) => write!(f, "link type {number}"),
        }
    }
}

/// One frame of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its place in the file, from 1.
    pub number: u64,
    /// When it was captured, since 1970 (UTC); `None` where the file does not say.
    pub time: Option<Duration>,
    /// What it begins with; `None` where the file does not say.
    pub link: Option<Link>,
    /// The bytes that were captured.
    pub bytes: &'a [u8],
    /// How many bytes it had on the wire: at least those captured.
    pub wire_len: usize,
}

/// Why no (more) frames can be read.
#[derive(Debug)]
pub enum Error {
    /// The input failed.
    Io(io::Error),
    /// The input is garbled or cut.
    Garbled {
        /// Where: "byte 24", "line 3".
        at: String,
        /// What is wrong there, and what to do.
        what: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Garbled { at, what } => write!(f, "{at}: {what}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn garbled(at: u64, what: impl Into<String>) -> Error {
    Error::Garbled {
        at: format!("byte {at}"),
        what: what.into(),
    }
}

/// A capture that is being read.
pub struct Capture<R> {
    format: Format<R>,
    number: u64,
}

enum Format<R> {
    Pcap(pcap::Reader<R>),
    Pcapng(pcapng::Reader<R>),
    Hex(hex::Reader<R>),
}

/// A frame as the readers of the formats give it; its bytes are in their buffers.
struct Record {
    time: Option<Duration>,
    link: Option<Link>,
    wire_len: usize,
}

impl<R: BufRead> Capture<R> {
    /// Finds out what the input is, and reads its beginning.
    ///
    /// # Errors
    /// If it cannot be read, is empty, or is none of the formats; the message says what it looks like.
    pub fn open(input: R) -> Result<Self, Error> {
        let mut input = Bytes { input, at: 0 };
        let mut magic = [0; 4];
        let len = input.peek(&mut magic)?;
        let format = match magic {
            _ if len == 0 => return Err(garbled(0, "the input is empty")),
            pcapng::MAGIC => Format::Pcapng(pcapng::Reader::new(input, magic)),
            _ if len == magic.len() && pcap::is_magic(magic) => {
                Format::Pcap(pcap::Reader::open(input, magic)?)
            }
            [0x1f, 0x8b, ..] => {
                return Err(garbled(0, "compressed by gzip: unpack it first (gunzip)"));
            }
            [0x28, 0xb5, 0x2f, 0xfd] => {
                return Err(garbled(0, "compressed by zstd: unpack it first (unzstd)"));
            }
            _ if magic[..len].iter().all(|&byte| hex::is_text(byte)) => {
                Format::Hex(hex::Reader::new(input.input, magic[..len].to_vec()))
            }
            _ => {
                let what = format!(
                    "{:02x?} begins neither pcap nor pcapng nor hex text",
                    &magic[..len]
                );
                return Err(garbled(0, what));
            }
        };
        Ok(Self { format, number: 0 })
    }

    /// The next frame; `None` at the end.
    ///
    /// # Errors
    /// If the input fails, is garbled or cut. No frame can be read after that.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, Error> {
        let (record, bytes) = match &mut self.format {
            Format::Pcap(reader) => (reader.next_record()?, &reader.bytes),
            Format::Pcapng(reader) => (reader.next_record()?, &reader.bytes),
            Format::Hex(reader) => (reader.next_record()?, &reader.bytes),
        };
        let Some(record) = record else {
            return Ok(None);
        };
        self.number += 1;
        Ok(Some(Frame {
            number: self.number,
            time: record.time,
            link: record.link,
            bytes,
            wire_len: record.wire_len.max(bytes.len()),
        }))
    }

    /// Things seen in the frames so far that a person should know: lines of hex text that do not fit. Each is given once.
    pub fn take_complaints(&mut self) -> Vec<String> {
        match &mut self.format {
            Format::Hex(reader) => std::mem::take(&mut reader.complaints),
            Format::Pcap(_) | Format::Pcapng(_) => Vec::new(),
        }
    }
}

/// The input, and how far it was read.
struct Bytes<R> {
    input: R,
    at: u64,
}

impl<R: BufRead> Bytes<R> {
    /// Reads up to `buffer.len()` bytes, fewer at the end.
    fn peek(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let mut len = 0;
        while len < buffer.len() {
            match self.input.read(&mut buffer[len..]) {
                Ok(0) => break,
                Ok(more) => len += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.at += len as u64;
        Ok(len)
    }

    /// Fills the buffer, or says that the file ends within `what`. `false` if it ends just before.
    fn fill(&mut self, buffer: &mut [u8], what: fmt::Arguments<'_>) -> Result<bool, Error> {
        match self.peek(buffer)? {
            0 if !buffer.is_empty() => Ok(false),
            len if len == buffer.len() => Ok(true),
            len => {
                let wanted = buffer.len();
                Err(garbled(
                    self.at,
                    format!("the file ends within {what}: {len} of its {wanted} bytes are there"),
                ))
            }
        }
    }

    /// Like [`fill`](Self::fill), where the end just before is within something, too.
    fn must_fill(&mut self, buffer: &mut [u8], what: fmt::Arguments<'_>) -> Result<(), Error> {
        if self.fill(buffer, what)? {
            return Ok(());
        }
        let wanted = buffer.len();
        Err(garbled(
            self.at,
            format!("the file ends within {what}: none of its {wanted} bytes are there"),
        ))
    }
}

/// The byte order of the machine that wrote a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Little,
    Big,
}

impl Order {
    fn u16(self, bytes: &[u8], at: usize) -> u16 {
        let two = [bytes[at], bytes[at + 1]];
        match self {
            Self::Little => u16::from_le_bytes(two),
            Self::Big => u16::from_be_bytes(two),
        }
    }

    fn u32(self, bytes: &[u8], at: usize) -> u32 {
        let four = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        match self {
            Self::Little => u32::from_le_bytes(four),
            Self::Big => u32::from_be_bytes(four),
        }
    }
}

/// A length in a file as a length in memory. None is wider than this on the machines we run on.
fn length(stated: u32) -> usize {
    usize::try_from(stated).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
