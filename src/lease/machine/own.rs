//! The own lease: taking, keeping and giving it back.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::table::{Entry, Table};
use super::{Action, Figures, Kv, Put, Settings, Trouble, Wanted, Write, subnets_overlap, wait};
use crate::lease::Lease;
use crate::lease::pool::TakenBoth;
use crate::lease::schema::{self, Subnets};

/// Whoever loses a race tries again after at most this long.
const LONGEST_RACE_WAIT: Duration = Duration::from_secs(2);
/// A granted etcd lease that was not used can be for this part of its life: a store that refuses to write is not filled with
/// leases that nobody uses.
const FRESH: u32 = 8;
/// A renewal that was due and could not be begun is looked at again after this long.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// So many etcd leases of ours are remembered.
const GRANTED: usize = 8;

/// The key that we hold, or held.
#[derive(Clone, Debug)]
struct Held {
    key: String,
    lease: Lease,
    /// The revision of our write: when everything up to it is known, nobody can have been before us.
    revision: i64,
    /// Until when; for ever, if it is a reservation.
    term: Option<Term>,
}

/// The time that a lease has.
#[derive(Clone, Copy, Debug)]
struct Term {
    /// When to renew it.
    renew: Duration,
    /// When it ends.
    end: Duration,
}

/// A write on its way, or wanting an etcd lease first.
#[derive(Clone, Debug)]
struct Pending {
    write: Write,
    why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// To hold it: new, or from an earlier life of ours.
    Take,
    /// To go on holding it.
    Renew,
    /// To have it say what we are now.
    Update,
    /// To hold it no longer.
    Drop,
}

/// A new etcd lease.
#[derive(Clone, Copy, Debug)]
struct Grant {
    id: i64,
    /// When it was asked for; its life begins no earlier.
    at: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Own {
    wanted: Option<Wanted>,
    pub(super) released: bool,
    held: Option<Held>,
    /// The lease that the node lives by: the one held now, or the last one until there is another.
    lease: Option<Lease>,
    pending: Option<Pending>,
    /// When an etcd lease was asked for.
    asked: Duration,
    /// A granted one that waits for its write.
    spare: Option<Grant>,
    /// The ids of ours, the latest last: what tells our own writes from those of others, even when their
    /// answers were lost.
    ids: VecDeque<i64>,
    /// Nothing is written before.
    not_before: Duration,
    /// Races lost, or refusals, one after another.
    tries: u32,
    trouble: Option<Trouble>,
}

impl Own {
    pub(super) fn want(&mut self, wanted: Wanted, table: &Table) {
        self.wanted = Some(wanted);
        // What the last run knew to be ours is a lease to live by.
        if self.lease.is_none() {
            let last = self.mine(table).filter(|entry| self.fits(entry));
            self.lease = last.and_then(|entry| self.as_wanted(entry));
        }
    }

    /// Gives the lease back and takes no other.
    ///
    /// # Errors
    /// If there is nothing of ours to give back.
    pub(super) fn release(&mut self, table: &Table) -> Result<(), String> {
        let Some(entry) = self.mine(table) else {
            return Err("no key carries this node's public IP: there is nothing to release".into());
        };
        if entry.is_reservation() {
            return Err(format!(
                "{} is a reservation, which stays until somebody removes it with `overlayd lease release SUBNET`",
                entry.kv.key
            ));
        }
        if !self.ids.contains(&entry.kv.lease) {
            return Err(format!("{} is held by another node", entry.kv.key));
        }
        self.released = true;
        Ok(())
    }

    /// Was it given back?
    pub(super) fn is_released(&self, table: &Table) -> bool {
        self.released && self.mine(table).is_none()
    }

    /// The lease that the node lives by.
    pub(super) fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// When the held lease ends if it is not renewed.
    pub(super) fn ends(&self) -> Option<Duration> {
        self.held.as_ref()?.term.map(|term| term.end)
    }

    pub(super) fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    pub(super) fn is_held(&self, key: &str) -> bool {
        match (&self.held, &self.lease) {
            (Some(held), _) => held.key == key,
            // From the saved table.
            (None, Some(lease)) => Subnets::of(lease).key() == key,
            (None, None) => false,
        }
    }

    pub(super) fn is_ours(&self, lease: &Lease) -> bool {
        let wanted = self.wanted.as_ref();
        wanted.is_some_and(|wanted| lease.is_of(&wanted.attributes.endpoint()))
    }

    /// Is everything known that came before our own write?
    pub(super) fn is_settled(&self, seen: i64) -> bool {
        self.held.as_ref().is_none_or(|held| held.revision <= seen)
    }

    pub(super) fn timeout(&self) -> Option<Duration> {
        match self.not_before {
            Duration::ZERO => self
                .held
                .as_ref()
                .and_then(|held| held.term.map(|term| term.renew)),
            not_before => Some(not_before),
        }
    }

    pub(super) fn granted(&mut self, id: i64) {
        self.spare = Some(Grant { id, at: self.asked });
        self.ids.push_back(id);
        if self.ids.len() > GRANTED {
            self.ids.pop_front();
        }
    }

    /// The answer of a write will not come: says whether there was one on its way.
    pub(super) fn forget_write(&mut self) -> bool {
        self.pending.take().is_some()
    }

    /// Our write was done: what the key holds now.
    pub(super) fn written(
        &mut self,
        revision: i64,
        settings: &Settings,
        rng: &mut fastrand::Rng,
        figures: &mut Figures,
    ) -> Option<Kv> {
        let Pending { write, why } = self.pending.take()?;
        self.tries = 0;
        let Some(put) = write.put else {
            self.held = None;
            return None;
        };
        let renewed = self.spare.take_if(|grant| grant.id == put.lease);
        match why {
            Why::Take => figures.taken += 1,
            Why::Renew => figures.renewals += 1,
            Why::Update | Why::Drop => {}
        }
        let before = self.held.take_if(|held| held.key == write.key);
        let term = match renewed {
            Some(grant) => Some(Term::of(grant.at, settings, rng)),
            None => before.as_ref().and_then(|held| held.term),
        };
        if let Ok(lease) = schema::decode(&write.key, &put.value) {
            self.held = Some(Held {
                key: write.key.clone(),
                lease,
                // To be written again does not make it younger.
                revision: before.map_or(revision, |held| held.revision),
                term,
            });
        }
        Some(Kv {
            key: write.key,
            value: put.value,
            create_revision: 0,
            mod_revision: revision,
            lease: put.lease,
        })
    }

    /// Somebody was faster: the key, and the revision that was expected of it.
    pub(super) fn lost(&mut self, now: Duration, rng: &mut fastrand::Rng) -> Option<(String, i64)> {
        let Pending { write, .. } = self.pending.take()?;
        // The first time at once: the others have what they wanted, and we know what that is.
        if self.tries > 0 {
            self.not_before = now + wait(self.tries, LONGEST_RACE_WAIT, rng) / 16;
        }
        self.tries = self.tries.saturating_add(1);
        Some((write.key, write.expect))
    }

    pub(super) fn refused(&mut self, now: Duration, why: String, rng: &mut fastrand::Rng) {
        self.pending = None;
        self.not_before = now + wait(self.tries, super::LONGEST_WAIT, rng);
        self.tries = self.tries.saturating_add(1);
        self.complain(now, format!("the store refuses this node's lease: {why}"));
    }

    fn complain(&mut self, now: Duration, what: String) {
        match &mut self.trouble {
            Some(trouble) => trouble.what = what,
            None => self.trouble = Some(Trouble { what, since: now }),
        }
    }

    /// What is to be done about the own lease. Called when the whole table is known and no write is on its way.
    pub(super) fn decide(
        &mut self,
        now: Duration,
        table: &Table,
        seen: i64,
        settings: &Settings,
        rng: &mut fastrand::Rng,
    ) -> Option<Action> {
        self.wanted.as_ref()?;
        if now < self.not_before {
            return None;
        }
        self.not_before = Duration::ZERO;
        let action = self.next(now, table, seen, settings, rng);
        // What is due and leads to nothing (another's, a reservation by now, released) must not wake us without end.
        if let Some(held) = self.held.as_mut().filter(|_| action.is_none()) {
            if let Some(term) = held.term.as_mut().filter(|term| term.renew <= now) {
                term.renew = now + LOOK_AGAIN;
            }
        }
        action
    }

    fn next(
        &mut self,
        now: Duration,
        table: &Table,
        seen: i64,
        settings: &Settings,
        rng: &mut fastrand::Rng,
    ) -> Option<Action> {
        if let Some(pending) = &self.pending {
            return Some(self.send(pending.clone(), now, settings));
        }
        let held = self
            .held
            .as_ref()
            .and_then(|held| table.get(&held.key))
            // Written by us, under another public IP perhaps: the node has moved.
            .filter(|entry| self.is_mine(entry) || self.ids.contains(&entry.kv.lease));
        if self.released {
            if let Some(entry) = held.filter(|entry| self.ids.contains(&entry.kv.lease)) {
                let entry = entry.clone();
                return Some(self.drop_key(&entry, now, settings));
            }
            self.complain(
                now,
                "this node's lease was released: other nodes send it nothing; restart overlayd to take a lease again".into(),
            );
            return None;
        }
        match held.or_else(|| self.mine(table)).cloned() {
            Some(entry) => self.keep(&entry, now, table, seen, settings),
            None => self.take(now, table, settings, rng),
        }
    }

    /// A key that carries our public IP: ours to hold, unless something speaks against it.
    fn keep(
        &mut self,
        entry: &Entry,
        now: Duration,
        table: &Table,
        seen: i64,
        settings: &Settings,
    ) -> Option<Action> {
        let holding = self
            .held
            .as_ref()
            .is_some_and(|held| held.key == entry.kv.key);
        let by_us = self.ids.contains(&entry.kv.lease);
        if !self.fits(entry) {
            // As flannel: a lease of ours that is not one any more goes. What an administrator reserved stays.
            return Some(self.drop_key(entry, now, settings));
        }
        if let Some(older) = self.older_overlap(entry, table) {
            let what = format!("{} overlaps the older lease {}", entry.kv.key, older.kv.key);
            self.complain(now, what);
            return if entry.is_reservation() {
                None
            } else {
                Some(self.drop_key(entry, now, settings))
            };
        }
        let wanted = self.as_wanted(entry)?;
        let value = schema::encode(&wanted).into_bytes();
        let due = self
            .held
            .as_ref()
            .and_then(|held| held.term)
            .is_some_and(|term| now >= term.renew);
        // Nobody reserves with what cannot be read: it was written over by mistake.
        let reserved = entry.is_reservation() && entry.fault.is_none();
        let why = match (holding, by_us, reserved) {
            _ if entry.fault.is_some() => Why::Take,
            (_, _, true) if entry.kv.value != value => Why::Update,
            (_, _, true) => return self.hold(entry, wanted, seen),
            (true, false, false) => {
                let what = format!(
                    "another node holds this node's lease {wanted}: two nodes use one public IP, or flanneld runs here too; give each its own address, or stop one of them"
                );
                self.complain(now, what);
                return None;
            }
            (true, true, false) if due => Why::Renew,
            (true, true, false) if entry.kv.value != value => Why::Update,
            (true, true, false) => return self.hold(entry, wanted, seen),
            // Ours by an earlier life, or by a write whose answer was lost: when it ends is not known.
            (false, _, false) => Why::Take,
        };
        let lease = match why {
            Why::Update => Some(entry.kv.lease),
            _ => None,
        };
        Some(self.put(
            entry.kv.key.clone(),
            entry.kv.mod_revision,
            value,
            lease,
            why,
            now,
            settings,
        ))
    }

    /// All is well with it.
    fn hold(&mut self, entry: &Entry, wanted: Lease, seen: i64) -> Option<Action> {
        self.held.take_if(|held| held.key != entry.kv.key);
        let held = self.held.get_or_insert_with(|| Held {
            key: entry.kv.key.clone(),
            lease: wanted.clone(),
            revision: entry.kv.mod_revision,
            term: None,
        });
        held.lease = wanted.clone();
        if held.revision <= seen {
            self.lease = Some(wanted);
            self.trouble = None;
            self.tries = 0;
        }
        None
    }

    /// No key carries our public IP: take one.
    fn take(
        &mut self,
        now: Duration,
        table: &Table,
        settings: &Settings,
        rng: &mut fastrand::Rng,
    ) -> Option<Action> {
        let wanted = self.wanted.clone()?;
        if let Some(held) = self.held.take() {
            let what = match table.get(&held.key) {
                Some(thief) => format!(
                    "this node's lease {} has passed to {}: taking another subnet",
                    held.lease,
                    thief
                        .lease
                        .as_ref()
                        .map_or_else(|| "another".into(), |lease| lease.endpoint().to_string())
                ),
                None => format!(
                    "this node's lease {} is gone from the store: taking it again",
                    held.lease
                ),
            };
            self.complain(now, what);
        }
        let public = wanted.attributes.endpoint();
        let addresses = table
            .iter()
            .filter_map(|entry| entry.lease.as_ref())
            .flat_map(|lease| lease.endpoint().ips())
            .chain(public.ips())
            .map(IpNet::from);
        let subnets = table.iter().filter_map(Entry::subnets);
        let taken: TakenBoth = subnets
            .flat_map(|subnets| subnets.iter())
            .chain(addresses)
            .collect();
        let last = self.lease.as_ref().map(Subnets::of);
        let liked = last
            .into_iter()
            .chain(wanted.hints.iter().copied())
            .find(|subnets| wanted.pool.contains(subnets) && taken.is_free(subnets));
        let chosen = match liked {
            Some(liked) => Ok(liked),
            None => wanted.pool.choose(rng, &taken),
        };
        match chosen {
            Err(family) => {
                self.complain(
                    now,
                    format!(
                        "no {family} subnet is free for this node: all {} are taken; widen Network or SubnetMin to SubnetMax, or release the leases of nodes that are gone",
                        wanted.pool.size()
                    ),
                );
                None
            }
            Ok(subnets) => {
                let lease = with_subnets(&wanted.attributes, subnets);
                let value = schema::encode(&lease).into_bytes();
                Some(self.put(subnets.key(), 0, value, None, Why::Take, now, settings))
            }
        }
    }

    /// A put under the condition that the key is as we know it. Without an etcd lease to attach it to, a new one.
    #[allow(clippy::too_many_arguments)]
    fn put(
        &mut self,
        key: String,
        expect: i64,
        value: Vec<u8>,
        lease: Option<i64>,
        why: Why,
        now: Duration,
        settings: &Settings,
    ) -> Action {
        // What was asked for long ago would not live as long as it should.
        self.spare
            .take_if(|spare| now.saturating_sub(spare.at) > settings.ttl / FRESH);
        let lease = lease
            .or(self.spare.map(|spare| spare.id))
            .unwrap_or(UNKNOWN);
        let put = Some(Put { value, lease });
        let write = Write { key, expect, put };
        self.send(Pending { write, why }, now, settings)
    }

    fn drop_key(&mut self, entry: &Entry, now: Duration, settings: &Settings) -> Action {
        let write = Write {
            key: entry.kv.key.clone(),
            expect: entry.kv.mod_revision,
            put: None,
        };
        self.send(
            Pending {
                write,
                why: Why::Drop,
            },
            now,
            settings,
        )
    }

    /// Writes, or gets the etcd lease that the write needs.
    fn send(&mut self, mut pending: Pending, now: Duration, settings: &Settings) -> Action {
        if let Some(put) = pending
            .write
            .put
            .as_mut()
            .filter(|put| put.lease == UNKNOWN)
        {
            match self.spare {
                Some(spare) => put.lease = spare.id,
                None => {
                    // Looked at anew when it is there: the world may have changed meanwhile.
                    self.pending = None;
                    self.asked = now;
                    return Action::Grant { ttl: settings.ttl };
                }
            }
        }
        let write = pending.write.clone();
        self.pending = Some(pending);
        Action::Write(write)
    }

    fn is_mine(&self, entry: &Entry) -> bool {
        entry
            .lease
            .as_ref()
            .is_some_and(|lease| self.is_ours(lease))
    }

    /// The key that carries our public IP; of several, one that we could hold, the oldest first.
    fn mine<'a>(&self, table: &'a Table) -> Option<&'a Entry> {
        let public = self.wanted.as_ref()?.attributes.endpoint();
        table
            .iter()
            .filter(|entry| entry.is_of(&public))
            // What an administrator reserved outside of the network is not ours to take or to remove.
            .filter(|entry| self.fits(entry) || !entry.is_reservation())
            .min_by_key(|entry| (!self.fits(entry), entry.kv.create_revision))
    }

    /// Could we hold it?
    fn fits(&self, entry: &Entry) -> bool {
        let Some((wanted, subnets)) = self.wanted.as_ref().zip(entry.subnets()) else {
            return false;
        };
        let covers = |ip: IpAddr| subnets.iter().any(|net| net.contains(&ip));
        let in_place = match entry.is_reservation() {
            true => wanted.pool.network_contains(&subnets),
            false => wanted.pool.contains(&subnets),
        };
        in_place && !wanted.attributes.endpoint().ips().any(covers)
    }

    /// The older key of another node that overlaps this one.
    fn older_overlap<'a>(&self, entry: &Entry, table: &'a Table) -> Option<&'a Entry> {
        let ours = entry.subnets()?;
        let pool = &self.wanted.as_ref()?.pool;
        table.iter().find(|other| {
            other.rank() < entry.rank()
                && other.subnets().is_some_and(|theirs| {
                    subnets_overlap(&ours, &theirs) && pool.network_contains(&theirs)
                })
                && !self.is_mine(other)
        })
    }

    /// The lease that we want under this key.
    fn as_wanted(&self, entry: &Entry) -> Option<Lease> {
        let wanted = self.wanted.as_ref()?;
        Some(with_subnets(&wanted.attributes, entry.subnets()?))
    }
}

/// No etcd lease has this id: they are positive, and 0 stands for none.
const UNKNOWN: i64 = -1;

fn with_subnets(attributes: &Lease, subnets: Subnets) -> Lease {
    Lease {
        subnet: subnets.v4,
        ipv6_subnet: subnets.v6,
        ..attributes.clone()
    }
}

impl Term {
    /// The term of what began at `at`: renewed the margin before its end, and up to a quarter of the margin earlier,
    /// since nodes that started together would otherwise renew together for ever.
    fn of(at: Duration, settings: &Settings, rng: &mut fastrand::Rng) -> Self {
        let margin = settings.margin.min(settings.ttl / 2);
        let end = at + settings.ttl;
        Term {
            renew: end - margin - margin.mul_f64(rng.f64() / 4.0),
            end,
        }
    }
}
