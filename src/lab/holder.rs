//! A lab's processes: the holders of the pods' namespaces, the containers in them, and the daemons.
//!
//! A pod's namespace has no name; it lives as long as a process in it does, the holder, as a pod of Kubernetes lives by
//! its pause container.
//!
//! Every process of a lab carries its place in its environment: `OVERLAYD_LAB=lab/node1/pod2`. The mark is there from
//! the moment the process exists under its own program, so that nothing is lost between its start and some note of its
//! id, and an id that has passed to another process is never mistaken for ours. What carries no mark is not ours to
//! kill.

use std::{
    fs, io,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::{Pid, pause},
};

/// The variable that marks a process of a lab.
pub const MARK: &str = "OVERLAYD_LAB";

/// How long the processes may take to end by themselves.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long they may take once they are killed.
const LAST_PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// Holds the namespace it was started in, until SIGTERM. This is all of `overlayd lab hold`.
pub fn run() -> ! {
    loop {
        pause();
    }
}

/// A command that will be known as the process at `place` ("node1", "node1/pod2") of the lab.
///
/// It is in a process group of its own, so that an interrupt typed at the terminal reaches only the one who typed it,
/// and takes nothing of the environment with it: a variable of the shell must not change what a lab's node does.
pub(super) fn marked(program: &Path, lab: &str, place: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env(MARK, format!("{lab}/{place}"))
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null());
    command
}

/// A running process of a lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its process id.
    pub pid: u32,
    /// Its place: `node1` is the daemon there, `node1/pod2` the holder of that pod, `node1/pod2/web` a container in it.
    pub place: String,
}

impl Process {
    /// The pod that it is in (`node1/pod2`), or its place if it is in none.
    pub fn pod(&self) -> &str {
        let second = self.place.match_indices('/').nth(1);
        second.map_or(&self.place, |(end, _)| &self.place[..end])
    }
}

/// The lab's processes that run now.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn processes(lab: &str) -> io::Result<Vec<Process>> {
    let ours = fs::metadata("/proc/self/ns/pid")?.ino();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        let dir = Path::new("/proc").join(name);
        // One that ends meanwhile, or is none of our business, cannot be read.
        let Ok(environment) = fs::read(dir.join("environ")) else {
            continue;
        };
        let Some(place) = place_in(&environment, lab) else {
            continue;
        };
        // A container on this machine may have a lab of the same name: its processes are seen here, but not ours.
        if fs::metadata(dir.join("ns/pid")).is_ok_and(|meta| meta.ino() == ours) {
            found.push(Process { pid, place });
        }
    }
    Ok(found)
}

fn place_in(environment: &[u8], lab: &str) -> Option<String> {
    environment.split(|b| *b == 0).find_map(|variable| {
        let value = std::str::from_utf8(variable)
            .ok()?
            .strip_prefix(MARK)?
            .strip_prefix('=')?;
        let (name, place) = value.split_once('/')?;
        (name == lab).then(|| place.to_owned())
    })
}

/// Ends all processes of the lab and waits until none is left: asked first, killed later. How many there were.
///
/// `reap` is called while waiting: a process that we started ourselves stays as a zombie until we ask after it.
pub(super) fn end_all(lab: &str, mut reap: impl FnMut()) -> io::Result<usize> {
    let mut ended = Vec::new();
    for (signal, patience) in [
        (Signal::SIGTERM, PATIENCE),
        (Signal::SIGKILL, LAST_PATIENCE),
    ] {
        let deadline = Instant::now() + patience;
        let mut asked: Vec<u32> = Vec::new();
        loop {
            // Looked at anew each time: one that was just being started appears in a later round.
            let running = processes(lab)?;
            if running.is_empty() {
                reap();
                return Ok(ended.len());
            }
            for Process { pid, .. } in running {
                if asked.contains(&pid) {
                    continue;
                }
                send(pid, signal)?;
                asked.push(pid);
                if !ended.contains(&pid) {
                    ended.push(pid);
                }
            }
            if Instant::now() > deadline {
                break;
            }
            reap();
            thread::sleep(POLL);
        }
    }
    Err(io::Error::other(
        "some processes do not end, not even when killed",
    ))
}

pub(super) fn send(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_only_whole_and_of_its_own_lab() {
        let place = |environment: &str| place_in(environment.as_bytes(), "lab");
        assert_eq!(
            place("A=1\0OVERLAYD_LAB=lab/node1/pod2\0B=2\0").as_deref(),
            Some("node1/pod2")
        );
        assert_eq!(place("OVERLAYD_LAB=lab/node1").as_deref(), Some("node1"));
        assert_eq!(place("OVERLAYD_LAB=lab2/node1"), None);
        assert_eq!(place("OVERLAYD_LAB=lab"), None);
        assert_eq!(place("OVERLAYD_LABEL=lab/node1"), None);
        assert_eq!(place("X_OVERLAYD_LAB=lab/node1"), None);
        assert_eq!(place("PATH=/OVERLAYD_LAB=lab/node1"), None);
        assert_eq!(
            place_in(b"\xff\xfe\0OVERLAYD_LAB=lab/node1\0", "lab").as_deref(),
            Some("node1")
        );
    }

    /// A process that ends with its test, whatever comes of that.
    struct Ending(std::process::Child);

    impl Ending {
        fn of(command: &mut Command) -> Self {
            let silent = command.stdout(Stdio::null()).stderr(Stdio::null());
            Ending(silent.spawn().unwrap())
        }
    }

    impl Drop for Ending {
        fn drop(&mut self) {
            // Fails only for one that has ended already.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn marked_processes_are_found_and_ended() {
        let lab = format!("unit-{}", std::process::id());
        let mut command = marked(Path::new("/bin/sleep"), &lab, "node1/pod1");
        let mut obeys = Ending::of(command.arg("60"));
        let mut command = marked(Path::new("/bin/sh"), &lab, "node1");
        let mut stubborn =
            Ending::of(command.args(["-c", "trap '' TERM; while :; do /bin/sleep 60; done"]));
        // The kernel shows a new program's environment a moment after its start.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = processes(&lab).unwrap().into_iter().map(|p| p.place);
            let mut places: Vec<_> = found.collect();
            places.sort();
            places.dedup();
            if places.len() == 2 || Instant::now() >= deadline {
                assert_eq!(places, ["node1", "node1/pod1"]);
                break;
            }
        }
        assert_eq!(processes("another").unwrap(), []);
        let ended = end_all(&lab, || {
            let _ = (obeys.0.try_wait(), stubborn.0.try_wait());
        });
        assert!(ended.unwrap() >= 2);
        assert_eq!(processes(&lab).unwrap(), []);
    }
}
