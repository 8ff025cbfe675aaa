//! The story that `overlayd lab demo` tells: a lab is built, packets travel in every way that the overlay is there for,
//! each claim is measured and checked, and nothing is left behind.
//!
//! What happens is told as it happens ([`Tale`]), for a person to read, and returned at the end ([`Report`]), for a
//! program to read. How it looks is the command's business.

mod drawing;
mod stage;
mod steps;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::Value;

pub use drawing::topology as draw;

use super::holder;
use super::state;
use super::topology::{Backend, Interrupted, Lab, Spec, Store};
use super::traffic::Cancel;
use crate::kernel::NetNs;
use stage::Stage;

/// Version of the [`Report`] as JSON. Fields may be added within a version, none renamed or removed.
pub const VERSION: u32 = 1;

/// Something that the demo has to tell.
#[derive(Debug)]
pub enum Tale<'a> {
    /// Progress of building or taking down; since the demo's start.
    Progress {
        /// When.
        at: Duration,
        /// What is done.
        what: String,
    },
    /// The lab stands; this is how it looks.
    Topology(String),
    /// A step begins.
    Begin {
        /// From 1.
        number: usize,
        /// What it is about.
        title: &'static str,
    },
    /// A step has ended.
    End(&'a Step),
}

/// The demo, as it went.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// The lab that it ran in.
    pub spec: Spec,
    /// Seconds until the lab stood and every pod answered.
    pub setup_seconds: f64,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// What was found of the lab after it was taken down: nothing, if all is well.
    pub leftovers: Vec<String>,
    /// Seconds for everything, from nothing to nothing.
    pub seconds: f64,
    /// Every step passed and nothing was left.
    pub passed: bool,
}

/// One step of the demo.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// From 1.
    pub number: usize,
    /// What it is about.
    pub title: &'static str,
    /// The same in a sentence.
    pub about: String,
    /// All its checks passed.
    pub passed: bool,
    /// What was seen.
    pub lines: Vec<Line>,
    /// How long it took.
    pub seconds: f64,
}

/// One thing that was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Was it as it should be? `None`: there is nothing to check about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passed: Option<bool>,
    /// In words.
    pub text: String,
    /// The values measured.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub data: Value,
}

impl Step {
    /// Enters a check and its outcome.
    fn check(&mut self, passed: bool, text: impl Into<String>, data: Value) {
        self.passed &= passed;
        self.lines.push(Line {
            passed: Some(passed),
            text: text.into(),
            data,
        });
    }

    /// Enters something that is only to be read.
    fn note(&mut self, text: impl Into<String>) {
        self.lines.push(Line {
            passed: None,
            text: text.into(),
            data: Value::Null,
        });
    }
}

/// Says why there cannot be a demo of this kind now, if so. Nothing is made.
///
/// # Errors
/// What is in the way.
pub fn check(spec: &Spec) -> Result<()> {
    if spec.nodes < 2 || spec.pods < 2 {
        bail!(
            "the demo needs at least 2 nodes with 2 pods each, not {} with {}",
            spec.nodes,
            spec.pods
        );
    }
    if spec.backend == Backend::HostGw || spec.direct_routing {
        bail!(
            "the demo is about packets that are encapsulated: it has nothing to show with host-gw or direct routing"
        );
    }
    Lab::check(spec)
}

/// Runs the demo in a lab of its own; `exe` is the overlayd that its daemons run.
///
/// Once `cancel` is set the lab is taken down at once.
///
/// # Errors
/// [`Interrupted`] when it was cancelled; otherwise why the lab could not be built or taken down. A step that fails is
/// a result, not an error.
pub fn run(
    spec: Spec,
    exe: &Path,
    cancel: &Cancel,
    tell: &mut dyn FnMut(Tale<'_>),
) -> Result<Report> {
    check(&spec)?;
    let begin = Instant::now();
    // The daemons are started later, one by one, to be seen; but pods cannot do without the subnets that they take.
    let wired = Spec {
        daemons: spec.store == Store::Etcd,
        ..spec.clone()
    };
    let mut lab = Lab::up(wired, exe, &|| cancel.is_set())?;
    let told = prepare(&mut lab, cancel, begin, tell).and_then(|()| {
        let setup = begin.elapsed();
        tell(Tale::Topology(drawing::topology(lab.spec())));
        Ok((setup, play(&lab, cancel, tell)?))
    });
    let (down, processes) = (Instant::now(), holder::processes(&spec.name)?.len());
    lab.close()?;
    // Whatever broke off because of it: it was the interruption.
    if cancel.is_set() {
        return Err(Interrupted.into());
    }
    let (setup, steps) = told?;
    let leftovers = leftovers(&spec)?;
    if leftovers.is_empty() {
        tell(Tale::Progress {
            at: begin.elapsed(),
            what: format!(
                "all gone again in {:.2} s: {} namespaces, {processes} processes, files",
                down.elapsed().as_secs_f64(),
                spec.namespaces().len() + usize::from(spec.nodes) * usize::from(spec.pods),
            ),
        });
    }
    Ok(Report {
        version: VERSION,
        passed: leftovers.is_empty() && steps.iter().all(|step| step.passed),
        spec,
        setup_seconds: setup.as_secs_f64(),
        steps,
        leftovers,
        seconds: begin.elapsed().as_secs_f64(),
    })
}

/// Brings the nodes of a lab to life.
fn prepare(
    lab: &mut Lab,
    cancel: &Cancel,
    begin: Instant,
    tell: &mut dyn FnMut(Tale<'_>),
) -> Result<()> {
    let mut progress = |what: String| {
        tell(Tale::Progress {
            at: begin.elapsed(),
            what,
        });
    };
    let (nodes, pods) = (lab.spec().nodes, lab.spec().pods);
    progress(format!(
        "{nodes} nodes and {} pods wired to an underlay, in namespaces of their own",
        u16::from(nodes) * u16::from(pods)
    ));
    if lab.spec().store == Store::Etcd {
        for node in lab.nodes() {
            progress(format!(
                "overlayd on {} has taken {} in etcd",
                node.name, node.subnet
            ));
        }
    }
    let unstarted = if lab.spec().daemons { 0 } else { nodes };
    for number in 1..=unstarted {
        cancel.check()?;
        let start = Instant::now();
        lab.start_daemon(number)?;
        progress(format!(
            "overlayd on node{number} answers, {} ms after its start",
            start.elapsed().as_millis()
        ));
    }
    let stage = Stage::new(lab, cancel)?;
    let silent = stage.settle(Duration::from_secs(5))?;
    match silent.as_slice() {
        [] => progress("every pod answers every other".to_owned()),
        silent => progress(format!("no answer yet: {}", silent.join(", "))),
    }
    Ok(())
}

fn play(lab: &Lab, cancel: &Cancel, tell: &mut dyn FnMut(Tale<'_>)) -> Result<Vec<Step>> {
    let stage = Stage::new(lab, cancel)?;
    let mut steps = Vec::new();
    for (number, (title, act)) in (1..).zip(steps::STORY) {
        tell(Tale::Begin { number, title });
        let start = Instant::now();
        let mut step = Step {
            number,
            title,
            about: String::new(),
            passed: true,
            lines: Vec::new(),
            seconds: 0.0,
        };
        let acted = act(&stage, &mut step);
        cancel.check()?;
        if let Err(error) = acted {
            step.check(false, format!("{error:#}"), Value::Null);
        }
        step.seconds = start.elapsed().as_secs_f64();
        tell(Tale::End(&step));
        steps.push(step);
    }
    Ok(steps)
}

/// What is still there of a lab that should be gone: nothing, if all is well.
///
/// # Errors
/// When one cannot look.
pub fn leftovers(spec: &Spec) -> Result<Vec<String>> {
    let names = NetNs::list_named()?;
    let mut left: Vec<String> = spec
        .namespaces()
        .into_iter()
        .filter(|name| names.contains(name))
        .map(|name| format!("network namespace {name}"))
        .collect();
    for process in holder::processes(&spec.name)? {
        left.push(format!("process {} ({})", process.pid, process.place));
    }
    let dir = state::dir(&spec.name);
    if dir.exists() {
        left.push(dir.display().to_string());
    }
    Ok(left)
}
