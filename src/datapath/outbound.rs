//! From the device to a peer: look up the destination, fit the packet to the path, put the peer's
//! finished header in front of it.
//!
//! overlayd is a link, not a hop: the inner packet's TTL is neither checked nor changed. The kernel
//! took one off when it forwarded the packet into the device, and the peer's kernel will take the next.

use std::time::Instant;

use encap::fragment::Fragments;
use encap::ip::Inner;
use encap::{Family, ecn};
use fdb::{NextHop, Route};

use super::batch::{Batch, Frame, Outbox};
use super::counters::Direction;
use super::hairpin::{self, Complaint};
use super::{DropReason, Forwarding, Options, is_looped, is_routable};

/// The outbound stage.
pub struct Outbound {
    port: u16,
    limiter: hairpin::Limiter,
}

/// What becomes of a packet that is not dropped in silence.
enum Verdict<'t> {
    Send(&'t NextHop, Inner),
    Fragment(&'t NextHop, Inner),
    Refuse(DropReason, Complaint, Inner),
}

impl Outbound {
    /// A stage for an overlay whose datagrams go to `port`.
    pub fn new(port: u16) -> Self {
        Outbound {
            port,
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
        for (index, frame) in batch.frames_mut().iter_mut().enumerate() {
            counts.packets_in.add(1);
            match self.decide(frame.bytes(), forwarding) {
                Ok(Verdict::Send(hop, inner)) => {
                    frame.truncate(inner.total_len);
                    frame.prepend(hop.header.as_slice());
                    let tos = outer_tos(inner.tos, &forwarding.options);
                    out.send(hop, tos, inner.total_len, index);
                }
                Ok(Verdict::Fragment(hop, inner)) => {
                    if let Err(reason) = fragment(frame, hop, &inner, forwarding, counts, out) {
                        counts.drop_one(reason);
                    }
                }
                Ok(Verdict::Refuse(reason, complaint, inner)) => {
                    counts.drop_one(reason);
                    let options = &forwarding.options;
                    if !hairpin::may_complain(frame.bytes(), &inner, complaint) {
                        continue;
                    }
                    if !self.limiter.allow(now, options.icmp_rate) {
                        counts.icmp_limited.add(1);
                    } else if let Some(place) =
                        hairpin::complain(frame.bytes(), &inner, complaint, options, out)
                    {
                        counts.icmp_sent.add(1);
                        out.deliver(None, place);
                    }
                }
                Err(reason) => counts.drop_one(reason),
            }
        }
    }

    fn decide<'t>(
        &self,
        packet: &[u8],
        forwarding: &'t Forwarding,
    ) -> Result<Verdict<'t>, DropReason> {
        let tables = &forwarding.tables;
        let inner = Inner::parse(packet)?;
        if !is_routable(inner.dst) {
            return Err(DropReason::NotUnicast);
        }
        if is_looped(packet, &inner, self.port, tables) {
            return Err(DropReason::Looped);
        }
        let hop = match tables.route(inner.dst) {
            Route::Peer(hop) => hop,
            Route::Local => {
                let complaint = Complaint::HostUnreachable;
                return Ok(Verdict::Refuse(DropReason::OwnSubnet, complaint, inner));
            }
            Route::None => {
                let complaint = Complaint::NetUnreachable;
                return Ok(Verdict::Refuse(DropReason::NoLease, complaint, inner));
            }
        };
        if inner.total_len <= usize::from(hop.mtu) {
            return Ok(Verdict::Send(hop, inner));
        }
        if inner.family == Family::V4 && !inner.dont_fragment {
            return Ok(Verdict::Fragment(hop, inner));
        }
        Ok(Verdict::Refuse(
            DropReason::TooBig,
            Complaint::TooBig { mtu: hop.mtu },
            inner,
        ))
    }
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

/// Sends the packet as fragments that fit, each with the header in front (RFC 791 section 3.2). A
/// tunnel endpoint must not fragment the outer packet (RFC 7348 section 4.3), so the inner one is.
fn fragment(
    frame: &Frame,
    hop: &NextHop,
    inner: &Inner,
    forwarding: &Forwarding,
    counts: &Direction,
    out: &mut Outbox,
) -> Result<(), DropReason> {
    let mut fragments = Fragments::new(frame.bytes(), inner, usize::from(hop.mtu))?;
    let tos = outer_tos(inner.tos, &forwarding.options);
    out.send_made(hop, tos, inner.total_len, |made| {
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
