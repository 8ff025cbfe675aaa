//! Backends that leave packets to the kernel's routes: host-gw, VXLAN's direct routing, alloc.
#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use encap::Family;
use integration::bed::{Backend, Bed, Config, Daemon, Node, Underlay, overlayd_bin};
use integration::iproute::ip;
use integration::probe;
use overlayd::kernel::sysctl;
use overlayd::lab::traffic::{Fragmenting, PingOpts, ping};
use serde_json::{Value, json};

const V4: Family = Family::V4;
const V6: Family = Family::V6;
const PATIENCE: Duration = Duration::from_secs(10);

fn config(node: &Node, backend: &str) -> Config {
    let config = node.config(Backend::Vxlan).set("backend.type", backend);
    let config = config.unset("device.name");
    // Without an IPv6 underlay there is nothing to route IPv6 to.
    match node.public_ips().any(|ip| ip.is_ipv6()) {
        true => config,
        false => config.unset("network.ipv6-network"),
    }
}

/// Nodes that know IPv4 alone, so that nobody is refused for want of an IPv6 address.
fn ipv4_bed(nodes: u8) -> Bed {
    let bed = Bed::new(nodes, Underlay::V4);
    bed.write_leases(&ipv4_leases(&bed));
    bed
}

fn ipv4_leases(bed: &Bed) -> Vec<Value> {
    let mut leases = bed.leases();
    for lease in &mut leases {
        lease.as_object_mut().unwrap().remove("IPv6Subnet");
    }
    leases
}

fn start(bed: &Bed, backend: &str) -> Vec<Daemon> {
    let start = |node| Daemon::start(node, &config(node, backend));
    bed.nodes().iter().map(start).collect()
}

fn direct(node: &Node) -> Config {
    node.config(Backend::Vxlan)
        .set("backend.direct-routing", true)
}

fn pinged(from: &Node, to: IpAddr) -> bool {
    let opts = PingOpts {
        count: 1,
        timeout: Duration::from_millis(300),
        ..PingOpts::default()
    };
    from.run_in_pod(|| ping(to, &opts))
        .is_ok_and(|report| report.received == 1)
}

fn waits_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not so within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The lines of both families' routes that carry our mark.
fn ours(node: &Node) -> Vec<String> {
    let both = ip(node.netns(), "route") + &ip(node.netns(), "-6 route");
    let ours = both.lines().filter(|line| line.contains("proto 82"));
    ours.map(|line| line.trim_end().to_owned()).collect()
}

/// What `overlayd routes` says, and its exit code.
fn routes(daemon: &Daemon) -> (Value, String, i32) {
    let run = |json: &[&str]| {
        let mut command = Command::new(overlayd_bin());
        command.arg("routes").arg("--socket").arg(daemon.socket());
        let output = command.args(json).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (text, output.status.code().unwrap())
    };
    let (json, code) = run(&["--json"]);
    let (text, same) = run(&[]);
    assert_eq!(code, same);
    (serde_json::from_str(&json).unwrap(), text, code)
}

/// Node 3 on another segment, behind a router, which knows the underlay and nothing of the overlay.
fn three_with_a_router() -> Bed {
    let bed = ipv4_bed(3);
    bed.underlay()
        .run(|| {
            sysctl::write("net.ipv4.ip_forward", "1")?;
            // All stand on one bridge: the router would tell them to talk past it.
            sysctl::write("net.ipv4.conf.all.send_redirects", "0")?;
            sysctl::write("net.ipv4.conf.br0.send_redirects", "0")
        })
        .unwrap()
        .unwrap();
    ip(bed.underlay(), "addr add 10.99.0.254/24 dev br0");
    ip(bed.underlay(), "addr add 10.88.0.254/24 dev br0");
    for node in [bed.node(1), bed.node(2)] {
        ip(node.netns(), "route add 10.88.0.0/24 via 10.99.0.254");
    }
    let far = bed.node(3).netns();
    ip(far, "addr del 10.99.0.3/24 dev eth0");
    ip(far, "addr add 10.88.0.3/24 dev eth0");
    ip(far, "route add 10.99.0.0/24 via 10.88.0.254");
    let mut leases = ipv4_leases(&bed);
    leases[2]["PublicIP"] = json!("10.88.0.3");
    bed.write_leases(&leases);
    bed
}

#[test]
fn host_gw_routes_through_the_nodes_in_both_families() {
    let bed = Bed::new(2, Underlay::Dual);
    let (one, two) = (bed.node(1), bed.node(2));
    let daemons = start(&bed, "host-gw");
    assert_eq!(
        ours(one),
        [
            "10.244.2.0/24 via 10.99.0.2 dev eth0 proto 82",
            "fd00:10:244:2::/64 via fd99::2 dev eth0 proto 82 metric 1024 pref medium",
        ]
    );
    for family in [V4, V6] {
        let (from, to) = (one.pod_ip(family), two.pod_ip(family));
        probe::ping(one.pod(), to);
        probe::tcp(one.pod(), from, two.pod(), to, 300_000);
    }
    // Nothing is encapsulated, so nothing is smaller: a full packet passes unfragmented.
    let whole = PingOpts {
        count: 1,
        size: 1472,
        fragmenting: Fragmenting::Probe,
        ..PingOpts::default()
    };
    let report = one.run_in_pod(|| ping(two.pod_ip(V4), &whole)).unwrap();
    assert!(report.all_answered(), "{report:?}");
    assert!(!daemons[0].has_device());
    let status = daemons[0].status();
    assert_eq!(status["state"], "ok", "{status:#}");
    assert_eq!(status["backend"], json!({"type": "host-gw", "port": 0}));
    assert_eq!(status["outbound"]["in"], 0);

    let (json, text, code) = routes(&daemons[0]);
    assert_eq!((code, &json["protocol"]), (0, &json!(82)), "{text}");
    let states: Vec<_> = json["routes"].as_array().unwrap().iter().collect();
    assert_eq!(states.len(), 2);
    assert!(states.iter().all(|row| row["state"] == "ok"), "{text}");
    assert!(text.contains("10.99.0.2"), "{text}");

    // Kept up.
    for damage in [
        "route del 10.244.2.0/24",
        "-6 route del fd00:10:244:2::/64",
        "route replace 10.244.2.0/24 via 10.99.0.77 dev eth0",
        "route replace blackhole 10.244.2.0/24",
        "addr flush dev eth0 scope global",
    ] {
        ip(one.netns(), damage);
        if damage.starts_with("addr") {
            ip(one.netns(), "addr add 10.99.0.1/24 dev eth0");
            ip(one.netns(), "addr add fd99::1/64 dev eth0 nodad");
        }
        for family in [V4, V6] {
            waits_for(damage, || pinged(one, two.pod_ip(family)));
        }
        daemons[0].wait_for(damage, |status| status["state"] == "ok");
    }
    ip(one.netns(), "link set eth0 down");
    ip(one.netns(), "link set eth0 up");
    // Linux took the address with the link, and leaves it to others to bring it back.
    ip(one.netns(), "addr add fd99::1/64 dev eth0 nodad");
    for family in [V4, V6] {
        waits_for("the flap", || pinged(one, two.pod_ip(family)));
    }

    // A peer that goes takes its routes with it, and so does the daemon.
    one.write_leases(&bed.leases()[..1]);
    waits_for("no route", || ours(one).is_empty());
    one.write_leases(&bed.leases());
    waits_for("the routes", || ours(one).len() == 2);
    daemons.into_iter().for_each(Daemon::stop);
    assert!(ours(one).is_empty() && ours(two).is_empty());
}

#[test]
fn host_gw_refuses_a_node_behind_a_router() {
    let bed = three_with_a_router();
    let (one, two) = (bed.node(1), bed.node(2));
    let daemons = start(&bed, "host-gw");
    probe::ping(one.pod(), two.pod_ip(V4));
    assert_eq!(ours(one), ["10.244.2.0/24 via 10.99.0.2 dev eth0 proto 82"]);
    let status = daemons[0].status();
    let refused = status["refused"].to_string();
    for word in [
        "10.88.0.3 is behind the router 10.99.0.254",
        "host-gw needs all nodes on one segment",
        "direct-routing",
    ] {
        assert!(refused.contains(word), "{refused}");
        assert!(daemons[0].log().contains(word), "{}", daemons[0].log());
    }
    let (json, text, code) = routes(&daemons[0]);
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("behind the router"), "{text}");
    assert!(
        json["refused"][0]["subject"]
            .as_str()
            .unwrap()
            .contains("10.88.0.3")
    );
    // It moves to our segment: the route comes, and the refusal goes.
    let far = bed.node(3).netns();
    ip(far, "route del 10.99.0.0/24 via 10.88.0.254");
    ip(far, "addr add 10.99.0.3/24 dev eth0");
    bed.write_leases(&ipv4_leases(&bed));
    waits_for("node 3", || pinged(one, bed.node(3).pod_ip(V4)));
    let status = daemons[0].wait_for("no refusal", |status| {
        let refused = status["refused"].to_string();
        !refused.contains("router")
    });
    assert_eq!(status["state"], "ok");
    daemons.into_iter().for_each(Daemon::stop);
}

#[test]
fn what_a_killed_daemon_left_is_removed_and_what_others_have_is_not() {
    let bed = ipv4_bed(3);
    let (one, two) = (bed.node(1), bed.node(2));
    let mut daemons = start(&bed, "host-gw");
    assert_eq!(ours(one).len(), 2);
    // flanneld's routes carry no mark; another daemon's lie in another network.
    ip(one.netns(), "route add 10.244.9.0/24 via 10.99.0.2");
    ip(
        one.netns(),
        "route add 10.245.9.0/24 via 10.99.0.2 proto 82",
    );
    daemons.remove(0).kill();
    assert_eq!(ours(one).len(), 3, "nobody cleared up after it");
    one.write_leases(&ipv4_leases(&bed)[..2]);
    // Neither does another backend keep them.
    for (backend, left) in [("host-gw", 1), ("vxlan", 0)] {
        let daemon = Daemon::start(one, &config(one, backend));
        let routes = ours(one);
        let of_the_run = |route: &&String| route.starts_with("10.244.") && route.contains("via");
        assert_eq!(routes.iter().filter(of_the_run).count(), left, "{routes:?}");
        let all = ip(one.netns(), "route");
        assert!(all.contains("10.244.9.0/24 via 10.99.0.2") && all.contains("10.245.9.0/24"));
        if backend == "host-gw" {
            assert!(pinged(one, two.pod_ip(V4)));
            assert!(
                daemon
                    .log()
                    .contains("removed the left-over route 10.244.3.0/24 via")
            );
        }
        let mut daemon = daemon;
        daemon.kill();
    }
    daemons.into_iter().for_each(Daemon::stop);
}

#[test]
fn a_route_to_a_peer_that_is_anothers_is_told_and_left_and_the_same_is_taken_for_good() {
    let bed = ipv4_bed(3);
    let one = bed.node(1);
    ip(one.netns(), "route add 10.244.2.0/24 via 10.99.0.3");
    // As a flanneld that was stopped leaves it.
    ip(one.netns(), "route add 10.244.3.0/24 via 10.99.0.3");
    let daemons = start(&bed, "host-gw");
    let status = daemons[0].status();
    assert_eq!(status["state"], "degraded", "{status:#}");
    let cure = "ip route del 10.244.2.0/24 dev eth0";
    assert!(status["reasons"].to_string().contains(cure), "{status:#}");
    let (json, text, code) = routes(&daemons[0]);
    assert_eq!(code, 4);
    let states: Vec<_> = json["routes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["state"])
        .collect();
    assert_eq!(states, ["taken", "theirs"], "{text}");
    assert!(pinged(one, bed.node(3).pod_ip(V4)));
    ip(one.netns(), "route del 10.244.2.0/24");
    daemons[0].wait_for("the cure helps", |status| status["state"] == "ok");
    waits_for("node 2", || pinged(one, bed.node(2).pod_ip(V4)));
    daemons.into_iter().for_each(Daemon::stop);
    assert!(ip(one.netns(), "route").contains("10.244.3.0/24 via 10.99.0.3"));
}

#[test]
fn with_direct_routing_near_nodes_are_routed_to_and_far_ones_encapsulated() {
    let bed = three_with_a_router();
    let (one, two, three) = (bed.node(1), bed.node(2), bed.node(3));
    let daemons: Vec<_> = bed
        .nodes()
        .iter()
        .map(|node| Daemon::start(node, &direct(node)))
        .collect();
    let sent = |peer: usize| {
        let status = daemons[0].status();
        status["peers"][peer]["sent_packets"].as_u64().unwrap()
    };
    for (from, to) in [(one, two), (one, three), (three, two), (three, one)] {
        probe::ping(from.pod(), to.pod_ip(V4));
    }
    assert_eq!(sent(0), 0, "node 2 is near");
    let far = sent(1);
    assert!(far >= 6, "{far}");
    let routes_of_one = ours(one);
    assert!(
        routes_of_one.contains(&"10.244.2.0/24 via 10.99.0.2 dev eth0 proto 82".to_owned())
            && routes_of_one
                .iter()
                .any(|route| route.starts_with("10.244.0.0/16 dev overlay0"))
            && !routes_of_one
                .iter()
                .any(|route| route.contains("10.244.3.0/24")),
        "{routes_of_one:?}"
    );
    assert_eq!(daemons[0].status()["refused"], json!([]));
    assert_eq!(routes(&daemons[0]).2, 0);
    // The way straight is kept up; and when node 2 turns out to be behind the router, it is encapsulated to.
    ip(one.netns(), "route del 10.244.2.0/24");
    waits_for("the route is back", || {
        ours(one).len() == routes_of_one.len()
    });
    ip(one.netns(), "route add 10.99.0.2/32 via 10.99.0.254");
    waits_for("no way straight", || {
        ours(one).len() == routes_of_one.len() - 1
    });
    probe::ping(one.pod(), two.pod_ip(V4));
    assert!(sent(0) >= 3);
    ip(one.netns(), "route del 10.99.0.2/32");
    waits_for("the way straight", || {
        ours(one).len() == routes_of_one.len()
    });
    // A killed one leaves routes on eth0, which the next takes away or over.
    let mut killed = daemons;
    killed.remove(0).kill();
    assert_eq!(ours(one), ["10.244.2.0/24 via 10.99.0.2 dev eth0 proto 82"]);
    let next = Daemon::start(one, &one.config(Backend::Vxlan));
    assert!(ours(one).iter().all(|route| route.contains("dev overlay0")));
    probe::ping(one.pod(), three.pod_ip(V4));
    next.stop();
    killed.into_iter().for_each(Daemon::stop);
}

#[test]
fn direct_routing_is_of_both_families() {
    let bed = Bed::new(2, Underlay::Dual);
    let (one, two) = (bed.node(1), bed.node(2));
    let daemons = [one, two].map(|node| Daemon::start(node, &direct(node)));
    for family in [V4, V6] {
        probe::ping(one.pod(), two.pod_ip(family));
    }
    assert_eq!(daemons[0].status()["peers"][0]["sent_packets"], 0);
    assert_eq!(ours(one).len(), 4);
    daemons.into_iter().for_each(Daemon::stop);
}

#[test]
fn alloc_is_a_lease_and_nothing_else() {
    let bed = ipv4_bed(2);
    let one = bed.node(1);
    let state = || ip(one.netns(), "-o -4 addr") + &ip(one.netns(), "route");
    let before = state();
    let daemons = start(&bed, "alloc");
    let status = daemons[0].status();
    assert_eq!(status["state"], "ok", "{status:#}");
    assert!(!daemons[0].has_device());
    assert_eq!(status["lease"]["subnet"], "10.244.1.0/24");
    assert_eq!(status["peers"][0]["subnet"], "10.244.2.0/24");
    assert_eq!(state(), before);
    let (json, text, code) = routes(&daemons[0]);
    assert_eq!((code, &json["routes"]), (0, &json!([])), "{text}");
    daemons.into_iter().for_each(Daemon::stop);
    assert_eq!(state(), before);
}
