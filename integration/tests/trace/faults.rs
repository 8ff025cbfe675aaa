//! What somebody may have done to a lab: rewriting rules, rules at bridges and devices, cables unplugged, devices down, MTUs
//! that differ. A trace names each, where it is, and the cure.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Up, details, err, out, overlayd, rows, step};

impl Up {
    /// A trace that our own captures do not follow: they look into more places.
    pub(crate) fn told(&self, rest: &[&str]) -> Value {
        let done = self.trace(&[rest, &["--json"]].concat());
        serde_json::from_slice(&done.stdout)
            .unwrap_or_else(|e| panic!("{rest:?}: {e}: {}", err(&done)))
    }

    /// Commands of a shell, each `PLACE: COMMAND`.
    pub(crate) fn does(&self, commands: &[&str]) {
        for command in commands {
            let (place, command) = command.split_once(": ").unwrap();
            self.sh(&[place, "sh", "-c", command]);
        }
    }

    /// What is broken, how it is mended, and what a trace says in between: leg, place, reason, words in meaning or advice.
    pub(crate) fn breaks(
        &self,
        broken: &[&str],
        mended: &[&str],
        ends: &[&str],
        expected: [&str; 4],
    ) -> Value {
        self.does(broken);
        let trace = self.told(ends);
        self.does(mended);
        let loss = &trace["loss"];
        let [leg, place, reason, words] = expected;
        let leg = match leg {
            "" => loss["leg"].as_str().unwrap(),
            leg => leg,
        };
        assert_eq!(
            (&loss["leg"], &loss["place"], &loss["reason"], &loss["by"]),
            (&leg.into(), &place.into(), &reason.into(), &"kernel".into()),
            "{broken:?}: {loss:#}"
        );
        let said = format!("{} {}", loss["meaning"], loss["advice"]);
        assert!(
            said.contains(words),
            "{broken:?}: {words:?} is not in {said}"
        );
        assert!(!said.contains("seen no more"), "{said}");
        trace
    }
}

pub(crate) const ACROSS: [&str; 2] = ["node1/pod1", "node2/pod1"];

fn rewrites(trace: &Value) -> Vec<String> {
    let rows = rows(trace).filter(|row| row["step"] == "rewrite");
    rows.map(|row| {
        format!(
            "{} {}",
            row["place"].as_str().unwrap(),
            row["text"].as_str().unwrap()
        )
    })
    .collect()
}

/// The mark is followed through rewriting, there and back.
#[test]
fn addresses_rewritten_on_the_way() {
    for engine in ["classic", "batched"] {
        let lab = Up::new(
            &format!("nat-{engine}"),
            &["--nodes", "2", "--engine", engine],
        );
        lab.does(&[
            "node1: nft add table ip t",
            "node1: nft 'add chain ip t post { type nat hook postrouting priority 100; }'",
            "node1: nft 'add chain ip t pre { type nat hook prerouting priority -100; }'",
            "node1: nft 'add chain ip t services'",
            "node1: nft add rule ip t post oifname overlay0 counter masquerade",
            "node1: nft add rule ip t pre jump services",
            "node1: nft add rule ip t services ip daddr 10.96.0.1 dnat to 10.244.2.2",
        ]);
        let trace = lab.answered(&ACROSS);
        let found = rewrites(&trace);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].starts_with(
                "node1 rewritten: source 10.244.1.2 → 10.244.1.0, by the rule with handle "
            ),
            "{found:?}"
        );
        assert!(
            found[0].ends_with("in chain post of table ip t"),
            "{found:?}"
        );
        assert!(
            found[1].starts_with(
                "node1 rewritten: destination 10.244.1.0 → 10.244.1.2, by connection tracking"
            ),
            "{found:?}"
        );
        let trace = lab.answered(&["node1/pod1", "10.96.0.1"]);
        let found = rewrites(&trace);
        assert!(
            found[0].starts_with(
                "node1 rewritten: destination 10.96.0.1 → 10.244.2.2, by the rule with handle "
            ),
            "{found:?}"
        );
        assert_eq!(found.len(), 4, "{found:?}");
        // In fragments, which connection tracking puts together and the kernel cuts again.
        let trace = lab.told(&["node1/pod1", "node2/pod1", "--size", "3000"]);
        assert_eq!(trace["outcome"], "answered", "{:#}", trace["loss"]);
        // Lost behind the rewriting: still followed that far.
        lab.does(&["node2/pod1: ip route replace blackhole 10.244.1.0/32"]);
        let trace = lab.told(&ACROSS);
        assert_eq!(trace["loss"]["place"], "node2/pod1", "{:#}", trace["loss"]);
        assert_eq!(trace["loss"]["reason"], "no-route");
    }
}

#[test]
fn rules_at_bridges_and_devices_and_queues() {
    let lab = Up::new("hooks", &["--nodes", "2"]);
    for (chain, rule, place, where_) in [
        (
            "bridge t c { type filter hook prerouting priority 0; }",
            "bridge t c ip protocol icmp",
            "node1",
            "bridge t",
        ),
        (
            "bridge t c { type filter hook output priority 0; }",
            "bridge t c ip protocol icmp",
            "node2",
            "bridge t",
        ),
        (
            "bridge t c { type filter hook forward priority 0; }",
            "bridge t c udp dport 8472",
            "underlay",
            "bridge t",
        ),
        (
            "netdev t c { type filter hook ingress device eth0 priority 0; }",
            "netdev t c udp dport 8472",
            "node2",
            "netdev t",
        ),
        (
            "netdev t c { type filter hook egress device eth0 priority 0; }",
            "netdev t c udp dport 8472",
            "node1",
            "netdev t",
        ),
    ] {
        for (counter, evidence) in [("counter drop", "observed"), ("drop", "derived")] {
            let family = chain.split(' ').next().unwrap();
            let trace = lab.breaks(
                &[
                    &format!("{place}: nft add table {family} t"),
                    &format!("{place}: nft 'add chain {chain}'"),
                    &format!("{place}: nft add rule {rule} {counter}"),
                ],
                &[&format!("{place}: nft delete table {family} t")],
                &ACROSS,
                [
                    "request",
                    place,
                    "filtered",
                    &format!("in chain c of table {where_}"),
                ],
            );
            assert_eq!(
                trace["loss"]["evidence"], evidence,
                "{chain}: {:#}",
                trace["loss"]
            );
        }
    }
    // A rule in a chain that another jumps to.
    lab.breaks(
        &[
            "node2: nft add table inet t",
            "node2: nft 'add chain inet t far'",
            "node2: nft 'add chain inet t near { type filter hook forward priority 0; }'",
            "node2: nft add rule inet t far meta l4proto icmp counter drop",
            "node2: nft add rule inet t near jump far",
        ],
        &["node2: nft delete table inet t"],
        &ACROSS,
        [
            "request",
            "node2",
            "filtered",
            "in chain near of table inet t",
        ],
    );
    // A queue that nothing fits into.
    lab.breaks(
        &["underlay: tc qdisc add dev node2 root pfifo limit 0"],
        &["underlay: tc qdisc del dev node2 root"],
        &ACROSS,
        [
            "request",
            "underlay",
            "queue-drop",
            "the queue of node2 (pfifo)",
        ],
    );
    assert_eq!(lab.trace(&ACROSS).status.code(), Some(0));
}

#[test]
fn cables_unplugged_devices_down_routes_gone() {
    let lab = Up::new("cables", &[]);
    let route = "node2/pod1: ip route add default via 10.244.2.1";
    lab.breaks(
        &["node2/pod1: ip link set eth0 down"],
        &["node2/pod1: ip link set eth0 up", route],
        &ACROSS,
        [
            "request",
            "node2",
            "link-down",
            "eth0 of node2/pod1 is down",
        ],
    );
    lab.breaks(
        &["node1/pod1: ip link set eth0 down"],
        &["node1/pod1: ip link set eth0 up; ip route add default via 10.244.1.1"],
        &ACROSS,
        ["request", "node1/pod1", "link-down", "ip link set eth0 up"],
    );
    lab.breaks(
        &["node2: ip link set veth-pod1 nomaster"],
        &["node2: ip link set veth-pod1 master cni0"],
        &ACROSS,
        [
            "request",
            "node2",
            "no-bridge",
            "ip link set veth-pod1 master cni0",
        ],
    );
    // A pod that asks again for its gateway is answered by the cable's end itself: then it is the reply that is lost.
    lab.breaks(
        &["node2: ip link set veth-pod1 nomaster"],
        &["node2: ip link set veth-pod1 master cni0"],
        &["node2/pod1", "node1/pod1"],
        [
            "",
            "node2",
            "no-bridge",
            "ip link set veth-pod1 master cni0",
        ],
    );
    lab.breaks(
        &["node2/pod1: ip route del default"],
        &["node2/pod1: ip route add default via 10.244.2.1"],
        &ACROSS,
        ["reply", "node2/pod1", "no-route", "no default route"],
    );
    lab.breaks(
        &["underlay: ip link set node2 down"],
        &["underlay: ip link set node2 up"],
        &ACROSS,
        [
            "request",
            "underlay",
            "link-down",
            "node2 of underlay is down",
        ],
    );
    assert_eq!(lab.trace(&ACROSS).status.code(), Some(0));
}

#[test]
fn an_underlay_port_with_a_smaller_mtu() {
    let lab = Up::new("port", &["--nodes", "2"]);
    let large = ["node1/pod1", "node2/pod1", "--size", "1450", "--df"];
    let calls = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    // Where the bridge looks at IP it cuts what is too long, and the trace shows both parts.
    if std::fs::exists(calls).unwrap() {
        lab.does(&[
            &format!("underlay: echo 1 > {calls}"),
            "underlay: ip link set node2 mtu 1400",
            "node2: ip link set eth0 mtu 1400",
        ]);
        let (trace, _) = lab.watched(&large);
        let cut = step(&trace, "request", "underlay", "fragments");
        assert!(
            cut["text"]
                .as_str()
                .unwrap()
                .contains("into 2 fragments, 1396 + 124 bytes"),
            "{cut:#}"
        );
        step(&trace, "request", "node2", "fragments");
        lab.does(&[
            "underlay: ip link set node2 mtu 1500",
            "node2: ip link set eth0 mtu 1500",
        ]);
    }
    lab.does(&[&format!("underlay: [ ! -e {calls} ] || echo 0 > {calls}")]);
    // The bridge's port; the cable's other end, and back.
    lab.breaks(
        &["underlay: ip link set node2 mtu 1400"],
        &["underlay: ip link set node2 mtu 1500"],
        &large,
        [
            "request",
            "underlay",
            "too-big",
            "1500 bytes are more than the MTU 1400 of port node2",
        ],
    );
    let trace = lab.breaks(
        &["node2: ip link set eth0 mtu 1400"],
        &["node2: ip link set eth0 mtu 1500"],
        &large,
        ["request", "underlay", "too-big", "1400 of eth0 of node2"],
    );
    assert_eq!(trace["loss"]["evidence"], "observed");
    assert_eq!(lab.trace(&large).status.code(), Some(0));
}

/// Who cuts, and what then goes out; both engines. The batched one's datagrams cross cables as one frame.
#[test]
fn fragments_are_told_apart_from_datagrams() {
    for engine in ["classic", "batched"] {
        let lab = Up::new(
            &format!("cut-{engine}"),
            &["--nodes", "2", "--engine", engine],
        );
        let trace = lab.answered(&["node1/pod1", "node2/pod1", "--size", "1500"]);
        let cut = step(&trace, "request", "node1/pod1", "fragments");
        assert!(
            cut["text"].as_str().unwrap().contains("its 1500 bytes are more than the MTU 1450 of eth0: the kernel cuts it into 2 fragments, 1444 + 76 bytes"),
            "{cut:#}"
        );
        let made = step(&trace, "request", "node1", "encapsulation");
        assert!(
            made["text"]
                .as_str()
                .unwrap()
                .contains("each of the 2 fragments in VXLAN 1: 2 UDP datagrams"),
            "{made:#}"
        );
        assert!(
            details(made).contains("1444 + 50 = 1494, 76 + 50 = 126 bytes"),
            "{made:#}"
        );
        let again = step(&trace, "request", "node2/pod1", "fragments");
        assert_eq!(
            (&again["source"], &again["evidence"]),
            (&"counter".into(), &"observed".into())
        );
        let wire = rows(&trace)
            .find(|row| row["encapsulated"] == true && row["step"] == "device")
            .unwrap();
        assert!(
            wire["text"].as_str().unwrap().contains("1494 + 126 bytes"),
            "{wire:#}"
        );
        assert!(
            wire["text"].as_str().unwrap().contains("2 datagrams"),
            "{wire:#}"
        );
    }
}

/// The scenario's narrow port takes some fragments and drops others: both ways it is that port which is named, and drawn.
#[test]
fn some_fragments_lost_at_a_narrow_port() {
    let lab = Up::new("some", &["--nodes", "2", "--scenario", "mtu"]);
    for (size, some) in [
        ("1500", "1 of the 2 fragments is lost: 1494 bytes"),
        ("3000", "2 of the 3 fragments are lost: 1494 bytes"),
    ] {
        let trace = lab.lost(
            &["node1/pod1", "node2/pod1", "--size", size],
            "underlay",
            "too-big",
            "kernel",
        );
        let loss = &trace["loss"];
        let meaning = loss["meaning"].as_str().unwrap();
        assert!(
            meaning.starts_with(&format!("{some} are more than the MTU 1400 of port node2")),
            "{meaning}"
        );
        assert_eq!(loss["device"], "node2");
        let advice = loss["advice"].as_str().unwrap();
        assert!(advice.contains("ip link set node2 mtu 1500"), "{advice}");
        let trace = lab.lost(
            &["node2/pod1", "node1/pod1", "--size", size],
            "node2",
            "too-big",
            "kernel",
        );
        let loss = &trace["loss"];
        let meaning = loss["meaning"].as_str().unwrap();
        assert!(
            meaning.starts_with(&format!(
                "{some} are more than the MTU 1400 of node2 of underlay"
            )),
            "{meaning}"
        );
        assert_eq!(
            (&loss["device"], &loss["evidence"]),
            (&"eth0".into(), &"observed".into())
        );
    }
    let done = lab.trace(&["node1/pod1", "node2/pod1", "--size", "1500", "--svg", "-"]);
    // In the column of node2, beside the name of its port.
    let x = |words: &str| {
        let line = out(&done).lines().find(|line| line.contains(words));
        let (_, x) = line.unwrap().split_once("x=\"").unwrap();
        x.split('"').next().unwrap().to_owned()
    };
    assert_eq!(x(">✗ lost: too-big<"), x(">port node2<"));
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// With device.mtu above what the path takes, overlayd itself has to cut.
#[test]
fn overlayd_cuts_what_does_not_fit_the_path() {
    for engine in ["classic", "batched"] {
        let lab = Up::new(
            &format!("raised-{engine}"),
            &["--nodes", "2", "--engine", engine],
        );
        let status = overlayd(&["lab", "status", "--name", &lab.0, "--json"]);
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        let node = &status["nodes"][0];
        let pid = node["daemon"].as_u64().unwrap().to_string();
        let folder = format!("/run/overlayd/lab/{}/node1", lab.0);
        let mut config = OpenOptions::new()
            .append(true)
            .open(format!("{folder}/overlayd.toml"))
            .unwrap();
        config.write_all(b"\n[device]\nmtu = 1500\n").unwrap();
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        let gone = Instant::now() + Duration::from_secs(20);
        while std::fs::metadata(format!("/proc/{pid}/exe")).is_ok() {
            assert!(Instant::now() < gone);
            std::thread::sleep(Duration::from_millis(10));
        }
        let daemon = Command::new("ip")
            .args(["netns", "exec", &format!("{}-node1", lab.0)])
            .args([env!("CARGO_BIN_EXE_overlayd-under-test"), "run", "--config"])
            .arg(format!("{folder}/overlayd.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let _daemon = Running(daemon.unwrap());
        let ready = Instant::now() + Duration::from_secs(20);
        while lab.told(&ACROSS)["outcome"] != "answered" {
            assert!(Instant::now() < ready);
            std::thread::sleep(Duration::from_millis(50));
        }
        for command in [
            "node1/pod1: ip link set eth0 mtu 1500",
            "node1: ip link set veth-pod1 mtu 1500; ip link set cni0 mtu 1500",
        ] {
            lab.does(&[command]);
        }
        let trace = lab.answered(&["node1/pod1", "node2/pod1", "--size", "1500"]);
        assert!(rows(&trace).all(|row| row["place"] != "node1/pod1"
            || row["leg"] != "request"
            || row["step"] != "fragments"));
        let cut = step(&trace, "request", "node1", "fragments");
        let text = cut["text"].as_str().unwrap();
        assert!(
            text.starts_with("1500 bytes are more than the 1450 that fit there")
                && text.contains("overlayd itself makes 2 fragments of it, 1444 + 76 bytes"),
            "{cut:#}"
        );
        assert_eq!(cut["source"], "counter");
        let made = step(&trace, "request", "node1", "encapsulation");
        assert!(
            details(made).contains("1444 + 50 = 1494, 76 + 50 = 126 bytes"),
            "{made:#}"
        );
    }
}

/// A neighbour entry that lies leads the datagram to an uplink that does not take it.
#[test]
fn a_wrong_neighbour_of_the_underlay() {
    let lab = Up::new("liar", &["--nodes", "2"]);
    let trace = lab.breaks(
        &["node1: ip neigh replace 10.99.0.2 lladdr 02:00:00:00:00:99 dev eth0 nud permanent"],
        &["node1: ip neigh del 10.99.0.2 dev eth0"],
        &ACROSS,
        [
            "request",
            "node2",
            "other-host",
            "`ip neigh del 10.99.0.2 dev eth0`, in node1",
        ],
    );
    let asked: Vec<_> = rows(&trace)
        .filter(|row| row["place"] == "node1" && row["device"] == "eth0")
        .filter(|row| row["step"] == "neighbour")
        .map(|row| row["text"].as_str().unwrap())
        .collect();
    assert!(
        asked.len() == 1 && asked[0].contains("02:00:00:00:00:99 (permanent"),
        "{asked:?}"
    );
    assert_eq!(lab.told(&ACROSS)["outcome"], "answered");
}

/// Rules that nf_tables does not know of: what stands there unread is named, and blamed where nothing else is known.
#[test]
fn legacy_iptables_are_named() {
    let lab = Up::new("legacy", &["--nodes", "2"]);
    for (v6, command) in [(false, "iptables-legacy"), (true, "ip6tables-legacy")] {
        let protocol = if v6 { "icmpv6" } else { "icmp" };
        let six: &[&str] = if v6 { &["-6"] } else { &[] };
        let ends = [six, &ACROSS].concat();
        let rule = format!("FORWARD -p {protocol} -j");
        let trace = lab.breaks(
            &[&format!("node2: {command} -A {rule} DROP")],
            &[&format!("node2: {command} -D {rule} DROP")],
            &ends,
            [
                "request",
                "node2",
                "filtered",
                "the legacy iptables table filter",
            ],
        );
        assert_eq!(trace["loss"]["evidence"], "derived");
        assert!(
            trace["loss"]["advice"]
                .as_str()
                .unwrap()
                .contains(&format!("`{command}-save -c`")),
            "{:#}",
            trace["loss"]
        );
        lab.breaks(
            &[&format!("node2: {command} -A {rule} REJECT")],
            &[&format!("node2: {command} -D {rule} REJECT")],
            &ends,
            [
                "request",
                "node2",
                "filtered",
                "the legacy iptables table filter",
            ],
        );
        let trace = lab.told(&ends);
        assert_eq!(trace["outcome"], "answered");
        let said = trace["unseen"].to_string();
        assert!(
            said.contains("node2: the rules of the legacy iptables table filter"),
            "{said}"
        );
        let chains = step(&trace, "request", "node2", "netfilter");
        let words = format!("{} {}", chains["text"], details(chains));
        assert!(
            !words.contains("nothing is filtered") || !words.contains("forward"),
            "{words}"
        );
    }
    lab.breaks(
        &["node1/pod1: iptables-legacy -A OUTPUT -p icmp -j DROP"],
        &["node1/pod1: iptables-legacy -D OUTPUT -p icmp -j DROP"],
        &ACROSS,
        [
            "request",
            "node1/pod1",
            "filtered",
            "the legacy iptables table filter",
        ],
    );
}
