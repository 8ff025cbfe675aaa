//! Egress: the UDP sockets that carry encapsulated packets between nodes.
//!
//! Sockets are bound to the underlay address, never to the wildcard, so that the outer source is what
//! our lease says. The kernel computes and verifies the outer UDP checksum, and drops what fails it; a
//! zero checksum is accepted over IPv4 (RFC 7348 section 5) and refused over IPv6 unless asked for
//! (RFC 6935).

pub mod receiver;
pub mod sender;
pub mod zerocopy;

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use encap::Family;
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::datapath::batch::Frame;
use crate::sys;

/// Outer TTL and hop limit.
const TTL: u32 = 64;
/// Socket buffers asked for, in bytes: some milliseconds of a fast link. The kernel doubles it for its
/// own bookkeeping.
const BUFFER: usize = 4 << 20;

/// What the outer DF bit says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DontFragment {
    /// DF is 0 and we never fragment (IP_PMTUDISC_INTERFACE), as flannel's VXLAN devices do.
    Unset,
    /// DF is 1 and the kernel's cached path MTU is ignored (IP_PMTUDISC_PROBE), since forged ICMP
    /// could set it.
    Set,
}

/// Options of the underlay sockets.
#[derive(Clone, Copy, Debug)]
pub struct SocketOptions {
    /// The outer DF bit.
    pub dont_fragment: DontFragment,
    /// Accept datagrams over IPv6 that carry no UDP checksum.
    pub udp6_zero_checksum: bool,
}

/// The sockets of one node: one per underlay family that it has a public IP of.
pub struct Underlay {
    v4: Option<Port>,
    v6: Option<Port>,
}

struct Port {
    socket: UdpSocket,
    /// The ToS or traffic class that the socket sends with now.
    tos: u8,
    control: Vec<u8>,
    /// The kernel's count of datagrams dropped for want of buffer, as it was told last.
    lost: u32,
    /// What of it nobody has taken yet.
    overflow: u64,
}

impl Underlay {
    /// Binds a socket to `port` on each address given.
    ///
    /// # Errors
    /// EADDRINUSE if someone has the port, a kernel VXLAN device for example; EADDRNOTAVAIL if the
    /// address is not ours. The address is in the message.
    pub fn bind(
        v4: Option<Ipv4Addr>,
        v6: Option<Ipv6Addr>,
        port: u16,
        options: SocketOptions,
    ) -> io::Result<Self> {
        Self::open(v4, v6, port, options, false)
    }

    /// Binds as many as there are `queues`, all to the same port: the kernel gives each flow to one of them, by its
    /// outer addresses and ports (`SO_REUSEPORT` in socket(7)).
    ///
    /// # Errors
    /// As [`Underlay::bind`]: a port is shared among the queues and with nobody else.
    pub fn bind_many(
        v4: Option<Ipv4Addr>,
        v6: Option<Ipv6Addr>,
        port: u16,
        options: SocketOptions,
        queues: u16,
    ) -> io::Result<Vec<Self>> {
        // Among processes of one user, sharing would not tell that another has the port.
        let alone = Self::bind(v4, v6, port, options)?;
        if queues == 1 {
            return Ok(vec![alone]);
        }
        drop(alone);
        (0..queues)
            .map(|_| Self::open(v4, v6, port, options, true))
            .collect()
    }

    fn open(
        v4: Option<Ipv4Addr>,
        v6: Option<Ipv6Addr>,
        port: u16,
        options: SocketOptions,
        shared: bool,
    ) -> io::Result<Self> {
        let open = |ip: IpAddr| {
            let at = SocketAddr::new(ip, port);
            Port::bind(at, options, shared).map_err(|error| {
                io::Error::new(error.kind(), format!("cannot bind UDP {at}: {error}"))
            })
        };
        Ok(Underlay {
            v4: v4.map(|ip| open(ip.into())).transpose()?,
            v6: v6.map(|ip| open(ip.into())).transpose()?,
        })
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// As sendto(2); ENOTCONN (as an error kind) if we have no socket of the family.
    pub fn send(&mut self, to: SocketAddr, tos: u8, datagram: &[u8]) -> io::Result<()> {
        let port = if to.is_ipv4() {
            &mut self.v4
        } else {
            &mut self.v6
        };
        let port = port.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        port.set_tos(to.is_ipv4(), tos)?;
        loop {
            match port.socket.send_to(datagram, to) {
                Ok(_) => return Ok(()),
                // Somebody else's port unreachable, reported on this call: this datagram was not sent,
                // and its peer has nothing to do with the error.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Receives one datagram of `family` into `room`, what is known of it into `frame`; `None` if there is none now.
    ///
    /// # Errors
    /// As recvmsg(2). A pending error of the socket is reported once and is no reason to stop.
    pub fn receive(
        &mut self,
        family: Family,
        room: &mut [u8],
        frame: &mut Frame,
    ) -> io::Result<Option<usize>> {
        let port = match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        };
        let Some(port) = port else { return Ok(None) };
        port.receive(room, frame)
    }

    /// Datagrams that the kernel dropped since the last call: the receive buffer was full, or the checksum wrong.
    pub fn take_overflow(&mut self) -> u64 {
        let ports = [&mut self.v4, &mut self.v6].into_iter().flatten();
        ports.map(|port| std::mem::take(&mut port.overflow)).sum()
    }

    /// The socket of a family, to wait on.
    pub fn fd(&self, family: Family) -> Option<BorrowedFd<'_>> {
        let port = match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        port.as_ref().map(|port| port.socket.as_fd())
    }
}

impl Port {
    fn bind(at: SocketAddr, options: SocketOptions, shared: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_port(shared)?;
        socket.set_nonblocking(true)?;
        if at.is_ipv4() {
            socket.set_ttl_v4(TTL)?;
            socket.set_recv_tos_v4(true)?;
            let df = match options.dont_fragment {
                DontFragment::Unset => libc::IP_PMTUDISC_INTERFACE,
                DontFragment::Set => libc::IP_PMTUDISC_PROBE,
            };
            sys::socket::set_int(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, df)?;
        } else {
            socket.set_only_v6(true)?;
            socket.set_unicast_hops_v6(TTL)?;
            socket.set_recv_tclass_v6(true)?;
            // IPv6 has no DF bit: routers never fragment. PROBE keeps forged Packet Too Big out.
            let df = libc::IPV6_PMTUDISC_PROBE;
            // Injected packets carry flow label 0; a flow's others shall take the same way through routers that
            // hash it.
            const IPV6_AUTOFLOWLABEL: i32 = 70; // include/uapi/linux/in6.h
            sys::socket::set_int(&socket, libc::IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, 0)?;
            sys::socket::set_int(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, df)?;
            if options.udp6_zero_checksum {
                const UDP_NO_CHECK6_RX: i32 = 102; // include/uapi/linux/udp.h
                sys::socket::set_int(&socket, libc::IPPROTO_UDP, UDP_NO_CHECK6_RX, 1)?;
            }
        }
        // Forcing needs CAP_NET_ADMIN; what net.core.rmem_max allows is the next best.
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
            socket.set_recv_buffer_size(BUFFER)?;
        }
        socket.set_send_buffer_size(BUFFER)?;
        // With each datagram the kernel says how many it dropped before (socket(7)).
        setsockopt(&socket, sockopt::RxqOvfl, &1)?;
        socket.bind(&at.into())?;
        let control = nix::cmsg_space!(libc::c_int, u32);
        Ok(Port {
            socket: socket.into(),
            tos: 0,
            control,
            lost: 0,
            overflow: 0,
        })
    }

    /// The mark is a property of the socket here: neighbours in a queue mostly carry the same one.
    fn set_tos(&mut self, ipv4: bool, tos: u8) -> io::Result<()> {
        if tos == self.tos {
            return Ok(());
        }
        let (level, option) = if ipv4 {
            (libc::IPPROTO_IP, libc::IP_TOS)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
        };
        sys::socket::set_int(&self.socket, level, option, tos.into())?;
        self.tos = tos;
        Ok(())
    }

    fn receive(&mut self, room: &mut [u8], frame: &mut Frame) -> io::Result<Option<usize>> {
        loop {
            let mut iov = [IoSliceMut::new(room)];
            let received = recvmsg::<SockaddrStorage>(
                self.socket.as_raw_fd(),
                &mut iov,
                Some(&mut self.control),
                MsgFlags::MSG_DONTWAIT,
            );
            let message = match received {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let (mut tos, mut lost) = (0, self.lost);
            for control in message.cmsgs()? {
                match control {
                    ControlMessageOwned::Ipv4Tos(mark) => tos = mark,
                    ControlMessageOwned::Ipv6TClass(mark) => tos = u8::try_from(mark).unwrap_or(0),
                    ControlMessageOwned::RxqOvfl(count) => lost = count,
                    _ => {}
                }
            }
            let source = message.address.as_ref().and_then(source_ip);
            let len = message.bytes;
            self.overflow += u64::from(lost.wrapping_sub(self.lost));
            self.lost = lost;
            frame.source = source;
            frame.tos = tos;
            return Ok(Some(len));
        }
    }
}

fn source_ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|at| IpAddr::V4(at.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|at| IpAddr::V6(at.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::batch::Batch;

    const OPTIONS: SocketOptions = SocketOptions {
        dont_fragment: DontFragment::Unset,
        udp6_zero_checksum: false,
    };

    /// Reads all that is there, and says how many datagrams that were.
    fn drain(underlay: &mut Underlay) -> u64 {
        let mut batch = Batch::new(1, 0);
        let mut count = 0;
        loop {
            batch.clear();
            let receive =
                |room: &mut [u8], frame: &mut Frame| underlay.receive(Family::V4, room, frame);
            if !batch.fill(receive).unwrap() {
                return count;
            }
            count += 1;
        }
    }

    #[test]
    fn what_the_kernel_drops_for_want_of_buffer_is_counted() {
        let ip = Ipv4Addr::LOCALHOST;
        let mut underlay = Underlay::bind(Some(ip), None, 0, OPTIONS).unwrap();
        let at = underlay.v4.as_ref().unwrap().socket.local_addr().unwrap();
        let sender = UdpSocket::bind((ip, 0)).unwrap();
        let mut sent = 0;
        // More than the buffer holds, whatever the kernel made of the size asked for.
        for _ in 0..20_000 {
            sender.send_to(&[0; 1400], at).unwrap();
            sent += 1;
        }
        let mut received = drain(&mut underlay);
        // The count travels with the next datagram that finds room.
        sender.send_to(&[0; 1400], at).unwrap();
        sent += 1;
        received += drain(&mut underlay);
        let lost = underlay.take_overflow();
        assert!(lost > 0, "{received} of {sent} received");
        assert_eq!(received + lost, sent);
        assert_eq!(underlay.take_overflow(), 0);
    }
}
