//! Words, pictures, other places than a lab, and what cannot be traced.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlayd::kernel::NetNs;
use serde_json::Value;

use super::{Up, err, out, overlayd, rows};

#[test]
fn text_json_and_picture_say_the_same() {
    let lab = Up::new("say", &["--nodes", "2"]);
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("way.svg");
    let done = lab.trace(&[
        "node1/pod1",
        "10.244.2.2",
        "--svg",
        picture.to_str().unwrap(),
    ]);
    let text = out(&done);
    assert_eq!(done.status.code(), Some(0), "{}", err(&done));
    assert!(!text.contains('\x1b'), "a pipe wants no colours");
    for part in [
        "node1/pod1 (10.244.1.2) → node2/pod1 (10.244.2.2): one marked IPv4 packet of 84 bytes",
        "The way there: the echo request",
        "The way back: the echo reply",
        "10.244.2.0/24  00001010 11110100 00000010 ········  AND gives 10.244.2.0 ✓ cni0; wins: the longest match",
        "IPv4 20 + UDP 8 + VXLAN 8 + Ethernet 14 = 50 bytes in front: 84 + 50 = 134 bytes",
        "lease 10.244.2.0/24 at 10.99.0.2, fd99::2  holds 10.244.2.2",
        "✓ the inner source 10.244.1.2 lies in that same lease",
        "answered: the packet arrived, and its answer came back",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    let coloured = lab.trace(&["node1/pod1", "10.244.2.2", "--color", "always"]);
    assert!(out(&coloured).contains('\x1b'));

    let done = lab.trace(&["node1/pod1", "10.244.2.2", "--json"]);
    let json: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&json["version"], &json["size"]), (&1.into(), &84.into()));
    // The numbers of the rows are those of the text and of the picture.
    let svg = fs::read_to_string(&picture).unwrap();
    for row in rows(&json).filter(|row| row["step"] == "device") {
        let number = row["number"].as_u64().unwrap();
        let line = format!(
            " {number:>3} ● {}",
            row["text"].as_str().unwrap().split(',').next().unwrap()
        );
        assert!(text.contains(&line), "{line:?} is not in:\n{text}");
        let note = format!(">{number} {}: ", row["place"].as_str().unwrap());
        assert!(svg.contains(&note), "{note}");
    }
    for part in [
        ">the echo request<",
        ">the echo reply<",
        ">seen there: a capture or a counter<",
        ">answered: the packet arrived, and its answer came back<",
        "<polygon",
    ] {
        assert!(svg.contains(part), "{part}");
    }
    let lie = lab.trace(&["node1/pod1", "10.244.2.2", "--spoof", "10.244.3.2"]);
    assert!(
        out(&lie).starts_with("node1/pod1 (claims to be 10.244.3.2) → node2/pod1 (10.244.2.2)"),
        "{}",
        out(&lie)
    );
    let lie = lab.trace(&[
        "node1/pod1",
        "10.244.2.2",
        "--spoof",
        "10.244.3.2",
        "--svg",
        "-",
    ]);
    for part in [
        ">claims to be 10.244.3.2<",
        ">✗ lost: inner-source<",
        ">lost there<",
        ">lost: the request ended at node2",
    ] {
        assert!(out(&lie).contains(part), "{part}");
    }
    // A subnet's broadcast address, which only its hosts know for one: the kernel puts its own there, and the trace says so.
    let honest = lab.trace(&["node1/pod1", "10.244.2.2", "--spoof", "10.244.1.255"]);
    let said = out(&honest);
    assert!(
        said.starts_with("node1/pod1 (10.244.1.2) → node2/pod1 (10.244.2.2)")
            && said.contains("was to be 10.244.1.255, but the kernel put its own there"),
        "{said}"
    );
    // What the documentation says of the object's form holds for it.
    for key in [
        "version",
        "lab",
        "source",
        "destination",
        "spoofed",
        "size",
        "dont_fragment",
        "token",
        "outcome",
        "loss",
        "rows",
        "unseen",
        "unreachable",
        "hanging",
    ] {
        assert!(json.get(key).is_some(), "{key}");
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src/trace.md");
    let page = fs::read_to_string(page).unwrap();
    let row = json["rows"][0].as_object().unwrap();
    for key in json.as_object().unwrap().keys().chain(row.keys()) {
        assert!(
            page.contains(&format!("`{key}`")),
            "docs/src/trace.md says nothing of {key}"
        );
    }
    for (key, allowed) in [
        ("leg", &["request", "reply", "error"][..]),
        ("evidence", &["observed", "derived"]),
        (
            "source",
            &["capture", "counter", "syscall", "kernel", "daemon"],
        ),
        (
            "step",
            &[
                "send",
                "route",
                "netfilter",
                "neighbour",
                "bridge",
                "device",
                "lease",
                "fragments",
                "rewrite",
                "encapsulation",
                "receive",
                "delivery",
                "lost",
            ],
        ),
    ] {
        for row in rows(&json) {
            assert!(allowed.contains(&row[key].as_str().unwrap()), "{row:#}");
        }
    }
    // What sentences say stands in fields too.
    let row = |place: &str, step: &str, field: &str| {
        let here = |row: &&Value| row["place"] == place && row["step"] == step;
        let mut all = rows(&json).filter(here);
        all.find(|row| !row[field].is_null() && row[field] != serde_json::json!([]))
            .unwrap_or_else(|| panic!("{place} {step} {field}"))[field]
            .clone()
    };
    let routing = row("node1", "route", "routing");
    assert_eq!(
        (&routing["destination"], &routing["winner"]),
        (
            &"10.244.2.2".into(),
            &serde_json::json!({"device": "overlay0", "via": null, "mtu": 1450})
        )
    );
    let held: Vec<_> = routing["routes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|route| {
            let text = |key: &str| route[key].as_str().unwrap().to_owned();
            (text("prefix"), text("and"), route["wins"] == true)
        })
        .collect();
    for (prefix, and, wins) in [
        ("10.244.0.0/16", "10.244.0.0", true),
        ("10.244.1.0/24", "10.244.2.0", false),
    ] {
        let wanted = (prefix.to_owned(), and.to_owned(), wins);
        assert!(held.contains(&wanted), "{held:?}");
    }
    let lease = row("node1", "lease", "lease");
    assert_eq!(
        (&lease["holder"], &lease["to"], &lease["mtu"]),
        (&"peer".into(), &"10.99.0.2:8472".into(), &1450.into())
    );
    assert_eq!(
        lease["leases"],
        serde_json::json!([
            {"subnet": "10.244.2.0/24", "at": ["10.99.0.2", "fd99::2"], "holds": true}
        ])
    );
    let checks = row("node2", "receive", "checks");
    let reasons: Vec<_> = checks.as_array().unwrap().iter().collect();
    assert!(reasons.iter().all(|check| check["passed"] == true));
    let reasons: Vec<_> = reasons.iter().map(|check| &check["reason"]).collect();
    assert_eq!(
        reasons,
        [
            "wrong-vni",
            "unknown-peer",
            "wrong-mac",
            "inner-source",
            "inner-destination"
        ]
    );
    // The frames can be taken apart by themselves.
    let hex = rows(&json)
        .find(|row| row["encapsulated"] == true && row["step"] == "device")
        .unwrap();
    let file = folder.path().join("frame.hex");
    fs::write(&file, hex["frames"][0]["hex"].as_str().unwrap()).unwrap();
    let read = overlayd(&["dissect", file.to_str().unwrap()]);
    assert!(
        out(&read).contains("84 (IPv4 packet) + 64 overhead"),
        "{}",
        out(&read)
    );
    let drawn = lab.trace(&["node1/pod1", "10.244.2.2", "--svg", "-"]);
    assert!(out(&drawn).starts_with("<svg") && out(&drawn).trim_end().ends_with("</svg>"));
}

#[test]
fn a_host_sees_its_own_part_of_the_way() {
    let lab = Up::new("host", &["--nodes", "2"]);
    let binary = env!("CARGO_BIN_EXE_overlayd-under-test");
    let on_node = |rest: &[&str]| {
        let arguments = [
            &[
                "lab", "sh", "--name", &lab.0, "node1", binary, "trace", "--host",
            ],
            rest,
        ]
        .concat();
        overlayd(&arguments)
    };
    let done = on_node(&["10.244.1.2", "10.244.2.2", "--json"]);
    let trace: Value =
        serde_json::from_slice(&done.stdout).unwrap_or_else(|e| panic!("{e}: {}", err(&done)));
    assert_eq!(
        (&trace["outcome"], done.status.code()),
        (&"answered".into(), Some(0))
    );
    assert!(trace["lab"].is_null());
    assert_eq!(trace["unseen"].as_array().unwrap().len(), 1);
    let seen: Vec<_> = rows(&trace)
        .filter(|row| row["step"] == "device")
        .map(|row| row["device"].as_str().unwrap())
        .collect();
    assert_eq!(
        seen,
        [
            "eth0",
            "veth-pod1",
            "cni0",
            "overlay0",
            "eth0",
            "eth0",
            "overlay0",
            "cni0",
            "veth-pod1",
            "eth0"
        ]
    );
    assert!(rows(&trace).all(|row| row["place"] != "underlay" && row["place"] != "node2"));
    // From the host itself, to a pod of its own.
    let done = on_node(&["10.244.1.1", "10.244.1.3"]);
    assert_eq!(done.status.code(), Some(0), "{}{}", out(&done), err(&done));
    assert!(out(&on_node(&["10.244.1.1", "10.244.1.3", "--svg", "-"])).contains("this host"));
    let done = on_node(&["10.9.9.9", "10.244.1.3"]);
    assert_eq!(done.status.code(), Some(1));
    assert!(
        err(&done).contains("10.9.9.9 is no address of this host"),
        "{}",
        err(&done)
    );
}

#[test]
fn a_stopped_daemon_is_named() {
    let lab = Up::new("stop", &["--nodes", "2"]);
    let status = overlayd(&["lab", "status", "--name", &lab.0, "--json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let pid = status["nodes"][0]["daemon"].as_u64().unwrap().to_string();
    assert!(Command::new("kill").arg(&pid).status().unwrap().success());
    let gone = || !Path::new("/proc").join(&pid).join("exe").exists();
    for _ in 0..500 {
        if gone() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    for (from, to, reason) in [
        ("node1/pod1", "node2/pod1", "no-route"),
        ("node2/pod1", "node1/pod1", "no-daemon"),
    ] {
        let (trace, code) = lab.watched(&[from, to]);
        assert_eq!(
            (&trace["loss"]["reason"], code),
            (&reason.into(), 3),
            "{:#}",
            trace["loss"]
        );
        assert_eq!(
            (&trace["loss"]["place"], &trace["unreachable"][0]),
            (&"node1".into(), &"node1".into())
        );
        if reason == "no-daemon" {
            let told =
                rows(&trace).filter(|row| row["leg"] == "error" && row["step"] == "delivery");
            let told: Vec<_> = told.map(|row| row["text"].as_str().unwrap()).collect();
            assert!(
                told[0].starts_with("delivered to node2, whose overlayd sent the datagram: but node2/pod1 hears nothing of it"),
                "{told:?}"
            );
            assert_eq!(trace["loss"]["evidence"], "observed");
        }
        let done = lab.trace(&[from, to]);
        assert!(
            err(&done).contains("the overlayd of node1 does not answer: `overlayd lab revive"),
            "{}",
            err(&done)
        );
        let advice = trace["loss"]["advice"].as_str().unwrap();
        let revive = format!("`overlayd lab revive --name {}` starts it again", lab.0);
        assert!(advice.contains(&revive), "{advice}");
    }
    // What needs no daemon arrives without one.
    assert_eq!(lab.watched(&["node1/pod1", "node1/pod2"]).1, 0);
}

/// A daemon that is stopped takes calls and answers none: that costs a moment, once, and is said.
#[test]
fn a_daemon_that_hangs_is_named() {
    let lab = Up::new("hang", &["--nodes", "2"]);
    let status = overlayd(&["lab", "status", "--name", &lab.0, "--json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let pid = status["nodes"][0]["daemon"].as_i64().unwrap();
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let begun = Instant::now();
    let done = lab.trace(&["node1/pod1", "node2/pod1", "--json"]);
    let took = begun.elapsed();
    kill(pid, Signal::SIGCONT).unwrap();
    let trace: Value = serde_json::from_slice(&done.stdout).unwrap();
    let loss = &trace["loss"];
    assert_eq!(
        (&loss["place"], &loss["reason"], done.status.code()),
        (&"node1".into(), &"no-daemon".into(), Some(3))
    );
    let said = loss["meaning"].as_str().unwrap();
    assert!(said.contains("runs, but gave no answer within"), "{said}");
    assert_eq!(trace["hanging"][0], "node1");
    assert!(err(&done).contains("node1 runs, but does not answer"));
    // Its two questions used to wait for 5 s each.
    assert!(took < Duration::from_secs(10), "{took:?}");
}

/// The lab goes while a trace waits for its answer: that is no loss of the packet's, and the trace ends.
#[test]
fn a_lab_taken_down_meanwhile_ends_the_trace() {
    let lab = Up::new("gone", &["--nodes", "2"]);
    let trace = Command::new(env!("CARGO_BIN_EXE_overlayd-under-test"))
        .args(["trace", "--name", &lab.0, "node1/pod1", "10.244.2.77"])
        .args(["--timeout", "30"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(700));
    let down = overlayd(&["lab", "down", "--name", &lab.0]);
    assert!(down.status.success(), "{}", err(&down));
    let ended = Instant::now();
    let done = trace.wait_with_output().unwrap();
    assert!(ended.elapsed() < Duration::from_secs(15), "it waited on");
    assert_eq!(done.status.code(), Some(1), "{}", out(&done));
    assert!(
        err(&done).contains("was taken down during the trace") && out(&done).is_empty(),
        "{}",
        err(&done)
    );
    let named = NetNs::list_named().unwrap();
    assert!(named.iter().all(|name| !name.starts_with(&lab.0)));
}

/// Columns stand where they stand, whether there are codes of colours before them or not.
#[test]
fn colours_move_no_column() {
    let lab = Up::new("paint", &["--nodes", "1"]);
    let ends = ["node1/pod1", "node1/pod2"];
    let plain = lab.trace(&ends);
    let painted = lab.trace(&[&ends[..], &["--color", "always"]].concat());
    let mut bare = String::new();
    for (number, part) in out(&painted).split('\x1b').enumerate() {
        bare += match number {
            0 => part,
            _ => part.split_once('m').unwrap().1,
        };
    }
    let headings = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.ends_with("TTL bytes"));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(headings(out(&plain)).len(), 2);
    assert_eq!(headings(&bare), headings(out(&plain)));
}

#[test]
fn what_cannot_be_traced_is_said() {
    let lab = Up::new("bad", &["--nodes", "2", "--no-ipv6"]);
    for (arguments, code, words) in [
        (
            &["node9/pod1", "node1"][..],
            1,
            "has no \"node9/pod1\": it has node1 to node2",
        ),
        (
            &["10.244.1.99", "node1"],
            1,
            "10.244.1.99 is no address of lab",
        ),
        (
            &["underlay", "node1"],
            1,
            "a packet starts and ends at a node or a pod",
        ),
        (
            &["-6", "node1/pod1", "node2/pod1"],
            1,
            "node1/pod1 has no IPv6 address",
        ),
        (&["10.244.1.2", "fd00::1"], 2, "are of two families"),
        (
            &["-6", "10.244.1.2", "10.244.2.2"],
            2,
            "10.244.1.2 is an IPv4 address",
        ),
        (
            &["node1/pod1", "10.244.2.255"],
            1,
            "10.244.2.255 is the broadcast address of a network of node2",
        ),
        (
            &["node1/pod1", "224.0.0.1"],
            1,
            "224.0.0.1 is a multicast address",
        ),
        (
            &["node1/pod1", "node2/pod1", "--size", "63"],
            2,
            "63 is not in 64..=65535",
        ),
        (
            &["node1/pod1", "node2/pod1", "--ttl", "0"],
            2,
            "0 is not in 1..=255",
        ),
        (
            &["node1/pod1", "node2/pod1", "--spoof", "x"],
            2,
            "invalid value 'x'",
        ),
        (
            &["node1/pod1", "node2/pod1", "--spoof", "224.0.0.1"],
            2,
            "it is a multicast address",
        ),
        (
            &["-6", "node1/pod1", "node2/pod1", "--spoof", "ff02::1"],
            2,
            "it is a multicast address",
        ),
        (
            &["node1/pod1", "node2/pod1", "--spoof", "127.0.0.1"],
            2,
            "it is a loopback address",
        ),
        (
            &["node1/pod1", "node2/pod1", "--spoof", "0.0.0.0"],
            2,
            "it is the unspecified address",
        ),
        (
            &["node1/pod1", "node2/pod1", "--spoof", "255.255.255.255"],
            2,
            "it is the broadcast address",
        ),
        (
            &["node1/pod1", "10.244.2.2", "--spoof", "fd00::1"],
            2,
            "are of two families",
        ),
        (
            &["node1/pod1", "node2/pod1", "--timeout", "inf"],
            2,
            "0.05 to 60 seconds",
        ),
        (
            &["node1/pod1", "node2/pod1", "--svg", "/nonexistent/x.svg"],
            1,
            "cannot write /nonexistent/x.svg",
        ),
    ] {
        let done = lab.trace(arguments);
        assert_eq!(
            done.status.code(),
            Some(code),
            "{arguments:?}: {}",
            err(&done)
        );
        assert!(err(&done).contains(words), "{arguments:?}: {}", err(&done));
        assert!(out(&done).is_empty(), "{arguments:?}: {}", out(&done));
    }
    let none = overlayd(&["trace", "--name", "no-such-lab", "node1/pod1", "node2/pod1"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(err(&none).contains("there is no lab"), "{}", err(&none));
}

/// A failed check reads as what is wrong, not as what should be right.
#[test]
fn a_check_that_fails_says_what_is_wrong() {
    let options = ["--scenario", "no-lease", "--nodes", "2", "--pods", "1"];
    let lab = Up::new("wrong", &options);
    let last = |reason: &str| {
        let trace = lab.lost(&["node2/pod1", "node1/pod1"], "node1", reason, "overlayd");
        let mut received = rows(&trace).filter(|row| row["step"] == "receive");
        let checks = received.next().unwrap()["checks"].clone();
        let last = checks.as_array().unwrap().last().unwrap().clone();
        assert_eq!(
            (&last["passed"], &last["reason"]),
            (&false.into(), &reason.into())
        );
        last["text"].as_str().unwrap().to_owned()
    };
    let wrong = last("unknown-peer");
    assert_eq!(
        wrong,
        "the outer source 10.99.0.2 is the public IP of no lease"
    );
    let config = overlayd::lab::state::dir(&lab.0).join("node1/overlayd.toml");
    let text = fs::read_to_string(&config).unwrap();
    let other = text.replace("type = \"vxlan\"", "type = \"vxlan\"\nvni = 7");
    assert_ne!(text, other);
    fs::write(&config, other).unwrap();
    let done = overlayd(&["lab", "restart", "--name", &lab.0, "node1"]);
    assert!(done.status.success(), "{}", err(&done));
    assert_eq!(last("wrong-vni"), "the VNI 1 is not ours, which is 7");
}
