//! `overlayd lease` and `overlayd peers`.

use std::process::{Command, Output};

use integration::bed::{Bed, overlayd_bin};
use integration::etcd::Etcd;
use integration::probe;

use super::*;

/// Runs `overlayd` with these words in node 1.
fn overlayd(bed: &Bed, words: &[&str]) -> Output {
    probe::within(bed.node(1).netns(), || {
        Command::new(overlayd_bin()).args(words).output()
    })
}

/// The same with etcd's endpoint alone, as beside `overlayd flannel`: without a configuration, by flanneld's variable.
fn beside_flannel(bed: &Bed, etcd: &Etcd, words: &[&str]) -> Output {
    probe::within(bed.node(1).netns(), || {
        Command::new(overlayd_bin())
            .args(words)
            .env("FLANNELD_ETCD_ENDPOINTS", etcd.endpoint())
            .output()
    })
}

fn refused(output: &Output, why: &str) {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(1) && error.contains(why),
        "{why}: {output:?}"
    );
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn look_reserve_and_release() {
    let (bed, etcd) = bare(2);
    let daemons: Vec<Daemon> = bed.nodes().iter().map(|node| start(node, &etcd)).collect();
    until("whole", || whole(&daemons).then_some(()));
    let config = daemons[0].config_path().to_string_lossy().into_owned();
    let socket = daemons[0].socket().to_string_lossy().into_owned();
    let (own, theirs) = (subnet(&daemons[0]), subnet(&daemons[1]));

    let said = text(&overlayd(&bed, &["lease", "ls", "--config", &config]));
    assert_eq!(said.lines().count(), 3, "{said}");
    assert!(
        said.contains(&own) && said.contains(&theirs) && said.contains("in 23 h"),
        "{said}"
    );
    let said = text(&overlayd(
        &bed,
        &["lease", "ls", "--json", "--config", &config],
    ));
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        said["leases"][1]["public_ip"].as_str().map(|ip| &ip[..8]),
        Some("10.99.0.")
    );
    assert!(
        said["leases"][1]["ends_in_seconds"].as_u64() > Some(80_000),
        "{said}"
    );

    let said = text(&overlayd(&bed, &["lease", "show", "--socket", &socket]));
    assert_eq!(said, format!("{own} at 10.99.0.1\n"));
    let said = text(&overlayd(
        &bed,
        &["lease", "show", "--docker-opts", "--socket", &socket],
    ));
    let bip = own.replace(".0/24", ".1/24");
    assert_eq!(said, format!("--bip={bip} --mtu=1450 --ip-masq=true\n"));

    let inside = theirs.replace(".0/24", ".9");
    let said = text(&overlayd(
        &bed,
        &["lease", "who", &inside, "--socket", &socket],
    ));
    assert_eq!(said, format!("{inside} is at 10.99.0.2\n"));
    let nobody = overlayd(&bed, &["lease", "who", "10.244.0.9", "--socket", &socket]);
    assert_eq!(nobody.status.code(), Some(5));
    let nobody = overlayd(
        &bed,
        &["lease", "who", "10.244.0.9", "--json", "--socket", &socket],
    );
    assert_eq!(nobody.status.code(), Some(5));
    let said = text(&overlayd(&bed, &["peers", "--socket", &socket]));
    assert!(
        said.lines().count() == 2 && said.contains(&theirs),
        "{said}"
    );

    // Node 2's lease does not end any more, and it goes on holding it.
    let done = overlayd(&bed, &["lease", "reserve", &theirs, "--config", &config]);
    assert!(done.status.success(), "{done:?}");
    until("a reservation", || {
        (daemons[1].status()["store"]["reservations"] == 1).then_some(())
    });
    until("whole", || whole(&daemons).then_some(()));
    // One for a node to come.
    let done = overlayd(
        &bed,
        &[
            "lease",
            "reserve",
            "10.244.7.0/24",
            "--public-ip",
            "10.99.0.7",
            "--config",
            &config,
        ],
    );
    assert!(done.status.success(), "{done:?}");
    let expected = r#"{"PublicIP":"10.99.0.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:58:0a:63:00:07"}}"#;
    assert!(
        etcd.subnets()
            .contains(&("10.244.7.0-24".into(), expected.into()))
    );
    for (words, why) in [
        (["10.244.7.0/24", "10.99.0.8"], "is held by 10.99.0.7"),
        (
            ["10.245.7.0/24", "10.99.0.8"],
            "outside of the overlay network",
        ),
        // What no node takes.
        (
            ["10.244.0.0/16", "10.99.0.8"],
            "no node takes 10.244.0.0/16",
        ),
        (
            ["10.244.8.0/25", "10.99.0.8"],
            "no node takes 10.244.8.0/25",
        ),
        // A node that has one.
        (
            ["10.244.8.0/24", "10.99.0.7"],
            "holds 10.244.7.0/24 already",
        ),
        (["10.244.8.0/24", "10.244.8.1"], "covers 10.244.8.1"),
    ] {
        let [subnet, public] = words;
        let words = ["lease", "reserve", subnet, "--public-ip", public];
        refused(
            &overlayd(&bed, &[&words[..], &["--config", &config]].concat()),
            why,
        );
    }
    let done = overlayd(
        &bed,
        &["lease", "release", "10.244.7.0/24", "--config", &config],
    );
    assert!(done.status.success(), "{done:?}");
    until("gone", || (etcd.subnets().len() == 2).then_some(()));

    // Our own, by the daemon, which does not take it again.
    let done = overlayd(&bed, &["lease", "release", "--socket", &socket]);
    assert!(text(&done).contains(&own), "{done:?}");
    until("gone", || (etcd.subnets().len() == 1).then_some(()));
    until("forgotten", || peers(&daemons[1]).is_empty().then_some(()));
    sleep(Duration::from_secs(1));
    assert_eq!(etcd.subnets().len(), 1);
}

#[test]
fn overlaps_are_named() {
    let (bed, etcd) = bare(2);
    // As a node of another SubnetLen had it.
    let value = r#"{"PublicIP":"10.99.0.9","PublicIPv6":null,"BackendType":"vxlan"}"#;
    etcd.lease("10.244.8.0-23", value);
    let reserve = ["lease", "reserve", "10.244.9.0/24", "--public-ip=10.99.0.8"];
    refused(
        &beside_flannel(&bed, &etcd, &reserve),
        "10.244.9.0/24 overlaps 10.244.8.0-23, held by 10.99.0.9",
    );
    assert_eq!(etcd.subnets().len(), 1);
}

#[test]
fn of_a_dual_stack_lease_either_subnet_is_enough() {
    let (bed, etcd) = unconfigured(2);
    etcd.configure(
        r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"vxlan"}}"#,
    );
    let both = "10.244.62.0/24,fc00:0:0:62::/64";
    let value = r#"{"PublicIP":"10.99.0.2","PublicIPv6":"fd99::2","BackendType":"vxlan"}"#;
    etcd.lease("10.244.62.0-24&fc00:0:0:62::-64", value);
    let said = text(&beside_flannel(&bed, &etcd, &["lease", "ls"]));
    let line = said.lines().find(|line| line.starts_with(both));
    assert!(line.is_some_and(|line| !line.contains("never")), "{said}");

    for subnet in ["10.244.62.0/24", "fc00:0:0:62::/64", both] {
        let said = beside_flannel(&bed, &etcd, &["lease", "reserve", subnet]);
        assert!(said.status.success(), "{subnet}: {said:?}");
    }
    let said = text(&beside_flannel(&bed, &etcd, &["lease", "ls"]));
    assert!(said.contains("never"), "{said}");
    let said = beside_flannel(&bed, &etcd, &["lease", "release", "10.244.62.0/24"]);
    assert_eq!(text(&said), format!("released {both}\n"));
    assert!(etcd.subnets().is_empty());

    // A new one has both, and both public IPs where the nodes have them.
    let reserve = |subnet: &str| {
        let words = ["lease", "reserve", subnet, "--public-ip=10.99.0.7"];
        let words = [&words[..], &["--public-ipv6=fd99::7"]].concat();
        beside_flannel(&bed, &etcd, &words)
    };
    refused(&reserve("10.244.7.0/24"), "give both");
    assert!(etcd.subnets().is_empty());
    let said = reserve("10.244.7.0/24,fc00:0:0:7::/64");
    assert!(said.status.success(), "{said:?}");
    let (key, value) = etcd.subnets().remove(0);
    assert_eq!(key, "10.244.7.0-24&fc00:0:0:7::-64");
    assert!(
        value
            .starts_with(r#"{"PublicIP":"10.99.0.7","PublicIPv6":"fd99::7","BackendType":"vxlan""#),
        "{value}"
    );
}

#[test]
fn where_the_store_is_can_be_said_in_every_way() {
    let (bed, etcd) = unconfigured(2);
    // Without a configuration in etcd too.
    let value = r#"{"PublicIP":"10.99.0.2","PublicIPv6":null}"#;
    etcd.lease("10.244.62.0-24", value);
    let flag = format!("--etcd-endpoints={}", etcd.endpoint());
    for said in [
        beside_flannel(&bed, &etcd, &["lease", "ls"]),
        overlayd(&bed, &["lease", "ls", &flag]),
        overlayd(&bed, &["lease", "ls", "--store=etcd", &flag]),
    ] {
        assert!(text(&said).contains("10.244.62.0/24"), "{said:?}");
    }
    let nowhere = overlayd(&bed, &["lease", "ls"]);
    let error = String::from_utf8_lossy(&nowhere.stderr).into_owned();
    assert_eq!(nowhere.status.code(), Some(78));
    assert!(error.contains("--etcd-endpoints"), "{error}");
    let said = overlayd(&bed, &["lease", "release", "10.244.62.0/24", &flag]);
    assert!(said.status.success(), "{said:?}");
    assert!(etcd.subnets().is_empty());
}

#[test]
fn a_check_asks_etcd_or_says_that_it_did_not() {
    let (bed, mut etcd) = unconfigured(2);
    let check = |etcd: &Etcd, more: &[&str]| {
        let endpoints = format!("--etcd-endpoints={}", etcd.endpoint());
        let words = ["config", "check", "--store=etcd", &endpoints];
        let done = overlayd(&bed, &[&words[..], more].concat());
        (done.status.code(), text(&done))
    };
    let (code, said) = check(&etcd, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("has no configuration yet"), "{said}");

    etcd.configure(VXLAN);
    let value = r#"{"PublicIP":"10.99.0.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:58:0a:63:00:02"}}"#;
    etcd.lease("10.244.62.0-24", value);
    let (code, said) = check(&etcd, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("network   10.244.0.0/16\n") && said.contains("1 of 1 accepted"),
        "{said}"
    );
    // What would be left out.
    etcd.lease("10.245.1.0-24", value);
    etcd.lease("10.244.9.0-24", "{");
    let (code, said) = check(&etcd, &[]);
    assert_eq!(code, Some(5), "{said}");
    assert!(
        said.contains("1 of 3 accepted")
            && said.contains("10.245.1.0-24 refused")
            && said.contains("10.244.9.0-24 unreadable"),
        "{said}"
    );
    // What the daemon would not start with.
    etcd.configure(r#"{"Network":"10.244.0.0/33"}"#);
    assert_eq!(check(&etcd, &[]).0, Some(78));

    etcd.kill();
    let (code, said) = check(&etcd, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("etcd was not asked: etcd at http")
            && said.contains("good, as far as can be told without etcd"),
        "{said}"
    );
    let (_, said) = check(&etcd, &["--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["etcd"]["asked"], false);
}
