//! One marked packet, hop by hop.
//!
//! A trace sends one real ICMP echo request with a token in its payload and captures it at every interface of every place
//! it can look into ([`watch`]). Then it walks the way that the kernels' and daemons' tables give ([`walk`]), and at each
//! interface holds against it what was seen: so each row of the result is either *observed*, by a capture or by a counter
//! that rose, or *derived* from a table. Where the walk expects the packet and no capture has it, it was lost, and
//! [`fate`] asks the counters why.
//!
//! ```text
//!   world    the places: a lab's nodes, pods and underlay; or this host and the namespaces that hang on it
//!   send     the packet
//!   watch    captures in all places ──▶ sight   a frame, read
//!   tables   routes, neighbours, bridge entries, chains, leases, counters
//!   walk     table after table, capture after capture ──▶ rows
//!   explain  how a table decides, in words
//!   facts    the same, in fields for programs
//!   fate     why it was lost
//!   text, picture   the result for people
//! ```

mod explain;
pub mod facts;
mod fate;
mod picture;
mod send;
pub mod sight;
mod tables;
pub mod text;
mod walk;
pub mod watch;
pub mod world;

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use crate::kernel::NetNs;
use crate::lab::traffic::Cancel;
use crate::teach::dissect::{Ports, Tunnel};
use facts::{Check, LeaseAnswer, Routing};
use sight::{Header, Kind};
use tables::Counts;
use watch::{Caught, Watch};
use world::World;

pub use picture::{of_host, picture};

/// Version of a [`Trace`] as JSON. Fields may be added within a version, none renamed or removed.
pub const VERSION: u32 = 1;

/// How long after an answer or an error something may still come.
const AFTERMATH: Duration = Duration::from_millis(150);

/// What packet to send.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The IP packet's length in bytes, headers included; `None`: as ping's.
    pub size: Option<u16>,
    /// It may not be fragmented: IPv4's DF bit is set. IPv6 routers never fragment.
    pub dont_fragment: bool,
    /// TTL or hop limit.
    pub ttl: u8,
    /// A source address that is not the sender's.
    pub spoof: Option<IpAddr>,
    /// How long to wait for what comes back.
    pub patience: Duration,
}

impl Default for Probe {
    /// As ping's, and a second's patience.
    fn default() -> Self {
        Self {
            size: None,
            dont_fragment: false,
            ttl: 64,
            spoof: None,
            patience: Duration::from_secs(1),
        }
    }
}

/// How a row is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// It was seen: by a capture or by a counter.
    Observed,
    /// It follows from a table.
    Derived,
}

/// By what a row is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A capture at the row's device.
    Capture,
    /// A counter that rose while the packet was under way.
    Counter,
    /// The kernel's answer to a system call.
    Syscall,
    /// A table of the kernel.
    Kernel,
    /// A table of the daemon.
    Daemon,
}

impl Source {
    fn evidence(self) -> Evidence {
        match self {
            Self::Capture | Self::Counter | Self::Syscall => Evidence::Observed,
            Self::Kernel | Self::Daemon => Evidence::Derived,
        }
    }
}

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// A program sends.
    Send,
    /// A routing table decides.
    Route,
    /// Chains of netfilter look at it.
    Netfilter,
    /// An IP address is turned into an Ethernet address.
    Neighbour,
    /// A bridge decides.
    Bridge,
    /// It passes a device.
    Device,
    /// The daemon's lease table decides.
    Lease,
    /// A packet is cut into fragments, or made whole again.
    Fragments,
    /// An address is rewritten.
    Rewrite,
    /// The daemon puts headers in front.
    Encapsulation,
    /// The daemon checks what it received and takes the headers off.
    Receive,
    /// It has arrived.
    Delivery,
    /// It is lost.
    Lost,
}

/// Which packet a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Leg {
    /// The echo request.
    Request,
    /// The echo reply.
    Reply,
    /// An ICMP error about one of them.
    Error,
}

/// Which way a packet passed a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Out of the namespace.
    Out,
    /// Into it.
    In,
}

/// A frame as it was captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Frame {
    /// When, in nanoseconds since 1970, by the kernel's clock.
    pub at_ns: u64,
    /// Its length in bytes, link-layer header included.
    pub bytes: usize,
    /// It begins with an Ethernet header; otherwise with an IP header.
    pub ethernet: bool,
    /// Its bytes, for `overlayd dissect`.
    pub hex: String,
}

/// One row of a trace.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// From 1, through all legs.
    pub number: usize,
    /// Which packet.
    pub leg: Leg,
    /// Where: `node1/pod2`.
    pub place: String,
    /// At which device.
    pub device: Option<String>,
    /// Which way, where it passed a device.
    pub direction: Option<Direction>,
    /// What happens.
    pub step: Step,
    /// Seen or concluded.
    pub evidence: Evidence,
    /// By what.
    pub source: Source,
    /// In a sentence.
    pub text: String,
    /// How that comes about, line by line.
    pub details: Vec<String>,
    /// TTL or hop limit of the outermost IP header, where it was seen.
    pub ttl: Option<u8>,
    /// Length of the outermost IP packet in bytes, where it was seen; of the first fragment, if it is in fragments.
    pub length: Option<usize>,
    /// The headers in front of the payload, where they were seen.
    pub headers: Vec<Header>,
    /// It is in an encapsulation here.
    pub encapsulated: bool,
    /// What was captured: more than one frame if it is in fragments.
    pub frames: Vec<Frame>,
    /// Of a row about a route: what was looked up in which routes, and what won.
    pub routing: Option<Routing>,
    /// Of a row about leases: what was looked up in which, and who holds it.
    pub lease: Option<LeaseAnswer>,
    /// Of a row about what the daemon received: its checks, in their order.
    pub checks: Vec<Check>,
    /// Where it is in a drawing of a lab.
    #[serde(skip)]
    pub(crate) point: Option<crate::lab::graph::Point>,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The answer came back to where the packet started.
    Answered,
    /// It arrived, and the answer went to another place: the one whose address was spoofed.
    Elsewhere,
    /// It was lost, there or on the way back.
    Lost,
    /// It left what can be seen from here, and no answer came back.
    Unseen,
}

/// Where a packet was lost, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// Which packet.
    pub leg: Leg,
    /// Where.
    pub place: String,
    /// By which device of that place it should have gone, where that is known.
    pub device: Option<String>,
    /// A drop reason of the daemon's, or in the kernel a word for what its counters or errors say.
    pub reason: String,
    /// Who dropped it: `overlayd`, `kernel`, or `nobody known`.
    pub by: &'static str,
    /// Seen or concluded.
    pub evidence: Evidence,
    /// What happened, in a sentence.
    pub meaning: String,
    /// What to do.
    pub advice: String,
}

impl Loss {
    /// `no-lease, by overlayd`
    fn cause(&self) -> String {
        match self.by {
            NOBODY => self.reason.clone(),
            by => format!("{}, by {by}", self.reason),
        }
    }
}

/// [`Loss::by`] where no one is known to have dropped it.
const NOBODY: &str = "nobody known";

/// [`Loss::reason`] where the request arrived and nothing answered it.
const NO_ANSWER: &str = "no-answer";

/// One end of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndName {
    /// The place, if it is known.
    pub name: Option<String>,
    /// Its address in the packet.
    pub ip: IpAddr,
}

/// A trace.
#[derive(Clone, Debug, Serialize)]
pub struct Trace {
    /// [`VERSION`].
    pub version: u32,
    /// The lab's name; `None`: this host.
    pub lab: Option<String>,
    /// Where the packet started. The address is the packet's, even if it is spoofed.
    pub source: EndName,
    /// The sender's own address, of the packet's family: not the one in the packet, if that is spoofed. `None`: it has none.
    pub sender_ip: Option<IpAddr>,
    /// Where it was to go.
    pub destination: EndName,
    /// The source address is not the sender's.
    pub spoofed: bool,
    /// The IP packet's length as it was sent, in bytes.
    pub size: usize,
    /// It might not be fragmented.
    pub dont_fragment: bool,
    /// What its payload repeats.
    pub token: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Where it was lost, if it was.
    pub loss: Option<Loss>,
    /// Its way.
    pub rows: Vec<Row>,
    /// What cannot be seen from here.
    pub unseen: Vec<String>,
    /// Daemons on the way that do not answer.
    pub unreachable: Vec<String>,
    /// Those of them that run: they hang, or are stopped.
    pub hanging: Vec<String>,
    /// What starts a daemon again that does not run.
    #[serde(skip)]
    pub restart: String,
}

/// Sends the packet and follows it.
///
/// # Errors
/// Without root, when a place is gone, or when cancelled; and when the lab is taken down meanwhile. A packet that does not
/// arrive is a result, not an error.
pub fn run(world: &World, probe: &Probe, cancel: &Cancel) -> Result<Trace> {
    let trace = follow(world, probe, cancel);
    // What is missing then says nothing of the packet.
    let arrived = matches!(&trace, Ok(trace) if trace.outcome == Outcome::Answered);
    match &world.lab {
        Some(lab) if !arrived && !world.stands() => bail!(
            "lab {lab:?} was taken down during the trace: what became of the packet cannot be told"
        ),
        _ => trace,
    }
}

fn follow(world: &World, probe: &Probe, cancel: &Cancel) -> Result<Trace> {
    let start = world
        .source
        .place
        .context("the source is no place of ours")?;
    let dst = world
        .destination
        .ip
        .context("the destination has no address")?;
    world.refuse_groups(dst)?;
    let before = counts(world, &[])?;
    let (port, ports) = overlay_port(&before);
    let token = send::token();
    let namespaces: Vec<&NetNs> = world.places.iter().map(|place| &place.namespace).collect();
    let mut watch = Watch::start(&namespaces, token.as_bytes(), port, ports)?;
    let source = probe.spoof.or(world.source.ip);
    let mut sent = send::send(&world.places[start].namespace, source, dst, probe, &token)
        .map_err(|error| world.without_address(start, source, error))?;
    let home = |caught: &Caught| caught.place == start && !caught.out;
    if sent.refused.is_none() {
        watch.wait(probe.patience, cancel, |all| {
            all.iter().any(|c| home(c) && c.sight.kind == Kind::Reply) || !world.is_named()
        })?;
    }
    // An error or a second answer may follow, and counters are written a moment after the packet is.
    watch.wait(AFTERMATH, cancel, |_| false)?;
    let caught = watch.stop()?;
    let after = counts(world, &before)?;
    // A rule may give it another source before it leaves: that is no substitute of the kernel's.
    if probe.spoof.is_some() && !after[start].rewrites_sources(sent.dst.is_ipv6()) {
        let mut left = caught.iter().filter(|c| c.place == start && c.out);
        let first = left.find(|c| c.sight.kind == Kind::Request && c.sight.outer.is_none());
        if let Some(first) = first {
            sent.confirm(first.sight.ip.src);
        }
    }
    walk::walk(world, probe, &sent, caught, &before, &after)
}

/// What is counted at all places. Those with daemons are asked at once, so that some that hang cost no more than one.
fn counts(world: &World, before: &[Counts]) -> Result<Vec<Counts>> {
    let read = |(index, place): (usize, &world::Place)| {
        Counts::read(&place.namespace, place.socket.as_deref(), before.get(index))
    };
    thread::scope(|scope| {
        let places = world.places.iter().enumerate();
        let asked: Vec<_> = places
            .map(|(index, place)| match place.socket {
                Some(_) => Err(scope.spawn(move || read((index, place)))),
                None => Ok(read((index, place))),
            })
            .collect();
        let joined = asked.into_iter().map(|counts| match counts {
            Ok(counts) => counts,
            Err(thread) => thread.join().unwrap_or_else(|_| bail!("a thread failed")),
        });
        joined.collect()
    })
}

/// The port of the overlay: of the first daemon that answers. Where none does, no packet gets into one.
fn overlay_port(counts: &[Counts]) -> (u16, Ports) {
    let mut ports = Ports::default();
    let Some(status) = counts.iter().find_map(|counts| counts.daemon.as_ref()) else {
        return (8472, ports);
    };
    let tunnel = match status.backend.name.as_str() {
        "udp" => Tunnel::Udp,
        _ => Tunnel::Vxlan,
    };
    ports.insert(status.backend.port, tunnel);
    (status.backend.port, ports)
}
