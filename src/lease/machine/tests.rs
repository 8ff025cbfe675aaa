//! A simulated etcd and as many nodes as wanted, on a virtual clock.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::{IpNet, Ipv4Net};
use proptest::prelude::*;

use super::*;
use crate::lease::pool::Range;
use crate::lease::schema;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// A tick of the simulation.
const TICK: Duration = Duration::from_millis(5);

/// etcd, as far as the machine sees it.
struct Etcd {
    cluster: u64,
    revision: i64,
    kvs: BTreeMap<String, Kv>,
    history: Vec<(i64, Change)>,
    compacted: i64,
    /// When each lease ends.
    leases: BTreeMap<i64, Duration>,
    last_lease: i64,
    refuses: bool,
}

impl Etcd {
    fn new() -> Self {
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

    fn put(&mut self, key: &str, value: &str, lease: i64) {
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

    fn delete(&mut self, key: &str) {
        if self.kvs.remove(key).is_some() {
            self.revision += 1;
            let (key, revision) = (key.to_owned(), self.revision);
            self.history
                .push((revision, Change::Delete { key, revision }));
        }
    }

    fn expire(&mut self, now: Duration) {
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
    fn answer(&mut self, now: Duration, action: &Action) -> Event {
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

struct Node {
    machine: Machine,
    wanted: Wanted,
    /// An action on its way, and when it arrives.
    action: Option<(Duration, Action)>,
    /// Place in the history, while it watches.
    watch: Option<usize>,
    reaches: bool,
    runs: bool,
}

struct World {
    now: Duration,
    etcd: Etcd,
    nodes: Vec<Node>,
    rng: fastrand::Rng,
    pool: Pool,
    /// Percent of requests whose answer is lost, done or not.
    loss: u8,
    /// Events come twice, again and out of order.
    chaos: bool,
}

fn pool(network: &str, len: u8) -> Pool {
    let network: Ipv4Net = network.parse().unwrap();
    Pool {
        v4: Some(Range::new(network, len, None, None).unwrap()),
        v6: None,
    }
}

fn settings(seed: u64) -> Settings {
    Settings {
        ttl: 24 * HOUR,
        margin: HOUR,
        seed,
    }
}

impl World {
    fn new(count: u32, pool: Pool, seed: u64) -> Self {
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
    fn add(&mut self, ip: u32) {
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
    fn restart(&mut self, n: usize, saved: Option<Saved>) {
        let seed = self.rng.u64(..);
        let node = &mut self.nodes[n];
        node.machine = Machine::new(settings(seed));
        node.machine.restore(saved.unwrap_or_default());
        node.machine.want(node.wanted.clone());
        (node.action, node.watch, node.runs) = (None, None, true);
    }

    fn cut(&mut self, n: usize) {
        self.nodes[n].reaches = false;
    }

    fn tick(&mut self) {
        self.now += TICK;
        self.etcd.expire(self.now);
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        self.rng.shuffle(&mut order);
        for n in order {
            self.turn(n);
        }
    }

    fn turn(&mut self, n: usize) {
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

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.tick();
        }
    }

    /// Runs until nothing is to be done before this time, and jumps there.
    fn sleep(&mut self, time: Duration) {
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
    fn until(&mut self, what: &str, is_so: impl Fn(&World) -> bool) -> Duration {
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

    fn picture(&self) -> String {
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

    fn own(&self, n: usize) -> Option<Subnets> {
        self.nodes[n]
            .machine
            .view()
            .own
            .map(|own| Subnets::of(&own))
    }

    /// Every node holds a lease without trouble, no two overlap, and every node knows of every other.
    fn is_whole(&self) -> bool {
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

    fn lease_of(ip: &str) -> String {
        format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null}}"#)
    }
}

fn net(text: &str) -> Subnets {
    Subnets::from(text.parse::<Ipv4Net>().unwrap())
}

#[test]
fn a_thousand_nodes_start_in_the_same_instant() {
    let mut world = World::new(1000, pool("10.0.0.0/12", 24), 1);
    let took = world.until("all distinct, all known to all", World::is_whole);
    assert!(took < 5 * SECOND, "{took:?}");
}

#[test]
fn the_last_subnet_finds_its_node_when_many_race_for_few() {
    // 63 subnets for 63 nodes: most of them lose races.
    let mut world = World::new(63, pool("10.0.0.0/18", 24), 2);
    world.until("all have one", World::is_whole);
    assert!(
        world
            .nodes
            .iter()
            .any(|node| node.machine.figures().lost > 0)
    );
}

#[test]
fn dual_stack_nodes_share_no_subnet_of_either_family() {
    let v6: IpNet = "fc00::/58".parse().unwrap();
    let both = Pool {
        v6: Some(Range::new(v6, 64, None, None).unwrap()),
        ..pool("10.0.0.0/18", 24)
    };
    for seed in 0..20 {
        // Keys of two nodes may differ and yet share a subnet: no compare-and-swap tells, the order does.
        let mut world = World::new(50, both, seed);
        world.until("all distinct in both families", World::is_whole);
    }
}

#[test]
fn renewed_before_it_ends_and_for_ever() {
    let mut world = World::new(3, pool("10.244.0.0/16", 24), 3);
    world.until("whole", World::is_whole);
    let before: Vec<_> = (0..3).map(|n| world.own(n)).collect();
    let keys: Vec<_> = world
        .etcd
        .kvs
        .values()
        .map(|kv| kv.create_revision)
        .collect();
    world.sleep(30 * 24 * HOUR);
    assert!(world.is_whole());
    assert_eq!(before, (0..3).map(|n| world.own(n)).collect::<Vec<_>>());
    let after: Vec<_> = world
        .etcd
        .kvs
        .values()
        .map(|kv| kv.create_revision)
        .collect();
    assert_eq!(keys, after, "no key was lost and made again");
    let renewals = world.nodes[0].machine.figures().renewals;
    assert!((30..=33).contains(&renewals), "{renewals} in 30 days");
}

#[test]
fn a_killed_node_comes_back_to_its_lease_and_a_dead_one_loses_it() {
    let mut world = World::new(3, pool("10.244.0.0/16", 24), 4);
    world.until("whole", World::is_whole);
    let own = world.own(0);
    world.restart(0, None);
    world.until("whole again", World::is_whole);
    assert_eq!(world.own(0), own);
    world.nodes[1].runs = false;
    world.sleep(25 * HOUR);
    assert_eq!(world.etcd.kvs.len(), 2);
    world.until("known", World::is_whole);
}

#[test]
fn the_store_is_away_for_days_and_nothing_is_forgotten() {
    let mut world = World::new(5, pool("10.244.0.0/16", 24), 5);
    world.until("whole", World::is_whole);
    let before: Vec<_> = (0..5).map(|n| world.own(n)).collect();
    (0..5).for_each(|n| world.cut(n));
    world.sleep(3 * 24 * HOUR);
    assert!(world.etcd.kvs.is_empty(), "every lease has ended");
    for node in &world.nodes {
        assert_eq!(
            node.machine.view().leases.len(),
            5,
            "forwarding goes on past the TTL"
        );
        assert!(node.machine.outage().is_some());
        let tries = node.machine.failures;
        assert!(tries < 3 * 24 * 3600 / 4, "{tries} tries are too many");
    }
    // One returns long before the others, and still knows them.
    world.nodes[0].reaches = true;
    world.run(20 * SECOND);
    assert_eq!(world.nodes[0].machine.view().leases.len(), 5);
    world.nodes.iter_mut().for_each(|node| node.reaches = true);
    world.run(20 * SECOND);
    assert!(world.is_whole(), "{}", world.picture());
    assert_eq!(before, (0..5).map(|n| world.own(n)).collect::<Vec<_>>());
}

#[test]
fn a_store_made_anew_is_filled_again_and_the_dead_are_forgotten_in_time() {
    let mut world = World::new(5, pool("10.244.0.0/16", 24), 6);
    world.until("whole", World::is_whole);
    let before: Vec<_> = (0..5).map(|n| world.own(n)).collect();
    (0..5).for_each(|n| world.cut(n));
    world.run(SECOND);
    world.etcd = Etcd {
        cluster: 2,
        ..Etcd::new()
    };
    world.nodes.iter_mut().for_each(|node| node.reaches = true);
    world.nodes[4].runs = false;
    world.run(20 * SECOND);
    assert_eq!(
        world.nodes[0].machine.view().leases.len(),
        5,
        "one is missing and kept for a while"
    );
    world.run(60 * SECOND);
    assert!(world.is_whole(), "{}", world.picture());
    assert_eq!(
        before[..4],
        (0..4).map(|n| world.own(n)).collect::<Vec<_>>()
    );
}

#[test]
fn compaction_while_the_watch_is_cut() {
    let mut world = World::new(4, pool("10.244.0.0/16", 24), 7);
    world.until("whole", World::is_whole);
    world
        .etcd
        .put("10.244.200.0-24", &World::lease_of("10.99.9.1"), 0);
    world
        .etcd
        .put("10.244.201.0-24", &World::lease_of("10.99.9.2"), 0);
    world.until("known", World::is_whole);
    world.cut(0);
    world.run(SECOND);
    world.etcd.delete("10.244.200.0-24");
    world
        .etcd
        .put("10.244.201.0-24", &World::lease_of("10.99.9.3"), 0);
    world.etcd.compacted = world.etcd.revision;
    world.nodes[0].reaches = true;
    world.until("whole again", World::is_whole);
    let leases = world.nodes[0].machine.view().leases;
    assert!(
        leases
            .iter()
            .any(|lease| lease.public_ip == Some([10, 99, 9, 3].into()))
    );
    assert!(
        !leases
            .iter()
            .any(|lease| lease.public_ip == Some([10, 99, 9, 2].into()))
    );
    assert_eq!(world.nodes[0].machine.figures().relists, 1);
    assert_eq!(world.nodes[1].machine.figures().relists, 0);
}

#[test]
fn one_s_own_lease_deleted_is_taken_again() {
    let mut world = World::new(2, pool("10.244.0.0/16", 24), 8);
    world.until("whole", World::is_whole);
    let own = world.own(0).unwrap();
    world.etcd.delete(&own.key());
    world.run(SECOND);
    world.until("whole", World::is_whole);
    assert_eq!(world.own(0), Some(own));
}

#[test]
fn another_public_ip_is_written_into_the_lease_that_is_held() {
    let mut world = World::new(2, pool("10.244.0.0/16", 24), 22);
    world.until("whole", World::is_whole);
    let own = world.own(0).unwrap();
    let before = world.etcd.kvs[&own.key()].clone();
    let there: std::net::Ipv4Addr = [10, 99, 0, 101].into();
    let node = &mut world.nodes[0];
    node.wanted.attributes.public_ip = Some(there);
    node.machine.want(node.wanted.clone());
    node.machine.reconnect(world.now);
    world.run(SECOND);
    world.until("whole again", World::is_whole);
    assert_eq!(world.own(0), Some(own));
    let after = &world.etcd.kvs[&own.key()];
    assert_eq!(after.value, World::lease_of("10.99.0.101").into_bytes());
    assert_eq!(
        (after.create_revision, after.lease),
        (before.create_revision, before.lease)
    );
    assert_eq!(world.etcd.kvs.len(), 2);
    let leases = world.nodes[1].machine.view().leases;
    assert!(leases.iter().any(|lease| lease.public_ip == Some(there)));
    assert_eq!(world.nodes[0].machine.figures().faults, 0);
}

#[test]
fn stolen_while_asleep() {
    let mut world = World::new(2, pool("10.244.0.0/16", 24), 9);
    world.until("whole", World::is_whole);
    let own = world.own(0).unwrap();
    world.nodes[0].runs = false;
    world.sleep(30 * HOUR);
    world.etcd.put(&own.key(), &World::lease_of("10.99.9.9"), 0);
    // It wakes up on a dead connection, with an old renewal due.
    world.nodes[0].runs = true;
    world.nodes[0].reaches = false;
    world.run(SECOND);
    world.nodes[0].reaches = true;
    world.run(20 * SECOND);
    world.until("whole", World::is_whole);
    assert_ne!(world.own(0), Some(own));
    let kept = &world.etcd.kvs[&own.key()];
    assert_eq!(
        kept.value,
        World::lease_of("10.99.9.9").into_bytes(),
        "not overwritten"
    );
}

#[test]
fn two_nodes_with_one_public_ip() {
    let mut world = World::new(2, pool("10.244.0.0/16", 24), 10);
    world.add(0x0a63_0001);
    world.run(30 * SECOND);
    let troubles: Vec<_> = [0, 2]
        .map(|n| world.nodes[n].machine.own_trouble().map(|t| t.what.clone()))
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(
        troubles.len(),
        1,
        "exactly one owner, and the other says so: {troubles:?}"
    );
    assert!(
        troubles[0].contains("two nodes use one public IP"),
        "{troubles:?}"
    );
    let keys = world.etcd.kvs.len();
    assert_eq!(keys, 2);
    // No fight: nothing more is written.
    let revision = world.etcd.revision;
    world.run(60 * SECOND);
    assert_eq!(world.etcd.revision, revision);
    // Nor does the one that lost it wake up again and again for a renewal that is not its own.
    world.sleep(30 * HOUR);
    assert!(
        world.nodes.iter().all(
            |node| node.machine.timeout() > Some(world.now) || node.machine.timeout().is_none()
        )
    );
}

#[test]
fn an_exhausted_range_is_waited_for() {
    let mut world = World::new(3, pool("10.244.0.0/22", 24), 11);
    world.until("whole", World::is_whole);
    world.add(0x0a63_0101);
    world.run(10 * SECOND);
    let trouble = world.nodes[3].machine.own_trouble().unwrap();
    assert!(trouble.what.contains("all 3 are taken"), "{trouble:?}");
    let revision = world.etcd.revision;
    world.run(60 * SECOND);
    assert_eq!(world.etcd.revision, revision, "it waits quietly");
    world.nodes[1].machine.release();
    world.nodes[1].machine.poll(world.now);
    let gone = world.own(1).unwrap();
    world.nodes[1].runs = false;
    world.etcd.delete(&gone.key());
    world.until("recovered", World::is_whole);
    assert_eq!(world.own(3), Some(gone));
}

#[test]
fn released_and_not_taken_again() {
    let mut world = World::new(2, pool("10.244.0.0/16", 24), 12);
    world.until("whole", World::is_whole);
    world.nodes[0].machine.release();
    world.run(30 * SECOND);
    assert_eq!(world.etcd.kvs.len(), 1);
}

#[test]
fn a_reservation_is_honoured_and_kept() {
    let mut world = World::new(0, pool("10.244.0.0/16", 24), 13);
    world
        .etcd
        .put("10.244.77.0-24", &World::lease_of("10.99.0.1"), 0);
    world.add(0x0a63_0001);
    world.add(0x0a63_0002);
    world.until("whole", World::is_whole);
    assert_eq!(world.own(0), Some(net("10.244.77.0/24")));
    world.sleep(100 * HOUR);
    assert_eq!(world.etcd.kvs["10.244.77.0-24"].lease, 0);
    world.nodes[0].machine.release();
    world.run(SECOND);
    assert!(
        world.etcd.kvs.contains_key("10.244.77.0-24"),
        "an administrator's word stands"
    );
}

#[test]
fn hints_are_taken_when_they_are_free_and_fit() {
    let mut world = World::new(1, pool("10.244.0.0/16", 24), 14);
    let hints = vec![
        net("10.9.9.0/24"),
        net("10.244.0.0/24"),
        net("10.244.50.0/24"),
    ];
    world.nodes[0].wanted.hints = hints;
    world.restart(0, None);
    world.until("whole", World::is_whole);
    assert_eq!(world.own(0), Some(net("10.244.50.0/24")));
}

#[test]
fn no_subnet_that_covers_a_public_ip_is_taken() {
    // Three subnets, and the public IPs of two nodes lie in two of them.
    let mut world = World::new(0, pool("10.99.0.0/22", 24), 15);
    world.add(0x0a63_0101);
    world
        .etcd
        .put("10.98.1.0-24", &World::lease_of("10.99.2.7"), 0);
    world.run(SECOND);
    assert_eq!(world.own(0), Some(net("10.99.3.0/24")));
}

#[test]
fn an_incompatible_lease_of_ours_goes() {
    let mut world = World::new(0, pool("10.244.0.0/16", 24), 16);
    world.etcd.leases.insert(900, 24 * HOUR);
    world
        .etcd
        .put("10.1.1.0-24", &World::lease_of("10.99.0.1"), 900);
    world.add(0x0a63_0001);
    world.until("whole", World::is_whole);
    assert!(!world.etcd.kvs.contains_key("10.1.1.0-24"));
}

#[test]
fn garbage_costs_one_peer_one_update() {
    let mut world = World::new(2, pool("10.244.0.0/16", 24), 17);
    world
        .etcd
        .put("10.244.200.0-24", &World::lease_of("10.99.9.1"), 0);
    world.until("whole", World::is_whole);
    for garbage in ["", "{", "[]", "\u{0}", r#"{"PublicIP":"nowhere"}"#] {
        world.etcd.put("10.244.200.0-24", garbage, 0);
        world.etcd.put("10.244.201.0-24", garbage, 0);
        world.etcd.put("not-a-subnet", garbage, 0);
        world.run(SECOND);
        let view = world.nodes[0].machine.view();
        assert_eq!(view.leases.len(), 3, "the last good value counts");
        assert_eq!(view.unreadable.len(), 3);
    }
    assert_eq!(world.nodes[0].machine.figures().unreadable, 15);
    // Our own is set right.
    let own = world.own(0).unwrap().key();
    let lease = world.etcd.kvs[&own].lease;
    world.etcd.put(&own, "garbage", lease);
    world.run(SECOND);
    schema::decode(&own, &world.etcd.kvs[&own].value).unwrap();
    // A free subnet whose key is there with a bad value is not free.
    world.add(0x0a63_0201);
    world.run(SECOND);
    assert_ne!(world.own(2), Some(net("10.244.201.0/24")));
}

#[test]
fn a_changed_public_ip_or_mac_is_an_update_of_that_peer() {
    let mut world = World::new(1, pool("10.244.0.0/16", 24), 18);
    world
        .etcd
        .put("10.244.200.0-24", &World::lease_of("10.99.9.1"), 0);
    world.until("whole", World::is_whole);
    let generation = world.nodes[0].machine.generation();
    world
        .etcd
        .put("10.244.200.0-24", &World::lease_of("10.99.9.2"), 0);
    world.run(SECOND);
    assert!(world.nodes[0].machine.generation() > generation);
    let leases = world.nodes[0].machine.view().leases;
    assert!(
        leases
            .iter()
            .any(|lease| lease.public_ip == Some([10, 99, 9, 2].into()))
    );
}

#[test]
fn a_saved_table_serves_a_start_without_the_store() {
    let mut world = World::new(3, pool("10.244.0.0/16", 24), 19);
    world.until("whole", World::is_whole);
    let own = world.own(0);
    let saved = world.nodes[0].machine.to_save();
    world.restart(0, Some(saved));
    world.cut(0);
    world.run(5 * SECOND);
    assert_eq!(world.own(0), own);
    assert_eq!(world.nodes[0].machine.view().leases.len(), 3);
    world.nodes[0].reaches = true;
    world.until("whole", World::is_whole);
    assert_eq!(world.own(0), own);
}

#[test]
fn a_store_that_refuses_is_asked_again_and_said() {
    let mut world = World::new(1, pool("10.244.0.0/16", 24), 20);
    world.etcd.refuses = true;
    world.run(60 * SECOND);
    let trouble = world.nodes[0].machine.own_trouble().unwrap();
    assert!(trouble.what.contains("permission denied"), "{trouble:?}");
    assert!(
        world.nodes[0].machine.is_up(),
        "the peers are still watched"
    );
    world.etcd.refuses = false;
    world.until("whole", World::is_whole);
}

#[test]
fn log_lines_are_bounded() {
    let mut world = World::new(1, pool("10.244.0.0/16", 24), 21);
    world.until("whole", World::is_whole);
    world.cut(0);
    world.sleep(10 * 24 * HOUR);
    let lines = std::iter::from_fn(|| world.nodes[0].machine.note_to_log()).count();
    assert!(lines <= 3, "{lines} lines for ten days without the store");
}

#[derive(Clone, Debug)]
enum Fault {
    Cut(usize),
    Heal(usize),
    Restart(usize),
    Pause(usize),
    Resume(usize),
    DeleteLease(usize),
    Steal(usize),
    Garbage(usize),
    Compact,
    Wait(u16),
    Days(u8),
}

fn fault() -> impl Strategy<Value = Fault> {
    let n = 0..6usize;
    prop_oneof![
        n.clone().prop_map(Fault::Cut),
        n.clone().prop_map(Fault::Heal),
        n.clone().prop_map(Fault::Restart),
        n.clone().prop_map(Fault::Pause),
        n.clone().prop_map(Fault::Resume),
        n.clone().prop_map(Fault::DeleteLease),
        n.clone().prop_map(Fault::Steal),
        n.prop_map(Fault::Garbage),
        Just(Fault::Compact),
        (1u16..2000).prop_map(Fault::Wait),
        (1u8..30).prop_map(Fault::Days),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever happens, in whatever order: when it ends, all hold distinct leases and know of each other, and in
    /// between no node loses the lease that it lives by.
    #[test]
    fn every_fault_heals(seed: u64, chaos: bool, loss in 0u8..30, faults in prop::collection::vec(fault(), 0..15)) {
        let mut world = World::new(6, pool("10.244.0.0/20", 24), seed);
        (world.chaos, world.loss) = (chaos, loss);
        world.run(SECOND);
        let mut thieves = 0;
        for fault in faults {
            let own = |world: &World, n| world.own(n).map(|own| own.key());
            match fault {
                Fault::Cut(n) => world.cut(n),
                Fault::Heal(n) => world.nodes[n].reaches = true,
                Fault::Restart(n) => {
                    let saved = world.nodes[n].machine.to_save();
                    let saved = world.rng.bool().then_some(saved);
                    world.restart(n, saved);
                }
                Fault::Pause(n) => world.nodes[n].runs = false,
                Fault::Resume(n) => world.nodes[n].runs = true,
                Fault::DeleteLease(n) => own(&world, n).iter().for_each(|key| world.etcd.delete(key)),
                Fault::Steal(n) if thieves < 5 => if let Some(key) = own(&world, n) {
                    thieves += 1;
                    world.etcd.put(&key, &World::lease_of(&format!("10.99.9.{thieves}")), 0);
                },
                Fault::Steal(_) => {}
                Fault::Garbage(n) => own(&world, n).iter().for_each(|key| world.etcd.put(key, "garbage", 0)),
                Fault::Compact => world.etcd.compacted = world.etcd.revision,
                Fault::Wait(ms) => world.run(u32::from(ms) * MS),
                Fault::Days(hours) => world.sleep(u32::from(hours) * HOUR),
            }
        }
        world.loss = 0;
        world.chaos = false;
        for node in &mut world.nodes {
            (node.reaches, node.runs) = (true, true);
        }
        // What was not read before a restart is not known by a saved or kept value: garbage is mended by whoever
        // owns the key, or is nobody's.
        let garbage: Vec<String> = world.etcd.kvs.values().filter(|kv| kv.value == b"garbage").map(|kv| kv.key.clone()).collect();
        garbage.iter().for_each(|key| world.etcd.delete(key));
        world.run(100 * SECOND);
        world.until("whole", World::is_whole);
    }
}
