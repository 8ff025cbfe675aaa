//! Packets of a flow arrive in the order in which they left, whatever else is under way.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use encap::Family::{self, V4, V6};
use integration::bed::{Backend, Bed, Daemon, Underlay, feature};
use integration::probe;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use overlayd::config::Engine;
use overlayd::lab::traffic::Stream;
use socket2::SockRef;

use crate::protocol_counter;

const FLOWS: usize = 5;
const ROUNDS: usize = 60;
/// Datagrams of each flow in a round; they leave without a pause.
const BURST: usize = 40;
const ALL: usize = FLOWS * ROUNDS * BURST;

/// Runs of equal sizes, and odd ones between: what trains and superpackets are made of, and what ends them.
const SIZES: [usize; 8] = [1200, 1200, 1200, 64, 64, 700, 1200, 9];

/// A datagram's content: flow and number, then bytes that follow from them.
fn datagram(flow: usize, number: usize) -> Vec<u8> {
    let size = SIZES[(flow + number / 3) % SIZES.len()];
    let mut data = Stream::bytes((flow * ALL + number) as u64, size);
    data[0] = u8::try_from(flow).unwrap();
    data[1..5].copy_from_slice(&u32::try_from(number).unwrap().to_be_bytes());
    data
}

/// Several flows of datagrams, interleaved, of changing size and ECN mark.
fn datagrams(bed: &Bed, family: Family) {
    let (one, two) = (bed.node(1), bed.node(2));
    let ip = two.pod_ip(family);
    let receiver = probe::within(two.pod(), || UdpSocket::bind((ip, 0)));
    SockRef::from(&receiver)
        .set_recv_buffer_size(4 << 20)
        .unwrap();
    let timeout = Some(Duration::from_millis(100));
    receiver.set_read_timeout(timeout).unwrap();
    let to = receiver.local_addr().unwrap();
    let (received, sent) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = [None; FLOWS];
            let mut buffer = vec![0; 1 << 16];
            loop {
                let Ok((len, _)) = receiver.recv_from(&mut buffer) else {
                    if sent.load(Relaxed) {
                        return;
                    }
                    continue;
                };
                let flow = usize::from(buffer[0]);
                let number = u32::from_be_bytes(buffer[1..5].try_into().unwrap());
                let number = usize::try_from(number).unwrap();
                assert!(
                    buffer[..len] == datagram(flow, number),
                    "flow {flow}, {number}"
                );
                assert!(last[flow] < Some(number), "{number} after {:?}", last[flow]);
                last[flow] = Some(number);
                received.fetch_add(1, Relaxed);
            }
        });
        probe::within(one.pod(), || {
            let any: IpAddr = match family {
                V4 => [0; 4].into(),
                V6 => [0; 16].into(),
            };
            let sockets: Vec<_> = (0..FLOWS)
                .map(|_| UdpSocket::bind((any, 0)).unwrap())
                .collect();
            for round in 0..ROUNDS {
                for number in round * BURST..(round + 1) * BURST {
                    for (flow, socket) in sockets.iter().enumerate() {
                        send(socket, family, &datagram(flow, number), to, number)?;
                    }
                }
                wait_for(&received, (round + 1) * BURST * FLOWS);
            }
            sent.store(true, Relaxed);
            Ok(())
        });
    });
    assert_eq!(received.into_inner(), ALL, "{family:?}");
}

/// Every fifth is marked ECT(0), of one flow or another.
fn send(
    socket: &UdpSocket,
    family: Family,
    data: &[u8],
    to: SocketAddr,
    number: usize,
) -> std::io::Result<()> {
    let tos = if number % 5 == 0 { 2 } else { 0 };
    match family {
        V4 => SockRef::from(socket).set_tos_v4(tos)?,
        V6 => SockRef::from(socket).set_tclass_v6(tos)?,
    }
    socket.send_to(data, to).map(drop)
}

/// What is lost shows in the end.
fn wait_for(received: &AtomicUsize, wanted: usize) {
    let end = Instant::now() + Duration::from_millis(500);
    while received.load(Relaxed) < wanted && Instant::now() < end {
        thread::sleep(Duration::from_micros(200));
    }
}

/// TCP notices reordering itself: the receiver queues what is ahead, the sender learns from acknowledgments that
/// something it took for lost was late.
fn stream(bed: &Bed, family: Family) {
    let pods = [bed.node(1), bed.node(2)];
    let [(one, ip1), (two, ip2)] = pods.map(|node| (node.pod(), node.pod_ip(family)));
    probe::tcp(one, ip1, two, ip2, 20_000_000);
    for (sender, receiver) in [(one, two), (two, one)] {
        for name in ["TCPSACKReorder", "TCPRenoReorder", "TCPTSReorder"] {
            let noticed = protocol_counter(sender, "netstat", "TcpExt", name);
            assert_eq!(noticed, 0, "{name} in {sender}");
        }
        // Behind a loss, everything is ahead.
        if protocol_counter(sender, "snmp", "Tcp", "RetransSegs") == 0 {
            let ahead = protocol_counter(receiver, "netstat", "TcpExt", "TCPOFOQueue");
            assert_eq!(ahead, 0, "out of order in {receiver}");
        }
    }
}

/// Everything that this thread starts from now on shares one processor. A veth hands packets to the processor that sent
/// them, so a sender that moves to another processor can be overtaken by itself, on the best of overlays.
fn stay_on_one_processor() {
    let this = Pid::from_raw(0);
    let all = sched_getaffinity(this).unwrap();
    let mut one = CpuSet::new();
    let first = (0..CpuSet::count()).find(|cpu| all.is_set(*cpu).unwrap());
    one.set(first.unwrap()).unwrap();
    sched_setaffinity(this, &one).unwrap();
}

fn keeps_order(engine: Engine, backend: Backend) {
    keeps_order_with(backend, &[("datapath.engine", engine.name())]);
}

fn keeps_order_with(backend: Backend, settings: &[(&str, &str)]) {
    stay_on_one_processor();
    let bed = crate::bed(2, backend, Underlay::V4);
    let daemons = bed.start_set(backend, settings);
    for family in [V4, V6] {
        probe::ping(bed.node(1).pod(), bed.node(2).pod_ip(family));
        datagrams(&bed, family);
        stream(&bed, family);
    }
    daemons
        .iter()
        .for_each(|daemon| daemon.assert_balanced(&[]));
    daemons.into_iter().for_each(Daemon::stop);
}

#[test]
fn classic_udp_keeps_order() {
    keeps_order(Engine::Classic, Backend::Udp);
}

#[test]
fn batched_udp_keeps_order() {
    keeps_order(Engine::Batched, Backend::Udp);
}

#[test]
fn batched_vxlan_keeps_order() {
    keeps_order(Engine::Batched, Backend::Vxlan);
}

#[test]
fn several_udp_queues_keep_order() {
    keeps_order_with(Backend::Udp, &[("datapath.queues", "3")]);
}

#[test]
fn several_vxlan_queues_keep_order() {
    keeps_order_with(Backend::Vxlan, &[("datapath.queues", "3")]);
}

/// What one queue counts is told together with what the others do, and busy polling ends when it is told to.
#[test]
fn several_queues_that_poll_busily_are_told_of_and_stop() {
    stay_on_one_processor();
    let bed = crate::bed(2, Backend::Vxlan, Underlay::V4);
    let settings = [("datapath.queues", "4"), ("datapath.busy-poll", "50")];
    let daemons = bed.start_set(Backend::Vxlan, &settings);
    probe::ping(bed.node(1).pod(), bed.node(2).pod_ip(V4));
    stream(&bed, V4);
    for daemon in &daemons {
        let status = daemon.status();
        let queues = feature(&status, "tun-queues").unwrap();
        assert!(queues["note"].as_str().unwrap().starts_with('4'));
        assert_eq!(
            feature(&status, "rx-usecs").unwrap()["note"],
            "datapath.busy-poll is set"
        );
        assert!(crate::count(&status, "inbound", "forwarded") > 0);
        let threads = daemon.threads("comm");
        let forwarding = threads.iter().filter(|(name, _)| name == "forward");
        assert_eq!(forwarding.count(), 4);
    }
    daemons
        .iter()
        .for_each(|daemon| daemon.assert_balanced(&[]));
    daemons.into_iter().for_each(Daemon::stop);
}
