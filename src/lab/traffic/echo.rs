//! A raw ICMP socket that sends numbered echo requests to one destination and hears what comes back for them.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt,
    sockopt::{Ipv4RecvErr, Ipv6RecvErr},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::icmp::{self, Heard, IcmpError};
use super::{Fragmenting, Stream, Wait, unspecified};

/// What came back for a probe.
#[derive(Debug)]
pub(super) enum Event {
    /// The destination answered. `intact`: with the bytes that were sent.
    Reply { probe: u64, intact: bool },
    /// Someone on the way, or the destination, sent an error.
    Error(IcmpError),
}

/// Sends echo requests and hears their replies and the errors about them; other traffic on the socket is passed over.
pub(super) struct Prober {
    // A raw socket in std's UdpSocket: it only serves as a typed send_to and recv_from over the descriptor.
    socket: UdpSocket,
    dst: IpAddr,
    source: Option<IpAddr>,
    fragmenting: Fragmenting,
    id: u16,
    nonce: u64,
    size: usize,
    sent: u64,
    buffer: Vec<u8>,
}

impl Prober {
    /// Opens the socket. `size` is that of the echo's data in bytes.
    pub(super) fn open(
        dst: IpAddr,
        source: Option<IpAddr>,
        size: usize,
        fragmenting: Fragmenting,
    ) -> io::Result<Self> {
        let largest = if dst.is_ipv4() {
            65_535 - 20 - 8
        } else {
            65_535 - 8
        };
        if size > largest {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a ping carries at most {largest} bytes of data, not {size}"),
            ));
        }
        let socket = raw_socket(dst, source, fragmenting)?;
        socket.set_nonblocking(true)?;
        // Raw sockets hear all ICMP of the namespace, ours is somewhere in it.
        socket.set_recv_buffer_size(1 << 20)?;
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let count = NEXT.fetch_add(1, Ordering::Relaxed);
        let mixed = Stream::bytes(u64::from(std::process::id()), 2);
        let id = u16::from_le_bytes([mixed[0], mixed[1]]).wrapping_add(low(u64::from(count)));
        Ok(Self {
            socket: socket.into(),
            dst,
            source,
            fragmenting,
            id,
            nonce: (u64::from(std::process::id()) << 32) | u64::from(count),
            size,
            sent: 0,
            buffer: vec![0; 1 << 16],
        })
    }

    /// The TTL or hop limit of the probes that follow.
    pub(super) fn set_ttl(&self, ttl: u8) -> io::Result<()> {
        let socket = socket2::SockRef::from(&self.socket);
        match self.dst {
            IpAddr::V4(_) => socket.set_ttl_v4(ttl.into()),
            IpAddr::V6(_) => socket.set_unicast_hops_v6(ttl.into()),
        }
    }

    /// Sends the next probe; returns its number (0, 1, 2, ...), which is used up even when sending fails.
    pub(super) fn send(&mut self) -> (u64, io::Result<Instant>) {
        let probe = self.sent;
        self.sent += 1;
        let message = icmp::echo_request(self.dst, self.id, low(probe), &self.payload(probe));
        let at = Instant::now();
        let result = self.socket.send_to(&message, SocketAddr::new(self.dst, 0));
        (probe, result.map(|_| at))
    }

    /// The next thing that came back for any probe of ours; `None` when the wait is over.
    pub(super) fn recv(&mut self, wait: &Wait<'_>) -> io::Result<Option<(Event, Instant)>> {
        loop {
            match self.socket.recv_from(&mut self.buffer) {
                Ok((len, from)) => {
                    let at = Instant::now();
                    if let Some(event) = self.recognise(&self.buffer[..len], from.ip()) {
                        return Ok(Some((event, at)));
                    }
                    // A flood of others' messages must not outlast the wait.
                    if at > wait.until {
                        return Ok(None);
                    }
                    wait.cancel.check()?;
                }
                Err(e) if super::is_not_yet(&e) => {
                    if !wait.for_input(&self.socket)? {
                        return Ok(None);
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// After a send was refused with EMSGSIZE: the MTU that stands in the way here, when the kernel tells.
    ///
    /// Asked with a second socket that has an error queue (`IP_RECVERR`, ip(7)), which the probing one lacks because
    /// it would also swallow the ICMP errors.
    pub(super) fn local_mtu(&self) -> io::Result<Option<u32>> {
        let socket = raw_socket(self.dst, self.source, self.fragmenting)?;
        match self.dst {
            IpAddr::V4(_) => setsockopt(&socket, Ipv4RecvErr, &true)?,
            IpAddr::V6(_) => setsockopt(&socket, Ipv6RecvErr, &true)?,
        }
        let message = icmp::echo_request(self.dst, self.id, 0, &self.payload(u64::MAX));
        let to = SocketAddr::new(self.dst, 0).into();
        match socket.send_to(&message, &to) {
            Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) => {}
            Err(e) => return Err(e),
            Ok(_) => return Ok(None),
        }
        let mut control = vec![0; 512];
        let heard = recvmsg::<SockaddrStorage>(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            &mut [],
            Some(&mut control),
            MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT,
        );
        let heard = match heard {
            Ok(heard) => heard,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        Ok(heard.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Ipv4RecvErr(error, _)
            | ControlMessageOwned::Ipv6RecvErr(error, _) => Some(error.ee_info),
            _ => None,
        }))
    }

    fn payload(&self, probe: u64) -> Vec<u8> {
        // An odd factor keeps the streams of neighbouring probes apart.
        Stream::bytes(
            self.nonce ^ probe.wrapping_mul(0xd134_2543_de82_ef95),
            self.size,
        )
    }

    fn recognise(&self, bytes: &[u8], from: IpAddr) -> Option<Event> {
        let heard = match self.dst {
            IpAddr::V4(_) => icmp::parse_v4(bytes)?,
            IpAddr::V6(_) => icmp::parse_v6(bytes)?,
        };
        match heard {
            Heard::Reply { id, seq, payload } if id == self.id && from == self.dst => {
                let probe = latest(self.sent, seq)?;
                let intact = payload == self.payload(probe);
                Some(Event::Reply { probe, intact })
            }
            Heard::Error {
                kind,
                code,
                mtu,
                dst,
                id,
                seq,
            } if id == self.id && dst == self.dst => Some(Event::Error(IcmpError {
                from,
                kind,
                code,
                mtu,
                probe: latest(self.sent, seq)?,
            })),
            _ => None,
        }
    }
}

/// The latest of `sent` probes that went out under this ICMP sequence number, if any did.
fn latest(sent: u64, seq: u16) -> Option<u64> {
    let last = sent.checked_sub(1)?;
    last.checked_sub(low(last).wrapping_sub(seq).into())
}

/// The ICMP sequence number of a probe: the low 16 bits of its number.
fn low(number: u64) -> u16 {
    let [.., high, low] = number.to_be_bytes();
    u16::from_be_bytes([high, low])
}

fn raw_socket(dst: IpAddr, source: Option<IpAddr>, fragmenting: Fragmenting) -> io::Result<Socket> {
    let (domain, protocol) = match dst {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).map_err(|e| {
        io::Error::new(
            e.kind(),
            format!("open a raw ICMP socket (needs CAP_NET_RAW): {e}"),
        )
    })?;
    fragmenting.apply(&socket, dst)?;
    if let Some(source) = source {
        let address = SocketAddr::new(source, unspecified(dst).port());
        socket
            .bind(&address.into())
            .map_err(|e| io::Error::new(e.kind(), format!("ping from {source}: {e}")))?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_wrap() {
        assert_eq!(
            (low(0), low(65_535), low(65_536), low(0x1_0002)),
            (0, 65_535, 0, 2)
        );
        assert_eq!(latest(0, 0), None);
        assert_eq!(latest(1, 0), Some(0));
        assert_eq!(latest(1, 1), None, "never sent");
        assert_eq!(latest(65_538, 1), Some(65_537));
        assert_eq!(latest(65_538, 65_535), Some(65_535), "before the wrap");
    }
}
