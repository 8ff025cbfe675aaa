//! Takes the steps of [`super::stage`]: makes a lab's namespaces, devices and addresses.

use std::{collections::HashMap, io, path::Path, process::Child, thread};

use anyhow::{Context, Result, bail};

use super::{
    Node, Pod,
    plan::{NodePlan, Spec},
    stage::{Act, ETH, Step},
};
use crate::{
    kernel::{Link, NetNs, Netlink, RouteSpec, sysctl},
    lab::{container::Container, holder},
};

/// Set by an administrator (RTPROT_STATIC, rtnetlink(7)), not by the daemon.
const STATIC: u8 = 4;

/// A place of a lab as it is being wired.
struct Site {
    namespace: NetNs,
    netlink: Netlink,
}

/// The places of a lab as they come into being.
pub(super) struct Wire<'a> {
    spec: &'a Spec,
    exe: &'a Path,
    sites: HashMap<String, Site>,
    /// What was started: holders and containers of pods.
    children: &'a mut Vec<Child>,
    /// The processes that were started, by their places.
    pids: HashMap<String, u32>,
}

impl<'a> Wire<'a> {
    pub(super) fn new(spec: &'a Spec, exe: &'a Path, children: &'a mut Vec<Child>) -> Self {
        Self {
            spec,
            exe,
            sites: HashMap::new(),
            pids: HashMap::new(),
            children,
        }
    }

    /// A node that is there already, with its pods.
    pub(super) fn resume(&mut self, node: &Node) -> Result<()> {
        self.enter(&node.name, node.namespace.clone())?;
        for pod in &node.pods {
            self.pids.insert(pod.place.clone(), pod.pid);
            self.enter(&pod.place, pod.namespace.clone())?;
        }
        Ok(())
    }

    fn enter(&mut self, place: &str, namespace: NetNs) -> Result<()> {
        let netlink = Netlink::open_in(&namespace)?;
        let site = Site { namespace, netlink };
        self.sites.insert(place.to_owned(), site);
        Ok(())
    }

    /// The node, once it is there.
    pub(super) fn node(&self, plan: NodePlan) -> Result<Node> {
        let pods = plan.pods.iter().map(|plan| {
            let namespace = self.site(&plan.place)?.namespace.clone();
            let pid = self.pids.get(&plan.place).copied();
            Ok(Pod {
                plan: plan.clone(),
                namespace,
                pid: pid.with_context(|| format!("{} has no holder", plan.place))?,
            })
        });
        Ok(Node {
            pods: pods.collect::<Result<_>>()?,
            namespace: self.site(&plan.name)?.namespace.clone(),
            plan,
        })
    }

    fn site(&self, place: &str) -> Result<&Site> {
        let site = self.sites.get(place);
        site.with_context(|| format!("{place} is used before it is made"))
    }

    pub(super) async fn take(&mut self, step: &Step) -> Result<()> {
        let done = self.act(&step.place, &step.act).await;
        done.with_context(|| format!("cannot build {}", step.place))
    }

    async fn act(&mut self, place: &str, act: &Act) -> Result<()> {
        match act {
            Act::Namespace => {
                let name = format!("{}-{place}", self.spec.name);
                return self.enter(place, NetNs::create_named(&name)?);
            }
            Act::Pod => {
                let namespace = NetNs::create_unnamed()?;
                self.populate(place, &namespace, &[])?;
                return self.enter(place, namespace);
            }
            _ => {}
        }
        let Site { namespace, netlink } = self.site(place)?;
        let find = async |name: &str| find(netlink, name).await;
        match act {
            Act::Namespace | Act::Pod => {}
            Act::Sysctl { key, value } => namespace.run(|| sysctl::write(key, value))??,
            Act::Bridge { name } => {
                netlink.add_bridge(name).await?;
            }
            Act::Veth { name, peer, end } => {
                let peer = &self.site(peer)?.namespace;
                netlink.add_veth(name, end, Some(peer)).await?;
            }
            Act::Mac { device, mac } => netlink.set_mac(find(device).await?.index, *mac).await?,
            Act::Mtu { device, mtu } => {
                let link = find(device).await?;
                netlink.set_mtu(link.index, (*mtu).into()).await?;
            }
            Act::Plug { device, bridge } => {
                let (port, bridge) = (find(device).await?, find(bridge).await?);
                netlink.set_master(port.index, bridge.index).await?;
            }
            Act::Up { device } => netlink.set_up(find(device).await?.index).await?,
            Act::Address { device, address } => {
                let link = find(device).await?;
                netlink.add_address(link.index, *address, true).await?;
            }
            Act::DefaultRoute { via } => {
                let everything = if via.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
                let route = RouteSpec {
                    via: Some(*via),
                    protocol: STATIC,
                    ..RouteSpec::new(everything.parse()?, find(ETH).await?.index)
                };
                netlink.add_route(&route).await?;
            }
        }
        Ok(())
    }

    /// A pod's processes: the one that holds the namespace, and the containers that share it. Those at the places
    /// that are given run already.
    pub(super) fn populate(
        &mut self,
        place: &str,
        namespace: &NetNs,
        there: &[String],
    ) -> Result<Vec<String>> {
        let mut wanted = vec![(place.to_owned(), vec!["hold".to_owned()])];
        wanted.extend(Container::ALL.map(|container| {
            let name = container.to_string();
            let place = format!("{place}/{name}");
            (place, vec!["container".to_owned(), name])
        }));
        wanted.retain(|(place, _)| !there.contains(place));
        for (place, arguments) in &wanted {
            self.start(place, namespace, arguments)?;
        }
        Ok(wanted.into_iter().map(|(place, _)| place).collect())
    }

    /// Takes away the node's end of a pod's cable, and with it the other end, wherever that may be.
    pub(super) async fn unplug(&self, node: &str, veth: &str) -> Result<()> {
        self.site(node)?.netlink.delete_link(veth).await?;
        Ok(())
    }

    fn start(&mut self, place: &str, namespace: &NetNs, arguments: &[String]) -> Result<()> {
        let mut command = holder::marked(self.exe, &self.spec.name, place);
        command
            .arg("lab")
            .args(arguments)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let child = namespace.spawn(command).with_context(|| place.to_owned())?;
        self.pids.insert(place.to_owned(), child.id());
        self.children.push(child);
        Ok(())
    }
}

async fn find(netlink: &Netlink, name: &str) -> Result<Link> {
    match netlink.link(name).await? {
        Some(link) => Ok(link),
        None => bail!("link {name} has vanished"),
    }
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

/// Runs async work to its end on a thread with a runtime of its own, so that callers may have one themselves.
pub(in crate::lab) fn on_runtime<T: Send, F: Future<Output = Result<T>>>(
    work: impl FnOnce() -> F + Send,
) -> Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(work())
        });
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
