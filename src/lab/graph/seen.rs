//! A running lab as its kernels and daemons describe it, whatever somebody has done to it since it was built.

use std::time::Duration;

use anyhow::Result;
use ipnet::IpNet;

use super::{Node, Part, Topology, lease, route};
use crate::kernel::{Address, Link, NetNs, Netlink, ROUTE_PROTOCOL, Route};
use crate::lab::container;
use crate::lab::holder::{self, Process};
use crate::lab::topology::{self, Lab, Scenario, on_runtime};
use crate::observe::{client, status::Status};

/// How long a daemon may take to say what it knows. One that hangs is drawn as one that is off.
const PATIENCE: Duration = Duration::from_millis(500);
/// The scope of addresses that are good on one link only (RT_SCOPE_LINK, rtnetlink(7)).
const SCOPE_LINK: u8 = 253;

/// What a namespace has.
struct Found {
    links: Vec<Link>,
    addresses: Vec<Address>,
    routes: Vec<Route>,
}

impl Found {
    async fn in_namespace(namespace: &NetNs) -> Result<Self> {
        let netlink = Netlink::open_in(namespace)?;
        Ok(Self {
            links: netlink.links().await?,
            addresses: netlink.addresses().await?,
            routes: netlink.routes().await?,
        })
    }

    fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    fn part(&self, name: &str, kind: &str) -> Option<Part> {
        let link = self.link(name)?;
        let own = self
            .addresses
            .iter()
            .filter(|address| address.ifindex == link.index && address.scope != SCOPE_LINK);
        let lines = own.map(|address| format!("{}/{}", address.ip, address.prefix_len));
        Some(Part::new(name, kind).mtu(link.mtu).lines(lines).on(link.up))
    }

    /// The routes into the bridge and into the overlay, and the daemon's to other nodes, those for IPv4 first. What IPv6 adds for each link and each
    /// address by itself is left out.
    fn routes(&self) -> Vec<String> {
        let shown = self.routes.iter().filter_map(|to| {
            let link = self.links.iter().find(|link| Some(link.index) == to.oif)?;
            let by_itself = match to.dst {
                IpNet::V4(_) => false,
                IpNet::V6(dst) => dst.prefix_len() == 128 || dst.addr().is_unicast_link_local(),
            };
            let to_node = to.via.filter(|_| to.protocol == ROUTE_PROTOCOL);
            if let Some(via) = to_node {
                return Some((to.dst, route(to.dst, &via.to_string(), to.mtu)));
            }
            let kept = to.unicast && !by_itself && !matches!(link.name.as_str(), "eth0" | "lo");
            kept.then(|| (to.dst, route(to.dst, &link.name, to.mtu)))
        });
        let mut shown: Vec<_> = shown.collect();
        shown.sort();
        shown.into_iter().map(|(_, line)| line).collect()
    }
}

impl Topology {
    /// What a running lab looks like now.
    ///
    /// # Errors
    /// When one of its kernels refuses to answer.
    pub fn seen(lab: &Lab) -> Result<Self> {
        let mut drawn = Self::planned(lab.spec());
        let underlay = lab.place("underlay")?;
        let running = holder::processes(&lab.spec().name)?;
        on_runtime(|| async move {
            let found = Found::in_namespace(&underlay).await?;
            if let Some(part) = found.part(&drawn.underlay.name, &drawn.underlay.kind) {
                drawn.underlay = part;
            }
            if let Some(beyond) = &mut drawn.beyond {
                if let Some(part) = found.part(&beyond.name, &beyond.kind) {
                    *beyond = part;
                }
            }
            let spec = lab.spec();
            for node in &mut drawn.nodes {
                let port = node.port.take();
                node.port = port.and_then(|port| found.part(&port.name, ""));
                if node.stranger {
                    let there = Found::in_namespace(&lab.place(&node.name)?).await?;
                    for part in [&mut node.eth, &mut node.foot] {
                        let was = part.take();
                        *part = was.and_then(|part| there.part(&part.name, &part.kind));
                    }
                    continue;
                }
                let there = lab.node(node.number)?;
                see(node, there, &running).await?;
                let instead = if spec.runs_daemons() {
                    "off"
                } else {
                    "not yet: `overlayd lab next`"
                };
                node.daemon = daemon(lab, there)?.or_else(|| off(node.daemon.take(), instead));
            }
            if lab.spec().scenario == Some(Scenario::Mtu) {
                keep_to_themselves(&mut drawn);
            }
            Ok(drawn)
        })
    }
}

/// Whoever runs the underlay tells nobody what it carries: that is to be found out in this scenario. What the nodes
/// themselves can see is drawn.
fn keep_to_themselves(drawn: &mut Topology) {
    drawn.underlay.mtu = None;
    for node in &mut drawn.nodes {
        if let Some(port) = &mut node.port {
            port.mtu = None;
        }
    }
}

/// The part that should be there, and is not.
fn off(part: Option<Part>, instead: &str) -> Option<Part> {
    part.map(|part| Part {
        off: Some(instead.to_owned()),
        kind: String::new(),
        lines: Vec::new(),
        mtu: None,
        ..part
    })
}

async fn see(node: &mut Node, there: &topology::Node, running: &[Process]) -> Result<()> {
    let found = Found::in_namespace(there.netns()).await?;
    node.eth = found.part("eth0", "");
    node.bridge = found.part("cni0", "bridge");
    let tun = found
        .links
        .iter()
        .find(|link| link.kind.as_deref() == Some("tun"));
    node.tun = tun.and_then(|tun| found.part(&tun.name, "TUN"));
    node.kernel = Some(Part::new("kernel", "routes").lines(found.routes()));
    let bridge = found.link("cni0").map(|link| link.index);
    for pod in &mut node.pods {
        let Some(there) = there.pods().iter().find(|there| there.number == pod.number) else {
            pod.eth = Some(Part {
                off: Some("dead".to_owned()),
                ..Part::default().lines(["`overlayd lab revive`"])
            });
            pod.veth = None;
            continue;
        };
        pod.veth = found.part(&there.veth, "");
        pod.plugged =
            bridge.is_some() && found.link(&there.veth).and_then(|veth| veth.master) == bridge;
        pod.eth = Found::in_namespace(there.netns()).await?.part("eth0", "");
        // Its address stays as long as one of its processes does.
        let ended = container::ended(&there.place, running);
        if let (Some(eth), false) = (&mut pod.eth, ended.is_empty()) {
            eth.lines.push(format!("{} ended", ended.join(", ")));
        }
    }
    Ok(())
}

/// The daemon as it answers; none answers where none is.
fn daemon(lab: &Lab, node: &topology::Node) -> Result<Option<Part>> {
    let Ok(answer) = client::status_within(&lab.socket(node.number), PATIENCE) else {
        return Ok(None);
    };
    let status: Status = serde_json::from_value(answer)?;
    let leases = status.peers.iter().map(|peer| {
        lease(
            peer.subnet,
            peer.ipv6_subnet,
            peer.public_ip,
            peer.public_ipv6,
        )
    });
    Ok(Some(Part::new("overlayd", "leases").lines(leases)))
}
