//! The overlay network: what it is, where subnets lie in it, and what is routed to it besides.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::{Resolver, read};
use crate::config::error::{Origin, Setting};
use crate::config::raw::resolve_path;
use crate::config::{Node, netconf, values};
use crate::lease::pool::{Pool, Range};

impl Resolver {
    pub(super) fn pool(&mut self, network: fdb::Network, v4_len: u8, v6_len: u8) -> Pool {
        let mut range = |net: Option<ipnet::IpNet>, len, min: &str, max: &str| {
            let net = net?;
            let base = |text: &str| -> Result<IpAddr, String> {
                text.parse()
                    .map_err(|_| "not an IP address; write a subnet's base address".to_owned())
            };
            let (low, high) = (self.read(min, base), self.read(max, base));
            match Range::new(net, len, low, high) {
                Ok(range) => Some(range),
                Err(what) => {
                    let setting = self.raw.get(min).or_else(|| self.raw.get(max));
                    let what =
                        setting.map_or_else(|| what.clone(), |setting| setting.problem(&what));
                    self.problem(what);
                    None
                }
            }
        };
        Pool {
            v4: range(
                network.v4.map(Into::into),
                v4_len,
                "network.subnet-min",
                "network.subnet-max",
            ),
            v6: range(
                network.v6.map(Into::into),
                v6_len,
                "network.ipv6-subnet-min",
                "network.ipv6-subnet-max",
            ),
        }
    }

    /// Reads the net-conf.json that is named, if one is. True where it leaves the backend to
    /// flannel's default.
    pub(super) fn net_conf(&mut self) -> bool {
        let (path, bytes) = match self.raw.get("network.net-conf").cloned() {
            // What the nodes of the cluster share counts more than a copy beside us.
            file if self.on_etcd() => {
                if let Some(setting) = file {
                    self.no_net_conf(&setting);
                }
                let Some(bytes) = self.raw.store_conf.take() else {
                    return false;
                };
                let prefix = self.text("store.prefix");
                let prefix = prefix.as_deref().unwrap_or("/coreos.com/network");
                let path = PathBuf::from(format!("etcd:{}/config", prefix.trim_end_matches('/')));
                (path, bytes)
            }
            None => return false,
            Some(setting) => {
                let path = resolve_path(&setting);
                match read(&path) {
                    Ok(bytes) => (path, bytes),
                    Err(error) => {
                        self.problem(setting.problem(format!(
                            "{error}; give the path of a net-conf.json, or take the option out"
                        )));
                        return false;
                    }
                }
            }
        };
        let conf = match netconf::parse(&path, &bytes) {
            Ok(conf) => conf,
            Err(mut error) => {
                self.raw.problems.append(&mut error.problems);
                return false;
            }
        };
        self.raw.warnings.extend(conf.warnings);
        self.raw.problems.extend(conf.problems);
        for theirs in conf.settings {
            if let Some(ours) = self.raw.in_file(&theirs.key) {
                if !same(&ours.text, &theirs.text) {
                    let what =
                        ours.problem(format!("{theirs} says otherwise; take one of them out"));
                    self.problem(what);
                }
            }
            self.raw.push(theirs);
        }
        conf.implies_udp
    }

    /// With etcd a net-conf.json has no effect. flanneld passes over its flag then, and so do we over that; who told us
    /// of the file in our own words is not to believe that it counts.
    fn no_net_conf(&mut self, setting: &Setting) {
        let why =
            "with the leases in etcd network and backend are read from etcd's <prefix>/config";
        if self.raw.is_flannels(setting) {
            let what = setting.problem(format!(
                "has no effect, as flanneld's net-config-path with etcd: {why}"
            ));
            self.raw.warnings.push(what);
        } else {
            let what = setting.problem(format!("{why}; take this out"));
            self.problem(what);
        }
    }

    pub(super) fn network(&mut self, file: &Path, missing: bool) -> fdb::Network {
        let network = fdb::Network {
            v4: self.read("network.network", values::network_v4),
            v6: self.read("network.ipv6-network", values::network_v6),
        };
        let unset = |name| self.raw.get(name).is_none();
        // A net-conf.json that could not be read has been complained of already.
        let told = self.raw.get("network.net-conf").is_some() && !self.raw.problems.is_empty();
        if unset("network.network") && unset("network.ipv6-network") && !told && !self.on_etcd() {
            let so = if missing {
                "does not exist, and no flag names"
            } else {
                "names"
            };
            let no = if missing { "a network" } else { "no network" };
            self.problem(format!(
                "{} {so} {no}: set network = \"10.244.0.0/16\" under [network], or --network, and the same on all nodes",
                file.display()
            ));
        }
        network
    }

    pub(super) fn subnet_lens(&mut self, network: fdb::Network) -> (u8, u8) {
        let mut len = |family: &str, name: &str, net: Option<u8>, usual: u8, longest: u8| match net
        {
            Some(net) => self
                .read(name, |text| values::subnet_len(text, net, longest))
                .unwrap_or_else(|| values::default_subnet_len(net, usual, longest)),
            None => {
                if let Some(setting) = self.raw.get(name) {
                    let what =
                        setting.problem(format!("has no effect without an {family} network"));
                    self.raw.warnings.push(what);
                }
                usual
            }
        };
        (
            len(
                "IPv4",
                "network.subnet-len",
                network.v4.map(|net| net.prefix_len()),
                24,
                30,
            ),
            len(
                "IPv6",
                "network.ipv6-subnet-len",
                network.v6.map(|net| net.prefix_len()),
                64,
                126,
            ),
        )
    }

    pub(super) fn routes(&mut self) -> Vec<fdb::StaticRoute> {
        let mut routes = Vec::new();
        for route in std::mem::take(&mut self.raw.routes) {
            let prefix = self.route_field(
                &route.origin,
                route.prefix.as_ref(),
                "prefix",
                values::prefix,
            );
            let via = self.route_field(&route.origin, route.via.as_ref(), "via", |text| {
                let via = text.parse().map_err(|_| {
                    "not an IP address; write a node's public IP, for example 192.0.2.11".to_owned()
                })?;
                values::refuse_public(via).map(|()| via)
            });
            if let Some((prefix, via)) = prefix.zip(via) {
                routes.push(fdb::StaticRoute { prefix, via });
            }
        }
        routes
    }

    fn route_field<T>(
        &mut self,
        route: &Origin,
        setting: Option<&Setting>,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let parsed = match setting {
            Some(setting) => parse(&setting.text).map_err(|what| setting.problem(what)),
            None => Err(format!("{route}: [[route]] has no {key}; add it")),
        };
        parsed.map_err(|what| self.problem(what)).ok()
    }

    pub(super) fn public_ips_outside(&mut self, network: fdb::Network, node: &Node) {
        let v4 = node
            .public_ip
            .zip(network.v4)
            .filter(|(ip, net)| net.contains(ip));
        let v6 = node
            .public_ipv6
            .zip(network.v6)
            .filter(|(ip, net)| net.contains(ip));
        for name in v4
            .map(|_| "node.public-ip")
            .into_iter()
            .chain(v6.map(|_| "node.public-ipv6"))
        {
            if let Some(setting) = self.raw.get(name) {
                let what = setting.problem("lies inside the overlay network: without a longer route, packets to it enter the overlay themselves");
                self.raw.warnings.push(what);
            }
        }
    }
}

/// Equal in meaning: the same text, or the same prefix.
fn same(ours: &str, theirs: &str) -> bool {
    let prefix = |text: &str| text.parse::<ipnet::IpNet>().ok();
    ours == theirs || prefix(ours).is_some_and(|ours| prefix(theirs) == Some(ours))
}
