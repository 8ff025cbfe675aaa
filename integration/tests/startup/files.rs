//! Lease files and configurations that no daemon can work with.

use super::*;

/// Each lease file with the words of its refusal.
#[test]
fn leases_that_this_node_cannot_work_with() {
    let bed = bed();
    let lease = |subnet: &str, ip: &str| json!({"Subnet": subnet, "PublicIP": ip});
    let ours = |subnet: &str| lease(subnet, "10.99.0.1");
    let theirs = |subnet: &str| lease(subnet, "10.99.0.2");
    let cases: [(&str, Value, &[&str]); 8] = [
        (
            "none at all",
            json!([]),
            &["no lease for this node", "none of the 0", "10.99.0.1"],
        ),
        (
            "none of ours",
            json!([theirs("10.244.2.0/24")]),
            &[
                "no lease for this node",
                r#"{"Subnet": "...", "PublicIP": "10.99.0.1"}"#,
                "leases.json",
            ],
        ),
        (
            "ours overlaps an earlier one",
            json!([theirs("10.244.0.0/22"), ours("10.244.1.0/24")]),
            &[
                "10.244.1.0/24 overlaps 10.244.0.0/22",
                "10.99.0.2",
                "comes first",
                "choose",
            ],
        ),
        (
            "ours is the same as an earlier one",
            json!([theirs("10.244.1.0/24"), ours("10.244.1.0/24")]),
            &["already leased to the node at 10.99.0.2", "choose another"],
        ),
        (
            "ours is outside",
            json!([ours("10.250.1.0/24")]),
            &[
                "10.250.1.0/24 lies outside the overlay network 10.244.0.0/16",
                "give the node",
            ],
        ),
        (
            "another backend",
            json!([{"Subnet": "10.244.1.0/24", "PublicIP": "10.99.0.1", "BackendType": "host-gw"}]),
            &["10.244.1.0/24 at 10.99.0.1", "host-gw", "vxlan"],
        ),
        (
            "another VNI",
            json!([{"Subnet": "10.244.1.0/24", "PublicIP": "10.99.0.1", "BackendType": "vxlan",
                    "BackendData": {"VNI": 7}}]),
            &["VNI 7", "1"],
        ),
        (
            "bits beyond the prefix",
            json!([ours("10.244.1.9/24")]),
            &["leases.json", "lease 0", "Subnet", "10.244.1.0/24"],
        ),
    ];
    for (what, leases, words) in cases {
        bed.node(1).write_leases(leases.as_array().unwrap());
        let log = refuses(&bed, &vxlan(&bed), ERROR, words);
        assert!(log.contains("lease"), "{what}: {log}");
    }
    // The network holds the underlay, and the lease this node's own address in it.
    bed.node(1).write_leases(&[ours("10.99.0.0/24")]);
    let wide = vxlan(&bed)
        .set("network.network", "10.0.0.0/8")
        .set("network.subnet-len", 24);
    let words = ["10.99.0.0/24 covers 10.99.0.1", "this node's public IP"];
    refuses(&bed, &wide, ERROR, &words);
}

#[test]
fn lease_files_that_are_none() {
    let bed = bed();
    let file = bed.node(1).leases_path();
    let whole = fs::read_to_string(&file).unwrap();
    let path = file.to_str().unwrap().to_owned();
    let torn = &whole[..whole.len() / 2];
    for (text, words) in [
        ("", ["is empty", "[]"]),
        (torn, ["cut off", "rename it into place"]),
        ("{}", ["expected an array", "PublicIP"]),
        ("[1]", ["lease 0", "lease"]),
        ("subnet: 10.244.1.0/24", ["not valid JSON", "line 1"]),
    ] {
        fs::write(&file, text).unwrap();
        let log = refuses(&bed, &vxlan(&bed), ERROR, &[&path, words[0], words[1]]);
        let cause = log.matches("line 1 column").count();
        assert!(cause <= 1, "the cause is said once: {log}");
    }
    fs::remove_file(&file).unwrap();
    refuses(
        &bed,
        &vxlan(&bed),
        ERROR,
        &[&path, "no such lease file", "store.path"],
    );
    fs::create_dir(&file).unwrap();
    refuses(&bed, &vxlan(&bed), ERROR, &[&path, "not a regular file"]);
}

#[test]
fn mistakes_in_the_configuration_end_with_78() {
    let bed = bed();
    let config = vxlan(&bed);
    let cases: Vec<(Config, &[&str])> = vec![
        (
            config.clone().unset("node.iface").set("node.ifcae", "eth0"),
            &[".toml:", "unknown key", "ifcae", "did you mean iface"],
        ),
        (
            config.clone().set("devcie.name", "overlay0"),
            &[".toml:", "devcie", "device"],
        ),
        (
            config.clone().set("backend.type", "wireguard"),
            &[
                "backend.type",
                "wireguard",
                "use vxlan, udp, host-gw or alloc",
            ],
        ),
        (
            config.clone().set("backend.type", "ipip"),
            &["backend.type", "ipip", "use vxlan"],
        ),
        (
            config.clone().set("network.network", "10.244.0.0/33"),
            &["network.network", "/33", "prefix length", "0 to 32"],
        ),
        (
            config.clone().set("network.network", "10.244.1.0/16"),
            &["network.network", "10.244.0.0/16"],
        ),
        (
            config.clone().set("network.ipv6-network", "fd00::/129"),
            &["network.ipv6-network", "/129", "prefix length"],
        ),
        (
            config.clone().set("network.subnet-len", 8),
            &["network.subnet-len", "8"],
        ),
        (
            config.clone().set("backend.vni", 1 << 24),
            &["backend.vni", "16777215"],
        ),
        (config.clone().set("backend.port", 0), &["backend.port"]),
        (
            config.clone().set("device.mtu", 1000),
            &["device.mtu", "1280", "ipv6-network"],
        ),
        (
            config.clone().set("node.public-ip", "10.99.0.256"),
            &["node.public-ip", "10.99.0.256"],
        ),
        (
            config.clone().set("datapath.engine", "uring"),
            &["datapath.engine", "uring", "batched"],
        ),
        (
            config.clone().set("store.type", "zookeeper"),
            &["store.type", "zookeeper", "file or etcd"],
        ),
        (
            config
                .clone()
                .unset("network.network")
                .unset("network.ipv6-network"),
            &["names no network", "network ="],
        ),
    ];
    for (config, words) in cases {
        refuses(&bed, &config, CONFIG, words);
    }
    // Several at once are all said.
    let two = config
        .set("backend.vni", -1)
        .set("network.network", "10.244.0.0/40");
    refuses(&bed, &two, CONFIG, &["backend.vni", "/40"]);
}

#[test]
fn configuration_files_that_are_none() {
    let bed = bed();
    let file = bed.dir().join("overlayd.toml");
    let refused = |words: &[&str]| {
        let program = overlayd_bin();
        let run = Command::new(program)
            .arg("run")
            .arg("--config")
            .arg(&file)
            .output();
        let run = run.unwrap();
        let log = String::from_utf8(run.stderr).unwrap();
        check(run.status.code().unwrap(), &log, CONFIG, words);
    };
    let path = file.to_str().unwrap();
    refused(&[path, "No such file", "overlayd config example"]);
    fs::write(&file, "").unwrap();
    refused(&[path, "names no network", "10.244.0.0/16"]);
    fs::write(&file, "[network]\nnetwork = \"10.2").unwrap();
    refused(&[path, ":2:", "not valid TOML"]);
    fs::write(&file, [0xff, 0xfe, 0]).unwrap();
    refused(&[path]);
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    refused(&[path]);
}
