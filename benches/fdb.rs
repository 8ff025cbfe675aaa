//! The tables at 10,000 dual-stack leases (`cargo bench --bench fdb`): what a packet's lookup
//! costs, what a change of leases costs, and what the one does to the other.
//!
//! Destinations are random over all leases, so that every lookup reads another part of the table:
//! the worst a real mix of flows comes near. "batch": no lookup depends on another, as for a batch of
//! packets, and the processor overlaps them. "alone": each waits for the answer to the one before.

// criterion_group! makes a public function; table sizes are printed for people.
#![allow(missing_docs, clippy::print_stdout)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use encap::Header;
use fdb::{Claim, Endpoint, Fib4, Fib6, Network, NextHop, Rib, Route, Snapshot, Tables};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

const LEASES: u32 = 10_000;
/// Destinations per iteration; more than a cache keeps of the tables' lines by chance.
const PACKETS: usize = 1 << 14;
/// Packets that one load of the snapshot serves.
const BATCH: usize = 64;

/// xorshift64* (Vigna 2016), seeded alike in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u32) -> u32 {
        u32::try_from(self.next() % u64::from(end)).expect("below a u32")
    }
}

/// How the leases lie in 10.0.0.0/8 and in a /48.
#[derive(Clone, Copy)]
enum Layout {
    /// All /24 and /64: every sixth subnet of the network, in order.
    OneLength,
    /// /24 and /25 in turn, /64 and /65; in the full tables a route around them all too.
    Mixed,
}

fn subnet_v4(layout: Layout, lease: u32) -> Ipv4Net {
    let len = match layout {
        Layout::Mixed if lease % 2 == 1 => 25,
        Layout::Mixed | Layout::OneLength => 24,
    };
    Ipv4Net::new_assert(Ipv4Addr::from_bits(0x0a00_0000 + lease * 6 * 256), len)
}

fn subnet_v6(layout: Layout, lease: u32) -> Ipv6Net {
    let len = match layout {
        Layout::Mixed if lease % 2 == 1 => 65,
        Layout::Mixed | Layout::OneLength => 64,
    };
    let bits = (0xfd00_0010_0244 << 80) + (u128::from(lease * 6) << 64);
    Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), len)
}

fn public(lease: u32) -> Endpoint {
    Endpoint {
        v4: Some(Ipv4Addr::from_bits(0xc612_0000 + lease)),
        v6: Some(Ipv6Addr::from_bits((0xfd99 << 112) + u128::from(lease))),
    }
}

fn claims(layout: Layout) -> Vec<Claim> {
    (0..LEASES)
        .map(|lease| Claim {
            v4: Some(subnet_v4(layout, lease)),
            v6: Some(subnet_v6(layout, lease)),
            public: public(lease),
            own: lease == 0,
        })
        .collect()
}

/// As the daemon makes them: one counter block shared by every table that knows the peer.
fn tables(layout: Layout, claims: &[Claim], data: &Arc<AtomicU64>) -> Tables<Arc<AtomicU64>> {
    let mut builder = Tables::builder();
    for claim in claims {
        if claim.own {
            builder.own(claim.public);
            claim.subnets().for_each(|subnet| builder.local(subnet));
            continue;
        }
        let peer = builder.peer(claim.public, Arc::clone(data));
        for (subnet, ip) in claim.subnets().zip(claim.public.ips()) {
            let to = SocketAddr::new(ip, 8472);
            builder.route(
                subnet,
                NextHop {
                    peer,
                    to,
                    mtu: 1450,
                    header: Header::EMPTY,
                },
            );
        }
    }
    if matches!(layout, Layout::Mixed) {
        let around = ["10.0.0.0/8", "fd00:10:244::/48"];
        around
            .iter()
            .for_each(|prefix| builder.local(prefix.parse::<IpNet>().expect("a prefix")));
    }
    builder.build()
}

fn fibs(layout: Layout) -> (Fib4, Fib6) {
    (
        Fib4::build((0..LEASES).map(|lease| (subnet_v4(layout, lease), lease))),
        Fib6::build((0..LEASES).map(|lease| (subnet_v6(layout, lease), lease))),
    )
}

fn destinations_v4(random: &mut Random) -> Vec<Ipv4Addr> {
    let mut one = || {
        let subnet = subnet_v4(Layout::OneLength, random.below(LEASES));
        Ipv4Addr::from_bits(subnet.addr().to_bits() | random.below(256))
    };
    (0..PACKETS).map(|_| one()).collect()
}

fn destinations_v6(random: &mut Random) -> Vec<Ipv6Addr> {
    let mut one = || {
        let subnet = subnet_v6(Layout::OneLength, random.below(LEASES));
        Ipv6Addr::from_bits(subnet.addr().to_bits() | u128::from(random.next()))
    };
    (0..PACKETS).map(|_| one()).collect()
}

/// One lookup for each packet, none waiting for the one before.
fn each<T: Copy, R>(packets: &[T], lookup: impl Fn(T) -> R) {
    for packet in packets {
        black_box(lookup(*packet));
    }
}

/// Which packet is next depends on the last answer, so that no two lookups overlap.
fn chained<T: Copy>(packets: &[T], lookup: impl Fn(T) -> u32) -> u32 {
    let mut last = 0;
    for at in 0..packets.len() {
        last = lookup(packets[at ^ (last as usize & 1)]);
    }
    last
}

/// The peer a destination leads to, for [`chained`].
fn peer<P>(tables: &Tables<P>, dst: IpAddr) -> u32 {
    match tables.route(dst) {
        Route::Peer(hop) => hop.peer,
        Route::Local | Route::None => 0,
    }
}

/// Longest prefix match on its own.
fn lookup(c: &mut Criterion) {
    let mut random = Random(1);
    let v4: Vec<u32> = destinations_v4(&mut random)
        .into_iter()
        .map(Ipv4Addr::to_bits)
        .collect();
    let v6: Vec<u128> = destinations_v6(&mut random)
        .into_iter()
        .map(Ipv6Addr::to_bits)
        .collect();
    let mut group = c.benchmark_group("fib lookup");
    group.throughput(Throughput::Elements(PACKETS as u64));
    for (layout, form) in [(Layout::OneLength, "direct"), (Layout::Mixed, "ranges")] {
        let (fib4, fib6) = fibs(layout);
        println!("{form} v4: {}, {} bytes", fib4.kind(), fib4.memory());
        println!("{form} v6: {}, {} bytes", fib6.kind(), fib6.memory());
        group.bench_function(format!("{form} v4, batch"), |b| {
            b.iter(|| each(&v4, |dst| fib4.lookup(dst)));
        });
        group.bench_function(format!("{form} v4, alone"), |b| {
            b.iter(|| chained(&v4, |dst| fib4.lookup(dst).unwrap_or(0)));
        });
        group.bench_function(format!("{form} v6, batch"), |b| {
            b.iter(|| each(&v6, |dst| fib6.lookup(dst)));
        });
        group.bench_function(format!("{form} v6, alone"), |b| {
            b.iter(|| chained(&v6, |dst| fib6.lookup(dst).unwrap_or(0)));
        });
    }
    group.finish();
}

/// What a packet asks: the next hop and its peer outbound, the peer behind an outer source inbound.
fn route(c: &mut Criterion) {
    let mut random = Random(2);
    let v4: Vec<IpAddr> = destinations_v4(&mut random)
        .into_iter()
        .map(IpAddr::V4)
        .collect();
    let v6: Vec<IpAddr> = destinations_v6(&mut random)
        .into_iter()
        .map(IpAddr::V6)
        .collect();
    let mut outer = |v6: bool| -> Vec<IpAddr> {
        let mut one = || {
            public(random.below(LEASES))
                .ips()
                .nth(usize::from(v6))
                .expect("dual-stack")
        };
        (0..PACKETS).map(|_| one()).collect()
    };
    let (outer_v4, outer_v6) = (outer(false), outer(true));
    let data = Arc::new(AtomicU64::new(0));
    let mut group = c.benchmark_group("tables");
    group.throughput(Throughput::Elements(PACKETS as u64));
    for (layout, form) in [(Layout::OneLength, "direct"), (Layout::Mixed, "ranges")] {
        let tables = tables(layout, &claims(layout), &data);
        println!(
            "{form}: {LEASES} dual-stack leases take {} bytes",
            tables.memory()
        );
        for (family, packets) in [("v4", &v4), ("v6", &v6)] {
            group.bench_function(format!("route {form} {family}, batch"), |b| {
                b.iter(|| each(packets, |dst| tables.route(dst)));
            });
            group.bench_function(format!("route {form} {family}, alone"), |b| {
                b.iter(|| chained(packets, |dst| peer(&tables, dst)));
            });
        }
    }
    let tables = tables(Layout::OneLength, &claims(Layout::OneLength), &data);
    for (family, packets) in [("v4", &outer_v4), ("v6", &outer_v6)] {
        group.bench_function(format!("peer by public IP {family}"), |b| {
            b.iter(|| each(packets, |ip| tables.peer_by_public(ip)));
        });
    }
    group.finish();
}

/// From claims to a table that readers see.
fn publish(c: &mut Criterion) {
    let data = Arc::new(AtomicU64::new(0));
    let network = Network {
        v4: Some("10.0.0.0/8".parse().expect("a prefix")),
        v6: Some("fd00:10:244::/48".parse().expect("a prefix")),
    };
    let mut group = c.benchmark_group("publish 10,000 leases");
    for (layout, form) in [(Layout::OneLength, "direct"), (Layout::Mixed, "ranges")] {
        let claims = claims(layout);
        assert_eq!(
            Rib::build(&network, &claims, &[]).accepted().len(),
            claims.len()
        );
        group.bench_function(format!("judge {form}"), |b| {
            b.iter(|| Rib::build(&network, black_box(&claims), &[]));
        });
        group.bench_function(format!("build {form}"), |b| {
            b.iter_with_large_drop(|| tables(layout, black_box(&claims), &data));
        });
    }
    let snapshot = Snapshot::new(Tables::default());
    let claims = claims(Layout::OneLength);
    group.bench_function("swap", |b| {
        b.iter_batched(
            || Arc::new(tables(Layout::OneLength, &claims, &data)),
            |tables| snapshot.publish(tables),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// The reader's side: while nothing changes, and while another thread publishes as fast as it can.
fn snapshot(c: &mut Criterion) {
    let mut random = Random(3);
    let packets: Vec<IpAddr> = destinations_v4(&mut random)
        .into_iter()
        .map(IpAddr::V4)
        .collect();
    let data = Arc::new(AtomicU64::new(0));
    let leases = claims(Layout::OneLength);
    let snapshot = Snapshot::new(tables(Layout::OneLength, &leases, &data));
    let mut reader = snapshot.reader();
    let mut group = c.benchmark_group("snapshot");
    group.bench_function("load, unchanged", |b| {
        b.iter(|| black_box(reader.load().peers().len()))
    });

    group.throughput(Throughput::Elements(PACKETS as u64));
    let mut routed = |waits: &mut Vec<Duration>| {
        for batch in packets.chunks(BATCH) {
            let start = Instant::now();
            let tables = reader.load();
            each(batch, |dst| tables.route(dst));
            waits.push(start.elapsed());
        }
    };
    let mut waits = Vec::new();
    group.bench_function("route in timed batches, nobody publishes", |b| {
        b.iter(|| routed(&mut waits));
    });
    print_waits(&mut waits);

    let done = AtomicBool::new(false);
    let mut published = 0_u64;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                snapshot.publish(tables(Layout::OneLength, &leases, &data));
                published += 1;
            }
        });
        group.bench_function("route in timed batches, republished without pause", |b| {
            b.iter(|| routed(&mut waits));
        });
        done.store(true, Ordering::Relaxed);
    });
    print_waits(&mut waits);
    println!("{published} tables were published meanwhile");
    group.finish();
}

/// How long batches took, load included; the far end shows what else the machine was doing.
fn print_waits(waits: &mut Vec<Duration>) {
    // A filter on the command line may have skipped the measurement.
    if waits.is_empty() {
        return;
    }
    waits.sort_unstable();
    for (name, per_mille) in [("half", 500), ("99 %", 990), ("99.9 %", 999)] {
        println!(
            "{name} of batches of {BATCH} took at most {:?}",
            waits[waits.len() * per_mille / 1000]
        );
    }
    waits.clear();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = lookup, route, publish, snapshot
}
criterion_main!(benches);
