//! What others do to the device, its addresses, our routes, and the underlay, and what comes of it.
#![allow(clippy::unwrap_used)]

mod host;
mod place;
mod underlay;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use encap::Family;
use integration::bed::{Daemon, Node};
use overlayd::lab::traffic::{PingOpts, ping};
use serde_json::Value;

const V4: Family = Family::V4;
const V6: Family = Family::V6;

/// How long repairs may take before a test gives up; they take a fifth of a second.
const PATIENCE: Duration = Duration::from_secs(10);

fn reaches(from: &Node, to: IpAddr) -> bool {
    let opts = PingOpts {
        count: 1,
        timeout: Duration::from_millis(300),
        ..PingOpts::default()
    };
    // Without a route, ping cannot even send.
    let report = from.run_in_pod(|| ping(to, &opts));
    report.is_ok_and(|report| report.received == 1)
}

fn waits_for(what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !is_so() {
        assert!(
            start.elapsed() < PATIENCE,
            "not so within {PATIENCE:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    start.elapsed()
}

/// Waits until the pods of two nodes reach each other in both families.
fn both_reach(what: &str, one: &Node, two: &Node) -> Duration {
    let start = Instant::now();
    for family in [V4, V6] {
        waits_for(&format!("{family:?} after {what}"), || {
            reaches(one, two.pod_ip(family)) && reaches(two, one.pod_ip(family))
        });
    }
    start.elapsed()
}

/// Waits until the daemon has reason to complain in these words.
fn complains(daemon: &Daemon, words: &[&str]) -> Value {
    daemon.wait_for(&format!("a complaint of {words:?}"), |status| {
        let reasons = status["reasons"].to_string();
        status["state"] == "degraded" && words.iter().all(|word| reasons.contains(word))
    })
}

fn is_well(daemon: &Daemon) -> Value {
    daemon.wait_for("all is well", |status| status["state"] == "ok")
}

fn repairs(status: &Value) -> u64 {
    status["repairs"]["count"].as_u64().unwrap()
}
