//! The hand-over of finished tables from the control plane to the forwarding threads.
//!
//! One [`Snapshot`] holds the current table behind an atomic pointer ([`arc_swap`]). Each
//! forwarding thread owns a [`Reader`], which keeps a reference of its own: asking "is mine still
//! the current one?" is one relaxed load of a pointer that changes a few times a minute, so its
//! cache line stays shared and no reader writes to memory that another reader touches. Only when
//! the pointer moved does a reader take a new reference.
//!
//! A publisher swaps the pointer and never waits for a reader, nor a reader for it: a reader in the
//! middle of a batch goes on with the table it has. A table is immutable, so what a reader holds is
//! whole and consistent by construction.
//!
//! Freeing ten thousand peers takes long enough to lose packets, and with plain reference counts it
//! would fall to whoever lets go last, which is a reader. So the publisher keeps what it replaced
//! and frees it at a later `publish`, when no reader holds it any more. The price is memory: one
//! old table, and one more for each reader that sleeps through publishes.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;

/// The current value of a table that many threads read and one task replaces. Clones share it.
#[derive(Debug)]
pub struct Snapshot<T> {
    shared: Arc<Shared<T>>,
}

#[derive(Debug)]
struct Shared<T> {
    // An Arc of its own because `Cache` wants something that derefs to the ArcSwap.
    current: Arc<ArcSwap<T>>,
    // Only publishers lock this; readers never see it.
    retired: Mutex<Vec<Arc<T>>>,
}

impl<T> Clone for Snapshot<T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<T> Snapshot<T> {
    /// Starts with `first`.
    pub fn new(first: impl Into<Arc<T>>) -> Self {
        Self {
            shared: Arc::new(Shared {
                current: Arc::new(ArcSwap::new(first.into())),
                retired: Mutex::new(Vec::new()),
            }),
        }
    }

    /// Makes `next` the current value. Readers see it at their next [`Reader::load`]; none is
    /// waited for. What was replaced is freed here, now or at a later call, once no reader holds
    /// it.
    pub fn publish(&self, next: impl Into<Arc<T>>) {
        let old = self.shared.current.swap(next.into());
        let mut retired = self
            .shared
            .retired
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        retired.push(old);
        // A count of one is ours alone, and stays so: the current pointer has moved on, so nobody
        // can take a new reference.
        retired.retain(|table| Arc::strong_count(table) > 1);
    }

    /// The current value, for the control plane. Forwarding threads use a [`Reader`].
    pub fn load_full(&self) -> Arc<T> {
        self.shared.current.load_full()
    }

    /// A reader for one thread.
    pub fn reader(&self) -> Reader<T> {
        Reader {
            cache: Cache::new(Arc::clone(&self.shared.current)),
        }
    }
}

/// One thread's view of a [`Snapshot`].
#[derive(Clone, Debug)]
pub struct Reader<T> {
    cache: Cache<Arc<ArcSwap<T>>, Arc<T>>,
}

impl<T> Reader<T> {
    /// The current value: one relaxed atomic load when nothing was published since the last call.
    /// Call it once per batch and work with the one table throughout, so that every decision about
    /// a packet comes from the same state.
    #[inline]
    pub fn load(&mut self) -> &Arc<T> {
        self.cache.load()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread::{self, ThreadId};

    use super::*;

    #[test]
    fn a_reader_sees_what_was_published() {
        let snapshot = Snapshot::new(1);
        let mut reader = snapshot.reader();
        assert_eq!(**reader.load(), 1);
        let held = Arc::clone(reader.load());
        snapshot.clone().publish(2);
        assert_eq!(*held, 1, "a table in use does not change");
        assert_eq!(**reader.load(), 2);
        assert_eq!(*snapshot.load_full(), 2);
        assert_eq!(**snapshot.reader().load(), 2);
    }

    /// A table whose parts must agree: one that is half old, half new would show.
    fn table(version: usize) -> Vec<usize> {
        vec![version; 256]
    }

    #[test]
    fn readers_see_whole_tables_in_order_while_a_publisher_swaps() {
        const VERSIONS: usize = 20_000;
        let snapshot: Snapshot<Vec<usize>> = Snapshot::new(table(0));
        let done = AtomicBool::new(false);
        let start = Barrier::new(4);
        thread::scope(|scope| {
            let readers: Vec<_> = (0..3)
                .map(|_| {
                    let mut reader = snapshot.reader();
                    let (done, start) = (&done, &start);
                    scope.spawn(move || {
                        start.wait();
                        let mut last = 0;
                        // Whether it ends is read first, so that one load follows the last publish.
                        loop {
                            let end = done.load(Ordering::Acquire);
                            let table = reader.load();
                            let version = table[0];
                            assert!(table.iter().all(|part| *part == version), "torn table");
                            assert!(version >= last, "went back from {last} to {version}");
                            last = version;
                            if end {
                                return last;
                            }
                        }
                    })
                })
                .collect();
            start.wait();
            for version in 1..=VERSIONS {
                snapshot.publish(table(version));
            }
            done.store(true, Ordering::Release);
            for reader in readers {
                assert_eq!(reader.join().unwrap(), VERSIONS);
            }
        });
    }

    #[test]
    fn neither_side_waits_for_the_other() {
        // A reader that never comes back to load does not keep the publisher from its work, and a
        // publisher that holds its own lock does not keep a reader from loading. Each would hang
        // here, not merely be slow.
        let snapshot = Snapshot::new(0);
        let mut asleep = snapshot.reader();
        let held = Arc::clone(asleep.load());
        for version in 1..=1_000 {
            snapshot.publish(version);
        }
        assert_eq!(*held, 0);
        let locked = snapshot.shared.retired.lock().unwrap();
        assert_eq!(**asleep.load(), 1_000);
        assert_eq!(**snapshot.reader().load(), 1_000);
        drop(locked);
    }

    /// Notes which thread freed it.
    struct Freed(Arc<Mutex<Vec<ThreadId>>>);

    impl Drop for Freed {
        fn drop(&mut self) {
            self.0.lock().unwrap().push(thread::current().id());
        }
    }

    #[test]
    fn tables_are_freed_by_the_publisher_and_not_kept() {
        let freed = Arc::new(Mutex::new(Vec::new()));
        let snapshot = Snapshot::new(Freed(Arc::clone(&freed)));
        let mut reader = snapshot.reader();
        for round in 1..=10 {
            snapshot.publish(Freed(Arc::clone(&freed)));
            // The reader lets go of its old table after the publisher did, on a thread of its own.
            thread::scope(|scope| {
                scope.spawn(|| {
                    reader.load();
                });
            });
            // All but the one just replaced, which the reader held until now.
            assert_eq!(freed.lock().unwrap().len(), round - 1);
        }
        assert!(
            freed
                .lock()
                .unwrap()
                .iter()
                .all(|thread| *thread == thread::current().id())
        );
    }
}
