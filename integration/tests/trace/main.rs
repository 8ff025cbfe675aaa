//! `overlayd trace` in labs and on hosts: what it claims to have seen is held against captures of our own, taken at every
//! interface at the same time. Needs root.

#![allow(clippy::unwrap_used)] // in helpers too: a test fails where it stands

mod book;
mod chains;
mod ends;
mod eyes;
mod faults;
mod routes;
mod words;

use std::process::{Command, Output, Stdio};

use eyes::{Eyes, Seen};
use serde_json::Value;

/// A lab that is taken down whatever happens to its test.
pub(crate) struct Up(String);

pub(crate) fn overlayd(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_overlayd-under-test"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

pub(crate) fn out(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

pub(crate) fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

impl Up {
    pub(crate) fn new(word: &str, options: &[&str]) -> Self {
        let up = Self(format!("tr-{word}-{}", std::process::id()));
        let done = overlayd(&[&["lab", "up", "--name", &up.0], options].concat());
        assert!(done.status.success(), "{}", err(&done));
        up
    }

    /// Runs a command in a place.
    pub(crate) fn sh(&self, rest: &[&str]) -> Output {
        let done = overlayd(&[&["lab", "sh", "--name", &self.0], rest].concat());
        assert!(done.status.success(), "{rest:?}: {}", err(&done));
        done
    }

    pub(crate) fn trace(&self, rest: &[&str]) -> Output {
        overlayd(&[&["trace", "--name", &self.0], rest].concat())
    }

    /// A trace, checked against captures of our own.
    pub(crate) fn watched(&self, rest: &[&str]) -> (Value, i32) {
        let eyes = Eyes::open(&self.0);
        let done = self.trace(&[rest, &["--json"]].concat());
        let seen = eyes.close();
        let trace: Value = serde_json::from_slice(&done.stdout)
            .unwrap_or_else(|e| panic!("{rest:?}: {e}: {}{}", out(&done), err(&done)));
        check(&trace, &seen);
        (trace, done.status.code().unwrap())
    }

    fn answered(&self, rest: &[&str]) -> Value {
        let (trace, code) = self.watched(rest);
        assert_eq!(
            (&trace["outcome"], code),
            (&"answered".into(), 0),
            "{rest:?}: {:#}",
            trace["loss"]
        );
        assert!(trace["loss"].is_null() && trace["unseen"].as_array().unwrap().is_empty());
        trace
    }

    fn lost(&self, rest: &[&str], place: &str, reason: &str, by: &str) -> Value {
        let (trace, code) = self.watched(rest);
        let loss = &trace["loss"];
        assert_eq!((&trace["outcome"], code), (&"lost".into(), 5), "{rest:?}");
        assert_eq!(
            (&loss["place"], &loss["reason"], &loss["by"]),
            (&place.into(), &reason.into(), &by.into()),
            "{rest:?}: {loss:#}"
        );
        assert!(!loss["advice"].as_str().unwrap().is_empty());
        let lost: Vec<_> = rows(&trace).filter(|row| row["step"] == "lost").collect();
        assert_eq!((lost.len(), &lost[0]["place"]), (1, &place.into()));
        trace
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        overlayd(&["lab", "down", "--name", &self.0]);
    }
}

pub(crate) fn rows(trace: &Value) -> impl Iterator<Item = &Value> {
    trace["rows"].as_array().unwrap().iter()
}

fn bytes(hex: &str) -> Vec<u8> {
    let pairs = hex
        .as_bytes()
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).unwrap());
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

/// Every frame that the trace shows was seen there by us too, with the TTL and length that it says; and every frame with
/// the mark that we have seen is in the trace.
fn check(trace: &Value, seen: &[Seen]) {
    let token = trace["token"].as_str().unwrap();
    let mut shown = Vec::new();
    for row in rows(trace) {
        let frames = row["frames"].as_array().unwrap();
        assert_eq!(
            row["source"] == "capture" && row["step"] == "device",
            !frames.is_empty(),
            "{row:#}"
        );
        if frames.is_empty() {
            assert!(row["ttl"].is_null() && row["length"].is_null());
            continue;
        }
        assert_eq!(row["evidence"], "observed");
        for (number, frame) in frames.iter().enumerate() {
            let claim = Seen {
                place: row["place"].as_str().unwrap().to_owned(),
                device: row["device"].as_str().unwrap().to_owned(),
                out: row["direction"] == "out",
                bytes: bytes(frame["hex"].as_str().unwrap()),
            };
            assert!(seen.contains(&claim), "nobody else saw {row:#}");
            assert!(!shown.contains(&claim), "twice: {row:#}");
            if number == 0 {
                let (ttl, length, ..) = claim.ip();
                assert_eq!(
                    (&row["ttl"], &row["length"]),
                    (&ttl.into(), &length.into()),
                    "{row:#}"
                );
            }
            shown.push(claim);
        }
    }
    let missed: Vec<_> = seen
        .iter()
        .filter(|frame| frame.carries(token) && !shown.contains(frame))
        .map(|frame| (&frame.place, &frame.device, frame.out, frame.ip()))
        .collect();
    assert!(
        missed.is_empty(),
        "seen by us, not by the trace: {missed:?}"
    );
    let numbers: Vec<_> = rows(trace)
        .map(|row| row["number"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
}

/// The devices by which the packet of a leg was seen passing.
fn way(trace: &Value, leg: &str) -> Vec<String> {
    rows(trace)
        .filter(|row| row["leg"] == leg && row["step"] == "device")
        .map(|row| {
            let arrow = if row["direction"] == "out" { ">" } else { "<" };
            format!(
                "{}{arrow}{}",
                row["place"].as_str().unwrap(),
                row["device"].as_str().unwrap()
            )
        })
        .collect()
}

fn ttls(trace: &Value, leg: &str) -> Vec<u64> {
    let devices = rows(trace).filter(|row| row["leg"] == leg && row["step"] == "device");
    devices.map(|row| row["ttl"].as_u64().unwrap()).collect()
}

/// The row of a step.
fn step<'a>(trace: &'a Value, leg: &str, place: &str, step: &str) -> &'a Value {
    rows(trace)
        .find(|row| row["leg"] == leg && row["place"] == place && row["step"] == step)
        .unwrap_or_else(|| panic!("no {step} at {place}: {trace:#}"))
}

fn details(row: &Value) -> String {
    let lines: Vec<_> = row["details"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l.as_str().unwrap())
        .collect();
    lines.join("\n")
}

const THERE: [&str; 12] = [
    "node1/pod1>eth0",
    "node1<veth-pod1",
    "node1<cni0",
    "node1>overlay0",
    "node1>eth0",
    "underlay<node1",
    "underlay>node2",
    "node2<eth0",
    "node2<overlay0",
    "node2>cni0",
    "node2>veth-pod1",
    "node2/pod1<eth0",
];

/// What any backend and family must show. `overhead`: of the encapsulation in bytes, for inner IPv4 and IPv6; `fits`: the
/// largest packets.
fn every_case(lab: &Up, overhead: [u64; 2], fits: [u64; 2]) {
    for (v6, spoofed, sibling, nowhere) in [
        (false, "10.244.3.2", "10.244.1.3", "10.244.254.9"),
        (
            true,
            "fd00:10:244:3::2",
            "fd00:10:244:1::3",
            "fd00:10:244:254::9",
        ),
    ] {
        let family = usize::from(v6);
        let six: &[&str] = if v6 { &["-6"] } else { &[] };
        let (usual, overhead) = ([84, 104][family], overhead[family]);
        let larger_family = fits[0];
        let fits = fits[family];
        let across = [six, &["node1/pod1", "node2/pod1"]].concat();
        let with = |more: &[&'static str]| [&across[..], more].concat();

        // Cross-node.
        let trace = lab.answered(&across);
        assert_eq!(way(&trace, "request"), THERE);
        assert_eq!(
            ttls(&trace, "request"),
            [64, 64, 64, 63, 64, 64, 64, 64, 63, 62, 62, 62]
        );
        assert_eq!(ttls(&trace, "reply"), ttls(&trace, "request"));
        let back: Vec<_> = way(&trace, "reply");
        assert_eq!(
            (back.len(), &*back[0], &*back[11]),
            (12, "node2/pod1>eth0", "node1/pod1<eth0")
        );
        let lengths = rows(&trace).filter(|row| row["step"] == "device");
        for row in lengths {
            let wanted = if row["encapsulated"] == true {
                usual + overhead
            } else {
                usual
            };
            assert_eq!(row["length"], wanted, "{row:#}");
        }
        let won = details(step(&trace, "request", "node2", "route"));
        assert!(won.is_empty(), "the outer packet is for node2: {won}");
        let routes: Vec<_> = rows(&trace)
            .filter(|r| r["leg"] == "request" && r["place"] == "node2" && r["step"] == "route")
            .collect();
        let lines = details(routes[1]);
        let (cni, tun) = (
            lines.find("✓ cni0; wins: the longest match"),
            lines.find("✓ overlay0"),
        );
        assert!(cni.is_some() && cni < tun, "{lines}");
        let checks = step(&trace, "request", "node2", "receive");
        assert_eq!(
            (&checks["source"], details(checks).contains('✗')),
            (&"counter".into(), false)
        );
        assert_eq!(
            step(&trace, "request", "node1", "encapsulation")["source"],
            "counter"
        );
        assert!(
            details(step(&trace, "request", "node1", "encapsulation")).contains(&format!(
                "{usual} + {overhead} = {} bytes",
                usual + overhead
            ))
        );

        // Same node: the daemons have no part in it.
        let trace = lab.answered(&[six, &["node1/pod1", "node1/pod2"]].concat());
        assert_eq!(
            way(&trace, "request"),
            [
                "node1/pod1>eth0",
                "node1<veth-pod1",
                "node1>veth-pod2",
                "node1/pod2<eth0"
            ]
        );
        assert_eq!(
            way(&trace, "reply"),
            [
                "node1/pod2>eth0",
                "node1<veth-pod2",
                "node1>veth-pod1",
                "node1/pod1<eth0"
            ]
        );
        assert_eq!(ttls(&trace, "request"), [64; 4]);

        // A node itself.
        let trace = lab.answered(&[six, &["node1", "node2/pod2"]].concat());
        assert_eq!(way(&trace, "request")[0], "node1>overlay0");

        // No lease.
        let trace = lab.lost(&["node1/pod1", nowhere], "node1", "no-lease", "overlayd");
        assert_eq!(way(&trace, "request"), THERE[..4]);
        assert_eq!(trace["loss"]["evidence"], "observed");
        assert_eq!(
            way(&trace, "error"),
            [
                "node1<overlay0",
                "node1>cni0",
                "node1>veth-pod1",
                "node1/pod1<eth0"
            ]
        );

        // In fragments. Over an underlay of both families the pods' MTU follows IPv4, so that the first IPv6 ones are too
        // large: the pod hears of it and makes smaller ones.
        if larger_family > fits {
            // Then, so does the one that answers.
            for (place, pod) in [("node1", "node1/pod1"), ("node2", "node2/pod1")] {
                let trace = lab.lost(&with(&["--size", "3000"]), place, "too-big", "kernel");
                let meaning = trace["loss"]["meaning"].as_str().unwrap();
                assert!(
                    meaning.starts_with("2 of the 3 fragments are lost: "),
                    "{meaning}"
                );
                assert!(rows(&trace).any(|r| r["leg"] == "error" && r["place"] == pod));
            }
        }
        let trace = lab.answered(&with(&["--size", "3000"]));
        assert_eq!(way(&trace, "request"), THERE);
        assert!(
            rows(&trace)
                .filter(|r| r["step"] == "device")
                .all(|r| r["frames"].as_array().unwrap().len() == 3)
        );

        // As large as fits, and one byte more.
        let largest: &'static str = fits.to_string().leak();
        let larger: &'static str = (fits + 1).to_string().leak();
        lab.answered(&with(&["--df", "--size", largest]));
        let loss = lab.lost(
            &with(&["--df", "--size", "1500"]),
            "node1/pod1",
            "too-big",
            "kernel",
        );
        assert!(way(&loss, "request").is_empty());
        // As if nobody had told the pod of the overlay.
        mtu(lab, "1500");
        let trace = lab.lost(
            &with(&["--df", "--size", larger]),
            "node1",
            "too-big",
            "kernel",
        );
        assert_eq!(way(&trace, "request"), THERE[..3]);
        assert!(
            trace["loss"]["meaning"]
                .as_str()
                .unwrap()
                .contains(&format!("MTU {fits}")),
            "{:#}",
            trace["loss"]
        );
        mtu(lab, fits.to_string().leak());

        // Spoofed: from another node's lease, from the same.
        let trace = lab.lost(
            &with(&["--spoof", spoofed]),
            "node2",
            "inner-source",
            "overlayd",
        );
        assert_eq!(way(&trace, "request"), THERE[..8]);
        assert!(
            details(step(&trace, "request", "node2", "receive")).contains(&format!(
                "✗ the inner source {spoofed} does not lie in that same lease"
            ))
        );
        // The lie is in the packet; who told it is known all the same.
        assert_eq!(trace["source"]["ip"], spoofed);
        let sender = if v6 { "fd00:10:244:1::2" } else { "10.244.1.2" };
        assert_eq!(trace["sender_ip"], sender);
        let (trace, code) = lab.watched(&with(&["--spoof", sibling]));
        assert_eq!((&trace["outcome"], code), (&"elsewhere".into(), 5));
        assert_eq!(way(&trace, "reply").last().unwrap(), "node1/pod2<eth0");

        // Out of TTL.
        let trace = lab.lost(&with(&["--ttl", "2"]), "node2", "ttl", "kernel");
        assert_eq!(way(&trace, "request"), THERE[..9]);
        assert_eq!(way(&trace, "error").last().unwrap(), "node1/pod1<eth0");
        let meaning = &trace["loss"]["meaning"];
        let needs = "its TTL ran out: it set out with 2, and the way needs 3; its kernel says so";
        assert!(meaning.as_str().unwrap().starts_with(needs), "{meaning}");
        let trace = lab.lost(&with(&["--ttl", "1"]), "node1", "ttl", "kernel");
        let meaning = &trace["loss"]["meaning"];
        let needs = "it set out with 1, and the way needs 3";
        assert!(meaning.as_str().unwrap().contains(needs), "{meaning}");

        // Nobody has the address.
        let absent = if v6 {
            "fd00:10:244:2::77"
        } else {
            "10.244.2.77"
        };
        lab.lost(
            &["node1/pod1", absent, "--timeout", "0.3"],
            "node2",
            "no-neighbour",
            "kernel",
        );
        filtered(lab, &across);
    }
}

fn mtu(lab: &Up, mtu: &str) {
    lab.sh(&["node1/pod1", "ip", "link", "set", "eth0", "mtu", mtu]);
    lab.sh(&["node1", "ip", "link", "set", "veth-pod1", "mtu", mtu]);
}

/// Rules that drop, with a counter and without, and a policy.
fn filtered(lab: &Up, across: &[&str]) {
    let nft = |place: &str, rules: &str| lab.sh(&[place, "nft", rules]);
    for (rule, evidence) in [
        ("counter drop", "observed"),
        ("drop", "derived"),
        ("counter reject", "observed"),
    ] {
        nft("node2", "add table inet t");
        nft(
            "node2",
            "add chain inet t hold { type filter hook forward priority 0; }",
        );
        nft(
            "node2",
            &format!(
                "add rule inet t hold meta l4proto {{ icmp, ipv6-icmp }} iifname \"overlay0\" {rule}"
            ),
        );
        let trace = lab.lost(across, "node2", "filtered", "kernel");
        assert_eq!(way(&trace, "request"), THERE[..9]);
        assert_eq!(trace["loss"]["evidence"], evidence, "{rule}");
        assert!(
            trace["loss"]["meaning"]
                .as_str()
                .unwrap()
                .contains("chain hold of table inet t")
        );
        assert_eq!(way(&trace, "error").is_empty(), rule != "counter reject");
        nft("node2", "delete table inet t");
    }
    nft("node2/pod1", "add table inet t");
    nft(
        "node2/pod1",
        "add chain inet t in { type filter hook input priority 0; policy accept; }",
    );
    let request = if across.contains(&"-6") {
        "icmpv6"
    } else {
        "icmp"
    };
    nft(
        "node2/pod1",
        &format!("add rule inet t in {request} type echo-request counter drop"),
    );
    let trace = lab.lost(across, "node2/pod1", "filtered", "kernel");
    assert_eq!(way(&trace, "request"), THERE);
    nft("node2/pod1", "delete table inet t");
    // The reply can be lost as well.
    nft("node1", "add table inet t");
    nft(
        "node1",
        "add chain inet t pre { type filter hook prerouting priority 0; }",
    );
    let reply = if across.contains(&"-6") {
        "icmpv6"
    } else {
        "icmp"
    };
    nft(
        "node1",
        &format!("add rule inet t pre iifname \"overlay0\" {reply} type echo-reply counter drop"),
    );
    let trace = lab.lost(across, "node1", "filtered", "kernel");
    assert_eq!(
        (&trace["loss"]["leg"], way(&trace, "reply").len()),
        (&"reply".into(), 9)
    );
    nft("node1", "delete table inet t");
}

#[test]
fn every_case_over_vxlan() {
    let lab = Up::new("vx", &[]);
    every_case(&lab, [50, 70], [1450, 1430]);
}

#[test]
fn every_case_over_udp_and_ipv6() {
    let lab = Up::new("udp", &["--backend", "udp", "--underlay", "v6"]);
    every_case(&lab, [48, 48], [1452, 1452]);
}
