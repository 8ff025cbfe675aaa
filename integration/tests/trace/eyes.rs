//! Captures of our own at every interface, to hold a trace against: packet sockets that filter nothing, and etherparse's
//! reading of what they see.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket};
use nix::sys::socket::{LinkAddr, recvfrom};
use overlayd::kernel::NetNs;
use overlayd::lab::holder;
use socket2::{Domain, Protocol, Socket, Type};

const ETH_P_ALL: u16 = 3;
const PACKET_OUTGOING: u8 = 4;

/// A frame as it was seen at an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) place: String,
    pub(crate) device: String,
    pub(crate) out: bool,
    pub(crate) bytes: Vec<u8>,
}

impl Seen {
    /// TTL and length of the outermost IP header.
    pub(crate) fn ip(&self) -> (u8, usize, IpAddr, IpAddr) {
        let packet = if matches!(self.bytes[0] >> 4, 4 | 6) && self.device == "overlay0" {
            SlicedPacket::from_ip(&self.bytes)
        } else {
            SlicedPacket::from_ethernet(&self.bytes)
        };
        match packet.unwrap().net.unwrap() {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                (
                    header.ttl(),
                    header.total_len().into(),
                    header.source_addr().into(),
                    header.destination_addr().into(),
                )
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                (
                    header.hop_limit(),
                    usize::from(header.payload_length()) + 40,
                    header.source_addr().into(),
                    header.destination_addr().into(),
                )
            }
            other => panic!("not IP: {other:?}"),
        }
    }

    pub(crate) fn carries(&self, token: &str) -> bool {
        self.bytes
            .windows(token.len())
            .any(|w| w == token.as_bytes())
    }
}

/// Captures in all namespaces of a lab.
pub(crate) struct Eyes {
    threads: Vec<JoinHandle<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
}

impl Eyes {
    pub(crate) fn open(lab: &str) -> Self {
        let mut places: Vec<(String, NetNs)> = Vec::new();
        for name in NetNs::list_named().unwrap() {
            if let Some(place) = name.strip_prefix(&format!("{lab}-")) {
                places.push((place.to_owned(), NetNs::open(&name).unwrap()));
            }
        }
        for process in holder::processes(lab).unwrap() {
            // A pod is one namespace, however many processes live in it.
            let parts: Vec<_> = process.place.split('/').take(2).collect();
            let place = parts.join("/");
            if parts.len() == 2 && places.iter().all(|(known, _)| *known != place) {
                places.push((place, NetNs::of_process(process.pid).unwrap()));
            }
        }
        assert!(places.len() > 4, "{places:?}");
        let stop = Arc::new(AtomicBool::new(false));
        let watch = |(place, namespace): (String, NetNs)| {
            let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
            let socket = namespace
                .run(|| Socket::new(Domain::PACKET, Type::RAW, Some(protocol)))
                .unwrap()
                .unwrap();
            socket
                .set_read_timeout(Some(Duration::from_millis(20)))
                .unwrap();
            socket.set_recv_buffer_size(4 << 20).unwrap();
            let stop = stop.clone();
            thread::spawn(move || capture(&place, &namespace, &socket, &stop))
        };
        let threads = places.into_iter().map(watch).collect();
        Eyes { threads, stop }
    }

    pub(crate) fn close(self) -> Vec<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    }
}

fn capture(place: &str, namespace: &NetNs, socket: &Socket, stop: &AtomicBool) -> Vec<Seen> {
    let mut frames = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, from)) => {
                let from = from.unwrap();
                frames.push((
                    from.ifindex(),
                    from.pkttype() == PACKET_OUTGOING,
                    buffer[..length].to_vec(),
                ));
            }
            Err(nix::errno::Errno::EAGAIN) if stop.load(Ordering::Relaxed) => break,
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
            Err(error) => panic!("{place}: {error}"),
        }
    }
    let name = |index: usize| -> io::Result<String> {
        let index = u32::try_from(index).unwrap();
        Ok(nix::net::if_::if_indextoname(index)?.into_string().unwrap())
    };
    namespace
        .run(|| {
            let seen = frames.into_iter().map(|(index, out, bytes)| Seen {
                place: place.to_owned(),
                device: name(index).unwrap(),
                out,
                bytes,
            });
            seen.collect()
        })
        .unwrap()
}
