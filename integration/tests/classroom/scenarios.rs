//! Every scenario, both ways: as it is built its grade fails, mended by whatever works it passes, and what only looks
//! like a cure does not.

use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{Class, text};

impl Class {
    /// The grade, and whether the exit code says the same.
    #[track_caller]
    fn grade(&self) -> Value {
        let done = self.lab("grade", &["--json"]);
        let grade: Value = serde_json::from_slice(&done.stdout)
            .unwrap_or_else(|error| panic!("{error}: {done:?}"));
        let code = if grade["solved"] == true { 0 } else { 5 };
        assert_eq!(done.status.code(), Some(code), "{grade:#}");
        assert_eq!(grade["version"], 1);
        grade
    }

    #[track_caller]
    fn solved(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let grade = self.grade();
            if grade["solved"] == true {
                return;
            }
            // A lease file that was changed is read a moment later.
            assert!(Instant::now() < deadline, "{grade:#}");
            sleep(Duration::from_millis(300));
        }
    }

    #[track_caller]
    fn unsolved(&self, complaint: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let grade = self.grade();
            let found = grade["checks"].as_array().unwrap().iter().any(|check| {
                check["passed"] == false && check["text"].as_str().unwrap().contains(complaint)
            });
            if found {
                assert_eq!(grade["solved"], false, "{grade:#}");
                return;
            }
            // A cable that was plugged in again is noticed a moment later.
            assert!(
                Instant::now() < deadline,
                "{complaint:?} is not in {grade:#}"
            );
            sleep(Duration::from_millis(300));
        }
    }

    fn file(&self, path: &str) -> std::path::PathBuf {
        overlayd::lab::state::dir(&self.name).join(path)
    }
}

fn play(scenario: &str, backend: &str) -> Class {
    Class::up(
        scenario,
        &["--scenario", scenario, "--backend", backend, "--pods", "1"],
    )
}

#[test]
fn mtu_is_solved_where_the_nodes_believe_what_is_true() {
    let class = play("mtu", "vxlan");
    // What its users say of it.
    assert!(class.answers("node1/pod1", "10.244.3.2"));
    assert!(
        class
            .run("node1/pod1", "curl -s -m 3 http://10.244.3.2/")
            .contains("node3/pod1/web")
    );
    let hangs = class.sh(
        "node1/pod1",
        "curl -s -m 2 -o /dev/null http://10.244.3.2/bytes/1000000",
    );
    assert_eq!(
        hangs.status.code(),
        Some(28),
        "curl ran out of time: {hangs:?}"
    );
    class.unsolved("TCP stalls: ");

    // The device is the daemon's: what somebody else sets there is put back, and the grade says so.
    for node in ["node1", "node2", "node3"] {
        class.run(node, "ip link set overlay0 mtu 1350");
    }
    class.unsolved(
        "put the MTU of its device back, on node1, node2, node3: the device is its own, so that the number belongs into its \
         configuration (device.mtu)",
    );
    let drawn = || text(&class.lab("graph", &["--svg", "-"]).stdout).to_owned();
    let withheld = "MTUs are withheld until the scenario is solved";
    assert!(drawn().contains(withheld) && !drawn().contains("1400"));

    // One end alone mends one direction.
    let believe = |node: &str| {
        let path = class.file(&format!("{node}/overlayd.toml"));
        let config = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{config}\n[device]\nmtu = 1350\n")).unwrap();
        let done = class.lab("restart", &[node]);
        assert!(done.status.success(), "{}", text(&done.stderr));
    };
    believe("node3");
    class.unsolved("from node1/pod1 to node3/pod1");
    believe("node1");
    believe("node2");
    class.solved();
    let svg = drawn();
    assert!(
        svg.contains(">port node3  MTU 1400<") && !svg.contains(withheld),
        "{svg}"
    );
}

#[test]
fn mtu_is_solved_on_the_underlay_too_but_not_by_smaller_segments_alone() {
    let class = play("mtu", "udp");
    class.unsolved("TCP stalls: ");
    // TCP's segments made to fit: downloads work, but other large packets still vanish.
    for node in ["node1", "node2", "node3"] {
        class.run(
            node,
            "nft add table ip clamp; \
             nft 'add chain ip clamp forward { type filter hook forward priority 0; }'; \
             nft add rule ip clamp forward tcp flags syn tcp option maxseg size set 1200",
        );
    }
    let works = class.run(
        "node1/pod1",
        "curl -s -m 3 -o /dev/null -w %{size_download} http://10.244.3.2/bytes/1000000",
    );
    assert_eq!(works, "1000000");
    class.unsolved("vanish, and nobody is told");
    class.run("underlay", "ip link set node3 mtu 1500");
    class.solved();
}

#[test]
fn no_lease_is_solved_by_the_lease() {
    for backend in ["vxlan", "udp"] {
        let class = play("no-lease", backend);
        class.unsolved("node1/pod1 hears nothing from node2/pod1");
        class.unsolved("node2 is degraded");
        let shown = class.lab("status", &[]);
        assert_eq!(shown.status.code(), Some(4));
        let said = text(&shown.stdout);
        assert!(
            said.contains(" ! node2 ") && said.contains("no lease for this node"),
            "{said}"
        );
        assert!(said.contains(" ✓ node1 "), "{said}");
        let status = class.status();
        assert_eq!(
            (&status["whole"], &status["well"]),
            (&true.into(), &false.into())
        );
        assert_eq!(status["nodes"][1]["state"], "degraded");
        let reason = status["nodes"][1]["reasons"][0].as_str().unwrap();
        assert!(reason.starts_with("no lease for this node"), "{reason}");
        let told = class.sh("node1/pod1", "ping -c 1 -W 1 10.244.2.2");
        assert!(
            text(&told.stdout).contains("From 10.244.1.0 icmp_seq=1 Destination Net Unreachable"),
            "{told:?}"
        );

        // The wrong subnet is no cure.
        let path = class.file("leases.json");
        let add = |subnet: &str| {
            let mut leases: Vec<Value> =
                serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            leases.retain(|lease| lease["PublicIP"] != "10.99.0.2");
            leases.push(serde_json::json!({"Subnet": subnet, "PublicIP": "10.99.0.2"}));
            std::fs::write(&path, serde_json::to_vec(&leases).unwrap()).unwrap();
        };
        add("10.244.22.0/24");
        class.unsolved("pings are lost");
        add("10.244.2.0/24");
        class.solved();
    }
}

#[test]
fn spoof_is_solved_where_the_cable_is_known() {
    for (backend, cure, undo) in [
        (
            "vxlan",
            "nft add table netdev guard; \
             nft 'add chain netdev guard stranger { type filter hook ingress device intruder priority 0; }'; \
             nft add rule netdev guard stranger ip saddr != 10.99.0.254 drop",
            "nft flush ruleset",
        ),
        (
            "udp",
            "nft add table bridge guard; \
             nft 'add chain bridge guard forward { type filter hook forward priority 0; }'; \
             nft add rule bridge guard forward iifname intruder ip saddr != 10.99.0.254 drop",
            "nft flush ruleset",
        ),
        (
            "vxlan",
            "ip link set intruder down",
            "ip link set intruder up",
        ),
    ] {
        let class = play("spoof", backend);
        let believed = "node1 believes a datagram in the name of node2";
        class.unsolved(believed);
        // The pod gets what nobody there has sent: three kinds, two of them refused and counted.
        let deadline = Instant::now() + Duration::from_secs(10);
        let drops = loop {
            let status: Value = serde_json::from_str(&class.run(
                "node1",
                &format!("{} status --json", super::exe().display()),
            ))
            .unwrap();
            let drops = status["drops"].as_array().unwrap();
            let names: Vec<String> = drops
                .iter()
                .filter(|drop| drop["direction"] == "inbound")
                .map(|drop| drop["reason"].as_str().unwrap().to_owned())
                .collect();
            if names.len() >= 2 {
                break names;
            }
            assert!(Instant::now() < deadline, "{status:#}");
            sleep(Duration::from_millis(100));
        };
        assert_eq!(drops, ["unknown-peer", "inner-source"]);

        // Another sender can be started: to end this one is no cure, nor to let only the nodes' addresses in.
        let pid = class.pid("intruder").unwrap();
        kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
        class.unsolved(believed);
        class.run(
            "node1",
            "nft add table ip guard; \
             nft 'add chain ip guard input { type filter hook input priority 0; }'; \
             nft add rule ip guard input iifname eth0 ip saddr != { 10.99.0.2, 10.99.0.3 } drop",
        );
        class.unsolved(believed);

        class.run("underlay", cure);
        class.solved();
        class.run("underlay", undo);
        class.unsolved(believed);
        // To shut everybody out is none either.
        class.run(
            "underlay",
            "ip link set node1 down; ip link set node2 down; ip link set node3 down",
        );
        class.unsolved("pings are lost");
    }
}

#[test]
fn every_pod_and_both_families_are_graded() {
    let both = |scenario: &str| {
        let options = [
            "--nodes",
            "2",
            "--pods",
            "2",
            "--ipv6",
            "--scenario",
            scenario,
        ];
        Class::up(scenario, &options)
    };
    let class = both("mtu");
    class.unsolved("from node1/pod2 to node2/pod2 by IPv6");
    class.run("underlay", "ip link set node2 mtu 1500");
    class.solved();
    for (family, ip, by) in [
        ("ip", "10.244.2.3", ""),
        ("ip6", "fd00:10:244:2::3", " by IPv6"),
    ] {
        class.run(
            "node2",
            &format!(
                "nft add table {family} cut; \
                 nft 'add chain {family} cut forward {{ type filter hook forward priority 0; }}'; \
                 nft add rule {family} cut forward {family} daddr {ip} drop"
            ),
        );
        class.unsolved(&format!("node1/pod2 hears nothing from node2/pod2{by}"));
        class.run("node2", "nft flush ruleset");
    }
    class.solved();
    for name in ["", "/web", "/echo"] {
        let pid = class.pid(&format!("node1/pod2{name}")).unwrap();
        kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    }
    class.unsolved("node1/pod2 is dead");
    drop(class);

    let class = both("spoof");
    class.unsolved("node1 believes a datagram in the name of node2 by IPv6");
    class.run("underlay", "ip link set intruder down");
    class.solved();
}

#[test]
fn a_grade_is_for_people_too_and_gives_nothing_away() {
    let class = play("mtu", "vxlan");
    let done = class.lab("grade", &[]);
    let (said, talk) = (text(&done.stdout), text(&done.stderr));
    assert_eq!(done.status.code(), Some(5));
    assert!(
        said.contains(" ✓ overlayd is well on every node\n")
            && said.ends_with("✗ not solved yet\n"),
        "{said}"
    );
    assert!(talk.contains("overlayd lab scenario hint 1"), "{talk}");
    for secret in ["1400", "underlay", "bridge", "switch", "device.mtu"] {
        assert!(!said.contains(secret), "{secret} is told: {said}");
    }
    // Which scenario is known from the lab; its hints come one at a time, and end.
    let scenario = |rest: &[&str]| {
        let mut command = std::process::Command::new(super::exe());
        command
            .args(["lab", "scenario"])
            .args(rest)
            .output()
            .unwrap()
    };
    let shown = scenario(&["show", "--name", &class.name]);
    assert!(
        text(&shown.stdout).starts_with("mtu: ping works, a download hangs"),
        "{shown:?}"
    );
    // The name may stand in either place.
    assert_eq!(
        scenario(&["--name", &class.name, "show"]).stdout,
        shown.stdout
    );
    let hint = format!("`overlayd lab scenario hint 1 --name {}`", class.name);
    assert!(text(&shown.stderr).contains(&hint), "{shown:?}");
    let mut hints = Vec::new();
    for number in 1..=4 {
        let hint = scenario(&["hint", &number.to_string(), "--name", &class.name]);
        assert!(hint.status.success());
        hints.push(text(&hint.stdout).to_owned());
    }
    hints.dedup();
    assert_eq!(hints.len(), 4);
    // The short way to the same.
    for (number, hint) in (1..).zip(&hints) {
        let short = class.lab("hint", &[&number.to_string()]);
        assert_eq!(text(&short.stdout), hint);
    }
    assert_eq!(text(&class.lab("hint", &[]).stdout), hints[0]);
    // The picture shows what the nodes can see, and not what the underlay carries.
    let picture = class.lab("graph", &["--svg", "-"]);
    let svg = text(&picture.stdout);
    assert!(
        svg.contains(">port node3<") && svg.contains(">MTU 1500<"),
        "{svg}"
    );
    assert!(!svg.contains("1400"), "{svg}");
    let fifth = scenario(&["hint", "5", "mtu"]);
    assert_eq!(fifth.status.code(), Some(1));
    assert!(text(&fifth.stderr).contains("mtu has 4 hints"), "{fifth:?}");
    let all = scenario(&["ls"]);
    for name in ["mtu", "no-lease", "spoof"] {
        assert!(text(&all.stdout).lines().any(|line| line.starts_with(name)));
    }
}

#[test]
fn what_cannot_be_played_or_graded_is_refused() {
    let class = Class::up("plain", &["--nodes", "1", "--pods", "1", "--no-ipv6"]);
    let done = class.lab("grade", &[]);
    assert_eq!(done.status.code(), Some(1));
    assert!(
        text(&done.stderr).contains("no scenario is played in lab"),
        "{done:?}"
    );
    drop(class.lab("down", &[]));
    for (options, code) in [
        (&["--scenario", "mtu", "--nodes", "1"][..], 1),
        (&["--scenario", "spoof", "--pods", "0"], 1),
        (&["--scenario", "mtu", "--underlay", "v6"], 2),
        (&["--scenario", "mtu", "--stage", "veth"], 2),
        (&["--scenario", "gremlins"], 2),
    ] {
        let done = class.lab("up", options);
        assert_eq!(done.status.code(), Some(code), "{options:?}: {done:?}");
        assert_eq!(
            class.lab("status", &[]).status.code(),
            Some(1),
            "{options:?}: nothing was built"
        );
    }
    let refused = |why: &str, nodes: &[&str]| {
        let done = class.lab("restart", nodes);
        assert_eq!(done.status.code(), Some(1));
        assert!(text(&done.stderr).contains(why), "{why}: {done:?}");
    };
    refused("there is no lab", &[]);
    let stage = ["--nodes", "1", "--pods", "0", "--stage", "routed"];
    assert!(class.lab("up", &stage).status.success());
    refused("without overlayd", &[]);
    assert!(class.lab("next", &[]).status.success());
    refused("no node \"node7\"", &["node7"]);
}
