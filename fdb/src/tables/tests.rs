//! The tables as the datapath asks them.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn public(v4: Option<&str>, v6: Option<&str>) -> Endpoint {
    Endpoint {
        v4: v4.map(|ip| ip.parse().unwrap()),
        v6: v6.map(|ip| ip.parse().unwrap()),
    }
}

fn hop(peer: PeerId, to: &str) -> NextHop {
    NextHop {
        peer,
        to: SocketAddr::new(ip(to), 8472),
        mtu: 1450,
        header: encap::Header::EMPTY,
    }
}

/// Two peers, the first dual-stack, and this node.
fn tables() -> Tables<&'static str> {
    let mut builder = Tables::builder();
    builder.own(public(Some("10.99.0.1"), Some("fd99::1")));
    builder.local(net("10.244.1.0/24"));
    builder.local(net("fd00:10:244:1::/64"));
    let two = builder.peer(public(Some("10.99.0.2"), Some("fd99::2")), "two");
    builder.route(net("10.244.2.0/24"), hop(two, "10.99.0.2"));
    builder.route(net("fd00:10:244:2::/64"), hop(two, "fd99::2"));
    let three = builder.peer(public(Some("10.99.0.3"), None), "three");
    builder.route(net("10.244.3.0/24"), hop(three, "10.99.0.3"));
    builder.build()
}

#[test]
fn destinations_lead_to_peers_here_or_nowhere() {
    let tables = tables();
    let Route::Peer(found) = tables.route(ip("10.244.2.9")) else {
        panic!("no peer")
    };
    assert_eq!(*found, hop(0, "10.99.0.2"));
    assert_eq!(tables.peer(found.peer).data, "two");
    assert_eq!(
        tables.route(ip("fd00:10:244:2::9")),
        Route::Peer(&hop(0, "fd99::2"))
    );
    assert_eq!(tables.route(ip("10.244.1.9")), Route::Local);
    assert_eq!(tables.route(ip("fd00:10:244:1::9")), Route::Local);
    assert_eq!(tables.route(ip("10.244.4.9")), Route::None);
    assert_eq!(tables.route(ip("fd00:10:244:3::9")), Route::None);
    assert!(
        tables.is_local(ip("10.244.1.9"))
            && !tables.is_local(ip("10.244.2.9"))
            && !tables.is_local(ip("10.244.4.9"))
    );
}

#[test]
fn sources_belong_to_peers() {
    let tables = tables();
    assert_eq!(tables.owner(ip("10.244.3.9")), Some(1));
    assert_eq!(tables.owner(ip("fd00:10:244:2::9")), Some(0));
    assert_eq!(tables.owner(ip("10.244.1.9")), None, "ours is no peer's");
    assert_eq!(tables.owner(ip("10.244.9.9")), None);
}

#[test]
fn public_ips_name_nodes() {
    let tables = tables();
    assert_eq!(tables.peer_by_public(ip("10.99.0.2")), Some(0));
    assert_eq!(tables.peer_by_public(ip("fd99::2")), Some(0));
    assert_eq!(tables.peer_by_public(ip("10.99.0.3")), Some(1));
    assert_eq!(
        tables.peer_by_public(ip("10.99.0.1")),
        None,
        "we are not our peer"
    );
    assert!(
        tables.is_public_ip(ip("10.99.0.1"))
            && tables.is_public_ip(ip("fd99::1"))
            && tables.is_public_ip(ip("fd99::2"))
    );
    assert!(!tables.is_public_ip(ip("10.99.0.4")) && !tables.is_public_ip(ip("10.244.2.9")));
}

#[test]
fn leases_of_one_node_make_one_peer() {
    let mut builder = Tables::builder();
    let first = builder.peer(public(Some("10.99.0.2"), None), 1);
    assert_eq!(
        builder.peer(public(Some("10.99.0.2"), Some("fd99::2")), 2),
        first
    );
    assert_eq!(builder.peer(public(None, Some("fd99::2")), 3), first);
    let tables = builder.build();
    assert_eq!(tables.peers().len(), 1);
    assert_eq!(tables.peer(first).data, 1);
    assert_eq!(
        tables.peer(first).public,
        public(Some("10.99.0.2"), Some("fd99::2"))
    );
    assert_eq!(tables.peer_by_public(ip("fd99::2")), Some(first));
}

#[test]
fn an_empty_table_routes_nothing() {
    let tables = Tables::<()>::default();
    assert_eq!(tables.route(ip("10.244.1.1")), Route::None);
    assert_eq!(tables.owner(ip("::1")), None);
    assert!(!tables.is_public_ip(ip("0.0.0.0")));
}

#[test]
fn ten_thousand_dual_stack_leases_take_under_eight_megabytes() {
    let mut builder = Tables::builder();
    for n in 0..10_000_u32 {
        let public = Endpoint {
            v4: Some(Ipv4Addr::from_bits(0xc612_0000 + n)),
            v6: Some(Ipv6Addr::from_bits((0xfd99 << 112) + u128::from(n))),
        };
        // As the daemon does, one pointer for each peer's counters.
        let peer = builder.peer(public, std::sync::Arc::new(n));
        let v4 = Ipv4Net::new_assert(Ipv4Addr::from_bits(0x0a00_0000 + (n << 8)), 24);
        let v6 = Ipv6Net::new_assert(
            Ipv6Addr::from_bits((0xfd00_0010_0244 << 80) + (u128::from(n) << 64)),
            64,
        );
        builder.route(v4.into(), hop(peer, "10.99.0.1"));
        builder.route(v6.into(), hop(peer, "fd99::1"));
    }
    // The worse form for memory, in both families.
    builder.local(net("10.0.0.0/16"));
    builder.local(net("fd00:10:244::/52"));
    let tables = builder.build();
    assert_eq!(tables.owner(ip("10.39.15.1")), Some(9_999));
    assert!(tables.memory() < 8 << 20, "{} bytes", tables.memory());
    // And the figure is not made up: the next hops alone are this much.
    assert!(tables.memory() > 20_000 * size_of::<NextHop>());
}

#[test]
fn a_next_hop_is_one_cache_line() {
    assert!(size_of::<NextHop>() <= 64, "{}", size_of::<NextHop>());
}

#[test]
fn tables_cross_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Tables<std::sync::Arc<u64>>>();
    shared::<crate::Snapshot<Tables<()>>>();
    shared::<crate::Reader<Tables<()>>>();
}

proptest! {
    /// `route`, `owner` and `is_local` are three views of one answer.
    #[test]
    fn the_views_agree(
        prefixes in prop::collection::vec((any::<u16>(), 17_u8..=32, prop::option::of(0..4_u32)), 0..50),
        low in prop::collection::vec(any::<u16>(), 50),
    ) {
        let mut builder = Tables::builder();
        for n in 1..=4 {
            builder.peer(Endpoint { v4: Some(Ipv4Addr::new(10, 99, 0, n)), v6: None }, ());
        }
        for (bits, len, peer) in &prefixes {
            let prefix = Ipv4Net::new_assert(Ipv4Addr::from_bits(0x0af4_0000 | u32::from(*bits)), *len).trunc().into();
            match peer {
                Some(peer) => builder.route(prefix, hop(*peer, "10.99.0.1")),
                None => builder.local(prefix),
            }
        }
        let tables = builder.build();
        for low in low {
            let dst = IpAddr::V4(Ipv4Addr::from_bits(0x0af4_0000 | u32::from(low)));
            let holds = |(bits, len, _): &&(u16, u8, Option<u32>)| {
                let net = Ipv4Net::new_assert(Ipv4Addr::from_bits(0x0af4_0000 | u32::from(*bits)), *len);
                IpNet::V4(net).contains(&dst)
            };
            // The first of the longest.
            let best = prefixes.iter().rev().filter(holds).max_by_key(|(_, len, _)| *len);
            let (route, local) = match best {
                Some((_, _, Some(peer))) => (Some(*peer), false),
                Some((_, _, None)) => (None, true),
                None => (None, false),
            };
            prop_assert_eq!(tables.owner(dst), route);
            prop_assert_eq!(tables.is_local(dst), local);
            match tables.route(dst) {
                Route::Peer(hop) => prop_assert_eq!(Some(hop.peer), route),
                Route::Local => prop_assert!(local),
                Route::None => prop_assert!(route.is_none() && !local),
            }
        }
    }
}
