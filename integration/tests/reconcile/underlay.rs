//! The underlay interface: its state and its MTU.

use integration::bed::{Backend, Bed, Daemon, Spec, Underlay};
use integration::iproute::ip;
use integration::probe;
use ipnet::IpNet;

use super::{V4, V6, both_reach, complains, is_well, reaches, waits_for};

/// MTU of the device, and of its IPv6 route where that has one of its own.
fn mtus(bed: &Bed, node: u8) -> (u32, Option<u32>) {
    let netlink = bed.node(node).netlink();
    bed.block_on(async {
        let link = netlink.link("overlay0").await.unwrap().unwrap();
        let overlay: IpNet = "fd00:10:244::/48".parse().unwrap();
        let routes = netlink.routes().await.unwrap();
        let route = routes.iter().find(|route| route.dst == overlay);
        (link.mtu, route.and_then(|route| route.mtu))
    })
}

#[test]
fn the_device_follows_the_underlays_mtu_while_packets_flow() {
    let bed = Bed::new(2, Underlay::Dual);
    let (one, two) = (bed.node(1), bed.node(2));
    let daemons = bed.start(Backend::Vxlan);
    both_reach("start", one, two);
    assert_eq!(mtus(&bed, 1), (1450, Some(1430)));
    let index = daemons[0].status()["device"]["index"].clone();
    for (underlay, device, route) in [(1400, 1350, 1330), (1500, 1450, 1430)] {
        for node in [one, two] {
            ip(node.netns(), &format!("link set eth0 mtu {underlay}"));
        }
        waits_for("the MTUs follow", || {
            [1, 2].map(|node| mtus(&bed, node)) == [(device, Some(route)); 2]
        });
        let status = daemons[0].wait_for("status says so", |status| {
            status["device"]["underlay_mtu"] == underlay && status["state"] == "ok"
        });
        assert_eq!(status["device"]["mtu"], device);
        assert_eq!(status["device"]["index"], index, "the device stayed");
        assert_eq!(super::repairs(&status), 0, "nobody undid anything");
        // Full-sized segments both ways: what is too large for the underlay would never arrive.
        for family in [V4, V6] {
            let (from, to) = (one.pod_ip(family), two.pod_ip(family));
            probe::tcp(one.pod(), from, two.pod(), to, 300_000);
        }
    }
    for daemon in &daemons {
        assert_eq!(daemon.drops("underlay-mtu"), 0);
    }
    daemons.into_iter().for_each(Daemon::stop);
}

#[test]
fn a_configured_mtu_stays_and_the_path_follows() {
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    let start = |node| Daemon::start(node, &node.config(Backend::Vxlan).set("device.mtu", 1400));
    let daemons = [start(one), start(two)];
    for node in [one, two] {
        ip(node.netns(), "link set eth0 mtu 1400");
    }
    daemons[0].wait_for("the new MTU", |status| {
        status["device"]["underlay_mtu"] == 1400
    });
    assert_eq!(mtus(&bed, 1).0, 1400);
    probe::tcp(
        one.pod(),
        one.pod_ip(V4),
        two.pod(),
        two.pod_ip(V4),
        300_000,
    );
    daemons.into_iter().for_each(Daemon::stop);
}

#[test]
fn an_underlay_too_small_for_ipv6_keeps_ipv4_and_says_so() {
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    let daemons = bed.start(Backend::Vxlan);
    both_reach("start", one, two);
    ip(one.netns(), "link set eth0 mtu 1300");
    complains(&daemons[0], &["1250 bytes is too small for IPv6", "eth0"]);
    assert!(reaches(one, two.pod_ip(V4)));
    ip(one.netns(), "link set eth0 mtu 1500");
    is_well(&daemons[0]);
    both_reach("the MTU is back", one, two);
    daemons.into_iter().for_each(Daemon::stop);
}

#[test]
fn an_underlay_interface_that_flaps_comes_back() {
    let bed = Bed::with(&Spec::default());
    let (one, two) = (bed.node(1), bed.node(2));
    let daemons = bed.start(Backend::Vxlan);
    for _ in 0..3 {
        ip(one.netns(), "link set eth0 down");
        assert!(!reaches(one, two.pod_ip(V4)));
        ip(one.netns(), "link set eth0 up");
        both_reach("the flap", one, two);
        is_well(&daemons[0]);
    }
    daemons.into_iter().for_each(Daemon::stop);
}
