//! Which leases and routes count. Every claim is judged in the order of priority, once, for all of
//! the daemon.
//!
//! Leases come from a store that many hosts write to, so a claim may be wrong by mistake or by
//! malice. What is refused here never reaches a table, and a refusal says why in words for a person
//! ([`Refusal`]).
//!
//! The rules, in the order in which a lease is asked:
//! 1. it has a subnet and a public IP, and the public IP is one that a host can have;
//! 2. its subnets are written without host bits, lie inside the overlay network, and leave room on either side: for pods, and
//!    for other nodes;
//! 3. its public IPs are not those of two nodes at once;
//! 4. its subnets cover no public IP: not its own, not ours, not that of an accepted lease. Such a lease would pull the
//!    underlay's traffic into the overlay, where the packets that carry it would be carried again;
//! 5. its public IPs lie in no accepted lease: of a subnet and a public IP that collide, the first stands, so that a slip in
//!    one lease never costs an earlier one its place;
//! 6. its subnets overlap no accepted lease.
//!
//! A lease is refused whole, both families, since half a lease is a node that answers on one family
//! and is lost on the other. A refused lease takes nothing from those after it: its subnets are
//! free, its public IPs count for nothing. Only our own public IPs always count: we are there.

mod refusal;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use self::refusal::{Refusal, Source};

/// The overlay network, out of which every lease is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// The IPv4 network, if the overlay carries IPv4.
    pub v4: Option<Ipv4Net>,
    /// The IPv6 network, if the overlay carries IPv6.
    pub v6: Option<Ipv6Net>,
}

/// A node's public IPs: its addresses on the underlay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The public IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// The public IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

impl Endpoint {
    /// The addresses there are, IPv4 first.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4
            .map(IpAddr::V4)
            .into_iter()
            .chain(self.v6.map(IpAddr::V6))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.v4, self.v6) {
            (Some(v4), Some(v6)) => write!(f, "{v4} and {v6}"),
            (Some(v4), None) => v4.fmt(f),
            (None, Some(v6)) => v6.fmt(f),
            (None, None) => f.write_str("no public IP"),
        }
    }
}

/// One lease as a node claims it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The IPv4 subnet.
    pub v4: Option<Ipv4Net>,
    /// The IPv6 subnet.
    pub v6: Option<Ipv6Net>,
    /// The node's public IPs.
    pub public: Endpoint,
    /// Whether the node is this one. The same rules hold for us.
    pub own: bool,
}

impl Claim {
    /// The subnets there are, IPv4 first.
    pub fn subnets(&self) -> impl Iterator<Item = IpNet> + use<> {
        self.v4
            .map(IpNet::V4)
            .into_iter()
            .chain(self.v6.map(IpNet::V6))
    }
}

/// A route set by hand: a prefix, inside the overlay network or not, that one node answers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticRoute {
    /// The destinations.
    pub prefix: IpNet,
    /// A public IP of the node; our own means that we deliver here.
    pub via: IpAddr,
}

/// A static route that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptedRoute {
    /// Its index among the routes given.
    pub route: usize,
    /// The index of an accepted claim of the node it leads to, the first in priority.
    pub claim: usize,
    /// Whether that node is this one: deliver, do not send.
    pub local: bool,
}

/// The verdict on all leases and static routes known.
#[derive(Clone, Debug, Default)]
pub struct Rib {
    accepted: Vec<usize>,
    routes: Vec<AcceptedRoute>,
    refused: Vec<(Source, Refusal)>,
}

impl Rib {
    /// Judges `claims`, which stand in order of priority (the first wins), then `routes`. O(n log
    /// n).
    pub fn build(network: &Network, claims: &[Claim], routes: &[StaticRoute]) -> Self {
        let mut judge = Judge::new(network, claims);
        let mut rib = Self::default();
        for index in 0..claims.len() {
            match judge.lease(index) {
                Ok(()) => rib.accepted.push(index),
                Err(refusal) => rib.refused.push((Source::Lease(index), refusal)),
            }
        }
        for (index, route) in routes.iter().enumerate() {
            match judge.route(index, route) {
                Ok(accepted) => rib.routes.push(accepted),
                Err(refusal) => rib.refused.push((Source::Route(index), refusal)),
            }
        }
        rib
    }

    /// The indices of the leases that count, in priority order.
    pub fn accepted(&self) -> &[usize] {
        &self.accepted
    }

    /// The static routes that count, in the order given. Longest prefix decides between them and
    /// the leases.
    pub fn routes(&self) -> &[AcceptedRoute] {
        &self.routes
    }

    /// What was refused and why: leases in priority order, then routes.
    pub fn refused(&self) -> &[(Source, Refusal)] {
        &self.refused
    }
}

struct Judge<'a> {
    claims: &'a [Claim],
    /// Rules 1 and 2, asked of all claims beforehand.
    formed: Vec<Result<(), Refusal>>,
    /// The public IPs that no prefix may cover, ours and those of accepted claims, each with the
    /// first claim that has it. IPv4 sorts before IPv6, so one map serves both families, here and
    /// below.
    public: BTreeMap<IpAddr, usize>,
    /// The subnets accepted so far, which do not overlap: first address -> (last address, subnet,
    /// claim).
    taken: BTreeMap<IpAddr, (IpAddr, IpNet, usize)>,
    /// The public IPs of accepted claims -> the first accepted claim of that node.
    nodes: BTreeMap<IpAddr, usize>,
    /// Prefixes of accepted static routes -> route.
    routed: BTreeMap<IpNet, usize>,
}

impl<'a> Judge<'a> {
    fn new(network: &Network, claims: &'a [Claim]) -> Self {
        let formed: Vec<_> = claims
            .iter()
            .enumerate()
            .map(|(index, claim)| well_formed(network, index, claim))
            .collect();
        let mut public = BTreeMap::new();
        // We are here whatever our claim looks like, and wherever it stands.
        for (index, claim) in claims.iter().enumerate().filter(|(_, claim)| claim.own) {
            for ip in claim.public.ips() {
                public.entry(ip).or_insert(index);
            }
        }
        Self {
            claims,
            formed,
            public,
            taken: BTreeMap::new(),
            nodes: BTreeMap::new(),
            routed: BTreeMap::new(),
        }
    }

    fn lease(&mut self, index: usize) -> Result<(), Refusal> {
        self.formed[index].clone()?;
        let claim = &self.claims[index];
        let node = self.node_of(index)?;
        for subnet in claim.subnets() {
            self.covers_no_public_ip(subnet)?;
        }
        for ip in claim.public.ips() {
            self.lies_in_no_lease(ip)?;
        }
        for subnet in claim.subnets() {
            self.overlaps_no_lease(subnet)?;
        }
        // Nothing is entered before every rule has passed for both families.
        for subnet in claim.subnets() {
            self.taken
                .insert(subnet.network(), (subnet.broadcast(), subnet, index));
        }
        for ip in claim.public.ips() {
            self.nodes.entry(ip).or_insert(node);
            self.public.entry(ip).or_insert(index);
        }
        Ok(())
    }

    /// The first accepted claim of this claim's node: itself, unless the node has another lease
    /// already.
    fn node_of(&self, index: usize) -> Result<usize, Refusal> {
        let claim = &self.claims[index];
        let mut node = None;
        for ip in claim.public.ips() {
            let Some(&known) = self.nodes.get(&ip) else {
                continue;
            };
            let other_node = node.is_some_and(|node| node != known);
            if other_node || self.claims[known].own != claim.own {
                let of = self.claims[known].public;
                return Err(Refusal::SharesPublicIp {
                    ip,
                    of,
                    other: Source::Lease(known),
                });
            }
            node = Some(known);
        }
        Ok(node.unwrap_or(index))
    }

    fn covers_no_public_ip(&self, prefix: IpNet) -> Result<(), Refusal> {
        match self
            .public
            .range(prefix.network()..=prefix.broadcast())
            .next()
        {
            Some((&ip, &other)) => {
                let own = self.claims[other].own;
                Err(Refusal::CoversPublicIp {
                    prefix,
                    ip,
                    own,
                    other: Source::Lease(other),
                })
            }
            None => Ok(()),
        }
    }

    fn lies_in_no_lease(&self, ip: IpAddr) -> Result<(), Refusal> {
        match self.taken.range(..=ip).next_back() {
            Some((_, &(last, with, other))) if last >= ip => Err(Refusal::PublicIpLeased {
                ip,
                with,
                of: self.claims[other].public,
                other: Source::Lease(other),
            }),
            _ => Ok(()),
        }
    }

    fn overlaps_no_lease(&self, prefix: IpNet) -> Result<(), Refusal> {
        // Accepted subnets are disjoint, so the one that starts last before our end also ends last:
        // it overlaps, or none does.
        match self.taken.range(..=prefix.broadcast()).next_back() {
            Some((_, &(last, with, other))) if last >= prefix.network() => Err(Refusal::Overlaps {
                prefix,
                with,
                of: self.claims[other].public,
                other: Source::Lease(other),
            }),
            _ => Ok(()),
        }
    }

    /// A static route may lie inside a lease or around it, since the longest prefix decides; it may
    /// not be one, nor take from us what we hold.
    fn route(&mut self, index: usize, route: &StaticRoute) -> Result<AcceptedRoute, Refusal> {
        let prefix = route.prefix;
        no_host_bits(prefix)?;
        let Some(&claim) = self.nodes.get(&route.via) else {
            return Err(Refusal::UnknownVia { via: route.via });
        };
        self.covers_no_public_ip(prefix)?;
        // The lease that the prefix is, or lies in.
        if let Some((_, &(_, with, other))) = self.taken.range(..=prefix.network()).next_back() {
            let from_us = self.claims[other].own && !self.claims[claim].own;
            if with == prefix || from_us && with.contains(&prefix) {
                let of = self.claims[other].public;
                return Err(Refusal::Overlaps {
                    prefix,
                    with,
                    of,
                    other: Source::Lease(other),
                });
            }
        }
        if let Some(&other) = self.routed.get(&prefix) {
            return Err(Refusal::SameRoute {
                prefix,
                other: Source::Route(other),
            });
        }
        self.routed.insert(prefix, index);
        Ok(AcceptedRoute {
            route: index,
            claim,
            local: self.claims[claim].own,
        })
    }
}

/// Rules 1 and 2, and that the claim does not cover its own public IP: what a claim can be asked
/// without knowing any other.
fn well_formed(network: &Network, index: usize, claim: &Claim) -> Result<(), Refusal> {
    if claim.subnets().next().is_none() {
        return Err(Refusal::Empty);
    }
    if claim.public.ips().next().is_none() {
        return Err(Refusal::NoPublicIp);
    }
    if let Some(ip) = claim.public.ips().find(|ip| !is_host_address(ip)) {
        return Err(Refusal::BadPublicIp { ip });
    }
    for subnet in claim.subnets() {
        no_host_bits(subnet)?;
        inside(network, subnet)?;
        if let Some(ip) = claim.public.ips().find(|ip| subnet.contains(ip)) {
            return Err(Refusal::CoversPublicIp {
                prefix: subnet,
                ip,
                own: claim.own,
                other: Source::Lease(index),
            });
        }
    }
    Ok(())
}

fn is_host_address(ip: &IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !(ip.is_unspecified() || ip.is_multicast() || broadcast)
}

fn no_host_bits(prefix: IpNet) -> Result<(), Refusal> {
    if prefix.addr() == prefix.network() {
        Ok(())
    } else {
        Err(Refusal::HostBits { prefix })
    }
}

/// The longest subnets flannel hands out, and the longest with room for a device address and pods
/// beside it (flannel 0.20.2, pkg/subnet/config.go).
const LONGEST_V4: u8 = 30;
const LONGEST_V6: u8 = 126;

fn inside(network: &Network, subnet: IpNet) -> Result<(), Refusal> {
    let (network, longest) = match subnet {
        IpNet::V4(_) => (network.v4.map(IpNet::V4), LONGEST_V4),
        IpNet::V6(_) => (network.v6.map(IpNet::V6), LONGEST_V6),
    };
    let Some(network) = network else {
        return Err(Refusal::NoNetwork { prefix: subnet });
    };
    if !network.contains(&subnet) {
        return Err(Refusal::OutsideNetwork {
            prefix: subnet,
            network,
        });
    }
    if subnet.prefix_len() == network.prefix_len() || subnet.prefix_len() > longest {
        return Err(Refusal::PrefixLength {
            prefix: subnet,
            network,
            longest,
        });
    }
    Ok(())
}
