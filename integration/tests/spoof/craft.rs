//! Packets as an attacker writes them, each part to be falsified.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, UdpHeader};
use integration::bed::{Backend, Node};
use socket2::{Domain, Protocol, Socket, Type};

use super::PAYLOAD;

pub(super) const IPV4: u16 = 0x0800;
pub(super) const IPV6: u16 = 0x86dd;

/// An inner UDP packet, checksums right.
pub(super) fn inner(from: IpAddr, to: IpAddr, port: u16) -> Vec<u8> {
    let ip = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64),
        _ => panic!("{from} and {to} are of two families"),
    };
    let mut packet = Vec::new();
    let udp = ip.udp(1234, port);
    udp.write(&mut packet, PAYLOAD).unwrap();
    packet
}

/// The bytes of VXLAN and inner Ethernet in front of an inner packet, each part to be falsified.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) flags: u8,
    pub(super) vni: u32,
    pub(super) reserved: u8,
    pub(super) dst: [u8; 6],
    pub(super) src: [u8; 6],
    pub(super) ethertype: u16,
}

impl Link {
    /// From node 2 to node 1, as it should be.
    pub(super) fn good(ethertype: u16) -> Self {
        Link {
            flags: 0x08,
            vni: 1,
            reserved: 0,
            dst: [0x0a, 0x58, 10, 99, 0, 1],
            src: [0x0a, 0x58, 10, 99, 0, 2],
            ethertype,
        }
    }

    /// RFC 7348 section 5.
    pub(super) fn before(self, inner: &[u8]) -> Vec<u8> {
        let [_, a, b, c] = self.vni.to_be_bytes();
        let mut datagram = vec![self.flags, 0, 0, 0, a, b, c, self.reserved];
        datagram.extend(self.dst);
        datagram.extend(self.src);
        datagram.extend(self.ethertype.to_be_bytes());
        datagram.extend(inner);
        datagram
    }
}

/// The payload of the outer UDP datagram.
pub(super) fn encapsulated(backend: Backend, inner: &[u8]) -> Vec<u8> {
    match backend {
        Backend::Udp => inner.to_vec(),
        Backend::Vxlan => {
            let ethertype = if inner.first().is_some_and(|byte| byte >> 4 == 6) {
                IPV6
            } else {
                IPV4
            };
            Link::good(ethertype).before(inner)
        }
    }
}

pub(super) fn port_of(backend: Backend) -> u16 {
    match backend {
        Backend::Udp => 8285,
        Backend::Vxlan => 8472,
    }
}

/// How the outer UDP checksum stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checksum {
    Zero,
    Good,
    Bad,
}

/// A whole outer packet, from node 2 to node 1's daemon.
pub(super) fn outer(from: IpAddr, to: SocketAddr, payload: &[u8], checksum: Checksum) -> Vec<u8> {
    let mut packet = Vec::new();
    let len = u16::try_from(UdpHeader::LEN + payload.len()).unwrap();
    let mut udp = UdpHeader {
        source_port: 50_000,
        destination_port: to.port(),
        length: len,
        checksum: 0,
    };
    let right = match (from, to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let ip = Ipv4Header::new(len, 64, IpNumber::UDP, from.octets(), to.octets()).unwrap();
            ip.write(&mut packet).unwrap();
            udp.calc_checksum_ipv4(&ip, payload)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let ip = Ipv6Header {
                payload_length: len,
                next_header: IpNumber::UDP,
                hop_limit: 64,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv6Header::default()
            };
            ip.write(&mut packet).unwrap();
            udp.calc_checksum_ipv6(&ip, payload)
        }
        _ => panic!("two families"),
    };
    udp.checksum = match checksum {
        Checksum::Zero => 0,
        Checksum::Good => right.unwrap(),
        // Neither right nor zero.
        Checksum::Bad => (right.unwrap() ^ 0x0101).max(1),
    };
    udp.write(&mut packet).unwrap();
    packet.extend(payload);
    packet
}

/// Puts a packet on the underlay as it is.
pub(super) fn send_raw(node: &Node, packet: &[u8], to: IpAddr) {
    const RAW: i32 = 255; // IPPROTO_RAW
    let domain = Domain::for_address(SocketAddr::new(to, 0));
    let sent = node.run(|| {
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(RAW)))?;
        socket.send_to(packet, &SocketAddr::new(to, 0).into())
    });
    assert_eq!(sent.unwrap(), packet.len());
}
