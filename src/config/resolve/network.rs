//! The whole network: its ranges, and what its net-conf says.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::{Resolver, read};
use crate::config::raw::resolve_path;
use crate::config::{netconf, values};
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
            _ if self.on_etcd() => {
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
}

/// Equal in meaning: the same text, or the same prefix.
fn same(ours: &str, theirs: &str) -> bool {
    let prefix = |text: &str| text.parse::<ipnet::IpNet>().ok();
    ours == theirs || prefix(ours).is_some_and(|ours| prefix(theirs) == Some(ours))
}
