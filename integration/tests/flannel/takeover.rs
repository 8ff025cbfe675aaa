//! A node changes from flanneld to overlayd while the rest of the cluster stays as it is: the page "Replace flanneld by
//! overlayd, node by node", played. The other node is the kernel's VXLAN device as flanneld sets it up, and the
//! test does there what flanneld does when a lease changes.

use std::fs;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use encap::{Family, Family::V4, MacAddr};
use integration::bed::{Bed, Spec, Underlay};
use integration::etcd::{Etcd, PREFIX};
use integration::flannel::{self, Checksums};
use integration::probe;
use serde_json::{Value, json};

use super::flags::{Flannel, overlayd};
use super::shell;

/// flannel's value of a VXLAN lease (`fixtures/flannel-0.20.2/vxlan/etcd.json`).
fn value(ip: IpAddr, mac: MacAddr) -> String {
    format!(
        r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    )
}

#[test]
fn a_node_of_a_flannel_cluster_changes_hands() {
    let bed = Bed::with(&Spec {
        underlay: Underlay::V4,
        pod_mtu: 1450,
        ..Spec::default()
    });
    let etcd = Etcd::start(&bed);
    let conf = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
    etcd.configure(conf);
    let (one, two) = (bed.node(1), bed.node(2));
    let (vni, mut sides) = flannel::single_stack();
    let side = sides.remove(0);
    let key = |family: Family, number: u8| {
        let subnet = bed.node(number).subnet(family).to_string();
        subnet.replace('/', "-")
    };
    // Both nodes' leases as their flanneld wrote them, to end in an hour.
    for (number, mac) in [(1, side.ours), (2, side.theirs)] {
        let granted = etcd.ctl(&["lease", "grant", "3600"]);
        let id = granted.split_whitespace().nth(1).unwrap().to_owned();
        let value = value(bed.node(number).public_ip(V4), mac);
        let key = format!("{PREFIX}/subnets/{}", key(V4, number));
        etcd.ctl(&["put", &key, &value, "--lease", &id]);
    }
    bed.block_on(flannel::make_device(two, one, vni, &side, Checksums::On));

    // Step 2 forgotten: the kernel's device of the stopped flanneld still holds the port.
    let local = one.public_ip(V4);
    shell(
        one.netns(),
        &format!(
            "ip link add flannel.1 type vxlan id 1 local {local} dev eth0 dstport 8472 nolearning && ip link set flannel.1 up"
        ),
    );
    let endpoints = format!("-etcd-endpoints={}", etcd.endpoint());
    let subnet_env = one.dir().join("run/subnet.env");
    let subnet_file = format!("-subnet-file={}", subnet_env.display());
    let saved = one.dir().join("leases.saved");
    let saved = format!("--saved-table={}", saved.display());
    let flags = [&*endpoints, "-iface=eth0", "-ip-masq", &subnet_file, &saved];
    let mut command = overlayd(&["flannel"]);
    command.args(flags).arg("--socket");
    command.arg(one.dir().join("first.sock"));
    let first = one.netns().run(|| command.output()).unwrap().unwrap();
    let said = String::from_utf8_lossy(&first.stderr);
    assert!(!first.status.success());
    assert!(said.contains("ip link del flannel.1"), "{said}");
    // Whoever forwards there still does: the others must not be told of another MAC.
    assert_eq!(etcd.subnets()[0].1, value(local, side.ours));

    // Steps 2 and 3.
    shell(one.netns(), "ip link del flannel.1");
    let mut daemon = Flannel::launch(one, &flags, &[]);
    let status = daemon.status();
    assert_eq!(status["state"], "ok", "{status:#}");
    assert_eq!(status["device"]["name"], "flannel.1");
    assert_eq!(status["lease"]["subnet"], json!(one.subnet(V4)));
    assert_eq!(status["peers"][0]["subnet"], json!(two.subnet(V4)));

    // The lease is the old one, in flannel's own words, with the new MAC and a new term.
    let leases = etcd.subnets();
    assert_eq!(leases.len(), 2, "{leases:?}");
    assert_eq!(leases[0].0, key(V4, 1));
    let written: Value = serde_json::from_str(&leases[0].1).unwrap();
    let mac: MacAddr = written["BackendData"]["VtepMAC"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert_ne!(mac, side.ours, "the kernel's MAC went with its device");
    assert_eq!(leases[0].1, value(local, mac));
    // Told a moment after it was taken.
    let left = |status: Value| status["store"]["lease_left_seconds"].as_u64();
    let end = Instant::now() + Duration::from_secs(10);
    while left(daemon.status()).is_none_or(|left| left < 86_000) {
        assert!(Instant::now() < end, "{:#}", daemon.status());
        sleep(Duration::from_millis(50));
    }

    // What flanneld does on the other node when it sees the change.
    let base = one.base_ip(V4);
    shell(
        two.netns(),
        &format!(
            "ip neigh replace {base} lladdr {mac} dev flannel.1 nud permanent && bridge fdb replace {mac} dev flannel.1 dst {local} self permanent"
        ),
    );
    let (pod1, pod2) = (one.pod_ip(V4), two.pod_ip(V4));
    probe::ping(one.pod(), pod2);
    probe::ping(two.pod(), pod1);
    probe::tcp(two.pod(), pod2, one.pod(), pod1, 1_000_000);
    probe::tcp(one.pod(), pod1, two.pod(), pod2, 1_000_000);
    assert_eq!(
        fs::read_to_string(&subnet_env).unwrap(),
        format!(
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={}/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
            one.gateway(V4)
        )
    );

    // Back again: the lease stays for flanneld, the host is as it was.
    daemon.stop();
    assert_eq!(etcd.subnets(), leases);
    assert!(!shell(one.netns(), "ip -o link").contains("flannel.1"));
    assert_eq!(shell(one.netns(), "nft list ruleset"), "");
    assert!(subnet_env.exists());
}
