//! The transport checksum of a TCP or UDP packet: what state it is in, and how to finish an unfinished one.
//!
//! Where the kernel hands a packet from one local interface to another it leaves the checksum to a network card that
//! never comes: the field holds the sum of the pseudo-header, uncomplemented, and the card would have added the rest
//! (`CHECKSUM_PARTIAL`, include/linux/skbuff.h).

use crate::checksum::{self, pseudo_header};
use crate::sums::Sums;
use crate::tcp::{self, Tcp};
use crate::udp::{self, Udp};
use crate::vnet::VnetHeader;
use crate::{Family, Fragment, Inner, Reject};

/// The state of a packet's transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4Checksum {
    /// It verifies.
    Valid,
    /// It holds the sum of the pseudo-header for the packet's whole length, and does not verify.
    Unfinished,
    /// There is none that we could judge: not TCP or UDP, a fragment, UDP over IPv4 without one, or IPv6 on its
    /// way through a routing header.
    Absent,
    /// It is wrong, or the transport header makes no sense. UDP over IPv6 must not go without one, so 0 is wrong there.
    Bad,
}

/// The bytes that a transport checksum covers, and where in them its field is.
struct Covered {
    len: usize,
    field: usize,
}

/// `None` if there is no TCP or UDP checksum of ours to judge, `Some(Err)` if the header makes no sense.
fn covered(packet: &[u8], inner: &Inner) -> Option<Result<Covered, Reject>> {
    if inner.fragment != Fragment::None || inner.source_routed {
        return None;
    }
    let transport = inner.transport(packet);
    match inner.protocol {
        tcp::PROTOCOL => Some(Tcp::parse(transport).map(|_| Covered {
            len: transport.len(),
            field: tcp::CHECKSUM,
        })),
        // UDP has a length of its own, and IP may carry more than that.
        udp::PROTOCOL => Some(Udp::parse(transport).map(|udp| Covered {
            len: usize::from(udp.len),
            field: udp::CHECKSUM,
        })),
        _ => None,
    }
}

fn field(transport: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([transport[at], transport[at + 1]])
}

/// What state is the transport checksum in? Takes one pass over the payload.
#[must_use]
pub fn l4_checksum_state(packet: &[u8], inner: &Inner) -> L4Checksum {
    let covered = match covered(packet, inner) {
        None => return L4Checksum::Absent,
        Some(Err(_)) => return L4Checksum::Bad,
        Some(Ok(covered)) => covered,
    };
    let transport = &inner.transport(packet)[..covered.len];
    let found = field(transport, covered.field);
    if inner.protocol == udp::PROTOCOL && found == 0 {
        return if inner.family == Family::V4 {
            L4Checksum::Absent
        } else {
            L4Checksum::Bad
        };
    }
    let pseudo = pseudo_header(inner, covered.len);
    if checksum::add(pseudo, checksum::sum(transport)) == 0xffff {
        L4Checksum::Valid
    } else if found == pseudo {
        L4Checksum::Unfinished
    } else {
        L4Checksum::Bad
    }
}

/// Does the checksum field hold the sum of the pseudo-header? A cheap first test, without a pass over the payload;
/// of finished checksums one in 65,536 looks so, too, and [`l4_checksum_state`] tells them apart.
#[must_use]
pub fn looks_unfinished(packet: &[u8], inner: &Inner) -> bool {
    match covered(packet, inner) {
        Some(Ok(covered)) => {
            field(inner.transport(packet), covered.field) == pseudo_header(inner, covered.len)
        }
        _ => false,
    }
}

/// Computes the transport checksum and writes it, whatever stood there before. Does nothing where
/// [`l4_checksum_state`] finds no checksum of ours or no sense in the header.
///
/// A UDP checksum that comes out as 0 is sent as 0xffff, because 0 means that there is none (RFC 768).
pub fn complete_checksum(packet: &mut [u8], inner: &Inner) {
    if let Some(Ok(covered)) = covered(packet, inner) {
        let pseudo = pseudo_header(inner, covered.len);
        let transport = &mut packet[inner.l4..inner.l4 + covered.len];
        fill(transport, covered.field, pseudo, inner.protocol);
    }
}

/// Finishes the checksum that `vnet` says is unfinished: sums the bytes from `csum_start` to the packet's end, in which
/// the field holds the sum of the pseudo-header, and writes the complement there (`skb_checksum_help`,
/// net/core/dev.c). `csum_start` may lie deeper than the packet's own transport header: in a pod's own tunnel.
///
/// # Errors
/// [`Reject::BadHeader`] if `vnet` has no checksum to finish, or one where the packet's headers have none: in a
/// fragment, in front of the transport payload but not in the field of TCP or UDP, or past the packet's end.
pub fn complete_partial(
    packet: &mut [u8],
    inner: &Inner,
    vnet: &VnetHeader,
    sums: &Sums,
) -> Result<(), Reject> {
    let (start, offset) = (usize::from(vnet.csum_start), usize::from(vnet.csum_offset));
    if !vnet.needs_csum || inner.fragment != Fragment::None {
        return Err(Reject::BadHeader);
    }
    let payload = match inner.protocol {
        tcp::PROTOCOL => inner.l4 + usize::from(Tcp::parse(inner.transport(packet))?.header_len),
        udp::PROTOCOL => inner.l4 + udp::HEADER_LEN,
        _ => inner.l4,
    };
    let own = match inner.protocol {
        tcp::PROTOCOL => Some(tcp::CHECKSUM),
        udp::PROTOCOL => Some(udp::CHECKSUM),
        _ => None,
    };
    if start < payload && (start != inner.l4 || own != Some(offset)) {
        return Err(Reject::BadHeader);
    }
    let covered = packet
        .get_mut(start..inner.total_len)
        .ok_or(Reject::BadHeader)?;
    if covered.len() < offset + 2 {
        return Err(Reject::BadHeader);
    }
    let mut sum = !(sums.sum)(covered);
    // The other zero is as good in a TCP header, and must be in a UDP header, of which deeper ones are not known.
    if inner.protocol != tcp::PROTOCOL || start != inner.l4 {
        sum = udp::nonzero(sum);
    }
    covered[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

/// Writes the checksum of `transport` and its pseudo-header into its field.
pub(crate) fn fill(transport: &mut [u8], field: usize, pseudo: u16, protocol: u8) {
    transport[field..field + 2].fill(0);
    let mut sum = !checksum::add(pseudo, checksum::sum(transport));
    if protocol == udp::PROTOCOL {
        sum = udp::nonzero(sum);
    }
    transport[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::header_len;
    use crate::testing::{self, L4};
    use etherparse::{IpHeaders, TcpHeader};
    use proptest::prelude::*;

    #[test]
    fn udp_without_a_checksum() {
        let mut packet = testing::udp4(b"data");
        packet[26..28].fill(0);
        let inner = Inner::parse(&packet).unwrap();
        assert_eq!(l4_checksum_state(&packet, &inner), L4Checksum::Absent);
        assert!(!looks_unfinished(&packet, &inner));

        let ip = etherparse::Ipv6Header {
            source: [1; 16],
            destination: [2; 16],
            ..Default::default()
        };
        let ip = IpHeaders::Ipv6(ip, etherparse::Ipv6Extensions::default());
        let mut packet = testing::build(&ip, &L4::Udp(1, 2), b"data");
        packet[46..48].fill(0);
        let inner = Inner::parse(&packet).unwrap();
        assert_eq!(l4_checksum_state(&packet, &inner), L4Checksum::Bad);
    }

    /// A UDP checksum that computes to zero. Over these bytes the ones' complement sum without the last word is some
    /// s; a last word of !s makes the checksum 0.
    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_ones() {
        let mut packet = testing::udp4(&[0, 0]);
        let inner = Inner::parse(&packet).unwrap();
        let end = packet.len();
        let checksum_without = [packet[26], packet[27]];
        packet[end - 2..].copy_from_slice(&checksum_without);
        complete_checksum(&mut packet, &inner);
        assert_eq!(packet[26..28], [0xff, 0xff]);
        assert_eq!(l4_checksum_state(&packet, &inner), L4Checksum::Valid);
        testing::verify(&packet);
    }

    #[test]
    fn not_ours_to_judge() {
        let absent = |packet: &[u8]| {
            let inner = Inner::parse(packet).unwrap();
            let mut completed = packet.to_vec();
            complete_checksum(&mut completed, &inner);
            assert_eq!(completed, packet);
            assert!(!looks_unfinished(packet, &inner));
            l4_checksum_state(packet, &inner) == L4Checksum::Absent
        };
        let mut packet = testing::udp4(b"data");
        packet[6] = 0x20;
        assert!(absent(&packet), "a first fragment");
        packet[6..8].copy_from_slice(&[0, 1]);
        assert!(absent(&packet), "a later fragment");
        let mut packet = testing::udp4(b"data");
        packet[9] = 1;
        assert!(absent(&packet), "ICMP");
        assert!(
            absent(&testing::source_routed(b"data")),
            "on its way to another destination"
        );
    }

    /// IP may carry more than UDP says; the checksum stops where UDP does (RFC 9868 calls the rest "surplus area").
    #[test]
    fn bytes_after_a_datagram_are_not_covered() {
        let datagram = testing::udp4(b"data");
        let mut packet = [&datagram[..], b"surplus"].concat();
        packet[3] += 7;
        crate::ipv4::fill_checksum(&mut packet[..20]);
        let inner = Inner::parse_checked(&packet).unwrap();
        assert_eq!(inner.total_len, packet.len());
        assert_eq!(l4_checksum_state(&packet, &inner), L4Checksum::Valid);
        let finished = packet.clone();
        packet[26..28].fill(0xaa);
        complete_checksum(&mut packet, &inner);
        assert_eq!(packet, finished);
    }

    /// As a kernel VXLAN sender on the same machine delivers it: a SYN whose checksum is the sum of
    /// 10.244.1.2 + 10.244.2.2 + 6 + 40, not complemented.
    #[test]
    fn an_unfinished_syn() {
        let mut tcp = TcpHeader::new(40000, 80, 1, 64860);
        tcp.syn = true;
        tcp.set_options_raw(&[
            2, 4, 5, 0x82, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7,
        ])
        .unwrap();
        let finished = testing::tcp4(tcp, &[]);
        let inner = Inner::parse(&finished).unwrap();
        let mut packet = finished.clone();
        // 0x0af4 + 0x0102 + 0x0af4 + 0x0202 + 6 + 40
        packet[36..38].copy_from_slice(&0x191au16.to_be_bytes());
        assert_eq!(l4_checksum_state(&packet, &inner), L4Checksum::Unfinished);
        complete_checksum(&mut packet, &inner);
        assert_eq!(packet, finished);
    }

    fn partial(csum_start: u16, csum_offset: u16) -> VnetHeader {
        VnetHeader {
            needs_csum: true,
            csum_start,
            csum_offset,
            ..VnetHeader::default()
        }
    }

    #[test]
    fn a_partial_checksum_is_finished_where_the_headers_have_one() {
        let good = testing::udp4(b"data");
        let inner = Inner::parse(&good).unwrap();
        let complete = |start, offset, change: fn(&mut Vec<u8>)| {
            let mut packet = good.clone();
            testing::unfinish(&mut packet, &inner);
            change(&mut packet);
            let inner = Inner::parse(&packet).unwrap();
            let before = packet.clone();
            let vnet = partial(start, offset);
            let result = complete_partial(&mut packet, &inner, &vnet, &Sums::PORTABLE);
            assert!(result.is_ok() || packet == before);
            result.map(|()| packet)
        };
        assert_eq!(complete(20, 6, |_| ()), Ok(good.clone()));
        // Another field, in front of the transport header, across the payload's start, at and past the end.
        for (start, offset) in [
            (20, 4),
            (19, 7),
            (0, 10),
            (27, 1),
            (31, 0),
            (32, 0),
            (33, 6),
            (20, 65535),
            (65535, 6),
        ] {
            assert_eq!(
                complete(start, offset, |_| ()),
                Err(Reject::BadHeader),
                "{start}, {offset}"
            );
        }
        assert_eq!(
            complete(20, 6, |packet| packet[6] = 0x20),
            Err(Reject::BadHeader),
            "a fragment"
        );
        assert_eq!(
            complete(20, 6, |packet| packet[9] = 6),
            Err(Reject::Truncated),
            "no TCP header"
        );
        let mut packet = good.clone();
        let nothing =
            complete_partial(&mut packet, &inner, &VnetHeader::default(), &Sums::PORTABLE);
        assert_eq!(nothing, Err(Reject::BadHeader));
    }

    /// A pod has a tunnel of its own: the unfinished checksum is the one in its datagram's payload.
    #[test]
    fn a_partial_checksum_inside_a_pods_own_tunnel() {
        let finished = testing::udp4(b"deep");
        let inner = Inner::parse(&finished).unwrap();
        let mut unfinished = finished.clone();
        testing::unfinish(&mut unfinished, &inner);
        let mut packet = testing::udp4(&unfinished);
        let outer = Inner::parse(&packet).unwrap();
        let vnet = partial(28 + 20, 6);
        complete_partial(&mut packet, &outer, &vnet, &Sums::PORTABLE).unwrap();
        assert_eq!(packet[28..], finished);
    }

    proptest! {
        #[test]
        fn partial_is_unfinished(packet in testing::packet(200), padding in 0usize..5) {
            let inner = Inner::parse(&packet).unwrap();
            let mut unfinished = packet.clone();
            testing::unfinish(&mut unfinished, &inner);
            unfinished.resize(packet.len() + padding, 0xcc);
            let vnet = VnetHeader::for_unfinished(&unfinished, &inner, packet.len()).unwrap();
            complete_partial(&mut unfinished, &inner, &vnet, &Sums::PORTABLE).unwrap();
            prop_assert_eq!(&unfinished[..packet.len()], &packet[..]);
        }

        #[test]
        fn states(packet in testing::packet(200), at: prop::sample::Index, bit in 0u8..8) {
            let inner = Inner::parse(&packet).unwrap();
            prop_assert_eq!(l4_checksum_state(&packet, &inner), L4Checksum::Valid);

            let mut unfinished = packet.clone();
            testing::unfinish(&mut unfinished, &inner);
            prop_assert!(looks_unfinished(&unfinished, &inner));
            // One finished checksum in 65,536 is equal to the unfinished one.
            if unfinished != packet {
                prop_assert_eq!(l4_checksum_state(&unfinished, &inner), L4Checksum::Unfinished);
            }
            complete_checksum(&mut unfinished, &inner);
            prop_assert_eq!(&unfinished, &packet);

            // Damage to the payload is seen.
            let l4_header = header_len(&packet, &inner).unwrap();
            if packet.len() > l4_header {
                let mut damaged = packet.clone();
                damaged[l4_header + at.index(packet.len() - l4_header)] ^= 1 << bit;
                let state = l4_checksum_state(&damaged, &inner);
                prop_assert!(matches!(state, L4Checksum::Bad | L4Checksum::Unfinished), "{:?}", state);
                prop_assert!(state == L4Checksum::Bad || looks_unfinished(&damaged, &inner));
            }
        }
    }
}
