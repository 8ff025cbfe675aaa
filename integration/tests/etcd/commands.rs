//! `overlayd lease` and `overlayd peers`.

use std::process::{Command, Output};

use integration::bed::{Bed, Spec, overlayd_bin};
use integration::etcd::Etcd;
use integration::probe;

use super::*;

/// Runs `overlayd` with these words in node 1.
fn overlayd(bed: &Bed, words: &[&str]) -> Output {
    probe::within(bed.node(1).netns(), || {
        Command::new(overlayd_bin()).args(words).output()
    })
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn look_reserve_and_release() {
    let bed = Bed::with(&Spec {
        nodes: 2,
        pods: false,
        ..Spec::default()
    });
    let etcd = Etcd::start(&bed);
    etcd.configure(VXLAN);
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
        (
            ["10.244.7.0/24", "--public-ip", "10.99.0.8"],
            "is held by 10.99.0.7",
        ),
        (
            ["10.245.7.0/24", "--public-ip", "10.99.0.8"],
            "outside of the overlay network",
        ),
    ] {
        let done = overlayd(
            &bed,
            &[&["lease", "reserve", "--config", &config], &words[..]].concat(),
        );
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(
            done.status.code() == Some(1) && error.contains(why),
            "{error}"
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
