//! Traffic between two namespaces that must arrive whole.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use encap::Family;
use etherparse::{IpFragOffset, IpNumber, Ipv4Header, UdpHeader};
use overlayd::kernel::NetNs;
use overlayd::lab::traffic::{
    self, Fragmenting, PingOpts, Stream, TcpOpts, TcpServer, UdpEcho, UdpOpts, UdpReport,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::bed::Bed;

/// Bytes of the IP and UDP headers in front of a datagram's data.
pub fn headers(family: Family) -> usize {
    match family {
        Family::V4 => 28,
        Family::V6 => 48,
    }
}

/// Three pings, all answered.
///
/// # Panics
/// Otherwise.
pub fn ping(from: &NetNs, to: IpAddr) {
    let report = within(from, || traffic::ping(to, &PingOpts::default()));
    assert!(report.all_answered(), "{from} to {to}: {report:?}");
}

/// So many bytes each way, at once, on one connection: all arrive, and the server sees the client under `client_ip`.
///
/// # Panics
/// Otherwise.
pub fn tcp(client: &NetNs, client_ip: IpAddr, server: &NetNs, server_ip: IpAddr, bytes: u64) {
    let listener = within(server, || TcpServer::bind(SocketAddr::new(server_ip, 0)));
    let to = listener.local_addr();
    let opts = TcpOpts {
        seed: bytes,
        ..TcpOpts::default()
    };
    let transfer = within(client, || traffic::tcp_transfer(to, bytes, bytes, &opts));
    let session = listener
        .next_session(Duration::from_secs(5))
        .unwrap_or_else(|error| panic!("{client_ip} to {to}: {error}"));
    assert!(transfer.is_intact(), "{client_ip} to {to}: {transfer:?}");
    assert_eq!((transfer.arrived, transfer.received), (bytes, bytes));
    assert_eq!(session.client.ip(), client_ip, "as the server saw it");
    assert!(transfer.is_untranslated(), "{transfer:?}");
}

/// Datagrams of these sizes of data, there and back, one after the other: all arrive as they were sent.
///
/// # Panics
/// Otherwise.
pub fn udp(
    client: &NetNs,
    server: &NetNs,
    server_ip: IpAddr,
    sizes: impl IntoIterator<Item = usize> + Send,
    fragmenting: Fragmenting,
) {
    let report = udp_report(client, server, server_ip, sizes, fragmenting);
    assert!(
        report.sent > 0 && report.all_intact(),
        "{client} to {server_ip}: {report:?}"
    );
}

/// Datagrams of these sizes of data, there and back, one after the other: what became of them.
///
/// # Panics
/// If they cannot be sent at all.
pub fn udp_report(
    client: &NetNs,
    server: &NetNs,
    server_ip: IpAddr,
    sizes: impl IntoIterator<Item = usize> + Send,
    fragmenting: Fragmenting,
) -> UdpReport {
    let echo = within(server, || UdpEcho::bind(SocketAddr::new(server_ip, 0)));
    let to = echo.local_addr();
    let opts = UdpOpts {
        fragmenting,
        ..UdpOpts::default()
    };
    within(client, || traffic::udp_probe(to, sizes, &opts))
}

/// Datagrams that leave node 1's pod as hand-made fragments, the last one first, arrive in node 2's pod.
///
/// # Panics
/// Otherwise.
pub fn premade_fragments(bed: &Bed) {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (
        bed.node(1).pod_ip(Family::V4),
        bed.node(2).pod_ip(Family::V4),
    ) else {
        unreachable!("IPv4 was asked for");
    };
    let receiver = bed.node(2).run_in_pod(|| UdpSocket::bind((to, 0)));
    let receiver = receiver.expect("bind in the pod");
    let patience = Some(Duration::from_secs(2));
    receiver.set_read_timeout(patience).expect("set a timeout");
    let port = receiver.local_addr().expect("bound").port();
    let sender = bed.node(1).run_in_pod(|| {
        // IPPROTO_RAW: the IP header is ours.
        Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))
    });
    let sender = sender.expect("open a raw socket");
    // 1,400 bytes would fit whole; 16 bytes go as two fragments of which the first holds the UDP header alone.
    for (id, (size, cut)) in [(16, 8), (1400, 8), (1400, 704), (2000, 1000), (3999, 1304)]
        .into_iter()
        .enumerate()
    {
        let id = u16::try_from(id).expect("few") + 1;
        let data = Stream::bytes(id.into(), size);
        let mut fragments = fragments((from, to), port, id, &data, cut);
        fragments.reverse();
        for fragment in fragments {
            let address = SocketAddr::from((to, 0)).into();
            sender.send_to(&fragment, &address).expect("send");
        }
        let mut buffer = vec![0; 1 << 16];
        let (len, source) = receiver
            .recv_from(&mut buffer)
            .unwrap_or_else(|error| panic!("{size} bytes cut every {cut}: {error}"));
        assert_eq!(source, (from, 4000).into());
        assert!(buffer[..len] == data, "{size} bytes cut every {cut}");
    }
}

/// One UDP datagram as IPv4 fragments of `cut` bytes of payload.
fn fragments(
    (from, to): (Ipv4Addr, Ipv4Addr),
    port: u16,
    id: u16,
    data: &[u8],
    cut: usize,
) -> Vec<Vec<u8>> {
    let (from, to) = (from.octets(), to.octets());
    // Of the IP header the checksum takes the addresses alone.
    let addresses = Ipv4Header::new(0, 64, IpNumber::UDP, from, to).expect("it fits");
    let udp = UdpHeader::with_ipv4_checksum(4000, port, &addresses, data).expect("it fits");
    let payload = [&udp.to_bytes()[..], data].concat();
    let count = payload.len().div_ceil(cut);
    let pieces = payload.chunks(cut).enumerate();
    pieces
        .map(|(index, piece)| {
            let len = u16::try_from(piece.len()).expect("a fragment is small");
            let mut ip = Ipv4Header::new(len, 64, IpNumber::UDP, from, to).expect("it fits");
            ip.identification = id;
            ip.dont_fragment = false;
            ip.more_fragments = index + 1 < count;
            let offset = u16::try_from(index * cut / 8).expect("a small datagram");
            ip.fragment_offset = IpFragOffset::try_new(offset).expect("a small datagram");
            ip.header_checksum = ip.calc_header_checksum();
            [&ip.to_bytes()[..], piece].concat()
        })
        .collect()
}

/// Runs a command as an operator there would, its words parted by single spaces, and returns what it printed.
///
/// # Panics
/// If it cannot be started, or fails.
pub fn command(namespace: &NetNs, line: &str) -> String {
    let mut words = line.split(' ');
    let program = words.next().unwrap_or_default();
    let done = within(namespace, || Command::new(program).args(words).output());
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{line} in {namespace}: {error}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Runs `f` in the namespace and unwraps.
///
/// # Panics
/// If it fails.
pub fn within<T: Send>(namespace: &NetNs, f: impl FnOnce() -> std::io::Result<T> + Send) -> T {
    namespace
        .run(f)
        .and_then(|result| result)
        .unwrap_or_else(|error| panic!("in {namespace}: {error}"))
}
