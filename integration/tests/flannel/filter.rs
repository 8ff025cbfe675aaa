//! Masquerade and accepts: what they do to packets, what they leave alone, and that nothing is left of them.

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use encap::Family;
use integration::bed::{Backend, Bed, Config, Daemon, Node, Underlay};
use overlayd::kernel::{NetNs, RouteSpec};
use overlayd::lab::traffic::{PingOpts, ping};

use super::shell;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Two nodes on a dual-stack underlay, and a host on the underlay that knows nothing of the overlay.
struct World {
    bed: Bed,
    outside: NetNs,
}

/// The outside host's addresses.
fn outside_ip(family: Family) -> IpAddr {
    match family {
        Family::V4 => "10.55.0.2".parse().unwrap(),
        Family::V6 => "fd55::2".parse().unwrap(),
    }
}

/// Node 1's on the link to it.
fn gate_ip(family: Family) -> IpAddr {
    match family {
        Family::V4 => "10.55.0.1".parse().unwrap(),
        Family::V6 => "fd55::1".parse().unwrap(),
    }
}

impl World {
    fn new() -> Self {
        let mut bed = Bed::new(2, Underlay::Dual);
        let outside = bed.add_namespace("outside");
        let node = bed.node(1);
        bed.block_on(async {
            let netlink = overlayd::kernel::Netlink::open_in(&outside).unwrap();
            let here = node
                .netlink()
                .add_veth("out0", "eth0", Some(&outside))
                .await
                .unwrap();
            let there = netlink.link("eth0").await.unwrap().unwrap();
            for (at, index, ip) in [
                (node.netlink(), here.index, gate_ip as fn(Family) -> IpAddr),
                (&netlink, there.index, outside_ip),
            ] {
                for (family, len) in [(Family::V4, 24), (Family::V6, 64)] {
                    let net = ipnet::IpNet::new(ip(family), len).unwrap();
                    at.add_address(index, net, true).await.unwrap();
                }
                at.set_up(index).await.unwrap();
            }
            // The way to node 2's pods leads past node 1 too, so that an untranslated packet would be answered.
            for prefix in ["10.244.0.0/16", "fd00:10::/32"] {
                let mut route = RouteSpec::new(prefix.parse().unwrap(), there.index);
                let family = if prefix.contains(':') {
                    Family::V6
                } else {
                    Family::V4
                };
                route.via = Some(gate_ip(family));
                let _ = netlink.add_route(&route).await;
            }
        });
        World { bed, outside }
    }

    fn one(&self) -> &Node {
        self.bed.node(1)
    }

    /// Which source a datagram from `from` shows at the outside host.
    fn seen_outside(&self, from: &NetNs, family: Family) -> IpAddr {
        source_seen(from, &self.outside, outside_ip(family)).expect("it arrives")
    }
}

fn any(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() {
        [0; 4].into()
    } else {
        [0; 16].into()
    }
}

/// Sends datagrams until one arrives: the source that it shows there; none if none arrives.
fn source_seen(from: &NetNs, to: &NetNs, ip: IpAddr) -> Option<IpAddr> {
    let receiver = to.run(|| UdpSocket::bind((ip, 0))).unwrap().unwrap();
    let at = receiver.local_addr().unwrap();
    let sender = from.run(|| UdpSocket::bind((any(ip), 0))).unwrap().unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    for _ in 0..10 {
        let _ = sender.send_to(b"who am I", at);
        match receiver.recv_from(&mut [0; 16]) {
            Ok((_, source)) => return Some(source.ip()),
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {}
            Err(error) => panic!("{error}"),
        }
    }
    None
}

fn config(node: &Node) -> Config {
    node.config(Backend::Vxlan)
        .set("firewall.ip-masq", true)
        .set("firewall.forward-rules", true)
        .set("firewall.resync", 1)
}

fn pods_talk(bed: &Bed, family: Family) -> bool {
    let opts = PingOpts {
        count: 1,
        timeout: Duration::from_millis(300),
        ..PingOpts::default()
    };
    let to = bed.node(2).pod_ip(family);
    bed.node(1).run_in_pod(|| ping(to, &opts)).unwrap().received == 1
}

#[track_caller]
fn soon(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < end, "not so in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn ruleset(netns: &NetNs) -> String {
    shell(netns, "nft list ruleset")
}

#[test]
fn what_leaves_the_overlay_takes_the_nodes_address_and_nothing_else_does() {
    let world = World::new();
    let (one, two) = (world.one(), world.bed.node(2));
    let daemon = Daemon::start(one, &config(one));
    let _other = Daemon::start(two, &two.config(Backend::Vxlan));
    for family in FAMILIES {
        // A pod to the outside: translated, and the answer comes back (its own address would be seen without).
        let seen = world.seen_outside(one.pod(), family);
        assert_eq!(seen, gate_ip(family), "{family:?}: pod to outside");
        // A pod to another node's pod: its own address.
        let seen = source_seen(one.pod(), two.pod(), two.pod_ip(family));
        assert_eq!(seen, Some(one.pod_ip(family)), "{family:?}: pod to pod");
        let seen = source_seen(two.pod(), one.pod(), one.pod_ip(family));
        assert_eq!(seen, Some(two.pod_ip(family)), "{family:?}: and back");
        // From outside to a pod of ours: it sees who asks.
        let seen = source_seen(&world.outside, one.pod(), one.pod_ip(family));
        assert_eq!(seen, Some(outside_ip(family)), "{family:?}: outside to pod");
        // From outside to another node's pod, through us: translated, or the other node would refuse it.
        let seen = source_seen(&world.outside, two.pod(), two.pod_ip(family));
        assert_eq!(
            seen,
            Some(one.base_ip(family)),
            "{family:?}: outside through us"
        );
    }
    daemon.stop();
    assert_eq!(ruleset(one.netns()), "", "nothing is left");
    let seen = world.seen_outside(one.pod(), Family::V4);
    assert_eq!(seen, one.pod_ip(Family::V4), "without the daemon");
}

#[test]
fn nothing_is_touched_unless_it_is_asked_for() {
    let bed = Bed::new(2, Underlay::V4);
    let one = bed.node(1);
    let before = "iptables -P FORWARD ACCEPT && iptables -A FORWARD -s 192.0.2.1 -j DROP";
    shell(one.netns(), before);
    let rules = ruleset(one.netns());
    let daemon = Daemon::start(one, &one.config(Backend::Vxlan));
    assert_eq!(ruleset(one.netns()), rules);
    daemon.stop();
    assert_eq!(ruleset(one.netns()), rules);
}

#[test]
fn a_forward_policy_of_drop_is_passed_and_a_drop_of_somebody_is_not() {
    let bed = Bed::new(2, Underlay::Dual);
    let one = bed.node(1);
    for tool in ["iptables", "ip6tables"] {
        shell(one.netns(), &format!("{tool} -P FORWARD DROP"));
    }
    let policies = || {
        let four = shell(one.netns(), "iptables -S");
        four + &shell(one.netns(), "ip6tables -S")
    };
    let before = policies();
    let two = bed.node(2);
    let _other = Daemon::start(two, &two.config(Backend::Vxlan));
    let plain = Daemon::start(one, &one.config(Backend::Vxlan));
    for family in FAMILIES {
        assert!(!pods_talk(&bed, family), "{family:?}: the policy matters");
    }
    plain.stop();
    let daemon = Daemon::start(one, &config(one));
    for family in FAMILIES {
        assert!(pods_talk(&bed, family), "{family:?}");
    }
    assert_eq!(daemon.status()["warnings"], serde_json::json!([]));
    // iptables can read what is there, and the accepts stand behind what others wrote.
    let listed = shell(one.netns(), "iptables -S");
    for line in [
        "-A OVERLAYD-overlay0 -s 10.244.0.0/16 ",
        "-A OVERLAYD-overlay0 -d 10.244.0.0/16 ",
    ] {
        assert!(listed.contains(line), "{line}: {listed}");
    }
    shell(one.netns(), "iptables -A FORWARD -p icmp -j DROP");
    assert!(pods_talk(&bed, Family::V4), "it stands behind ours");
    shell(
        one.netns(),
        "iptables -D FORWARD -p icmp -j DROP && iptables -I FORWARD -p icmp -j DROP",
    );
    assert!(!pods_talk(&bed, Family::V4), "a drop before ours holds");
    shell(one.netns(), "iptables -D FORWARD -p icmp -j DROP");
    daemon.stop();
    assert_eq!(policies(), before, "everything of ours is gone");
}

#[test]
fn what_somebody_takes_away_comes_back() {
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    let _other = Daemon::start(two, &two.config(Backend::Vxlan));
    let daemon = Daemon::start(one, &config(one));
    let whole = ruleset(one.netns());
    assert!(whole.contains("table ip overlayd-overlay0"), "{whole}");
    // No FORWARD chain yet: none is made.
    assert!(!whole.contains("FORWARD"), "{whole}");

    // Docker, or an operator, makes one later.
    shell(one.netns(), "iptables -P FORWARD DROP");
    soon("pods talk again", || pods_talk(&bed, Family::V4));
    // Our chain may be back in use before the second word.
    shell(one.netns(), "iptables -F; iptables -X || true");
    soon("after a flush of the filter table", || {
        pods_talk(&bed, Family::V4)
    });
    shell(one.netns(), "nft flush ruleset");
    soon("our table is back", || {
        ruleset(one.netns()).contains("table ip overlayd-overlay0")
    });
    shell(
        one.netns(),
        "nft flush chain ip overlayd-overlay0 postrouting",
    );
    soon("its rules are back", || {
        ruleset(one.netns()).contains("masquerade fully-random")
    });
    assert_eq!(daemon.status()["state"], "ok");
    assert!(daemon.log().contains("put back"), "{}", daemon.log());
    daemon.stop();
    assert!(!ruleset(one.netns()).contains("overlayd"));
}

#[test]
fn a_killed_daemon_s_rules_are_taken_over_or_removed_by_the_next() {
    let bed = Bed::new(2, Underlay::V4);
    let one = bed.node(1);
    shell(one.netns(), "iptables -P FORWARD DROP");
    let before = ruleset(one.netns());
    // Its device has another name than the next one's.
    let mut killed = Daemon::start(one, &config(one).set("device.name", "other0"));
    killed.kill();
    let left = ruleset(one.netns());
    assert!(
        left.contains("overlayd-other0") && left.contains("OVERLAYD-other0"),
        "{left}"
    );
    let mut next = Daemon::start(one, &config(one));
    let rules = ruleset(one.netns());
    assert!(!rules.contains("other0"), "{rules}");
    // And the same name once more.
    next.kill();
    let last = Daemon::start(one, &config(one));
    let again = ruleset(one.netns());
    assert_eq!(
        again.matches("jump OVERLAYD-overlay0").count(),
        1,
        "{again}"
    );
    assert_eq!(
        again.matches("masquerade fully-random").count(),
        4,
        "{again}"
    );
    last.stop();
    // Killed, and the next one wants nothing of it: it is cleared away all the same.
    let mut killed = Daemon::start(one, &config(one));
    killed.kill();
    let plain = Daemon::start(one, &one.config(Backend::Vxlan));
    assert_eq!(ruleset(one.netns()), before);
    plain.stop();
}
