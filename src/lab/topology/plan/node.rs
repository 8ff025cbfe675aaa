//! The nodes of a lab and their pods: names, addresses, configuration.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::{IPV6_NETWORK, Leased, NETWORK, Segment, Spec};

/// Names and addresses of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePlan {
    /// From 1.
    pub number: u8,
    /// `node1`
    pub name: String,
    /// The name of its namespace: `lab-node1`.
    pub namespace: String,
    /// The segment of the underlay that it is in.
    pub segment: Segment,
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
    pub(super) fn new(spec: &Spec, number: u8) -> Self {
        let name = format!("node{number}");
        let segment = spec.segment_of(number);
        let Leased {
            subnet,
            ipv6_subnet,
        } = leased(spec, number);
        let ip = |host: u32| Ipv4Addr::from_bits(subnet.network().to_bits() | host);
        let ipv6 =
            |host: u128| ipv6_subnet.map(|net| Ipv6Addr::from_bits(net.network().to_bits() | host));
        let pod = |pod: u8| PodPlan {
            number: pod,
            name: format!("pod{pod}"),
            place: format!("{name}/pod{pod}"),
            veth: format!("veth-pod{pod}"),
            ip: ip(u32::from(pod) + 1),
            ipv6: ipv6(u128::from(pod) + 1),
        };
        Self {
            number,
            namespace: format!("{}-{name}", spec.name),
            public_ip: segment.ip(number),
            public_ipv6: segment.ipv6(number),
            segment,
            subnet,
            ipv6_subnet,
            gateway: ip(1),
            ipv6_gateway: ipv6(1),
            pods: (1..=spec.pods).map(pod).collect(),
            name,
        }
    }

    /// The configuration of its daemon (DESIGN: `overlayd.toml`). `dir` is the lab's directory.
    pub(in crate::lab::topology) fn config(&self, spec: &Spec, dir: &std::path::Path) -> String {
        let (name, lab) = (&self.name, &spec.name);
        let engine = spec.engine.name();
        let dir = dir.display();
        let (network, store) = match spec.etcd_endpoint() {
            None => (
                network(spec),
                format!("type = \"file\"\npath = \"{dir}/leases.json\"\n"),
            ),
            // The network and the backend stand in etcd.
            Some(endpoint) => (
                String::new(),
                format!(
                    "type = \"etcd\"\nendpoints = [\"{endpoint}\"]\nsaved-table = \"{dir}/{name}/leases.saved\"\n"
                ),
            ),
        };
        format!(
            "# {name} of lab {lab}, written by `overlayd lab up`\n\
             \n\
             {network}\
             [node]\n\
             name = \"{name}\"\n\
             iface = \"eth0\"\n\
             \n\
             [datapath]\n\
             engine = \"{engine}\"\n\
             \n\
             [store]\n\
             {store}\
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
pub(in crate::lab::topology) fn leases(spec: &Spec) -> String {
    let lines: Vec<_> = spec
        .node_plans()
        .iter()
        .map(|node| format!("  {}", node.lease()))
        .collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}

/// The sections of the configuration that all nodes share.
fn network(spec: &Spec) -> String {
    let ipv6 = if spec.ipv6 {
        format!("ipv6-network = \"{IPV6_NETWORK}\"\n")
    } else {
        String::new()
    };
    let direct = if spec.direct_routing {
        "direct-routing = true\n"
    } else {
        ""
    };
    format!(
        "[network]\n\
         network = \"{NETWORK}\"\n\
         {ipv6}\
         \n\
         [backend]\n\
         type = \"{}\"\n\
         {direct}\
         \n",
        spec.backend
    )
}

/// What the node got from the store; in a file its number decides.
fn leased(spec: &Spec, number: u8) -> Leased {
    let got = spec.leased.get(usize::from(number.saturating_sub(1)));
    let ipv6 = || {
        let base = Ipv6Addr::new(0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, 0);
        Ipv6Net::new_assert(base, 64)
    };
    got.copied().unwrap_or_else(|| Leased {
        subnet: Ipv4Net::new_assert(Ipv4Addr::new(10, 244, number, 0), 24),
        ipv6_subnet: spec.ipv6.then(ipv6),
    })
}
