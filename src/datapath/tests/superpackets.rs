//! What a kernel VXLAN peer on the same machine sends: packets whose checksums nobody computed, and TCP
//! packets of up to 64 KiB.

use encap::{Family, Inner, RawUdp, Vxlan, checksum, tcp, udp};
use etherparse::{NetHeaders, TransportHeader};

use crate::datapath::DropReason;
use crate::datapath::testbed::{
    Backend, Bed, FAMILIES, PEER, Packet, Received, US, pattern, public, verified,
};

/// Where the transport checksum is.
fn field(packet: &[u8]) -> usize {
    let inner = Inner::parse(packet).unwrap();
    inner.l4
        + match inner.protocol {
            tcp::PROTOCOL => tcp::CHECKSUM,
            _ => udp::CHECKSUM,
        }
}

/// Puts the sum of the pseudo-header into the checksum field, as a kernel does that leaves the rest to the card.
fn unfinished(mut packet: Vec<u8>) -> Vec<u8> {
    let inner = Inner::parse(&packet).unwrap();
    let sum = checksum::pseudo_header(&inner, inner.total_len - inner.l4);
    let field = field(&packet);
    packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The peer sends us `packet`.
fn receive<E: Backend>(packet: &[u8], outer_tos: u8) -> Received {
    let family = Family::of_packet(packet).unwrap();
    Bed::<E>::new().receive(public(PEER, family), outer_tos, &E::datagram(PEER, packet))
}

/// The largest TCP superpacket that still fits one datagram.
fn superpacket(family: Family) -> (Packet, Vec<u8>) {
    let payload = pattern(65_535 - 8 - 20 - 22 - 40 - 32);
    (Packet::between(PEER, US, family), payload)
}

#[test]
fn a_superpacket_is_split_to_the_devices_mtu() {
    fn check<E: Backend>() {
        for family in FAMILIES {
            let (packet, payload) = superpacket(family);
            let whole = packet.tcp(&payload);
            // One with its checksum unfinished, one as a coalescing receiver makes them.
            for (bytes, completed) in [(unfinished(whole.clone()), 1), (whole.clone(), 0)] {
                let received = receive::<E>(&bytes, 0);
                let headers = whole.len() - payload.len();
                let room = usize::from(E::device_mtu()) - headers;
                let count = payload.len().div_ceil(room);
                assert_eq!(received.delivered.len(), count);
                assert_eq!(received.counts.packets_in.get(), count as u64);
                assert_eq!(received.counts.split.get(), 1);
                assert_eq!(received.counts.checksums_completed.get(), completed);
                let mut joined = Vec::new();
                for (index, segment) in received.delivered.iter().enumerate() {
                    assert!(segment.len() <= usize::from(E::device_mtu()));
                    let parsed = verified(segment);
                    let Some(TransportHeader::Tcp(tcp)) = parsed.transport else {
                        panic!("not TCP");
                    };
                    assert_eq!(tcp.sequence_number as usize, 1_000_000 + joined.len());
                    assert_eq!(tcp.acknowledgment_number, 77);
                    assert_eq!(tcp.psh, index + 1 == count, "PSH on the last alone");
                    if let Some(NetHeaders::Ipv4(ip, _)) = parsed.net {
                        assert_eq!(usize::from(ip.identification), 0x1234 + index);
                        assert_eq!(ip.time_to_live, 63);
                    }
                    joined.extend_from_slice(parsed.payload.slice());
                }
                assert!(joined == payload, "the payload changed");
            }
        }
    }
    check::<RawUdp>();
    check::<Vxlan>();
}

#[test]
fn congestion_met_by_a_superpacket_marks_every_part() {
    for family in FAMILIES {
        let (mut packet, payload) = superpacket(family);
        packet.tos = 2;
        let received = receive::<Vxlan>(&unfinished(packet.tcp(&payload)), 3);
        assert!(received.delivered.len() > 40);
        for segment in &received.delivered {
            verified(segment);
            assert_eq!(Inner::parse(segment).unwrap().tos, 3);
        }
    }
}

#[test]
fn a_damaged_superpacket_is_dropped_whole() {
    fn check<E: Backend>() {
        for family in FAMILIES {
            let (packet, payload) = superpacket(family);
            let mut bytes = packet.tcp(&payload);
            *bytes.last_mut().unwrap() ^= 0x10;
            let received = receive::<E>(&bytes, 0);
            assert!(received.delivered.is_empty());
            assert_eq!(received.counts.dropped(DropReason::BadChecksum), 1);
            assert_eq!(received.counts.packets_in.get(), 1);
        }
    }
    check::<RawUdp>();
    check::<Vxlan>();
}

#[test]
fn one_byte_over_the_mtu_is_two_packets_and_the_mtu_is_one() {
    for family in FAMILIES {
        let packet = Packet::between(PEER, US, family);
        let headers = packet.tcp(&[]).len();
        let room = usize::from(Vxlan::device_mtu()) - headers;
        for (len, count) in [(room, 1), (room + 1, 2), (2 * room, 2)] {
            let received = receive::<Vxlan>(&packet.tcp(&pattern(len)), 0);
            assert_eq!(received.delivered.len(), count);
            assert_eq!(received.counts.split.get(), u64::from(count > 1));
        }
    }
}

#[test]
fn a_superpacket_that_makes_no_sense_is_malformed_not_split() {
    for family in FAMILIES {
        let (packet, payload) = superpacket(family);
        let mut bytes = unfinished(packet.tcp(&payload));
        let flags = Inner::parse(&bytes).unwrap().l4 + 13;
        bytes[flags] |= 0x02;
        let received = receive::<Vxlan>(&bytes, 0);
        assert!(received.delivered.is_empty());
        assert_eq!(
            received.counts.dropped(DropReason::Malformed),
            1,
            "data with a SYN"
        );
    }
}

#[test]
fn an_unfinished_checksum_is_completed() {
    fn check<E: Backend>() {
        for family in FAMILIES {
            let packet = Packet::between(PEER, US, family);
            for len in [0, 1, 2, 3, 1000, 1001] {
                for finished in [packet.tcp(&pattern(len)), packet.udp(53, &pattern(len))] {
                    let bytes = unfinished(finished.clone());
                    assert_ne!(bytes, finished);
                    let received = receive::<E>(&bytes, 0);
                    assert_eq!(received.delivered, [finished]);
                    assert_eq!(received.counts.checksums_completed.get(), 1);
                    verified(&received.delivered[0]);
                }
            }
        }
    }
    check::<RawUdp>();
    check::<Vxlan>();
}

/// The end systems judge checksums, not the link between them: right or wrong, what is not unfinished passes.
#[test]
fn other_checksums_are_left_alone() {
    for family in FAMILIES {
        let packet = Packet::between(PEER, US, family);
        for finished in [
            packet.tcp(b"hello"),
            packet.udp(53, b"hello"),
            packet.echo(b"hello"),
        ] {
            for damage in [0, 0x20] {
                let mut bytes = finished.clone();
                *bytes.last_mut().unwrap() ^= damage;
                let received = receive::<Vxlan>(&bytes, 0);
                assert_eq!(received.delivered, [bytes]);
                assert_eq!(received.counts.checksums_completed.get(), 0);
            }
        }
    }
    // None at all, which UDP over IPv4 may do (RFC 768).
    let mut none = Packet::between(PEER, US, Family::V4).udp(53, b"hello");
    let field = field(&none);
    none[field..field + 2].fill(0);
    assert_eq!(receive::<RawUdp>(&none, 0).delivered, [none]);
}

/// The right checksum can be the sum of the pseudo-header by chance: then the transport bytes sum to zero twice over.
#[test]
fn a_right_checksum_that_looks_unfinished_is_left_alone() {
    for family in FAMILIES {
        let packet = Packet::between(PEER, US, family);
        let two_bytes = |word: u16| packet.udp(53, &word.to_be_bytes());
        let by_chance = (0..=u16::MAX)
            .map(two_bytes)
            .find(|bytes| *bytes == unfinished(bytes.clone()))
            .unwrap();
        verified(&by_chance);
        let received = receive::<Vxlan>(&by_chance, 0);
        assert_eq!(received.delivered, [by_chance]);
        assert_eq!(received.counts.checksums_completed.get(), 0);
    }
}
