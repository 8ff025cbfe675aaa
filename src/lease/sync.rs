//! From leases to tables: which leases are taken, over which underlay family each peer is reached, and
//! the header that goes in front of its packets.

use std::collections::HashMap;
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
        "no lease for this node: none of the {count} leases has the PublicIP {public}; add {{\"Subnet\": \"...\", \"PublicIP\": \"{public}\"}}, or set node.public-ip to this node's address in the leases"
    )]
    Missing {
        /// How many leases there are.
        count: usize,
        /// Our public IPs.
        public: String,
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
        let ours: Vec<_> = ours.iter().map(IpAddr::to_string).collect();
        NoOwnLease::Missing {
            count: leases.len(),
            public: ours.join(" or "),
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
        let is_own = std::ptr::eq(lease, own);
        let second = !is_own && lease.is_of(&ground.public);
        let reason = if second {
            Some(format!(
                "a second lease with this node's public IP: {own} came first; remove one"
            ))
        } else {
            foreign(lease, ground, E::NAME)
        };
        match reason {
            None => usable.push(lease),
            Some(reason) if is_own => {
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
        .map(|lease| lease.claim(std::ptr::eq(*lease, own)))
        .collect();
    let rib = Rib::build(&ground.network, &claims, &ground.routes);
    for (source, refusal) in rib.refused() {
        let subject = match source {
            Source::Lease(index) if claims[*index].own => {
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
    let prefixes = |index: usize| claims[index].subnets();
    for &index in rib.accepted() {
        if claims[index].own {
            prefixes(index).for_each(|prefix| tables.local(prefix));
            continue;
        }
        let lease = usable[index];
        let counters = lease
            .endpoint()
            .ips()
            .find_map(|ip| known.get(&ip).cloned());
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
