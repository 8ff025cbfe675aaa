//! Superpackets split to wire size, as a network card with TSO or USO would.
//!
//! - IP: lengths and IPv4 header checksum per packet, identification counting up, options and extension headers repeated.
//! - TCP: sequence number advancing, options repeated, CWR on the first packet only, FIN and PSH on the last only, an
//!   urgent pointer moved along.
//! - UDP: each packet is a datagram with its own length.
//!
//! Each packet has a right transport checksum, whatever the superpacket's was: a caller that does not know it to be
//! valid or unfinished would hide damage by splitting.

use std::ops::Range;

use crate::checksum::{self, pseudo_header};
use crate::ipv4::{self, Ipv4};
use crate::ipv6;
use crate::sums::Sums;
use crate::tcp::{self, Tcp};
use crate::udp::{self, Udp};
use crate::{Family, Fragment, Inner, Reject};

/// A superpacket and how it is split. Making one touches the headers only; [`write`](Self::write) touches every
/// payload byte once.
#[derive(Clone, Debug)]
pub struct Split<'a> {
    headers: &'a [u8],
    payload: &'a [u8],
    /// Payload bytes of every segment but the last.
    size: usize,
    /// Offset of the transport header.
    l4: usize,
    ip: Ip,
    transport: Transport,
    /// Sum of the pseudo-header without its length.
    pseudo: u16,
}

/// What differs between the IP headers of the segments.
#[derive(Clone, Copy, Debug)]
enum Ip {
    /// The first identification, and the sum of the header without length, identification and checksum.
    V4 {
        id: u16,
        sum: u16,
    },
    V6,
}

/// What differs between the transport headers of the segments; `sum` is that of the header without it.
#[derive(Clone, Copy, Debug)]
enum Transport {
    Tcp { tcp: Tcp, sum: u16 },
    Udp { sum: u16 },
}

impl<'a> Split<'a> {
    /// Prepares to split `packet`, of which `inner` is the parsed summary, into segments of at most `size` payload
    /// bytes: the GSO size.
    ///
    /// # Errors
    /// [`Reject::BadHeader`] for a fragment, for another protocol than TCP or UDP, for a UDP length that is not that
    /// of the IP payload, for a SYN or RST with more than one segment's payload, for IPv6 with a routing header that
    /// has stations left, and for a `size` of 0; [`Reject::Truncated`] for a transport header that does not fit.
    pub fn new(packet: &'a [u8], inner: &Inner, size: usize) -> Result<Self, Reject> {
        if size == 0 {
            return Err(Reject::BadHeader);
        }
        let packet = packet.get(..inner.total_len).ok_or(Reject::Truncated)?;
        let (headers, payload) = packet.split_at(header_len(packet, inner)?);
        let (ip_header, l4_header) = headers.split_at(inner.l4);
        let ip = match inner.family {
            Family::V4 => {
                let ip = Ipv4::parse(packet)?;
                let same = Ipv4 {
                    total_len: 0,
                    id: 0,
                    checksum: 0,
                    ..ip
                };
                let options = checksum::sum(&ip_header[ipv4::MIN_HEADER..]);
                Ip::V4 {
                    id: ip.id,
                    sum: checksum::add(checksum::sum(&same.emit()), options),
                }
            }
            Family::V6 => Ip::V6,
        };
        let transport = if inner.protocol == tcp::PROTOCOL {
            let tcp = Tcp::parse(l4_header)?;
            if tcp.flags & (tcp::SYN | tcp::RST) != 0 && payload.len() > size {
                return Err(Reject::BadHeader);
            }
            let same = Tcp {
                seq: 0,
                flags: 0,
                checksum: 0,
                urgent: 0,
                ..tcp
            };
            let options = checksum::sum(&l4_header[tcp::MIN_HEADER..]);
            let sum = checksum::add(checksum::sum(&same.emit()), options);
            Transport::Tcp { tcp, sum }
        } else {
            // The ports.
            let sum = checksum::sum(&l4_header[..4]);
            Transport::Udp { sum }
        };
        Ok(Self {
            headers,
            payload,
            size: size.min(payload.len().max(1)),
            l4: inner.l4,
            ip,
            transport,
            pseudo: pseudo_header(inner, 0),
        })
    }

    /// Prepares to split `packet` into packets of at most `mtu` bytes.
    ///
    /// # Errors
    /// Those of [`new`](Self::new), and [`Reject::BadHeader`] if the headers leave no room for payload.
    pub fn for_mtu(packet: &'a [u8], inner: &Inner, mtu: usize) -> Result<Self, Reject> {
        let room = mtu.saturating_sub(header_len(packet, inner)?);
        Self::new(packet, inner, room)
    }

    /// How many segments the whole superpacket makes; at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.payload.len().div_ceil(self.size).max(1)
    }

    /// Bytes of headers in front of each segment's payload.
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.headers.len()
    }

    /// Length of every segment but the last, which may be shorter; of the only one if there is but one.
    #[must_use]
    pub fn segment_len(&self) -> usize {
        self.range_len(0..1, 0)
    }

    /// Bytes that the segments of `range` take, with `prefix` bytes in front of each.
    #[must_use]
    pub fn range_len(&self, range: Range<usize>, prefix: usize) -> usize {
        let end = range.end.min(self.count());
        let count = end.saturating_sub(range.start);
        if count == 0 {
            return 0;
        }
        let payload = self.payload.len().min(end * self.size) - range.start * self.size;
        count * (prefix + self.headers.len()) + payload
    }

    /// Bytes that all segments take, with `prefix` bytes in front of each.
    #[must_use]
    pub fn total_len(&self, prefix: usize) -> usize {
        self.range_len(0..self.count(), prefix)
    }

    /// Writes all segments, one behind the other, `prefix` in front of each, to the start of `out`, and returns how
    /// many bytes that makes: [`total_len`](Self::total_len), if there is room for it.
    pub fn write_all(&self, prefix: &[u8], out: &mut [u8], sums: &Sums) -> usize {
        self.write(0..self.count(), prefix, out, sums)
    }

    /// Writes the segments of `range`, counted from 0, as [`write_all`](Self::write_all) does all of them. A segment
    /// that does not exist, or does not fit into `out` whole, ends it.
    pub fn write(&self, range: Range<usize>, prefix: &[u8], out: &mut [u8], sums: &Sums) -> usize {
        let mut written = 0;
        for index in range.start..range.end.min(self.count()) {
            let done = index * self.size;
            let end = self.payload.len().min(done + self.size);
            let payload = &self.payload[done..end];
            let len = prefix.len() + self.headers.len() + payload.len();
            let Some(segment) = out.get_mut(written..written + len) else {
                break;
            };
            let (front, rest) = segment.split_at_mut(prefix.len());
            let (headers, body) = rest.split_at_mut(self.headers.len());
            front.copy_from_slice(prefix);
            headers.copy_from_slice(self.headers);
            let sum = (sums.copy_and_sum)(body, payload);
            self.patch(headers, index, done, payload.len(), sum);
            written += len;
        }
        written
    }

    /// Makes the superpacket's headers those of segment `index`, whose payload is `len` bytes long, has the sum
    /// `payload`, and follows `done` bytes in front of it.
    fn patch(&self, headers: &mut [u8], index: usize, done: usize, len: usize, payload: u16) {
        let total_len = headers.len() + len;
        let (ip, l4) = headers.split_at_mut(self.l4);
        match self.ip {
            Ip::V4 { id, sum } => {
                let total_len = len16(total_len);
                let id = id.wrapping_add(len16(index));
                let checksum = !checksum::add(sum, checksum::add(total_len, id));
                put(ip, ipv4::TOTAL_LEN, total_len);
                put(ip, ipv4::ID, id);
                put(ip, ipv4::CHECKSUM, checksum);
            }
            Ip::V6 => put(ip, ipv6::PAYLOAD_LEN, len16(total_len - ipv6::HEADER_LEN)),
        }
        let l4_len = len16(total_len - self.l4);
        let covered = checksum::add(checksum::add(self.pseudo, l4_len), payload);
        match self.transport {
            Transport::Tcp { tcp, sum } => {
                let tcp = self.tcp(tcp, done, done + len == self.payload.len());
                let header = tcp.emit();
                let changed = checksum::sum(
                    &Tcp {
                        src: 0,
                        dst: 0,
                        ack: 0,
                        header_len: 0,
                        window: 0,
                        ..tcp
                    }
                    .emit(),
                );
                l4[..tcp::MIN_HEADER].copy_from_slice(&header);
                let sum = checksum::add(checksum::add(sum, changed), covered);
                put(l4, tcp::CHECKSUM, !sum);
            }
            Transport::Udp { sum } => {
                put(l4, udp::LEN, l4_len);
                let sum = checksum::add(checksum::add(sum, l4_len), covered);
                put(l4, udp::CHECKSUM, udp::nonzero(!sum));
            }
        }
    }

    /// The header of the segment that follows `done` payload bytes, without its checksum.
    fn tcp(&self, mut tcp: Tcp, done: usize, last: bool) -> Tcp {
        if done > 0 {
            tcp.flags &= !tcp::CWR;
        }
        if !last {
            tcp.flags &= !(tcp::FIN | tcp::PSH);
        }
        // The urgent pointer counts from the sequence number; a segment past its end is not urgent.
        if tcp.flags & tcp::URG != 0 {
            tcp.urgent = tcp.urgent.saturating_sub(len16(done));
            if tcp.urgent == 0 && done > 0 {
                tcp.flags &= !tcp::URG;
            }
        }
        tcp.seq = tcp.seq.wrapping_add(u32::from(len16(done)));
        tcp.checksum = 0;
        tcp
    }
}

/// The length in bytes of all headers of a TCP or UDP packet: what each of its segments repeats.
///
/// # Errors
/// [`Reject::BadHeader`] or [`Reject::Truncated`] for what [`Split::new`] would not split.
pub fn header_len(packet: &[u8], inner: &Inner) -> Result<usize, Reject> {
    if inner.fragment != Fragment::None || inner.source_routed {
        return Err(Reject::BadHeader);
    }
    let body = packet
        .get(inner.l4..inner.total_len)
        .ok_or(Reject::Truncated)?;
    let l4_header = match inner.protocol {
        tcp::PROTOCOL => usize::from(Tcp::parse(body)?.header_len),
        udp::PROTOCOL if usize::from(Udp::parse(body)?.len) != body.len() => {
            return Err(Reject::BadHeader);
        }
        udp::PROTOCOL => udp::HEADER_LEN,
        _ => return Err(Reject::BadHeader),
    };
    Ok(inner.l4 + l4_header)
}

fn put(header: &mut [u8], at: usize, value: u16) {
    header[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// A length inside an IP packet, whose 16-bit length fields have bounded it: nothing is ever cut off here.
fn len16(len: usize) -> u16 {
    debug_assert!(len <= usize::from(u16::MAX));
    u16::try_from(len).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
