//! Where this node stands on the underlay: which of its addresses its lease is bound to, and on which
//! interface.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fdb::Endpoint;

use super::reconcile::Actual;
use super::route::default_route;
use super::{Address, Family, Link, Netlink, Result};

/// What the configuration says about the node's place.
///
/// The underlay interface is chosen in flannel's order (flannel `pkg/ipmatch/match.go`): the first of `iface` that is
/// there, or else the first that a pattern matches; if neither is given, the one that leads to `can_reach`; else the one
/// that has the public IP; else the default route's.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Underlay interfaces, each by its name or by an address that it has.
    pub iface: Vec<String>,
    /// Regular expressions of addresses and names; the addresses of all interfaces are compared before the names.
    pub iface_regex: Vec<String>,
    /// An address that the underlay interface leads to.
    pub can_reach: Option<IpAddr>,
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
    /// The address by which the interface was chosen.
    chosen: Option<IpAddr>,
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
    /// `node.iface` or `node.iface-regex` names nothing, or nothing leads to `node.iface-can-reach`.
    #[error("the underlay interface `{name}` ({key}) does not exist; there are: {there}")]
    NoIface {
        /// The name, or what stands for it.
        name: String,
        /// The option that asks for it.
        key: &'static str,
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
    /// The host as `actual` has it; the kernel is asked only for the way to `can_reach`.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn look(netlink: &Netlink, wanted: Wanted, actual: &Actual) -> Result<Self> {
        let mut host = Host {
            wanted,
            links: actual.links.clone(),
            addresses: actual.addresses.clone(),
            iface: None,
            chosen: None,
        };
        let wanted = &host.wanted;
        let found = if !wanted.iface.is_empty() || !wanted.iface_regex.is_empty() {
            host.named()
        } else if let Some(target) = wanted.can_reach {
            // That there is no way there is said when it is missed.
            let route = netlink.route_to(target).await.unwrap_or_default();
            route.and_then(|route| Some((route.oif?, route.src)))
        } else if wanted.public != Endpoint::default() {
            None
        } else {
            let v4 = default_route(&actual.routes, Family::V4);
            let index = v4.or_else(|| default_route(&actual.routes, Family::V6));
            index.map(|index| (index, None))
        };
        if let Some((index, address)) = found {
            (host.iface, host.chosen) = (Some(index), address);
        }
        Ok(host)
    }

    /// The interface that `iface` or `iface-regex` means, and the address by which.
    fn named(&self) -> Option<(u32, Option<IpAddr>)> {
        let by_address = |is: &dyn Fn(IpAddr) -> bool| {
            let address = self.usable().find(|address| is(address.ip))?;
            Some((address.ifindex, Some(address.ip)))
        };
        let by_name = |is: &dyn Fn(&str) -> bool| {
            let link = self.links.iter().find(|link| is(&link.name))?;
            Some((link.index, None))
        };
        let exact = |wanted: &String| match wanted.parse::<IpAddr>() {
            Ok(ip) => by_address(&|there| there == ip),
            Err(_) => by_name(&|there| there == wanted),
        };
        let pattern = |wanted: &String| {
            let pattern = regex::Regex::new(wanted).ok()?;
            by_address(&|there| pattern.is_match(&there.to_string()))
                .or_else(|| by_name(&|there| pattern.is_match(there)))
        };
        let wanted = &self.wanted;
        wanted
            .iface
            .iter()
            .find_map(exact)
            .or_else(|| wanted.iface_regex.iter().find_map(pattern))
    }

    /// Whether the configuration says which interface is meant.
    fn asked(&self) -> Option<(String, &'static str)> {
        let wanted = &self.wanted;
        let names = [
            (wanted.iface.join(", "), "node.iface"),
            (wanted.iface_regex.join(", "), "node.iface-regex"),
            (
                wanted
                    .can_reach
                    .map(|ip| ip.to_string())
                    .unwrap_or_default(),
                "node.iface-can-reach",
            ),
        ];
        names.into_iter().find(|(name, _)| !name.is_empty())
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
        let index = match self.asked() {
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
        if let (Some((name, key)), None) = (self.asked(), self.iface) {
            let there: Vec<_> = self.links.iter().map(|link| &*link.name).collect();
            return Err(NoSite::NoIface {
                name,
                key,
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
            .filter(|ip| self.is_chosen(*ip))
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
            if self.asked().is_none() {
                *iface = iface.or(Some(address.ifindex));
            }
            return Ok(Some(leased));
        }
        // Only an interface that was asked for may stand in for an address that is not here.
        let Some(index) = iface.filter(|_| self.asked().is_some()) else {
            return Err(NoSite::NotOurs(leased));
        };
        let on_iface = |a: &&Address| {
            let family = a.ip.is_ipv4() == leased.is_ipv4();
            a.ifindex == index && family && self.is_chosen(a.ip)
        };
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

    /// An interface that was chosen by one of its addresses is meant with this one, and with all of the other family.
    fn is_chosen(&self, ip: IpAddr) -> bool {
        let other = |chosen: IpAddr| chosen.is_ipv4() != ip.is_ipv4();
        self.chosen
            .is_none_or(|chosen| chosen == ip || other(chosen))
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
            links: vec![Link::named(2, "eth0"), Link::named(3, "eth1")],
            addresses,
            iface,
            chosen: None,
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
                public: at("192.0.2.1"),
                ..Wanted::default()
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
            public: at("203.0.113.9"),
            ..Wanted::default()
        };
        let error = host(wanted, None).site(at("203.0.113.9")).unwrap_err();
        assert!(error.to_string().contains("node.iface"), "{error}");

        let wanted = Wanted {
            iface: vec!["eth0".into()],
            public: at("203.0.113.9"),
            ..Wanted::default()
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
                    iface: vec![name.into()],
                    ..Wanted::default()
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
                public: at("10.99.0.1"),
                ..Wanted::default()
            },
            None,
        );
        let error = host.site(at("192.0.2.1")).unwrap_err();
        assert!(matches!(error, NoSite::Disagree { .. }));
    }

    #[test]
    fn the_interface_is_chosen_in_flannels_order() {
        let named = |iface: &[&str], regex: &[&str]| {
            let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
            let wanted = Wanted {
                iface: texts(iface),
                iface_regex: texts(regex),
                ..Wanted::default()
            };
            let mut host = host(wanted, None);
            let found = host.named();
            if let Some((index, chosen)) = found {
                (host.iface, host.chosen) = (Some(index), chosen);
            }
            let ips = host.candidates().map_err(|error| error.to_string())?;
            let site = host.site(Endpoint {
                v4: ips.iter().copied().find_map(as_v4),
                v6: None,
            });
            let site = site.map_err(|error| error.to_string())?;
            Ok::<_, String>((site.iface.name, ips))
        };
        let of = |result: std::result::Result<(String, Vec<IpAddr>), String>| result.unwrap().0;
        // The first of the list that is there, by name or address.
        assert_eq!(of(named(&["eth9", "eth1", "eth0"], &[])), "eth1");
        assert_eq!(of(named(&["192.0.2.1", "eth0"], &[])), "eth1");
        assert_eq!(of(named(&["10.9.9.9", "eth0"], &[])), "eth0");
        // Patterns only if the list has nothing; addresses before names.
        assert_eq!(of(named(&["eth0"], &["^eth1$"])), "eth0");
        assert_eq!(of(named(&["eth9"], &["^eth1$"])), "eth1");
        assert_eq!(of(named(&[], &["^nothing", r"^192\.0\."])), "eth1");
        assert_eq!(of(named(&[], &["1"])), "eth0", "10.99.0.1 before eth1");
        // By an IPv4 address, that address and the other family's.
        let (_, ips) = named(&["10.99.0.1"], &[]).unwrap();
        assert_eq!(ips.len(), 2, "{ips:?}");

        let error = named(&["eth8", "eth9"], &[]).unwrap_err();
        assert!(error.contains("`eth8, eth9` (node.iface)"), "{error}");
        let error = named(&[], &["^x"]).unwrap_err();
        assert!(error.contains("node.iface-regex"), "{error}");
    }
}
