//! Flows are spread over the source ports of the pool, and each keeps to one (RFC 7348 section 5).

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use encap::Family::V4;
use encap::Inner;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use integration::bed::{Backend, Daemon, Underlay};
use integration::probe;
use integration::wire::Wire;
use overlayd::config::Engine;

const FLOWS: usize = 1000;
/// Source ports of an address's pool.
const POOL: usize = 16;
/// VXLAN and Ethernet headers, in bytes.
const VXLAN: usize = 22;

/// Inner source ports to a destination port, with the outer source ports that their packets left by.
fn ports(
    frames: &[Vec<u8>],
    from: std::net::IpAddr,
    to: u16,
    header: usize,
) -> BTreeMap<u16, BTreeSet<u16>> {
    let mut ports = BTreeMap::<u16, BTreeSet<u16>>::new();
    for frame in frames {
        let Ok(packet) = SlicedPacket::from_ethernet(frame) else {
            continue;
        };
        let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) =
            (packet.net, packet.transport)
        else {
            continue;
        };
        if ip.header().source_addr() != from {
            continue;
        }
        // A train passes as one frame, its datagrams one behind the other.
        let mut rest = udp.payload();
        while let Some(Ok(inner)) = rest.get(header..).map(Inner::parse) {
            let packet = &rest[header..];
            if let Some((source, destination)) = inner.ports(packet) {
                if destination == to {
                    ports.entry(source).or_default().insert(udp.source_port());
                }
            }
            rest = &packet[inner.total_len..];
        }
    }
    ports
}

fn spread(backend: Backend, header: usize) -> BTreeMap<u16, BTreeSet<u16>> {
    let bed = crate::bed(2, backend, Underlay::V4);
    let daemons = bed.start_with(backend, Engine::Batched);
    let (one, two) = (bed.node(1), bed.node(2));
    let receiver = probe::within(two.pod(), || UdpSocket::bind((two.pod_ip(V4), 0)));
    let to = receiver.local_addr().unwrap();
    probe::ping(one.pod(), to.ip());
    let wire = Wire::listen(bed.underlay());
    probe::within(one.pod(), || {
        let sockets = (0..FLOWS).map(|_| UdpSocket::bind("0.0.0.0:0"));
        let sockets = sockets.collect::<Result<Vec<_>, _>>()?;
        // In each round another size, so that the trains are others.
        for size in [100, 700, 40] {
            for some in sockets.chunks(50) {
                for socket in some {
                    socket.send_to(&vec![0; size], to)?;
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    });
    daemons[0].wait_for("all have been sent", |status| {
        status["peers"][0]["sent_packets"].as_u64() >= Some(3 * FLOWS as u64)
    });
    let ports = ports(&wire.stop(), one.public_ip(V4), to.port(), header);
    assert_eq!(ports.len(), FLOWS);
    daemons.into_iter().for_each(Daemon::stop);
    ports
}

#[test]
fn vxlan_flows_are_spread_over_the_pool_and_keep_their_ports() {
    let ports = spread(Backend::Vxlan, VXLAN);
    let mut shares = BTreeMap::<u16, usize>::new();
    for (flow, outer) in &ports {
        assert_eq!(outer.len(), 1, "flow {flow} left by {outer:?}");
        *shares.entry(*outer.first().unwrap()).or_default() += 1;
    }
    assert_eq!(shares.len(), POOL, "{shares:?}");
    // Thrown at random, a port's share is 62 or 63, give or take 8.
    assert!(
        shares.values().all(|share| (20..120).contains(share)),
        "{shares:?}"
    );
}

/// flannel's nodes expect a datagram to come from the port that they send to.
#[test]
fn raw_udp_leaves_by_the_one_port() {
    let ports = spread(Backend::Udp, 0);
    assert!(ports.values().all(|outer| *outer == BTreeSet::from([8285])));
}
