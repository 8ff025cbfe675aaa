//! What a load costs: CPU time, context switches, system calls.
//!
//! Sources: `/proc/stat` for the whole system (ticks of 10 ms; interrupts and softirqs in it), `/proc/<pid>/task/*` for a
//! daemon (nanoseconds), and the tracepoint `raw_syscalls:sys_enter` through perf_event_open(2) for its system calls. What
//! a machine does not offer is `None`, never a guess.
//!
//! The first two are only read. The tracepoint is in the way of what it counts: while it is on, each system call of the machine
//! takes longer, and each switch to a thread that is watched. So it is on only while nothing else is measured.

use std::fs;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{SysconfVar, sysconf};
use serde::{Deserialize, Serialize};

use crate::sys::perf::Counter;

/// Where the number of the tracepoint stands, in tracefs.
const SYS_ENTER: &str = "/sys/kernel/tracing/events/raw_syscalls/sys_enter/id";

/// What happened on one host between two readings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// The time between them, in seconds.
    pub seconds: f64,
    /// CPU seconds of the whole system: everything but idling and waiting for I/O.
    pub cpu: f64,
    /// Context switches of the whole system.
    pub switches: u64,
    /// What the daemon took, where the path has one.
    pub daemon: Option<DaemonCost>,
}

/// A daemon's part of the cost.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DaemonCost {
    /// CPU seconds, softirqs that ran on its time included.
    pub cpu: f64,
    /// Context switches of its threads.
    pub switches: u64,
    /// System calls of its threads; `None` unless they were to be counted and the kernel let us.
    pub syscalls: Option<u64>,
}

/// Reads a host's counters, and those of the daemon of the path under test.
#[derive(Debug, Clone, Default)]
pub(super) struct Meter {
    daemon: Option<Watched>,
}

#[derive(Debug, Clone)]
struct Watched {
    pid: u32,
    syscalls: Option<Arc<Vec<Counter>>>,
}

/// Counters at one moment.
pub(super) struct Reading {
    at: Instant,
    busy: f64,
    switches: u64,
    daemon: Option<DaemonCost>,
}

impl Meter {
    /// A meter that looks at this process too.
    pub(super) fn of_daemon(pid: u32) -> Self {
        Self {
            daemon: Some(Watched {
                pid,
                syscalls: None,
            }),
        }
    }

    /// The same, and it counts the daemon's system calls from now on until the last copy of it is gone.
    pub(super) fn with_syscalls(&self) -> Self {
        let mut meter = self.clone();
        if let Some(watched) = &mut meter.daemon {
            watched.syscalls = count_syscalls(watched.pid).map(Arc::new);
        }
        meter
    }

    /// The process that is looked at too.
    pub(super) fn daemon(&self) -> Option<u32> {
        self.daemon.as_ref().map(|watched| watched.pid)
    }

    pub(super) fn read(&self) -> io::Result<Reading> {
        let daemon = match &self.daemon {
            // One that has died costs nothing any more, and is noticed when the test is over.
            Some(watched) => watched.read().ok(),
            None => None,
        };
        let (busy, switches) = system()?;
        Ok(Reading {
            at: Instant::now(),
            busy,
            switches,
            daemon,
        })
    }
}

impl Reading {
    /// The difference to an earlier reading.
    pub(super) fn since(&self, before: &Self) -> Cost {
        let daemon = match (&self.daemon, &before.daemon) {
            (Some(now), Some(then)) => Some(DaemonCost {
                cpu: (now.cpu - then.cpu).max(0.0),
                switches: now.switches.saturating_sub(then.switches),
                syscalls: now
                    .syscalls
                    .zip(then.syscalls)
                    .map(|(now, then)| now.saturating_sub(then)),
            }),
            _ => None,
        };
        Cost {
            seconds: self.at.duration_since(before.at).as_secs_f64(),
            cpu: self.busy - before.busy,
            switches: self.switches - before.switches,
            daemon,
        }
    }
}

impl Watched {
    fn read(&self) -> io::Result<DaemonCost> {
        let mut cost = DaemonCost::default();
        for task in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let path = task?.path();
            let read = |name| fs::read_to_string(path.join(name));
            // A thread that ends meanwhile takes its own figures with it, not those of the others.
            let (Ok(nanos), Ok(status)) = (read("schedstat"), read("status")) else {
                continue;
            };
            // CONFIG_SCHED_INFO; time on a CPU in nanoseconds comes first (Documentation/scheduler/sched-stats.rst).
            cost.cpu += first_number(&nanos)? / 1e9;
            cost.switches += status
                .lines()
                .filter_map(|line| line.split_once("ctxt_switches:"))
                .filter_map(|(_, count)| count.trim().parse::<u64>().ok())
                .sum::<u64>();
        }
        cost.syscalls = self
            .syscalls
            .as_ref()
            .and_then(|counters| counters.iter().map(|counter| counter.read().ok()).sum());
        Ok(cost)
    }
}

/// Counters of system calls for every thread the daemon has now.
fn count_syscalls(pid: u32) -> Option<Vec<Counter>> {
    let id = sys_enter()?;
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    tasks
        .map(|task| {
            let thread = task.ok()?.file_name().to_str()?.parse().ok()?;
            Counter::tracepoint(id, thread).ok()
        })
        .collect()
}

/// The number of the tracepoint that every system call hits. Where tracefs is not mounted it is, for a thread that ends:
/// nobody else sees it, nothing is left.
fn sys_enter() -> Option<u64> {
    let read = || fs::read_to_string(SYS_ENTER).ok();
    let text = read().or_else(|| {
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS).ok()?;
            let none: Option<&str> = None;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, private, none).ok()?;
            let tracefs = Some("tracefs");
            mount(
                tracefs,
                "/sys/kernel/tracing",
                tracefs,
                MsFlags::MS_RDONLY,
                none,
            )
            .ok()?;
            read()
        });
        thread.join().ok()?
    })?;
    text.trim().parse().ok()
}

/// CPU seconds that were not idle, and context switches, since the machine started.
fn system() -> io::Result<(f64, u64)> {
    let text = fs::read_to_string("/proc/stat")?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100);
    parse_stat(&text, per_second as f64)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/stat makes no sense"))
}

fn parse_stat(text: &str, ticks_per_second: f64) -> Option<(f64, u64)> {
    let fields = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<f64> = fields
        .split_whitespace()
        .map(|field| field.parse().ok())
        .collect::<Option<_>>()?;
    // proc_stat(5): user nice system idle iowait irq softirq steal; guests are in user already. Steal was not ours.
    let busy: f64 = [0, 1, 2, 5, 6].iter().filter_map(|i| ticks.get(*i)).sum();
    let switches = text.lines().find_map(|line| line.strip_prefix("ctxt "))?;
    Some((busy / ticks_per_second, switches.trim().parse().ok()?))
}

fn first_number(text: &str) -> io::Result<f64> {
    let number = text.split_whitespace().next().and_then(|n| n.parse().ok());
    number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "schedstat makes no sense"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_time_is_what_is_neither_idle_nor_stolen() {
        let text = "cpu  100 20 30 4000 500 6 7 80 0 0\ncpu0 1 1 1 1\nctxt 4711\n";
        assert_eq!(parse_stat(text, 100.0), Some((1.63, 4711)));
        assert_eq!(parse_stat("cpu x\n", 100.0), None);
        assert_eq!(parse_stat("", 100.0), None);
    }

    #[test]
    fn a_process_can_be_watched() {
        let meter = Meter::of_daemon(std::process::id());
        let calls = |meter: &Meter| meter.read().unwrap().daemon.unwrap().syscalls;
        assert_eq!(calls(&meter), None);
        let before = meter.read().unwrap();
        // The kernel counts when it looks, not at once.
        let mut sum = 0u64;
        let cost = loop {
            let until = before.at.elapsed() + std::time::Duration::from_millis(30);
            while before.at.elapsed() < until {
                sum = sum.wrapping_mul(31).wrapping_add(7);
            }
            let cost = meter.read().unwrap().since(&before);
            if cost.daemon.as_ref().is_some_and(|daemon| daemon.cpu > 0.0) || cost.seconds > 10.0 {
                break cost;
            }
        };
        std::hint::black_box(sum);
        assert!(cost.seconds >= 0.03);
        assert!(cost.daemon.unwrap().cpu > 0.0);
    }
}
