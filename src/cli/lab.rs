//! `overlayd lab`: a multi-node overlay on this machine.

mod demo;
mod graph;
mod paint;
mod scenario;
mod sh;
mod status;
mod up;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use nix::unistd::Uid;

use super::{Exit, LAB_NAME, complain, on_signal, say};
use crate::config::Engine;
use crate::lab::container::Container;
use crate::lab::holder;
use crate::lab::topology::{
    Backend, DEFAULT_NAME, Interrupted, Layer, Scenario, Spec, Stage, Store, Underlay,
};

/// The name of the demo's lab: it must not meet one that stands.
const DEMO_NAME: &str = "demo";

#[derive(Args)]
#[command(arg_required_else_help = true)]
pub(super) struct LabArgs {
    #[command(flatten)]
    name: Name,
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Subcommand)]
enum LabCommand {
    /// Build a lab: nodes and pods in network namespaces, overlayd on every node
    Up {
        #[command(flatten)]
        shape: Shape,
        #[command(flatten)]
        extent: Extent,
    },
    /// Build the next stage of a lab that was built with --stage
    Next {
        /// Print the iproute2 commands that one would type for the same
        #[arg(long)]
        explain: bool,
    },
    /// Build a lab, show what an overlay does and measure it, take the lab down
    Demo {
        /// The lab's name: its namespaces' names begin with it
        #[arg(long, default_value = DEMO_NAME)]
        name: String,
        #[command(flatten)]
        shape: Shape,
        /// Print the story as JSON, at the end
        #[arg(long)]
        json: bool,
    },
    /// Show a lab's nodes, pods and daemons
    Status {
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Draw a lab as it stands: nodes, pods, bridges, TUN devices, addresses, MTUs, routes, leases
    Graph {
        /// Where the picture goes (SVG; `-` is stdout)
        #[arg(long, value_name = "FILE")]
        svg: PathBuf,
    },
    /// Run a command inside a node or a pod
    #[command(
        after_help = "Without a command: $SHELL. Inside, `overlayd status` asks the node's daemon, and OVERLAYD_CONFIG \
                      names its configuration.\n\n\
                      Examples:\n  overlayd lab sh node1/pod2\n  overlayd lab sh node1 overlayd status"
    )]
    Sh {
        /// Where: node1, node1/pod2, underlay; router, etcd, intruder in labs that have them
        #[arg(value_name = "NODE[/POD]")]
        place: String,
        /// The command and its arguments
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "CMD"
        )]
        command: Vec<String>,
    },
    /// Stop overlayd on nodes and start it anew, with the configuration as it is now
    Restart {
        /// Which: node1 ... [default: all]
        #[arg(value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Start again what has died: processes of pods, whole pods, daemons
    Revive,
    /// What there is to find out: labs with something wrong in them
    Scenario {
        #[command(subcommand)]
        command: scenario::Command,
    },
    /// A hint for the scenario that is played in the lab: the same as `scenario hint N`
    Hint {
        /// Which hint, from 1
        #[arg(value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
        number: u8,
    },
    /// Is what was wrong with a scenario's lab right now? (exit code 5: not yet)
    Grade {
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a lab down, or clean up after one that was killed
    Down,
    /// Hold the network namespace it is started in (a pod's holder; started by `lab up`)
    #[command(hide = true)]
    Hold,
    /// Be a container of a pod, web or echo, in the namespace it is started in
    #[command(hide = true)]
    Container {
        /// Which
        container: Container,
    },
    /// Be the stranger of the scenario `spoof` (started by `lab up`)
    #[command(hide = true)]
    Intrude {
        /// The lab's name
        lab: String,
    },
}

#[derive(Args)]
struct Name {
    /// The lab's name: its namespaces' names begin with it
    #[arg(long, env = LAB_NAME, default_value = DEFAULT_NAME, global = true)]
    name: String,
}

/// How far a lab is built, and how.
#[derive(Args)]
struct Extent {
    /// How far to build it; `overlayd lab next` goes on from there
    #[arg(long, value_enum, default_value_t = Stage::Overlay)]
    stage: Stage,
    /// Print the iproute2 commands that one would type for the same, stage by stage
    #[arg(long)]
    explain: bool,
    /// Build nothing, only print the commands; needs no root
    #[arg(long, requires = "explain")]
    dry_run: bool,
    /// Break something, for a class to find out (IPv4 only)
    #[arg(long, value_enum, conflicts_with_all = ["stage", "underlay", "explain"])]
    scenario: Option<Scenario>,
    /// With --scenario: pods with IPv6 addresses too, which are graded as well
    #[arg(long, requires = "scenario", conflicts_with = "no_ipv6")]
    ipv6: bool,
}

/// What a lab shall consist of.
#[derive(Args)]
struct Shape {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=250))]
    nodes: u8,
    /// How many pods on each node
    #[arg(long, value_name = "N", default_value_t = 2)]
    pods: u8,
    /// The encapsulation between the nodes, or host-gw for none
    #[arg(long, value_enum, default_value_t = BackendArg::Vxlan)]
    backend: BackendArg,
    /// With vxlan: nodes of one segment route to each other, without encapsulation
    #[arg(long)]
    direct_routing: bool,
    /// Where the leases stand
    #[arg(long, value_enum, default_value_t = StoreArg::File)]
    store: StoreArg,
    /// How the daemons read and send packets
    #[arg(long, value_enum, default_value_t = EngineArg::Classic)]
    engine: EngineArg,
    /// MTU of the underlay, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    underlay_mtu: u16,
    /// The underlay: what joins the nodes (l2, l3), its IP families (v4, v6, dual), or one of each, as in `l3,v4`
    /// [default: l2, and dual, or v4 with --no-ipv6]
    #[arg(long, value_enum, value_delimiter = ',')]
    underlay: Vec<UnderlayArg>,
    /// Pods without IPv6 addresses
    #[arg(long)]
    no_ipv6: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum BackendArg {
    /// Raw IP packets in UDP, port 8285
    Udp,
    /// VXLAN, UDP port 8472
    Vxlan,
    /// Nothing in front: routes through the other nodes, which have to be on one segment
    HostGw,
}

#[derive(Clone, Copy, ValueEnum)]
enum StoreArg {
    /// In a file that all nodes read: node1 has 10.244.1.0/24, and so on
    File,
    /// In an etcd of the lab's own: each node takes a subnet there, as in a cluster of flannel's
    Etcd,
}

#[derive(Clone, Copy, ValueEnum)]
enum EngineArg {
    /// One packet per system call: every capture shows single packets, as on a real wire
    Classic,
    /// The daemon's default: superpackets and trains, which cross the lab's cables whole
    Batched,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum UnderlayArg {
    /// One segment: a bridge
    L2,
    /// A router: node1 and node2 share a segment, the other nodes sit behind the router
    L3,
    /// IPv4 only
    V4,
    /// IPv6 only
    V6,
    /// Both
    Dual,
}

impl Shape {
    fn spec(&self, name: &str) -> Result<Spec> {
        let (layers, families): (Vec<_>, Vec<_>) = self
            .underlay
            .iter()
            .partition(|word| matches!(word, UnderlayArg::L2 | UnderlayArg::L3));
        if layers.len() > 1 || families.len() > 1 {
            bail!(
                "--underlay takes one of l2 and l3, and one of v4, v6 and dual: for example `--underlay l3,v4`"
            );
        }
        Ok(Spec {
            name: name.to_owned(),
            nodes: self.nodes,
            pods: self.pods,
            backend: match self.backend {
                BackendArg::Udp => Backend::Udp,
                BackendArg::Vxlan => Backend::Vxlan,
                BackendArg::HostGw => Backend::HostGw,
            },
            direct_routing: self.direct_routing,
            store: match self.store {
                StoreArg::File => Store::File,
                StoreArg::Etcd => Store::Etcd,
            },
            ipv6: !self.no_ipv6,
            underlay: match families.first() {
                Some(UnderlayArg::V4) => Underlay::V4,
                Some(UnderlayArg::V6) => Underlay::V6,
                None if self.no_ipv6 => Underlay::V4,
                _ => Underlay::Dual,
            },
            layer: if layers.contains(&UnderlayArg::L3) {
                Layer::L3
            } else {
                Layer::L2
            },
            mtu: self.underlay_mtu,
            engine: match self.engine {
                EngineArg::Classic => Engine::Classic,
                EngineArg::Batched => Engine::Batched,
            },
            ..Spec::default()
        })
    }
}

impl LabCommand {
    /// Whether it only prints what it knows.
    fn only_talks(&self) -> bool {
        match self {
            Self::Hold | Self::Container { .. } => true,
            Self::Up { extent, .. } => extent.dry_run,
            Self::Scenario { command } => command.only_talks(),
            _ => false,
        }
    }
}

pub(super) fn main(args: LabArgs) -> Exit {
    if !args.command.only_talks() && !Uid::effective().is_root() {
        tell!("overlayd: a lab needs root, to make and enter network namespaces: use sudo");
        return Exit::Error;
    }
    run(&args.name.name, args.command).unwrap_or_else(|error| {
        complain(&error);
        Exit::Error
    })
}

fn run(name: &str, command: LabCommand) -> Result<Exit> {
    match command {
        LabCommand::Up { shape, extent } => {
            let spec = extent.apply(shape.spec(name)?);
            if extent.explain && spec.store == Store::Etcd {
                bail!(
                    "with leases in etcd nobody knows the commands beforehand: the pods' addresses follow from the subnets that the nodes take (`--explain` goes with --store file)"
                );
            }
            if extent.dry_run {
                return up::explain_only(&spec);
            }
            unless_interrupted(up::up(spec.clone(), extent.explain), &spec)
        }
        LabCommand::Next { explain } => up::next(name, explain),
        LabCommand::Demo { name, shape, json } => {
            let spec = shape.spec(&name)?;
            unless_interrupted(demo::main(spec.clone(), json), &spec)
        }
        LabCommand::Status { json } => status::main(name, json),
        LabCommand::Graph { svg } => graph::main(name, &svg),
        LabCommand::Sh { place, command } => sh::main(name, &place, &command),
        LabCommand::Restart { nodes } => up::restart(name, &nodes),
        LabCommand::Revive => up::revive(name),
        LabCommand::Scenario { command } => scenario::main(name, &command),
        LabCommand::Hint { number } => scenario::main(name, &scenario::Command::hint(number)),
        LabCommand::Grade { json } => scenario::grade(name, json),
        LabCommand::Down => up::down(name),
        LabCommand::Hold => holder::run(),
        LabCommand::Container { container } => container.run().map(|()| Exit::Ok),
        LabCommand::Intrude { lab } => scenario::intrude(&lab),
    }
}

impl Extent {
    fn apply(&self, spec: Spec) -> Spec {
        let played = self.scenario.is_some();
        Spec {
            stage: self.stage,
            scenario: self.scenario,
            ipv6: if played { self.ipv6 } else { spec.ipv6 },
            underlay: if played { Underlay::V4 } else { spec.underlay },
            ..spec
        }
    }
}

/// An interrupted `up` or `demo` has taken its lab away; this makes sure of it.
fn unless_interrupted(done: Result<Exit>, spec: &Spec) -> Result<Exit> {
    match done {
        Err(error) if error.is::<Interrupted>() => {
            let left = crate::lab::demo::leftovers(spec)?;
            if left.is_empty() {
                tell!(
                    "overlayd: interrupted; nothing is left of lab {:?}",
                    spec.name
                );
            } else {
                let option = name_option(&spec.name);
                tell!(
                    "overlayd: interrupted; still there: {} (`overlayd lab down{option}` removes it)",
                    left.join(", ")
                );
            }
            Ok(Exit::Interrupted)
        }
        other => other,
    }
}

fn shape_of(spec: &Spec) -> String {
    let s = |n: u8| if n == 1 { "" } else { "s" };
    let pods = match spec.nodes {
        1 => format!("{} pod{}", spec.pods, s(spec.pods)),
        _ => format!("{} pod{} each", spec.pods, s(spec.pods)),
    };
    let inside = if spec.ipv6 { "IPv4 and IPv6" } else { "IPv4" };
    let outside = match spec.underlay {
        Underlay::V4 => "IPv4",
        Underlay::V6 => "IPv6",
        Underlay::Dual => "IPv4 and IPv6",
    };
    let inside = if inside == outside {
        String::new()
    } else {
        format!("{inside} in ")
    };
    let (nodes, backend) = (spec.nodes, spec.backend);
    let direct = if spec.direct_routing {
        " with direct routing"
    } else {
        ""
    };
    let mut text = format!(
        "{nodes} node{} with {pods}, {backend}{direct}, {inside}{outside}",
        s(nodes)
    );
    if spec.layer == Layer::L3 {
        text += ", two segments and a router";
    }
    if spec.store == Store::Etcd {
        text += ", leases in etcd";
    }
    text
}

fn name_option(name: &str) -> String {
    if name == DEFAULT_NAME {
        String::new()
    } else {
        format!(" --name {name}")
    }
}

fn exe() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find the overlayd that is running (is /proc mounted?)")
}
