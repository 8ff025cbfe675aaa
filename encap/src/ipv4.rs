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
/// Offset of the total length field in the header.
pub const TOTAL_LEN: usize = 2;
/// Offset of the identification field in the header.
pub const ID: usize = 4;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use proptest::prelude::*;

    /// A header with everything consistent for `total_len` bytes.
    fn header() -> impl Strategy<Value = Ipv4> {
        (
            5u8..=15,
            any::<[u8; 4]>(),
            any::<[u16; 3]>(),
            any::<[u32; 2]>(),
            0u16..40,
        )
            .prop_map(
                |(
                    words,
                    [tos, flags, ttl, protocol],
                    [id, offset, checksum],
                    [src, dst],
                    payload,
                )| Ipv4 {
                    header_len: words * 4,
                    tos,
                    total_len: u16::from(words) * 4 + payload,
                    id,
                    flags: flags >> 5,
                    offset: offset >> 3,
                    ttl,
                    protocol,
                    checksum,
                    src: src.into(),
                    dst: dst.into(),
                },
            )
    }

    fn bytes(header: &Ipv4) -> Vec<u8> {
        let mut bytes = header.emit().to_vec();
        bytes.resize(
            usize::from(header.total_len).max(usize::from(header.header_len)),
            0,
        );
        bytes
    }

    proptest! {
        #[test]
        fn emit_then_parse_is_the_identity(header in header(), padding in 0usize..30) {
            let mut packet = bytes(&header);
            packet.resize(packet.len() + padding, 0);
            prop_assert_eq!(Ipv4::parse(&packet), Ok(header));
            for len in 0..usize::from(header.total_len) {
                prop_assert_eq!(Ipv4::parse(&packet[..len]), Err(Reject::Truncated));
            }
        }

        #[test]
        fn lengths_that_disagree_are_refused(header in header(), short in 0u16..20, words in 0u8..5) {
            let mut packet = bytes(&header);
            packet[0] = 0x40 | words;
            prop_assert_eq!(Ipv4::parse(&packet), Err(Reject::BadHeader));
            let packet = bytes(&Ipv4 { total_len: short, ..header });
            prop_assert_eq!(Ipv4::parse(&packet), Err(Reject::BadHeader));
            let packet = bytes(&Ipv4 { header_len: 60, total_len: 59, ..header });
            prop_assert_eq!(Ipv4::parse(&packet), Err(Reject::BadHeader));
        }

        #[test]
        fn other_versions_are_refused(header in header(), version in 0u8..16) {
            prop_assume!(version != 4);
            let mut packet = bytes(&header);
            packet[0] = packet[0] & 0x0f | version << 4;
            prop_assert_eq!(Ipv4::parse(&packet), Err(Reject::BadVersion));
        }

        #[test]
        fn reads_and_checksums_as_etherparse_does(oracle in testing::ipv4_header(), fragment: u16, more: bool, protocol: u8) {
            let mut oracle = oracle;
            oracle.fragment_offset = (fragment >> 3).try_into().unwrap();
            oracle.more_fragments = more;
            oracle.protocol = protocol.into();
            oracle.set_payload_len(0).unwrap();
            oracle.header_checksum = oracle.calc_header_checksum();
            let expected = oracle.to_bytes();
            let ip = Ipv4::parse(&expected).unwrap();
            prop_assert_eq!(&ip.emit()[..], &expected[..20]);
            prop_assert_eq!((ip.src.octets(), ip.dst.octets()), (oracle.source, oracle.destination));
            prop_assert_eq!((ip.offset, ip.flags & MF != 0, ip.flags & DF != 0), (fragment >> 3, more, oracle.dont_fragment));
            prop_assert_eq!((ip.ttl, ip.protocol, ip.id), (oracle.time_to_live, protocol, oracle.identification));
            prop_assert_eq!((ip.tos >> 2, ip.tos & 3), (oracle.dscp.value(), oracle.ecn.value()));

            let mut filled = expected.to_vec();
            filled[CHECKSUM] ^= 0x55;
            fill_checksum(&mut filled);
            prop_assert_eq!(&filled[..], &expected[..]);
        }
    }
}
