//! One node of a bed, and how it is made.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use encap::Family;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use overlayd::kernel::{NetNs, Netlink, RouteSpec, sysctl};
use serde_json::{Value, json};

use crate::bed::{Backend, Names, Spec, Underlay};
use crate::config::Config;
use crate::daemon::PATIENCE;

/// One node of a bed.
#[derive(Debug)]
pub struct Node {
    number: u8,
    netns: NetNs,
    netlink: Netlink,
    pod: Option<NetNs>,
    underlay: Underlay,
    directory: PathBuf,
}

impl Node {
    pub(crate) async fn build(
        number: u8,
        switch: &Switch<'_>,
        names: &mut Names,
        directory: PathBuf,
    ) -> anyhow::Result<Self> {
        fs::create_dir(&directory)?;
        let netns = names.create(&format!("node{number}"))?;
        let netlink = prepare(&netns).await?;
        let spec = switch.spec;
        let mut node = Node {
            number,
            netns,
            netlink,
            pod: None,
            underlay: spec.underlay,
            directory,
        };
        node.run(|| {
            sysctl::write("net.ipv4.ip_forward", "1")?;
            sysctl::write("net.ipv6.conf.all.forwarding", "1")
        })?;
        let port = format!("node{number}");
        let addresses = node.public_ips().map(on_underlay).collect::<Vec<_>>();
        plug(switch, &port, &node.netns, &node.netlink, &addresses).await?;
        if spec.pods {
            node.add_pod(names, spec.pod_mtu).await?;
        }
        Ok(node)
    }

    /// A pod behind a bridge, as the bridge CNI plugin makes it.
    async fn add_pod(&mut self, names: &mut Names, mtu: u32) -> anyhow::Result<()> {
        let pod = names.create(&format!("pod{}", self.number))?;
        let netlink = prepare(&pod).await?;
        let bridge = self.netlink.add_bridge("cni0").await?.index;
        for family in [Family::V4, Family::V6] {
            let gateway = IpNet::new(self.gateway(family), prefix_len(family))?;
            self.netlink.add_address(bridge, gateway, true).await?;
        }
        let veth = self
            .netlink
            .add_veth("veth-pod", "eth0", Some(&pod))
            .await?;
        let eth0 = netlink.link("eth0").await?.context("the pod's eth0")?.index;
        netlink.set_mtu(eth0, mtu).await?;
        self.netlink.set_mtu(veth.index, mtu).await?;
        for family in [Family::V4, Family::V6] {
            let address = IpNet::new(self.pod_ip(family), prefix_len(family))?;
            netlink.add_address(eth0, address, true).await?;
        }
        netlink.set_up(eth0).await?;
        self.netlink.set_up(veth.index).await?;
        self.netlink.set_master(veth.index, bridge).await?;
        self.netlink.set_mtu(bridge, mtu).await?;
        for (family, all) in [(Family::V4, "0.0.0.0/0"), (Family::V6, "::/0")] {
            let mut route = RouteSpec::new(all.parse()?, eth0);
            route.via = Some(self.gateway(family));
            netlink.add_route(&route).await?;
        }
        self.pod = Some(pod);
        Ok(())
    }

    /// Waits for the IPv6 link-local addresses, without which nobody can be asked for.
    pub(crate) async fn wait_until_ready(&self) -> anyhow::Result<()> {
        const LINK_SCOPE: u8 = 253;
        let links = if self.pod.is_some() { 2 } else { 1 };
        let end = Instant::now() + PATIENCE;
        loop {
            let addresses = self.netlink.addresses().await?;
            let ready = addresses
                .iter()
                .filter(|a| a.ip.is_ipv6() && a.scope == LINK_SCOPE && !a.tentative);
            // eth0 and cni0; the pod's veth may have one as well.
            if ready.count() >= links {
                return Ok(());
            }
            anyhow::ensure!(
                Instant::now() < end,
                "no link-local addresses in {}: {addresses:?}",
                self.name()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Its number, counted from 1.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// `node1`, ...
    pub fn name(&self) -> String {
        format!("node{}", self.number)
    }

    /// Its namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Netlink in its namespace; use it through [`Bed::block_on`].
    pub fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    /// Its pod's namespace.
    ///
    /// # Panics
    /// If the bed was made without pods.
    pub fn pod(&self) -> &NetNs {
        self.pod.as_ref().expect("the bed has pods")
    }

    /// Runs `f` on the node.
    ///
    /// # Panics
    /// If its namespace cannot be entered, or `f` panics.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.netns.run(f).expect("enter the node")
    }

    /// Runs `f` in the node's pod.
    ///
    /// # Panics
    /// If there is none, or `f` panics.
    pub fn run_in_pod<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.pod().run(f).expect("enter the pod")
    }

    /// Its address on the underlay, whether the bed's underlay has the family or not.
    pub fn public_ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(10, 99, 0, self.number).into(),
            Family::V6 => Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, self.number.into()).into(),
        }
    }

    /// Its addresses on the underlay.
    pub fn public_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        [Family::V4, Family::V6]
            .into_iter()
            .filter(|family| self.underlay.has(*family))
            .map(|family| self.public_ip(family))
    }

    /// Its subnet of the overlay: 10.244.`number`.0/24 or fd00:10:244:`number`::/64.
    pub fn subnet(&self, family: Family) -> IpNet {
        match family {
            Family::V4 => Ipv4Net::new_assert(Ipv4Addr::new(10, 244, self.number, 0), 24).into(),
            Family::V6 => {
                let base = Ipv6Addr::new(0xfd00, 0x10, 0x244, self.number.into(), 0, 0, 0, 0);
                Ipv6Net::new_assert(base, 64).into()
            }
        }
    }

    /// The subnet's base address, which the overlay device has.
    pub fn base_ip(&self, family: Family) -> IpAddr {
        self.subnet(family).network()
    }

    /// The address of `cni0`.
    pub fn gateway(&self, family: Family) -> IpAddr {
        self.host(family, 1)
    }

    /// The address of its pod.
    pub fn pod_ip(&self, family: Family) -> IpAddr {
        self.host(family, 2)
    }

    /// The address of host number `host` in its subnet.
    pub fn host(&self, family: Family, host: u8) -> IpAddr {
        match self.base_ip(family) {
            IpAddr::V4(base) => Ipv4Addr::from_bits(base.to_bits() + u32::from(host)).into(),
            IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits() + u128::from(host)).into(),
        }
    }

    /// A directory of its own.
    pub fn dir(&self) -> &Path {
        &self.directory
    }

    /// The lease file that [`Node::config`] names.
    pub fn leases_path(&self) -> PathBuf {
        self.directory.join("leases.json")
    }

    /// Its lease, as in a lease file.
    pub fn lease(&self) -> Value {
        let mut lease = json!({
            "Subnet": self.subnet(Family::V4),
            "IPv6Subnet": self.subnet(Family::V6),
        });
        for ip in self.public_ips() {
            let key = if ip.is_ipv4() {
                "PublicIP"
            } else {
                "PublicIPv6"
            };
            lease[key] = json!(ip);
        }
        lease
    }

    /// Replaces its lease file by a rename, as a careful writer does.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write_leases(&self, leases: &[Value]) {
        let new = self.directory.join(".leases.json.new");
        let text = serde_json::to_string_pretty(leases).expect("leases are JSON");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, self.leases_path()))
            .expect("write the lease file");
    }

    /// A configuration that works: both families inside, the node's own lease file and control socket.
    pub fn config(&self, backend: Backend) -> Config {
        let path = |path: PathBuf| path.to_string_lossy().into_owned();
        Config::default()
            .set("network.network", "10.244.0.0/16")
            .set("network.ipv6-network", "fd00:10:244::/48")
            .set("backend.type", backend.name())
            .set("node.name", self.name())
            .set("node.iface", "eth0")
            .set("device.name", "overlay0")
            .set("store.type", "file")
            .set("store.path", path(self.leases_path()))
            .set("control.socket", path(self.directory.join("overlayd.sock")))
    }
}

/// The underlay's bridge, while nodes are being plugged in.
pub(crate) struct Switch<'a> {
    spec: &'a Spec,
    netlink: Netlink,
    bridge: u32,
}

impl<'a> Switch<'a> {
    pub(crate) async fn new(namespace: &NetNs, spec: &'a Spec) -> anyhow::Result<Self> {
        let netlink = prepare(namespace).await?;
        let bridge = netlink.add_bridge("br0").await?.index;
        netlink.set_mtu(bridge, spec.underlay_mtu).await?;
        Ok(Switch {
            spec,
            netlink,
            bridge,
        })
    }
}

/// An underlay address with its prefix.
fn on_underlay(ip: IpAddr) -> IpNet {
    let len = prefix_len(Family::of(&ip));
    IpNet::new(ip, len).expect("a prefix length of the family")
}

/// On the underlay and in the pods' subnets alike.
fn prefix_len(family: Family) -> u8 {
    match family {
        Family::V4 => 24,
        Family::V6 => 64,
    }
}

/// Opens netlink in a fresh namespace, `lo` up, duplicate address detection off.
async fn prepare(namespace: &NetNs) -> anyhow::Result<Netlink> {
    namespace.run(|| {
        for which in ["all", "default"] {
            sysctl::write(&sysctl::conf("ipv6", which, "disable_ipv6"), "0")?;
            sysctl::write(&sysctl::conf("ipv6", which, "accept_dad"), "0")?;
            sysctl::write(&sysctl::conf("ipv6", which, "accept_ra"), "0")?;
        }
        overlayd::kernel::Result::Ok(())
    })??;
    let netlink = Netlink::open_in(namespace)?;
    let lo = netlink.link("lo").await?.context("there is no lo")?;
    netlink.set_up(lo.index).await?;
    Ok(netlink)
}

/// A cable from the switch to `eth0` of a namespace.
async fn plug(
    switch: &Switch<'_>,
    port: &str,
    namespace: &NetNs,
    netlink: &Netlink,
    addresses: &[IpNet],
) -> anyhow::Result<()> {
    let port = switch
        .netlink
        .add_veth(port, "eth0", Some(namespace))
        .await?;
    let eth0 = netlink.link("eth0").await?.context("there is no eth0")?;
    switch
        .netlink
        .set_mtu(port.index, switch.spec.underlay_mtu)
        .await?;
    netlink
        .set_mtu(eth0.index, switch.spec.underlay_mtu)
        .await?;
    for address in addresses {
        netlink.add_address(eth0.index, *address, true).await?;
    }
    netlink.set_up(eth0.index).await?;
    switch.netlink.set_up(port.index).await?;
    switch.netlink.set_master(port.index, switch.bridge).await?;
    Ok(())
}
