//! Damage inside datagrams without outer checksums, or under right ones: never delivered as good. Packets are joined on
//! the way up, and the kernel finishes the superpacket's checksum, so a damaged one must not get into it.
//!
//! The test itself is the peer: it speaks VXLAN from node 2's socket, and TCP inside.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use encap::Encapsulation;
use encap::Family::{self, V4, V6};
use encap::{MacAddr, OwnMacs, Vxlan};
use etherparse::{
    IpHeaders, IpNumber, PacketBuilder, PacketBuilderStep, SlicedPacket, TransportSlice,
};
use integration::bed::{Backend, Bed, Daemon, Node, Underlay};
use integration::probe;
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use overlayd::config::Engine;
use overlayd::lab::traffic::Stream;

use crate::{count, protocol_counter};

const PORT: u16 = 8472;
const INNER_PORT: u16 = 40_000;
const SIZE: usize = 1000;
const PACKETS: usize = 30;
const DAMAGED: [usize; 3] = [5, 6, 20];

/// Options of sending sockets (include/uapi/asm-generic/socket.h, include/uapi/linux/udp.h).
const SOL_SOCKET: i32 = 1;
const SO_NO_CHECK: i32 = 11;
const IPPROTO_UDP: i32 = 17;
const UDP_NO_CHECK6_TX: i32 = 101;

/// How the packets cross the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outer {
    /// One by one, without UDP checksum.
    Unsummed,
    /// As one train, under right checksums.
    Train,
}

/// Node 2, as far as node 1 can tell.
struct Peer {
    socket: UdpSocket,
    header: Vec<u8>,
    at: SocketAddr,
    ours: IpAddr,
    theirs: IpAddr,
    outer: Outer,
}

impl Peer {
    fn new(bed: &Bed, daemon: &Daemon, family: Family, outer: Outer) -> Self {
        let (one, two) = (bed.node(1), bed.node(2));
        let own = (two.public_ip(family), PORT);
        let socket = probe::within(two.netns(), || UdpSocket::bind(own));
        socket
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        if outer == Outer::Unsummed {
            let (level, option) = match family {
                V4 => (SOL_SOCKET, SO_NO_CHECK),
                V6 => (IPPROTO_UDP, UDP_NO_CHECK6_TX),
            };
            overlayd::sys::socket::set_int(&socket, level, option, 1).unwrap();
        }
        let mac = daemon.status()["lease"]["vtep_mac"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        let own = MacAddr([2, 0, 0, 0, 0, 2]);
        let vxlan = Vxlan {
            vni: 1,
            macs: OwnMacs { v4: own, v6: own },
            strict: false,
        };
        Peer {
            socket,
            header: vxlan.header(family, mac).as_slice().to_vec(),
            at: (one.public_ip(family), PORT).into(),
            ours: two.pod_ip(family),
            theirs: one.pod_ip(family),
            outer,
        }
    }

    fn ip(&self) -> PacketBuilderStep<IpHeaders> {
        match (self.ours, self.theirs) {
            (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ip(IpHeaders::Ipv4(
                etherparse::Ipv4Header::new(0, 64, IpNumber::TCP, from.octets(), to.octets())
                    .unwrap(),
                etherparse::Ipv4Extensions::default(),
            )),
            (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ip(IpHeaders::Ipv6(
                etherparse::Ipv6Header {
                    hop_limit: 64,
                    source: from.octets(),
                    destination: to.octets(),
                    ..etherparse::Ipv6Header::default()
                },
                etherparse::Ipv6Extensions::default(),
            )),
            _ => unreachable!("one family"),
        }
    }

    fn udp(&self, port: u16, data: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        let step = self.ip().udp(INNER_PORT, port);
        step.write(&mut packet, data).unwrap();
        packet
    }

    fn tcp(&self, port: u16, seq: u32, ack: Option<u32>, data: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        let step = self.ip().tcp(INNER_PORT, port, seq, 64_000);
        let step = match ack {
            Some(ack) => step.ack(ack),
            None => step.syn(),
        };
        step.write(&mut packet, data).unwrap();
        packet
    }

    fn send_one(&self, packet: &[u8]) {
        let datagram = [&self.header, packet].concat();
        self.socket.send_to(&datagram, self.at).unwrap();
    }

    /// Sends them so that one batch of the daemon holds them all.
    fn send(&self, daemon: &Daemon, packets: &[Vec<u8>]) {
        match self.outer {
            Outer::Unsummed => {
                daemon.signal(Signal::SIGSTOP);
                packets.iter().for_each(|packet| self.send_one(packet));
                daemon.signal(Signal::SIGCONT);
            }
            Outer::Train => {
                let size = self.header.len() + packets[0].len();
                let datagrams = packets
                    .iter()
                    .map(|packet| [&self.header, &packet[..]].concat());
                let all = datagrams.collect::<Vec<_>>().concat();
                setsockopt(&self.socket, UdpGsoSegment, &i32::try_from(size).unwrap()).unwrap();
                assert_eq!(self.socket.send_to(&all, self.at).unwrap(), all.len());
                setsockopt(&self.socket, UdpGsoSegment, &0).unwrap();
            }
        }
    }

    /// The sequence number in the other side's next SYN.
    fn await_syn(&self) -> u32 {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let len = self.socket.recv(&mut buffer).unwrap();
            let packet = SlicedPacket::from_ip(&buffer[self.header.len()..len]).unwrap();
            match packet.transport {
                Some(TransportSlice::Tcp(tcp)) if tcp.syn() && tcp.ack() => {
                    return tcp.sequence_number();
                }
                _ => {}
            }
        }
    }
}

/// One bit of the payload is wrong; the checksum is that of the right one.
fn damaged(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    *packet.last_mut().unwrap() ^= 1;
    packet
}

fn with_damage(good: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let packets = good.iter().enumerate();
    let packets = packets.map(|(number, packet)| {
        if DAMAGED.contains(&number) {
            damaged(packet)
        } else {
            packet.clone()
        }
    });
    packets.collect()
}

/// A stream with damaged segments, which come again whole: the application reads the stream as it was.
fn stream(peer: &Peer, daemon: &Daemon, node: &Node) {
    let listener = probe::within(node.pod(), || TcpListener::bind((peer.theirs, 0)));
    let port = listener.local_addr().unwrap().port();
    let first = 1_000_000;
    peer.send_one(&peer.tcp(port, first, None, &[]));
    let ack = Some(peer.await_syn().wrapping_add(1));
    let data = Stream::bytes(1, PACKETS * SIZE);
    let mut seq = first + 1;
    let mut good = Vec::new();
    for data in data.chunks(SIZE) {
        good.push(peer.tcp(port, seq, ack, data));
        seq += u32::try_from(data.len()).unwrap();
    }
    peer.send_one(&peer.tcp(port, first + 1, ack, &[]));
    let (mut connection, _) = listener.accept().unwrap();
    connection
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    peer.send(daemon, &with_damage(&good));
    // What a TCP would do in time.
    for number in DAMAGED {
        peer.send_one(&good[number]);
    }
    let mut read = vec![0; data.len()];
    connection.read_exact(&mut read).unwrap();
    assert!(read == data, "another stream was read than was sent");
}

fn datagrams(peer: &Peer, daemon: &Daemon, node: &Node) {
    let receiver = probe::within(node.pod(), || UdpSocket::bind((peer.theirs, 0)));
    receiver
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let port = receiver.local_addr().unwrap().port();
    let all = Stream::bytes(2, PACKETS * SIZE);
    let good: Vec<_> = all.chunks(SIZE).map(|data| peer.udp(port, data)).collect();
    peer.send(daemon, &with_damage(&good));
    let mut buffer = vec![0; 1 << 16];
    for (number, data) in all.chunks(SIZE).enumerate() {
        if !DAMAGED.contains(&number) {
            let len = receiver
                .recv(&mut buffer)
                .unwrap_or_else(|error| panic!("{number}: {error}"));
            assert!(buffer[..len] == *data, "datagram {number}");
        }
    }
    let more = receiver.recv(&mut buffer);
    assert_eq!(more.unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

fn never_good(engine: Engine, outer: Outer) {
    let bed = crate::bed(2, Backend::Vxlan, Underlay::Dual);
    let config = bed.node(1).config(Backend::Vxlan);
    let config = config
        .set("datapath.engine", engine.name())
        .set("datapath.udp6-zero-checksum", true);
    let daemon = Daemon::start(bed.node(1), &config);
    let pod = bed.node(1).pod();
    let bad = DAMAGED.len() as u64;
    for (family, udp) in [(V4, "Udp"), (V6, "Udp6")] {
        let peer = Peer::new(&bed, &daemon, family, outer);
        let tcp = || protocol_counter(pod, "snmp", "Tcp", "InCsumErrors");
        let before = tcp();
        stream(&peer, &daemon, bed.node(1));
        // The pod's own kernel found every one of them.
        assert_eq!(tcp() - before, bad, "{family:?}");
        datagrams(&peer, &daemon, bed.node(1));
        if udp == "Udp" {
            assert_eq!(protocol_counter(pod, "snmp", udp, "InCsumErrors"), bad);
        }
    }
    let joined = count(&daemon.status(), "inbound", "coalesced");
    assert_eq!(
        joined > 4 * 15,
        engine == Engine::Batched,
        "{joined} were joined"
    );
    daemon.assert_balanced(&[]);
    daemon.stop();
}

#[test]
fn damage_without_outer_checksum_batched() {
    never_good(Engine::Batched, Outer::Unsummed);
}

#[test]
fn damage_without_outer_checksum_classic() {
    never_good(Engine::Classic, Outer::Unsummed);
}

#[test]
fn damage_in_a_train_batched() {
    never_good(Engine::Batched, Outer::Train);
}
