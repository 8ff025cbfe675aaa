//! A test bed: nodes on a common underlay, each a network namespace with a bridge and a pod behind it.
//!
//! ```text
//!   pod 1: eth0 10.244.1.2               pod 2: eth0 10.244.2.2       fd00:10:244:<node>::2
//!            │                                    │
//!   node 1: cni0 10.244.1.1              node 2: cni0 10.244.2.1      fd00:10:244:<node>::1
//!           overlay0 (the daemon's)              overlay0
//!           eth0 10.99.0.1                       eth0 10.99.0.2       fd99::<node>
//!            │                                    │
//!            └──────── underlay: bridge br0 ──────┘
//! ```
//!
//! Namespaces are named `ovt-<process>-<bed>-<part>`, so `ip netns exec` can look into a bed while its test sleeps. All
//! of it goes with the [`Bed`], also when a test panics; what a killed test left is removed by the next one.

use std::future::Future;
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use encap::Family;
use overlayd::config::Engine;
use overlayd::kernel::NetNs;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub use crate::config::Config;
pub use crate::daemon::{Daemon, PATIENCE, feature, overlayd_bin};
use crate::leftovers;
pub use crate::leftovers::sweep;
pub use crate::node::Node;
use crate::node::Switch;

/// Which addresses nodes have on the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underlay {
    /// 10.99.0.0/24.
    V4,
    /// fd99::/64.
    V6,
    /// Both.
    Dual,
}

impl Underlay {
    pub(crate) fn has(self, family: Family) -> bool {
        match family {
            Family::V4 => self != Underlay::V6,
            Family::V6 => self != Underlay::V4,
        }
    }
}

/// An encapsulation, as `backend.type` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Raw IP in UDP.
    Udp,
    /// VXLAN.
    Vxlan,
}

impl Backend {
    /// The name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Udp => "udp",
            Backend::Vxlan => "vxlan",
        }
    }

    /// Bytes that encapsulation adds to an inner packet.
    pub fn overhead(self, outer: Family) -> u32 {
        let udp = match outer {
            Family::V4 => 28,
            Family::V6 => 48,
        };
        match self {
            Backend::Udp => udp,
            Backend::Vxlan => udp + 22,
        }
    }
}

/// What a bed is made of.
#[derive(Clone, Debug)]
pub struct Spec {
    /// How many nodes, numbered from 1.
    pub nodes: u8,
    /// Their addresses on the underlay.
    pub underlay: Underlay,
    /// The underlay's MTU in bytes.
    pub underlay_mtu: u32,
    /// A pod on each node?
    pub pods: bool,
    /// The MTU of pods and bridges in bytes; flannel's CNI plugin sets it to the overlay's.
    pub pod_mtu: u32,
}

impl Default for Spec {
    /// Two nodes with pods, on IPv4, MTU 1,500 everywhere.
    fn default() -> Self {
        Spec {
            nodes: 2,
            underlay: Underlay::V4,
            underlay_mtu: 1500,
            pods: true,
            pod_mtu: 1500,
        }
    }
}

/// The whole bed. Dropped, it is removed.
#[derive(Debug)]
pub struct Bed {
    nodes: Vec<Node>,
    underlay: NetNs,
    directory: TempDir,
    runtime: Runtime,
    // Last: removed when nothing needs it any more.
    names: Names,
}

/// Named namespaces, removed when dropped.
#[derive(Debug)]
pub(crate) struct Names {
    prefix: String,
    made: Vec<String>,
}

impl Names {
    pub(crate) fn create(&mut self, part: &str) -> std::io::Result<NetNs> {
        let name = format!("{}{part}", self.prefix);
        let made = NetNs::create_named(&name)?;
        self.made.push(name);
        Ok(made)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        for name in &self.made {
            if let Err(error) = NetNs::delete_named(name) {
                eprintln!("{error}");
            }
        }
    }
}

impl Bed {
    /// Two nodes, or more, with pods.
    ///
    /// # Panics
    /// As [`Bed::with`].
    pub fn new(nodes: u8, underlay: Underlay) -> Self {
        Self::with(&Spec {
            nodes,
            underlay,
            ..Spec::default()
        })
    }

    /// A bed to measure.
    ///
    /// # Panics
    /// Without root's rights, or when the kernel refuses a part of it.
    pub fn with(spec: &Spec) -> Self {
        need_root();
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);
        Self::build(spec).unwrap_or_else(|error| panic!("cannot build the test bed: {error:#}"))
    }

    fn build(spec: &Spec) -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{}{count}-", leftovers::own_prefix());
        let directory = tempfile::Builder::new().prefix(&prefix).tempdir()?;
        let mut names = Names {
            prefix,
            made: Vec::new(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let underlay = names.create("underlay")?;
        let nodes = runtime.block_on(async {
            let switch = Switch::new(&underlay, spec).await?;
            let mut nodes = Vec::new();
            for number in 1..=spec.nodes {
                let directory = directory.path().join(format!("node{number}"));
                nodes.push(Node::build(number, &switch, &mut names, directory).await?);
            }
            for node in &nodes {
                node.wait_until_ready().await?;
            }
            anyhow::Ok(nodes)
        })?;
        let bed = Bed {
            nodes,
            underlay,
            directory,
            runtime,
            names,
        };
        bed.write_leases(&bed.leases());
        Ok(bed)
    }

    /// Node `number`, counted from 1.
    ///
    /// # Panics
    /// If there is none.
    pub fn node(&self, number: u8) -> &Node {
        &self.nodes[usize::from(number) - 1]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The namespace of the underlay's bridge.
    pub fn underlay(&self) -> &NetNs {
        &self.underlay
    }

    /// A directory that goes with the bed.
    pub fn dir(&self) -> &Path {
        self.directory.path()
    }

    /// What all names of this bed's namespaces begin with.
    pub fn prefix(&self) -> &str {
        &self.names.prefix
    }

    /// A new namespace that goes with the bed.
    ///
    /// # Panics
    /// If the kernel refuses it.
    pub fn add_namespace(&mut self, part: &str) -> NetNs {
        self.names.create(part).expect("add a namespace")
    }

    /// The leases of all nodes.
    pub fn leases(&self) -> Vec<Value> {
        self.nodes.iter().map(Node::lease).collect()
    }

    /// Gives all nodes these leases, each in a file of its own.
    ///
    /// # Panics
    /// If they cannot be written.
    pub fn write_leases(&self, leases: &[Value]) {
        for node in &self.nodes {
            node.write_leases(leases);
        }
    }

    /// Starts a daemon in every node, with [`Node::config`].
    ///
    /// # Panics
    /// As [`Daemon::start`].
    pub fn start(&self, backend: Backend) -> Vec<Daemon> {
        self.start_with(backend, Engine::Batched)
    }

    /// The same with another engine.
    pub fn start_with(&self, backend: Backend, engine: Engine) -> Vec<Daemon> {
        self.start_set(backend, &[("datapath.engine", engine.name())])
    }

    /// The same with these settings.
    pub fn start_set(&self, backend: Backend, settings: &[(&str, &str)]) -> Vec<Daemon> {
        let config = |node: &Node| {
            let config = node.config(backend);
            let set = |config: Config, (name, value): &(&str, &str)| match value.parse::<i64>() {
                Ok(number) => config.set(name, number),
                Err(_) => config.set(name, *value),
            };
            settings.iter().fold(config, set)
        };
        let start = |node: &Node| Daemon::start(node, &config(node));
        self.nodes.iter().map(start).collect()
    }

    /// Runs netlink's async functions.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }
}

/// These tests make network namespaces and devices. One that skipped itself would look like one that passed.
fn need_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "the integration tests need root for network namespaces and TUN devices: run them with `./dev test`, or as root \
         with `sudo -E env \"PATH=$PATH\" cargo test -p integration`"
    );
}
