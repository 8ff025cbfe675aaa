//! What stands in front of an injected superpacket. Pure: bytes and addresses in, bytes out.
//!
//! The kernel wants to be told where the headers are that it shall repeat in every segment (struct
//! `virtio_net_hdr_v1_hash_tunnel`, include/uapi/linux/virtio_net.h; little-endian, see `TUNSETVNETLE`):
//!
//! ```text
//!  0      flags        NEEDS_CSUM 1 | UDP_TUNNEL_CSUM 8: inner and outer transport checksums are unfinished
//!  1      gso_type     TCPV4 1, TCPV6 4, UDP_L4 5 | ECN 0x80 | UDP_TUNNEL_IPV4 0x20 or _IPV6 0x40 (the outer one)
//!  2..4   hdr_len      the bytes up to the end of the inner transport header
//!  4..6   gso_size     payload bytes of each segment but the last
//!  6..8   csum_start   where the inner transport header starts
//!  8..10  csum_offset  its checksum field, from there
//! 10..12  num_buffers  0
//! 12..20  hash         0
//! 20..22  outer_th     where the outer UDP header starts
//! 22..24  inner_nh     where the inner IP header starts
//! ```
//!
//! Offsets count from the start of the Ethernet frame that follows:
//!
//! ```text
//!  ┌────────┬──────────┬──────────┬─────┬───────────────┬─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ┐
//!  │ vnet   │ Ethernet │ IP       │ UDP │ encapsulation │ the inner superpacket,
//!  │ 24     │ 14       │ 20 or 40 │ 8   │ 0 or 22       │ where it lies
//!  └────────┴──────────┴──────────┴─────┴───────────────┴─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ┘
//! ```

use std::net::{IpAddr, SocketAddr};

use encap::checksum::{add, sum};
use encap::ethernet::{self, Ethernet};
use encap::ipv4::{self, Ipv4};
use encap::ipv6::{self, Ipv6};
use encap::udp::{self, Udp};
use encap::{Family, Header, MacAddr, tcp};

/// Length of the virtio_net_hdr with its tunnel fields.
pub const VNET_LEN: usize = 24;
/// The most bytes that [`Outer::head`] puts in front of a packet: keep as many free there.
pub const MAX_HEAD: usize =
    VNET_LEN + ethernet::HEADER_LEN + ipv6::HEADER_LEN + udp::HEADER_LEN + encap::MAX_HEADER;
/// Outer TTL and hop limit, as the sockets' packets have it.
const TTL: u8 = 64;

const NEEDS_CSUM: u8 = 1;
const UDP_TUNNEL_CSUM: u8 = 8;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_UDP_TUNNEL_IPV4: u8 = 0x20;
const GSO_UDP_TUNNEL_IPV6: u8 = 0x40;
const GSO_ECN: u8 = 0x80;

/// The way to a peer on the underlay, as the kernel's tables have it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Our address, as the peer's lease table knows it.
    pub source: IpAddr,
    /// The Ethernet address of the underlay device.
    pub source_mac: MacAddr,
    /// The Ethernet address of the next hop: of the peer, or of the router to it.
    pub next_hop: MacAddr,
    /// The largest outer IP packet, in bytes.
    pub mtu: u16,
}

/// What kind of superpacket it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A TCP segment to be cut (TSO).
    Tcp {
        /// CWR is set: only the first segment shall carry it (`VIRTIO_NET_HDR_GSO_ECN`).
        ecn: bool,
    },
    /// UDP datagrams of one size in a row, the last one perhaps shorter (USO).
    Udp,
}

/// An inner superpacket as the TUN device gave it: the transport checksum field holds the folded sum of
/// the pseudo-header (`VIRTIO_NET_HDR_F_NEEDS_CSUM`), its length that of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Super {
    /// The inner IP version.
    pub family: Family,
    /// TCP or UDP.
    pub kind: Kind,
    /// Offset of its transport header.
    pub l4: usize,
    /// Its length in bytes.
    pub len: usize,
    /// Offset of its payload, behind the transport header.
    pub payload: usize,
    /// Payload bytes of each segment but the last.
    pub gso_size: u16,
}

impl Super {
    /// How many segments it becomes.
    pub fn segments(&self) -> usize {
        self.len
            .saturating_sub(self.payload)
            .div_ceil(usize::from(self.gso_size).max(1))
    }
}

/// What the outer headers say.
#[derive(Clone, Copy, Debug)]
pub struct Outer<'a> {
    /// The way there.
    pub path: &'a Path,
    /// The peer's public IP and port.
    pub to: SocketAddr,
    /// What stands between the outer UDP header and the inner packet.
    pub encapsulation: &'a Header,
    /// The outer source port.
    pub source_port: u16,
    /// The outer ToS or traffic class.
    pub tos: u8,
    /// IPv4: the identification of the first segment, the kernel counts on from it.
    pub id: u16,
    /// IPv4: the DF bit.
    pub dont_fragment: bool,
}

/// The bytes to be put in front of an inner superpacket.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    bytes: [u8; MAX_HEAD],
    len: usize,
}

impl Head {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

impl Outer<'_> {
    /// The bytes to be put in front of `inner`; `None` if it cannot go this way and has to be split: its
    /// segments do not fit the path's MTU, it is too long for one outer packet, it is a single segment, or the
    /// path and the destination are not of one family.
    pub fn head(&self, inner: &Super) -> Option<Head> {
        let ip_len = match self.path.source {
            IpAddr::V4(_) => ipv4::MIN_HEADER,
            IpAddr::V6(_) => ipv6::HEADER_LEN,
        };
        let encapsulation = self.encapsulation.as_slice();
        let before_inner = ip_len + udp::HEADER_LEN + encapsulation.len();
        let segment = before_inner + inner.payload + usize::from(inner.gso_size);
        // One segment alone is no superpacket to the kernel, and goes out by a socket.
        let one = inner.gso_size == 0 || inner.segments() < 2;
        if one || segment > usize::from(self.path.mtu) || inner.l4 >= inner.payload {
            return None;
        }
        let udp_len = u16::try_from(udp::HEADER_LEN + encapsulation.len() + inner.len).ok()?;

        let (ip, family) = self.ip(udp_len)?;
        let ethernet = Ethernet {
            dst: self.path.next_hop,
            src: self.path.source_mac,
            ethertype: family.ethertype(),
        };
        let udp = Udp {
            src: self.source_port,
            dst: self.to.port(),
            len: udp_len,
            checksum: pseudo_header(self.path.source, self.to.ip(), udp_len),
        };
        let outer_th = ethernet::HEADER_LEN + ip_len;
        let inner_nh = ethernet::HEADER_LEN + before_inner;
        let vnet = vnet(inner, family, outer_th, inner_nh)?;

        let mut head = Head {
            bytes: [0; MAX_HEAD],
            len: 0,
        };
        head.push(&vnet);
        head.push(&ethernet.emit());
        head.push(&ip[..ip_len]);
        head.push(&udp.emit());
        head.push(encapsulation);
        Some(head)
    }

    /// The outer IP header, the first 20 or all 40 bytes; `None` if the packet is too long or the families differ.
    fn ip(&self, udp_len: u16) -> Option<([u8; ipv6::HEADER_LEN], Family)> {
        let mut bytes = [0; ipv6::HEADER_LEN];
        match (self.path.source, self.to.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let (fixed, _) = bytes.split_at_mut(ipv4::MIN_HEADER);
                let header = Ipv4 {
                    header_len: 20,
                    tos: self.tos,
                    total_len: udp_len.checked_add(20)?,
                    id: self.id,
                    flags: if self.dont_fragment { ipv4::DF } else { 0 },
                    offset: 0,
                    ttl: TTL,
                    protocol: udp::PROTOCOL,
                    checksum: 0,
                    src,
                    dst,
                };
                fixed.copy_from_slice(&header.emit());
                ipv4::fill_checksum(fixed);
                Some((bytes, Family::V4))
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let header = Ipv6 {
                    traffic_class: self.tos,
                    flow_label: 0,
                    payload_len: udp_len,
                    next_header: udp::PROTOCOL,
                    hop_limit: TTL,
                    src,
                    dst,
                };
                bytes.copy_from_slice(&header.emit());
                Some((bytes, Family::V6))
            }
            _ => None,
        }
    }
}

/// The header drawn at the top of this file.
fn vnet(inner: &Super, outer: Family, outer_th: usize, inner_nh: usize) -> Option<[u8; VNET_LEN]> {
    let (gso, csum_offset) = match (inner.kind, inner.family) {
        (Kind::Tcp { .. }, Family::V4) => (GSO_TCPV4, tcp::CHECKSUM),
        (Kind::Tcp { .. }, Family::V6) => (GSO_TCPV6, tcp::CHECKSUM),
        (Kind::Udp, _) => (GSO_UDP_L4, udp::CHECKSUM),
    };
    let ecn = match inner.kind {
        Kind::Tcp { ecn: true } => GSO_ECN,
        _ => 0,
    };
    let tunnel = match outer {
        Family::V4 => GSO_UDP_TUNNEL_IPV4,
        Family::V6 => GSO_UDP_TUNNEL_IPV6,
    };
    let le = |offset: usize| u16::try_from(offset).map(u16::to_le_bytes).ok();
    let mut h = [0; VNET_LEN];
    h[0] = NEEDS_CSUM | UDP_TUNNEL_CSUM;
    h[1] = gso | ecn | tunnel;
    h[2..4].copy_from_slice(&le(inner_nh + inner.payload)?);
    h[4..6].copy_from_slice(&inner.gso_size.to_le_bytes());
    h[6..8].copy_from_slice(&le(inner_nh + inner.l4)?);
    h[8..10].copy_from_slice(&le(csum_offset)?);
    h[20..22].copy_from_slice(&le(outer_th)?);
    h[22..24].copy_from_slice(&le(inner_nh)?);
    Some(h)
}

/// The folded sum of the outer UDP pseudo-header, not complemented: what the kernel finishes it from.
fn pseudo_header(src: IpAddr, dst: IpAddr, udp_len: u16) -> u16 {
    let octets = |ip| match ip {
        IpAddr::V4(ip) => sum(&ip.octets()),
        IpAddr::V6(ip) => sum(&ip.octets()),
    };
    let addresses = add(octets(src), octets(dst));
    add(add(addresses, u16::from(udp::PROTOCOL)), udp_len)
}

#[cfg(test)]
mod tests;
