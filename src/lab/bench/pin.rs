//! CPU placement.

use std::io;

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Which CPUs each of the two hosts' loads and daemons may use. An empty list: all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Of the first host, which sends.
    pub a: Vec<usize>,
    /// Of the second host, which receives.
    pub b: Vec<usize>,
}

impl Pin {
    /// Half of this machine's CPUs for each host, as two hosts would not share theirs; all of one CPU for both.
    pub fn halves() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        match cpus / 2 {
            0 => Self::default(),
            half => Self {
                a: (0..half).collect(),
                b: (half..2 * half).collect(),
            },
        }
    }
}

impl std::fmt::Display for Pin {
    /// As people say it: `CPUs 0 and 1`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |cpus: &[usize]| {
            let all: Vec<String> = cpus.iter().map(usize::to_string).collect();
            all.join(",")
        };
        match (self.a.as_slice(), self.b.as_slice()) {
            ([], []) => f.write_str("both hosts share all CPUs"),
            (a, b) => write!(f, "hosts on CPUs {} and {}", list(a), list(b)),
        }
    }
}

impl std::str::FromStr for Pin {
    type Err = anyhow::Error;

    /// `0/1`, `0-3/4-7`, `0,2/1,3`.
    fn from_str(text: &str) -> Result<Self> {
        let (a, b) = text
            .split_once('/')
            .context("two lists of CPUs, of the sending and the receiving host: for example 0/1")?;
        Ok(Self {
            a: cpus(a)?,
            b: cpus(b)?,
        })
    }
}

fn cpus(text: &str) -> Result<Vec<usize>> {
    let number = |text: &str| -> Result<usize> {
        let cpu = text
            .parse()
            .with_context(|| format!("{text:?} is no CPU's number"))?;
        if cpu >= CpuSet::count() {
            bail!("there is no CPU {cpu}");
        }
        Ok(cpu)
    };
    let mut all = Vec::new();
    for part in text.split(',') {
        match part.split_once('-') {
            Some((first, last)) => all.extend(number(first)?..=number(last)?),
            None => all.push(number(part)?),
        }
    }
    let there = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
    if let Some(cpu) = all.iter().find(|cpu| **cpu >= there) {
        bail!("there is no CPU {cpu}: this machine has 0 to {}", there - 1);
    }
    Ok(all)
}

/// Keeps the calling thread, and what it starts, on these CPUs.
pub(super) fn pin(cpus: &[usize]) -> io::Result<()> {
    pin_thread(0, cpus)
}

/// Keeps all threads that a process has now on these CPUs.
pub(super) fn pin_process(pid: u32, cpus: &[usize]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        if let Some(thread) = task?.file_name().to_str().and_then(|id| id.parse().ok()) {
            pin_thread(thread, cpus)?;
        }
    }
    Ok(())
}

fn pin_thread(thread: i32, cpus: &[usize]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    Ok(sched_setaffinity(Pid::from_raw(thread), &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_do_not_overlap() {
        let pin = Pin::halves();
        assert_eq!(pin.a.len(), pin.b.len());
        assert!(pin.a.iter().all(|cpu| !pin.b.contains(cpu)));
        assert_eq!(Pin::default().to_string(), "both hosts share all CPUs");
        let pin: Pin = "0/0".parse().unwrap();
        assert_eq!(pin.to_string(), "hosts on CPUs 0 and 0");
    }

    #[test]
    fn placements_are_read_and_nonsense_is_refused() {
        let pin: Pin = "0/0,0-0".parse().unwrap();
        assert_eq!((pin.a, pin.b), (vec![0], vec![0, 0]));
        for wrong in ["", "0", "a/b", "0/99999", "-/1", "0/"] {
            assert!(wrong.parse::<Pin>().is_err(), "{wrong}");
        }
    }
}
