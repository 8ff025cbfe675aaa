//! `overlayd lab sh`: a command inside a lab.

use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Exit, complain, exe, name_option, on_signal};
use crate::lab::topology::{Lab, Stage};
use crate::lab::traffic::Cancel;

/// What a shell exits with when it cannot find a command.
const NOT_FOUND: u8 = 127;
/// What a shell adds to the number of the signal that ended a command.
const SIGNALLED: i32 = 128;

/// Becomes the command, inside the place: so its signals, its terminal and its exit code are its own. In a lab that is
/// not built to its last stage the command may want what is not there yet: it runs as a child then, and when it fails,
/// the way on is named.
pub(super) fn main(name: &str, place: &str, command: &[String]) -> Result<Exit> {
    let exe = exe()?;
    let lab = Lab::load(name, &exe)?;
    let namespace = lab.place(place)?;
    let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned());
    let (program, arguments) = match command.split_first() {
        Some((program, arguments)) => (program.clone(), arguments),
        None => {
            tell!("overlayd: a shell in {place} of lab {name:?}; `exit` leaves it");
            (shell, &[][..])
        }
    };
    let node = place.split('/').next().unwrap_or(place);
    let number = lab.nodes().iter().find(|n| n.name == node);
    let files = number.map(|n| (lab.socket(n.number), lab.config(n.number)));
    let mut inside = Command::new(&program);
    inside.args(arguments).env("PATH", path_with(&exe));
    // Debian's and Ubuntu's shells show it in the prompt.
    inside.env("debian_chroot", place);
    match files {
        Some((socket, config)) => inside
            .env("OVERLAYD_SOCKET", socket)
            .env("OVERLAYD_CONFIG", config),
        None => inside
            .env_remove("OVERLAYD_SOCKET")
            .env_remove("OVERLAYD_CONFIG"),
    };
    let stage = lab.spec().stage;
    let error = if stage < Stage::Overlay && !command.is_empty() {
        let cancel = on_signal()?;
        match namespace.spawn(inside) {
            Ok(child) => {
                let status = wait(child, &cancel)?;
                if !status.success() {
                    let option = name_option(name);
                    tell!(
                        "overlayd: lab {name:?} is built to stage {stage}: what is missing may come with `overlayd lab next{option}`"
                    );
                }
                let signal = status.signal().map(|signal| SIGNALLED + signal);
                std::process::exit(status.code().or(signal).unwrap_or(SIGNALLED));
            }
            Err(error) => error,
        }
    } else {
        // Replacing the process ends all its threads but the one that does it, which is inside.
        namespace.run(|| inside.exec())?
    };
    let missing = error.kind() == io::ErrorKind::NotFound;
    complain(&anyhow::Error::new(error).context(format!("cannot run {program}")));
    if missing {
        // As shells do, so that it is not taken for the command's own exit code.
        std::process::exit(NOT_FOUND.into());
    }
    Ok(Exit::Error)
}

/// Waits for the child. A terminal's signals reach it as they reach us; one that was sent to us alone is passed on, to
/// a child that goes on in spite of it.
fn wait(mut child: Child, cancel: &Cancel) -> Result<ExitStatus> {
    const POLL: Duration = Duration::from_millis(5);
    const GRACE: Duration = Duration::from_secs(1);
    let mut asked: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if cancel.is_set() && asked.get_or_insert_with(Instant::now).elapsed() > GRACE {
            // One that has just ended needs no signal.
            let _ = kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM);
        }
        sleep(POLL);
    }
}

/// $PATH, with this overlayd's own directory first: inside a lab its commands are those of the one that built it.
fn path_with(exe: &Path) -> std::ffi::OsString {
    let old = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let own = exe.parent().map(Path::to_owned);
    // A directory with a colon in its name cannot be told apart: then the old value has to do.
    std::env::join_paths(own.into_iter().chain(std::env::split_paths(&old))).unwrap_or(old)
}
