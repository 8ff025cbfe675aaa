//! `overlayd bench`: how fast is it, beside bare veth and kernel VXLAN?

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use super::{Exit, complain, say};
use crate::lab::bench::pin::Pin;
use crate::lab::bench::plan::{Row, Setting, Test};
use crate::lab::bench::{self, Plan, Progress, load};
use crate::lab::topology::Interrupted;

/// A quick run ends within a minute; this is what is planned for.
const QUICK: Duration = Duration::from_secs(48);
const QUICK_LIMIT: Duration = Duration::from_secs(57);
const QUICK_ROUNDS: u32 = 2;

#[derive(Args)]
pub(super) struct BenchArgs {
    /// The most important rows and tests, within a minute (the default)
    #[arg(long)]
    quick: bool,
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
    /// CPUs of the sending and of the receiving host, for example 0/1 or 0-3/4-7
    #[arg(long, value_name = "CPUS/CPUS", value_parser = pin)]
    pin: Option<Pin>,
    /// Print the report as JSON, with every single measurement
    #[arg(long)]
    json: bool,
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

fn pin(text: &str) -> Result<Pin> {
    text.parse()
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
            eprintln!("overlayd: interrupted; nothing is left");
            Exit::Interrupted
        }
        Err(error) => {
            complain(&error);
            Exit::Error
        }
    }
}

fn run(args: BenchArgs) -> Result<Exit> {
    let plan = match args.plan() {
        Ok(plan) => plan,
        Err(error) => {
            complain(&error);
            return Ok(Exit::Usage);
        }
    };
    let exe = std::env::current_exe()
        .context("cannot find the overlayd that is running (is /proc mounted?)")?;
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
    Ok(if failed { Exit::Failed } else { Exit::Ok })
}

impl BenchArgs {
    fn plan(&self) -> Result<Plan> {
        let rows = if self.only.is_empty() {
            Row::quick()
        } else {
            self.chosen()?
        };
        let or = |chosen: &[Setting]| -> Vec<Setting> {
            if chosen.is_empty() {
                Setting::ALL.to_vec()
            } else {
                chosen.to_vec()
            }
        };
        let mut plan = Plan {
            rows,
            settings: or(&self.settings),
            tests: if self.tests.is_empty() {
                Test::quick()
            } else {
                self.tests.clone()
            },
            rounds: self.rounds.unwrap_or(QUICK_ROUNDS),
            window: 0.0,
            limit: None,
            mtu: self.mtu,
            send: match self.send {
                SendArg::Single => load::Send::Single,
                SendArg::Batch => load::Send::Batch,
                SendArg::Gso => load::Send::Gso,
            },
            pin: self.pin.clone().unwrap_or_default(),
        };
        match self.seconds {
            Some(seconds) => plan.window = seconds,
            None => plan.fit(QUICK),
        }
        // Whoever sets numbers gets them.
        if self.quick || (self.seconds.is_none() && self.rounds.is_none()) {
            plan.limit = Some(QUICK_LIMIT);
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
                eprintln!("{text}");
            }
        }
        Progress::Sample(sample) => {
            if let Some(error) = &sample.error {
                let clear = if terminal { "\r\x1b[K" } else { "" };
                eprintln!(
                    "{clear}{} {} {}: {error}",
                    sample.setting, sample.row, sample.test
                );
            }
        }
    }
}
