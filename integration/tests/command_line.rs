//! What holds of every command: a result that cannot be written is an error, and nothing is suggested that help does not
//! list. Needs no root.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in test functions; their helpers are meant too

use std::fs::OpenOptions;
use std::process::{Command, Output, Stdio};

fn overlayd(arguments: &str, stdout: Stdio) -> Output {
    Command::new(env!("CARGO_BIN_EXE_overlayd-under-test"))
        .args(arguments.split_whitespace())
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap()
}

fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn a_result_that_cannot_be_written_is_an_error() {
    let fixture = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/fixtures/flannel-0.20.2/vxlan/underlay.pcap"
    );
    for command in [
        "--help",
        "--version",
        "help lab",
        "lab --help",
        "config example",
        "mtu",
        "mtu --json",
        "mtu --svg -",
        "flannel --help",
        "flannel --version",
        &format!("dissect {fixture}"),
        &format!("dissect --json --count 1 {fixture}"),
        "lab scenario ls",
        "lab scenario show mtu",
        "lab scenario hint 1 mtu",
        "lab scenario explain mtu",
        "lab up --explain --dry-run",
    ] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let done = overlayd(command, full.into());
        assert_eq!(done.status.code(), Some(1), "{command}: {}", err(&done));
        // Once, however many lines there would have been.
        assert_eq!(
            err(&done)
                .matches("overlayd: cannot write to stdout: No space left on device")
                .count(),
            1,
            "{command}: {}",
            err(&done)
        );
        let done = overlayd(command, Stdio::piped());
        assert_eq!(done.status.code(), Some(0), "{command}: {}", err(&done));
    }
}

#[test]
fn only_commands_that_help_lists_are_suggested() {
    let help = overlayd("lab --help", Stdio::piped());
    let help = std::str::from_utf8(&help.stdout).unwrap();
    for (typed, meant) in [
        ("hnt", "hint"),
        ("intruder", "hint"),
        ("intrud", ""),
        ("holds", ""),
        ("containe", ""),
        ("satus", "status"),
    ] {
        let done = overlayd(&format!("lab {typed}"), Stdio::piped());
        assert_eq!(done.status.code(), Some(2), "{typed}");
        let said = err(&done);
        for hidden in ["'hold'", "'container'", "'intrude'"] {
            assert!(!said.contains(hidden), "{typed}: {said}");
        }
        if !meant.is_empty() {
            assert!(said.contains(&format!("'{meant}'")), "{typed}: {said}");
            assert!(help.contains(&format!("\n  {meant} ")), "{meant}: {help}");
        }
    }
}

/// Whoever has the program alone has the explanations: each its own part of the chapter.
#[test]
fn each_scenario_is_explained_by_its_part_of_the_book() {
    for (scenario, others) in [
        ("mtu", ["## no-lease", "## spoof"]),
        ("no-lease", ["## mtu", "## spoof"]),
        ("spoof", ["## mtu", "## no-lease"]),
    ] {
        let done = overlayd(&format!("lab scenario explain {scenario}"), Stdio::piped());
        let text = std::str::from_utf8(&done.stdout).unwrap();
        assert!(text.starts_with(&format!("## {scenario}\n")), "{text}");
        assert!(text.contains(&format!("lab up --scenario {scenario}")));
        assert!(text.contains("solved"), "{text}");
        for other in others {
            assert!(!text.contains(other), "{scenario} tells {other}");
        }
        // What points to it names what there is.
        let shown = overlayd(&format!("lab scenario show {scenario}"), Stdio::piped());
        let said = err(&shown);
        for part in [
            "`overlayd lab scenario explain",
            "\"Three broken labs\"",
            "docs/src/scenarios.md",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/src/");
    let summary = std::fs::read_to_string(format!("{root}SUMMARY.md")).unwrap();
    assert!(summary.contains("[Three broken labs](scenarios.md)"));
}
