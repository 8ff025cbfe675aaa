//! Routes that forbid, and policy rules: what tables tell of them, and what they cannot.

use serde_json::Value;

use super::faults::ACROSS;
use super::{Up, details, rows, step};

/// Routes that let nothing through are no rules of a filter, whatever error they answer with; and policy rules are followed.
#[test]
fn routes_that_forbid_and_policy_rules() {
    let lab = Up::new("forbid", &["--nodes", "2"]);
    for word in ["prohibit", "unreachable", "blackhole"] {
        for place in ["node1", "node1/pod1"] {
            let route = format!("{word} 10.244.2.2/32");
            lab.breaks(
                &[&format!("{place}: ip route add {route}")],
                &[&format!("{place}: ip route del {route}")],
                &ACROSS,
                ["request", place, "no-route", &format!("`{route}` wins")],
            );
        }
    }
    lab.does(&[
        "node1: ip route add 10.244.2.2/32 dev eth0 via 10.99.0.2 table 77",
        "node1: ip rule add from 10.244.1.2 lookup 77 priority 100",
    ]);
    let trace = lab.told(&ACROSS);
    let route = step(&trace, "request", "node1", "route");
    assert!(
        route["text"].as_str().unwrap().contains("out by eth0"),
        "{route:#}"
    );
    let said = details(route);
    assert!(
        said.contains("of priority 100 (`ip rule`): followed")
            && said.contains("the kernel decides otherwise"),
        "{said}"
    );
}

/// Marks that netfilter sets stand in no table: the way that the packet is seen to take tells, and without one both are named.
#[test]
fn rules_that_look_at_marks() {
    let lab = Up::new("marks", &["--nodes", "2"]);
    lab.does(&[
        "node1: ip route add 10.244.2.2/32 dev eth0 via 10.99.0.2 table 77",
        "node1: ip rule add fwmark 0x5 lookup 77 priority 100",
        "node1: nft add table ip t",
        "node1: nft 'add chain ip t pre { type filter hook prerouting priority -150; }'",
    ]);
    let route = |trace: &Value| {
        let route = step(trace, "request", "node1", "route").clone();
        assert_eq!(route["evidence"], "derived");
        assert_eq!(route["routing"]["rules"], serde_json::json!([100]));
        let said = details(&route);
        assert!(
            said.contains("rule 100 looks at marks: what bears 0x5 goes out by eth0"),
            "{said}"
        );
        let text = route["text"].as_str().unwrap().to_owned();
        (text, route["routing"].clone())
    };
    // Nothing marks it.
    let (text, routing) = route(&lab.told(&ACROSS));
    assert!(
        text.contains("out by overlay0;") && routing["winner"]["device"] == "overlay0",
        "{text}"
    );
    // Something does.
    lab.does(&["node1: nft add rule ip t pre icmp type echo-request meta mark set 5"]);
    let trace = lab.told(&ACROSS);
    let (text, routing) = route(&trace);
    assert!(
        text.contains("out by eth0, next hop 10.99.0.2, where it is seen next: netfilter has marked it 0x5, for rule 100"),
        "{text}"
    );
    assert_eq!(routing["winner"]["device"], "eth0");
    let wins = routing["routes"].as_array().unwrap().iter();
    assert!(wins.into_iter().all(|route| route["wins"] == false));
    assert!(rows(&trace).all(|row| !row["text"].as_str().unwrap().contains("seen elsewhere")));
    // It may, and is seen no more.
    lab.does(&[
        "node1: nft 'add chain ip t hold { type filter hook forward priority 0; }'",
        "node1: nft add rule ip t hold icmp type echo-request counter drop",
    ]);
    let (text, _) = route(&lab.told(&ACROSS));
    assert!(
        text.contains("out by overlay0, unless netfilter has marked it: rule 100 looks at marks"),
        "{text}"
    );
}
