//! Where this node stands on the underlay: which of its addresses its lease is bound to, and on which
//! interface.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fdb::Endpoint;

use super::reconcile::Actual;
use super::route::default_route;
use super::{Address, Family, Link};

/// What the configuration says about the node's place.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The underlay interface.
    pub iface: Option<String>,
    /// The public IPs.
    pub public: Endpoint,
}

/// The host's links and addresses, and the interface that the configuration or the default route names.
#[derive(Clone, Debug)]
pub struct Host {
    wanted: Wanted,
    links: Vec<Link>,
    addresses: Vec<Address>,
    iface: Option<u32>,
}

/// The node's place on the underlay.
#[derive(Clone, Debug)]
pub struct Site {
    /// The addresses that peers know us by.
    pub public: Endpoint,
    /// The addresses that our sockets are bound to: the public ones, unless there is a NAT in between.
    pub bound: Endpoint,
    /// The underlay interface.
    pub iface: Link,
    /// What is unusual, one sentence each.
    pub warnings: Vec<String>,
}

impl Site {
    /// The underlay interface's MTU in bytes. What is larger than an IP packet can be counts as that.
    pub fn mtu(&self) -> u16 {
        u16::try_from(self.iface.mtu).unwrap_or(u16::MAX)
    }
}

/// Why the node has no place on the underlay.
#[derive(Debug, thiserror::Error)]
pub enum NoSite {
    /// `node.iface` names nothing.
    #[error("the underlay interface `{name}` (node.iface) does not exist; there are: {there}")]
    NoIface {
        /// The name.
        name: String,
        /// What exists.
        there: String,
    },
    /// Nothing says which interface is meant.
    #[error(
        "there is no default route to tell the underlay interface: set node.iface or node.public-ip"
    )]
    NoDefaultRoute,
    /// The interface has no address.
    #[error(
        "the underlay interface `{0}` has no address: give it one, or set node.iface to another"
    )]
    NoAddress(String),
    /// The public IP is on no interface, and the one named to stand in for it has no address of its family.
    #[error(
        "the public IP {public} of this node's lease is on no interface, and `{iface}` has no {family} address that could stand behind a NAT: give `{iface}` the address, or correct the lease"
    )]
    NoInside {
        /// From the lease.
        public: IpAddr,
        /// The underlay interface.
        iface: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// The public IP is on no interface, and no interface is named to stand in for it.
    #[error(
        "the public IP {0} is on no interface of this host: correct node.public-ip or the lease; if a NAT translates it, name the underlay interface with node.iface"
    )]
    NotOurs(IpAddr),
    /// The configuration and the lease disagree.
    #[error(
        "the configuration says that this node's public IP is {configured}, its lease says {leased}: correct one of them"
    )]
    Disagree {
        /// From the configuration.
        configured: IpAddr,
        /// From the lease.
        leased: IpAddr,
    },
}

impl Host {
    /// The host as `actual` has it.
    pub fn of(wanted: Wanted, actual: &Actual) -> Self {
        let iface = match &wanted.iface {
            Some(name) => actual
                .links
                .iter()
                .find(|link| link.name == *name)
                .map(|link| link.index),
            None if wanted.public != Endpoint::default() => None,
            None => {
                let v4 = default_route(&actual.routes, Family::V4);
                v4.or_else(|| default_route(&actual.routes, Family::V6))
            }
        };
        Host {
            wanted,
            links: actual.links.clone(),
            addresses: actual.addresses.clone(),
            iface,
        }
    }

    /// Our place as it was, if the node can still be reached there: every address that we are bound to is on an
    /// interface, and that is looked at anew.
    pub fn still(&self, site: &Site) -> Option<Site> {
        let mut there = site
            .bound
            .ips()
            .map(|ip| self.usable().find(|a| a.ip == ip));
        let first = there.next()??;
        if there.any(|address| address.is_none()) {
            return None;
        }
        let index = match &self.wanted.iface {
            Some(_) => self.iface?,
            None => first.ifindex,
        };
        let iface = self.links.iter().find(|link| link.index == index)?;
        Some(Site {
            iface: iface.clone(),
            ..site.clone()
        })
    }

    /// The addresses by which our lease can be recognised.
    ///
    /// # Errors
    /// If there are none.
    pub fn candidates(&self) -> std::result::Result<Vec<IpAddr>, NoSite> {
        let configured: Vec<_> = self.wanted.public.ips().collect();
        if let (Some(name), None) = (&self.wanted.iface, self.iface) {
            let there: Vec<_> = self.links.iter().map(|link| &*link.name).collect();
            return Err(NoSite::NoIface {
                name: name.clone(),
                there: there.join(", "),
            });
        }
        if !configured.is_empty() {
            return Ok(configured);
        }
        let index = self.iface.ok_or(NoSite::NoDefaultRoute)?;
        let ours: Vec<_> = self
            .usable()
            .filter(|a| a.ifindex == index)
            .map(|a| a.ip)
            .collect();
        if ours.is_empty() {
            return Err(NoSite::NoAddress(self.name(index)));
        }
        Ok(ours)
    }

    /// Our place, given the public IPs that our lease carries.
    ///
    /// # Errors
    /// If the lease names addresses that are not ours.
    pub fn site(&self, leased: Endpoint) -> std::result::Result<Site, NoSite> {
        let mut warnings = Vec::new();
        let mut iface = self.iface;
        let wanted = self.wanted.public;
        let v4 = self.bind(
            leased.v4.map(IpAddr::V4),
            wanted.v4.map(IpAddr::V4),
            &mut iface,
            &mut warnings,
        )?;
        let v6 = self.bind(
            leased.v6.map(IpAddr::V6),
            wanted.v6.map(IpAddr::V6),
            &mut iface,
            &mut warnings,
        )?;
        let bound = Endpoint {
            v4: v4.and_then(as_v4),
            v6: v6.and_then(as_v6),
        };
        let iface = iface.and_then(|index| self.links.iter().find(|link| link.index == index));
        let iface = iface.ok_or(NoSite::NoDefaultRoute)?.clone();
        Ok(Site {
            public: leased,
            bound,
            iface,
            warnings,
        })
    }

    /// The address to bind to for one family's public IP.
    fn bind(
        &self,
        leased: Option<IpAddr>,
        wanted: Option<IpAddr>,
        iface: &mut Option<u32>,
        warnings: &mut Vec<String>,
    ) -> std::result::Result<Option<IpAddr>, NoSite> {
        let Some(leased) = leased else {
            return Ok(None);
        };
        if let Some(configured) = wanted.filter(|ip| *ip != leased) {
            return Err(NoSite::Disagree { configured, leased });
        }
        if let Some(address) = self.usable().find(|address| address.ip == leased) {
            if self.wanted.iface.is_none() {
                *iface = iface.or(Some(address.ifindex));
            }
            return Ok(Some(leased));
        }
        // Only an interface that was asked for may stand in for an address that is not here.
        let Some(index) = iface.filter(|_| self.wanted.iface.is_some()) else {
            return Err(NoSite::NotOurs(leased));
        };
        let on_iface = |a: &&Address| a.ifindex == index && a.ip.is_ipv4() == leased.is_ipv4();
        let inside = self
            .usable()
            .find(on_iface)
            .ok_or_else(|| NoSite::NoInside {
                public: leased,
                iface: self.name(index),
                family: if leased.is_ipv4() { "IPv4" } else { "IPv6" },
            })?;
        warnings.push(format!(
            "the public IP {leased} is on no interface: taken for the outside of a NAT, whose inside is {} on {}",
            inside.ip,
            self.name(index)
        ));
        Ok(Some(inside.ip))
    }

    /// Addresses that others can reach: global scope, and past duplicate address detection.
    fn usable(&self) -> impl Iterator<Item = &Address> {
        self.addresses
            .iter()
            .filter(|address| address.scope == 0 && !address.tentative)
    }

    fn name(&self, index: u32) -> String {
        let link = self.links.iter().find(|link| link.index == index);
        link.map_or_else(|| format!("#{index}"), |link| link.name.clone())
    }
}

fn as_v4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

fn as_v6(ip: IpAddr) -> Option<Ipv6Addr> {
    match ip {
        IpAddr::V6(ip) => Some(ip),
        IpAddr::V4(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            kind: None,
            mtu: 1500,
            up: true,
            running: true,
            mac: None,
            master: None,
            lower: None,
            lower_ns: None,
            vxlan: None,
        }
    }

    fn host(wanted: Wanted, iface: Option<u32>) -> Host {
        let address = |ifindex, ip: &str| Address {
            ifindex,
            ip: ip.parse().unwrap(),
            prefix_len: 24,
            scope: 0,
            tentative: false,
        };
        let addresses = vec![
            address(2, "10.99.0.1"),
            address(2, "fd99::1"),
            address(3, "192.0.2.1"),
        ];
        Host {
            wanted,
            links: vec![link(2, "eth0"), link(3, "eth1")],
            addresses,
            iface,
        }
    }

    fn at(v4: &str) -> Endpoint {
        Endpoint {
            v4: Some(v4.parse().unwrap()),
            v6: None,
        }
    }

    #[test]
    fn a_public_ip_of_an_interface_tells_the_interface() {
        let host = host(
            Wanted {
                iface: None,
                public: at("192.0.2.1"),
            },
            None,
        );
        assert_eq!(
            host.candidates().unwrap(),
            ["192.0.2.1".parse::<IpAddr>().unwrap()]
        );
        let site = host.site(at("192.0.2.1")).unwrap();
        assert_eq!((&*site.iface.name, site.bound), ("eth1", at("192.0.2.1")));
        assert!(site.warnings.is_empty());
    }

    #[test]
    fn a_public_ip_of_no_interface_needs_an_interface_to_stand_in() {
        let wanted = Wanted {
            iface: None,
            public: at("203.0.113.9"),
        };
        let error = host(wanted, None).site(at("203.0.113.9")).unwrap_err();
        assert!(error.to_string().contains("node.iface"), "{error}");

        let wanted = Wanted {
            iface: Some("eth0".into()),
            public: at("203.0.113.9"),
        };
        let site = host(wanted, Some(2)).site(at("203.0.113.9")).unwrap();
        assert_eq!(
            (site.public, site.bound),
            (at("203.0.113.9"), at("10.99.0.1"))
        );
        assert_eq!(site.warnings.len(), 1);
    }

    #[test]
    fn an_interface_offers_its_addresses_and_an_unknown_one_is_named() {
        let host_of = |name: &str, index| {
            host(
                Wanted {
                    iface: Some(name.into()),
                    public: Endpoint::default(),
                },
                index,
            )
        };
        assert_eq!(host_of("eth0", Some(2)).candidates().unwrap().len(), 2);
        let error = host_of("eth9", None).candidates().unwrap_err().to_string();
        assert!(
            error.contains("eth9") && error.contains("eth0, eth1"),
            "{error}"
        );
    }

    #[test]
    fn a_lease_that_disagrees_with_the_configuration_is_an_error() {
        let host = host(
            Wanted {
                iface: None,
                public: at("10.99.0.1"),
            },
            None,
        );
        let error = host.site(at("192.0.2.1")).unwrap_err();
        assert!(matches!(error, NoSite::Disagree { .. }));
    }
}
