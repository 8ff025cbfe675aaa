//! `overlayd config check` and `overlayd config example`.

use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::path::Path;

use serde_json::{Value, json};

use super::options::{OPTIONS, Opt, SECTIONS};
use super::{Backend, Config, ConfigError, Overrides, Store};
use crate::lease::file::FileStore;
use crate::lease::{Lease, LeaseError, sync};

/// Version of the JSON form of a [`Report`].
const JSON_VERSION: u32 = 1;

/// What `config check` found in a valid configuration.
#[derive(Debug)]
pub struct Report {
    /// The configuration.
    pub config: Config,
    /// The leases it names.
    pub leases: Result<Verdict, LeaseError>,
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
        if !ours.is_empty() {
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
    let config = Config::load(path, overrides, env)?;
    let leases = match &config.store {
        Store::File { path } => FileStore::new(path)
            .load()
            .map(|leases| Verdict::of(&config, &leases)),
        // They are in a cluster's hands, and not looked at for a check of what is written here.
        Store::Etcd(_) => Ok(Verdict::default()),
    };
    Ok(Report { config, leases })
}

impl Report {
    /// Whether the daemon would start and leave nothing out.
    pub fn is_good(&self) -> bool {
        let complete = |verdict: &Verdict| {
            verdict.refused_leases.is_empty()
                && verdict.refused_routes.is_empty()
                && verdict.no_own.is_none()
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
        let leases = match &self.leases {
            Ok(verdict) => json!({
                "path": path,
                "total": verdict.total,
                "accepted": verdict.accepted,
                "own": verdict.own,
                "no_own": verdict.no_own,
                "skipped": list(&verdict.skipped, "backend"),
                "refused": list(&verdict.refused_leases, "reason"),
            }),
            Err(error) => json!({"path": path, "error": error.to_string()}),
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
            "leases": leases,
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
        writeln!(f, "network   {}", networks.join(", "))?;
        match &config.backend {
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
            _ if !config.backend.encapsulates() => writeln!(f, "device    none")?,
            Some(mtu) => writeln!(f, "device    {}, MTU {mtu}", config.device.name)?,
            None => writeln!(f, "device    {}, MTU from the underlay", config.device.name)?,
        }
        let path = store_name(config);
        match &self.leases {
            Ok(verdict) => {
                writeln!(
                    f,
                    "leases    {} of {} accepted, {}",
                    verdict.accepted, verdict.total, path
                )?;
                let place = config.node.iface.first().map(String::as_str);
                let place = place.unwrap_or("the default route's interface");
                match (&verdict.no_own, verdict.own) {
                    (Some(why), _) => writeln!(f, "own lease {why}")?,
                    (None, Some(index)) => writeln!(f, "own lease lease {index}")?,
                    (None, None) => writeln!(
                        f,
                        "own lease the one with an address of {place}: looked for at start only"
                    )?,
                }
                for (index, backend) in &verdict.skipped {
                    writeln!(
                        f,
                        "          lease {index} skipped: it is for backend {}",
                        super::Quoted(backend)
                    )?;
                }
                for (index, why) in &verdict.refused_leases {
                    writeln!(f, "          lease {index} refused: {why}")?;
                }
                for (index, why) in &verdict.refused_routes {
                    writeln!(f, "          route {index} refused: {why}")?;
                }
            }
            Err(error) => writeln!(f, "leases    {error}")?,
        }
        for warning in &config.warnings {
            writeln!(f, "warning   {warning}")?;
        }
        f.write_str(if self.is_good() { "good" } else { "not good" })
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
