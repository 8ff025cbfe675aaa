//! What real flanneld nodes put on the wire, replayed into our receive side and made again by our send side.
//!
//! The tables come from the leases that the same nodes wrote to etcd. Each node of a capture is taken in turn as
//! the receiving and as the sending one. Three readings of the same packets must agree: ours, etherparse's and,
//! where it is installed, tshark's.
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Instant;

use encap::{Encapsulation, Family, OwnMacs, RawUdp, Sums, Vxlan};
use etherparse::{
    NetHeaders, NetSlice, PacketBuilder, PacketHeaders, SlicedPacket, TransportHeader,
    TransportSlice,
};
use integration::pcap::{self, Capture};
use integration::tshark::{self, Layer};
use overlayd::datapath::batch::{Batch, Outbox};
use overlayd::datapath::counters::Direction;
use overlayd::datapath::inbound::{Inbound, Takes};
use overlayd::datapath::outbound::Outbound;
use overlayd::datapath::{Forwarding, Options};
use overlayd::lease::sync::{Ground, KnownPeers, sync};
use overlayd::lease::{self, Lease};

/// The MTU of the veth pair between the nodes.
const UNDERLAY_MTU: u16 = 1500;

/// One recorded backend.
struct Fixture {
    name: &'static str,
    ground: Ground,
    leases: Vec<Lease>,
    capture: Capture,
    path: PathBuf,
}

impl Fixture {
    fn load(name: &'static str, port: u16) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("fixtures/flannel-0.20.2")
            .join(name);
        let path = folder.join("underlay.pcap");
        let keys = std::fs::read_to_string(folder.join("etcd.json")).unwrap();
        let (mut leases, mut config) = (Vec::new(), serde_json::Value::Null);
        // A stream of objects, one for each key; the values are JSON in a string.
        for key in serde_json::Deserializer::from_str(&keys).into_iter::<serde_json::Value>() {
            let key = key.unwrap();
            let mut value: serde_json::Value =
                serde_json::from_str(key["value"].as_str().unwrap()).unwrap();
            let Some((_, subnets)) = key["key"].as_str().unwrap().split_once("/subnets/") else {
                config = value;
                continue;
            };
            // `10.244.5.0-24&fc00:0:0:61::-64`: what a lease file has in the value.
            for subnet in subnets.split('&') {
                let field = if subnet.contains(':') {
                    "IPv6Subnet"
                } else {
                    "Subnet"
                };
                value[field] = subnet.replace('-', "/").into();
            }
            leases.push(value);
        }
        let leases = serde_json::Value::from(leases).to_string();
        let prefix = |field: &str| config[field].as_str().map(str::to_owned);
        Fixture {
            name,
            ground: Ground {
                network: fdb::Network {
                    v4: prefix("Network").map(|net| net.parse().unwrap()),
                    v6: prefix("IPv6Network").map(|net| net.parse().unwrap()),
                },
                public: fdb::Endpoint::default(),
                vni: config["Backend"]["VNI"]
                    .as_u64()
                    .map(|vni| vni.try_into().unwrap()),
                port,
                underlay_mtu: UNDERLAY_MTU,
                routes: Vec::new(),
            },
            leases: lease::parse(leases.as_bytes()).unwrap(),
            capture: Capture::parse(&std::fs::read(&path).unwrap()).unwrap(),
            path,
        }
    }

    /// The lease of the node with this public IP.
    fn lease(&self, public: IpAddr) -> &Lease {
        let is_its = |lease: &&Lease| lease.endpoint().ips().any(|ip| ip == public);
        self.leases.iter().find(is_its).unwrap()
    }

    /// The datagrams to our port, as etherparse reads them. The rest is ARP, ICMPv6 and the like.
    fn flights(&self) -> Vec<Flight> {
        assert_eq!(self.capture.link, pcap::ETHERNET);
        let frames = self.capture.frames.iter().zip(1..);
        frames
            .filter_map(|(frame, number)| Flight::read(frame, number, self.ground.port))
            .collect()
    }
}

/// One datagram on the wire.
struct Flight {
    frame: usize,
    source: IpAddr,
    to: SocketAddr,
    tos: u8,
    ttl: u8,
    source_port: u16,
    payload: Vec<u8>,
}

impl Flight {
    fn read(frame: &[u8], number: usize, port: u16) -> Option<Self> {
        let sliced = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(TransportSlice::Udp(udp)) = sliced.transport else {
            return None;
        };
        let (source, destination, tos, ttl) = match sliced.net? {
            NetSlice::Ipv4(ip) => {
                let ip = ip.header();
                assert!(!ip.more_fragments() && ip.fragments_offset().value() == 0);
                let tos = ip.dcp().value() << 2 | ip.ecn().value();
                (
                    ip.source_addr().into(),
                    ip.destination_addr().into(),
                    tos,
                    ip.ttl(),
                )
            }
            NetSlice::Ipv6(ip) => {
                let ip = ip.header();
                let (source, destination) = (ip.source_addr(), ip.destination_addr());
                (
                    source.into(),
                    destination.into(),
                    ip.traffic_class(),
                    ip.hop_limit(),
                )
            }
            NetSlice::Arp(_) => return None,
        };
        (udp.destination_port() == port).then(|| Flight {
            frame: number,
            source,
            to: SocketAddr::new(destination, port),
            tos,
            ttl,
            source_port: udp.source_port(),
            payload: udp.payload().to_vec(),
        })
    }

    /// The inner packet as etherparse finds it.
    fn inner<E: Encapsulation>(&self) -> &[u8] {
        let (sliced, start) = if E::NAME == "vxlan" {
            let frame = &self.payload[8..];
            (SlicedPacket::from_ethernet(frame).unwrap(), 8 + 14)
        } else {
            (SlicedPacket::from_ip(&self.payload).unwrap(), 0)
        };
        let len = match sliced.net.unwrap() {
            NetSlice::Ipv4(ip) => usize::from(ip.header().total_len()),
            NetSlice::Ipv6(ip) => 40 + usize::from(ip.header().payload_length()),
            NetSlice::Arp(_) => panic!("frame {} is ARP", self.frame),
        };
        &self.payload[start..start + len]
    }
}

/// A node's stages over tables made of the fixture's leases.
struct Node<E> {
    forwarding: Forwarding,
    inbound: Inbound<E>,
    outbound: Outbound,
    batch: Batch,
    out: Outbox,
    received: Direction,
    sent: Direction,
    /// The inner packets that came, and how many datagrams they came in.
    delivered: u64,
}

impl<E: Encapsulation> Node<E> {
    fn new(fixture: &Fixture, public: IpAddr, encapsulation: E) -> Self {
        let lease = fixture.lease(public);
        let ground = Ground {
            public: lease.endpoint(),
            ..fixture.ground.clone()
        };
        let known = KnownPeers::default();
        let synced = sync(&ground, &fixture.leases, &encapsulation, &known).unwrap();
        assert_eq!(synced.objections, []);
        let device_mtu = UNDERLAY_MTU - E::overhead(Family::V4);
        let options = Options {
            overlay_v4: lease.subnet.map(|net| net.network()),
            overlay_v6: lease.ipv6_subnet.map(|net| net.network()),
            copy_ecn: true,
            copy_dscp: false,
            accept_node_source: false,
            icmp_rate: 1000,
            path_mtu: device_mtu,
            ipv6_path_mtu: device_mtu,
        };
        Node {
            forwarding: Forwarding {
                tables: synced.tables,
                options,
            },
            inbound: Inbound::new(encapsulation, ground.port, Takes::Finished, Sums::PORTABLE),
            outbound: Outbound::new(ground.port, Sums::PORTABLE),
            batch: Batch::new(1, encap::MAX_HEADER),
            out: Outbox::default(),
            received: Direction::default(),
            sent: Direction::default(),
            delivered: 0,
        }
    }

    fn load(&mut self, bytes: &[u8]) {
        self.batch.clear();
        self.out.clear();
        let filled = self.batch.fill(|room, _| {
            room[..bytes.len()].copy_from_slice(bytes);
            anyhow::Ok(Some(bytes.len()))
        });
        assert!(filled.unwrap());
    }

    /// The packets that one datagram of the capture brings.
    fn receive(&mut self, flight: &Flight) -> Vec<Vec<u8>> {
        self.load(&flight.payload);
        let frame = self.batch.frame_mut(0);
        (frame.source, frame.tos) = (Some(flight.source), flight.tos);
        let (batch, out) = (&mut self.batch, &mut self.out);
        self.inbound
            .run(batch, &self.forwarding, &self.received, out);
        let deliveries = out.deliveries().iter();
        let packets: Vec<_> = deliveries
            .map(|delivery| out.bytes(batch, &delivery.place).to_vec())
            .collect();
        self.delivered += packets.len() as u64;
        packets
    }

    /// The one datagram in which we would send a packet, with its destination and its outer ToS.
    fn send(&mut self, packet: &[u8]) -> (SocketAddr, u8, Vec<u8>) {
        self.load(packet);
        let (batch, out) = (&mut self.batch, &mut self.out);
        self.outbound
            .run(batch, &self.forwarding, &self.sent, Instant::now(), out);
        let [parcel] = out.parcels() else {
            panic!(
                "{} parcels, {} errors",
                out.parcels().len(),
                out.deliveries().len()
            );
        };
        let datagrams: Vec<_> = out.datagrams(batch, parcel).collect();
        let [datagram] = datagrams[..] else {
            panic!("{} datagrams", datagrams.len());
        };
        (parcel.to, parcel.tos, datagram.to_vec())
    }
}

/// Parses an inner packet with etherparse; says whether the transport checksum is right. The IPv4 header's must be.
fn parse(packet: &[u8]) -> (PacketHeaders<'_>, bool) {
    let parsed = PacketHeaders::from_ip_slice(packet).unwrap();
    let mut transport = parsed.transport.clone().unwrap();
    let payload = parsed.payload.slice();
    match parsed.net.as_ref().unwrap() {
        NetHeaders::Ipv4(ip, _) => {
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            transport.update_checksum_ipv4(ip, payload).unwrap();
        }
        NetHeaders::Ipv6(ip, _) => transport.update_checksum_ipv6(ip, payload).unwrap(),
        NetHeaders::Arp(_) => unreachable!(),
    }
    let right = parsed.transport.as_ref() == Some(&transport);
    (parsed, right)
}

/// TTL, identification and flow label of a packet: what an overlay that is no hop leaves alone.
fn untouched(net: Option<&NetHeaders>) -> (u8, u16, u32) {
    match net.unwrap() {
        NetHeaders::Ipv4(ip, _) => (ip.time_to_live, ip.identification, 0),
        NetHeaders::Ipv6(ip, _) => (ip.hop_limit, 0, ip.flow_label.value()),
        NetHeaders::Arp(_) => unreachable!(),
    }
}

fn tcp(parsed: &PacketHeaders) -> etherparse::TcpHeader {
    match parsed.transport.clone() {
        Some(TransportHeader::Tcp(tcp)) => tcp,
        other => panic!("{other:?} is not TCP"),
    }
}

/// `delivered` is what the captured packet says, cut to size if it was a superpacket.
fn assert_same(captured: &[u8], delivered: &[Vec<u8>], frame: usize) {
    let (whole, finished) = parse(captured);
    let (ttl, id, label) = untouched(whole.net.as_ref());
    if let [packet] = delivered {
        let (ours, right) = parse(packet);
        assert!(right, "frame {frame}: our transport checksum");
        assert_eq!(packet == captured, finished, "frame {frame}");
        // All but the checksum is the same even if that had to be finished.
        assert_eq!(ours.net, whole.net, "frame {frame}");
        assert_eq!(ours.payload.slice(), whole.payload.slice(), "frame {frame}");
        if !finished {
            let (mut ours, whole) = (tcp(&ours), tcp(&whole));
            ours.checksum = whole.checksum;
            assert_eq!(ours, whole, "frame {frame}");
        }
        return;
    }
    let (sent, mut joined) = (tcp(&whole), Vec::new());
    for (packet, index) in delivered.iter().zip(0..) {
        let (part, right) = parse(packet);
        assert!(
            right,
            "frame {frame}: the transport checksum of part {index}"
        );
        let id = if captured[0] >> 4 == 4 {
            id.wrapping_add(index)
        } else {
            0
        };
        assert_eq!(untouched(part.net.as_ref()), (ttl, id, label));
        let (ours, last) = (tcp(&part), usize::from(index) + 1 == delivered.len());
        let expected = etherparse::TcpHeader {
            sequence_number: sent
                .sequence_number
                .wrapping_add(u32::try_from(joined.len()).unwrap()),
            psh: sent.psh && last,
            fin: sent.fin && last,
            checksum: ours.checksum,
            ..sent.clone()
        };
        assert_eq!(ours, expected, "frame {frame}, part {index}");
        joined.extend_from_slice(part.payload.slice());
    }
    assert!(
        joined == whole.payload.slice(),
        "frame {frame}: the stream changed"
    );
}

/// Replays a whole capture: received by the node each datagram was for, sent again by the one it came from.
/// Returns how many datagrams there were, how many were split, how many unfinished checksums completed.
fn replay<E: Encapsulation>(fixture: &Fixture, encapsulation: impl Fn(&Lease) -> E) -> [u64; 3] {
    let flights = fixture.flights();
    let mut nodes: Vec<(&Lease, Node<E>)> = fixture
        .leases
        .iter()
        .map(|lease| {
            let public = lease.endpoint().ips().next().unwrap();
            (lease, Node::new(fixture, public, encapsulation(lease)))
        })
        .collect();
    let place = |ip: IpAddr| {
        let lease = fixture.lease(ip);
        fixture
            .leases
            .iter()
            .position(|other| other == lease)
            .unwrap()
    };
    let (mut inner, mut outer) = (Vec::new(), Vec::new());
    for flight in &flights {
        let delivered = nodes[place(flight.to.ip())].1.receive(flight);
        assert!(
            !delivered.is_empty(),
            "{} frame {} was dropped",
            fixture.name,
            flight.frame
        );
        assert_same(flight.inner::<E>(), &delivered, flight.frame);
        let sender = &mut nodes[place(flight.source)].1;
        let mut frames = Vec::new();
        for packet in &delivered {
            let (to, tos, datagram) = sender.send(packet);
            assert_eq!((to, tos), (flight.to, flight.tos), "frame {}", flight.frame);
            let (header, sent) = datagram.split_at(E::HEADER_LEN);
            assert_eq!(
                header,
                &flight.payload[..E::HEADER_LEN],
                "frame {}",
                flight.frame
            );
            assert_eq!(sent, packet, "frame {}", flight.frame);
            frames.push(on_the_wire(flight, &datagram));
        }
        inner.push((flight.frame, delivered));
        outer.push((flight.frame, frames));
    }
    let mut summary = [flights.len() as u64, 0, 0];
    for (lease, node) in &nodes {
        for counts in [&node.received, &node.sent] {
            assert_eq!(counts.dropped_total(), 0, "{} {lease}", fixture.name);
        }
        assert!(node.delivered > 0, "{lease} received nothing");
        assert_eq!(node.received.queued(), i128::from(node.delivered));
        assert_eq!(node.received.reserved_bits.get(), 0);
        summary[1] += node.received.split.get();
        summary[2] += node.received.checksums_completed.get();
    }
    compare_with_tshark(fixture, E::NAME, &inner, &outer);
    summary
}

/// Our datagram as the kernel would send it from the same socket.
fn on_the_wire(flight: &Flight, datagram: &[u8]) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let step = match (flight.source, flight.to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(to)) => {
            ethernet.ipv4(source.octets(), to.octets(), flight.ttl)
        }
        (IpAddr::V6(source), IpAddr::V6(to)) => {
            ethernet.ipv6(source.octets(), to.octets(), flight.ttl)
        }
        mixed => panic!("{mixed:?} are of two families"),
    };
    let mut frame = Vec::new();
    step.udp(flight.source_port, flight.to.port())
        .write(&mut frame, datagram)
        .unwrap();
    frame
}

/// The fields by which tshark names a packet, and which a capture and we must agree on in all layers. The last two
/// are of the last part of a superpacket and of all its parts together; the others are of the first.
const FIELDS: &str = "ip.src ip.dst ip.ttl ip.dsfield ip.proto ipv6.src ipv6.dst ipv6.hlim ipv6.tclass ipv6.nxt \
    udp.dstport vxlan.flags vxlan.vni icmp.type icmp.seq icmp.checksum icmpv6.type icmpv6.echo.sequence_number \
    icmpv6.checksum tcp.srcport tcp.dstport tcp.seq_raw tcp.ack_raw tcp.window_size_value tcp.options tcp.flags \
    tcp.payload";
/// What the kernel may choose anew in the outer header, but nobody in the inner one.
const INNER_FIELDS: &str = "ip.id ip.flags ipv6.flow";
/// Those of the tunnel, which are not there any more when a packet is delivered.
const TUNNEL_FIELDS: &[&str] = &["udp.dstport", "vxlan.flags", "vxlan.vni"];
/// Each is 0 if bad, 1 if good, 2 if not verified.
const CHECKSUMS: &[&str] = &[
    "ip.checksum.status",
    "udp.checksum.status",
    "tcp.checksum.status",
    "icmp.checksum.status",
    "icmpv6.checksum.status",
];

/// The parts of a superpacket as the one packet they were.
fn joined(parts: &[Vec<String>]) -> Vec<String> {
    let mut whole = parts[0].clone();
    let (payload, flags) = (whole.len() - 1, whole.len() - 2);
    whole[flags] = parts[parts.len() - 1][flags].clone();
    whole[payload] = parts.iter().map(|part| part[payload].as_str()).collect();
    whole
}

/// tshark reads the same in the capture as in what we delivered and in what we sent, and finds no checksum wrong.
fn compare_with_tshark(
    fixture: &Fixture,
    backend: &str,
    inner: &[(usize, Vec<Vec<u8>>)],
    outer: &[(usize, Vec<Vec<u8>>)],
) {
    if !tshark::is_installed() {
        eprintln!(
            "{}: not compared with tshark's reading, for tshark is not installed",
            fixture.name
        );
        return;
    }
    let tunnel = match backend {
        "vxlan" => (fixture.ground.port, "vxlan"),
        _ => (fixture.ground.port, "ip"),
    };
    let folder = tempfile::tempdir().unwrap();
    let outer_fields: Vec<_> = FIELDS.split_whitespace().collect();
    let inner_fields: Vec<_> = INNER_FIELDS
        .split_whitespace()
        .chain(outer_fields.clone())
        .collect();
    for (ours, link, layer, fields) in [
        (inner, pcap::RAW, Layer::Innermost, inner_fields),
        (outer, pcap::ETHERNET, Layer::All, outer_fields),
    ] {
        let captured = tshark::fields(&fixture.path, tunnel, layer, &fields).unwrap();
        assert_eq!(captured.len(), fixture.capture.frames.len());
        let file = folder.path().join(format!("{layer:?}.pcap"));
        let frames = ours.iter().flat_map(|(_, frames)| frames.clone()).collect();
        let capture = Capture { link, frames };
        std::fs::write(&file, capture.emit().unwrap()).unwrap();
        let read = tshark::fields(&file, tunnel, layer, &fields).unwrap();
        let mut read = read.into_iter();
        for (number, frames) in ours {
            let parts: Vec<_> = read.by_ref().take(frames.len()).collect();
            let theirs = &captured[number - 1];
            for ((field, ours), theirs) in fields.iter().zip(joined(&parts)).zip(theirs) {
                if layer == Layer::Innermost && TUNNEL_FIELDS.contains(field) {
                    assert_eq!(ours, "", "{} frame {number}: {field}", fixture.name);
                } else {
                    assert_eq!(&ours, theirs, "{} frame {number}: {field}", fixture.name);
                }
            }
        }
        for found in tshark::fields(&file, tunnel, Layer::All, CHECKSUMS).unwrap() {
            let all = || found.iter().flat_map(|status| status.split(','));
            assert!(
                all().all(|status| status != "0"),
                "{CHECKSUMS:?}: {found:?}"
            );
            assert!(
                all().any(|status| status == "1"),
                "{CHECKSUMS:?}: {found:?}"
            );
        }
    }
}

/// A node that has the MACs of its lease and the VNI of the fixture.
fn vxlan(fixture: &Fixture) -> impl Fn(&Lease) -> Vxlan {
    let vni = fixture.ground.vni.unwrap();
    move |lease| Vxlan {
        vni,
        macs: OwnMacs {
            v4: lease.vtep_mac(Family::V4),
            v6: lease.vtep_mac(Family::V6),
        },
        strict: true,
    }
}

// The numbers are those of tshark: datagrams to the port, those of more than the MTU, those with a TCP checksum that
// is wrong because nobody finished it (all TCP of the kernel's VXLAN device; flanneld's proxy reads finished ones).

#[test]
fn the_udp_backends_capture() {
    let fixture = Fixture::load("udp", 8285);
    assert_eq!(replay(&fixture, |_| RawUdp), [137, 0, 0]);
}

#[test]
fn the_vxlan_backends_capture() {
    let fixture = Fixture::load("vxlan", 8472);
    assert_eq!(replay(&fixture, vxlan(&fixture)), [51, 6, 45]);
}

#[test]
fn the_dual_stack_vxlan_backends_capture() {
    let fixture = Fixture::load("vxlan-dualstack", 8472);
    let flights = fixture.flights();
    let v6 = flights.iter().filter(|flight| flight.source.is_ipv6());
    assert_eq!(v6.count(), 6, "inner IPv6 travels between the public IPv6s");
    assert_eq!(replay(&fixture, vxlan(&fixture)), [63, 7, 51]);
}

/// The same datagrams from a host that is no node, and our own ones that come back, are dropped.
#[test]
fn a_capture_from_strangers_is_dropped_whole() {
    let fixture = Fixture::load("vxlan", 8472);
    let flights = fixture.flights();
    let own = vxlan(&fixture);
    for lease in &fixture.leases {
        let public = lease.endpoint().ips().next().unwrap();
        let mut node = Node::new(&fixture, public, own(lease));
        for flight in &flights {
            let source = if flight.source == public {
                public
            } else {
                "192.0.2.7".parse().unwrap()
            };
            let payload = flight.payload.clone();
            assert!(
                node.receive(&Flight {
                    source,
                    payload,
                    ..*flight
                })
                .is_empty()
            );
        }
        assert_eq!(node.received.dropped_total(), flights.len() as u64);
    }
}
