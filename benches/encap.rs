//! What the packet path costs per packet in crate `encap`: `cargo bench --bench encap`.
#![allow(missing_docs)] // criterion_group! makes a public function

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use encap::coalesce::{Join, Rules, Run};
use encap::{
    Encapsulation, Family, Fragments, Inner, MacAddr, OwnMacs, Split, Sums, Vxlan, checksum, flow,
    transport,
};
use etherparse::{PacketBuilder, TcpHeader};
use overlayd::sys::wide;

/// A TCP packet between two pods with the timestamp option, as Linux sends it.
fn tcp(family: Family, payload: usize) -> Vec<u8> {
    let mut tcp = TcpHeader::new(40000, 5201, 1, 502);
    tcp.ack = true;
    // NOP, NOP, timestamps
    let options = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    tcp.set_options_raw(&options)
        .expect("12 bytes of options fit");
    let ip = match family {
        Family::V4 => PacketBuilder::ipv4([10, 244, 1, 2], [10, 244, 2, 2], 63),
        Family::V6 => PacketBuilder::ipv6([1; 16], [2; 16], 63),
    };
    let payload: Vec<u8> = (0u8..=250).cycle().take(payload).collect();
    let mut packet = Vec::new();
    ip.tcp_header(tcp)
        .write(&mut packet, &payload)
        .expect("a packet of that size is possible");
    packet
}

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    for (name, family) in [("ipv4", Family::V4), ("ipv6", Family::V6)] {
        let packet = tcp(family, 100);
        group.bench_function(name, |b| b.iter(|| Inner::parse(black_box(&packet))));
    }
    let packet = tcp(Family::V4, 100);
    group.bench_function("ipv4 and its header checksum", |b| {
        b.iter(|| Inner::parse_checked(black_box(&packet)))
    });
    group.finish();
}

fn encapsulation(c: &mut Criterion) {
    let ours = MacAddr([0x0a, 0x58, 10, 99, 0, 1]);
    let peer = MacAddr([0x0a, 0x58, 10, 99, 0, 2]);
    let sender = Vxlan {
        vni: 1,
        macs: OwnMacs { v4: ours, v6: ours },
        strict: false,
    };
    let receiver = Vxlan {
        macs: OwnMacs { v4: peer, v6: peer },
        ..sender
    };
    let header = sender.header(Family::V4, peer);
    let packet = tcp(Family::V4, 1398);
    let datagram = [header.as_slice(), &packet].concat();

    let mut group = c.benchmark_group("vxlan");
    group.bench_function("make a header", |b| {
        b.iter(|| sender.header(Family::V4, black_box(peer)))
    });
    let mut buffer = vec![0; 2048];
    group.bench_function("put a header in front", |b| {
        b.iter(|| buffer[..Vxlan::HEADER_LEN].copy_from_slice(black_box(&header).as_slice()));
    });
    group.bench_function("receive checks", |b| {
        b.iter(|| {
            let datagram = black_box(&datagram);
            (
                receiver.check_header(datagram),
                receiver.check_link(datagram),
            )
        });
    });
    group.finish();
}

fn checksums(c: &mut Criterion) {
    let bytes: Vec<u8> = (0u8..=250).cycle().take(65536).collect();
    let mut group = c.benchmark_group("checksum");
    for len in [64, 1500, 65536] {
        group.throughput(Throughput::Bytes(len as u64));
        let bytes = &bytes[..len];
        group.bench_function(BenchmarkId::new("wide", len), |b| {
            b.iter(|| checksum::sum(black_box(bytes)))
        });
        group.bench_function(BenchmarkId::new("reference", len), |b| {
            b.iter(|| checksum::reference_sum(black_box(bytes)));
        });
    }
    group.finish();
}

fn cutting(c: &mut Criterion) {
    let mut group = c.benchmark_group("cut");
    for (name, family) in [("ipv4", Family::V4), ("ipv6", Family::V6)] {
        let packet = tcp(family, 62_000);
        let inner = Inner::parse(&packet).expect("a packet just built parses");
        group.throughput(Throughput::Bytes(62_000));
        group.bench_function(BenchmarkId::new("checksum state of 62 KB", name), |b| {
            b.iter(|| transport::l4_checksum_state(black_box(&packet), &inner));
        });
    }
    let mut packet = tcp(Family::V4, 1448);
    // Take DF off, which the builder sets.
    packet[6] = 0;
    let inner = Inner::parse(&packet).expect("a packet just built parses");
    let mut out = Vec::with_capacity(4096);
    group.throughput(Throughput::Bytes(1500));
    group.bench_function("1500 bytes into IPv4 fragments of 1450", |b| {
        b.iter(|| {
            out.clear();
            let mut fragments =
                Fragments::new(black_box(&packet), &inner, 1450).expect("DF is not set");
            while fragments.next_into(&mut out).is_some() {}
            out.len()
        });
    });
    group.finish();
}

/// The loops over payload bytes, beside the copy that none of them can beat by much.
fn sums(c: &mut Criterion) {
    let bytes: Vec<u8> = (0u8..=250).cycle().take(62_000).collect();
    let mut copy = vec![0; bytes.len()];
    let mut group = c.benchmark_group("sums");
    for len in [64, 1398, 62_000] {
        let (from, to) = (&bytes[..len], &mut copy[..len]);
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("memcpy", len), |b| {
            b.iter(|| to.copy_from_slice(black_box(from)))
        });
        for (name, sums) in [("portable", Sums::PORTABLE), ("wide", wide::sums())] {
            group.bench_function(BenchmarkId::new(format!("sum, {name}"), len), |b| {
                b.iter(|| (sums.sum)(black_box(from)))
            });
            group.bench_function(
                BenchmarkId::new(format!("copy and sum, {name}"), len),
                |b| b.iter(|| (sums.copy_and_sum)(to, black_box(from))),
            );
        }
    }
    group.finish();
}

/// A superpacket on its way out, and on its way in.
fn superpackets(c: &mut Criterion) {
    let prefix = [0; Vxlan::HEADER_LEN];
    let mut group = c.benchmark_group("superpacket of 62 KB");
    group.throughput(Throughput::Bytes(62_000));
    for (name, family) in [("ipv4", Family::V4), ("ipv6", Family::V6)] {
        let packet = tcp(family, 62_000);
        let inner = Inner::parse(&packet).expect("a packet just built parses");
        let mut out = vec![0; 1 << 16];
        for (loops, sums) in [("portable", Sums::PORTABLE), ("wide", wide::sums())] {
            group.bench_function(BenchmarkId::new(format!("split, {loops}"), name), |b| {
                b.iter(|| {
                    let split = Split::new(black_box(&packet), &inner, 1398).expect("TCP is split");
                    split.write_all(&prefix, &mut out, &sums)
                });
            });
        }
        let split = Split::new(&packet, &inner, 1398).expect("TCP is split");
        let len = split.write_all(&[], &mut out, &Sums::PORTABLE);
        let segments: Vec<&[u8]> = out[..len].chunks(split.segment_len()).collect();
        let first = Inner::parse(segments[0]).expect("a segment parses");
        let mut head = segments[0][..split.header_len()].to_vec();
        for (loops, sums) in [("portable", Sums::PORTABLE), ("wide", wide::sums())] {
            let rules = Rules {
                sums,
                udp: true,
                tunnel_ports: &[4789],
            };
            group.bench_function(BenchmarkId::new(format!("join, {loops}"), name), |b| {
                b.iter(|| {
                    let mut run =
                        Run::start(segments[0], &first, &rules).expect("TCP data is joined");
                    for segment in black_box(&segments[1..]) {
                        assert_ne!(run.try_join(segment), Join::No);
                    }
                    run.finish(&mut head)
                });
            });
        }
    }
    group.finish();
}

fn per_packet(c: &mut Criterion) {
    let mut group = c.benchmark_group("per packet");
    for (name, family) in [("ipv4", Family::V4), ("ipv6", Family::V6)] {
        let packet = tcp(family, 100);
        let inner = Inner::parse(&packet).expect("a packet just built parses");
        group.bench_function(BenchmarkId::new("flow hash", name), |b| {
            b.iter(|| flow::source_port(flow::hash(black_box(&packet), black_box(&inner))))
        });
        group.bench_function(BenchmarkId::new("looks unfinished", name), |b| {
            b.iter(|| transport::looks_unfinished(black_box(&packet), black_box(&inner)));
        });
    }
    group.finish();
}

criterion_group!(
    benches,
    parse,
    encapsulation,
    checksums,
    cutting,
    sums,
    superpackets,
    per_packet
);
criterion_main!(benches);
