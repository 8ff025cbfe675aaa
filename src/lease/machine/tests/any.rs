//! Any faults in any order.

use proptest::prelude::*;

use super::sim::*;

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
    /// between no node is without a lease to live by, once it had one, until it is restarted.
    #[test]
    fn every_fault_heals(seed: u64, chaos: bool, loss in 0u8..30, faults in prop::collection::vec(fault(), 0..15)) {
        let mut world = World::new(6, pool("10.244.0.0/20", 24), seed);
        (world.chaos, world.loss) = (chaos, loss);
        world.run(SECOND);
        let mut thieves = 0;
        let mut living = [false; 6];
        for fault in faults {
            let own = |world: &World, n| world.own(n).map(|own| own.key());
            let shown = format!("{fault:?}");
            match fault {
                Fault::Cut(n) => world.cut(n),
                Fault::Heal(n) => world.nodes[n].reaches = true,
                Fault::Restart(n) => {
                    let saved = world.nodes[n].machine.to_save();
                    let saved = world.rng.bool().then_some(saved);
                    living[n] = false;
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
            for (n, lives) in living.iter_mut().enumerate() {
                let now = world.own(n).is_some();
                prop_assert!(now || !*lives, "node {n} lives by no lease after {shown}");
                *lives = now;
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
