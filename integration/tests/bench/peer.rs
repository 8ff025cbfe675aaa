//! Two hosts, each a namespace, joined by a cable: `bench serve` and `bench --peer`.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use integration::bed::{Bed, Underlay};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlayd::kernel::Family;

use crate::{Killed, assert_no_trace, bench, report, text};

#[test]
fn two_hosts_measure_between_them_and_keep_nothing() {
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    let serve = bench(&["serve", "--listen", "0.0.0.0:9286", "--key", "secret"]);
    let mut server = Killed(two.netns().spawn(serve).unwrap());
    let mut said = BufReader::new(server.0.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("listening on 0.0.0.0:9286") {
        line.clear();
        assert!(
            said.read_line(&mut line).unwrap() > 0,
            "the server has ended"
        );
    }
    let host = two.public_ip(Family::V4).to_string();
    let client = |key: &str| {
        let command = bench(&[
            "--peer",
            &host,
            "--key",
            key,
            "--tests",
            "tcp-1,tcp-1-back,tcp-1-both,udp-64,rtt",
            "--only",
            "bare,host-gw,kernel-vxlan,overlayd-udp-classic,overlayd-vxlan-classic",
            "--rounds",
            "1",
            "--seconds",
            "0.1",
            "--json",
        ]);
        let child = one.netns().spawn(command).unwrap();
        let pid = child.id();
        let done = child.wait_with_output().unwrap();
        assert_no_trace(pid);
        done
    };
    let refused = client("guess");
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("the key is not the one"),
        "{}",
        text(&refused.stderr)
    );

    let done = client("secret");
    let report = report(&done);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert_eq!(report.machines.len(), 2);
    assert_eq!(report.settings, ["default"]);
    assert_eq!(report.samples.len(), 5 * 5);
    for sample in &report.samples {
        assert!(sample.error.is_none(), "{sample:?}");
    }
    kill(
        Pid::from_raw(server.0.id().try_into().unwrap()),
        Signal::SIGINT,
    )
    .unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    while server.0.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "serve does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_no_trace(server.0.id());
    for node in [one, two] {
        let left = node
            .netns()
            .run(|| nix::net::if_::if_nametoindex("ovb0").is_ok())
            .unwrap();
        assert!(!left, "the bench has left its device");
    }
}
