//! Many nodes start in the same instant.

use integration::bed::{Bed, Spec};
use integration::etcd::Etcd;

use super::*;

const NODES: u8 = 50;

#[test]
#[ignore = "soak: fifty daemons at once"]
fn fifty_daemons_in_one_instant() {
    let bed = Bed::with(&Spec {
        nodes: NODES,
        pods: false,
        ..Spec::default()
    });
    let etcd = Etcd::start(&bed);
    etcd.configure(VXLAN);
    let start = Instant::now();
    let daemons: Vec<Daemon> = bed
        .nodes()
        .iter()
        .map(|node| Daemon::launch(node, &etcd.config(node)))
        .collect();
    let launched = start.elapsed();
    for daemon in &daemons {
        until("all know all", Duration::from_secs(60), || {
            is_well(daemon, usize::from(NODES) - 1)
        });
    }
    let whole = start.elapsed();
    println!("{NODES} daemons: launched within {launched:.2?}, all know all after {whole:.2?}");
    // Peers are told apart by their subnets: so many peers each, so many subnets.
    assert_eq!(etcd.subnets().len(), usize::from(NODES));
    assert!(whole < Duration::from_secs(5), "{whole:?}");
}
