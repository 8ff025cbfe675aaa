//! A look at the wire: every frame that passes a namespace's devices.

use std::io::{self, Read};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use overlayd::kernel::NetNs;
use socket2::{Domain, Protocol, Socket, Type};

use crate::bed::Backend;

/// `ETH_P_ALL` (include/uapi/linux/if_ether.h): frames of every protocol, sent ones too.
const ETH_P_ALL: u16 = 3;

/// A running capture of all devices of a namespace. A frame that crosses a bridge is seen once per device.
#[derive(Debug)]
pub struct Wire {
    thread: JoinHandle<io::Result<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
}

impl Wire {
    /// Listens from now on.
    ///
    /// # Panics
    /// If the socket cannot be opened.
    pub fn listen(namespace: &NetNs) -> Self {
        let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
        let socket = namespace
            .run(|| Socket::new(Domain::PACKET, Type::RAW, Some(protocol)))
            .and_then(|socket| socket)
            .expect("open a packet socket");
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .and_then(|()| socket.set_recv_buffer_size(4 << 20))
            .expect("set up a packet socket");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        Wire {
            thread: thread::spawn(move || capture(socket, &stopped)),
            stop,
        }
    }

    /// Stops, and returns the frames, Ethernet header first.
    ///
    /// # Panics
    /// If the socket failed.
    pub fn stop(self) -> Vec<Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        let frames = self.thread.join().expect("the capture thread");
        frames.expect("read from the packet socket")
    }
}

fn capture(mut socket: Socket, stop: &AtomicBool) -> io::Result<Vec<Vec<u8>>> {
    let mut frames = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match socket.read(&mut buffer) {
            Ok(len) => frames.push(buffer[..len].to_vec()),
            // What was there when it was told to stop has been read by then.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if stop.load(Ordering::Relaxed) {
                    return Ok(frames);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Who sent an encapsulated packet to whom, and what was in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Carried {
    /// The outer source.
    pub from: IpAddr,
    /// The outer destination.
    pub to: IpAddr,
    /// Is the inner packet IPv4?
    pub inner_is_v4: bool,
}

/// What a frame carries for the overlay; `None` for any other frame.
///
/// # Panics
/// If a frame to the overlay's port holds no IP packet.
pub fn carried(frame: &[u8], backend: Backend) -> Option<Carried> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (from, to): (IpAddr, IpAddr) = match packet.net? {
        NetSlice::Ipv4(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        NetSlice::Ipv6(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        _ => return None,
    };
    let Some(TransportSlice::Udp(udp)) = packet.transport else {
        return None;
    };
    let (port, inner_at) = match backend {
        Backend::Udp => (8285, 0),
        Backend::Vxlan => (8472, 8 + 14),
    };
    if udp.destination_port() != port {
        return None;
    }
    let inner_is_v4 = match udp.payload().get(inner_at).map(|byte| byte >> 4) {
        Some(4) => true,
        Some(6) => false,
        other => panic!("an inner packet of IP version {other:?}"),
    };
    Some(Carried {
        from,
        to,
        inner_is_v4,
    })
}

/// Is the outer packet an IPv4 fragment?
pub fn outer_is_fragment(frame: &[u8]) -> bool {
    match SlicedPacket::from_ethernet(frame).map(|packet| packet.net) {
        Ok(Some(NetSlice::Ipv4(ip))) => ip.header().is_fragmenting_payload(),
        _ => false,
    }
}
