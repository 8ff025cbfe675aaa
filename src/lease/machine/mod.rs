//! The lease machine: every decision about leases in etcd, without I/O.
//!
//! It is told what happened ([`Machine::handle`]) and what time it is, and says what is to be done
//! ([`Machine::poll`]), one thing at a time. So every fault can be played on a virtual clock.
//!
//! ```text
//!              Connect                 List                 Watch
//!     ┌──────┐ ──────▶ ┌─────────────┐ ────▶ ┌────────────┐ ────▶ ┌────┐
//!     │ down │         │ which place │       │ whole list │       │ up │ ──┐ changes
//!     └──────┘ ◀────── └─────────────┘ ◀──── └────────────┘ ◀──── └────┘ ◀─┘
//!         any failure         │ same history: Watch     ▲   compacted │
//!                             └───────────────────────▶ up ───────────┘
//! ```
//!
//! The own lease, once up. Every write compares the key's revision with what we know: whoever lost the
//! race looks again.
//!
//! ```text
//!   no key has our public IP ── free subnet: the last one, the hint's, a random one ──▶ write if absent
//!   a key has our public IP  ── of this process, or a reservation ──▶ held; renewed before its TTL ends
//!                            ── of an earlier life of ours ─────────▶ write if unchanged
//!                            ── held by us, then written by another ▶ two nodes with one address: say so
//!   held, then gone          ── deleted or expired ─────────────────▶ the same subnet again, if free
//!                            ── another node's ─────────────────────▶ another subnet
//!   an older key overlaps it ───────────────────────────────────────▶ delete if unchanged, another subnet
//! ```
//!
//! Nobody waits for the store: the last known table stays in force however long it is out of reach.

mod own;
mod table;
#[cfg(test)]
mod tests;
mod words;

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use super::Lease;
use super::schema::Subnets;
use own::Own;
use table::Table;

pub use words::{
    Action, Change, Event, Figures, Kv, Note, Put, Saved, Settings, Trouble, View, Wanted, Write,
};

/// The first wait after a failure; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// A connection that lasted this long was a good one: the next wait is short again.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);
/// How long peers are kept that are missing from a list in which we are missing ourselves.
const GRACE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Down { retry: Duration },
    MustList,
    MustWatch,
    Up { since: Duration },
}

/// See the module.
#[derive(Debug)]
pub struct Machine {
    settings: Settings,
    rng: fastrand::Rng,
    link: Link,
    /// An action is on its way.
    busy: bool,
    /// Failures since the last good connection.
    failures: u32,
    /// Why the store is out of reach.
    outage: Option<Trouble>,
    cluster: Option<u64>,
    /// Everything up to this revision is known; 0: nothing is.
    seen: i64,
    /// The answer of a write was lost: done or not, the whole list tells.
    doubtful: bool,
    /// The store's history is not the one we know.
    another_history: bool,
    config: Option<Vec<u8>>,
    table: Table,
    /// Peers that are missing with us, kept for a while.
    ghosts: Vec<Lease>,
    ghosts_end: Duration,
    own: Own,
    generation: u64,
    figures: Figures,
    /// What was last said of the own lease.
    noticed: (Option<String>, Option<Lease>),
    notes: VecDeque<Note>,
}

impl Machine {
    /// A machine that knows nothing and wants nothing yet.
    pub fn new(settings: Settings) -> Self {
        Machine {
            settings,
            rng: fastrand::Rng::with_seed(settings.seed),
            link: Link::Down {
                retry: Duration::ZERO,
            },
            busy: false,
            failures: 0,
            outage: None,
            cluster: None,
            seen: 0,
            doubtful: false,
            another_history: false,
            config: None,
            table: Table::default(),
            ghosts: Vec::new(),
            ghosts_end: Duration::ZERO,
            own: Own::default(),
            generation: 0,
            figures: Figures::default(),
            noticed: (None, None),
            notes: VecDeque::new(),
        }
    }

    /// Takes what an earlier run knew, until the store says better.
    pub fn restore(&mut self, saved: Saved) {
        if self.seen == 0 {
            self.config = saved.config;
            self.table.replace(0, saved.kvs, true);
            self.generation += 1;
        }
    }

    /// What a later run may want to know.
    pub fn to_save(&self) -> Saved {
        Saved {
            config: self.config.clone(),
            kvs: self.table.iter().map(|entry| entry.kv.clone()).collect(),
        }
    }

    /// Tells what the node wants to hold; again, when that changes.
    pub fn want(&mut self, wanted: Wanted) {
        self.own.want(wanted, &self.table);
        self.generation += 1;
    }

    /// Gives the lease back and takes no other.
    ///
    /// # Errors
    /// Why that cannot be.
    pub fn release(&mut self) -> Result<(), String> {
        if !self.is_up() {
            return Err(
                "etcd is out of reach: nothing is released; ask again when it is back".into(),
            );
        }
        self.own.release(&self.table)
    }

    /// Was the lease given back?
    pub fn is_released(&self) -> bool {
        self.own.is_released(&self.table)
    }

    /// The connection stands on an address that the node no longer has: another one, at once. It is nobody's fault.
    /// Only while no action is on its way.
    pub fn reconnect(&mut self, now: Duration) {
        self.link = Link::Down { retry: now };
    }

    /// Takes an event.
    pub fn handle(&mut self, now: Duration, event: Event) {
        match event {
            Event::Connected {
                cluster,
                revision,
                config,
            } => {
                self.busy = false;
                self.figures.connects += 1;
                self.another_history =
                    self.cluster.is_some_and(|known| known != cluster) || revision < self.seen;
                self.cluster = Some(cluster);
                self.set_config(config);
                // Whoever knows everything up to a revision only needs what came after it.
                // After long absence the list is compared as a whole: see `listed`.
                self.link = if self.seen > 0
                    && !self.another_history
                    && !self.doubtful
                    && !self.was_long_away(now)
                {
                    Link::MustWatch
                } else {
                    Link::MustList
                };
            }
            Event::Listed { revision, kvs } => {
                self.busy = false;
                self.figures.lists += 1;
                self.figures.relists += u64::from(self.seen > 0);
                self.listed(now, revision, kvs);
                self.link = Link::MustWatch;
            }
            Event::Watching => {
                self.busy = false;
                self.link = Link::Up { since: now };
                if let Some(outage) = self.outage.take() {
                    let lasted = now.saturating_sub(outage.since);
                    self.note(Note::News(format!(
                        "the store is in reach again, after {:.0?}",
                        Duration::from_secs(lasted.as_secs())
                    )));
                }
            }
            Event::Changes { revision, changes } => self.changed(now, revision, changes),
            Event::Compacted => {
                self.busy = false;
                self.link = Link::MustList;
            }
            Event::Granted { lease } => {
                self.busy = false;
                self.own.granted(lease);
            }
            Event::Written { revision } => {
                self.busy = false;
                if let Some(kv) =
                    self.own
                        .written(revision, &self.settings, &mut self.rng, &mut self.figures)
                {
                    let create_revision = match self.table.get(&kv.key) {
                        Some(entry) => entry.kv.create_revision,
                        None => revision,
                    };
                    self.table.put(Kv {
                        create_revision,
                        ..kv
                    });
                }
                self.generation += 1;
            }
            Event::Lost { now: theirs } => {
                self.busy = false;
                self.figures.lost += 1;
                let key = self.own.lost(now, &mut self.rng);
                match (theirs, key) {
                    (Some(kv), _) => {
                        self.table.put(kv);
                    }
                    // Gone; the watch will tell in which revision.
                    (None, Some((key, expected))) => {
                        self.table.delete(&key, expected + 1);
                    }
                    (None, None) => {}
                }
                self.generation += 1;
            }
            Event::Refused { why } => {
                self.busy = false;
                self.own.refused(now, why, &mut self.rng);
            }
            Event::Failed { why } => {
                self.busy = false;
                self.failed(now, why);
            }
        }
    }

    fn failed(&mut self, now: Duration, why: String) {
        self.figures.faults += 1;
        if let Link::Up { since } = self.link {
            if now.saturating_sub(since) >= GOOD_CONNECTION {
                self.failures = 0;
            }
        }
        self.doubtful |= self.own.forget_write();
        let retry = now + wait(self.failures, LONGEST_WAIT, &mut self.rng);
        self.failures = self.failures.saturating_add(1);
        self.link = Link::Down { retry };
        match &mut self.outage {
            Some(outage) => outage.what = why,
            None => {
                let then = match self.table.iter().next() {
                    Some(_) => "the last known leases stay in force",
                    None => "no leases are known to go on with",
                };
                self.note(Note::Trouble(format!(
                    "the store is out of reach: {why}; {then}"
                )));
                self.outage = Some(Trouble {
                    what: why,
                    since: now,
                });
            }
        }
    }

    /// Was the store out of reach for so long that leases ended which their nodes could not renew?
    fn was_long_away(&self, now: Duration) -> bool {
        let long = self.settings.margin.min(self.settings.ttl / 2);
        let since = self.outage.as_ref().map(|outage| outage.since);
        since.is_some_and(|since| now.saturating_sub(since) >= long)
    }

    fn set_config(&mut self, config: Option<Vec<u8>>) {
        if self.config != config {
            self.config = config;
            self.generation += 1;
        }
    }

    fn listed(&mut self, now: Duration, revision: i64, kvs: Vec<Kv>) {
        if !self.ghosts.is_empty() {
            let back: HashSet<&str> = kvs.iter().map(|kv| &*kv.key).collect();
            self.ghosts
                .retain(|ghost| !back.contains(&*Subnets::of(ghost).key()));
        }
        let missing = self.table.replace(revision, kvs, self.another_history);
        self.seen = if self.another_history {
            revision
        } else {
            self.seen.max(revision)
        };
        (self.another_history, self.doubtful) = (false, false);
        // A store that has forgotten us too has forgotten everybody: it was made anew. And while it was out of
        // reach, leases may have ended whose nodes are well. They will be back as soon as we are.
        let forgot_us = missing.iter().any(|entry| self.own.is_held(&entry.kv.key));
        if forgot_us || self.was_long_away(now) {
            self.keep(now, missing);
        }
        self.generation += 1;
    }

    /// A peer that was kept is back: what becomes of its key from now on holds.
    fn lay_ghost(&mut self, key: &str) {
        if !self.ghosts.is_empty() {
            let subnets = Subnets::parse(key).ok();
            self.ghosts
                .retain(|ghost| Some(Subnets::of(ghost)) != subnets);
        }
    }

    /// Keeps peers for a while whose keys are gone, though the nodes may well be there.
    fn keep(&mut self, now: Duration, missing: Vec<table::Entry>) {
        let peers = missing
            .into_iter()
            .filter(|entry| !self.own.is_held(&entry.kv.key));
        self.ghosts = peers.filter_map(|entry| entry.lease).collect();
        self.ghosts_end = now + GRACE;
        if !self.ghosts.is_empty() {
            self.note(Note::Trouble(format!(
                "the store has forgotten {} nodes: they are kept for {GRACE:?}",
                self.ghosts.len()
            )));
        }
    }

    fn changed(&mut self, now: Duration, revision: i64, changes: Vec<Change>) {
        self.figures.changes += changes.len() as u64;
        // One deletion that takes us and others is no node's leaving: somebody emptied the store.
        let ours = changes.iter().find_map(|change| match change {
            Change::Delete { key, revision } if self.own.is_held(key) => Some(*revision),
            _ => None,
        });
        let with_us = changes.iter().filter_map(|change| match change {
            Change::Delete { key, revision } if Some(*revision) == ours => self.table.get(key),
            _ => None,
        });
        let with_us: Vec<_> = with_us.cloned().collect();
        if with_us.len() > 1 {
            self.keep(now, with_us);
        }
        let mut any = false;
        for change in changes {
            any |= match change {
                Change::Put(kv) => {
                    self.lay_ghost(&kv.key);
                    self.table.put(kv)
                }
                Change::Delete { key, revision } => self.table.delete(&key, revision),
                Change::Config(config) => {
                    self.set_config(config);
                    true
                }
            };
        }
        let unsettled = !self.own.is_settled(self.seen);
        self.seen = self.seen.max(revision);
        if any || (unsettled && self.own.is_settled(self.seen)) {
            self.generation += 1;
        }
    }

    /// What is to be done now, if anything. Call again after each event, and at [`Machine::timeout`].
    pub fn poll(&mut self, now: Duration) -> Option<Action> {
        if !self.ghosts.is_empty() && now >= self.ghosts_end {
            self.ghosts.clear();
            self.generation += 1;
        }
        if self.busy {
            return None;
        }
        let action = match self.link {
            Link::Down { retry } if now < retry => None,
            Link::Down { .. } => Some(Action::Connect),
            Link::MustList => Some(Action::List),
            Link::MustWatch => Some(Action::Watch {
                from: self.seen + 1,
            }),
            Link::Up { .. } => {
                self.own
                    .decide(now, &self.table, self.seen, &self.settings, &mut self.rng)
            }
        };
        self.notice();
        self.busy = action.is_some();
        action
    }

    /// Says what has become of the own lease.
    fn notice(&mut self) {
        let trouble = self.own.trouble().map(|trouble| trouble.what.clone());
        let lease = self.own.lease().cloned();
        if self.noticed == (trouble.clone(), lease.clone()) {
            return;
        }
        let (old_trouble, old_lease) =
            std::mem::replace(&mut self.noticed, (trouble.clone(), lease.clone()));
        if trouble != old_trouble {
            self.notes.extend(trouble.map(Note::Trouble));
        }
        if lease != old_lease {
            let line = lease.map(|lease| format!("this node's lease is {lease}"));
            self.notes.extend(line.map(Note::News));
        }
        self.generation += 1;
    }

    /// When to poll again at the latest, if nothing happens before.
    pub fn timeout(&self) -> Option<Duration> {
        let ghosts = (!self.ghosts.is_empty()).then_some(self.ghosts_end);
        let next = match self.link {
            _ if self.busy => None,
            Link::Down { retry } => Some(retry),
            Link::MustList | Link::MustWatch => Some(Duration::ZERO),
            Link::Up { .. } => self.own.timeout(),
        };
        ghosts.into_iter().chain(next).min()
    }

    /// Grows with every change of the view.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// `<prefix>/config`, as far as is known.
    pub fn config(&self) -> Option<&[u8]> {
        self.config.as_deref()
    }

    /// Has the store been read, once at least?
    pub fn has_listed(&self) -> bool {
        self.seen > 0
    }

    /// Is the store in reach, and watched?
    pub fn is_up(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }

    /// Why the store is out of reach, if it is.
    pub fn outage(&self) -> Option<&Trouble> {
        self.outage.as_ref()
    }

    /// What is wrong with our own lease, if anything.
    pub fn own_trouble(&self) -> Option<&Trouble> {
        self.own.trouble()
    }

    /// When the own lease ends if it is not renewed; a reservation has no end.
    pub fn own_ends(&self) -> Option<Duration> {
        self.own.ends()
    }

    /// Counts.
    pub fn figures(&self) -> Figures {
        Figures {
            unreadable: self.table.unreadable,
            revision: self.seen,
            ..self.figures
        }
    }

    /// What there is to log: what changed for better or worse, never more than one line for each turn.
    pub fn note_to_log(&mut self) -> Option<Note> {
        self.notes.pop_front()
    }

    fn note(&mut self, note: Note) {
        self.notes.push_back(note);
    }

    /// All leases in order of precedence, and what there is to say about them.
    pub fn view(&self) -> View {
        let mut entries: Vec<&table::Entry> = self.table.iter().collect();
        entries.sort_unstable_by(|a, b| a.rank().cmp(&b.rank()));
        let mut leases: Vec<Lease> = Vec::with_capacity(entries.len() + 1);
        let mut own_is_there = self.own.lease().is_none();
        for entry in &entries {
            let Some(lease) = &entry.lease else { continue };
            match self.own.lease() {
                // One's own lease is never a peer's, nor is a second one that carries our address.
                Some(own) if self.own.is_ours(lease) => {
                    if Subnets::of(own) == Subnets::of(lease) {
                        own_is_there = true;
                        leases.push(own.clone());
                    }
                }
                _ => leases.push(lease.clone()),
            }
        }
        // What the store lacks for the moment yields to whatever it has.
        let missing = (!own_is_there).then(|| self.own.lease().cloned()).flatten();
        for lease in missing.into_iter().chain(self.ghosts.iter().cloned()) {
            if !leases
                .iter()
                .any(|other| overlap(&lease, other) || other.is_of(&lease.endpoint()))
            {
                leases.push(lease);
            }
        }
        View {
            leases,
            own: self.own.lease().cloned(),
            unreadable: entries
                .iter()
                .filter_map(|entry| {
                    Some((
                        entry.kv.key.escape_debug().to_string(),
                        entry.fault.clone()?,
                    ))
                })
                .collect(),
            reservations: entries
                .iter()
                .filter(|entry| entry.is_reservation())
                .count(),
        }
    }
}

fn overlap(a: &Lease, b: &Lease) -> bool {
    subnets_overlap(&Subnets::of(a), &Subnets::of(b))
}

/// Does a subnet of one lie in a subnet of the other?
pub(super) fn subnets_overlap(a: &Subnets, b: &Subnets) -> bool {
    let v4 = a.v4.zip(b.v4);
    let v6 = a.v6.zip(b.v6);
    v4.is_some_and(|(a, b)| a.contains(&b) || b.contains(&a))
        || v6.is_some_and(|(a, b)| a.contains(&b) || b.contains(&a))
}

/// The wait before attempt `n` (from 0): twice as long each time, and anywhere in its upper half, so that
/// nodes that failed together do not come back together.
fn wait(n: u32, longest: Duration, rng: &mut fastrand::Rng) -> Duration {
    let full = FIRST_WAIT.saturating_mul(1 << n.min(16)).min(longest);
    full.mul_f64(0.5 + rng.f64() / 2.0)
}
