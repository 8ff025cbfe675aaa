//! Captures at every interface of every place a packet may pass, at once: one packet socket (packet(7)) per network
//! namespace, which sees all of its devices, both ways.
//!
//! A filter in the kernel lets through ICMP, datagrams to the overlay's port, and fragments; from these the marked packet
//! is picked out by the token in its payload. ICMP errors quote the packet they are about, and the token with it.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, setsockopt, sockopt::ReceiveTimestampns,
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::sight::{self, Kind, Sight};
use crate::kernel::NetNs;
use crate::lab::traffic::Cancel;
use crate::teach::capture::Link;
use crate::teach::dissect::Ports;

/// `ETH_P_ALL` (include/uapi/linux/if_ether.h): frames of every protocol, sent ones too.
const ETH_P_ALL: u16 = 3;
/// `ARPHRD_NONE` (include/uapi/linux/if_arp.h): a device without link-layer headers, as TUN is.
const ARPHRD_NONE: u16 = 0xfffe;
/// `PACKET_OUTGOING` (include/uapi/linux/if_packet.h).
const PACKET_OUTGOING: u8 = 4;
/// No packet is longer; a superpacket is not ours.
const MAX_FRAME: usize = 1 << 16;
/// How many frames are kept that are not yet known to be ours.
const MAX_KEPT: usize = 10_000;
/// How often a wait looks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(20);

/// A frame that was seen.
#[derive(Clone, Debug)]
pub struct Caught {
    /// Which of the watched places.
    pub place: usize,
    /// At which device.
    pub ifindex: u32,
    /// Leaving through the device, or arriving by it.
    pub out: bool,
    /// When, since 1970, by the kernel's clock.
    pub at: Duration,
    /// Its bytes.
    pub frame: Vec<u8>,
    /// What they begin with.
    pub link: Link,
    /// What they say; of a datagram in a train, as if it were alone.
    pub sight: Sight,
    /// Of which packet it is: the sight's kind, but that of its first fragment for the later ones.
    pub kind: Kind,
    /// It came in a train with others, as one frame.
    pub train: Option<Train>,
    /// It carries the token; fragments but the first may not.
    marked: bool,
}

/// Datagrams that crossed a cable as one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Train {
    /// How many they are.
    pub datagrams: usize,
    /// The length that its IP header tells, in bytes.
    pub length: usize,
    /// By which number frames of this trace that hold trains are told apart.
    pub number: usize,
}

/// Captures that run.
pub struct Watch {
    sockets: Vec<Socket>,
    token: Vec<u8>,
    ports: Ports,
    caught: Vec<Caught>,
    trains: usize,
}

impl Watch {
    /// Listens in all of `places` from now on, for packets that carry `token`; `port` is the overlay's.
    ///
    /// # Errors
    /// Without CAP_NET_RAW and CAP_SYS_ADMIN, or when a namespace is gone.
    pub fn start(places: &[&NetNs], token: &[u8], port: u16, ports: Ports) -> io::Result<Self> {
        let sockets = places
            .iter()
            .map(|place| place.run(|| open(port))?)
            .collect::<io::Result<_>>()?;
        Ok(Self {
            sockets,
            token: token.to_vec(),
            ports,
            caught: Vec::new(),
            trains: 0,
        })
    }

    /// Takes in what comes until `done` is content with it, or `patience` is over.
    ///
    /// # Errors
    /// When a socket fails or the wait is cancelled.
    pub fn wait(
        &mut self,
        patience: Duration,
        cancel: &Cancel,
        done: impl Fn(&[Caught]) -> bool,
    ) -> io::Result<()> {
        let end = Instant::now() + patience;
        while !done(&self.caught) {
            cancel.check()?;
            let left = end.saturating_duration_since(Instant::now());
            let slice = PollTimeout::try_from(left.min(LOOK)).map_err(io::Error::other)?;
            let ready = {
                let mut polled: Vec<_> = self
                    .sockets
                    .iter()
                    .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
                    .collect();
                match poll(&mut polled, slice) {
                    Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
                let ready = polled.iter().map(|fd| fd.any().unwrap_or(false));
                ready.collect::<Vec<_>>()
            };
            for (place, _) in ready.iter().enumerate().filter(|(_, ready)| **ready) {
                self.drain(place)?;
            }
            if left.is_zero() {
                break;
            }
        }
        Ok(())
    }

    /// Ends it: what was seen of the marked packet and its consequences, in the order of the kernel's clock.
    ///
    /// # Errors
    /// When a socket fails.
    pub fn stop(mut self) -> io::Result<Vec<Caught>> {
        // What is under way between two devices of one machine is there within this.
        thread::sleep(LOOK);
        for place in 0..self.sockets.len() {
            self.drain(place)?;
        }
        let whose = |caught: &Caught| {
            let ip = &caught.sight.ip;
            (ip.src, ip.dst, ip.id)
        };
        let ours = self.caught.iter().filter(|caught| caught.marked);
        let mut ours: HashMap<_, _> = ours
            .filter(|caught| caught.kind != Kind::Fragment)
            .map(|caught| (whose(caught), caught.kind))
            .collect();
        // Where a datagram is in fragments, all but the first have lost what is inside.
        for caught in self.caught.iter().filter(|caught| caught.marked) {
            if let Some(outer) = &caught.sight.outer {
                if outer.ip.fragment.is_some() {
                    ours.insert((outer.ip.src, outer.ip.dst, outer.ip.id), caught.kind);
                }
            }
        }
        for caught in &mut self.caught {
            if caught.kind == Kind::Fragment {
                caught.kind = *ours.get(&whose(caught)).unwrap_or(&Kind::Fragment);
            }
        }
        self.caught.retain(|caught| {
            caught.marked || ours.contains_key(&whose(caught)) && caught.sight.ip.fragment.is_some()
        });
        self.caught.sort_by_key(|caught| caught.at);
        Ok(self.caught)
    }

    fn drain(&mut self, place: usize) -> io::Result<()> {
        let mut buffer = vec![0; MAX_FRAME];
        loop {
            let mut parts = [io::IoSliceMut::new(&mut buffer)];
            let mut space = nix::cmsg_space!(nix::sys::time::TimeSpec);
            let fd = self.sockets[place].as_raw_fd();
            let message =
                match recvmsg::<LinkAddr>(fd, &mut parts, Some(&mut space), MsgFlags::MSG_DONTWAIT)
                {
                    Ok(message) => message,
                    Err(nix::errno::Errno::EAGAIN) => return Ok(()),
                    // The device went away while we looked at it, which is no reason to stop looking at others.
                    Err(nix::errno::Errno::EINTR | nix::errno::Errno::ENETDOWN) => continue,
                    Err(errno) => return Err(errno.into()),
                };
            let at = message.cmsgs()?.find_map(|cmsg| match cmsg {
                ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
                _ => None,
            });
            let (Some(from), Some(at), length) = (message.address, at, message.bytes) else {
                continue;
            };
            self.take(place, from, at, &buffer[..length]);
        }
    }

    fn take(&mut self, place: usize, from: LinkAddr, at: Duration, frame: &[u8]) {
        let link = if from.hatype() == ARPHRD_NONE {
            Link::Raw
        } else {
            Link::Ethernet
        };
        let Some(whole) = sight::train(frame, link, &self.ports) else {
            return self.keep(place, &from, at, (frame, frame), link, None);
        };
        self.trains += 1;
        let train = Train {
            datagrams: whole.datagrams.len(),
            length: whole.length,
            number: self.trains,
        };
        for piece in &whole.datagrams {
            self.keep(place, &from, at, (frame, piece), link, Some(train));
        }
    }

    /// Keeps what may be ours: a whole frame, and what of it is to be read.
    fn keep(
        &mut self,
        place: usize,
        from: &LinkAddr,
        at: Duration,
        (frame, piece): (&[u8], &[u8]),
        link: Link,
        train: Option<Train>,
    ) {
        let marked = piece
            .windows(self.token.len())
            .any(|bytes| bytes == self.token);
        let Some(sight) = sight::read(piece, link, &self.ports) else {
            return;
        };
        let may_be_ours = marked || sight.kind == Kind::Fragment;
        let (Ok(ifindex), true) = (u32::try_from(from.ifindex()), may_be_ours) else {
            return;
        };
        if self.caught.len() < MAX_KEPT {
            self.caught.push(Caught {
                place,
                ifindex,
                out: from.pkttype() == PACKET_OUTGOING,
                at,
                frame: frame.to_vec(),
                link,
                kind: sight.kind,
                sight,
                train,
                marked,
            });
        }
    }
}

fn open(port: u16) -> io::Result<Socket> {
    let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
    let program = filter(port);
    let program: Vec<_> = program
        .iter()
        .map(|&(code, jt, jf, k)| SockFilter::new(code, jt, jf, k))
        .collect();
    socket.attach_filter(&program)?;
    socket.set_recv_buffer_size(4 << 20)?;
    setsockopt(&socket, ReceiveTimestampns, &true)?;
    Ok(socket)
}

/// An instruction: code, jumps if true and if false, constant.
type Instruction = (u16, u8, u8, u32);

/// ICMP, UDP to the overlay's port (behind an IP header without options, as ours have), fragments.
///
/// Offsets count from the network header wherever that is (`SKF_NET_OFF`, linux/filter.h), so that one filter serves
/// devices with and without link-layer headers.
fn filter(port: u16) -> Vec<Instruction> {
    const NET: u32 = 0xfff0_0000;
    const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
    const LOAD_HALF: u16 = 0x28; // BPF_LD | BPF_H | BPF_ABS
    const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
    const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const ANY_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    let port = u32::from(port);
    // A jump counts the instructions that it passes over: those to accept and to drop are the last two.
    vec![
        (LOAD_BYTE, 0, 0, NET),
        (AND, 0, 0, 0xf0),
        (EQUAL, 8, 0, 0x60),  // 2: IPv6 is at 11
        (EQUAL, 0, 14, 0x40), // 3: neither: drop
        (LOAD_HALF, 0, 0, NET + 6),
        (ANY_BIT, 11, 0, 0x3fff), // 5: a fragment: accept
        (LOAD_BYTE, 0, 0, NET + 9),
        (EQUAL, 9, 0, 1),  // 7: ICMP: accept
        (EQUAL, 0, 9, 17), // 8: not UDP: drop
        (LOAD_HALF, 0, 0, NET + 22),
        (EQUAL, 6, 7, port), // 10
        (LOAD_BYTE, 0, 0, NET + 6),
        (EQUAL, 4, 0, 58), // 12: ICMPv6
        (EQUAL, 3, 0, 44), // 13: a fragment
        (EQUAL, 0, 3, 17), // 14
        (LOAD_HALF, 0, 0, NET + 42),
        (EQUAL, 0, 1, port),      // 16
        (RETURN, 0, 0, u32::MAX), // 17: accept
        (RETURN, 0, 0, 0),        // 18: drop
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter of the few instructions that ours has.
    fn accepts(packet: &[u8]) -> bool {
        let program = filter(8472);
        let (mut at, mut a) = (0, 0u32);
        loop {
            let (code, jt, jf, k) = program[at];
            let byte = |offset: u32| packet.get((offset & 0xfffff) as usize).copied();
            at += 1;
            match code {
                0x30 => match byte(k) {
                    Some(value) => a = value.into(),
                    None => return false,
                },
                0x28 => match (byte(k), byte(k + 1)) {
                    (Some(high), Some(low)) => a = u32::from(u16::from_be_bytes([high, low])),
                    _ => return false,
                },
                0x54 => a &= k,
                0x15 => at += usize::from(if a == k { jt } else { jf }),
                0x45 => at += usize::from(if a & k != 0 { jt } else { jf }),
                _ => return k != 0,
            }
        }
    }

    fn v4(protocol: u8, fragment: [u8; 2], port: u16) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, fragment[0], fragment[1], 64, protocol];
        packet.resize(20, 0);
        packet.extend([0, 1]);
        packet.extend(port.to_be_bytes());
        packet.resize(28, 0);
        packet
    }

    fn v6(next: u8, port: u16) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 8, next, 64];
        packet.resize(40, 0);
        packet.extend([0, 1]);
        packet.extend(port.to_be_bytes());
        packet.resize(48, 0);
        packet
    }

    #[test]
    fn the_filter_lets_through_what_a_trace_may_meet() {
        assert!(accepts(&v4(1, [0, 0], 0)) && accepts(&v4(1, [0x40, 0], 0)));
        assert!(accepts(&v4(17, [0x40, 0], 8472)) && !accepts(&v4(17, [0, 0], 53)));
        assert!(accepts(&v4(17, [0x20, 0], 53)) && accepts(&v4(6, [0, 7], 0)));
        assert!(!accepts(&v4(6, [0x40, 0], 8472)));
        assert!(accepts(&v6(58, 0)) && accepts(&v6(44, 0)) && accepts(&v6(17, 8472)));
        assert!(!accepts(&v6(17, 53)) && !accepts(&v6(6, 8472)));
        assert!(!accepts(&[0x00, 1, 2]));
    }
}
