//! TCP and UDP transfers.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use nix::errno::Errno;
use overlayd::lab::traffic::*;

use crate::{Bed, SERVER, ip};

#[test]
fn tcp_carries_both_ways_and_tells_the_client() {
    let bed = Bed::new();
    for dst in SERVER {
        let server = bed
            .server
            .run(|| TcpServer::bind((ip(dst), 0).into()))
            .unwrap()
            .unwrap();
        let opts = TcpOpts {
            seed: 42,
            ..TcpOpts::default()
        };
        let to = server.local_addr();
        for (up, down) in [(3_000_001, 5_000_003), (0, 0), (1, 0), (0, 1)] {
            let transfer = bed
                .client
                .run(|| tcp_transfer(to, up, down, &opts))
                .unwrap()
                .unwrap();
            let session = server.next_session(Duration::from_secs(5)).unwrap();
            assert!(
                transfer.is_intact() && transfer.is_untranslated(),
                "{transfer:?}"
            );
            assert_eq!(
                (transfer.sent, transfer.arrived, transfer.received),
                (up, up, down)
            );
            assert_eq!((session.received, session.sent), (up, down));
            assert_eq!(session.client, transfer.local);
            let bytes = |n| usize::try_from(n).unwrap();
            assert_eq!(
                transfer.arrived_digest,
                Digest::of(&Stream::bytes(42, bytes(up)))
            );
            assert_eq!(
                transfer.received_digest,
                Digest::of(&Stream::bytes(!42, bytes(down)))
            );
        }
        let sent = bed
            .client
            .run(|| tcp_send(to, 1000, &opts))
            .unwrap()
            .unwrap();
        let fetched = bed
            .client
            .run(|| tcp_fetch(to, 1000, &opts))
            .unwrap()
            .unwrap();
        assert_eq!(
            (sent.sent, sent.received, fetched.sent, fetched.received),
            (1000, 0, 0, 1000)
        );
        // Several at once.
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| bed.client.run(|| tcp_transfer(to, 200_000, 200_000, &opts)))
                })
                .collect();
            for client in clients {
                assert!(client.join().unwrap().unwrap().unwrap().is_intact());
            }
        });
        drop(server);
        let error = bed
            .client
            .run(|| tcp_send(to, 1, &opts))
            .unwrap()
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn tcp_notices_a_meddler() {
    let server = TcpServer::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let (to, via) = (server.local_addr(), proxy.local_addr().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut client, _) = proxy.accept().unwrap();
            let mut upstream = TcpStream::connect(to).unwrap();
            // The request, then 100 bytes of which the last is changed.
            let mut bytes = [0; 32 + 100];
            client.read_exact(&mut bytes).unwrap();
            bytes[131] ^= 1;
            upstream.write_all(&bytes).unwrap();
            io::copy(&mut upstream, &mut client).unwrap();
        });
        let transfer = tcp_send(via, 100, &TcpOpts::default()).unwrap();
        assert!(
            !transfer.is_intact() && !transfer.is_untranslated(),
            "{transfer:?}"
        );
        assert_eq!(transfer.arrived, 100);
    });
    let session = server.next_session(Duration::from_secs(5)).unwrap();
    assert_eq!((session.received, session.sent), (100, 0));

    // A stranger's protocol is an error, not a session, and does not stop the server.
    let mut stranger = TcpStream::connect(to).unwrap();
    stranger
        .write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        .unwrap();
    let error = server.next_session(Duration::from_secs(5)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(tcp_send(to, 10, &TcpOpts::default()).unwrap().is_intact());
}

#[test]
fn udp_of_every_size() {
    let bed = Bed::new();
    for dst in SERVER {
        let echo = bed
            .server
            .run(|| UdpEcho::bind((ip(dst), 0).into()))
            .unwrap()
            .unwrap();
        let to = echo.local_addr();
        // IPv6 learns the path MTU from the first that is too big, and loses it.
        let report = bed
            .client
            .run(|| udp_probe(to, [1452], &UdpOpts::default()))
            .unwrap()
            .unwrap();
        assert_eq!(report.all_intact(), to.is_ipv4(), "{report:?}");
        let before = echo.datagrams();
        let sizes = (0..=1480).chain([1500, 4000, 16_000, 65_000, MAX_UDP_V4]);
        let report = bed
            .client
            .run(|| udp_probe(to, sizes, &UdpOpts::default()))
            .unwrap()
            .unwrap();
        assert!(report.all_intact(), "{report:?}");
        assert_eq!((report.sent, echo.datagrams() - before), (1486, 1486));
        let clients: BTreeSet<_> = echo.clients().iter().map(SocketAddr::ip).collect();
        let own = if to.is_ipv4() {
            "10.9.1.2"
        } else {
            "fd09:1::2"
        };
        assert_eq!(clients, BTreeSet::from([ip(own)]));

        // Without fragments: what fits arrives, the router drops the next, our interface refuses the last.
        let headers = if to.is_ipv4() { 28 } else { 48 };
        let opts = UdpOpts {
            fragmenting: Fragmenting::Probe,
            timeout: Duration::from_millis(200),
            ..UdpOpts::default()
        };
        let sizes = [1400 - headers, 1401 - headers, 1501 - headers];
        let report = bed
            .client
            .run(|| udp_probe(to, sizes, &opts))
            .unwrap()
            .unwrap();
        assert_eq!(report.intact, 1, "{report:?}");
        let refused: Vec<_> = report.refused.iter().map(|(size, _)| *size).collect();
        assert_eq!(refused, sizes[1..], "{report:?}");

        drop(echo);
        let report = bed
            .client
            .run(|| udp_probe(to, [10], &opts))
            .unwrap()
            .unwrap();
        assert_eq!(report.refused, [(10, Errno::ECONNREFUSED as i32)]);
    }
}

#[test]
fn udp_notices_a_meddler() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = socket.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = [0; 2000];
            for turn in 0..4 {
                let (len, from) = socket.recv_from(&mut buffer).unwrap();
                match turn {
                    0 => buffer[len - 1] ^= 1,
                    1 => continue,
                    _ => {}
                }
                socket
                    .send_to(&buffer[..len - usize::from(turn == 2)], from)
                    .unwrap();
            }
        });
        let opts = UdpOpts {
            timeout: Duration::from_millis(100),
            ..UdpOpts::default()
        };
        let report = udp_probe(to, [100, 200, 300, 400], &opts).unwrap();
        assert_eq!((report.sent, report.intact), (4, 1));
        assert_eq!((report.corrupted, report.lost), (vec![100, 300], vec![200]));
    });
}
