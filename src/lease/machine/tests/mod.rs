//! Every fault that is known, one by one.

mod any;
mod sim;

use ipnet::IpNet;

use crate::lease::pool::{Pool, Range};
use crate::lease::schema;
use sim::*;

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
    world.nodes[1].machine.release().unwrap();
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
    world.nodes[0].machine.release().unwrap();
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
    let refused = world.nodes[0].machine.release().unwrap_err();
    assert!(refused.contains("is a reservation"), "{refused}");
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

/// One node among ten thousand, of which a hundred move each second: it knows each change at once, and reads the list once.
#[test]
fn ten_thousand_leases_that_change() {
    let mut world = World::new(0, pool("10.0.0.0/8", 24), 23);
    let key = |n: u32| format!("10.{}.{}.0-24", 1 + n / 256, n % 256);
    let value = |n: u32, moved: u32| {
        World::lease_of(&format!("172.{}.{}.{}", 16 + moved, n / 256, n % 256))
    };
    (0..10_000).for_each(|n| world.etcd.put(&key(n), &value(n, 0), 0));
    world.add(0x0a63_0001);
    world.until("listed", World::is_whole);
    for turn in 0..200 {
        let n = turn * 7919 % 10_000;
        world.etcd.put(&key(n), &value(n, 1), 0);
        world.run(10 * MS);
        let table = &world.nodes[0].machine.table;
        let known = table.get(&key(n)).map(|entry| entry.kv.value.clone());
        assert_eq!(known, Some(value(n, 1).into_bytes()));
    }
    assert!(world.is_whole());
    let figures = world.nodes[0].machine.figures();
    assert_eq!((figures.lists, figures.faults), (1, 0));
}
