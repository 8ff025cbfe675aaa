//! The bytes that travel through the stages: a [`Batch`] of received packets in, an [`Outbox`] of
//! finished packets out.
//!
//! All packets of a batch lie in one arena. What comes from the device is read one packet behind the other, with
//! just the room of one encapsulation header between them:
//!
//! ```text
//! | room | packet 0 | room | packet 1 | room | packet 2 | free ...
//! ```
//!
//! so that headers are written in front of packets where they lie, and neighbours of one size to one peer are then
//! one piece of memory, which leaves in one system call. What comes from the underlay lies in slots, one per
//! message; the datagrams that the kernel joined in one are frames of their own. Only what a stage makes anew
//! (fragments, segments, ICMP errors) is written to the outbox's own memory. All of it is made once and used
//! again for every batch: nothing here is allocated per packet.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use encap::vnet::VnetHeader;
use fdb::{NextHop, PeerId};

use crate::inject::Head;

/// The largest packet or datagram that IPv4 and IPv6 (without jumbograms) can carry.
pub const MAX_PACKET: usize = 65_535;

/// A batch from the device is full when so many bytes of it are, which is after four superpackets: they and what is made of
/// them, half a megabyte, stay in a second-level cache of one.
const FULL: usize = 3 << 16;

/// Distance of two slots: a message, and a little more, so that their first bytes are not all in the same lines of
/// a set-associative cache.
const SLOT: usize = MAX_PACKET + 1 + 192;

/// The most datagrams that a message holds (the kernel's `UDP_MAX_SEGMENTS`, include/linux/udp.h).
const MAX_SEGMENTS: usize = 128;

/// Where one packet lies in a batch, and what is known of it beside its bytes.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Where the room in front of it begins.
    floor: usize,
    start: usize,
    end: usize,
    /// The outer source address, for a datagram from the underlay.
    pub source: Option<IpAddr>,
    /// The outer ToS or traffic class byte, for a datagram from the underlay.
    pub tos: u8,
    /// What is left to finish: for a packet from a device that says so, and for what a kernel hands over whole.
    pub vnet: VnetHeader,
}

/// One packet of a batch, to be worked on.
pub struct Packet<'a> {
    arena: &'a mut [u8],
    frame: &'a mut Frame,
}

impl Packet<'_> {
    /// What is known of it beside its bytes.
    pub fn frame(&self) -> &Frame {
        self.frame
    }

    /// The packet as it stands: headers put in front included, headers stepped over left out.
    pub fn bytes(&self) -> &[u8] {
        &self.arena[self.frame.start..self.frame.end]
    }

    /// The packet as it stands, to be changed in place.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.arena[self.frame.start..self.frame.end]
    }

    /// Puts `header` in front of the packet. It must fit the room that the batch keeps, or what was stepped over.
    pub fn prepend(&mut self, header: &[u8]) {
        let start = self.frame.start - header.len();
        debug_assert!(
            start >= self.frame.floor,
            "the header does not fit the room"
        );
        self.arena[start..self.frame.start].copy_from_slice(header);
        self.frame.start = start;
    }

    /// Steps over the first `len` bytes.
    pub fn strip(&mut self, len: usize) {
        self.frame.start = (self.frame.start + len).min(self.frame.end);
    }

    /// Cuts the packet to `len` bytes (padding after an inner packet goes).
    pub fn truncate(&mut self, len: usize) {
        self.frame.end = self.frame.end.min(self.frame.start + len);
    }
}

/// Packets taken in one go.
pub struct Batch {
    arena: Box<[u8]>,
    frames: Vec<Frame>,
    /// Bytes kept free in front of each packet that is read.
    room: usize,
    /// Where the next packet's room begins.
    tail: usize,
    most: usize,
}

impl Batch {
    /// A batch of up to `most` packets, with `room` free bytes in front of each.
    pub fn new(most: usize, room: usize) -> Self {
        let full = FULL.min(most * (room + MAX_PACKET));
        Batch {
            arena: vec![0; full + room + MAX_PACKET].into_boxed_slice(),
            frames: Vec::with_capacity(most),
            room,
            tail: 0,
            most,
        }
    }

    /// A batch of up to `messages` messages of many datagrams each, filled by [`Batch::received`].
    pub fn of_messages(messages: usize) -> Self {
        Batch {
            arena: vec![0; messages * SLOT].into_boxed_slice(),
            frames: Vec::with_capacity(messages * MAX_SEGMENTS),
            room: 0,
            tail: 0,
            most: messages * MAX_SEGMENTS,
        }
    }

    /// Another batch of this shape, for packets from a device.
    pub fn another(&self) -> Self {
        Batch::new(self.most, self.room)
    }

    /// Forgets the packets.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.tail = 0;
    }

    /// Offers room for the next packet to `read`, and keeps it if `read` says how many bytes it read.
    ///
    /// `false` if the batch is full or `read` had nothing.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn fill<E>(
        &mut self,
        read: impl FnOnce(&mut [u8], &mut Frame) -> Result<Option<usize>, E>,
    ) -> Result<bool, E> {
        let start = self.tail + self.room;
        if self.frames.len() == self.most || start + MAX_PACKET > self.arena.len() {
            return Ok(false);
        }
        let mut frame = Frame {
            floor: self.tail,
            start,
            end: start,
            source: None,
            tos: 0,
            vnet: VnetHeader::default(),
        };
        let room = &mut self.arena[start..start + MAX_PACKET];
        let Some(len) = read(room, &mut frame)? else {
            return Ok(false);
        };
        frame.end = start + len.min(MAX_PACKET);
        self.tail = frame.end;
        self.frames.push(frame);
        Ok(true)
    }

    /// The rooms that messages are received into.
    pub fn slots(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.arena
            .chunks_exact_mut(SLOT)
            .map(|slot| &mut slot[..=MAX_PACKET])
    }

    /// The bytes of the message in `slot`.
    pub fn message(&self, slot: usize, len: usize) -> &[u8] {
        &self.arena[slot * SLOT..][..len]
    }

    /// Takes the message of `len` bytes in `slot` as datagrams of `segment` bytes each (the last may be shorter),
    /// which came from `source` with the outer ToS byte `tos`.
    pub fn received(&mut self, slot: usize, len: usize, segment: usize, frame: &Frame) {
        let (mut start, end) = (slot * SLOT, slot * SLOT + len);
        loop {
            let next = end.min(start + segment.max(1));
            self.frames.push(Frame {
                floor: start,
                start,
                end: next,
                ..frame.clone()
            });
            start = next;
            if start >= end || self.frames.len() == self.most {
                return;
            }
        }
    }

    /// How many packets there are.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The packet of this index.
    pub fn packet(&mut self, index: usize) -> Packet<'_> {
        Packet {
            arena: &mut self.arena,
            frame: &mut self.frames[index],
        }
    }

    /// What is known of the packet of this index beside its bytes.
    pub fn frame(&self, index: usize) -> &Frame {
        &self.frames[index]
    }

    /// What is known of the packet of this index beside its bytes, to be changed.
    pub fn frame_mut(&mut self, index: usize) -> &mut Frame {
        &mut self.frames[index]
    }

    /// The bytes of the packet of this index.
    pub fn bytes(&self, index: usize) -> &[u8] {
        &self.arena[self.range(index)]
    }

    /// Where in the batch's memory the packet of this index lies.
    fn range(&self, index: usize) -> Range<usize> {
        let frame = &self.frames[index];
        frame.start..frame.end
    }
}

impl Frame {
    /// A frame that is nowhere yet, from `source` with the outer ToS byte `tos`.
    pub fn from(source: Option<IpAddr>, tos: u8) -> Self {
        Frame {
            floor: 0,
            start: 0,
            end: 0,
            source,
            tos,
            vnet: VnetHeader::default(),
        }
    }
}

/// Where a finished packet's bytes lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the batch's frame of this index.
    Batch(usize),
    /// In the outbox's own memory, made anew: fragments, ICMP errors.
    Made(Range<usize>),
    /// In the outbox's own memory, split from a superpacket.
    Split(Range<usize>),
}

/// The memories that places lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    Batch,
    Made,
    Split,
}

impl Memory {
    /// Which one `place` lies in, and where.
    pub(super) fn of(place: &Place, batch: &Batch) -> (Memory, Range<usize>) {
        match place {
            Place::Batch(index) => (Memory::Batch, batch.range(*index)),
            Place::Made(range) => (Memory::Made, range.clone()),
            Place::Split(range) => (Memory::Split, range.clone()),
        }
    }
}

/// One inner packet on its way to a peer, or the many that a superpacket became.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// The peer's underlay address and port.
    pub to: SocketAddr,
    /// The peer, in the tables that the batch was worked with.
    pub peer: PeerId,
    /// The outer ToS or traffic class byte.
    pub tos: u8,
    /// The hash of its flow, by which it gets an outer source port.
    pub flow: u32,
    /// Inner packets in it: 1, or the segments of a superpacket.
    pub packets: u64,
    /// Their bytes, before fragmentation.
    pub inner_bytes: u64,
    /// If not 0, each place holds several datagrams of this size, of which the last may be shorter.
    pub segment: usize,
    /// For a superpacket that travels whole: which of [`Outbox::head`] goes in front of it.
    pub head: Option<usize>,
    pub(super) places: Range<usize>,
}

/// One packet on its way to the device.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The peer that it came from; `None` for a packet made here (an ICMP error).
    pub peer: Option<PeerId>,
    /// Where it lies.
    pub place: Place,
    /// Inner packets in it: 1, or the segments of a superpacket.
    pub packets: u64,
    /// What the device's kernel finishes.
    pub vnet: VnetHeader,
}

/// What the stages made of a batch. The engine sends it, counts what became of each, and clears it.
#[derive(Default)]
pub struct Outbox {
    made: Vec<u8>,
    /// Segments of superpackets. Its length is that of the memory in use, or more: growing it costs a pass over the
    /// bytes, so it never shrinks.
    split: Vec<u8>,
    split_len: usize,
    /// Memory that `split` outgrew in this batch: the kernel may be reading from it (see [`Sender::set_aside`]).
    ///
    /// [`Sender::set_aside`]: crate::underlay::sender::Sender::set_aside
    outgrown: Vec<Vec<u8>>,
    places: Vec<Place>,
    parcels: Vec<Parcel>,
    heads: Vec<Head>,
    deliveries: Vec<Delivery>,
}

impl Outbox {
    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.made.clear();
        self.split_len = 0;
        self.outgrown.clear();
        self.places.clear();
        self.parcels.clear();
        self.heads.clear();
        self.deliveries.clear();
    }

    /// Packets for peers, in order.
    pub fn parcels(&self) -> &[Parcel] {
        &self.parcels
    }

    /// Packets for the device, in order.
    pub fn deliveries(&self) -> &[Delivery] {
        &self.deliveries
    }

    /// Where the bytes of a parcel lie: a datagram each, or several as [`Parcel::segment`] says.
    pub fn places(&self, parcel: &Parcel) -> &[Place] {
        &self.places[parcel.places.clone()]
    }

    /// The frame that a parcel of one packet lies in.
    pub fn frame(&self, parcel: &Parcel) -> Option<usize> {
        match self.places(parcel) {
            [Place::Batch(index)] => Some(*index),
            _ => None,
        }
    }

    /// The datagrams of one parcel.
    pub fn datagrams<'a>(
        &'a self,
        batch: &'a Batch,
        parcel: &Parcel,
    ) -> impl Iterator<Item = &'a [u8]> {
        let segment = parcel.segment;
        self.places(parcel).iter().flat_map(move |place| {
            let bytes = self.bytes(batch, place);
            bytes.chunks(if segment == 0 {
                bytes.len().max(1)
            } else {
                segment
            })
        })
    }

    /// The bytes at `place`.
    pub fn bytes<'a>(&'a self, batch: &'a Batch, place: &Place) -> &'a [u8] {
        let (memory, range) = Memory::of(place, batch);
        self.slice(batch, memory, range)
    }

    /// The bytes of `range` in one of the memories.
    pub(super) fn slice<'a>(
        &'a self,
        batch: &'a Batch,
        memory: Memory,
        range: Range<usize>,
    ) -> &'a [u8] {
        match memory {
            Memory::Batch => &batch.arena[range],
            Memory::Made => &self.made[range],
            Memory::Split => &self.split[range],
        }
    }

    /// Writes new bytes with `write` and says where they lie; `None` if `write` had nothing to write.
    pub(super) fn make(&mut self, write: impl FnOnce(&mut Vec<u8>) -> bool) -> Option<Place> {
        let start = self.made.len();
        write(&mut self.made).then_some(Place::Made(start..self.made.len()))
    }

    /// Queues the packet in the batch's frame `index` for a peer.
    pub(super) fn send(&mut self, parcel: Parcel, index: usize) {
        let places = self.places.len()..self.places.len() + 1;
        self.places.push(Place::Batch(index));
        self.parcels.push(Parcel { places, ..parcel });
    }

    /// Queues the superpacket in the batch's frame `index` to travel whole, behind `head`.
    pub(super) fn send_whole(&mut self, parcel: Parcel, head: Head, index: usize) {
        let parcel = Parcel {
            head: Some(self.heads.len()),
            ..parcel
        };
        self.heads.push(head);
        self.send(parcel, index);
    }

    /// The bytes in front of a superpacket that travels whole.
    pub fn head(&self, index: usize) -> &[u8] {
        self.heads[index].as_slice()
    }

    /// Queues for a peer the datagrams of [`Parcel::segment`] bytes, in all `len`, that `write` writes.
    pub(super) fn send_split(&mut self, parcel: Parcel, len: usize, write: impl FnOnce(&mut [u8])) {
        let range = self.split_len..self.split_len + len;
        if self.split.len() < range.end {
            let len = range.end.next_power_of_two();
            let mut larger = Vec::with_capacity(len);
            larger.extend_from_slice(&self.split[..self.split_len]);
            larger.resize(len, 0);
            self.outgrown
                .push(std::mem::replace(&mut self.split, larger));
        }
        write(&mut self.split[range.clone()]);
        self.split_len = range.end;
        let places = self.places.len()..self.places.len() + 1;
        self.places.push(Place::Split(range));
        self.parcels.push(Parcel { places, ..parcel });
    }

    /// Queues for a peer the datagrams that `write` makes, until it has no more.
    pub(super) fn send_made(
        &mut self,
        parcel: Parcel,
        mut write: impl FnMut(&mut Vec<u8>) -> bool,
    ) {
        let before = self.places.len();
        while let Some(place) = self.make(&mut write) {
            self.places.push(place);
        }
        let places = before..self.places.len();
        self.parcels.push(Parcel { places, ..parcel });
    }

    /// Queues a packet for the device.
    pub(super) fn deliver(&mut self, delivery: Delivery) {
        self.deliveries.push(delivery);
    }
}

impl Parcel {
    /// A parcel of one packet of `inner_bytes` by way of `hop`, its places still to come.
    pub(super) fn new(hop: &NextHop, tos: u8, flow: u32, inner_bytes: u64) -> Self {
        Parcel {
            to: hop.to,
            peer: hop.peer,
            tos,
            flow,
            packets: 1,
            inner_bytes,
            segment: 0,
            head: None,
            places: 0..0,
        }
    }
}

impl Delivery {
    /// A finished packet.
    pub(super) fn finished(peer: Option<PeerId>, place: Place) -> Self {
        Delivery {
            peer,
            place,
            packets: 1,
            vnet: VnetHeader::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, SocketAddr};

    #[test]
    fn what_was_split_stays_where_it_is_until_the_outbox_is_cleared() {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let hop = NextHop {
            peer: 0,
            to,
            mtu: 1450,
            header: encap::Header::EMPTY,
        };
        let mut out = Outbox::default();
        let mut lent = Vec::new();
        for fill in 1..20 {
            let parcel = Parcel::new(&hop, 0, 0, 0);
            out.send_split(parcel, 50_000, |room| room.fill(fill));
            let Place::Split(range) = &out.places[out.places.len() - 1] else {
                panic!("not split");
            };
            lent.push((fill, out.split[range.clone()].as_ptr()));
        }
        let memories = || out.outgrown.iter().chain([&out.split]);
        for (fill, at) in lent {
            let memory = memories().find(|memory| memory.as_ptr_range().contains(&at));
            let memory = memory.expect("it is still there");
            let offset = at as usize - memory.as_ptr() as usize;
            assert!(memory[offset..offset + 50_000].iter().all(|b| *b == fill));
        }
        out.clear();
        assert!(out.outgrown.is_empty());
    }
}
