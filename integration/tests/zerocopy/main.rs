//! Sends that the kernel reads where they lie: switched off where it copies after all, and never a changed byte.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use encap::Family::{self, V4, V6};
use integration::bed::{self, Backend, Bed, Daemon, Node, Underlay};
use integration::probe;
use serde_json::Value;

fn start(bed: &Bed, backend: Backend, zerocopy: &str) -> Vec<Daemon> {
    // What leaves whole by the injection device does not pass the sockets.
    let config = |node: &Node| {
        node.config(backend)
            .set("datapath.zerocopy", zerocopy)
            .set("datapath.injection", "off")
    };
    let start = |node: &Node| Daemon::start(node, &config(node));
    bed.nodes().iter().map(start).collect()
}

/// What the daemon says about zerocopy over a family: is it on, and a word about it.
fn feature(daemon: &Daemon, outer: Family) -> Option<(bool, String)> {
    let name = match outer {
        V4 => "zerocopy-ipv4",
        V6 => "zerocopy-ipv6",
    };
    let status = daemon.status();
    let feature = bed::feature(&status, name)?;
    let note = feature["note"].as_str().unwrap().to_owned();
    Some((feature["on"] == Value::Bool(true), note))
}

/// So many bytes each way between the pods, compared as they arrive.
fn transfer(bed: &Bed, inner: Family, bytes: u64) {
    let (one, two) = (bed.node(1), bed.node(2));
    let (from, to) = (one.pod_ip(inner), two.pod_ip(inner));
    probe::tcp(one.pod(), from, two.pod(), to, bytes);
}

#[test]
fn auto_is_off_as_soon_as_the_kernel_copies() {
    for (underlay, outer, other) in [(Underlay::V4, V4, V6), (Underlay::V6, V6, V4)] {
        let bed = Bed::new(2, underlay);
        let daemons = start(&bed, Backend::Vxlan, "auto");
        let before = feature(&daemons[0], outer).unwrap();
        assert_eq!(before, (true, "no large send yet".to_owned()));
        assert_eq!(feature(&daemons[0], other), None);
        transfer(&bed, V4, 5_000_000);
        let (on, note) = feature(&daemons[0], outer).unwrap();
        assert!(!on && note.contains("copied"), "{note}");
        let said = |daemon: &Daemon| daemon.log().matches("zerocopy is off").count();
        assert_eq!(said(&daemons[0]), 1, "{}", daemons[0].log());
        // It stays off, and no more is lent.
        transfer(&bed, V6, 5_000_000);
        assert_eq!(feature(&daemons[0], outer), Some((false, note)));
        assert_eq!(said(&daemons[0]), 1);
        daemons
            .iter()
            .for_each(|daemon| daemon.assert_balanced(&[]));
        daemons.into_iter().for_each(Daemon::stop);
    }
}

/// The packets wait in a slow queue, where they are nothing but references to the daemon's memory, while it goes on.
/// A byte that changed there would make an inner checksum wrong, and a drop of it.
#[test]
fn what_waits_in_a_queue_is_sent_as_it_was() {
    for (underlay, outer) in [(Underlay::V4, V4), (Underlay::V6, V6)] {
        let bed = Bed::new(2, underlay);
        slow(bed.node(1));
        let daemons = start(&bed, Backend::Vxlan, "on");
        for inner in [V4, V6] {
            transfer(&bed, inner, 12_000_000);
        }
        let (on, note) = feature(&daemons[0], outer).unwrap();
        let lent: u64 = note.split(' ').next().unwrap().parse().unwrap();
        assert!(on && lent > 100, "{note}");
        daemons
            .iter()
            .for_each(|daemon| daemon.assert_balanced(&[]));
        daemons.into_iter().for_each(Daemon::stop);
    }
}

/// Lets the node's underlay interface send 200 Mbit/s, with a queue that holds a second of it.
fn slow(node: &Node) {
    let mut tc = Command::new("tc");
    tc.args(["qdisc", "add", "dev", "eth0", "root", "tbf"]);
    tc.args(["rate", "200mbit", "burst", "100k", "limit", "25m"]);
    let mut child = node.netns().spawn(tc).expect("run tc");
    assert!(child.wait().unwrap().success(), "tc refused the qdisc");
}

#[test]
fn off_and_the_udp_backend_do_without() {
    for (backend, zerocopy) in [
        (Backend::Vxlan, "off"),
        (Backend::Udp, "auto"),
        (Backend::Udp, "on"),
    ] {
        let bed = Bed::new(2, Underlay::V4);
        let daemons = start(&bed, backend, zerocopy);
        transfer(&bed, V4, 5_000_000);
        assert_eq!(feature(&daemons[0], V4), None);
        daemons.into_iter().for_each(Daemon::stop);
    }
}
