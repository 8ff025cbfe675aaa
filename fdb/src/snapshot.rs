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
