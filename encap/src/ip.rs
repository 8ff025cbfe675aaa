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
