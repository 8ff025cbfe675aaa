//! The receiving half of the batched path: many messages a call, each of which may be many datagrams that the
//! kernel joined (`UDP_GRO`).

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};

use encap::Family;
use nix::errno::Errno;

use super::{Port, Underlay};
use crate::datapath::batch::{Batch, Frame};
use crate::sys;
use crate::sys::udp::{RecvScratch, receive_many};

/// Messages received in one call, when they are small.
pub const MESSAGES: usize = 32;
/// Messages received in one call, when they are large: what is received, and what is written of it, should stay in
/// a second-level cache, and the sender of a stream should not wait for the answers to so many.
const LARGE_MESSAGES: usize = 4;
/// Messages of more bytes than this on average are large: four of which one is a superpacket, too. A program's writes end in
/// a small one, and where streams go both ways there are answers among them.
const LARGE: usize = 8 << 10;

/// The sockets that datagrams come by.
pub struct Receiver {
    v4: Option<Socket>,
    v6: Option<Socket>,
    scratch: RecvScratch,
    /// What of the kernel's losses nobody has taken yet.
    overflow: u64,
    coalescing: bool,
}

struct Socket {
    socket: UdpSocket,
    /// The kernel's count of datagrams dropped for want of buffer, as it was told last.
    lost: u32,
    /// Messages to ask for.
    most: usize,
}

impl Receiver {
    /// Receives on the sockets of `underlay`.
    ///
    /// # Errors
    /// As setsockopt(2). A kernel that joins no datagrams (before 5.0) is no error.
    pub fn new(underlay: Underlay) -> io::Result<Self> {
        let mut coalescing = true;
        let mut open = |port: Option<Port>| -> io::Result<Option<Socket>> {
            let Some(port) = port else { return Ok(None) };
            let socket = port.socket;
            match sys::socket::set_int(&socket, libc::SOL_UDP, libc::UDP_GRO, 1) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => coalescing = false,
                Err(error) => return Err(error),
            }
            Ok(Some(Socket {
                socket,
                lost: 0,
                most: MESSAGES,
            }))
        };
        let (v4, v6) = (open(underlay.v4)?, open(underlay.v6)?);
        Ok(Receiver {
            v4,
            v6,
            scratch: RecvScratch::new(MESSAGES),
            overflow: 0,
            coalescing,
        })
    }

    /// Does the kernel join datagrams for us?
    pub fn coalescing(&self) -> bool {
        self.coalescing
    }

    /// The socket of a family, to wait on.
    pub fn fd(&self, family: Family) -> Option<BorrowedFd<'_>> {
        let socket = match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        socket.as_ref().map(|socket| socket.socket.as_fd())
    }

    /// Receives what is there of `family` into `batch`, which is empty, and says how many messages that were; 0 if
    /// there is nothing now. How many datagrams a message is, is up to `whole`, which is asked for each that has a
    /// segment size whether it is one packet nevertheless.
    ///
    /// # Errors
    /// As recvmmsg(2). A pending error of the socket is reported once and is no reason to stop.
    pub fn receive(
        &mut self,
        family: Family,
        batch: &mut Batch,
        whole: impl Fn(&[u8], usize) -> bool,
    ) -> io::Result<usize> {
        let socket = match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        };
        let Some(socket) = socket else { return Ok(0) };
        let mut came = [sys::udp::Received::default(); MESSAGES];
        let rooms = batch.slots().take(socket.most);
        let received = receive_many(&socket.socket, &mut self.scratch, rooms, |slot, message| {
            came[slot] = message;
        });
        let received = match received {
            Ok(received) => received,
            Err(error) => {
                return match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EAGAIN | Errno::EINTR) => Ok(0),
                    _ => Err(error),
                };
            }
        };
        let mut total = 0;
        for (slot, message) in came[..received].iter().enumerate() {
            let mut frame = Frame::from(message.source, message.tos);
            let bytes = batch.message(slot, message.len);
            let mut segment = message.len;
            if message.segment > 0 && message.segment < message.len {
                if whole(bytes, message.segment) {
                    frame.vnet.gso_size = u16::try_from(message.segment).unwrap_or(0);
                } else {
                    segment = message.segment;
                }
            }
            batch.received(slot, message.len, segment, &frame);
            if let Some(lost) = message.lost {
                self.overflow += u64::from(lost.wrapping_sub(socket.lost));
                socket.lost = lost;
            }
            total += message.len;
        }
        socket.most = most_after(received, total);
        Ok(received)
    }

    /// Datagrams that the kernel dropped since the last call: the receive buffer was full, or the checksum wrong.
    pub fn take_overflow(&mut self) -> u64 {
        std::mem::take(&mut self.overflow)
    }
}

/// Messages to ask for after `received` ones of `total` bytes.
fn most_after(received: usize, total: usize) -> usize {
    if total > received * LARGE {
        LARGE_MESSAGES
    } else {
        MESSAGES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_received_in_small_batches_and_datagrams_in_large_ones() {
        let superpacket = 64_448;
        assert_eq!(most_after(1, superpacket), LARGE_MESSAGES);
        assert_eq!(
            most_after(4, 3 * superpacket + 4_334),
            LARGE_MESSAGES,
            "the rest of a program's write is among them"
        );
        assert_eq!(
            most_after(4, superpacket + 3 * 110),
            LARGE_MESSAGES,
            "answers are among them"
        );
        assert_eq!(most_after(1, 110), MESSAGES);
        assert_eq!(most_after(32, 32 * 1_500), MESSAGES);
        assert_eq!(
            most_after(32, 2 * superpacket + 30 * 110),
            MESSAGES,
            "mostly small ones"
        );
    }
}
