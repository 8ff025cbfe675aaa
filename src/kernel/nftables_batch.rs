//! Changing nftables: a batch of messages that the kernel takes whole or not at all.
//!
//! ```text
//! BATCH_BEGIN │ NEWTABLE │ NEWCHAIN │ NEWRULE │ ... │ BATCH_END        each a netlink message, see `nftables`
//! ```
//!
//! A rule is a list of expressions (`linux/netfilter/nf_tables.h`, `enum nft_*_attributes`); what does not match ends
//! it. Ours are few, and all such as `iptables` can read too: it refuses tables in which it finds what it does not know.
//!
//! ```text
//! payload network header +12, 4 bytes ─▶ register 1 │ bitwise & mask │ cmp == prefix │ immediate accept
//! ```

use std::io;

use ipnet::IpNet;
use rtnetlink::packet_core::NLM_F_ACK;

use super::nftables::{
    CHAIN_HOOK, CHAIN_NAME, CHAIN_TABLE, CMP_DATA, DATA_VALUE, DATA_VERDICT, EXPR_DATA, EXPR_NAME,
    HOOK_NUMBER, IMMEDIATE_DATA, LIST_ELEMENT, NEW_CHAIN, NEW_RULE, NF_ACCEPT, NFTABLES,
    NLMSG_ERROR, NLMSG_HEADER, RULE_EXPRESSIONS, RULE_TABLE, VERDICT_CODE, message, open,
};
use super::{Error, Result};

/// NFNL_MSG_BATCH_BEGIN and _END (`linux/netfilter/nfnetlink.h`).
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

const NEW_TABLE: u16 = NFTABLES;
const DEL_TABLE: u16 = NFTABLES | 2;
const DEL_CHAIN: u16 = NFTABLES | 5;
const DEL_RULE: u16 = NFTABLES | 8;

const TABLE_NAME: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const CHAIN_TYPE: u16 = 7;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_HANDLE: u16 = 3;
pub(super) const RULE_USERDATA: u16 = 7;
pub(super) const VERDICT_CHAIN: u16 = 2;
/// A comment in a rule's user data (`libnftnl/udata.h`, NFTNL_UDATA_RULE_COMMENT).
const COMMENT: u8 = 0;

const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;

/// NFT_JUMP and NFT_RETURN: -3 and -5.
pub(super) const JUMP: u32 = u32::MAX - 2;
const RETURN: u32 = u32::MAX - 4;
/// NFT_REG_1, which takes an IPv6 address.
const REGISTER: u32 = 1;
/// NFT_REG_VERDICT.
const VERDICT: u32 = 0;
/// NF_NAT_RANGE_PROTO_RANDOM_FULLY (`linux/netfilter/nf_nat.h`).
const RANDOM_FULLY: u32 = 1 << 4;

/// The IP version that a table is of, and that its rules compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ip {
    V4,
    V6,
}

impl Ip {
    pub(super) fn of(net: &IpNet) -> Self {
        match net {
            IpNet::V4(_) => Ip::V4,
            IpNet::V6(_) => Ip::V6,
        }
    }

    /// NFPROTO_IPV4 and NFPROTO_IPV6.
    pub(super) fn number(self) -> u8 {
        match self {
            Ip::V4 => 2,
            Ip::V6 => 10,
        }
    }

    /// As nft(8) writes it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Ip::V4 => "ip",
            Ip::V6 => "ip6",
        }
    }
}

/// An address of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

/// What a rule looks at, or does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expr {
    /// Goes on if the address lies in the prefix, or (`inside` false) outside of it.
    Address {
        side: Side,
        prefix: IpNet,
        inside: bool,
    },
    /// Goes on if these bits of the packet's mark are set.
    Mark(u32),
    Count,
    Accept,
    Return,
    Jump(String),
    /// Takes the address of the device that the packet leaves by for its source, and any free port.
    Masquerade,
}

/// A rule, and the comment by which it is known again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewRule {
    pub(super) comment: String,
    pub(super) exprs: Vec<Expr>,
}

/// An attribute: length and type in host order, the value padded to four bytes.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn nested(kind: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NLA_F_NESTED, &attributes.concat())
}

pub(super) fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

fn number(kind: u16, number: u32) -> Vec<u8> {
    attribute(kind, &number.to_be_bytes())
}

fn value(kind: u16, bytes: &[u8]) -> Vec<u8> {
    nested(kind, &[attribute(DATA_VALUE, bytes)])
}

fn expression(name: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
    nested(
        LIST_ELEMENT,
        &[text(EXPR_NAME, name), nested(EXPR_DATA, attributes)],
    )
}

/// `register & mask`.
fn bitwise(mask: &[u8]) -> Vec<u8> {
    let length = u32::try_from(mask.len()).unwrap_or(0);
    let zeros = vec![0; mask.len()];
    expression(
        "bitwise",
        &[
            number(1, REGISTER),
            number(2, REGISTER),
            number(3, length),
            value(4, mask),
            value(5, &zeros),
        ],
    )
}

/// Goes on if the register is (`equal`) or is not this.
fn compare(equal: bool, with: &[u8]) -> Vec<u8> {
    expression(
        "cmp",
        &[
            number(1, REGISTER),
            number(2, u32::from(!equal)),
            value(CMP_DATA, with),
        ],
    )
}

fn verdict(code: u32, chain: Option<&str>) -> Vec<u8> {
    let mut verdict = vec![number(VERDICT_CODE, code)];
    verdict.extend(chain.map(|chain| text(VERDICT_CHAIN, chain)));
    let data = nested(IMMEDIATE_DATA, &[nested(DATA_VERDICT, &verdict)]);
    expression("immediate", &[number(1, VERDICT), data])
}

/// Loads an address of the packet and compares its prefix.
fn compare_address(side: Side, prefix: IpNet, inside: bool) -> Vec<u8> {
    // Where the addresses stand: RFC 791 section 3.1, RFC 8200 section 3.
    let (address, mask, offset) = match prefix {
        IpNet::V4(net) => {
            let offset = if side == Side::Source { 12 } else { 16 };
            (
                net.network().octets().to_vec(),
                net.netmask().octets().to_vec(),
                offset,
            )
        }
        IpNet::V6(net) => {
            let offset = if side == Side::Source { 8 } else { 24 };
            (
                net.network().octets().to_vec(),
                net.netmask().octets().to_vec(),
                offset,
            )
        }
    };
    let length = u32::try_from(address.len()).unwrap_or(0);
    const NETWORK_HEADER: u32 = 1;
    let load = expression(
        "payload",
        &[
            number(1, REGISTER),
            number(2, NETWORK_HEADER),
            number(3, offset),
            number(4, length),
        ],
    );
    [load, bitwise(&mask), compare(inside, &address)].concat()
}

impl Expr {
    fn encode(&self) -> Vec<u8> {
        match self {
            Expr::Address {
                side,
                prefix,
                inside,
            } => compare_address(*side, *prefix, *inside),
            // The mark stands in the register in host order.
            Expr::Mark(mark) => {
                const META_MARK: u32 = 3;
                let load = expression("meta", &[number(1, REGISTER), number(2, META_MARK)]);
                let mark = mark.to_ne_bytes();
                [load, bitwise(&mark), compare(true, &mark)].concat()
            }
            Expr::Count => expression("counter", &[]),
            Expr::Accept => verdict(NF_ACCEPT, None),
            Expr::Return => verdict(RETURN, None),
            Expr::Jump(chain) => verdict(JUMP, Some(chain)),
            Expr::Masquerade => expression("masq", &[number(1, RANDOM_FULLY)]),
        }
    }
}

/// What a rule's user data says in words, if it does.
pub(super) fn comment(mut userdata: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = userdata {
        let value = rest.get(..usize::from(*length))?;
        if *kind == COMMENT {
            return Some(super::nftables::string(value));
        }
        userdata = &rest[value.len()..];
    }
    None
}

fn userdata(comment: &str) -> Vec<u8> {
    // The kernel takes 256 bytes in all.
    let mut words = comment.as_bytes()[..comment.len().min(250)].to_vec();
    words.push(0);
    let length = u8::try_from(words.len()).unwrap_or(u8::MAX);
    let tagged = [&[COMMENT, length], words.as_slice()].concat();
    attribute(RULE_USERDATA, &tagged)
}

/// Changes that are made all at once.
#[derive(Debug, Default)]
pub(super) struct Batch {
    messages: Vec<u8>,
    /// What each message attempts, for the error.
    attempts: Vec<String>,
}

impl Batch {
    fn push(&mut self, kind: u16, flags: u16, ip: Ip, body: &[Vec<u8>], attempt: String) {
        self.attempts.push(attempt);
        let sequence = u32::try_from(self.attempts.len()).unwrap_or(u32::MAX);
        let flags = flags | NLM_F_ACK;
        self.messages
            .extend(message(kind, flags, sequence, ip.number(), &body.concat()));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.attempts.is_empty()
    }

    /// Makes a table, if it is not there.
    pub(super) fn add_table(&mut self, ip: Ip, table: &str) {
        let attempt = format!("add table {} {table}", ip.name());
        let body = [text(TABLE_NAME, table)];
        self.push(NEW_TABLE, NLM_F_CREATE, ip, &body, attempt);
    }

    /// Removes a table with all that is in it, if it is there.
    pub(super) fn delete_table(&mut self, ip: Ip, table: &str) {
        // What is made first is there to be removed.
        self.add_table(ip, table);
        let attempt = format!("delete table {} {table}", ip.name());
        self.push(DEL_TABLE, 0, ip, &[text(TABLE_NAME, table)], attempt);
    }

    /// Makes a chain that others jump to, if it is not there.
    pub(super) fn add_chain(&mut self, ip: Ip, table: &str, chain: &str) {
        let attempt = format!("add chain {} {table} {chain}", ip.name());
        let body = [text(CHAIN_TABLE, table), text(CHAIN_NAME, chain)];
        self.push(NEW_CHAIN, NLM_F_CREATE, ip, &body, attempt);
    }

    /// Makes a chain that translates sources at the postrouting hook.
    pub(super) fn add_nat_chain(&mut self, ip: Ip, table: &str, chain: &str) {
        // NF_INET_POST_ROUTING; NF_IP_PRI_NAT_SRC, where iptables' own stands (linux/netfilter_ipv4.h).
        let hook = [number(HOOK_NUMBER, 4), number(HOOK_PRIORITY, 100)];
        let body = [
            text(CHAIN_TABLE, table),
            text(CHAIN_NAME, chain),
            nested(CHAIN_HOOK, &hook),
            text(CHAIN_TYPE, "nat"),
        ];
        let attempt = format!("add nat chain {} {table} {chain}", ip.name());
        self.push(NEW_CHAIN, NLM_F_CREATE, ip, &body, attempt);
    }

    /// Removes a chain, which nothing may jump to any more, with its rules.
    pub(super) fn delete_chain(&mut self, ip: Ip, table: &str, chain: &str) {
        self.flush_chain(ip, table, chain);
        let attempt = format!("delete chain {} {table} {chain}", ip.name());
        let body = [text(CHAIN_TABLE, table), text(CHAIN_NAME, chain)];
        self.push(DEL_CHAIN, 0, ip, &body, attempt);
    }

    /// Removes all rules of a chain.
    pub(super) fn flush_chain(&mut self, ip: Ip, table: &str, chain: &str) {
        let attempt = format!("flush chain {} {table} {chain}", ip.name());
        let body = [text(RULE_TABLE, table), text(RULE_CHAIN, chain)];
        self.push(DEL_RULE, 0, ip, &body, attempt);
    }

    /// Puts a rule behind all others of a chain.
    pub(super) fn append_rule(&mut self, ip: Ip, table: &str, chain: &str, rule: &NewRule) {
        let exprs: Vec<_> = rule.exprs.iter().map(Expr::encode).collect();
        let body = [
            text(RULE_TABLE, table),
            text(RULE_CHAIN, chain),
            nested(RULE_EXPRESSIONS, &exprs),
            userdata(&rule.comment),
        ];
        let attempt = format!("add rule {} {table} {chain} ({})", ip.name(), rule.comment);
        self.push(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, ip, &body, attempt);
    }

    /// Removes the rule of this handle.
    pub(super) fn delete_rule(&mut self, ip: Ip, table: &str, chain: &str, handle: u64) {
        let body = [
            text(RULE_TABLE, table),
            text(RULE_CHAIN, chain),
            attribute(RULE_HANDLE, &handle.to_be_bytes()),
        ];
        let attempt = format!("delete rule {} {table} {chain} handle {handle}", ip.name());
        self.push(DEL_RULE, 0, ip, &body, attempt);
    }

    /// Hands all of it to the kernel, in the calling thread's namespace.
    ///
    /// # Errors
    /// The first that the kernel refuses; nothing is changed then.
    pub(super) fn commit(self) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let failed = |error| Error::new("change the packet filter", error);
        let socket = open().map_err(failed)?;
        let subsystem = |kind| {
            // Of these two messages the resource is the subsystem that the batch is for.
            let mut frame = message(kind, 0, 0, 0, &[]);
            let resource = (NFTABLES >> 8).to_be_bytes();
            frame[NLMSG_HEADER + 2..].copy_from_slice(&resource);
            frame
        };
        let whole = [subsystem(BATCH_BEGIN), self.messages, subsystem(BATCH_END)].concat();
        socket.send(&whole, 0).map_err(failed)?;
        // The kernel has done it, or not, and answered before `send` returned.
        socket.set_non_blocking(true).map_err(failed)?;
        loop {
            match socket.recv_from_full() {
                Ok((datagram, _)) => refusal(&datagram, &self.attempts)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

/// The first message of a datagram that says no.
fn refusal(mut datagram: &[u8], attempts: &[String]) -> Result<()> {
    let word = |bytes: &[u8], at: usize| {
        let four = bytes.get(at..at + 4)?.first_chunk()?;
        Some(u32::from_ne_bytes(*four))
    };
    while let (Some(length), Some(sequence)) = (word(datagram, 0), word(datagram, 8)) {
        let kind = u16::from_ne_bytes([datagram[4], datagram[5]]);
        let code = datagram.get(NLMSG_HEADER..).and_then(<[u8]>::first_chunk);
        let code = code.map_or(0, |code| i32::from_ne_bytes(*code));
        if kind == NLMSG_ERROR && code != 0 {
            let which = usize::try_from(sequence).unwrap_or(0).checked_sub(1);
            let attempt = which.and_then(|index| attempts.get(index));
            let attempt = attempt.map_or("change the packet filter", String::as_str);
            let cause = io::Error::from_raw_os_error(code.wrapping_neg());
            return Err(Error::new(attempt, cause));
        }
        let next = usize::try_from(length)
            .unwrap_or(usize::MAX)
            .max(NLMSG_HEADER);
        datagram = datagram
            .get(next.saturating_add(3) & !3..)
            .unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_their_length_is_not() {
        let name = text(1, "ip");
        assert_eq!(name.len(), 8);
        assert_eq!(u16::from_ne_bytes([name[0], name[1]]), 7);
        assert_eq!(&name[4..], b"ip\0\0");
    }

    #[test]
    fn a_comment_is_found_again_among_other_data() {
        let tagged = userdata("overlayd: forward");
        assert_eq!(comment(&tagged[4..]).unwrap(), "overlayd: forward");
        let after_other = [&[9, 2, 1, 2], &tagged[4..]].concat();
        assert_eq!(comment(&after_other).unwrap(), "overlayd: forward");
        assert_eq!(comment(&[]), None);
        assert_eq!(comment(&[0, 200, 1]), None, "cut short");
        let long = userdata(&"x".repeat(1000));
        assert!(long.len() <= 256 + 4);
    }

    #[test]
    fn a_refusal_names_what_was_attempted() {
        let mut answer = message(NLMSG_ERROR, 0, 2, 0, &[0; 16]);
        let attempts = ["one".to_owned(), "two".to_owned()];
        assert!(refusal(&answer, &attempts).is_err() || answer[NLMSG_HEADER..][..4] == [0; 4]);
        answer[NLMSG_HEADER..NLMSG_HEADER + 4].copy_from_slice(&(-2i32).to_ne_bytes());
        let error = refusal(&answer, &attempts).unwrap_err();
        assert!(error.is_not_found());
        assert!(error.to_string().starts_with("two: "), "{error}");
        for cut in 0..answer.len() {
            let _ = refusal(&answer[..cut], &attempts);
        }
    }
}
