//! A simulated etcd and as many nodes as wanted, on a virtual clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::Ipv4Net;

use crate::lease::Lease;
use crate::lease::machine::{Action, Change, Event, Kv, Machine, Saved, Settings, Wanted};
use crate::lease::pool::{Pool, Range};
use crate::lease::schema::Subnets;

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
/// A tick of the simulation.
pub(super) const TICK: Duration = Duration::from_millis(5);

/// etcd, as far as the machine sees it.
pub(super) struct Etcd {
    pub(super) cluster: u64,
    pub(super) revision: i64,
    pub(super) kvs: BTreeMap<String, Kv>,
    pub(super) history: Vec<(i64, Change)>,
    pub(super) compacted: i64,
    /// When each lease ends.
    pub(super) leases: BTreeMap<i64, Duration>,
    pub(super) last_lease: i64,
    pub(super) refuses: bool,
}

impl Etcd {
    pub(super) fn new() -> Self {
        Etcd {
            cluster: 1,
            revision: 1,
            kvs: BTreeMap::new(),
            history: Vec::new(),
            compacted: 0,
            leases: BTreeMap::new(),
            last_lease: 0,
            refuses: false,
        }
    }

    pub(super) fn put(&mut self, key: &str, value: &str, lease: i64) {
        self.revision += 1;
        let old = self.kvs.get(key);
        let kv = Kv {
            key: key.to_owned(),
            value: value.as_bytes().to_vec(),
            create_revision: old.map_or(self.revision, |old| old.create_revision),
            mod_revision: self.revision,
            lease,
        };
        self.kvs.insert(key.to_owned(), kv.clone());
        self.history.push((self.revision, Change::Put(kv)));
    }

    pub(super) fn delete(&mut self, key: &str) {
        if self.kvs.remove(key).is_some() {
            self.revision += 1;
            let (key, revision) = (key.to_owned(), self.revision);
            self.history
                .push((revision, Change::Delete { key, revision }));
        }
    }

    pub(super) fn expire(&mut self, now: Duration) {
        let ended = |end: &Duration| *end <= now;
        let gone: Vec<i64> = self
            .leases
            .iter()
            .filter(|(_, end)| ended(end))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.leases.remove(&id);
            let keys: Vec<String> = self
                .kvs
                .values()
                .filter(|kv| kv.lease == id)
                .map(|kv| kv.key.clone())
                .collect();
            keys.iter().for_each(|key| self.delete(key));
        }
    }

    /// Does what a machine asks for. A watch is the caller's.
    pub(super) fn answer(&mut self, now: Duration, action: &Action) -> Event {
        match action {
            Action::Connect => Event::Connected {
                cluster: self.cluster,
                revision: self.revision,
                config: None,
            },
            Action::List => Event::Listed {
                revision: self.revision,
                kvs: self.kvs.values().cloned().collect(),
            },
            Action::Watch { from } if *from <= self.compacted => Event::Compacted,
            Action::Watch { .. } => Event::Watching,
            Action::Grant { .. } | Action::Write(_) if self.refuses => Event::Refused {
                why: "permission denied".into(),
            },
            Action::Grant { ttl } => {
                self.last_lease += 1;
                self.leases.insert(self.last_lease, now + *ttl);
                Event::Granted {
                    lease: self.last_lease,
                }
            }
            Action::Write(write) => {
                let there = self.kvs.get(&write.key).cloned();
                if there.as_ref().map_or(0, |kv| kv.mod_revision) != write.expect {
                    return Event::Lost { now: there };
                }
                match &write.put {
                    Some(put) if put.lease != 0 && !self.leases.contains_key(&put.lease) => {
                        return Event::Refused {
                            why: "requested lease not found".into(),
                        };
                    }
                    Some(put) => self.put(
                        &write.key,
                        std::str::from_utf8(&put.value).unwrap(),
                        put.lease,
                    ),
                    None => self.delete(&write.key),
                }
                Event::Written {
                    revision: self.revision,
                }
            }
        }
    }
}

pub(super) struct Node {
    pub(super) machine: Machine,
    pub(super) wanted: Wanted,
    /// An action on its way, and when it arrives.
    pub(super) action: Option<(Duration, Action)>,
    /// Place in the history, while it watches.
    pub(super) watch: Option<usize>,
    pub(super) reaches: bool,
    pub(super) runs: bool,
}

pub(super) struct World {
    pub(super) now: Duration,
    pub(super) etcd: Etcd,
    pub(super) nodes: Vec<Node>,
    pub(super) rng: fastrand::Rng,
    pub(super) pool: Pool,
    /// Percent of requests whose answer is lost, done or not.
    pub(super) loss: u8,
    /// Events come twice, again and out of order.
    pub(super) chaos: bool,
}

pub(super) fn pool(network: &str, len: u8) -> Pool {
    let network: Ipv4Net = network.parse().unwrap();
    Pool {
        v4: Some(Range::new(network, len, None, None).unwrap()),
        v6: None,
    }
}

pub(super) fn settings(seed: u64) -> Settings {
    Settings {
        ttl: 24 * HOUR,
        margin: HOUR,
        seed,
    }
}

impl World {
    pub(super) fn new(count: u32, pool: Pool, seed: u64) -> Self {
        let mut world = World {
            now: SECOND,
            etcd: Etcd::new(),
            nodes: Vec::new(),
            rng: fastrand::Rng::with_seed(seed),
            pool,
            loss: 0,
            chaos: false,
        };
        (0..count).for_each(|n| world.add(0x0a63_0001 + n));
        world
    }

    /// A node with this public IP.
    pub(super) fn add(&mut self, ip: u32) {
        let attributes = Lease {
            public_ip: Some(ip.into()),
            public_ipv6: self
                .pool
                .v6
                .map(|_| (0xfd99_u128 << 112 | u128::from(ip)).into()),
            backend_type: Some("udp".into()),
            ..Lease::default()
        };
        let wanted = Wanted {
            attributes,
            pool: self.pool,
            hints: Vec::new(),
        };
        let mut machine = Machine::new(settings(self.rng.u64(..)));
        machine.want(wanted.clone());
        self.nodes.push(Node {
            machine,
            wanted,
            action: None,
            watch: None,
            reaches: true,
            runs: true,
        });
    }

    /// Kills a node and starts it anew, with what it saved or without.
    pub(super) fn restart(&mut self, n: usize, saved: Option<Saved>) {
        let seed = self.rng.u64(..);
        let node = &mut self.nodes[n];
        node.machine = Machine::new(settings(seed));
        node.machine.restore(saved.unwrap_or_default());
        node.machine.want(node.wanted.clone());
        (node.action, node.watch, node.runs) = (None, None, true);
    }

    pub(super) fn cut(&mut self, n: usize) {
        self.nodes[n].reaches = false;
    }

    pub(super) fn tick(&mut self) {
        self.now += TICK;
        self.etcd.expire(self.now);
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        self.rng.shuffle(&mut order);
        for n in order {
            self.turn(n);
        }
    }

    pub(super) fn turn(&mut self, n: usize) {
        let (now, etcd, node) = (self.now, &mut self.etcd, &mut self.nodes[n]);
        if !node.runs {
            return;
        }
        if !node.reaches && (node.watch.is_some() || node.action.is_some()) {
            (node.watch, node.action) = (None, None);
            node.machine
                .handle(now, Event::Failed { why: "cut".into() });
        }
        if let Some(place) = node.watch {
            let news = &etcd.history[place..];
            if !news.is_empty() {
                let revision = news[news.len() - 1].0;
                let mut changes: Vec<Change> =
                    news.iter().map(|(_, change)| change.clone()).collect();
                if self.chaos {
                    let replayed = self.rng.usize(..=place.min(30));
                    changes.extend(
                        etcd.history[place - replayed..place]
                            .iter()
                            .map(|(_, change)| change.clone()),
                    );
                    self.rng.shuffle(&mut changes);
                }
                node.machine
                    .handle(now, Event::Changes { revision, changes });
                node.watch = Some(etcd.history.len());
            }
        }
        if let Some((_, action)) = node.action.take_if(|(due, _)| *due <= now) {
            let lost = self.rng.u8(..100) < self.loss;
            let done = !lost || self.rng.bool();
            let answer = if done {
                Some(etcd.answer(now, &action))
            } else {
                None
            };
            let answer = match answer {
                Some(answer) if !lost => answer,
                _ => {
                    node.watch = None;
                    Event::Failed { why: "lost".into() }
                }
            };
            if let (Event::Watching, Action::Watch { from }) = (&answer, &action) {
                node.watch = Some(
                    etcd.history
                        .partition_point(|(revision, _)| revision < from),
                );
            }
            node.machine.handle(now, answer);
        }
        if node.action.is_none() {
            if !node.reaches && node.machine.poll(now).is_some() {
                node.machine
                    .handle(now, Event::Failed { why: "cut".into() });
            } else if let Some(action) = node.machine.poll(now) {
                let due = now + self.rng.u32(0..6) * TICK;
                node.action = Some((due, action));
            }
        }
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.tick();
        }
    }

    /// Runs until nothing is to be done before this time, and jumps there.
    pub(super) fn sleep(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let mut running = self.nodes.iter().filter(|node| node.runs);
            let history = self.etcd.history.len();
            let has_news = |node: &Node| node.watch.is_some_and(|place| place < history);
            let busy = running.any(|node| {
                let must_fail = !node.reaches && node.watch.is_some();
                node.action.is_some() || has_news(node) || must_fail
            });
            if !busy {
                let timers = self
                    .nodes
                    .iter()
                    .filter(|node| node.runs)
                    .filter_map(|node| node.machine.timeout());
                let leases = self.etcd.leases.values().copied();
                let next = timers.chain(leases).min().unwrap_or(end).min(end);
                self.now = self.now.max(next);
            }
            self.tick();
        }
    }

    /// Runs until it is so.
    pub(super) fn until(&mut self, what: &str, is_so: impl Fn(&World) -> bool) -> Duration {
        let start = self.now;
        while !is_so(self) {
            assert!(
                self.now - start < 300 * SECOND,
                "not so: {what}\n{}",
                self.picture()
            );
            // Looking at a thousand nodes takes longer than their turns.
            (0..=self.nodes.len() / 100).for_each(|_| self.tick());
        }
        self.now - start
    }

    pub(super) fn picture(&self) -> String {
        let nodes = self.nodes.iter().take(20).map(|node| {
            let own = node.machine.view().own.map(|own| own.to_string());
            format!(
                "{own:?} {:?} {:?} {:?}\n",
                node.machine.link,
                node.machine.own_trouble(),
                node.action
            )
        });
        let keys = self
            .etcd
            .kvs
            .values()
            .take(20)
            .map(|kv| format!("{kv:?}\n"));
        nodes.chain(keys).collect()
    }

    pub(super) fn own(&self, n: usize) -> Option<Subnets> {
        self.nodes[n]
            .machine
            .view()
            .own
            .map(|own| Subnets::of(&own))
    }

    /// Every node holds a lease without trouble, no two overlap, and every node knows of every other.
    pub(super) fn is_whole(&self) -> bool {
        let running: Vec<&Node> = self.nodes.iter().filter(|node| node.runs).collect();
        let in_store: BTreeSet<&String> = self.etcd.kvs.keys().collect();
        let mut subnets = BTreeSet::new();
        for node in &running {
            let machine = &node.machine;
            let Some(own) = &machine.own.lease() else {
                return false;
            };
            let well = machine.is_up() && machine.own_trouble().is_none();
            if !well || !in_store.contains(&Subnets::of(own).key()) {
                return false;
            }
            subnets.extend(Subnets::of(own).iter());
        }
        let families = usize::from(self.pool.v4.is_some()) + usize::from(self.pool.v6.is_some());
        subnets.len() == running.len() * families
            && running
                .iter()
                .all(|node| node.machine.table.iter().count() == self.etcd.kvs.len())
            && running
                .iter()
                .all(|node| node.machine.view().leases.len() == self.etcd.kvs.len())
    }

    pub(super) fn lease_of(ip: &str) -> String {
        format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null}}"#)
    }
}

pub(super) fn net(text: &str) -> Subnets {
    Subnets::from(text.parse::<Ipv4Net>().unwrap())
}
