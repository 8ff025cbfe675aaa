//! Processes in a lab's namespaces that are not the lab's: shells, captures, a daemon started by hand.
//!
//! They are not ours to end, but each keeps its namespace alive after the lab is gone.

use std::{collections::HashMap, fs, io, os::unix::fs::MetadataExt, path::Path};

use anyhow::Result;

use super::{known, plan::NodePlan};
use crate::{kernel::NetNs, lab::holder};

/// A process in a lab's namespace that does not belong to the lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Its process id.
    pub pid: u32,
    /// Where it runs: `node1`, `node1/pod2` or `underlay`.
    pub place: String,
    /// Its program and arguments.
    pub command: String,
    /// Device and inode of its namespace.
    namespace: (u64, u64),
}

impl Guest {
    /// It has not ended, nor left its namespace: so this is not another process with the same id either.
    pub fn still_runs(&self) -> bool {
        namespace_of(self.pid).is_ok_and(|id| id == self.namespace)
    }
}

/// The guests in a lab's namespaces, in the order of their ids.
///
/// # Errors
/// When there is no such lab, or one cannot look.
pub fn guests(name: &str) -> Result<Vec<Guest>> {
    let spec = known(name)?.spec;
    let own = holder::processes(name)?;
    // What was killed before all of it stood has only some of them.
    let mut places = HashMap::new();
    let mut named = vec![
        ("underlay".to_owned(), spec.underlay_namespace()),
        ("router".to_owned(), spec.router_namespace()),
        ("etcd".to_owned(), spec.etcd_namespace()),
    ];
    named.extend(spec.node_plans().into_iter().map(
        |NodePlan {
             name, namespace, ..
         }| (name, namespace),
    ));
    for (place, namespace) in named {
        if let Ok(id) = NetNs::open(namespace).and_then(|namespace| namespace.id()) {
            places.insert(id, place);
        }
    }
    for process in own.iter().filter(|process| process.place.contains('/')) {
        if let Ok(id) = namespace_of(process.pid) {
            places.insert(id, process.pod().to_owned());
        }
    }
    // A holder that died in the midst of its start may still have been in ours.
    places.remove(&NetNs::current()?.id()?);

    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?.file_name();
        let Some(pid) = entry.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if pid == std::process::id() || own.iter().any(|process| process.pid == pid) {
            continue;
        }
        // One that ends meanwhile cannot be read.
        let Ok(namespace) = namespace_of(pid) else {
            continue;
        };
        if let Some(place) = places.get(&namespace) {
            found.push(Guest {
                pid,
                place: place.clone(),
                command: command_of(pid),
                namespace,
            });
        }
    }
    found.sort_by_key(|guest| guest.pid);
    Ok(found)
}

fn namespace_of(pid: u32) -> io::Result<(u64, u64)> {
    let meta = fs::metadata(Path::new("/proc").join(pid.to_string()).join("ns/net"))?;
    Ok((meta.dev(), meta.ino()))
}

/// The arguments in `/proc/PID/cmdline` end with a null byte each.
fn command_of(pid: u32) -> String {
    let line = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline"));
    let line = line.unwrap_or_default();
    let line = String::from_utf8_lossy(&line);
    line.trim_end_matches('\0').replace('\0', " ")
}
