//! From a peer to the device: the receive checks, then the inner packet as the sender's kernel meant it.
//!
//! A datagram is delivered only if it passes every check, in this order, each with a drop reason of
//! its own:
//!
//! 1. it is long enough and its encapsulation header is right, 2. the VNI is ours;
//! 3. the outer source is the public IP of a live lease;
//! 4. (VXLAN) the inner destination MAC is ours, the EtherType IPv4 or IPv6;
//! 5. the inner packet is well-formed, and its source lies in that same lease;
//! 6. it is not our own encapsulation looped back; its destination is ours to deliver.
//!
//! What a kernel VXLAN peer on the same machine sends needs more work: its packets cross a veth with
//! checksums that no one computed, and TCP ones as superpackets of up to 64 KiB.

use std::net::IpAddr;

use encap::ip::{Fragment, Inner};
use encap::segment::{self, L4Checksum, Segments};
use encap::{Encapsulation, ecn};
use fdb::PeerId;

use super::batch::{Batch, Frame, Outbox, Place};
use super::counters::Direction;
use super::{DropReason, Forwarding, is_looped};

/// The inbound stage for one encapsulation.
pub struct Inbound<E> {
    encapsulation: E,
    port: u16,
    device_mtu: u16,
}

impl<E: Encapsulation> Inbound<E> {
    /// A stage for datagrams of `encapsulation` that come to `port`, for a device with `device_mtu`.
    pub fn new(encapsulation: E, port: u16, device_mtu: u16) -> Self {
        Inbound {
            encapsulation,
            port,
            device_mtu,
        }
    }

    /// Works through `batch`; what is to be written to the device lands in `out`.
    pub fn run(
        &self,
        batch: &mut Batch,
        forwarding: &Forwarding,
        counts: &Direction,
        out: &mut Outbox,
    ) {
        for (index, frame) in batch.frames_mut().iter_mut().enumerate() {
            let checked = self.check(frame, forwarding, counts);
            let ended = checked.and_then(|(peer, inner)| {
                if self.is_superpacket(&inner) {
                    self.split(frame, peer, &inner, counts, out)
                } else {
                    if segment::looks_unfinished(frame.bytes(), &inner) {
                        finish_checksum(frame, &inner, counts);
                    }
                    counts.packets_in.add(1);
                    out.deliver(Some(peer), Place::Batch(index));
                    Ok(())
                }
            });
            if let Err(reason) = ended {
                counts.packets_in.add(1);
                counts.drop_one(reason);
            }
        }
    }

    /// The receive checks. Leaves the frame as the inner packet, its ToS byte combined with the outer.
    fn check(
        &self,
        frame: &mut Frame,
        forwarding: &Forwarding,
        counts: &Direction,
    ) -> Result<(PeerId, Inner), DropReason> {
        let tables = &forwarding.tables;
        let notes = self.encapsulation.check_header(frame.bytes())?;
        let outer = frame.source.ok_or(DropReason::UnknownPeer)?;
        let peer = tables
            .peer_by_public(outer)
            .ok_or(DropReason::UnknownPeer)?;
        let family = self.encapsulation.check_link(frame.bytes())?;
        frame.strip(E::HEADER_LEN);
        let inner = Inner::parse_checked(frame.bytes())?;
        frame.truncate(inner.total_len);
        if !may_send_from(inner.src, outer, forwarding) {
            return Err(DropReason::InnerSource);
        }
        if is_looped(frame.bytes(), &inner, self.port, tables) {
            return Err(DropReason::Looped);
        }
        if !tables.is_local(inner.dst) {
            return Err(DropReason::InnerDestination);
        }
        let combined = ecn::decapsulate(ecn::Ecn::of(inner.tos), ecn::Ecn::of(frame.tos))
            .ok_or(DropReason::EcnNotCapable)?;
        // RFC 2983: the inner DSCP stays as it was sent (pipe), or is the outer one (uniform).
        let from = if forwarding.options.copy_dscp {
            frame.tos
        } else {
            inner.tos
        };
        let tos = from & !3 | combined.bits();
        if tos != inner.tos {
            ecn::set_tos(frame.bytes_mut(), family, tos);
        }
        if notes.reserved_bits {
            counts.reserved_bits.add(1);
        }
        Ok((peer, inner))
    }

    /// A TCP packet that no link with our MTU can have carried.
    fn is_superpacket(&self, inner: &Inner) -> bool {
        inner.total_len > usize::from(self.device_mtu)
            && inner.protocol == encap::tcp::PROTOCOL
            && inner.fragment == Fragment::None
    }

    /// Splits a superpacket into packets of the device's MTU. Each counts as one inner packet.
    fn split(
        &self,
        frame: &Frame,
        peer: PeerId,
        inner: &Inner,
        counts: &Direction,
        out: &mut Outbox,
    ) -> Result<(), DropReason> {
        let packet = frame.bytes();
        match segment::l4_checksum_state(packet, inner) {
            L4Checksum::Bad => return Err(DropReason::BadChecksum),
            L4Checksum::Unfinished => counts.checksums_completed.add(1),
            L4Checksum::Valid | L4Checksum::Absent => {}
        }
        let mut segments = Segments::for_mtu(packet, inner, usize::from(self.device_mtu))?;
        while let Some(place) = out.make(|made| segments.next_into(made).is_some()) {
            counts.packets_in.add(1);
            out.deliver(Some(peer), place);
        }
        counts.split.add(1);
        Ok(())
    }
}

/// May the node with public IP `outer` send packets from `source`? Only from its own lease, or, by
/// option, from the public IP itself.
fn may_send_from(source: IpAddr, outer: IpAddr, forwarding: &Forwarding) -> bool {
    let tables = &forwarding.tables;
    let holds = |peer: PeerId| tables.peer(peer).public.ips().any(|ip| ip == outer);
    tables.owner(source).is_some_and(holds)
        || (forwarding.options.accept_node_source
            && tables.peer_by_public(source).is_some_and(holds))
}

/// Computes the transport checksum that the sender's kernel left to a network card that never came.
fn finish_checksum(frame: &mut Frame, inner: &Inner, counts: &Direction) {
    // The field can equal the pseudo-header's sum by chance and still be right: then leave it.
    if segment::l4_checksum_state(frame.bytes(), inner) == L4Checksum::Unfinished {
        segment::complete_checksum(frame.bytes_mut(), inner);
        counts.checksums_completed.add(1);
    }
}
