//! How tables decide, in words and in bits.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::fate::{Layer, Passage, RuleKey};
use super::tables::{Candidate, Kernel};
use crate::kernel::Route;
use crate::kernel::hooks::{Chain, Fit, LegacyTable, Rule, Table};

/// How many routes that do not match are shown beside those that do.
const MISSES: usize = 3;

/// The routes held against a destination, in bits for IPv4. `chosen`: the kernel's own answer.
pub(super) fn routes(
    kernel: &Kernel,
    candidates: &[Candidate],
    dst: IpAddr,
    chosen: Option<&Route>,
) -> Vec<String> {
    let matching = candidates.iter().filter(|c| c.matches).count();
    let shown: Vec<_> = candidates
        .iter()
        // Every device has fe80::/64: it says nothing here.
        .filter(|c| c.matches || !is_link_local(&c.route.dst))
        .take(matching + MISSES)
        .collect();
    let width = shown
        .iter()
        .map(|c| c.route.dst.to_string().len())
        .max()
        .unwrap_or(0)
        .max(dst.to_string().len());
    let mut lines = Vec::new();
    if let IpAddr::V4(ip) = dst {
        lines.push(format!("{:width$}  {}", dst.to_string(), bits(ip, 32)));
    }
    let first = candidates.first().filter(|c| c.matches);
    let agrees =
        |route: &Route| first.is_some_and(|c| c.route.oif == route.oif && c.route.via == route.via);
    let overruled = match chosen {
        Some(route) => !agrees(route),
        None => first.is_some_and(|c| c.route.refuses.is_none()),
    };
    let mut winner = true;
    for candidate in &shown {
        let route = &candidate.route;
        let device = match (route.refuses, route.oif) {
            (Some(word), _) => word.to_owned(),
            (None, oif) => oif.map_or("nowhere".into(), |oif| kernel.name(oif)),
        };
        let via = route
            .via
            .map(|via| format!(" via {via}"))
            .unwrap_or_default();
        let len = route.dst.prefix_len();
        let masked = candidate.masked;
        let said = if candidate.matches {
            let won = match (winner, matching) {
                (true, _) if overruled => "; the longest match of the main table",
                (true, 1) => "; wins: the only match",
                (true, _) => "; wins: the longest match",
                (false, _) => "",
            };
            winner = false;
            format!("AND gives {masked} ✓ {device}{via}{won}")
        } else {
            format!("AND gives {masked} ✗")
        };
        let picture = match route.dst.addr() {
            IpAddr::V4(ip) => format!("{}  ", bits(ip, len)),
            IpAddr::V6(_) => String::new(),
        };
        lines.push(format!("{:width$}  {picture}{said}", route.dst.to_string()));
    }
    let left_out = candidates.iter().filter(|c| !c.matches).count();
    let left_out = left_out.saturating_sub(shown.len() - matching);
    if left_out > 0 && matches!(dst, IpAddr::V4(_)) {
        lines.push(format!("and {left_out} more that do not match"));
    }
    if overruled {
        lines.push("the kernel decides otherwise: by another table (`ip rule`)".into());
    }
    lines
}

fn is_link_local(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local() || net.addr().is_multicast())
}

/// An address in bits; those behind the prefix, which the AND makes 0, as dots.
fn bits(ip: Ipv4Addr, len: u8) -> String {
    let mut text = String::new();
    for bit in 0..32u8 {
        if bit > 0 && bit % 8 == 0 {
            text.push(' ');
        }
        text.push(match (bit < len, ip.to_bits() >> (31 - bit) & 1) {
            (false, _) => '·',
            (true, 0) => '0',
            (true, _) => '1',
        });
    }
    text
}

/// The chains that a packet meets at these hooks, with what their counters say of it; and whether one says that it matched.
/// Nothing behind `last`, which dropped it: the last hook, and the rule there.
pub(super) fn chains(
    all: &[Chain],
    passages: &[Passage],
    total: impl Fn(&Chain, &Rule) -> u64,
    last: Option<&(RuleKey, String)>,
) -> (Vec<String>, bool) {
    let mut lines = Vec::new();
    let mut counted = false;
    for (number, passage) in passages.iter().enumerate() {
        let is_last = number + 1 == passages.len();
        for chain in all.iter().filter(|chain| sees(chain, passage)) {
            lines.push(headline(chain, passage));
            for rule in &chain.rules {
                let key = (chain.family, chain.table.clone(), rule.handle);
                let total = total(chain, rule);
                if total > 0 && rule.mapped.is_none() {
                    let (line, its) = counts(rule, passage, total, passage.rise(chain, rule));
                    counted |= its;
                    lines.push(line);
                }
                if is_last && last.is_some_and(|(rule, of)| *rule == key && *of == chain.name) {
                    return (lines, counted);
                }
            }
        }
    }
    (lines, counted)
}

/// `forward: chain hold of table inet t, priority 0, policy accept, 2 rules, 1 of which drops`
fn headline(chain: &Chain, passage: &Passage) -> String {
    let policy = if chain.drops { "drop" } else { "accept" };
    let rules: Vec<_> = chain
        .rules
        .iter()
        .filter(|rule| rule.mapped.is_none())
        .collect();
    let mut line = format!(
        "{}: chain {} of table {} {}, priority {}, policy {policy}, {}",
        passage.hook.name(),
        chain.name,
        chain.family.name(),
        chain.table,
        chain.priority,
        count(rules.len(), "rule"),
    );
    let dropping = rules.iter().filter(|rule| rule.drops).count();
    if dropping > 0 {
        line += &format!(
            ", {dropping} of which {}",
            if dropping == 1 { "drops" } else { "drop" }
        );
    }
    if rules.iter().any(|rule| rule.has_map()) {
        line +=
            "; a verdict map among them is not read: it may lead to any other chain of the table";
    }
    line
}

/// What a rule's counter says, of which `rise` may be this packet; and whether it says that the rule matched it.
fn counts(rule: &Rule, passage: &Passage, total: u64, rise: u64) -> (String, bool) {
    let fit = rule.fits(&passage.views);
    let matched = format!(
        "  the rule with handle {} matched {} meanwhile",
        rule.handle,
        count_u64(total, "packet")
    );
    let does = match (rule.drops, rule.rewrites) {
        (true, _) => "drops",
        (false, Some(_)) => "rewrites",
        (false, None) => "counts",
    };
    let them = if total == 1 { "it" } else { "them" };
    match (fit, rise) {
        (Fit::No, _) => (
            format!("{matched}: not this one, which is not what it asks for"),
            false,
        ),
        (_, 0) => (
            format!("{matched}, which came by elsewhere: not this one, or not here"),
            false,
        ),
        _ => (format!("{matched}, and {does} {them}"), true),
    }
}

/// Does the chain see what passes there?
pub(super) fn sees(chain: &Chain, passage: &Passage) -> bool {
    let named = |name: &str| {
        chain
            .devices
            .iter()
            .any(|device| match device.strip_suffix('*') {
                Some(beginning) => name.starts_with(beginning),
                None => device == name,
            })
    };
    chain.hook == passage.hook
        && match &passage.layer {
            Layer::Device(name) => named(name),
            Layer::Bridge => chain.family == Table::Bridge,
            Layer::Ip { v6 } | Layer::BridgedIp { v6 } => match chain.family {
                Table::Inet => true,
                Table::Ip => !v6,
                Table::Ip6 => *v6,
                Table::Arp | Table::Bridge | Table::Netdev => false,
            },
        }
}

/// `chain hold of table inet t`
pub(super) fn chain_name(chain: &Chain) -> String {
    format!(
        "chain {} of table {} {}",
        chain.name,
        chain.family.name(),
        chain.table
    )
}

/// `the rule with handle 4 in chain hold of table inet t`
pub(super) fn rule_name(chain: &Chain, rule: &Rule) -> String {
    format!(
        "the rule with handle {} in chain {} of table {} {}",
        rule.handle,
        rule.mapped.as_ref().unwrap_or(&chain.name),
        chain.family.name(),
        chain.table
    )
}

/// `the legacy iptables table filter`
pub(super) fn legacy_names(tables: &[&LegacyTable]) -> String {
    let mut names: Vec<_> = tables.iter().map(|table| table.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let s = if names.len() == 1 { "" } else { "s" };
    format!("the legacy iptables table{s} {}", names.join(", "))
}

/// `1 rule`, `2 rules`
pub(super) fn count(n: usize, what: &str) -> String {
    count_u64(n as u64, what)
}

fn count_u64(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// `aa:bb:cc:dd:ee:ff`
pub(super) fn mac(mac: [u8; 6]) -> String {
    encap::MacAddr(mac).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_behind_the_mask_are_dots() {
        assert_eq!(
            bits(Ipv4Addr::new(10, 244, 2, 2), 32),
            "00001010 11110100 00000010 00000010"
        );
        assert_eq!(
            bits(Ipv4Addr::new(10, 244, 0, 0), 20),
            "00001010 11110100 0000···· ········"
        );
        assert_eq!(
            bits(Ipv4Addr::UNSPECIFIED, 0),
            "········ ········ ········ ········"
        );
    }
}
