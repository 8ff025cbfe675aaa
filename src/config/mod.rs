//! Configuration: what was written, in flags, variables and the file, becomes one [`Config`] that
//! is checked and complete as far as that is possible without looking at the host.
//!
//! Precedence: flag, then `OVERLAYD_*`, then `FLANNELD_*`, then the file, then the default. flannel's
//! net-conf.json, where the configuration names one, stands beside the file: what both say must agree.
//!
//! - `options`: every option, defined once; flags, variables, help and the example derive from it
//! - `raw`: which option was set to what, and where
//! - `netconf`: flannel's net-conf.json
//! - [`flannel`]: flanneld's flags and variables
//! - `values`: what each value must be
//! - `resolve`: from the one to the other
//! - `check`: `overlayd config check` and `example`

mod check;
mod error;
pub mod flannel;
mod netconf;
pub mod options;
mod overrides;
mod raw;
mod resolve;
#[cfg(test)]
mod tests;
mod values;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use check::{Report, example, run_check};
pub(crate) use error::Quoted;
pub use error::{ConfigError, Origin, Setting};
pub(crate) use netconf::field as json_field;
pub use overrides::{Overrides, StoreFlags};

use crate::lease::pool::Pool;
pub(crate) use values::refuse_public;

/// Where the configuration is looked for when `--config` does not say.
pub const DEFAULT_PATH: &str = "/etc/overlayd/overlayd.toml";
/// The control socket's default path.
pub const DEFAULT_SOCKET: &str = "/run/overlayd/overlayd.sock";

/// A configuration that is valid in itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The overlay's networks; at least one is there.
    pub network: fdb::Network,
    /// Prefix length of one node's IPv4 subnet.
    pub subnet_len: u8,
    /// Prefix length of one node's IPv6 subnet.
    pub ipv6_subnet_len: u8,
    /// The subnets that nodes may take.
    pub pool: Pool,
    /// The encapsulation.
    pub backend: Backend,
    /// This node.
    pub node: Node,
    /// The TUN device.
    pub device: Device,
    /// How packets are carried.
    pub datapath: Datapath,
    /// Where the leases stand.
    pub store: Store,
    /// Where this node's subnet and MTU are written for container runtimes, from the root.
    pub subnet_file: Option<PathBuf>,
    /// What is added to the host's packet filter.
    pub firewall: Firewall,
    /// The control socket.
    pub control: Control,
    /// Static routes, in file order.
    pub routes: Vec<fdb::StaticRoute>,
    /// Logging.
    pub log: Log,
    /// Oddities that do not stop the daemon, one sentence each.
    pub warnings: Vec<String>,
}

/// The encapsulation between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Raw IP packets in UDP datagrams, as flannel's udp backend sends them.
    Udp(UdpBackend),
    /// VXLAN (RFC 7348), as flannel's vxlan backend and the Linux vxlan device send it.
    Vxlan(VxlanBackend),
    /// None: routes through the nodes' public IPs, as flannel's host-gw backend sets them.
    HostGw,
    /// None, and no routes either: the lease is all, as with flannel's alloc backend.
    Alloc,
}

impl Backend {
    /// The UDP port of every node; 0 where nothing is encapsulated.
    pub fn port(&self) -> u16 {
        match self {
            Backend::Udp(udp) => udp.port,
            Backend::Vxlan(vxlan) => vxlan.port,
            Backend::HostGw | Backend::Alloc => 0,
        }
    }

    /// `"udp"`, `"vxlan"`, `"host-gw"` or `"alloc"`, as leases name it.
    pub fn name(&self) -> &'static str {
        match self {
            Backend::Udp(_) => "udp",
            Backend::Vxlan(_) => "vxlan",
            Backend::HostGw => "host-gw",
            Backend::Alloc => "alloc",
        }
    }

    /// Does it carry packets itself, so that there is a device?
    pub fn encapsulates(&self) -> bool {
        matches!(self, Backend::Udp(_) | Backend::Vxlan(_))
    }

    fn vxlan(&self) -> Option<&VxlanBackend> {
        match self {
            Backend::Vxlan(vxlan) => Some(vxlan),
            _ => None,
        }
    }
}

/// flannel's udp backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpBackend {
    /// UDP port, not 0.
    pub port: u16,
}

/// VXLAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanBackend {
    /// Network identifier, 24 bits.
    pub vni: u32,
    /// UDP port, not 0.
    pub port: u16,
    /// Drop packets with a reserved bit set.
    pub strict: bool,
    /// Route to nodes on the same segment without encapsulation (flannel's `DirectRouting`).
    pub direct_routing: bool,
}

/// This node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name for people.
    pub name: String,
    /// Underlay interfaces by name or address: the first that is there is taken.
    pub iface: Vec<String>,
    /// Patterns of addresses and names of underlay interfaces, looked at if none of `iface` is there.
    pub iface_regex: Vec<String>,
    /// The underlay interface is the one that leads to this address.
    pub can_reach: Option<IpAddr>,
    /// Underlay IPv4 address.
    pub public_ip: Option<Ipv4Addr>,
    /// Underlay IPv6 address.
    pub public_ipv6: Option<Ipv6Addr>,
}

/// The TUN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// A name that Linux takes.
    pub name: String,
    /// The name is flannel's, and follows the backend where that is known only later: see [`flannel::device_name`].
    pub flannel_name: bool,
    /// Largest inner packet in bytes; `None`: from the underlay's MTU.
    pub mtu: Option<u16>,
}

/// How packets are carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datapath {
    /// How packets are read and sent.
    pub engine: Engine,
    /// Device queues, each with a thread.
    pub queues: u16,
    /// How long a forwarding thread looks for packets before it sleeps.
    pub busy_poll: Duration,
    /// By how much a forwarding thread's nice value changes while streams come in: zero or less.
    pub nice: i32,
    /// How long a forwarding thread leaves empty sockets alone while streams come in.
    pub rx_delay: Duration,
    /// Whether superpackets leave whole.
    pub injection: Injection,
    /// Whether large sends are read by the kernel where they lie.
    pub zerocopy: Zerocopy,
    /// The outer ECN field.
    pub ecn: Ecn,
    /// The inner DSCP.
    pub dscp: Dscp,
    /// Don't Fragment of the outer IPv4 header.
    pub df: Df,
    /// Accept inner packets from the peer's own public IP.
    pub accept_node_source: bool,
    /// ICMP errors per second that we send at most.
    pub icmp_rate: u32,
    /// Accept a zero outer UDP checksum over IPv6.
    pub udp6_zero_checksum: bool,
}

impl Datapath {
    /// The queues that there will be: the classic engine has one.
    pub fn queues(&self) -> u16 {
        match self.engine {
            Engine::Classic => 1,
            Engine::Batched => self.queues,
        }
    }
}

/// How packets are read from the device and sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// One packet per system call.
    Classic,
    /// Superpackets and trains of datagrams.
    Batched,
}

impl Engine {
    /// Every engine there is.
    pub const ALL: &[Engine] = &[Engine::Classic, Engine::Batched];

    /// Its name, as configuration and status have it.
    pub const fn name(self) -> &'static str {
        match self {
            Engine::Classic => "classic",
            Engine::Batched => "batched",
        }
    }
}

/// Whether superpackets leave whole where the kernel and the underlay device can cut them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injection {
    /// With VXLAN; not with the udp backend, whose peers may be flanneld on the same machine.
    Auto,
    /// With both.
    On,
    /// Never: they are split here.
    Off,
}

/// Whether large UDP sends are read by the kernel where they lie (`MSG_ZEROCOPY`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zerocopy {
    /// As long as the kernel does not say that it copied after all.
    Auto,
    /// Whatever the kernel says.
    On,
    /// Never.
    Off,
}

/// What the outer ECN field is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ecn {
    /// [`Ecn::Clear`] with the udp backend, whose peers may be flanneld; [`Ecn::Copy`] with VXLAN.
    Auto,
    /// The inner field (RFC 6040 normal mode).
    Copy,
    /// Not-ECT: for peers that do not carry a mark back inside (RFC 9601 §4).
    Clear,
}

/// What becomes of the inner DSCP (RFC 2983).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dscp {
    /// It is kept; the outer one is 0.
    Pipe,
    /// It is copied outside, and copied back at the other end.
    Uniform,
}

/// Don't Fragment of the outer IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Df {
    /// 0, as flannel's.
    Unset,
    /// 1.
    Set,
}

/// Where the leases stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// A JSON file.
    File {
        /// Its path from the root.
        path: PathBuf,
    },
    /// etcd, as flannel's nodes use it.
    Etcd(Box<EtcdStore>),
}

impl Store {
    /// The keys in the file, and whether they differ.
    fn diff(&self, new: &Store) -> Vec<(&'static str, bool)> {
        match (self, new) {
            (Store::File { path }, Store::File { path: other }) => {
                vec![("store.path", path != other)]
            }
            (Store::Etcd(old), Store::Etcd(new)) => vec![
                ("store.endpoints", old.endpoints != new.endpoints),
                ("store.prefix", old.prefix != new.prefix),
                ("store.ca-file", old.ca_file != new.ca_file),
                ("store.cert-file", old.cert_file != new.cert_file),
                ("store.key-file", old.key_file != new.key_file),
                ("store.username", old.username != new.username),
                ("store.password-file", old.password != new.password),
                ("store.renew-margin", old.renew_margin != new.renew_margin),
                ("store.lease-ttl", old.lease_ttl != new.lease_ttl),
                ("store.saved-table", old.saved_table != new.saved_table),
            ],
            _ => vec![("store.type", true)],
        }
    }
}

/// How to reach etcd, and what to write there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdStore {
    /// URLs of its members; at least one.
    pub endpoints: Vec<String>,
    /// What all keys begin with.
    pub prefix: String,
    /// The certificate authority.
    pub ca_file: Option<PathBuf>,
    /// Our certificate.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
    /// The user.
    pub username: Option<String>,
    /// Where the user's password stands.
    pub password: Option<Password>,
    /// How long before its end our lease is renewed.
    pub renew_margin: Duration,
    /// How long our lease lives without renewal.
    pub lease_ttl: Duration,
    /// Where the last known leases are kept.
    pub saved_table: PathBuf,
}

/// A password, or where it stands. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// The first line of a file, read when it is needed.
    File(PathBuf),
    /// The password itself.
    Text(String),
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Password::File(path) => f.debug_tuple("File").field(path).finish(),
            Password::Text(_) => f.write_str("Text(..)"),
        }
    }
}

/// What is added to the host's packet filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firewall {
    /// Masquerade what leaves the overlay.
    pub ip_masq: bool,
    /// Accept what is forwarded from and to the overlay.
    pub forward_rules: bool,
    /// The rules are looked at again at least this often.
    pub resync: Duration,
}

/// The control socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// Its path from the root.
    pub socket: PathBuf,
    /// Where metrics and health are served over HTTP.
    pub metrics: Option<SocketAddr>,
}

/// Logging.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A level, or filters as `tracing_subscriber::EnvFilter` reads them.
    pub level: String,
    /// How a line is written.
    pub format: LogFormat,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

impl Config {
    /// Reads and checks the configuration.
    ///
    /// `path` is the file that `--config` names and must exist; without one, [`DEFAULT_PATH`] is
    /// read if it is there. `env` is `std::env::vars_os()`.
    ///
    /// # Errors
    /// All that is wrong, each with its place and what to do.
    pub fn load(
        path: Option<&Path>,
        overrides: &Overrides,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Config, ConfigError> {
        resolve::load(path, Path::new(DEFAULT_PATH), overrides, env)
    }

    /// Where the leases stand, by the same flags, variables and file, for a command that needs no more.
    ///
    /// # Errors
    /// What is wrong with it, or that nothing says where.
    pub fn load_store(
        path: Option<&Path>,
        overrides: &Overrides,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Store, ConfigError> {
        resolve::load_store(path, Path::new(DEFAULT_PATH), overrides, env)
    }

    /// The options (`section.key`) in which a new configuration differs and that a running daemon
    /// can not take up: it must be restarted for them.
    ///
    /// It can take up the static routes, the log level, and what is read per packet: `ecn`, `dscp`,
    /// `accept-node-source`, `icmp-rate`.
    pub fn diff_needs_restart(&self, new: &Config) -> Vec<&'static str> {
        let both = self.backend.vxlan().zip(new.backend.vxlan());
        let differs = [
            ("network.network", self.network.v4 != new.network.v4),
            ("network.ipv6-network", self.network.v6 != new.network.v6),
            ("network.subnet-len", self.subnet_len != new.subnet_len),
            (
                "network.ipv6-subnet-len",
                self.ipv6_subnet_len != new.ipv6_subnet_len,
            ),
            ("backend.type", self.backend.name() != new.backend.name()),
            (
                "backend.vni",
                both.is_some_and(|(old, new)| old.vni != new.vni),
            ),
            ("backend.port", self.backend.port() != new.backend.port()),
            (
                "backend.strict",
                both.is_some_and(|(old, new)| old.strict != new.strict),
            ),
            (
                "backend.direct-routing",
                both.is_some_and(|(old, new)| old.direct_routing != new.direct_routing),
            ),
            ("node.name", self.node.name != new.node.name),
            ("node.iface", self.node.iface != new.node.iface),
            (
                "node.iface-regex",
                self.node.iface_regex != new.node.iface_regex,
            ),
            (
                "node.iface-can-reach",
                self.node.can_reach != new.node.can_reach,
            ),
            ("node.public-ip", self.node.public_ip != new.node.public_ip),
            (
                "node.public-ipv6",
                self.node.public_ipv6 != new.node.public_ipv6,
            ),
            ("device.name", self.device.name != new.device.name),
            ("device.mtu", self.device.mtu != new.device.mtu),
            (
                "datapath.engine",
                self.datapath.engine != new.datapath.engine,
            ),
            (
                "datapath.injection",
                self.datapath.injection != new.datapath.injection,
            ),
            (
                "datapath.queues",
                self.datapath.queues != new.datapath.queues,
            ),
            (
                "datapath.busy-poll",
                self.datapath.busy_poll != new.datapath.busy_poll,
            ),
            ("datapath.nice", self.datapath.nice != new.datapath.nice),
            (
                "datapath.rx-usecs",
                self.datapath.rx_delay != new.datapath.rx_delay,
            ),
            (
                "datapath.zerocopy",
                self.datapath.zerocopy != new.datapath.zerocopy,
            ),
            ("datapath.df", self.datapath.df != new.datapath.df),
            (
                "datapath.udp6-zero-checksum",
                self.datapath.udp6_zero_checksum != new.datapath.udp6_zero_checksum,
            ),
            ("store.subnet-file", self.subnet_file != new.subnet_file),
            (
                "firewall.ip-masq",
                self.firewall.ip_masq != new.firewall.ip_masq,
            ),
            (
                "firewall.forward-rules",
                self.firewall.forward_rules != new.firewall.forward_rules,
            ),
            (
                "firewall.resync",
                self.firewall.resync != new.firewall.resync,
            ),
            ("control.socket", self.control.socket != new.control.socket),
            (
                "control.metrics",
                self.control.metrics != new.control.metrics,
            ),
            ("log.format", self.log.format != new.log.format),
        ];
        let lengths = |config: &Config| (config.network, config.subnet_len, config.ipv6_subnet_len);
        // A lease that was taken stays where it is; and a file hands out none.
        let pool = (
            "network.subnet-min to subnet-max",
            matches!(self.store, Store::Etcd(_))
                && lengths(self) == lengths(new)
                && self.pool != new.pool,
        );
        let store = self.store.diff(&new.store);
        let differs = differs.into_iter().chain([pool]).chain(store);
        differs
            .filter(|(_, differs)| *differs)
            .map(|(name, _)| name)
            .collect()
    }
}
