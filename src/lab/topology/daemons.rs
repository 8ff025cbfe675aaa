//! The daemons of a lab: started, waited for, stopped.

use std::{
    fs::{self, File},
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::Signal;

use super::{Lab, Stop};
use crate::{lab::holder, observe::client};

/// How long a daemon may take until it answers.
const READY: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);
/// How much of a daemon's log is shown when it does not start, in lines.
const LOG_TAIL: usize = 15;

impl Lab {
    pub(super) fn start_daemons(&mut self, stop: Stop<'_>) -> Result<()> {
        if !self.spec.runs_daemons() {
            return Ok(());
        }
        let mut started = Vec::new();
        for number in 1..=self.spec.nodes {
            stop()?;
            started.push((number, self.spawn_daemon(number)?));
        }
        for (number, pid) in started {
            self.wait_for_daemon(number, pid, stop)?;
        }
        Ok(stop()?)
    }

    /// Starts overlayd on a node (by its number, from 1) and waits until it answers. For labs built without daemons.
    ///
    /// # Errors
    /// When it does not start; with the end of its log.
    pub fn start_daemon(&mut self, number: u8) -> Result<()> {
        let pid = self.spawn_daemon(number)?;
        self.wait_for_daemon(number, pid, &|| Ok(()))
    }

    /// Stops overlayd on a node with SIGTERM and waits until it is gone. `Ok(false)`: none was running.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop_daemon(&mut self, number: u8) -> Result<bool> {
        let place = self.node(number)?.name.clone();
        let deadline = Instant::now() + READY;
        let mut asked = false;
        while let Some(process) = running(&self.spec.name, &place)? {
            if !asked {
                holder::send(process.pid, Signal::SIGTERM)?;
                asked = true;
            }
            if Instant::now() > deadline {
                bail!(
                    "overlayd on {place} (process {}) does not end on SIGTERM",
                    process.pid
                );
            }
            thread::sleep(POLL);
            self.reap();
        }
        self.reap();
        Ok(asked)
    }

    fn spawn_daemon(&mut self, number: u8) -> Result<u32> {
        let node = self.node(number)?;
        let mut command = holder::marked(&self.exe, &self.spec.name, &node.name);
        let log = self.log(number);
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("cannot open {}", log.display()))?;
        command
            .arg("run")
            .arg("--config")
            .arg(self.config(number))
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = node.netns().spawn(command)?;
        let pid = child.id();
        self.children.push(child);
        Ok(pid)
    }

    /// Ready means: it answers over its control socket, which it does once it forwards.
    fn wait_for_daemon(&mut self, number: u8, pid: u32, stop: Stop<'_>) -> Result<()> {
        let place = self.node(number)?.name.clone();
        let log = self.log(number);
        let complain = |what: &str| {
            let tail = tail(&log).unwrap_or_default();
            anyhow!(
                "overlayd on {place} {what}. The end of its log ({}):\n{tail}",
                log.display()
            )
        };
        let deadline = Instant::now() + READY;
        while client::status(&self.socket(number)).is_err() {
            stop()?;
            self.reap();
            // Not by its mark: in the midst of exec(2) a process shows no environment.
            if !self.children.iter().any(|child| child.id() == pid) {
                return Err(complain("ended while starting"));
            }
            if Instant::now() > deadline {
                return Err(complain(&format!(
                    "does not answer within {} s",
                    READY.as_secs()
                )));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }
}

pub(super) fn running(lab: &str, place: &str) -> io::Result<Option<holder::Process>> {
    Ok(holder::processes(lab)?
        .into_iter()
        .find(|p| p.place == place))
}

pub(super) fn tail(log: &Path) -> io::Result<String> {
    let text = fs::read_to_string(log)?;
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n"))
}
