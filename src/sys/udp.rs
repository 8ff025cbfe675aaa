//! Many datagrams in one system call: `sendmmsg` and `recvmmsg`, with what travels beside the bytes (ToS,
//! segment size, the kernel's count of lost datagrams).
//!
//! The safe crates build these headers anew for each call, or allow one set of control messages for all
//! datagrams; here they lie in scratch memory that is used again, and each datagram has its own.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

/// A control message with an `int`, as it lies in memory: cmsghdr, value, padding (cmsg(3)).
#[repr(C)]
#[derive(Clone, Copy)]
struct Control<T> {
    header: libc::cmsghdr,
    value: T,
    // The next header is aligned like a size_t.
    align: [usize; 0],
}

impl<T> Control<T> {
    fn new(level: libc::c_int, kind: libc::c_int, value: T) -> Self {
        // SAFETY: cmsghdr is plain integers, for which zero is a value.
        let mut header: libc::cmsghdr = unsafe { std::mem::zeroed() };
        header.cmsg_level = level;
        header.cmsg_type = kind;
        header.cmsg_len = size_of::<libc::cmsghdr>() + size_of::<T>();
        Control {
            header,
            value,
            align: [],
        }
    }
}

/// What goes beside each datagram: first its mark, then, if it is cut, the size of the pieces.
#[repr(C)]
#[derive(Clone, Copy)]
struct SendControl {
    tos: Control<libc::c_int>,
    segment: Control<u16>,
}

/// One message to send: one datagram, or several of one size that the kernel cuts it into.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// Where to.
    pub to: SocketAddr,
    /// The ToS or traffic class byte.
    pub tos: u8,
    /// Bytes per datagram (`UDP_SEGMENT`, udp(7)); 0 sends the message as one datagram.
    pub segment: u16,
    /// How many slices make it up.
    pub slices: usize,
}

/// The kernel's form of messages, kept from call to call for its memory.
#[derive(Default)]
pub struct SendScratch {
    headers: Vec<libc::mmsghdr>,
    slices: Vec<libc::iovec>,
    names: Vec<socket2::SockAddr>,
    controls: Vec<SendControl>,
}

// SAFETY: the pointers in it are only ever followed within one call of `send_many`, which sets them first.
unsafe impl Send for SendScratch {}

/// Sends `messages`, whose bytes are `slices` in order, without waiting. What became of each is told to `done`, in
/// order, as sendmsg(2) would have said; a message that fails costs the ones after it nothing. Says how many
/// system calls that took.
pub fn send_many<'a>(
    socket: &impl AsFd,
    scratch: &mut SendScratch,
    messages: &[Message],
    slices: impl Iterator<Item = &'a [u8]>,
    done: impl FnMut(usize, io::Result<()>),
) -> u64 {
    send_with(0, socket, scratch, messages, slices, done)
}

/// Sends one message whose bytes are `piece`, as [`send_many`] does, but the kernel may read them where they lie after
/// this has returned (`MSG_ZEROCOPY`): until it has said that it is done, they must not change. Memory that is
/// given back meanwhile stays the kernel's until then; what is written to it instead would be sent.
///
/// # Errors
/// As sendmsg(2). ENOBUFS: too many such messages wait for the kernel's word, or too much memory is locked.
pub fn send_lent(
    socket: &impl AsFd,
    scratch: &mut SendScratch,
    message: Message,
    piece: &[u8],
) -> io::Result<()> {
    let mut ended = Ok(());
    let slices = std::iter::once(piece);
    let message = [Message {
        slices: 1,
        ..message
    }];
    let flags = libc::MSG_ZEROCOPY;
    send_with(flags, socket, scratch, &message, slices, |_, end| {
        ended = end;
    });
    ended
}

fn send_with<'a>(
    flags: libc::c_int,
    socket: &impl AsFd,
    scratch: &mut SendScratch,
    messages: &[Message],
    slices: impl Iterator<Item = &'a [u8]>,
    mut done: impl FnMut(usize, io::Result<()>),
) -> u64 {
    let SendScratch {
        headers,
        slices: vectors,
        names,
        controls,
    } = scratch;
    headers.clear();
    vectors.clear();
    names.clear();
    controls.clear();
    vectors.extend(slices.map(|bytes| libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }));
    names.extend(messages.iter().map(|message| message.to.into()));
    controls.extend(messages.iter().map(|message| {
        let (level, kind) = if message.to.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_TOS)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
        };
        SendControl {
            tos: Control::new(level, kind, message.tos.into()),
            segment: Control::new(libc::SOL_UDP, libc::UDP_SEGMENT, message.segment),
        }
    }));
    let mut first = 0;
    for (index, message) in messages.iter().enumerate() {
        let own = &mut vectors[first..first + message.slices];
        first += message.slices;
        // SAFETY: msghdr is integers and pointers, for which zero is a value.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_name = names[index].as_ptr().cast_mut().cast();
        header.msg_namelen = names[index].len();
        header.msg_iov = own.as_mut_ptr();
        header.msg_iovlen = own.len() as _;
        header.msg_control = ptr::from_mut(&mut controls[index]).cast();
        header.msg_controllen = if message.segment == 0 {
            size_of::<Control<libc::c_int>>() as _
        } else {
            size_of::<SendControl>() as _
        };
        headers.push(libc::mmsghdr {
            msg_hdr: header,
            msg_len: 0,
        });
    }

    let (mut next, mut calls) = (0, 0);
    while next < headers.len() {
        let rest = &mut headers[next..];
        let count = libc::c_uint::try_from(rest.len()).unwrap_or(libc::c_uint::MAX);
        calls += 1;
        // SAFETY: `rest` holds `count` headers, whose names, slices and controls live in `scratch` and behind
        // `slices` until after the call, and are not moved in between; the kernel only reads them. With MSG_ZEROCOPY it may
        // read the bytes later too, from pages that it holds itself.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_fd().as_raw_fd(),
                rest.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT | flags,
            )
        };
        match usize::try_from(sent) {
            Ok(sent) => {
                (next..next + sent).for_each(|index| done(index, Ok(())));
                next += sent;
            }
            // The error is the first message's.
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                // Somebody else's port unreachable, reported on this call: nothing was sent, and the peer
                // that this message goes to has nothing to do with it.
                error if error.kind() == io::ErrorKind::ConnectionRefused => {}
                error => {
                    done(next, Err(error));
                    next += 1;
                }
            },
        }
    }
    calls
}

/// What came with a received message.
#[derive(Clone, Copy, Debug, Default)]
pub struct Received {
    /// Its length in bytes.
    pub len: usize,
    /// Where from.
    pub source: Option<IpAddr>,
    /// The ToS or traffic class byte.
    pub tos: u8,
    /// Bytes per datagram, if the kernel joined several (`UDP_GRO`, udp(7)); the last may be shorter. 0 if not.
    pub segment: usize,
    /// How many datagrams the kernel has dropped on this socket so far (`SO_RXQ_OVFL`, socket(7)).
    pub lost: Option<u32>,
}

/// The size of an address's memory, as the kernel wants it.
#[allow(clippy::cast_possible_truncation)] // 128
const NAME_LEN: libc::socklen_t = size_of::<libc::sockaddr_storage>() as libc::socklen_t;

/// Room for the control messages of one received message: ToS or traffic class, segment size, lost.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct RecvControl([u8; 96]);

/// The kernel's form of messages to receive, kept from call to call.
pub struct RecvScratch {
    headers: Vec<libc::mmsghdr>,
    slices: Vec<libc::iovec>,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<RecvControl>,
}

// SAFETY: the pointers in it are only ever followed within one call of `receive_many`, which sets them first.
unsafe impl Send for RecvScratch {}

impl RecvScratch {
    /// Room for `most` messages a call.
    pub fn new(most: usize) -> Self {
        // SAFETY: a sockaddr_storage, an iovec and an mmsghdr are integers and pointers, for which zero is a value.
        let (name, slice, header) = unsafe {
            (
                std::mem::zeroed(),
                std::mem::zeroed(),
                std::mem::zeroed::<libc::mmsghdr>(),
            )
        };
        RecvScratch {
            headers: vec![header; most],
            slices: vec![slice; most],
            names: vec![name; most],
            controls: vec![RecvControl([0; 96]); most],
        }
    }
}

/// Receives messages without waiting, one into each of `rooms`, at most as many as `scratch` has room for, and says
/// how many came; `each` is told what came with them, in order.
///
/// # Errors
/// As recvmmsg(2); EAGAIN if there is nothing.
pub fn receive_many<'a>(
    socket: &impl AsFd,
    scratch: &mut RecvScratch,
    rooms: impl Iterator<Item = &'a mut [u8]>,
    mut each: impl FnMut(usize, Received),
) -> io::Result<usize> {
    let RecvScratch {
        headers,
        slices,
        names,
        controls,
    } = scratch;
    let mut count = 0;
    for (index, room) in rooms.take(headers.len()).enumerate() {
        slices[index] = libc::iovec {
            iov_base: room.as_mut_ptr().cast(),
            iov_len: room.len(),
        };
        let header = &mut headers[index].msg_hdr;
        header.msg_name = ptr::from_mut(&mut names[index]).cast();
        header.msg_namelen = NAME_LEN;
        header.msg_iov = ptr::from_mut(&mut slices[index]);
        header.msg_iovlen = 1;
        header.msg_control = ptr::from_mut(&mut controls[index]).cast();
        header.msg_controllen = size_of::<RecvControl>() as _;
        header.msg_flags = 0;
        count += 1;
    }
    // SAFETY: the first `count` headers were just pointed at names, slices and controls that live in `scratch`, and at
    // rooms that are borrowed exclusively and differ from each other; all outlive the call and none moves.
    let received = unsafe {
        libc::recvmmsg(
            socket.as_fd().as_raw_fd(),
            headers.as_mut_ptr(),
            count,
            libc::MSG_DONTWAIT,
            ptr::null_mut(),
        )
    };
    let Ok(received) = usize::try_from(received) else {
        return Err(io::Error::last_os_error());
    };
    for (index, header) in headers.iter().take(received).enumerate() {
        let mut message = Received {
            len: header.msg_len as usize,
            source: source(&names[index]),
            ..Received::default()
        };
        read_controls(&header.msg_hdr, &mut message);
        each(index, message);
    }
    Ok(received)
}

fn source(name: &libc::sockaddr_storage) -> Option<IpAddr> {
    let at = ptr::from_ref(name);
    match libc::c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: a sockaddr_storage is large and aligned enough for every address; the family says which.
            let at = unsafe { &*at.cast::<libc::sockaddr_in>() };
            Some(Ipv4Addr::from(u32::from_be(at.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let at = unsafe { &*at.cast::<libc::sockaddr_in6>() };
            Some(Ipv6Addr::from(at.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

fn read_controls(header: &libc::msghdr, message: &mut Received) {
    // SAFETY: the kernel filled the control room that `header` points to, and its length; the macros stay inside.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !control.is_null() {
        // SAFETY: `control` is a complete header inside the control room.
        let (level, kind, data) = unsafe {
            (
                (*control).cmsg_level,
                (*control).cmsg_type,
                libc::CMSG_DATA(control),
            )
        };
        match (level, kind) {
            // SAFETY: IP_TOS is one byte (net/ipv4/ip_sockglue.c, ip_cmsg_recv_tos).
            (libc::IPPROTO_IP, libc::IP_TOS) => message.tos = unsafe { *data },
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                // SAFETY: IPV6_TCLASS is an int (net/ipv6/datagram.c, ip6_datagram_recv_common_ctl).
                let class = unsafe { data.cast::<libc::c_int>().read_unaligned() };
                message.tos = u8::try_from(class).unwrap_or(0);
            }
            (libc::SOL_UDP, libc::UDP_GRO) => {
                // SAFETY: UDP_GRO is an int (include/linux/udp.h, udp_cmsg_recv).
                let size = unsafe { data.cast::<libc::c_int>().read_unaligned() };
                message.segment = usize::try_from(size).unwrap_or(0);
            }
            (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => {
                // SAFETY: SO_RXQ_OVFL is a u32 (net/socket.c, sock_recv_drops).
                message.lost = Some(unsafe { data.cast::<u32>().read_unaligned() });
            }
            _ => {}
        }
        // SAFETY: `header` and `control` belong together, as above.
        control = unsafe { libc::CMSG_NXTHDR(header, control) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn many_go_out_in_one_call_and_come_in_in_one() {
        for ip in [
            IpAddr::from([127, 0, 0, 1]),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ] {
            let (a, b) = (
                UdpSocket::bind((ip, 0)).unwrap(),
                UdpSocket::bind((ip, 0)).unwrap(),
            );
            let (level, option) = if ip.is_ipv4() {
                (libc::IPPROTO_IP, libc::IP_RECVTOS)
            } else {
                (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS)
            };
            crate::sys::socket::set_int(&b, level, option, 1).unwrap();
            let to = b.local_addr().unwrap();
            let message = |tos, segment, slices| Message {
                to,
                tos,
                segment,
                slices,
            };
            let messages = [message(0, 0, 2), message(0xb8, 3, 1), message(2, 0, 1)];
            let slices: [&[u8]; 4] = [b"he", b"llo", b"abcdefgh", b"bye"];
            let mut ends = Vec::new();
            let calls = send_many(
                &a,
                &mut SendScratch::default(),
                &messages,
                slices.into_iter(),
                |index, end| ends.push((index, end.is_ok())),
            );
            assert_eq!(calls, 1);
            assert_eq!(ends, [(0, true), (1, true), (2, true)]);

            let mut arena = [0; 8 * 16];
            let mut got = Vec::new();
            let count = receive_many(
                &b,
                &mut RecvScratch::new(6),
                arena.chunks_mut(16),
                |index, message| got.push((index, message)),
            )
            .unwrap();
            // The second was cut by the kernel, since this socket does not take joined ones.
            assert_eq!(count, 5);
            let seen: Vec<_> = got
                .iter()
                .map(|(index, message)| (&arena[index * 16..][..message.len], message.tos))
                .collect();
            assert_eq!(
                seen,
                [
                    (&b"hello"[..], 0),
                    (b"abc", 0xb8),
                    (b"def", 0xb8),
                    (b"gh", 0xb8),
                    (b"bye", 2)
                ]
            );
            assert!(got.iter().all(|(_, message)| message.source == Some(ip)));
            let empty = receive_many(
                &b,
                &mut RecvScratch::new(6),
                arena.chunks_mut(16),
                |_, _| {},
            );
            assert_eq!(empty.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn joined_datagrams_come_as_one_message_with_their_size() {
        let a = UdpSocket::bind("127.0.0.1:0").unwrap();
        let b = UdpSocket::bind("127.0.0.1:0").unwrap();
        crate::sys::socket::set_int(&b, libc::SOL_UDP, libc::UDP_GRO, 1).unwrap();
        let message = Message {
            to: b.local_addr().unwrap(),
            tos: 0,
            segment: 3,
            slices: 1,
        };
        let slices: [&[u8]; 1] = [b"abcdefgh"];
        let send = |end: &mut Vec<bool>| {
            send_many(
                &a,
                &mut SendScratch::default(),
                &[message],
                slices.into_iter(),
                |_, e| end.push(e.is_ok()),
            )
        };
        let mut end = Vec::new();
        send(&mut end);
        assert_eq!(end, [true]);
        let mut arena = [0; 64];
        let mut got = Vec::new();
        let rooms = std::iter::once(&mut arena[..]);
        receive_many(&b, &mut RecvScratch::new(1), rooms, |_, m| {
            got.push((m.len, m.segment))
        })
        .unwrap();
        assert_eq!(got, [(8, 3)]);
    }

    #[test]
    fn one_that_fails_costs_the_others_nothing() {
        let a = UdpSocket::bind("127.0.0.1:0").unwrap();
        let b = UdpSocket::bind("127.0.0.1:0").unwrap();
        let good = Message {
            to: b.local_addr().unwrap(),
            tos: 0,
            segment: 0,
            slices: 1,
        };
        // An IPv4 socket has no way to an IPv6 address.
        let bad = Message {
            to: "[::1]:9".parse().unwrap(),
            ..good
        };
        let slices: [&[u8]; 3] = [b"1", b"2", b"3"];
        let mut ends = Vec::new();
        send_many(
            &a,
            &mut SendScratch::default(),
            &[good, bad, good],
            slices.into_iter(),
            |index, end| ends.push((index, end.is_ok())),
        );
        assert_eq!(ends, [(0, true), (1, false), (2, true)]);
    }
}
