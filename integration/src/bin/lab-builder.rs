//! Builds a lab in a process that may be killed, by itself before a given step: `lab-builder LAB DAEMON STEP DAEMONS`, where
//! DAEMON is the overlayd command, STEP counts from 0, and DAEMONS says whether they are started (`true` or `false`).

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use nix::sys::signal::{Signal, raise};
use overlayd::lab::topology::{Lab, Spec};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, daemon, kill_at, daemons] = &arguments[..] else {
        anyhow::bail!("use lab-builder LAB DAEMON STEP DAEMONS");
    };
    let kill_at: usize = kill_at.parse().context("STEP")?;
    let asked = AtomicUsize::new(0);
    let cancel = || {
        if asked.fetch_add(1, Ordering::Relaxed) == kill_at {
            // Cannot fail for a signal that there is.
            let _ = raise(Signal::SIGKILL);
        }
        false
    };
    let spec = Spec {
        name: name.clone(),
        nodes: 2,
        daemons: daemons.parse().context("DAEMONS")?,
        ..Spec::default()
    };
    Lab::up(spec, Path::new(daemon), &cancel)?.keep();
    Ok(())
}
