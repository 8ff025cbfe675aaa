//! UDP: the header (RFC 768).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |          Source port          |       Destination port        |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |            Length             |           Checksum            |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```

use crate::Reject;

/// Protocol number of UDP.
pub const PROTOCOL: u8 = 17;
/// Length of the header in bytes.
pub const HEADER_LEN: usize = 8;
/// Offset of the length field in the header.
pub const LEN: usize = 4;
/// Offset of the checksum field in the header.
pub const CHECKSUM: usize = 6;

/// A checksum as it is sent: one that comes out as 0 is sent as 0xffff, because 0 means that there is none.
#[must_use]
pub const fn nonzero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// The UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp {
    /// Source port.
    pub src: u16,
    /// Destination port.
    pub dst: u16,
    /// Header and payload in bytes.
    pub len: u16,
    /// As on the wire; 0 means "none" over IPv4.
    pub checksum: u16,
}

impl Udp {
    /// Reads the header at the start of what IP carries. Bytes after the stated length are tolerated.
    ///
    /// # Errors
    /// [`Reject::Truncated`] if the header or the stated length runs past the bytes, [`Reject::BadHeader`] if
    /// the stated length is shorter than the header.
    pub fn parse(bytes: &[u8]) -> Result<Self, Reject> {
        let &[s, t, d, e, l, m, c, k] =
            bytes.first_chunk::<HEADER_LEN>().ok_or(Reject::Truncated)?;
        let udp = Self {
            src: u16::from_be_bytes([s, t]),
            dst: u16::from_be_bytes([d, e]),
            len: u16::from_be_bytes([l, m]),
            checksum: u16::from_be_bytes([c, k]),
        };
        match usize::from(udp.len) {
            len if len < HEADER_LEN => Err(Reject::BadHeader),
            len if len > bytes.len() => Err(Reject::Truncated),
            _ => Ok(udp),
        }
    }

    /// The header's bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let [[s, t], [d, e], [l, m], [c, k]] =
            [self.src, self.dst, self.len, self.checksum].map(u16::to_be_bytes);
        [s, t, d, e, l, m, c, k]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn emit_then_parse_is_the_identity(src: u16, dst: u16, checksum: u16, payload in 0u16..100, spare in 0usize..9) {
            let header = Udp { src, dst, len: 8 + payload, checksum };
            let mut bytes = header.emit().to_vec();
            bytes.resize(usize::from(header.len) + spare, 0);
            prop_assert_eq!(Udp::parse(&bytes), Ok(header));
            let oracle = etherparse::UdpHeader { source_port: src, destination_port: dst, length: 8 + payload, checksum };
            prop_assert_eq!(header.emit(), oracle.to_bytes());
            for len in 0..usize::from(header.len) {
                prop_assert_eq!(Udp::parse(&bytes[..len]), Err(Reject::Truncated));
            }
        }

        #[test]
        fn a_length_below_the_header_is_refused(len in 0u16..8) {
            let bytes = Udp { src: 1, dst: 2, len, checksum: 0 }.emit();
            prop_assert_eq!(Udp::parse(&bytes), Err(Reject::BadHeader));
        }
    }
}
