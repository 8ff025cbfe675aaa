//! Two hosts, each a namespace, joined by a cable: `bench serve` and `bench --peer`.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use integration::bed::{Bed, Node, Underlay};
use integration::iproute::ip;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlayd::kernel::Family;

use crate::{Killed, assert_no_trace, bench, report, text};

/// Starts `bench serve` on a node, and waits until it listens.
fn serve(node: &Node) -> Killed {
    let serve = bench(&["serve", "--listen", "0.0.0.0:9286", "--key", "secret"]);
    let mut server = Killed(node.netns().spawn(serve).unwrap());
    let mut said = BufReader::new(server.0.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("listening on 0.0.0.0:9286") {
        line.clear();
        assert!(
            said.read_line(&mut line).unwrap() > 0,
            "the server has ended"
        );
    }
    // What more it says must find a reader.
    std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    server
}

fn send(child: &Killed, signal: Signal) {
    kill(Pid::from_raw(child.0.id().try_into().unwrap()), signal).unwrap();
}

fn ends_soon(child: &mut Killed) {
    let end = Instant::now() + Duration::from_secs(5);
    while child.0.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn has_device(node: &Node) -> bool {
    let there = || nix::net::if_::if_nametoindex("ovb0").is_ok();
    node.netns().run(there).unwrap()
}

/// Does the underlay device carry tunnelled superpackets?
fn offloads_tunnels(node: &Node) -> bool {
    let features = node.netns().run(|| {
        let socket = UnixDatagram::unbound().unwrap();
        overlayd::sys::ethtool::features(&socket, "eth0").unwrap()
    });
    features.unwrap()["tx-udp_tnl-segmentation"]
}

#[test]
fn two_hosts_measure_between_them_and_keep_nothing() {
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    let mut server = serve(two);
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
    send(&server, Signal::SIGINT);
    ends_soon(&mut server);
    assert_no_trace(server.0.id());
    for node in [one, two] {
        assert!(!has_device(node), "the bench has left its device");
    }
}

/// Killed in the midst of a measurement, both leave daemons, devices and changed offloads, which the next ones remove.
#[test]
fn what_a_killed_pair_leaves_the_next_one_sets_back() {
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    let host = two.public_ip(Family::V4).to_string();
    let client = |row: &str, seconds: &str| {
        let mut command = bench(&["--peer", &host, "--key", "secret", "--only", row]);
        command.args(["--settings", "no-tunnel-offload", "--tests", "tcp-1"]);
        command.args(["--rounds", "1", "--seconds", seconds, "--json"]);
        Killed(one.netns().spawn(command).unwrap())
    };
    for row in ["overlayd-vxlan-batched", "host-gw", "kernel-vxlan"] {
        let mut server = serve(two);
        let mut first = client(row, "60");
        let end = Instant::now() + Duration::from_secs(20);
        while [one, two].into_iter().any(offloads_tunnels) {
            assert!(Instant::now() < end, "{row}: nothing begins");
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(800));
        send(&first, Signal::SIGKILL);
        send(&server, Signal::SIGKILL);
        ends_soon(&mut first);
        ends_soon(&mut server);
    }
    // Both hosts of the next pair begin with what the killed ones found; a server before anybody comes.
    let mut server = serve(two);
    assert!(
        !has_device(two) && offloads_tunnels(two),
        "left by a killed server"
    );
    let mut next = client("overlayd-vxlan-batched", "0.1");
    let said = std::io::read_to_string(next.0.stdout.take().unwrap()).unwrap();
    let status = next.0.wait().unwrap();
    assert_eq!(status.code(), Some(0), "{said}");
    send(&server, Signal::SIGINT);
    ends_soon(&mut server);
    for node in [one, two] {
        assert!(!has_device(node), "a device is left");
        assert!(offloads_tunnels(node), "the offloads are not set back");
        assert_eq!(ip(node.netns(), "route show 198.18.0.0/15"), "");
    }
    assert_no_trace(server.0.id());
    assert_no_trace(next.0.id());
}

/// An interrupt ends a measurement that would take a minute, on both hosts; and who connects and says nothing keeps nobody
/// out for long.
#[test]
fn an_interrupt_ends_both_and_silence_is_not_waited_for() {
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    let mut server = serve(two);
    let host = two.public_ip(Family::V4);
    let silent = one.netns().run(|| TcpStream::connect((host, 9286)));
    let silent = silent.unwrap().unwrap();
    let mut command = bench(&["--peer", &host.to_string(), "--key", "secret"]);
    command.args(["--only", "overlayd-udp-classic", "--tests", "tcp-1"]);
    command.args(["--rounds", "1", "--seconds", "60"]);
    let mut client = Killed(one.netns().spawn(command).unwrap());
    let end = Instant::now() + Duration::from_secs(30);
    while ![one, two].into_iter().all(has_device) {
        assert!(Instant::now() < end, "the silent one keeps it out");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(silent);
    std::thread::sleep(Duration::from_millis(500));
    send(&client, Signal::SIGINT);
    ends_soon(&mut client);
    assert_eq!(client.0.wait().unwrap().code(), Some(130));
    assert!(!has_device(one));
    send(&server, Signal::SIGINT);
    ends_soon(&mut server);
    assert!(!has_device(two));
    assert_no_trace(server.0.id());
}
