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

/// What ICMP taught a pod is none of its routes, and not its device's MTU.
#[test]
fn a_learned_path_mtu_is_no_route() {
    let lab = Up::new("learn", &["--nodes", "2"]);
    // The daemon follows its underlay's MTU in its own time.
    let follows = |mtu: u32| {
        format!(
            "node1: for i in $(seq 100); do ip link show overlay0 | grep -q 'mtu {mtu}' && break; sleep 0.1; done"
        )
    };
    lab.does(&["node1: ip link set eth0 mtu 1400", &follows(1350)]);
    lab.told(&["node1/pod1", "node2/pod1", "--size", "1450", "--df"]);
    lab.does(&["node1: ip link set eth0 mtu 1500", &follows(1450)]);
    let trace = lab.told(&["node1/pod1", "node2/pod1", "--size", "1400"]);
    let route = step(&trace, "request", "node1/pod1", "route");
    let said = details(route);
    assert!(
        said.contains(
            "what ICMP taught node1/pod1 of this destination: path MTU 1350, expires in "
        ),
        "{said}"
    );
    assert!(!said.contains("10.244.2.2/32"), "{said}");
    let held = route["routing"]["routes"].as_array().unwrap();
    assert!(held.iter().all(|route| route["prefix"] != "10.244.2.2/32"));
    let cut = step(&trace, "request", "node1/pod1", "fragments")["text"].clone();
    assert!(
        cut.as_str()
            .unwrap()
            .contains("more than the path MTU 1350 that ICMP taught node1/pod1"),
        "{cut}"
    );
}

/// A policy rule that leads to a route, or itself says, that nothing goes through.
#[test]
fn policy_rules_that_forbid() {
    let lab = Up::new("rules", &["--nodes", "2"]);
    let from = "from 10.244.1.2";
    for word in ["blackhole", "unreachable", "prohibit"] {
        for place in ["node1", "node1/pod1"] {
            let trace = lab.breaks(
                &[
                    &format!("{place}: ip rule add {from} lookup 77 priority 100"),
                    &format!("{place}: ip route add {word} default table 77"),
                ],
                &[
                    &format!("{place}: ip rule del {from} lookup 77"),
                    &format!("{place}: ip route flush table 77"),
                ],
                &ACROSS,
                [
                    "request",
                    place,
                    "no-route",
                    &format!("leads to table 77, whose route `{word} default`"),
                ],
            );
            let advice = trace["loss"]["advice"].as_str().unwrap();
            let asks = match place {
                "node1" => "`ip route get 10.244.2.2 from 10.244.1.2 iif cni0`",
                _ => "`ip route get 10.244.2.2 from 10.244.1.2`",
            };
            assert!(advice.contains(asks), "{advice}");
        }
        lab.breaks(
            &[&format!("node1: ip rule add {from} {word} priority 100")],
            &["node1: ip rule del priority 100"],
            &ACROSS,
            ["request", "node1", "no-route", &format!("says `{word}`")],
        );
    }
}
