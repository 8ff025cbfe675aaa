//! A test bed: three nodes on paper, the packets between them, and the stages of any of them.
//!
//! | node | leases                               | public IPs           | VTEP MAC            |
//! |------|--------------------------------------|----------------------|---------------------|
//! | n    | `10.244.n.0/24`, `fd00:10:244:n::/64`| `10.99.0.n`, `fd99::n`| `0a:58:0a:63:00:0n`|

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use encap::{Encapsulation, Family, MacAddr, OwnMacs, RawUdp, Sums, Vxlan};
use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, NetHeaders, PacketBuilder,
    PacketBuilderStep, PacketHeaders,
};
use fdb::{Endpoint, NextHop, Tables};

use super::batch::{Batch, Outbox};
use super::counters::Direction;
use super::inbound::{Inbound, Takes};
use super::outbound::Outbound;
use super::{Forwarding, Options};

/// Our own node.
pub(super) const US: u8 = 1;
/// The node that talks to us.
pub(super) const PEER: u8 = 2;
/// A node that has nothing to do with it.
pub(super) const THIRD: u8 = 3;
/// Both families, for tests that go through them.
pub(super) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// The underlay's MTU in bytes.
const UNDERLAY_MTU: u16 = 1500;

/// The node's public IP.
pub(super) fn public(node: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 99, 0, node).into(),
        Family::V6 => Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, node.into()).into(),
    }
}

/// A pod on the node.
pub(super) fn pod(node: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 244, node, 5).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, 5).into(),
    }
}

/// An address that no lease holds.
pub(super) fn stranger(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, 1).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// The node's overlay address, from which its ICMP errors come.
pub(super) fn overlay(node: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 244, node, 0).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, 0).into(),
    }
}

/// The node's VTEP MAC.
pub(super) fn mac(node: u8) -> MacAddr {
    MacAddr([0x0a, 0x58, 10, 99, 0, node])
}

/// A backend as a node of the test bed uses it.
pub(super) trait Backend: Encapsulation {
    const PORT: u16;
    fn of(node: u8) -> Self;

    /// The device's MTU.
    fn device_mtu() -> u16 {
        UNDERLAY_MTU - Self::overhead(Family::V4)
    }

    /// The datagram in which `from` would send `packet` to us.
    fn datagram(from: u8, packet: &[u8]) -> Vec<u8> {
        let family = Family::of_packet(packet).unwrap_or(Family::V4);
        let header = Self::of(from).header(family, mac(US));
        [header.as_slice(), packet].concat()
    }
}

impl Backend for RawUdp {
    const PORT: u16 = 8285;

    fn of(_node: u8) -> Self {
        RawUdp
    }
}

impl Backend for Vxlan {
    const PORT: u16 = 8472;

    fn of(node: u8) -> Self {
        Vxlan {
            vni: 1,
            macs: OwnMacs {
                v4: mac(node),
                v6: mac(node),
            },
            strict: false,
        }
    }
}

/// What the inbound stage made of some datagrams.
pub(super) struct Received {
    pub(super) delivered: Vec<Vec<u8>>,
    pub(super) counts: Direction,
}

/// One inner packet that the outbound stage sends, as one datagram or several.
pub(super) struct Sent {
    pub(super) to: SocketAddr,
    pub(super) tos: u8,
    pub(super) datagrams: Vec<Vec<u8>>,
}

/// What the outbound stage made of some packets.
pub(super) struct Worked {
    pub(super) sent: Vec<Sent>,
    /// ICMP errors for the device.
    pub(super) errors: Vec<Vec<u8>>,
    pub(super) counts: Direction,
}

/// One node's stages and tables.
pub(super) struct Bed<E> {
    pub(super) forwarding: Forwarding,
    pub(super) inbound: Inbound<E>,
    pub(super) outbound: Outbound,
    /// The virtual clock.
    pub(super) now: Instant,
}

impl<E: Backend> Bed<E> {
    /// The test bed as our own node has it.
    pub(super) fn new() -> Self {
        Self::at(US)
    }

    /// The test bed as `here` has it.
    pub(super) fn at(here: u8) -> Self {
        let ip = |ip| match ip {
            IpAddr::V4(ip) => (Some(ip), None),
            IpAddr::V6(ip) => (None, Some(ip)),
        };
        let endpoint = |node| Endpoint {
            v4: ip(public(node, Family::V4)).0,
            v6: ip(public(node, Family::V6)).1,
        };
        let lease = |node| {
            [
                format!("10.244.{node}.0/24").parse().unwrap(),
                format!("fd00:10:244:{node}::/64").parse().unwrap(),
            ]
        };
        let mut tables = Tables::builder();
        tables.own(endpoint(here));
        for prefix in lease(here) {
            tables.local(prefix);
        }
        for node in [US, PEER, THIRD].into_iter().filter(|node| *node != here) {
            let peer = tables.peer(endpoint(node), Arc::default());
            for (family, prefix) in FAMILIES.into_iter().zip(lease(node)) {
                let hop = NextHop {
                    peer,
                    to: (public(node, family), E::PORT).into(),
                    mtu: UNDERLAY_MTU - E::overhead(family),
                    header: E::of(here).header(family, mac(node)),
                };
                tables.route(prefix, hop);
            }
        }
        let options = Options {
            overlay_v4: ip(overlay(here, Family::V4)).0,
            overlay_v6: ip(overlay(here, Family::V6)).1,
            copy_ecn: true,
            copy_dscp: false,
            accept_node_source: false,
            icmp_rate: 1000,
            path_mtu: E::device_mtu(),
            ipv6_path_mtu: E::device_mtu(),
        };
        Bed {
            forwarding: Forwarding {
                tables: tables.build(),
                options,
            },
            inbound: Inbound::new(E::of(here), E::PORT, Takes::Finished, Sums::PORTABLE),
            outbound: Outbound::new(E::PORT, Sums::PORTABLE),
            now: Instant::now() + Duration::from_secs(3600),
        }
    }

    /// A datagram comes from the outer address `source` with the outer ToS byte `tos`.
    pub(super) fn receive(&mut self, source: IpAddr, tos: u8, datagram: &[u8]) -> Received {
        self.receive_all(&[(source, tos, datagram.to_vec())])
    }

    /// Datagrams come in one batch. The balance is checked.
    pub(super) fn receive_all(&mut self, datagrams: &[(IpAddr, u8, Vec<u8>)]) -> Received {
        let (mut batch, mut out) = (Batch::new(datagrams.len(), 0), Outbox::default());
        for (source, tos, datagram) in datagrams {
            fill(&mut batch, datagram);
            let frame = batch.frame_mut(batch.len() - 1);
            (frame.source, frame.tos) = (Some(*source), *tos);
        }
        let counts = Direction::default();
        self.inbound
            .run(&mut batch, &self.forwarding, &counts, &mut out);
        let delivered: Vec<_> = out
            .deliveries()
            .iter()
            .map(|delivery| out.bytes(&batch, &delivery.place).to_vec())
            .collect();
        assert!(
            out.parcels().is_empty(),
            "received packets are never sent on"
        );
        assert!(out.deliveries().iter().all(|d| d.peer.is_some()));
        assert_eq!(counts.queued(), delivered.len() as i128);
        assert!(counts.packets_in.get() >= datagrams.len() as u64);
        Received { delivered, counts }
    }

    /// The kernel hands us a packet through the device.
    pub(super) fn send(&mut self, packet: &[u8]) -> Worked {
        self.send_all(&[packet.to_vec()])
    }

    /// The kernel hands us packets in one batch. The balance is checked.
    pub(super) fn send_all(&mut self, packets: &[Vec<u8>]) -> Worked {
        let (mut batch, mut out) = (
            Batch::new(packets.len(), encap::MAX_HEADER),
            Outbox::default(),
        );
        for packet in packets {
            fill(&mut batch, packet);
        }
        let counts = Direction::default();
        self.outbound
            .run(&mut batch, &self.forwarding, &counts, self.now, &mut out);
        let sent: Vec<_> = out
            .parcels()
            .iter()
            .map(|parcel| Sent {
                to: parcel.to,
                tos: parcel.tos,
                datagrams: out.datagrams(&batch, parcel).map(<[u8]>::to_vec).collect(),
            })
            .collect();
        let errors: Vec<_> = out
            .deliveries()
            .iter()
            .map(|delivery| out.bytes(&batch, &delivery.place).to_vec())
            .collect();
        assert!(out.deliveries().iter().all(|d| d.peer.is_none()));
        assert_eq!(counts.queued(), sent.len() as i128);
        assert_eq!(counts.packets_in.get(), packets.len() as u64);
        assert_eq!(counts.icmp_sent.get(), errors.len() as u64);
        assert!(sent.iter().all(|sent| !sent.datagrams.is_empty()));
        Worked {
            sent,
            errors,
            counts,
        }
    }
}

/// Reads a packet into the batch's next frame.
pub(super) fn fill(batch: &mut Batch, bytes: &[u8]) {
    let filled = batch.fill(|room, _| {
        room[..bytes.len()].copy_from_slice(bytes);
        Ok::<_, ()>(Some(bytes.len()))
    });
    assert_eq!(filled, Ok(true));
}

/// An IP packet to be made; every field can be changed before.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) tos: u8,
    pub(super) ttl: u8,
    pub(super) id: u16,
    pub(super) dont_fragment: bool,
}

impl Packet {
    /// From one node's pod to another's.
    pub(super) fn between(from: u8, to: u8, family: Family) -> Self {
        Packet {
            src: pod(from, family),
            dst: pod(to, family),
            tos: 0,
            ttl: 63,
            id: 0x1234,
            dont_fragment: true,
        }
    }

    /// Its IP header and no payload.
    pub(super) fn headers(&self) -> IpHeaders {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut ip =
                    Ipv4Header::new(0, self.ttl, IpNumber::UDP, src.octets(), dst.octets())
                        .unwrap();
                ip.dscp = (self.tos >> 2).try_into().unwrap();
                ip.ecn = (self.tos & 3).try_into().unwrap();
                ip.identification = self.id;
                ip.dont_fragment = self.dont_fragment;
                IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default())
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => IpHeaders::Ipv6(
                Ipv6Header {
                    traffic_class: self.tos,
                    flow_label: Ipv6FlowLabel::ZERO,
                    payload_length: 0,
                    next_header: IpNumber::UDP,
                    hop_limit: self.ttl,
                    source: src.octets(),
                    destination: dst.octets(),
                },
                etherparse::Ipv6Extensions::default(),
            ),
            mixed => panic!("{mixed:?} are of two families"),
        }
    }

    fn builder(&self) -> PacketBuilderStep<IpHeaders> {
        PacketBuilder::ip(self.headers())
    }

    /// A UDP datagram to `port`.
    pub(super) fn udp(&self, port: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let step = self.builder().udp(40_000, port);
        step.write(&mut bytes, payload).unwrap();
        bytes
    }

    /// A TCP segment with PSH, ACK and options.
    pub(super) fn tcp(&self, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let timestamps = etherparse::TcpOptionElement::Timestamp(7, 9);
        let step = self.builder().tcp(40_000, 5201, 1_000_000, 64_000);
        let step = step.psh().ack(77).options(&[timestamps]).unwrap();
        step.write(&mut bytes, payload).unwrap();
        bytes
    }

    /// An ICMP or ICMPv6 echo request.
    pub(super) fn echo(&self, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.src {
            IpAddr::V4(_) => {
                let step = self.builder().icmpv4_echo_request(1, 2);
                step.write(&mut bytes, payload).unwrap();
            }
            IpAddr::V6(_) => {
                let step = self.builder().icmpv6_echo_request(1, 2);
                step.write(&mut bytes, payload).unwrap();
            }
        }
        bytes
    }

    /// Any protocol, the payload as it is. The builder would want to know an extension header by its parts.
    pub(super) fn raw(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        const EXPERIMENT: IpNumber = IpNumber(253);
        let mut bytes = Vec::new();
        let step = self.builder();
        step.write(&mut bytes, EXPERIMENT, payload).unwrap();
        match self.src {
            IpAddr::V4(_) => {
                bytes[9] = protocol;
                encap::ipv4::fill_checksum(&mut bytes[..20]);
            }
            IpAddr::V6(_) => bytes[6] = protocol,
        }
        bytes
    }
}

/// Bytes that differ from place to place.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i * 7 + i / 251).to_le_bytes()[0])
        .collect()
}

/// Parses an IP packet with etherparse and checks that every checksum in it is right.
pub(super) fn verified(packet: &[u8]) -> PacketHeaders<'_> {
    let parsed = PacketHeaders::from_ip_slice(packet).unwrap();
    let transport = parsed.transport.clone().map(|mut transport| {
        let payload = parsed.payload.slice();
        match parsed.net.as_ref().unwrap() {
            NetHeaders::Ipv4(ip, _) => transport.update_checksum_ipv4(ip, payload).unwrap(),
            NetHeaders::Ipv6(ip, _) => transport.update_checksum_ipv6(ip, payload).unwrap(),
            NetHeaders::Arp(_) => unreachable!(),
        }
        transport
    });
    assert_eq!(parsed.transport, transport, "transport checksum");
    if let Some(NetHeaders::Ipv4(ip, _)) = &parsed.net {
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        assert_eq!(usize::from(ip.total_len), packet.len());
    }
    parsed
}
