use std::path::Path;

use super::*;
use crate::{config::Config, lease};

#[test]
fn addresses_follow_the_numbers() {
    let nodes = Spec::default().node_plans();
    let node = &nodes[1];
    assert_eq!(
        (node.name.as_str(), node.namespace.as_str()),
        ("node2", "lab-node2")
    );
    assert_eq!(node.public_ip.unwrap().to_string(), "10.99.0.2");
    assert_eq!(node.public_ipv6.unwrap().to_string(), "fd99::2");
    assert_eq!(node.subnet.to_string(), "10.244.2.0/24");
    assert_eq!(node.ipv6_subnet.unwrap().to_string(), "fd00:10:244:2::/64");
    assert_eq!(node.gateway.to_string(), "10.244.2.1");
    let pod = &node.pods[1];
    assert_eq!(
        (pod.place.as_str(), pod.veth.as_str()),
        ("node2/pod2", "veth-pod2")
    );
    assert_eq!(pod.ip.to_string(), "10.244.2.3");
    assert_eq!(pod.ipv6.unwrap().to_string(), "fd00:10:244:2::3");
    assert_eq!(
        Spec::default().namespaces(),
        ["lab-underlay", "lab-node1", "lab-node2", "lab-node3"]
    );
}

#[test]
fn the_overlay_mtu_is_what_the_encapsulation_leaves() {
    let mtu = |backend, underlay| {
        let spec = Spec {
            backend,
            underlay,
            ..Spec::default()
        };
        spec.overlay_mtu()
    };
    assert_eq!(mtu(Backend::Vxlan, Underlay::Dual), 1450);
    assert_eq!(mtu(Backend::Udp, Underlay::V4), 1472);
    assert_eq!(mtu(Backend::Vxlan, Underlay::V6), 1430);
    assert_eq!(mtu(Backend::Udp, Underlay::V6), 1452);
}

#[test]
fn what_cannot_be_built_is_refused_with_a_reason() {
    let reason = |change: &dyn Fn(&mut Spec)| {
        let mut spec = Spec::default();
        change(&mut spec);
        spec.validate().unwrap_err().to_string()
    };
    assert!(Spec::default().validate().is_ok());
    for name in ["", "a/b", "..", "Lab", "-x", "a b", &"x".repeat(33)] {
        assert!(
            reason(&|s| s.name = name.to_owned()).contains("cannot be the name of a lab"),
            "{name}"
        );
    }
    assert!(reason(&|s| s.nodes = 0).contains("1 to 250 nodes"));
    assert!(reason(&|s| s.nodes = 251).contains("1 to 250 nodes"));
    assert!(reason(&|s| s.pods = 251).contains("at most 250 pods"));
    assert!(reason(&|s| s.mtu = 1349).contains("needs 1350 bytes"));
    let v4 = |s: &mut Spec| (s.ipv6, s.underlay, s.mtu) = (false, Underlay::V4, 117);
    assert!(reason(&v4).contains("needs 118 bytes"));
}

#[test]
fn the_written_files_are_what_the_daemon_reads() {
    for (backend, ipv6, underlay) in [
        (Backend::Udp, false, Underlay::V4),
        (Backend::Vxlan, true, Underlay::Dual),
        (Backend::Vxlan, true, Underlay::V6),
    ] {
        let spec = Spec {
            backend,
            ipv6,
            underlay,
            config: "[log]\nlevel = \"debug\"\n".into(),
            ..Spec::default()
        };
        let dir = tempfile::tempdir().unwrap();
        let node = &spec.node_plans()[1];
        let path = dir.path().join("overlayd.toml");
        std::fs::write(
            &path,
            node.config(&spec, Path::new("/run/overlayd/lab/lab")),
        )
        .unwrap();
        let none: [(std::ffi::OsString, std::ffi::OsString); 0] = [];
        let config = Config::load(Some(&path), &Default::default(), none).unwrap();
        assert_eq!(config.backend.name(), backend.to_string());
        assert_eq!(Some(config.backend.port()), backend.port());
        assert_eq!(config.network.v4.unwrap().to_string(), NETWORK);
        assert_eq!(config.network.v6.is_some(), ipv6);
        assert_eq!(config.node.name, "node2");
        assert_eq!(
            config.control.socket,
            Path::new("/run/overlayd/lab/lab/node2/overlayd.sock")
        );
        assert_eq!(config.warnings, [""; 0]);

        let leases = lease::parse(leases(&spec).as_bytes()).unwrap();
        assert_eq!(leases.len(), 3);
        assert_eq!(leases[1].subnet, Some(node.subnet));
        assert_eq!(leases[1].ipv6_subnet, node.ipv6_subnet);
        assert_eq!(
            (leases[1].public_ip, leases[1].public_ipv6),
            (node.public_ip, node.public_ipv6)
        );
    }
}

#[test]
fn a_labs_namespaces_are_known_by_their_names() {
    let mut all = Spec::default().namespaces();
    let others = [
        "lab",
        "lab-x",
        "lab-nodes",
        "lab-node1-underlay",
        "lab2-node1",
        "node1",
        "lab-node",
    ];
    all.extend(others.map(String::from));
    assert_eq!(namespaces_of("lab", all), Spec::default().namespaces());
}

#[test]
fn backends_have_the_names_of_the_configuration() {
    for backend in [Backend::Udp, Backend::Vxlan] {
        assert_eq!(backend.to_string().parse::<Backend>().unwrap(), backend);
    }
    assert!(
        "gre"
            .parse::<Backend>()
            .unwrap_err()
            .to_string()
            .contains("\"gre\"")
    );
}

#[test]
fn behind_a_router_nodes_are_in_a_network_of_their_own() {
    let spec = Spec {
        layer: Layer::L3,
        nodes: 4,
        ..Spec::default()
    };
    let public: Vec<_> = spec
        .node_plans()
        .iter()
        .map(|node| {
            let ips = (node.public_ip.unwrap(), node.public_ipv6.unwrap());
            format!("{} {} {}", node.segment.bridge, ips.0, ips.1)
        })
        .collect();
    assert_eq!(
        public,
        [
            "underlay0 10.99.0.1 fd99::1",
            "underlay0 10.99.0.2 fd99::2",
            "underlay1 10.99.1.3 fd99:0:0:1::3",
            "underlay1 10.99.1.4 fd99:0:0:1::4"
        ]
    );
    assert!(spec.namespaces().contains(&"lab-router".to_owned()));
    let mut all = spec.namespaces();
    all.push("lab-routers".into());
    assert_eq!(namespaces_of("lab", all), spec.namespaces());
}

#[test]
fn pods_live_in_what_their_node_has_leased() {
    let mut spec = Spec {
        store: Store::Etcd,
        nodes: 1,
        ..Spec::default()
    };
    spec.leased.push(Leased {
        subnet: "10.244.77.0/24".parse().unwrap(),
        ipv6_subnet: Some("fd00:10:244:beef::/64".parse().unwrap()),
    });
    let node = &spec.node_plans()[0];
    assert_eq!(node.gateway.to_string(), "10.244.77.1");
    let pod = &node.pods[1];
    assert_eq!(pod.ip.to_string(), "10.244.77.3");
    assert_eq!(pod.ipv6.unwrap().to_string(), "fd00:10:244:beef::3");
    assert_eq!(
        spec.etcd_endpoint().as_deref(),
        Some("http://10.99.0.253:2379")
    );
    // What flannel reads: a program that knows no IPv6 must not find any.
    spec.ipv6 = false;
    assert_eq!(
        spec.net_conf(),
        r#"{"Backend":{"Type":"vxlan"},"Network":"10.244.0.0/16"}"#
    );
}

#[test]
fn a_lab_of_an_earlier_version_is_known() {
    let mut old = serde_json::to_value(Spec::default()).unwrap();
    for later in ["direct_routing", "layer", "store"] {
        old.as_object_mut().unwrap().remove(later).unwrap();
    }
    assert_eq!(
        serde_json::from_value::<Spec>(old).unwrap(),
        Spec::default()
    );
}
