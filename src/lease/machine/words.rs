//! What the machine is told, what it asks for, and what it tells.

use std::time::Duration;

use crate::lease::Lease;
use crate::lease::pool::Pool;
use crate::lease::schema::Subnets;

/// A key and its value, as etcd has them (`mvccpb.KeyValue`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kv {
    /// The key's last part, behind `<prefix>/subnets/`.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// In which revision of the store the key was made.
    pub create_revision: i64,
    /// In which revision it was last written.
    pub mod_revision: i64,
    /// The etcd lease it goes with, or 0.
    pub lease: i64,
}

/// One change that a watch reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A key was written.
    Put(Kv),
    /// A key was deleted or expired.
    Delete {
        /// The key's last part.
        key: String,
        /// In which revision.
        revision: i64,
    },
    /// `<prefix>/config` was written, or deleted.
    Config(Option<Vec<u8>>),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Answers [`Action::Connect`].
    Connected {
        /// The cluster's id: another one has another history.
        cluster: u64,
        /// The store's revision.
        revision: i64,
        /// `<prefix>/config`.
        config: Option<Vec<u8>>,
    },
    /// Answers [`Action::List`].
    Listed {
        /// The revision the list is of.
        revision: i64,
        /// Every key under `<prefix>/subnets/`.
        kvs: Vec<Kv>,
    },
    /// Answers [`Action::Watch`].
    Watching,
    /// The watch reports. Nothing that came before `revision` is missing.
    Changes {
        /// Up to which revision this goes.
        revision: i64,
        /// What changed; may be nothing.
        changes: Vec<Change>,
    },
    /// The watch's place in the history is compacted away.
    Compacted,
    /// Answers [`Action::Grant`].
    Granted {
        /// The new etcd lease.
        lease: i64,
    },
    /// Answers [`Action::Write`]: done.
    Written {
        /// In which revision.
        revision: i64,
    },
    /// Answers [`Action::Write`]: the key is not as expected.
    Lost {
        /// How the key stands now.
        now: Option<Kv>,
    },
    /// Answers [`Action::Grant`] or [`Action::Write`]: the store works, but refuses.
    Refused {
        /// Why.
        why: String,
    },
    /// Answers anything: the connection is no good any more. Comes by itself too.
    Failed {
        /// Why.
        why: String,
    },
}

/// What is to be done. Each is answered by one event; no other comes before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect anew, to the next endpoint, and ask for the store's place and `<prefix>/config`.
    Connect,
    /// Read every key under `<prefix>/subnets/`.
    List,
    /// Watch `<prefix>/` from this revision on.
    Watch {
        /// The first revision of interest.
        from: i64,
    },
    /// Get an etcd lease of this duration.
    Grant {
        /// How long it lives.
        ttl: Duration,
    },
    /// Compare and swap.
    Write(Write),
}

/// A write under the condition that the key has not changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The key's last part.
    pub key: String,
    /// The `mod_revision` that it must have; 0: it must not be there.
    pub expect: i64,
    /// What to put; nothing: delete it.
    pub put: Option<Put>,
}

/// What to put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// The value.
    pub value: Vec<u8>,
    /// The etcd lease to attach it to, or 0.
    pub lease: i64,
}

/// What does not change while the machine lives.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long a lease lives that is not renewed; flannel's is 24 hours.
    pub ttl: Duration,
    /// How long before its end it is renewed; flannel's default is 1 hour.
    pub margin: Duration,
    /// Where chance begins.
    pub seed: u64,
}

/// What this node wants to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its lease, but for the subnets.
    pub attributes: Lease,
    /// Where subnets may be taken from.
    pub pool: Pool,
    /// The subnets that it would like to have, the best first.
    pub hints: Vec<Subnets>,
}

/// The store as it was known, to be kept over a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// `<prefix>/config`.
    pub config: Option<Vec<u8>>,
    /// Every key.
    pub kvs: Vec<Kv>,
}

/// Something that is not as it should be, from when on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What, and what to do.
    pub what: String,
    /// Since when, on the machine's clock.
    pub since: Duration,
}

/// Something to be said in the log, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// How things are now.
    News(String),
    /// What is not as it should be.
    Trouble(String),
}

/// Counts for people and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Connections made.
    pub connects: u64,
    /// Whole lists read.
    pub lists: u64,
    /// Those that were not the first.
    pub relists: u64,
    /// Connections and requests that failed.
    pub faults: u64,
    /// Changes that the watch reported.
    pub changes: u64,
    /// Unreadable values that came, ever.
    pub unreadable: u64,
    /// Writes that somebody else was faster with.
    pub lost: u64,
    /// Leases taken.
    pub taken: u64,
    /// Renewals of the own lease.
    pub renewals: u64,
    /// The last revision of the store that we know all of.
    pub revision: i64,
}

/// What the machine knows, in order of precedence.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// All leases, our own among them.
    pub leases: Vec<Lease>,
    /// Our own, once there is one.
    pub own: Option<Lease>,
    /// Keys whose values cannot be read, and why.
    pub unreadable: Vec<(String, String)>,
    /// How many keys are reservations.
    pub reservations: usize,
}
