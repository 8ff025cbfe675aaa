//! Makes a lab's namespaces, devices and addresses, in the order in which a hand would lay the cables.

use std::{io, net::IpAddr, path::Path, process::Child};

use anyhow::{Context, Result};
use ipnet::IpNet;

use super::{
    Node, Pod,
    plan::{NodePlan, PodPlan, Spec},
};
use crate::{
    kernel::{Link, NetNs, Netlink, RouteSpec, sysctl},
    lab::holder,
};

/// The bridge of the underlay, in its own namespace.
const UNDERLAY_BRIDGE: &str = "underlay0";
/// The bridge of a node's pods.
const POD_BRIDGE: &str = "cni0";
/// The interface of a node on the underlay, and of a pod on its bridge.
const ETH: &str = "eth0";

/// The namespaces of a lab as they come into being.
pub(super) struct Wire<'a> {
    spec: &'a Spec,
    exe: &'a Path,
    underlay: Netlink,
    bridge: Link,
}

impl<'a> Wire<'a> {
    /// The underlay: a namespace with a bridge.
    pub(super) async fn underlay(spec: &'a Spec, exe: &'a Path) -> Result<Self> {
        let namespace = NetNs::create_named(&spec.underlay_namespace())?;
        quiet(&namespace, false)?;
        let underlay = Netlink::open_in(&namespace)?;
        let bridge = underlay.add_bridge(UNDERLAY_BRIDGE).await?;
        underlay.set_mtu(bridge.index, spec.mtu.into()).await?;
        Ok(Self {
            spec,
            exe,
            underlay,
            bridge,
        })
    }

    /// A node: a namespace, a cable to the underlay, a bridge for its pods, forwarding on.
    pub(super) async fn node(&self, plan: NodePlan) -> Result<(Node, Netlink)> {
        let namespace = NetNs::create_named(&plan.namespace)?;
        quiet(&namespace, true)?;
        let netlink = Netlink::open_in(&namespace)?;
        up(&netlink, "lo").await?;

        let cable = self
            .underlay
            .add_veth(&plan.name, ETH, Some(&namespace))
            .await?;
        self.underlay
            .set_mtu(cable.index, self.spec.mtu.into())
            .await?;
        self.underlay
            .set_master(cable.index, self.bridge.index)
            .await?;
        self.underlay.set_up(cable.index).await?;
        let eth = find(&netlink, ETH).await?;
        netlink.set_mtu(eth.index, self.spec.mtu.into()).await?;
        netlink.set_up(eth.index).await?;
        let public = [
            plan.public_ip.map(|ip| net(ip, 24)),
            plan.public_ipv6.map(|ip| net(ip, 64)),
        ];
        for address in public.into_iter().flatten() {
            netlink.add_address(eth.index, address, true).await?;
        }

        let bridge = netlink.add_bridge(POD_BRIDGE).await?;
        // An address of its own, or the bridge takes that of its lowest port and changes it with every pod.
        netlink.set_mac(bridge.index, mac(plan.gateway)).await?;
        netlink
            .set_mtu(bridge.index, self.spec.overlay_mtu().into())
            .await?;
        let gateways = [
            Some(net(plan.gateway, 24)),
            plan.ipv6_gateway.map(|ip| net(ip, 64)),
        ];
        for address in gateways.into_iter().flatten() {
            netlink.add_address(bridge.index, address, true).await?;
        }
        let node = Node {
            plan,
            namespace,
            pods: Vec::new(),
        };
        Ok((node, netlink))
    }

    /// A pod: a holder in a namespace of its own, a cable to the node's bridge, a default route.
    pub(super) async fn pod(
        &self,
        node: &Node,
        netlink: &Netlink,
        plan: &PodPlan,
    ) -> Result<(Pod, Child)> {
        let namespace = NetNs::create_unnamed()?;
        let mut command = holder::marked(self.exe, &self.spec.name, &plan.place);
        command
            .args(["lab", "hold"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let child = namespace.spawn(command).context("the pod's holder")?;
        quiet(&namespace, false)?;

        let mtu = u32::from(self.spec.overlay_mtu());
        let inside = Netlink::open_in(&namespace)?;
        up(&inside, "lo").await?;
        let veth = netlink.add_veth(&plan.veth, ETH, Some(&namespace)).await?;
        netlink.set_mtu(veth.index, mtu).await?;
        let bridge = find(netlink, POD_BRIDGE).await?;
        netlink.set_master(veth.index, bridge.index).await?;
        netlink.set_up(veth.index).await?;

        let eth = find(&inside, ETH).await?;
        inside.set_mac(eth.index, mac(plan.ip)).await?;
        inside.set_mtu(eth.index, mtu).await?;
        inside.set_up(eth.index).await?;
        inside
            .add_address(eth.index, net(plan.ip, 24), false)
            .await?;
        inside
            .add_route(&default(
                net([0, 0, 0, 0], 0),
                node.plan.gateway.into(),
                &eth,
            ))
            .await?;
        if let (Some(ip), Some(gateway)) = (plan.ipv6, node.plan.ipv6_gateway) {
            inside.add_address(eth.index, net(ip, 64), true).await?;
            inside
                .add_route(&default(net([0u16; 8], 0), gateway.into(), &eth))
                .await?;
        }
        let pod = Pod {
            plan: plan.clone(),
            namespace,
            pid: child.id(),
        };
        Ok((pod, child))
    }
}

fn net(ip: impl Into<IpAddr>, prefix_len: u8) -> IpNet {
    IpNet::new_assert(ip.into(), prefix_len)
}

fn default(everything: IpNet, gateway: IpAddr, link: &Link) -> RouteSpec {
    RouteSpec {
        via: Some(gateway),
        // Set by an administrator (RTPROT_STATIC), not by the daemon.
        protocol: 4,
        ..RouteSpec::new(everything, link.index)
    }
}

/// The address that Kubernetes' bridge plugin gave: `0a:58` and the IPv4 address, to be recognised in captures.
fn mac(ip: std::net::Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = ip.octets();
    [0x0a, 0x58, a, b, c, d]
}

async fn find(netlink: &Netlink, name: &str) -> Result<Link> {
    netlink
        .link(name)
        .await?
        .with_context(|| format!("link {name} has vanished"))
}

async fn up(netlink: &Netlink, name: &str) -> Result<()> {
    let link = find(netlink, name).await?;
    Ok(netlink.set_up(link.index).await?)
}

/// Settings of a fresh namespace, before it has any device but `lo`.
///
/// No duplicate address detection: addresses follow from numbers, and a lab shall be ready at once instead of after
/// the second that the detection takes. `rp_filter` stays as the host has it.
fn quiet(namespace: &NetNs, forwarding: bool) -> Result<()> {
    namespace.run(|| -> crate::kernel::Result<()> {
        if forwarding {
            sysctl::write("net.ipv4.ip_forward", "1")?;
        }
        if !has_ipv6() {
            return Ok(());
        }
        // The kernel detects if either of the two says so (net/ipv6/addrconf.c, addrconf_dad_begin).
        for device in ["all", "default"] {
            sysctl::write(&sysctl::conf("ipv6", device, "accept_dad"), "0")?;
            if forwarding {
                sysctl::write(&sysctl::conf("ipv6", device, "forwarding"), "1")?;
            }
        }
        Ok(())
    })??;
    Ok(())
}

/// Does the kernel know IPv6? Where it does not, a lab without it can still be built.
pub(super) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// The lab's namespaces that are there although they should not be yet.
pub(super) fn taken(spec: &Spec) -> io::Result<Vec<String>> {
    let there = NetNs::list_named()?;
    Ok(spec
        .namespaces()
        .into_iter()
        .filter(|name| there.contains(name))
        .collect())
}
