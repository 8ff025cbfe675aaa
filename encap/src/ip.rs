//! The inner packet in one look: what the packet path needs to know of it, checked against the bytes.

use std::net::IpAddr;

use crate::ipv4::{self, Ipv4};
use crate::ipv6::{self, Ipv6};
use crate::{Reject, checksum, ethernet, icmp, tcp, udp};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub const fn of(ip: &IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The family that the version nibble at the start of an IP packet states.
    ///
    /// # Errors
    /// [`Reject::Truncated`] if there is no byte, [`Reject::BadVersion`] if it is neither 4 nor 6.
    pub fn of_packet(packet: &[u8]) -> Result<Self, Reject> {
        match packet.first().ok_or(Reject::Truncated)? >> 4 {
            4 => Ok(Self::V4),
            6 => Ok(Self::V6),
            _ => Err(Reject::BadVersion),
        }
    }

    /// The EtherType that announces it.
    #[must_use]
    pub const fn ethertype(self) -> u16 {
        match self {
            Self::V4 => ethernet::IPV4,
            Self::V6 => ethernet::IPV6,
        }
    }
}

/// A packet's part in fragmentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// A whole packet. So is an IPv6 "atomic fragment": offset 0 and nothing to follow (RFC 6946).
    None,
    /// The first piece: it has the transport header, but not the whole payload.
    First,
    /// Any other piece.
    Later,
}

impl Fragment {
    /// What offset (in whatever unit) and the More Fragments bit amount to.
    #[must_use]
    pub const fn of(offset: u16, more: bool) -> Self {
        match (offset, more) {
            (0, false) => Self::None,
            (0, true) => Self::First,
            _ => Self::Later,
        }
    }
}

/// A summary of an inner IP packet. All lengths and offsets were checked against the bytes it was parsed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// IPv4 or IPv6.
    pub family: Family,
    /// The packet's length in bytes as its header states it; at most the length of the slice.
    pub total_len: usize,
    /// Offset of the transport header, after options or extension headers; of the payload in a later fragment.
    pub l4: usize,
    /// Protocol number of what stands at `l4` (IPv6: the last next-header value).
    pub protocol: u8,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// ToS byte or traffic class: DSCP in the upper six bits, ECN in the lower two.
    pub tos: u8,
    /// Its part in fragmentation.
    pub fragment: Fragment,
    /// Must it not be fragmented on the way? Always true of IPv6.
    pub dont_fragment: bool,
    /// IPv6: a routing header has stations left, so the transport checksum is not over `dst` (RFC 8200 section 8.1).
    pub source_routed: bool,
}

impl Inner {
    /// Reads the packet at the start of `bytes`; bytes after its end are tolerated. The checksum is not verified.
    ///
    /// # Errors
    /// What [`Ipv4::parse`], [`Ipv6::parse`] or [`ipv6::walk`] refuse; [`Reject::BadVersion`] for any other version.
    pub fn parse(bytes: &[u8]) -> Result<Self, Reject> {
        match Family::of_packet(bytes)? {
            Family::V4 => {
                let ip = Ipv4::parse(bytes)?;
                Ok(Self {
                    family: Family::V4,
                    total_len: usize::from(ip.total_len),
                    l4: usize::from(ip.header_len),
                    protocol: ip.protocol,
                    src: IpAddr::V4(ip.src),
                    dst: IpAddr::V4(ip.dst),
                    tos: ip.tos,
                    fragment: Fragment::of(ip.offset, ip.flags & ipv4::MF != 0),
                    dont_fragment: ip.flags & ipv4::DF != 0,
                    source_routed: false,
                })
            }
            Family::V6 => {
                let ip = Ipv6::parse(bytes)?;
                let total_len = ipv6::HEADER_LEN + usize::from(ip.payload_len);
                let upper = ipv6::walk(&bytes[..total_len], ip.next_header)?;
                Ok(Self {
                    family: Family::V6,
                    total_len,
                    l4: upper.offset,
                    protocol: upper.protocol,
                    src: IpAddr::V6(ip.src),
                    dst: IpAddr::V6(ip.dst),
                    tos: ip.traffic_class,
                    fragment: upper.fragment,
                    dont_fragment: true,
                    source_routed: upper.source_routed,
                })
            }
        }
    }

    /// Like [`parse`](Self::parse), and verifies the IPv4 header checksum, as a receiver must (RFC 1122 section 3.2.1.2).
    ///
    /// # Errors
    /// Those of `parse`, and [`Reject::BadChecksum`].
    pub fn parse_checked(bytes: &[u8]) -> Result<Self, Reject> {
        let inner = Self::parse(bytes)?;
        if inner.family == Family::V4 && checksum::sum(&bytes[..inner.l4]) != 0xffff {
            return Err(Reject::BadChecksum);
        }
        Ok(inner)
    }

    /// What follows the IP header and its options or extension headers, without trailing bytes.
    ///
    /// `packet` is the slice this was parsed from; a shorter one gives an empty slice.
    #[must_use]
    pub fn transport<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        packet.get(self.l4..self.total_len).unwrap_or_default()
    }

    /// Source and destination port of TCP or UDP. `None` for other protocols, later fragments, and where the
    /// packet ends before the ports do.
    #[must_use]
    pub fn ports(&self, packet: &[u8]) -> Option<(u16, u16)> {
        if self.fragment == Fragment::Later
            || !matches!(self.protocol, tcp::PROTOCOL | udp::PROTOCOL)
        {
            return None;
        }
        let &[s, t, d, e] = self.transport(packet).first_chunk::<4>()?;
        Some((u16::from_be_bytes([s, t]), u16::from_be_bytes([d, e])))
    }

    /// Is this a message that no ICMP error may be sent about (RFC 1812 section 4.3.2.7, RFC 4443 section 2.4)?
    ///
    /// An ICMP packet without a type byte counts as one, to be on the safe side. Of a later fragment nobody can
    /// tell; no error may be sent about those anyway.
    #[must_use]
    pub fn is_icmp_error(&self, packet: &[u8]) -> bool {
        let message_type = self.transport(packet).first().copied();
        match (self.family, self.protocol) {
            (Family::V4, icmp::PROTOCOL) => message_type.is_none_or(icmp::is_error),
            (Family::V6, icmp::PROTOCOL_V6) => message_type.is_none_or(icmp::is_error_v6),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use etherparse::{IpHeaders, IpSlice, PacketBuilder};
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn a_payload_length_of_zero_is_forty_bytes() {
        let mut packet = [0; 60];
        packet[0] = 0x60;
        packet[6] = 59;
        let inner = Inner::parse(&packet).unwrap();
        assert_eq!((inner.total_len, inner.l4, inner.protocol), (40, 40, 59));
        assert!(inner.transport(&packet).is_empty());
        // The hop-by-hop header that a jumbogram would announce itself by is not within those.
        packet[6] = 0;
        assert_eq!(Inner::parse(&packet), Err(Reject::BadHeader));
    }

    #[test]
    fn nothing_and_other_versions() {
        assert_eq!(Inner::parse(&[]), Err(Reject::Truncated));
        for version in (0..16).filter(|version| ![4, 6].contains(version)) {
            let mut packet = testing::udp4(&[]);
            packet[0] = version << 4 | 5;
            assert_eq!(Inner::parse(&packet), Err(Reject::BadVersion));
        }
    }

    #[test]
    fn ipv4_fragments() {
        let with = |flags_offset: u16| {
            let mut packet = testing::udp4(&[0; 8]);
            packet[6..8].copy_from_slice(&flags_offset.to_be_bytes());
            let inner = Inner::parse(&packet).unwrap();
            (inner.fragment, inner.dont_fragment, inner.ports(&packet))
        };
        assert_eq!(with(0x0000), (Fragment::None, false, Some((1000, 2000))));
        assert_eq!(with(0x4000), (Fragment::None, true, Some((1000, 2000))));
        assert_eq!(with(0x2000), (Fragment::First, false, Some((1000, 2000))));
        assert_eq!(with(0x2001), (Fragment::Later, false, None));
        assert_eq!(with(0x1fff), (Fragment::Later, false, None));
    }

    #[test]
    fn the_header_checksum_is_verified_on_request() {
        let mut packet = testing::udp4(b"x");
        assert!(Inner::parse_checked(&packet).is_ok());
        packet[8] -= 1;
        assert!(Inner::parse(&packet).is_ok());
        assert_eq!(Inner::parse_checked(&packet), Err(Reject::BadChecksum));
    }

    #[test]
    fn icmp_errors() {
        let v4 = |message_type: u8| {
            let mut packet = Vec::new();
            let builder = PacketBuilder::ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64);
            builder
                .icmpv4_raw(message_type, 0, [0; 4])
                .write(&mut packet, &[])
                .unwrap();
            Inner::parse(&packet).unwrap().is_icmp_error(&packet)
        };
        assert!(v4(3) && v4(11) && !v4(8) && !v4(0));
        let v6 = |message_type: u8| {
            let mut packet = Vec::new();
            let builder = PacketBuilder::ipv6([1; 16], [2; 16], 64);
            builder
                .icmpv6_raw(message_type, 0, [0; 4])
                .write(&mut packet, &[])
                .unwrap();
            Inner::parse(&packet).unwrap().is_icmp_error(&packet)
        };
        assert!(v6(1) && v6(2) && v6(137) && !v6(128) && !v6(135));
        // No type to read: on the safe side.
        let mut bare = testing::udp4(&[])[..20].to_vec();
        bare[3] = 20;
        bare[9] = icmp::PROTOCOL;
        assert!(Inner::parse(&bare).unwrap().is_icmp_error(&bare));
        let udp = testing::udp4(&[3]);
        assert!(!Inner::parse(&udp).unwrap().is_icmp_error(&udp));
    }

    /// Bytes that begin like an IP packet, so that parsing gets somewhere.
    fn almost_ip() -> impl Strategy<Value = Vec<u8>> {
        (
            vec(any::<u8>(), 0..200),
            prop_oneof![Just(0x45u8), 0x40u8..0x50, 0x60u8..0x70, any::<u8>()],
            any::<u8>(),
            any::<u8>(),
        )
            .prop_map(|(mut bytes, first, len, next)| {
                let v6 = first >> 4 == 6;
                if bytes.len() > 40 {
                    bytes[0] = first;
                    bytes[if v6 { 4 } else { 2 }] = 0;
                    bytes[if v6 { 5 } else { 3 }] = len;
                    bytes[if v6 { 6 } else { 9 }] =
                        [0, 43, 44, 51, 60, 6, 17, 58][usize::from(next % 8)];
                }
                bytes
            })
    }

    proptest! {
        #[test]
        fn agrees_with_etherparse(packet in testing::packet(100), padding in 0usize..60) {
            let mut padded = packet.clone();
            padded.resize(packet.len() + padding, 0);
            let inner = Inner::parse_checked(&padded).unwrap();
            let slice = IpSlice::from_slice(&packet).unwrap();
            prop_assert_eq!(inner.total_len, packet.len());
            prop_assert_eq!(inner.transport(&padded), slice.payload().payload);
            prop_assert_eq!(inner.protocol, slice.payload().ip_number.0);
            prop_assert_eq!((inner.src, inner.dst), (slice.source_addr(), slice.destination_addr()));
            prop_assert_eq!(inner.fragment, Fragment::None);
            let (tos, dont_fragment) = match slice.to_header() {
                IpHeaders::Ipv4(ip, _) => (ip.dscp.value() << 2 | ip.ecn.value(), ip.dont_fragment),
                IpHeaders::Ipv6(ip, _) => (ip.traffic_class, true),
            };
            prop_assert_eq!((inner.tos, inner.dont_fragment), (tos, dont_fragment));
            let verified = testing::verify(&packet);
            let ports = verified.tcp.map(|tcp| (tcp.source_port, tcp.destination_port))
                .or(verified.udp.map(|udp| (udp.source_port, udp.destination_port)));
            prop_assert_eq!(inner.ports(&padded), ports);
        }

        #[test]
        fn cut_at_any_length_is_refused(packet in testing::packet(30)) {
            for len in 0..packet.len() {
                prop_assert_eq!(Inner::parse(&packet[..len]), Err(Reject::Truncated));
            }
        }

        /// Whatever the bytes: no panic, here or in anything that takes the result, and what is accepted is in bounds.
        #[test]
        fn arbitrary_bytes(bytes in almost_ip(), mtu in 0usize..120, out in Just(Vec::new())) {
            if let Ok(inner) = Inner::parse(&bytes) {
                prop_assert!(inner.l4 <= inner.total_len && inner.total_len <= bytes.len());
                let _ = (inner.ports(&bytes), inner.is_icmp_error(&bytes), crate::flow::hash(&bytes, &inner));
                let _ = (crate::transport::l4_checksum_state(&bytes, &inner), crate::transport::looks_unfinished(&bytes, &inner));
                let mut copy = bytes.clone();
                crate::transport::complete_checksum(&mut copy, &inner);
                let mut out = out;
                if let Ok(split) = crate::Split::for_mtu(&bytes, &inner, mtu) {
                    out.resize(split.total_len(0), 0);
                    prop_assert_eq!(split.write_all(&[], &mut out, &crate::Sums::PORTABLE), out.len());
                }
                if let Ok(mut fragments) = crate::Fragments::new(&bytes, &inner, mtu) {
                    while fragments.next_into(&mut out).is_some() {}
                }
            }
        }
    }
}
