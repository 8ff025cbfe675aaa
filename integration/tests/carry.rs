//! overlayd to overlayd: both encapsulations, over each kind of underlay, IPv4 and IPv6 inside.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use encap::Family::{V4, V6};
use integration::bed::{Backend, Bed, Daemon, Spec, Underlay};
use integration::wire::Wire;
use integration::{probe, wire};
use overlayd::config::Engine;
use overlayd::lab::traffic::Fragmenting;

mod classic {
    use super::*;

    #[test]
    fn udp_over_ipv4() {
        carry(Backend::Udp, Underlay::V4, Engine::Classic);
    }

    #[test]
    fn udp_over_ipv6() {
        carry(Backend::Udp, Underlay::V6, Engine::Classic);
    }

    #[test]
    fn udp_over_both() {
        carry(Backend::Udp, Underlay::Dual, Engine::Classic);
    }

    #[test]
    fn vxlan_over_ipv4() {
        carry(Backend::Vxlan, Underlay::V4, Engine::Classic);
    }

    #[test]
    fn vxlan_over_ipv6() {
        carry(Backend::Vxlan, Underlay::V6, Engine::Classic);
    }

    #[test]
    fn vxlan_over_both() {
        carry(Backend::Vxlan, Underlay::Dual, Engine::Classic);
    }
}

mod batched {
    use super::*;

    #[test]
    fn udp_over_ipv4() {
        carry(Backend::Udp, Underlay::V4, Engine::Batched);
    }

    #[test]
    fn udp_over_ipv6() {
        carry(Backend::Udp, Underlay::V6, Engine::Batched);
    }

    #[test]
    fn udp_over_both() {
        carry(Backend::Udp, Underlay::Dual, Engine::Batched);
    }

    #[test]
    fn vxlan_over_ipv4() {
        carry(Backend::Vxlan, Underlay::V4, Engine::Batched);
    }

    #[test]
    fn vxlan_over_ipv6() {
        carry(Backend::Vxlan, Underlay::V6, Engine::Batched);
    }

    #[test]
    fn vxlan_over_both() {
        carry(Backend::Vxlan, Underlay::Dual, Engine::Batched);
    }
}

/// Everything that two nodes have to carry for each other.
fn carry(backend: Backend, underlay: Underlay, engine: Engine) {
    // The outer family that each inner one travels over, and with it the MTU that it has.
    let (over4, over6) = match underlay {
        Underlay::V4 => (V4, V4),
        Underlay::V6 => (V6, V6),
        Underlay::Dual => (V4, V6),
    };
    let mtu = |inner| 1500 - backend.overhead(if inner == V4 { over4 } else { over6 });
    let bed = Bed::with(&Spec {
        underlay,
        pod_mtu: mtu(V4),
        ..Spec::default()
    });
    let daemons = bed.start_with(backend, engine);
    let status = daemons[0].status();
    assert_eq!(status["device"]["mtu"], mtu(V4));
    assert_eq!(status["engine"], engine.name());

    let wire = Wire::listen(bed.underlay());
    pings(&bed);
    assert_families(&wire.stop(), backend, &bed, &[(over4, V4), (over6, V6)]);

    for family in [V4, V6] {
        let (one, two) = (bed.node(1), bed.node(2));
        let (from, to) = (one.pod_ip(family), two.pod_ip(family));
        probe::tcp(one.pod(), from, two.pod(), to, 10_000_000);
        let base = one.base_ip(family);
        probe::tcp(one.netns(), base, two.pod(), to, 1_000_000);

        let most = usize::try_from(mtu(family)).unwrap() - probe::headers(family);
        probe::udp(one.pod(), two.pod(), to, 0..=most, Fragmenting::Forbidden);
        // Fragments that the sender's kernel makes, the last of them tiny or full.
        let large = [most + 1, most + 8, 2 * most, 4000, 9001, 40_000, 65_507];
        probe::udp(one.pod(), two.pod(), to, large, Fragmenting::Allowed);
    }
    probe::premade_fragments(&bed);

    finish(daemons, &[]);
}

fn pings(bed: &Bed) {
    let (one, two) = (bed.node(1), bed.node(2));
    for family in [V4, V6] {
        for (from, to) in [
            (one.pod(), two.pod_ip(family)),
            (two.pod(), one.pod_ip(family)),
            (one.netns(), two.pod_ip(family)),
            (one.pod(), two.base_ip(family)),
            (one.pod(), two.gateway(family)),
            (one.netns(), two.base_ip(family)),
        ] {
            probe::ping(from, to);
        }
    }
}

/// Each inner family travelled over the outer one that it should, between the nodes' public IPs, and no other did.
fn assert_families(
    frames: &[Vec<u8>],
    backend: Backend,
    bed: &Bed,
    expected: &[(encap::Family, encap::Family)],
) {
    let seen: BTreeSet<_> = frames
        .iter()
        .filter_map(|frame| wire::carried(frame, backend))
        .collect();
    let publics = |outer| [bed.node(1).public_ip(outer), bed.node(2).public_ip(outer)];
    let expected: BTreeSet<_> = expected
        .iter()
        .flat_map(|(outer, inner)| {
            let [one, two] = publics(*outer);
            [(one, two, *inner), (two, one, *inner)]
        })
        .map(|(from, to, inner)| wire::Carried {
            from,
            to,
            inner_is_v4: inner == V4,
        })
        .collect();
    assert_eq!(seen, expected);
}

fn finish(daemons: Vec<Daemon>, expected_drops: &[&str]) {
    for daemon in &daemons {
        daemon.assert_balanced(expected_drops);
        let peer = &daemon.status()["peers"][0];
        for direction in ["sent", "received"] {
            // Two transfers of 10 MB each way.
            let bytes = peer[format!("{direction}_bytes")].as_u64().unwrap();
            assert!(bytes > 20_000_000, "{direction}: {peer:#}");
        }
    }
    daemons.into_iter().for_each(Daemon::stop);
}

/// A device larger than the path: IPv4 that allows it is fragmented here, before it is encapsulated.
#[test]
fn what_is_too_big_for_the_path_is_fragmented_inside() {
    for backend in [Backend::Udp, Backend::Vxlan] {
        let bed = Bed::new(2, Underlay::V4);
        let start = |node| Daemon::start(node, &node.config(backend).set("device.mtu", 1500));
        let daemons: Vec<_> = bed.nodes().iter().map(start).collect();
        let (one, two) = (bed.node(1).pod(), bed.node(2).pod());
        let to = bed.node(2).pod_ip(V4);
        let path = 1500 - usize::try_from(backend.overhead(V4)).unwrap();

        // The echo's socket sets DF, as sockets do. Its first large answer is refused by node 2, and the pod's kernel
        // then makes the fragments; those of the requests, without DF, are ours.
        let lesson = probe::udp_report(one, two, to, [1472], Fragmenting::Allowed);
        assert_eq!((lesson.sent, lesson.lost.len()), (1, 1), "{lesson:?}");
        assert_eq!(daemons[1].drops("too-big"), 1);

        let wire = Wire::listen(bed.underlay());
        let sizes = (path - 28 - 4..=1472).chain([3000, 9000, 65_507]);
        probe::udp(one, two, to, sizes, Fragmenting::Allowed);
        let frames = wire.stop();
        assert!(!frames.is_empty() && !frames.iter().any(|frame| wire::outer_is_fragment(frame)));

        let fragments = |node: usize| daemons[node].status()["outbound"]["fragments"].clone();
        assert!(
            fragments(0).as_u64() > Some(100),
            "{backend:?}: {}",
            fragments(0)
        );
        assert_eq!(fragments(1), 0);
        daemons[0].assert_balanced(&[]);
        daemons[1].assert_balanced(&["too-big"]);
        daemons.into_iter().for_each(Daemon::stop);
    }
}
