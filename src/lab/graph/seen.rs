//! A running lab as its kernels and daemons describe it, whatever somebody has done to it since it was built.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use ipnet::IpNet;

use super::{Node, Part, Topology, lease, route};
use crate::kernel::{Address, Link, NetNs, Netlink, Route};
use crate::lab::container;
use crate::lab::holder::{self, Process};
use crate::lab::topology::{self, Lab, Scenario, Spec, on_runtime};
use crate::observe::{client, status::Status};

/// How long a daemon may take to say what it knows. One that hangs is drawn as one that is off.
const PATIENCE: Duration = Duration::from_millis(500);
/// The scope of addresses that are good on one link only (RT_SCOPE_LINK, rtnetlink(7)).
const SCOPE_LINK: u8 = 253;
/// How many routes a kernel's box has room for.
const MOST_ROUTES: usize = 12;

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
}

/// The routes of the main table as they stand in a kernel's box, those for IPv4 first. What IPv6 adds for each link and each
/// address by itself is left out. Where there are too many, those that lead to one of the addresses `about` stay.
pub(crate) fn routes(all: &[Route], links: &[Link], about: &[IpAddr]) -> Vec<String> {
    let by_itself = |dst: &IpNet| match dst {
        IpNet::V4(_) => false,
        IpNet::V6(dst) => {
            dst.prefix_len() == 128
                || dst.addr().is_unicast_link_local()
                || dst.addr().is_multicast()
        }
    };
    let mut kept: Vec<_> = all
        .iter()
        .filter(|route| (route.unicast || route.refuses.is_some()) && !by_itself(&route.dst))
        .collect();
    kept.sort_by_key(|route| !about.iter().any(|ip| route.dst.contains(ip)));
    let more = kept.len().saturating_sub(MOST_ROUTES);
    kept.truncate(MOST_ROUTES);
    kept.sort_by_key(|route| (route.dst, route.metric));
    let line = |to: &&Route| {
        let link = links.iter().find(|link| Some(link.index) == to.oif);
        match (to.refuses, to.via, link) {
            (Some(word), ..) => format!("{word} {}", to.dst),
            (None, Some(via), _) => route(to.dst, &via.to_string(), to.mtu),
            (None, None, Some(link)) => route(to.dst, &link.name, to.mtu),
            (None, None, None) => to.dst.to_string(),
        }
    };
    let mut lines: Vec<_> = kept.iter().map(line).collect();
    lines.extend((more > 0).then(|| format!("and {more} more")));
    lines
}

impl Topology {
    /// What a running lab looks like now. Of very many routes those to the addresses `about` are drawn, whatever others are
    /// left out.
    ///
    /// # Errors
    /// When one of its kernels refuses to answer.
    pub fn seen(lab: &Lab, about: &[IpAddr]) -> Result<Self> {
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
                see(node, there, &running, about).await?;
                let instead = if spec.runs_daemons() {
                    "off"
                } else {
                    "not yet: `overlayd lab next`"
                };
                node.daemon = daemon(lab, there)?.or_else(|| off(node.daemon.take(), instead));
            }
            if spec.scenario == Some(Scenario::Mtu) && !is_narrow_enough(&drawn, spec) {
                keep_to_themselves(&mut drawn);
            }
            Ok(drawn)
        })
    }
}

/// Every port of the underlay takes what any node makes of the largest packet that its overlay takes: the black hole is gone,
/// and with it the secret.
fn is_narrow_enough(drawn: &Topology, spec: &Spec) -> bool {
    let mtu = |part: &Option<Part>| part.as_ref().and_then(|part| part.mtu);
    let ports = drawn.nodes.iter().filter_map(|node| mtu(&node.port));
    let Some(carried) = ports.min() else {
        return false;
    };
    let overhead = u32::from(spec.mtu.saturating_sub(spec.overlay_mtu()));
    let mut nodes = drawn.nodes.iter().filter(|node| !node.stranger);
    // A port takes a VLAN tag's length more than its MTU (`__is_skb_forwardable`, include/linux/netdevice.h).
    let slack = 4;
    nodes.all(|node| mtu(&node.tun).is_some_and(|mtu| mtu + overhead <= carried + slack))
}

/// Whoever runs the underlay tells nobody what it carries: that is to be found out in this scenario. What the nodes
/// themselves can see is drawn.
fn keep_to_themselves(drawn: &mut Topology) {
    drawn.underlay.mtu = None;
    drawn.underlay.kind += "; MTUs are withheld until the scenario is solved";
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

async fn see(
    node: &mut Node,
    there: &topology::Node,
    running: &[Process],
    about: &[IpAddr],
) -> Result<()> {
    let found = Found::in_namespace(there.netns()).await?;
    node.eth = found.part("eth0", "");
    node.bridge = found.part("cni0", "bridge");
    let tun = found
        .links
        .iter()
        .find(|link| link.kind.as_deref() == Some("tun"));
    node.tun = tun.and_then(|tun| found.part(&tun.name, "TUN"));
    node.kernel =
        Some(Part::new("kernel", "routes").lines(routes(&found.routes, &found.links, about)));
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
    let leases = status.peers.iter().flat_map(|peer| {
        lease(
            peer.subnet,
            peer.ipv6_subnet,
            peer.public_ip,
            peer.public_ipv6,
        )
    });
    Ok(Some(Part::new("overlayd", "leases").lines(leases)))
}
