//! Why a claim or a route does not count, in words for the person who can mend it.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Endpoint;

/// Which lease or route, as an index into what [`Rib::build`](super::Rib::build) was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Index into the claims.
    Lease(usize),
    /// Index into the static routes.
    Route(usize),
}

/// What is wrong with a lease or a static route. `Display` says what, with which other one, and
/// what to do; it does not name the refused lease itself, which the caller knows better (its file
/// and line, its key in the store).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The lease names no subnet.
    Empty,
    /// The lease names no public IP.
    NoPublicIp,
    /// No host can have this address.
    BadPublicIp {
        /// Unspecified, multicast or broadcast.
        ip: IpAddr,
    },
    /// Bits are set beyond the prefix length.
    HostBits {
        /// As written.
        prefix: IpNet,
    },
    /// The overlay has no network of this family.
    NoNetwork {
        /// The lease's subnet.
        prefix: IpNet,
    },
    /// The subnet does not lie in the overlay network.
    OutsideNetwork {
        /// The lease's subnet.
        prefix: IpNet,
        /// The overlay network of the family.
        network: IpNet,
    },
    /// The subnet is the whole network, or too small to use.
    PrefixLength {
        /// The lease's subnet.
        prefix: IpNet,
        /// The overlay network of the family.
        network: IpNet,
        /// The longest prefix length that is of use.
        longest: u8,
    },
    /// The public IP belongs to another node.
    SharesPublicIp {
        /// The address.
        ip: IpAddr,
        /// The public IPs of that node.
        of: Endpoint,
        /// Its lease.
        other: Source,
    },
    /// The prefix holds a node's public IP.
    CoversPublicIp {
        /// The lease's subnet or the route's destinations.
        prefix: IpNet,
        /// The public IP inside it.
        ip: IpAddr,
        /// Whether that is our own.
        own: bool,
        /// The lease that carries it; may be the refused one itself.
        other: Source,
    },
    /// The public IP lies in the subnet of an accepted lease.
    PublicIpLeased {
        /// The public IP.
        ip: IpAddr,
        /// The accepted subnet.
        with: IpNet,
        /// The public IPs of the node that holds it.
        of: Endpoint,
        /// Its lease.
        other: Source,
    },
    /// An accepted lease has these addresses already.
    Overlaps {
        /// The lease's subnet or the route's destinations.
        prefix: IpNet,
        /// The accepted subnet.
        with: IpNet,
        /// The public IPs of the node that holds it.
        of: Endpoint,
        /// Its lease.
        other: Source,
    },
    /// An earlier static route has this very prefix.
    SameRoute {
        /// The destinations.
        prefix: IpNet,
        /// The earlier route.
        other: Source,
    },
    /// No accepted lease carries the public IP that the route leads through.
    UnknownVia {
        /// The address given.
        via: IpAddr,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Empty => {
                f.write_str("it names no subnet; give it a Subnet, an IPv6Subnet or both")
            }
            Refusal::NoPublicIp => {
                f.write_str("it names no public IP; give it a PublicIP, a PublicIPv6 or both")
            }
            Refusal::BadPublicIp { ip } => {
                write!(
                    f,
                    "{ip} cannot be the public IP of a host; give the node's address on the underlay"
                )
            }
            Refusal::HostBits { prefix } => {
                write!(
                    f,
                    "{prefix} has bits set beyond its prefix length; write {}",
                    prefix.trunc()
                )
            }
            Refusal::NoNetwork { prefix } => {
                let (family, key) = match prefix {
                    IpNet::V4(_) => ("IPv4", "network"),
                    IpNet::V6(_) => ("IPv6", "ipv6-network"),
                };
                write!(
                    f,
                    "{prefix} is {family}, and the overlay has no {family} network; set {key} under [network] or drop the subnet"
                )
            }
            Refusal::OutsideNetwork { prefix, network } => {
                write!(
                    f,
                    "{prefix} lies outside the overlay network {network}; give the node a subnet of that network"
                )
            }
            Refusal::PrefixLength {
                prefix,
                network,
                longest,
            } => {
                if prefix.prefix_len() > *longest {
                    write!(
                        f,
                        "{prefix} has no room for a node and its pods; use a prefix of at most /{longest}"
                    )
                } else {
                    write!(
                        f,
                        "{prefix} is the whole overlay network {network} and leaves nothing for other nodes; use a longer prefix"
                    )
                }
            }
            Refusal::SharesPublicIp { ip, of, .. } => {
                write!(
                    f,
                    "its public IP {ip} belongs to another node, whose public IPs are {of}; correct it or remove one of the two leases"
                )
            }
            Refusal::CoversPublicIp {
                prefix, ip, own, ..
            } => {
                let whose = if *own { "this node's" } else { "a node's" };
                write!(
                    f,
                    "{prefix} covers {ip}, which is {whose} public IP, so packets to that node would be sent into the overlay again; \
                     use a prefix that does not overlap the underlay, or correct the public IP"
                )
            }
            Refusal::PublicIpLeased { ip, with, of, .. } => {
                write!(
                    f,
                    "its public IP {ip} lies in {with}, which is leased to the node at {of} and comes first; \
                     give the node's address on the underlay"
                )
            }
            Refusal::Overlaps {
                prefix, with, of, ..
            } if prefix == with => {
                write!(
                    f,
                    "{prefix} is already leased to the node at {of}, which comes first; choose another or remove that lease"
                )
            }
            Refusal::Overlaps {
                prefix, with, of, ..
            } => {
                write!(
                    f,
                    "{prefix} overlaps {with}, which is leased to the node at {of} and comes first; \
                     choose a subnet that no lease touches or remove that lease"
                )
            }
            Refusal::SameRoute { prefix, .. } => {
                write!(
                    f,
                    "an earlier static route has the same prefix {prefix}; remove one of the two"
                )
            }
            Refusal::UnknownVia { via } => {
                write!(
                    f,
                    "no accepted lease has the public IP {via}; route via the public IP of a node that holds a lease"
                )
            }
        }
    }
}

impl std::error::Error for Refusal {}
