//! What preflight says of a host: each advice appears when it should, and its own cure silences it. Needs root.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in test functions; their helpers are meant too

use std::{
    net::IpAddr,
    process::{Command, Stdio},
};

use ipnet::IpNet;
use overlayd::kernel::{
    NetNs, Netlink, RouteSpec,
    preflight::{self, Subject},
    sysctl,
};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn has(program: &str) -> bool {
    let mut command = Command::new(program);
    command
        .arg("-V")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

/// Runs a command line inside the namespace; its success.
fn shell(ns: &NetNs, line: &str) -> bool {
    let mut command = Command::new("sh");
    command
        .args(["-c", line])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    ns.spawn(command).unwrap().wait().unwrap().success()
}

/// A namespace with (bridges that stand for) an overlay device and two underlays, and everything that would be warned about put right.
async fn healthy() -> (NetNs, Netlink) {
    let ns = NetNs::create_unnamed().expect("these tests need root");
    let netlink = Netlink::open_in(&ns).unwrap();
    for (device, address) in [
        ("eth0", "10.99.0.1/24"),
        ("overlay0", "10.244.1.0/32"),
        ("eth1", "10.77.0.1/24"),
    ] {
        let link = netlink.add_bridge(device).await.unwrap();
        netlink.set_up(link.index).await.unwrap();
        netlink
            .add_address(link.index, net(address), false)
            .await
            .unwrap();
    }
    let overlay = netlink.link("overlay0").await.unwrap().unwrap();
    netlink
        .add_route(&RouteSpec::new(net("10.244.0.0/16"), overlay.index))
        .await
        .unwrap();
    ns.run(|| {
        sysctl::write("net.ipv4.ip_forward", "1").unwrap();
        sysctl::write("net.ipv6.conf.all.forwarding", "1").unwrap();
        sysctl::write("net.ipv4.conf.all.rp_filter", "0").unwrap();
        for device in ["eth0", "eth1", "overlay0"] {
            sysctl::write(&sysctl::conf("ipv4", device, "rp_filter"), "0").unwrap();
        }
    })
    .unwrap();
    (ns, netlink)
}

fn advise(ns: &NetNs, peers: &[IpAddr], accept_node_source: bool) -> Vec<preflight::Advice> {
    let networks = [net("10.244.0.0/16"), net("fd00:10:244::/48")];
    let subject = Subject {
        device: "overlay0",
        iface: Some("eth0"),
        networks: &networks,
        peers,
        accept_node_source,
    };
    ns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async { preflight::check(&Netlink::open().unwrap(), &subject).await })
    })
    .unwrap()
}

/// Exactly this is advised, and its cure silences it.
fn cures(ns: &NetNs, peers: &[IpAddr], accept_node_source: bool, word: &str) {
    let advice = advise(ns, peers, accept_node_source);
    assert_eq!(advice.len(), 1, "{advice:#?}");
    assert!(advice[0].what.contains(word), "{advice:#?}");
    assert!(shell(ns, &advice[0].cure), "{advice:#?}");
    assert_eq!(advise(ns, peers, accept_node_source), []);
}

#[tokio::test]
async fn preflight_names_forwarding_that_is_off() {
    let (ns, _netlink) = healthy().await;
    let ns = &ns;
    assert_eq!(advise(ns, &[ip("10.99.0.2")], false), []);
    ns.run(|| sysctl::write("net.ipv4.ip_forward", "0").unwrap())
        .unwrap();
    cures(
        ns,
        &[],
        false,
        "IPv4 forwarding is off (net.ipv4.ip_forward = 0)",
    );
    ns.run(|| sysctl::write("net.ipv6.conf.all.forwarding", "0").unwrap())
        .unwrap();
    cures(ns, &[], false, "IPv6 forwarding is off");
    ns.run(|| sysctl::write("net.ipv4.conf.overlay0.forwarding", "0").unwrap())
        .unwrap();
    cures(ns, &[], false, "net.ipv4.conf.overlay0.forwarding = 0");
}

#[tokio::test]
async fn preflight_names_a_reverse_path_filter_that_would_drop() {
    let (ns, netlink) = healthy().await;
    let ns = &ns;
    let peers = [ip("10.99.0.2")];
    ns.run(|| sysctl::write("net.ipv4.conf.all.rp_filter", "1").unwrap())
        .unwrap();
    assert_eq!(
        advise(ns, &peers, false),
        [],
        "strict, but every way back leads where packets come from"
    );
    // The peer's packets come in by eth0, the way back leads out of eth1.
    let eth1 = netlink.link("eth1").await.unwrap().unwrap();
    netlink
        .add_route(&RouteSpec::new(net("10.99.0.2/32"), eth1.index))
        .await
        .unwrap();
    cures(ns, &peers, false, "route to peer 10.99.0.2 leads into eth1");
    cures(ns, &peers, true, "from their own public IPs");
    ns.run(|| sysctl::write("net.ipv4.conf.overlay0.rp_filter", "0").unwrap())
        .unwrap();
    netlink
        .add_route(&RouteSpec::new(net("10.244.0.0/24"), eth1.index))
        .await
        .unwrap();
    cures(
        ns,
        &peers,
        false,
        "route to the overlay network leads into eth1",
    );
}

#[tokio::test]
async fn preflight_names_a_forward_policy_that_drops() {
    let (ns, _netlink) = healthy().await;
    let ns = &ns;
    if has("nft") {
        assert!(shell(
            ns,
            "nft 'add table inet fw; add chain inet fw forward { type filter hook forward priority 0; policy drop; }
             add chain inet fw in { type filter hook input priority 0; policy drop; }
             add rule inet fw forward ct state established accept'"
        ));
        cures(
            ns,
            &[],
            false,
            "chain forward of table inet fw has policy drop",
        );
        assert!(shell(ns, "nft delete table inet fw"));
    }
    if has("iptables-nft") {
        assert!(shell(ns, "iptables-nft -P FORWARD DROP"));
        let advice = advise(ns, &[], false);
        assert_eq!(advice.len(), 1, "{advice:#?}");
        assert!(
            advice[0]
                .cure
                .starts_with("iptables -I FORWARD -i overlay0 "),
            "{advice:#?}"
        );
        // As flannel opens it: by the network, in a chain of its own.
        assert!(shell(
            ns,
            "iptables-nft -N FLANNEL-FWD && iptables-nft -A FORWARD -j FLANNEL-FWD &&
             iptables-nft -A FLANNEL-FWD -s 10.244.0.0/16 -j ACCEPT"
        ));
        assert_eq!(advise(ns, &[], false), []);
        assert!(shell(ns, "iptables-nft -F FLANNEL-FWD"));
        cures(
            ns,
            &[],
            false,
            "chain FORWARD of table ip filter has policy drop",
        );
        assert!(shell(ns, "ip6tables-nft -P FORWARD DROP"));
        cures(
            ns,
            &[],
            false,
            "chain FORWARD of table ip6 filter has policy drop",
        );
    }
}
