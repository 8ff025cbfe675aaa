//! Consecutive packets of one flow joined to a superpacket: what a network card with LRO, and Linux with GRO, does.
//!
//! The superpacket is written with `writev([vnet header][headers][payload][payload]...)`: the first packet's headers
//! are changed where they lie, and no payload is copied. Splitting it again gives back the very packets it came from,
//! except that IPv4 identifications of packets with DF set are renumbered (they mean nothing: RFC 6864 section 4.1).
//!
//! What is joined (`tcp_gro_receive` of net/ipv4/tcp_offload.c and `inet_gro_receive` of net/ipv4/af_inet.c are the
//! models):
//!
//! - IPv4 without options, its identifications counting up unless DF is set, or IPv6 without extension headers; no
//!   fragments; a right IPv4 header checksum.
//! - All header bytes equal to the first packet's (addresses, ports, ToS, TTL, flow label, acknowledgment, window, TCP
//!   options with their timestamps), except for those that splitting makes anew.
//! - TCP: ACK set, ECE or not, and nothing else but CWR on the first packet, and PSH and FIN on the last, which each
//!   close the run; the sequence numbers contiguous.
//! - UDP: with a checksum, and not toward a port where a tunnel listens.
//! - Payload in each, of the first one's size; a shorter one closes the run. 65,535 bytes in all, and
//!   [`MAX_SEGMENTS`] packets.
//! - A right transport checksum. The superpacket's is left for the kernel to finish, and finishing it would make damage
//!   look good.

use crate::checksum::{self, pseudo_header};
use crate::sums::Sums;
use crate::vnet::{Gso, VnetHeader};
use crate::{Family, Fragment, Inner, ipv4, ipv6, tcp, udp};

/// How many packets are joined at most: as many as Linux sends in one UDP superpacket (UDP_MAX_SEGMENTS,
/// include/linux/udp.h).
pub const MAX_SEGMENTS: usize = 128;

/// The longest headers of a packet that is joined: IPv6 and TCP with all options it can have.
const MAX_HEADERS: usize = ipv6::HEADER_LEN + 60;

/// What may be joined, and how its checksums are verified.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// The loops over the payload.
    pub sums: Sums,
    /// Join UDP too: the device takes UDP superpackets (USO).
    pub udp: bool,
    /// UDP destination ports where a tunnel may listen: datagrams to them are packets of other flows, and a tunnel
    /// wants to see them one by one.
    pub tunnel_ports: &'a [u16],
}

/// What became of a packet that was offered to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// Its payload, behind [`Run::header_len`] bytes of headers, is part of the superpacket.
    Joined,
    /// The same, and the superpacket takes no more.
    JoinedAndClosed,
    /// It isn't the next packet of this run, and the run is as it was.
    No,
}

/// Which bits of a header must be equal in all packets of a run, and the value they have.
#[derive(Clone, Copy, Debug)]
struct Template {
    value: [u8; MAX_HEADERS],
    mask: [u8; MAX_HEADERS],
    len: usize,
}

impl Template {
    fn matches(&self, packet: &[u8]) -> bool {
        let Some(header) = packet.get(..self.len) else {
            return false;
        };
        let (value, mask) = (&self.value[..self.len], &self.mask[..self.len]);
        let mut differing = 0;
        for ((byte, value), mask) in header.iter().zip(value).zip(mask) {
            differing |= (byte ^ value) & mask;
        }
        differing == 0
    }
}

/// Packets that are joined so far. It keeps no packet, only what it has to know of them.
#[derive(Clone, Debug)]
pub struct Run {
    template: Template,
    family: Family,
    tcp: bool,
    sums: Sums,
    /// Offset of the transport header.
    l4: usize,
    /// Sum of the pseudo-header without its length.
    pseudo: u16,
    /// Payload bytes of every packet but the last.
    size: usize,
    /// Payload bytes of all packets.
    payload: usize,
    count: usize,
    /// The next packet's sequence number.
    next_seq: u32,
    /// The next packet's identification; `None` where it may be any.
    next_id: Option<u16>,
    /// FIN and PSH of the last packet, CWR of the first.
    flags: u8,
    closed: bool,
}

/// The lower eight flags of a TCP header, as bytes.
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

impl Run {
    /// Starts a run with `packet`, of which `inner` is the parsed summary, if it may have a companion at all.
    /// [`Inner::parse_checked`] has found its IPv4 header checksum right; the transport checksum is verified here.
    #[must_use]
    pub fn start(packet: &[u8], inner: &Inner, rules: &Rules) -> Option<Self> {
        let (bare, is_tcp) = match (inner.family, inner.protocol) {
            (Family::V4, tcp::PROTOCOL) => (ipv4::MIN_HEADER, true),
            (Family::V4, udp::PROTOCOL) => (ipv4::MIN_HEADER, false),
            (Family::V6, tcp::PROTOCOL) => (ipv6::HEADER_LEN, true),
            (Family::V6, udp::PROTOCOL) => (ipv6::HEADER_LEN, false),
            _ => return None,
        };
        if inner.l4 != bare || inner.fragment != Fragment::None || inner.total_len != packet.len() {
            return None;
        }
        let mut run = Self {
            template: ip_template(packet, inner.family)?,
            family: inner.family,
            tcp: is_tcp,
            sums: rules.sums,
            l4: inner.l4,
            pseudo: pseudo_header(inner, 0),
            size: 0,
            payload: 0,
            count: 1,
            next_seq: 0,
            next_id: None,
            flags: 0,
            closed: false,
        };
        if inner.family == Family::V4 && !inner.dont_fragment {
            run.next_id = Some(word(packet, ipv4::ID).wrapping_add(1));
        }
        if is_tcp {
            run.start_tcp(packet)?;
        } else {
            run.start_udp(packet, rules)?;
        }
        run.size = packet.len().checked_sub(run.template.len)?;
        run.payload = run.size;
        run.next_seq = run.next_seq.wrapping_add(length(run.size));
        (run.size > 0 && run.is_intact(packet)).then_some(run)
    }

    fn start_tcp(&mut self, packet: &[u8]) -> Option<()> {
        let h = packet
            .get(self.l4..)?
            .first_chunk::<{ tcp::MIN_HEADER }>()?;
        let header_len = usize::from(h[12] >> 4) * 4;
        // The reserved bits and AE are 0; FIN and PSH would have closed the run before it began.
        if header_len < tcp::MIN_HEADER || h[12] & 0x0f != 0 || h[13] & !(ECE | CWR) != ACK {
            return None;
        }
        self.next_seq = u32::from_be_bytes([h[4], h[5], h[6], h[7]]);
        self.flags = h[13] & CWR;
        let options = self.l4 + tcp::MIN_HEADER..self.l4 + header_len;
        self.template.add(packet, self.l4..self.l4 + 4, 0xff)?; // ports
        self.template.add(packet, self.l4 + 8..self.l4 + 13, 0xff)?; // acknowledgment, data offset
        self.template
            .add(packet, self.l4 + 13..self.l4 + 14, !(FIN | PSH | CWR))?;
        self.template
            .add(packet, self.l4 + 14..self.l4 + 16, 0xff)?; // window
        self.template
            .add(packet, self.l4 + 18..self.l4 + 20, 0xff)?; // urgent pointer
        self.template.add(packet, options, 0xff)
    }

    fn start_udp(&mut self, packet: &[u8], rules: &Rules) -> Option<()> {
        let h = packet
            .get(self.l4..)?
            .first_chunk::<{ udp::HEADER_LEN }>()?;
        let to = u16::from_be_bytes([h[2], h[3]]);
        if !rules.udp || rules.tunnel_ports.contains(&to) {
            return None;
        }
        self.template.add(packet, self.l4..self.l4 + 4, 0xff)?; // ports
        self.template
            .add(packet, self.l4 + 4..self.l4 + udp::HEADER_LEN, 0)
    }

    /// Adds `packet` to the superpacket if it is its next segment.
    ///
    /// It takes no parsing before: whatever [`Inner::parse_checked`] would find wrong is found wrong here too, and of
    /// a packet that was joined, everything that parsing could tell is as it was in the first one, but for the length.
    /// A packet with bytes behind its end isn't joined.
    pub fn try_join(&mut self, packet: &[u8]) -> Join {
        if self.closed || self.count >= MAX_SEGMENTS || !self.template.matches(packet) {
            return Join::No;
        }
        let payload = packet.len() - self.template.len;
        let total = self.template.len + self.payload + payload;
        if payload == 0 || payload > self.size || total > usize::from(u16::MAX) {
            return Join::No;
        }
        if !self.is_next(packet) || !self.is_intact(packet) {
            return Join::No;
        }
        let last = if self.tcp {
            packet[self.l4 + 13] & (FIN | PSH)
        } else {
            0
        };
        self.flags |= last;
        self.count += 1;
        self.payload += payload;
        self.next_seq = self.next_seq.wrapping_add(length(payload));
        self.next_id = self.next_id.map(|id| id.wrapping_add(1));
        self.closed = last != 0 || payload < self.size || self.count == MAX_SEGMENTS;
        if self.closed {
            Join::JoinedAndClosed
        } else {
            Join::Joined
        }
    }

    /// Do lengths, identification, sequence number and flags follow on?
    fn is_next(&self, packet: &[u8]) -> bool {
        let id = self
            .next_id
            .is_none_or(|next| word(packet, ipv4::ID) == next);
        if self.tcp {
            let seq =
                u32::from(word(packet, self.l4 + 4)) << 16 | u32::from(word(packet, self.l4 + 6));
            id && seq == self.next_seq && packet[self.l4 + 13] & CWR == 0
        } else {
            id
        }
    }

    /// Do the lengths say what they should, and do the checksums verify?
    fn is_intact(&self, packet: &[u8]) -> bool {
        let transport = &packet[self.l4..];
        let l4_len = transport.len();
        let ip = match self.family {
            Family::V4 => {
                usize::from(word(packet, ipv4::TOTAL_LEN)) == packet.len()
                    && checksum::sum(&packet[..self.l4]) == 0xffff
            }
            Family::V6 => usize::from(word(packet, ipv6::PAYLOAD_LEN)) == l4_len,
        };
        let udp = self.tcp
            || usize::from(word(transport, udp::LEN)) == l4_len
                && word(transport, udp::CHECKSUM) != 0;
        let sum = checksum::add(self.pseudo, len16(l4_len));
        ip && udp && checksum::add(sum, (self.sums.sum)(transport)) == 0xffff
    }

    /// Bytes of headers in front of each packet's payload.
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.template.len
    }

    /// How many packets were joined; 1 for one that has found no companion.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Length of the superpacket in bytes.
    #[must_use]
    pub fn total_len(&self) -> usize {
        self.template.len + self.payload
    }

    /// Ends the run: makes the headers of the first packet, at the start of `head`, those of the superpacket, and
    /// returns what the device is to be told of it. A packet without companion stays as it is.
    pub fn finish(self, head: &mut [u8]) -> VnetHeader {
        if self.count == 1 {
            return VnetHeader::default();
        }
        let total_len = self.total_len();
        match self.family {
            Family::V4 => {
                put(head, ipv4::TOTAL_LEN, len16(total_len));
                ipv4::fill_checksum(&mut head[..self.l4]);
            }
            Family::V6 => put(head, ipv6::PAYLOAD_LEN, len16(total_len - ipv6::HEADER_LEN)),
        }
        let l4 = &mut head[self.l4..];
        let l4_len = len16(total_len - self.l4);
        let (gso, csum_offset) = match (self.tcp, self.family) {
            (true, Family::V4) => (Gso::Tcp4, tcp::CHECKSUM),
            (true, Family::V6) => (Gso::Tcp6, tcp::CHECKSUM),
            (false, _) => (Gso::UdpL4, udp::CHECKSUM),
        };
        if self.tcp {
            l4[13] |= self.flags;
        } else {
            put(l4, udp::LEN, l4_len);
        }
        put(l4, csum_offset, checksum::add(self.pseudo, l4_len));
        VnetHeader {
            needs_csum: true,
            data_valid: false,
            gso,
            ecn: self.flags & CWR != 0,
            hdr_len: len16(self.header_len()),
            gso_size: len16(self.size),
            csum_start: len16(self.l4),
            csum_offset: len16(csum_offset),
        }
    }
}

impl Template {
    /// Appends the bytes of `packet` in `range` with the same mask for each; those skipped may be anything.
    fn add(&mut self, packet: &[u8], range: std::ops::Range<usize>, mask: u8) -> Option<()> {
        self.len = range.end;
        self.mask.get_mut(range.clone())?.fill(mask);
        self.value
            .get_mut(range.clone())?
            .copy_from_slice(packet.get(range)?);
        Some(())
    }
}

/// The template of an IP header: all but length, identification and checksum.
fn ip_template(packet: &[u8], family: Family) -> Option<Template> {
    let mut template = Template {
        value: [0; MAX_HEADERS],
        mask: [0; MAX_HEADERS],
        len: 0,
    };
    match family {
        Family::V4 => {
            template.add(packet, 0..2, 0xff)?; // version, header length, ToS
            template.add(packet, 6..10, 0xff)?; // flags, offset, TTL, protocol
            template.add(packet, 12..ipv4::MIN_HEADER, 0xff)?; // addresses
        }
        Family::V6 => {
            template.add(packet, 0..4, 0xff)?; // version, traffic class, flow label
            template.add(packet, 6..ipv6::HEADER_LEN, 0xff)?; // next header, hop limit, addresses
        }
    }
    Some(template)
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put(header: &mut [u8], at: usize, value: u16) {
    header[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// A length inside an IP packet, whose 16-bit length fields have bounded it: nothing is ever cut off here.
fn len16(len: usize) -> u16 {
    debug_assert!(len <= usize::from(u16::MAX));
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// A length as sequence numbers count it.
fn length(len: usize) -> u32 {
    u32::from(len16(len))
}

#[cfg(test)]
mod tests;
