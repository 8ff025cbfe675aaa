//! Which routes the kernel shall have: into the device, or, by backend, straight to the peers.
//!
//! ```text
//! udp, vxlan        10.244.0.0/16 dev overlay0                     everything is encapsulated
//! direct-routing    10.244.0.0/16 dev overlay0
//!                   10.244.2.0/24 via 10.99.0.2 dev eth0           a peer on our segment
//! host-gw           10.244.2.0/24 via 10.99.0.2 dev eth0           nothing is encapsulated
//! alloc             none                                           the lease is all
//! ```
//!
//! A packet that goes straight to a peer needs the peer's host to be its next hop: a router between them would not know
//! the overlay's addresses. Whether it is, the main table says: the longest prefix that holds the peer's public IP has
//! no gateway and leads into the underlay interface (flannel `pkg/ip/iface.go`, `DirectRouting`, asks the kernel the
//! same).

use std::net::IpAddr;

use encap::Family;
use ipnet::IpNet;

use crate::config::{Backend, Config};
use crate::kernel::reconcile::Actual;
use crate::kernel::{Link, ROUTE_PROTOCOL, Route, RouteSpec};
use crate::lease::Lease;
use crate::lease::sync::{Objection, PeerLeases};

/// Who is routed to without encapsulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direct {
    /// Nobody.
    No,
    /// Those on our segment.
    Near,
    /// Everybody, or not at all.
    All,
}

impl Direct {
    pub(super) fn of(backend: &Backend) -> Self {
        match backend {
            Backend::Vxlan(vxlan) if vxlan.direct_routing => Direct::Near,
            Backend::Udp(_) | Backend::Vxlan(_) | Backend::Alloc => Direct::No,
            Backend::HostGw => Direct::All,
        }
    }
}

/// A prefix that a peer answers for, and the peer's public IP of its family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hop {
    prefix: IpNet,
    via: Option<IpAddr>,
    /// For people.
    lease: Lease,
}

/// The prefixes of all peers.
pub(super) fn hops(peers: &[PeerLeases]) -> Vec<Hop> {
    let of = |peer: &PeerLeases| -> Vec<Hop> {
        let own = peer.lease.claim(false).subnets();
        let all = own.chain(peer.also.iter().copied());
        all.map(|prefix| Hop {
            prefix,
            via: match Family::of(&prefix.network()) {
                Family::V4 => peer.lease.public_ip.map(IpAddr::V4),
                Family::V6 => peer.lease.public_ipv6.map(IpAddr::V6),
            },
            lease: peer.lease.clone(),
        })
        .collect()
    };
    peers.iter().flat_map(of).collect()
}

/// What leads into the device: the overlay networks, and static routes that lie outside of them.
pub(super) fn into_device(config: &Config, routed: &[IpNet]) -> Vec<IpNet> {
    let networks = networks(config);
    let outside = |prefix: &&IpNet| !networks.iter().any(|network| network.contains(*prefix));
    let routed = routed.iter().filter(outside).copied();
    networks.iter().copied().chain(routed).collect()
}

/// The overlay networks.
pub(super) fn networks(config: &Config) -> Vec<IpNet> {
    let both = [
        config.network.v4.map(IpNet::V4),
        config.network.v6.map(IpNet::V6),
    ];
    both.into_iter().flatten().collect()
}

/// The routes straight to peers, and the peers that there can be none to.
pub(super) fn to_peers(
    direct: Direct,
    hops: &[Hop],
    iface: &Link,
    actual: &Actual,
) -> (Vec<RouteSpec>, Vec<Objection>) {
    let (mut routes, mut refused) = (Vec::new(), Vec::new());
    if direct == Direct::No {
        return (routes, refused);
    }
    let ways = Ways::new(actual);
    for hop in hops {
        match ways.near(hop, iface, actual) {
            Ok(via) => routes.push(RouteSpec {
                via: Some(via),
                ..RouteSpec::new(hop.prefix, iface.index)
            }),
            // Others are encapsulated.
            Err(_) if direct == Direct::Near => {}
            Err(reason) => refused.push(Objection {
                subject: hop.lease.to_string(),
                reason,
            }),
        }
    }
    (routes, refused)
}

/// The ways of the underlay, the longest prefix first.
struct Ways<'a>(Vec<&'a Route>);

impl<'a> Ways<'a> {
    fn new(actual: &'a Actual) -> Self {
        // What we set ourselves says nothing about the underlay.
        let theirs = |route: &&Route| route.protocol != ROUTE_PROTOCOL;
        let mut routes: Vec<_> = actual.routes.iter().filter(theirs).collect();
        routes.sort_by_key(|route| (std::cmp::Reverse(route.dst.prefix_len()), route.metric));
        Ways(routes)
    }

    /// The peer's address, if it is a neighbour of ours on the underlay interface; otherwise why not.
    fn near(&self, hop: &Hop, iface: &Link, actual: &Actual) -> Result<IpAddr, String> {
        let Some(via) = hop.via else {
            let family = match hop.prefix {
                IpNet::V4(_) => "IPv4",
                IpNet::V6(_) => "IPv6",
            };
            return Err(format!(
                "{} needs a public {family} address of the node to route to: give its lease one",
                hop.prefix
            ));
        };
        let cure = "host-gw needs all nodes on one segment; use vxlan, with direct-routing = true for those that are";
        let way = self.0.iter().find(|route| route.dst.contains(&via));
        match way {
            None => Err(format!("there is no route to {via}: {cure}")),
            Some(Route { unicast: false, .. }) => {
                Err(format!("the route to {via} refuses packets: {cure}"))
            }
            Some(Route {
                via: Some(router), ..
            }) => Err(format!(
                "{via} is behind the router {router}, which does not know {}: {cure}",
                hop.prefix
            )),
            Some(Route { oif, .. }) if *oif == Some(iface.index) => Ok(via),
            Some(Route { oif, .. }) => Err(format!(
                "{via} is reached over {}, not over the underlay interface {}: set node.iface to it on the nodes that share it",
                oif.map_or_else(|| "another interface".into(), |oif| actual.name(oif)),
                iface.name
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETH0: u32 = 2;

    fn route(dst: &str, via: Option<&str>, oif: u32) -> Route {
        Route {
            refuses: None,
            dst: dst.parse().unwrap(),
            oif: Some(oif),
            via: via.map(|ip| ip.parse().unwrap()),
            src: None,
            mtu: None,
            expires: None,
            metric: 0,
            protocol: 2,
            scope: 253,
            unicast: true,
        }
    }

    fn underlay() -> Actual {
        Actual {
            links: vec![Link::named(ETH0, "eth0"), Link::named(3, "eth1")],
            addresses: Vec::new(),
            routes: vec![
                route("0.0.0.0/0", Some("10.99.0.254"), ETH0),
                route("10.99.0.0/24", None, ETH0),
                route("fd99::/64", None, ETH0),
                route("10.88.0.0/24", None, 3),
                Route {
                    unicast: false,
                    ..route("10.77.0.0/24", None, ETH0)
                },
                // Ours: says nothing about who is near.
                Route {
                    protocol: ROUTE_PROTOCOL,
                    ..route("10.66.0.0/24", None, ETH0)
                },
            ],
        }
    }

    fn peers(json: &str) -> Vec<PeerLeases> {
        let leases = crate::lease::parse(json.as_bytes()).unwrap();
        let peer = |lease| PeerLeases {
            lease,
            also: Vec::new(),
        };
        leases.into_iter().map(peer).collect()
    }

    fn all(direct: Direct) -> (Vec<String>, Vec<String>) {
        let mut peers = peers(
            r#"[
            {"Subnet": "10.244.2.0/24", "IPv6Subnet": "fd00:10:0:2::/64", "PublicIP": "10.99.0.2", "PublicIPv6": "fd99::2"},
            {"Subnet": "10.244.3.0/24", "PublicIP": "10.99.1.3"},
            {"Subnet": "10.244.4.0/24", "PublicIP": "10.88.0.4"},
            {"Subnet": "10.244.5.0/24", "PublicIP": "10.77.0.5"},
            {"Subnet": "10.244.6.0/24", "PublicIP": "10.66.0.6"},
            {"Subnet": "10.244.7.0/24", "PublicIPv6": "fd99::7"},
            {"IPv6Subnet": "fd00:10:0:8::/64", "PublicIPv6": "fd98::8"}]"#,
        );
        peers[0].also.push("192.168.7.0/24".parse().unwrap());
        let actual = underlay();
        let (routes, refused) = to_peers(direct, &hops(&peers), &actual.links[0], &actual);
        assert!(routes.iter().all(|spec| spec.oif == ETH0));
        let routes = routes.iter().map(|spec| actual.tell_spec(spec));
        let refused = refused
            .into_iter()
            .map(|o| format!("{}: {}", o.subject, o.reason));
        (routes.collect(), refused.collect())
    }

    #[test]
    fn neighbours_are_routed_to_and_the_others_are_refused_with_the_reason() {
        let (routes, refused) = all(Direct::All);
        assert_eq!(
            routes,
            [
                "10.244.2.0/24 via 10.99.0.2 dev eth0",
                "fd00:10:0:2::/64 via fd99::2 dev eth0",
                "192.168.7.0/24 via 10.99.0.2 dev eth0",
            ]
        );
        let words = [
            ("10.244.3.0/24", "behind the router 10.99.0.254"),
            ("10.244.4.0/24", "over eth1"),
            ("10.244.5.0/24", "refuses"),
            ("10.244.6.0/24", "behind the router 10.99.0.254"),
            ("10.244.7.0/24", "public IPv4 address"),
            ("fd00:10:0:8::/64", "no route to fd98::8"),
        ];
        assert_eq!(refused.len(), words.len(), "{refused:#?}");
        for (said, (subnet, word)) in refused.iter().zip(words) {
            assert!(said.starts_with(subnet) && said.contains(word), "{said}");
        }
    }

    #[test]
    fn with_a_tunnel_those_that_are_not_near_are_nobodys_fault() {
        let (routes, refused) = all(Direct::Near);
        assert_eq!((routes.len(), refused.len()), (3, 0));
        assert_eq!(all(Direct::No), (Vec::new(), Vec::new()));
    }
}
