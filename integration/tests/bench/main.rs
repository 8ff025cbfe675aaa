//! `overlayd bench` as a person meets it: that it measures what it says, prints what the book says, and leaves nothing
//! behind. Never how fast anything is. Needs root, fastd, wireguard-go and wireguard-tools.

#![allow(clippy::unwrap_used)] // in helpers too: a test fails where it stands

mod controls;
mod peer;
mod run;

use std::process::{Child, Command, Output, Stdio};

use overlayd::kernel::NetNs;
use overlayd::lab::bench::report::Report;
use overlayd::lab::holder;

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_overlayd-under-test"));
    command.arg("bench").args(arguments).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs to the end, and checks that nothing is left.
fn output(arguments: &[&str]) -> Output {
    let child = bench(arguments).spawn().unwrap();
    let pid = child.id();
    let done = child.wait_with_output().unwrap();
    assert_no_trace(pid);
    done
}

#[track_caller]
fn report(done: &Output) -> Report {
    serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"))
}

/// Neither namespaces, nor files, nor processes of the bench that had this process id.
#[track_caller]
fn assert_no_trace(pid: u32) {
    let mark = format!("bench-{pid}");
    let names = NetNs::list_named().unwrap();
    let ours = format!("{mark}-");
    assert!(
        !names.iter().any(|name| name.starts_with(&ours)),
        "{names:?}"
    );
    let dir = std::path::Path::new("/run/overlayd/bench").join(&mark);
    assert!(!dir.exists(), "{}", dir.display());
    assert_eq!(holder::processes(&mark).unwrap(), []);
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A child that is killed whatever happens to its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
