//! Queues are bounded, and what does not fit is counted where it was lost: at the device, at the receiver's socket, at the
//! sender's. A peer that takes nothing costs the others nothing.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use encap::Family::V4;
use integration::bed::{Backend, Bed, Daemon, Node, Underlay};
use integration::probe;
use nix::sys::signal::Signal;
use overlayd::config::Engine;
use overlayd::lab::traffic::Fragmenting;
use serde_json::Value;

use crate::count;

const ENGINES: [Engine; 2] = [Engine::Classic, Engine::Batched];

/// Datagrams to the discard port of the node's pod, in bursts, with a pause for everyone's breath between them.
fn flood(from: &Node, to: &Node, datagrams: usize, size: usize, pause: Duration) {
    let ip = to.pod_ip(V4);
    probe::within(from.pod(), || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for number in 1..=datagrams {
            socket.send_to(&vec![0; size], (ip, 9))?;
            if number % 50 == 0 {
                thread::sleep(pause);
            }
        }
        Ok(())
    });
}

/// A pod that takes the flood silently.
fn sink(node: &Node) -> UdpSocket {
    let ip = node.pod_ip(V4);
    probe::within(node.pod(), || UdpSocket::bind((ip, 9)))
}

/// What the kernel dropped because the daemon did not read the device's queue.
fn device_drops(node: &Node) -> u64 {
    let shown = probe::command(node.netns(), "ip -s -j link show overlay0");
    let shown: Value = serde_json::from_str(&shown).unwrap();
    shown[0]["stats64"]["tx"]["dropped"].as_u64().unwrap()
}

/// Bytes that wait in the daemon's sockets.
fn socket_queue(node: &Node) -> u64 {
    let shown = probe::command(node.netns(), "ss -Hunl sport = :8472");
    let queues = shown.lines().map(|line| line.split_whitespace().nth(1));
    queues
        .map(|bytes| bytes.unwrap().parse::<u64>().unwrap())
        .sum()
}

fn started(nodes: u8, backend: Backend, engine: Engine) -> (Bed, Vec<Daemon>) {
    let bed = crate::bed(nodes, backend, Underlay::V4);
    let daemons = bed.start_with(backend, engine);
    for node in &bed.nodes()[1..] {
        probe::ping(bed.node(1).pod(), node.pod_ip(V4));
    }
    (bed, daemons)
}

fn still_carries(bed: &Bed) {
    let (one, two) = (bed.node(1), bed.node(2));
    probe::tcp(
        one.pod(),
        one.pod_ip(V4),
        two.pod(),
        two.pod_ip(V4),
        1_000_000,
    );
}

#[test]
fn a_full_device_queue_drops_and_status_tells() {
    for engine in ENGINES {
        let (bed, daemons) = started(2, Backend::Vxlan, engine);
        let (one, two) = (bed.node(1), bed.node(2));
        let _sink = sink(two);
        let before = count(&daemons[0].status(), "outbound", "in");
        daemons[0].signal(Signal::SIGSTOP);
        let sent = 5000;
        flood(one, two, sent, 100, Duration::ZERO);
        let lost = device_drops(one);
        daemons[0].signal(Signal::SIGCONT);
        let sent = sent as u64;
        assert!(lost > 0 && lost < sent, "{engine:?}: {lost} of {sent}");
        let status = daemons[0].wait_for("the queue is empty", |status| {
            count(status, "outbound", "in") - before >= sent - lost
        });
        // Neighbour discovery may have added to it.
        let read = count(&status, "outbound", "in") - before;
        assert!(
            read + lost <= sent + 20,
            "{engine:?}: {read} read, {lost} lost"
        );
        let told = count(&status, "outbound", "overflow");
        assert!(told >= lost, "{engine:?}: {told} told of {lost}");
        assert_eq!(device_drops(one), told, "nothing is lost any more");
        still_carries(&bed);
        daemons
            .iter()
            .for_each(|daemon| daemon.assert_balanced(&[]));
        daemons.into_iter().for_each(Daemon::stop);
    }
}

#[test]
fn a_full_socket_buffer_drops_and_the_receiver_counts() {
    for engine in ENGINES {
        let (bed, daemons) = started(2, Backend::Vxlan, engine);
        let (one, two) = (bed.node(1), bed.node(2));
        let _sink = sink(two);
        daemons[1].signal(Signal::SIGSTOP);
        flood(one, two, 15_000, 1400, Duration::from_millis(2));
        daemons[0].assert_balanced(&[]);
        daemons[1].signal(Signal::SIGCONT);
        // The kernel tells its count with the next datagram that finds room.
        daemons[1].wait_for("an empty socket", |_| socket_queue(two) == 0);
        probe::ping(one.pod(), two.pod_ip(V4));
        let sent = count(&daemons[0].status(), "outbound", "forwarded");
        let status = daemons[1].status();
        let [came, lost] = ["in", "overflow"].map(|name| count(&status, "inbound", name));
        eprintln!("{engine:?}: {sent} sent, {came} came, {lost} lost");
        assert!(lost > 0, "{engine:?}");
        match engine {
            Engine::Classic => assert_eq!(came + lost, sent),
            // A train that the kernel kept in one piece is lost in one piece, and counted once.
            Engine::Batched => assert!(came + lost <= sent, "{came} and {lost} of {sent}"),
        }
        still_carries(&bed);
        daemons
            .iter()
            .for_each(|daemon| daemon.assert_balanced(&[]));
        daemons.into_iter().for_each(Daemon::stop);
    }
}

/// A narrow link holds packets back; they fill the sender's buffer.
#[test]
fn a_full_send_buffer_drops_and_the_sender_counts() {
    for (engine, backend) in [
        (Engine::Classic, Backend::Udp),
        (Engine::Batched, Backend::Udp),
        (Engine::Batched, Backend::Vxlan),
    ] {
        let (bed, daemons) = started(2, backend, engine);
        let (one, two) = (bed.node(1), bed.node(2));
        let _sink = sink(two);
        let narrow = "rate 1mbit burst 3000 limit 200000000";
        probe::command(
            one.netns(),
            &format!("tc qdisc add dev eth0 root tbf {narrow}"),
        );
        flood(one, two, 15_000, 1400, Duration::from_millis(1));
        probe::command(one.netns(), "tc qdisc del dev eth0 root");
        let lost = daemons[0].drops("send-queue-full");
        eprintln!("{engine:?} {backend:?}: {lost} lost");
        assert!(lost > 0);
        daemons[0].assert_balanced(&["send-queue-full"]);
        probe::ping(one.pod(), two.pod_ip(V4));
        still_carries(&bed);
        daemons.into_iter().for_each(Daemon::stop);
    }
}

/// Node 3 gets a steady flood and takes nothing of it; all the while node 2 gets whatever is sent to it.
fn is_fair(engine: Engine, backend: Backend, spoil: impl FnOnce(&Bed, &[Daemon])) {
    let (bed, daemons) = started(3, backend, engine);
    let (one, two, three) = (bed.node(1), bed.node(2), bed.node(3));
    spoil(&bed, &daemons);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let flooding = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Relaxed) {
                flood(one, three, 500, 1400, Duration::from_millis(2));
                rounds += 1;
            }
            rounds
        });
        // So that it has filled what it can fill.
        thread::sleep(Duration::from_millis(300));
        let (ip1, ip2) = (one.pod_ip(V4), two.pod_ip(V4));
        let sizes = (0..1400).step_by(7);
        let report = probe::udp_report(one.pod(), two.pod(), ip2, sizes, Fragmenting::Forbidden);
        probe::tcp(one.pod(), ip1, two.pod(), ip2, 2_000_000);
        probe::ping(one.pod(), ip2);
        done.store(true, Relaxed);
        assert!(report.all_intact(), "{engine:?} {backend:?}: {report:?}");
        assert!(flooding.join().unwrap() > 0);
    });
    daemons[2].signal(Signal::SIGCONT);
    let sent = |peer: usize| {
        daemons[0].status()["peers"][peer]["sent_packets"]
            .as_u64()
            .unwrap()
    };
    assert!(sent(0) > 200 && sent(1) > 500, "{:#}", daemons[0].status());
    daemons[0].assert_balanced(&[]);
    daemons.into_iter().for_each(Daemon::stop);
}

fn unplugged(bed: &Bed, _: &[Daemon]) {
    // Its neighbours' entries for it go stale and fail: what is sent waits for an answer that never comes.
    probe::command(bed.node(3).netns(), "ip link set eth0 down");
    probe::command(bed.node(1).netns(), "ip neigh flush dev eth0");
}

fn asleep(_: &Bed, daemons: &[Daemon]) {
    daemons[2].signal(Signal::SIGSTOP);
}

#[test]
fn a_peer_that_is_gone_costs_the_others_nothing() {
    is_fair(Engine::Batched, Backend::Udp, unplugged);
    is_fair(Engine::Batched, Backend::Vxlan, unplugged);
    is_fair(Engine::Classic, Backend::Udp, unplugged);
}

#[test]
fn a_peer_that_reads_nothing_costs_the_others_nothing() {
    is_fair(Engine::Batched, Backend::Udp, asleep);
    is_fair(Engine::Batched, Backend::Vxlan, asleep);
}
