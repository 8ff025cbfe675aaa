//! The packet's way through the daemon, as functions from bytes, tables and a `now` to bytes and
//! decisions. No socket, device or clock is touched here but in the engines' loops.
//!
//! ```text
//!            Batch                    Outbox
//! device ──▶ outbound: parse, look up, fit to the MTU, put the header in front ──▶ parcels ──▶ peers
//!                │
//!                └─▶ hairpin: ICMP errors ──▶ deliveries ─┐
//!                                                         ▼
//! peers ───▶ inbound: check, step over the header, ECN, finish checksums ──▶ deliveries ──▶ device
//! ```
//!
//! Every packet that enters a stage ends in exactly one place, and [`counters`] says in which.

pub mod batch;
pub mod batched;
pub mod classic;
pub mod counters;
mod drop_reason;
pub mod hairpin;
pub mod inbound;
pub mod join;
pub mod outbound;
pub mod precedence;
pub mod stop;
pub mod train;
pub mod wait;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

pub use drop_reason::DropReason;
use encap::ip::{Fragment, Inner};
use nix::errno::Errno;

use counters::PeerCounters;

/// What one batch is worked with: loaded once per batch, replaced as a whole.
pub struct Forwarding {
    /// Where packets go and come from.
    pub tables: fdb::Tables<Arc<PeerCounters>>,
    /// How they are treated.
    pub options: Options,
}

/// What an operator can change while packets flow.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address that ICMP errors come from: our overlay address.
    pub overlay_v4: Option<Ipv4Addr>,
    /// The address that ICMPv6 errors come from.
    pub overlay_v6: Option<Ipv6Addr>,
    /// Copy the inner ECN field to the outer header (RFC 6040 normal mode); if not, clear it, as
    /// RFC 9601 section 4 asks for toward peers that may not propagate it.
    pub copy_ecn: bool,
    /// Copy the inner DSCP to the outer header, and back at the other end (RFC 2983 uniform model); if not,
    /// the outer DSCP is 0 and the inner one is kept (pipe model).
    pub copy_dscp: bool,
    /// Accept a peer's own public IP as an inner source.
    pub accept_node_source: bool,
    /// ICMP errors sent per second at most.
    pub icmp_rate: u32,
    /// The largest inner packet that peers cut to size, in bytes: the device's MTU, or what the underlay
    /// carries if that is less.
    pub path_mtu: u16,
    /// The same of IPv6, whose outer header may be longer.
    pub ipv6_path_mtu: u16,
}

/// Is this packet our own encapsulation once more: UDP to our port on a node's public IP?
///
/// RFC 2003 section 3.2: a tunnel that carries its own packets loops until the packet bursts.
fn is_looped<P>(packet: &[u8], inner: &Inner, port: u16, tables: &fdb::Tables<P>) -> bool {
    inner.protocol == encap::udp::PROTOCOL
        && inner.fragment != Fragment::Later
        && inner.ports(packet).is_some_and(|(_, to)| to == port)
        && tables.is_public_ip(inner.dst)
}

/// Is this a destination that only one host answers to, and that can be routed?
fn is_routable(destination: IpAddr) -> bool {
    match destination {
        IpAddr::V4(ip) => !(ip.is_multicast() || ip.is_broadcast() || ip.is_unspecified()),
        IpAddr::V6(ip) => !(ip.is_multicast() || ip.is_unspecified() || ip.is_unicast_link_local()),
    }
}

/// Why a datagram was not sent.
fn send_failure(error: &io::Error) -> DropReason {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMSGSIZE) => DropReason::UnderlayMtu,
        Some(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => DropReason::SendQueueFull,
        Some(_) => DropReason::SendFailed,
        None => DropReason::NoUnderlay,
    }
}

#[cfg(test)]
mod testbed;
#[cfg(test)]
mod tests;
