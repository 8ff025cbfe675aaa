//! Nodes on a real etcd: the schema, the faults, and what must hold in each.
#![allow(clippy::unwrap_used)]

mod access;
mod changes;
mod clock;
mod commands;
mod faults;
mod members;
mod schema;
mod survival;

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::bed::{Bed, Daemon, Node, Spec};
use integration::etcd::Etcd;
use serde_json::Value;

const VXLAN: &str =
    r#"{"Network":"10.244.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan","VNI":1}}"#;
/// Generous: machines may be busy. What it takes at rest is a second.
const LONG: Duration = Duration::from_secs(30);

/// Nodes without pods, and an etcd that holds a network configuration of VXLAN.
fn bare(nodes: u8) -> (Bed, Etcd) {
    let (bed, etcd) = unconfigured(nodes);
    etcd.configure(VXLAN);
    (bed, etcd)
}

/// Nodes without pods, and an etcd without a network configuration.
fn unconfigured(nodes: u8) -> (Bed, Etcd) {
    let bed = Bed::with(&Spec {
        nodes,
        pods: false,
        ..Spec::default()
    });
    let etcd = Etcd::start(&bed);
    (bed, etcd)
}

/// Waits until it is so.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LONG;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "not so within {LONG:?}: {what}");
        sleep(Duration::from_millis(20));
    }
}

fn start(node: &Node, etcd: &Etcd) -> Daemon {
    let daemon = Daemon::launch(node, &etcd.config(node));
    await_daemon(&daemon);
    daemon
}

/// Waits until it answers.
fn await_daemon(daemon: &Daemon) -> Value {
    until("the daemon answers", || {
        overlayd::observe::client::status(daemon.socket()).ok()
    })
}

fn subnet(daemon: &Daemon) -> String {
    daemon.status()["lease"]["subnet"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn peers(daemon: &Daemon) -> BTreeSet<String> {
    let status = daemon.status();
    let peers = status["peers"].as_array().unwrap();
    peers
        .iter()
        .map(|peer| peer["subnet"].as_str().unwrap_or("none").to_owned())
        .collect()
}

/// As the key has it.
fn key(subnet: &str) -> String {
    subnet.replace('/', "-")
}

/// Every daemon is well, holds a subnet of its own, and knows all others.
fn whole(daemons: &[Daemon]) -> bool {
    let own: BTreeSet<String> = daemons.iter().map(subnet).collect();
    own.len() == daemons.len()
        && daemons.iter().all(|daemon| {
            let mut all = peers(daemon);
            let is_new = all.insert(subnet(daemon));
            is_new && all == own && daemon.status()["state"] == "ok"
        })
}

/// Leases to each node of the bed the subnet that its pod lives in, as an earlier life of it would have left it.
fn lease_pods(bed: &Bed, etcd: &Etcd) {
    for node in bed.nodes() {
        let net = node.subnet(encap::Family::V4).to_string();
        let ip = node.public_ip(encap::Family::V4);
        etcd.lease(
            &key(&net),
            &format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan"}}"#),
        );
    }
}

/// Reserves to each node of the bed the subnet that its pod lives in.
fn reserve_pods(bed: &Bed, etcd: &Etcd) {
    for node in bed.nodes() {
        let net = node.subnet(encap::Family::V4).to_string();
        let ip = node.public_ip(encap::Family::V4);
        etcd.put(
            &key(&net),
            &format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null}}"#),
        );
    }
}
