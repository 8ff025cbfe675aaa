//! What nftables does with forwarded packets: as much of nfnetlink as it takes to ask. (To change something:
//! `nftables_batch`.)
//!
//! `iptables` of today (`iptables-nft`) keeps its tables in nf_tables too, so asking there finds both. The question is
//! two dumps, the base chains and the rules:
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------------------------------------------------------+
//! |                       length (host order)                     |  struct nlmsghdr
//! +-------------------------------+-------------------------------+  (include/uapi/linux/netlink.h)
//! | subsystem 10 << 8 | message   |             flags             |
//! +-------------------------------+-------------------------------+
//! |                        sequence number                        |
//! +---------------------------------------------------------------+
//! |                            port id                            |
//! +---------------+---------------+-------------------------------+
//! | family        | version 0     | resource id 0 (network order) |  struct nfgenmsg (linux/netfilter/nfnetlink.h)
//! +---------------+---------------+-------------------------------+
//! | length (incl. these 4 bytes)  | type                          |  struct nlattr, repeated, each padded to 4 bytes;
//! +-------------------------------+-------------------------------+  numbers inside are in network order
//! | value ...                                                     |  (linux/netfilter/nf_tables.h)
//! ```

use std::io;

use rtnetlink::{
    packet_core::{NLM_F_DUMP, NLM_F_REQUEST},
    sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER},
};

pub(super) const NLMSG_HEADER: usize = 16;
pub(super) const NFGEN_HEADER: usize = 4;

pub(super) const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// NFNL_SUBSYS_NFTABLES in the high byte of the message type.
pub(super) const NFTABLES: u16 = 10 << 8;
pub(super) const GET_CHAIN: u16 = NFTABLES | 4;
pub(super) const NEW_CHAIN: u16 = NFTABLES | 3;
pub(super) const GET_RULE: u16 = NFTABLES | 7;
pub(super) const NEW_RULE: u16 = NFTABLES | 6;

pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
pub(super) const HOOK_NUMBER: u16 = 1;
pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const LIST_ELEMENT: u16 = 1;
pub(super) const EXPR_NAME: u16 = 1;
pub(super) const EXPR_DATA: u16 = 2;
pub(super) const CMP_DATA: u16 = 3;
pub(super) const IMMEDIATE_DATA: u16 = 2;
pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;
pub(super) const VERDICT_CODE: u16 = 1;

/// NF_INET_FORWARD (linux/netfilter.h).
const HOOK_FORWARD: u32 = 2;
pub(super) const NF_DROP: u32 = 0;
pub(super) const NF_ACCEPT: u32 = 1;

/// Which packets a table sees (NFPROTO_*, linux/netfilter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// `inet`: both families.
    Inet,
    /// `ip`
    V4,
    /// `ip6`
    V6,
}

impl Protocol {
    fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Inet),
            2 => Some(Self::V4),
            10 => Some(Self::V6),
            _ => None,
        }
    }

    /// As nft(8) writes it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }
}

/// A base chain that drops every forwarded packet which no rule of its table accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DroppingChain {
    pub(super) protocol: Protocol,
    pub(super) table: String,
    pub(super) name: String,
}

/// A rule that accepts packets, and what it compares them with: device names, addresses, in the bytes of the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AcceptingRule {
    pub(super) protocol: Protocol,
    pub(super) table: String,
    pub(super) compared: Vec<Vec<u8>>,
}

/// Asks the calling thread's namespace. A kernel without nf_tables has no such chains.
pub(super) fn forward_drops() -> io::Result<(Vec<DroppingChain>, Vec<AcceptingRule>)> {
    let chains: Vec<_> = dump(GET_CHAIN, NEW_CHAIN)?
        .iter()
        .filter_map(|m| parse_chain(m))
        .collect();
    if chains.is_empty() {
        return Ok((chains, Vec::new()));
    }
    let rules = dump(GET_RULE, NEW_RULE)?
        .iter()
        .filter_map(|m| parse_rule(m))
        .collect();
    Ok((chains, rules))
}

/// One message: `family` is an NFPROTO_*, 0 for every family.
pub(super) fn message(kind: u16, flags: u16, sequence: u32, family: u8, body: &[u8]) -> Vec<u8> {
    let length = NLMSG_HEADER + NFGEN_HEADER + body.len();
    let mut message = Vec::with_capacity(length);
    // No message of ours comes near four gigabytes.
    message.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    message.extend_from_slice(&sequence.to_ne_bytes());
    message.extend_from_slice(&0u32.to_ne_bytes()); // port id: the kernel fills it in
    message.extend_from_slice(&[family, 0, 0, 0]);
    message.extend_from_slice(body);
    message
}

/// A socket to nf_tables of the calling thread's namespace.
pub(super) fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// The bodies (from nfgenmsg on) of all messages of one dump.
pub(super) fn dump(question: u16, answer: u16) -> io::Result<Vec<Vec<u8>>> {
    dump_of(question, answer, 0, &[])
}

/// The same of one family, and of what the attributes select.
pub(super) fn dump_of(
    question: u16,
    answer: u16,
    family: u8,
    selection: &[u8],
) -> io::Result<Vec<Vec<u8>>> {
    let socket = open()?;
    socket.send(&message(question, NLM_F_DUMP, 1, family, selection), 0)?;
    let mut bodies = Vec::new();
    loop {
        // The kernel answers a dump while we receive it: this never waits for anyone else.
        let (datagram, _) = socket.recv_from_full()?;
        if collect(&datagram, answer, &mut bodies)? {
            return Ok(bodies);
        }
    }
}

/// The body of the one object that the attributes name, if it is there.
pub(super) fn get(
    question: u16,
    answer: u16,
    family: u8,
    selection: &[u8],
) -> io::Result<Option<Vec<u8>>> {
    let socket = open()?;
    socket.send(&message(question, 0, 1, family, selection), 0)?;
    let (datagram, _) = socket.recv_from_full()?;
    let mut bodies = Vec::new();
    match collect(&datagram, answer, &mut bodies) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOENT) => Ok(None),
        collected => collected.map(|_| bodies.pop()),
    }
}

/// Takes the messages of one datagram; true when the dump has ended.
fn collect(mut datagram: &[u8], answer: u16, bodies: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    while datagram.len() >= NLMSG_HEADER {
        let length =
            u32::from_ne_bytes([datagram[0], datagram[1], datagram[2], datagram[3]]) as usize;
        let kind = u16::from_ne_bytes([datagram[4], datagram[5]]);
        let Some(body) = datagram.get(NLMSG_HEADER..length) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a netlink message is cut short",
            ));
        };
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = body
                    .first_chunk()
                    .map_or(0, |code| i32::from_ne_bytes(*code));
                return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
            }
            kind if kind == answer => bodies.push(body.to_vec()),
            _ => {}
        }
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(false)
}

pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(k, _)| *k == kind)
        .map(|(_, value)| value)
}

/// The attributes' types and values; stops at the first malformed one.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        // The two high bits are flags: nested, network byte order (NLA_F_*).
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(super) fn be(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

pub(super) fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim_end_matches('\0')
        .to_owned()
}

fn parse_chain(body: &[u8]) -> Option<DroppingChain> {
    let protocol = Protocol::from_number(*body.first()?)?;
    let body = body.get(NFGEN_HEADER..)?;
    let hook = attribute(body, CHAIN_HOOK)?;
    if be(attribute(hook, HOOK_NUMBER)?)? != HOOK_FORWARD
        || be(attribute(body, CHAIN_POLICY)?)? != NF_DROP
    {
        return None;
    }
    Some(DroppingChain {
        protocol,
        table: string(attribute(body, CHAIN_TABLE)?),
        name: string(attribute(body, CHAIN_NAME)?),
    })
}

fn parse_rule(body: &[u8]) -> Option<AcceptingRule> {
    let protocol = Protocol::from_number(*body.first()?)?;
    let body = body.get(NFGEN_HEADER..)?;
    let mut compared = Vec::new();
    let mut accepts = false;
    for (_, element) in
        attributes(attribute(body, RULE_EXPRESSIONS)?).filter(|(k, _)| *k == LIST_ELEMENT)
    {
        let (Some(name), Some(data)) =
            (attribute(element, EXPR_NAME), attribute(element, EXPR_DATA))
        else {
            continue;
        };
        match string(name).as_str() {
            "cmp" => compared.extend(
                attribute(data, CMP_DATA)
                    .and_then(|d| attribute(d, DATA_VALUE))
                    .map(<[u8]>::to_vec),
            ),
            "immediate" => {
                accepts |= attribute(data, IMMEDIATE_DATA)
                    .and_then(|d| attribute(d, DATA_VERDICT))
                    .and_then(|v| attribute(v, VERDICT_CODE))
                    .and_then(be)
                    == Some(NF_ACCEPT);
            }
            _ => {}
        }
    }
    accepts.then(|| AcceptingRule {
        protocol,
        table: attribute(body, RULE_TABLE).map(string).unwrap_or_default(),
        compared,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::nftables_batch::attribute as attr;

    fn chain(family: u8, hook: u32, policy: Option<u32>) -> Vec<u8> {
        let hook = [
            attr(HOOK_NUMBER, &hook.to_be_bytes()),
            attr(2, &0u32.to_be_bytes()),
        ]
        .concat();
        let mut body = vec![family, 0, 0, 1];
        body.extend(attr(CHAIN_TABLE, b"filter\0"));
        body.extend(attr(CHAIN_NAME, b"FORWARD\0"));
        body.extend(attr(CHAIN_HOOK, &hook));
        body.extend(
            policy
                .map(|p| attr(CHAIN_POLICY, &p.to_be_bytes()))
                .unwrap_or_default(),
        );
        body
    }

    fn rule(compared: &[u8], verdict: u32) -> Vec<u8> {
        let expr = |name: &[u8], data: &[u8]| {
            attr(
                LIST_ELEMENT,
                &[attr(EXPR_NAME, name), attr(EXPR_DATA, data)].concat(),
            )
        };
        let cmp = attr(CMP_DATA, &attr(DATA_VALUE, compared));
        let code = attr(VERDICT_CODE, &verdict.to_be_bytes());
        let immediate = attr(IMMEDIATE_DATA, &attr(DATA_VERDICT, &code));
        let expressions = [expr(b"cmp\0", &cmp), expr(b"immediate\0", &immediate)].concat();
        let mut body = vec![2, 0, 0, 1];
        body.extend(attr(RULE_TABLE, b"filter\0"));
        body.extend(attr(RULE_EXPRESSIONS, &expressions));
        body
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(NLMSG_HEADER + body.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.resize(NLMSG_HEADER, 0);
        bytes.extend_from_slice(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn the_request_is_a_dump_of_every_family() {
        let bytes = super::message(GET_CHAIN, NLM_F_DUMP, 1, 0, &[]);
        assert_eq!(bytes.len(), 20);
        assert_eq!(u16::from_ne_bytes([bytes[4], bytes[5]]), 0x0a04);
        assert_eq!(u16::from_ne_bytes([bytes[6], bytes[7]]), 0x301);
    }

    #[test]
    fn only_a_forward_chain_with_policy_drop_counts() {
        let found = parse_chain(&chain(2, HOOK_FORWARD, Some(NF_DROP))).unwrap();
        assert_eq!(
            (found.protocol, found.table.as_str(), found.name.as_str()),
            (Protocol::V4, "filter", "FORWARD")
        );
        assert_eq!(
            parse_chain(&chain(10, HOOK_FORWARD, Some(NF_DROP)))
                .unwrap()
                .protocol,
            Protocol::V6
        );
        assert_eq!(
            parse_chain(&chain(1, HOOK_FORWARD, Some(NF_DROP)))
                .unwrap()
                .protocol,
            Protocol::Inet
        );
        assert_eq!(parse_chain(&chain(2, HOOK_FORWARD, Some(NF_ACCEPT))), None);
        assert_eq!(parse_chain(&chain(2, HOOK_FORWARD, None)), None);
        assert_eq!(
            parse_chain(&chain(2, 1, Some(NF_DROP))),
            None,
            "the input hook"
        );
        assert_eq!(
            parse_chain(&chain(7, HOOK_FORWARD, Some(NF_DROP))),
            None,
            "a bridge table"
        );
    }

    #[test]
    fn an_accepting_rule_tells_what_it_compares() {
        let found = parse_rule(&rule(b"overlay0\0", NF_ACCEPT)).unwrap();
        assert_eq!(found.compared, vec![b"overlay0\0".to_vec()]);
        assert_eq!(found.table, "filter");
        assert_eq!(parse_rule(&rule(b"overlay0\0", NF_DROP)), None);
    }

    #[test]
    fn a_dump_is_collected_to_its_end() {
        let mut datagram = message(NEW_CHAIN, &chain(2, HOOK_FORWARD, Some(NF_DROP)));
        datagram.extend(message(NEW_RULE, &[2, 0, 0, 0]));
        let mut bodies = Vec::new();
        assert!(!collect(&datagram, NEW_CHAIN, &mut bodies).unwrap());
        assert_eq!(bodies.len(), 1);
        assert!(collect(&message(NLMSG_DONE, &[0; 4]), NEW_CHAIN, &mut bodies).unwrap());
        let refused = collect(
            &message(NLMSG_ERROR, &(-1i32).to_ne_bytes()),
            NEW_CHAIN,
            &mut bodies,
        );
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(1));
        datagram[0] = 200;
        assert!(collect(&datagram, NEW_CHAIN, &mut bodies).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_chain(&bytes);
            let _ = parse_rule(&bytes);
            let _ = collect(&bytes, NEW_CHAIN, &mut Vec::new());
        }

        #[test]
        fn damaged_messages_never_panic(at in 0usize..200, value: u8, cut in 0usize..200) {
            for mut bytes in [chain(2, HOOK_FORWARD, Some(NF_DROP)), rule(b"overlay0\0", NF_ACCEPT)] {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
                bytes.truncate(cut);
                let _ = parse_chain(&bytes);
                let _ = parse_rule(&bytes);
                let _ = collect(&message(NEW_CHAIN, &bytes), NEW_CHAIN, &mut Vec::new());
            }
        }
    }
}
