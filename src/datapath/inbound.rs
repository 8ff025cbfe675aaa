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
//! checksums that no one computed, and TCP and UDP ones as superpackets of up to 64 KiB. A device that takes such
//! packets ([`Takes`]) gets them as they are, marked as unfinished; for one that does not, they are split and finished.

use std::net::IpAddr;

use encap::ip::{Fragment, Inner};
use encap::split::{self, Split};
use encap::sums::Sums;
use encap::transport::{self, L4Checksum};
use encap::vnet::{Gso, VnetHeader};
use encap::{Encapsulation, Family, checksum, ecn, tcp, udp};
use fdb::PeerId;

use super::batch::{Batch, Delivery, Outbox, Packet, Place};
use super::counters::Direction;
use super::{DropReason, Forwarding, Options, is_looped};

/// What the device's kernel finishes of what is written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Nothing: finished packets only.
    Finished,
    /// Unfinished checksums, and TCP superpackets.
    Tcp,
    /// UDP superpackets too.
    TcpAndUdp,
}

/// The inbound stage for one encapsulation.
pub struct Inbound<E> {
    encapsulation: E,
    port: u16,
    takes: Takes,
    sums: Sums,
}

impl<E: Encapsulation> Inbound<E> {
    /// A stage for datagrams of `encapsulation` that come to `port`, for a device that takes what `takes` says, with
    /// the checksum kernels of this processor.
    pub fn new(encapsulation: E, port: u16, takes: Takes, sums: Sums) -> Self {
        Inbound {
            encapsulation,
            port,
            takes,
            sums,
        }
    }

    /// Is this message, of which the kernel says that it is datagrams of `segment` bytes, nevertheless one datagram?
    ///
    /// For a UDP superpacket that a kernel VXLAN device on the same machine sent whole, the kernel reports the size of
    /// the inner datagrams' payload: then the first inner packet is longer than that.
    pub fn is_one_datagram(message: &[u8], segment: usize) -> bool {
        message
            .get(E::HEADER_LEN..)
            .and_then(|packet| Inner::parse(packet).ok())
            .is_some_and(|inner| E::HEADER_LEN + inner.total_len > segment)
    }

    /// Works through `batch`; what is to be written to the device lands in `out`.
    pub fn run(
        &self,
        batch: &mut Batch,
        forwarding: &Forwarding,
        counts: &Direction,
        out: &mut Outbox,
    ) {
        for index in 0..batch.len() {
            let mut packet = batch.packet(index);
            let checked = self.check(&mut packet, forwarding, counts);
            let ended = checked.and_then(|(peer, inner)| {
                let mtu = mtu(&inner, &forwarding.options);
                let whole = Delivery::finished(Some(peer), Place::Batch(index));
                if is_superpacket(&inner, packet.frame().vnet.gso_size, mtu) {
                    return self.superpacket(packet, whole, &inner, mtu, counts, out);
                }
                let vnet = self.finish(&mut packet, &inner, counts)?;
                counts.packets_in.add(1);
                out.deliver(Delivery { vnet, ..whole });
                Ok(())
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
        frame: &mut Packet,
        forwarding: &Forwarding,
        counts: &Direction,
    ) -> Result<(PeerId, Inner), DropReason> {
        let tables = &forwarding.tables;
        let notes = self.encapsulation.check_header(frame.bytes())?;
        let outer = frame.frame().source.ok_or(DropReason::UnknownPeer)?;
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
        let combined = ecn::decapsulate(ecn::Ecn::of(inner.tos), ecn::Ecn::of(frame.frame().tos))
            .ok_or(DropReason::EcnNotCapable)?;
        // RFC 2983: the inner DSCP stays as it was sent (pipe), or is the outer one (uniform).
        let from = if forwarding.options.copy_dscp {
            frame.frame().tos
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

    /// Hands a superpacket over whole, or split. Each of its segments counts as one inner packet.
    fn superpacket(
        &self,
        mut packet: Packet,
        whole: Delivery,
        inner: &Inner,
        mtu: usize,
        counts: &Direction,
        out: &mut Outbox,
    ) -> Result<(), DropReason> {
        let unfinished = transport::looks_unfinished(packet.bytes(), inner);
        if !unfinished && transport::l4_checksum_state(packet.bytes(), inner) == L4Checksum::Bad {
            return Err(DropReason::BadChecksum);
        }
        let headers = split::header_len(packet.bytes(), inner)?;
        // Datagrams' sizes are the sender's choice, which the kernel reports; a stream may be split anywhere.
        let size = match inner.protocol {
            udp::PROTOCOL => packet.frame().vnet.gso_size.into(),
            _ => mtu.saturating_sub(headers),
        };
        let split = Split::new(packet.bytes(), inner, size)?;
        let packets = split.count() as u64;
        let takes = match inner.protocol {
            udp::PROTOCOL => self.takes == Takes::TcpAndUdp,
            _ => self.takes != Takes::Finished,
        };
        if takes {
            let vnet = self.unfinished(packet.bytes(), inner, headers, size)?;
            if !unfinished {
                unfinish(&mut packet, inner, &vnet);
            }
            counts.packets_in.add(packets);
            out.deliver(Delivery {
                packets,
                vnet,
                ..whole
            });
            return Ok(());
        }
        if unfinished {
            counts.checksums_completed.add(1);
        }
        for segment in 0..split.count() {
            let place = out.make(|made| {
                let start = made.len();
                made.resize(start + split.range_len(segment..segment + 1, 0), 0);
                split.write(segment..segment + 1, &[], &mut made[start..], &self.sums) > 0
            });
            if let Some(place) = place {
                counts.packets_in.add(1);
                out.deliver(Delivery::finished(whole.peer, place));
            }
        }
        counts.split.add(1);
        Ok(())
    }

    /// What the device is told of a superpacket: payload of `size` bytes in each segment, behind `headers` bytes.
    fn unfinished(
        &self,
        packet: &[u8],
        inner: &Inner,
        headers: usize,
        size: usize,
    ) -> Result<VnetHeader, DropReason> {
        if inner.protocol == tcp::PROTOCOL {
            return Ok(VnetHeader::for_unfinished(packet, inner, headers + size)?);
        }
        Ok(VnetHeader {
            gso: Gso::UdpL4,
            gso_size: u16::try_from(size).map_err(|_| DropReason::Malformed)?,
            ..VnetHeader::for_unfinished(packet, inner, usize::MAX)?
        })
    }

    /// A checksum that the sender's kernel left to a network card that never came: left to ours, or computed.
    fn finish(
        &self,
        packet: &mut Packet,
        inner: &Inner,
        counts: &Direction,
    ) -> Result<VnetHeader, DropReason> {
        if !transport::looks_unfinished(packet.bytes(), inner) {
            return Ok(VnetHeader::default());
        }
        if self.takes != Takes::Finished {
            // The field can equal the pseudo-header's sum by chance and still be right: then it will be again.
            return Ok(VnetHeader::for_unfinished(
                packet.bytes(),
                inner,
                usize::MAX,
            )?);
        }
        if transport::l4_checksum_state(packet.bytes(), inner) == L4Checksum::Unfinished {
            transport::complete_checksum(packet.bytes_mut(), inner);
            counts.checksums_completed.add(1);
        }
        Ok(VnetHeader::default())
    }
}

/// What a TCP superpacket is split to: it must not be more than the sender's kernel would have split it to, which
/// the receiver is not told, since pods need not take more than that.
fn mtu(inner: &Inner, options: &Options) -> usize {
    match inner.family {
        Family::V4 => options.path_mtu.into(),
        Family::V6 => options.ipv6_path_mtu.into(),
    }
}

/// A packet that a network card was to split: TCP that no link with our MTU can have carried, or UDP of which the
/// kernel says so.
fn is_superpacket(inner: &Inner, gso_size: u16, mtu: usize) -> bool {
    inner.fragment == Fragment::None
        && match inner.protocol {
            tcp::PROTOCOL => inner.total_len > mtu,
            udp::PROTOCOL => gso_size > 0,
            _ => false,
        }
}

/// Puts the sum of the pseudo-header where the finished checksum was, as the kernel wants it of what it finishes.
fn unfinish(packet: &mut Packet, inner: &Inner, vnet: &VnetHeader) {
    let sum = checksum::pseudo_header(inner, inner.total_len - inner.l4);
    let at = usize::from(vnet.csum_start + vnet.csum_offset);
    packet.bytes_mut()[at..at + 2].copy_from_slice(&sum.to_be_bytes());
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
