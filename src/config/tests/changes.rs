//! What a changed configuration asks for: a restart, or nothing.

use super::*;

#[test]
fn a_change_needs_a_restart_or_is_taken_up() {
    // Another value than in `base` for every option; what has one value only in this version is left out.
    let others = [
        ("network.network", "10.243.0.0/16"),
        ("network.ipv6-network", "fd01::/48"),
        ("network.subnet-len", "25"),
        ("network.ipv6-subnet-len", "65"),
        ("backend.type", "udp"),
        ("backend.vni", "2"),
        ("backend.port", "4789"),
        ("backend.strict", "true"),
        ("backend.direct-routing", "true"),
        ("node.name", "node-b"),
        ("node.iface", "eth1"),
        ("node.public-ip", "192.0.2.2"),
        ("node.public-ipv6", "2001:db8::2"),
        ("node.iface-regex", "^eth"),
        ("node.iface-can-reach", "192.0.2.3"),
        ("firewall.ip-masq", "true"),
        ("firewall.forward-rules", "true"),
        ("firewall.resync", "60"),
        ("device.name", "overlay1"),
        ("device.mtu", "1300"),
        ("datapath.queues", "2"),
        ("datapath.busy-poll", "50"),
        ("datapath.nice", "0"),
        ("datapath.rx-usecs", "0"),
        ("datapath.zerocopy", "off"),
        ("datapath.ecn", "copy"),
        ("datapath.dscp", "uniform"),
        ("datapath.df", "set"),
        ("datapath.injection", "off"),
        ("datapath.accept-node-source", "true"),
        ("datapath.icmp-rate", "1"),
        ("datapath.udp6-zero-checksum", "true"),
        ("store.path", "/other.json"),
        ("store.subnet-file", "/other.env"),
        ("control.socket", "/other.sock"),
        ("control.metrics", "127.0.0.1:1"),
        ("log.level", "debug"),
        ("log.format", "json"),
    ];
    let one_value = [
        "network.net-conf",
        "backend.mode",
        "datapath.engine",
        // Another way to a name, and to a password.
        "store.password",
        "device.flannel-name",
    ];
    // They mean something to the etcd store only.
    let pool = "network.subnet-min to subnet-max";
    let of_etcd = [
        ("network.subnet-min", "10.244.5.0", pool),
        ("network.subnet-max", "10.244.5.0", pool),
        ("network.ipv6-subnet-min", "fd00:0:0:5::", pool),
        ("network.ipv6-subnet-max", "fd00:0:0:5::", pool),
        (
            "store.endpoints",
            "http://192.0.2.9:2379",
            "store.endpoints",
        ),
        ("store.prefix", "/other", "store.prefix"),
        ("store.ca-file", "/other.pem", "store.ca-file"),
        ("store.cert-file", "/other.pem", "store.cert-file"),
        ("store.key-file", "/other.key", "store.key-file"),
        ("store.username", "other", "store.username"),
        ("store.password-file", "/other.txt", "store.password-file"),
        ("store.renew-margin", "30", "store.renew-margin"),
        ("store.lease-ttl", "7200", "store.lease-ttl"),
        ("store.saved-table", "/other.saved", "store.saved-table"),
        ("store.type", "file", "store.type"),
    ];
    let base = Overrides::default()
        .set("network.network", "10.244.0.0/16")
        .set("network.ipv6-network", "fd00::/48")
        .set("backend.port", "1000");
    let load = |overrides: &Overrides| {
        resolve::load(
            None,
            Path::new("/nonexistent/overlayd.toml"),
            overrides,
            std::iter::empty(),
        )
        .unwrap()
    };
    let old = load(&base);
    assert!(old.diff_needs_restart(&old).is_empty());
    for opt in OPTIONS {
        let name = opt.name();
        let Some((_, other)) = others.iter().find(|(known, _)| *known == name) else {
            let mut known = one_value
                .iter()
                .chain(of_etcd.iter().map(|(name, ..)| name));
            assert!(known.any(|known| *known == name), "{name} is not tested");
            continue;
        };
        let new = load(&base.clone().set(&name, *other));
        assert_ne!(old, new, "{name}");
        let expected: Vec<&str> = if opt.reload { Vec::new() } else { vec![&name] };
        assert_eq!(old.diff_needs_restart(&new), expected, "{name}");
    }
    let base = base
        .set("store.type", "etcd")
        .set("store.endpoints", "https://192.0.2.1:2379")
        .set("store.cert-file", "/cert.pem")
        .set("store.key-file", "/key.pem")
        .set("store.ca-file", "/ca.pem")
        .set("store.username", "node");
    let old = load(&base);
    for (name, other, said) in of_etcd {
        let new = load(&base.clone().set(name, other));
        assert_eq!(old.diff_needs_restart(&new), [said], "{name}");
    }
}
