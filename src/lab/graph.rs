//! A topology as a picture: nodes, pods, bridges, TUN devices and the underlay, with addresses and MTUs, and ways of
//! packets through it.
//!
//! A node is drawn as the stack that a packet climbs, so that a way is a line that goes up on one node and down on
//! another:
//!
//! ```text
//!  ════╤═══════════════ underlay ═══
//!   ┌──┴─────── node1 ───┐
//!   │ eth0               │
//!   │  ┊ UDP socket      │
//!   │ overlayd           │    leases
//!   │  ┊ read, write     │
//!   │ overlay0           │    TUN
//!   │  │                 │
//!   │ kernel             │    routes
//!   │  │                 │
//!   │ cni0               │    bridge
//!   │  ├─ veth ─[ pod1 ] │
//!   │  └─ veth ─[ pod2 ] │
//!   └────────────────────┘
//! ```
//!
//! What is to be drawn is a [`Topology`]: [`Topology::planned`] of a lab that need not exist, [`Topology::seen`] of one
//! that runs, or one put together by hand. A [`Picture`] adds [`Way`]s and notes and makes an SVG of it all, readable
//! without colours.

mod layout;
mod legend;
mod seen;
mod svg;

pub(crate) use seen::routes;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::topology::{
    Backend, INTRUDER, IPV6_NETWORK, Layer, NETWORK, NodePlan, PodPlan, Scenario, Segment, Spec,
    Stage, Store,
};

/// Something with a name and properties: a device, a program, a kernel's routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// `eth0`
    pub name: String,
    /// What it is, in a word or two: `bridge`.
    pub kind: String,
    /// Its MTU, in bytes.
    pub mtu: Option<u32>,
    /// Its properties, one per line: addresses, mostly.
    pub lines: Vec<String>,
    /// What it is instead of being switched on, or running: `off`. Such a part is drawn dashed, and says it.
    pub off: Option<String>,
}

/// What is to be drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// The headline.
    pub title: String,
    /// What the nodes are connected by.
    pub underlay: Part,
    /// What those behind a router are connected by, if the underlay has two segments.
    pub beyond: Option<Part>,
    /// The nodes, in the order of their places.
    pub nodes: Vec<Node>,
}

/// A node. What it does not have is not drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// By what number a [`Point`] calls it.
    pub number: u8,
    /// `node1`
    pub name: String,
    /// It is on the underlay, but no node: it stands in a row of its own.
    pub stranger: bool,
    /// It is behind the router, on the second segment.
    pub beyond: bool,
    /// The underlay's end of its cable.
    pub port: Option<Part>,
    /// Its interface on the underlay.
    pub eth: Option<Part>,
    /// The daemon; its lines are what it knows: leases of peers.
    pub daemon: Option<Part>,
    /// The daemon's device.
    pub tun: Option<Part>,
    /// The kernel; its lines are routes.
    pub kernel: Option<Part>,
    /// The bridge of its pods.
    pub bridge: Option<Part>,
    /// A router's interface on the second segment.
    pub foot: Option<Part>,
    /// Its pods.
    pub pods: Vec<Pod>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// By what number a [`Point`] calls it; on each node anew.
    pub number: u8,
    /// `pod1`
    pub name: String,
    /// Its interface.
    pub eth: Option<Part>,
    /// The node's end of its cable.
    pub veth: Option<Part>,
    /// That end is a port of the node's bridge.
    pub plugged: bool,
}

/// A place in the picture that a packet can be at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Point {
    /// A pod, at its own end of its cable.
    Pod {
        /// The node it is on.
        node: u8,
        /// The pod there.
        pod: u8,
    },
    /// The node's end of a pod's cable.
    Veth {
        /// The node.
        node: u8,
        /// The pod that it leads to.
        pod: u8,
    },
    /// A node's bridge.
    Bridge {
        /// The node.
        node: u8,
    },
    /// A node's kernel: routing, netfilter.
    Kernel {
        /// The node.
        node: u8,
    },
    /// A node's TUN device.
    Tun {
        /// The node.
        node: u8,
    },
    /// A node's daemon.
    Daemon {
        /// The node.
        node: u8,
    },
    /// A node's interface on the underlay.
    Eth {
        /// The node.
        node: u8,
    },
    /// The underlay's end of a node's cable.
    Port {
        /// The node that it leads to.
        node: u8,
    },
    /// A router's interface on the second segment.
    Foot {
        /// The router.
        node: u8,
    },
    /// The underlay, between two nodes; its first segment, if it has two.
    Underlay,
    /// The second segment of the underlay.
    Beyond,
}

/// By what number a [`Point`] calls the router between two segments, as the last part of its addresses says. No node has
/// so high a number.
pub const ROUTER: u8 = 254;
/// The same of a lab's etcd.
const ETCD: u8 = 253;

/// How a mark looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Full: the packet was seen there.
    Seen,
    /// Hollow: it follows from tables.
    Derived,
    /// Crossed out: this is where it was lost.
    Lost,
}

/// A number on a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Where.
    pub at: Point,
    /// What is printed: the number of a row of an explanation. Marks of one way at one point are joined: `3-5`.
    pub number: u16,
    /// How.
    pub look: Look,
}

/// A way through a topology.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// The points it goes through. Those in between that go without saying can be left out, except of the underlay;
    /// points that the topology does not have are passed over.
    pub points: Vec<Point>,
    /// Numbers to set on it.
    pub marks: Vec<Mark>,
    /// Words to set beside points, in the colour of a warning.
    pub tags: Vec<(Point, String)>,
    /// What the legend calls it; a way without a name is not in it.
    pub name: String,
}

/// A topology with ways through it.
///
/// `to_string` makes the SVG.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    /// What stands there.
    pub topology: Topology,
    /// The way there, the way back, and what else there is: three have lines of their own, solid, dashed and dotted. Further
    /// ones lie on the last.
    pub ways: Vec<Way>,
    /// What came of it, in a sentence to stand out.
    pub outcome: String,
    /// Lines to stand below: what the numbers mean.
    pub notes: Vec<String>,
}

impl fmt::Display for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        svg::write(self, f)
    }
}

impl Point {
    /// The node it is on.
    pub fn node(self) -> Option<u8> {
        match self {
            Self::Pod { node, .. }
            | Self::Veth { node, .. }
            | Self::Bridge { node }
            | Self::Kernel { node }
            | Self::Tun { node }
            | Self::Daemon { node }
            | Self::Foot { node }
            | Self::Port { node }
            | Self::Eth { node } => Some(node),
            Self::Underlay | Self::Beyond => None,
        }
    }
}

impl Part {
    /// A part that is switched on.
    pub fn new(name: impl Into<String>, kind: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind: kind.into(),
            ..Self::default()
        }
    }

    /// The same, if it is switched on; else it says so.
    #[must_use]
    pub fn on(mut self, on: bool) -> Self {
        self.off = (!on).then(|| "off".to_owned());
        self
    }

    /// The same with an MTU, in bytes.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// The same with further lines.
    #[must_use]
    pub fn lines<T: fmt::Display>(mut self, lines: impl IntoIterator<Item = T>) -> Self {
        self.lines
            .extend(lines.into_iter().map(|line| line.to_string()));
        self
    }
}

impl Topology {
    /// What a lab of this kind will look like.
    pub fn planned(spec: &Spec) -> Self {
        let plans = spec.node_plans();
        let mut nodes: Vec<_> = plans.iter().map(|plan| node(spec, plan, &plans)).collect();
        nodes.extend((spec.layer == Layer::L3).then(|| router(spec)));
        nodes.extend((spec.store == Store::Etcd).then(|| etcd(spec)));
        nodes.extend((spec.scenario == Some(Scenario::Spoof)).then(|| intruder(spec)));
        let segments = spec.segments();
        let part = |segment: &Segment, kind| Part::new(segment.bridge, kind).mtu(spec.mtu.into());
        let (kind, far) = match spec.layer {
            Layer::L2 => ("bridge, the underlay", None),
            Layer::L3 => ("bridge, the first segment of the underlay", segments.get(1)),
        };
        Self {
            title: title(spec),
            underlay: part(&segments[0], kind),
            beyond: far.map(|segment| part(segment, "bridge, the segment behind the router")),
            nodes,
        }
    }
}

fn title(spec: &Spec) -> String {
    let name = &spec.name;
    if let (Some(next), Some(at)) = (
        spec.stage.next(),
        Stage::ALL.iter().position(|stage| *stage == spec.stage),
    ) {
        let (stage, number, all) = (spec.stage, at + 1, Stage::ALL.len());
        return format!("lab {name:?}: built to stage {stage} ({number} of {all}), next is {next}");
    }
    let scenario = spec
        .scenario
        .map(|scenario| format!(", scenario {scenario}"));
    let ways = match spec.backend.port() {
        Some(port) if spec.direct_routing => {
            format!(" over UDP port {port}, and direct routes on one segment")
        }
        Some(port) => format!(" over UDP port {port}"),
        None => ", routes without encapsulation".to_owned(),
    };
    format!(
        "lab {name:?}{}: {}{ways}",
        scenario.unwrap_or_default(),
        spec.backend
    )
}

/// The stranger of [`Scenario::Spoof`].
fn intruder(spec: &Spec) -> Node {
    let mtu = spec.mtu.into();
    let [.., number] = INTRUDER.octets();
    Node {
        number,
        name: "intruder".to_owned(),
        stranger: true,
        port: Some(Part::new("intruder", "").mtu(mtu)),
        eth: Some(
            Part::new("eth0", "no node")
                .mtu(mtu)
                .lines([format!("{INTRUDER}/24")]),
        ),
        ..Node::default()
    }
}

/// The router between two segments ([`Layer::L3`]).
fn router(spec: &Spec) -> Node {
    let mtu = spec.mtu.into();
    let part = |name: &str, segment: &Segment| {
        let addresses = segment.router().into_iter().flatten();
        Part::new(name, "").mtu(mtu).lines(addresses)
    };
    let segments = spec.segments();
    let routes = segments.iter().flat_map(|segment| {
        let device = format!("eth{}", segment.number);
        let nets = segment.router().into_iter().flatten();
        nets.map(move |net| route(net.trunc(), &device, None))
    });
    Node {
        number: ROUTER,
        name: "router".to_owned(),
        stranger: true,
        port: Some(Part::new("router-eth0", "").mtu(mtu)),
        eth: segments.first().map(|segment| part("eth0", segment)),
        kernel: Some(Part::new("kernel", "routes").lines(routes.collect::<Vec<_>>())),
        foot: segments.get(1).map(|segment| part("eth1", segment)),
        ..Node::default()
    }
}

/// The lab's etcd ([`Store::Etcd`]).
fn etcd(spec: &Spec) -> Node {
    let mtu = spec.mtu.into();
    let addresses = spec.etcd_addresses().into_iter().flatten();
    Node {
        number: ETCD,
        name: "etcd".to_owned(),
        stranger: true,
        port: Some(Part::new("etcd", "").mtu(mtu)),
        eth: Some(Part::new("eth0", "the leases").mtu(mtu).lines(addresses)),
        ..Node::default()
    }
}

/// Those of the addresses that there are, with their prefix lengths.
fn both(v4: Option<(Ipv4Addr, u8)>, v6: Option<(Ipv6Addr, u8)>) -> impl Iterator<Item = String> {
    let v4 = v4.map(|(ip, len)| format!("{ip}/{len}"));
    v4.into_iter()
        .chain(v6.map(|(ip, len)| format!("{ip}/{len}")))
}

fn node(spec: &Spec, plan: &NodePlan, all: &[NodePlan]) -> Node {
    let mtu = u32::from(spec.overlay_mtu());
    let others = all.iter().filter(|other| other.number != plan.number);
    let underlay = both(
        plan.public_ip
            .map(|ip| (Ipv4Addr::from_bits(ip.to_bits() & !0xff), 24)),
        plan.public_ipv6
            .map(|ip| (Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64), 64)),
    );
    let mut routes: Vec<_> = underlay.map(|net| route(net, "eth0", None)).collect();
    let device = spec.daemons && spec.backend != Backend::HostGw;
    if device {
        routes.push(route(NETWORK, "overlay0", None));
        routes.extend(spec.ipv6.then(|| route(IPV6_NETWORK, "overlay0", None)));
    }
    routes.push(route(plan.subnet, "cni0", None));
    routes.extend(plan.ipv6_subnet.map(|net| route(net, "cni0", None)));
    let public = both(
        plan.public_ip.map(|ip| (ip, 24)),
        plan.public_ipv6.map(|ip| (ip, 64)),
    );
    let base = both(
        Some((plan.subnet.network(), 32)),
        plan.ipv6_subnet.map(|net| (net.network(), 128)),
    );
    let gateway = both(
        Some((plan.gateway, 24)),
        plan.ipv6_gateway.map(|ip| (ip, 64)),
    );
    Node {
        number: plan.number,
        name: plan.name.clone(),
        beyond: plan.segment.number > 0,
        stranger: false,
        foot: None,
        port: Some(Part::new(&plan.name, "").mtu(spec.mtu.into())),
        eth: Some(Part::new("eth0", "").mtu(spec.mtu.into()).lines(public)),
        daemon: spec.daemons.then(|| {
            Part::new("overlayd", "leases").lines(others.flat_map(|other| {
                lease(
                    Some(other.subnet),
                    other.ipv6_subnet,
                    other.public_ip,
                    other.public_ipv6,
                )
            }))
        }),
        tun: device.then(|| Part::new("overlay0", "TUN").mtu(mtu).lines(base)),
        kernel: Some(Part::new("kernel", "routes").lines(routes)),
        bridge: Some(Part::new("cni0", "bridge").mtu(mtu).lines(gateway)),
        pods: plan.pods.iter().map(|plan| pod(plan, mtu)).collect(),
    }
}

fn pod(plan: &PodPlan, mtu: u32) -> Pod {
    let ips = both(Some((plan.ip, 24)), plan.ipv6.map(|ip| (ip, 64)));
    Pod {
        number: plan.number,
        name: plan.name.clone(),
        eth: Some(Part::new("eth0", "").mtu(mtu).lines(ips)),
        veth: Some(Part::new(&plan.veth, "").mtu(mtu)),
        plugged: true,
    }
}

/// A route as it stands in the kernel's box.
fn route(to: impl fmt::Display, device: &str, mtu: Option<u32>) -> String {
    let mtu = mtu.map_or(String::new(), |mtu| format!(" mtu {mtu}"));
    format!("{to} → {device}{mtu}")
}

/// A lease as it stands in the daemon's box, a line for each family that it has a subnet of.
fn lease(
    subnet: Option<Ipv4Net>,
    ipv6_subnet: Option<Ipv6Net>,
    public_ip: Option<Ipv4Addr>,
    public_ipv6: Option<Ipv6Addr>,
) -> Vec<String> {
    let (v4, v6) = (public_ip.map(IpAddr::from), public_ipv6.map(IpAddr::from));
    let subnets = [
        (subnet.map(IpNet::from), v4.or(v6)),
        (ipv6_subnet.map(IpNet::from), v6.or(v4)),
    ];
    let line =
        |(subnet, at): (Option<IpNet>, Option<IpAddr>)| Some(format!("{} at {}", subnet?, at?));
    let lines: Vec<_> = subnets.into_iter().filter_map(line).collect();
    match lines.is_empty() {
        true => vec!["a lease without a subnet or an address".to_owned()],
        false => lines,
    }
}

#[cfg(test)]
mod tests;
