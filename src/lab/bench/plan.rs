//! What is compared: paths, offload settings and tests, and how they are named on the command line.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::cell::COUNTED;
use crate::config::Engine;
use crate::lab::topology::Backend;
use crate::sys::ethtool::Features;

/// How packets get from one host to the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// The underlay itself, nothing between.
    Bare,
    /// A route to the other host's subnet, as flannel's host-gw backend sets it: no encapsulation.
    HostGw,
    /// A kernel VXLAN device, as flannel's vxlan backend sets it up.
    KernelVxlan,
    /// overlayd.
    Overlayd {
        /// Its encapsulation.
        backend: Backend,
        /// Its engine, as `datapath.engine` names it.
        engine: String,
    },
    /// An outside control: a tunnel that a script brings up.
    Script {
        /// Its name.
        name: String,
    },
}

/// From where to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Between {
    /// The hosts' own addresses.
    Nodes,
    /// Pods behind a bridge on each host: two more veths, two bridges, forwarding.
    Pods,
}

/// One line of the comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The path.
    pub path: Path,
    /// Its ends.
    pub between: Between,
}

impl fmt::Display for Row {
    /// `kernel-vxlan`, `overlayd-udp-classic`, `pods:host-gw`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.between == Between::Pods {
            f.write_str("pods:")?;
        }
        match &self.path {
            Path::Bare => f.write_str("bare"),
            Path::HostGw => f.write_str("host-gw"),
            Path::KernelVxlan => f.write_str("kernel-vxlan"),
            Path::Overlayd { backend, engine } => write!(f, "overlayd-{backend}-{engine}"),
            Path::Script { name } => f.write_str(name),
        }
    }
}

impl Row {
    /// The rows of a quick run: what an engine is compared with, and all engines.
    pub fn quick() -> Vec<Self> {
        let mut rows = vec![Path::Bare, Path::KernelVxlan];
        rows.extend(overlayd());
        rows.into_iter()
            .map(|path| Self::new(path, Between::Nodes))
            .collect()
    }

    /// All rows there are.
    pub fn all() -> Vec<Self> {
        let mut nodes = vec![Path::Bare, Path::HostGw, Path::KernelVxlan];
        nodes.extend(overlayd());
        let pods = nodes[1..].to_vec();
        let nodes = nodes
            .into_iter()
            .map(|path| Self::new(path, Between::Nodes));
        nodes
            .chain(pods.into_iter().map(|path| Self::new(path, Between::Pods)))
            .collect()
    }

    /// Is there a daemon on each host, as far as can be told before it is up?
    pub(super) fn has_daemon(&self) -> bool {
        matches!(self.path, Path::Overlayd { .. } | Path::Script { .. })
    }

    /// The row of an outside control.
    pub fn script(name: &str) -> Self {
        Self::new(Path::Script { name: name.into() }, Between::Nodes)
    }

    fn new(path: Path, between: Between) -> Self {
        Self { path, between }
    }
}

fn overlayd() -> impl Iterator<Item = Path> {
    let engines = Engine::ALL.iter();
    engines.flat_map(|engine| {
        [Backend::Udp, Backend::Vxlan].map(|backend| Path::Overlayd {
            backend,
            engine: engine.name().to_owned(),
        })
    })
}

/// What the underlay's devices do for the paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Setting {
    /// As the kernel made them: on a veth superpackets cross whole and checksums are never computed.
    Default,
    /// No segmentation of tunnelled packets, as a network card without tunnel offload.
    NoTunnelOffload,
    /// No segmentation at all, and none put together on receipt.
    NoSegmentation,
    /// No segmentation on sending, but packets put together on receipt (GRO), as on most real cards.
    NoSegmentationGro,
}

impl Setting {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Default,
        Self::NoTunnelOffload,
        Self::NoSegmentation,
        Self::NoSegmentationGro,
    ];

    /// As it is named on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::NoTunnelOffload => "no-tunnel-offload",
            Self::NoSegmentation => "no-segmentation",
            Self::NoSegmentationGro => "no-segmentation-gro",
        }
    }

    /// The features, by ethtool's names, that differ from what the device came with.
    pub fn features(self) -> Features {
        const TUNNEL: [&str; 2] = ["tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"];
        // Everything that `ethtool -K DEV tso off gso off` and tx-udp-segmentation cover.
        const SEGMENTATION: [&str; 6] = [
            "tx-tcp-segmentation",
            "tx-tcp6-segmentation",
            "tx-tcp-ecn-segmentation",
            "tx-tcp-mangleid-segmentation",
            "tx-udp-segmentation",
            "tx-generic-segmentation",
        ];
        let off = |names: &[&str]| -> Features {
            names
                .iter()
                .map(|name| ((*name).to_owned(), false))
                .collect()
        };
        let mut features = Features::new();
        if self != Self::Default {
            features.extend(off(&TUNNEL));
        }
        if matches!(self, Self::NoSegmentation | Self::NoSegmentationGro) {
            features.extend(off(&SEGMENTATION));
            features.insert("rx-gro".into(), self == Self::NoSegmentationGro);
        }
        features
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Setting {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match Self::ALL.iter().find(|setting| setting.name() == text) {
            Some(setting) => Ok(*setting),
            None => bail!(
                "no setting {text:?}; there are {}",
                Self::ALL.map(Self::name).join(", ")
            ),
        }
    }
}

/// The size of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Size {
    /// UDP payload in bytes.
    Bytes(u16),
    /// As much as fills the path's MTU.
    Mtu,
}

/// Which way TCP flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Way {
    /// From the first host to the second.
    Forth,
    /// From the second to the first.
    Back,
    /// Both at the same time; their sum counts.
    Both,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Test {
    /// Goodput of TCP streams: `tcp-4`, `tcp-4-back`, `tcp-4-both`.
    Tcp(u16, Way),
    /// Datagrams that arrive per second when sent flat out: `udp-64`, `udp-mtu`.
    Flood(Size),
    /// The highest rate without loss, and with at most 0.1 %: `loss-64`, `loss-mtu-1000` (flows).
    Loss(Size, u16),
    /// Round trips while nothing else happens: `rtt`.
    Rtt,
    /// Round trips under half the load that the path carries: `rtt-half`.
    RttHalf,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Mtu => f.write_str("mtu"),
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(streams, Way::Forth) => write!(f, "tcp-{streams}"),
            Self::Tcp(streams, Way::Back) => write!(f, "tcp-{streams}-back"),
            Self::Tcp(streams, Way::Both) => write!(f, "tcp-{streams}-both"),
            Self::Flood(size) => write!(f, "udp-{size}"),
            Self::Loss(size, 1) => write!(f, "loss-{size}"),
            Self::Loss(size, flows) => write!(f, "loss-{size}-{flows}"),
            Self::Rtt => f.write_str("rtt"),
            Self::RttHalf => f.write_str("rtt-half"),
        }
    }
}

impl FromStr for Test {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('-').collect();
        let number = |text: &str| text.parse::<u16>().ok().filter(|n| *n > 0);
        let size = |text: &str| match text {
            "mtu" => Some(Size::Mtu),
            text => number(text)
                .filter(|n| *n >= super::load::MIN_SIZE)
                .map(Size::Bytes),
        };
        // Each is a thread and a descriptor on each host.
        let streams = |text: &str| number(text).filter(|n| *n <= 200);
        let test = match parts.as_slice() {
            ["tcp", n] => streams(n).map(|n| Self::Tcp(n, Way::Forth)),
            ["tcp", n, "back"] => streams(n).map(|n| Self::Tcp(n, Way::Back)),
            ["tcp", n, "both"] => streams(n).map(|n| Self::Tcp(n, Way::Both)),
            ["udp", bytes] => size(bytes).map(Self::Flood),
            ["loss", bytes] => size(bytes).map(|size| Self::Loss(size, 1)),
            ["loss", bytes, flows] => size(bytes)
                .zip(number(flows).filter(|n| *n <= 10_000))
                .map(|(size, flows)| Self::Loss(size, flows)),
            ["rtt"] => Some(Self::Rtt),
            ["rtt", "half"] => Some(Self::RttHalf),
            _ => None,
        };
        match test {
            Some(test) => Ok(test),
            None => bail!(
                "no test {text:?}; there are tcp-STREAMS, tcp-STREAMS-back, tcp-STREAMS-both, udp-BYTES, udp-mtu, loss-BYTES, loss-mtu, \
                 loss-BYTES-FLOWS, rtt and rtt-half, for example tcp-4 (200 at most), udp-64 (UDP payload, at least 16 bytes), loss-64-1000"
            ),
        }
    }
}

impl Test {
    /// The tests of a quick run.
    pub fn quick() -> Vec<Self> {
        vec![
            Self::Tcp(1, Way::Forth),
            Self::Tcp(4, Way::Forth),
            Self::Flood(Size::Bytes(64)),
            Self::Rtt,
        ]
    }

    /// The tests of a full run: everywhere between nodes.
    pub fn full() -> Vec<Self> {
        let mut tests: Vec<_> = [1, 4, 16]
            .map(|streams| Self::Tcp(streams, Way::Forth))
            .into();
        tests.extend([
            Self::Loss(Size::Bytes(64), 1),
            Self::Loss(Size::Mtu, 1),
            Self::Rtt,
        ]);
        tests
    }

    /// The further tests of a full run, under the first setting only, between nodes.
    pub fn full_extra() -> Vec<Self> {
        let mut tests: Vec<_> = [1, 4, 16]
            .map(|streams| Self::Tcp(streams, Way::Both))
            .into();
        tests.extend([64, 256, 512, 1024].map(|bytes| Self::Flood(Size::Bytes(bytes))));
        tests.extend([
            Self::Flood(Size::Mtu),
            Self::Loss(Size::Bytes(64), 1000),
            Self::Loss(Size::Mtu, 1000),
            Self::RttHalf,
        ]);
        tests
    }

    /// How long it takes: seconds that are always there, and how often the window is. Where there are daemons, their system
    /// calls are counted afterwards.
    pub(super) fn time(self, daemons: bool) -> (f64, f64) {
        let counted = if daemons { COUNTED } else { 0.0 };
        match self {
            Self::Tcp(..) => (0.02, 1.3 * (1.0 + counted)),
            Self::Flood(_) => (0.12, 1.0 + counted),
            // Some fifteen trials of a quarter of the window each.
            Self::Loss(..) => (1.5, 4.0 + counted),
            Self::Rtt => (0.07, 1.0),
            Self::RttHalf => (0.3, 1.2),
        }
    }
}
