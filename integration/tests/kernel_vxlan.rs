//! overlayd on node 1, a kernel VXLAN device on node 2, as flannel sets it up: all offloads as they are by default.
#![allow(clippy::unwrap_used)]

use encap::Family::V4;
use integration::bed::{Config, Underlay};
use integration::flannel::{Checksums, Pair, Side, dual_stack, single_stack};
use integration::probe;

const LARGE: u64 = 100_000_000;

/// The kernel did what the test is about, and nothing was lost over it.
fn finish(pair: Pair) {
    let status = pair.daemon.status();
    let inbound = &status["inbound"];
    let count = |name: &str| inbound[name].as_u64().unwrap();
    // Hundreds of megabytes came; were they cut into single packets, these would be zero.
    if status["engine"] == "classic" {
        for met in ["split", "checksums_completed"] {
            assert!(count(met) > 1000, "{met}: {inbound:#}");
        }
    } else {
        assert!(count("in") > count("datagrams") + 1000, "{inbound:#}");
    }
    pair.daemon.assert_balanced(&[]);
    pair.daemon.stop();
}

fn carries(underlay: Underlay, stack: (u32, Vec<Side>), engine: &'static str) {
    let pair = Pair::with(underlay, stack, Checksums::On, |config| {
        config.set("datapath.engine", engine)
    });
    pair.carry(LARGE, 1);
    finish(pair);
}

#[test]
fn flannel_vxlan_carries_ipv4_classic() {
    carries(Underlay::V4, single_stack(), "classic");
}

#[test]
fn flannel_vxlan_carries_ipv4_batched() {
    carries(Underlay::V4, single_stack(), "batched");
}

#[test]
fn flannel_vxlan_carries_both_families_classic() {
    carries(Underlay::Dual, dual_stack(), "classic");
}

#[test]
fn flannel_vxlan_carries_both_families_batched() {
    carries(Underlay::Dual, dual_stack(), "batched");
}

/// What arrives is cut for the pods behind us, whose links are no wider than the path.
#[test]
fn a_device_mtu_above_the_paths_leaves_no_superpacket_whole() {
    let wide = |config: Config| config.set("device.mtu", 9000);
    let pair = Pair::with(Underlay::V4, single_stack(), Checksums::On, wide);
    let (one, two) = (pair.one(), pair.two());
    probe::tcp(two.pod(), two.pod_ip(V4), one.pod(), one.pod_ip(V4), LARGE);
    finish(pair);
}
