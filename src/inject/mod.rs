//! Tunnel-GSO injection: a superpacket goes out whole, with the outer headers in front of it, and is cut into
//! segments by whatever is last in the way: the NIC, or software just before it.
//!
//! A UDP socket cannot do that: it takes finished datagrams. So a TAP device stands beside the overlay device. What is
//! written to it enters the kernel as if received, and a filter at its ingress redirects it to the underlay device
//! before any other part of the host's stack sees it:
//!
//! ```text
//!  superpacket from the TUN, where it lies
//!      │ header: vnet, Ethernet, outer IP, UDP, encapsulation put in front of it
//!      ▼
//!  inject: one writev(2) ─▶ TAP `overlay0-tx` ─▶ filter at its ingress ─▶ egress queue of the underlay device
//!      │                                          (eBPF, ours only)
//!      │ no path known, does not fit, not accepted by the kernel, no offload
//!      ▼
//!  split in user space and sent by the UDP sockets
//! ```
//!
//! [`Injector`] is the device, [`Paths`] watches what the kernel knows about the way to each peer, [`header`] makes the
//! bytes, [`filter`] the program. Nothing of it outlives the process: the TAP goes with its descriptor, the filter with
//! the TAP. No route, address, sysctl or firewall rule of the host is touched. What it bypasses stands in
//! [ADR 6](../../../docs/src/adr/0006-injection.md).

pub mod filter;
pub mod header;
mod paths;

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicI32, AtomicU16, Ordering};

use encap::{Family, MacAddr};
use fdb::{Endpoint, NextHop};
use nix::errno::Errno;

use crate::kernel::{Netlink, sysctl};
use crate::sys;
pub use header::{Head, Kind, MAX_HEAD, Outer, Path, Super};
pub use paths::{Paths, View};

/// The most bytes in flight that came through the device, as in the send buffers of the sockets.
const SEND_BUFFER: i32 = 4 << 20;
/// The longest device name, in bytes.
const NAME_MAX: usize = 15;

/// What shall be injected, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The name of the TAP to be made; see [`device_name`].
    pub name: String,
    /// The index of the underlay device.
    pub underlay: u32,
    /// The addresses that the node's sockets are bound to: the outer sources.
    pub sources: Endpoint,
    /// The tunnel's UDP port.
    pub port: u16,
    /// The length of the encapsulation header: [`encap::Encapsulation::HEADER_LEN`].
    pub header_len: usize,
    /// The outer DF bit over IPv4.
    pub dont_fragment: bool,
}

/// The name of the injection device that belongs to the overlay device `overlay`: `overlay0-tx`.
pub fn device_name(overlay: &str) -> String {
    const SUFFIX: &str = "-tx";
    let mut name = overlay.to_owned();
    while name.len() > NAME_MAX - SUFFIX.len() {
        name.pop();
    }
    name + SUFFIX
}

/// Why there is no injection. Not an error: superpackets are split instead.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// The kernel does not take tunnelled superpackets.
    #[error("this kernel cannot segment tunnelled superpackets (it needs Linux 6.17)")]
    Kernel,
    /// We may not make the device or load the program.
    #[error("{attempt}: no privilege; run as root, or with CAP_NET_ADMIN and CAP_BPF")]
    Privilege {
        /// What was attempted.
        attempt: &'static str,
    },
    /// The name is taken.
    #[error("the name `{0}` is taken by another device: remove it with `ip link del {0}`")]
    Taken(String),
    /// The underlay is no Ethernet.
    #[error("the underlay device `{0}` has no Ethernet address")]
    NotEthernet(String),
    /// Something else.
    #[error("{attempt}: {cause}")]
    Other {
        /// What was attempted.
        attempt: &'static str,
        /// The kernel's word.
        cause: io::Error,
    },
}

/// Which superpackets the kernel accepted when it was asked at start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// TCP over IPv4 inside.
    pub tcp4: bool,
    /// TCP over IPv6 inside.
    pub tcp6: bool,
    /// UDP over IPv4 inside (USO).
    pub udp4: bool,
    /// UDP over IPv6 inside (USO).
    pub udp6: bool,
}

impl Accepted {
    /// Is this kind accepted?
    pub fn takes(&self, kind: Kind, family: Family) -> bool {
        match (kind, family) {
            (Kind::Tcp { .. }, Family::V4) => self.tcp4,
            (Kind::Tcp { .. }, Family::V6) => self.tcp6,
            (Kind::Udp, Family::V4) => self.udp4,
            (Kind::Udp, Family::V6) => self.udp6,
        }
    }

    fn any(&self) -> bool {
        self.tcp4 || self.tcp6 || self.udp4 || self.udp6
    }
}

/// The injection device. Threads may share it. Dropped, it is gone, and all that was set up with it.
#[derive(Debug)]
pub struct Injector {
    // Dropped first: the device stays filtered for as long as it exists.
    tap: OwnedFd,
    _filter: OwnedFd,
    name: String,
    dont_fragment: bool,
    over4: Accepted,
    over6: Accepted,
    /// The identification of the next outer IPv4 packet.
    id: AtomicU16,
    /// Why the last superpacket was not taken, as errno; 0 if it was.
    refused: AtomicI32,
}

impl Injector {
    /// Makes the device in the calling thread's namespace, which is that of `netlink`, and asks the kernel what it takes.
    ///
    /// # Errors
    /// See [`Unavailable`]; then nothing is left behind.
    pub async fn open(netlink: &Netlink, spec: &Spec) -> Result<Self, Unavailable> {
        const FIND: &str = "cannot look at the underlay device";
        let other = |attempt, cause: crate::kernel::Error| Unavailable::Other {
            attempt,
            cause: io::Error::other(cause),
        };
        let underlay = netlink.link_by_index(spec.underlay).await;
        let underlay = underlay
            .map_err(|error| other(FIND, error))?
            .ok_or_else(|| failure(FIND, Errno::ENODEV.into()))?;
        if underlay.mac.is_none() {
            return Err(Unavailable::NotEthernet(underlay.name));
        }
        let vnet_len = i32::try_from(header::VNET_LEN).unwrap_or(i32::MAX);
        let tap =
            sys::inject::tap(&spec.name, vnet_len, SEND_BUFFER).map_err(|cause| {
                match cause.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EINVAL) => Unavailable::Kernel,
                    Some(Errno::EBUSY | Errno::EEXIST) => Unavailable::Taken(spec.name.clone()),
                    _ => failure("cannot make the injection device", cause),
                }
            })?;
        const SET_UP: &str = "cannot set up the injection device";
        let device = netlink.link(&spec.name).await;
        let device = device
            .map_err(|error| other(SET_UP, error))?
            .ok_or_else(|| failure(SET_UP, Errno::ENODEV.into()))?;
        let program = filter::program(spec.underlay, spec.sources, spec.port);
        let filter = sys::inject::attach(&program, device.index)
            .map_err(|cause| failure("cannot filter the injection device", cause))?;
        // No link-local address, no router solicitations. A kernel without IPv6 has no such setting.
        let _ = sysctl::write(&sysctl::conf("ipv6", &spec.name, "disable_ipv6"), "1");
        let up = netlink.set_up(device.index).await;
        up.map_err(|error| other(SET_UP, error))?;
        let mut injector = Injector {
            tap,
            _filter: filter,
            name: spec.name.clone(),
            dont_fragment: spec.dont_fragment,
            over4: Accepted::default(),
            over6: Accepted::default(),
            id: AtomicU16::new(0),
            refused: AtomicI32::new(0),
        };
        injector.over4 = injector.probe(Family::V4, spec.header_len);
        injector.over6 = injector.probe(Family::V6, spec.header_len);
        if injector.over4.any() || injector.over6.any() {
            Ok(injector)
        } else {
            Err(Unavailable::Kernel)
        }
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the kernel takes, by the outer family.
    pub fn accepted(&self, outer: Family) -> Accepted {
        match outer {
            Family::V4 => self.over4,
            Family::V6 => self.over6,
        }
    }

    /// The bytes to be put in front of `inner`, at most [`MAX_HEAD`]; `None` if it has to be split.
    pub fn header(
        &self,
        path: &Path,
        hop: &NextHop,
        source_port: u16,
        tos: u8,
        inner: &Super,
    ) -> Option<Head> {
        let accepted = self.accepted(Family::of(&path.source));
        if !accepted.takes(inner.kind, inner.family) {
            return None;
        }
        // The kernel counts on from here, one for each segment (net/ipv4/af_inet.c, inet_gso_segment).
        let segments = u16::try_from(inner.segments()).ok()?;
        let id = self.id.fetch_add(segments, Ordering::Relaxed);
        let outer = Outer {
            path,
            to: hop.to,
            encapsulation: &hop.header,
            source_port,
            tos,
            id,
            dont_fragment: self.dont_fragment,
        };
        outer.head(inner)
    }

    /// Sends a superpacket with the bytes of its [`Head`] in front of it.
    ///
    /// # Errors
    /// `WouldBlock` while too much is in flight, like a socket whose send buffer is full; EINVAL if the bytes in
    /// front are not what they should be; EIO if somebody took the device down; ENOMEM.
    pub fn inject(&self, head: &[u8], packet: &[u8]) -> io::Result<()> {
        let written = self.write(head, packet);
        let errno = match written {
            Err(Errno::EAGAIN) => return Err(Errno::EAGAIN.into()),
            Err(error) => error as i32,
            Ok(()) => 0,
        };
        // Read by status alone; written when it changes, so that the line stays in every thread's cache.
        if self.refused.load(Ordering::Relaxed) != errno {
            self.refused.store(errno, Ordering::Relaxed);
            let device = &self.name;
            match written {
                Ok(()) => tracing::info!(device, "the injection device takes superpackets again"),
                Err(error) => {
                    tracing::warn!(device, %error, "the injection device takes nothing: superpackets are split");
                }
            }
        }
        Ok(written?)
    }

    fn write(&self, head: &[u8], packet: &[u8]) -> Result<(), Errno> {
        let parts = [IoSlice::new(head), IoSlice::new(packet)];
        loop {
            match nix::sys::uio::writev(&self.tap, &parts) {
                Err(Errno::EINTR) => {}
                written => return written.map(drop),
            }
        }
    }

    /// Why the device did not take the last superpacket; `None` if it did.
    pub fn refused(&self) -> Option<io::Error> {
        match self.refused.load(Ordering::Relaxed) {
            0 => None,
            errno => Some(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Offers the kernel a superpacket of each kind. They come from no address of ours, so the filter drops them.
    fn probe(&self, outer: Family, header_len: usize) -> Accepted {
        let takes = |kind, family| self.try_kind(outer, header_len, kind, family);
        let tcp = Kind::Tcp { ecn: false };
        Accepted {
            tcp4: takes(tcp, Family::V4),
            tcp6: takes(tcp, Family::V6),
            udp4: takes(Kind::Udp, Family::V4),
            udp6: takes(Kind::Udp, Family::V6),
        }
    }

    fn try_kind(&self, outer: Family, header_len: usize, kind: Kind, family: Family) -> bool {
        let (unspecified, ip) = match outer {
            Family::V4 => (
                IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                Ipv4Addr::LOCALHOST.into(),
            ),
            Family::V6 => (
                IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                Ipv6Addr::LOCALHOST.into(),
            ),
        };
        let path = Path {
            source: unspecified,
            source_mac: MacAddr([0; 6]),
            next_hop: MacAddr([0; 6]),
            mtu: 1500,
        };
        let (l4, version) = match family {
            Family::V4 => (20, 0x45),
            Family::V6 => (40, 0x60),
        };
        let payload = match kind {
            Kind::Tcp { .. } => l4 + 20,
            Kind::Udp => l4 + 8,
        };
        let inner = Super {
            family,
            kind,
            l4,
            len: payload + 200,
            payload,
            gso_size: 100,
        };
        let Some(encapsulation) = encap::Header::new(&vec![0; header_len]) else {
            return false;
        };
        let outer = Outer {
            path: &path,
            to: SocketAddr::new(ip, 0),
            encapsulation: &encapsulation,
            source_port: 0,
            tos: 0,
            id: 0,
            dont_fragment: false,
        };
        let Some(head) = outer.head(&inner) else {
            return false;
        };
        let mut packet = vec![0; inner.len];
        // All that the kernel reads of it: USO alone does not tell the inner version.
        packet[0] = version;
        self.write(head.as_slice(), &packet).is_ok()
    }
}

fn failure(attempt: &'static str, cause: io::Error) -> Unavailable {
    match cause.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => Unavailable::Privilege { attempt },
        _ => Unavailable::Other { attempt, cause },
    }
}
