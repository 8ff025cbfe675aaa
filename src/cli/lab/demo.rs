//! `overlayd lab demo`: the story, told.

use anyhow::Result;

use super::paint::Paint;
use super::{Exit, exe, on_signal, say, shape_of};
use crate::lab::demo::{self, Step, Tale};
use crate::lab::topology::Spec;

pub(super) fn main(spec: Spec, json: bool) -> Result<Exit> {
    let (exe, cancel) = (exe()?, on_signal()?);
    let (out, err) = (Paint::stdout(), Paint::stderr());
    demo::check(&spec)?;
    if !json {
        say(out.bold(&format!("overlayd lab demo: {}", shape_of(&spec))));
    }
    let mut tell = |tale: Tale<'_>| match tale {
        _ if json => {}
        Tale::Progress { at, what } => tell!(
            "{}",
            err.dim(&format!("{:6.2} s  {what}", at.as_secs_f64()))
        ),
        Tale::Topology(drawing) => say(format!("\n{drawing}")),
        Tale::Begin { number, title } => err.pending(&format!("   {number}  {title} ...")),
        Tale::End(step) => {
            err.pending("");
            say(told(step, out));
        }
    };
    let report = demo::run(spec, &exe, &cancel, &mut tell)?;
    if json {
        say(format_args!("{:#}", serde_json::to_value(&report)?));
    } else {
        for left in &report.leftovers {
            say(format!("{} still there: {left}", out.verdict(false)));
        }
        let passed = report.steps.iter().filter(|step| step.passed).count();
        say(format!(
            "\n{} {} of {} steps passed, {}, in {:.1} s",
            out.verdict(report.passed),
            out.bold(&passed.to_string()),
            report.steps.len(),
            if report.leftovers.is_empty() {
                "nothing left behind"
            } else {
                "NOT EVERYTHING REMOVED"
            },
            report.seconds
        ));
    }
    Ok(if report.passed {
        Exit::Ok
    } else {
        Exit::Failed
    })
}

/// A step as it is read.
fn told(step: &Step, paint: Paint) -> String {
    let mut text = format!(
        " {} {}  {}  {}\n      {}\n",
        paint.verdict(step.passed),
        step.number,
        paint.bold(step.title),
        paint.dim(&time(step.seconds)),
        paint.dim(&step.about)
    );
    for line in &step.lines {
        let mark = match line.passed {
            Some(false) => paint.verdict(false),
            Some(true) => paint.verdict(true),
            None => " ".to_owned(),
        };
        text += format!("      {mark} {}", line.text).trim_end();
        text.push('\n');
    }
    text
}

fn time(seconds: f64) -> String {
    if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1e3)
    } else {
        format!("{seconds:.1} s")
    }
}
