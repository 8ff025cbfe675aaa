//! A lab is built stage by stage, and what is printed as its explanation builds the same.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlayd::kernel::NetNs;
use overlayd::lab::topology::Stage;
use serde_json::Value;

use super::{Class, exe, text};

#[test]
fn each_stage_brings_what_it_says() {
    let class = Class::up(
        "stages",
        &["--nodes", "2", "--pods", "2", "--stage", "isolated"],
    );
    // Who answers node1/pod1: its neighbour, its node, its node's other address, the other node, a pod there.
    let whom = [
        "10.244.1.3",
        "10.244.1.1",
        "10.99.0.1",
        "10.99.0.2",
        "10.244.2.2",
    ];
    let expected = [
        (Stage::Isolated, [false, false, false, false, false]),
        (Stage::Veth, [false, false, false, false, false]),
        (Stage::Bridge, [true, true, false, false, false]),
        (Stage::Routed, [true, true, true, false, false]),
        // The other node hears it, but would answer through the overlay from an address that is in no lease of its.
        (Stage::Overlay, [true, true, true, false, true]),
    ];
    for (stage, answers) in expected {
        assert_eq!(class.status()["spec"]["stage"], stage.to_string());
        assert_eq!(
            class.lab("status", &[]).status.code(),
            Some(0),
            "{stage}: whole"
        );
        let heard = whom.map(|ip| class.answers("node1/pod1", ip));
        assert_eq!(heard, answers, "{stage}");
        let next = class.lab("next", &["--explain"]);
        match stage.next() {
            Some(next_stage) => {
                assert!(next.status.success(), "{}", text(&next.stderr));
                assert!(text(&next.stdout).starts_with(&format!("# {next_stage}\n")));
            }
            None => assert_eq!(next.status.code(), Some(1), "{}", text(&next.stdout)),
        }
    }
}

#[test]
fn what_fails_in_an_early_stage_names_the_next() {
    let class = Class::up(
        "missing",
        &["--nodes", "1", "--pods", "1", "--stage", "isolated"],
    );
    let next = format!("`overlayd lab next --name {}`", class.name);
    let lost = class.sh("node1/pod1", "ping -c 1 -W 1 10.244.1.1");
    assert_eq!(lost.status.code(), Some(2), "ping's own: {lost:?}");
    let said = text(&lost.stderr);
    assert!(
        said.contains("built to stage isolated") && said.contains(&next),
        "{said}"
    );
    // Who was killed says so as a shell does; who did well is left alone.
    let killed = class.sh("node1", "kill -TERM $$");
    assert_eq!(killed.status.code(), Some(128 + 15));
    let well = class.sh("node1", "echo well");
    assert_eq!((text(&well.stdout), text(&well.stderr)), ("well\n", ""));
    let shown = class.lab("status", &[]);
    assert!(text(&shown.stdout).contains("no overlayd yet"), "{shown:?}");
    assert!(text(&shown.stderr).contains(&next), "{shown:?}");
}

#[test]
fn commands_that_would_collide_with_a_lab_are_not_given_without_a_word() {
    let shape = ["--nodes", "1", "--pods", "1", "--explain"];
    let class = Class::named("twice");
    let built = class.lab("up", &shape);
    assert!(
        text(&built.stderr).contains("--dry-run --name other"),
        "{built:?}"
    );
    let again = class.lab("up", &shape);
    assert_eq!((again.status.code(), text(&again.stdout)), (Some(1), ""));
    assert!(
        text(&again.stderr).contains("--dry-run --name other"),
        "{again:?}"
    );
    let dry = class.lab("up", &[&shape[..], &["--dry-run"]].concat());
    assert!(dry.status.success());
    assert!(
        text(&dry.stderr).contains("would collide") && text(&dry.stderr).contains("`--name other`"),
        "{dry:?}"
    );
    drop(class.lab("down", &[]));
    let free = class.lab("up", &[&shape[..], &["--dry-run"]].concat());
    assert!(!text(&free.stderr).contains("collide"), "{free:?}");
}

/// What a kernel holds of a namespace, without what chance decides: numbers of links, addresses made up by them.
fn state(class: &Class, place: &str) -> BTreeMap<String, Value> {
    let json = |command: &str| -> Value {
        let out = class.run(place, command);
        serde_json::from_str(&out)
            .unwrap_or_else(|error| panic!("{place}: {command}: {error}: {out}"))
    };
    described(&json)
}

fn by_hand(namespace: &str) -> BTreeMap<String, Value> {
    let json = |command: &str| -> Value {
        let done = Command::new("ip")
            .args(["netns", "exec", namespace, "sh", "-c", command])
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{namespace}: {command}: {}",
            text(&done.stderr)
        );
        serde_json::from_slice(&done.stdout).unwrap()
    };
    described(&json)
}

fn described(json: &dyn Fn(&str) -> Value) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for link in json("ip -j -d addr show").as_array().unwrap() {
        let name = link["ifname"].as_str().unwrap();
        let kind = &link["linkinfo"]["info_kind"];
        let mut kept = serde_json::Map::new();
        for key in ["mtu", "master", "operstate", "link_type"] {
            kept.insert(key.into(), link[key].clone());
        }
        kept.insert("kind".into(), kind.clone());
        // That we gave; others are made up by the kernel.
        let mac = link["address"].as_str().unwrap_or_default();
        kept.insert(
            "mac".into(),
            if mac.starts_with("0a:58") {
                mac.into()
            } else {
                Value::Null
            },
        );
        let addresses = link["addr_info"].as_array().unwrap().iter();
        let addresses = addresses
            .filter(|address| address["scope"] != "link")
            .map(|address| {
                format!(
                    "{}/{} nodad {}",
                    address["local"], address["prefixlen"], address["nodad"]
                )
            });
        kept.insert("addresses".into(), addresses.collect::<Vec<_>>().into());
        found.insert(format!("link {name}"), kept.into());
    }
    for family in ["-4", "-6"] {
        for route in json(&format!("ip -j {family} route show table all"))
            .as_array()
            .unwrap()
        {
            let device = route["dev"].as_str().unwrap_or_default();
            let to = route["dst"].as_str().unwrap();
            // Of addresses that were made up.
            if to.starts_with("fe80") || to.starts_with("ff00") || to == "anycast fe80::" {
                continue;
            }
            let key = format!(
                "route {} {to} dev {device} {}",
                route["type"], route["protocol"]
            );
            let kept = ["gateway", "scope", "metric", "metrics", "prefsrc"]
                .map(|part| route[part].clone());
            found.insert(key, Vec::from(kept).into());
        }
    }
    for key in [
        "net/ipv4/ip_forward",
        "net/ipv6/conf/all/forwarding",
        "net/ipv6/conf/eth0/forwarding",
        "net/ipv6/conf/all/accept_dad",
    ] {
        // A namespace of the first stage has no eth0.
        let value = json(&format!("cat /proc/sys/{key} 2>/dev/null || echo null"));
        found.insert(key.into(), value);
    }
    found
}

/// What somebody made by hand, and is taken away again whatever happens.
struct Handmade(String);

impl Drop for Handmade {
    fn drop(&mut self) {
        let prefix = format!("{}-", self.0);
        for namespace in NetNs::list_named().unwrap() {
            if namespace.starts_with(&prefix) {
                let pids = Command::new("ip")
                    .args(["netns", "pids", &namespace])
                    .output()
                    .unwrap();
                for pid in text(&pids.stdout).split_whitespace() {
                    let _ = kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL);
                }
                let _ = NetNs::delete_named(&namespace);
            }
        }
        let _ = std::fs::remove_dir_all(format!("/tmp/{}-by-hand", self.0));
    }
}

fn typed(dir: &Path, commands: &str, name: &str) {
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    // Into a file: what goes on in the background keeps a pipe open.
    let log = dir.join("log");
    let file = std::fs::File::create(&log).unwrap();
    let done = Command::new("timeout")
        .args(["60", "sh", "-e", "-c", commands])
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .status()
        .unwrap();
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(done.success(), "{name}: {said}\n{commands}");
    assert_eq!(said, "", "{name}");
}

#[test]
fn the_commands_that_are_explained_make_what_the_lab_makes() {
    // As root types them: where overlayd is on the PATH.
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(exe(), dir.path().join("overlayd")).unwrap();
    for (stage, shape) in [
        ("isolated", &["--no-ipv6"][..]),
        ("veth", &[]),
        ("bridge", &["--underlay-mtu", "9000", "--backend", "udp"]),
        ("routed", &[]),
        ("routed", &["--no-ipv6"]),
        ("overlay", &[]),
        ("overlay", &["--backend", "udp", "--no-ipv6"]),
    ] {
        let options = [&["--nodes", "2", "--pods", "2", "--stage", stage], shape].concat();
        let class = Class::up("wired", &[&options[..], &["--explain"]].concat());
        let hand = Handmade(format!("hand-{}", std::process::id()));
        let asked = Command::new(exe())
            .args(["lab", "up", "--explain", "--dry-run", "--name", &hand.0])
            .args(&options)
            .output()
            .unwrap();
        assert!(asked.status.success(), "{}", text(&asked.stderr));
        let commands = text(&asked.stdout);
        typed(dir.path(), commands, stage);
        for place in [
            "underlay",
            "node1",
            "node2",
            "node1/pod1",
            "node1/pod2",
            "node2/pod2",
        ] {
            let namespace = format!("{}-{}", hand.0, place.replace('/', "-"));
            // The daemons that were typed need a moment.
            let deadline = Instant::now() + Duration::from_secs(5);
            let wanted = state(&class, place);
            while wanted != by_hand(&namespace) && Instant::now() < deadline {
                sleep(Duration::from_millis(100));
            }
            assert_eq!(wanted, by_hand(&namespace), "{stage}: {place}");
        }
        // What is said to take it away does.
        let (_, removal) = text(&asked.stderr).split_once("\n\n").unwrap();
        typed(
            dir.path(),
            &removal.replace("xargs -r kill", "xargs -r kill -KILL"),
            stage,
        );
        assert!(
            !NetNs::list_named()
                .unwrap()
                .iter()
                .any(|n| n.starts_with(&hand.0)),
            "{removal}"
        );
    }
}

/// What overlayd does itself is told as commands, too: typed without overlayd, they make what it makes.
#[test]
fn what_the_daemon_does_itself_is_told_as_commands() {
    let dir = tempfile::tempdir().unwrap();
    for shape in [
        &[][..],
        &["--backend", "udp", "--no-ipv6"],
        &["--underlay", "v6"],
    ] {
        let options = [&["--nodes", "2", "--pods", "1"], shape].concat();
        let class = Class::up("itself", &options);
        let hand = Handmade(format!("itself-{}", std::process::id()));
        let dry = |more: &[&str]| {
            let asked = Command::new(exe())
                .args(["lab", "up", "--explain", "--dry-run", "--name", &hand.0])
                .args(&options)
                .args(more)
                .output()
                .unwrap();
            assert!(asked.status.success(), "{}", text(&asked.stderr));
            text(&asked.stdout).to_owned()
        };
        let all = dry(&[]);
        let own: Vec<_> = all
            .lines()
            .filter_map(|line| line.strip_prefix("#   ip -n "))
            .collect();
        assert!(own.len() >= 10, "{all}");
        assert!(all.contains("overlayd run --config"), "{all}");
        let before = dry(&["--stage", "routed"]);
        let own: String = own.iter().map(|line| format!("ip -n {line}\n")).collect();
        typed(dir.path(), &format!("{before}\n{own}"), "by hand");
        for node in ["node1", "node2"] {
            let mut wanted = state(&class, node);
            let mut made = by_hand(&format!("{}-{node}", hand.0));
            // Nobody holds the device's other end, so its cable is out.
            for found in [&mut wanted, &mut made] {
                let tun = found.get_mut("link overlay0").unwrap();
                tun["operstate"] = Value::Null;
            }
            assert_eq!(wanted, made, "{shape:?}: {node}");
            // The sockets, too.
            let sockets = class.run(node, "ss -Hlun | awk '{print $4}'");
            for socket in sockets.split_whitespace() {
                assert!(all.contains(socket), "{socket} is not in {all}");
            }
        }
    }
}

#[test]
fn a_lab_whose_commands_cannot_be_printed_has_not_come_up_well() {
    let class = Class::named("full");
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let done = Command::new(exe())
        .args([
            "lab",
            "up",
            "--nodes",
            "1",
            "--explain",
            "--name",
            &class.name,
        ])
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("cannot write to stdout"));
}

#[test]
fn what_is_explained_while_building_is_what_a_dry_run_prints() {
    let class = Class::up(
        "explain",
        &["--nodes", "1", "--pods", "1", "--stage", "routed"],
    );
    drop(class.lab("down", &[]));
    let built = class.lab(
        "up",
        &[
            "--nodes",
            "1",
            "--pods",
            "1",
            "--stage",
            "routed",
            "--explain",
        ],
    );
    drop(class.lab("down", &[]));
    let dry = class.lab(
        "up",
        &[
            "--nodes",
            "1",
            "--pods",
            "1",
            "--stage",
            "routed",
            "--explain",
            "--dry-run",
        ],
    );
    assert!(built.status.success() && dry.status.success());
    assert_eq!(text(&built.stdout), text(&dry.stdout));
    assert_eq!(
        class.lab("status", &[]).status.code(),
        Some(1),
        "nothing was built"
    );
    let alone = class.lab("up", &["--dry-run"]);
    assert_eq!(
        alone.status.code(),
        Some(2),
        "a dry run prints, so it needs --explain"
    );
}
