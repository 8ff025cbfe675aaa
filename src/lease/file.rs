//! The file store: leases in a JSON file that people or tools rewrite.
//!
//! A file is replaced in many ways: written in place, renamed over, removed and made again, or (a
//! Kubernetes ConfigMap) a symlink to its directory is swapped:
//!
//! ```text
//! leases.json -> ..data/leases.json
//! ..data -> ..2025_01_01/            a rename swaps this one
//! ```
//!
//! So the watch is on directories: the file's own and that of every symlink's target on the way,
//! found anew after each event. inotify can miss things (a directory that is removed and made
//! again, network file systems), so the file's identity is compared every two seconds as well.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::Lease;
use super::parse::{self, LeaseError, Wrong};

/// A file longer than this is not read: ten thousand leases take two megabytes.
const LONGEST_FILE: u64 = 64 << 20;
/// A change is reported when nothing else has happened for this long.
const QUIET: Duration = Duration::from_millis(50);
/// A change is reported after this long even if more keep coming.
const LONGEST_WAIT: Duration = Duration::from_millis(500);
/// How often the file is looked at without being told to.
const POLL: Duration = Duration::from_secs(2);
/// The kernel's own limit for one path (`MAXSYMLINKS`).
const MOST_SYMLINKS: usize = 40;

/// Leases in a JSON file.
#[derive(Clone, Debug)]
pub struct FileStore {
    path: PathBuf,
}

impl FileStore {
    /// A store on a file that need not be there yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        FileStore {
            path: std::path::absolute(&path).unwrap_or(path),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file.
    ///
    /// # Errors
    /// With the file's name; a half-written file is [`Wrong::Syntax`], a missing one
    /// [`Wrong::NotFound`]. Whoever has a good table keeps it.
    pub fn load(&self) -> Result<Vec<Lease>, LeaseError> {
        read(&self.path)
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => Wrong::NotFound.into(),
                _ => Wrong::Io(error).into(),
            })
            .and_then(|bytes| parse::parse(&bytes))
            .map_err(|error| LeaseError {
                path: Some(self.path.clone()),
                ..error
            })
    }

    /// Watches the file from now on: a message means "it may have changed, look again". Changes
    /// that come close together make one message.
    ///
    /// The watch ends some time after the receiver is dropped.
    ///
    /// # Errors
    /// Where no thread can be started. Without inotify the file is still looked at regularly.
    pub fn watch(&self) -> io::Result<mpsc::Receiver<()>> {
        let (ticks, receiver) = mpsc::channel(1);
        // The state to compare with is that of the call, not of the thread's first turn.
        let mut watch = Watch::new(self.path.clone());
        thread::Builder::new()
            .name("lease-watch".to_owned())
            .spawn(move || watch.run(&ticks))?;
        Ok(receiver)
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Opening a FIFO would wait for a writer.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(LONGEST_FILE + 1)
        .read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > LONGEST_FILE) {
        return Err(io::Error::other(format!(
            "longer than {} MiB",
            LONGEST_FILE >> 20
        )));
    }
    Ok(bytes)
}

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    dev: u64,
    ino: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
    size: u64,
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Stamp {
            dev: meta.dev(),
            ino: meta.ino(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
            size: meta.size(),
        })
    }
}

struct Watch {
    path: PathBuf,
    stamp: Option<Stamp>,
    /// Holds one wake-up: more would say nothing new.
    events: std_mpsc::Receiver<()>,
    /// An event named our file: it counts even if the new state looks like the old (a second write
    /// of the same size within one tick of the file system's clock).
    named: Arc<AtomicBool>,
    watcher: Option<RecommendedWatcher>,
    /// Watched directories, by device and inode: a directory made again is another one.
    watched: BTreeMap<PathBuf, (u64, u64)>,
}

impl Watch {
    fn new(path: PathBuf) -> Self {
        let (wake, events) = std_mpsc::sync_channel(1);
        let named = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&named);
        let name = path.file_name().map(OsStr::to_owned);
        let handler = move |event: notify::Result<Event>| {
            // An error may hide any event.
            let (counts, ours) = event.map_or((true, true), |event| {
                let ours = event
                    .paths
                    .iter()
                    .any(|path| path.file_name() == name.as_deref());
                (changes_something(event.kind), ours)
            });
            if counts {
                seen.fetch_or(ours, Ordering::Relaxed);
                // A full channel holds this wake-up already.
                let _ = wake.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(handler)
            .inspect_err(|error| {
                tracing::warn!(%error, "no inotify: the lease file is looked at every {POLL:?} instead");
            })
            .ok();
        let mut watch = Watch {
            stamp: None,
            path,
            events,
            named,
            watcher,
            watched: BTreeMap::new(),
        };
        watch.renew();
        watch.stamp = Stamp::of(&watch.path);
        watch
    }

    fn run(&mut self, ticks: &mpsc::Sender<()>) {
        while !ticks.is_closed() {
            match self.events.recv_timeout(POLL) {
                Ok(()) => self.settle(),
                Err(std_mpsc::RecvTimeoutError::Timeout) => {}
                // Without a watcher nobody sends, and the waiting is ours.
                Err(std_mpsc::RecvTimeoutError::Disconnected) => thread::sleep(POLL),
            }
            let named = self.named.swap(false, Ordering::Relaxed);
            self.renew();
            // Looked at after the watches stand, so that no change falls in between.
            let stamp = Stamp::of(&self.path);
            if named || stamp != self.stamp {
                self.stamp = stamp;
                // A full channel holds an unread tick: its reader will see this change too.
                let _ = ticks.try_send(());
            }
        }
    }

    /// Waits until it has been quiet, but not for ever.
    fn settle(&mut self) {
        let end = Instant::now() + LONGEST_WAIT;
        while Instant::now() < end && self.events.recv_timeout(QUIET).is_ok() {}
    }

    /// Watches the directories that matter now.
    fn renew(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let wanted = directories(&self.path);
        if wanted == self.watched {
            return;
        }
        for gone in self
            .watched
            .keys()
            .filter(|dir| wanted.get(*dir) != self.watched.get(*dir))
        {
            // Its watch may have died with it.
            let _ = watcher.unwatch(gone);
        }
        let mut watched = BTreeMap::new();
        for (dir, id) in wanted {
            let old = self.watched.get(&dir) == Some(&id);
            if old || watcher.watch(&dir, RecursiveMode::NonRecursive).is_ok() {
                watched.insert(dir, id);
            }
        }
        self.watched = watched;
    }
}

/// Reading the file must not count as a change of it.
fn changes_something(kind: EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

/// The directories in which a change can make the path lead to another file: those of the path
/// itself and of every symlink it leads through, and that of the file in the end.
fn directories(path: &Path) -> BTreeMap<PathBuf, (u64, u64)> {
    let mut found = BTreeMap::new();
    let mut add = |file: &Path| {
        if let Some(dir) = file.parent() {
            if let Ok(meta) = fs::metadata(dir) {
                found.insert(dir.to_owned(), (meta.dev(), meta.ino()));
            }
        }
    };
    let mut step = path.to_owned();
    for _ in 0..MOST_SYMLINKS {
        add(&step);
        let Ok(target) = fs::read_link(&step) else {
            break;
        };
        step = step.parent().unwrap_or(Path::new("/")).join(target);
    }
    if let Ok(end) = fs::canonicalize(path) {
        add(&end);
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    const ONE: &str = r#"[{"Subnet": "10.244.1.0/24", "PublicIP": "10.99.0.1"}]"#;
    const TWO: &str = r#"[{"Subnet": "10.244.2.0/24", "PublicIP": "10.99.0.2"}]"#;

    /// A tick within this time, or none. Longer than the poll, so that a watch that only polls
    /// passes too; `soon` tells the two apart.
    const LONG: Duration = Duration::from_secs(6);

    struct Bed {
        dir: TempDir,
        store: FileStore,
        ticks: mpsc::Receiver<()>,
    }

    impl Bed {
        fn new(prepare: impl FnOnce(&Path)) -> Self {
            let dir = TempDir::new().unwrap();
            prepare(dir.path());
            let store = FileStore::new(dir.path().join("leases.json"));
            let ticks = store.watch().unwrap();
            Bed { dir, store, ticks }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn tick_within(&mut self, time: Duration) -> bool {
            let end = Instant::now() + time;
            while Instant::now() < end {
                if self.ticks.try_recv().is_ok() {
                    return true;
                }
                thread::sleep(Duration::from_millis(5));
            }
            false
        }

        /// A tick that inotify brought: much earlier than the poll would.
        fn soon(&mut self) -> bool {
            self.tick_within(Duration::from_millis(1200))
        }

        /// Reads until the store shows these leases' subnet, driven by ticks alone.
        fn comes_to(&mut self, subnet: &str) {
            let end = Instant::now() + LONG;
            while Instant::now() < end {
                if self.tick_within(LONG) {
                    let now = self.store.load().unwrap_or_default();
                    if now.first().is_some_and(|lease| {
                        lease.subnet.is_some_and(|net| net.to_string() == subnet)
                    }) {
                        return;
                    }
                }
            }
            panic!("no tick led to {subnet}");
        }
    }

    #[test]
    fn loading() {
        let dir = TempDir::new().unwrap();
        let store = FileStore::new(dir.path().join("leases.json"));
        assert!(matches!(store.load().unwrap_err().wrong, Wrong::NotFound));
        fs::write(store.path(), ONE).unwrap();
        assert_eq!(store.load().unwrap().len(), 1);
        fs::write(store.path(), &ONE[..20]).unwrap();
        let error = store.load().unwrap_err();
        assert!(matches!(error.wrong, Wrong::Syntax(_)));
        assert!(
            error.to_string().contains("leases.json: cut off"),
            "{error}"
        );
        assert!(matches!(
            FileStore::new(dir.path()).load().unwrap_err().wrong,
            Wrong::Io(_)
        ));
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(
            FileStore::new(fifo)
                .load()
                .unwrap_err()
                .to_string()
                .contains("not a regular file")
        );
    }

    #[test]
    fn written_in_place() {
        let mut bed = Bed::new(|dir| fs::write(dir.join("leases.json"), ONE).unwrap());
        fs::write(bed.path("leases.json"), TWO).unwrap();
        assert!(bed.soon());
        assert_eq!(
            bed.store.load().unwrap()[0].subnet.unwrap().to_string(),
            "10.244.2.0/24"
        );
    }

    #[test]
    fn renamed_over() {
        let mut bed = Bed::new(|dir| fs::write(dir.join("leases.json"), ONE).unwrap());
        fs::write(bed.path("new"), TWO).unwrap();
        fs::rename(bed.path("new"), bed.path("leases.json")).unwrap();
        bed.comes_to("10.244.2.0/24");
    }

    #[test]
    fn removed_and_made_again() {
        let mut bed = Bed::new(|dir| fs::write(dir.join("leases.json"), ONE).unwrap());
        fs::remove_file(bed.path("leases.json")).unwrap();
        assert!(bed.soon());
        assert!(matches!(
            bed.store.load().unwrap_err().wrong,
            Wrong::NotFound
        ));
        fs::write(bed.path("leases.json"), TWO).unwrap();
        bed.comes_to("10.244.2.0/24");
    }

    #[test]
    fn made_after_the_watch() {
        let mut bed = Bed::new(|_| {});
        fs::write(bed.path("leases.json"), ONE).unwrap();
        assert!(bed.soon());
    }

    #[test]
    fn the_directory_removed_and_made_again() {
        let dir = TempDir::new().unwrap();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("leases.json"), ONE).unwrap();
        let store = FileStore::new(inner.join("leases.json"));
        let ticks = store.watch().unwrap();
        let mut bed = Bed { dir, store, ticks };
        fs::remove_dir_all(&inner).unwrap();
        assert!(bed.tick_within(LONG));
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("leases.json"), TWO).unwrap();
        bed.comes_to("10.244.2.0/24");
        // The new directory is watched as the old one was.
        thread::sleep(Duration::from_millis(300));
        while bed.ticks.try_recv().is_ok() {}
        fs::write(inner.join("leases.json"), ONE).unwrap();
        assert!(bed.soon());
    }

    #[test]
    fn a_config_map_is_swapped() {
        // As the kubelet does it: leases.json -> ..data/leases.json, ..data -> a directory of the
        // moment, replaced by rename.
        let mut bed = Bed::new(|dir| {
            fs::create_dir(dir.join("..1")).unwrap();
            fs::write(dir.join("..1/leases.json"), ONE).unwrap();
            symlink("..1", dir.join("..data")).unwrap();
            symlink("..data/leases.json", dir.join("leases.json")).unwrap();
        });
        fs::create_dir(bed.path("..2")).unwrap();
        fs::write(bed.path("..2/leases.json"), TWO).unwrap();
        symlink("..2", bed.path("..data_tmp")).unwrap();
        fs::rename(bed.path("..data_tmp"), bed.path("..data")).unwrap();
        fs::remove_dir_all(bed.path("..1")).unwrap();
        assert!(bed.soon());
        assert_eq!(
            bed.store.load().unwrap()[0].subnet.unwrap().to_string(),
            "10.244.2.0/24"
        );
        // The new target's directory is watched now.
        thread::sleep(Duration::from_millis(300));
        while bed.ticks.try_recv().is_ok() {}
        fs::write(bed.path("..2/leases.json"), ONE).unwrap();
        assert!(bed.soon());
    }

    #[test]
    fn a_target_in_another_directory_is_written() {
        let other = TempDir::new().unwrap();
        fs::write(other.path().join("real.json"), ONE).unwrap();
        let mut bed = Bed::new(|dir| {
            symlink(other.path().join("real.json"), dir.join("leases.json")).unwrap()
        });
        fs::write(other.path().join("real.json"), TWO).unwrap();
        assert!(bed.soon());
    }

    #[test]
    fn a_link_half_way_is_swapped() {
        let (way, end) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        fs::write(end.path().join("one.json"), ONE).unwrap();
        fs::write(end.path().join("two.json"), TWO).unwrap();
        let link = way.path().join("link.json");
        symlink(end.path().join("one.json"), &link).unwrap();
        let mut bed = Bed::new(|dir| symlink(&link, dir.join("leases.json")).unwrap());
        symlink(end.path().join("two.json"), way.path().join("new")).unwrap();
        fs::rename(way.path().join("new"), &link).unwrap();
        assert!(bed.soon());
    }

    #[test]
    fn neighbours_and_readers_are_nobodys_business() {
        let mut bed = Bed::new(|dir| fs::write(dir.join("leases.json"), ONE).unwrap());
        for n in 0..20 {
            fs::write(bed.path("overlayd.log"), n.to_string()).unwrap();
            bed.store.load().unwrap();
        }
        assert!(
            !bed.tick_within(Duration::from_millis(2600)),
            "one round of the poll included"
        );
    }

    #[test]
    fn many_writes_make_few_ticks() {
        let mut bed = Bed::new(|dir| fs::write(dir.join("leases.json"), ONE).unwrap());
        let end = Instant::now() + Duration::from_millis(1500);
        let mut ticks = 0;
        let mut writes = 0;
        while Instant::now() < end {
            fs::write(
                bed.path("leases.json"),
                if writes % 2 == 0 { TWO } else { ONE },
            )
            .unwrap();
            writes += 1;
            thread::sleep(Duration::from_millis(5));
            ticks += usize::from(bed.ticks.try_recv().is_ok());
        }
        assert!(writes > 50, "{writes}");
        assert!(
            (1..=10).contains(&ticks),
            "{ticks} ticks for {writes} writes: the first may not wait for the last"
        );
        assert!(bed.soon(), "the last change is told");
    }

    #[test]
    fn the_watch_ends_with_its_receiver() {
        let dir = TempDir::new().unwrap();
        let mut watch = Watch::new(dir.path().join("leases.json"));
        let (ticks, receiver) = mpsc::channel(1);
        let thread = thread::spawn(move || watch.run(&ticks));
        drop(receiver);
        let end = Instant::now() + LONG;
        while !thread.is_finished() {
            assert!(Instant::now() < end, "the thread goes on");
            thread::sleep(Duration::from_millis(20));
        }
    }
}
