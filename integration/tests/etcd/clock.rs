//! A wall clock that somebody sets: libfaketime shows the daemon another one (`CLOCK_REALTIME` alone) than the machine has.

use std::fs;
use std::path::PathBuf;

use super::*;

/// How long a lease lives here, in seconds.
const TTL: u64 = 6;

/// The library, of Debian's package `libfaketime`.
fn libfaketime() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").unwrap().flatten();
    let place = "faketime/libfaketime.so.1";
    let mut there = folders
        .map(|folder| folder.path().join(place))
        .filter(|path| path.exists());
    there.next().expect("libfaketime: apt install libfaketime")
}

/// The day that a line of the log names, as its clock had it.
fn day(daemon: &Daemon) -> String {
    daemon.reload();
    sleep(Duration::from_millis(500));
    let log = daemon.log();
    let line = log
        .lines()
        .rfind(|line| line.contains("configuration reloaded"));
    line.unwrap_or_else(|| panic!("{log}"))[..10].to_owned()
}

#[test]
fn a_clock_set_by_a_day_both_ways_changes_nothing() {
    let (bed, etcd) = bare(2);
    let node = bed.node(1);
    let clock = node.dir().join("clock");
    fs::write(&clock, "+0").unwrap();
    let config = etcd.config(node).set("store.lease-ttl", TTL);
    let (library, file) = (libfaketime(), clock.to_str().unwrap());
    let daemon = Daemon::launch_with(
        node,
        &config,
        &[
            ("LD_PRELOAD", library.to_str().unwrap()),
            ("FAKETIME_TIMESTAMP_FILE", file),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("DONT_FAKE_MONOTONIC", "1"),
        ],
    );
    await_daemon(&daemon);
    let own = subnet(&daemon);
    let _other = start(bed.node(2), &etcd);
    let renewals = || daemon.status()["store"]["renewals"].as_u64().unwrap();
    let mut days = vec![day(&daemon)];
    for set in ["+1d", "-1d", "+0"] {
        fs::write(&clock, set).unwrap();
        let before = renewals();
        for _ in 0..2 * TTL {
            sleep(Duration::from_secs(1));
            assert!(
                etcd.subnets().iter().any(|(there, _)| *there == key(&own)),
                "{set}"
            );
        }
        assert!(renewals() > before, "{set}");
        let status = daemon.status();
        assert_eq!(status["state"], "ok", "{set}: {status:#}");
        assert_eq!(status["store"]["relists"], 0, "{set}: {status:#}");
        assert_eq!(status["store"]["leases_taken"], 1, "{set}: {status:#}");
        assert_eq!(peers(&daemon).len(), 1, "{set}");
        days.push(day(&daemon));
    }
    // The clock was really another: one day later, then one earlier than at first, then as it was.
    assert!(
        days[1] > days[0] && days[2] < days[0] && days[3] >= days[0],
        "{days:?}"
    );
}
