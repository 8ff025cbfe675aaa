//! Each fault, with what must hold.

use encap::Family::V4;
use integration::bed::{Bed, Underlay};
use integration::etcd::Etcd;
use integration::probe;
use nix::sys::signal::Signal;
use overlayd::lab::traffic::Flow;

use super::*;

fn all(bed: &Bed, etcd: &Etcd) -> Vec<Daemon> {
    let daemons: Vec<Daemon> = bed.nodes().iter().map(|node| start(node, etcd)).collect();
    until("whole", || whole(&daemons).then_some(()));
    daemons
}

#[test]
fn etcd_is_away_at_the_first_start() {
    let (bed, mut etcd) = bare(1);
    etcd.kill();
    let mut daemon = Daemon::launch(bed.node(1), &etcd.config(bed.node(1)));
    until("it says why it waits", || {
        daemon.log().contains("out of reach: waiting").then_some(())
    });
    assert!(daemon.exited().is_none(), "it waits");
    let error = overlayd::observe::client::status(daemon.socket()).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("does not forward yet"), "{error}");
    assert!(error.contains("Connection refused"), "{error}");
    etcd.run();
    await_daemon(&daemon);
    daemon.stop();
}

#[test]
fn etcd_is_away_at_a_later_start() {
    let (bed, mut etcd) = bare(2);
    let daemons = all(&bed, &etcd);
    let (own, known) = (subnet(&daemons[0]), peers(&daemons[0]));
    let saved = bed.node(1).dir().join("leases.saved");
    until("saved", || saved.exists().then_some(()));
    let mut daemons = daemons.into_iter();
    let (one, two) = (daemons.next().unwrap(), daemons.next().unwrap());
    one.stop();
    etcd.kill();
    let one = start(bed.node(1), &etcd);
    let status = one.status();
    assert_eq!(status["state"], "degraded");
    assert!(
        status["reasons"][0]
            .as_str()
            .unwrap()
            .contains("10.99.0.254"),
        "{status:#}"
    );
    assert_eq!((subnet(&one), peers(&one)), (own.clone(), known));
    etcd.run();
    let both = [one, two];
    until("whole", || whole(&both).then_some(()));
    assert_eq!(subnet(&both[0]), own);
}

#[test]
fn a_damaged_saved_table_is_refused() {
    let (bed, etcd) = bare(1);
    let saved = bed.node(1).dir().join("leases.saved");
    std::fs::write(&saved, "overlayd-leases 1 0000\n{}").unwrap();
    let daemon = start(bed.node(1), &etcd);
    assert!(
        daemon.log().contains("its checksum is wrong"),
        "{}",
        daemon.log()
    );
}

/// Etcd dies and comes back while packets flow: none is lost, and one line says so.
#[test]
fn etcd_is_away_while_packets_flow() {
    let bed = Bed::new(2, Underlay::V4);
    let mut etcd = Etcd::start(&bed);
    etcd.configure(VXLAN);
    reserve_pods(&bed, &etcd);
    let daemons = all(&bed, &etcd);
    probe::ping(bed.node(1).pod(), bed.node(2).pod_ip(V4));
    let to = bed.node(2).pod_ip(V4);
    let flow = bed
        .node(1)
        .run_in_pod(|| Flow::start(to, Duration::from_millis(2)))
        .unwrap();
    etcd.kill();
    daemons[0].wait_for("degraded", |status| status["state"] == "degraded");
    sleep(Duration::from_secs(3));
    let status = daemons[0].status();
    assert!(
        status["store"]["degraded_seconds"].as_u64().unwrap() >= 2,
        "{status:#}"
    );
    etcd.run();
    until("whole", || whole(&daemons).then_some(()));
    let report = flow.stop().unwrap();
    assert!(report.sent > 100, "{report:?}");
    assert_eq!(
        (report.lost, report.refused, report.corrupted),
        (0, 0, 0),
        "{report:?}"
    );
    let lines = daemons[0]
        .log()
        .lines()
        .filter(|line| line.contains("out of reach"))
        .count();
    assert_eq!(lines, 1, "{}", daemons[0].log());
}

#[test]
fn killed_and_started_again() {
    let (bed, etcd) = bare(2);
    let mut daemons = all(&bed, &etcd);
    let own = subnet(&daemons[0]);
    daemons[0].kill();
    daemons[0] = start(bed.node(1), &etcd);
    until("whole", || whole(&daemons).then_some(()));
    assert_eq!(subnet(&daemons[0]), own);
    assert_eq!(etcd.subnets().len(), 2);
}

#[test]
fn compaction_while_the_watch_is_cut() {
    let (bed, mut etcd) = bare(2);
    etcd.put(
        "10.244.200.0-24",
        r#"{"PublicIP":"10.99.0.77","BackendType":"vxlan"}"#,
    );
    let daemons: Vec<Daemon> = bed.nodes().iter().map(|node| start(node, &etcd)).collect();
    until("three", || (peers(&daemons[0]).len() == 2).then_some(()));
    // The cut: node 1 alone loses the store.
    let netns = bed.node(1).netns();
    probe::command(netns, "ip route add blackhole 10.99.0.254/32");
    probe::command(netns, "ss -K dst 10.99.0.254");
    daemons[0].wait_for("cut", |status| {
        status["store"]["reasons"] != Value::Array(vec![])
    });
    etcd.delete("10.244.200.0-24");
    etcd.put(
        "10.244.201.0-24",
        r#"{"PublicIP":"10.99.0.78","BackendType":"vxlan"}"#,
    );
    etcd.ctl(&["compact", &etcd.revision().to_string()]);
    probe::command(netns, "ip route del blackhole 10.99.0.254/32");
    until("known", || {
        let peers = peers(&daemons[0]);
        (peers.contains("10.244.201.0/24") && !peers.contains("10.244.200.0/24")).then_some(())
    });
    assert_eq!(daemons[0].status()["store"]["relists"], 1);
    // A new store, with nothing of the old: the nodes fill it again.
    etcd.kill();
    let fresh = Etcd::start(&bed);
    fresh.configure(VXLAN);
    until("filled again", || {
        (fresh.subnets().len() == 2).then_some(())
    });
    until("known", || {
        peers(&daemons[0])
            .contains(&subnet(&daemons[1]))
            .then_some(())
    });
}

#[test]
fn one_s_own_lease_is_deleted() {
    let (bed, etcd) = bare(2);
    let daemons = all(&bed, &etcd);
    let own = subnet(&daemons[0]);
    etcd.delete(&key(&own));
    until("taken again", || {
        etcd.subnets()
            .iter()
            .any(|(there, _)| *there == key(&own))
            .then_some(())
    });
    until("whole", || whole(&daemons).then_some(()));
    assert_eq!(subnet(&daemons[0]), own);
}

#[test]
fn one_s_own_lease_is_stolen() {
    let (bed, etcd) = bare(2);
    let daemons = all(&bed, &etcd);
    let own = subnet(&daemons[0]);
    etcd.put(
        &key(&own),
        r#"{"PublicIP":"10.99.0.66","BackendType":"vxlan"}"#,
    );
    until("another", || (subnet(&daemons[0]) != own).then_some(()));
    daemons[0].wait_for("well again", |status| status["state"] == "ok");
    let base = subnet(&daemons[0]).replace("0/24", "0");
    let addresses = probe::command(bed.node(1).netns(), "ip -4 -o addr show dev overlay0");
    assert!(addresses.contains(&format!("{base}/32")), "{addresses}");
    assert!(
        !addresses.contains(&own.replace("/24", "/32")),
        "{addresses}"
    );
    until("the thief is a peer", || {
        peers(&daemons[0]).contains(&own).then_some(())
    });
    let stolen = etcd
        .subnets()
        .into_iter()
        .find(|(there, _)| *there == key(&own))
        .unwrap();
    assert!(stolen.1.contains("10.99.0.66"), "{stolen:?}");
}

/// Stopped for longer than its lease lives, it wakes up to find another node's value under its key.
#[test]
fn one_s_own_lease_is_stolen_while_asleep() {
    let (bed, etcd) = bare(2);
    let short = etcd.config(bed.node(1)).set("store.lease-ttl", 5);
    let daemons = [
        Daemon::launch(bed.node(1), &short),
        start(bed.node(2), &etcd),
    ];
    await_daemon(&daemons[0]);
    until("whole", || whole(&daemons).then_some(()));
    let own = subnet(&daemons[0]);
    daemons[0].signal(Signal::SIGSTOP);
    until("expired", || {
        (!etcd.subnets().iter().any(|(there, _)| *there == key(&own))).then_some(())
    });
    let thief = r#"{"PublicIP":"10.99.0.66","BackendType":"vxlan"}"#;
    etcd.put(&key(&own), thief);
    daemons[0].signal(Signal::SIGCONT);
    until("another", || (subnet(&daemons[0]) != own).then_some(()));
    daemons[0].wait_for("well again", |status| status["state"] == "ok");
    let log = daemons[0].log();
    // The watch may tell of the end and of the thief one after the other.
    let said = ["has passed to 10.99.0.66", "is gone from the store"];
    assert!(said.iter().any(|word| log.contains(word)), "{log}");
    let all = etcd.subnets();
    assert!(all.contains(&(key(&own), thief.into())), "{all:?}");
    until("node 2 knows", || {
        let peers = peers(&daemons[1]);
        (peers.contains(&own) && peers.contains(&subnet(&daemons[0]))).then_some(())
    });
}

/// Stolen, and no other is free: the node says so, keeps what it lives by, and takes the first that comes free.
#[test]
fn one_s_own_lease_is_stolen_and_no_other_is_free() {
    let (bed, etcd) = bare(1);
    etcd.configure(r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.5.0","SubnetMax":"10.244.5.0","Backend":{"Type":"vxlan"}}"#);
    let daemon = start(bed.node(1), &etcd);
    etcd.put(
        "10.244.5.0-24",
        r#"{"PublicIP":"10.99.0.66","BackendType":"vxlan"}"#,
    );
    let status = daemon.wait_for("it says why", |status| {
        status["reasons"].to_string().contains("all 1 are taken")
    });
    assert_eq!(status["state"], "degraded", "{status:#}");
    let log = daemon.log();
    assert!(log.contains("all 1 are taken"), "{log}");
    etcd.delete("10.244.5.0-24");
    daemon.wait_for("well again", |status| status["state"] == "ok");
    assert_eq!(subnet(&daemon), "10.244.5.0/24");
    assert!(etcd.subnets()[0].1.contains("10.99.0.1"));
    daemon.stop();
}

#[test]
fn two_nodes_with_one_public_ip() {
    let (bed, etcd) = bare(2);
    let one = start(bed.node(1), &etcd);
    // The same address, behind node 2's NAT so to speak.
    let two = Daemon::launch(
        bed.node(2),
        &etcd.config(bed.node(2)).set("node.public-ip", "10.99.0.1"),
    );
    await_daemon(&two);
    let status = one.wait_for("it says so", |status| status["state"] == "degraded");
    assert!(
        status["reasons"][0]
            .as_str()
            .unwrap()
            .contains("two nodes use one public IP"),
        "{status:#}"
    );
    assert_eq!(etcd.subnets().len(), 1);
    let revision = etcd.revision();
    sleep(Duration::from_secs(2));
    assert_eq!(etcd.revision(), revision, "no fight");
}

#[test]
fn an_exhausted_range_is_waited_for() {
    let (bed, etcd) = bare(1);
    etcd.configure(r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.5.0","SubnetMax":"10.244.5.0","Backend":{"Type":"vxlan"}}"#);
    etcd.put(
        "10.244.5.0-24",
        r#"{"PublicIP":"10.99.0.66","BackendType":"vxlan"}"#,
    );
    let daemon = Daemon::launch(bed.node(1), &etcd.config(bed.node(1)));
    until("it says why", || {
        daemon.log().contains("all 1 are taken").then_some(())
    });
    etcd.delete("10.244.5.0-24");
    await_daemon(&daemon);
    assert_eq!(subnet(&daemon), "10.244.5.0/24");
}

#[test]
fn garbage_costs_no_peer() {
    let (bed, etcd) = bare(2);
    let daemons = all(&bed, &etcd);
    let theirs = subnet(&daemons[1]);
    etcd.put("10.244.222.0-24", "{garbage");
    etcd.put("nonsense", "[]");
    etcd.put(
        "10.245.1.0-24",
        r#"{"PublicIP":"10.99.0.55","BackendType":"vxlan"}"#,
    );
    etcd.put(
        "10.99.0.0-24",
        r#"{"PublicIP":"10.99.0.56","BackendType":"vxlan"}"#,
    );
    let status = daemons[0].wait_for("told", |status| {
        status["store"]["unreadable"].as_array().unwrap().len() == 2
            && status["refused"].as_array().unwrap().len() == 2
    });
    assert_eq!(status["state"], "ok", "{status:#}");
    assert_eq!(peers(&daemons[0]), [theirs].into());
}

#[test]
fn renewed_before_its_end_and_gone_after_it() {
    let (bed, etcd) = bare(2);
    let short = |node: &Node| etcd.config(node).set("store.lease-ttl", 5);
    let mut daemons: Vec<Daemon> = bed
        .nodes()
        .iter()
        .map(|node| Daemon::launch(node, &short(node)))
        .collect();
    daemons.iter().for_each(|daemon| {
        await_daemon(daemon);
    });
    until("renewed", || {
        (daemons[0].status()["store"]["renewals"].as_u64() >= Some(3)).then_some(())
    });
    assert!(whole(&daemons));
    let dead = subnet(&daemons[1]);
    daemons[1].kill();
    until("expired", || {
        (!peers(&daemons[0]).contains(&dead)).then_some(())
    });
    assert_eq!(etcd.subnets().len(), 1);
}
