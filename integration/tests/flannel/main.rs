//! What flanneld does for its host and overlayd does too: rules in the packet filter, the subnet file, flanneld's flags,
//! health and metrics over HTTP. Real namespaces and the kernel's nftables; `nft`, `iptables` and `ip` play the operator.
#![allow(clippy::unwrap_used)]

mod filter;
mod flags;
mod takeover;
mod web;

use std::process::Command;

use overlayd::kernel::NetNs;

/// A line typed by a person in a namespace: what it printed.
#[track_caller]
fn shell(netns: &NetNs, line: &str) -> String {
    let done = netns
        .run(|| Command::new("sh").args(["-c", line]).output())
        .unwrap()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{line}: {said}");
    String::from_utf8(done.stdout).unwrap()
}
