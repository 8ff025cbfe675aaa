//! Everything at once for some seconds: TCP both ways in both families, UDP of random sizes, pings, all verified. Then
//! the counters balance, the daemons have stayed small, and when all is quiet they do nothing.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use encap::Family::{V4, V6};
use integration::bed::{Backend, Daemon, Node, Underlay};
use integration::probe;
use overlayd::config::Engine;
use overlayd::lab::traffic::{self, Fragmenting, PingOpts, Stream, UdpReport};
use serde_json::Value;

use crate::count;

/// How long the traffic lasts: in seconds, `SOAK_SECONDS` of the environment, or this.
const SECONDS: u64 = 5;
/// Resident memory of a daemon at its most, in KiB.
const MOST_MEMORY: u64 = 64 << 10;

fn duration() -> Duration {
    let seconds = std::env::var("SOAK_SECONDS").map(|text| {
        let seconds = text.parse();
        seconds.unwrap_or_else(|_| panic!("SOAK_SECONDS is no number of seconds: {text}"))
    });
    Duration::from_secs(seconds.unwrap_or(SECONDS))
}

fn mixed(engine: Engine, backend: Backend) {
    let bed = crate::bed(2, backend, Underlay::Dual);
    let daemons = bed.start_with(backend, engine);
    let end = Instant::now() + duration();
    let (one, two) = (bed.node(1), bed.node(2));
    let pairs = [(one, two, V4), (two, one, V6)];
    thread::scope(|scope| {
        for (from, to, family) in pairs {
            scope.spawn(move || {
                while Instant::now() < end {
                    let (client, server) = (from.pod_ip(family), to.pod_ip(family));
                    probe::tcp(from.pod(), client, to.pod(), server, 5_000_000);
                }
            });
            scope.spawn(move || datagrams(from, to, family, end));
            scope.spawn(move || pings(from, to, family, end));
        }
    });
    for daemon in &daemons {
        daemon.assert_balanced(&[]);
        let memory = peak_memory(daemon);
        eprintln!("{engine:?} {backend:?}: {memory} KiB at most");
        assert!(memory <= MOST_MEMORY, "{memory} KiB");
        assert_idle(daemon);
    }
    daemons.into_iter().for_each(Daemon::stop);
}

/// Sizes that look random, the same in each run, fragmented above the MTU.
fn datagrams(from: &Node, to: &Node, family: encap::Family, end: Instant) {
    let mut seed = 0;
    let (mut sent, mut intact) = (0, 0);
    while Instant::now() < end {
        seed += 1;
        let random = Stream::bytes(seed, 60);
        let sizes = random.chunks(2).map(|two| {
            let any = usize::from(u16::from_le_bytes([two[0], two[1]]));
            if any % 4 == 0 { any % 9000 } else { any % 1400 }
        });
        let sizes: Vec<_> = sizes.collect();
        let ip = to.pod_ip(family);
        let report: UdpReport =
            probe::udp_report(from.pod(), to.pod(), ip, sizes, Fragmenting::Allowed);
        assert!(
            report.corrupted.is_empty() && report.refused.is_empty(),
            "{report:?}"
        );
        (sent, intact) = (sent + report.sent, intact + report.intact);
    }
    // A full queue loses some, beside TCP that takes all there is.
    assert!(
        intact * 2 > sent,
        "{intact} of {sent} datagrams to {family:?} came back"
    );
}

fn pings(from: &Node, to: &Node, family: encap::Family, end: Instant) {
    let (mut sent, mut received) = (0, 0);
    for size in (0..).step_by(701) {
        if Instant::now() >= end {
            break;
        }
        let opts = PingOpts {
            count: 5,
            size: size % 4000,
            interval: Duration::from_millis(10),
            ..PingOpts::default()
        };
        let report = probe::within(from.pod(), || traffic::ping(to.pod_ip(family), &opts));
        assert_eq!((report.corrupted, report.duplicates), (0, 0), "{report:?}");
        (sent, received) = (sent + report.sent, received + report.received);
    }
    assert!(
        received * 2 > sent,
        "{received} of {sent} pings in {family:?} were answered"
    );
}

/// The most memory that was ever resident (VmHWM, proc_pid_status(5)), in KiB.
fn peak_memory(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse().unwrap()
}

/// What each forwarding thread has run so far, and the other threads together: `/proc/PID/task/TID/schedstat`.
fn ran(daemon: &Daemon) -> (Vec<(String, u64)>, Duration) {
    let (mut forwarding, mut others) = (Vec::new(), 0);
    for (name, schedstat) in daemon.threads("schedstat") {
        let nanoseconds: u64 = schedstat.split(' ').next().unwrap().parse().unwrap();
        if ["forward", "inbound", "outbound"].contains(&name.as_str()) {
            forwarding.push((name, nanoseconds));
        } else {
            others += nanoseconds;
        }
    }
    assert!(!forwarding.is_empty(), "there are forwarding threads");
    forwarding.sort();
    (forwarding, Duration::from_nanos(others))
}

/// Two seconds without a packet cost forwarding threads no processor time at all, and the others, which look at the
/// lease file now and then, less than the clock tick in which the kernel reports such time.
fn assert_idle(daemon: &Daemon) {
    let counts = |status: &Value, name: &str| {
        ["outbound", "inbound"].map(|direction| count(status, direction, name))
    };
    for _ in 0..10 {
        let before = daemon.status();
        // The answer itself takes a moment to be over with.
        thread::sleep(Duration::from_millis(200));
        let (forwarding, others) = ran(daemon);
        thread::sleep(Duration::from_secs(2));
        let (forwarding_after, others_after) = ran(daemon);
        let after = daemon.status();
        // The kernel speaks up on its devices now and then: neighbours, multicast listeners. Those are packets.
        if counts(&before, "in") == counts(&after, "in") {
            assert_eq!(forwarding, forwarding_after, "time that they have run");
            let house_kept = others_after - others;
            assert!(house_kept < Duration::from_millis(10), "{house_kept:?}");
            return;
        }
    }
    panic!("there was never a quiet moment");
}

#[test]
fn classic_udp() {
    mixed(Engine::Classic, Backend::Udp);
}

#[test]
fn classic_vxlan() {
    mixed(Engine::Classic, Backend::Vxlan);
}

#[test]
fn batched_udp() {
    mixed(Engine::Batched, Backend::Udp);
}

#[test]
fn batched_vxlan() {
    mixed(Engine::Batched, Backend::Vxlan);
}
