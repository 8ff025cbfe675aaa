//! Nothing is allocated per packet once the buffers have grown: the second time the same packets come, every kind of
//! work is done in memory that is there.

use std::net::IpAddr;

use encap::{Family, Inner, RawUdp, Sums, VnetHeader, Vxlan, checksum, tcp};

use crate::datapath::batch::{Batch, Outbox};
use crate::datapath::counters::Direction;
use crate::datapath::inbound::{Inbound, Takes};
use crate::datapath::join::Joiner;
use crate::datapath::testbed::{
    Backend, Bed, FAMILIES, PEER, Packet, US, fill, pattern, public, stranger,
};
use crate::datapath::train::Trains;

/// Runs `work` once to let its buffers grow, and counts what it allocates when it runs again.
fn assert_steady(what: &str, mut work: impl FnMut()) {
    work();
    let first = allocation_counter::measure(&mut work);
    assert_eq!(first.count_total, 0, "{what}: {first:?}");
}

/// All kinds of packets that the kernel may hand us: sent, fragmented, answered with an error, dropped.
fn from_the_device(family: Family) -> Vec<Vec<u8>> {
    let packet = Packet::between(US, PEER, family);
    let fragmented = Packet {
        dont_fragment: false,
        ..packet.clone()
    };
    let nowhere = Packet {
        dst: stranger(family),
        ..packet.clone()
    };
    vec![
        packet.udp(53, &pattern(36)),
        packet.tcp(&pattern(1300)),
        packet.udp(53, &pattern(2000)),
        fragmented.udp(53, &pattern(9000)),
        nowhere.udp(53, &pattern(1000)),
        vec![0x45; 19],
    ]
}

/// The packet as a kernel leaves it whose network card is to compute the checksum.
fn unfinished(mut bytes: Vec<u8>) -> Vec<u8> {
    let inner = Inner::parse(&bytes).unwrap();
    let sum = checksum::pseudo_header(&inner, bytes.len() - inner.l4);
    let field = inner.l4 + tcp::CHECKSUM;
    bytes[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// The same of the datagrams that a peer may send: right, unfinished, superpackets, to be marked, dropped.
fn from_the_underlay<E: Backend>(family: Family) -> Vec<(IpAddr, u8, Vec<u8>)> {
    let packet = Packet::between(PEER, US, family);
    let capable = Packet {
        tos: 2,
        ..packet.clone()
    };
    let packets = [
        (0, packet.udp(53, &pattern(36))),
        (0, packet.tcp(&pattern(1300))),
        (3, capable.tcp(&pattern(100))),
        (0, unfinished(packet.tcp(&pattern(1300)))),
        (0, unfinished(packet.tcp(&pattern(60_000)))),
        (3, packet.udp(53, b"not capable")),
        (0, Packet::between(US, US, family).udp(53, b"spoofed")),
    ];
    let peer = public(PEER, family);
    packets
        .into_iter()
        .map(|(tos, packet)| (peer, tos, E::datagram(PEER, &packet)))
        .collect()
}

fn outbound_is_steady<E: Backend>() {
    for family in FAMILIES {
        let packets = from_the_device(family);
        let mut bed = Bed::<E>::new();
        let (mut batch, mut out) = (
            Batch::new(packets.len(), encap::MAX_HEADER),
            Outbox::default(),
        );
        let counts = Direction::default();
        assert_steady(E::NAME, || {
            batch.clear();
            out.clear();
            for packet in &packets {
                fill(&mut batch, packet);
            }
            let (forwarding, now) = (&bed.forwarding, bed.now);
            bed.outbound
                .run(&mut batch, forwarding, &counts, now, &mut out);
            for parcel in out.parcels() {
                assert!(out.datagrams(&batch, parcel).all(|d| !d.is_empty()));
            }
        });
        let errors = match family {
            Family::V4 => 2,
            // Nobody may fragment IPv6 on the way.
            Family::V6 => 3,
        };
        assert_eq!(out.deliveries().len(), errors);
        assert_eq!(out.parcels().len(), packets.len() - 1 - errors);
    }
}

fn inbound_is_steady<E: Backend>() {
    for family in FAMILIES {
        let datagrams = from_the_underlay::<E>(family);
        let bed = Bed::<E>::new();
        let (mut batch, mut out) = (Batch::new(datagrams.len(), 0), Outbox::default());
        let counts = Direction::default();
        assert_steady(E::NAME, || {
            batch.clear();
            out.clear();
            for (source, tos, datagram) in &datagrams {
                fill(&mut batch, datagram);
                let frame = batch.frame_mut(batch.len() - 1);
                (frame.source, frame.tos) = (Some(*source), *tos);
            }
            bed.inbound
                .run(&mut batch, &bed.forwarding, &counts, &mut out);
        });
        assert!(out.deliveries().len() > 4 + 60_000 / 1500);
        assert_eq!(counts.dropped_total(), 2 * 2);
    }
}

/// A batch of the batched engine's: superpackets to be split, single packets, all to become trains.
fn trains_are_steady<E: Backend>() {
    for family in FAMILIES {
        let packet = Packet::between(US, PEER, family);
        let superpacket = unfinished(packet.tcp(&pattern(30_000)));
        let inner = Inner::parse(&superpacket).unwrap();
        let mtu = usize::from(E::device_mtu()) - 20;
        let vnet = VnetHeader::for_unfinished(&superpacket, &inner, mtu).unwrap();
        let single = packet.udp(53, &pattern(36));
        let plain = VnetHeader::default();
        let all = [
            (&superpacket, vnet),
            (&single, plain),
            (&single, plain),
            (&superpacket, vnet),
        ];
        let mut bed = Bed::<E>::new();
        let mut batch = Batch::new(all.len(), encap::MAX_HEADER);
        let (mut out, mut trains) = (Outbox::default(), Trains::default());
        let counts = Direction::default();
        assert_steady(E::NAME, || {
            batch.clear();
            out.clear();
            trains.clear();
            for (bytes, vnet) in &all {
                fill(&mut batch, bytes);
                batch.frame_mut(batch.len() - 1).vnet = *vnet;
            }
            let (forwarding, now) = (&bed.forwarding, bed.now);
            bed.outbound
                .run(&mut batch, forwarding, &counts, now, &mut out);
            let refused = |_: &_| panic!("there is a port");
            let all = 0..out.parcels().len();
            trains.assemble(
                &batch,
                &out,
                all,
                |parcel| Some(parcel.flow as usize),
                refused,
            );
        });
        let datagrams: usize = trains.trains().iter().map(|train| train.datagrams).sum();
        assert!(trains.trains().len() < all.len() + 1 && datagrams > 40);
        assert_eq!(counts.dropped_total(), 0);
    }
}

/// Datagrams of one flow and of several, to be joined and written.
fn joining_is_steady<E: Backend>() {
    for family in FAMILIES {
        let packet = Packet::between(PEER, US, family);
        let peer = public(PEER, family);
        let datagrams: Vec<_> = (0..60)
            .map(|n| packet.udp(1000 + n % 3, &pattern(300)))
            .chain([unfinished(packet.tcp(&pattern(9000)))])
            .map(|packet| E::datagram(PEER, &packet))
            .collect();
        let bed = Bed::<E>::new();
        let takes = Takes::TcpAndUdp;
        let sums = Sums::PORTABLE;
        let inbound = Inbound::new(E::of(US), E::PORT, takes, sums);
        let mut joiner = Joiner::new(sums, true, E::PORT);
        let (mut batch, mut out) = (Batch::new(datagrams.len(), 0), Outbox::default());
        let counts = Direction::default();
        assert_steady(E::NAME, || {
            batch.clear();
            out.clear();
            for datagram in &datagrams {
                fill(&mut batch, datagram);
                batch.frame_mut(batch.len() - 1).source = Some(peer);
            }
            inbound.run(&mut batch, &bed.forwarding, &counts, &mut out);
            joiner.arrange(&mut batch, &out);
            for write in joiner.writes() {
                assert!(joiner.pieces(write, &batch, &out).all(|p| !p.is_empty()));
            }
        });
        assert_eq!(joiner.writes().len(), 4);
        assert_eq!(counts.dropped_total(), 0);
    }
}

#[test]
fn trains_allocate_nothing_in_the_steady_state() {
    trains_are_steady::<RawUdp>();
    trains_are_steady::<Vxlan>();
}

#[test]
fn joining_allocates_nothing_in_the_steady_state() {
    joining_is_steady::<RawUdp>();
    joining_is_steady::<Vxlan>();
}

#[test]
fn outbound_allocates_nothing_in_the_steady_state() {
    outbound_is_steady::<RawUdp>();
    outbound_is_steady::<Vxlan>();
}

#[test]
fn inbound_allocates_nothing_in_the_steady_state() {
    inbound_is_steady::<RawUdp>();
    inbound_is_steady::<Vxlan>();
}

/// The counter counts: or the tests above could not fail.
#[test]
fn an_allocation_is_counted() {
    let counted = allocation_counter::measure(|| {
        std::hint::black_box(vec![0u8; 10]);
    });
    assert_eq!(counted.count_total, 1);
}
