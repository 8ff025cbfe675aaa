//! flanneld's flags and `FLANNELD_*` variables, and what each means here.
//!
//! Source: flannel `main.go` (v0.20.2 and later), `init`. As in Go, one dash or two begin a flag, a value follows after
//! `=` or as the next argument, and a switch takes its value only after `=`. A variable is `FLANNELD_` and the flag's name.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use toml::Value;

use super::options::{self, Kind, OPTIONS, Opt, SECTIONS};
use super::raw::{self, RawConfig};
use super::{
    Backend, ConfigError, DEFAULT_PATH, Origin, Overrides, Quoted, Setting, Store, resolve,
};

/// One flag of flanneld.
#[derive(Debug)]
pub struct Flag {
    /// Its name without dashes.
    pub name: &'static str,
    /// What flanneld takes where it is not given, in words; empty: nothing.
    pub default: &'static str,
    /// What becomes of it.
    pub meaning: Meaning,
}

/// What becomes of a flag.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It sets `section.key`.
    Sets(&'static str),
    /// The address of `control.metrics`.
    HealthzIp,
    /// The port of `control.metrics`.
    HealthzPort,
    /// klog's number becomes a log level.
    Verbosity,
    /// A switch that is refused, and why.
    Refused(&'static str),
    /// It is taken and does nothing, and why.
    Idle(&'static str),
    /// `--help`
    Help,
    /// `--version`
    Version,
}

const KUBE: &str = "it is of kube-subnet-mgr, which overlayd does not have";

/// All of them, in flannel's order.
#[rustfmt::skip]
pub static FLAGS: &[Flag] = &[
    flag("etcd-endpoints", "http://127.0.0.1:4001,http://127.0.0.1:2379", Meaning::Sets("store.endpoints")),
    flag("etcd-prefix", "/coreos.com/network", Meaning::Sets("store.prefix")),
    flag("etcd-keyfile", "", Meaning::Sets("store.key-file")),
    flag("etcd-certfile", "", Meaning::Sets("store.cert-file")),
    flag("etcd-cafile", "", Meaning::Sets("store.ca-file")),
    flag("etcd-username", "", Meaning::Sets("store.username")),
    flag("etcd-password", "", Meaning::Sets("store.password")),
    flag("iface", "", Meaning::Sets("node.iface")),
    flag("iface-regex", "", Meaning::Sets("node.iface-regex")),
    flag("iface-can-reach", "", Meaning::Sets("node.iface-can-reach")),
    flag("subnet-file", "/run/flannel/subnet.env", Meaning::Sets("store.subnet-file")),
    flag("public-ip", "", Meaning::Sets("node.public-ip")),
    flag("public-ipv6", "", Meaning::Sets("node.public-ipv6")),
    flag("subnet-lease-renew-margin", "60", Meaning::Sets("store.renew-margin")),
    flag("ip-masq", "false", Meaning::Sets("firewall.ip-masq")),
    flag("kube-subnet-mgr", "false", Meaning::Refused(
        "leases that Kubernetes hands out (kube-subnet-mgr) are not in overlayd: keep flanneld on such a cluster, or run it on etcd")),
    flag("kube-api-url", "", Meaning::Idle(KUBE)),
    flag("kube-annotation-prefix", "flannel.alpha.coreos.com", Meaning::Idle(KUBE)),
    flag("kubeconfig-file", "", Meaning::Idle(KUBE)),
    flag("healthz-ip", "0.0.0.0", Meaning::HealthzIp),
    flag("healthz-port", "0", Meaning::HealthzPort),
    flag("iptables-resync", "5", Meaning::Sets("firewall.resync")),
    flag("iptables-forward-rules", "true", Meaning::Sets("firewall.forward-rules")),
    flag("net-config-path", "", Meaning::Sets("network.net-conf")),
    flag("set-node-network-unavailable", "true", Meaning::Idle(KUBE)),
    flag("v", "0", Meaning::Verbosity),
    flag("vmodule", "", Meaning::Idle("it is of flannel's logging library; see --log-level for filters by module")),
    flag("log_backtrace_at", "", Meaning::Idle("it is of flannel's logging library")),
    flag("version", "", Meaning::Version),
    flag("help", "", Meaning::Help),
    flag("h", "", Meaning::Help),
];

const fn flag(name: &'static str, default: &'static str, meaning: Meaning) -> Flag {
    Flag {
        name,
        default,
        meaning,
    }
}

impl Flag {
    /// Its variable.
    pub fn variable(&self) -> String {
        let upper = self.name.to_ascii_uppercase().replace('-', "_");
        format!("FLANNELD_{upper}")
    }

    /// When it has no effect though it sets an option, in words that follow that; mostly nothing.
    pub fn but(&self) -> &'static str {
        match self.meaning {
            Meaning::Sets("network.net-conf") => "; no effect with etcd, as in flanneld",
            _ => "",
        }
    }

    fn option(&self) -> Option<&'static Opt> {
        match self.meaning {
            Meaning::Sets(name) => options::named(name),
            _ => None,
        }
    }

    fn is_switch(&self) -> bool {
        let of_ours = self.option().is_some_and(|opt| opt.kind == Kind::Bool);
        let words = matches!(
            self.meaning,
            Meaning::Refused(_) | Meaning::Help | Meaning::Version
        );
        of_ours || words || self.name == "set-node-network-unavailable"
    }
}

/// The flag whose variable this is.
pub(crate) fn flag_of_variable(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| {
        flag.variable() == name && !matches!(flag.meaning, Meaning::Help | Meaning::Version)
    })
}

/// The device's name that flannel gives (`pkg/backend/udp/udp_network_amd64.go`, `pkg/backend/vxlan/vxlan.go`).
pub fn device_name(backend: &Backend) -> String {
    match backend {
        // Without a device, only our tables in the packet filter are called by it.
        Backend::Udp(_) | Backend::HostGw | Backend::Alloc => "flannel0".to_owned(),
        Backend::Vxlan(vxlan) => format!("flannel.{}", vxlan.vni),
    }
}

/// What flags or variables say, in our options.
#[derive(Debug, Default)]
pub(crate) struct Meant {
    /// Each with the flag that said it.
    pub(crate) settings: Vec<(&'static Opt, String, &'static Flag)>,
    pub(crate) warnings: Vec<String>,
    pub(crate) problems: Vec<String>,
}

impl Meant {
    /// Of flags as they were given: a flag of a list may stand more than once, of the others the last counts.
    pub(crate) fn of(given: &[(&'static Flag, String)]) -> Self {
        let mut meant = Meant::default();
        let last = |meaning: &Meaning| {
            let mut from_behind = given.iter().rev();
            from_behind.find(|(flag, _)| flag.meaning == *meaning)
        };
        for (flag, text) in given {
            match flag.meaning {
                Meaning::Sets(_) => meant.set(flag, text),
                Meaning::Refused(why) => match go_bool(text) {
                    Ok(false) => {}
                    _ => meant.problem(flag, why),
                },
                Meaning::Idle(why) => meant
                    .warnings
                    .push(format!("{} has no effect: {why}", flag.name)),
                Meaning::HealthzIp
                | Meaning::HealthzPort
                | Meaning::Verbosity
                | Meaning::Help
                | Meaning::Version => {}
            }
        }
        if let Some((flag, port)) = last(&Meaning::HealthzPort) {
            let ip = last(&Meaning::HealthzIp).map_or("0.0.0.0", |(_, ip)| ip);
            meant.healthz(flag, ip, port);
        }
        if let Some((flag, level)) = last(&Meaning::Verbosity) {
            // klog: 0 is the least; flannel's own messages go up to 10.
            let level = match level.parse::<u8>() {
                Ok(0 | 1) => Some("info"),
                Ok(2..=9) => Some("debug"),
                Ok(_) => Some("trace"),
                Err(_) => None,
            };
            match (level, options::named("log.level")) {
                (Some(level), Some(opt)) => meant.settings.push((opt, level.to_owned(), flag)),
                _ => meant.problem(flag, "not a level; use a number from 0"),
            }
        }
        meant
    }

    fn set(&mut self, flag: &'static Flag, text: &str) {
        let Some(opt) = flag.option() else { return };
        let text = match opt.kind {
            Kind::Bool => match go_bool(text) {
                Ok(on) => on.to_string(),
                Err(what) => return self.problem(flag, what),
            },
            _ => text.to_owned(),
        };
        let known = self
            .settings
            .iter_mut()
            .find(|(known, ..)| std::ptr::eq(*known, opt));
        match known {
            Some((_, before, _)) if opt.kind == Kind::List => {
                before.push('\n');
                before.push_str(&text);
            }
            Some((_, before, _)) => *before = text,
            None => self.settings.push((opt, text, flag)),
        }
    }

    fn healthz(&mut self, flag: &'static Flag, ip: &str, port: &str) {
        let (Ok(ip), Ok(port)) = (ip.parse::<std::net::IpAddr>(), port.parse::<u16>()) else {
            let what = format!(
                "{}:{port} is not where one could listen; give -healthz-ip an address and -healthz-port a port",
                ip.escape_debug()
            );
            return self.problem(flag, &what);
        };
        if let Some(opt) = options::named("control.metrics").filter(|_| port != 0) {
            let at = std::net::SocketAddr::new(ip, port).to_string();
            self.settings.push((opt, at, flag));
        }
    }

    fn problem(&mut self, flag: &Flag, what: &str) {
        self.problems.push(format!("{}: {what}", flag.name));
    }
}

/// Go's `strconv.ParseBool`.
fn go_bool(text: &str) -> Result<bool, &'static str> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("neither true nor false; use one of them"),
    }
}

/// What `overlayd flannel` was asked for.
#[derive(Debug)]
pub enum Asked {
    /// To run.
    Run(Box<Command>),
    /// To show the configuration file that would do the same.
    PrintConfig(Box<Command>),
    /// To explain its flags.
    Help,
    /// To say its version.
    Version,
}

/// flanneld's command line, in our words.
#[derive(Debug, Default)]
pub struct Command {
    /// `--config`, which flanneld does not have.
    pub config: Option<PathBuf>,
    /// What the flags say, and flanneld's defaults where they say nothing.
    pub overrides: Overrides,
    /// Flags that do nothing here.
    pub warnings: Vec<String>,
}

/// Reads the arguments after `overlayd flannel`: flanneld's flags, those of `overlayd run`, and `--print-config`.
///
/// # Errors
/// All that makes no sense, in words.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Asked, ConfigError> {
    let mut problems = Vec::new();
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    let (mut config, mut print) = (None, false);
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let Some(arg) = arg.to_str().map(str::to_owned) else {
            problems.push(format!("{}: not UTF-8", Quoted(&arg.to_string_lossy())));
            continue;
        };
        let Some(flag) = arg.strip_prefix('-') else {
            problems.push(format!(
                "{}: flanneld takes flags only; begin it with a dash",
                Quoted(&arg)
            ));
            continue;
        };
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let known = FLAGS.iter().find(|flag| flag.name == name);
        let own = OPTIONS.iter().find(|opt| opt.flag == name);
        let switch = known.map_or_else(
            || name == "print-config" || own.is_some_and(|opt| opt.kind == Kind::Bool),
            Flag::is_switch,
        );
        if known.is_none() && own.is_none() && !["config", "print-config"].contains(&name) {
            let names = FLAGS.iter().map(|flag| flag.name);
            let cure = match options::nearest(name, names) {
                Some(near) => format!("; did you mean -{near}?"),
                None => "; see `overlayd flannel -help`".to_owned(),
            };
            problems.push(format!("unknown flag {}{cure}", Quoted(&arg)));
            continue;
        }
        let value = match value {
            Some(value) => value,
            None if switch => "true".to_owned(),
            None => match args.next().and_then(|value| value.into_string().ok()) {
                Some(value) => value,
                None => {
                    problems.push(format!("-{name}: a value must follow"));
                    continue;
                }
            },
        };
        match (known, own) {
            (Some(flag), _) if flag.meaning == Meaning::Help => return Ok(Asked::Help),
            (Some(flag), _) if flag.meaning == Meaning::Version => return Ok(Asked::Version),
            (Some(flag), _) => theirs.push((flag, value)),
            (None, Some(opt)) => ours.push((opt, value)),
            (None, None) if name == "config" => config = Some(PathBuf::from(value)),
            (None, None) => print = go_bool(&value).unwrap_or(true),
        }
    }
    let mut meant = Meant::of(&theirs);
    problems.append(&mut meant.problems);
    if !problems.is_empty() {
        return Err(ConfigError {
            problems,
            warnings: meant.warnings,
        });
    }
    let mut overrides = Overrides::default();
    for (opt, value, _) in meant.settings {
        overrides.put(opt, value);
    }
    for (opt, value) in ours {
        overrides.put(opt, value);
    }
    set_defaults(&mut overrides);
    let command = Box::new(Command {
        config,
        overrides,
        warnings: meant.warnings,
    });
    Ok(if print {
        Asked::PrintConfig(command)
    } else {
        Asked::Run(command)
    })
}

/// What flanneld takes unless it is told otherwise, as far as it is not what we take too.
fn set_defaults(overrides: &mut Overrides) {
    let with_value = FLAGS.iter().filter(|flag| !flag.default.is_empty());
    let theirs = with_value.filter_map(|flag| Some((flag.option()?, flag.default)));
    let ours = ["store.type", "device.flannel-name"].into_iter();
    let ours = ours.filter_map(options::named).zip(["etcd", "true"]);
    for (opt, value) in theirs.chain(ours) {
        overrides.set_default(opt, value);
    }
}

/// The flag of flanneld's that stands here as an argument and that `overlayd run` does not have, at least not so.
pub fn stray<'a>(args: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut args = args.into_iter();
    args.find(|arg| {
        let Some(flag) = arg.strip_prefix('-') else {
            return false;
        };
        let name = flag.strip_prefix('-').unwrap_or(flag);
        let dashes = flag.len() - name.len() + 1;
        let name = name.split('=').next().unwrap_or(name);
        let ours = dashes == 2 && OPTIONS.iter().any(|opt| opt.flag == name);
        let common = |flag: &Flag| matches!(flag.meaning, Meaning::Help | Meaning::Version);
        !ours && FLAGS.iter().any(|flag| flag.name == name && !common(flag))
    })
}

/// The flags, each with what it sets here.
pub fn help() -> String {
    let mut out = String::from(
        "Runs overlayd in flanneld's place, with flanneld's flags.\n\n\
         Usage: overlayd flannel [FLAG]...\n\n\
         One dash or two; -flag=value or -flag value; a switch alone, or with =true or =false. Each has a variable,\n\
         FLANNELD_ and its name: FLANNELD_IP_MASQ=true. Flags of `overlayd run` are taken as well.\n\n",
    );
    for flag in FLAGS.iter().filter(|flag| flag.name != "h") {
        let value = if flag.is_switch() { "" } else { " VALUE" };
        let does = match flag.meaning {
            Meaning::Sets(name) => format!("sets {name}{}", flag.but()),
            Meaning::HealthzIp => "with healthz-port: sets control.metrics".to_owned(),
            Meaning::HealthzPort => {
                "serves /healthz, /readyz and /metrics there; 0 serves none".to_owned()
            }
            Meaning::Verbosity => "sets log.level: 2 and more is debug, 10 trace".to_owned(),
            Meaning::Refused(why) => format!("refused: {why}"),
            Meaning::Idle(why) => format!("no effect: {why}"),
            Meaning::Help => "print this".to_owned(),
            Meaning::Version => "print the version".to_owned(),
        };
        let default = match flag.default {
            "" => String::new(),
            default => format!(" [default: {default}]"),
        };
        // Writing to a String can not fail.
        let _ = writeln!(out, "  -{}{value}\n        {does}{default}", flag.name);
    }
    out.push_str(
        "  -config FILE\n        overlayd's configuration file: what flags and variables leave open is taken from it\n  \
         -print-config\n        print the configuration file that does the same under `overlayd run`, and do no more\n",
    );
    out
}

/// Options that name files.
const PATHS: &[&str] = &[
    "network.net-conf",
    "store.path",
    "store.ca-file",
    "store.cert-file",
    "store.key-file",
    "store.password-file",
    "store.subnet-file",
    "control.socket",
];

/// The configuration file that does under `overlayd run` what this command line and these variables do here.
///
/// # Errors
/// As [`super::Config::load`].
pub fn print_config(
    command: &Command,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<String, ConfigError> {
    let (path, default) = (command.config.as_deref(), Path::new(DEFAULT_PATH));
    let (raw, missing) = resolve::gather(path, default, &command.overrides, env)?;
    // What would not run is not to be written down.
    let config = resolve::resolve(raw.clone(), path.unwrap_or(default), missing)?;
    let mut out = String::from("# What flanneld's flags and variables mean to overlayd.\n");
    let warnings = command.warnings.iter().chain(&config.warnings);
    for line in warnings.flat_map(|warning| warning.lines()) {
        let _ = writeln!(out, "# {line}");
    }
    // What has no effect here `overlayd run` would refuse.
    let idle =
        |opt: &Opt| opt.name() == "network.net-conf" && matches!(config.store, Store::Etcd(_));
    for (section, _) in SECTIONS {
        let written = OPTIONS
            .iter()
            .filter(|opt| opt.section == *section && !idle(opt));
        let lines: Vec<_> = written.filter_map(|opt| line(opt, &raw)).collect();
        if !lines.is_empty() {
            let _ = writeln!(out, "\n[{section}]\n{}", lines.join("\n"));
        }
    }
    for route in &raw.routes {
        let text = |setting: &Option<Setting>| {
            let text = setting.as_ref().map_or("", |setting| &setting.text);
            Value::String(text.to_owned())
        };
        let (prefix, via) = (text(&route.prefix), text(&route.via));
        let _ = writeln!(out, "\n[[route]]\nprefix = {prefix}\nvia = {via}");
    }
    Ok(out)
}

fn line(opt: &'static Opt, raw: &RawConfig) -> Option<String> {
    let setting = raw.get(&opt.name())?;
    let key = opt.key;
    if opt.name() == "store.password" {
        return Some(format!(
            "# {key}: was given to flanneld in the open; write it into a file and name that: password-file = \"...\""
        ));
    }
    let string = |text: &str| Value::String(text.to_owned()).to_string();
    let text = setting.text.as_str();
    let number = text.parse::<i64>().is_ok();
    let value = match opt.kind {
        Kind::Number | Kind::Bool => text.to_owned(),
        Kind::NumberOrText if number => text.to_owned(),
        // The new file may lie elsewhere.
        Kind::Text if PATHS.contains(&&*opt.name()) => {
            string(&raw::resolve_path(setting).to_string_lossy())
        }
        Kind::Text | Kind::NumberOrText => string(text),
        Kind::List => {
            let commas = opt.name() == "store.endpoints";
            let parts = text.split(|c| c == '\n' || (c == ',' && commas));
            let parts: Vec<_> = parts.map(|part| string(part.trim())).collect();
            format!("[{}]", parts.join(", "))
        }
    };
    let from = match &setting.origin {
        Origin::Flannel => "  # flanneld's default",
        _ => "",
    };
    Some(format!("{key} = {value}{from}"))
}

#[cfg(test)]
mod tests;
