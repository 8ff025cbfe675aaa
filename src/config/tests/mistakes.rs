//! Each mistake is told with its place, its cause and its cure.

use super::super::{Backend, Store, UdpBackend};
use super::{Case, NETWORK};

#[test]
fn a_misspelt_key_is_named_with_its_place_and_the_nearest() {
    let bad = |text: &str, parts: &[&str]| Case::new(&format!("{NETWORK}{text}")).bad(parts);
    bad(
        "subnet_len = 24\n",
        &["overlayd.toml:3:1: unknown key \"subnet_len\" in [network]; did you mean subnet-len?"],
    );
    bad(
        "  vni = 1\n",
        &["overlayd.toml:3:3: key vni in [network]: it belongs in [backend]"],
    );
    bad(
        "[backend]\nprot = 1\n",
        &["overlayd.toml:4:1", "did you mean port?"],
    );
    bad(
        "[bakcend]\nport = 1\n",
        &["overlayd.toml:3:2", "did you mean [backend]?"],
    );
    bad(
        "[zzz]\n",
        &["unknown section \"zzz\"", "[network] [backend] [node]"],
    );
    bad(
        "[store]\nleases = 'x'\n",
        &["the flag --leases is written path in [store]"],
    );
    bad("[node]\nqqqq = 1\n", &["config example"]);
    bad("[node]\n\"a\\u001Bb\" = 1\n", &["a\\u{1b}b"]);
    bad("[[routes]]\nprefix = 'x'\n", &["did you mean [[route]]?"]);
    bad("[route]\nprefix = 'x'\n", &["[[route]]"]);
    bad(
        "[[route]]\nprefx = 'x'\n",
        &["did you mean prefix?", "has no prefix", "has no via"],
    );
    Case::new("network = \"10.244.0.0/16\"\n").bad(&[
        "overlayd.toml:1:1",
        "outside any section",
        "belongs in [network]",
    ]);
    Case::new("\u{feff}[network]\nport = 1\n").bad(&["overlayd.toml:2:1"]);
}

#[test]
fn every_mistake_is_told_at_once() {
    let error = Case::new("[backend]\nvni = -1\nport = 0\n[device]\nname = ''\n")
        .load()
        .unwrap_err();
    assert_eq!(error.problems().len(), 4, "{error}");
}

#[test]
fn wrong_kinds() {
    let bad = |text: &str, parts: &[&str]| Case::new(&format!("{NETWORK}{text}")).bad(parts);
    bad(
        "[backend]\nport = '8472'\n",
        &[
            "overlayd.toml:4:8: backend.port: expected a number",
            "port = 8472",
        ],
    );
    bad("[backend]\nport = 1.5\n", &["found float"]);
    bad(
        "[backend]\ntype = 1\n",
        &["expected a string", "type = \"vxlan\""],
    );
    bad("[backend]\nstrict = 1\n", &["expected true or false"]);
    bad(
        "[datapath]\nqueues = true\n",
        &["expected a number or a string"],
    );
    bad(
        "[[route]]\nprefix = 1\nvia = 2\n",
        &["route.prefix: expected a string"],
    );
    bad(
        &format!("[backend]\nvni = 1{}\n", "0".repeat(500)),
        &["out of range"],
    );
}

#[test]
fn values_out_of_bounds_say_where_and_what_to_do() {
    let bad = |text: &str, parts: &[&str]| Case::new(&format!("{NETWORK}{text}")).bad(parts);
    bad(
        "subnet-len = 16\n",
        &[
            "overlayd.toml:3:14: network.subnet-len = 16",
            "from 17 to 30",
        ],
    );
    bad(
        "ipv6-network = 'fd00::/48'\n[device]\nmtu = 1279\n",
        &["device.mtu = 1279", "1280"],
    );
    bad("[backend]\nvni = 16777216\n", &["from 0 to 16777215"]);
    bad("[backend]\nport = 0\n", &["from 1 to 65535"]);
    bad(
        "[node]\niface = 'x0'\n[device]\nname = 'x0'\n",
        &["choose another name"],
    );
    bad("[datapath]\nicmp-rate = 1000001\n", &["from 0 to 1000000"]);
    bad(
        "[[route]]\nprefix = '10.20.0.1/16'\nvia = 'me'\n",
        &["write 10.20.0.0/16", "not an IP address"],
    );
    bad(
        "[[route]]\nprefix = '10.20.0.0/16'\nvia = '127.0.0.1'\n",
        &["route.via", "loopback"],
    );
    bad("[store]\npath = ''\n", &["not a path"]);
    bad("[log]\nlevel = 'loud'\n", &["use error, warn"]);
    Case::new("").bad(&["names no network", "--network"]);
}

#[test]
fn what_is_not_built_is_refused_with_what_to_use() {
    let bad = |text: &str, parts: &[&str]| Case::new(&format!("{NETWORK}{text}")).bad(parts);
    bad(
        "[backend]\ntype = 'wireguard'\n",
        &["backend `wireguard` is not built into overlayd; use vxlan, udp, host-gw or alloc"],
    );
    for backend in ["ipip", "ipsec"] {
        bad(
            &format!("[backend]\ntype = '{backend}'\n"),
            &["not in this version", "use vxlan"],
        );
    }
    bad(
        "[backend]\nmode = 'tap'\n",
        &["not in this version", "\"tun\""],
    );
    bad(
        "[datapath]\nengine = 'uring'\n",
        &["io_uring was tried and was not faster", "batched"],
    );
    bad("[datapath]\nqueues = 17\n", &["use 1 to 16"]);
    bad("[datapath]\nqueues = 0\n", &["not a number of queues"]);
    bad("[datapath]\nbusy-poll = 1000001\n", &["from 0 to 1000000"]);
    bad("[datapath]\nnice = -21\n", &["from -20 to 0"]);
    bad("[datapath]\nrx-usecs = 1001\n", &["from 0 to 1000"]);
    bad("[datapath]\ndf = 'inherit'\n", &["not in this version"]);
}

#[test]
fn what_the_etcd_store_the_filter_and_metrics_refuse() {
    let bad = |text: &str, parts: &[&str]| Case::new(&format!("{NETWORK}{text}")).bad(parts);
    bad("[store]\ntype = 'zookeeper'\n", &["use file or etcd"]);
    bad(
        "[store]\ntype = 'etcd'\nendpoints = ['http://127.0.0.1:2379', 'ftp://x']\n",
        &["overlayd.toml:5:13", "store.endpoints", "not an endpoint"],
    );
    bad(
        "[store]\ntype = 'etcd'\nendpoints = [2379]\n",
        &["expected an array of strings"],
    );
    let etcd = |rest: &str| format!("[store]\ntype = 'etcd'\n{rest}\n");
    bad(
        &etcd("endpoints = ['http://127.0.0.1:2379', 'ftp://x']"),
        &["store.endpoints", "not an endpoint"],
    );
    bad(
        &etcd("prefix = '/'"),
        &["store.prefix", "not a prefix of keys"],
    );
    bad(
        &etcd("renew-margin = 0"),
        &["store.renew-margin", "minutes from 1"],
    );
    bad(
        &etcd("lease-ttl = 1"),
        &["store.lease-ttl", "seconds from 5"],
    );
    bad(
        "[control]\nmetrics = '9285'\n",
        &["write for example 127.0.0.1:9285"],
    );
    bad("[firewall]\nresync = 0\n", &["from 1 to 86400"]);
    bad(
        "[node]\niface-regex = ['eth[']\n",
        &["not a regular expression"],
    );
    bad(
        "[node]\niface-can-reach = 'there'\n",
        &["not an IP address"],
    );
    // The network is read from etcd.
    let config = Case::new("[store]\ntype = 'etcd'\n").good();
    assert!(matches!(config.store, Store::Etcd(_)));
}

#[test]
fn what_has_no_effect_is_a_warning() {
    let config = Case::new(&format!(
        "{NETWORK}ipv6-subnet-len = 64\n[backend]\nvni = 3\nstrict = true\n[datapath]\nzerocopy = 'on'\n"
    ))
    .flag("backend.type", "udp")
    .flag("node.public-ip", "10.244.3.4")
    .good();
    let warnings = config.warnings.join("\n");
    for part in [
        "backend.vni = 3",
        "backend.strict",
        "datapath.zerocopy = \"on\": has no effect",
        "ipv6-subnet-len",
        "--public-ip \"10.244.3.4\": lies inside",
    ] {
        assert!(warnings.contains(part), "{warnings}");
    }
    assert_eq!(config.backend, Backend::Udp(UdpBackend { port: 8285 }));
}

#[test]
fn what_the_engine_does_not_do_is_a_warning() {
    let warnings = |datapath: &str| {
        let config = Case::new(&format!("{NETWORK}[datapath]\n{datapath}\n")).good();
        config.warnings.join("\n")
    };
    let all =
        "queues = 2\nbusy-poll = 50\nnice = -5\nrx-usecs = 25\ninjection = 'on'\nzerocopy = 'on'";
    let classic = warnings(&format!("engine = 'classic'\n{all}"));
    for name in [
        "queues = 2",
        "busy-poll",
        "nice = -5:",
        "rx-usecs",
        "injection",
        "zerocopy",
    ] {
        let warning = format!("datapath.{name}");
        assert!(classic.contains(&warning), "{warning} is not in {classic}");
    }
    assert_eq!(
        classic.matches("no effect with the classic engine").count(),
        6
    );
    // One word about each: where there is no tunnel, and what the backend has ruled out.
    let once = |backend: &str, what: &str| {
        let text = format!(
            "{NETWORK}[backend]\ntype = '{backend}'\n[datapath]\nengine = 'classic'\n{all}\n"
        );
        let warnings = Case::new(&text).good().warnings.join("\n");
        assert_eq!(warnings.matches(what).count(), 1, "{warnings}");
        assert_eq!(warnings.matches("zerocopy").count(), 1, "{warnings}");
    };
    once(
        "host-gw",
        "datapath.queues = 2: has no effect with the host-gw backend",
    );
    once(
        "udp",
        "datapath.queues = 2: has no effect with the classic engine",
    );
    // What asks for nothing is no mistake.
    let nothing =
        "queues = 1\nbusy-poll = 0\nnice = 0\nrx-usecs = 0\ninjection = 'auto'\nzerocopy = 'off'";
    assert_eq!(warnings(&format!("engine = 'classic'\n{nothing}")), "");

    let beside = warnings("busy-poll = 50\nrx-usecs = 25");
    assert!(
        beside.contains("datapath.rx-usecs = 25: has no effect beside datapath.busy-poll"),
        "{beside}"
    );
    for fine in [
        "busy-poll = 50",
        "rx-usecs = 50",
        "busy-poll = 50\nrx-usecs = 0",
    ] {
        assert_eq!(warnings(fine), "", "{fine}");
    }
}
