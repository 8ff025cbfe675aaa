//! `overlayd config check` and `overlayd config example`.

use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::options::{OPTIONS, Opt, SECTIONS};
use super::{Backend, Config, ConfigError, EtcdStore, Overrides, Store};
use crate::lease::file::FileStore;
use crate::lease::{Lease, LeaseError, etcd, sync};

/// Version of the JSON form of a [`Report`].
const JSON_VERSION: u32 = 1;
/// etcd may take so long: one member that is silent, and one that answers.
const PATIENCE: Duration = Duration::from_secs(6);

/// What `config check` found in a valid configuration.
#[derive(Debug)]
pub struct Report {
    /// The configuration.
    pub config: Config,
    /// The leases it names.
    pub leases: Result<Verdict, LeaseError>,
    /// Where it names etcd: what came of asking it.
    pub etcd: Option<Etcd>,
}

/// Keys of etcd, each with its lease or why its value cannot be read.
type Keyed = Vec<(String, Result<Lease, String>)>;

/// What came of asking etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Etcd {
    /// It holds the overlay's configuration, which has been checked with the rest.
    Configured,
    /// It answers, and holds none yet.
    Blank,
    /// It could not be asked, and why.
    Silent(String),
}

/// What the daemon would make of the leases and routes.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Leases in the file.
    pub total: usize,
    /// Leases that count.
    pub accepted: usize,
    /// This node's own lease, where the configuration says which public IP is ours.
    pub own: Option<usize>,
    /// Why this node has no lease, where the configuration says which public IP is ours.
    pub no_own: Option<String>,
    /// Leases of another backend: their index from 0, and its name.
    pub skipped: Vec<(usize, String)>,
    /// Refused leases: their index from 0, and why.
    pub refused_leases: Vec<(usize, String)>,
    /// Refused static routes: their index from 0, and why.
    pub refused_routes: Vec<(usize, String)>,
    /// Keys of etcd whose value cannot be read, and why.
    pub unreadable: Vec<(String, String)>,
    /// The keys of etcd that the leases stand under.
    keys: Vec<String>,
}

impl Verdict {
    fn of(config: &Config, leases: &[Lease]) -> Self {
        let backend = config.backend.name();
        let node = fdb::Endpoint {
            v4: config.node.public_ip,
            v6: config.node.public_ipv6,
        };
        let mut verdict = Verdict {
            total: leases.len(),
            ..Verdict::default()
        };
        // Claims lose their place in the file where leases of other backends are left out.
        let mut places = Vec::new();
        let mut claims = Vec::new();
        for (index, lease) in leases.iter().enumerate() {
            if lease.is_backend(backend, backend) {
                let own = lease.is_of(&node);
                if own {
                    verdict.own = verdict.own.or(Some(index));
                }
                places.push(index);
                claims.push(lease.claim(own));
            } else {
                verdict
                    .skipped
                    .push((index, lease.backend_type.clone().unwrap_or_default()));
            }
        }
        let ours: Vec<_> = node.ips().collect();
        // With etcd a node takes one.
        if !ours.is_empty() && matches!(config.store, Store::File { .. }) {
            verdict.no_own = sync::find_own(leases, &ours)
                .err()
                .map(|error| error.to_string());
        }
        let rib = fdb::Rib::build(&config.network, &claims, &config.routes);
        verdict.accepted = rib.accepted().len();
        for (source, refusal) in rib.refused() {
            match source {
                fdb::Source::Lease(claim) => verdict
                    .refused_leases
                    .push((places[*claim], refusal.to_string())),
                fdb::Source::Route(route) => {
                    verdict.refused_routes.push((*route, refusal.to_string()))
                }
            }
        }
        verdict
    }

    fn of_etcd(config: &Config, listed: Keyed) -> Self {
        let (mut keys, mut leases, mut unreadable) = (Vec::new(), Vec::new(), Vec::new());
        for (key, lease) in listed {
            match lease {
                Ok(lease) => {
                    keys.push(key);
                    leases.push(lease);
                }
                Err(why) => unreadable.push((key, why)),
            }
        }
        let verdict = Verdict::of(config, &leases);
        Verdict {
            total: leases.len() + unreadable.len(),
            unreadable,
            keys,
            ..verdict
        }
    }

    /// A lease, as people find it again.
    fn name(&self, index: usize) -> String {
        let key = self.keys.get(index);
        key.map_or_else(|| format!("lease {index}"), Clone::clone)
    }
}

/// Checks a configuration and the leases it names, as the daemon would read them.
///
/// # Errors
/// As [`Config::load`]. What is wrong with the leases stands in the report.
pub fn run_check(
    path: Option<&Path>,
    overrides: &Overrides,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Report, ConfigError> {
    let env: Vec<_> = env.into_iter().collect();
    let config = Config::load(path, overrides, env.iter().cloned())?;
    let store = match &config.store {
        Store::File { path } => {
            let leases = FileStore::new(path).load();
            let leases = leases.map(|leases| Verdict::of(&config, &leases));
            return Ok(Report {
                config,
                leases,
                etcd: None,
            });
        }
        Store::Etcd(store) => store,
    };
    let (config, leases, etcd) = match ask(store) {
        Ok((Some(conf), listed)) => {
            let overrides = overrides.clone().with_store_conf(Some(&conf));
            let config = Config::load(path, &overrides, env)?;
            let verdict = Verdict::of_etcd(&config, listed);
            (config, verdict, Etcd::Configured)
        }
        // Without a network there is nothing to judge leases by.
        Ok((None, _)) => (config, Verdict::default(), Etcd::Blank),
        Err(why) => (config, Verdict::default(), Etcd::Silent(why)),
    };
    Ok(Report {
        config,
        leases: Ok(leases),
        etcd: Some(etcd),
    })
}

/// The overlay's configuration and the leases in etcd, if it answers soon.
fn ask(store: &EtcdStore) -> Result<(Option<Vec<u8>>, Keyed), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let asked = async {
            let mut store = etcd::Store::open(store).await?;
            Ok((store.net_conf().await?, store.leases().await?))
        };
        let late = |_| Err(format!("no answer within {} s", PATIENCE.as_secs()));
        tokio::time::timeout(PATIENCE, asked)
            .await
            .unwrap_or_else(late)
    })
}

impl Report {
    /// Whether the daemon would start and leave nothing out.
    pub fn is_good(&self) -> bool {
        let complete = |verdict: &Verdict| {
            verdict.refused_leases.is_empty()
                && verdict.refused_routes.is_empty()
                && verdict.no_own.is_none()
                && verdict.unreadable.is_empty()
        };
        self.leases.as_ref().is_ok_and(complete)
    }

    /// The report for programs. Fields are only ever added within one version.
    pub fn to_json(&self) -> Value {
        let config = &self.config;
        let path = store_name(config);
        let list = |items: &[(usize, String)], what: &str| -> Vec<Value> {
            items
                .iter()
                .map(|(index, text)| json!({"index": index, what: text}))
                .collect()
        };
        let leases = match (&self.leases, &self.etcd) {
            (_, Some(Etcd::Silent(why))) => json!({"path": path, "error": why}),
            (Ok(verdict), _) => json!({
                "path": path,
                "total": verdict.total,
                "accepted": verdict.accepted,
                "own": verdict.own,
                "no_own": verdict.no_own,
                "skipped": list(&verdict.skipped, "backend"),
                "refused": list(&verdict.refused_leases, "reason"),
                "unreadable": verdict.unreadable.iter().map(|(key, why)| json!({"key": key, "reason": why})).collect::<Vec<_>>(),
            }),
            (Err(error), _) => json!({"path": path, "error": error.to_string()}),
        };
        let routes = self.leases.as_ref().map_or(Vec::new(), |verdict| {
            list(&verdict.refused_routes, "reason")
        });
        json!({
            "version": JSON_VERSION,
            "ok": self.is_good(),
            "problems": [],
            "warnings": config.warnings,
            "node": config.node.name,
            "network": config.network.v4.map(|net| net.to_string()),
            "ipv6_network": config.network.v6.map(|net| net.to_string()),
            "backend": {
                "type": config.backend.name(),
                "port": config.backend.port(),
                "vni": match &config.backend { Backend::Vxlan(vxlan) => Some(vxlan.vni), _ => None },
            },
            "device": {"name": config.device.name, "mtu": config.device.mtu},
            "datapath": {"engine": config.datapath.engine, "queues": config.datapath.queues()},
            "leases": leases,
            "etcd": self.etcd.as_ref().map(|etcd| match etcd {
                Etcd::Configured => json!({"asked": true, "configured": true}),
                Etcd::Blank => json!({"asked": true, "configured": false}),
                Etcd::Silent(why) => json!({"asked": false, "reason": why}),
            }),
            "routes": {"total": config.routes.len(), "refused": routes},
        })
    }
}

/// Where the leases stand, in words.
fn store_name(config: &Config) -> String {
    match &config.store {
        Store::File { path } => path.display().to_string(),
        Store::Etcd(etcd) => format!("etcd {} {}", etcd.endpoints.join(","), etcd.prefix),
    }
}

impl ConfigError {
    /// The same shape as [`Report::to_json`], with `ok` false and the problems.
    pub fn to_json(&self) -> Value {
        json!({"version": JSON_VERSION, "ok": false, "problems": self.problems(), "warnings": self.warnings()})
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.config;
        let networks = [
            config.network.v4.map(|net| net.to_string()),
            config.network.v6.map(|net| net.to_string()),
        ];
        let networks: Vec<_> = networks.into_iter().flatten().collect();
        writeln!(f, "node      {}", config.node.name)?;
        let unknown = match (&config.store, &self.etcd) {
            (Store::Etcd(store), Some(Etcd::Blank | Etcd::Silent(_))) if networks.is_empty() => {
                Some(&store.prefix)
            }
            _ => None,
        };
        match unknown {
            None => writeln!(f, "network   {}", networks.join(", "))?,
            Some(prefix) => writeln!(f, "network   as etcd's {prefix}/config will say")?,
        }
        match &config.backend {
            _ if unknown.is_some() => writeln!(f, "backend   the same")?,
            Backend::Udp(udp) => writeln!(f, "backend   udp, port {}", udp.port)?,
            Backend::Vxlan(vxlan) => {
                writeln!(f, "backend   vxlan, VNI {}, port {}", vxlan.vni, vxlan.port)?;
                if vxlan.direct_routing {
                    writeln!(f, "          direct routing to nodes on the same segment")?;
                }
            }
            Backend::HostGw => writeln!(f, "backend   host-gw: routes through the nodes")?,
            Backend::Alloc => writeln!(f, "backend   alloc: the lease is all")?,
        }
        match config.device.mtu {
            _ if unknown.is_some() => writeln!(f, "device    the same")?,
            _ if !config.backend.encapsulates() => writeln!(f, "device    none")?,
            Some(mtu) => writeln!(f, "device    {}, MTU {mtu}", config.device.name)?,
            None => writeln!(f, "device    {}, MTU from the underlay", config.device.name)?,
        }
        // Until etcd says that there is a tunnel, nobody knows whether there are engines.
        if unknown.is_none() && config.backend.encapsulates() {
            write!(f, "engine    {}", config.datapath.engine.name())?;
            match config.datapath.queues() {
                1 => writeln!(f)?,
                queues => writeln!(f, ", {queues} queues")?,
            }
        }
        let path = store_name(config);
        match (&self.leases, &self.etcd) {
            (_, Some(Etcd::Silent(why))) => writeln!(f, "leases    etcd was not asked: {why}")?,
            (_, Some(Etcd::Blank)) => writeln!(
                f,
                "leases    {path} has no configuration yet: the daemon waits until somebody writes it"
            )?,
            (Ok(verdict), _) => {
                writeln!(
                    f,
                    "leases    {} of {} accepted, {}",
                    verdict.accepted, verdict.total, path
                )?;
                let place = config.node.iface.first().map(String::as_str);
                let place = place.unwrap_or("the default route's interface");
                match (&verdict.no_own, verdict.own) {
                    (Some(why), _) => writeln!(f, "own lease {why}")?,
                    (None, Some(index)) => writeln!(f, "own lease {}", verdict.name(index))?,
                    (None, None) if self.etcd.is_some() => {
                        writeln!(
                            f,
                            "own lease the node takes one at start, or its last one again"
                        )?;
                    }
                    (None, None) => writeln!(
                        f,
                        "own lease the one with an address of {place}: looked for at start only"
                    )?,
                }
                for (index, backend) in &verdict.skipped {
                    writeln!(
                        f,
                        "          {} skipped: it is for backend {}",
                        verdict.name(*index),
                        super::Quoted(backend)
                    )?;
                }
                for (index, why) in &verdict.refused_leases {
                    writeln!(f, "          {} refused: {why}", verdict.name(*index))?;
                }
                for (key, why) in &verdict.unreadable {
                    writeln!(f, "          {key} unreadable: {why}")?;
                }
                for (index, why) in &verdict.refused_routes {
                    writeln!(f, "          route {index} refused: {why}")?;
                }
            }
            (Err(error), _) => writeln!(f, "leases    {error}")?,
        }
        for warning in &config.warnings {
            writeln!(f, "warning   {warning}")?;
        }
        f.write_str(match &self.etcd {
            _ if !self.is_good() => "not good",
            Some(Etcd::Silent(_)) => "good, as far as can be told without etcd",
            _ => "good",
        })
    }
}

/// A configuration file with every option, each with its meaning, its default and its other names.
/// It is valid as it stands: what may be left out is commented out.
pub fn example() -> String {
    let mut out = String::from(
        "# overlayd's configuration. Commented lines show an example, or the default.\n\
         # Flags override OVERLAYD_* variables, those FLANNELD_* ones, those this file.\n\
         # A variable is OVERLAYD_ and the flag's name, or OVERLAYD_, section and key: --port is\n\
         # OVERLAYD_PORT, and OVERLAYD_BACKEND_PORT too.\n",
    );
    for (section, heading) in SECTIONS {
        // Writing to a String can not fail.
        let _ = write!(out, "\n# {heading}\n[{section}]\n");
        let inside = |opt: &&Opt| opt.section == *section;
        for (index, opt) in OPTIONS.iter().filter(inside).enumerate() {
            if index > 0 {
                out.push('\n');
            }
            example_line(&mut out, opt);
        }
    }
    out.push_str(
        "\n# Static routes: more prefixes for a node, named by its public IP. Any number of them.\n\
         # [[route]]\n# prefix = \"10.20.0.0/16\"\n# via = \"192.0.2.11\"\n",
    );
    out
}

fn example_line(out: &mut String, opt: &Opt) {
    for line in wrap(opt.help, 96) {
        let _ = writeln!(out, "# {line}");
    }
    if !opt.default.is_empty() {
        let _ = writeln!(out, "# Default: {}.", opt.default);
    }
    let flannel = if opt.flannel.is_empty() {
        String::new()
    } else {
        format!(", {}", opt.flannel)
    };
    let _ = writeln!(out, "# (--{}{flannel})", opt.flag);
    // The one thing that has no default.
    let comment = if opt.name() == "network.network" {
        ""
    } else {
        "# "
    };
    let _ = writeln!(out, "{comment}{} = {}", opt.key, opt.example);
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
