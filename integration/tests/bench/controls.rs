//! Outside controls: the shipped scripts, and scripts that fail.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use overlayd::lab::bench::report::{Report, Sample};

use crate::{output, report, text};

fn shipped(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs/bench")
        .join(name);
    format!("{name}={}", path.display())
}

#[test]
fn what_is_shipped_is_a_row_like_any_other() {
    let (fastd, wireguard) = (shipped("fastd"), shipped("wireguard-go"));
    let overlayd = shipped("overlayd");
    let done = output(&[
        "--with",
        &fastd,
        "--with",
        &wireguard,
        "--with",
        &overlayd,
        "--only",
        "kernel-vxlan",
        "--settings",
        "default",
        "--tests",
        "tcp-1,udp-mtu,rtt",
        "--rounds",
        "1",
        "--seconds",
        "0.2",
        "--json",
    ]);
    let report = report(&done);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let controls = ["fastd", "wireguard-go", "overlayd"];
    assert_eq!(report.rows, [&["kernel-vxlan"], &controls[..]].concat());
    for row in controls {
        for (test, figure) in [
            ("tcp-1", "gbps"),
            ("udp-mtu", "received_pps"),
            ("rtt", "p50_us"),
        ] {
            let values: Vec<_> = report.values("default", row, test, figure).collect();
            assert!(
                values.len() == 1 && values[0].1 > 0.0,
                "{row} {test}: {values:?}"
            );
        }
        // Metered by the process id that the script has written.
        assert!(
            report
                .values("default", row, "tcp-1", "daemon_cpu_s_per_gb")
                .count()
                == 1
        );
    }
}

/// What a script brings up: the kernel's VXLAN, by hand.
const TUNNEL: &str = "ip link add $BENCH_DEV type vxlan id 9 dstport 4799 local $BENCH_LOCAL remote $BENCH_REMOTE dev $BENCH_UNDERLAY\n\
    ip link set $BENCH_DEV mtu 1450 up && ip address add $BENCH_ADDRESS/24 dev $BENCH_DEV\n\
    ip route add $BENCH_PEER_ADDRESS/32 dev $BENCH_DEV\n";

fn script(dir: &Path, name: &str, body: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    format!("{name}={}", path.display())
}

/// Why the first measurement of a row failed; empty if it did not.
fn error(report: &Report, row: &str) -> String {
    let sample = report.samples.iter().find(|s| s.row == row).unwrap();
    sample.error.clone().unwrap_or_default()
}

/// Small packets pass, so the path comes up; what is measured does not.
#[test]
fn a_path_that_carries_nothing_is_a_failed_measurement() {
    let dir = tempfile::tempdir().unwrap();
    let rule = "table ip deaf { chain in { type filter hook input priority 0; iifname $BENCH_DEV ip length > 600 drop; }; }";
    let up = format!("{TUNNEL}nft -f - <<END\n{rule}\nEND");
    let body = format!("if [ $1 = up ]; then\n{up}\nelse\nnft delete table ip deaf\nfi");
    let deaf = script(dir.path(), "deaf", &body);
    let done = output(&[
        "--with",
        &deaf,
        "--only",
        "kernel-vxlan",
        "--settings",
        "default",
        "--tests",
        "tcp-1,udp-mtu,loss-mtu,rtt",
        "--rounds",
        "1",
        "--seconds",
        "0.1",
        "--json",
    ]);
    assert_eq!(done.status.code(), Some(5), "{}", text(&done.stderr));
    // It can be read again: there is no figure that is no number.
    let report = report(&done);
    let sample = |test: &str| {
        let of = |sample: &&Sample| sample.row == "deaf" && sample.test == test;
        report.samples.iter().find(of).unwrap()
    };
    for (test, why) in [("tcp-1", "nothing arrived"), ("udp-mtu", "none arrived")] {
        let error = sample(test).error.clone().unwrap_or_default();
        assert!(error.contains(why), "{test}: {error}");
    }
    assert_eq!(sample("loss-mtu").figures["zero_loss_pps"], 0.0);
    assert!(sample("rtt").figures["p50_us"] > 0.0);
}

/// None of it costs the other rows anything.
#[test]
fn a_daemon_that_ends_fails_what_was_measured_and_one_that_stays_is_noted() {
    let dir = tempfile::tempdir().unwrap();
    let with = |name: &str, pid: &str| {
        let up = format!("{TUNNEL}{pid} >$BENCH_PIDFILE");
        script(
            dir.path(),
            name,
            &format!("if [ $1 = up ]; then\n{up}\nelse\necho stuck >&2; exit 3\nfi"),
        )
    };
    let ends = with("ends", "sleep 0.7 >&- 2>&- & echo $!");
    let foreign = with("foreign", "echo 1");
    let done = output(&[
        "--with",
        &ends,
        "--with",
        &foreign,
        "--only",
        "kernel-vxlan",
        "--settings",
        "default",
        "--tests",
        "tcp-1",
        "--rounds",
        "1",
        "--seconds",
        "1",
        "--json",
    ]);
    assert_eq!(done.status.code(), Some(5), "{}", text(&done.stderr));
    let report = report(&done);
    let error = |row| error(&report, row);
    assert_eq!(error("kernel-vxlan"), "");
    assert!(
        error("ends").contains("the daemon on the sending host has ended"),
        "{}",
        error("ends")
    );
    assert!(
        error("foreign").contains("no process that the script of foreign has started"),
        "{}",
        error("foreign")
    );
    assert!(
        report.notes.iter().any(|note| note.contains("ends could not all be taken down") && note.contains("stuck")),
        "{:?}",
        report.notes
    );
}

#[test]
fn a_script_that_fails_is_a_failed_row_with_its_words() {
    let dir = tempfile::tempdir().unwrap();
    let script = |name: &str, body: &str| script(dir.path(), name, body);
    let refuses = script("refuses", "echo no such luck on $BENCH_LOCAL >&2; exit 3");
    let forgets = script("forgets", "exit 0");
    let leaves = script(
        "leaves",
        "if [ $1 = up ]; then setsid sleep 300 & ip tuntap add $BENCH_DEV mode tun; fi",
    );
    let done = output(&[
        "--with",
        &refuses,
        "--with",
        &forgets,
        "--with",
        &leaves,
        "--only",
        "bare",
        "--settings",
        "default",
        "--tests",
        "rtt",
        "--rounds",
        "1",
        "--seconds",
        "0.1",
        "--json",
    ]);
    let report = report(&done);
    assert_eq!(done.status.code(), Some(5));
    let error = |row| error(&report, row);
    assert!(
        error("refuses").contains("no such luck on 198.19.0.1"),
        "{}",
        error("refuses")
    );
    assert!(
        error("forgets").contains("there is no device ovb1"),
        "{}",
        error("forgets")
    );
    assert_ne!(error("leaves"), "");
    assert_eq!(error("bare"), "");
}
