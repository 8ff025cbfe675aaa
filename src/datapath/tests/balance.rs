//! Whatever comes in, nothing panics, every packet ends in one place, and no one gets past the checks.

use std::net::{IpAddr, Ipv6Addr};

use encap::{Family, Inner, RawUdp, Vxlan};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::datapath::DropReason;
use crate::datapath::counters::Direction;
use crate::datapath::testbed::{
    Backend, Bed, FAMILIES, PEER, Packet, THIRD, US, mac, pattern, pod, public, stranger, verified,
};

fn family() -> impl Strategy<Value = Family> {
    prop::sample::select(FAMILIES.to_vec())
}

/// An address of any kind that the checks tell apart.
fn address(family: Family) -> impl Strategy<Value = IpAddr> {
    let nodes = [US, PEER, THIRD];
    let known = nodes.map(|n| pod(n, family)).into_iter();
    let known = known.chain(nodes.map(|n| public(n, family)));
    prop::sample::select(known.chain([stranger(family)]).collect::<Vec<_>>())
}

/// A packet that a peer might send: right in itself, its addresses right more often than not.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    let addresses = family().prop_flat_map(|family| {
        let right = (Just(pod(PEER, family)), Just(pod(US, family)));
        let turned = (Just(pod(US, family)), Just(pod(PEER, family)));
        prop_oneof![right, turned, (address(family), address(family))]
    });
    let port = prop::sample::select(vec![53, 8285, 8472]);
    let length = prop_oneof![9 => 0..200usize, 1 => 1300..9000usize];
    let rest = (
        any::<u8>(),
        any::<u8>(),
        any::<bool>(),
        port,
        length,
        0..6u8,
    );
    (addresses, rest).prop_map(|((src, dst), (tos, ttl, dont_fragment, port, len, kind))| {
        let packet = Packet {
            src,
            dst,
            tos,
            ttl,
            id: 77,
            dont_fragment,
        };
        let payload = pattern(len);
        match kind {
            0 => packet.tcp(&payload),
            1 => packet.echo(&payload),
            // Extension headers in IPv6, something unknown in IPv4: as many as the payload happens to make.
            2 => packet.raw(60, &payload),
            3 => packet.raw(44, &payload),
            _ => packet.udp(port, &payload),
        }
    })
}

/// Bytes after some were changed, cut off or appended. Half of the IPv4 packets (which start at `offset`) get a
/// right header checksum again, so that they go further than the first check.
fn mutated(bytes: impl Strategy<Value = Vec<u8>>, offset: usize) -> impl Strategy<Value = Vec<u8>> {
    let changes = vec((any::<Index>(), any::<u8>()), 0..3);
    let cut = prop::option::weighted(0.2, any::<Index>());
    let rest = (cut, 0..3usize, any::<bool>());
    (bytes, changes, rest).prop_map(move |(mut bytes, changes, (cut, more, mend))| {
        for (at, byte) in changes {
            // Early bytes decide more than late ones.
            let early = bytes.len().min(64);
            bytes[at.index(early)] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.extend(pattern(more));
        if let Some(packet) = bytes.get_mut(offset..).filter(|_| mend) {
            let header = packet.first().map_or(0, |first| match first >> 4 {
                4 => usize::from(first & 0x0f) * 4,
                _ => 0,
            });
            encap::ipv4::fill_checksum(packet.get_mut(..header).unwrap_or_default());
        }
        bytes
    })
}

fn datagram<E: Backend>() -> impl Strategy<Value = (IpAddr, u8, Vec<u8>)> {
    let from_peer = packet().prop_map(|packet| E::datagram(PEER, &packet));
    let bytes = prop_oneof![
        6 => mutated(from_peer, E::HEADER_LEN),
        1 => vec(any::<u8>(), 0..120),
    ];
    let source = prop_oneof![
        4 => family().prop_map(|family| public(PEER, family)),
        1 => family().prop_flat_map(address),
    ];
    (source, any::<u8>(), bytes)
}

/// Which node's lease holds `ip`, read from its digits and not from the tables.
fn holder(ip: IpAddr) -> Option<u8> {
    match ip {
        IpAddr::V4(ip) => match ip.octets() {
            [10, 244, node @ 1..=3, _] => Some(node),
            _ => None,
        },
        IpAddr::V6(ip) => match ip.segments() {
            [0xfd00, 0x10, 0x244, node @ 1..=3, ..] => u8::try_from(node).ok(),
            _ => None,
        },
    }
}

/// Source and destination, read from their fixed places.
fn addresses(packet: &[u8]) -> (IpAddr, IpAddr) {
    let v6 = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
    let v4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
    match packet[0] >> 4 {
        4 => (v4(12), v4(16)),
        6 => (v6(8).into(), v6(24).into()),
        version => panic!("version {version} was delivered"),
    }
}

fn all_counts(counts: &Direction) -> Vec<u64> {
    let reasons = DropReason::ALL.iter().map(|reason| counts.dropped(*reason));
    let apart = [
        &counts.packets_in,
        &counts.forwarded,
        &counts.fragments,
        &counts.icmp_sent,
        &counts.icmp_limited,
        &counts.split,
        &counts.checksums_completed,
        &counts.reserved_bits,
    ];
    reasons.chain(apart.map(|cell| cell.get())).collect()
}

fn add(sum: &mut [u64], counts: &Direction) {
    for (sum, count) in sum.iter_mut().zip(all_counts(counts)) {
        *sum += count;
    }
}

/// The test bed asserts the balance of each batch; this adds that a batch is the sum of its packets and
/// that nothing was delivered that should not.
fn check_inbound<E: Backend>(datagrams: &[(IpAddr, u8, Vec<u8>)]) {
    let mut bed = Bed::<E>::new();
    let together = bed.receive_all(datagrams);
    let mut one_by_one = Vec::new();
    let mut sum = vec![0; all_counts(&together.counts).len()];
    for (source, tos, bytes) in datagrams {
        let alone = bed.receive(*source, *tos, bytes);
        add(&mut sum, &alone.counts);
        for packet in &alone.delivered {
            let (src, dst) = addresses(packet);
            let node = holder(src).filter(|node| *node != US).unwrap();
            assert!(
                FAMILIES
                    .iter()
                    .any(|family| public(node, *family) == *source),
                "{src} by {source}"
            );
            assert_eq!(holder(dst), Some(US));
            assert_eq!(
                Inner::parse_checked(packet).unwrap().total_len,
                packet.len()
            );
        }
        one_by_one.extend(alone.delivered);
    }
    assert!(together.delivered == one_by_one);
    assert_eq!(all_counts(&together.counts), sum);
}

fn check_outbound<E: Backend>(packets: &[Vec<u8>]) {
    let together = Bed::<E>::new().send_all(packets);
    let mut bed = Bed::<E>::new();
    let mut sum = vec![0; all_counts(&together.counts).len()];
    for packet in packets {
        let alone = bed.send(packet);
        add(&mut sum, &alone.counts);
        for sent in &alone.sent {
            let (src, dst) = addresses(packet);
            let node = holder(dst).filter(|node| *node != US).unwrap();
            let family = Family::of(&dst);
            assert_eq!(sent.to, (public(node, family), E::PORT).into());
            for datagram in &sent.datagrams {
                let header = E::of(US).header(family, mac(node));
                let inner = datagram.strip_prefix(header.as_slice()).unwrap();
                assert!(inner.len() <= 1500 - usize::from(E::overhead(family)));
                assert_eq!(addresses(inner), (src, dst));
            }
        }
        for error in &alone.errors {
            verified(error);
            assert_eq!(addresses(error).1, addresses(packet).0);
        }
    }
    assert_eq!(all_counts(&together.counts), sum);
}

proptest! {
    #[test]
    fn inbound_of_raw_udp_keeps_the_balance(datagrams in vec(datagram::<RawUdp>(), 1..5)) {
        check_inbound::<RawUdp>(&datagrams);
    }

    #[test]
    fn inbound_of_vxlan_keeps_the_balance(datagrams in vec(datagram::<Vxlan>(), 1..5)) {
        check_inbound::<Vxlan>(&datagrams);
    }

    #[test]
    fn outbound_keeps_the_balance(
        packets in vec(prop_oneof![6 => mutated(packet(), 0), 1 => vec(any::<u8>(), 0..120)], 1..5)
    ) {
        check_outbound::<RawUdp>(&packets);
        check_outbound::<Vxlan>(&packets);
    }
}
