//! flannel's udp backend: the datagram's payload is the inner IP packet and nothing else.
//!
//! ```text
//! +-----------+-----------+-----------------+
//! | outer IP  | outer UDP | inner IP packet |
//! |  20 / 40  |     8     |                 |
//! +-----------+-----------+-----------------+
//! ```

use crate::{Encapsulation, Family, Header, HeaderNotes, MacAddr, Reject, ipv4};

/// Raw IP in UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawUdp;

impl Encapsulation for RawUdp {
    const NAME: &'static str = "udp";
    const HEADER_LEN: usize = 0;

    fn overhead(outer: Family) -> u16 {
        match outer {
            Family::V4 => 28,
            Family::V6 => 48,
        }
    }

    fn header(&self, _inner: Family, _peer: MacAddr) -> Header {
        Header::EMPTY
    }

    /// There is no header: the datagram must only be long enough for the smallest IP packet.
    fn check_header(&self, datagram: &[u8]) -> Result<HeaderNotes, Reject> {
        if datagram.len() < ipv4::MIN_HEADER {
            Err(Reject::Truncated)
        } else {
            Ok(HeaderNotes::default())
        }
    }

    /// The version nibble tells the family, as nothing else does.
    fn check_link(&self, datagram: &[u8]) -> Result<Family, Reject> {
        Family::of_packet(datagram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_the_packet() {
        let peer = MacAddr([1; 6]);
        assert!(
            RawUdp.header(Family::V4, peer).is_empty()
                && RawUdp.header(Family::V6, peer).is_empty()
        );
        assert_eq!(
            (RawUdp::overhead(Family::V4), RawUdp::overhead(Family::V6)),
            (28, 48)
        );
    }

    #[test]
    fn receive_checks() {
        for len in 0..20 {
            assert_eq!(
                RawUdp.check_header(&[0x45; 20][..len]),
                Err(Reject::Truncated)
            );
        }
        assert_eq!(RawUdp.check_header(&[0x45; 20]), Ok(HeaderNotes::default()));
        assert_eq!(RawUdp.check_link(&[0x45; 20]), Ok(Family::V4));
        assert_eq!(RawUdp.check_link(&[0x60; 40]), Ok(Family::V6));
        assert_eq!(RawUdp.check_link(&[0x00; 40]), Err(Reject::BadVersion));
        assert_eq!(RawUdp.check_link(&[]), Err(Reject::Truncated));
    }
}
