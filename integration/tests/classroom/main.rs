//! The lab as a class room: its stages, pods of several processes, scenarios and their grades, its picture. Needs root.

#![allow(clippy::unwrap_used)] // in helpers too: a test fails where it stands

mod book;
mod picture;
mod pods;
mod scenarios;
mod stages;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use overlayd::lab::holder;
use serde_json::Value;

pub(crate) fn exe() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_overlayd-under-test"))
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A lab of a name of its own that is taken down whatever happens to its test.
pub(crate) struct Class {
    pub(crate) name: String,
}

impl Class {
    /// A name; nothing is built.
    pub(crate) fn named(word: &str) -> Self {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            name: format!("class-{word}-{}-{next}", std::process::id()),
        }
    }

    pub(crate) fn up(word: &str, options: &[&str]) -> Self {
        let class = Self::named(word);
        let done = class.lab("up", options);
        assert!(done.status.success(), "{}", text(&done.stderr));
        class
    }

    /// `overlayd lab COMMAND --name NAME REST`
    pub(crate) fn lab(&self, command: &str, rest: &[&str]) -> Output {
        let mut command_line = Command::new(exe());
        command_line
            .args(["lab", command, "--name", &self.name])
            .args(rest);
        command_line.stdin(Stdio::null()).output().unwrap()
    }

    pub(crate) fn sh(&self, place: &str, command: &str) -> Output {
        self.lab("sh", &[place, "sh", "-c", command])
    }

    /// Output of a command that must succeed.
    #[track_caller]
    pub(crate) fn run(&self, place: &str, command: &str) -> String {
        let done = self.sh(place, command);
        assert!(
            done.status.success(),
            "{place}: {command}: {}{}",
            text(&done.stdout),
            text(&done.stderr)
        );
        text(&done.stdout).to_owned()
    }

    pub(crate) fn answers(&self, from: &str, to: &str) -> bool {
        self.sh(from, &format!("ping -c 3 -i 0.2 -W 1 {to}"))
            .status
            .success()
    }

    /// The process at this place.
    pub(crate) fn pid(&self, place: &str) -> Option<u32> {
        let all = holder::processes(&self.name).unwrap();
        all.into_iter()
            .find(|process| process.place == place)
            .map(|process| process.pid)
    }

    pub(crate) fn status(&self) -> Value {
        serde_json::from_slice(&self.lab("status", &["--json"]).stdout).unwrap()
    }
}

impl Drop for Class {
    fn drop(&mut self) {
        let _ = self.lab("down", &[]);
    }
}
