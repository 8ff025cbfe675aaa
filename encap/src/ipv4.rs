//! IPv4: the header (RFC 791 section 3.1; the ToS byte as RFC 2474 and RFC 3168 divide it).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |Version|  IHL  |    DSCP   |ECN|         Total length          |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |        Identification         |0|D|M|     Fragment offset     |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! | Time to live  |   Protocol    |        Header checksum        |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                        Source address                         |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                      Destination address                      |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                    [Options]                  |   [Padding]   |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```

use std::net::Ipv4Addr;

use crate::{Reject, checksum};

/// Length of the header in bytes, without options.
pub const MIN_HEADER: usize = 20;
/// Offset of the checksum field in the header.
pub const CHECKSUM: usize = 10;
/// The Don't Fragment bit of [`Ipv4::flags`].
pub const DF: u8 = 0b010;
/// The More Fragments bit of [`Ipv4::flags`].
pub const MF: u8 = 0b001;

/// The IPv4 header without its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// Length with options in bytes, 20 to 60, a multiple of 4.
    pub header_len: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Header and payload in bytes.
    pub total_len: u16,
    /// Identification.
    pub id: u16,
    /// Three bits: reserved, [`DF`], [`MF`].
    pub flags: u8,
    /// Fragment offset in units of 8 bytes, 13 bits.
    pub offset: u16,
    /// Time to live in hops.
    pub ttl: u8,
    /// Protocol number of the payload.
    pub protocol: u8,
    /// As on the wire; parsing does not verify it.
    pub checksum: u16,
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
}

impl Ipv4 {
    /// Reads the header at the start of a packet. Bytes after the total length (Ethernet padding) are tolerated.
    ///
    /// # Errors
    /// [`Reject::BadVersion`] if this is not version 4, [`Reject::BadHeader`] if IHL is below 5 or the total
    /// length shorter than the header, [`Reject::Truncated`] if either length runs past the bytes.
    pub fn parse(packet: &[u8]) -> Result<Self, Reject> {
        match packet.first() {
            None => return Err(Reject::Truncated),
            Some(first) if first >> 4 != 4 => return Err(Reject::BadVersion),
            Some(_) => {}
        }
        let h = packet
            .first_chunk::<MIN_HEADER>()
            .ok_or(Reject::Truncated)?;
        let flags_offset = u16::from_be_bytes([h[6], h[7]]);
        let header = Self {
            header_len: (h[0] & 0x0f) * 4,
            tos: h[1],
            total_len: u16::from_be_bytes([h[2], h[3]]),
            id: u16::from_be_bytes([h[4], h[5]]),
            flags: h[6] >> 5,
            offset: flags_offset & 0x1fff,
            ttl: h[8],
            protocol: h[9],
            checksum: u16::from_be_bytes([h[10], h[11]]),
            src: Ipv4Addr::new(h[12], h[13], h[14], h[15]),
            dst: Ipv4Addr::new(h[16], h[17], h[18], h[19]),
        };
        let (header_len, total_len) = (
            usize::from(header.header_len),
            usize::from(header.total_len),
        );
        if header_len < MIN_HEADER || total_len < header_len {
            return Err(Reject::BadHeader);
        }
        // The total length covers the header, so this catches options beyond the bytes as well.
        if total_len > packet.len() {
            return Err(Reject::Truncated);
        }
        Ok(header)
    }

    /// The bytes of the fixed part; `header_len - 20` bytes of options follow it.
    #[must_use]
    pub fn emit(&self) -> [u8; MIN_HEADER] {
        let flags_offset = u16::from(self.flags & 0b111) << 13 | self.offset & 0x1fff;
        let mut h = [0; MIN_HEADER];
        h[0] = 0x40 | (self.header_len / 4);
        h[1] = self.tos;
        h[2..4].copy_from_slice(&self.total_len.to_be_bytes());
        h[4..6].copy_from_slice(&self.id.to_be_bytes());
        h[6..8].copy_from_slice(&flags_offset.to_be_bytes());
        h[8] = self.ttl;
        h[9] = self.protocol;
        h[10..12].copy_from_slice(&self.checksum.to_be_bytes());
        h[12..16].copy_from_slice(&self.src.octets());
        h[16..20].copy_from_slice(&self.dst.octets());
        h
    }
}

/// Computes the checksum of a whole header, options included, and writes it into its field.
/// Does nothing to fewer than 20 bytes.
pub fn fill_checksum(header: &mut [u8]) {
    if header.len() >= MIN_HEADER {
        header[CHECKSUM..CHECKSUM + 2].fill(0);
        let sum = checksum::checksum(header);
        header[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    }
}
