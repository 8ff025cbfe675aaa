//! Leases: which node holds which subnet of the overlay.
//!
//! One [`Lease`] type serves every store. Its fields are flannel's attributes as they stand in
//! etcd (flannel `pkg/lease/lease.go`, `LeaseAttrs`), plus the subnet that etcd keeps in the key.
//!
//! - [`parse()`]: a JSON array of leases, and back
//! - [`mod@file`]: the store that keeps them in a file, and watches it
//! - [`etcd`]: the store that flannel's nodes share; [`machine`] decides, [`schema`] is what is written, [`pool`] what
//!   may be taken, [`saved`] what survives a restart
//! - [`store`]: one face for both
//! - [`sync`]: from leases to the tables that the datapath reads
//! - [`subnet_env`]: the file that tells container runtimes of the node's own

pub mod etcd;
pub mod file;
pub mod machine;
mod parse;
pub mod pool;
pub mod saved;
pub mod schema;
pub mod store;
pub mod subnet_env;
pub mod sync;

use std::net::{Ipv4Addr, Ipv6Addr};

use encap::{Family, MacAddr};
use ipnet::{Ipv4Net, Ipv6Net};

pub use parse::{LeaseError, Wrong, emit, parse};

/// One node's part of the overlay, and how to reach the node.
///
/// A parsed lease has a subnet and a public IP, of either family, and no host bits in its subnets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// `Subnet`: the node's pods, IPv4.
    pub subnet: Option<Ipv4Net>,
    /// `IPv6Subnet`.
    pub ipv6_subnet: Option<Ipv6Net>,
    /// `PublicIP`: the node's IPv4 address on the underlay.
    pub public_ip: Option<Ipv4Addr>,
    /// `PublicIPv6`.
    pub public_ipv6: Option<Ipv6Addr>,
    /// `BackendType`: absent means the configured backend in the file store, udp in etcd.
    pub backend_type: Option<String>,
    /// `BackendData`: what the encapsulation needs for inner IPv4.
    pub backend_data: Option<VtepData>,
    /// `BackendV6Data`: the same for inner IPv6.
    pub backend_v6_data: Option<VtepData>,
}

/// A VXLAN tunnel end point, as flannel's vxlan backend publishes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VtepData {
    /// `VNI`, 24 bits; the oldest flannel did not write it.
    pub vni: Option<u32>,
    /// `VtepMAC`: the inner destination MAC that the node takes for its own.
    pub vtep_mac: Option<MacAddr>,
}

impl Lease {
    /// The MAC address to which inner packets of a family are sent at this node.
    ///
    /// IPv6 has its own in `BackendV6Data`; without that, or without any, the family does not
    /// matter. The default is [`default_vtep_mac`], so that nodes agree without talking.
    pub fn vtep_mac(&self, inner: Family) -> MacAddr {
        let of = |data: &Option<VtepData>| data.and_then(|data| data.vtep_mac);
        let written = match inner {
            Family::V4 => of(&self.backend_data),
            Family::V6 => of(&self.backend_v6_data).or_else(|| of(&self.backend_data)),
        };
        written.unwrap_or_else(|| default_vtep_mac(self.endpoint()))
    }

    /// The node's public IPs.
    pub fn endpoint(&self) -> fdb::Endpoint {
        fdb::Endpoint {
            v4: self.public_ip,
            v6: self.public_ipv6,
        }
    }

    /// Whether it is the lease of the node that has these public IPs: one shared address is enough.
    pub fn is_of(&self, node: &fdb::Endpoint) -> bool {
        let same_v4 = node.v4.is_some() && node.v4 == self.public_ip;
        let same_v6 = node.v6.is_some() && node.v6 == self.public_ipv6;
        same_v4 || same_v6
    }

    /// What the RIB judges.
    pub fn claim(&self, own: bool) -> fdb::Claim {
        fdb::Claim {
            v4: self.subnet,
            v6: self.ipv6_subnet,
            public: self.endpoint(),
            own,
        }
    }

    /// Whether the lease belongs to a backend, where an absent type means `default`.
    pub fn is_backend(&self, name: &str, default: &str) -> bool {
        self.backend_type
            .as_deref()
            .unwrap_or(default)
            .eq_ignore_ascii_case(name)
    }
}

/// The VTEP MAC of a node that names none: `0a:58:` and the public IPv4 address; of a node without
/// one, the last four bytes of its public IPv6 address.
///
/// `0a` has the local bit set and the group bit clear (IEEE 802 §8.2).
pub fn default_vtep_mac(public: fdb::Endpoint) -> MacAddr {
    let [a, b, c, d] = match (public.v4, public.v6) {
        (Some(v4), _) => v4.octets(),
        (None, Some(v6)) => {
            let [.., a, b, c, d] = v6.octets();
            [a, b, c, d]
        }
        (None, None) => [0; 4],
    };
    MacAddr([0x0a, 0x58, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(text: &str) -> MacAddr {
        text.parse().unwrap()
    }

    #[test]
    fn vtep_macs() {
        let mut lease = Lease {
            public_ip: Some(Ipv4Addr::new(10, 99, 0, 2)),
            public_ipv6: Some("fd99::12:3456".parse().unwrap()),
            ..Lease::default()
        };
        assert_eq!(lease.vtep_mac(Family::V4), mac("0a:58:0a:63:00:02"));
        assert_eq!(lease.vtep_mac(Family::V6), mac("0a:58:0a:63:00:02"));

        lease.backend_data = Some(VtepData {
            vni: Some(1),
            vtep_mac: Some(mac("0e:00:00:00:00:01")),
        });
        assert_eq!(lease.vtep_mac(Family::V4), mac("0e:00:00:00:00:01"));
        assert_eq!(lease.vtep_mac(Family::V6), mac("0e:00:00:00:00:01"));

        lease.backend_v6_data = Some(VtepData {
            vni: Some(1),
            vtep_mac: Some(mac("0e:00:00:00:00:06")),
        });
        assert_eq!(lease.vtep_mac(Family::V4), mac("0e:00:00:00:00:01"));
        assert_eq!(lease.vtep_mac(Family::V6), mac("0e:00:00:00:00:06"));

        lease = Lease {
            public_ipv6: lease.public_ipv6,
            ..Lease::default()
        };
        assert_eq!(lease.vtep_mac(Family::V6), mac("0a:58:00:12:34:56"));
    }

    #[test]
    fn one_shared_address_makes_it_ours() {
        let lease = Lease {
            public_ip: Some(Ipv4Addr::new(10, 99, 0, 2)),
            ..Lease::default()
        };
        let node = |v4: Option<&str>, v6: Option<&str>| fdb::Endpoint {
            v4: v4.map(|ip| ip.parse().unwrap()),
            v6: v6.map(|ip| ip.parse().unwrap()),
        };
        assert!(lease.is_of(&node(Some("10.99.0.2"), Some("fd99::2"))));
        assert!(!lease.is_of(&node(Some("10.99.0.3"), None)));
        assert!(
            !lease.is_of(&node(None, Some("fd99::2"))),
            "two absent addresses are not the same address"
        );
        assert!(!Lease::default().is_of(&node(None, None)));
    }
}
