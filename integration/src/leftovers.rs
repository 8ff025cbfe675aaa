//! Removes what test processes that were killed have left: namespaces, the daemons in them, directories. All carry the
//! process id of the test process in their names.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlayd::kernel::NetNs;

/// What every name that these tests make begins with.
pub(crate) const PREFIX: &str = "ovt-";

/// The beginning of this process's names.
pub(crate) fn own_prefix() -> String {
    format!("{PREFIX}{}-", std::process::id())
}

/// Removes what dead test processes have left: namespaces, daemons in them, directories. The first bed of a process does
/// it. What is in the way of it is not this test's business.
pub fn sweep() {
    for name in NetNs::list_named().unwrap_or_default() {
        if is_of_the_dead(&name) {
            end_processes_in(&name);
            let _ = NetNs::delete_named(&name);
        }
    }
    for entry in fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        if entry.file_name().to_str().is_some_and(is_of_the_dead) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn is_of_the_dead(name: &str) -> bool {
    let pid = name.strip_prefix(PREFIX).and_then(|rest| {
        let (pid, _) = rest.split_once('-')?;
        pid.parse::<u32>().ok()
    });
    pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

/// Kills the processes that live in the namespace: only ours ever were let into it.
fn end_processes_in(name: &str) {
    let Ok(namespace) = NetNs::open(name).and_then(|namespace| namespace.id()) else {
        return;
    };
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse().ok()) else {
            continue;
        };
        let lives_there = fs::metadata(entry.path().join("ns/net"))
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == namespace);
        if lives_there {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
