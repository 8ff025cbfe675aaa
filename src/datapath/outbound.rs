//! From the device to a peer: look up the destination, fit the packet to the path, put the peer's
//! finished header in front of it.
//!
//! overlayd is a link, not a hop: the inner packet's TTL is neither checked nor changed. The kernel
//! took one off when it forwarded the packet into the device, and the peer's kernel will take the next.

use std::time::Instant;

use encap::fragment::Fragments;
use encap::ip::Inner;
use encap::split::Split;
use encap::sums::Sums;
use encap::vnet::Gso;
use encap::{Family, ecn, flow, transport};
use fdb::{NextHop, Route};

use super::batch::{Batch, Delivery, Outbox, Packet, Parcel};
use super::counters::Direction;
use super::hairpin::{self, Complaint};
use super::train::{MAX_BYTES, MAX_DATAGRAMS};
use super::{DropReason, Forwarding, Options, is_looped, is_routable};
use crate::inject::{Head, Kind, Super};

/// The outbound stage.
pub struct Outbound {
    port: u16,
    sums: Sums,
    limiter: hairpin::Limiter,
}

/// What becomes of a packet that is not dropped in silence.
enum Verdict<'t> {
    Send(&'t NextHop),
    Fragment(&'t NextHop),
    Refuse(DropReason, Complaint),
}

impl Outbound {
    /// A stage for an overlay whose datagrams go to `port`, with the checksum kernels of this processor.
    pub fn new(port: u16, sums: Sums) -> Self {
        Outbound {
            port,
            sums,
            limiter: hairpin::Limiter::default(),
        }
    }

    /// Works through `batch`; what is to be sent, to peers or back to the device, lands in `out`.
    pub fn run(
        &mut self,
        batch: &mut Batch,
        forwarding: &Forwarding,
        counts: &Direction,
        now: Instant,
        out: &mut Outbox,
    ) {
        self.run_with(batch, forwarding, counts, now, out, |_, _, _| None);
    }

    /// The same, where superpackets for which `whole` has the bytes to go in front travel as they are.
    pub fn run_with(
        &mut self,
        batch: &mut Batch,
        forwarding: &Forwarding,
        counts: &Direction,
        now: Instant,
        out: &mut Outbox,
        mut whole: impl FnMut(&NextHop, &Parcel, &Super) -> Option<Head>,
    ) {
        for index in 0..batch.len() {
            let packet = batch.packet(index);
            let split = Inner::parse(packet.bytes()).and_then(|inner| {
                let vnet = packet.frame().vnet;
                let split = match vnet.gso {
                    Gso::None => None,
                    _ => Some(Split::new(packet.bytes(), &inner, vnet.gso_size.into())?),
                };
                Ok((inner, split))
            });
            let (inner, split) = match split {
                Ok(parsed) => parsed,
                Err(reject) => {
                    counts.packets_in.add(1);
                    counts.drop_one(reject.into());
                    continue;
                }
            };
            let packets = split.as_ref().map_or(1, Split::count) as u64;
            counts.packets_in.add(packets);
            let size = split.as_ref().map_or(inner.total_len, Split::segment_len);
            match self.decide(packet.bytes(), &inner, size, forwarding) {
                Ok(Verdict::Send(hop)) => {
                    let parcel = parcel(packet.bytes(), hop, &inner, &forwarding.options);
                    match split {
                        None => send(packet, hop, &inner, counts, index, parcel, out),
                        Some(split) => {
                            let shape = shape(&packet, &inner, &split);
                            // Where it is not cut on the way, a receiver in user space is not told the segments'
                            // size, and takes the path's. So TCP goes whole if that is what it would be cut to.
                            let told = shape.kind == Kind::Udp
                                || split.segment_len() == usize::from(hop.mtu);
                            let head = told.then(|| whole(hop, &parcel, &shape)).flatten();
                            match head {
                                Some(head) => {
                                    let parcel = Parcel {
                                        packets,
                                        inner_bytes: split.total_len(0) as u64,
                                        ..parcel
                                    };
                                    out.send_whole(parcel, head, index);
                                    batch.packet(index).truncate(inner.total_len);
                                }
                                None => {
                                    counts.split.add(1);
                                    self.send_split(&split, hop, &parcel, out);
                                }
                            }
                        }
                    }
                }
                Ok(Verdict::Fragment(hop)) => {
                    let parcel = parcel(packet.bytes(), hop, &inner, &forwarding.options);
                    let done = match split {
                        None => fragment(packet, hop, &inner, counts, parcel, out),
                        Some(split) => self.fragment_each(&split, hop, counts, &parcel, out),
                    };
                    if let Err(reason) = done {
                        counts.drop_many(reason, packets);
                    }
                }
                Ok(Verdict::Refuse(reason, complaint)) => {
                    counts.drop_many(reason, packets);
                    self.complain(
                        packet.bytes(),
                        &inner,
                        complaint,
                        forwarding,
                        counts,
                        now,
                        out,
                    );
                }
                Err(reason) => counts.drop_many(reason, packets),
            }
        }
    }

    /// Decides what becomes of a packet, whose wire size is `size` bytes: that of a segment, of a superpacket.
    fn decide<'t>(
        &self,
        packet: &[u8],
        inner: &Inner,
        size: usize,
        forwarding: &'t Forwarding,
    ) -> Result<Verdict<'t>, DropReason> {
        let tables = &forwarding.tables;
        if !is_routable(inner.dst) {
            return Err(DropReason::NotUnicast);
        }
        if is_looped(packet, inner, self.port, tables) {
            return Err(DropReason::Looped);
        }
        let hop = match tables.route(inner.dst) {
            Route::Peer(hop) => hop,
            Route::Local => {
                let complaint = Complaint::HostUnreachable;
                return Ok(Verdict::Refuse(DropReason::OwnSubnet, complaint));
            }
            Route::None => {
                let complaint = Complaint::NetUnreachable;
                return Ok(Verdict::Refuse(DropReason::NoLease, complaint));
            }
        };
        if size <= usize::from(hop.mtu) {
            return Ok(Verdict::Send(hop));
        }
        if inner.family == Family::V4 && !inner.dont_fragment {
            return Ok(Verdict::Fragment(hop));
        }
        Ok(Verdict::Refuse(
            DropReason::TooBig,
            Complaint::TooBig { mtu: hop.mtu },
        ))
    }

    /// Splits a superpacket into datagrams that lie one behind the other, as many in each parcel as one send takes.
    fn send_split(&self, split: &Split, hop: &NextHop, parcel: &Parcel, out: &mut Outbox) {
        let header = hop.header.as_slice();
        let segment = header.len() + split.segment_len();
        let most = MAX_DATAGRAMS.min(MAX_BYTES / segment).max(1);
        let count = split.count();
        for start in (0..count).step_by(most) {
            let range = start..count.min(start + most);
            let parcel = Parcel {
                packets: range.len() as u64,
                inner_bytes: split.range_len(range.clone(), 0) as u64,
                segment,
                ..parcel.clone()
            };
            let len = split.range_len(range.clone(), header.len());
            out.send_split(parcel, len, |room| {
                split.write(range, header, room, &self.sums);
            });
        }
    }

    /// Splits the superpacket in frame `index` that was to travel whole but could not.
    pub fn split_after_all(
        &self,
        batch: &Batch,
        index: usize,
        forwarding: &Forwarding,
        counts: &Direction,
        out: &mut Outbox,
    ) -> Result<(), DropReason> {
        let bytes = batch.bytes(index);
        let inner = Inner::parse(bytes)?;
        let size = batch.frame(index).vnet.gso_size;
        let split = Split::new(bytes, &inner, size.into())?;
        let Route::Peer(hop) = forwarding.tables.route(inner.dst) else {
            return Err(DropReason::NoLease);
        };
        counts.split.add(1);
        let parcel = parcel(bytes, hop, &inner, &forwarding.options);
        self.send_split(&split, hop, &parcel, out);
        Ok(())
    }

    /// Fragments each datagram of a superpacket that is too large for the path.
    fn fragment_each(
        &self,
        split: &Split,
        hop: &NextHop,
        counts: &Direction,
        parcel: &Parcel,
        out: &mut Outbox,
    ) -> Result<(), DropReason> {
        // Rare: a sender that ignores the device's MTU and allows fragments. Not worth memory of its own.
        let mut datagram = vec![0; split.segment_len()];
        for index in 0..split.count() {
            let len = split.write(index..index + 1, &[], &mut datagram, &self.sums);
            let inner = Inner::parse(&datagram[..len])?;
            let parcel = Parcel {
                inner_bytes: len as u64,
                ..parcel.clone()
            };
            fragments(&datagram[..len], hop, &inner, counts, parcel, out)?;
        }
        Ok(())
    }

    /// Tells the sender why its packet went nowhere, if it may be told.
    #[allow(clippy::too_many_arguments)]
    fn complain(
        &mut self,
        packet: &[u8],
        inner: &Inner,
        complaint: Complaint,
        forwarding: &Forwarding,
        counts: &Direction,
        now: Instant,
        out: &mut Outbox,
    ) {
        let options = &forwarding.options;
        if !hairpin::may_complain(packet, inner, complaint) {
            return;
        }
        if !self.limiter.allow(now, options.icmp_rate) {
            counts.icmp_limited.add(1);
        } else if let Some(place) = hairpin::complain(packet, inner, complaint, options, out) {
            counts.icmp_sent.add(1);
            out.deliver(Delivery::finished(None, place));
        }
    }
}

/// What is known of a superpacket that may travel whole.
fn shape(packet: &Packet, inner: &Inner, split: &Split) -> Super {
    let vnet = packet.frame().vnet;
    Super {
        family: inner.family,
        kind: match vnet.gso {
            Gso::UdpL4 => Kind::Udp,
            _ => Kind::Tcp { ecn: vnet.ecn },
        },
        l4: inner.l4,
        len: inner.total_len,
        payload: split.header_len(),
        gso_size: vnet.gso_size,
    }
}

/// The parcel in which a packet travels by way of `hop`.
fn parcel(packet: &[u8], hop: &NextHop, inner: &Inner, options: &Options) -> Parcel {
    let tos = outer_tos(inner.tos, options);
    Parcel::new(hop, tos, flow::hash(packet, inner), inner.total_len as u64)
}

/// The outer ToS byte: ECN and DSCP each by their own rule (RFC 6040, RFC 2983), never as one field.
fn outer_tos(inner: u8, options: &Options) -> u8 {
    let mark = if options.copy_ecn {
        ecn::encapsulate(ecn::Ecn::of(inner)).bits()
    } else {
        0
    };
    let dscp = if options.copy_dscp { inner & 0xfc } else { 0 };
    dscp | mark
}

/// Sends the packet as it is, the header in front of it where it lies.
fn send(
    mut packet: Packet,
    hop: &NextHop,
    inner: &Inner,
    counts: &Direction,
    index: usize,
    parcel: Parcel,
    out: &mut Outbox,
) {
    packet.truncate(inner.total_len);
    finish(&mut packet, inner, counts);
    packet.prepend(hop.header.as_slice());
    out.send(parcel, index);
}

/// Computes the transport checksum that the sender's kernel left to us.
fn finish(packet: &mut Packet, inner: &Inner, counts: &Direction) {
    if packet.frame().vnet.needs_csum {
        transport::complete_checksum(packet.bytes_mut(), inner);
        counts.checksums_completed.add(1);
    }
}

/// Sends the packet as fragments that fit.
fn fragment(
    mut packet: Packet,
    hop: &NextHop,
    inner: &Inner,
    counts: &Direction,
    parcel: Parcel,
    out: &mut Outbox,
) -> Result<(), DropReason> {
    finish(&mut packet, inner, counts);
    fragments(packet.bytes(), hop, inner, counts, parcel, out)
}

/// Each fragment with the header in front (RFC 791 section 3.2). A tunnel endpoint must not fragment the outer packet
/// (RFC 7348 section 4.3), so the inner one is.
fn fragments(
    packet: &[u8],
    hop: &NextHop,
    inner: &Inner,
    counts: &Direction,
    parcel: Parcel,
    out: &mut Outbox,
) -> Result<(), DropReason> {
    let mut fragments = Fragments::new(packet, inner, usize::from(hop.mtu))?;
    out.send_made(parcel, |made| {
        let start = made.len();
        made.extend_from_slice(hop.header.as_slice());
        if fragments.next_into(made).is_none() {
            made.truncate(start);
            return false;
        }
        counts.fragments.add(1);
        true
    });
    Ok(())
}
