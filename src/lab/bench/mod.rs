//! The bench: overlayd's encapsulations and engines against bare veth, plain routing and kernel VXLAN, in one run.
//!
//! | file | what it does |
//! |---|---|
//! | `plan` | rows, offload settings and tests, and their names |
//! | `bed` | two hosts in namespaces, joined by a veth |
//! | `host` | one host: brings paths up and down, sets offloads, runs loads |
//! | `load` | the generators: TCP streams, numbered datagrams, round trips |
//! | `meter` | CPU time, context switches, system calls |
//! | `cell` | one path under one setting: its tests |
//! | `search` | the highest rate without loss |
//! | `figures` | from counts to figures |
//! | `report`, `table`, `compare` | the document, the table made of it, two of them side by side |
//! | `side`, `peer` | the other host: here, or behind a control connection to `bench serve` |

mod bed;
mod cell;
pub mod compare;
pub mod figures;
mod host;
pub mod load;
pub mod machine;
pub mod meter;
mod peer;
pub mod pin;
pub mod plan;
pub mod report;
mod search;
mod side;
pub mod table;

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::unistd::Uid;

use self::bed::Bed;
use self::cell::{Cell, Figures};
use self::host::Host;
use self::load::Send;
use self::machine::Machine;
use self::pin::Pin;
use self::plan::{Between, Row, Setting, Test};
use self::report::{Report, Sample};
use self::side::Side;
use super::topology::Interrupted;
use super::traffic::Cancel;

pub use self::host::Scripts;
pub use self::peer::{PORT, serve};

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The paths.
    pub rows: Vec<Row>,
    /// The offload settings.
    pub settings: Vec<Setting>,
    /// What to measure on each path under each setting (rows between pods: under the first).
    pub tests: Vec<Test>,
    /// What to measure only under the first setting, between nodes.
    pub extra: Vec<Test>,
    /// How often.
    pub rounds: u32,
    /// Seconds of one measurement.
    pub window: f64,
    /// No round begins that would not end by then.
    pub limit: Option<Duration>,
    /// The underlay's MTU in bytes.
    pub mtu: u16,
    /// How datagrams are handed to the kernel.
    pub send: Send,
    /// CPU placement.
    pub pin: Pin,
    /// The scripts of outside controls, by name.
    pub scripts: Scripts,
    /// The other host, and the key that its `bench serve` has shown; two namespaces here if `None`.
    pub peer: Option<(String, String)>,
}

/// What happens, for whoever waits.
#[derive(Debug)]
pub enum Progress<'a> {
    /// A path is being brought up: which of how many cells, and the seconds that the rest will take.
    Cell {
        /// From 1.
        number: usize,
        /// Of all.
        of: usize,
        /// The setting.
        setting: Setting,
        /// The row.
        row: &'a Row,
        /// Seconds left, as far as can be told.
        left: f64,
    },
    /// A measurement is done.
    Sample(&'a Sample),
}

/// Runs the whole plan.
///
/// # Errors
/// [`Interrupted`] once `cancel` is set; otherwise what could not be built. A path or a measurement that fails is a sample
/// with an error, not an error.
pub fn run(
    plan: &Plan,
    exe: PathBuf,
    cancel: &Cancel,
    tell: &mut dyn FnMut(Progress<'_>),
) -> Result<Report> {
    if !Uid::effective().is_root() {
        anyhow::bail!("the bench needs root, to make network namespaces and devices: use sudo");
    }
    let done = run_all(plan, exe, cancel, tell);
    if cancel.is_set() {
        return Err(Interrupted.into());
    }
    done
}

fn run_all(
    plan: &Plan,
    exe: PathBuf,
    cancel: &Cancel,
    tell: &mut dyn FnMut(Progress<'_>),
) -> Result<Report> {
    let start = Instant::now();
    let mut report = begin(plan)?;
    let pods = plan.rows.iter().any(|row| row.between == Between::Pods);
    let (mut a, mut b, _bed) = match &plan.peer {
        None => {
            report.machines.push(Machine::here(format!(
                "veth between two namespaces, MTU {}",
                plan.mtu
            )));
            let (a, b, bed) = Bed::build(&exe, plan, pods, cancel)?;
            (a, Side::Here(Box::new(b)), bed)
        }
        Some((host, key)) => {
            let (a, mut b, bed) = peer::connect(host, key, &exe, plan, cancel)?;
            report.machines.extend([a.machine(), b.machine()?]);
            (a, b, bed)
        }
    };
    let cells: Vec<(Setting, &Row)> = plan.cells().collect();
    let rounds = 1..=plan.rounds;
    let all: Vec<_> = rounds
        .flat_map(|round| cells.iter().map(move |cell| (round, *cell)))
        .collect();
    let of = all.len();
    let mut last = None;
    for (done, (round, (setting, row))) in all.into_iter().enumerate() {
        cancel.check()?;
        let spent = start.elapsed().as_secs_f64();
        #[allow(clippy::cast_precision_loss)]
        let (each, left) = match done {
            0 => (plan.seconds() / of as f64, plan.seconds()),
            _ => (
                spent / done as f64,
                spent / done as f64 * (of - done) as f64,
            ),
        };
        if plan
            .limit
            .is_some_and(|limit| spent + each > limit.as_secs_f64())
        {
            let note =
                format!("the time was up in round {round}: {done} of {of} cells were measured");
            report.notes.push(note);
            break;
        }
        if last != Some(setting) {
            last = Some(setting);
            let active = a.set_offloads(setting)?;
            b.set_offloads(setting)?;
            let names = active
                .into_iter()
                .filter(|(_, on)| *on)
                .map(|(name, _)| name);
            report
                .offloads
                .insert(setting.name().into(), names.collect());
        }
        tell(Progress::Cell {
            number: done + 1,
            of,
            setting,
            row,
            left,
        });
        report.rounds = round;
        for sample in cell(plan, round, setting, row, (&mut a, &mut b), cancel)? {
            tell(Progress::Sample(&sample));
            report.samples.push(sample);
        }
        for down in [a.down(), b.down()] {
            // What is in the way of the next path shows there; what was measured stands.
            if let Err(error) = down {
                let note = format!("{row} could not all be taken down in round {round}: {error:#}");
                report.notes.push(note);
            }
        }
        cancel.check()?;
    }
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

fn begin(plan: &Plan) -> Result<Report> {
    let started = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970")?;
    Ok(Report {
        version: report::VERSION,
        program_version: env!("CARGO_PKG_VERSION").into(),
        command: std::env::args().collect(),
        started: started.as_secs(),
        seconds: 0.0,
        machines: Vec::new(),
        pin: plan.pin.clone(),
        offloads: Default::default(),
        rows: plan.rows.iter().map(ToString::to_string).collect(),
        settings: plan.settings.iter().map(ToString::to_string).collect(),
        tests: plan
            .tests
            .iter()
            .chain(&plan.extra)
            .map(ToString::to_string)
            .collect(),
        rounds: 0,
        window: plan.window,
        samples: Vec::new(),
        notes: Vec::new(),
    })
}

/// Brings one path up and runs all tests on it. It stays up.
fn cell(
    plan: &Plan,
    round: u32,
    setting: Setting,
    row: &Row,
    (a, b): (&mut Host, &mut Side),
    cancel: &Cancel,
) -> Result<Vec<Sample>> {
    let sample = |test: &Test, result: Result<(Figures, serde_json::Value)>| {
        let (figures, raw, error) = match result {
            Ok((figures, raw)) => (figures, raw, None),
            Err(error) => (
                Figures::new(),
                serde_json::Value::Null,
                Some(format!("{error:#}")),
            ),
        };
        Sample {
            round,
            setting: setting.to_string(),
            row: row.to_string(),
            test: test.to_string(),
            figures,
            raw,
            error,
        }
    };
    let tests = plan.tests_of(setting, row);
    let ends = a.up(row).and_then(|end| Ok((end, b.up(row)?)));
    let mut samples = Vec::new();
    match ends {
        Err(error) => {
            cancel.check()?;
            // One reason for all of them.
            let error = format!("{error:#}");
            samples.extend(
                tests
                    .iter()
                    .map(|test| sample(test, Err(anyhow::anyhow!(error.clone())))),
            );
        }
        Ok(ends) => {
            let mut cell = Cell {
                a: &mut *a,
                b: &mut *b,
                ends,
                window: plan.window,
                send: plan.send,
                small_rate: None,
                calls: false,
            };
            let greeted = cell.greet().map_err(|error| format!("{error:#}"));
            for test in &tests {
                cancel.check()?;
                let result = match &greeted {
                    Ok(()) => cell.run(*test),
                    Err(error) => Err(anyhow::anyhow!(error.clone())),
                };
                // Then what was measured is not the path.
                let ended = cell.ended();
                let ended = ended.map(|host| format!("the daemon on the {host} host has ended"));
                let result = match (result, ended) {
                    (result, None) => result,
                    (Ok(_), Some(ended)) => Err(anyhow::anyhow!(ended)),
                    (Err(error), Some(ended)) => Err(error.context(ended)),
                };
                samples.push(sample(test, result));
            }
            cancel.check()?;
        }
    }
    Ok(samples)
}

impl Plan {
    /// Every row under every setting that it is measured under, setting by setting.
    fn cells(&self) -> impl Iterator<Item = (Setting, &Row)> {
        self.settings.iter().flat_map(|setting| {
            let rows = self.rows.iter().map(|row| (*setting, row));
            rows.filter(|(setting, row)| !self.tests_of(*setting, row).is_empty())
        })
    }

    fn tests_of(&self, setting: Setting, row: &Row) -> Vec<Test> {
        let first = self.settings.first() == Some(&setting);
        match row.between {
            Between::Pods if !first => Vec::new(),
            Between::Nodes if first => self.tests.iter().chain(&self.extra).copied().collect(),
            _ => self.tests.clone(),
        }
    }

    /// Seconds that all of it will take.
    fn seconds(&self) -> f64 {
        let (fixed, factor) = self.time();
        fixed + factor * self.window
    }

    /// Of all of it: the seconds that are always there, and how often the window is.
    fn time(&self) -> (f64, f64) {
        // A cell has to be brought up and down.
        let cells = self.cells().map(|(setting, row)| {
            let tests = self.tests_of(setting, row);
            let times = tests.iter().map(|test| test.time(row.has_daemon()));
            times.fold((0.35, 0.0), add)
        });
        let (fixed, factor) = cells.fold((0.0, 0.0), add);
        let rounds = f64::from(self.rounds);
        (fixed * rounds, factor * rounds)
    }

    /// Chooses the window so that all of it takes about this long, within sensible bounds.
    pub fn fit(&mut self, budget: Duration) {
        let (fixed, factor) = self.time();
        let window = (budget.as_secs_f64() - fixed) / factor.max(1.0);
        self.window = window.clamp(0.1, 5.0);
    }
}

fn add(a: (f64, f64), b: (f64, f64)) -> (f64, f64) {
    (a.0 + b.0, a.1 + b.1)
}
