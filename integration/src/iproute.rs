//! iproute2 in a namespace: what a person, or another program, would do there.

use std::process::Command;

use overlayd::kernel::NetNs;

/// Runs `ip` with these arguments, parted at blanks, and returns what it printed.
///
/// # Panics
/// If it fails.
pub fn ip(namespace: &NetNs, arguments: &str) -> String {
    let run = || {
        Command::new("ip")
            .args(arguments.split_whitespace())
            .output()
    };
    let done = namespace.run(run).expect("enter the namespace");
    let done = done.expect("these tests need the `ip` program (package iproute2)");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {arguments}: {said}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}
