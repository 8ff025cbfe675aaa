//! What is known about the way to a peer follows the kernel's tables.

use std::net::IpAddr;
use std::time::Duration;

use overlayd::inject::{Paths, View};
use overlayd::kernel::Features;
use tokio::time::{sleep, timeout};

use crate::bed::{FAMILIES, KINDS, PEER4, PEER6, Pair, runtime, sources};

const PEERS: [IpAddr; 2] = [IpAddr::V4(PEER4), IpAddr::V6(PEER6)];

/// Runs `test` in our namespace with the paths to the peer's two addresses watched.
fn watching(pair: &Pair, test: impl AsyncFnOnce(&Paths) + Send) {
    let run = || {
        runtime().block_on(async {
            let paths = Paths::watch(pair.ifindex(), sources()).await.unwrap();
            paths.set_peers(PEERS);
            test(&paths).await;
        });
    };
    pair.ours.run(run).unwrap();
}

/// Waits until the view is so; fails after a time in which it must have become so.
async fn until(paths: &Paths, what: &str, is: impl Fn(&View) -> bool) {
    let wait = async {
        while !is(&paths.view()) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let done = timeout(Duration::from_secs(20), wait).await;
    assert!(done.is_ok(), "never: {what}; {:?}", paths.view());
}

fn talk(pair: &Pair) {
    pair.us("ping -c 1 -W 2 10.99.0.2");
    pair.us("ping -c 1 -W 2 fd99::2");
}

#[test]
fn a_path_is_known_while_its_neighbour_is() {
    let pair = Pair::new();
    watching(&pair, async |paths| {
        sleep(Duration::from_millis(100)).await;
        assert!(paths.view().is_empty(), "nobody has talked to the peer");
        talk(&pair);
        until(paths, "both paths", |view| view.len() == 2).await;
        for (family, peer) in FAMILIES.into_iter().zip(PEERS) {
            assert_eq!(paths.view().path(peer), Some(&pair.path(family)));
        }
        assert_eq!(paths.view().path([10, 99, 0, 9].into()), None);

        pair.us("ip neigh del 10.99.0.2 dev eth0");
        until(paths, "the IPv6 path alone", |view| {
            view.path(PEERS[0]).is_none() && view.path(PEERS[1]).is_some()
        })
        .await;
        // The peer is another machine now.
        pair.them("ip link set eth0 address 0a:00:00:00:00:99");
        pair.us("ip neigh flush dev eth0");
        until(paths, "no path", View::is_empty).await;
        pair.them("ip addr replace fd99::2/64 dev eth0 nodad");
        talk(&pair);
        until(paths, "both paths again", |view| view.len() == 2).await;
        let known = *paths.view().path(PEERS[0]).unwrap();
        assert_eq!(known.next_hop.to_string(), "0a:00:00:00:00:99");

        paths.set_peers([PEERS[0]]);
        until(paths, "one peer", |view| view.len() == 1).await;
        assert!(paths.view().path(PEERS[1]).is_none());
    });
}

#[test]
fn routes_are_followed() {
    let pair = Pair::new();
    watching(&pair, async |paths| {
        talk(&pair);
        until(paths, "both paths", |view| view.len() == 2).await;
        // Through a router, which has a smaller MTU.
        pair.us("ip neigh add 10.99.0.7 lladdr 0a:00:00:00:00:07 dev eth0 nud permanent");
        pair.us("ip route add 10.99.0.2/32 via 10.99.0.7 mtu 1400");
        until(paths, "the router", |view| {
            view.path(PEERS[0]).is_some_and(|path| {
                path.next_hop.to_string() == "0a:00:00:00:00:07" && path.mtu == 1400
            })
        })
        .await;
        // By another device, to nowhere, and into a tunnel of the route's: not by injection.
        pair.us("ip link add veth8 type veth peer name veth9");
        pair.us("ip link set veth8 up");
        for elsewhere in ["dev veth8", "unreachable"] {
            let (verb, rest) = match elsewhere {
                "unreachable" => ("unreachable 10.99.0.2/32", ""),
                device => ("10.99.0.2/32", device),
            };
            pair.us(&format!("ip route replace {verb} {rest}"));
            until(paths, elsewhere, |view| view.path(PEERS[0]).is_none()).await;
            pair.us("ip route del 10.99.0.2/32");
            until(paths, "the path again", |view| view.len() == 2).await;
        }
        // A rule that sends our address's packets elsewhere.
        pair.us("ip route add default dev veth8 table 77");
        pair.us("ip rule add from 10.99.0.1 table 77");
        until(paths, "the rule", |view| view.path(PEERS[0]).is_none()).await;
        pair.us("ip rule del from 10.99.0.1 table 77");
        until(paths, "no rule", |view| view.len() == 2).await;
    });
}

#[test]
fn the_underlay_device_is_followed() {
    let pair = Pair::new();
    watching(&pair, async |paths| {
        talk(&pair);
        until(paths, "both paths", |view| view.len() == 2).await;
        let all = Features {
            tcp4: true,
            tcp6: true,
            udp: true,
            tunnel: true,
            tunnel_csum: true,
        };
        assert_eq!(paths.view().features(), all);
        pair.us("ethtool -K eth0 tx-udp_tnl-csum-segmentation off");
        let less = Features {
            tunnel_csum: false,
            ..all
        };
        until(paths, "a feature off", |view| view.features() == less).await;
        let pay = |kind| FAMILIES.map(|inner| paths.view().pays(kind, inner));
        assert_eq!(KINDS.map(pay), [[false, false], [false, false]]);
        pair.us("ethtool -K eth0 tx-udp_tnl-csum-segmentation on");
        until(paths, "and on", |view| view.features() == all).await;
        assert_eq!(KINDS.map(pay), [[true, true], [true, true]]);
        pair.us("ethtool -K eth0 tso off");
        until(paths, "TSO off", |view| {
            !view.features().tcp4 && view.features().udp
        })
        .await;

        // Of TSO, `ethtool -K tso` switches both families.
        assert_eq!(KINDS.map(pay), [[false, false], [true, true]]);

        pair.us("ip link set eth0 mtu 1400");
        until(paths, "the MTU", |view| {
            view.path(PEERS[0]).is_some_and(|path| path.mtu == 1400)
        })
        .await;
        pair.us("ip link set eth0 address 0a:00:00:00:00:11");
        talk(&pair);
        until(paths, "our address", |view| {
            view.path(PEERS[0])
                .is_some_and(|path| path.source_mac.to_string() == "0a:00:00:00:00:11")
        })
        .await;
        pair.them("ip link set eth0 down");
        until(paths, "no carrier", View::is_empty).await;
        pair.us("ip link del eth0");
        sleep(Duration::from_millis(100)).await;
        assert!(paths.view().is_empty());
    });
}

#[test]
fn a_stale_neighbour_of_a_used_path_is_asked_for() {
    let pair = Pair::new();
    pair.us("sysctl -qw net.ipv4.neigh.eth0.delay_first_probe_time=1");
    let state = || pair.us("ip neigh show 10.99.0.2 dev eth0");
    watching(&pair, async |paths| {
        talk(&pair);
        until(paths, "both paths", |view| view.len() == 2).await;
        pair.us("ip neigh change 10.99.0.2 dev eth0 nud stale");
        // Nobody uses it: nobody asks.
        paths.view().path(PEERS[1]);
        sleep(Duration::from_secs(5)).await;
        assert!(state().contains("STALE"), "{}", state());
        until(paths, "confirmed", |view| {
            assert!(view.path(PEERS[0]).is_some(), "the path is lost meanwhile");
            state().contains("REACHABLE")
        })
        .await;
        // The peer goes away, and nobody tells.
        pair.them("ip addr del 10.99.0.2/24 dev eth0");
        pair.us("ip neigh change 10.99.0.2 dev eth0 nud stale");
        until(paths, "found out", |view| view.path(PEERS[0]).is_none()).await;
    });
}

#[test]
fn where_ipsec_protects_the_underlay_nothing_is_injected() {
    let pair = Pair::new();
    let policy = "src 10.99.0.1/32 dst 10.99.0.2/32 dir out";
    watching(&pair, async |paths| {
        talk(&pair);
        until(paths, "both paths", |view| view.len() == 2).await;
        pair.us(&format!(
            "ip xfrm policy add {policy} tmpl proto esp mode transport"
        ));
        until(paths, "no path", View::is_empty).await;
        pair.us(&format!("ip xfrm policy del {policy}"));
        until(paths, "both paths again", |view| view.len() == 2).await;
    });
}
