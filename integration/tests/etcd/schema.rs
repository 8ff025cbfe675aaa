//! What we write flannel reads, and the other way round.

use encap::Family::V4;
use integration::bed::{Backend, Bed, Spec, Underlay};
use integration::etcd::Etcd;
use integration::probe;

use super::*;

#[test]
fn sixteen_nodes_start_in_the_same_instant() {
    let (bed, etcd) = bare(16);
    let daemons: Vec<Daemon> = bed
        .nodes()
        .iter()
        .map(|node| Daemon::launch(node, &etcd.config(node)))
        .collect();
    daemons.iter().for_each(|daemon| {
        await_daemon(daemon);
    });
    until("all distinct, all known to all", || {
        whole(&daemons).then_some(())
    });
    assert_eq!(etcd.subnets().len(), 16);
    daemons.into_iter().for_each(Daemon::stop);
    // As with flanneld, the leases outlive the daemons.
    assert_eq!(etcd.subnets().len(), 16);
}

#[test]
fn what_is_written_is_flannel_s_to_the_byte() {
    let bed = Bed::with(&Spec {
        nodes: 1,
        underlay: Underlay::Dual,
        pods: false,
        ..Spec::default()
    });
    let etcd = Etcd::start(&bed);
    let node = bed.node(1);
    for (net_conf, pattern, value) in [
        (
            r#"{"Network":"10.244.0.0/16","SubnetLen":24,"Backend":{"Type":"udp","Port":8285}}"#,
            "10.244.",
            r#"{"PublicIP":"10.99.0.1","PublicIPv6":null}"#,
        ),
        (
            r#"{"Network":"10.244.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan","VNI":1,"Port":8472}}"#,
            "10.244.",
            r#"{"PublicIP":"10.99.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:58:0a:63:00:01"}}"#,
        ),
        (
            r#"{"Network":"10.244.0.0/16","SubnetLen":24,"EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetLen":64,"Backend":{"Type":"vxlan","VNI":7,"DirectRouting":false}}"#,
            "&fc00:0:0:",
            r#"{"PublicIP":"10.99.0.1","PublicIPv6":"fd99::1","BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"0a:58:0a:63:00:01"},"BackendV6Data":{"VNI":7,"VtepMAC":"0a:58:0a:63:00:01"}}"#,
        ),
    ] {
        etcd.configure(net_conf);
        let daemon = start(node, &etcd);
        let subnets = etcd.subnets();
        assert_eq!(subnets.len(), 1, "{subnets:?}");
        assert!(subnets[0].0.contains(pattern), "{subnets:?}");
        assert_eq!(subnets[0].1, value);
        daemon.stop();
        etcd.delete(&subnets[0].0);
    }
}

#[test]
fn subnet_min_and_max_and_nothing_else() {
    let (bed, etcd) = unconfigured(2);
    etcd.configure(r#"{"network":"10.244.0.0/16","subnetlen":26,"subnetmin":"10.244.9.64","SubnetMax":"10.244.9.128"}"#);
    let daemons: Vec<Daemon> = bed.nodes().iter().map(|node| start(node, &etcd)).collect();
    until("whole", || whole(&daemons).then_some(()));
    let taken: BTreeSet<String> = daemons.iter().map(subnet).collect();
    let expected = ["10.244.9.64/26", "10.244.9.128/26"];
    assert_eq!(taken, expected.map(str::to_owned).into());
    // No Backend means udp.
    assert_eq!(daemons[0].status()["backend"]["type"], "udp");
}

#[test]
fn packets_flow_between_nodes_on_etcd() {
    for backend in [Backend::Udp, Backend::Vxlan] {
        let bed = Bed::new(2, Underlay::V4);
        let etcd = Etcd::start(&bed);
        etcd.configure(&format!(
            r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"{}"}}}}"#,
            backend.name()
        ));
        reserve_pods(&bed, &etcd);
        let daemons: Vec<Daemon> = bed.nodes().iter().map(|node| start(node, &etcd)).collect();
        until("whole", || whole(&daemons).then_some(()));
        assert_eq!(
            subnet(&daemons[0]),
            "10.244.1.0/24",
            "the reservation is honoured"
        );
        probe::ping(bed.node(1).pod(), bed.node(2).pod_ip(V4));
    }
}

#[test]
fn a_peer_that_flannel_wrote_and_one_of_its_oldest_form() {
    let (bed, etcd) = bare(1);
    etcd.put("10.244.14.0-24", r#"{"PublicIP":"10.99.0.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5a:94:04:4d:4d:ae"}}"#);
    etcd.put("10.244.15.0-24", r#"{"PublicIP":"10.99.0.3","BackendType":"vxlan","BackendData":{"VtepMAC":"5a:94:04:4d:4d:af"}}"#);
    // A node of another backend is none of ours.
    etcd.put(
        "10.244.16.0-24",
        r#"{"PublicIP":"10.99.0.4","PublicIPv6":null}"#,
    );
    let daemon = start(bed.node(1), &etcd);
    let status = daemon.wait_for("two peers", |status| {
        status["peers"].as_array().unwrap().len() == 2
    });
    let macs: Vec<_> = status["peers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|peer| peer["vtep_mac"].as_str().unwrap())
        .collect();
    assert_eq!(macs, ["5a:94:04:4d:4d:ae", "5a:94:04:4d:4d:af"]);
    assert_eq!(status["refused"].as_array().unwrap().len(), 1, "{status:#}");
}
