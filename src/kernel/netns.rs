//! Network namespaces: open, make, name, enter.
//!
//! Names are iproute2's: a bind mount of the namespace under `/run/netns`, made as `ip netns add` makes it (ip/ipnetns.c
//! `netns_add`), so that `ip netns list|exec|del` sees and handles ours and we see and handle theirs.
//!
//! A network namespace is a property of a thread (setns(2)), so everything that happens in another namespace happens on
//! a fresh thread that ends afterwards: no thread of a pool is ever left in the wrong one.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
        unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Arc,
    thread,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};

/// Where iproute2 keeps the names.
pub const NAMED: &str = "/run/netns";

/// An open network namespace. It lives at least as long as this handle (and its clones) do.
#[derive(Debug, Clone)]
pub struct NetNs {
    file: Arc<File>,
    label: String,
}

impl fmt::Display for NetNs {
    /// The name, path or process it was opened by.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl NetNs {
    /// The calling thread's namespace.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        Self::at("/proc/thread-self/ns/net", "the current one")
    }

    /// The namespace with this name under `/run/netns`; anything with a `/` in it is a path.
    ///
    /// # Errors
    /// When there is none, or it is not a namespace file; the message names it.
    pub fn open(name_or_path: impl AsRef<str>) -> io::Result<Self> {
        let name = name_or_path.as_ref();
        if name.contains('/') {
            Self::at(name, name)
        } else {
            Self::at(named_path(name)?, name)
        }
    }

    /// The namespace that the process lives in.
    ///
    /// # Errors
    /// When the process is gone or not ours to look at.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::at(format!("/proc/{pid}/ns/net"), format!("of process {pid}"))
    }

    fn at(path: impl AsRef<Path>, label: impl Into<String>) -> io::Result<Self> {
        let (path, label) = (path.as_ref(), label.into());
        let file =
            File::open(path).map_err(|e| context(e, format!("open network namespace {label}")))?;
        // A name that `ip netns add` was killed over is an empty plain file: setns would only say EINVAL.
        if fstatfs(&file)?.filesystem_type() != NSFS_MAGIC {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is not a network namespace", path.display()),
            ));
        }
        Ok(Self {
            file: Arc::new(file),
            label,
        })
    }

    /// A new namespace without a name: it is gone when the last handle, thread, process and device of it is.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN.
    pub fn create_unnamed() -> io::Result<Self> {
        on_fresh_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|e| context(e.into(), "make a network namespace"))?;
            Self::at("/proc/thread-self/ns/net", "unnamed")
        })?
    }

    /// Makes a namespace and names it, as `ip netns add` does.
    ///
    /// # Errors
    /// When the name is taken (`AlreadyExists`) or unusable, or without CAP_SYS_ADMIN.
    pub fn create_named(name: &str) -> io::Result<Self> {
        let path = named_path(name)?;
        let attempt = || format!("add network namespace {name}");
        share_names().map_err(|e| context(e, attempt()))?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o000)
            .open(&path)
            .map_err(|e| context(e, attempt()))?;
        let made = on_fresh_thread(|| -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let none: Option<&str> = None;
            Ok(mount(
                Some("/proc/thread-self/ns/net"),
                &path,
                none,
                MsFlags::MS_BIND,
                none,
            )?)
        });
        match made.and_then(|r| r) {
            Ok(()) => Self::at(&path, name),
            Err(e) => {
                // Nothing is mounted there: the bare file must not stay behind as a broken name.
                let _ = fs::remove_file(&path);
                Err(context(e, attempt()))
            }
        }
    }

    /// Takes the name away, as `ip netns del` does. The namespace itself ends with its last process and handle.
    ///
    /// Also removes the plain file that a killed `create_named` or `ip netns add` leaves. `Ok(false)`: no such name.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN.
    pub fn delete_named(name: &str) -> io::Result<bool> {
        let path = named_path(name)?;
        let attempt = || format!("delete network namespace {name}");
        match umount2(&path, MntFlags::MNT_DETACH) {
            // EINVAL: not a mount point.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(Errno::ENOENT) => return Ok(false),
            Err(e) => return Err(context(e.into(), attempt())),
        }
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(context(e, attempt())),
        }
    }

    /// The names under `/run/netns`, sorted.
    ///
    /// # Errors
    /// When the directory exists but cannot be read.
    pub fn list_named() -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(NAMED) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(context(e, format!("read {NAMED}"))),
        };
        let mut names = Vec::new();
        for entry in entries {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Runs `f` inside the namespace, on a fresh OS thread, and waits for it. A panic in `f` goes on in the caller.
    ///
    /// # Errors
    /// When the namespace cannot be entered (CAP_SYS_ADMIN) or no thread can be made. `f` has not run then.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_fresh_thread(|| {
            setns(self, CloneFlags::CLONE_NEWNET)
                .map_err(|e| context(e.into(), format!("enter network namespace {self}")))?;
            Ok(f())
        })?
    }

    /// Starts a process inside the namespace.
    ///
    /// A child starts where the thread that makes it stands, so nothing has to run between fork and exec.
    ///
    /// # Errors
    /// As [`NetNs::run`] and [`Command::spawn`].
    pub fn spawn(&self, mut command: Command) -> io::Result<Child> {
        self.run(move || {
            let program = command.get_program().to_string_lossy().into_owned();
            command
                .spawn()
                .map_err(|e| context(e, format!("start {program}")))
        })?
    }

    /// What tells this namespace from every other one alive: device and inode of its nsfs file.
    ///
    /// # Errors
    /// Only if the handle were broken.
    pub fn id(&self) -> io::Result<(u64, u64)> {
        let meta = self.file.metadata()?;
        Ok((meta.dev(), meta.ino()))
    }

    /// The raw descriptor, for a netlink attribute that names a namespace by it (IFLA_NET_NS_FD).
    pub(super) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn context(error: io::Error, attempt: impl Into<String>) -> io::Error {
    // Keeps the kind, so that callers can still tell AlreadyExists from PermissionDenied.
    io::Error::new(error.kind(), super::Error::new(attempt, error))
}

fn named_path(name: &str) -> io::Result<PathBuf> {
    if name.is_empty() || name == "." || name == ".." || name.contains('/') || name.contains('\0') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} cannot name a network namespace"),
        ));
    }
    Ok(Path::new(NAMED).join(name))
}

fn on_fresh_thread<T: Send>(f: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, f)?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Makes `/run/netns` a shared mount of its own, once, so that names made later appear in, and vanish from, every other
/// mount namespace too (systemd services with private mounts would otherwise hold on to deleted namespaces).
///
/// The lock is the one iproute2 takes (on the directory itself), so that two that start at once do not both bind it.
fn share_names() -> io::Result<()> {
    fs::create_dir_all(NAMED)?;
    // As iproute2 leaves it, whatever our umask.
    fs::set_permissions(NAMED, fs::Permissions::from_mode(0o755))?;
    let _lock = Flock::lock(File::open(NAMED)?, FlockArg::LockExclusive).map_err(|(_, e)| e)?;
    let none: Option<&str> = None;
    let share = || {
        mount(
            none,
            NAMED,
            none,
            MsFlags::MS_SHARED | MsFlags::MS_REC,
            none,
        )
    };
    match share() {
        // EINVAL: not a mount point yet.
        Err(Errno::EINVAL) => {
            mount(
                Some(NAMED),
                NAMED,
                none,
                MsFlags::MS_BIND | MsFlags::MS_REC,
                none,
            )?;
            Ok(share()?)
        }
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_directory() {
        for name in ["", ".", "..", "a/b", "/etc/passwd", "a\0b"] {
            assert!(named_path(name).is_err(), "{name:?}");
        }
        assert_eq!(
            named_path("lab-node1").unwrap(),
            Path::new("/run/netns/lab-node1")
        );
    }

    #[test]
    fn a_missing_namespace_is_named_in_the_error() {
        let error = NetNs::open("no-such-namespace-here").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(
            error.to_string(),
            "open network namespace no-such-namespace-here: No such file or directory"
        );
        let error = NetNs::open("/etc/passwd").unwrap_err();
        assert_eq!(error.to_string(), "/etc/passwd is not a network namespace");
    }

    #[test]
    fn a_panic_on_the_fresh_thread_goes_on_in_the_caller() {
        let caught = std::panic::catch_unwind(|| on_fresh_thread(|| panic!("inside")));
        let payload = caught.unwrap_err();
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"inside"));
    }
}
