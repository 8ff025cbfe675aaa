//! What a lab consists of, and every name and address in it. Nothing here touches the system.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use anyhow::{Result, bail};
use encap::{Encapsulation, Family, RawUdp, Vxlan};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

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
}

impl Backend {
    /// The UDP port that its daemons use, there being no other in their configuration.
    pub fn port(self) -> u16 {
        match self {
            Self::Udp => 8285,
            Self::Vxlan => 8472,
        }
    }

    /// What an outer packet is larger than its inner one, in bytes.
    pub fn overhead(self, outer: Family) -> u16 {
        match self {
            Self::Udp => RawUdp::overhead(outer),
            Self::Vxlan => Vxlan::overhead(outer),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => RawUdp::NAME,
            Self::Vxlan => Vxlan::NAME,
        })
    }
}

impl FromStr for Backend {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            RawUdp::NAME => Ok(Self::Udp),
            Vxlan::NAME => Ok(Self::Vxlan),
            _ => bail!("the lab knows the backends udp and vxlan, not {text:?}"),
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
    /// Pods have IPv6 addresses too.
    pub ipv6: bool,
    /// The families of the underlay.
    pub underlay: Underlay,
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
            ipv6: true,
            underlay: Underlay::Dual,
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
        std::iter::once(self.underlay_namespace())
            .chain(nodes)
            .chain(intruder)
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
            own == "underlay"
                || own == "intruder"
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

/// Names and addresses of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePlan {
    /// From 1.
    pub number: u8,
    /// `node1`
    pub name: String,
    /// The name of its namespace: `lab-node1`.
    pub namespace: String,
    /// Its address on the underlay, `10.99.0.1`.
    pub public_ip: Option<Ipv4Addr>,
    /// Its address on the underlay, `fd99::1`.
    pub public_ipv6: Option<Ipv6Addr>,
    /// The subnet of its lease, `10.244.1.0/24`.
    pub subnet: Ipv4Net,
    /// `fd00:10:244:1::/64`
    pub ipv6_subnet: Option<Ipv6Net>,
    /// What its bridge `cni0` has in that subnet, `10.244.1.1`: the pods' gateway.
    pub gateway: Ipv4Addr,
    /// `fd00:10:244:1::1`
    pub ipv6_gateway: Option<Ipv6Addr>,
    /// Its pods.
    pub pods: Vec<PodPlan>,
}

/// Names and addresses of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPlan {
    /// From 1, on each node anew.
    pub number: u8,
    /// `pod1`
    pub name: String,
    /// Where it is: `node1/pod1`.
    pub place: String,
    /// The node's end of its veth pair, `veth-pod1`; its own end is `eth0`.
    pub veth: String,
    /// `10.244.1.2` for the first.
    pub ip: Ipv4Addr,
    /// `fd00:10:244:1::2` for the first.
    pub ipv6: Option<Ipv6Addr>,
}

impl NodePlan {
    fn new(spec: &Spec, number: u8) -> Self {
        let name = format!("node{number}");
        let n = u16::from(number);
        let ipv6 = |host: u16| {
            spec.ipv6
                .then(|| Ipv6Addr::new(0xfd00, 0x10, 0x244, n, 0, 0, 0, host))
        };
        let pod = |pod: u8| PodPlan {
            number: pod,
            name: format!("pod{pod}"),
            place: format!("{name}/pod{pod}"),
            veth: format!("veth-pod{pod}"),
            ip: Ipv4Addr::new(10, 244, number, pod + 1),
            ipv6: ipv6(u16::from(pod) + 1),
        };
        Self {
            number,
            namespace: format!("{}-{name}", spec.name),
            public_ip: (spec.underlay != Underlay::V6).then(|| Ipv4Addr::new(10, 99, 0, number)),
            public_ipv6: (spec.underlay != Underlay::V4)
                .then(|| Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, n)),
            subnet: Ipv4Net::new_assert(Ipv4Addr::new(10, 244, number, 0), 24),
            ipv6_subnet: ipv6(0).map(|ip| Ipv6Net::new_assert(ip, 64)),
            gateway: Ipv4Addr::new(10, 244, number, 1),
            ipv6_gateway: ipv6(1),
            pods: (1..=spec.pods).map(pod).collect(),
            name,
        }
    }

    /// The configuration of its daemon (DESIGN: `overlayd.toml`). `dir` is the lab's directory.
    pub(super) fn config(&self, spec: &Spec, dir: &std::path::Path) -> String {
        let (name, backend, lab) = (&self.name, spec.backend, &spec.name);
        let engine = spec.engine.name();
        let ipv6 = if spec.ipv6 {
            format!("ipv6-network = \"{IPV6_NETWORK}\"\n")
        } else {
            String::new()
        };
        let dir = dir.display();
        format!(
            "# {name} of lab {lab}, written by `overlayd lab up`\n\
             \n\
             [network]\n\
             network = \"{NETWORK}\"\n\
             {ipv6}\
             \n\
             [backend]\n\
             type = \"{backend}\"\n\
             \n\
             [node]\n\
             name = \"{name}\"\n\
             iface = \"eth0\"\n\
             \n\
             [datapath]\n\
             engine = \"{engine}\"\n\
             \n\
             [store]\n\
             type = \"file\"\n\
             path = \"{dir}/leases.json\"\n\
             \n\
             [control]\n\
             socket = \"{dir}/{name}/overlayd.sock\"\n\
             {}{}",
            if spec.config.is_empty() { "" } else { "\n" },
            spec.config
        )
    }

    fn lease(&self) -> serde_json::Value {
        let mut lease = serde_json::Map::new();
        let mut put = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                lease.insert(key.to_owned(), value.into());
            }
        };
        put("Subnet", Some(self.subnet.to_string()));
        put("IPv6Subnet", self.ipv6_subnet.map(|net| net.to_string()));
        put("PublicIP", self.public_ip.map(|ip| ip.to_string()));
        put("PublicIPv6", self.public_ipv6.map(|ip| ip.to_string()));
        serde_json::Value::Object(lease)
    }
}

/// The lease file that all nodes of a lab share: one line per lease.
pub(super) fn leases(spec: &Spec) -> String {
    let lines: Vec<_> = spec
        .node_plans()
        .iter()
        .map(|node| format!("  {}", node.lease()))
        .collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{config::Config, lease};

    #[test]
    fn addresses_follow_the_numbers() {
        let nodes = Spec::default().node_plans();
        let node = &nodes[1];
        assert_eq!(
            (node.name.as_str(), node.namespace.as_str()),
            ("node2", "lab-node2")
        );
        assert_eq!(node.public_ip.unwrap().to_string(), "10.99.0.2");
        assert_eq!(node.public_ipv6.unwrap().to_string(), "fd99::2");
        assert_eq!(node.subnet.to_string(), "10.244.2.0/24");
        assert_eq!(node.ipv6_subnet.unwrap().to_string(), "fd00:10:244:2::/64");
        assert_eq!(node.gateway.to_string(), "10.244.2.1");
        let pod = &node.pods[1];
        assert_eq!(
            (pod.place.as_str(), pod.veth.as_str()),
            ("node2/pod2", "veth-pod2")
        );
        assert_eq!(pod.ip.to_string(), "10.244.2.3");
        assert_eq!(pod.ipv6.unwrap().to_string(), "fd00:10:244:2::3");
        assert_eq!(
            Spec::default().namespaces(),
            ["lab-underlay", "lab-node1", "lab-node2", "lab-node3"]
        );
    }

    #[test]
    fn the_overlay_mtu_is_what_the_encapsulation_leaves() {
        let mtu = |backend, underlay| {
            let spec = Spec {
                backend,
                underlay,
                ..Spec::default()
            };
            spec.overlay_mtu()
        };
        assert_eq!(mtu(Backend::Vxlan, Underlay::Dual), 1450);
        assert_eq!(mtu(Backend::Udp, Underlay::V4), 1472);
        assert_eq!(mtu(Backend::Vxlan, Underlay::V6), 1430);
        assert_eq!(mtu(Backend::Udp, Underlay::V6), 1452);
    }

    #[test]
    fn what_cannot_be_built_is_refused_with_a_reason() {
        let reason = |change: &dyn Fn(&mut Spec)| {
            let mut spec = Spec::default();
            change(&mut spec);
            spec.validate().unwrap_err().to_string()
        };
        assert!(Spec::default().validate().is_ok());
        for name in ["", "a/b", "..", "Lab", "-x", "a b", &"x".repeat(33)] {
            assert!(
                reason(&|s| s.name = name.to_owned()).contains("cannot be the name of a lab"),
                "{name}"
            );
        }
        assert!(reason(&|s| s.nodes = 0).contains("1 to 250 nodes"));
        assert!(reason(&|s| s.nodes = 251).contains("1 to 250 nodes"));
        assert!(reason(&|s| s.pods = 251).contains("at most 250 pods"));
        assert!(reason(&|s| s.mtu = 1349).contains("needs 1350 bytes"));
        let v4 = |s: &mut Spec| (s.ipv6, s.underlay, s.mtu) = (false, Underlay::V4, 117);
        assert!(reason(&v4).contains("needs 118 bytes"));
    }

    #[test]
    fn the_written_files_are_what_the_daemon_reads() {
        for (backend, ipv6, underlay) in [
            (Backend::Udp, false, Underlay::V4),
            (Backend::Vxlan, true, Underlay::Dual),
            (Backend::Vxlan, true, Underlay::V6),
        ] {
            let spec = Spec {
                backend,
                ipv6,
                underlay,
                config: "[log]\nlevel = \"debug\"\n".into(),
                ..Spec::default()
            };
            let dir = tempfile::tempdir().unwrap();
            let node = &spec.node_plans()[1];
            let path = dir.path().join("overlayd.toml");
            std::fs::write(
                &path,
                node.config(&spec, Path::new("/run/overlayd/lab/lab")),
            )
            .unwrap();
            let none: [(std::ffi::OsString, std::ffi::OsString); 0] = [];
            let config = Config::load(Some(&path), &Default::default(), none).unwrap();
            assert_eq!(config.backend.name(), backend.to_string());
            assert_eq!(config.backend.port(), backend.port());
            assert_eq!(config.network.v4.unwrap().to_string(), NETWORK);
            assert_eq!(config.network.v6.is_some(), ipv6);
            assert_eq!(config.node.name, "node2");
            assert_eq!(
                config.control.socket,
                Path::new("/run/overlayd/lab/lab/node2/overlayd.sock")
            );
            assert_eq!(config.warnings, [""; 0]);

            let leases = lease::parse(leases(&spec).as_bytes()).unwrap();
            assert_eq!(leases.len(), 3);
            assert_eq!(leases[1].subnet, Some(node.subnet));
            assert_eq!(leases[1].ipv6_subnet, node.ipv6_subnet);
            assert_eq!(
                (leases[1].public_ip, leases[1].public_ipv6),
                (node.public_ip, node.public_ipv6)
            );
        }
    }

    #[test]
    fn a_labs_namespaces_are_known_by_their_names() {
        let mut all = Spec::default().namespaces();
        let others = [
            "lab",
            "lab-x",
            "lab-nodes",
            "lab-node1-underlay",
            "lab2-node1",
            "node1",
            "lab-node",
        ];
        all.extend(others.map(String::from));
        assert_eq!(namespaces_of("lab", all), Spec::default().namespaces());
    }

    #[test]
    fn backends_have_the_names_of_the_configuration() {
        for backend in [Backend::Udp, Backend::Vxlan] {
            assert_eq!(backend.to_string().parse::<Backend>().unwrap(), backend);
        }
        assert!(
            "gre"
                .parse::<Backend>()
                .unwrap_err()
                .to_string()
                .contains("\"gre\"")
        );
    }
}
