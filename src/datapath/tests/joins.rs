//! What the joiner writes is what was delivered: every packet once, each flow in its order, damage left visible.

use std::collections::BTreeMap;

use encap::split::Split;
use encap::vnet::{Gso, VnetHeader};
use encap::{Family, Inner, Sums, Vxlan, flow, ipv4};
use etherparse::PacketBuilder;
use fdb::PeerId;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::datapath::batch::{Batch, Delivery, Outbox, Place};
use crate::datapath::join::Joiner;
use crate::datapath::testbed::{Bed, PEER, Packet, US, fill, pattern, public};

/// Flows: more than runs are open at a time.
const FLOWS: u16 = 20;
/// Port of the first flow. Both parities of the numbers after it are used: TCP and UDP, IPv4 and IPv6.
const PORT: u16 = 5201;

/// A packet of one of the flows.
#[derive(Clone, Debug)]
struct Next {
    flow: u16,
    len: usize,
    push: bool,
    /// A bit was damaged on the way.
    damaged: bool,
    /// The packet before it was lost.
    gap: bool,
}

fn deliveries() -> impl Strategy<Value = Vec<Next>> {
    let len = prop::sample::select(vec![300usize, 300, 300, 300, 299, 100, 1, 0]);
    let rare = prop::bool::weighted(0.05);
    // Some flows send more than others, so that runs grow long.
    let flow = prop_oneof![3 => 0..4u16, 1 => 0..FLOWS];
    let next = (flow, len, rare, rare, rare);
    let next = next.prop_map(|(flow, len, push, damaged, gap)| Next {
        flow,
        len,
        push,
        damaged,
        gap,
    });
    vec(next, 1..120)
}

/// The packets, one after the other, each flow's sequence numbers counting on.
fn packets(all: &[Next]) -> Vec<Vec<u8>> {
    let mut sequence = BTreeMap::<u16, u32>::new();
    let packet = |(number, next): (usize, &Next)| {
        let family = if next.flow % 2 == 0 {
            Family::V4
        } else {
            Family::V6
        };
        let template = Packet {
            id: next.flow,
            ..Packet::between(PEER, US, family)
        };
        let seq = sequence.entry(next.flow).or_insert(u32::MAX - 1000);
        if next.gap {
            *seq = seq.wrapping_add(300);
        }
        // No two packets have the same payload, or order would not show.
        let mut payload = pattern(next.len);
        if let Some((first, rest)) = payload.split_first_mut() {
            *first = number.to_le_bytes()[0];
            rest.iter_mut().for_each(|byte| *byte ^= *first);
        }
        let step = PacketBuilder::ip(template.headers());
        let mut bytes = Vec::new();
        if next.flow % 4 < 2 {
            let step = step.tcp(40_000, PORT + next.flow, *seq, 500).ack(77);
            let step = if next.push { step.psh() } else { step };
            step.write(&mut bytes, &payload).unwrap();
            *seq = seq.wrapping_add(u32::try_from(next.len).unwrap());
        } else {
            let step = step.udp(40_000, PORT + next.flow);
            step.write(&mut bytes, &payload).unwrap();
        }
        if next.damaged {
            *bytes.last_mut().unwrap() ^= 0x40;
        }
        bytes
    };
    all.iter().enumerate().map(packet).collect()
}

/// Identifications of packets that are not fragmented mean nothing (RFC 6864 section 4.1).
fn without_id(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[ipv4::ID..ipv4::ID + 2].fill(0);
        ipv4::fill_checksum(&mut packet[..ipv4::MIN_HEADER]);
    }
    packet
}

fn flow_of(packet: &[u8]) -> u32 {
    flow::hash(packet, &Inner::parse(packet).unwrap())
}

/// The packets that a network card makes of a write.
fn cut(bytes: &[u8], vnet: &VnetHeader) -> Vec<Vec<u8>> {
    if vnet.gso == Gso::None {
        assert_eq!(*vnet, VnetHeader::default(), "a packet as it came");
        return vec![bytes.to_vec()];
    }
    let inner = Inner::parse_checked(bytes).unwrap();
    let split = Split::new(bytes, &inner, vnet.gso_size.into()).unwrap();
    let segment = |index: usize| {
        let range = index..index + 1;
        let mut room = vec![0; split.range_len(range.clone(), 0)];
        split.write(range, &[], &mut room, &Sums::PORTABLE);
        room
    };
    (0..split.count()).map(segment).collect()
}

fn peer() -> PeerId {
    let tables = Bed::<Vxlan>::new().forwarding.tables;
    tables.peer_by_public(public(PEER, Family::V4)).unwrap()
}

/// Arranges the packets as one batch: the bytes of each write, how many packets it counts, and what goes with it.
fn arrange(joiner: &mut Joiner, packets: &[Vec<u8>]) -> Vec<(Vec<u8>, u64, VnetHeader)> {
    let (mut batch, mut out) = (Batch::new(packets.len(), 0), Outbox::default());
    let peer = peer();
    for (index, packet) in packets.iter().enumerate() {
        fill(&mut batch, packet);
        out.deliver(Delivery::finished(Some(peer), Place::Batch(index)));
    }
    joiner.arrange(&mut batch, &out);
    let writes = joiner.writes().iter();
    let bytes: u64 = writes.clone().map(|write| write.bytes).sum();
    assert_eq!(
        bytes,
        packets
            .iter()
            .map(|packet| packet.len() as u64)
            .sum::<u64>()
    );
    writes
        .map(|write| {
            assert_eq!(write.peer, Some(peer));
            let bytes: Vec<&[u8]> = joiner.pieces(write, &batch, &out).collect();
            (bytes.concat(), write.packets, write.vnet)
        })
        .collect()
}

fn check(all: &[Next], udp: bool) {
    let packets = packets(all);
    let writes = arrange(&mut Joiner::new(Sums::PORTABLE, udp, 8472), &packets);
    let mut written = BTreeMap::<u32, Vec<Vec<u8>>>::new();
    for (bytes, count, vnet) in &writes {
        let packets = cut(bytes, vnet);
        assert_eq!(packets.len() as u64, *count);
        assert!(udp || vnet.gso != Gso::UdpL4);
        let packets = packets.into_iter().map(without_id);
        written.entry(flow_of(bytes)).or_default().extend(packets);
    }
    let mut delivered = BTreeMap::<u32, Vec<Vec<u8>>>::new();
    for packet in packets {
        let flow = delivered.entry(flow_of(&packet)).or_default();
        flow.push(without_id(packet));
    }
    assert!(written == delivered, "{writes:?}");
}

proptest! {
    #[test]
    fn every_packet_is_written_once_in_its_flows_order(all in deliveries(), udp in any::<bool>()) {
        check(&all, udp);
    }
}

/// What is written as a superpacket gets its checksum from the kernel: damage must not be part of it.
#[test]
fn a_damaged_packet_is_written_alone_and_as_it_came() {
    for flow in 0..4 {
        let good = Next {
            flow,
            len: 300,
            push: false,
            damaged: false,
            gap: false,
        };
        let bad = Next {
            damaged: true,
            ..good.clone()
        };
        let all = [vec![good.clone(); 5], vec![bad], vec![good; 5]].concat();
        let packets = packets(&all);
        let writes = arrange(&mut Joiner::new(Sums::PORTABLE, true, 8472), &packets);
        let counts: Vec<u64> = writes.iter().map(|(_, count, _)| *count).collect();
        assert_eq!(counts, [5, 1, 5], "flow {flow}");
        assert_eq!(
            (&writes[1].0, writes[1].2),
            (&packets[5], VnetHeader::default())
        );
    }
}

/// A joiner keeps nothing from one batch to the next.
#[test]
fn flows_beyond_the_open_runs_are_written_all_the_same() {
    let mut joiner = Joiner::new(Sums::PORTABLE, true, 8472);
    let round = |_| {
        (0..FLOWS).map(|flow| Next {
            flow,
            len: 300,
            push: false,
            damaged: false,
            gap: false,
        })
    };
    let packets = packets(&(0..3).flat_map(round).collect::<Vec<_>>());
    for _ in 0..2 {
        let writes = arrange(&mut joiner, &packets);
        assert_eq!(writes.iter().map(|(_, count, _)| count).sum::<u64>(), 60);
    }
}
