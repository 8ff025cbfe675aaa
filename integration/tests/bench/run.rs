//! Runs in the bench's own namespaces, and what is done with their reports.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlayd::kernel::NetNs;
use serde_json::Value;

use crate::{Killed, assert_no_trace, bench, output, report, text};

/// Short windows: the shape is what is tested.
const SHORT: [&str; 5] = ["--rounds", "1", "--seconds", "0.1", "--json"];

fn short(more: &[&'static str]) -> Vec<&'static str> {
    SHORT.iter().chain(more).copied().collect()
}

#[test]
fn every_row_has_every_figure_under_every_setting() {
    let done = output(&short(&[]));
    let report = report(&done);
    let errors: Vec<_> = report
        .samples
        .iter()
        .filter_map(|s| s.error.as_ref())
        .collect();
    assert_eq!(
        (done.status.code(), errors.as_slice()),
        (Some(0), &[][..]),
        "{}",
        text(&done.stderr)
    );
    assert_eq!(report.version, 1);
    assert_eq!(
        report.settings,
        [
            "default",
            "no-tunnel-offload",
            "no-segmentation",
            "no-segmentation-gro"
        ]
    );
    assert_eq!(report.rows[..2], ["bare", "kernel-vxlan"]);
    for row in ["overlayd-udp-classic", "overlayd-vxlan-classic"] {
        assert!(report.rows.iter().any(|r| r == row), "{:?}", report.rows);
    }
    for setting in &report.settings {
        for row in &report.rows {
            for (test, figure) in [
                ("tcp-1", "gbps"),
                ("tcp-4", "gbps"),
                ("udp-64", "received_pps"),
                ("rtt", "p50_us"),
            ] {
                let values: Vec<_> = report.values(setting, row, test, figure).collect();
                assert!(
                    values.len() == 1 && values[0].1 > 0.0,
                    "{setting} {row} {test}: {values:?}"
                );
            }
        }
    }
    // Offloads were really switched.
    let on = |setting: &str, feature: &str| report.offloads[setting].iter().any(|f| f == feature);
    assert!(on("default", "tx-udp_tnl-segmentation") && on("default", "tx-tcp-segmentation"));
    assert!(
        !on("no-tunnel-offload", "tx-udp_tnl-segmentation")
            && on("no-tunnel-offload", "tx-tcp-segmentation")
    );
    assert!(!on("no-segmentation", "tx-tcp-segmentation") && !on("no-segmentation", "rx-gro"));
    assert!(
        !on("no-segmentation-gro", "tx-generic-segmentation")
            && on("no-segmentation-gro", "rx-gro")
    );
    // A daemon's cost is known where there is a daemon, and only there.
    for sample in report.samples.iter().filter(|s| s.test == "udp-64") {
        let daemon = sample.figures.contains_key("daemon_cpu_s_per_mpkt");
        assert_eq!(daemon, sample.row.starts_with("overlayd"), "{sample:?}");
        assert!(sample.figures["cpu_s_per_mpkt"].is_finite());
        // Its system calls are counted apart: counting them would slow down what is measured.
        let calls = |of: &Value| of["sent"]["cost"]["daemon"]["syscalls"].as_u64();
        assert_eq!(calls(&sample.raw), None, "{sample:?}");
        let figure = sample.figures.get("daemon_syscalls_per_packet");
        let apart = &sample.raw["calls"];
        // On a machine that is busy with other tests nothing may arrive in that moment.
        if apart["error"].is_null() {
            let counted = calls(apart).is_some_and(|calls| calls > 0);
            assert_eq!(counted, daemon, "raw_syscalls:sys_enter: {sample:?}");
            assert_eq!(figure.is_some_and(|calls| *calls > 0.0), daemon);
        } else {
            assert_eq!(figure, None);
        }
    }
    let machine = &report.machines[0];
    assert!(machine.cpus > 0 && !machine.kernel.is_empty() && machine.memory_mib > 0);
    assert!(report.command.iter().any(|word| word == "--rounds"));
}

#[test]
fn pods_searches_and_both_ways() {
    let done = output(&short(&[
        "--only",
        "host-gw,pods:host-gw,pods:kernel-vxlan,pods:overlayd-vxlan-classic",
        "--settings",
        "default",
        "--tests",
        "tcp-2-both,tcp-1-back,loss-mtu,loss-64-1000,rtt-half",
        "--pin",
        "0/0",
    ]));
    let report = report(&done);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert_eq!(report.samples.len(), 4 * 5);
    let tests: BTreeSet<_> = report.samples.iter().map(|s| s.test.as_str()).collect();
    assert_eq!(tests.len(), 5);
    for sample in &report.samples {
        match sample.test.as_str() {
            "loss-mtu" | "loss-64-1000" => {
                let (zero, tenth) = (
                    sample.figures["zero_loss_pps"],
                    sample.figures["tenth_percent_pps"],
                );
                assert!(zero >= 0.0 && tenth >= zero, "{sample:?}");
                let trials = sample.raw["trials"].as_array().unwrap();
                assert!(trials[0]["asked_pps"].is_null(), "flat out first");
                let size = sample.raw["size"].as_u64().unwrap();
                let mtu = if sample.row.contains("vxlan") {
                    1450
                } else {
                    1500
                };
                assert_eq!(
                    size,
                    if sample.test == "loss-mtu" {
                        mtu - 28
                    } else {
                        64
                    }
                );
            }
            "rtt-half" => {
                assert!(sample.figures["load_pps"] > 0.0 && sample.figures["p50_us"] > 0.0)
            }
            _ => assert!(sample.figures["gbps"] > 0.0),
        }
    }
}

#[test]
fn the_table_is_for_people_and_two_reports_can_be_compared() {
    let arguments = [
        "--only",
        "bare,kernel-vxlan",
        "--settings",
        "default",
        "--tests",
        "tcp-1,udp-64",
        "--rounds",
        "2",
        "--seconds",
        "0.1",
    ];
    let done = output(&arguments);
    let table = text(&done.stdout);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    for part in [
        "offloads: default\n",
        "tcp-1 Gb/s",
        "udp-64 kpps",
        "\n bare ",
        "\n kernel-vxlan ",
        "  x",
        "2 rounds of 0.10 s",
    ] {
        assert!(table.contains(part), "{part:?} is not in:\n{table}");
    }
    assert!(text(&done.stderr).contains("4/4, "));

    let one = output(&[&arguments[..], &["--json"]].concat());
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old.json"), dir.path().join("new.json"));
    fs::write(&old, &one.stdout).unwrap();
    // Twice as fast.
    let mut twice: Value = serde_json::from_slice(&one.stdout).unwrap();
    for sample in twice["samples"].as_array_mut().unwrap() {
        if sample["row"] == "bare" && sample["test"] == "tcp-1" {
            let gbps = sample["figures"]["gbps"].as_f64().unwrap();
            sample["figures"]["gbps"] = (1000.0 * gbps).into();
        }
    }
    fs::write(&new, twice.to_string()).unwrap();
    let (old, new) = (old.to_str().unwrap(), new.to_str().unwrap());
    let done = output(&["compare", old, new, "--json"]);
    let compared: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(
        (done.status.code(), &compared["version"]),
        (Some(0), &1.into())
    );
    let changes = compared["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 4);
    for change in changes {
        let changed = change["row"] == "bare" && change["test"] == "tcp-1";
        assert_eq!(change["verdict"] == "better", changed, "{change}");
        let ratio = change["ratio"].as_f64().unwrap();
        assert!(
            (ratio - if changed { 1000.0 } else { 1.0 }).abs() < 1e-6,
            "{change}"
        );
    }
    let done = output(&["compare", old, new]);
    assert!(
        text(&done.stdout).contains("x1000"),
        "{}",
        text(&done.stdout)
    );
}

#[test]
fn nonsense_is_refused_before_anything_is_made() {
    for (arguments, code, part) in [
        (
            &["--only", "kernel-vlan"][..],
            2,
            "no row \"kernel-vlan\"; there are bare, host-gw",
        ),
        (
            &["--only", "bare,bare"],
            2,
            "the row bare is asked for twice",
        ),
        (
            &["--tests", "rtt,rtt"],
            2,
            "the test rtt is asked for twice",
        ),
        (&["--tests", "tcp-0"], 2, "no test \"tcp-0\""),
        (&["--tests", "udp-8"], 2, "at least 16 bytes"),
        (&["--settings", "fast"], 2, "no setting \"fast\""),
        (&["--seconds", "0"], 2, "0.05 to 600 seconds"),
        (&["--seconds", "nan"], 2, "0.05 to 600 seconds"),
        (&["--rounds", "0"], 2, "1..=1000"),
        (&["--pin", "0"], 2, "for example 0/1"),
        (&["--pin", "0/4095"], 2, "there is no CPU"),
        (&["--with", "x"], 2, "NAME=SCRIPT"),
        (
            &["--with", "bare=/bin/true"],
            2,
            "there is a row bare already",
        ),
        (
            &["--with", "x=/no/such/script"],
            2,
            "no script /no/such/script",
        ),
        (&["--peer", "192.0.2.1"], 2, "--key"),
        (&["--quick", "--full"], 2, "cannot be used with"),
        (&["compare", "/dev/null", "/dev/null"], 1, "no report of"),
        (
            &["compare", "/no/such", "/dev/null"],
            1,
            "/no/such is no report",
        ),
    ] {
        let done = output(arguments);
        let said = text(&done.stderr);
        assert_eq!(done.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
}

#[test]
fn a_datagram_too_large_for_the_path_is_a_failed_sample() {
    let done = output(&short(&[
        "--only",
        "kernel-vxlan",
        "--settings",
        "default",
        "--tests",
        "udp-1423,udp-1422",
    ]));
    let report = report(&done);
    assert_eq!(done.status.code(), Some(5));
    let error = report.samples[0].error.as_ref().unwrap();
    assert!(
        error.contains("1423 bytes of UDP payload do not fit the path: 16 to 1422"),
        "{error}"
    );
    assert!(report.samples[1].error.is_none());
}

#[test]
fn an_interrupt_takes_everything_away() {
    // Once in the midst of a measurement of a daemon's path.
    let mut child = Killed(
        bench(&[
            "--only",
            "overlayd-udp-classic",
            "--settings",
            "default",
            "--seconds",
            "60",
        ])
        .spawn()
        .unwrap(),
    );
    let pid = child.0.id();
    let name = format!("bench-{pid}-b");
    let end = Instant::now() + Duration::from_secs(10);
    let daemon_is_there = || {
        let there = NetNs::open(&name)
            .and_then(|ns| ns.run(|| nix::net::if_::if_nametoindex("ovb0").is_ok()));
        there.unwrap_or(false)
    };
    while !daemon_is_there() {
        assert!(Instant::now() < end, "the path does not come up");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
    let asked = Instant::now();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGINT).unwrap();
    let status = child.0.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert!(
        asked.elapsed() < Duration::from_secs(10),
        "{:?}",
        asked.elapsed()
    );
    assert_no_trace(pid);
}

#[test]
fn what_a_killed_bench_leaves_the_next_one_removes() {
    let mut child = Killed(
        bench(&[
            "--only",
            "overlayd-udp-classic",
            "--settings",
            "default",
            "--seconds",
            "60",
        ])
        .spawn()
        .unwrap(),
    );
    let pid = child.0.id();
    let end = Instant::now() + Duration::from_secs(10);
    let mark = format!("bench-{pid}");
    while overlayd::lab::holder::processes(&mark).unwrap().len() < 2 {
        assert!(Instant::now() < end, "no daemons");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    let done = output(&short(&[
        "--only",
        "bare",
        "--settings",
        "default",
        "--tests",
        "rtt",
    ]));
    assert_eq!(done.status.code(), Some(0));
    assert_no_trace(pid);
}
