//! From the settings as written to a [`Config`]. Goes on after a mistake, so that a person hears of
//! all of them at once.

mod network;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{ConfigError, Origin, Setting};
use super::options::{self, OPTIONS};
use super::overrides::Overrides;
use super::raw::{RawConfig, absolute, not_in_this_version, resolve_path};
use super::{
    Backend, Config, Control, DEFAULT_SOCKET, Datapath, Device, Df, Dscp, Ecn, Engine, EtcdStore,
    Firewall, Injection, Log, LogFormat, Node, Password, Store, UdpBackend, VxlanBackend, Zerocopy,
    flannel, values,
};

/// Where the last known leases are kept, so that a host that starts while the store is away has them.
const DEFAULT_SAVED_TABLE: &str = "/var/lib/overlayd/leases.saved";
/// A configuration longer than this is some other file.
const LONGEST_FILE: u64 = 1 << 20;

pub(crate) fn load(
    path: Option<&Path>,
    default_path: &Path,
    overrides: &Overrides,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Config, ConfigError> {
    let file = path.unwrap_or(default_path);
    let (raw, missing) = gather(path, default_path, overrides, env)?;
    resolve(raw, file, missing)
}

/// All that was written, and whether the file is missing that need not be there.
pub(crate) fn gather(
    path: Option<&Path>,
    default_path: &Path,
    overrides: &Overrides,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<(RawConfig, bool), ConfigError> {
    let mut raw = RawConfig::default();
    raw.store_conf.clone_from(&overrides.store_conf);
    for setting in overrides.settings() {
        raw.push(setting);
    }
    raw.read_env(env);
    let file = path.unwrap_or(default_path);
    let missing = match read(file) {
        Ok(bytes) => {
            raw.read_file(file, &text(file, &bytes)?)?;
            false
        }
        Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => {
            let cure = match error.kind() {
                io::ErrorKind::NotFound => "; write one from `overlayd config example`",
                io::ErrorKind::PermissionDenied => "; run as root, or give yourself access",
                _ => "",
            };
            return Err(ConfigError::one(format!(
                "{}: {error}{cure}",
                file.display()
            )));
        }
    };
    for setting in overrides.defaults() {
        raw.push(setting);
    }
    Ok((raw, missing))
}

/// Where the leases stand, for a command that asks for no more: networks and backends are none of its concern.
///
/// What tells how to get at etcd, as a flag or a variable, means etcd: beside `overlayd flannel` there is nothing else.
pub(crate) fn load_store(
    path: Option<&Path>,
    default_path: &Path,
    overrides: &Overrides,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Store, ConfigError> {
    let file = path.unwrap_or(default_path);
    let (mut raw, missing) = gather(path, default_path, overrides, env)?;
    if raw.get("store.type").is_none() {
        let mut etcd = OPTIONS.iter().filter(|opt| opt.is_place_in_etcd());
        if etcd.any(|opt| raw.given(&opt.name())) {
            if let Some(opt) = options::named("store.type") {
                raw.push(Setting::new(opt, "etcd", Origin::Flag));
            }
        } else if missing && raw.get("store.path").is_none() {
            raw.problems.push(format!(
                "{} does not exist, and neither a flag nor a variable says where the leases stand: give --etcd-endpoints (beside overlayd flannel: as flanneld's -etcd-endpoints), or --config",
                file.display()
            ));
        }
    }
    let mut r = Resolver { raw };
    let store = r.store(file);
    let RawConfig {
        warnings, problems, ..
    } = r.raw;
    if !problems.is_empty() {
        return Err(ConfigError { problems, warnings });
    }
    Ok(store)
}

/// Reads a file that people write by hand.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(LONGEST_FILE + 1)
        .read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > LONGEST_FILE) {
        return Err(io::Error::other(format!(
            "longer than {LONGEST_FILE} bytes; is this the right file?"
        )));
    }
    Ok(bytes)
}

pub(crate) fn text(path: &Path, bytes: &[u8]) -> Result<String, ConfigError> {
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|error| {
            let line = bytes[..error.valid_up_to()]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count()
                + 1;
            ConfigError::one(format!(
                "{}:{line}: not UTF-8 text; save it as UTF-8",
                path.display()
            ))
        })
}

/// `file` gives default paths their directory; `missing` says that it was not there.
pub(crate) fn resolve(raw: RawConfig, file: &Path, missing: bool) -> Result<Config, ConfigError> {
    let mut r = Resolver { raw };
    let implies_udp = r.net_conf();
    let network = r.network(file, missing);
    let (subnet_len, ipv6_subnet_len) = r.subnet_lens(network);
    let pool = r.pool(network, subnet_len, ipv6_subnet_len);
    let backend = r.backend(implies_udp);
    let node = r.node();
    let device = r.device(network, &node, &backend);
    let datapath = r.datapath(&backend);
    let store = r.store(file);
    let subnet_file = r.maybe_path("store.subnet-file");
    let firewall = Firewall {
        ip_masq: r.switch("firewall.ip-masq"),
        forward_rules: r.switch("firewall.forward-rules"),
        resync: r.firewall_resync(),
    };
    let control = Control {
        socket: r.path("control.socket", || DEFAULT_SOCKET.into()),
        metrics: r.read("control.metrics", values::listen),
    };
    let routes = r.routes();
    let log = Log {
        level: r
            .read("log.level", values::log_level)
            .unwrap_or_else(|| "info".to_owned()),
        format: r
            .word(
                "log.format",
                &[("text", LogFormat::Text), ("json", LogFormat::Json)],
            )
            .unwrap_or(LogFormat::Text),
    };
    r.public_ips_outside(network, &node);

    let RawConfig {
        warnings, problems, ..
    } = r.raw;
    if !problems.is_empty() {
        return Err(ConfigError { problems, warnings });
    }
    Ok(Config {
        network,
        subnet_len,
        ipv6_subnet_len,
        pool,
        backend,
        node,
        device,
        datapath,
        store,
        subnet_file,
        firewall,
        control,
        routes,
        log,
        warnings,
    })
}

struct Resolver {
    raw: RawConfig,
}

impl Resolver {
    fn problem(&mut self, what: impl Into<String>) {
        self.raw.problems.push(what.into());
    }

    /// The value of an option, if it is set and right; otherwise the mistake is noted.
    fn read<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let setting = self.raw.get(name)?;
        match parse(&setting.text) {
            Ok(value) => Some(value),
            Err(what) => {
                let what = setting.problem(what);
                self.problem(what);
                None
            }
        }
    }

    fn word<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> Option<T> {
        self.read(name, |text| values::word(text, words))
    }

    fn switch(&mut self, name: &str) -> bool {
        self.read(name, values::boolean).unwrap_or(false)
    }

    fn path(&mut self, name: &str, default: impl FnOnce() -> PathBuf) -> PathBuf {
        match self.raw.get(name) {
            None => absolute(&default()),
            Some(setting) if setting.text.is_empty() || setting.text.contains('\0') => {
                let what = setting.problem("not a path; give a file's name");
                self.problem(what);
                PathBuf::new()
            }
            Some(setting) => resolve_path(setting),
        }
    }

    fn maybe_path(&mut self, name: &str) -> Option<PathBuf> {
        self.raw.get(name)?;
        Some(self.path(name, PathBuf::new))
    }

    fn list<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        self.read(name, |text| values::list(text, parse))
            .unwrap_or_default()
    }

    fn on_etcd(&self) -> bool {
        let store = self.raw.get("store.type");
        store.is_some_and(|setting| setting.text == "etcd")
    }

    fn store(&mut self, file: &Path) -> Store {
        let etcd = self.word("store.type", &[("file", false), ("etcd", true)]);
        if etcd != Some(true) {
            let beside = || {
                file.parent()
                    .map_or_else(PathBuf::new, Path::to_owned)
                    .join("leases.json")
            };
            return Store::File {
                path: self.path("store.path", beside),
            };
        }
        let endpoints = self.read("store.endpoints", |text| {
            // flannel parts them by commas.
            values::list(&text.replace(',', "\n"), |one| values::endpoint(one.trim()))
        });
        let margin = self.read("store.renew-margin", |text| {
            values::number(text, 1..=1439u64, "minutes")
        });
        let ttl = self.read("store.lease-ttl", |text| {
            values::number(text, 5..=2_592_000u64, "seconds")
        });
        let password = match self.maybe_path("store.password-file") {
            Some(path) => Some(Password::File(path)),
            None => self.text("store.password").map(Password::Text),
        };
        let prefix = self.read("store.prefix", values::key_prefix);
        Store::Etcd(Box::new(EtcdStore {
            endpoints: endpoints.unwrap_or_else(|| vec!["http://127.0.0.1:2379".to_owned()]),
            prefix: prefix.unwrap_or_else(|| "/coreos.com/network".to_owned()),
            ca_file: self.maybe_path("store.ca-file"),
            cert_file: self.maybe_path("store.cert-file"),
            key_file: self.maybe_path("store.key-file"),
            username: self.text("store.username"),
            password,
            renew_margin: Duration::from_secs(60 * margin.unwrap_or(60)),
            lease_ttl: Duration::from_secs(ttl.unwrap_or(86_400)),
            saved_table: self.path("store.saved-table", || DEFAULT_SAVED_TABLE.into()),
        }))
    }

    fn text(&self, name: &str) -> Option<String> {
        self.raw.get(name).map(|setting| setting.text.clone())
    }

    fn firewall_resync(&mut self) -> Duration {
        let seconds = self.read("firewall.resync", |text| {
            values::number(text, 1..=86_400u64, "seconds")
        });
        Duration::from_secs(seconds.unwrap_or(5))
    }

    fn backend(&mut self, implies_udp: bool) -> Backend {
        let _: Option<()> = self.read("backend.mode", |text| match text {
            "tun" => Ok(()),
            "tap" => Err(not_in_this_version("use \"tun\"")),
            _ => Err("unknown; use \"tun\"".to_owned()),
        });
        let kind = self.read("backend.type", backend_kind);
        let kind = kind.unwrap_or(if implies_udp { Kind::Udp } else { Kind::Vxlan });
        let port = self.read("backend.port", values::port);
        let vni = self.read("backend.vni", |text| {
            values::number(text, 0..=values::MAX_VNI, "a VNI")
        });
        let strict = self.switch("backend.strict");
        let direct_routing = self.switch("backend.direct-routing");
        let backend = match kind {
            Kind::Vxlan => {
                return Backend::Vxlan(VxlanBackend {
                    vni: vni.unwrap_or(1),
                    port: port.unwrap_or(8472),
                    strict,
                    direct_routing,
                });
            }
            Kind::Udp => Backend::Udp(UdpBackend {
                port: port.unwrap_or(8285),
            }),
            Kind::HostGw => Backend::HostGw,
            Kind::Alloc => Backend::Alloc,
        };
        let of_vxlan = ["backend.vni", "backend.strict", "backend.direct-routing"];
        let of_tunnels = [
            "backend.port",
            "device.name",
            "device.mtu",
            "datapath.engine",
            "datapath.queues",
            "datapath.busy-poll",
            "datapath.nice",
            "datapath.rx-usecs",
            "datapath.injection",
        ];
        let with = format!("with the {} backend", backend.name());
        let of_tunnels = of_tunnels.iter().filter(|_| !backend.encapsulates());
        for name in of_vxlan.iter().chain(of_tunnels) {
            self.without_effect(name, &with, |_| true);
        }
        self.without_effect("datapath.zerocopy", &with, |text| text == "on");
        backend
    }

    /// Warns that `name` has no effect `with` what else was chosen, if it was set to something that asks for one.
    fn without_effect(&mut self, name: &str, with: &str, asks: impl Fn(&str) -> bool) {
        if let Some(setting) = self.raw.get(name).filter(|setting| asks(&setting.text)) {
            let what = format!("has no effect {with}");
            self.raw.warnings.push(setting.problem(what));
        }
    }

    fn node(&mut self) -> Node {
        let name = match self.raw.get("node.name") {
            Some(_) => self
                .read("node.name", values::node_name)
                .unwrap_or_default(),
            None => hostname(),
        };
        Node {
            name,
            iface: self.list("node.iface", values::underlay_interface),
            iface_regex: self.list("node.iface-regex", values::pattern),
            can_reach: self.read("node.iface-can-reach", |text| {
                text.parse().map_err(|_| {
                    "not an IP address; give one that peers are reached like".to_owned()
                })
            }),
            public_ip: self.read("node.public-ip", values::public_v4),
            public_ipv6: self.read("node.public-ipv6", values::public_v6),
        }
    }

    fn device(&mut self, network: fdb::Network, node: &Node, backend: &Backend) -> Device {
        let flannel_name = self.switch("device.flannel-name");
        let name = self.read("device.name", values::device);
        let flannel_name = flannel_name && name.is_none();
        let name = name.unwrap_or_else(|| match flannel_name {
            true => flannel::device_name(backend),
            false => "overlay0".to_owned(),
        });
        if node.iface.contains(&name) {
            let setting = self
                .raw
                .get("device.name")
                .or_else(|| self.raw.get("node.iface"));
            if let Some(what) = setting.map(|setting| setting.problem("the device and the underlay interface are not the same thing; choose another name for the device")) {
                self.problem(what);
            }
        }
        Device {
            name,
            flannel_name,
            mtu: self.read("device.mtu", |text| values::mtu(text, network.v6.is_some())),
        }
    }

    fn datapath(&mut self, backend: &Backend) -> Datapath {
        let datapath = Datapath {
            engine: self
                .read("datapath.engine", engine)
                .unwrap_or(Engine::Batched),
            queues: self.read("datapath.queues", queues).unwrap_or(1),
            busy_poll: self
                .read("datapath.busy-poll", |text| {
                    values::number(text, 0..=1_000_000, "a number of microseconds")
                })
                .map_or(Duration::ZERO, Duration::from_micros),
            nice: self
                .read("datapath.nice", |text| {
                    values::number(text, -20..=0, "a change of the nice value")
                })
                .unwrap_or(NICE),
            rx_delay: self
                .read("datapath.rx-usecs", |text| {
                    values::number(text, 0..=1000, "a number of microseconds")
                })
                .map_or(RX_DELAY, Duration::from_micros),
            injection: self
                .word(
                    "datapath.injection",
                    &[
                        ("auto", Injection::Auto),
                        ("on", Injection::On),
                        ("off", Injection::Off),
                    ],
                )
                .unwrap_or(Injection::Auto),
            zerocopy: self
                .word(
                    "datapath.zerocopy",
                    &[
                        ("auto", Zerocopy::Auto),
                        ("on", Zerocopy::On),
                        ("off", Zerocopy::Off),
                    ],
                )
                .unwrap_or(Zerocopy::Auto),
            ecn: self
                .word(
                    "datapath.ecn",
                    &[
                        ("auto", Ecn::Auto),
                        ("copy", Ecn::Copy),
                        ("clear", Ecn::Clear),
                    ],
                )
                .unwrap_or(Ecn::Auto),
            dscp: self
                .word(
                    "datapath.dscp",
                    &[("pipe", Dscp::Pipe), ("uniform", Dscp::Uniform)],
                )
                .unwrap_or(Dscp::Pipe),
            df: self.read("datapath.df", df).unwrap_or(Df::Unset),
            accept_node_source: self.switch("datapath.accept-node-source"),
            icmp_rate: self
                .read("datapath.icmp-rate", |text| {
                    values::number(text, 0..=1_000_000, "a rate")
                })
                .unwrap_or(1000),
            udp6_zero_checksum: self.switch("datapath.udp6-zero-checksum"),
        };
        // Without a tunnel there is no engine, and that has been said.
        if !backend.encapsulates() {
            return datapath;
        }
        if datapath.engine == Engine::Classic {
            let with = "with the classic engine";
            self.without_effect("datapath.queues", with, |text| text != "1");
            for name in ["datapath.busy-poll", "datapath.nice", "datapath.rx-usecs"] {
                self.without_effect(name, with, |text| text != "0");
            }
            self.without_effect("datapath.injection", with, |text| text == "on");
            if matches!(backend, Backend::Vxlan(_)) {
                self.without_effect("datapath.zerocopy", with, |text| text == "on");
            }
        } else if !datapath.busy_poll.is_zero() {
            let with = "beside datapath.busy-poll, which looks for packets before it sleeps";
            self.without_effect("datapath.rx-usecs", with, |text| text != "0");
        }
        datapath
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Udp,
    Vxlan,
    HostGw,
    Alloc,
}

fn backend_kind(text: &str) -> Result<Kind, String> {
    match text {
        "vxlan" => Ok(Kind::Vxlan),
        "udp" => Ok(Kind::Udp),
        "host-gw" => Ok(Kind::HostGw),
        "alloc" => Ok(Kind::Alloc),
        "ipip" | "ipsec" => Err(not_in_this_version("use vxlan")),
        _ => Err(format!(
            "backend `{}` is not built into overlayd; use vxlan, udp, host-gw or alloc",
            text.escape_debug()
        )),
    }
}

fn engine(text: &str) -> Result<Engine, String> {
    match text {
        "auto" | "batched" => Ok(Engine::Batched),
        "classic" => Ok(Engine::Classic),
        "uring" => Err(
            "not built in: io_uring was tried and was not faster than \"batched\"; use \"batched\", \"classic\" or \"auto\""
                .to_owned(),
        ),
        _ => Err("unknown; use \"auto\", \"batched\" or \"classic\"".to_owned()),
    }
}

/// Device queues, at most.
const MAX_QUEUES: u16 = 16;

/// By how much a forwarding thread's nice value changes while streams come in, where it is not set: more is no faster.
const NICE: i32 = -5;
/// How long a forwarding thread leaves empty sockets alone while streams come in, where it is not set.
const RX_DELAY: Duration = Duration::from_micros(25);

fn queues(text: &str) -> Result<u16, String> {
    match text {
        "auto" => {
            let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
            Ok(u16::try_from(processors).map_or(MAX_QUEUES, |count| count.min(MAX_QUEUES)))
        }
        _ => match text.parse() {
            Ok(queues) if (1..=MAX_QUEUES).contains(&queues) => Ok(queues),
            _ => Err(format!(
                "not a number of queues; use 1 to {MAX_QUEUES}, or \"auto\""
            )),
        },
    }
}

fn df(text: &str) -> Result<Df, String> {
    match text {
        "unset" => Ok(Df::Unset),
        "set" => Ok(Df::Set),
        "inherit" => Err(not_in_this_version("use \"unset\" or \"set\"")),
        _ => Err("unknown; use \"unset\" or \"set\"".to_owned()),
    }
}

fn hostname() -> String {
    nix::unistd::gethostname().map_or_else(
        |_| "node".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}
