//! The building of a lab in stages, as a list of steps that has two readers: [`super::wire`] takes them, and
//! [`Step`]'s text is the command that a person would type for the same. So what is explained is what is done.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::itself;
use super::plan::{self, INTRUDER, Layer, NodePlan, PodPlan, Scenario, Segment, Spec, Store};

/// The bridge of a node's pods.
pub(super) const POD_BRIDGE: &str = "cni0";
/// The interface of a node on the underlay, and of a pod on its bridge.
pub(super) const ETH: &str = "eth0";
/// The interfaces of the router, one in each segment.
const ROUTER_ETH: [&str; 2] = [ETH, "eth1"];

/// How far a lab is built.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Nodes on an underlay; pods in namespaces of their own, connected to nothing
    Isolated,
    /// A cable (veth pair) from each pod to its node, and addresses
    Veth,
    /// A bridge on each node, the cables plugged into it
    Bridge,
    /// Default routes in the pods, nodes that forward
    Routed,
    /// overlayd on every node
    #[default]
    Overlay,
}

impl Stage {
    /// All, in the order of building.
    pub const ALL: [Self; 5] = [
        Self::Isolated,
        Self::Veth,
        Self::Bridge,
        Self::Routed,
        Self::Overlay,
    ];

    /// The one after it.
    pub fn next(self) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| *stage > self)
    }

    /// What it is for, in two sentences: what is made, and what works then.
    pub fn about(self) -> &'static str {
        match self {
            Self::Isolated => {
                "Nodes are network namespaces, joined by a bridge that stands for the underlay. A pod is a namespace too: \
                 a process holds it, and has nothing but lo to talk to."
            }
            Self::Veth => {
                "A veth pair is a cable between two namespaces. Each pod gets one to its node, and an address; but the \
                 node's end is plugged into nothing, so nobody answers."
            }
            Self::Bridge => {
                "A bridge is a switch. With the cables plugged into it the pods of one node hear each other, and the \
                 node, which has an address on the bridge."
            }
            Self::Routed => {
                "A pod sends what is for other networks to its gateway, and the node forwards it. Packets for another \
                 node's pods get as far as that: no route leads there."
            }
            Self::Overlay => {
                "overlayd makes the device overlay0 and routes the overlay network into it, looks up which node has the \
                 lease, and sends the packet there in UDP. Now all pods hear each other."
            }
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Isolated => "isolated",
            Self::Veth => "veth",
            Self::Bridge => "bridge",
            Self::Routed => "routed",
            Self::Overlay => "overlay",
        })
    }
}

/// One thing that is done in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// `underlay`, `node1`, `node1/pod2`.
    pub place: String,
    pub act: Act,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// A namespace with a name.
    Namespace,
    /// A namespace without one, and the processes that live in it. By hand: one with a name.
    Pod,
    Sysctl {
        key: String,
        value: &'static str,
    },
    /// Switched on at once.
    Bridge {
        name: &'static str,
    },
    Veth {
        name: String,
        /// Where the other end is.
        peer: String,
        /// What that is called: `eth0`.
        end: &'static str,
    },
    Mac {
        device: &'static str,
        mac: [u8; 6],
    },
    Mtu {
        device: String,
        mtu: u16,
    },
    Plug {
        device: String,
        bridge: &'static str,
    },
    Up {
        device: String,
    },
    Address {
        device: &'static str,
        address: IpNet,
    },
    DefaultRoute {
        via: IpAddr,
    },
}

/// The steps of a stage, in their order.
pub(super) fn steps(spec: &Spec, stage: Stage) -> Vec<Step> {
    let mut list = List(Vec::new());
    if stage == Stage::Isolated {
        list.underlay(spec);
        if spec.layer == Layer::L3 {
            list.router(spec);
        }
        if spec.store == Store::Etcd {
            list.etcd(spec);
        }
        if spec.scenario == Some(Scenario::Spoof) {
            list.intruder(spec);
        }
    }
    for node in spec.node_plans() {
        match stage {
            Stage::Isolated => list.node(spec, &node),
            Stage::Veth => {}
            Stage::Bridge => list.bridge(spec, &node),
            Stage::Routed => list.forwarding(spec, &node),
            Stage::Overlay => {}
        }
        for pod in &node.pods {
            match stage {
                Stage::Isolated => list.pod(spec, pod),
                Stage::Veth => list.cable(spec, &node, pod),
                Stage::Bridge => list.at(
                    &node.name,
                    Act::Plug {
                        device: pod.veth.clone(),
                        bridge: POD_BRIDGE,
                    },
                ),
                Stage::Routed => list.default_routes(&node, pod),
                Stage::Overlay => {}
            }
        }
    }
    list.0
}

/// Those steps of the stages up to the lab's own that make one pod, and its cable.
pub(super) fn steps_of_pod(spec: &Spec, node: &NodePlan, pod: &PodPlan) -> Vec<Step> {
    let stages = Stage::ALL.into_iter().filter(|stage| *stage <= spec.stage);
    let mut steps: Vec<_> = stages.flat_map(|stage| steps(spec, stage)).collect();
    steps.retain(|step| {
        let cable = match &step.act {
            Act::Veth { name: device, .. }
            | Act::Mtu { device, .. }
            | Act::Plug { device, .. }
            | Act::Up { device } => *device == pod.veth,
            _ => false,
        };
        step.place == pod.place || (step.place == node.name && cable)
    });
    steps
}

struct List(Vec<Step>);

impl List {
    fn at(&mut self, place: &str, act: Act) {
        self.0.push(Step {
            place: place.to_owned(),
            act,
        });
    }

    fn up(&mut self, place: &str, device: &str) {
        let device = device.to_owned();
        self.at(place, Act::Up { device });
    }

    fn mtu(&mut self, place: &str, device: &str, mtu: u16) {
        let device = device.to_owned();
        self.at(place, Act::Mtu { device, mtu });
    }

    fn addresses(&mut self, place: &str, device: &'static str, addresses: [Option<IpNet>; 2]) {
        for address in addresses.into_iter().flatten() {
            self.at(place, Act::Address { device, address });
        }
    }

    /// Settings of a fresh namespace, before it has any device but `lo`.
    ///
    /// No duplicate address detection: addresses follow from numbers, and a lab shall be ready at once instead of after
    /// the second that the detection takes. The kernel detects if either of the two says so (net/ipv6/addrconf.c,
    /// addrconf_dad_begin). `rp_filter` stays as the host has it.
    fn quiet(&mut self, spec: &Spec, place: &str) {
        if !spec.has_ipv6() {
            return;
        }
        for device in ["all", "default"] {
            let key = crate::kernel::sysctl::conf("ipv6", device, "accept_dad");
            self.at(place, Act::Sysctl { key, value: "0" });
        }
    }

    fn underlay(&mut self, spec: &Spec) {
        let place = "underlay";
        self.at(place, Act::Namespace);
        self.quiet(spec, place);
        for Segment { bridge: name, .. } in spec.segments() {
            self.at(place, Act::Bridge { name });
            self.mtu(place, name, spec.mtu);
        }
    }

    fn node(&mut self, spec: &Spec, node: &NodePlan) {
        let place = node.name.as_str();
        self.at(place, Act::Namespace);
        self.quiet(spec, place);
        self.up(place, "lo");
        self.host(spec, &node.segment, place, node.number);
    }

    fn intruder(&mut self, spec: &Spec) {
        let place = "intruder";
        self.at(place, Act::Namespace);
        self.up(place, "lo");
        let [.., number] = INTRUDER.octets();
        self.host(spec, &spec.segment_of(1), place, number);
    }

    /// A host of the first segment, for etcd.
    fn etcd(&mut self, spec: &Spec) {
        let place = "etcd";
        self.at(place, Act::Namespace);
        self.quiet(spec, place);
        self.up(place, "lo");
        self.host(spec, &spec.segment_of(1), place, plan::ETCD);
    }

    /// A host with a foot in each segment, which forwards.
    fn router(&mut self, spec: &Spec) {
        let place = "router";
        self.at(place, Act::Namespace);
        self.quiet(spec, place);
        self.up(place, "lo");
        self.forwards(spec, place);
        for (segment, end) in spec.segments().iter().zip(ROUTER_ETH) {
            self.cable_to(spec, segment, place, &format!("{place}-{end}"), end);
            self.addresses(place, end, segment.router());
        }
    }

    /// Puts a host into a segment: cable, addresses, and the way to the other segment if there is one.
    fn host(&mut self, spec: &Spec, segment: &Segment, place: &str, number: u8) {
        self.cable_to(spec, segment, place, place, ETH);
        self.addresses(place, ETH, segment.addresses(number));
        if spec.layer == Layer::L3 {
            for router in segment.router().into_iter().flatten() {
                self.at(place, Act::DefaultRoute { via: router.addr() });
            }
        }
    }

    /// A cable from a host to a segment, at both ends of the underlay's MTU.
    fn cable_to(
        &mut self,
        spec: &Spec,
        segment: &Segment,
        place: &str,
        port: &str,
        end: &'static str,
    ) {
        let underlay = "underlay";
        self.at(
            underlay,
            Act::Veth {
                name: port.to_owned(),
                peer: place.to_owned(),
                end,
            },
        );
        self.mtu(underlay, port, spec.mtu);
        self.at(
            underlay,
            Act::Plug {
                device: port.to_owned(),
                bridge: segment.bridge,
            },
        );
        self.up(underlay, port);
        self.mtu(place, end, spec.mtu);
        self.up(place, end);
    }

    fn pod(&mut self, spec: &Spec, pod: &PodPlan) {
        self.at(&pod.place, Act::Pod);
        self.quiet(spec, &pod.place);
        self.up(&pod.place, "lo");
    }

    fn cable(&mut self, spec: &Spec, node: &NodePlan, pod: &PodPlan) {
        let mtu = spec.overlay_mtu();
        self.at(
            &node.name,
            Act::Veth {
                name: pod.veth.clone(),
                peer: pod.place.clone(),
                end: ETH,
            },
        );
        self.mtu(&node.name, &pod.veth, mtu);
        self.up(&node.name, &pod.veth);
        self.at(
            &pod.place,
            Act::Mac {
                device: ETH,
                mac: mac(pod.ip),
            },
        );
        self.mtu(&pod.place, ETH, mtu);
        self.up(&pod.place, ETH);
        let own = [Some(net(pod.ip, 24)), pod.ipv6.map(|ip| net(ip, 64))];
        self.addresses(&pod.place, ETH, own);
    }

    fn bridge(&mut self, spec: &Spec, node: &NodePlan) {
        let place = node.name.as_str();
        self.at(place, Act::Bridge { name: POD_BRIDGE });
        // An address of its own, or the bridge takes that of its lowest port and changes it with every pod.
        self.at(
            place,
            Act::Mac {
                device: POD_BRIDGE,
                mac: mac(node.gateway),
            },
        );
        self.mtu(place, POD_BRIDGE, spec.overlay_mtu());
        let gateways = [
            Some(net(node.gateway, 24)),
            node.ipv6_gateway.map(|ip| net(ip, 64)),
        ];
        self.addresses(place, POD_BRIDGE, gateways);
    }

    fn forwarding(&mut self, spec: &Spec, node: &NodePlan) {
        self.forwards(spec, &node.name);
    }

    fn forwards(&mut self, spec: &Spec, place: &str) {
        let mut on = |key: String| self.at(place, Act::Sysctl { key, value: "1" });
        on("net.ipv4.ip_forward".to_owned());
        if spec.has_ipv6() {
            for device in ["all", "default"] {
                on(crate::kernel::sysctl::conf("ipv6", device, "forwarding"));
            }
        }
    }

    fn default_routes(&mut self, node: &NodePlan, pod: &PodPlan) {
        let ipv6 = node.ipv6_gateway.filter(|_| pod.ipv6.is_some());
        for via in [Some(node.gateway.into()), ipv6.map(IpAddr::from)]
            .into_iter()
            .flatten()
        {
            self.at(&pod.place, Act::DefaultRoute { via });
        }
    }
}

fn net(ip: impl Into<IpAddr>, prefix_len: u8) -> IpNet {
    IpNet::new_assert(ip.into(), prefix_len)
}

/// The address that Kubernetes' bridge plugin gave: `0a:58` and the IPv4 address, to be recognised in captures.
fn mac(ip: std::net::Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = ip.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// A place's namespace when it is made by hand.
fn by_hand(lab: &str, place: &str) -> String {
    format!("{lab}-{}", place.replace('/', "-"))
}

impl Step {
    /// The command that a person would type.
    fn command(&self, lab: &str) -> String {
        let ns = by_hand(lab, &self.place);
        match &self.act {
            Act::Namespace | Act::Pod => format!("ip netns add {ns}"),
            Act::Sysctl { key, value } => format!("ip netns exec {ns} sysctl -qw {key}={value}"),
            Act::Bridge { name } => format!("ip -n {ns} link add {name} up type bridge"),
            Act::Veth { name, peer, end } => format!(
                "ip -n {ns} link add {name} type veth peer name {end} netns {}",
                by_hand(lab, peer)
            ),
            Act::Mac { device, mac } => {
                let [a, b, c, d, e, f] = mac;
                format!(
                    "ip -n {ns} link set {device} address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"
                )
            }
            Act::Mtu { device, mtu } => format!("ip -n {ns} link set {device} mtu {mtu}"),
            Act::Plug { device, bridge } => format!("ip -n {ns} link set {device} master {bridge}"),
            Act::Up { device } => format!("ip -n {ns} link set {device} up"),
            Act::Address { device, address } => {
                // Who has it follows from numbers: nobody needs to be asked.
                let nodad = if address.addr().is_ipv6() {
                    " nodad"
                } else {
                    ""
                };
                format!("ip -n {ns} addr add {address} dev {device}{nodad}")
            }
            Act::DefaultRoute { via } => {
                let family = if via.is_ipv6() { "-6 " } else { "" };
                format!("ip -n {ns} {family}route add default via {via} dev {ETH} proto static")
            }
        }
    }
}

/// Where the files are that overlayd needs, when a lab is built by hand.
fn files(lab: &str) -> String {
    format!("/tmp/{lab}-by-hand")
}

/// The commands that a person would type for a stage of this lab, one per line, in a shell of root's. Where the lab
/// holds a pod's namespace by a process, they give it a name.
pub fn commands(spec: &Spec, stage: Stage) -> String {
    let mut text = String::new();
    for step in steps(spec, stage) {
        text += &step.command(&spec.name);
        text.push('\n');
    }
    if stage == Stage::Overlay {
        let dir = files(&spec.name);
        text += &format!(
            "mkdir -p {dir}\ncat > {dir}/leases.json <<'END'\n{}END\n",
            plan::leases(spec)
        );
        for node in spec.node_plans() {
            let (ns, own) = (&node.namespace, format!("{dir}/{}", node.name));
            let config = node.config(spec, dir.as_ref());
            text += &format!(
                "mkdir {own}\ncat > {own}/overlayd.toml <<'END'\n{config}END\n\
                 ip netns exec {ns} overlayd run --config {own}/overlayd.toml 2> {own}/overlayd.log &\n"
            );
            if spec.daemons {
                text += &itself::explained(spec, &node);
            }
        }
    }
    text
}

/// The commands that take away what [`commands`] has made, up to this stage.
pub fn removal(spec: &Spec, stage: Stage) -> String {
    let mut text = String::new();
    let dir = files(&spec.name);
    if stage == Stage::Overlay {
        for node in spec.node_plans() {
            text += &format!("ip netns pids {} | xargs -r kill\n", node.namespace);
        }
    }
    for step in steps(spec, Stage::Isolated) {
        if matches!(step.act, Act::Namespace | Act::Pod) {
            text += &format!("ip netns del {}\n", by_hand(&spec.name, &step.place));
        }
    }
    if stage == Stage::Overlay {
        text += &format!("rm -r {dir}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_follow_each_other() {
        let mut stage = Stage::Isolated;
        let mut all = vec![stage];
        while let Some(next) = stage.next() {
            all.push(next);
            stage = next;
        }
        assert_eq!(all, Stage::ALL);
        assert_eq!(Stage::default(), Stage::Overlay);
    }

    #[test]
    fn a_command_is_what_one_would_type() {
        let spec = Spec {
            nodes: 1,
            pods: 1,
            ..Spec::default()
        };
        let typed = |stage| commands(&spec, stage);
        assert!(typed(Stage::Isolated).starts_with("ip netns add lab-underlay\n"));
        for line in [
            "ip -n lab-node1 link add veth-pod1 type veth peer name eth0 netns lab-node1-pod1\n",
            "ip -n lab-node1-pod1 link set eth0 address 0a:58:0a:f4:01:02\n",
            "ip -n lab-node1-pod1 addr add fd00:10:244:1::2/64 dev eth0 nodad\n",
        ] {
            assert!(typed(Stage::Veth).contains(line), "{}", typed(Stage::Veth));
        }
        assert!(typed(Stage::Bridge).ends_with("ip -n lab-node1 link set veth-pod1 master cni0\n"));
        assert!(typed(Stage::Routed).contains(
            "ip -n lab-node1-pod1 route add default via 10.244.1.1 dev eth0 proto static\n"
        ));
        assert!(typed(Stage::Overlay).contains("\"10.244.1.0/24\""));
        assert!(removal(&spec, Stage::Veth).ends_with("ip netns del lab-node1-pod1\n"));
    }
}
