//! What a rule asks of a packet, as far as that is simple: addresses, protocol, ports, devices. Sets, maps, connection
//! tracking and the like are not read: of these nobody can say here whether a packet fits.
//!
//! nf_tables loads a field into a register, may mask it, and compares it (`net/netfilter/nft_payload.c`, `nft_meta.c`,
//! `nft_bitwise.c`, `nft_cmp.c`).

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::super::nftables::{CMP_DATA, DATA_VALUE, attribute, be};

/// `NFTA_META_DREG` and `NFTA_META_KEY`; a payload's register is the first too.
const REGISTER: u16 = 1;
const META_KEY: u16 = 2;
const META_PROTOCOL: u32 = 1;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LENGTH: u16 = 4;
const BITWISE_TO: u16 = 2;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
const CMP_OPERATION: u16 = 2;
const LOOKUP_TO: u16 = 3;
/// `IFNAMSIZ`: names are compared with the zeros behind them.
const NAME_LENGTH: usize = 16;
/// No header field is longer.
const MAX_LENGTH: u32 = 40;

/// `NFT_PAYLOAD_NETWORK_HEADER`
const NETWORK: u32 = 1;
/// `NFT_PAYLOAD_TRANSPORT_HEADER`
const TRANSPORT: u32 = 2;

/// Does a packet fit what a rule asks for?
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// It does not.
    No,
    /// Something is asked for that is not read, or not known of the packet.
    Maybe,
    /// It does.
    Yes,
}

/// What is known of a packet where a rule looks at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    v6: bool,
    protocol: u8,
    /// The known bytes: header, offset.
    bytes: BTreeMap<(u32, u32), u8>,
    input: Option<String>,
    output: Option<String>,
}

impl View {
    /// `transport`: as many bytes of the header behind IP's as are known. Addresses that are not known are `None`.
    pub fn new(
        v6: bool,
        addresses: (Option<IpAddr>, Option<IpAddr>),
        protocol: u8,
        transport: &[u8],
    ) -> Self {
        let mut view = Self {
            v6,
            protocol,
            ..Self::default()
        };
        let offsets = if v6 { (8, 24) } else { (12, 16) };
        for (address, offset) in [(addresses.0, offsets.0), (addresses.1, offsets.1)] {
            match address {
                Some(IpAddr::V4(ip)) => view.know(NETWORK, offset, &ip.octets()),
                Some(IpAddr::V6(ip)) => view.know(NETWORK, offset, &ip.octets()),
                None => {}
            }
        }
        // Behind IPv6's header others may stand first.
        if !v6 {
            view.know(NETWORK, 9, &[protocol]);
        }
        view.know(TRANSPORT, 0, transport);
        view
    }

    /// By which devices it came and is to go: `""` where there is none, `None` where that is not known.
    #[must_use]
    pub fn between(mut self, input: Option<&str>, output: Option<&str>) -> Self {
        self.input = input.map(str::to_owned);
        self.output = output.map(str::to_owned);
        self
    }

    fn know(&mut self, header: u32, offset: u32, bytes: &[u8]) {
        self.bytes.extend(
            (offset..)
                .zip(bytes)
                .map(|(at, byte)| ((header, at), *byte)),
        );
    }

    fn load(&self, field: &Field) -> Option<Vec<u8>> {
        let name = |name: &Option<String>| {
            let mut bytes = name.as_ref()?.clone().into_bytes();
            bytes.resize(NAME_LENGTH, 0);
            Some(bytes)
        };
        match field {
            Field::Payload(header, offset, length) => (*offset..offset.checked_add(*length)?)
                .map(|at| self.bytes.get(&(*header, at)).copied())
                .collect(),
            Field::Meta(META_PROTOCOL) if self.v6 => Some(vec![0x86, 0xdd]),
            Field::Meta(META_PROTOCOL) => Some(vec![0x08, 0x00]),
            Field::Meta(META_NFPROTO) => Some(vec![if self.v6 { 10 } else { 2 }]),
            Field::Meta(META_L4PROTO) => Some(vec![self.protocol]),
            Field::Meta(META_IIFNAME) => name(&self.input),
            Field::Meta(META_OIFNAME) => name(&self.output),
            Field::Meta(_) => None,
        }
    }
}

/// What is loaded into a register.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Field {
    /// Of which header, from which byte on, how many.
    Payload(u32, u32, u32),
    /// A key of `enum nft_meta_keys`.
    Meta(u32),
}

/// One comparison of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Compare {
        field: Field,
        mask: Option<Vec<u8>>,
        operation: u32,
        value: Vec<u8>,
    },
    Unread,
}

impl Test {
    fn fits(&self, view: &View) -> Fit {
        let Self::Compare {
            field,
            mask,
            operation,
            value,
        } = self
        else {
            return Fit::Maybe;
        };
        let Some(mut bytes) = view.load(field) else {
            return Fit::Maybe;
        };
        if let Some(mask) = mask {
            bytes
                .iter_mut()
                .zip(mask)
                .for_each(|(byte, mask)| *byte &= mask);
        }
        bytes.truncate(value.len());
        // `enum nft_cmp_ops`
        let fits = match operation {
            0 => bytes == *value,
            1 => bytes != *value,
            2 => bytes < *value,
            3 => bytes <= *value,
            4 => bytes > *value,
            5 => bytes >= *value,
            _ => return Fit::Maybe,
        };
        if fits { Fit::Yes } else { Fit::No }
    }
}

/// What a rule asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Matches {
    tests: Vec<Test>,
    /// It has a verdict map: it may go on in any chain of its table.
    pub(super) maps: bool,
}

impl Matches {
    pub(super) fn fits(&self, view: &View) -> Fit {
        let all = self.tests.iter().map(|test| test.fits(view));
        all.min().unwrap_or(Fit::Yes)
    }
}

/// Reads a rule's expressions one after the other.
#[derive(Debug, Default)]
pub(super) struct Reader {
    registers: HashMap<u32, (Field, Option<Vec<u8>>)>,
    pub(super) found: Matches,
}

impl Reader {
    pub(super) fn read(&mut self, name: &str, data: &[u8]) {
        let number = |kind| attribute(data, kind).and_then(be);
        match name {
            // What is done to a packet, not asked of it.
            "counter" | "immediate" | "reject" | "masq" | "nat" | "redir" | "log" | "target"
            | "notrack" => {}
            "meta" | "payload" => {
                let field = match name {
                    "meta" => number(META_KEY).map(Field::Meta),
                    _ => payload(&number),
                };
                // Without a register to load into, it writes.
                let Some(register) = number(REGISTER) else {
                    return;
                };
                match field {
                    Some(field) => self.registers.insert(register, (field, None)),
                    None => self.registers.remove(&register),
                };
            }
            "bitwise" => {
                let value = |kind| attribute(data, kind).and_then(|d| attribute(d, DATA_VALUE));
                let plain = value(BITWISE_XOR).is_some_and(|xor| xor.iter().all(|b| *b == 0));
                let from = number(REGISTER).and_then(|from| self.registers.remove(&from));
                if let (Some((field, None)), Some(mask), Some(to), true) =
                    (from, value(BITWISE_MASK), number(BITWISE_TO), plain)
                {
                    self.registers.insert(to, (field, Some(mask.to_vec())));
                }
            }
            "cmp" => {
                let value = attribute(data, CMP_DATA).and_then(|d| attribute(d, DATA_VALUE));
                let loaded = number(REGISTER).and_then(|from| self.registers.get(&from));
                let test = match (loaded, value, number(CMP_OPERATION)) {
                    (Some((field, mask)), Some(value), Some(operation)) => Test::Compare {
                        field: field.clone(),
                        mask: mask.clone(),
                        operation,
                        value: value.to_vec(),
                    },
                    _ => Test::Unread,
                };
                self.found.tests.push(test);
            }
            other => {
                // `NFT_REG_VERDICT` is 0.
                self.found.maps |= other == "lookup" && number(LOOKUP_TO) == Some(0);
                self.registers.clear();
                // These only load, and what they load is compared later.
                if !matches!(
                    other,
                    "ct" | "fib" | "rt" | "socket" | "hash" | "numgen" | "exthdr"
                ) {
                    self.found.tests.push(Test::Unread);
                }
            }
        }
    }
}

fn payload(number: &impl Fn(u16) -> Option<u32>) -> Option<Field> {
    let length = number(PAYLOAD_LENGTH).filter(|length| *length <= MAX_LENGTH)?;
    Some(Field::Payload(
        number(PAYLOAD_BASE)?,
        number(PAYLOAD_OFFSET)?,
        length,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::nftables_batch::attribute as attr;

    fn number(kind: u16, value: u32) -> Vec<u8> {
        attr(kind, &value.to_be_bytes())
    }

    fn meta(key: u32) -> (&'static str, Vec<u8>) {
        (
            "meta",
            [number(REGISTER, 1), number(META_KEY, key)].concat(),
        )
    }

    fn payload(header: u32, offset: u32, length: u32) -> (&'static str, Vec<u8>) {
        let parts = [
            number(REGISTER, 1),
            number(PAYLOAD_BASE, header),
            number(PAYLOAD_OFFSET, offset),
            number(PAYLOAD_LENGTH, length),
        ];
        ("payload", parts.concat())
    }

    fn cmp(operation: u32, value: &[u8]) -> (&'static str, Vec<u8>) {
        let data = attr(CMP_DATA, &attr(DATA_VALUE, value));
        let parts = [number(REGISTER, 1), number(CMP_OPERATION, operation), data];
        ("cmp", parts.concat())
    }

    fn fits(expressions: &[(&str, Vec<u8>)], view: &View) -> Fit {
        let mut reader = Reader::default();
        for (name, data) in expressions {
            reader.read(name, data);
        }
        reader.found.fits(view)
    }

    fn ping() -> View {
        let ends = ("10.244.1.2".parse().ok(), "10.244.2.2".parse().ok());
        View::new(false, ends, 1, &[8, 0]).between(Some("cni0"), Some("overlay0"))
    }

    #[test]
    fn addresses_protocols_and_devices_are_held_against_a_packet() {
        let udp = [8472u16.to_be_bytes(), 8472u16.to_be_bytes()].concat();
        let ends = ("10.99.0.1".parse().ok(), "10.99.0.2".parse().ok());
        let outer = View::new(false, ends, 17, &udp).between(Some(""), Some("eth0"));
        let mut name = b"overlay0".to_vec();
        name.resize(NAME_LENGTH, 0);
        let mask = [
            number(REGISTER, 1),
            number(BITWISE_TO, 1),
            attr(BITWISE_MASK, &attr(DATA_VALUE, &[255, 255, 240, 0])),
            attr(BITWISE_XOR, &attr(DATA_VALUE, &[0; 4])),
        ];
        for (what, expressions, inner) in [
            (
                "ip saddr 10.244.1.0/24",
                vec![payload(NETWORK, 12, 3), cmp(0, &[10, 244, 1])],
                true,
            ),
            (
                "ip daddr 10.244.0.0/20",
                vec![
                    payload(NETWORK, 16, 4),
                    ("bitwise", mask.concat()),
                    cmp(0, &[10, 244, 0, 0]),
                ],
                true,
            ),
            (
                "udp dport 8472",
                vec![
                    meta(META_L4PROTO),
                    cmp(0, &[17]),
                    payload(TRANSPORT, 2, 2),
                    cmp(0, &8472u16.to_be_bytes()),
                ],
                false,
            ),
            (
                "oifname overlay0",
                vec![meta(META_OIFNAME), cmp(0, &name)],
                true,
            ),
            (
                "iifname cni*",
                vec![meta(META_IIFNAME), cmp(0, b"cni")],
                true,
            ),
            (
                "ip daddr != 10.244.2.2",
                vec![payload(NETWORK, 16, 4), cmp(1, &[10, 244, 2, 2])],
                false,
            ),
        ] {
            let wanted = [(inner, &ping()), (!inner, &outer)];
            for (fit, view) in wanted {
                let fit = if fit { Fit::Yes } else { Fit::No };
                assert_eq!(fits(&expressions, view), fit, "{what}: {view:?}");
            }
        }
    }

    #[test]
    fn what_is_not_read_or_not_known_may_fit() {
        let set = ("lookup", number(2, 1));
        let other = vec![payload(NETWORK, 16, 4), cmp(0, &[10, 244, 3, 2])];
        assert_eq!(
            fits(&[payload(NETWORK, 16, 4), set.clone()], &ping()),
            Fit::Maybe
        );
        // One thing that certainly does not fit is enough.
        assert_eq!(fits(&[&other[..], &[set]].concat(), &ping()), Fit::No);
        let unknown = View::new(false, (None, None), 1, &[]);
        assert_eq!(fits(&other, &unknown), Fit::Maybe);
        assert_eq!(fits(&[], &unknown), Fit::Yes);
        // A state of connection tracking stands in the register now, not the address.
        let state = [
            payload(NETWORK, 16, 4),
            ("ct", number(1, 1)),
            cmp(0, &[0; 4]),
        ];
        assert_eq!(fits(&state, &ping()), Fit::Maybe);
        let mut reader = Reader::default();
        reader.read("lookup", &[number(2, 1), number(LOOKUP_TO, 0)].concat());
        assert!(reader.found.maps);
    }
}
