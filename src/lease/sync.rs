//! From leases to tables: which leases are taken, over which underlay family each peer is reached, and
//! the header that goes in front of its packets.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use encap::{Encapsulation, Family};
use fdb::{Claim, Endpoint, NextHop, PeerId, Rib, Source, StaticRoute, Tables};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Lease;
use crate::datapath::counters::PeerCounters;

/// What the tables are made from, besides the leases.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The overlay networks.
    pub network: fdb::Network,
    /// Our public IPs: where we send from and are sent to.
    pub public: Endpoint,
    /// The VXLAN network identifier, if the backend has one.
    pub vni: Option<u32>,
    /// The port that every node listens on.
    pub port: u16,
    /// The underlay interface's MTU, in bytes.
    pub underlay_mtu: u16,
    /// Static routes.
    pub routes: Vec<StaticRoute>,
}

/// A lease that was not taken, or only in part, and why.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Objection {
    /// Which lease or route: its subnet and public IP.
    pub subject: String,
    /// Why, and what to do.
    pub reason: String,
}

/// Why no tables could be made of the leases.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoOwnLease {
    /// No lease carries our public IP.
    #[error(
        "no lease for this node: none of the {count} leases has the public IP {public}; add {lease}, or set node.public-ip to this node's address in the leases"
    )]
    Missing {
        /// How many leases there are.
        count: usize,
        /// Our public IPs.
        public: String,
        /// What such a lease looks like.
        lease: String,
    },
    /// The lease that carries our public IP is of another backend or VNI.
    #[error("this node's lease {lease} cannot be used: {reason}")]
    Unusable {
        /// Our lease.
        lease: String,
        /// Why, and what to do.
        reason: String,
    },
}

/// One other node, as the tables know it.
#[derive(Clone, Debug)]
pub struct PeerLeases {
    /// Its lease, the first if it has several.
    pub lease: Lease,
    /// Further subnets that lead to it: of other leases of the same node, and of static routes.
    pub also: Vec<IpNet>,
}

/// Tables and what there is to say about them.
pub struct Synced {
    /// Our own lease.
    pub own: Lease,
    /// For the datapath.
    pub tables: fdb::Tables<Arc<PeerCounters>>,
    /// The nodes behind the tables' peers, by [`PeerId`].
    pub peers: Vec<PeerLeases>,
    /// What was not taken.
    pub objections: Vec<Objection>,
    /// Static routes that are taken, for the kernel's routing table: prefixes that lead into the device.
    pub routed: Vec<IpNet>,
}

/// The counters of the peers of an earlier table, by public IP: a peer keeps its counters for as long as
/// it keeps one of them.
pub type KnownPeers = HashMap<IpAddr, Arc<PeerCounters>>;

/// Which of `leases` is ours: the first that carries one of our public IPs.
///
/// # Errors
/// If there is none.
pub fn find_own<'a>(leases: &'a [Lease], ours: &[IpAddr]) -> Result<&'a Lease, NoOwnLease> {
    let is_own = |lease: &&Lease| lease.endpoint().ips().any(|ip| ours.contains(&ip));
    leases.iter().find(is_own).ok_or_else(|| {
        let lease = match ours.first() {
            Some(ip @ IpAddr::V6(_)) => {
                format!("{{\"IPv6Subnet\": \"...\", \"PublicIPv6\": \"{ip}\"}}")
            }
            Some(ip) => format!("{{\"Subnet\": \"...\", \"PublicIP\": \"{ip}\"}}"),
            None => "one".into(),
        };
        let ours: Vec<_> = ours.iter().map(IpAddr::to_string).collect();
        NoOwnLease::Missing {
            count: leases.len(),
            public: ours.join(" or "),
            lease,
        }
    })
}

/// Makes tables of `leases`, which stand in order of precedence; the first that carries one of our public
/// IPs is ours.
///
/// # Errors
/// If none of the leases is ours, or ours is refused.
pub fn sync<E: Encapsulation>(
    ground: &Ground,
    leases: &[Lease],
    encapsulation: &E,
    known: &KnownPeers,
) -> Result<Synced, NoOwnLease> {
    let ours: Vec<IpAddr> = ground.public.ips().collect();
    let own = find_own(leases, &ours)?;
    let mut objections = Vec::new();

    // Leases of another backend take no part: they neither carry packets nor claim addresses.
    let mut usable: Vec<&Lease> = Vec::new();
    for lease in leases {
        match foreign(lease, ground, E::NAME) {
            None => usable.push(lease),
            Some(reason) if std::ptr::eq(lease, own) => {
                return Err(NoOwnLease::Unusable {
                    lease: lease.to_string(),
                    reason,
                });
            }
            Some(reason) => objections.push(Objection {
                subject: lease.to_string(),
                reason,
            }),
        }
    }
    let claims: Vec<Claim> = usable
        .iter()
        // A node may hold several leases; those after the first only add subnets that are ours to deliver.
        .map(|lease| lease.claim(lease.is_of(&ground.public)))
        .collect();
    let rib = Rib::build(&ground.network, &claims, &ground.routes);
    for (source, refusal) in rib.refused() {
        let subject = match source {
            Source::Lease(index) if std::ptr::eq(usable[*index], own) => {
                let (lease, reason) = (own.to_string(), refusal.to_string());
                return Err(NoOwnLease::Unusable { lease, reason });
            }
            Source::Lease(index) => usable[*index].to_string(),
            Source::Route(index) => {
                let route = ground.routes[*index];
                format!("static route {} via {}", route.prefix, route.via)
            }
        };
        objections.push(Objection {
            subject,
            reason: refusal.to_string(),
        });
    }

    let mut tables = Tables::builder();
    tables.own(ground.public);
    let mut peers: Vec<PeerLeases> = Vec::new();
    let mut ids: HashMap<usize, PeerId> = HashMap::new();
    let mut taken: HashSet<*const PeerCounters> = HashSet::new();
    let prefixes = |index: usize| claims[index].subnets();
    for &index in rib.accepted() {
        if claims[index].own {
            prefixes(index).for_each(|prefix| tables.local(prefix));
            continue;
        }
        let lease = usable[index];
        let mut before = lease.endpoint().ips().filter_map(|ip| known.get(&ip));
        // A node whose lease was parted in two has two peers now: one of them starts anew.
        let counters = before
            .find(|counters| taken.insert(Arc::as_ptr(counters)))
            .cloned();
        let peer = tables.peer(lease.endpoint(), counters.unwrap_or_default());
        ids.insert(index, peer);
        match peers.get_mut(peer as usize) {
            Some(node) => node.also.extend(prefixes(index)),
            None => peers.push(PeerLeases {
                lease: lease.clone(),
                also: Vec::new(),
            }),
        }
        for prefix in prefixes(index) {
            match ground.next_hop(lease, peer, prefix, encapsulation) {
                Some(hop) => tables.route(prefix, hop),
                None => objections.push(no_common_family(lease, prefix, ground)),
            }
        }
    }
    let mut routed = Vec::new();
    for route in rib.routes() {
        let prefix = ground.routes[route.route].prefix;
        if route.local {
            tables.local(prefix);
        } else if let Some(&peer) = ids.get(&route.claim) {
            let lease = usable[route.claim];
            if let Some(hop) = ground.next_hop(lease, peer, prefix, encapsulation) {
                tables.route(prefix, hop);
                routed.push(prefix);
                peers[peer as usize].also.push(prefix);
            } else {
                objections.push(no_common_family(lease, prefix, ground));
            }
        }
    }
    Ok(Synced {
        own: own.clone(),
        tables: tables.build(),
        peers,
        objections,
        routed,
    })
}

impl Ground {
    /// How packets for `prefix` reach `lease`'s node. Inner IPv4 travels between the nodes' public IPv4
    /// addresses and inner IPv6 between their IPv6 ones, or both over the one family that they share.
    fn next_hop<E: Encapsulation>(
        &self,
        lease: &Lease,
        peer: PeerId,
        prefix: IpNet,
        encapsulation: &E,
    ) -> Option<NextHop> {
        let inner = Family::of(&prefix.network());
        let v4 = lease
            .public_ip
            .filter(|_| self.public.v4.is_some())
            .map(IpAddr::V4);
        let v6 = lease
            .public_ipv6
            .filter(|_| self.public.v6.is_some())
            .map(IpAddr::V6);
        let outer = match inner {
            Family::V4 => v4.or(v6),
            Family::V6 => v6.or(v4),
        }?;
        Some(NextHop {
            peer,
            to: SocketAddr::new(outer, self.port),
            mtu: self
                .underlay_mtu
                .saturating_sub(E::overhead(Family::of(&outer))),
            header: encapsulation.header(inner, lease.vtep_mac(inner)),
        })
    }
}

/// Why a lease takes no part in this overlay, if it does not.
fn foreign(lease: &Lease, ground: &Ground, backend: &str) -> Option<String> {
    // The file store's rule: a lease that names no backend is of the configured one.
    if !lease.is_backend(backend, backend) {
        let theirs = lease.backend_type.as_deref().unwrap_or(backend);
        return Some(format!(
            "it is of the backend `{theirs}`, this node runs `{backend}`"
        ));
    }
    let vni = ground.vni?;
    let data = [&lease.backend_data, &lease.backend_v6_data];
    let theirs = data
        .into_iter()
        .flatten()
        .find_map(|data| data.vni.filter(|theirs| *theirs != vni))?;
    Some(format!("it is of VNI {theirs}, this node's is {vni}"))
}

fn no_common_family(lease: &Lease, prefix: IpNet, ground: &Ground) -> Objection {
    let reason = format!(
        "no way to reach {prefix}: the node is at {}, we are at {}; give both a public IP of one family",
        lease.endpoint(),
        ground.public
    );
    Objection {
        subject: lease.to_string(),
        reason,
    }
}

impl fmt::Display for Lease {
    /// Subnets and public IPs: `10.244.2.0/24 fd00:10:0:2::/64 at 10.99.0.2 and fd99::2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefixes: Vec<_> = self
            .claim(false)
            .subnets()
            .map(|net| net.to_string())
            .collect();
        write!(f, "{} at {}", prefixes.join(" "), self.endpoint())
    }
}

#[cfg(test)]
mod tests {
    use encap::{MacAddr, OwnMacs, RawUdp, Vxlan};
    use fdb::{Network, Route};

    use super::*;

    const LEASES: &str = r#"[
      {"Subnet": "10.244.1.0/24", "IPv6Subnet": "fd00:10:0:1::/64", "PublicIP": "10.99.0.1", "PublicIPv6": "fd99::1"},
      {"Subnet": "10.244.2.0/24", "IPv6Subnet": "fd00:10:0:2::/64", "PublicIP": "10.99.0.2", "PublicIPv6": "fd99::2",
       "BackendData": {"VNI": 1, "VtepMAC": "0e:00:00:00:00:04"}, "BackendV6Data": {"VNI": 1, "VtepMAC": "0e:00:00:00:00:06"}},
      {"Subnet": "10.244.3.0/24", "IPv6Subnet": "fd00:10:0:3::/64", "PublicIP": "10.99.0.3"},
      {"Subnet": "10.244.4.0/24", "PublicIPv6": "fd99::4"}
    ]"#;

    fn ground(public: Endpoint) -> Ground {
        Ground {
            network: Network {
                v4: Some("10.244.0.0/16".parse().unwrap()),
                v6: Some("fd00:10::/48".parse().unwrap()),
            },
            public,
            vni: Some(1),
            port: 8472,
            underlay_mtu: 1500,
            routes: Vec::new(),
        }
    }

    fn dual() -> Endpoint {
        Endpoint {
            v4: "10.99.0.1".parse().ok(),
            v6: "fd99::1".parse().ok(),
        }
    }

    fn vxlan() -> Vxlan {
        let mac = MacAddr([0x0a, 0x58, 10, 99, 0, 1]);
        Vxlan {
            vni: 1,
            macs: OwnMacs { v4: mac, v6: mac },
            strict: false,
        }
    }

    fn synced(ground: &Ground, json: &str) -> Synced {
        let leases = crate::lease::parse(json.as_bytes()).unwrap();
        sync(ground, &leases, &vxlan(), &KnownPeers::new()).unwrap()
    }

    /// The next hop toward `dst`: outer destination and MTU.
    fn hop(tables: &fdb::Tables<Arc<PeerCounters>>, dst: &str) -> (String, u16) {
        match tables.route(dst.parse().unwrap()) {
            Route::Peer(hop) => (hop.to.to_string(), hop.mtu),
            other => panic!("{dst}: {other:?}"),
        }
    }

    #[test]
    fn each_family_travels_over_its_own_underlay_or_over_the_shared_one() {
        let tables = synced(&ground(dual()), LEASES).tables;
        assert_eq!(hop(&tables, "10.244.2.9"), ("10.99.0.2:8472".into(), 1450));
        assert_eq!(
            hop(&tables, "fd00:10:0:2::9"),
            ("[fd99::2]:8472".into(), 1430)
        );
        assert_eq!(
            hop(&tables, "fd00:10:0:3::9"),
            ("10.99.0.3:8472".into(), 1450)
        );
        assert_eq!(hop(&tables, "10.244.4.9"), ("[fd99::4]:8472".into(), 1430));
        assert_eq!(tables.route("10.244.1.9".parse().unwrap()), Route::Local);
        assert_eq!(tables.route("10.244.9.9".parse().unwrap()), Route::None);
    }

    #[test]
    fn a_peer_of_the_other_family_is_reported_and_unreachable() {
        let only_v4 = Endpoint {
            v4: dual().v4,
            v6: None,
        };
        let synced = synced(&ground(only_v4), LEASES);
        assert_eq!(
            synced.tables.route("10.244.4.9".parse().unwrap()),
            Route::None
        );
        let [objection] = &synced.objections[..] else {
            panic!("{:?}", synced.objections)
        };
        assert!(objection.reason.contains("10.244.4.0/24"), "{objection:?}");
    }

    #[test]
    fn each_family_has_its_vtep_mac_in_the_header() {
        let tables = synced(&ground(dual()), LEASES).tables;
        for (dst, mac) in [("10.244.2.9", 4), ("fd00:10:0:2::9", 6)] {
            let Route::Peer(hop) = tables.route(dst.parse().unwrap()) else {
                panic!("{dst}")
            };
            assert_eq!(hop.header.as_slice()[8..14], [0x0e, 0, 0, 0, 0, mac]);
        }
    }

    #[test]
    fn other_backends_and_vnis_are_left_out_and_a_second_lease_of_ours_is_ours() {
        let json = r#"[
          {"Subnet": "10.244.1.0/24", "PublicIP": "10.99.0.1"},
          {"Subnet": "10.244.2.0/24", "PublicIP": "10.99.0.2", "BackendType": "udp"},
          {"Subnet": "10.244.3.0/24", "PublicIP": "10.99.0.3", "BackendData": {"VNI": 7}},
          {"Subnet": "10.244.4.0/24", "PublicIP": "10.99.0.1"},
          {"Subnet": "10.244.5.0/24", "PublicIP": "10.99.0.5", "BackendType": "vxlan"}
        ]"#;
        let synced = synced(&ground(dual()), json);
        let reasons: Vec<_> = synced.objections.iter().map(|o| &*o.reason).collect();
        assert_eq!(reasons.len(), 2, "{reasons:?}");
        assert!(reasons[0].contains("backend `udp`"));
        assert!(reasons[1].contains("VNI 7"));
        assert_eq!(
            synced.tables.route("10.244.4.1".parse().unwrap()),
            Route::Local
        );
        assert_eq!(synced.tables.peers().len(), 1);
    }

    #[test]
    fn our_own_lease_must_be_there_and_usable() {
        let leases = |json: &str| crate::lease::parse(json.as_bytes()).unwrap();
        let sync_of = |json: &str| {
            sync(&ground(dual()), &leases(json), &vxlan(), &KnownPeers::new())
                .err()
                .unwrap()
        };
        let missing = sync_of(r#"[{"Subnet": "10.244.2.0/24", "PublicIP": "10.99.0.2"}]"#);
        assert!(missing.to_string().contains("10.99.0.1"), "{missing}");
        let outside = sync_of(r#"[{"Subnet": "10.1.2.0/24", "PublicIP": "10.99.0.1"}]"#);
        assert!(matches!(outside, NoOwnLease::Unusable { .. }), "{outside}");
        let foreign = sync_of(
            r#"[{"Subnet": "10.244.1.0/24", "PublicIP": "10.99.0.1", "BackendType": "host-gw"}]"#,
        );
        assert!(foreign.to_string().contains("host-gw"), "{foreign}");
    }

    #[test]
    fn peers_keep_their_counters_over_a_change_of_subnet_or_mac() {
        let first = synced(&ground(dual()), LEASES);
        first.tables.peers()[0].data.sent.count(1, 100);
        let known: KnownPeers = first.tables.peers()[0]
            .public
            .ips()
            .map(|ip| (ip, first.tables.peers()[0].data.clone()))
            .collect();
        let json = r#"[
          {"Subnet": "10.244.1.0/24", "PublicIP": "10.99.0.1"},
          {"Subnet": "10.244.3.0/24", "PublicIP": "10.99.0.3"},
          {"Subnet": "10.244.8.0/24", "PublicIP": "10.99.0.2"}
        ]"#;
        let leases = crate::lease::parse(json.as_bytes()).unwrap();
        let second = sync(&ground(dual()), &leases, &vxlan(), &known).unwrap();
        let sent: Vec<_> = second
            .tables
            .peers()
            .iter()
            .map(|peer| peer.data.sent.packets.get())
            .collect();
        assert_eq!(sent, [0, 1]);
    }

    #[test]
    fn static_routes_lead_to_a_node_or_to_ourselves() {
        let mut ground = ground(dual());
        let route = |prefix: &str, via: &str| StaticRoute {
            prefix: prefix.parse().unwrap(),
            via: via.parse().unwrap(),
        };
        ground.routes = vec![
            route("192.0.2.0/24", "10.99.0.2"),
            route("198.51.100.0/24", "10.99.0.1"),
            route("203.0.113.0/24", "10.99.0.77"),
        ];
        let leases = crate::lease::parse(LEASES.as_bytes()).unwrap();
        let synced = sync(&ground, &leases, &RawUdp, &KnownPeers::new());
        let synced = synced.unwrap();
        assert_eq!(
            hop(&synced.tables, "192.0.2.1"),
            ("10.99.0.2:8472".into(), 1472)
        );
        assert_eq!(
            synced.tables.route("198.51.100.1".parse().unwrap()),
            Route::Local
        );
        assert_eq!(
            synced.tables.route("203.0.113.1".parse().unwrap()),
            Route::None
        );
        assert_eq!(synced.routed, ["192.0.2.0/24".parse::<IpNet>().unwrap()]);
        assert_eq!(synced.objections.len(), 1);
    }
}
