//! A frame taken apart: every byte of it belongs to a field of a layer, in order, without gap or overlap.
//!
//! ```text
//!  walk.rs       names fields one after the other, and says where bytes are missing
//!  link.rs       Ethernet, VLAN tags, Linux cooked captures, ARP
//!  ip.rs         IPv4 and its options, IPv6
//!  extension.rs  IPv6 extension headers
//!  transport.rs  UDP, TCP and its options; checksums
//!  icmp.rs       ICMP and ICMPv6 with the packets they quote; icmp6_options.rs: neighbour discovery, MLD
//!  igmp.rs       IGMP
//!  mpls.rs       MPLS labels, in front of packets and in ICMP's extensions
//!  tunnel.rs     flannel's udp, VXLAN, VXLAN-GPE, Geneve, GRE: and from there it begins anew
//!  wireguard.rs  WireGuard, whose content is sealed
//!  meaning.rs    what addresses, ports and numbers stand for
//! ```
//!
//! etherparse gives a header's values, or refuses it whole; here each value needs its place, and a garbled header is shown
//! as far as it goes. So the walk reads bit by bit, takes names of numbers from etherparse, and is tested against its
//! reading.

mod extension;
mod icmp;
mod icmp6_options;
mod igmp;
mod ip;
mod link;
mod meaning;
mod mpls;
mod transport;
mod tunnel;
mod walk;
mod wireguard;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use encap::MacAddr;

use super::capture::Link;

/// How deep encapsulations and quotations may nest. What is deeper is shown as payload.
pub const MAX_DEPTH: u8 = 8;

/// What a UDP datagram to a port carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// flannel's udp: an IP packet, nothing before it.
    Udp,
    /// VXLAN (RFC 7348).
    Vxlan,
    /// VXLAN-GPE (draft-ietf-nvo3-vxlan-gpe), which says what it carries.
    Gpe,
    /// Geneve (RFC 8926).
    Geneve,
    /// WireGuard (wireguard.com/protocol).
    WireGuard,
}

/// Which UDP ports carry tunnels: destination ports, as tunnels choose source ports to spread flows. Only WireGuard, whose
/// peers each have one port for both directions, is known by either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(BTreeMap<u16, Tunnel>);

impl Default for Ports {
    /// flannel's udp on 8285; VXLAN on 8472 (Linux, flannel) and 4789 (IANA); VXLAN-GPE on 4790, Geneve on 6081 (IANA);
    /// WireGuard on 51820 (its tools' documentation).
    fn default() -> Self {
        Self(BTreeMap::from([
            (8285, Tunnel::Udp),
            (8472, Tunnel::Vxlan),
            (4789, Tunnel::Vxlan),
            (4790, Tunnel::Gpe),
            (6081, Tunnel::Geneve),
            (51820, Tunnel::WireGuard),
        ]))
    }
}

impl Ports {
    /// Takes datagrams to this port for this tunnel.
    pub fn insert(&mut self, port: u16, tunnel: Tunnel) {
        self.0.insert(port, tunnel);
    }

    /// What datagrams to this port carry.
    #[must_use]
    pub fn get(&self, port: u16) -> Option<Tunnel> {
        self.0.get(&port).copied()
    }

    /// What datagrams between these ports carry.
    #[must_use]
    pub fn between(&self, source: u16, destination: u16) -> Option<Tunnel> {
        let answer = || {
            self.get(source)
                .filter(|&tunnel| tunnel == Tunnel::WireGuard)
        };
        self.get(destination).or_else(answer)
    }
}

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number that people read in decimal.
    Number(u64),
    /// A number that people read in hexadecimal.
    Hex(u64),
    /// A number sent least significant byte first, which people read in decimal.
    Little(u64),
    /// A link-layer address.
    Mac(MacAddr),
    /// An address.
    Ip(IpAddr),
    /// Bytes without further meaning to us.
    Bytes,
}

/// What is to be said about a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It verifies.
    Right,
    /// It does not; this would have.
    Wrong(u16),
    /// It holds the sum of the pseudo-header: the sender left the rest to its network card, and the packet was seen before
    /// that. This would be the finished one.
    Unfinished(u16),
    /// It verifies as soon as an unfinished one further in is finished. So Linux computes the checksum of a tunnel's UDP
    /// header (local checksum offload, Documentation/networking/checksum-offloads.rst).
    Deferred,
    /// The sender says that there is none.
    Absent,
    /// It cannot be told, and why.
    Unknown(&'static str),
}

/// One field of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name in full.
    pub name: &'static str,
    /// Its name as drawings of the header abbreviate it.
    pub short: &'static str,
    /// Its first bit, counted from the start of the frame, most significant bit of a byte first.
    pub bit: usize,
    /// Its length in bits.
    pub bits: usize,
    /// What it holds.
    pub value: Value,
    /// What that means; empty where the value says it all.
    pub meaning: Cow<'static, str>,
    /// Where it is defined, if elsewhere than its header; else empty.
    pub source: &'static str,
    /// Of checksums: do they verify?
    pub checksum: Option<Verdict>,
}

impl Field {
    /// The bytes it lies in.
    #[must_use]
    pub fn bytes(&self) -> Range<usize> {
        self.bit / 8..(self.bit + self.bits).div_ceil(8)
    }
}

/// What kind of bytes a layer is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A header that was taken apart.
    Header,
    /// What a header carries and nobody here takes apart.
    Payload,
    /// Bytes behind the end that a header states.
    Padding,
}

/// One header, or what one carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The protocol's name.
    pub name: &'static str,
    /// Where its format is written down.
    pub source: &'static str,
    /// Header, payload or padding.
    pub role: Role,
    /// In how many encapsulations or quotations it is.
    pub depth: u8,
    /// Is it quoted by an ICMP error?
    pub quoted: bool,
    /// Its bytes in the frame.
    pub bytes: Range<usize>,
    /// Its fields, as indexes into [`Dissection::fields`].
    pub fields: Range<usize>,
    /// Something to know about it; may be empty.
    pub note: &'static str,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The byte of the frame at which it shows.
    pub at: usize,
    /// What, and how.
    pub text: String,
}

/// What the frame costs: original bytes + overhead + padding = wire bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// The layer with which the original packet begins, as an index: the innermost packet that is not quoted.
    pub layer: usize,
    /// The original packet's length in bytes, as its header states it.
    pub original: usize,
    /// Bytes of the headers in front of it.
    pub overhead: usize,
    /// Bytes behind it, such as those that fill an Ethernet frame up to 60.
    pub padding: usize,
    /// Bytes on the wire, without preamble and frame check sequence, which captures do not hold.
    pub wire: usize,
}

/// A frame taken apart. Made once and used for many frames, it allocates little.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dissection {
    /// The layers, in the order of their bytes.
    pub layers: Vec<Layer>,
    /// The fields of all layers.
    pub fields: Vec<Field>,
    /// What is not as it should be.
    pub problems: Vec<Problem>,
    /// The frame in one line.
    pub summary: String,
    /// What the frame costs; `None` if there is no packet in it, or its lengths do not add up.
    pub sum: Option<Sum>,
}

impl Dissection {
    /// The fields of a layer.
    #[must_use]
    pub fn fields_of(&self, layer: &Layer) -> &[Field] {
        &self.fields[layer.fields.clone()]
    }

    /// Takes a frame apart. Whatever the bytes are, they are taken as far as they make sense.
    ///
    /// `wire_len` is the frame's length on the wire in bytes, of which the capture may have kept only the first.
    pub fn read(&mut self, frame: &[u8], wire_len: usize, link: Link, ports: &Ports) {
        self.layers.clear();
        self.fields.clear();
        self.problems.clear();
        self.summary.clear();
        self.sum = None;
        walk::Walk::new(frame, wire_len.max(frame.len()), ports, self).frame(link);
    }
}

/// How ARP for IPv4 over Ethernet begins (RFC 826): what `tcpdump -x` prints of it, without the Ethernet header.
const BARE_ARP: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// The link type of bytes that come without one: raw if they look like nothing but a packet, otherwise Ethernet.
#[must_use]
pub fn guess_link(bytes: &[u8]) -> Link {
    let is_v4 =
        encap::Inner::parse_checked(bytes).is_ok_and(|inner| inner.family == encap::Family::V4);
    let nibble = bytes.first().map(|byte| byte >> 4);
    let ether_type = bytes
        .get(12..14)
        .map(|two| u16::from_be_bytes([two[0], two[1]]));
    let behind = bytes.get(14).map(|byte| byte >> 4);
    let is_ethernet = match ether_type {
        Some(0x0800) => behind == Some(4),
        Some(0x86dd) => behind == Some(6),
        Some(0x0806 | 0x8100 | 0x88a8) => true,
        _ => false,
    };
    match nibble {
        _ if is_v4 || bytes.starts_with(&BARE_ARP) => Link::Raw,
        _ if is_ethernet => Link::Ethernet,
        Some(4 | 6) => Link::Raw,
        _ => Link::Ethernet,
    }
}

/// The addresses between which a transport header travels, and whether its checksum can be judged.
#[derive(Clone, Copy)]
struct Carrier {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    /// The byte at which the packet ends, as its header says: more than are there, if it is cut short.
    end: usize,
    /// Why not, if not.
    unjudged: Option<&'static str>,
    /// The first of several fragments.
    first_fragment: bool,
}

const UNSPECIFIED_V4: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const UNSPECIFIED_V6: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

#[cfg(test)]
mod tests;
