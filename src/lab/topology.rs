//! A lab, from nothing to running nodes and back to nothing.
//!
//! What stands on disk comes first and goes last ([`super::state`]), so whoever finds it can take the rest away: the
//! same process when something fails or a person interrupts it, or `overlayd lab down` after a kill.

mod daemons;
mod etcd;
mod guests;
mod itself;
mod plan;
mod revive;
mod stage;
mod status;
mod wire;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Child,
};

use anyhow::{Context, Result, anyhow, bail};
use nix::unistd::Uid;

pub use guests::{Guest, guests};
pub use plan::{
    Backend, DEFAULT_NAME, ETCD_PORT, ETCD_PREFIX, INTRUDER, IPV6_NETWORK, Layer, Leased, NETWORK,
    NodePlan, PodPlan, Scenario, Segment, Spec, Store, Underlay,
};
pub use stage::{Stage, commands, removal};
pub use status::{
    ContainerStatus, EtcdStatus, IntruderStatus, NodeStatus, PodStatus, RouterStatus, Status,
    status,
};

use super::{
    holder,
    state::{self, Locked},
};
use crate::kernel::NetNs;
use wire::Wire;
pub(in crate::lab) use wire::on_runtime;

/// Someone asked to stop while a lab was being built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Is asked before every step of building whether to stop.
pub type Cancel<'a> = &'a (dyn Fn() -> bool + Sync);

/// The place of a lab's etcd, and of its process.
const ETCD: &str = "etcd";

type Stop<'a> = &'a (dyn Fn() -> Result<(), Interrupted> + Sync);

/// A lab that is up.
///
/// It goes down with this handle, whatever happens to its owner short of a kill, unless [`Lab::keep`] was called.
#[derive(Debug)]
pub struct Lab {
    spec: Spec,
    exe: PathBuf,
    nodes: Vec<Node>,
    /// What we have started ourselves, to be reaped.
    children: Vec<Child>,
    keep: bool,
}

/// A node of a lab.
#[derive(Debug)]
pub struct Node {
    plan: NodePlan,
    namespace: NetNs,
    pods: Vec<Pod>,
}

/// A pod of a lab.
#[derive(Debug)]
pub struct Pod {
    plan: PodPlan,
    namespace: NetNs,
    pid: u32,
}

impl std::ops::Deref for Node {
    type Target = NodePlan;

    fn deref(&self) -> &NodePlan {
        &self.plan
    }
}

impl std::ops::Deref for Pod {
    type Target = PodPlan;

    fn deref(&self) -> &PodPlan {
        &self.plan
    }
}

impl Node {
    /// Its network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.namespace
    }

    /// Its pods that live.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Its pods whose processes have all ended: their namespaces are gone, and their cables with them.
    pub fn dead_pods(&self) -> impl Iterator<Item = &PodPlan> {
        let lives = |plan: &PodPlan| self.pods.iter().any(|pod| pod.number == plan.number);
        self.plan.pods.iter().filter(move |plan| !lives(plan))
    }
}

impl Pod {
    /// Its network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.namespace
    }

    /// The process that holds it; or one of its containers, if that is gone.
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

impl Lab {
    /// Says why a lab of this kind cannot be built now, if so. Nothing is made.
    ///
    /// # Errors
    /// What is wrong with the spec, or in the way.
    pub fn check(spec: &Spec) -> Result<()> {
        spec.validate()?;
        need_root()?;
        if !wire::has_ipv6() && (spec.ipv6 || spec.underlay != Underlay::V4) {
            bail!("this kernel has no IPv6: build the lab without it");
        }
        if spec.store == Store::Etcd {
            etcd::program()?;
        }
        if state::dir(&spec.name).exists() {
            return Err(state::there_already(&spec.name));
        }
        // Namespaces of these names that no lab has recorded are somebody else's: not to be used, nor to be removed
        // when we fail later.
        if let [name, ..] = wire::taken(spec)?.as_slice() {
            bail!(
                "there is a network namespace {name} that is no lab's: remove it (`ip netns del {name}`), or choose another name for the lab"
            );
        }
        Ok(())
    }

    /// Builds a lab. `exe` is the overlayd that its daemons and holders run.
    ///
    /// `cancel` is asked between the steps; when it says true, or a step fails, everything made so far is removed.
    ///
    /// # Errors
    /// [`Interrupted`] if `cancel` said so; otherwise what is wrong with the spec, or which step failed and why.
    pub fn up(spec: Spec, exe: &Path, cancel: Cancel<'_>) -> Result<Self> {
        Self::check(&spec)?;
        let stop = || if cancel() { Err(Interrupted) } else { Ok(()) };
        stop()?;
        let locked = Locked::create(&spec)?;
        // From here on dropping it takes everything away; the lock must not stand in its way.
        let mut lab = Self {
            spec,
            exe: exe.to_owned(),
            nodes: Vec::new(),
            children: Vec::new(),
            keep: false,
        };
        let built = lab
            .build(&locked, &stop)
            .and_then(|()| locked.write(&lab.spec, true));
        drop(locked);
        built.map(|()| lab)
    }

    fn build(&mut self, locked: &Locked, stop: Stop<'_>) -> Result<()> {
        let stages: Vec<_> = Stage::ALL
            .into_iter()
            .filter(|stage| *stage <= self.spec.stage)
            .collect();
        if self.spec.store == Store::Etcd {
            return self.build_on_etcd(&stages, locked, stop);
        }
        self.wire(&stages, stop)?;
        stop()?;
        self.write_files()?;
        self.start_daemons(stop)
    }

    /// The daemons come first here: the pods' addresses follow from the subnets that they take.
    fn build_on_etcd(&mut self, stages: &[Stage], locked: &Locked, stop: Stop<'_>) -> Result<()> {
        self.wire(&[Stage::Isolated], stop)?;
        stop()?;
        self.write_files()?;
        self.start_etcd(stop)?;
        self.configure_etcd()?;
        self.start_daemons(stop)?;
        self.spec.leased = self.leased(stop)?;
        locked.write(&self.spec, false)?;
        self.wire(&stages[1..], stop)
    }

    /// Takes the steps of these stages.
    fn wire(&mut self, stages: &[Stage], stop: Stop<'_>) -> Result<()> {
        let there = std::mem::take(&mut self.nodes);
        let (spec, exe, children) = (&self.spec, self.exe.as_path(), &mut self.children);
        self.nodes = on_runtime(|| async move {
            let mut wire = Wire::new(spec, exe, children);
            for node in &there {
                wire.resume(node)?;
            }
            for step in stages.iter().flat_map(|stage| stage::steps(spec, *stage)) {
                stop()?;
                wire.take(&step).await?;
            }
            let plans = spec.node_plans().into_iter();
            plans.map(|plan| wire.node(plan)).collect::<Result<_>>()
        })?;
        Ok(())
    }

    /// Builds the next stage of a lab that was not built to the last.
    ///
    /// # Errors
    /// When there is none, or a step fails: then the lab is not whole, and can only be taken down.
    pub fn advance(&mut self, cancel: Cancel<'_>) -> Result<Stage> {
        let stop = || if cancel() { Err(Interrupted) } else { Ok(()) };
        let Some(next) = self.spec.stage.next() else {
            bail!(
                "lab {:?} is built to its last stage already",
                self.spec.name
            );
        };
        let locked = Locked::open(&self.spec.name)?;
        let locked = locked.with_context(|| format!("lab {:?} is gone", self.spec.name))?;
        if let Some(dead) = self.nodes.iter().flat_map(Node::dead_pods).next() {
            return Err(self.dead(&dead.place));
        }
        self.spec.stage = next;
        locked.write(&self.spec, false)?;
        self.wire(&[next], &stop)?;
        self.start_daemons(&stop)?;
        locked.write(&self.spec, true)?;
        Ok(next)
    }

    fn write_files(&self) -> Result<()> {
        let dir = self.dir();
        if self.spec.store == Store::File {
            fs::write(self.leases(), plan::leases(&self.spec))
                .context("cannot write the lease file")?;
        }
        for node in self.spec.node_plans() {
            let config = self.config(node.number);
            fs::create_dir(dir.join(&node.name))
                .and_then(|()| fs::write(&config, node.config(&self.spec, &dir)))
                .with_context(|| format!("cannot write {}", config.display()))?;
        }
        Ok(())
    }

    /// Starts a process of the lab's at a place ("intruder"), `overlayd lab` with these arguments. It ends with the lab.
    ///
    /// # Errors
    /// When there is no such place, or the process cannot be started.
    pub(in crate::lab) fn start_helper(&mut self, place: &str, arguments: &[&str]) -> Result<()> {
        let mut command = holder::marked(&self.exe, &self.spec.name, place);
        command
            .arg("lab")
            .args(arguments)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let child = self.place(place)?.spawn(command)?;
        self.children.push(child);
        Ok(())
    }

    /// Looks up a lab that an earlier `up` has left running. It stays up when this handle goes. A pod all of whose
    /// processes have ended is not among the pods of its node ([`Node::dead_pods`]); the rest is there without it.
    ///
    /// # Errors
    /// When there is no such lab, or it is not whole.
    pub fn load(name: &str, exe: &Path) -> Result<Self> {
        let state = known(name)?;
        let down = state::command(name, "down");
        if !state.complete {
            bail!(
                "lab {name:?} is not whole: its `up` is still at work or was killed (`{down}` removes it)"
            );
        }
        let processes = holder::processes(name)?;
        let open = |plan: NodePlan| -> Result<Node> {
            let namespace = NetNs::open(&plan.namespace)?;
            let mut pods = Vec::new();
            for plan in &plan.pods {
                // The holder, or whoever is left of its containers: each keeps the namespace.
                let mut inside = processes.iter().filter(|p| p.pod() == plan.place);
                let holder = processes.iter().find(|p| p.place == plan.place);
                let Some(process) = holder.or_else(|| inside.next()) else {
                    continue;
                };
                // One that ends just now is as dead as one that has ended.
                if let Ok(namespace) = NetNs::of_process(process.pid) {
                    pods.push(Pod {
                        plan: plan.clone(),
                        namespace,
                        pid: process.pid,
                    });
                }
            }
            Ok(Node {
                plan,
                namespace,
                pods,
            })
        };
        let nodes = state
            .spec
            .node_plans()
            .into_iter()
            .map(open)
            .collect::<Result<_>>();
        Ok(Self {
            nodes: nodes.with_context(|| {
                format!("lab {name:?} is damaged (`{down}` removes what is left)")
            })?,
            spec: state.spec,
            exe: exe.to_owned(),
            children: Vec::new(),
            keep: true,
        })
    }

    /// Takes a lab down, whole or not, whoever built it. `Ok(false)`: there is no lab of this name.
    ///
    /// # Errors
    /// What could not be removed. It can be tried again.
    pub fn down(name: &str) -> Result<bool> {
        plan::check_name(name)?;
        take_down(name, || ())
    }

    /// Gives up the handle and leaves the lab up.
    pub fn keep(mut self) {
        self.keep = true;
    }

    /// Takes this lab down and says what went wrong, which dropping it cannot.
    ///
    /// # Errors
    /// As [`Lab::down`].
    pub fn close(mut self) -> Result<()> {
        self.keep = true;
        self.take_down()
    }

    fn take_down(&mut self) -> Result<()> {
        // Our handles would keep the namespaces alive.
        self.nodes.clear();
        let children = &mut self.children;
        take_down(&self.spec.name, || reap(children)).map(|_| ())
    }

    /// What it consists of.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Its nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node with this number, from 1.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, number: u8) -> Result<&Node> {
        let node = self.nodes.iter().find(|node| node.number == number);
        node.with_context(|| {
            format!(
                "lab {:?} has {} nodes, no node{number}",
                self.spec.name,
                self.nodes.len()
            )
        })
    }

    /// The namespace of `node1`, `node1/pod2` or `underlay`; of `router` and `etcd`, where the lab has them.
    ///
    /// # Errors
    /// When there is no such place, with those there are; or it is a pod that is dead.
    pub fn place(&self, place: &str) -> Result<NetNs> {
        let mut dead = self.nodes.iter().flat_map(Node::dead_pods);
        if dead.any(|pod| pod.place == place) {
            return Err(self.dead(place));
        }
        if place == "underlay" {
            return Ok(NetNs::open(self.spec.underlay_namespace())?);
        }
        if place == "intruder" && self.spec.scenario == Some(Scenario::Spoof) {
            return Ok(NetNs::open(self.spec.intruder_namespace())?);
        }
        if place == "router" && self.spec.layer == Layer::L3 {
            return Ok(NetNs::open(self.spec.router_namespace())?);
        }
        if place == ETCD && self.spec.store == Store::Etcd {
            return Ok(NetNs::open(self.spec.etcd_namespace())?);
        }
        let nodes = self.nodes.iter();
        let pods = self.nodes.iter().flat_map(|node| &node.pods);
        let mut places = nodes
            .map(|n| (n.name.as_str(), &n.namespace))
            .chain(pods.map(|p| (p.place.as_str(), &p.namespace)));
        places.find(|(name, _)| *name == place).map(|(_, namespace)| namespace.clone()).with_context(|| {
            let last = self.nodes.last().map(|n| n.name.clone()).unwrap_or_default();
            let pods = self.spec.pods;
            let router = if self.spec.layer == Layer::L3 { ", router" } else { "" };
            let etcd = if self.spec.store == Store::Etcd { ", etcd" } else { "" };
            format!(
                "lab {:?} has no {place:?}: it has node1 to {last}, each with {pods} pods (node1/pod1){router}{etcd}, and underlay",
                self.spec.name
            )
        })
    }

    /// Why there is no entering this pod.
    fn dead(&self, place: &str) -> anyhow::Error {
        let revive = state::command(&self.spec.name, "revive");
        anyhow!(
            "{place} is dead: its processes have ended, and its namespace with them (`{revive}` starts it anew)"
        )
    }

    /// Its directory.
    pub fn dir(&self) -> PathBuf {
        state::dir(&self.spec.name)
    }

    /// The lease file that all its nodes read; there is none with etcd.
    pub fn leases(&self) -> PathBuf {
        self.dir().join("leases.json")
    }

    /// The configuration of a node's daemon.
    pub fn config(&self, number: u8) -> PathBuf {
        self.node_dir(number).join("overlayd.toml")
    }

    /// The log of a node's daemon.
    pub fn log(&self, number: u8) -> PathBuf {
        self.node_dir(number).join("overlayd.log")
    }

    /// The control socket of a node's daemon.
    pub fn socket(&self, number: u8) -> PathBuf {
        self.node_dir(number).join("overlayd.sock")
    }

    fn node_dir(&self, number: u8) -> PathBuf {
        self.dir().join(format!("node{number}"))
    }

    fn reap(&mut self) {
        reap(&mut self.children);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = self.take_down() {
            tracing::warn!(
                "lab {:?} could not be taken down: {error:#}; `{}` tries again",
                self.spec.name,
                state::command(&self.spec.name, "down")
            );
        }
    }
}

/// There is a lab of this name, whole or not.
pub fn exists(name: &str) -> bool {
    plan::check_name(name).is_ok() && state::dir(name).exists()
}

fn known(name: &str) -> Result<state::State> {
    plan::check_name(name)?;
    if let Some(state) = state::read(name)? {
        return Ok(state);
    }
    let others = state::list()?;
    if others.is_empty() {
        bail!("there is no lab: `overlayd lab up` builds one");
    }
    bail!("there is no lab {name:?}, but: {}", others.join(", "));
}

fn take_down(name: &str, reap: impl FnMut()) -> Result<bool> {
    let Some(locked) = Locked::open(name)? else {
        return Ok(false);
    };
    need_root()?;
    holder::end_all(name, reap).context("cannot end the lab's processes")?;
    let namespaces = match state::read(name) {
        Ok(Some(state)) => state.spec.namespaces(),
        // Killed before it had written down what it would make, so before it made anything.
        Ok(None) => Vec::new(),
        // The names say enough: `up` starts only where there are none of them.
        Err(_) => plan::namespaces_of(name, NetNs::list_named()?),
    };
    for namespace in namespaces {
        NetNs::delete_named(&namespace)?;
    }
    locked.remove()?;
    Ok(true)
}

fn reap(children: &mut Vec<Child>) {
    children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
}

fn need_root() -> Result<()> {
    if !Uid::effective().is_root() {
        bail!("a lab needs root, to make network namespaces: use sudo");
    }
    Ok(())
}
