//! The ICMP messages of our probes: echo requests built, replies and errors recognised. No I/O.
//!
//! Echo request and reply (RFC 792; RFC 4443 §4.1, §4.2): ICMP types 8 and 0, ICMPv6 types 128 and 129.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |     Type      |     Code      |          Checksum             |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |           Identifier          |        Sequence Number        |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |     Data ...
//! ```
//!
//! Errors carry the beginning of the packet they are about, and the two that speak of size an MTU: Fragmentation
//! Needed (RFC 1191 §4, type 3 code 4) in 16 bits, Packet Too Big (RFC 4443 §3.2, type 2) in 32.
//!
//! ```text
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |     Type      |     Code      |          Checksum             |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |        unused = 0 (v4)        |       Next-Hop MTU (v4)       |
//! |                          MTU (v6)                             |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |     the offending packet: its IP header and at least 8 bytes
//! ```

use std::fmt;
use std::net::IpAddr;

use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, Icmpv6Header, Icmpv6Slice, Icmpv6Type,
    LaxIpSlice, icmpv4,
};

/// An ICMP or ICMPv6 error about one of our probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// Who sent it.
    pub from: IpAddr,
    /// The ICMP type (of ICMPv6, when `from` is an IPv6 address).
    pub kind: u8,
    /// The code, whose meaning depends on the type.
    pub code: u8,
    /// The MTU it tells, in bytes of IP packet: Fragmentation Needed and Packet Too Big only.
    pub mtu: Option<u32>,
    /// Number of the probe it is about, counted from 0.
    pub probe: u64,
}

impl IcmpError {
    /// The packet was larger than a link on the way: Fragmentation Needed or Packet Too Big.
    pub fn is_too_big(&self) -> bool {
        self.mtu.is_some()
    }

    /// TTL or hop limit ran out on the way (not: a fragment was missed).
    pub fn is_time_exceeded(&self) -> bool {
        (self.kind, self.code) == (if self.from.is_ipv4() { 11 } else { 3 }, 0)
    }

    /// There is no way, or no one there. Fragmentation Needed, though of the same ICMP type, is not meant.
    pub fn is_unreachable(&self) -> bool {
        self.kind == (if self.from.is_ipv4() { 3 } else { 1 }) && !self.is_too_big()
    }

    /// What the type and code say, in the words of their RFCs.
    pub fn what(&self) -> &'static str {
        match (self.from.is_ipv4(), self.kind, self.code) {
            (true, 3, 0) => "Network Unreachable",
            (true, 3, 1) => "Host Unreachable",
            (true, 3, 2) => "Protocol Unreachable",
            (true, 3, 3) => "Port Unreachable",
            (true, 3, 4) => "Fragmentation Needed",
            (true, 3, 9 | 10 | 13) | (false, 1, 1) => "Administratively Prohibited",
            (true, 3, _) => "Destination Unreachable",
            (true, 11, 0) => "Time Exceeded",
            (true, 11, _) | (false, 3, 1) => "Reassembly Time Exceeded",
            (false, 1, 0) => "No Route to Destination",
            (false, 1, 3) => "Address Unreachable",
            (false, 1, 4) => "Port Unreachable",
            (false, 1, 5) => "Source Address Failed Policy",
            (false, 1, 6) => "Reject Route",
            (false, 1, _) => "Destination Unreachable",
            (false, 2, _) => "Packet Too Big",
            (false, 3, 0) => "Hop Limit Exceeded",
            (true, 12, _) | (false, 4, _) => "Parameter Problem",
            _ => "ICMP error",
        }
    }
}

impl fmt::Display for IcmpError {
    /// `Fragmentation Needed, MTU 1450, from 10.244.1.0`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what())?;
        if let Some(mtu) = self.mtu {
            write!(f, ", MTU {mtu}")?;
        }
        write!(f, ", from {}", self.from)
    }
}

/// An echo request as a raw socket takes it: from the ICMP header on. Of ICMPv6 the kernel sets the checksum, which
/// covers the source address it chooses (RFC 3542 §3.1).
pub(super) fn echo_request(dst: IpAddr, id: u16, seq: u16, payload: &[u8]) -> Vec<u8> {
    let echo = IcmpEchoHeader { id, seq };
    let mut message = Vec::with_capacity(8 + payload.len());
    match dst {
        IpAddr::V4(_) => {
            let header = Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), payload);
            message.extend_from_slice(&header.to_bytes());
        }
        IpAddr::V6(_) => {
            message.extend_from_slice(&Icmpv6Header::new(Icmpv6Type::EchoRequest(echo)).to_bytes())
        }
    }
    message.extend_from_slice(payload);
    message
}

/// What a raw socket heard, as far as it can be about a probe of ours.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard<'a> {
    /// An echo reply.
    Reply {
        id: u16,
        seq: u16,
        payload: &'a [u8],
    },
    /// An error about an echo request that was on its way to `dst`.
    Error {
        kind: u8,
        code: u8,
        mtu: Option<u32>,
        dst: IpAddr,
        id: u16,
        seq: u16,
    },
}

/// Reads what a raw ICMP socket delivers: the whole packet with its IP header (raw(7)).
pub(super) fn parse_v4(packet: &[u8]) -> Option<Heard<'_>> {
    let (ip, _) = LaxIpSlice::from_slice(packet).ok()?;
    let icmp = Icmpv4Slice::from_slice(ip.payload().payload).ok()?;
    let mtu = match icmp.icmp_type() {
        Icmpv4Type::EchoReply(IcmpEchoHeader { id, seq }) => {
            return Some(Heard::Reply {
                id,
                seq,
                payload: icmp.payload(),
            });
        }
        Icmpv4Type::DestinationUnreachable(
            icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu },
        ) => Some(u32::from(next_hop_mtu)),
        Icmpv4Type::DestinationUnreachable(_)
        | Icmpv4Type::TimeExceeded(_)
        | Icmpv4Type::ParameterProblem(_) => None,
        _ => return None,
    };
    quoted(icmp.type_u8(), icmp.code_u8(), mtu, icmp.payload())
}

/// Reads what a raw ICMPv6 socket delivers: the message without its IP header (RFC 3542 §3).
pub(super) fn parse_v6(message: &[u8]) -> Option<Heard<'_>> {
    let icmp = Icmpv6Slice::from_slice(message).ok()?;
    let mtu = match icmp.icmp_type() {
        Icmpv6Type::EchoReply(IcmpEchoHeader { id, seq }) => {
            return Some(Heard::Reply {
                id,
                seq,
                payload: icmp.payload(),
            });
        }
        Icmpv6Type::PacketTooBig { mtu } => Some(mtu),
        // The error types are those below 128 (RFC 4443 §2.1); a code that etherparse does not know is one too.
        _ if icmp.type_u8() < 128 => None,
        _ => return None,
    };
    quoted(icmp.type_u8(), icmp.code_u8(), mtu, icmp.payload())
}

/// Finds the echo request in the packet that an error quotes, cut short as it may be.
fn quoted(kind: u8, code: u8, mtu: Option<u32>, packet: &[u8]) -> Option<Heard<'static>> {
    let (ip, _) = LaxIpSlice::from_slice(packet).ok()?;
    let payload = ip.payload().payload;
    let echo = match ip {
        LaxIpSlice::Ipv4(_) if ip.payload_ip_number() == etherparse::IpNumber::ICMP => {
            match Icmpv4Slice::from_slice(payload).ok()?.icmp_type() {
                Icmpv4Type::EchoRequest(echo) => echo,
                _ => return None,
            }
        }
        LaxIpSlice::Ipv6(_) if ip.payload_ip_number() == etherparse::IpNumber::IPV6_ICMP => {
            match Icmpv6Slice::from_slice(payload).ok()?.icmp_type() {
                Icmpv6Type::EchoRequest(echo) => echo,
                _ => return None,
            }
        }
        _ => return None,
    };
    Some(Heard::Error {
        kind,
        code,
        mtu,
        dst: ip.destination_addr(),
        id: echo.id,
        seq: echo.seq,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    const V4: ([u8; 4], [u8; 4]) = ([10, 244, 1, 2], [10, 244, 2, 2]);

    fn v6(last: u8) -> [u8; 16] {
        let mut address = [0; 16];
        (address[0], address[15]) = (0xfd, last);
        address
    }

    fn request_v4(payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv4(V4.0, V4.1, 64)
            .icmpv4_echo_request(7, 9)
            .write(&mut packet, payload)
            .unwrap();
        packet
    }

    #[test]
    fn an_echo_request_has_the_bytes_of_rfc_792() {
        let message = echo_request(IpAddr::from(V4.1), 0x1234, 0x0102, b"abcd");
        assert_eq!(message[..2], [8, 0]);
        assert_eq!(message[4..], *b"\x12\x34\x01\x02abcd");
        // 0x0800 + 0x1234 + 0x0102 + 0x6162 + 0x6364 = 0xdffc, complemented.
        assert_eq!(message[2..4], [0x20, 0x03]);
        let message = echo_request(IpAddr::from(v6(1)), 0x1234, 0x0102, b"abcd");
        assert_eq!(
            message, b"\x80\0\0\0\x12\x34\x01\x02abcd",
            "the kernel fills the checksum"
        );
    }

    #[test]
    fn a_reply_is_recognised() {
        let mut packet = Vec::new();
        PacketBuilder::ipv4(V4.1, V4.0, 64)
            .icmpv4_echo_reply(7, 9)
            .write(&mut packet, b"hello")
            .unwrap();
        let expected = Heard::Reply {
            id: 7,
            seq: 9,
            payload: b"hello",
        };
        assert_eq!(parse_v4(&packet), Some(expected));
        // One's own request, which the loopback shows, is not.
        assert_eq!(parse_v4(&request_v4(b"hello")), None);
        let expected = Heard::Reply {
            id: 7,
            seq: 9,
            payload: b"hello",
        };
        assert_eq!(parse_v6(b"\x81\0\0\0\0\x07\0\x09hello"), Some(expected));
    }

    #[test]
    fn an_error_tells_the_probe_and_the_mtu() {
        let probe = request_v4(&[0; 1400]);
        let mut packet = Vec::new();
        let kind = Icmpv4Type::DestinationUnreachable(
            icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 },
        );
        // The least that a router may quote: the IP header and 8 bytes.
        PacketBuilder::ipv4([10, 244, 1, 0], V4.0, 64)
            .icmpv4(kind)
            .write(&mut packet, &probe[..28])
            .unwrap();
        let expected = Heard::Error {
            kind: 3,
            code: 4,
            mtu: Some(1400),
            dst: IpAddr::from(V4.1),
            id: 7,
            seq: 9,
        };
        assert_eq!(parse_v4(&packet), Some(expected));
        // One byte less is about a probe that cannot be told.
        let mut short = Vec::new();
        PacketBuilder::ipv4([10, 244, 1, 0], V4.0, 64)
            .icmpv4(Icmpv4Type::TimeExceeded(
                icmpv4::TimeExceededCode::TtlExceededInTransit,
            ))
            .write(&mut short, &probe[..27])
            .unwrap();
        assert_eq!(parse_v4(&short), None);
    }

    #[test]
    fn an_error_about_other_traffic_is_none_of_ours() {
        let mut udp = Vec::new();
        PacketBuilder::ipv4(V4.0, V4.1, 64)
            .udp(8, 0)
            .write(&mut udp, &[8, 0, 0, 0, 0, 7, 0, 9])
            .unwrap();
        let mut packet = Vec::new();
        PacketBuilder::ipv4(V4.1, V4.0, 64)
            .icmpv4(Icmpv4Type::DestinationUnreachable(
                icmpv4::DestUnreachableHeader::Port,
            ))
            .write(&mut packet, &udp)
            .unwrap();
        assert_eq!(parse_v4(&packet), None);
    }

    #[test]
    fn a_packet_too_big_about_a_fragment_is_recognised() {
        // IPv6, next header 44 (fragment, first of several), then the echo request.
        let mut quoted = vec![0x60, 0, 0, 0, 0, 16, 44, 64];
        quoted.extend(v6(1));
        quoted.extend(v6(2));
        quoted.extend([58, 0, 0, 1, 0, 0, 0, 5]);
        quoted.extend([128, 0, 0, 0, 0, 7, 0, 9]);
        let mut message = vec![2, 0, 0, 0, 0, 0, 5, 0];
        message.extend(quoted);
        let expected = Heard::Error {
            kind: 2,
            code: 0,
            mtu: Some(1280),
            dst: IpAddr::from(v6(2)),
            id: 7,
            seq: 9,
        };
        assert_eq!(parse_v6(&message), Some(expected));
    }

    #[test]
    fn errors_speak_plainly() {
        let mut error = IcmpError {
            from: IpAddr::from([10, 244, 1, 0]),
            kind: 3,
            code: 4,
            mtu: Some(1450),
            probe: 0,
        };
        assert_eq!(
            error.to_string(),
            "Fragmentation Needed, MTU 1450, from 10.244.1.0"
        );
        assert!(error.is_too_big() && !error.is_unreachable() && !error.is_time_exceeded());
        (error.code, error.mtu) = (0, None);
        assert_eq!(error.to_string(), "Network Unreachable, from 10.244.1.0");
        assert!(error.is_unreachable());
        error.from = IpAddr::from(v6(1));
        assert_eq!(error.to_string(), "Hop Limit Exceeded, from fd00::1");
        assert!(error.is_time_exceeded() && !error.is_unreachable());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_v4(&bytes);
            let _ = parse_v6(&bytes);
            let mut wrapped = vec![3, 4, 0, 0, 0, 0, 5, 0];
            wrapped.extend(&bytes);
            let _ = parse_v6(&wrapped);
        }
    }
}
