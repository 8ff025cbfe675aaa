//! The test bed leaves nothing behind, however a test ends.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use integration::bed::{Backend, Bed, Underlay, overlayd_bin, sweep};
use overlayd::kernel::NetNs;

/// Namespaces, directories and processes of a bed, as far as they are there.
fn traces(prefix: &str, pid: u32) -> Vec<String> {
    let mut traces = NetNs::list_named().unwrap();
    for entry in fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        traces.push(entry.file_name().to_string_lossy().into_owned());
    }
    traces.retain(|name| name.starts_with(prefix));
    // A zombie is gone, too: it waits for whoever takes in orphans.
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    if !state.is_empty() && !state.contains(") Z ") {
        traces.push(format!("process {pid}"));
    }
    traces
}

#[test]
fn a_bed_goes_with_a_panic() {
    let bed = Bed::new(2, Underlay::V4);
    let prefix = bed.prefix().to_owned();
    let mut pid = 0;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let bed = bed;
        let daemons = bed.start(Backend::Udp);
        pid = daemons[0].pid();
        // The underlay, two nodes, two pods; the directory; the daemon.
        assert_eq!(traces(&prefix, pid).len(), 7);
        panic!("a test that fails (this one is meant to)");
    }));
    assert!(panicked.is_err());
    assert_eq!(traces(&prefix, pid), Vec::<String>::new());
}

#[test]
fn what_a_killed_test_leaves_is_removed_by_the_next_one() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bed-to-be-killed"));
    command.env("OVERLAYD_UNDER_TEST", overlayd_bin());
    let mut test = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(test.stdout.take().unwrap()).lines();
    let told = lines.find_map(|line| {
        let line = line.unwrap();
        let (prefix, pid) = line.strip_prefix("up: ")?.split_once(' ')?;
        Some((prefix.to_owned(), pid.parse::<u32>().unwrap()))
    });
    test.kill().unwrap();
    test.wait().unwrap();
    let (prefix, pid) = told.expect("the test came up");
    assert_eq!(traces(&prefix, pid).len(), 5, "nothing was left to remove");
    assert!(Path::new(&format!("/proc/{pid}")).exists());

    sweep();
    let end = Instant::now() + Duration::from_secs(2);
    while !traces(&prefix, pid).is_empty() {
        assert!(Instant::now() < end, "left: {:?}", traces(&prefix, pid));
        std::thread::sleep(Duration::from_millis(10));
    }
}
