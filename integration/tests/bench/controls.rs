//! Outside controls: the shipped scripts, and scripts that fail.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

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

#[test]
fn a_script_that_fails_is_a_failed_row_with_its_words() {
    let dir = tempfile::tempdir().unwrap();
    let script = |name: &str, body: &str| {
        let path = dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        format!("{name}={}", path.display())
    };
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
    let error = |row: &str| {
        let sample = report.samples.iter().find(|s| s.row == row).unwrap();
        sample.error.clone().unwrap_or_default()
    };
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
