//! `overlayd lab sh`: a command inside a lab.

use std::os::unix::process::CommandExt as _;
use std::path::Path;

use anyhow::Result;

use super::{Exit, complain, exe};
use crate::lab::topology::Lab;

/// What a shell exits with when it cannot find a command.
const NOT_FOUND: u8 = 127;

/// Becomes the command, inside the place: so its signals, its terminal and its exit code are its own.
pub(super) fn main(name: &str, place: &str, command: &[String]) -> Result<Exit> {
    let exe = exe()?;
    let lab = Lab::load(name, &exe)?;
    let namespace = lab.place(place)?;
    let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned());
    let (program, arguments) = match command.split_first() {
        Some((program, arguments)) => (program.clone(), arguments),
        None => {
            eprintln!("overlayd: a shell in {place} of lab {name:?}; `exit` leaves it");
            (shell, &[][..])
        }
    };
    let node = place.split('/').next().unwrap_or(place);
    let number = lab.nodes().iter().find(|n| n.name == node);
    let files = number.map(|n| (lab.socket(n.number), lab.config(n.number)));
    // Replacing the process ends all its threads but the one that does it, which is inside.
    let error = namespace.run(|| {
        let mut command = std::process::Command::new(&program);
        command.args(arguments).env("PATH", path_with(&exe));
        // Debian's and Ubuntu's shells show it in the prompt.
        command.env("debian_chroot", place);
        match files {
            Some((socket, config)) => command
                .env("OVERLAYD_SOCKET", socket)
                .env("OVERLAYD_CONFIG", config),
            None => command
                .env_remove("OVERLAYD_SOCKET")
                .env_remove("OVERLAYD_CONFIG"),
        };
        command.exec()
    })?;
    let missing = error.kind() == std::io::ErrorKind::NotFound;
    complain(&anyhow::Error::new(error).context(format!("cannot run {program}")));
    if missing {
        // As shells do, so that it is not taken for the command's own exit code.
        std::process::exit(NOT_FOUND.into());
    }
    Ok(Exit::Error)
}

/// $PATH, with this overlayd's own directory first: inside a lab its commands are those of the one that built it.
fn path_with(exe: &Path) -> std::ffi::OsString {
    let old = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let own = exe.parent().map(Path::to_owned);
    // A directory with a colon in its name cannot be told apart: then the old value has to do.
    std::env::join_paths(own.into_iter().chain(std::env::split_paths(&old))).unwrap_or(old)
}
