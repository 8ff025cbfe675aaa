//! What the stages cost per packet, without the system calls around them: `cargo bench --bench datapath`.
//!
//! Each measurement is one packet through one stage in a batch of one, as in the classic engine. Reading it into the
//! frame (a copy that the kernel makes otherwise) is part of it; `copy alone` says how much. Before a stage is measured, it is
//! held to allocating nothing: the memory that its first packet made it take must do for all that follow.
#![allow(missing_docs)] // criterion_group! makes a public function

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use encap::{Encapsulation, Family, MacAddr, OwnMacs, RawUdp, Sums, Vxlan};
use etherparse::PacketBuilder;
use fdb::{Endpoint, NextHop, Tables};
use overlayd::datapath::batch::{Batch, Outbox};
use overlayd::datapath::counters::Direction;
use overlayd::datapath::inbound::{Inbound, Takes};
use overlayd::datapath::outbound::Outbound;
use overlayd::datapath::{Forwarding, Options};

const PORT: u16 = 8472;
/// Leases in the table, each a /24 of 10.0.0.0/8; the first is ours.
const LEASES: u16 = 1000;

/// The subnet, or with `host` an address, of a lease.
fn inner(lease: u16, host: u8) -> Ipv4Addr {
    let [high, low] = lease.to_be_bytes();
    Ipv4Addr::new(10, high, low, host)
}

fn public(lease: u16) -> Ipv4Addr {
    let [high, low] = lease.to_be_bytes();
    Ipv4Addr::new(172, 16, high, low)
}

fn mac(lease: u16) -> MacAddr {
    let [a, b, c, d] = public(lease).octets();
    MacAddr([0x0a, 0x58, a, b, c, d])
}

fn vxlan(lease: u16) -> Vxlan {
    let macs = OwnMacs {
        v4: mac(lease),
        v6: mac(lease),
    };
    Vxlan {
        vni: 1,
        macs,
        strict: false,
    }
}

fn forwarding<E: Encapsulation>(encapsulation: &E) -> Forwarding {
    let endpoint = |lease| Endpoint {
        v4: Some(public(lease)),
        v6: None,
    };
    let prefix = |lease| format!("{}/24", inner(lease, 0)).parse().expect("a prefix");
    let mut tables = Tables::builder();
    tables.own(endpoint(0));
    tables.local(prefix(0));
    for lease in 1..LEASES {
        let peer = tables.peer(endpoint(lease), Arc::default());
        let hop = NextHop {
            peer,
            to: (public(lease), PORT).into(),
            mtu: 1500 - E::overhead(Family::V4),
            header: encapsulation.header(Family::V4, mac(lease)),
        };
        tables.route(prefix(lease), hop);
    }
    let options = Options {
        overlay_v4: Some(inner(0, 0)),
        overlay_v6: None,
        copy_ecn: true,
        copy_dscp: false,
        accept_node_source: false,
        icmp_rate: 1000,
        path_mtu: 1500 - E::overhead(Family::V4),
        ipv6_path_mtu: 1500 - E::overhead(Family::V4),
    };
    Forwarding {
        tables: tables.build(),
        options,
    }
}

/// A TCP packet of `len` bytes.
fn packet(from: u16, to: u16, len: usize) -> Vec<u8> {
    let ip = PacketBuilder::ipv4(inner(from, 5).octets(), inner(to, 5).octets(), 63);
    let mut packet = Vec::new();
    ip.tcp(40_000, 5201, 1, 64_000)
        .ack(2)
        .write(&mut packet, &vec![0x5a; len - 40])
        .expect("a packet of that size is possible");
    packet
}

fn fill(batch: &mut Batch, bytes: &[u8]) {
    batch.clear();
    let filled = batch.fill(|room, _| {
        room[..bytes.len()].copy_from_slice(bytes);
        Ok::<_, std::convert::Infallible>(Some(bytes.len()))
    });
    assert_eq!(filled, Ok(true));
}

/// Once its buffers have grown.
fn allocates_nothing(mut work: impl FnMut()) {
    work();
    let made = allocation_counter::measure(work);
    assert_eq!(made.count_total, 0, "{made:?}");
}

fn outbound<E: Encapsulation>(c: &mut Criterion, encapsulation: &E) {
    let mut group = c.benchmark_group(format!("outbound {}", E::NAME));
    let forwarding = forwarding(encapsulation);
    let (mut batch, mut out, counts) = (
        Batch::new(1, encap::MAX_HEADER),
        Outbox::default(),
        Direction::default(),
    );
    for len in [64, 1400] {
        let packet = packet(0, 700, len);
        let mut stage = Outbound::new(PORT, Sums::PORTABLE);
        let now = Instant::now();
        group.throughput(Throughput::Elements(1));
        let mut work = || {
            fill(&mut batch, black_box(&packet));
            stage.run(&mut batch, &forwarding, &counts, now, &mut out);
            assert_eq!(black_box(&out).parcels().len(), 1);
            out.clear();
        };
        allocates_nothing(&mut work);
        group.bench_function(BenchmarkId::from_parameter(len), |b| b.iter(&mut work));
    }
}

fn inbound<E: Encapsulation>(c: &mut Criterion, ours: &E, theirs: &E) {
    let mut group = c.benchmark_group(format!("inbound {}", E::NAME));
    let forwarding = forwarding(ours);
    let (mut batch, mut out, counts) = (
        Batch::new(1, encap::MAX_HEADER),
        Outbox::default(),
        Direction::default(),
    );
    let stage = Inbound::new(ours.clone(), PORT, Takes::Finished, Sums::PORTABLE);
    for len in [64, 1400, 60_000] {
        let header = theirs.header(Family::V4, mac(0));
        let datagram = [header.as_slice(), &packet(700, 0, len)].concat();
        group.throughput(Throughput::Elements(1));
        // The largest is a superpacket, whose forty-odd parts are cut off one by one.
        let mut work = || {
            fill(&mut batch, black_box(&datagram));
            batch.frame_mut(0).source = Some(IpAddr::V4(public(700)));
            stage.run(&mut batch, &forwarding, &counts, &mut out);
            assert!(!black_box(&out).deliveries().is_empty());
            out.clear();
        };
        allocates_nothing(&mut work);
        group.bench_function(BenchmarkId::from_parameter(len), |b| b.iter(&mut work));
    }
}

fn stages(c: &mut Criterion) {
    let mut group = c.benchmark_group("copy alone");
    let mut batch = Batch::new(1, encap::MAX_HEADER);
    for len in [64, 1400, 60_000] {
        let packet = packet(0, 700, len);
        group.bench_function(BenchmarkId::from_parameter(len), |b| {
            b.iter(|| {
                fill(&mut batch, black_box(&packet));
                black_box(&mut batch);
            });
        });
    }
    group.finish();
    outbound(c, &RawUdp);
    outbound(c, &vxlan(0));
    inbound(c, &RawUdp, &RawUdp);
    inbound(c, &vxlan(0), &vxlan(700));
}

criterion_group!(benches, stages);
criterion_main!(benches);
