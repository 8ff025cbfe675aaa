//! The marked packet: an ICMP echo request whose data repeats a token, so that every fragment carries it too.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type};
use socket2::{Domain, Protocol, Socket, Type};

use super::Probe;
use crate::kernel::NetNs;
use crate::sys::socket::set_int;

/// Data bytes of ping(8).
const USUAL_DATA: usize = 56;
/// Of the ICMP header.
const ICMP_HEADER: usize = 8;

/// What was sent.
#[derive(Debug)]
pub(super) struct Sent {
    /// From which address.
    pub(super) src: IpAddr,
    /// The spoofed source that was asked for, if the kernel put its own in its place.
    pub(super) untaken: Option<IpAddr>,
    pub(super) dst: IpAddr,
    /// The packet's length in bytes.
    pub(super) size: usize,
    pub(super) token: String,
    /// The kernel would not send it.
    pub(super) refused: Option<io::Error>,
}

impl Sent {
    /// Holds the spoofed source against that of the packet as it was `seen` leaving.
    pub(super) fn confirm(&mut self, seen: IpAddr) {
        if seen != self.src {
            self.untaken = Some(std::mem::replace(&mut self.src, seen));
        }
    }
}

/// A token that no other packet carries: readable in a dump, and different every time.
pub(super) fn token() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    // 40 bits of microseconds come round after 12 days.
    let time = now.as_micros() & 0xff_ffff_ffff;
    format!("trace-{time:010x}")
}

/// The least that the packet can be, so that the token is in it.
pub(super) fn least(v6: bool, token: &str) -> usize {
    headers(v6) + token.len()
}

fn headers(v6: bool) -> usize {
    if v6 {
        40 + ICMP_HEADER
    } else {
        20 + ICMP_HEADER
    }
}

/// Sends it from within `namespace`.
pub(super) fn send(
    namespace: &NetNs,
    source: Option<IpAddr>,
    dst: IpAddr,
    probe: &Probe,
    token: &str,
) -> Result<Sent> {
    let v6 = dst.is_ipv6();
    let size = match probe.size {
        Some(size) => usize::from(size),
        None => headers(v6) + USUAL_DATA,
    };
    let least = least(v6, token);
    anyhow::ensure!(
        size >= least,
        "a packet of {size} bytes has no room for its headers and the mark: at least {least}"
    );
    let data: Vec<u8> = token.bytes().cycle().take(size - headers(v6)).collect();
    let (src, refused) = namespace
        .run(|| -> io::Result<_> {
            let socket = open(source, dst, probe)?;
            let to = SocketAddr::new(dst, 0);
            let src = match source {
                Some(source) => source,
                None => kernels_choice(dst).unwrap_or(dst),
            };
            let sent = socket.send_to(&message(v6, &data), &to.into());
            Ok((src, sent.err()))
        })?
        .context("cannot prepare the marked packet")?;
    Ok(Sent {
        src,
        untaken: None,
        dst,
        size,
        token: token.to_owned(),
        refused,
    })
}

/// The source address that the kernel takes towards `dst`: of a socket that is connected and never sends.
fn kernels_choice(dst: IpAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = if dst.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.connect((dst, 9))?;
    Ok(socket.local_addr()?.ip())
}

fn open(source: Option<IpAddr>, dst: IpAddr, probe: &Probe) -> io::Result<Socket> {
    let (level, discover, transparent) = match dst {
        IpAddr::V4(_) => (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_TRANSPARENT,
        ),
        IpAddr::V6(_) => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_TRANSPARENT,
        ),
    };
    let socket = match dst {
        IpAddr::V4(_) => Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?,
        IpAddr::V6(_) => Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?,
    };
    match dst {
        IpAddr::V4(_) => socket.set_ttl_v4(probe.ttl.into())?,
        IpAddr::V6(_) => socket.set_unicast_hops_v6(probe.ttl.into())?,
    }
    // Whatever path MTU the kernel has learned before: it is to be seen where the packet does not fit.
    let fragment = match (dst, probe.dont_fragment) {
        (IpAddr::V4(_), false) => libc::IP_PMTUDISC_DONT,
        (IpAddr::V4(_), true) => libc::IP_PMTUDISC_PROBE,
        (IpAddr::V6(_), false) => libc::IPV6_PMTUDISC_WANT,
        (IpAddr::V6(_), true) => libc::IPV6_PMTUDISC_PROBE,
    };
    set_int(&socket, level, discover, fragment)?;
    if probe.spoof.is_some() {
        // Lets it bind to an address that nobody here has (ip(7)).
        set_int(&socket, level, transparent, 1)?;
    }
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    Ok(socket)
}

fn message(v6: bool, data: &[u8]) -> Vec<u8> {
    let echo = IcmpEchoHeader {
        // Another one each time: connection tracking must not take it for a packet of an earlier trace's.
        id: fastrand::u16(1..),
        seq: 1,
    };
    let mut message = if v6 {
        // The kernel computes ICMPv6's checksum, which covers addresses (RFC 3542 section 3.1).
        Icmpv6Header::new(Icmpv6Type::EchoRequest(echo))
            .to_bytes()
            .to_vec()
    } else {
        Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), data)
            .to_bytes()
            .to_vec()
    };
    message.extend(data);
    message
}
