//! `overlayd lab up`, `next` and `down`.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Result, bail};

use super::{Exit, exe, name_option, on_signal, say, shape_of};
use crate::lab::demo;
use crate::lab::topology::{self, Backend, Interrupted, Lab, Spec, Stage, Store};

pub(super) fn up(spec: Spec, explain: bool) -> Result<Exit> {
    let (exe, cancel, start) = (exe()?, on_signal()?, Instant::now());
    if explain && topology::exists(&spec.name) {
        bail!(
            "there is a lab {:?} already, and commands for it would collide with it: `overlayd lab up --explain --dry-run \
             --name other` prints those for another, and builds nothing",
            spec.name
        );
    }
    Lab::check(&spec)?;
    tell!("building lab {:?}: {} ...", spec.name, shape_of(&spec));
    if explain {
        say(explained(
            &spec,
            Stage::ALL.into_iter().filter(|stage| *stage <= spec.stage),
        )
        .trim_end());
    }
    let mut lab = Lab::up(spec, &exe, &|| cancel.is_set())?;
    if let Some(scenario) = lab.spec().scenario {
        scenario.begin(&mut lab)?;
    }
    if lab.spec().stage == Stage::Overlay {
        say(demo::draw(lab.spec()));
    }
    if explain {
        tell!(
            "(Done already. To type them yourself, beside this lab: `overlayd lab up --explain --dry-run --name other`.)"
        );
    }
    tell!(
        "up after {:.2} s. Now for example:",
        start.elapsed().as_secs_f64()
    );
    hints(lab.spec());
    lab.keep();
    Ok(Exit::Ok)
}

/// What to type next.
fn hints(spec: &Spec) {
    let option = name_option(&spec.name);
    let shell = if spec.pods == 0 {
        (format!("sh{option} node1"), "a shell in a node")
    } else {
        (format!("sh{option} node1/pod1"), "a shell in a pod")
    };
    let mut hints = vec![shell];
    if spec.runs_daemons() {
        let status = format!("sh{option} node1 overlayd status");
        hints.push((status, "what the daemon of a node says"));
    }
    if spec.backend == Backend::HostGw || spec.direct_routing {
        let routes = format!("sh{option} node1 overlayd routes");
        hints.push((routes, "whom it routes to, and whom it cannot"));
    }
    if spec.store == Store::Etcd {
        let leases = format!("sh{option} node1 overlayd lease ls");
        hints.push((leases, "the leases in etcd"));
    }
    if spec.scenario.is_some() {
        let show = format!("scenario show{option}");
        hints.insert(0, (show, "what you are told, and asked"));
        hints.push((format!("grade{option}"), "is it mended?"));
    }
    if spec.stage < Stage::Overlay {
        hints.push((format!("next{option} --explain"), "build the next stage"));
    }
    hints.push((format!("status{option}"), "all nodes and pods"));
    hints.push((format!("down{option}"), "the end"));
    let width = hints.iter().map(|(command, _)| command.len()).max();
    let width = width.unwrap_or_default() + 2;
    for (command, what) in hints {
        tell!("  overlayd lab {command:width$}{what}");
    }
}

/// What would be done, as commands.
pub(super) fn explain_only(spec: &Spec) -> Result<Exit> {
    spec.validate()?;
    let stages = Stage::ALL.into_iter().filter(|stage| *stage <= spec.stage);
    say(explained(spec, stages).trim_end());
    if topology::exists(&spec.name) {
        tell!(
            "There is a lab {:?}: these commands would collide with its namespaces. With `--name other` they are for names \
             of their own.\n",
            spec.name
        );
    }
    let removal = topology::removal(spec, spec.stage);
    tell!(
        "Nothing was built. What you build with these commands goes away with:\n\n{}",
        removal.trim_end()
    );
    Ok(Exit::Ok)
}

fn explained(spec: &Spec, stages: impl Iterator<Item = Stage>) -> String {
    let mut text = String::new();
    for stage in stages {
        let _ = writeln!(text, "# {stage}");
        for line in wrapped(stage.about(), 98) {
            let _ = writeln!(text, "#   {line}");
        }
        text += &topology::commands(spec, stage);
        text.push('\n');
    }
    text
}

/// The text in lines of at most so many letters.
pub(super) fn wrapped(text: &str, letters: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let fits = |line: &String| {
            line.is_empty() || line.chars().count() + word.chars().count() < letters
        };
        match lines.last_mut() {
            Some(line) if fits(line) => {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

pub(super) fn next(name: &str, explain: bool) -> Result<Exit> {
    let (exe, cancel) = (exe()?, on_signal()?);
    let mut lab = Lab::load(name, &exe)?;
    let stage = match lab.advance(&|| cancel.is_set()) {
        Err(error) if error.is::<Interrupted>() => {
            let down = name_option(name);
            tell!(
                "overlayd: interrupted; lab {name:?} is not whole now: `overlayd lab down{down}` removes it"
            );
            return Ok(Exit::Interrupted);
        }
        advanced => advanced?,
    };
    if explain {
        say(explained(lab.spec(), std::iter::once(stage)).trim_end());
    }
    tell!("lab {name:?} is built to stage {stage}. Now for example:");
    hints(lab.spec());
    Ok(Exit::Ok)
}

/// Starts overlayd anew on these nodes, or on all.
pub(super) fn restart(name: &str, nodes: &[String]) -> Result<Exit> {
    let mut lab = Lab::load(name, &exe()?)?;
    if !lab.spec().runs_daemons() {
        bail!(
            "lab {name:?} is built to stage {}, without overlayd: `overlayd lab next{}` goes on",
            lab.spec().stage,
            name_option(name)
        );
    }
    let known = |node: &String| lab.nodes().iter().any(|there| there.name == *node);
    if let Some(unknown) = nodes.iter().find(|node| !known(node)) {
        bail!(
            "lab {name:?} has no node {unknown:?}: it has node1 to node{}",
            lab.nodes().len()
        );
    }
    let chosen = lab
        .nodes()
        .iter()
        .filter(|node| nodes.is_empty() || nodes.contains(&node.name));
    let chosen: Vec<_> = chosen.map(|node| node.number).collect();
    for number in chosen {
        lab.stop_daemon(number)?;
        lab.start_daemon(number)?;
        tell!("overlayd on node{number} answers again");
    }
    Ok(Exit::Ok)
}

/// Starts again what has died.
pub(super) fn revive(name: &str) -> Result<Exit> {
    let revived = Lab::load(name, &exe()?)?.revive()?;
    if revived.is_empty() {
        tell!("in lab {name:?} nothing is dead");
    }
    for place in revived {
        tell!("{place} lives again");
    }
    Ok(Exit::Ok)
}

pub(super) fn down(name: &str) -> Result<Exit> {
    let start = Instant::now();
    // Known only while the namespaces are there to compare with.
    let guests = topology::guests(name).unwrap_or_default();
    if Lab::down(name)? {
        for guest in guests.iter().filter(|guest| guest.still_runs()) {
            tell!(
                "pid {} ({}) still runs in {}: it keeps that namespace alive until it ends",
                guest.pid,
                guest.command,
                guest.place
            );
        }
        tell!(
            "lab {name:?} is gone, after {:.2} s",
            start.elapsed().as_secs_f64()
        );
    } else {
        tell!("there is no lab {name:?}: nothing to do");
    }
    Ok(Exit::Ok)
}
