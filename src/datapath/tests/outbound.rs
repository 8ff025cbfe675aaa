//! What is sent, byte by byte, and what becomes of packets that do not fit.

use encap::{Family, RawUdp, Vxlan};
use etherparse::defrag::IpDefragPool;
use etherparse::{IpNumber, SlicedPacket};

use crate::datapath::DropReason;
use crate::datapath::testbed::{
    Backend, Bed, FAMILIES, PEER, Packet, THIRD, US, pattern, public, verified,
};

/// The most that an IP header and 8 bytes of UDP leave of the hop's MTU.
fn room<E: Backend>(family: Family) -> usize {
    let headers = match family {
        Family::V4 => 28,
        Family::V6 => 48,
    };
    1500 - usize::from(E::overhead(family)) - headers
}

#[test]
fn raw_udp_puts_nothing_in_front() {
    for family in FAMILIES {
        let packet = Packet::between(US, PEER, family).udp(53, b"question");
        let worked = Bed::<RawUdp>::new().send(&packet);
        assert_eq!(worked.sent.len(), 1);
        assert_eq!(worked.sent[0].to, (public(PEER, family), 8285).into());
        assert_eq!(worked.sent[0].datagrams, [packet]);
    }
}

#[test]
fn vxlan_puts_its_header_and_an_ethernet_header_in_front() {
    for (family, ethertype) in [(Family::V4, [0x08, 0x00]), (Family::V6, [0x86, 0xdd])] {
        let packet = Packet::between(US, THIRD, family).udp(53, b"question");
        let worked = Bed::<Vxlan>::new().send(&packet);
        assert_eq!(worked.sent.len(), 1);
        assert_eq!(worked.sent[0].to, (public(THIRD, family), 8472).into());
        let expected = [
            &[0x08, 0, 0, 0, 0, 0, 1, 0][..],
            &[0x0a, 0x58, 10, 99, 0, 3],
            &[0x0a, 0x58, 10, 99, 0, 1],
            &ethertype,
            &packet,
        ];
        assert_eq!(worked.sent[0].datagrams, [expected.concat()]);
    }
}

#[test]
fn what_one_node_sends_the_other_delivers_and_a_third_does_not() {
    fn check<E: Backend>() {
        for family in FAMILIES {
            let packet = Packet::between(US, PEER, family).tcp(&pattern(1000));
            let sent = Bed::<E>::new().send(&packet).sent.remove(0);
            let source = public(US, family);
            let received = Bed::<E>::at(PEER).receive(source, sent.tos, &sent.datagrams[0]);
            assert_eq!(received.delivered, [packet]);
            let received = Bed::<E>::at(THIRD).receive(source, sent.tos, &sent.datagrams[0]);
            assert!(received.delivered.is_empty());
        }
    }
    check::<RawUdp>();
    check::<Vxlan>();
}

#[test]
fn bytes_after_the_packet_do_not_travel() {
    let packet = Packet::between(US, PEER, Family::V4).udp(53, b"question");
    let padded = [packet.clone(), vec![0xaa; 7]].concat();
    let worked = Bed::<RawUdp>::new().send(&padded);
    assert_eq!(worked.sent[0].datagrams, [packet]);
}

#[test]
fn the_outer_tos_is_made_of_ecn_and_dscp_each_by_its_own_rule() {
    fn check<E: Backend>() {
        for family in FAMILIES {
            for (ecn, dscp) in [(false, false), (false, true), (true, false), (true, true)] {
                let mut bed = Bed::<E>::new();
                (
                    bed.forwarding.options.copy_ecn,
                    bed.forwarding.options.copy_dscp,
                ) = (ecn, dscp);
                for tos in 0..=255u8 {
                    let mut packet = Packet::between(US, PEER, family);
                    // Neither the TTL nor the ToS inside changes.
                    (packet.tos, packet.ttl) = (tos, tos);
                    let packet = packet.udp(53, b"question");
                    let sent = bed.send(&packet).sent.remove(0);
                    let expected = if ecn { tos & 3 } else { 0 } | if dscp { tos & !3 } else { 0 };
                    assert_eq!(sent.tos, expected);
                    assert_eq!(sent.datagrams[0][E::HEADER_LEN..], packet);
                }
            }
        }
    }
    check::<RawUdp>();
    check::<Vxlan>();
}

#[test]
fn the_mtu_fits_and_one_byte_more_does_not() {
    fn check<E: Backend>() {
        for family in FAMILIES {
            let room = room::<E>(family);
            let packet = Packet::between(US, PEER, family);
            let worked = Bed::<E>::new().send(&packet.udp(53, &pattern(room)));
            let outer = match family {
                Family::V4 => 28,
                Family::V6 => 48,
            };
            assert_eq!(worked.sent[0].datagrams[0].len() + outer, 1500);
            let worked = Bed::<E>::new().send(&packet.udp(53, &pattern(room + 1)));
            assert_eq!((worked.sent.len(), worked.errors.len()), (0, 1));
            assert_eq!(worked.counts.dropped(DropReason::TooBig), 1);
        }
    }
    check::<RawUdp>();
    check::<Vxlan>();
}

/// Re-assembles IP fragments with etherparse.
fn reassembled(fragments: &[&[u8]]) -> Option<(IpNumber, Vec<u8>)> {
    let mut pool = IpDefragPool::<(), ()>::new();
    fragments.iter().find_map(|fragment| {
        let sliced = SlicedPacket::from_ip(fragment).unwrap();
        let whole = pool.process_sliced_packet(&sliced, (), ()).unwrap()?;
        Some((whole.ip_number, whole.payload))
    })
}

#[test]
fn without_df_it_goes_in_fragments_that_fit_and_reassemble() {
    fn check<E: Backend>() {
        let room = room::<E>(Family::V4);
        for len in [room + 1, room + 8, 2 * room, 9000, 65_000] {
            let mut packet = Packet::between(US, PEER, Family::V4);
            packet.dont_fragment = false;
            packet.tos = 0x2a;
            let packet = packet.udp(53, &pattern(len));
            let worked = Bed::<E>::new().send(&packet);
            assert_eq!((worked.sent.len(), worked.errors.len()), (1, 0));
            let sent = &worked.sent[0];
            assert_eq!(sent.tos, 0x02);
            assert_eq!(worked.counts.fragments.get(), sent.datagrams.len() as u64);
            assert_eq!(worked.counts.dropped_total(), 0);
            let header = E::of(US).header(Family::V4, crate::datapath::testbed::mac(PEER));
            let fragments: Vec<&[u8]> = sent
                .datagrams
                .iter()
                .map(|datagram| datagram.strip_prefix(header.as_slice()).unwrap())
                .collect();
            for fragment in &fragments {
                assert!(fragment.len() <= usize::from(E::device_mtu()));
                let sliced = SlicedPacket::from_ip(fragment).unwrap();
                let ip = sliced
                    .net
                    .as_ref()
                    .unwrap()
                    .ipv4_ref()
                    .unwrap()
                    .header()
                    .to_header();
                assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                assert_eq!((ip.identification, ip.time_to_live), (0x1234, 63));
                assert_eq!((ip.dscp.value(), ip.ecn.value()), (0x0a, 2));
            }
            let expected = (IpNumber::UDP, packet[20..].to_vec());
            assert_eq!(reassembled(&fragments), Some(expected));
        }
    }
    check::<RawUdp>();
    check::<Vxlan>();
}

#[test]
fn a_fragment_too_big_is_cut_further() {
    let mut packet = Packet::between(US, PEER, Family::V4);
    packet.dont_fragment = false;
    let whole = packet.udp(53, &pattern(4000));
    // As a router with an MTU of 3020 bytes would have cut it.
    let cut = |from: usize, to: usize, more: bool| {
        let mut piece = [&whole[..20], &whole[20 + from..20 + to]].concat();
        piece[2..4].copy_from_slice(&u16::try_from(20 + to - from).unwrap().to_be_bytes());
        let offset = u16::try_from(from / 8).unwrap() | u16::from(more) << 13;
        piece[6..8].copy_from_slice(&offset.to_be_bytes());
        encap::ipv4::fill_checksum(&mut piece[..20]);
        piece
    };
    let end = whole.len() - 20;
    let worked = Bed::<RawUdp>::new().send_all(&[cut(0, 3000, true), cut(3000, end, false)]);
    assert_eq!(worked.sent.len(), 2);
    let datagrams: Vec<&[u8]> = worked
        .sent
        .iter()
        .flat_map(|s| &s.datagrams)
        .map(Vec::as_slice)
        .collect();
    assert_eq!(datagrams.len(), 4);
    assert!(datagrams.iter().all(|datagram| datagram.len() <= 1472));
    assert_eq!(reassembled(&datagrams).unwrap().1, whole[20..]);
}

#[test]
fn ipv6_is_never_fragmented() {
    let packet = Packet::between(US, PEER, Family::V6).udp(53, &pattern(3000));
    let worked = Bed::<Vxlan>::new().send(&packet);
    assert_eq!((worked.sent.len(), worked.errors.len()), (0, 1));
    assert_eq!(worked.counts.fragments.get(), 0);
    verified(&worked.errors[0]);
}

#[test]
fn destinations_that_are_not_one_host_are_dropped_in_silence() {
    for destination in [
        "224.0.0.251",
        "239.1.2.3",
        "255.255.255.255",
        "0.0.0.0",
        "ff02::2",
        "ff0e::1",
        "fe80::1",
        "::",
    ] {
        let dst: std::net::IpAddr = destination.parse().unwrap();
        let mut packet = Packet::between(US, PEER, Family::of(&dst));
        packet.dst = dst;
        let worked = Bed::<Vxlan>::new().send(&packet.udp(5353, b"anyone?"));
        assert_eq!(
            worked.counts.dropped(DropReason::NotUnicast),
            1,
            "{destination}"
        );
        assert_eq!((worked.sent.len(), worked.errors.len()), (0, 0));
    }
}

#[test]
fn our_own_encapsulation_does_not_go_round() {
    fn check<E: Backend>() {
        for family in FAMILIES {
            for node in [US, PEER, THIRD] {
                let mut packet = Packet::between(US, PEER, family);
                packet.dst = public(node, family);
                let worked = Bed::<E>::new().send(&packet.udp(E::PORT, b"tunnel"));
                assert_eq!(worked.counts.dropped(DropReason::Looped), 1);
                assert!(worked.errors.is_empty());
                // Another port is another matter: no lease holds a public IP.
                let worked = Bed::<E>::new().send(&packet.udp(53, b"question"));
                assert_eq!(worked.counts.dropped(DropReason::NoLease), 1);
            }
        }
    }
    check::<RawUdp>();
    check::<Vxlan>();
}

#[test]
fn what_is_no_ip_packet_is_dropped_with_a_reason() {
    let packet = Packet::between(US, PEER, Family::V4).udp(53, b"question");
    for len in 0..packet.len() {
        let worked = Bed::<Vxlan>::new().send(&packet[..len]);
        assert_eq!(worked.counts.dropped(DropReason::Truncated), 1);
    }
    let mut wrong = packet;
    wrong[0] = 0x55;
    let worked = Bed::<Vxlan>::new().send(&wrong);
    assert_eq!(worked.counts.dropped(DropReason::Malformed), 1);
    assert!(worked.errors.is_empty());
}
