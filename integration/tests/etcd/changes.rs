//! What changes while the daemon runs: the whole network's configuration, and the node's place.

use encap::Family::V4;
use integration::bed::{Bed, Underlay};
use integration::etcd::{Etcd, PREFIX};
use integration::iproute::ip;
use integration::probe;
use overlayd::lab::traffic;

use super::*;

#[test]
fn another_network_configuration_needs_a_restart_and_says_so() {
    let (bed, etcd) = bare(1);
    let daemon = start(bed.node(1), &etcd);
    let own = subnet(&daemon);
    for (net_conf, why) in [
        (
            VXLAN.replace("\"VNI\":1", "\"VNI\":2"),
            "backend.vni changed, which needs a restart",
        ),
        (
            VXLAN.replace("\"SubnetLen\":24", "\"SubnetLen\":25"),
            "network.subnet-len changed, which needs a restart",
        ),
        (
            VXLAN.replace(
                "\"SubnetLen\"",
                "\"SubnetMax\":\"10.244.9.0\",\"SubnetLen\"",
            ),
            "network.subnet-min to subnet-max changed, which needs a restart",
        ),
        ("{\"Network\":".to_owned(), "not valid JSON"),
    ] {
        etcd.configure(&net_conf);
        let status = daemon.wait_for("told", |status| status["reasons"].to_string().contains(why));
        assert_eq!(status["state"], "degraded", "{status:#}");
        assert_eq!(status["backend"]["vni"], 1, "{status:#}");
        etcd.configure(VXLAN);
        daemon.wait_for("as it was", |status| status["state"] == "ok");
    }
    // One that is gone changes nothing until there is another.
    etcd.ctl(&["del", &format!("{PREFIX}/config")]);
    let there = r#"{"PublicIP":"10.99.0.77","BackendType":"vxlan"}"#;
    etcd.put("10.244.200.0-24", there);
    until("a peer", || (peers(&daemon).len() == 1).then_some(()));
    let status = daemon.status();
    let reasons = status["reasons"].to_string();
    assert!(reasons.contains("etcd has no"), "{reasons}");
    assert_eq!(subnet(&daemon), own);
    assert!(daemon.log().contains("configuration reloaded"));
    daemon.stop();
}

/// The node gets another address: its lease says so, under the same key, and peers send there.
#[test]
fn the_underlay_address_changes() {
    let bed = Bed::new(2, Underlay::V4);
    let etcd = Etcd::start(&bed);
    etcd.configure(VXLAN);
    lease_pods(&bed, &etcd);
    let daemons: Vec<Daemon> = bed.nodes().iter().map(|node| start(node, &etcd)).collect();
    until("whole", || whole(&daemons).then_some(()));
    let (one, to) = (bed.node(1), bed.node(2).pod_ip(V4));
    probe::ping(one.pod(), to);
    let (own, made) = ("10.244.1.0-24", etcd.made("10.244.1.0-24"));
    for (from, there, mac) in [
        ("10.99.0.1", "10.99.0.101", "0a:58:0a:63:00:65"),
        ("10.99.0.101", "10.99.0.1", "0a:58:0a:63:00:01"),
    ] {
        ip(one.netns(), &format!("addr del {from}/24 dev eth0"));
        ip(one.netns(), &format!("addr add {there}/24 dev eth0"));
        let moved = Instant::now();
        let quick = traffic::PingOpts {
            count: 1,
            timeout: Duration::from_millis(100),
            ..traffic::PingOpts::default()
        };
        until("packets flow again", || {
            let report = one.run_in_pod(|| traffic::ping(to, &quick)).ok()?;
            report.all_answered().then_some(())
        });
        println!("moved to {there}: packets flow after {:?}", moved.elapsed());
        let value = format!(
            r#"{{"PublicIP":"{there}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        );
        let subnets = etcd.subnets();
        assert_eq!(subnets.len(), 2, "{subnets:?}");
        assert!(subnets.contains(&(own.into(), value)), "{subnets:?}");
        assert_eq!(etcd.made(own), made, "the same key");
        let status = daemons[1].status();
        assert_eq!(status["peers"][0]["public_ip"], there, "{status:#}");
        until("whole", || whole(&daemons).then_some(()));
        assert_eq!(daemons[0].status()["store"]["leases_taken"], 1);
    }
}
