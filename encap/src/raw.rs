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
