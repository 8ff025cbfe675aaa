//! `overlayd bench`: how fast is it, beside bare veth and kernel VXLAN?

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};

use super::{Exit, complain, say};
use crate::lab::bench::pin::Pin;
use crate::lab::bench::plan::{Between, Row, Setting, Test};
use crate::lab::bench::report::{self, Report};
use crate::lab::bench::{self, Plan, Progress, compare, load};
use crate::lab::topology::Interrupted;

/// A quick run ends within a minute; this is what is planned for.
const QUICK: Duration = Duration::from_secs(48);
const QUICK_LIMIT: Duration = Duration::from_secs(57);
const QUICK_ROUNDS: u32 = 2;
/// The same of a full run, which ends within 40 minutes.
const FULL: Duration = Duration::from_secs(34 * 60);
const FULL_LIMIT: Duration = Duration::from_secs(39 * 60);
const FULL_ROUNDS: u32 = 5;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    command: Option<BenchCommand>,
    /// The most important rows and tests, within a minute (the default)
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// All rows, pods behind bridges too, all tests, within 40 minutes
    #[arg(long)]
    full: bool,
    /// Only these rows (comma-separated; see the first column of the table)
    #[arg(long, value_name = "ROWS", value_delimiter = ',')]
    only: Vec<String>,
    /// Only these offload settings: default, no-tunnel-offload, no-segmentation, no-segmentation-gro
    #[arg(long, value_name = "SETTINGS", value_delimiter = ',', value_parser = setting)]
    settings: Vec<Setting>,
    /// These tests, for example tcp-1,tcp-4-both,udp-64,loss-mtu,loss-64-1000,rtt,rtt-half
    #[arg(long, value_name = "TESTS", value_delimiter = ',', value_parser = test)]
    tests: Vec<Test>,
    /// How often everything is measured, in turns
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Seconds of one measurement
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    seconds: Option<f64>,
    /// MTU of the underlay, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1500, value_parser = clap::value_parser!(u16).range(576..=65535))]
    mtu: u16,
    /// How the generator hands datagrams to the kernel
    #[arg(long, value_enum, default_value_t = SendArg::Batch)]
    send: SendArg,
    /// CPUs of the sending and of the receiving host, for example 0/1 or 0-3/4-7; auto: half of this machine's each, as
    /// two hosts have; none: all for both
    #[arg(long, value_name = "CPUS/CPUS", default_value = "auto", value_parser = pin)]
    pin: PinArg,
    /// A row of an outside control: SCRIPT is run with `up` and `down` and brings its own tunnel up
    #[arg(long, value_name = "NAME=SCRIPT", value_parser = script)]
    with: Vec<(String, PathBuf)>,
    /// Measure to another host, on which `overlayd bench serve` runs, instead of between two namespaces here
    #[arg(long, value_name = "HOST[:PORT]", requires = "key")]
    peer: Option<String>,
    /// The key that `overlayd bench serve` has shown
    #[arg(long, value_name = "KEY", requires = "peer")]
    key: Option<String>,
    /// Print the report as JSON, with every single measurement
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum BenchCommand {
    /// Be the receiving host for `overlayd bench --peer`, until interrupted
    Serve {
        /// The address to listen on
        #[arg(long, value_name = "ADDRESS:PORT", default_value_t = format!("0.0.0.0:{}", bench::PORT))]
        listen: String,
        /// The key that the other host must give [default: a random one, shown at start]
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
        /// An outside control, as on the other host
        #[arg(long, value_name = "NAME=SCRIPT", value_parser = script)]
        with: Vec<(String, PathBuf)>,
    },
    /// Compare two reports (`overlayd bench --json`): what became faster or slower
    Compare {
        /// The earlier report
        old: PathBuf,
        /// The later report
        new: PathBuf,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum SendArg {
    /// One system call per datagram
    Single,
    /// Many datagrams per system call (sendmmsg)
    Batch,
    /// Trains of datagrams (UDP_SEGMENT)
    Gso,
}

fn setting(text: &str) -> Result<Setting> {
    text.parse()
}

fn test(text: &str) -> Result<Test> {
    text.parse()
}

/// `--pin`.
#[derive(Debug, Clone)]
enum PinArg {
    /// Half of this machine's CPUs for each host here; of two real hosts, each its own.
    Auto,
    These(Pin),
}

fn pin(text: &str) -> Result<PinArg> {
    Ok(match text {
        "auto" => PinArg::Auto,
        "none" => PinArg::These(Pin::default()),
        text => PinArg::These(text.parse()?),
    })
}

fn seconds(text: &str) -> Result<f64> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.05..=600.0).contains(&seconds) => Ok(seconds),
        _ => bail!("0.05 to 600 seconds"),
    }
}

pub(super) fn main(args: BenchArgs) -> Exit {
    match run(args) {
        Ok(exit) => exit,
        Err(error) if error.is::<Interrupted>() => {
            tell!("overlayd: interrupted; nothing is left");
            Exit::Interrupted
        }
        Err(error) => {
            complain(&error);
            Exit::Error
        }
    }
}

fn run(args: BenchArgs) -> Result<Exit> {
    match args.command {
        Some(BenchCommand::Serve { listen, key, with }) => return serve(&listen, key, with),
        Some(BenchCommand::Compare { old, new, json }) => return compare(&old, &new, json),
        None => {}
    }
    let plan = match args.plan() {
        Ok(plan) => plan,
        Err(error) => {
            complain(&error);
            return Ok(Exit::Usage);
        }
    };
    let exe = exe()?;
    let cancel = super::on_signal()?;
    let terminal = std::io::stderr().is_terminal();
    let report = bench::run(&plan, exe, &cancel, &mut |progress| {
        told(&progress, terminal)
    })?;
    if terminal {
        eprint!("\r\x1b[K");
    }
    if args.json {
        say(format_args!("{:#}", serde_json::to_value(&report)?));
    } else {
        say(report.to_text());
    }
    let failed = report.samples.iter().any(|sample| sample.error.is_some());
    // The time was up before the first.
    let nothing = report.samples.is_empty();
    Ok(if failed || nothing {
        Exit::Failed
    } else {
        Exit::Ok
    })
}

fn serve(listen: &str, key: Option<String>, with: Vec<(String, PathBuf)>) -> Result<Exit> {
    let exe = exe()?;
    let cancel = super::on_signal()?;
    let key = match key {
        Some(key) => key,
        None => random_key()?,
    };
    tell!("overlayd bench serve: on the other host: overlayd bench --peer THIS-HOST --key {key}");
    let scripts = with.into_iter().collect();
    bench::serve(listen, &key, &exe, &scripts, &cancel, &|what| {
        tell!("overlayd bench serve: {what}");
    })?;
    Err(Interrupted.into())
}

fn random_key() -> Result<String> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

fn compare(old: &Path, new: &Path, json: bool) -> Result<Exit> {
    let read = |path: &Path| -> Result<Report> {
        let none = || format!("{} is no report of `overlayd bench --json`", path.display());
        let text = std::fs::read(path).with_context(none)?;
        let report: serde_json::Value = serde_json::from_slice(&text).with_context(none)?;
        // First: what another version has in it, nobody knows.
        let version = report.get("version").and_then(serde_json::Value::as_u64);
        if let Some(version) = version.filter(|version| *version != u64::from(report::VERSION)) {
            bail!(
                "{} is of version {version}, this overlayd knows {}",
                path.display(),
                report::VERSION
            );
        }
        serde_json::from_value(report).with_context(none)
    };
    let (old, new) = (read(old)?, read(new)?);
    let changes = compare::compare(&old, &new);
    if old.command.get(1..) != new.command.get(1..) {
        let call = |report: &Report| report.command.join(" ");
        tell!(
            "overlayd bench compare: not the same was asked for, so not all of this is the change:\n  old: {}\n  new: {}",
            call(&old),
            call(&new)
        );
    }
    if changes.is_empty() {
        bail!("the two reports have no setting, row and test in common");
    }
    if json {
        say(format_args!(
            "{:#}",
            serde_json::json!({"version": compare::VERSION, "changes": changes})
        ));
    } else {
        say(compare::to_text(&changes));
    }
    Ok(Exit::Ok)
}

fn exe() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find the overlayd that is running (is /proc mounted?)")
}

fn script(text: &str) -> Result<(String, PathBuf)> {
    let (name, path) = text
        .split_once('=')
        .context("NAME=SCRIPT, for example fastd=docs/bench/fastd")?;
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || !name.chars().all(good) {
        bail!("a name has letters, digits, - and _");
    }
    if Row::all().iter().any(|row| row.to_string() == name) {
        bail!("there is a row {name} already");
    }
    let path = std::fs::canonicalize(path).with_context(|| format!("there is no script {path}"))?;
    Ok((name.into(), path))
}

impl BenchArgs {
    fn plan(&self) -> Result<Plan> {
        let numbers = self.seconds.is_some() || self.rounds.is_some();
        let (rows, tests, extra) = if self.full {
            (Row::all(), Test::full(), Test::full_extra())
        } else {
            (Row::quick(), Test::quick(), Vec::new())
        };
        let mut rows = if self.only.is_empty() {
            rows
        } else {
            self.chosen()?
        };
        if self.peer.is_some() {
            if !self.only.is_empty() && rows.iter().any(|row| row.between == Between::Pods) {
                bail!("rows between pods are only for the bench's own namespaces");
            }
            rows.retain(|row| row.between == Between::Nodes);
        }
        rows.extend(self.with.iter().map(|(name, _)| Row::script(name)));
        let settings = match (self.settings.is_empty(), &self.peer) {
            (false, _) => self.settings.clone(),
            // Nobody's network card is changed unasked.
            (true, Some(_)) => vec![Setting::Default],
            (true, None) => Setting::ALL.to_vec(),
        };
        let (tests, extra) = if self.tests.is_empty() {
            (tests, extra)
        } else {
            (self.tests.clone(), Vec::new())
        };
        once("row", &rows)?;
        once("setting", &settings)?;
        once("test", &tests)?;
        let mut plan = Plan {
            rows,
            settings,
            tests,
            extra,
            rounds: self
                .rounds
                .unwrap_or(if self.full { FULL_ROUNDS } else { QUICK_ROUNDS }),
            window: 0.0,
            limit: None,
            mtu: self.mtu,
            send: match self.send {
                SendArg::Single => load::Send::Single,
                SendArg::Batch => load::Send::Batch,
                SendArg::Gso => load::Send::Gso,
            },
            pin: match &self.pin {
                PinArg::Auto if self.peer.is_some() => Pin::default(),
                PinArg::Auto => Pin::halves(),
                PinArg::These(pin) => pin.clone(),
            },
            scripts: self.with.iter().cloned().collect(),
            peer: self.peer.clone().zip(self.key.clone()),
        };
        let (budget, limit) = if self.full {
            (FULL, FULL_LIMIT)
        } else {
            (QUICK, QUICK_LIMIT)
        };
        match self.seconds {
            Some(seconds) => plan.window = seconds,
            None => plan.fit(budget),
        }
        // Whoever sets numbers gets them.
        if self.quick || self.full || !numbers {
            plan.limit = Some(limit);
        }
        Ok(plan)
    }

    fn chosen(&self) -> Result<Vec<Row>> {
        let all = Row::all();
        self.only
            .iter()
            .map(|name| {
                let row = all.iter().find(|row| row.to_string() == *name);
                row.cloned().with_context(|| {
                    let names: Vec<_> = all.iter().map(ToString::to_string).collect();
                    format!("no row {name:?}; there are {}", names.join(", "))
                })
            })
            .collect()
    }
}

/// What is named twice would be measured twice, and its figures thrown together.
fn once<T: ToString>(what: &str, all: &[T]) -> Result<()> {
    let mut seen = BTreeSet::new();
    match all
        .iter()
        .map(T::to_string)
        .find(|one| !seen.insert(one.clone()))
    {
        Some(one) => bail!("the {what} {one} is asked for twice"),
        None => Ok(()),
    }
}

fn told(progress: &Progress<'_>, terminal: bool) {
    match progress {
        Progress::Cell {
            number,
            of,
            setting,
            row,
            left,
        } => {
            let text = format!("{number}/{of}, {left:.0} s left: {setting}, {row}");
            if terminal {
                eprint!("\r\x1b[K{text}");
                let _ = std::io::stderr().flush();
            } else {
                tell!("{text}");
            }
        }
        Progress::Sample(sample) => {
            if let Some(error) = &sample.error {
                let clear = if terminal { "\r\x1b[K" } else { "" };
                tell!(
                    "{clear}{} {} {}: {error}",
                    sample.setting,
                    sample.row,
                    sample.test
                );
            }
        }
    }
}
