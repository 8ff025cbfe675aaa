//! What takes minutes, or needs a release build to say anything: run by hand, each part prints its figures and fails where
//! they are not as they must be. The book's page "Measurements" tells how.
//!
//! ```text
//! cargo build --release
//! OVERLAYD_UNDER_TEST=$PWD/target/release/overlayd \
//!     cargo test -p integration --test soak -- --ignored --nocapture --test-threads 1
//! ```
#![allow(clippy::unwrap_used)]

mod many;
mod outage;
mod start;

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::bed::Daemon;

const VXLAN: &str =
    r#"{"Network":"10.128.0.0/9","SubnetLen":24,"Backend":{"Type":"vxlan","VNI":1}}"#;

/// Waits until it is so.
fn until(what: &str, within: Duration, mut is_so: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < within, "not so within {within:?}: {what}");
        sleep(Duration::from_millis(2));
    }
    start.elapsed()
}

/// Does it answer, with so many peers, in a state of health?
fn is_well(daemon: &Daemon, peers: usize) -> bool {
    let status = overlayd::observe::client::status(daemon.socket());
    status.is_ok_and(|status| {
        status["state"] == "ok" && status["peers"].as_array().map(Vec::len) == Some(peers)
    })
}

/// A line of `/proc/<pid>/status`, in KiB.
fn memory(daemon: &Daemon, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The processor time that it has taken (proc_pid_stat(5): `utime` and `stime`).
fn processor_time(daemon: &Daemon) -> Duration {
    let text = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    let fields: Vec<&str> = text
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11..13]
        .iter()
        .map(|field| field.parse::<u64>().unwrap())
        .sum();
    // USER_HZ is 100 on every architecture that matters (time(7)).
    Duration::from_millis(ticks * 10)
}

/// The median, the 99th of a hundred, and the worst.
fn quantiles(mut times: Vec<Duration>) -> (Duration, Duration, Duration) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    (at(50), at(99), at(100))
}
