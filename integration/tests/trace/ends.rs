//! Where a trace ends: pods of which processes have ended, pods that answer nothing, stages that are not built.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::faults::ACROSS;
use super::{Up, details, err, out, overlayd, step};

/// Kills these processes of the second pod of the second node, and waits until they are gone.
fn kill_in_pod(lab: &Up, holder: bool) {
    let status = overlayd(&["lab", "status", "--name", &lab.0, "--json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let pod = &status["nodes"][1]["pods"][1];
    let containers = pod["containers"].as_array().unwrap().iter();
    let mut pids: Vec<String> = containers
        .filter(|container| !container["pid"].is_null())
        .map(|container| container["pid"].to_string())
        .collect();
    if holder {
        pids.push(pod["holder"].to_string());
    }
    let killed = Command::new("kill").arg("-9").args(&pids).status();
    assert!(killed.unwrap().success());
    let gone = Instant::now() + Duration::from_secs(20);
    while pids
        .iter()
        .any(|pid| std::fs::metadata(format!("/proc/{pid}/exe")).is_ok())
    {
        assert!(Instant::now() < gone);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A pod whose programs have ended answers pings all the same; one that is dead is traced as far as anything leads there.
#[test]
fn pods_whose_processes_have_ended() {
    let lab = Up::new("dead", &["--nodes", "2"]);
    let revive = format!("`overlayd lab revive --name {}`", lab.0);
    let ends = ["node1/pod1", "node2/pod2"];
    kill_in_pod(&lab, false);
    let trace = lab.answered(&ends);
    let said = details(step(&trace, "request", "node2/pod2", "delivery"));
    assert!(
        said.contains("these have ended: web, echo") && said.contains(&revive),
        "{said}"
    );
    let done = lab.trace(&[&ends[..], &["--svg", "-"]].concat());
    assert!(out(&done).contains(">web, echo ended<"), "{}", out(&done));

    kill_in_pod(&lab, true);
    let done = lab.trace(&["node1/pod1", "node2/pod1", "--svg", "-"]);
    assert_eq!(done.status.code(), Some(0), "{}", err(&done));
    for (from, to, place) in [
        ("node1/pod1", "node2/pod2", "node2"),
        ("node1/pod1", "10.244.2.3", "node2"),
        ("node2/pod1", "node2/pod2", "node2/pod1"),
    ] {
        let trace = lab.told(&[from, to]);
        let loss = &trace["loss"];
        assert_eq!(
            (&loss["place"], &loss["reason"]),
            (&place.into(), &"dead-pod".into()),
            "{to}: {loss:#}"
        );
        let meaning = loss["meaning"].as_str().unwrap();
        assert!(
            meaning.starts_with("10.244.2.3 is an address of node2/pod2, which is dead"),
            "{meaning}"
        );
        assert!(loss["advice"].as_str().unwrap().starts_with(&revive));
        assert_eq!(trace["destination"]["name"], "node2/pod2");
    }
    let done = lab.trace(&["10.244.2.3", "node1/pod1"]);
    assert_eq!(done.status.code(), Some(1), "{}", out(&done));
    assert!(err(&done).contains("node2/pod2 is dead"), "{}", err(&done));
}

#[test]
fn a_stage_that_is_missing_is_named() {
    let lab = Up::new("stage", &["--nodes", "2", "--stage", "isolated"]);
    let next = format!("overlayd lab next --name {}", lab.0);
    let done = lab.trace(&ACROSS);
    assert_eq!(done.status.code(), Some(1));
    let said = err(&done);
    assert!(
        said.contains("node1/pod1 does not have the address 10.244.1.2")
            && said.contains("stage veth")
            && said.contains(&next),
        "{said}"
    );
    // What cures it is named, and how far that is, not only what comes next.
    for cases in [
        &[
            (["node1/pod1", "node1/pod2"], "bridge", ""),
            (["node1/pod1", "10.244.1.1"], "bridge", ""),
            (
                ["node1/pod1", "node1"],
                "routed",
                ", 2 times (bridge, routed)",
            ),
            (ACROSS, "overlay", ", 3 times (bridge, routed, overlay)"),
        ][..],
        &[
            (["node1/pod1", "node1"], "routed", ""),
            (ACROSS, "overlay", ", 2 times (routed, overlay)"),
        ],
        &[(ACROSS, "overlay", "")],
    ] {
        assert!(
            overlayd(&["lab", "next", "--name", &lab.0])
                .status
                .success()
        );
        for (ends, stage, times) in cases {
            let trace = lab.told(ends);
            let advice = trace["loss"]["advice"].as_str().unwrap();
            assert!(
                advice.contains(&format!("stage {stage} brings"))
                    && advice.ends_with(&format!("`{next} --explain`{times}")),
                "{ends:?}: {advice}"
            );
            assert!(trace["unreachable"].as_array().unwrap().is_empty());
        }
        let done = lab.trace(&cases[0].0);
        assert_eq!(done.status.code(), Some(5), "{}", err(&done));
    }
    assert!(
        overlayd(&["lab", "next", "--name", &lab.0])
            .status
            .success()
    );
    assert_eq!(lab.told(&ACROSS)["outcome"], "answered");
}

/// What was delivered and not answered is not lost on the way; and that it was delivered is counted.
#[test]
fn a_pod_that_answers_no_ping() {
    let lab = Up::new("deaf", &["--nodes", "2"]);
    for (six, key, counter) in [
        (
            &[][..],
            "net.ipv4.icmp_echo_ignore_all",
            ["Icmp.InEchos", "Icmp.InEchoReps"],
        ),
        (
            &["-6"],
            "net.ipv6.icmp.echo_ignore_all",
            ["Icmp6InEchos", "Icmp6InEchoReplies"],
        ),
    ] {
        let ends = [six, &ACROSS].concat();
        let trace = lab.breaks(
            &[&format!("node2/pod1: sysctl -w {key}=1")],
            &[&format!("node2/pod1: sysctl -w {key}=0")],
            &ends,
            ["reply", "node2/pod1", "no-answer", &format!("{key} is 1")],
        );
        let delivered = step(&trace, "request", "node2/pod1", "delivery");
        assert_eq!(delivered["evidence"], "observed");
        assert!(details(delivered).contains(counter[0]), "{delivered:#}");
        let trace = lab.told(&ends);
        let delivered = step(&trace, "reply", "node1/pod1", "delivery");
        assert_eq!(delivered["source"], "counter");
        assert!(details(delivered).contains(counter[1]), "{delivered:#}");
    }
}
