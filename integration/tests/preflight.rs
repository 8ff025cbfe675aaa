//! Settings of the host that eat overlay traffic: each is warned of by `run` and `status`, with a cure that cures.
//!
//! The cures are run as printed, by a shell in the node: these tests need `sysctl` (procps), and where they say so `nft`.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::Duration;

use encap::Family;
use integration::bed::{Backend, Bed, Daemon, Node, Underlay, overlayd_bin};
use overlayd::kernel::{RouteSpec, sysctl};
use overlayd::lab::traffic::{PingOpts, ping};
use serde_json::{Value, json};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Does a packet get from pod to pod, in both directions?
fn pods_talk(bed: &Bed, family: Family) -> bool {
    let opts = PingOpts {
        count: 1,
        timeout: Duration::from_millis(300),
        ..PingOpts::default()
    };
    let to = bed.node(2).pod_ip(family);
    bed.node(1).run_in_pod(|| ping(to, &opts)).unwrap().received == 1
}

/// A line typed by a person at the node.
#[track_caller]
fn shell(node: &Node, line: &str) {
    let done = node
        .run(|| Command::new("sh").args(["-c", line]).output())
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{line}: {said}");
}

fn set(node: &Node, key: &str, value: &str) {
    node.run(|| sysctl::write(key, value)).unwrap();
}

fn warnings(status: &Value) -> Vec<(String, String)> {
    let list = status["warnings"].as_array().unwrap().iter();
    let text = |warning: &Value, key: &str| warning[key].as_str().unwrap().to_owned();
    list.map(|warning| (text(warning, "what"), text(warning, "cure")))
        .collect()
}

/// The only warning is of all these words; its cure, run as printed, makes it go away.
#[track_caller]
fn warned_and_cured(node: &Node, daemon: &Daemon, words: &[&str]) {
    let status = daemon.status();
    let found = warnings(&status);
    assert_eq!(found.len(), 1, "{found:?}");
    let (what, cure) = &found[0];
    for word in words {
        assert!(what.contains(word), "{word:?} is missing: {what}");
    }
    assert_eq!(status["state"], "ok", "a warning is not a fault");
    shell(node, cure);
    assert_eq!(daemon.status()["warnings"], json!([]), "after {cure}");
}

#[test]
fn forwarding_that_is_off() {
    let bed = Bed::new(2, Underlay::V4);
    let node = bed.node(1);
    // Off from the start: said in the log too.
    set(node, "net.ipv4.ip_forward", "0");
    let daemons = bed.start(Backend::Vxlan);
    let daemon = &daemons[0];
    let log = daemon.log();
    let line = log
        .lines()
        .find(|line| line.contains("WARN"))
        .expect("a warning in the log");
    assert!(
        line.contains("IPv4 forwarding is off") && line.contains("sysctl -w net.ipv4.ip_forward=1"),
        "{log}"
    );
    let mut status = Command::new(overlayd_bin());
    status.arg("status").arg("--socket").arg(daemon.socket());
    let text = status.output().unwrap();
    let (code, text) = (text.status.code(), String::from_utf8(text.stdout).unwrap());
    assert_eq!(code, Some(0));
    assert!(text.contains("warning: IPv4 forwarding is off"), "{text}");
    assert!(
        text.contains("cure: sysctl -w net.ipv4.ip_forward=1"),
        "{text}"
    );

    for (family, key, title) in [
        (Family::V4, "net.ipv4.ip_forward", "IPv4"),
        (Family::V6, "net.ipv6.conf.all.forwarding", "IPv6"),
    ] {
        set(node, key, "0");
        assert!(!pods_talk(&bed, family), "{key} matters");
        warned_and_cured(node, daemon, &[title, "forwarding is off", key, "overlay0"]);
        assert!(pods_talk(&bed, family), "the cure of {key} helps");
    }
    // Off on the overlay's device alone.
    let key = "net.ipv4.conf.overlay0.forwarding";
    set(node, key, "0");
    warned_and_cured(node, daemon, &[key]);
    assert!(pods_talk(&bed, Family::V4));
}

#[test]
fn a_forward_policy_of_drop() {
    if Command::new("nft").arg("--version").output().is_err() {
        eprintln!("NOT TESTED: there is no `nft` program here (package nftables)");
        return;
    }
    let bed = Bed::new(2, Underlay::V4);
    let node = bed.node(1);
    let daemons = bed.start(Backend::Vxlan);
    for (protocol, families) in [
        ("inet", &FAMILIES[..]),
        ("ip", &FAMILIES[..1]),
        ("ip6", &FAMILIES[1..]),
    ] {
        let chain = "'{ type filter hook forward priority 0; policy drop; }'";
        shell(
            node,
            &format!("nft add table {protocol} fw && nft add chain {protocol} fw forward {chain}"),
        );
        for family in FAMILIES {
            let dropped = families.contains(&family);
            assert_eq!(pods_talk(&bed, family), !dropped, "{protocol}, {family:?}");
        }
        let table = format!("table {protocol} fw");
        warned_and_cured(
            node,
            &daemons[0],
            &["forward", &table, "policy drop", "overlay0"],
        );
        for family in FAMILIES {
            assert!(pods_talk(&bed, family), "the cure helps {family:?}");
        }
        shell(node, &format!("nft delete table {protocol} fw"));
    }
    // A chain that lets the overlay network pass by its prefix is none to warn of.
    shell(
        node,
        "nft add table ip fw && \
         nft add chain ip fw forward '{ type filter hook forward priority 0; policy drop; }' && \
         nft add rule ip fw forward ip saddr 10.244.0.0/16 accept",
    );
    assert!(pods_talk(&bed, Family::V4));
    assert_eq!(daemons[0].status()["warnings"], json!([]));
}

#[test]
fn a_strict_rp_filter_where_the_way_back_leads_elsewhere() {
    let bed = Bed::new(2, Underlay::V4);
    let (node, peer) = (bed.node(1), bed.node(2));
    let daemons = bed.start(Backend::Vxlan);
    for device in ["all", "default", "overlay0", "eth0", "cni0"] {
        set(node, &sysctl::conf("ipv4", device, "rp_filter"), "1");
    }
    // Strict, and every way back is the way it came.
    assert!(pods_talk(&bed, Family::V4));
    assert_eq!(daemons[0].status()["warnings"], json!([]));

    let index = |name: &str| {
        bed.block_on(node.netlink().link(name))
            .unwrap()
            .unwrap()
            .index
    };
    // The way to the peer is led astray: its datagrams are dropped on the underlay.
    let astray = RouteSpec::new("10.99.0.2/32".parse().unwrap(), index("cni0"));
    bed.block_on(node.netlink().add_route(&astray)).unwrap();
    let arrivals = || {
        let opts = PingOpts {
            count: 1,
            timeout: Duration::from_millis(100),
            ..PingOpts::default()
        };
        let before = daemons[0].status()["inbound"]["in"].as_u64().unwrap();
        let _ = peer.run(|| ping(node.base_ip(Family::V4), &opts)).unwrap();
        daemons[0].status()["inbound"]["in"].as_u64().unwrap() - before
    };
    assert_eq!(arrivals(), 0);
    let words = ["eth0.rp_filter = 1", "10.99.0.2", "into cni0"];
    warned_and_cured(node, &daemons[0], &words);
    assert_eq!(arrivals(), 1, "the cure helps");
    bed.block_on(node.netlink().del_route(&astray)).unwrap();

    // The same for the overlay network and its device.
    let astray = RouteSpec::new("10.244.0.0/17".parse().unwrap(), index("cni0"));
    bed.block_on(node.netlink().add_route(&astray)).unwrap();
    let words = ["overlay0.rp_filter = 1", "overlay network", "into cni0"];
    warned_and_cured(node, &daemons[0], &words);
}
