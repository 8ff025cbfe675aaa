//! What the store holds under `subnets/`, as far as we know.

use std::collections::{BTreeMap, HashMap};

use crate::lease::schema::{self, Subnets};
use crate::lease::{Lease, machine::Kv};

/// Keys that are gone are remembered up to this number, so that an old event cannot bring them back.
const MOST_GONE: usize = 4096;

/// One key.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) kv: Kv,
    /// What the value says; of an unreadable one, what the last readable value said.
    pub(super) lease: Option<Lease>,
    /// Why the value is unreadable.
    pub(super) fault: Option<String>,
}

impl Entry {
    fn new(kv: Kv, before: Option<Lease>) -> Self {
        match schema::decode(&kv.key, &kv.value) {
            Ok(lease) => Entry {
                kv,
                lease: Some(lease),
                fault: None,
            },
            Err(fault) => Entry {
                kv,
                lease: before,
                fault: Some(fault),
            },
        }
    }

    /// The subnets that its key takes, whatever its value is worth.
    pub(super) fn subnets(&self) -> Option<Subnets> {
        match &self.lease {
            Some(lease) => Some(Subnets::of(lease)),
            None => Subnets::parse(&self.kv.key).ok(),
        }
    }

    pub(super) fn is_of(&self, node: &fdb::Endpoint) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.is_of(node))
    }

    /// A key without an etcd lease stays until somebody removes it.
    pub(super) fn is_reservation(&self) -> bool {
        self.kv.lease == 0
    }

    /// Where keys overlap the one with the lowest rank wins, everywhere.
    pub(super) fn rank(&self) -> (i64, &str) {
        (self.kv.create_revision, &self.kv.key)
    }
}

#[derive(Debug, Default)]
pub(super) struct Table {
    entries: BTreeMap<String, Entry>,
    /// The revision in which each of these keys was deleted.
    gone: HashMap<String, i64>,
    /// Unreadable values that came, ever.
    pub(super) unreadable: u64,
}

impl Table {
    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Takes a put, unless something newer is known of the key. Says whether it was new.
    pub(super) fn put(&mut self, kv: Kv) -> bool {
        let old = self.entries.get(&kv.key);
        let known = old.map(|entry| entry.kv.mod_revision);
        let known = known.max(self.gone.get(&kv.key).copied());
        if known.is_some_and(|known| known >= kv.mod_revision) {
            return false;
        }
        self.gone.remove(&kv.key);
        let entry = Entry::new(kv, old.and_then(|old| old.lease.clone()));
        self.unreadable += u64::from(entry.fault.is_some());
        self.entries.insert(entry.kv.key.clone(), entry);
        true
    }

    /// Takes a deletion, unless something newer is known of the key. Says whether it was new.
    pub(super) fn delete(&mut self, key: &str, revision: i64) -> bool {
        match self.entries.get(key) {
            Some(entry) if entry.kv.mod_revision >= revision => return false,
            Some(_) => self.entries.remove(key),
            None => None,
        };
        if self.gone.len() >= MOST_GONE {
            // Events come nearly in order: those of the older half are not to be expected any more.
            let mut revisions: Vec<i64> = self.gone.values().copied().collect();
            revisions.sort_unstable();
            let middle = revisions[revisions.len() / 2];
            self.gone.retain(|_, gone| *gone >= middle);
        }
        self.gone.insert(key.to_owned(), revision);
        true
    }

    /// Takes the whole list as it stood at `revision`. Of another `history` of the store nothing that was
    /// known before counts. Returns what is not there any more.
    pub(super) fn replace(
        &mut self,
        revision: i64,
        kvs: Vec<Kv>,
        another_history: bool,
    ) -> Vec<Entry> {
        let mut old = std::mem::take(&mut self.entries);
        self.gone
            .retain(|_, gone| !another_history && *gone > revision);
        if !another_history {
            // What is newer than the list is not in it.
            let newer = |entry: &Entry| entry.kv.mod_revision > revision;
            let keys: Vec<String> = old
                .values()
                .filter(|entry| newer(entry))
                .map(|entry| entry.kv.key.clone())
                .collect();
            for key in keys {
                if let Some(entry) = old.remove(&key) {
                    self.entries.insert(key, entry);
                }
            }
        }
        for kv in kvs {
            match old.remove(&kv.key) {
                Some(same) if !another_history && same.kv.mod_revision == kv.mod_revision => {
                    self.entries.insert(kv.key.clone(), same);
                }
                before => {
                    let entry = Entry::new(kv, before.and_then(|entry| entry.lease));
                    let newer = self.entries.contains_key(&entry.kv.key)
                        || self.gone.contains_key(&entry.kv.key);
                    if !newer {
                        self.unreadable += u64::from(entry.fault.is_some());
                        self.entries.insert(entry.kv.key.clone(), entry);
                    }
                }
            }
        }
        old.into_values().collect()
    }
}
