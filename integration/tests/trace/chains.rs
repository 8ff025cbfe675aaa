//! What netfilter's counters say of one packet: at which hook, once, and of no other.

use serde_json::Value;

use super::faults::ACROSS;
use super::{Up, check, details, eyes::Eyes, out, overlayd, rows};

/// The steps of a leg at a place, with a device's name where the packet was seen.
fn steps(trace: &Value, leg: &str, place: &str) -> Vec<String> {
    let here = rows(trace).filter(|row| row["leg"] == leg && row["place"] == place);
    here.map(|row| match row["step"].as_str().unwrap() {
        "device" => row["device"].as_str().unwrap().to_owned(),
        step => step.to_owned(),
    })
    .collect()
}

/// The rows about chains, with their evidence, that speak of a rule's counter.
fn counted(trace: &Value) -> Vec<(String, String)> {
    let all = rows(trace).filter(|row| row["step"] == "netfilter");
    let said = all.map(|row| (row["evidence"].as_str().unwrap().to_owned(), details(row)));
    said.filter(|(_, lines)| lines.contains("matched"))
        .collect()
}

/// Where bridges call IP's chains, frames pass PREROUTING before the bridge's own device.
#[test]
fn prerouting_stands_between_the_port_and_the_bridge() {
    let lab = Up::new("pre", &["--nodes", "2"]);
    let cases: [(&[&str], &str, &str); 3] = [
        (&ACROSS, "ip", "ip daddr 10.244.2.2 counter drop"),
        (&ACROSS, "inet", "ip daddr 10.244.2.2 drop"),
        (
            &["-6", "node1/pod1", "node2/pod1"],
            "ip6",
            "ip6 daddr fd00:10:244:2::2 counter drop",
        ),
    ];
    for (ends, family, rule) in cases {
        lab.does(&[
            &format!("node1: nft add table {family} t"),
            &format!("node1: nft 'add chain {family} t c {{ type filter hook prerouting priority -300; }}'"),
            &format!("node1: nft add rule {family} t c {rule}"),
        ]);
        let trace = lab.lost(ends, "node1", "filtered", "kernel");
        assert_eq!(
            steps(&trace, "request", "node1"),
            ["veth-pod1", "netfilter", "lost"],
            "{rule}"
        );
        lab.does(&[&format!("node1: nft delete table {family} t")]);
    }
    lab.does(&[
        "node1: nft add table ip t",
        "node1: nft 'add chain ip t c { type nat hook prerouting priority -100; }'",
        "node1: nft add rule ip t c ip daddr 10.96.0.1 dnat to 10.244.2.2",
    ]);
    let eyes = Eyes::open(&lab.0);
    let trace = lab.told(&["node1/pod1", "10.96.0.1"]);
    check(&trace, &eyes.close());
    assert_eq!(
        steps(&trace, "request", "node1")[..5],
        ["veth-pod1", "netfilter", "rewrite", "bridge", "cni0"]
    );
    lab.does(&[
        "node1: nft delete table ip t",
        "node1: sysctl -qw net.bridge.bridge-nf-call-iptables=0",
    ]);
    let trace = lab.answered(&ACROSS);
    assert_eq!(
        steps(&trace, "request", "node1")[..4],
        ["veth-pod1", "bridge", "cni0", "netfilter"]
    );
}

/// A counter that rose by one has counted one packet, and one that fits.
#[test]
fn a_counter_counts_a_packet_once() {
    let lab = Up::new("once", &["--nodes", "2"]);
    lab.does(&[
        "node1: nft add table ip n",
        "node1: nft 'add chain ip n post { type nat hook postrouting priority 100; }'",
        "node1: nft add rule ip n post ip saddr 10.244.1.0/24 ip daddr 10.244.2.2 counter masquerade",
    ]);
    let said = counted(&lab.answered(&ACROSS));
    let observed: Vec<_> = said.iter().filter(|(how, _)| how == "observed").collect();
    assert_eq!(observed.len(), 1, "{said:#?}");
    assert!(
        observed[0]
            .1
            .contains("matched 1 packet meanwhile, and rewrites it"),
        "{said:#?}"
    );
    let others = said.iter().filter(|(how, _)| how == "derived");
    assert!(
        others
            .clone()
            .all(|(_, lines)| lines.contains("meanwhile: not this one")),
        "{said:#?}"
    );
    assert_eq!(others.count(), 2, "{said:#?}");
}

/// Other packets raise counters too: the rule that drops ours may be the one beside it, which has none.
#[test]
fn a_rule_for_others_is_not_accused() {
    let lab = Up::new("blame", &["--nodes", "3"]);
    let rule = |rule: &str| lab.does(&[&format!("node1: nft add rule ip t f {rule}")]);
    lab.does(&[
        "node1: nft add table ip t",
        "node1: nft 'add chain ip t f { type filter hook forward priority 0; }'",
    ]);
    rule("oifname overlay0 ip daddr 10.244.3.2 counter drop");
    rule("ip daddr 10.244.2.2 drop");
    let busy = || {
        lab.does(&["node1/pod2: (timeout 3 ping -i 0.01 10.244.3.2 >/dev/null 2>&1 &) ; sleep 0.3"])
    };
    busy();
    let trace = lab.told(&ACROSS);
    let loss = &trace["loss"];
    let said = loss["meaning"].as_str().unwrap();
    assert_eq!(
        (&loss["reason"], &loss["evidence"]),
        (&"filtered".into(), &"derived".into())
    );
    assert!(
        said.contains("the rule with handle 3") && !said.contains("handle 2"),
        "{said}"
    );
    // Two that may have done it.
    lab.does(&["node1: nft flush chain ip t f"]);
    rule("ip daddr { 10.244.2.2, 10.244.3.2 } counter drop");
    rule("ip daddr 10.244.2.2 drop");
    busy();
    let trace = lab.told(&ACROSS);
    let loss = &trace["loss"];
    let said = loss["meaning"].as_str().unwrap();
    assert_eq!(loss["evidence"], "derived", "{said}");
    assert!(said.starts_with("one of 2 dropped it"), "{said}");
    // Where a verdict map leads is not read: who counted there is named all the same.
    lab.does(&[
        "node1: nft flush chain ip t f",
        "node1: nft add chain ip t bad",
        "node1: nft add rule ip t bad counter drop",
    ]);
    rule("ip daddr vmap { 10.244.2.2 : jump bad }");
    std::thread::sleep(std::time::Duration::from_secs(3));
    let trace = lab.told(&ACROSS);
    let loss = &trace["loss"];
    let said = loss["meaning"].as_str().unwrap();
    assert_eq!(
        (&loss["reason"], &loss["evidence"]),
        (&"filtered".into(), &"derived".into())
    );
    assert!(
        said.contains("in chain bad of table ip t (a verdict map may lead there)"),
        "{said}"
    );
    let last = rows(&trace)
        .filter(|row| row["step"] == "netfilter")
        .last()
        .unwrap();
    assert!(
        details(last).contains("a verdict map among them is not read"),
        "{last:#}"
    );
}

/// What was dropped at a hook came to nothing behind it.
#[test]
fn nothing_happens_behind_the_place_of_death() {
    let lab = Up::new("death", &["--nodes", "2"]);
    for counter in ["counter drop", "drop"] {
        for (place, family, chain, rule, before) in [
            (
                "node2",
                "inet",
                "{ type filter hook input priority 0; }",
                "udp dport 8472",
                "route",
            ),
            (
                "node1",
                "netdev",
                "{ type filter hook ingress device veth-pod1 priority 0; }",
                "ip protocol icmp",
                "device",
            ),
        ] {
            lab.does(&[
                &format!("{place}: nft add table {family} t"),
                &format!("{place}: nft 'add chain {family} t c {chain}'"),
                &format!("{place}: nft add rule {family} t c {rule} {counter}"),
            ]);
            let trace = lab.lost(&ACROSS, place, "filtered", "kernel");
            let steps: Vec<_> = rows(&trace)
                .map(|row| row["step"].as_str().unwrap())
                .collect();
            let end = &steps[steps.len() - 3..];
            assert_eq!(
                end,
                [before, "netfilter", "lost"],
                "{family} {counter}: {steps:?}"
            );
            lab.does(&[&format!("{place}: nft delete table {family} t")]);
        }
    }
}

/// Who is asked over a socket where nobody listens, is that socket.
#[test]
fn the_socket_that_was_asked_is_named() {
    let lab = Up::new("sock", &["--nodes", "2"]);
    let binary = env!("CARGO_BIN_EXE_overlayd-under-test");
    let at = [
        "lab", "sh", "--name", &lab.0, "node1", binary, "trace", "--host",
    ];
    let ask = ["--socket", "/nonexistent/s", "10.244.1.2", "10.244.2.2"];
    let done = overlayd(&[&at[..], &ask].concat());
    let said = format!("{}{}", out(&done), super::err(&done));
    assert!(said.contains("/nonexistent/s"), "{said}");
    assert!(!said.contains("of this host does not run"), "{said}");
}

/// Chains that eat the question for a neighbour's address are named.
#[test]
fn chains_that_eat_arp() {
    let lab = Up::new("arp", &["--nodes", "1"]);
    for (family, chain, name) in [
        (
            "bridge",
            "{ type filter hook prerouting priority 0; policy drop; }",
            "node1",
        ),
        (
            "arp",
            "{ type filter hook input priority 0; policy drop; }",
            "node1/pod2",
        ),
    ] {
        lab.does(&["node1/pod1: ip neigh flush all"]);
        lab.breaks(
            &[
                &format!("{name}: nft add table {family} f"),
                &format!("{name}: nft 'add chain {family} f in {chain}'"),
            ],
            &[&format!("{name}: nft delete table {family} f")],
            &["node1/pod1", "node1/pod2"],
            [
                "request",
                "node1/pod1",
                "no-neighbour",
                &format!("chain in of table {family} f in {name} has the policy drop"),
            ],
        );
    }
}
