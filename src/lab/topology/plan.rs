//! What a lab consists of, and every name and address in it. Nothing here touches the system.

mod node;

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use anyhow::{Result, bail};
use encap::{Encapsulation, Family, RawUdp, Vxlan};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

pub(super) use node::leases;
pub use node::{NodePlan, PodPlan};

use super::stage::Stage;
use crate::config::Engine;

/// The name of a lab that was given none.
pub const DEFAULT_NAME: &str = "lab";
/// The overlay network's IPv4 prefix.
pub const NETWORK: &str = "10.244.0.0/16";
/// The overlay network's IPv6 prefix.
pub const IPV6_NETWORK: &str = "fd00:10:244::/48";

/// The address of the stranger on the underlay ([`Scenario::Spoof`]): a node's number never is so high.
pub const INTRUDER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 254);

/// The last part of the address that the router has in each segment ([`Layer::L3`]).
const ROUTER: u8 = 254;
/// The last part of the address of the lab's etcd ([`Store::Etcd`]).
pub(super) const ETCD: u8 = 253;
/// Where etcd listens for clients.
pub const ETCD_PORT: u16 = 2379;
/// What the keys in etcd begin with: the daemons' default, as it is flannel's.
pub const ETCD_PREFIX: &str = "/coreos.com/network";
/// How many nodes share the first segment; the others sit behind the router.
const NEAR: u8 = 2;

/// The most nodes a lab can have: the node's number is the third byte of its subnet.
const MAX_NODES: u8 = 250;
/// The most pods a node can have: the pod's number plus 1 is the last byte of its address.
const MAX_PODS: u8 = 250;
/// Long enough for a sentence, short enough that a socket's path fits into 108 bytes (unix(7)).
const MAX_NAME: usize = 32;

/// The backend that the daemons of a lab run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Raw IP packets in UDP.
    Udp,
    /// VXLAN.
    Vxlan,
    /// Nothing in front: routes through the other nodes.
    #[serde(rename = "host-gw")]
    HostGw,
}

impl Backend {
    /// The UDP port that its daemons use, there being no other in their configuration. `None`: none.
    pub fn port(self) -> Option<u16> {
        match self {
            Self::Udp => Some(8285),
            Self::Vxlan => Some(8472),
            Self::HostGw => None,
        }
    }

    /// What an outer packet is larger than its inner one, in bytes.
    pub fn overhead(self, outer: Family) -> u16 {
        match self {
            Self::Udp => RawUdp::overhead(outer),
            Self::Vxlan => Vxlan::overhead(outer),
            Self::HostGw => 0,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => RawUdp::NAME,
            Self::Vxlan => Vxlan::NAME,
            Self::HostGw => "host-gw",
        })
    }
}

/// Of those that encapsulate.
impl FromStr for Backend {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            RawUdp::NAME => Ok(Self::Udp),
            Vxlan::NAME => Ok(Self::Vxlan),
            _ => bail!("the encapsulations are udp and vxlan, not {text:?}"),
        }
    }
}

/// The IP families of the underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Underlay {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Dual,
}

/// What joins the nodes of the underlay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// One segment: a bridge.
    #[default]
    L2,
    /// Two segments, and a router between them: the first two nodes share one, the others the other.
    L3,
}

/// Where the leases stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// In a file that all nodes read.
    #[default]
    File,
    /// In an etcd of the lab's own: each node takes a subnet there.
    Etcd,
}

/// The subnets that a node got from the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leased {
    /// For its pods.
    pub subnet: Ipv4Net,
    /// The same of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6_subnet: Option<Ipv6Net>,
}

/// One segment of the underlay: a bridge, and the networks of the hosts that are plugged into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// From 0.
    pub number: u8,
    /// `underlay0`
    pub bridge: &'static str,
    /// `10.99.0.0/24`
    pub network: Option<Ipv4Net>,
    /// `fd99::/64`
    pub ipv6_network: Option<Ipv6Net>,
}

impl Segment {
    fn new(families: Underlay, number: u8) -> Self {
        let v6 = Ipv6Addr::new(0xfd99, 0, 0, u16::from(number), 0, 0, 0, 0);
        Self {
            number,
            bridge: if number == 0 {
                "underlay0"
            } else {
                "underlay1"
            },
            network: (families != Underlay::V6)
                .then(|| Ipv4Net::new_assert(Ipv4Addr::new(10, 99, number, 0), 24)),
            ipv6_network: (families != Underlay::V4).then(|| Ipv6Net::new_assert(v6, 64)),
        }
    }

    /// The IPv4 address in it of the host with this number.
    pub fn ip(&self, host: u8) -> Option<Ipv4Addr> {
        let [a, b, c, _] = self.network?.network().octets();
        Some(Ipv4Addr::new(a, b, c, host))
    }

    /// The same of IPv6.
    pub fn ipv6(&self, host: u8) -> Option<Ipv6Addr> {
        let network = self.ipv6_network?.network().to_bits();
        Some(Ipv6Addr::from_bits(network | u128::from(host)))
    }

    /// The addresses of the host with this number, with the networks' prefix lengths.
    pub(in crate::lab) fn addresses(&self, host: u8) -> [Option<IpNet>; 2] {
        [
            self.ip(host).map(|ip| IpNet::new_assert(ip.into(), 24)),
            self.ipv6(host).map(|ip| IpNet::new_assert(ip.into(), 64)),
        ]
    }

    /// The router's addresses.
    pub fn router(&self) -> [Option<IpNet>; 2] {
        self.addresses(ROUTER)
    }
}

/// What is wrong with a lab on purpose, for a class to find out ([`crate::lab::scenario`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// ping works, a download hangs
    Mtu,
    /// one node's pods cannot be reached
    NoLease,
    /// a pod hears from another one that has said nothing
    Spoof,
}

/// What a lab consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Its name: what the names of its namespaces begin with.
    pub name: String,
    /// How many nodes, from 1.
    pub nodes: u8,
    /// How many pods on each node.
    pub pods: u8,
    /// The backend.
    pub backend: Backend,
    /// VXLAN: nodes of one segment route to each other, without encapsulation.
    #[serde(default)]
    pub direct_routing: bool,
    /// Pods have IPv6 addresses too.
    pub ipv6: bool,
    /// The families of the underlay.
    pub underlay: Underlay,
    /// What joins the nodes.
    #[serde(default)]
    pub layer: Layer,
    /// Where the leases stand.
    #[serde(default)]
    pub store: Store,
    /// What the nodes got from the store, in their order; empty if that follows from their numbers, or is not known yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leased: Vec<Leased>,
    /// The underlay's MTU, in bytes.
    pub mtu: u16,
    /// overlayd is started on every node. Otherwise only its configuration is written.
    pub daemons: bool,
    /// How far it is built. Before the last stage no overlayd is started.
    #[serde(default)]
    pub stage: Stage,
    /// What is wrong with it on purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenario: Option<Scenario>,
    /// The engine of its daemons. One packet per system call is what a class can follow: across a cable between two
    /// namespaces the others' trains and superpackets travel whole, larger than any MTU.
    #[serde(default = "default_engine")]
    pub engine: Engine,
    /// Further configuration, in TOML, appended to each node's: sections that are not there yet.
    pub config: String,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            name: DEFAULT_NAME.to_owned(),
            nodes: 3,
            pods: 2,
            backend: Backend::Vxlan,
            direct_routing: false,
            ipv6: true,
            underlay: Underlay::Dual,
            layer: Layer::L2,
            store: Store::File,
            leased: Vec::new(),
            mtu: 1500,
            daemons: true,
            stage: Stage::Overlay,
            scenario: None,
            engine: default_engine(),
            config: String::new(),
        }
    }
}

fn default_engine() -> Engine {
    Engine::Classic
}

impl Spec {
    /// Says what is wrong with it, if something is.
    ///
    /// # Errors
    /// A sentence that says which value, and what it may be.
    pub fn validate(&self) -> Result<()> {
        check_name(&self.name)?;
        if !(1..=MAX_NODES).contains(&self.nodes) {
            bail!("a lab has 1 to {MAX_NODES} nodes, not {}", self.nodes);
        }
        if self.pods > MAX_PODS {
            bail!(
                "a node of a lab has at most {MAX_PODS} pods, not {}",
                self.pods
            );
        }
        if self.scenario.is_some()
            && (self.underlay != Underlay::V4
                || !self.runs_daemons()
                || self.nodes < 2
                || self.pods < 1)
        {
            bail!(
                "a scenario is played over an underlay of IPv4 alone, by 2 nodes or more with a pod or more each, in a lab built to its last stage"
            );
        }
        self.validate_ways()?;
        // Inside, IPv6 needs 1280 bytes (RFC 8200 section 5), IPv4 68 (RFC 791 section 3.2); so does the underlay.
        let inside = if self.ipv6 { 1280 } else { 68 };
        let outside = if self.underlay == Underlay::V4 {
            68
        } else {
            1280
        };
        let largest = match self.underlay {
            Underlay::V4 => self.backend.overhead(Family::V4),
            Underlay::V6 | Underlay::Dual => self.backend.overhead(Family::V6),
        };
        let least = outside.max(inside + largest);
        if self.mtu < least {
            bail!(
                "an underlay MTU of {} is too small: {} over this underlay needs {least} bytes",
                self.mtu,
                self.backend
            );
        }
        Ok(())
    }

    /// Combinations of backend, underlay, store, stage and scenario that make no sense.
    fn validate_ways(&self) -> Result<()> {
        let plain = self.backend == Backend::HostGw || self.direct_routing;
        if self.direct_routing && self.backend != Backend::Vxlan {
            bail!(
                "direct routing is VXLAN's: {} {}",
                self.backend,
                if self.backend == Backend::HostGw {
                    "routes to every node anyway"
                } else {
                    "has none"
                }
            );
        }
        if self.backend == Backend::HostGw {
            let missing = match self.underlay {
                Underlay::V6 => Some("IPv4"),
                Underlay::V4 if self.ipv6 => Some("IPv6"),
                Underlay::V4 | Underlay::Dual => None,
            };
            if let Some(family) = missing {
                bail!(
                    "host-gw puts no other header in front: for pods with {family} addresses the underlay needs {family}"
                );
            }
        }
        if self.layer == Layer::L3 && self.nodes <= NEAR {
            bail!(
                "an underlay of two segments (l3) needs 3 nodes or more: node1 and node2 share one, the others sit behind the router"
            );
        }
        if let Some(scenario) = self.scenario {
            if plain || self.layer == Layer::L3 {
                bail!(
                    "the scenario {scenario} is about packets that are encapsulated on one segment: play it on l2, with udp or vxlan without direct routing"
                );
            }
        }
        if self.store == Store::File {
            return Ok(());
        }
        if self.scenario == Some(Scenario::NoLease) {
            bail!(
                "the scenario no-lease is about a lease file: in etcd a node takes its lease again by itself"
            );
        }
        if !self.runs_daemons() {
            bail!(
                "with its leases in etcd a lab is built at once: until its nodes have taken their subnets, nobody knows the pods' addresses"
            );
        }
        if self.underlay == Underlay::V6 {
            bail!(
                "flannel's leases in etcd carry a public IPv4 address: the underlay needs IPv4 (v4 or dual)"
            );
        }
        if self.ipv6 && self.underlay == Underlay::V4 {
            bail!(
                "with leases in etcd, pods with IPv6 addresses need an underlay that has them: dual, or pods without (--no-ipv6)"
            );
        }
        if self.ipv6 && self.backend == Backend::Udp {
            bail!(
                "flannel's udp in etcd is of IPv4 alone: use vxlan, or pods without IPv6 (--no-ipv6)"
            );
        }
        Ok(())
    }

    /// The MTU of pods, of their bridge and of the overlay device, in bytes: the underlay's minus the overhead over
    /// IPv4, or over IPv6 where there is nothing else.
    pub fn overlay_mtu(&self) -> u16 {
        let outer = if self.underlay == Underlay::V6 {
            Family::V6
        } else {
            Family::V4
        };
        self.mtu.saturating_sub(self.backend.overhead(outer))
    }

    /// The name of the namespace of the underlay's bridge.
    pub fn underlay_namespace(&self) -> String {
        format!("{}-underlay", self.name)
    }

    /// The name of the namespace of a stranger on the underlay ([`Scenario::Spoof`]).
    pub fn intruder_namespace(&self) -> String {
        format!("{}-intruder", self.name)
    }

    /// The name of the namespace of the router between two segments ([`Layer::L3`]).
    pub fn router_namespace(&self) -> String {
        format!("{}-router", self.name)
    }

    /// The name of the namespace of the lab's etcd ([`Store::Etcd`]).
    pub fn etcd_namespace(&self) -> String {
        format!("{}-etcd", self.name)
    }

    /// The segments of its underlay.
    pub fn segments(&self) -> Vec<Segment> {
        let count = match self.layer {
            Layer::L2 => 1,
            Layer::L3 => 2,
        };
        (0..count)
            .map(|number| Segment::new(self.underlay, number))
            .collect()
    }

    /// The segment that a node is in.
    pub fn segment_of(&self, node: u8) -> Segment {
        let far = self.layer == Layer::L3 && node > NEAR;
        Segment::new(self.underlay, far.into())
    }

    /// The addresses of its etcd, if it has one.
    pub fn etcd_addresses(&self) -> [Option<IpNet>; 2] {
        match self.store {
            Store::File => [None, None],
            Store::Etcd => Segment::new(self.underlay, 0).addresses(ETCD),
        }
    }

    /// Where its nodes reach its etcd: `http://10.99.0.253:2379`.
    pub fn etcd_endpoint(&self) -> Option<String> {
        let address = self.etcd_addresses().into_iter().flatten().next()?;
        let socket = SocketAddr::new(address.addr(), ETCD_PORT);
        Some(format!("http://{socket}"))
    }

    /// The configuration that its etcd holds for all nodes: flannel's net-conf.json.
    pub(super) fn net_conf(&self) -> String {
        let mut backend = serde_json::json!({ "Type": self.backend.to_string() });
        if self.direct_routing {
            backend["DirectRouting"] = true.into();
        }
        let mut conf = serde_json::json!({ "Network": NETWORK, "Backend": backend });
        if self.ipv6 {
            conf["EnableIPv6"] = true.into();
            conf["IPv6Network"] = IPV6_NETWORK.into();
        }
        conf.to_string()
    }

    /// Some of its addresses are of IPv6.
    pub fn has_ipv6(&self) -> bool {
        self.ipv6 || self.underlay != Underlay::V4
    }

    /// overlayd runs on every node, once the lab is built.
    pub fn runs_daemons(&self) -> bool {
        self.daemons && self.stage == Stage::Overlay
    }

    /// The plans of all nodes.
    pub fn node_plans(&self) -> Vec<NodePlan> {
        (1..=self.nodes)
            .map(|number| NodePlan::new(self, number))
            .collect()
    }

    /// The names of all namespaces of the lab that have one.
    pub fn namespaces(&self) -> Vec<String> {
        let nodes = self.node_plans().into_iter().map(|node| node.namespace);
        let intruder = (self.scenario == Some(Scenario::Spoof)).then(|| self.intruder_namespace());
        let router = (self.layer == Layer::L3).then(|| self.router_namespace());
        let etcd = (self.store == Store::Etcd).then(|| self.etcd_namespace());
        std::iter::once(self.underlay_namespace())
            .chain(nodes)
            .chain(intruder)
            .chain(router)
            .chain(etcd)
            .collect()
    }
}

/// Those of the names that a lab of this name would have given, whatever its spec.
pub(super) fn namespaces_of(lab: &str, mut names: Vec<String>) -> Vec<String> {
    names.retain(|name| {
        let own = name
            .strip_prefix(lab)
            .and_then(|rest| rest.strip_prefix('-'));
        own.is_some_and(|own| {
            ["underlay", "intruder", "router", "etcd"].contains(&own)
                || own
                    .strip_prefix("node")
                    .is_some_and(|n| n.parse::<u8>().is_ok())
        })
    });
    names
}

/// Refuses what cannot be the name of a lab.
pub(in crate::lab) fn check_name(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(good) || name.starts_with('-')
    {
        bail!(
            "{name:?} cannot be the name of a lab: 1 to {MAX_NAME} of a-z, 0-9 and '-', not '-' first"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
