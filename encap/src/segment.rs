//! Superpackets cut to wire size, and unfinished transport checksums finished.
//!
//! Where the kernel hands packets from one local interface to another it postpones two jobs to a network card that
//! never comes: cutting TCP or UDP data into packets (TSO, USO) and computing the transport checksum. Such a packet
//! carries the sum of its pseudo-header in the checksum field, uncomplemented, for the card to complete
//! (`CHECKSUM_PARTIAL`, include/linux/skbuff.h). What a card would have done is done here.

use crate::checksum::{self, pseudo_header};
use crate::ipv4::{self, Ipv4};
use crate::ipv6::{self, Ipv6};
use crate::tcp::{self, Tcp};
use crate::udp::{self, Udp};
use crate::{Family, Fragment, Inner, Reject};

/// The state of a packet's transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4Checksum {
    /// It verifies.
    Valid,
    /// It holds the sum of the pseudo-header for the packet's whole length, and does not verify.
    Unfinished,
    /// There is none that we could judge: not TCP or UDP, a fragment, UDP over IPv4 without one, or IPv6 on its
    /// way through a routing header.
    Absent,
    /// It is wrong, or the transport header makes no sense. UDP over IPv6 must not go without one, so 0 is wrong there.
    Bad,
}

/// The bytes that a transport checksum covers, and where in them its field is.
struct Covered {
    len: usize,
    field: usize,
}

/// `None` if there is no TCP or UDP checksum of ours to judge, `Some(Err)` if the header makes no sense.
fn covered(packet: &[u8], inner: &Inner) -> Option<Result<Covered, Reject>> {
    if inner.fragment != Fragment::None || inner.source_routed {
        return None;
    }
    let transport = inner.transport(packet);
    match inner.protocol {
        tcp::PROTOCOL => Some(Tcp::parse(transport).map(|_| Covered {
            len: transport.len(),
            field: tcp::CHECKSUM,
        })),
        // UDP has a length of its own, and IP may carry more than that.
        udp::PROTOCOL => Some(Udp::parse(transport).map(|udp| Covered {
            len: usize::from(udp.len),
            field: udp::CHECKSUM,
        })),
        _ => None,
    }
}

fn field(transport: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([transport[at], transport[at + 1]])
}

/// What state is the transport checksum in? Takes one pass over the payload.
#[must_use]
pub fn l4_checksum_state(packet: &[u8], inner: &Inner) -> L4Checksum {
    let covered = match covered(packet, inner) {
        None => return L4Checksum::Absent,
        Some(Err(_)) => return L4Checksum::Bad,
        Some(Ok(covered)) => covered,
    };
    let transport = &inner.transport(packet)[..covered.len];
    let found = field(transport, covered.field);
    if inner.protocol == udp::PROTOCOL && found == 0 {
        return if inner.family == Family::V4 {
            L4Checksum::Absent
        } else {
            L4Checksum::Bad
        };
    }
    let pseudo = pseudo_header(inner, covered.len);
    if checksum::add(pseudo, checksum::sum(transport)) == 0xffff {
        L4Checksum::Valid
    } else if found == pseudo {
        L4Checksum::Unfinished
    } else {
        L4Checksum::Bad
    }
}

/// Does the checksum field hold the sum of the pseudo-header? A cheap first test, without a pass over the payload;
/// of finished checksums one in 65,536 looks so, too, and [`l4_checksum_state`] tells them apart.
#[must_use]
pub fn looks_unfinished(packet: &[u8], inner: &Inner) -> bool {
    match covered(packet, inner) {
        Some(Ok(covered)) => {
            field(inner.transport(packet), covered.field) == pseudo_header(inner, covered.len)
        }
        _ => false,
    }
}

/// Computes the transport checksum and writes it, whatever stood there before. Does nothing where
/// [`l4_checksum_state`] finds no checksum of ours or no sense in the header.
///
/// A UDP checksum that comes out as 0 is sent as 0xffff, because 0 means that there is none (RFC 768).
pub fn complete_checksum(packet: &mut [u8], inner: &Inner) {
    if let Some(Ok(covered)) = covered(packet, inner) {
        let pseudo = pseudo_header(inner, covered.len);
        let transport = &mut packet[inner.l4..inner.l4 + covered.len];
        fill(transport, covered.field, pseudo, inner.protocol);
    }
}

/// Writes the checksum of `transport` and its pseudo-header into its field.
fn fill(transport: &mut [u8], field: usize, pseudo: u16, protocol: u8) {
    transport[field..field + 2].fill(0);
    let sum = match !checksum::add(pseudo, checksum::sum(transport)) {
        0 if protocol == udp::PROTOCOL => 0xffff,
        sum => sum,
    };
    transport[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

/// The length in bytes of all headers of a TCP or UDP packet: what each of its segments repeats.
///
/// # Errors
/// [`Reject::BadHeader`] or [`Reject::Truncated`] for what [`Segments::new`] would not cut.
pub fn header_len(packet: &[u8], inner: &Inner) -> Result<usize, Reject> {
    Segments::new(packet, inner, usize::MAX).map(|segments| segments.header_len())
}

/// The headers that every segment repeats with changes.
#[derive(Clone, Copy, Debug)]
enum Ip {
    V4(Ipv4),
    V6(Ipv6),
}

#[derive(Clone, Copy, Debug)]
enum Transport {
    Tcp(Tcp),
    Udp(Udp),
}

/// Cuts a TCP or UDP superpacket into packets as a network card with TSO or USO would.
///
/// - IP: lengths and IPv4 header checksum per packet, identification counting up, options and extension headers repeated.
/// - TCP: sequence number advancing, options repeated, CWR on the first packet only, FIN and PSH on the last only, an
///   urgent pointer moved along.
/// - UDP: each packet is a datagram with its own length.
///
/// Each packet has a right transport checksum, whatever the superpacket's was: a caller that does not know it to be
/// [`L4Checksum::Valid`] or [`L4Checksum::Unfinished`] would hide damage by cutting.
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    packet: &'a [u8],
    inner: Inner,
    ip: Ip,
    transport: Transport,
    /// Offset of the payload.
    headers: usize,
    payload_per_segment: usize,
    /// Payload bytes already cut off.
    done: usize,
    /// How many segments are out; the identification field counts with it and wraps with it.
    index: u16,
    finished: bool,
}

impl<'a> Segments<'a> {
    /// Prepares to cut `packet`, of which `inner` is the parsed summary, into segments of at most
    /// `payload_per_segment` payload bytes.
    ///
    /// # Errors
    /// [`Reject::BadHeader`] for a fragment, for another protocol than TCP or UDP, for a UDP length that is not that
    /// of the IP payload, for a SYN or RST with more than one segment's payload, for IPv6 with a routing header that
    /// has stations left, and for a `payload_per_segment` of 0; [`Reject::Truncated`] for a transport header that does
    /// not fit.
    pub fn new(
        packet: &'a [u8],
        inner: &Inner,
        payload_per_segment: usize,
    ) -> Result<Self, Reject> {
        if inner.fragment != Fragment::None || inner.source_routed || payload_per_segment == 0 {
            return Err(Reject::BadHeader);
        }
        let packet = packet.get(..inner.total_len).ok_or(Reject::Truncated)?;
        let body = packet.get(inner.l4..).ok_or(Reject::Truncated)?;
        let ip = match inner.family {
            Family::V4 => Ip::V4(Ipv4::parse(packet)?),
            Family::V6 => Ip::V6(Ipv6::parse(packet)?),
        };
        let (transport, l4_header) = match inner.protocol {
            tcp::PROTOCOL => {
                let tcp = Tcp::parse(body)?;
                let header_len = usize::from(tcp.header_len);
                if tcp.flags & (tcp::SYN | tcp::RST) != 0
                    && body.len() - header_len > payload_per_segment
                {
                    return Err(Reject::BadHeader);
                }
                (Transport::Tcp(tcp), header_len)
            }
            udp::PROTOCOL => {
                let udp = Udp::parse(body)?;
                if usize::from(udp.len) != body.len() {
                    return Err(Reject::BadHeader);
                }
                (Transport::Udp(udp), udp::HEADER_LEN)
            }
            _ => return Err(Reject::BadHeader),
        };
        let headers = inner.l4 + l4_header;
        Ok(Self {
            packet,
            inner: *inner,
            ip,
            transport,
            headers,
            payload_per_segment,
            done: 0,
            index: 0,
            finished: false,
        })
    }

    /// Prepares to cut `packet` into packets of at most `mtu` bytes.
    ///
    /// # Errors
    /// Those of [`new`](Self::new), and [`Reject::BadHeader`] if the headers leave no room for payload.
    pub fn for_mtu(packet: &'a [u8], inner: &Inner, mtu: usize) -> Result<Self, Reject> {
        let room = mtu.saturating_sub(header_len(packet, inner)?);
        Self::new(packet, inner, room)
    }

    /// Bytes of headers in front of each segment's payload.
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.headers
    }

    /// How many segments the whole superpacket makes; at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        (self.packet.len() - self.headers)
            .div_ceil(self.payload_per_segment)
            .max(1)
    }

    /// Appends the next segment to `out` and returns its length in bytes; `None` when there are no more.
    pub fn next_into(&mut self, out: &mut Vec<u8>) -> Option<usize> {
        if self.finished {
            return None;
        }
        let rest = &self.packet[self.headers + self.done..];
        let payload = &rest[..rest.len().min(self.payload_per_segment)];
        self.finished = payload.len() == rest.len();
        let start = out.len();
        out.reserve(self.headers + payload.len());
        self.emit_ip(self.headers + payload.len(), out);
        self.emit_transport(payload.len(), out);
        out.extend_from_slice(payload);

        let transport = &mut out[start + self.inner.l4..];
        let pseudo = pseudo_header(&self.inner, transport.len());
        let field = match self.transport {
            Transport::Tcp(_) => tcp::CHECKSUM,
            Transport::Udp(_) => udp::CHECKSUM,
        };
        fill(transport, field, pseudo, self.inner.protocol);
        self.done += payload.len();
        self.index = self.index.wrapping_add(1);
        Some(out.len() - start)
    }

    fn emit_ip(&self, total_len: usize, out: &mut Vec<u8>) {
        let start = out.len();
        match self.ip {
            Ip::V4(ip) => {
                let id = ip.id.wrapping_add(self.index);
                out.extend_from_slice(
                    &Ipv4 {
                        total_len: len16(total_len),
                        id,
                        ..ip
                    }
                    .emit(),
                );
                out.extend_from_slice(&self.packet[ipv4::MIN_HEADER..self.inner.l4]);
                ipv4::fill_checksum(&mut out[start..]);
            }
            Ip::V6(ip) => {
                let payload_len = len16(total_len - ipv6::HEADER_LEN);
                out.extend_from_slice(&Ipv6 { payload_len, ..ip }.emit());
                out.extend_from_slice(&self.packet[ipv6::HEADER_LEN..self.inner.l4]);
            }
        }
    }

    fn emit_transport(&self, payload_len: usize, out: &mut Vec<u8>) {
        match self.transport {
            Transport::Tcp(tcp) => {
                let mut tcp = tcp;
                if self.done > 0 {
                    tcp.flags &= !tcp::CWR;
                }
                if !self.finished {
                    tcp.flags &= !(tcp::FIN | tcp::PSH);
                }
                // The urgent pointer counts from the sequence number; a segment past its end is not urgent.
                if tcp.flags & tcp::URG != 0 {
                    tcp.urgent = tcp.urgent.saturating_sub(len16(self.done));
                    if tcp.urgent == 0 && self.done > 0 {
                        tcp.flags &= !tcp::URG;
                    }
                }
                tcp.seq = tcp.seq.wrapping_add(u32::from(len16(self.done)));
                out.extend_from_slice(&tcp.emit());
                out.extend_from_slice(&self.packet[self.inner.l4 + tcp::MIN_HEADER..self.headers]);
            }
            Transport::Udp(udp) => {
                let len = len16(udp::HEADER_LEN + payload_len);
                out.extend_from_slice(
                    &Udp {
                        len,
                        checksum: 0,
                        ..udp
                    }
                    .emit(),
                );
            }
        }
    }
}

/// A length inside an IP packet, whose 16-bit length fields have bounded it: nothing is ever cut off here.
fn len16(len: usize) -> u16 {
    debug_assert!(len <= usize::from(u16::MAX));
    u16::try_from(len).unwrap_or(u16::MAX)
}
