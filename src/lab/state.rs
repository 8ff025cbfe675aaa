//! What a lab leaves on disk: `/run/overlayd/lab/<lab>/`, made before anything else is and removed last.
//!
//! `state.json` says what the lab consists of. Namespaces have names that follow from it, processes carry marks
//! ([`super::holder`]), devices and addresses go with their namespaces: so whatever moment an `up` was killed at, this
//! file is enough to take everything away.
//!
//! The directory is locked (flock(2)) while a lab is built or taken down. The lock ends with its process, and with any
//! child of it that is still on the way from fork to exec: so whoever gets the lock sees every process of the lab.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use serde::{Deserialize, Serialize};

use super::topology::Spec;

/// Where the labs stand.
pub const ROOT: &str = "/run/overlayd/lab";

const VERSION: u32 = 1;

/// How long a lock may stay with a process that is ending.
const PATIENCE: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(5);

/// The content of `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The version of this format.
    pub version: u32,
    /// What the lab consists of.
    pub spec: Spec,
    /// `up` has come to its end; otherwise it is at work, or was killed.
    pub complete: bool,
}

/// The directory of a lab.
pub fn dir(lab: &str) -> PathBuf {
    Path::new(ROOT).join(lab)
}

/// The names of all labs there are, whole or not.
///
/// # Errors
/// When the directory of labs is there but cannot be read.
pub fn list() -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(ROOT) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// The state of a lab. `None`: there is no such lab, or it was killed before it had made anything.
///
/// # Errors
/// When the file is there but makes no sense.
pub fn read(lab: &str) -> Result<Option<State>> {
    let path = dir(lab).join("state.json");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    let state: State = serde_json::from_slice(&text)
        .with_context(|| format!("{} makes no sense", path.display()))?;
    if state.version != VERSION {
        bail!(
            "{} is of version {}, this overlayd knows {VERSION}: use the overlayd that made the lab",
            path.display(),
            state.version
        );
    }
    Ok(Some(state))
}

/// Why a lab of this name cannot be built.
pub(super) fn there_already(lab: &str) -> anyhow::Error {
    let down = command(lab, "down");
    anyhow::anyhow!(
        "there is a lab {lab:?} already: take it down with `{down}`, or choose another name"
    )
}

/// The directory of a lab, locked: nobody else builds it or takes it down.
#[derive(Debug)]
pub(super) struct Locked {
    lab: String,
    _lock: Flock<File>,
}

impl Locked {
    /// Makes the directory of a new lab and writes its state.
    pub(super) fn create(spec: &Spec) -> Result<Self> {
        let path = dir(&spec.name);
        make(&path).map_err(|e| {
            if e.kind() == io::ErrorKind::AlreadyExists {
                there_already(&spec.name)
            } else {
                anyhow::Error::new(e).context(format!("cannot make {}", path.display()))
            }
        })?;
        let locked = Self::lock(&spec.name)?;
        match locked.write(spec, false) {
            Ok(()) => Ok(locked),
            Err(error) => {
                // An empty directory would pass for a lab.
                locked.remove()?;
                Err(error)
            }
        }
    }

    /// Locks the directory of a lab that is there.
    pub(super) fn open(lab: &str) -> Result<Option<Self>> {
        if !dir(lab).exists() {
            return Ok(None);
        }
        Self::lock(lab).map(Some)
    }

    fn lock(lab: &str) -> Result<Self> {
        let path = dir(lab);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let file =
                File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => {
                    return Ok(Self {
                        lab: lab.to_owned(),
                        _lock: lock,
                    });
                }
                Err((_, Errno::EWOULDBLOCK)) if Instant::now() < deadline => thread::sleep(POLL),
                Err((_, Errno::EWOULDBLOCK)) => bail!(
                    "lab {lab:?} is just being built or taken down by another overlayd: let it finish or interrupt it"
                ),
                Err((_, e)) => {
                    return Err(e).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
        }
    }

    /// Writes the state: whole, or not at all.
    pub(super) fn write(&self, spec: &Spec, complete: bool) -> Result<()> {
        let state = State {
            version: VERSION,
            spec: spec.clone(),
            complete,
        };
        let path = dir(&self.lab).join("state.json");
        let new = path.with_extension("json.new");
        fs::write(&new, serde_json::to_vec_pretty(&state)?)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes the directory, and those above it if they are empty now.
    pub(super) fn remove(self) -> Result<()> {
        let path = dir(&self.lab);
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
        for parent in path.ancestors().skip(1).take(2) {
            // Not empty: of other labs, or of a daemon of this host.
            if fs::remove_dir(parent).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// What to type for a command of `overlayd lab` that is about this lab.
pub(crate) fn command(lab: &str, command: &str) -> String {
    if lab == super::topology::DEFAULT_NAME {
        format!("overlayd lab {command}")
    } else {
        format!("overlayd lab {command} --name {lab}")
    }
}

fn make(path: &Path) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    // Another lab that goes away may just remove the empty parent under us.
    for _ in 0..10 {
        fs::create_dir_all(parent)?;
        match fs::create_dir(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
    }
    fs::create_dir(path)
}
