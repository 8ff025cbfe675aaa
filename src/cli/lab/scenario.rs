//! `overlayd lab scenario` and `overlayd lab grade`: labs with something wrong in them.

use anyhow::{Context as _, Result, bail};

use super::paint::Paint;
use super::up::wrapped;
use super::{Exit, exe, name_option, on_signal, say};
use crate::lab::scenario;
use crate::lab::topology::{self, Lab, Scenario};

/// Columns of text.
const WIDTH: usize = 98;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// List them
    Ls,
    /// What you are told, and what to predict before you look
    Show {
        #[command(flatten)]
        which: Which,
    },
    /// A hint: the first, the second, ...
    Hint {
        /// Which hint, from 1
        #[arg(value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
        number: u8,
        #[command(flatten)]
        which: Which,
    },
    /// What is behind it, and how it can be mended: the scenario's part of the book
    Explain {
        #[command(flatten)]
        which: Which,
    },
}

#[derive(clap::Args)]
pub(super) struct Which {
    /// The scenario [default: the one that is played in the lab]
    #[arg(value_enum)]
    scenario: Option<Scenario>,
}

impl Which {
    fn get(&self, lab: &str) -> Result<Scenario> {
        if let Some(scenario) = self.scenario {
            return Ok(scenario);
        }
        let found = topology::status(lab)
            .context("say which scenario (`overlayd lab scenario ls` lists them)")?;
        let played = found.spec.scenario;
        played.with_context(|| format!("no scenario is played in lab {lab:?}: say which one"))
    }
}

impl Command {
    /// The hint of this number for the lab that is there.
    pub(super) fn hint(number: u8) -> Self {
        let which = Which { scenario: None };
        Self::Hint { number, which }
    }

    /// Whether it needs no lab, nor root.
    pub(super) fn only_talks(&self) -> bool {
        match self {
            Self::Ls => true,
            Self::Show { which } | Self::Hint { which, .. } | Self::Explain { which } => {
                which.scenario.is_some()
            }
        }
    }
}

pub(super) fn main(lab: &str, command: &Command) -> Result<Exit> {
    let paint = Paint::stdout();
    match command {
        Command::Ls => {
            for scenario in Scenario::ALL {
                say(format!(
                    "{:10}{}",
                    scenario.to_string(),
                    scenario.story().title
                ));
            }
            tell!("\noverlayd lab up --scenario NAME   builds one");
        }
        Command::Show { which } => {
            let scenario = which.get(lab)?;
            let story = scenario.story();
            say(paint.bold(&format!("{scenario}: {}\n", story.title)));
            say(wrapped(story.told, WIDTH).join("\n"));
            say("\nBefore you look, write down what you expect:");
            for (question, number) in story.predict.iter().zip(1..) {
                say(format!(
                    "  {number}. {}",
                    wrapped(question, WIDTH - 5).join("\n     ")
                ));
            }
            let option = name_option(lab);
            tell!(
                "\nThen look, mend it, and ask `overlayd lab grade{option}`. `overlayd lab scenario hint 1{option}` is the \
                 first of {} hints.\nWhat is behind it: {}.",
                story.hints.len(),
                pointer(scenario)
            );
        }
        Command::Hint { number, which } => {
            let scenario = which.get(lab)?;
            let hints = scenario.story().hints;
            let Some(hint) = hints.get(usize::from(*number) - 1) else {
                bail!(
                    "{scenario} has {} hints; what is behind it: {}",
                    hints.len(),
                    pointer(scenario)
                );
            };
            say(wrapped(hint, WIDTH).join("\n"));
        }
        Command::Explain { which } => say(which.get(lab)?.explanation().trim_end()),
    }
    Ok(Exit::Ok)
}

/// Where the explanation is, and how to read it.
fn pointer(scenario: Scenario) -> String {
    format!(
        "`overlayd lab scenario explain {scenario}`,\nor the chapter \"{}\" of the book (docs/src/{}), part {scenario}",
        scenario::CHAPTER,
        scenario::PAGE
    )
}

pub(super) fn grade(name: &str, json: bool) -> Result<Exit> {
    let cancel = on_signal()?;
    let lab = Lab::load(name, &exe()?)?;
    let paint = Paint::stdout();
    let mut tell = |check: &scenario::Check| {
        if !json {
            say(format!(
                " {} {}",
                paint.verdict(check.passed),
                wrapped(&check.text, WIDTH).join("\n   ")
            ));
        }
    };
    let done = scenario::grade(&lab, &cancel, &mut tell);
    if cancel.is_set() {
        tell!("overlayd: interrupted");
        return Ok(Exit::Interrupted);
    }
    let grade = done?;
    if json {
        say(format_args!("{:#}", serde_json::to_value(&grade)?));
    } else if grade.solved {
        say(format!(
            "\n{} solved. What was behind it: {}",
            paint.verdict(true),
            pointer(grade.scenario)
        ));
    } else {
        say(format!("\n{} not solved yet", paint.verdict(false)));
        tell!(
            "`overlayd lab scenario hint 1{}` helps on",
            name_option(name)
        );
    }
    Ok(if grade.solved { Exit::Ok } else { Exit::Failed })
}

/// Is the stranger of `spoof`.
pub(super) fn intrude(lab: &str) -> Result<Exit> {
    scenario::intrude(lab).map(|()| Exit::Ok)
}
