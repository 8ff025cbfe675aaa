//! Engines, backends and underlay families, both families inside, while the underlay's offloads change.

use encap::Family::{V4, V6};
use integration::bed::{Backend, Daemon, Underlay};
use integration::offloads::Offloads;
use integration::probe;
use overlayd::config::Engine;
use overlayd::lab::traffic::Fragmenting;

const BYTES: u64 = 2_000_000;

fn carry(engine: Engine, backend: Backend, underlay: Underlay) {
    let bed = crate::bed(2, backend, underlay);
    let daemons = bed.start_with(backend, engine);
    let mtu = daemons[0].status()["device"]["mtu"].as_u64().unwrap();
    let (one, two) = (bed.node(1), bed.node(2));
    for offloads in Offloads::ALL {
        eprintln!("{offloads:?}");
        offloads.apply(&bed);
        for family in [V4, V6] {
            let (ip1, ip2) = (one.pod_ip(family), two.pod_ip(family));
            probe::ping(one.pod(), ip2);
            probe::ping(two.pod(), ip1);
            probe::tcp(one.pod(), ip1, two.pod(), ip2, BYTES);
            probe::tcp(two.pod(), ip2, one.pod(), ip1, BYTES);
            let most = usize::try_from(mtu).unwrap() - probe::headers(family);
            let sizes = (0..=most).step_by(111).chain([most - 1, most]);
            probe::udp(one.pod(), two.pod(), ip2, sizes, Fragmenting::Forbidden);
            let large = [most + 1, 9001];
            probe::udp(two.pod(), one.pod(), ip1, large, Fragmenting::Allowed);
        }
    }
    daemons
        .iter()
        .for_each(|daemon| daemon.assert_balanced(&[]));
    daemons.into_iter().for_each(Daemon::stop);
}

#[test]
fn classic_udp_over_ipv4() {
    carry(Engine::Classic, Backend::Udp, Underlay::V4);
}

#[test]
fn classic_udp_over_ipv6() {
    carry(Engine::Classic, Backend::Udp, Underlay::V6);
}

#[test]
fn classic_vxlan_over_ipv4() {
    carry(Engine::Classic, Backend::Vxlan, Underlay::V4);
}

#[test]
fn classic_vxlan_over_ipv6() {
    carry(Engine::Classic, Backend::Vxlan, Underlay::V6);
}

#[test]
fn batched_udp_over_ipv4() {
    carry(Engine::Batched, Backend::Udp, Underlay::V4);
}

#[test]
fn batched_udp_over_ipv6() {
    carry(Engine::Batched, Backend::Udp, Underlay::V6);
}

#[test]
fn batched_vxlan_over_ipv4() {
    carry(Engine::Batched, Backend::Vxlan, Underlay::V4);
}

#[test]
fn batched_vxlan_over_ipv6() {
    carry(Engine::Batched, Backend::Vxlan, Underlay::V6);
}
