//! Ethernet: addresses and the 14-byte header (IEEE 802.3; RFC 894 for IPv4, RFC 2464 for IPv6).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                  Destination MAC address                      |
//! +                               +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                               |                               |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+                               +
//! |                     Source MAC address                        |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |          EtherType            |           Payload ...         |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```

use std::fmt;
use std::str::FromStr;

use crate::Reject;

/// Length of the header in bytes, without tags or frame check sequence.
pub const HEADER_LEN: usize = 14;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of a customer VLAN tag (IEEE 802.1Q).
pub const VLAN: u16 = 0x8100;
/// EtherType of a service VLAN tag (IEEE 802.1ad, "QinQ").
pub const VLAN_SERVICE: u16 = 0x88a8;

/// A 48-bit hardware address in wire order. Written and read as `0a:58:0a:63:00:02`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Everybody.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Is the group bit set (the lowest bit of the first byte)? True of broadcast, too.
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Is this `ff:ff:ff:ff:ff:ff`?
    #[must_use]
    pub fn is_broadcast(self) -> bool {
        self == Self::BROADCAST
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseMacError;

impl fmt::Display for ParseMacError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a MAC address: write six hexadecimal bytes, like 0a:58:0a:63:00:02")
    }
}

impl std::error::Error for ParseMacError {}

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(ParseMacError)?;
            // from_str_radix alone would also take "+a" and "000a".
            if part.is_empty() || part.len() > 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(ParseMacError);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| ParseMacError)?;
        }
        if parts.next().is_some() {
            Err(ParseMacError)
        } else {
            Ok(Self(bytes))
        }
    }
}

/// The Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Destination address.
    pub dst: MacAddr,
    /// Source address.
    pub src: MacAddr,
    /// What follows; [`VLAN`] if a tag does.
    pub ethertype: u16,
}

impl Ethernet {
    /// Reads the header at the start of a frame.
    ///
    /// # Errors
    /// [`Reject::Truncated`] below 14 bytes.
    pub fn parse(frame: &[u8]) -> Result<Self, Reject> {
        let &[a, b, c, d, e, f, g, h, i, j, k, l, t, u] =
            frame.first_chunk::<HEADER_LEN>().ok_or(Reject::Truncated)?;
        Ok(Self {
            dst: MacAddr([a, b, c, d, e, f]),
            src: MacAddr([g, h, i, j, k, l]),
            ethertype: u16::from_be_bytes([t, u]),
        })
    }

    /// The header's bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..6].copy_from_slice(&self.dst.0);
        bytes[6..12].copy_from_slice(&self.src.0);
        bytes[12..].copy_from_slice(&self.ethertype.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mac_addresses_are_read_and_written() {
        let mac: MacAddr = "0a:58:0A:63:0:02".parse().unwrap();
        assert_eq!(mac, MacAddr([0x0a, 0x58, 0x0a, 0x63, 0x00, 0x02]));
        assert_eq!(mac.to_string(), "0a:58:0a:63:00:02");
        for bad in [
            "",
            "0a",
            "0a:58:0a:63:00",
            "0a:58:0a:63:00:02:03",
            "0a:58:0a:63:00:",
            "0a:58:0a:63:00:+2",
            "0a-58-0a-63-00-02",
            "0a:58:0a:63:00:002",
            "0a:58:0a:63:00:0g",
            "é:58:0a:63:00:02",
        ] {
            assert_eq!(bad.parse::<MacAddr>(), Err(ParseMacError), "{bad:?}");
        }
    }

    #[test]
    fn groups() {
        assert!(MacAddr::BROADCAST.is_broadcast() && MacAddr::BROADCAST.is_multicast());
        let all_nodes = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
        assert!(all_nodes.is_multicast() && !all_nodes.is_broadcast());
        assert!(!MacAddr([0x0a, 0x58, 1, 1, 1, 1]).is_multicast());
    }

    proptest! {
        #[test]
        fn emit_then_parse_is_the_identity(dst: [u8; 6], src: [u8; 6], ethertype: u16, rest: [u8; 3]) {
            let header = Ethernet { dst: MacAddr(dst), src: MacAddr(src), ethertype };
            let bytes = [&header.emit()[..], &rest].concat();
            prop_assert_eq!(Ethernet::parse(&bytes), Ok(header));
            let oracle = etherparse::Ethernet2Header { destination: dst, source: src, ether_type: ethertype.into() };
            prop_assert_eq!(header.emit(), oracle.to_bytes());
            for len in 0..HEADER_LEN {
                prop_assert_eq!(Ethernet::parse(&bytes[..len]), Err(Reject::Truncated));
            }
        }

        #[test]
        fn a_mac_survives_its_text(bytes: [u8; 6]) {
            prop_assert_eq!(MacAddr(bytes).to_string().parse(), Ok(MacAddr(bytes)));
        }
    }
}
