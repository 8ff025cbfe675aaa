//! The classic capture file (draft-ietf-opsawg-pcap section 4).
//!
//! ```text
//!                      1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |    Magic Number: 0xA1B2C3D4 (microseconds), 0xA1B23C4D (ns)   |  file header, once
//! |          Major Version        |         Minor Version         |
//! |                           Reserved1                           |
//! |                           Reserved2                           |
//! |                            SnapLen                            |
//! | FCS |f|0 0 0 0 0 0 0 0 0 0 0 0|         LinkType              |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                      Timestamp (Seconds)                      |  record header, once per frame
//! |            Timestamp (Microseconds or nanoseconds)            |
//! |                    Captured Packet Length                     |
//! |                    Original Packet Length                     |
//! |                  the captured bytes ...                       |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```
//!
//! Integers are in the byte order of the machine that wrote the file; the magic number tells which.

use std::io::BufRead;
use std::time::Duration;

use super::{Bytes, Error, Link, MAX_FRAME, Order, Record, garbled, length};

const MICROSECONDS: u32 = 0xa1b2_c3d4;
const NANOSECONDS: u32 = 0xa1b2_3c4d;
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;

/// Does a pcap file begin like this?
pub(super) fn is_magic(magic: [u8; 4]) -> bool {
    parse_magic(magic).is_some()
}

/// Byte order, and nanoseconds per unit of time.
fn parse_magic(magic: [u8; 4]) -> Option<(Order, u32)> {
    [Order::Little, Order::Big].into_iter().find_map(|order| {
        let unit = match order.u32(&magic, 0) {
            MICROSECONDS => 1000,
            NANOSECONDS => 1,
            _ => return None,
        };
        Some((order, unit))
    })
}

pub(super) struct Reader<R> {
    input: Bytes<R>,
    order: Order,
    unit: u32,
    link: Link,
    number: u64,
    pub(super) bytes: Vec<u8>,
}

impl<R: BufRead> Reader<R> {
    /// Reads the rest of the file header. `magic` is what [`is_magic`] was asked about.
    pub(super) fn open(mut input: Bytes<R>, magic: [u8; 4]) -> Result<Self, Error> {
        let (order, unit) = parse_magic(magic).unwrap_or((Order::Little, 1000));
        let mut header = [0; FILE_HEADER];
        input.must_fill(&mut header[4..], format_args!("the file header"))?;
        let major = order.u16(&header, 4);
        if major != 2 {
            return Err(garbled(
                4,
                format!("version {major} of the pcap format, where only 2 exists"),
            ));
        }
        Ok(Self {
            input,
            order,
            unit,
            // The upper bits may state the length of a frame check sequence.
            link: Link::from_number(order.u32(&header, 20) & 0xffff),
            number: 0,
            bytes: Vec::new(),
        })
    }

    pub(super) fn next_record(&mut self) -> Result<Option<Record>, Error> {
        self.number += 1;
        let start = self.input.at;
        let mut header = [0; RECORD_HEADER];
        if !self.input.fill(
            &mut header,
            format_args!("the header of frame {}", self.number),
        )? {
            return Ok(None);
        }
        let [seconds, fraction, captured, wire_len] =
            [0, 4, 8, 12].map(|at| self.order.u32(&header, at));
        let captured = length(captured);
        if captured > MAX_FRAME {
            let what = format!(
                "frame {} would have {captured} bytes (at most {MAX_FRAME} are possible): the file is garbled from here on",
                self.number
            );
            return Err(garbled(start, what));
        }
        self.bytes.resize(captured, 0);
        if captured > 0 {
            let number = self.number;
            self.input
                .must_fill(&mut self.bytes, format_args!("frame {number}"))?;
        }
        Ok(Some(Record {
            time: Some(
                Duration::from_secs(seconds.into())
                    + Duration::from_nanos(u64::from(fraction) * u64::from(self.unit)),
            ),
            link: Some(self.link),
            wire_len: length(wire_len),
        }))
    }
}
