//! Outside controls: tunnels that a script brings up.
//!
//! The script is run on each host, inside its namespace, as `SCRIPT up` and `SCRIPT down`, with this in its environment:
//!
//! | variable | what |
//! |---|---|
//! | `BENCH_NUMBER` | 1 on the sending host, 2 on the receiving one |
//! | `BENCH_NS`, | the host's namespace as `ip netns` names it; `the current one` with `--peer` |
//! | `BENCH_UNDERLAY`, `BENCH_MTU` | the underlay device and its MTU |
//! | `BENCH_LOCAL`, `BENCH_REMOTE` | this host's and the other's address on it |
//! | `BENCH_DEV` | the name that the tunnel's device must have |
//! | `BENCH_ADDRESS`, `BENCH_PEER_ADDRESS` | the address it must have, and the other host's, which it must lead to |
//! | `BENCH_...` | what else of that name the bench was called with |
//! | `BENCH_OVERLAYD` | the overlayd that the bench's own rows run |
//! | `BENCH_DIR` | a directory for files; removed by the bench |
//! | `BENCH_PIDFILE` | write the tunnel daemon's process id here, and its cost is metered |

use std::fs::{self, File};
use std::io;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::{Host, POLL, READY, find, host_address};
use crate::kernel::Netlink;
use crate::lab::bench::meter::Meter;
use crate::lab::holder;

/// The name of the tunnel's device: different on both, since some programs keep a socket of that name in a place that
/// namespaces share.
pub(super) fn device(number: u8) -> String {
    format!("ovb{number}")
}

impl Host {
    /// Brings the tunnel up: its MTU.
    pub(super) fn run_script(&mut self, name: &str, netlink: &Netlink) -> Result<u16> {
        self.script(name, "up")?;
        let device = device(self.site.number);
        let link = self.runtime.block_on(find(netlink, &device));
        let link = link.with_context(|| format!("the script of {name} has made none"))?;
        if let Ok(text) = fs::read_to_string(self.pidfile()) {
            let text = text.trim();
            // It is pinned: a stranger would stay so.
            let mut started = self.started()?.into_iter();
            let pid = started.find(|pid| text == pid.to_string());
            let pid = pid.with_context(|| {
                format!("BENCH_PIDFILE holds {text:?}, which is no process that the script of {name} has started")
            })?;
            super::super::pin::pin_process(pid, &self.site.cpus)?;
            self.meter = Meter::of_daemon(pid);
        }
        Ok(u16::try_from(link.mtu)?)
    }

    /// Takes it down, and ends what it has left running.
    pub(super) fn end_script(&self, name: &str) -> Result<()> {
        let done = self.script(name, "down");
        for pid in self.started()? {
            holder::send(pid, Signal::SIGKILL)?;
        }
        let _ = fs::remove_file(self.pidfile());
        done
    }

    /// The processes that a script has started and that have not ended.
    pub(super) fn started(&self) -> io::Result<Vec<u32>> {
        let place = self.place();
        let ours = holder::processes(&self.site.mark)?.into_iter();
        let ours = ours.filter(|process| process.place == place);
        Ok(ours.map(|process| process.pid).collect())
    }

    fn place(&self) -> String {
        format!("script{}", self.site.number)
    }

    fn pidfile(&self) -> std::path::PathBuf {
        self.site.dir.join("pid")
    }

    fn script(&self, name: &str, word: &str) -> Result<()> {
        let site = &self.site;
        let script = site.scripts.get(name);
        let script = script.with_context(|| {
            format!("there is no script for {name}: give it with --with {name}=SCRIPT")
        })?;
        let log = site.dir.join(format!("{word}.log"));
        let out = File::create(&log)?;
        let mut command = holder::marked(script, &site.mark, &self.place());
        // What whoever called the bench has to say to the script.
        let said = std::env::vars_os().filter(|(name, _)| {
            let name = name.as_encoded_bytes();
            name.starts_with(b"BENCH_")
        });
        command
            .arg(word)
            .envs(said)
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("BENCH_NUMBER", site.number.to_string())
            .env("BENCH_NS", site.node.to_string())
            .env("BENCH_UNDERLAY", &site.device)
            .env("BENCH_MTU", self.underlay_mtu.to_string())
            .env("BENCH_LOCAL", site.public.to_string())
            .env("BENCH_REMOTE", site.peer.to_string())
            .env("BENCH_DEV", device(site.number))
            .env("BENCH_ADDRESS", host_address(site.number, 1).to_string())
            .env(
                "BENCH_PEER_ADDRESS",
                host_address(self.other(), 1).to_string(),
            )
            .env("BENCH_OVERLAYD", &site.exe)
            .env("BENCH_DIR", &site.dir)
            .env("BENCH_PIDFILE", self.pidfile())
            .stdout(out.try_clone()?)
            .stderr(Stdio::from(out));
        let mut child = site.node.spawn(command)?;
        let end = Instant::now() + READY;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > end || site.cancel.is_set() && word == "up" {
                child.kill()?;
                child.wait()?;
                bail!("{} {word} does not end", script.display());
            }
            sleep(POLL);
        };
        if !status.success() {
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!(
                "{} {word} failed ({status}):\n{}",
                script.display(),
                said.trim_end()
            );
        }
        Ok(())
    }
}
