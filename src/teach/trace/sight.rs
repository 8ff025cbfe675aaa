//! What a capture shows: a frame's headers, as far as a trace asks for them. No I/O.

use std::net::IpAddr;

use encap::MacAddr;
use serde::Serialize;

use crate::teach::capture::Link;
use crate::teach::dissect::{Dissection, Layer, Ports, Role, Value};

/// A header and its length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Header {
    /// `IPv4`, `VXLAN`, ...
    pub name: &'static str,
    /// Its length.
    pub bytes: usize,
}

/// An IP header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ip {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// The packet's length in bytes, this header included.
    pub length: usize,
    /// The number that its fragments share.
    #[serde(skip)]
    pub id: u64,
    /// It is a fragment of a larger packet, and at which byte of it it begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fragment: Option<u64>,
}

/// The Ethernet addresses of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ether {
    /// To whom.
    pub dst: MacAddr,
    /// From whom.
    pub src: MacAddr,
}

/// An encapsulation around the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outer {
    /// The outer IP header.
    pub ip: Ip,
    /// The UDP ports, source and destination.
    pub ports: (u16, u16),
    /// VXLAN: the network identifier.
    pub vni: Option<u64>,
    /// VXLAN: the inner Ethernet header.
    pub ether: Option<Ether>,
}

/// What the packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Echo request.
    Request,
    /// Echo reply.
    Reply,
    /// An ICMP error: type, code, and the MTU that it tells, if it does.
    Error(u8, u8, Option<u64>),
    /// A fragment that is not the first: what it is part of, it does not say.
    Fragment,
}

/// A frame, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    /// Its headers, outermost first, as far as the innermost packet's own.
    pub headers: Vec<Header>,
    /// Its own Ethernet header.
    pub ether: Option<Ether>,
    /// The encapsulation, if it is in one.
    pub outer: Option<Outer>,
    /// The innermost packet that is not quoted.
    pub ip: Ip,
    /// What that is.
    pub kind: Kind,
}

/// Reads a frame; `None`: there is no ICMP packet in it that a trace knows, nor a fragment of one.
pub fn read(frame: &[u8], link: Link, ports: &Ports) -> Option<Sight> {
    let found = look(frame, link, ports)?;
    Some(Sight {
        kind: found.kind?,
        headers: found.headers,
        ether: found.ether,
        outer: found.outer,
        ip: found.ip,
    })
}

/// A train of datagrams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Train {
    /// The length in its IP header, in bytes.
    pub length: usize,
    /// Each as a frame of its own, with the headers in front that it has on a wire.
    pub datagrams: Vec<Vec<u8>>,
}

/// A frame cut into the datagrams of a train (`UDP_SEGMENT`, udp(7)); `None`: it is no train.
///
/// A train crosses a veth pair whole: one IP and one UDP header, then the payloads of datagrams that are all as long as the
/// first, but for the last. Nothing in a capture says how long: it follows from what the first encapsulates.
#[must_use]
pub fn train(frame: &[u8], link: Link, ports: &Ports) -> Option<Train> {
    const UDP: usize = 8;
    let found = look(frame, link, ports)?;
    let outer = found.outer?;
    let udp = found.headers.iter().position(|h| h.name == "UDP")?;
    let ip_length = found.headers.get(udp.checked_sub(1)?)?.bytes;
    let sum = |headers: &[Header]| headers.iter().map(|h| h.bytes).sum::<usize>();
    let payload_at = sum(&found.headers[..=udp]);
    let ip_at = payload_at.checked_sub(UDP + ip_length)?;
    // What stands between the UDP header and the inner IP header: nothing, or VXLAN and Ethernet.
    let inner = found.headers[udp + 1..].iter();
    let between = inner.take_while(|h| !matches!(h.name, "IPv4" | "IPv6"));
    let segment = between.map(|h| h.bytes).sum::<usize>() + found.ip.length;
    let end = ip_at + outer.ip.length;
    let payload = frame.get(payload_at..end)?;
    // An inner header that lies about its length would make crumbs.
    if payload.len() <= segment || segment < 20 {
        return None;
    }
    let datagrams = payload.chunks(segment).map(|chunk| {
        let mut piece = [&frame[..payload_at], chunk].concat();
        let udp_length = UDP + chunk.len();
        let (at, length) = match outer.ip.src {
            IpAddr::V4(_) => (ip_at + 2, ip_length + udp_length),
            IpAddr::V6(_) => (ip_at + 4, ip_length - 40 + udp_length),
        };
        for (at, length) in [(at, length), (payload_at - 4, udp_length)] {
            let length = u16::try_from(length).unwrap_or(u16::MAX);
            piece[at..at + 2].copy_from_slice(&length.to_be_bytes());
        }
        piece
    });
    Some(Train {
        length: outer.ip.length,
        datagrams: datagrams.collect(),
    })
}

/// What a frame's headers are, whatever is in it.
struct Found {
    headers: Vec<Header>,
    ether: Option<Ether>,
    outer: Option<Outer>,
    ip: Ip,
    kind: Option<Kind>,
}

fn look(frame: &[u8], link: Link, ports: &Ports) -> Option<Found> {
    let mut dissection = Dissection::default();
    dissection.read(frame, frame.len(), link, ports);
    let fields = Fields(&dissection);
    let mut kind = None;
    let (mut ether, mut outer) = (None, None::<Outer>);
    let (mut vni, mut inner_ether) = (None, None);
    let mut headers = Vec::new();
    let mut ip = None;
    let mut udp = None;
    for layer in dissection.layers.iter().filter(|layer| !layer.quoted) {
        if layer.role == Role::Header && !layer.bytes.is_empty() {
            headers.push(Header {
                name: layer.name,
                bytes: layer.bytes.len(),
            });
        }
        match layer.name {
            "Ethernet" if layer.depth == 0 => ether = fields.ether(layer),
            "Ethernet" => inner_ether = fields.ether(layer),
            "IPv4" | "IPv6" => {
                if let (Some(outside), Some(ports)) = (ip.take(), udp.take()) {
                    outer = Some(Outer {
                        ip: outside,
                        ports,
                        vni: vni.take(),
                        ether: inner_ether.take(),
                    });
                }
                ip = fields.ip(layer);
            }
            "IPv6 fragment" => {
                if let Some(ip) = &mut ip {
                    ip.fragment = fields
                        .number(layer, "fragment offset")
                        .map(|units| units * 8);
                    ip.id = fields.number(layer, "identification").unwrap_or(0);
                }
            }
            "VXLAN" => vni = fields.number(layer, "network identifier"),
            "UDP" => {
                let port = |name| u16::try_from(fields.number(layer, name)?).ok();
                udp = port("source port").zip(port("destination port"));
            }
            "ICMP" | "ICMPv6" => {
                kind = fields.icmp(layer);
                break;
            }
            _ => {}
        }
    }
    let ip: Ip = ip?;
    if kind.is_none() && ip.fragment.is_some_and(|at| at > 0) {
        kind = Some(Kind::Fragment);
    }
    Some(Found {
        headers,
        ether,
        outer,
        ip,
        kind,
    })
}

struct Fields<'a>(&'a Dissection);

impl Fields<'_> {
    fn value(&self, layer: &Layer, name: &str) -> Option<Value> {
        let fields = self.0.fields_of(layer);
        let field = fields.iter().find(|field| field.name == name)?;
        Some(field.value)
    }

    fn number(&self, layer: &Layer, name: &str) -> Option<u64> {
        match self.value(layer, name)? {
            Value::Number(number) | Value::Hex(number) | Value::Little(number) => Some(number),
            _ => None,
        }
    }

    fn address(&self, layer: &Layer, name: &str) -> Option<IpAddr> {
        match self.value(layer, name)? {
            Value::Ip(ip) => Some(ip),
            _ => None,
        }
    }

    fn ether(&self, layer: &Layer) -> Option<Ether> {
        let mac = |name| match self.value(layer, name) {
            Some(Value::Mac(mac)) => Some(mac),
            _ => None,
        };
        Some(Ether {
            dst: mac("destination")?,
            src: mac("source")?,
        })
    }

    fn ip(&self, layer: &Layer) -> Option<Ip> {
        let v4 = layer.name == "IPv4";
        let (ttl, length, rest) = if v4 {
            ("time to live", "total length", 0)
        } else {
            ("hop limit", "payload length", 40)
        };
        let more = self.number(layer, "more fragments").unwrap_or(0) != 0;
        let offset = self.number(layer, "fragment offset").unwrap_or(0);
        Some(Ip {
            src: self.address(layer, "source")?,
            dst: self.address(layer, "destination")?,
            ttl: u8::try_from(self.number(layer, ttl)?).ok()?,
            length: usize::try_from(self.number(layer, length)?).ok()? + rest,
            id: self.number(layer, "identification").unwrap_or(0),
            // The field counts units of 8 bytes.
            fragment: (more || offset > 0).then_some(offset * 8),
        })
    }

    fn icmp(&self, layer: &Layer) -> Option<Kind> {
        let small = |name| u8::try_from(self.number(layer, name)?).ok();
        let (kind, code) = (small("type")?, small("code")?);
        let mtu = self
            .number(layer, "next-hop MTU")
            .or_else(|| self.number(layer, "MTU"));
        match (layer.name, kind) {
            ("ICMP", 8) | ("ICMPv6", 128) => Some(Kind::Request),
            ("ICMP", 0) | ("ICMPv6", 129) => Some(Kind::Reply),
            ("ICMP", 3 | 11 | 12) | ("ICMPv6", 1..=4) => Some(Kind::Error(kind, code, mtu)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv4Type, IpFragOffset, Ipv4Header, PacketBuilder, icmpv4};
    use proptest::prelude::*;

    use super::*;

    const A: [u8; 4] = [10, 244, 1, 2];
    const B: [u8; 4] = [10, 244, 2, 2];

    fn ping(ttl: u8) -> Vec<u8> {
        let mut packet = Vec::new();
        let echo = PacketBuilder::ipv4(A, B, ttl).icmpv4_echo_request(1, 1);
        echo.write(&mut packet, b"trace-").unwrap();
        packet
    }

    fn in_vxlan(packet: &[u8]) -> Vec<u8> {
        let mut payload = vec![8, 0, 0, 0, 0, 0, 1, 0];
        payload.extend([0x0a, 0x58, 10, 99, 0, 2, 0x0a, 0x58, 10, 99, 0, 1, 8, 0]);
        payload.extend(packet);
        payload
    }

    fn vxlan(packet: &[u8]) -> Vec<u8> {
        datagram(&in_vxlan(packet))
    }

    fn datagram(payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv4([10, 99, 0, 1], [10, 99, 0, 2], 64)
            .udp(8472, 8472)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    #[test]
    fn a_packet_and_the_same_in_vxlan_are_told_apart() {
        let ports = Ports::default();
        let plain = read(&ping(63), Link::Raw, &ports).unwrap();
        assert_eq!(
            (plain.kind, plain.ip.ttl, plain.ip.length),
            (Kind::Request, 63, 34)
        );
        assert!(plain.outer.is_none() && plain.ether.is_none() && plain.ip.fragment.is_none());
        let inside = read(&vxlan(&ping(63)), Link::Ethernet, &ports).unwrap();
        assert_eq!((inside.kind, &inside.ip), (Kind::Request, &plain.ip));
        let outer = inside.outer.unwrap();
        assert_eq!(
            (outer.ip.ttl, outer.ip.length, outer.ports, outer.vni),
            (64, 84, (8472, 8472), Some(1))
        );
        assert_eq!(outer.ether.unwrap().dst.to_string(), "0a:58:0a:63:00:02");
        let names: Vec<_> = inside.headers.iter().map(|h| (h.name, h.bytes)).collect();
        assert_eq!(
            names[..6],
            [
                ("Ethernet", 14),
                ("IPv4", 20),
                ("UDP", 8),
                ("VXLAN", 8),
                ("Ethernet", 14),
                ("IPv4", 20)
            ]
        );
    }

    #[test]
    fn a_train_is_the_datagrams_that_it_is_made_of() {
        let ports = Ports::default();
        let (one, two) = (ping(63), ping(62));
        let mut last = Vec::new();
        let echo = PacketBuilder::ipv4(A, B, 61).icmpv4_echo_request(1, 2);
        echo.write(&mut last, b"t").unwrap();
        let payload: Vec<u8> = [&one, &two, &last]
            .into_iter()
            .flat_map(|p| in_vxlan(p))
            .collect();
        let frame = datagram(&payload);
        let whole = train(&frame, Link::Ethernet, &ports).unwrap();
        let pieces = whole.datagrams;
        assert_eq!(whole.length, frame.len() - 14);
        assert_eq!(pieces[0], {
            let mut alone = vxlan(&one);
            // Its checksum was the train's.
            alone[14 + 10..14 + 12].copy_from_slice(&frame[14 + 10..14 + 12]);
            alone[14 + 26..14 + 28].copy_from_slice(&frame[14 + 26..14 + 28]);
            alone
        });
        let read = |piece: &Vec<u8>| read(piece, Link::Ethernet, &ports).unwrap();
        let seen: Vec<_> = pieces.iter().map(read).collect();
        let seen: Vec<_> = seen
            .iter()
            .map(|s| (s.ip.ttl, s.outer.as_ref().unwrap().ip.length))
            .collect();
        assert_eq!(seen, [(63, 84), (62, 84), (61, 79)]);
        assert!(train(&vxlan(&one), Link::Ethernet, &ports).is_none());
        // Padded to Ethernet's least.
        let padded = [vxlan(&one), vec![0; 9]].concat();
        assert!(train(&padded, Link::Ethernet, &ports).is_none());
    }

    #[test]
    fn an_error_is_not_taken_for_what_it_quotes() {
        let mut packet = Vec::new();
        let needed = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1450 };
        PacketBuilder::ipv4(B, A, 64)
            .icmpv4(Icmpv4Type::DestinationUnreachable(needed))
            .write(&mut packet, &ping(63))
            .unwrap();
        let sight = read(&packet, Link::Raw, &Ports::default()).unwrap();
        assert_eq!(sight.kind, Kind::Error(3, 4, Some(1450)));
        assert_eq!(sight.ip.src, IpAddr::from(B));
    }

    #[test]
    fn a_later_fragment_is_known_by_its_number() {
        let mut header = Ipv4Header::new(16, 64, etherparse::IpNumber::ICMP, A, B).unwrap();
        header.identification = 7;
        header.fragment_offset = IpFragOffset::try_new(3).unwrap();
        let mut packet = header.to_bytes().to_vec();
        packet.extend([0; 16]);
        let sight = read(&packet, Link::Raw, &Ports::default()).unwrap();
        assert_eq!(
            (sight.kind, sight.ip.id, sight.ip.fragment),
            (Kind::Fragment, 7, Some(24))
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes, Link::Raw, &Ports::default());
            let _ = read(&bytes, Link::Ethernet, &Ports::default());
            let _ = train(&bytes, Link::Ethernet, &Ports::default());
        }

        #[test]
        fn damaged_frames_never_panic(at in 0usize..90, value: u8, cut in 0usize..98) {
            let mut frame = vxlan(&ping(64));
            frame[at] = value;
            frame.truncate(cut);
            let _ = read(&frame, Link::Ethernet, &Ports::default());
            let _ = train(&frame, Link::Ethernet, &Ports::default());
        }
    }
}
