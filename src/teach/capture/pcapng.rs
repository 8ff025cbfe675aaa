//! The next generation of capture files, which Wireshark writes (draft-ietf-opsawg-pcapng section 3.1).
//!
//! A file is a row of blocks, each with its length at both ends, so that unknown ones can be stepped over:
//!
//! ```text
//!                      1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                          Block Type                           |
//! |                      Block Total Length                       |
//! |             Block Body, padded to 32 bits ...                 |
//! |                      Block Total Length                       |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//!
//!  section header (0x0a0d0d0a)   byte-order magic u32, version 2 x u16, section length u64, options
//!  interface (1)                 link type u16, reserved u16, snap length u32, options
//!  enhanced packet (6)           interface u32, time 2 x u32 (high, low), captured u32, original u32, bytes
//!  packet (2, obsolete)          interface u16, drops u16, then as above
//!  simple packet (3)             original u32, bytes
//!  option                        code u16, length u16, value padded to 32 bits
//! ```

use std::io::BufRead;
use std::time::Duration;

use super::{Bytes, Error, Link, MAX_FRAME, Order, Record, garbled, length};

/// A section header block's type, which reads the same in either byte order.
pub(super) const MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 2;
const SIMPLE: u32 = 3;
const ENHANCED: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// Type and both lengths.
const FRAME_OF_BLOCK: usize = 12;
/// Room for options and the fixed fields beside a frame.
const MAX_BLOCK: usize = MAX_FRAME + 65_536;
/// Interfaces of one section that we remember. Nobody has so many; a garbled file could claim them.
const MAX_INTERFACES: usize = 4096;

struct Interface {
    link: Link,
    snap_len: usize,
    /// Units of time per second.
    units: u64,
    /// Seconds to add to every time.
    offset: i64,
}

pub(super) struct Reader<R> {
    input: Bytes<R>,
    order: Order,
    /// The type of the first block, which was read to tell the format.
    first: Option<[u8; 4]>,
    interfaces: Vec<Interface>,
    /// The bytes of the block's body before those of the frame, and after.
    body: Vec<u8>,
    pub(super) bytes: Vec<u8>,
}

impl<R: BufRead> Reader<R> {
    pub(super) fn new(input: Bytes<R>, magic: [u8; 4]) -> Self {
        Self {
            input,
            order: Order::Little,
            first: Some(magic),
            interfaces: Vec::new(),
            body: Vec::new(),
            bytes: Vec::new(),
        }
    }

    pub(super) fn next_record(&mut self) -> Result<Option<Record>, Error> {
        loop {
            let Some(kind) = self.next_block()? else {
                return Ok(None);
            };
            match kind {
                // Interfaces are numbered anew in each section.
                SECTION => self.interfaces.clear(),
                INTERFACE => self.interface()?,
                PACKET | SIMPLE | ENHANCED => return self.packet(kind).map(Some),
                _ => {}
            }
        }
    }

    /// Reads the next block's body and gives its type. The body of a block that is of no use is stepped over.
    fn next_block(&mut self) -> Result<Option<u32>, Error> {
        let start = self.input.at - if self.first.is_some() { 4 } else { 0 };
        let mut header = [0; 8];
        match self.first.take() {
            Some(magic) => {
                header[..4].copy_from_slice(&magic);
                self.input
                    .must_fill(&mut header[4..], format_args!("the section header"))?;
            }
            None if !self
                .input
                .fill(&mut header, format_args!("a block's header"))? =>
            {
                return Ok(None);
            }
            None => {}
        }
        let mut read = header.len();
        let mut prefix = Vec::new();
        if header[..4] == MAGIC {
            let mut magic = [0; 4];
            self.input
                .must_fill(&mut magic, format_args!("the section header"))?;
            self.order = [Order::Little, Order::Big]
                .into_iter()
                .find(|order| order.u32(&magic, 0) == BYTE_ORDER)
                .ok_or_else(|| {
                    let what =
                        format!("{magic:02x?} is not the byte-order magic of a pcapng section");
                    garbled(start + 8, what)
                })?;
            prefix.extend(magic);
            read += magic.len();
        }
        let kind = self.order.u32(&header, 0);
        let total = length(self.order.u32(&header, 4));
        if total % 4 != 0 || total < FRAME_OF_BLOCK + prefix.len() {
            let what =
                format!("a block of {total} bytes is impossible: the file is garbled from here on");
            return Err(garbled(start, what));
        }
        let rest = total - read - 4;
        if matches!(kind, SECTION | INTERFACE | PACKET | SIMPLE | ENHANCED) {
            if total > MAX_BLOCK {
                let what = format!(
                    "a block of {total} bytes holds more than any frame (at most {MAX_FRAME}): the file is garbled from here on"
                );
                return Err(garbled(start, what));
            }
            self.body = prefix;
            let had = self.body.len();
            self.body.resize(had + rest, 0);
            if rest > 0 {
                self.input
                    .must_fill(&mut self.body[had..], format_args!("a block"))?;
            }
        } else {
            self.skip(rest)?;
        }
        let mut trailer = [0; 4];
        self.input
            .must_fill(&mut trailer, format_args!("a block's closing length"))?;
        let closing = length(self.order.u32(&trailer, 0));
        if closing != total {
            let what = format!(
                "the block that began at byte {start} states {total} bytes at its head and {closing} at its end"
            );
            return Err(garbled(self.input.at - 4, what));
        }
        Ok(Some(kind))
    }

    fn skip(&mut self, mut len: usize) -> Result<(), Error> {
        let mut scrap = [0; 4096];
        while len > 0 {
            let part = len.min(scrap.len());
            self.input
                .must_fill(&mut scrap[..part], format_args!("a block"))?;
            len -= part;
        }
        Ok(())
    }

    /// `len` bytes of body, or an error.
    fn need(&self, len: usize, what: &str) -> Result<(), Error> {
        if self.body.len() >= len {
            return Ok(());
        }
        let have = self.body.len();
        Err(garbled(
            self.input.at,
            format!("{what} that ends here has a body of {have} bytes, and needs {len}"),
        ))
    }

    fn interface(&mut self) -> Result<(), Error> {
        self.need(8, "an interface block")?;
        if self.interfaces.len() >= MAX_INTERFACES {
            let what = format!("more than {MAX_INTERFACES} interfaces in one section");
            return Err(garbled(self.input.at, what));
        }
        let mut interface = Interface {
            link: Link::from_number(self.order.u16(&self.body, 0).into()),
            snap_len: match self.order.u32(&self.body, 4) {
                0 => usize::MAX,
                len => length(len),
            },
            units: 1_000_000,
            offset: 0,
        };
        let mut options = &self.body[8..];
        while options.len() >= 4 {
            let code = self.order.u16(options, 0);
            let len = usize::from(self.order.u16(options, 2));
            let Some(value) = options.get(4..4 + len) else {
                break;
            };
            match (code, value) {
                (0, _) => break,
                // if_tsresol: a power of 10, or of 2 with the top bit set.
                (9, &[exponent]) => {
                    let (base, exponent) = match exponent & 0x80 {
                        0 => (10u64, exponent),
                        _ => (2, exponent & 0x7f),
                    };
                    interface.units = base.checked_pow(exponent.into()).unwrap_or(u64::MAX);
                }
                // if_tsoffset
                (14, value) if len == 8 => {
                    let (low, high) = match self.order {
                        Order::Little => (0, 4),
                        Order::Big => (4, 0),
                    };
                    let bits = u64::from(self.order.u32(value, high)) << 32
                        | u64::from(self.order.u32(value, low));
                    interface.offset = i64::from_ne_bytes(bits.to_ne_bytes());
                }
                _ => {}
            }
            options = options
                .get(4 + len.next_multiple_of(4)..)
                .unwrap_or_default();
        }
        self.interfaces.push(interface);
        Ok(())
    }

    fn packet(&mut self, kind: u32) -> Result<Record, Error> {
        let fixed = if kind == SIMPLE { 4 } else { 20 };
        self.need(fixed, "a packet block")?;
        let word = |at| self.order.u32(&self.body, at);
        let number = match kind {
            SIMPLE => 0,
            PACKET => usize::from(self.order.u16(&self.body, 0)),
            _ => length(word(0)),
        };
        let interface = self.interfaces.get(number).ok_or_else(|| {
            let what = format!("a packet of interface {number}, which was not described before");
            garbled(self.input.at, what)
        })?;
        let (time, captured, wire_len) = if kind == SIMPLE {
            let wire_len = length(word(0));
            let room = self.body.len() - fixed;
            (None, wire_len.min(interface.snap_len).min(room), wire_len)
        } else {
            let ticks = u64::from(word(4)) << 32 | u64::from(word(8));
            (interface.time(ticks), length(word(12)), length(word(16)))
        };
        let Some(bytes) = captured
            .checked_add(fixed)
            .and_then(|end| self.body.get(fixed..end))
        else {
            let room = self.body.len() - fixed;
            let what = format!(
                "a packet block that ends here states {captured} captured bytes and has room for {room}"
            );
            return Err(garbled(self.input.at, what));
        };
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
        Ok(Record {
            time,
            link: Some(interface.link),
            wire_len,
        })
    }
}

impl Interface {
    fn time(&self, ticks: u64) -> Option<Duration> {
        let seconds = (ticks / self.units).checked_add_signed(self.offset)?;
        let fraction = u128::from(ticks % self.units) * 1_000_000_000 / u128::from(self.units);
        Some(Duration::new(seconds, u32::try_from(fraction).ok()?))
    }
}
