//! What a node survives that would be fatal if it believed the store at once: a configuration that is bad, gone or another,
//! a store that somebody emptied, a table that cannot be saved; and what it says of it.

use std::fs;

use encap::Family::V4;
use integration::bed::{Bed, Underlay};
use integration::etcd::{Etcd, PREFIX};
use integration::probe;
use overlayd::lab::traffic::Flow;
use overlayd::observe::client;

use super::*;

/// Starts it, and waits until the table on disk has its lease.
fn start_and_save(bed: &Bed, etcd: &Etcd) -> Daemon {
    let daemon = start(bed.node(1), etcd);
    let own = key(&subnet(&daemon));
    until("saved", || {
        let saved = fs::read_to_string(bed.node(1).dir().join("leases.saved")).ok()?;
        (saved.contains(&own) && saved.contains("Network")).then_some(())
    });
    daemon
}

fn remove_config(etcd: &Etcd) {
    etcd.ctl(&["del", &format!("{PREFIX}/config")]);
}

fn says(daemon: &Daemon, word: &str) {
    daemon.wait_for(word, |status| {
        status["state"] == "degraded" && status["reasons"].to_string().contains(word)
    });
}

#[test]
fn a_restart_survives_a_configuration_that_is_bad_or_gone() {
    let (bed, etcd) = bare(1);
    let mut daemon = start_and_save(&bed, &etcd);
    let own = subnet(&daemon);
    for (spoil, word) in [
        (Some("{\"Network\":"), "not valid JSON"),
        (
            Some(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"x"}}"#),
            "x",
        ),
        (None, "etcd has no"),
    ] {
        match spoil {
            Some(text) => etcd.configure(text),
            None => remove_config(&etcd),
        }
        says(&daemon, word);
        // Long enough for the table to be saved again.
        sleep(Duration::from_secs(3));
        daemon.kill();
        daemon = start(bed.node(1), &etcd);
        says(&daemon, word);
        assert_eq!(subnet(&daemon), own);
    }
    etcd.configure(VXLAN);
    daemon.wait_for("well again", |status| status["state"] == "ok");
    daemon.stop();
}

#[test]
fn a_restart_without_the_store_survives_that_its_configuration_was_gone() {
    let (bed, mut etcd) = bare(1);
    let mut daemon = start_and_save(&bed, &etcd);
    let own = subnet(&daemon);
    remove_config(&etcd);
    says(&daemon, "etcd has no");
    sleep(Duration::from_secs(3));
    etcd.kill();
    daemon.kill();
    let daemon = start(bed.node(1), &etcd);
    assert_eq!(subnet(&daemon), own);
    says(&daemon, "Connection refused");
    let reasons = daemon.status()["reasons"].to_string();
    assert!(reasons.contains(", for "), "since when: {reasons}");
    daemon.stop();
}

#[test]
fn a_first_start_waits_for_a_configuration_that_can_be_read() {
    let (bed, etcd) = bare(1);
    etcd.configure("{\"Network\":");
    let daemon = Daemon::launch(bed.node(1), &etcd.config(bed.node(1)));
    until("it says why it waits", || {
        let error = client::status(daemon.socket()).err()?.to_string();
        error.contains("not valid JSON").then_some(())
    });
    etcd.configure(VXLAN);
    await_daemon(&daemon);
    daemon.stop();
}

#[test]
fn another_network_at_a_restart_gets_another_subnet() {
    let (bed, etcd) = bare(1);
    start_and_save(&bed, &etcd).stop();
    for network in ["10.62.", "10.63.", "10.62.", "10.63."] {
        etcd.configure(&VXLAN.replace("10.244.", network));
        let daemon = start(bed.node(1), &etcd);
        let own = subnet(&daemon);
        assert!(own.starts_with(network), "{own}");
        daemon.wait_for("well", |status| status["state"] == "ok");
        daemon.stop();
    }
}

#[test]
fn a_store_that_was_emptied_costs_no_packet() {
    let bed = Bed::new(2, Underlay::V4);
    let etcd = Etcd::start(&bed);
    etcd.configure(VXLAN);
    reserve_pods(&bed, &etcd);
    let daemons: Vec<Daemon> = bed.nodes().iter().map(|node| start(node, &etcd)).collect();
    until("whole", || whole(&daemons).then_some(()));
    let (one, to) = (bed.node(1), bed.node(2).pod_ip(V4));
    probe::ping(one.pod(), to);
    let flow = one
        .run_in_pod(|| Flow::start(to, Duration::from_millis(2)))
        .unwrap();
    for _ in 0..5 {
        etcd.ctl(&["del", "--prefix", &format!("{PREFIX}/subnets/")]);
        until("whole", || {
            (etcd.subnets().len() == 2 && whole(&daemons)).then_some(())
        });
    }
    let report = flow.stop().unwrap();
    assert!(report.sent > 100, "{report:?}");
    assert_eq!((report.lost, report.refused), (0, 0), "{report:?}");
    // Who was kept meanwhile and is back is no better than others: sooner than anybody is kept, it is gone.
    client::ask(daemons[1].socket(), "release").unwrap();
    until("the released node is gone", || {
        peers(&daemons[0]).is_empty().then_some(())
    });
}

#[test]
fn a_table_that_cannot_be_saved_is_said_and_tried_again() {
    let (bed, etcd) = bare(1);
    let node = bed.node(1);
    // A file where the folder should be.
    let folder = node.dir().join("folder");
    fs::write(&folder, "").unwrap();
    let saved = folder.join("leases.saved");
    let config = etcd
        .config(node)
        .set("store.saved-table", saved.to_str().unwrap());
    let daemon = Daemon::launch(node, &config);
    await_daemon(&daemon);
    says(&daemon, "cannot save the leases");
    fs::remove_file(&folder).unwrap();
    until("saved", || saved.exists().then_some(()));
    daemon.wait_for("well again", |status| status["state"] == "ok");
    daemon.stop();
}

#[test]
fn a_release_is_told_as_it_is() {
    let (bed, mut etcd) = bare(2);
    let [one, two] = [1, 2].map(|number| start(bed.node(number), &etcd));
    let reserved = key(&subnet(&two));
    let release =
        |daemon: &Daemon| client::ask(daemon.socket(), "release").map_err(|e| e.to_string());

    etcd.kill();
    says(&one, "Connection refused");
    let error = release(&one).unwrap_err();
    assert!(error.contains("out of reach"), "{error}");
    etcd.run();
    one.wait_for("well", |status| status["state"] == "ok");
    assert_eq!(etcd.subnets().len(), 2, "nothing was released");

    etcd.put(&reserved, r#"{"PublicIP":"10.99.0.2","PublicIPv6":null}"#);
    until("it knows of its reservation", || {
        release(&two)
            .unwrap_err()
            .contains("is a reservation")
            .then_some(())
    });

    let own = key(&subnet(&one));
    release(&one).unwrap();
    assert!(etcd.subnets().iter().all(|(key, _)| *key != own), "{own}");
    says(&one, "released");
    sleep(Duration::from_secs(1));
    assert_eq!(etcd.subnets().len(), 1, "it takes no other");
}

/// A bridge that was made for an earlier lease.
#[test]
fn addresses_outside_of_the_own_subnet_are_warned_of() {
    let (bed, etcd) = bare(1);
    let node = bed.node(1);
    etcd.put(
        "10.244.5.0-24",
        r#"{"PublicIP":"10.99.0.1","PublicIPv6":null}"#,
    );
    let daemon = start(node, &etcd);
    assert_eq!(subnet(&daemon), "10.244.5.0/24");
    for line in [
        "ip link add cni9 type bridge",
        "ip addr add 10.244.5.1/24 dev cni9",
    ] {
        probe::command(node.netns(), line);
    }
    let warnings = |status: &Value| status["warnings"].to_string();
    let of_bridge = warnings(&daemon.status());
    assert!(!of_bridge.contains("cni9"), "{of_bridge}");
    probe::command(node.netns(), "ip addr add 10.244.6.1/24 dev cni9");
    daemon.wait_for("warned of", |status| {
        warnings(status).contains("cni9 has 10.244.6.1")
    });
}
