//! IPv6: the header (RFC 8200 section 3) and the walk along its extension headers (section 4).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |Version|    DSCP   |ECN|              Flow label               |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |        Payload length         |  Next header  |   Hop limit   |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                                                               |
//! +                   Source address (16 bytes)                   +
//! |                                                               |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                                                               |
//! +                Destination address (16 bytes)                 +
//! |                                                               |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```

use std::net::Ipv6Addr;

use crate::{Fragment, Reject};

/// Length of the header in bytes, without extension headers.
pub const HEADER_LEN: usize = 40;
/// Offset of the payload length field in the header.
pub const PAYLOAD_LEN: usize = 4;
/// The longest chain of extension headers that we follow. RFC 8200 section 4.1 has at most seven kinds of
/// them, only one of which may come twice; a longer chain is an attempt to keep us busy (RFC 9098).
pub const MAX_EXTENSIONS: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// The IPv6 header without extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Bytes after this header, extension headers included.
    pub payload_len: u16,
    /// Kind of the header that follows.
    pub next_header: u8,
    /// Time to live in hops.
    pub hop_limit: u8,
    /// Source address.
    pub src: Ipv6Addr,
    /// Destination address.
    pub dst: Ipv6Addr,
}

impl Ipv6 {
    /// Reads the header at the start of a packet. Bytes after the payload length are tolerated; a payload
    /// length of 0 means none (jumbograms, RFC 2675, do not fit into a UDP datagram).
    ///
    /// # Errors
    /// [`Reject::BadVersion`] if this is not version 6, [`Reject::Truncated`] if the header or the payload
    /// length runs past the bytes.
    pub fn parse(packet: &[u8]) -> Result<Self, Reject> {
        match packet.first() {
            None => return Err(Reject::Truncated),
            Some(first) if first >> 4 != 6 => return Err(Reject::BadVersion),
            Some(_) => {}
        }
        let (h, rest) = packet
            .split_first_chunk::<HEADER_LEN>()
            .ok_or(Reject::Truncated)?;
        let (mut src, mut dst) = ([0; 16], [0; 16]);
        src.copy_from_slice(&h[8..24]);
        dst.copy_from_slice(&h[24..40]);
        let header = Self {
            traffic_class: h[0] << 4 | h[1] >> 4,
            flow_label: u32::from_be_bytes([0, h[1] & 0x0f, h[2], h[3]]),
            payload_len: u16::from_be_bytes([h[4], h[5]]),
            next_header: h[6],
            hop_limit: h[7],
            src: src.into(),
            dst: dst.into(),
        };
        if usize::from(header.payload_len) > rest.len() {
            Err(Reject::Truncated)
        } else {
            Ok(header)
        }
    }

    /// The header's bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let first = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0x000f_ffff;
        let mut h = [0; HEADER_LEN];
        h[0..4].copy_from_slice(&first.to_be_bytes());
        h[4..6].copy_from_slice(&self.payload_len.to_be_bytes());
        h[6] = self.next_header;
        h[7] = self.hop_limit;
        h[8..24].copy_from_slice(&self.src.octets());
        h[24..40].copy_from_slice(&self.dst.octets());
        h
    }
}

/// Where the extension headers lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upper {
    /// The first next-header value that is not an extension header.
    pub protocol: u8,
    /// Offset of that header from the start of the packet.
    pub offset: usize,
    /// What a fragment header on the way said.
    pub fragment: Fragment,
    /// A routing header on the way has stations left: the destination address is not yet the last one.
    pub source_routed: bool,
}

/// Walks the extension headers to the transport header. `packet` must end where the payload length says.
///
/// Stops at the fragment header of a later fragment (what follows is payload), and at ESP, "no next header"
/// and whatever is not an extension header, as `ipv6_skip_exthdr` of Linux (net/ipv6/exthdrs_core.c) does.
///
/// ```text
///  hop-by-hop, routing, destination (RFC 8200 section 4.3 to 4.6): length in units of 8 bytes, the first not counted
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |  Next header  |    Length     | routing: type | stations left |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
///  authentication (RFC 4302 section 2): length in units of 4 bytes, minus 2
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |  Next header  |    Length     |           Reserved            |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
///  fragment (RFC 8200 section 4.5): always 8 bytes, the offset in units of 8 bytes
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |  Next header  |   Reserved    |     Fragment offset     |Res|M|
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                         Identification                        |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
///
/// # Errors
/// [`Reject::BadHeader`] if a header runs past the packet or there are more than [`MAX_EXTENSIONS`].
pub fn walk(packet: &[u8], next_header: u8) -> Result<Upper, Reject> {
    let mut upper = Upper {
        protocol: next_header,
        offset: HEADER_LEN,
        fragment: Fragment::None,
        source_routed: false,
    };
    for _ in 0..=MAX_EXTENSIONS {
        if !matches!(
            upper.protocol,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION
        ) {
            return Ok(upper);
        }
        let header = packet.get(upper.offset..).unwrap_or_default();
        let &[next, len, third, fourth] = header.first_chunk::<4>().ok_or(Reject::BadHeader)?;
        let header_len = match upper.protocol {
            FRAGMENT => 8,
            AUTHENTICATION => (usize::from(len) + 2) * 4,
            _ => (usize::from(len) + 1) * 8,
        };
        if header_len > header.len() {
            return Err(Reject::BadHeader);
        }
        if upper.protocol == FRAGMENT {
            let offset_more = u16::from_be_bytes([third, fourth]);
            upper.fragment = Fragment::of(offset_more >> 3, offset_more & 1 != 0);
        }
        upper.source_routed |= upper.protocol == ROUTING && fourth != 0;
        upper.protocol = next;
        upper.offset += header_len;
        if upper.fragment == Fragment::Later {
            return Ok(upper);
        }
    }
    Err(Reject::BadHeader)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use proptest::prelude::*;

    /// An IPv6 packet of these next headers, each 8 bytes long, ending in UDP.
    fn chain(kinds: &[u8]) -> Vec<u8> {
        let following = kinds.iter().skip(1).copied().chain([17]);
        let extensions: Vec<u8> = following
            .flat_map(|next| [next, 0, 0, 0, 0, 0, 0, 0])
            .take(kinds.len() * 8)
            .collect();
        let header = Ipv6 {
            traffic_class: 0,
            flow_label: 0,
            payload_len: u16::try_from(extensions.len() + 8).unwrap(),
            next_header: kinds.first().copied().unwrap_or(17),
            hop_limit: 64,
            src: Ipv6Addr::LOCALHOST,
            dst: Ipv6Addr::LOCALHOST,
        };
        [&header.emit()[..], &extensions, &[0; 8]].concat()
    }

    fn walked(packet: &[u8]) -> Result<Upper, Reject> {
        walk(packet, Ipv6::parse(packet).unwrap().next_header)
    }

    #[test]
    fn the_walk_has_a_bound() {
        let upper = walked(&chain(&[DESTINATION; MAX_EXTENSIONS])).unwrap();
        assert_eq!(
            (upper.protocol, upper.offset),
            (17, 40 + 8 * MAX_EXTENSIONS)
        );
        assert_eq!(
            walked(&chain(&[DESTINATION; MAX_EXTENSIONS + 1])),
            Err(Reject::BadHeader)
        );
    }

    #[test]
    fn fragments() {
        let with = |offset_more: u16| {
            let mut packet = chain(&[HOP_BY_HOP, FRAGMENT, DESTINATION]);
            packet[50..52].copy_from_slice(&offset_more.to_be_bytes());
            walked(&packet).unwrap()
        };
        // An atomic fragment and a first one have the whole chain, a later one has payload instead.
        assert_eq!(
            with(0),
            Upper {
                protocol: 17,
                offset: 64,
                fragment: Fragment::None,
                source_routed: false
            }
        );
        assert_eq!(
            with(1),
            Upper {
                protocol: 17,
                offset: 64,
                fragment: Fragment::First,
                source_routed: false
            }
        );
        for offset_more in [8, 9, 0xfff8] {
            let later = Upper {
                protocol: DESTINATION,
                offset: 56,
                fragment: Fragment::Later,
                source_routed: false,
            };
            assert_eq!(with(offset_more), later);
        }
    }

    #[test]
    fn a_routing_header_with_stations_left() {
        let mut packet = chain(&[ROUTING]);
        assert!(!walked(&packet).unwrap().source_routed);
        packet[43] = 1;
        assert!(walked(&packet).unwrap().source_routed);
    }

    #[test]
    fn the_walk_stops_at_what_it_does_not_know() {
        for kind in [50, 59, 58, 135, 253] {
            assert_eq!(walked(&chain(&[kind])).unwrap().protocol, kind);
        }
    }

    #[test]
    fn a_chain_cut_short_is_refused() {
        let packet = chain(&[HOP_BY_HOP, DESTINATION]);
        for len in 40..56 {
            assert_eq!(
                walk(&packet[..len], HOP_BY_HOP),
                Err(Reject::BadHeader),
                "{len}"
            );
        }
        let mut packet = chain(&[DESTINATION]);
        packet[41] = 255;
        assert_eq!(walked(&packet), Err(Reject::BadHeader));
    }

    proptest! {
        #[test]
        fn emit_then_parse_is_the_identity(
            traffic_class: u8, flow_label in 0u32..1 << 20, payload_len in 0u16..50, next_header: u8, hop_limit: u8,
            src: u128, dst: u128, padding in 0usize..9,
        ) {
            let header = Ipv6 {
                traffic_class, flow_label, payload_len, next_header, hop_limit, src: src.into(), dst: dst.into(),
            };
            let mut packet = header.emit().to_vec();
            packet.resize(40 + usize::from(payload_len) + padding, 0);
            prop_assert_eq!(Ipv6::parse(&packet), Ok(header));
            for len in 0..40 + usize::from(payload_len) {
                prop_assert_eq!(Ipv6::parse(&packet[..len]), Err(Reject::Truncated));
            }
            packet[0] = packet[0] & 0x0f | 0x40;
            prop_assert_eq!(Ipv6::parse(&packet), Err(Reject::BadVersion));
        }

        #[test]
        fn reads_what_etherparse_writes(oracle in testing::ipv6_header()) {
            let expected = oracle.to_bytes();
            let ip = Ipv6::parse(&expected).unwrap();
            prop_assert_eq!(ip.emit(), expected);
            prop_assert_eq!((ip.traffic_class, ip.flow_label), (oracle.traffic_class, oracle.flow_label.value()));
            prop_assert_eq!((ip.src, ip.dst), (oracle.source_addr(), oracle.destination_addr()));
        }
    }
}
