//! Injection as the daemon uses it: superpackets leave whole while that pays, split when it does not or fails, and
//! nothing is lost in between.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use encap::Family::{self, V4, V6};
use integration::bed::{Backend, Bed, Daemon, Node, Spec, Underlay, feature};
use integration::probe;
use overlayd::kernel::Netlink;
use serde_json::Value;

const BYTES: u64 = 20_000_000;

fn count(daemon: &Daemon, name: &str) -> u64 {
    daemon.status()["outbound"][name].as_u64().unwrap()
}

/// The feature's line in the status, once the ways to all peers are known.
fn injection(status: &Value) -> Option<&Value> {
    feature(status, "injection")
}

fn wait_for_way(daemon: &Daemon, on: bool) {
    daemon.wait_for("injection", |status| {
        injection(status).is_some_and(|feature| feature["on"] == on)
    });
}

/// A stream from a pod of the first node to a pod of the second; its bytes are verified.
fn stream(bed: &Bed, family: Family) {
    let (one, two) = (bed.node(1), bed.node(2));
    let (from, to) = (one.pod_ip(family), two.pod_ip(family));
    probe::tcp(one.pod(), from, two.pod(), to, BYTES);
}

fn ethtool(node: &Node, features: &[&str], state: &str) {
    let mut command = Command::new("ethtool");
    command.args(["-K", "eth0"]);
    for feature in features {
        command.args([feature, state]);
    }
    let done = node.run(move || command.output()).unwrap();
    assert!(done.status.success(), "{done:?}");
}

#[test]
fn superpackets_leave_whole_over_every_underlay() {
    for underlay in [Underlay::V4, Underlay::V6, Underlay::Dual] {
        let bed = Bed::with(&Spec {
            underlay,
            pod_mtu: if underlay == Underlay::V6 { 1430 } else { 1450 },
            ..Spec::default()
        });
        let daemons = bed.start(Backend::Vxlan);
        wait_for_way(&daemons[0], true);
        for family in [V4, V6] {
            // The socket's packets make the kernel find the neighbour.
            probe::ping(bed.node(1).pod(), bed.node(2).pod_ip(family));
            let before = count(&daemons[0], "injected");
            stream(&bed, family);
            let injected = count(&daemons[0], "injected") - before;
            assert!(
                injected > 100,
                "{underlay:?}, {family:?}: {}",
                daemons[0].status()["outbound"]
            );
        }
        for daemon in daemons {
            daemon.assert_balanced(&[]);
            daemon.stop();
        }
    }
}

#[test]
fn the_udp_backend_injects_only_when_told() {
    let bed = Bed::with(&Spec {
        pod_mtu: 1472,
        ..Spec::default()
    });
    for (wish, injects) in [("auto", false), ("on", true)] {
        let config = |node: &Node| node.config(Backend::Udp).set("datapath.injection", wish);
        let daemons: Vec<_> = (1..=2)
            .map(|n| Daemon::start(bed.node(n), &config(bed.node(n))))
            .collect();
        wait_for_way(&daemons[0], injects);
        probe::ping(bed.node(1).pod(), bed.node(2).pod_ip(V4));
        stream(&bed, V4);
        stream(&bed, V6);
        assert_eq!(count(&daemons[0], "injected") > 100, injects, "{wish}");
        for daemon in daemons {
            daemon.assert_balanced(&[]);
            daemon.stop();
        }
    }
}

/// Each stream must arrive whole; what it travelled by is seen in the counts.
#[test]
fn changes_while_running_cost_no_packet() {
    let bed = Bed::with(&Spec {
        pod_mtu: 1450,
        ..Spec::default()
    });
    let mut daemons = bed.start(Backend::Vxlan);
    let one = bed.node(1);
    wait_for_way(&daemons[0], true);
    probe::ping(one.pod(), bed.node(2).pod_ip(V4));
    stream(&bed, V4);
    assert!(count(&daemons[0], "injected") > 100);

    // The underlay stops cutting tunnelled superpackets, and starts again.
    let tunnel = ["tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"];
    ethtool(one, &tunnel, "off");
    wait_for_way(&daemons[0], false);
    let (injected, split) = (count(&daemons[0], "injected"), count(&daemons[0], "split"));
    stream(&bed, V4);
    assert_eq!(count(&daemons[0], "injected"), injected);
    assert!(count(&daemons[0], "split") > split + 100);
    ethtool(one, &tunnel, "on");
    wait_for_way(&daemons[0], true);

    // Somebody takes the injection device down: every write to it fails.
    let netlink: &Netlink = one.netlink();
    let device = bed.block_on(netlink.link("overlay0-tx")).unwrap().unwrap();
    bed.block_on(netlink.set_down(device.index)).unwrap();
    let split = count(&daemons[0], "split");
    stream(&bed, V4);
    assert!(count(&daemons[0], "split") > split + 100);
    // So says the status, until one has been taken again, which is tried once a second.
    wait_for_way(&daemons[0], false);
    let status = daemons[0].status();
    let note = injection(&status).unwrap()["note"].to_string();
    assert!(note.contains("takes no superpackets"), "{note}");
    bed.block_on(netlink.set_up(device.index)).unwrap();
    sleep(Duration::from_millis(1100));
    stream(&bed, V4);
    wait_for_way(&daemons[0], true);

    // Killed, it leaves nothing; started again, it goes on.
    daemons[0].kill();
    assert!(bed.block_on(netlink.link("overlay0-tx")).unwrap().is_none());
    daemons[0] = Daemon::start(one, &one.config(Backend::Vxlan));
    wait_for_way(&daemons[0], true);
    stream(&bed, V4);
    assert!(count(&daemons[0], "injected") > 100);
    for daemon in daemons {
        daemon.assert_balanced(&[]);
        daemon.stop();
    }
}

#[test]
fn off_is_off() {
    let bed = Bed::with(&Spec {
        pod_mtu: 1450,
        ..Spec::default()
    });
    let one = bed.node(1);
    let config = one.config(Backend::Vxlan).set("datapath.injection", "off");
    let first = Daemon::start(one, &config);
    let second = Daemon::start(bed.node(2), &bed.node(2).config(Backend::Vxlan));
    let status = first.status();
    assert_eq!(injection(&status).unwrap()["on"], false);
    let device = bed.block_on(one.netlink().link("overlay0-tx"));
    assert!(device.unwrap().is_none());
    stream(&bed, V4);
    assert_eq!(count(&first, "injected"), 0);
    first.stop();
    second.stop();
}
