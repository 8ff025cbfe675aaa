//! What overlayd does itself where a person would type commands: its device, addresses, routes and sockets.

use std::net::IpAddr;

use encap::Family;
use ipnet::IpNet;

use super::plan::{IPV6_NETWORK, NETWORK, NodePlan, Spec, Underlay};
use crate::kernel::ROUTE_PROTOCOL;

impl Spec {
    /// The underlay's family that carries inner packets of this family: the same, or the one there is.
    pub fn carrier(&self, inner: Family) -> Family {
        match self.underlay {
            Underlay::V4 => Family::V4,
            Underlay::V6 => Family::V6,
            Underlay::Dual => inner,
        }
    }

    /// The largest inner packet of this family that goes from node to node in one piece, in bytes.
    pub fn fits(&self, inner: Family) -> u16 {
        let outer = self.carrier(inner);
        self.mtu.saturating_sub(self.backend.overhead(outer))
    }
}

/// The commands that make what overlayd makes on a node, one per line. What they cannot make is the program that reads
/// packets from the device and sends them on, and the other way round.
pub(super) fn commands(spec: &Spec, node: &NodePlan) -> Vec<String> {
    let mut lines = straight(spec, node);
    if spec.backend.port().is_some() {
        lines.extend(device(spec, node));
    }
    lines
}

/// Routes through the other nodes of the segment, where the backend leads packets there as they are.
fn straight(spec: &Spec, node: &NodePlan) -> Vec<String> {
    if spec.backend.port().is_some() && !spec.direct_routing {
        return Vec::new();
    }
    let plans = spec.node_plans();
    let others = plans
        .iter()
        .filter(|other| other.number != node.number && other.segment == node.segment);
    let route = |net: IpNet, via: IpAddr| {
        let six = if net.addr().is_ipv6() { "-6 " } else { "" };
        let ns = &node.namespace;
        format!("ip -n {ns} {six}route add {net} via {via} dev eth0 proto {ROUTE_PROTOCOL}")
    };
    let both = others.flat_map(|other| {
        let v4 = other
            .public_ip
            .map(|via| route(other.subnet.into(), via.into()));
        let v6 = other
            .ipv6_subnet
            .zip(other.public_ipv6)
            .map(|(net, via)| route(net.into(), via.into()));
        v4.into_iter().chain(v6)
    });
    both.collect()
}

/// The TUN device, and what leads into it.
fn device(spec: &Spec, node: &NodePlan) -> Vec<String> {
    let (ns, device) = (&node.namespace, "overlay0");
    let mtu = spec.overlay_mtu();
    let ip = |rest: String| format!("ip -n {ns} {rest}");
    let mut lines = vec![
        ip(format!("tuntap add {device} mode tun")),
        ip(format!("link set {device} addrgenmode none")),
        ip(format!("link set {device} mtu {mtu}")),
        ip(format!("addr add {}/32 dev {device}", node.subnet.addr())),
    ];
    // Of IPv6, a lease has what its pods have.
    if let Some(net) = node.ipv6_subnet {
        lines.push(ip(format!(
            "addr add {}/128 dev {device} nodad",
            net.addr()
        )));
    }
    lines.push(ip(format!("link set {device} up")));
    let less = |inner| match spec.fits(inner) {
        less if less < mtu => format!(" mtu {less}"),
        _ => String::new(),
    };
    lines.push(ip(format!(
        "route add {NETWORK} dev {device} proto {ROUTE_PROTOCOL} scope link{}",
        less(Family::V4)
    )));
    if node.ipv6_subnet.is_some() {
        lines.push(ip(format!(
            "-6 route add {IPV6_NETWORK} dev {device} proto {ROUTE_PROTOCOL} metric 1024{}",
            less(Family::V6)
        )));
    }
    lines
}

/// The same as comments, and what no command makes.
pub(super) fn explained(spec: &Spec, node: &NodePlan) -> String {
    let name = &node.name;
    let shown = match spec.backend.port() {
        Some(_) => "-d addr show overlay0",
        None => "route",
    };
    let mut text = format!(
        "# overlayd on {name} does the rest itself. As commands, not to type beside it but to compare with what\n\
         # `ip -n {} {shown}` says:\n",
        node.namespace
    );
    for command in commands(spec, node) {
        text += &format!("#   {command}\n");
    }
    let Some(port) = spec.backend.port() else {
        text +=
            "# Packets go on as they are: there is no device of its own, and no socket for them.\n";
        return text;
    };
    let v4 = node.public_ip.map(|ip| format!("{ip}:{port}"));
    let v6 = node.public_ipv6.map(|ip| format!("[{ip}]:{port}"));
    let sockets: Vec<_> = v4.into_iter().chain(v6).collect();
    text += &format!(
        "# It opens UDP sockets on {} (`ss -lun` shows them),\n\
         # reads packets from overlay0, puts the headers of {} before them, and sends them to the node that\n\
         # has the lease; and the other way round.\n",
        sockets.join(" and "),
        spec.backend
    );
    text
}
