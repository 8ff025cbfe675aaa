//! Labs on a real etcd, labs with a router between their nodes, and labs without encapsulation. Needs root.

#![allow(clippy::unwrap_used)] // in helpers too: a test fails where it stands

use std::{
    net::IpAddr,
    path::Path,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use overlayd::{
    kernel::NetNs,
    lab::{
        graph::{Picture, Topology},
        holder, state,
        topology::{self, Backend, Interrupted, Lab, Layer, Node, Spec, Stage, Store, Underlay},
        traffic::{PingOpts, PingReport, ping},
    },
    observe::client,
};
use serde_json::Value;

fn exe() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_overlayd-under-test"))
}

/// A lab of three nodes with a pod each.
fn spec(word: &str) -> Spec {
    Spec {
        name: format!("ways-{word}-{}", std::process::id()),
        pods: 1,
        ..Spec::default()
    }
}

fn on_etcd(word: &str) -> Spec {
    Spec {
        store: Store::Etcd,
        ..spec(word)
    }
}

fn routed(word: &str, backend: Backend) -> Spec {
    Spec {
        layer: Layer::L3,
        backend,
        ..spec(word)
    }
}

fn up(spec: Spec) -> Lab {
    Lab::up(spec, exe(), &|| false).unwrap()
}

/// Nothing of the lab is left: no process, no namespace, no file.
#[track_caller]
fn assert_no_trace(lab: &str) {
    assert_eq!(holder::processes(lab).unwrap(), []);
    let prefix = format!("{lab}-");
    let names = NetNs::list_named().unwrap();
    assert!(!names.iter().any(|n| n.starts_with(&prefix)), "{names:?}");
    assert!(!state::dir(lab).exists());
}

/// `overlayd` with these arguments: its exit code, and all that it printed.
fn overlayd(arguments: &[&str]) -> (Option<i32>, String) {
    let done = Command::new(exe()).args(arguments).output().unwrap();
    let text = [done.stdout, done.stderr].concat();
    (
        done.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

fn answered(from: &NetNs, to: IpAddr, count: u32, interval: Duration) -> PingReport {
    let opts = PingOpts {
        count,
        interval,
        timeout: Duration::from_millis(700),
        ..PingOpts::default()
    };
    from.run(|| ping(to, &opts)).unwrap().unwrap()
}

/// Does the first node's pod hear the second's, in both families? A cable that was just plugged in takes a moment.
fn hears(from: &Node, to: &Node) -> [bool; 2] {
    let (near, far) = (&from.pods()[0], &to.pods()[0]);
    [far.ip.into(), far.ipv6.unwrap().into()]
        .map(|ip| (0..5).any(|_| answered(near.netns(), ip, 1, Duration::ZERO).all_answered()))
}

#[track_caller]
fn assert_all_hear(lab: &Lab) {
    for from in lab.nodes() {
        for to in lab.nodes().iter().filter(|to| to.number != from.number) {
            assert_eq!(hears(from, to), [true; 2], "{} {}", from.name, to.name);
        }
    }
}

fn status_of(lab: &Lab, node: u8) -> Value {
    client::status(&lab.socket(node)).unwrap()
}

fn refused(lab: &Lab, node: u8) -> String {
    status_of(lab, node)["refused"].to_string()
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "not within 20 s: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn on_etcd_nodes_take_their_subnets_and_pods_live_in_them() {
    let mut lab = up(on_etcd("etcd"));
    let name = lab.spec().name.clone();
    assert_all_hear(&lab);

    let status = topology::status(&name).unwrap();
    assert!(status.is_well(), "{status:?}");
    let etcd = status.etcd.unwrap();
    let asked = Command::new("sh").args(["-c", &etcd.ask]).output().unwrap();
    let there = String::from_utf8(asked.stdout).unwrap();
    assert!(there.contains("\"Type\":\"vxlan\""), "{there}");
    for node in lab.nodes() {
        let (v4, v6) = (node.subnet.network(), node.ipv6_subnet.unwrap().network());
        let key = format!("/coreos.com/network/subnets/{v4}-24&{v6}-64\n");
        assert!(there.contains(&key), "{key} is not in {there}");
        let public = format!("\"PublicIP\":\"{}\"", node.public_ip.unwrap());
        assert!(there.contains(&public), "{there}");
        let pod = &node.pods()[0];
        assert!(node.subnet.contains(&pod.ip));
        assert!(node.ipv6_subnet.unwrap().contains(&pod.ipv6.unwrap()));
    }
    assert_eq!(there.matches("/subnets/").count(), 3, "{there}");

    // A daemon that starts anew has the subnet that it had, and so does a lab that is looked up.
    assert!(lab.stop_daemon(2).unwrap());
    lab.start_daemon(2).unwrap();
    let again = Lab::load(&name, exe()).unwrap();
    assert_eq!(again.nodes()[1].subnet, lab.nodes()[1].subnet);
    assert_eq!(
        status_of(&lab, 2)["lease"]["subnet"],
        lab.nodes()[1].subnet.to_string()
    );
    assert_all_hear(&again);
    drop(again);

    let (code, text) = overlayd(&["lab", "status", "--name", &name]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("leases in etcd"), "{text}");
    assert!(text.contains("etcd at http://10.99.0.253:2379"), "{text}");
    assert!(text.contains(&etcd.ask), "{text}");
    let (code, text) = overlayd(&["trace", "--name", &name, "node1/pod1", "node3/pod1"]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = overlayd(&["lab", "sh", "--name", &name, "etcd", "etcdctl", "version"]);
    assert_eq!(code, Some(0), "{text}");
    let picture = Picture {
        topology: Topology::seen(&lab, &[]).unwrap(),
        ..Picture::default()
    };
    let picture = picture.to_string();
    assert!(picture.contains(">etcd<"), "{picture}");
    assert!(picture.contains(&lab.nodes()[0].subnet.to_string()));

    lab.keep();
    let (code, text) = overlayd(&["lab", "down", "--name", &name]);
    assert_eq!(code, Some(0), "{text}");
    // What we have started ourselves and not asked after is a zombie, without a program.
    let program = format!("/proc/{}/exe", etcd.pid.unwrap());
    assert!(std::fs::read_link(program).is_err());
    assert_no_trace(&name);
}

#[test]
fn without_its_etcd_a_lab_goes_on_and_revive_brings_it_back() {
    let mut lab = up(on_etcd("lost"));
    let name = lab.spec().name.clone();
    assert_all_hear(&lab);
    let subnets: Vec<_> = lab.nodes().iter().map(|node| node.subnet).collect();
    let pid = topology::status(&name).unwrap().etcd.unwrap().pid.unwrap();
    let from = lab.nodes()[0].pods()[0].netns().clone();
    let to = IpAddr::from(lab.nodes()[2].pods()[0].ip);
    let pings = thread::spawn(move || answered(&from, to, 100, Duration::from_millis(20)));
    thread::sleep(Duration::from_millis(300));
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    for node in 1..=3 {
        until("degraded", || {
            let status = status_of(&lab, node);
            status["state"] == "degraded" && status["reasons"].to_string().contains("etcd at")
        });
    }
    let report = pings.join().unwrap();
    assert!(report.all_answered(), "{report:?}");
    assert_all_hear(&lab);
    let (code, text) = overlayd(&["lab", "status", "--name", &name]);
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("overlayd degraded"), "{text}");
    assert!(text.contains("no etcd: its log is"), "{text}");

    assert_eq!(lab.revive().unwrap(), ["etcd"]);
    until("well again", || topology::status(&name).unwrap().is_well());
    let now: Vec<_> = (1..=3)
        .map(|node| status_of(&lab, node)["lease"]["subnet"].clone())
        .collect();
    assert_eq!(
        now,
        subnets.iter().map(ToString::to_string).collect::<Vec<_>>()
    );
    lab.close().unwrap();
    assert_no_trace(&name);
}

#[test]
fn an_etcd_lab_that_is_stopped_half_way_leaves_nothing() {
    let spec = Spec {
        nodes: 2,
        ..on_etcd("stopped")
    };
    // At every eleventh step, and at several while etcd and the daemons start.
    let mut steps = 0;
    loop {
        let asked = AtomicUsize::new(0);
        let cancel = || asked.fetch_add(1, Ordering::Relaxed) >= steps;
        match Lab::up(spec.clone(), exe(), &cancel) {
            Ok(lab) => {
                lab.close().unwrap();
                assert_no_trace(&spec.name);
                break;
            }
            Err(error) => assert!(error.is::<Interrupted>(), "{error:#}"),
        }
        assert_no_trace(&spec.name);
        steps += 11;
    }
    assert!(steps > 33, "asked at every step: {steps}");

    // A daemon that does not start, when etcd runs already.
    let broken = Spec {
        config: "[log]\nformat = \"perhaps\"\n".into(),
        ..spec
    };
    let error = Lab::up(broken.clone(), exe(), &|| false).unwrap_err();
    assert!(
        error.to_string().contains("ended while starting"),
        "{error}"
    );
    assert_no_trace(&broken.name);
}

#[test]
fn over_a_router_vxlan_reaches_every_pod_and_the_router_is_a_hop() {
    let lab = up(routed("vxlan", Backend::Vxlan));
    let name = lab.spec().name.clone();
    assert_all_hear(&lab);
    let trace = |to: &str| -> Value {
        let (code, text) = overlayd(&["trace", "--name", &name, "--json", "node1/pod1", to]);
        assert_eq!(code, Some(0), "{text}");
        serde_json::from_str(&text).unwrap()
    };
    let hops = |trace: &Value| -> Vec<(String, String, u64, bool)> {
        let rows = trace["rows"].as_array().unwrap().iter();
        let at = rows.filter(|row| row["place"] == "router" && row["ttl"].is_u64());
        at.map(|row| {
            let text = |key: &str| row[key].as_str().unwrap().to_owned();
            let (ttl, inside) = (row["ttl"].as_u64(), row["encapsulated"].as_bool());
            (
                text("device"),
                text("direction"),
                ttl.unwrap(),
                inside.unwrap(),
            )
        })
        .collect()
    };
    let hop =
        |device: &str, direction: &str, ttl| (device.to_owned(), direction.to_owned(), ttl, true);
    // The outer TTL: the inner one never sees the router.
    let there_and_back = [
        hop("eth0", "in", 64),
        hop("eth1", "out", 63),
        hop("eth1", "in", 64),
        hop("eth0", "out", 63),
    ];
    assert_eq!(hops(&trace("node3/pod1")), there_and_back);
    assert_eq!(hops(&trace("node2/pod1")), []);

    let status = topology::status(&name).unwrap();
    assert!(status.is_well(), "{status:?}");
    let ips: Vec<_> = status
        .router
        .unwrap()
        .ips
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        ips,
        ["10.99.0.254", "fd99::fe", "10.99.1.254", "fd99:0:0:1::fe"]
    );
    let (code, text) = overlayd(&["lab", "sh", "--name", &name, "router", "ip", "-4", "route"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("10.99.1.0/24 dev eth1"), "{text}");
    let picture = Picture {
        topology: Topology::seen(&lab, &[]).unwrap(),
        ..Picture::default()
    };
    let picture = picture.to_string();
    for word in [">router<", ">eth1", "underlay1 (", "10.99.1.254/24"] {
        assert!(picture.contains(word), "{word} is not in {picture}");
    }
    lab.close().unwrap();
    assert_no_trace(&name);
}

#[test]
fn host_gw_needs_one_segment() {
    let lab = up(Spec {
        layer: Layer::L2,
        ..routed("gw2", Backend::HostGw)
    });
    assert_all_hear(&lab);
    assert_eq!(refused(&lab, 1), "[]");
    lab.close().unwrap();

    let lab = up(routed("gw3", Backend::HostGw));
    let name = lab.spec().name.clone();
    let [one, two, three] = lab.nodes() else {
        panic!("three nodes")
    };
    assert_eq!(hears(one, two), [true; 2]);
    for (from, to) in [(one, three), (three, two)] {
        let ips = [to.pods()[0].ip.into(), to.pods()[0].ipv6.unwrap().into()];
        for ip in ips {
            let report = answered(from.pods()[0].netns(), ip, 2, Duration::ZERO);
            assert_eq!(report.received, 0, "{} {ip}", from.name);
        }
    }
    let why = "10.99.1.3 is behind the router 10.99.0.254, which does not know 10.244.3.0/24: host-gw needs all nodes on one segment";
    assert!(refused(&lab, 1).contains(why), "{}", refused(&lab, 1));
    assert!(refused(&lab, 3).contains("10.99.0.1 is behind the router 10.99.1.254"));
    let routes = ["lab", "sh", "--name", &name, "node1", "overlayd", "routes"];
    let (code, text) = overlayd(&routes);
    assert_eq!(code, Some(4), "{text}");
    assert!(
        text.contains(why) && text.contains("10.99.0.2  eth0"),
        "{text}"
    );
    let (_, text) = overlayd(&["lab", "status", "--name", &name]);
    let words: Vec<_> = text.split_whitespace().collect();
    assert!(words.join(" ").contains(why), "{text}");
    // The trace follows it to where it is lost, and no daemon is on its way.
    let (code, text) = overlayd(&["trace", "--name", &name, "node1/pod1", "node3/pod1"]);
    assert_eq!(code, Some(5), "{text}");
    assert!(text.contains("lost: the request ended at router"), "{text}");
    assert!(!text.contains("TUN device"), "{text}");
    lab.close().unwrap();
    assert_no_trace(&name);
}

#[test]
fn with_direct_routing_only_what_is_behind_the_router_is_encapsulated() {
    let lab = up(Spec {
        direct_routing: true,
        ..routed("direct", Backend::Vxlan)
    });
    let sent = |from: u8, to: &Node| {
        let status = status_of(&lab, from);
        let peers = status["peers"].as_array().unwrap();
        let subnet = to.subnet.to_string();
        let peer = peers.iter().find(|peer| peer["subnet"] == subnet.as_str());
        peer.unwrap()["sent_packets"].as_u64().unwrap()
    };
    let [one, two, three] = lab.nodes() else {
        panic!("three nodes")
    };
    let five = |from: &Node, to: &Node| {
        let to = to.pods()[0].ip.into();
        let report = answered(from.pods()[0].netns(), to, 5, Duration::ZERO);
        assert!(report.all_answered(), "{report:?}");
    };
    assert_all_hear(&lab);
    let before = (sent(1, three), sent(3, one));
    five(one, two);
    five(two, one);
    five(one, three);
    assert_eq!((sent(1, two), sent(2, one)), (0, 0));
    assert_eq!((sent(1, three), sent(3, one)), (before.0 + 5, before.1 + 5));
    assert_eq!(refused(&lab, 1), "[]");
    let name = lab.spec().name.clone();
    let routes = ["lab", "sh", "--name", &name, "node1", "overlayd", "routes"];
    let (code, text) = overlayd(&routes);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("10.244.2.0/24") && !text.contains("10.244.3.0/24"),
        "{text}"
    );
    lab.close().unwrap();
    assert_no_trace(&name);
}

#[test]
fn etcd_a_router_and_direct_routing_go_together() {
    let lab = up(Spec {
        direct_routing: true,
        store: Store::Etcd,
        ..routed("all", Backend::Vxlan)
    });
    let name = lab.spec().name.clone();
    assert_all_hear(&lab);
    lab.close().unwrap();
    let lab = up(Spec {
        backend: Backend::Udp,
        ipv6: false,
        underlay: Underlay::V4,
        layer: Layer::L3,
        ..on_etcd("udp")
    });
    let (one, three) = (&lab.nodes()[0].pods()[0], &lab.nodes()[2].pods()[0]);
    until("an answer", || {
        answered(one.netns(), three.ip.into(), 1, Duration::ZERO).all_answered()
    });
    assert_no_trace(&name);
}

#[test]
fn what_makes_no_sense_is_refused_with_a_word() {
    let name = spec("refused").name;
    for (options, word) in [
        ("--store etcd --stage veth", "is built at once"),
        (
            "--store etcd --explain",
            "`--explain` goes with --store file",
        ),
        ("--store etcd --scenario no-lease", "about a lease file"),
        ("--store etcd --underlay v6", "public IPv4 address"),
        ("--store etcd --underlay v4", "--no-ipv6"),
        ("--store etcd --backend udp", "of IPv4 alone"),
        ("--underlay l3 --nodes 2", "needs 3 nodes"),
        ("--underlay l2,l3", "one of l2 and l3"),
        ("--backend udp --direct-routing", "udp has none"),
        ("--backend host-gw --direct-routing", "to every node anyway"),
        ("--backend host-gw --underlay v4", "the underlay needs IPv6"),
        (
            "--scenario spoof --backend host-gw",
            "on l2, with udp or vxlan",
        ),
    ] {
        let mut arguments = vec!["lab", "up", "--name", &name];
        arguments.extend(options.split(' '));
        let (code, text) = overlayd(&arguments);
        assert_eq!(code, Some(1), "{options}: {text}");
        assert!(text.contains(word), "{options}: {text}");
        assert_no_trace(&name);
    }
    let (code, text) = overlayd(&["lab", "demo", "--name", &name, "--backend", "host-gw"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("host-gw or direct routing"), "{text}");
    // Without etcd on this machine.
    let done = Command::new(exe())
        .args(["lab", "up", "--store", "etcd", "--name", &name])
        .env("PATH", "/nonexistent")
        .output()
        .unwrap();
    let text = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(1), "{text}");
    assert!(text.contains("apt install etcd-server"), "{text}");
    assert_no_trace(&name);
}

#[test]
fn the_demo_is_played_on_etcd_and_over_a_router() {
    let name = spec("demo").name;
    let done = Command::new(exe())
        .args(["lab", "demo", "--name", &name, "--json"])
        .args(["--store", "etcd", "--underlay", "l3"])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    let steps = report["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 9);
    for step in steps {
        // How long a transfer takes beside other tests is not the question here.
        let transfer = step["title"].as_str().unwrap().contains("transfer");
        assert!(transfer || step["passed"] == true, "{step:#}");
    }
    assert_eq!(report["leftovers"], serde_json::json!([]));
    assert_no_trace(&name);
}

#[test]
fn scenarios_are_played_on_etcd() {
    let name = spec("played").name;
    let play = [
        "lab",
        "up",
        "--name",
        &name,
        "--store",
        "etcd",
        "--scenario",
        "mtu",
    ];
    let (code, text) = overlayd(&play);
    assert_eq!(code, Some(0), "{text}");
    let (before, found) = overlayd(&["lab", "grade", "--name", &name]);
    let mend = "ip link set node3 mtu 1500";
    let mend = ["lab", "sh", "--name", &name, "underlay", "sh", "-c", mend];
    let mended = overlayd(&mend).0;
    let (after, graded) = overlayd(&["lab", "grade", "--name", &name]);
    let (code, text) = overlayd(&["lab", "down", "--name", &name]);
    assert_eq!(code, Some(0), "{text}");
    assert_no_trace(&name);
    assert_eq!((before, mended), (Some(5), Some(0)), "{found}");
    assert_eq!(after, Some(0), "{graded}");
}

#[test]
fn a_router_that_is_built_by_hand_forwards() {
    let name = spec("hand").name;
    let spec = Spec {
        name: name.clone(),
        ..routed("hand", Backend::Vxlan)
    };
    let shell = |text: &str| Command::new("sh").args(["-ec", text]).status().unwrap();
    let built = shell(&topology::commands(&spec, Stage::Isolated));
    let ping = |ip: &str| shell(&format!("ip netns exec {name}-node1 ping -qc 1 {ip}"));
    let heard = ["10.99.1.3", "fd99:0:0:1::3"].map(|ip| ping(ip).success());
    assert!(shell(&topology::removal(&spec, Stage::Isolated)).success());
    assert!(built.success());
    assert_eq!(heard, [true; 2]);
    assert_no_trace(&name);
}
