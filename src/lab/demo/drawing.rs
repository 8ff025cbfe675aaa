//! A lab as a small drawing of text, 80 columns wide.

use std::fmt::Write as _;
use std::net::IpAddr;

use encap::Family;
use ipnet::IpNet;

use crate::lab::topology::{Backend, Layer, NodePlan, Spec, Store};

/// Columns of the whole, if it can be done.
const PAGE: usize = 81;
/// Nodes drawn; the others look alike.
const DRAWN: usize = 6;
/// Pods drawn on each node.
const PODS: usize = 4;
/// Columns of a node: a device's name and an IPv6 address of a lab whose subnets follow from numbers.
const WIDTH: usize = 27;
const LABEL: usize = 9;

/// Draws the nodes and pods of a lab, their addresses and MTUs.
pub fn topology(spec: &Spec) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_topology(&mut text, spec);
    text
}

fn write_topology(to: &mut String, spec: &Spec) -> std::fmt::Result {
    let plans = spec.node_plans();
    let drawn = &plans[..plans.len().min(DRAWN)];
    let columns: Vec<_> = drawn.iter().map(|node| column(spec, node)).collect();
    let cells = columns.iter().flatten();
    let widest = cells.map(|cell| cell.chars().count()).max();
    let width = WIDTH.max(widest.unwrap_or_default() + 2);
    let across = (PAGE / width).max(1);
    let segments = drawn.chunk_by(|one, next| one.segment == next.segment);
    for row in segments.flat_map(|nodes| nodes.chunks(across)) {
        let cable = format!("══╤{}", "═".repeat(width - 3)).repeat(row.len());
        let name = match (spec.layer, row) {
            (Layer::L3, [node, ..]) => format!(" {}", node.segment.bridge),
            _ => " underlay".to_owned(),
        };
        let bare = row.len() * width - 2 - name.len();
        writeln!(to, "{}{name}", cable.chars().take(bare).collect::<String>())?;
        line(
            to,
            width,
            row.iter().map(|node| format!("  │ {}", node.name)),
        )?;
        let columns: Vec<Vec<String>> = row.iter().map(|node| column(spec, node)).collect();
        for i in 0..columns.iter().map(Vec::len).max().unwrap_or(0) {
            line(
                to,
                width,
                columns
                    .iter()
                    .map(|column| column.get(i).cloned().unwrap_or_default()),
            )?;
        }
        writeln!(to)?;
    }
    if let (Some(first), Some(last)) = (plans.get(DRAWN), plans.last()) {
        writeln!(to, "and so on from {} to {}\n", first.name, last.name)?;
    }
    write_others(to, spec)?;
    write_mtu(to, spec)
}

/// What is on the underlay beside the nodes.
fn write_others(to: &mut String, spec: &Spec) -> std::fmt::Result {
    let ips = |nets: [Option<IpNet>; 2]| {
        let ips = nets.into_iter().flatten().map(|net| net.addr().to_string());
        ips.collect::<Vec<_>>().join(" ")
    };
    if spec.layer == Layer::L3 {
        let feet = spec.segments().into_iter();
        let feet = feet.map(|segment| format!("{} on {}", ips(segment.router()), segment.bridge));
        writeln!(to, "router   {}", feet.collect::<Vec<_>>().join(", "))?;
    }
    if let Some(endpoint) = spec.etcd_endpoint() {
        writeln!(to, "etcd     {endpoint}")?;
    }
    if spec.layer == Layer::L3 || spec.store == Store::Etcd {
        writeln!(to)?;
    }
    Ok(())
}

fn line(to: &mut String, width: usize, cells: impl Iterator<Item = String>) -> std::fmt::Result {
    let line: String = cells.map(|cell| format!("{cell:width$}")).collect();
    writeln!(to, "{}", line.trim_end())
}

fn column(spec: &Spec, node: &NodePlan) -> Vec<String> {
    let mut lines = Vec::new();
    let mut put = |label: &str, below: &str, v4: Option<IpAddr>, v6: Option<IpAddr>| {
        let mut label = label;
        for ip in [v4, v6].into_iter().flatten() {
            lines.push(format!("{label:LABEL$}{ip}"));
            label = below;
        }
    };
    put(
        "eth0",
        "",
        node.public_ip.map(Into::into),
        node.public_ipv6.map(Into::into),
    );
    let base = node.ipv6_subnet.map(|net| net.network().into());
    if spec.backend != Backend::HostGw {
        put("overlay0", "", Some(node.subnet.network().into()), base);
    }
    put(
        "cni0",
        "│",
        Some(node.gateway.into()),
        node.ipv6_gateway.map(Into::into),
    );
    let drawn = node.pods.len().min(PODS);
    for (i, pod) in node.pods[..drawn].iter().enumerate() {
        let (branch, below) = if i + 1 == node.pods.len() {
            ("└", "")
        } else {
            ("├", "│")
        };
        let label = format!("{branch} {}", pod.name);
        put(&label, below, Some(pod.ip.into()), pod.ipv6.map(Into::into));
    }
    if let (Some(_), Some(last)) = (node.pods.get(PODS), node.pods.last()) {
        lines.push(format!("└ … {}", last.name));
    }
    lines
}

fn write_mtu(to: &mut String, spec: &Spec) -> std::fmt::Result {
    let outer = |family| match family {
        Family::V4 => "IPv4 20",
        Family::V6 => "IPv6 40",
    };
    let headers = match spec.backend {
        Backend::HostGw => {
            return writeln!(
                to,
                "MTU   {:5} everywhere: nothing is put in front",
                spec.mtu
            );
        }
        Backend::Udp => "UDP 8",
        Backend::Vxlan => "UDP 8, VXLAN 8, Ethernet 14",
    };
    let (v4, v6) = (spec.fits(Family::V4), spec.fits(Family::V6));
    writeln!(to, "MTU   {:5} underlay", spec.mtu)?;
    writeln!(
        to,
        "      {v4:5} overlay0, cni0, pods: less outer {}, {headers}",
        outer(spec.carrier(Family::V4))
    )?;
    if spec.ipv6 && v6 != v4 {
        writeln!(
            to,
            "      {v6:5} IPv6 between nodes: less outer {}, {headers}",
            outer(spec.carrier(Family::V6))
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drawing_of_the_default_lab() {
        let expected = "\
══╤══════════════════════════╤══════════════════════════╤═════════════ underlay
  │ node1                    │ node2                    │ node3
eth0     10.99.0.1         eth0     10.99.0.2         eth0     10.99.0.3
         fd99::1                    fd99::2                    fd99::3
overlay0 10.244.1.0        overlay0 10.244.2.0        overlay0 10.244.3.0
         fd00:10:244:1::            fd00:10:244:2::            fd00:10:244:3::
cni0     10.244.1.1        cni0     10.244.2.1        cni0     10.244.3.1
│        fd00:10:244:1::1  │        fd00:10:244:2::1  │        fd00:10:244:3::1
├ pod1   10.244.1.2        ├ pod1   10.244.2.2        ├ pod1   10.244.3.2
│        fd00:10:244:1::2  │        fd00:10:244:2::2  │        fd00:10:244:3::2
└ pod2   10.244.1.3        └ pod2   10.244.2.3        └ pod2   10.244.3.3
         fd00:10:244:1::3           fd00:10:244:2::3           fd00:10:244:3::3

MTU    1500 underlay
       1450 overlay0, cni0, pods: less outer IPv4 20, UDP 8, VXLAN 8, Ethernet 14
       1430 IPv6 between nodes: less outer IPv6 40, UDP 8, VXLAN 8, Ethernet 14
";
        assert_eq!(topology(&Spec::default()), expected);
    }

    #[test]
    fn a_large_lab_is_drawn_in_part() {
        let spec = Spec {
            nodes: 250,
            pods: 250,
            backend: Backend::Udp,
            ipv6: false,
            underlay: crate::lab::topology::Underlay::V6,
            ..Spec::default()
        };
        let text = topology(&spec);
        assert!(
            text.contains("│ node6") && !text.contains("│ node7"),
            "{text}"
        );
        assert!(text.contains("and so on from node7 to node250"), "{text}");
        assert!(
            text.contains("└ … pod250") && !text.contains("pod5 "),
            "{text}"
        );
        assert!(
            text.contains(" 1452 overlay0, cni0, pods: less outer IPv6 40, UDP 8\n"),
            "{text}"
        );
        assert!(text.lines().count() < 40);
    }
}
