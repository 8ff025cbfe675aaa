//! The netfilter hooks: which nftables chains stand at each, their policies and rules.
//!
//! A packet passes five hooks on its way through a host (`include/uapi/linux/netfilter.h`):
//!
//! ```text
//!   device ─▶ PREROUTING ─▶ routing ─▶ FORWARD ─▶ POSTROUTING ─▶ device
//!                              │                      ▲
//!                              ▼                      │
//!                            INPUT ─▶ socket ─▶ OUTPUT
//! ```
//!
//! Frames that a bridge forwards pass hooks of the same names in the bridge's own family. Around all of these stand the
//! hooks of each device: INGRESS behind its taps, where a capture has seen the frame already, and EGRESS before them
//! (`net/core/dev.c`).
//!
//! `iptables` of today (`iptables-nft`) keeps its tables in nf_tables too. Of those of the older `iptables-legacy`
//! only the names are seen here ([`legacy_tables`]). Verdict maps are not read: a rule with one may lead to any chain of its
//! table.

mod matching;

use std::collections::HashMap;
use std::io;

use super::nftables::{
    CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, CHAIN_TABLE, DATA_VERDICT, EXPR_DATA, EXPR_NAME,
    GET_CHAIN, GET_RULE, HOOK_NUMBER, IMMEDIATE_DATA, LIST_ELEMENT, NEW_CHAIN, NEW_RULE, NF_DROP,
    NFGEN_HEADER, RULE_EXPRESSIONS, RULE_TABLE, VERDICT_CODE, attribute, attributes, be, dump,
    string,
};

pub use matching::{Fit, View};
use matching::{Matches, Reader};

const HOOK_PRIORITY: u16 = 2;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const COUNTER_PACKETS: u16 = 2;
const HOOK_DEVICE: u16 = 3;
const HOOK_DEVICES: u16 = 4;
const VERDICT_CHAIN: u16 = 2;
/// `NFTA_NAT_TYPE`, and its value for a destination (`NFT_NAT_DNAT`).
const NAT_TYPE: u16 = 1;
const NAT_DESTINATION: u32 = 1;
/// `NFTA_TARGET_NAME`: a target of iptables that nf_tables has no word for.
const TARGET_NAME: u16 = 1;

/// A place in the kernel where chains may look at packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    /// Every packet that comes in, before it is routed.
    Prerouting,
    /// Packets for this host.
    Input,
    /// Packets that pass through.
    Forward,
    /// Packets of this host's own.
    Output,
    /// Every packet that goes out, after it was routed.
    Postrouting,
    /// What a device has received, before anything else sees it.
    Ingress,
    /// What a device is to send, after everything else saw it.
    Egress,
}

impl Hook {
    /// As nft(8) writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// `NF_INET_PRE_ROUTING` and those that follow it, which a bridge's hooks share; of a device, `NF_NETDEV_INGRESS` and
    /// the next.
    fn from_number(family: Table, number: u32) -> Option<Self> {
        let all: &[Self] = match family {
            Table::Netdev => &[Self::Ingress, Self::Egress],
            // `NF_ARP_IN` and the next (include/uapi/linux/netfilter_arp.h).
            Table::Arp => &[Self::Input, Self::Output, Self::Forward],
            _ => &[
                Self::Prerouting,
                Self::Input,
                Self::Forward,
                Self::Output,
                Self::Postrouting,
                Self::Ingress,
            ],
        };
        all.get(usize::try_from(number).ok()?).copied()
    }
}

/// Whose packets a chain sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Table {
    /// `inet`: IPv4 and IPv6.
    Inet,
    /// `ip`: IPv4.
    Ip,
    /// `ip6`: IPv6.
    Ip6,
    /// `arp`: questions and answers of ARP.
    Arp,
    /// `bridge`: frames that a bridge forwards.
    Bridge,
    /// `netdev`: frames at a device.
    Netdev,
}

impl Table {
    /// NFPROTO_* of `linux/netfilter.h`.
    fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Inet),
            2 => Some(Self::Ip),
            3 => Some(Self::Arp),
            10 => Some(Self::Ip6),
            7 => Some(Self::Bridge),
            5 => Some(Self::Netdev),
            _ => None,
        }
    }

    /// As nft(8) writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Arp => "arp",
            Self::Bridge => "bridge",
            Self::Netdev => "netdev",
        }
    }
}

/// Which address a rule gives a packet anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rewrite {
    /// The source: `snat`, `masquerade`.
    Source,
    /// The destination: `dnat`, `redirect`.
    Destination,
}

/// A rule of a chain, as far as it matters for where a packet may end.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Rule {
    /// The number by which `nft delete rule` knows it.
    pub handle: u64,
    /// It drops or rejects what it matches.
    pub drops: bool,
    /// Which address it rewrites in what it matches.
    pub rewrites: Option<Rewrite>,
    /// How many packets it has matched, where it counts them.
    pub packets: Option<u64>,
    /// The chain that it stands in, where only a verdict map may lead there.
    #[serde(skip)]
    pub mapped: Option<String>,
    /// The chain that it sends packets on to.
    #[serde(skip)]
    jumps: Option<String>,
    #[serde(skip)]
    matches: Matches,
}

impl Rule {
    /// Does it match what is known of a packet, which may have been rewritten at its hook: before or after that?
    pub fn fits(&self, views: &[View]) -> Fit {
        let all = views.iter().map(|view| self.matches.fits(view));
        all.max().unwrap_or(Fit::Maybe)
    }

    /// It has a verdict map, which is not read.
    pub fn has_map(&self) -> bool {
        self.matches.maps
    }
}

/// A base chain: one that stands at a hook.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Chain {
    /// The family of its table.
    pub family: Table,
    /// Its table's name.
    pub table: String,
    /// Its own name.
    pub name: String,
    /// Where it stands.
    pub hook: Hook,
    /// At which devices, if only at some.
    pub devices: Vec<String>,
    /// Among chains of one hook the lowest comes first.
    pub priority: i32,
    /// Packets that no rule decides about are dropped.
    pub drops: bool,
    /// Its rules, in order; those of a chain that it jumps to stand behind the rule that does. A handle is a rule's own
    /// within its table.
    pub rules: Vec<Rule>,
}

/// A table of `iptables-legacy`, which nf_tables knows nothing of: it stands there, and its rules are not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegacyTable {
    /// Of `ip6tables-legacy`.
    pub v6: bool,
    /// `filter`
    pub name: String,
}

impl LegacyTable {
    /// Does it look at packets at this hook (`valid_hooks` in net/ipv4/netfilter/iptable_*.c)?
    pub fn stands_at(&self, hook: Hook) -> bool {
        use Hook::{Forward, Input, Output, Postrouting, Prerouting};
        match self.name.as_str() {
            "filter" | "security" => matches!(hook, Input | Forward | Output),
            "nat" => matches!(hook, Prerouting | Input | Output | Postrouting),
            "raw" => matches!(hook, Prerouting | Output),
            _ => !matches!(hook, Hook::Ingress | Hook::Egress),
        }
    }

    /// It may drop packets: that is not what `nat` is for, and the kernel refuses it there.
    pub fn may_drop(&self) -> bool {
        self.name != "nat"
    }

    /// The command that shows its rules.
    pub fn command(&self) -> &'static str {
        if self.v6 {
            "ip6tables-legacy-save"
        } else {
            "iptables-legacy-save"
        }
    }
}

/// The tables of `iptables-legacy` and `ip6tables-legacy` in the calling thread's namespace
/// (net/netfilter/x_tables.c). A kernel without them has none.
pub fn legacy_tables() -> Vec<LegacyTable> {
    let mut tables = Vec::new();
    for (v6, file) in [(false, "ip_tables_names"), (true, "ip6_tables_names")] {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        let text = text.unwrap_or_default();
        tables.extend(text.lines().map(|name| LegacyTable {
            v6,
            name: name.to_owned(),
        }));
    }
    tables
}

/// All base chains of the calling thread's namespace, in the order in which packets meet them at each hook. A kernel
/// without nf_tables has none.
///
/// # Errors
/// When the kernel refuses the question.
pub fn chains() -> io::Result<Vec<Chain>> {
    let mut chains: Vec<Chain> = dump(GET_CHAIN, NEW_CHAIN)?
        .iter()
        .filter_map(|body| parse_chain(body))
        .collect();
    if !chains.is_empty() {
        let mut rules: HashMap<Owner, Vec<Rule>> = HashMap::new();
        for body in dump(GET_RULE, NEW_RULE)? {
            if let Some((owner, rule)) = parse_rule(&body) {
                rules.entry(owner).or_default().push(rule);
            }
        }
        let bases: Vec<Owner> = chains.iter().map(owner_of).collect();
        for chain in &mut chains {
            let owner = owner_of(chain);
            reach_all(&rules, owner, &bases, &mut chain.rules);
        }
    }
    chains.sort_by_key(|chain| (chain.hook, chain.priority));
    Ok(chains)
}

fn owner_of(chain: &Chain) -> Owner {
    (chain.family, chain.table.clone(), chain.name.clone())
}

/// The rules of a chain and of those that it leads to: for certain, or by a verdict map, which may lead to any chain of the
/// table that stands at no hook.
fn reach_all(
    rules: &HashMap<Owner, Vec<Rule>>,
    owner: Owner,
    bases: &[Owner],
    found: &mut Vec<Rule>,
) {
    let mut seen = Vec::new();
    reach(rules, owner.clone(), &mut seen, found);
    if !found.iter().any(Rule::has_map) {
        return;
    }
    let mut others: Vec<_> = rules
        .iter()
        .filter(|(other, _)| (other.0, &other.1) == (owner.0, &owner.1))
        .filter(|(other, _)| !bases.contains(other) && !seen.contains(&other.2))
        .collect();
    others.sort_by_key(|(other, _)| &other.2);
    for (other, rules) in others {
        found.extend(rules.iter().map(|rule| Rule {
            mapped: Some(other.2.clone()),
            ..rule.clone()
        }));
    }
}

/// The rules of a chain and of those that it jumps to, each chain once.
fn reach(
    rules: &HashMap<Owner, Vec<Rule>>,
    owner: Owner,
    seen: &mut Vec<String>,
    found: &mut Vec<Rule>,
) {
    seen.push(owner.2.clone());
    for rule in rules.get(&owner).into_iter().flatten() {
        found.push(rule.clone());
        if let Some(next) = rule.jumps.as_ref().filter(|next| !seen.contains(next)) {
            reach(rules, (owner.0, owner.1.clone(), next.clone()), seen, found);
        }
    }
}

fn parse_chain(body: &[u8]) -> Option<Chain> {
    let family = Table::from_number(*body.first()?)?;
    let body = body.get(NFGEN_HEADER..)?;
    let hook = attribute(body, CHAIN_HOOK)?;
    Some(Chain {
        family,
        table: string(attribute(body, CHAIN_TABLE)?),
        name: string(attribute(body, CHAIN_NAME)?),
        hook: Hook::from_number(family, be(attribute(hook, HOOK_NUMBER)?)?)?,
        devices: devices(hook),
        priority: i32::from_be_bytes(attribute(hook, HOOK_PRIORITY)?.try_into().ok()?),
        drops: attribute(body, CHAIN_POLICY).and_then(be) == Some(NF_DROP),
        rules: Vec::new(),
    })
}

/// The devices that a chain names.
fn devices(hook: &[u8]) -> Vec<String> {
    let list = attribute(hook, HOOK_DEVICES).unwrap_or_default();
    let mut names: Vec<_> = attributes(list).map(|(_, name)| string(name)).collect();
    // One alone is repeated outside the list.
    if names.is_empty() {
        names.extend(attribute(hook, HOOK_DEVICE).map(string));
    }
    names
}

/// Family, table, chain.
type Owner = (Table, String, String);

fn parse_rule(body: &[u8]) -> Option<(Owner, Rule)> {
    let family = Table::from_number(*body.first()?)?;
    let body = body.get(NFGEN_HEADER..)?;
    let mut rule = Rule {
        handle: number(attribute(body, RULE_HANDLE)?)?,
        drops: false,
        rewrites: None,
        packets: None,
        mapped: None,
        jumps: None,
        matches: Matches::default(),
    };
    let mut reader = Reader::default();
    let expressions = attribute(body, RULE_EXPRESSIONS).unwrap_or_default();
    for (_, element) in attributes(expressions).filter(|(kind, _)| *kind == LIST_ELEMENT) {
        let name = attribute(element, EXPR_NAME)
            .map(string)
            .unwrap_or_default();
        let data = attribute(element, EXPR_DATA).unwrap_or_default();
        reader.read(&name, data);
        match name.as_str() {
            "reject" => rule.drops = true,
            "immediate" => {
                let verdict =
                    attribute(data, IMMEDIATE_DATA).and_then(|d| attribute(d, DATA_VERDICT));
                let code = verdict
                    .and_then(|v| attribute(v, VERDICT_CODE))
                    .and_then(be);
                rule.drops |= code == Some(NF_DROP);
                rule.jumps = verdict
                    .and_then(|v| attribute(v, VERDICT_CHAIN))
                    .map(string);
            }
            "masq" => rule.rewrites = Some(Rewrite::Source),
            "redir" => rule.rewrites = Some(Rewrite::Destination),
            "nat" => {
                let kind = attribute(data, NAT_TYPE).and_then(be);
                rule.rewrites = Some(match kind {
                    Some(NAT_DESTINATION) => Rewrite::Destination,
                    _ => Rewrite::Source,
                });
            }
            "target" => match attribute(data, TARGET_NAME).map(string).as_deref() {
                Some("MASQUERADE" | "SNAT") => rule.rewrites = Some(Rewrite::Source),
                Some("DNAT" | "REDIRECT") => rule.rewrites = Some(Rewrite::Destination),
                Some("REJECT") => rule.drops = true,
                _ => {}
            },
            "counter" => rule.packets = attribute(data, COUNTER_PACKETS).and_then(number),
            _ => {}
        }
    }
    rule.matches = reader.found;
    let table = string(attribute(body, RULE_TABLE)?);
    let chain = string(attribute(body, RULE_CHAIN)?);
    Some(((family, table, chain), rule))
}

fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::nftables_batch::attribute as attr;

    fn chain(policy: u32) -> Vec<u8> {
        let hook = [
            attr(HOOK_NUMBER, &2u32.to_be_bytes()),
            attr(HOOK_PRIORITY, &(-150i32).to_be_bytes()),
        ]
        .concat();
        let mut body = vec![1, 0, 0, 1];
        body.extend(attr(CHAIN_TABLE, b"filter\0"));
        body.extend(attr(CHAIN_NAME, b"forward\0"));
        body.extend(attr(CHAIN_HOOK, &hook));
        body.extend(attr(CHAIN_POLICY, &policy.to_be_bytes()));
        body
    }

    fn in_chain(chain: &[u8], handle: u64, expressions: &[u8]) -> Vec<u8> {
        let mut body = vec![1, 0, 0, 1];
        body.extend(attr(RULE_TABLE, b"filter\0"));
        body.extend(attr(RULE_CHAIN, chain));
        body.extend(attr(RULE_HANDLE, &handle.to_be_bytes()));
        body.extend(attr(RULE_EXPRESSIONS, expressions));
        body
    }

    fn expr(name: &[u8], data: &[u8]) -> Vec<u8> {
        let both = [attr(EXPR_NAME, name), attr(EXPR_DATA, data)].concat();
        attr(LIST_ELEMENT, &both)
    }

    fn rule() -> Vec<u8> {
        let code = attr(VERDICT_CODE, &NF_DROP.to_be_bytes());
        let immediate = attr(IMMEDIATE_DATA, &attr(DATA_VERDICT, &code));
        let counter = attr(COUNTER_PACKETS, &7u64.to_be_bytes());
        let expressions = [
            expr(b"counter\0", &counter),
            expr(b"immediate\0", &immediate),
        ]
        .concat();
        in_chain(b"forward\0", 4, &expressions)
    }

    #[test]
    fn a_chain_tells_where_it_stands_and_what_it_does() {
        let found = parse_chain(&chain(NF_DROP)).unwrap();
        assert_eq!(
            (found.family.name(), found.hook.name()),
            ("inet", "forward")
        );
        assert_eq!((found.priority, found.drops), (-150, true));
        assert!(!parse_chain(&chain(1)).unwrap().drops);
    }

    #[test]
    fn a_rule_tells_its_count_and_whether_it_drops() {
        let (owner, rule) = parse_rule(&rule()).unwrap();
        assert_eq!(owner, (Table::Inet, "filter".into(), "forward".into()));
        assert_eq!((rule.handle, rule.drops, rule.packets), (4, true, Some(7)));
    }

    #[test]
    fn a_chain_at_a_device_names_it() {
        let list: Vec<u8> = [attr(1, b"eth0\0"), attr(1, b"eth1\0")].concat();
        let hook = [
            attr(HOOK_NUMBER, &0u32.to_be_bytes()),
            attr(HOOK_PRIORITY, &0i32.to_be_bytes()),
            attr(HOOK_DEVICES, &list),
        ]
        .concat();
        let mut body = vec![5, 0, 0, 1];
        body.extend(attr(CHAIN_TABLE, b"n\0"));
        body.extend(attr(CHAIN_NAME, b"i\0"));
        body.extend(attr(CHAIN_HOOK, &hook));
        let found = parse_chain(&body).unwrap();
        assert_eq!((found.family, found.hook), (Table::Netdev, Hook::Ingress));
        assert_eq!(found.devices, ["eth0", "eth1"]);
        assert_eq!(devices(&attr(HOOK_DEVICE, b"eth2\0")), ["eth2"]);
    }

    #[test]
    fn a_rule_tells_which_address_it_rewrites() {
        let rewrites = |name: &[u8], data: &[u8]| {
            let body = in_chain(b"post\0", 1, &expr(name, data));
            parse_rule(&body).unwrap().1.rewrites
        };
        let nat = |kind: u32| attr(NAT_TYPE, &kind.to_be_bytes());
        assert_eq!(rewrites(b"masq\0", &[]), Some(Rewrite::Source));
        assert_eq!(rewrites(b"nat\0", &nat(0)), Some(Rewrite::Source));
        assert_eq!(rewrites(b"nat\0", &nat(1)), Some(Rewrite::Destination));
        let target = attr(TARGET_NAME, b"REDIRECT\0");
        assert_eq!(rewrites(b"target\0", &target), Some(Rewrite::Destination));
        assert_eq!(rewrites(b"counter\0", &[]), None);
    }

    #[test]
    fn rules_of_a_chain_jumped_to_stand_behind_the_jump_even_in_a_circle() {
        let jump = |to: &[u8]| {
            let verdict = attr(DATA_VERDICT, &attr(VERDICT_CHAIN, to));
            expr(b"immediate\0", &attr(IMMEDIATE_DATA, &verdict))
        };
        let mut rules: HashMap<Owner, Vec<Rule>> = HashMap::new();
        for body in [
            in_chain(b"base\0", 1, &jump(b"other\0")),
            in_chain(b"base\0", 3, &[]),
            in_chain(b"other\0", 2, &jump(b"base\0")),
        ] {
            let (owner, rule) = parse_rule(&body).unwrap();
            rules.entry(owner).or_default().push(rule);
        }
        let mut found = Vec::new();
        let base = (Table::Inet, "filter".to_owned(), "base".to_owned());
        reach(&rules, base, &mut Vec::new(), &mut found);
        let handles: Vec<_> = found.iter().map(|rule| rule.handle).collect();
        assert_eq!(handles, [1, 2, 3]);
    }

    #[test]
    fn a_verdict_map_may_lead_to_any_chain_that_stands_at_no_hook() {
        let map = expr(b"lookup\0", &attr(3, &0u32.to_be_bytes()));
        let mut rules: HashMap<Owner, Vec<Rule>> = HashMap::new();
        for body in [
            in_chain(b"base\0", 1, &map),
            in_chain(b"other\0", 2, &[]),
            in_chain(b"bad\0", 3, &[]),
        ] {
            let (owner, rule) = parse_rule(&body).unwrap();
            rules.entry(owner).or_default().push(rule);
        }
        let chain = |name: &str| (Table::Inet, "filter".to_owned(), name.to_owned());
        let bases = [chain("base"), chain("other")];
        let mut found = Vec::new();
        reach_all(&rules, chain("base"), &bases, &mut found);
        let all: Vec<_> = found
            .iter()
            .map(|r| (r.handle, r.mapped.as_deref()))
            .collect();
        assert_eq!(all, [(1, None), (3, Some("bad"))]);
        assert!(found[0].has_map());
    }

    proptest! {
        #[test]
        fn damaged_messages_never_panic(at in 0usize..200, value: u8, cut in 0usize..200) {
            for mut bytes in [chain(0), rule()] {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
                bytes.truncate(cut);
                let _ = parse_chain(&bytes);
                let _ = parse_rule(&bytes);
            }
        }
    }
}
