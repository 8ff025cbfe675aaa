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
//! `iptables` of today (`iptables-nft`) keeps its tables in nf_tables too. Those of the older `iptables-legacy` are not
//! seen here.

use std::io;

use super::nftables::{
    CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, CHAIN_TABLE, DATA_VERDICT, EXPR_DATA, EXPR_NAME,
    GET_CHAIN, GET_RULE, HOOK_NUMBER, IMMEDIATE_DATA, LIST_ELEMENT, NEW_CHAIN, NEW_RULE, NF_DROP,
    NFGEN_HEADER, RULE_EXPRESSIONS, RULE_TABLE, VERDICT_CODE, attribute, attributes, be, dump,
    string,
};

const HOOK_PRIORITY: u16 = 2;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const COUNTER_PACKETS: u16 = 2;

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
        }
    }

    /// `NF_INET_PRE_ROUTING` and those that follow it; a bridge's hooks have the same numbers.
    fn from_number(number: u32) -> Option<Self> {
        let all = [
            Self::Prerouting,
            Self::Input,
            Self::Forward,
            Self::Output,
            Self::Postrouting,
        ];
        all.get(usize::try_from(number).ok()?).copied()
    }
}

/// Whose packets a chain sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Table {
    /// `inet`: IPv4 and IPv6.
    Inet,
    /// `ip`: IPv4.
    Ip,
    /// `ip6`: IPv6.
    Ip6,
    /// `bridge`: frames that a bridge forwards.
    Bridge,
}

impl Table {
    /// NFPROTO_* of `linux/netfilter.h`.
    fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Inet),
            2 => Some(Self::Ip),
            10 => Some(Self::Ip6),
            7 => Some(Self::Bridge),
            _ => None,
        }
    }

    /// As nft(8) writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Bridge => "bridge",
        }
    }
}

/// A rule of a chain, as far as it matters for where a packet may end.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Rule {
    /// The number by which `nft delete rule` knows it.
    pub handle: u64,
    /// It drops or rejects what it matches.
    pub drops: bool,
    /// How many packets it has matched, where it counts them.
    pub packets: Option<u64>,
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
    /// Among chains of one hook the lowest comes first.
    pub priority: i32,
    /// Packets that no rule decides about are dropped.
    pub drops: bool,
    /// Its rules, in order. Those of chains that it jumps to are not among them.
    pub rules: Vec<Rule>,
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
        for body in dump(GET_RULE, NEW_RULE)? {
            let Some((owner, rule)) = parse_rule(&body) else {
                continue;
            };
            let owns =
                |c: &&mut Chain| (c.family, &*c.table, &*c.name) == (owner.0, &*owner.1, &*owner.2);
            if let Some(chain) = chains.iter_mut().find(owns) {
                chain.rules.push(rule);
            }
        }
    }
    chains.sort_by_key(|chain| (chain.hook, chain.priority));
    Ok(chains)
}

fn parse_chain(body: &[u8]) -> Option<Chain> {
    let family = Table::from_number(*body.first()?)?;
    let body = body.get(NFGEN_HEADER..)?;
    let hook = attribute(body, CHAIN_HOOK)?;
    Some(Chain {
        family,
        table: string(attribute(body, CHAIN_TABLE)?),
        name: string(attribute(body, CHAIN_NAME)?),
        hook: Hook::from_number(be(attribute(hook, HOOK_NUMBER)?)?)?,
        priority: i32::from_be_bytes(attribute(hook, HOOK_PRIORITY)?.try_into().ok()?),
        drops: attribute(body, CHAIN_POLICY).and_then(be) == Some(NF_DROP),
        rules: Vec::new(),
    })
}

type Owner = (Table, String, String);

fn parse_rule(body: &[u8]) -> Option<(Owner, Rule)> {
    let family = Table::from_number(*body.first()?)?;
    let body = body.get(NFGEN_HEADER..)?;
    let mut rule = Rule {
        handle: number(attribute(body, RULE_HANDLE)?)?,
        drops: false,
        packets: None,
    };
    let expressions = attribute(body, RULE_EXPRESSIONS).unwrap_or_default();
    for (_, element) in attributes(expressions).filter(|(kind, _)| *kind == LIST_ELEMENT) {
        let name = attribute(element, EXPR_NAME)
            .map(string)
            .unwrap_or_default();
        let data = attribute(element, EXPR_DATA).unwrap_or_default();
        match name.as_str() {
            "reject" => rule.drops = true,
            "immediate" => {
                let code = attribute(data, IMMEDIATE_DATA)
                    .and_then(|d| attribute(d, DATA_VERDICT))
                    .and_then(|v| attribute(v, VERDICT_CODE))
                    .and_then(be);
                rule.drops |= code == Some(NF_DROP);
            }
            "counter" => rule.packets = attribute(data, COUNTER_PACKETS).and_then(number),
            _ => {}
        }
    }
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

    fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

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

    fn rule() -> Vec<u8> {
        let expr = |name: &[u8], data: &[u8]| {
            let both = [attr(EXPR_NAME, name), attr(EXPR_DATA, data)].concat();
            attr(LIST_ELEMENT, &both)
        };
        let code = attr(VERDICT_CODE, &NF_DROP.to_be_bytes());
        let immediate = attr(IMMEDIATE_DATA, &attr(DATA_VERDICT, &code));
        let counter = attr(COUNTER_PACKETS, &7u64.to_be_bytes());
        let expressions = [
            expr(b"counter\0", &counter),
            expr(b"immediate\0", &immediate),
        ]
        .concat();
        let mut body = vec![1, 0, 0, 1];
        body.extend(attr(RULE_TABLE, b"filter\0"));
        body.extend(attr(RULE_CHAIN, b"forward\0"));
        body.extend(attr(RULE_HANDLE, &4u64.to_be_bytes()));
        body.extend(attr(RULE_EXPRESSIONS, &expressions));
        body
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
