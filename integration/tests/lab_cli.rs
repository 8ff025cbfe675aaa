//! `overlayd lab` as a person meets it: what it prints, how it exits, what it leaves behind. Needs root.

#![allow(clippy::unwrap_used)] // in helpers too: a test fails where it stands

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlayd::kernel::NetNs;
use overlayd::lab::{holder, state, topology};
use serde_json::Value;

fn name(word: &str) -> String {
    format!("cli-{word}-{}", std::process::id())
}

fn lab(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_overlayd-under-test"));
    command.arg("lab").args(arguments).stdin(Stdio::null());
    command
}

fn output(arguments: &[&str]) -> Output {
    lab(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[track_caller]
fn assert_no_trace(lab: &str) {
    assert_eq!(holder::processes(lab).unwrap(), []);
    let names = NetNs::list_named().unwrap();
    let prefix = format!("{lab}-");
    assert!(!names.iter().any(|n| n.starts_with(&prefix)), "{names:?}");
    assert!(!state::dir(lab).exists());
}

/// A lab that is taken down whatever happens to its test.
struct Up(String);

impl Up {
    fn new(word: &str, options: &[&str]) -> Self {
        let up = Self(name(word));
        let done = lab(&["up", "--name", &up.0])
            .args(options)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", text(&done.stderr));
        assert!(text(&done.stdout).contains("node1"), "{done:?}");
        up
    }

    fn sh(&self, rest: &[&str]) -> Output {
        lab(&["sh", "--name", &self.0]).args(rest).output().unwrap()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = lab(&["down", "--name", &self.0]).output();
    }
}

/// A demo that is running.
fn start_demo(lab_name: &str, options: &[&str]) -> Child {
    lab(&["demo", "--name", lab_name])
        .args(options)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

#[test]
fn the_demo_tells_its_story() {
    let lab_name = name("story");
    let start = Instant::now();
    let done = output(&["demo", "--name", &lab_name]);
    let story = text(&done.stdout);
    assert_eq!(done.status.code(), Some(0), "{story}");
    assert!(start.elapsed() < Duration::from_secs(30));
    for part in [
        "overlayd lab demo: 3 nodes with 2 pods each, vxlan, IPv4 and IPv6\n",
        "  │ node1                    │ node2                    │ node3\n",
        "\n ✓ 4  No address translation",
        "cni0 of node1",
        "MTU 1450, says cni0 of node1",
        "9 of 9 steps passed, nothing left behind",
    ] {
        assert!(story.contains(part), "{part:?} is not in:\n{story}");
    }
    assert!(!story.contains('✗') && !story.contains('\x1b'), "{story}");
    assert!(text(&done.stderr).contains("overlayd on node3 answers"));
    assert_no_trace(&lab_name);
}

#[test]
fn the_demo_speaks_json_over_either_backend() {
    for options in [
        ["--backend", "udp", "--underlay", "v6"],
        ["--backend", "vxlan", "--underlay-mtu", "9000"],
    ] {
        let lab_name = name("json");
        let done = lab(&["demo", "--json", "--nodes", "2", "--name", &lab_name])
            .args(options)
            .output()
            .unwrap();
        let report: Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!(done.status.code(), Some(0), "{report:#}");
        assert_eq!(
            (&report["version"], &report["passed"]),
            (&1.into(), &true.into())
        );
        assert_eq!(report["spec"]["backend"], options[1]);
        assert_eq!(report["steps"].as_array().unwrap().len(), 9);
        assert_eq!(report["leftovers"].as_array().unwrap().len(), 0);
        assert!(done.stderr.is_empty(), "{}", text(&done.stderr));
        assert_no_trace(&lab_name);
    }
}

#[test]
fn a_demo_whose_packets_are_lost_says_so() {
    let lab_name = name("loss");
    let demo = start_demo(&lab_name, &["--json", "--no-ipv6"]);
    let deadline = Instant::now() + Duration::from_secs(20);
    let daemon = loop {
        let node = topology::status(&lab_name)
            .ok()
            .and_then(|status| status.nodes.into_iter().nth(1));
        if let Some(pid) = node.and_then(|node| node.daemon.filter(|_| node.socket.exists())) {
            break pid;
        }
        assert!(Instant::now() < deadline, "no daemon on node2");
    };
    // Once the third daemon has been started the second is no longer waited for.
    while !topology::status(&lab_name).is_ok_and(|status| status.nodes[2].daemon.is_some()) {
        assert!(Instant::now() < deadline, "no daemon on node3");
    }
    kill(Pid::from_raw(daemon.try_into().unwrap()), Signal::SIGKILL).unwrap();
    let done = demo.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(done.status.code(), Some(5), "{report:#}");
    assert_eq!(report["passed"], false);
    let steps = report["steps"].as_array().unwrap();
    let passed = |number: usize| steps[number - 1]["passed"].as_bool().unwrap();
    // Within node 1 and toward nobody all is well. How far the first steps came before the daemon died is chance; by
    // the end of the transfer it was dead.
    assert!(passed(1) && passed(8), "{report:#}");
    assert!(!passed(6) && !passed(7) && !passed(9), "{report:#}");
    assert_no_trace(&lab_name);
}

#[test]
fn an_interrupted_lab_leaves_nothing() {
    for (i, signal) in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .iter()
        .cycle()
        .take(9)
        .enumerate()
    {
        let lab_name = name("stop");
        let demo = start_demo(&lab_name, &[]);
        // Once it has begun, at any moment: while building, while pinging, amid the transfer.
        let begun = Instant::now();
        while !state::dir(&lab_name).exists() {
            assert!(begun.elapsed() < Duration::from_secs(10));
        }
        sleep(Duration::from_millis(60) * u32::try_from(i).unwrap());
        send(&demo, *signal);
        let stopped = Instant::now();
        let done = demo.wait_with_output().unwrap();
        assert_eq!(
            done.status.code(),
            Some(130),
            "{signal} {i}: {}",
            text(&done.stderr)
        );
        assert!(text(&done.stderr).ends_with(&format!(
            "interrupted; nothing is left of lab {lab_name:?}\n"
        )));
        assert!(stopped.elapsed() < Duration::from_secs(6));
        assert_no_trace(&lab_name);
    }
}

#[test]
fn a_command_runs_where_it_was_sent() {
    let up = Up::new("sh", &["--nodes", "2", "--pods", "1", "--backend", "udp"]);
    let addresses = |place: &str| {
        let done = up.sh(&[place, "cat", "/proc/net/fib_trie"]);
        assert!(done.status.success());
        text(&done.stdout).to_owned()
    };
    assert!(addresses("node2").contains("10.99.0.2"));
    assert!(
        addresses("node2/pod1").contains("10.244.2.2")
            && !addresses("node2/pod1").contains("10.99.0.2")
    );

    // Exit codes, signals and options are the command's own.
    assert_eq!(
        up.sh(&["node1", "sh", "-c", "exit 7"]).status.code(),
        Some(7)
    );
    let killed = up.sh(&["node1/pod1", "--", "sh", "-c", "kill -TERM $$"]);
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&killed.status),
        Some(15)
    );
    // $SHELL without a command.
    let mut shell = lab(&["sh", "--name", &up.0, "node1"]);
    let done = shell.env("SHELL", "/bin/false").output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("a shell in node1"));

    // The node's daemon is the one that commands inside talk to, from its pods too.
    let exe = env!("CARGO_BIN_EXE_overlayd-under-test");
    for (place, node) in [
        ("node1", "node1"),
        ("node2", "node2"),
        ("node2/pod1", "node2"),
    ] {
        let done = up.sh(&[place, exe, "status", "--json"]);
        let status: Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!(status["node"], node);
    }
    let told = "echo $debian_chroot $OVERLAYD_CONFIG";
    let done = up.sh(&["node2/pod1", "sh", "-c", told]);
    let config = state::dir(&up.0).join("node2/overlayd.toml");
    assert!(config.exists());
    let expected = format!("node2/pod1 {}\n", config.display());
    assert_eq!(text(&done.stdout), expected);
    let found = up.sh(&["node1", "sh", "-c", "command -v overlayd-under-test"]);
    assert_eq!(Path::new(text(&found.stdout).trim()), Path::new(exe));

    for place in ["node3", "node1/pod2", "pod1", ""] {
        let done = up.sh(&[place, "true"]);
        assert_eq!(done.status.code(), Some(1), "{place:?}");
        assert!(
            text(&done.stderr).contains("it has node1 to node2"),
            "{}",
            text(&done.stderr)
        );
    }
    let done = up.sh(&["node1", "no-such-program"]);
    assert_eq!(done.status.code(), Some(127));
    assert!(text(&done.stderr).contains("cannot run no-such-program"));
}

#[test]
fn a_lab_is_shown_as_it_is() {
    let up = Up::new("status", &["--nodes", "2", "--no-ipv6"]);
    let status = |json: &[&str]| {
        lab(&["status", "--name", &up.0])
            .args(json)
            .output()
            .unwrap()
    };
    let done = status(&["--json"]);
    let whole: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(
        (done.status.code(), &whole["whole"]),
        (Some(0), &true.into())
    );
    assert_eq!(
        (&whole["version"], &whole["spec"]["pods"]),
        (&1.into(), &2.into())
    );
    let done = status(&[]);
    assert!(
        text(&done.stdout).contains(" ✓ node2        10.99.0.2 "),
        "{}",
        text(&done.stdout)
    );
    assert!(text(&done.stdout).contains("overlayd ok, pid "));

    let daemon = whole["nodes"][1]["daemon"].as_i64().unwrap();
    kill(Pid::from_raw(daemon.try_into().unwrap()), Signal::SIGKILL).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while status(&[]).status.code() == Some(0) {
        assert!(Instant::now() < deadline);
    }
    let done = status(&[]);
    assert_eq!(done.status.code(), Some(4));
    assert!(
        text(&done.stdout).contains(" ✗ node2 "),
        "{}",
        text(&done.stdout)
    );
    let log = state::dir(&up.0).join("node2/overlayd.log");
    assert!(log.exists());
    let told = format!("no overlayd: its log is {}\n", log.display());
    assert!(text(&done.stdout).contains(&told), "{}", text(&done.stdout));

    // A second of the same name is refused and does not disturb the first.
    let done = output(&["up", "--name", &up.0]);
    assert_eq!(done.status.code(), Some(1));
    assert!(
        text(&done.stderr).contains("already"),
        "{}",
        text(&done.stderr)
    );
    assert!(!text(&done.stderr).contains("building"), "{done:?}");
    let done = output(&["demo", "--name", &up.0]);
    assert_eq!(done.status.code(), Some(1));
    assert!(done.stdout.is_empty(), "{done:?}");
    // One daemon is dead; each pod is a holder and two containers.
    assert_eq!(holder::processes(&up.0).unwrap().len(), 1 + 4 * 3);

    let done = output(&["down", "--name", &up.0]);
    assert!(done.status.success() && text(&done.stderr).contains("is gone"));
    assert_no_trace(&up.0);
    let done = output(&["down", "--name", &up.0]);
    assert!(done.status.success() && text(&done.stderr).contains("nothing to do"));
    let done = status(&[]);
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("there is no lab"));
}

#[test]
fn who_stays_in_a_lab_that_goes_is_named() {
    let up = Up::new("guest", &["--nodes", "2", "--pods", "1", "--no-ipv6"]);
    let sleep_in = |place: &str| {
        let mut command = lab(&["sh", "--name", &up.0, place, "sleep", "61.5"]);
        command.spawn().unwrap()
    };
    let places = ["node1", "node2/pod1", "underlay"];
    let mut guests = places.map(sleep_in);
    let deadline = Instant::now() + Duration::from_secs(5);
    while topology::guests(&up.0).unwrap().len() < guests.len() {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(5));
    }
    // One that is gone by then is no news.
    let mut short = lab(&["sh", "--name", &up.0, "node1", "true"]);
    assert!(short.status().unwrap().success());
    let done = output(&["down", "--name", &up.0]);
    let said = text(&done.stderr);
    assert!(done.status.success());
    for (guest, place) in guests.iter_mut().zip(places) {
        let line = format!(
            "pid {} (sleep 61.5) still runs in {place}: it keeps that namespace alive until it ends\n",
            guest.id()
        );
        assert!(said.contains(&line), "{line} is not in: {said}");
        assert!(guest.try_wait().unwrap().is_none(), "it is not ours to end");
        guest.kill().unwrap();
        guest.wait().unwrap();
    }
    assert_eq!(said.matches("still runs").count(), places.len(), "{said}");
    assert_no_trace(&up.0);
}

#[test]
fn the_name_of_a_lab_may_come_first() {
    let up = Up::new("first", &["--nodes", "1", "--pods", "0", "--no-ipv6"]);
    let done = output(&["--name", &up.0, "status"]);
    assert!(done.status.success(), "{done:?}");
    assert!(text(&done.stdout).contains(&up.0));
}

#[test]
fn the_hints_fit_the_lab() {
    let lab_name = name("hints-of-a-long-name");
    let _up = Up(lab_name.clone());
    let done = output(&["up", "--name", &lab_name, "--nodes", "1", "--pods", "0"]);
    let said = text(&done.stderr);
    for hint in [
        format!("  overlayd lab sh --name {lab_name} node1                  a shell in a node\n"),
        format!("  overlayd lab sh --name {lab_name} node1 overlayd status  what the daemon"),
        format!("  overlayd lab down --name {lab_name}                      the end\n"),
    ] {
        assert!(said.contains(&hint), "{hint:?} is not in: {said}");
    }
    let lab_name = name("played");
    let _up = Up(lab_name.clone());
    let shape = ["--nodes", "2", "--pods", "1", "--scenario", "mtu"];
    let done = lab(&["up", "--name", &lab_name])
        .args(shape)
        .output()
        .unwrap();
    let hint = format!("overlayd lab scenario show --name {lab_name} ");
    assert!(text(&done.stderr).contains(&hint), "{done:?}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let refused = |arguments: &[&str], code: i32, why: &str| {
        let done = output(arguments);
        let said = text(&done.stderr);
        assert_eq!(done.status.code(), Some(code), "{said}");
        assert!(said.contains(why), "{said}");
    };
    refused(
        &["demo", "--backend", "gre"],
        2,
        "[possible values: udp, vxlan, host-gw]",
    );
    refused(&["up", "--nodes", "251"], 2, "1..=250");
    refused(&["up", "--nodes", "0"], 2, "1..=250");
    refused(
        &["demo", "--nodes", "1"],
        1,
        "at least 2 nodes with 2 pods each",
    );
    refused(
        &["demo", "--pods", "0"],
        1,
        "at least 2 nodes with 2 pods each",
    );
    refused(&["up", "--underlay-mtu", "1000"], 1, "needs 1350 bytes");
    refused(&["up", "--name", "../x"], 1, "cannot be the name of a lab");
    refused(
        &["sh", "--name", "no-such-lab", "node1"],
        1,
        "there is no lab",
    );
    refused(&[], 2, "Usage: ");
}

#[test]
fn without_root_it_says_what_to_do() {
    // A copy where anyone may run it.
    let dir = tempfile::tempdir().unwrap();
    let exe = dir.path().join("overlayd");
    std::fs::copy(env!("CARGO_BIN_EXE_overlayd-under-test"), &exe).unwrap();
    let open = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    open(dir.path());
    open(&exe);
    for arguments in [
        &["demo"][..],
        &["up"],
        &["status"],
        &["sh", "node1"],
        &["down"],
    ] {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(&exe);
        let done = command
            .arg("lab")
            .args(arguments)
            .uid(65_534)
            .gid(65_534)
            .output()
            .unwrap();
        assert_eq!(done.status.code(), Some(1), "{arguments:?}");
        assert!(
            text(&done.stderr).contains("needs root") && text(&done.stderr).contains("sudo"),
            "{done:?}"
        );
        assert!(done.stdout.is_empty(), "{done:?}");
    }
}
