//! What the steps of the demo act with: the lab's places, the names of its addresses, its daemons' counters.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use encap::Family;
use tokio::runtime::Runtime;

use crate::kernel::{NetNs, Netlink};
use crate::lab::topology::{Lab, Node, Pod, Spec};
use crate::lab::traffic::{Cancel, PingOpts, PingReport, ping};
use crate::observe::client;
use crate::observe::status::Status;
use crate::teach::trace::world::{Names, World};
use crate::teach::trace::{self, Probe, Trace};

/// In a lab an answer comes at once, or not at all.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);

pub(super) struct Stage<'a> {
    lab: &'a Lab,
    /// Nodes 1, 2 and the last; the last is node 2 in a lab of two.
    pub(super) a: &'a Node,
    pub(super) b: &'a Node,
    pub(super) c: &'a Node,
    pub(super) cancel: &'a Cancel,
    runtime: Runtime,
}

impl<'a> Stage<'a> {
    pub(super) fn new(lab: &'a Lab, cancel: &'a Cancel) -> Result<Self> {
        Ok(Self {
            a: lab.node(1)?,
            b: lab.node(2)?,
            c: lab.node(lab.spec().nodes)?,
            lab,
            cancel,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
        })
    }

    pub(super) fn spec(&self) -> &Spec {
        self.lab.spec()
    }

    pub(super) fn nodes(&self) -> &[Node] {
        self.lab.nodes()
    }

    /// Pods by their number on the node, from 1.
    pub(super) fn pod<'n>(&self, node: &'n Node, number: u8) -> Result<&'n Pod> {
        let pod = node.pods().iter().find(|pod| pod.number == number);
        pod.with_context(|| format!("{} has no pod{number}", node.name))
    }

    /// Pings, and waits no longer than [`PATIENCE`] for each answer.
    pub(super) fn ping(&self, from: &NetNs, to: IpAddr, opts: PingOpts) -> Result<PingReport> {
        let opts = PingOpts {
            cancel: self.cancel.clone(),
            timeout: opts.timeout.min(PATIENCE),
            ..opts
        };
        Ok(from.run(|| ping(to, &opts))??)
    }

    /// Traces one packet.
    pub(super) fn trace(&self, from: &str, to: &str) -> Result<Trace> {
        let names = Names {
            source: from,
            destination: to,
            ipv6: false,
            spoof: None,
        };
        let probe = Probe {
            patience: PATIENCE,
            ..Probe::default()
        };
        trace::run(&World::of_lab(self.lab, &names)?, &probe, self.cancel)
    }

    /// Waits until the pods of the first node hear those that the story is about: the kernel takes its time to notice
    /// that a cable was plugged in. Returns those that stay silent.
    pub(super) fn settle(&self, patience: Duration) -> Result<Vec<String>> {
        let (from, until) = (self.pod(self.a, 1)?, Instant::now() + patience);
        let mut silent = Vec::new();
        let pods = [self.a, self.b, self.c]
            .into_iter()
            .flat_map(|node| node.pods());
        for to in pods.filter(|pod| pod.place != from.place) {
            for ip in ips(to) {
                loop {
                    let once = PingOpts {
                        count: 1,
                        timeout: Duration::from_millis(40),
                        ..PingOpts::default()
                    };
                    if self.ping(from.netns(), ip, once)?.all_answered() {
                        break;
                    }
                    if Instant::now() > until {
                        silent.push(format!("{} at {ip}", to.place));
                        break;
                    }
                }
            }
        }
        Ok(silent)
    }

    /// Whose address it is: `cni0 of node1`.
    pub(super) fn owner(&self, ip: IpAddr) -> Option<String> {
        self.nodes().iter().find_map(|node| {
            let v4 = |v4: std::net::Ipv4Addr| IpAddr::V4(v4) == ip;
            let v6 = |v6: Option<std::net::Ipv6Addr>| v6.map(IpAddr::V6) == Some(ip);
            if let Some(pod) = node.pods().iter().find(|pod| v4(pod.ip) || v6(pod.ipv6)) {
                return Some(format!("eth0 of {}", pod.place));
            }
            let device = if v4(node.gateway) || v6(node.ipv6_gateway) {
                "cni0"
            } else if v4(node.subnet.network()) || v6(node.ipv6_subnet.map(|net| net.network())) {
                "overlay0"
            } else if node.public_ip.map(IpAddr::V4) == Some(ip) || v6(node.public_ipv6) {
                "eth0"
            } else {
                return None;
            };
            Some(format!("{device} of {}", node.name))
        })
    }

    /// The address and whose it is.
    pub(super) fn named(&self, ip: IpAddr) -> String {
        match self.owner(ip) {
            Some(owner) => format!("{ip} ({owner})"),
            None => format!("{ip} (nobody's here)"),
        }
    }

    /// What a node's daemon says of itself, over its control socket.
    pub(super) fn status(&self, node: &Node) -> Result<Status> {
        let answer = client::status(&self.lab.socket(node.number))?;
        serde_json::from_value(answer)
            .with_context(|| format!("the status of {} makes no sense", node.name))
    }

    /// What a node's daemon has exchanged with another node so far.
    pub(super) fn exchanged(&self, node: &Node, with: &Node) -> Result<Exchanged> {
        let status = self.status(node)?;
        let peer = status
            .peers
            .iter()
            .find(|peer| peer.subnet == Some(with.subnet));
        let peer =
            peer.with_context(|| format!("overlayd on {} does not know {}", node.name, with.name))?;
        Ok(Exchanged {
            sent: peer.sent_packets,
            sent_bytes: peer.sent_bytes,
            received: peer.received_packets,
        })
    }

    /// The largest packet of this family that goes from node to node in one piece.
    pub(super) fn fits(&self, family: Family) -> u16 {
        self.spec().fits(family)
    }

    /// Sets the MTU of a pod's `eth0` and of the other end of its cable.
    pub(super) fn set_pod_mtu(&self, node: &Node, pod: &Pod, mtu: u16) -> Result<()> {
        self.runtime.block_on(async {
            for (namespace, device) in [(node.netns(), pod.veth.as_str()), (pod.netns(), "eth0")] {
                let netlink = Netlink::open_in(namespace)?;
                let link = netlink
                    .link(device)
                    .await?
                    .context("the pod's cable is gone")?;
                netlink.set_mtu(link.index, mtu.into()).await?;
            }
            Ok(())
        })
    }
}

/// Inner packets between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exchanged {
    pub(super) sent: u64,
    pub(super) sent_bytes: u64,
    pub(super) received: u64,
}

/// A pod's addresses.
pub(super) fn ips(pod: &Pod) -> Vec<IpAddr> {
    [Some(pod.ip.into()), pod.ipv6.map(IpAddr::V6)]
        .into_iter()
        .flatten()
        .collect()
}

pub(super) fn family(ip: IpAddr) -> Family {
    Family::of(&ip)
}
