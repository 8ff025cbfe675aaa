//! Sets up the overlay device: MTU, addresses, routes, and the two settings that the overlay needs on it.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Error, Link, Netlink, ROUTE_PROTOCOL, Result, RouteSpec, sysctl};

/// How the device shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Its name; it exists.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// Its overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// The prefixes that lead into it.
    pub routes: Vec<IpNet>,
    /// The MTU of IPv6 routes, where it is smaller than the device's.
    pub ipv6_route_mtu: Option<u16>,
}

impl Netlink {
    /// Makes the device as it shall be and brings it up. A device that was left by an earlier run may have
    /// some of it already.
    ///
    /// # Errors
    /// The first thing that the kernel refuses.
    pub async fn set_up_device(&self, spec: &DeviceSpec) -> Result<Link> {
        let name = &spec.name;
        let link = self.link(name).await?;
        let link =
            link.ok_or_else(|| Error::new(format!("find link {name}"), nix::Error::ENODEV))?;
        self.remove_leftovers(&link, spec).await?;
        self.set_mtu(link.index, spec.mtu.into()).await?;
        // ICMP errors come from our own overlay address, which Linux takes for a martian otherwise.
        sysctl::write(&sysctl::conf("ipv4", name, "accept_local"), "1")?;
        // No link-local address: it would only probe for neighbours that a TUN device cannot have. Where
        // the kernel has no IPv6 there is nothing to set.
        let _ = sysctl::write(&sysctl::conf("ipv6", name, "addr_gen_mode"), "1");
        for address in &spec.addresses {
            let added = self
                .add_address(link.index, IpNet::from(*address), true)
                .await;
            ignore_exists(added)?;
        }
        self.set_up(link.index).await?;
        for prefix in &spec.routes {
            self.add_device_route(link.index, *prefix, spec.ipv6_route_mtu)
                .await?;
        }
        Ok(link)
    }

    /// Takes away what an earlier run left and this one does not want: addresses of an older lease, which
    /// the kernel would go on choosing as a source, and routes of ours.
    async fn remove_leftovers(&self, link: &Link, spec: &DeviceSpec) -> Result<()> {
        let wanted: Vec<_> = spec.addresses.iter().copied().map(IpNet::from).collect();
        for there in self.addresses().await? {
            let Ok(address) = IpNet::new(there.ip, there.prefix_len) else {
                continue;
            };
            if there.ifindex == link.index && there.scope == 0 && !wanted.contains(&address) {
                self.del_address(link.index, address).await?;
            }
        }
        // A device that is down has no routes.
        let routes = if link.up {
            self.routes().await?
        } else {
            Vec::new()
        };
        for there in routes {
            let ours = there.oif == Some(link.index) && there.protocol == ROUTE_PROTOCOL;
            if ours && !spec.routes.contains(&there.dst) {
                self.del_route(&RouteSpec::new(there.dst, link.index))
                    .await?;
            }
        }
        Ok(())
    }

    /// Leads `prefix` into the device of index `oif`.
    ///
    /// # Errors
    /// If another device has a route to just that prefix.
    pub async fn add_device_route(
        &self,
        oif: u32,
        prefix: IpNet,
        ipv6_mtu: Option<u16>,
    ) -> Result<()> {
        let mut route = RouteSpec::new(prefix, oif);
        if matches!(prefix, IpNet::V6(_)) {
            route.mtu = ipv6_mtu.map(u32::from);
        }
        let added = self.add_route(&route).await;
        match added {
            Err(error) if error.is_exists() => {
                let there = self
                    .routes()
                    .await?
                    .into_iter()
                    .find(|there| there.dst == prefix);
                match there.and_then(|there| there.oif) {
                    // Left by an earlier run, perhaps with another MTU.
                    Some(there) if there == oif => self.replace_route(&route).await,
                    Some(there) => {
                        let (ours, theirs) = (self.name_of(oif).await, self.name_of(there).await);
                        Err(Error::new(
                            format!("cannot lead {prefix} into {ours}"),
                            io::Error::other(format!(
                                "there is a route for just this prefix into {theirs}; remove it with `ip route del {prefix} dev {theirs}`, or choose another prefix"
                            )),
                        ))
                    }
                    None => Err(error),
                }
            }
            other => other,
        }
    }
}

fn ignore_exists(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.is_exists() => Ok(()),
        other => other,
    }
}
