//! The bytes that travel through the stages: a [`Batch`] of received packets in, an [`Outbox`] of
//! finished packets out.
//!
//! A packet is read into a [`Frame`] with free room in front of it, so that outbound headers are
//! written where the packet lies and inbound headers are stepped over. Only what a stage makes anew
//! (fragments, segments, ICMP errors) is written to the outbox's own memory. Both are made once and
//! used again for every batch: nothing here is allocated per packet.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use fdb::{NextHop, PeerId};

/// Free bytes kept in front of each received packet: at least the longest encapsulation header, and a
/// whole cache line, so that packets start aligned.
pub const HEADROOM: usize = 64;

/// The largest packet or datagram that IPv4 and IPv6 (without jumbograms) can carry.
pub const MAX_PACKET: usize = 65_535;

/// One received packet, with room in front.
pub struct Frame {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// The outer source address, for a datagram from the underlay.
    pub source: Option<IpAddr>,
    /// The outer ToS or traffic class byte, for a datagram from the underlay.
    pub tos: u8,
}

impl Frame {
    fn new() -> Self {
        Frame {
            buffer: vec![0; HEADROOM + MAX_PACKET].into_boxed_slice(),
            start: HEADROOM,
            end: HEADROOM,
            source: None,
            tos: 0,
        }
    }

    /// The room to receive into; call [`Frame::filled`] with what came.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[HEADROOM..]
    }

    /// Says that the first `len` bytes of [`Frame::room`] hold a packet.
    pub fn filled(&mut self, len: usize) {
        self.start = HEADROOM;
        self.end = HEADROOM + len.min(MAX_PACKET);
    }

    /// The packet as it stands: headers put in front included, headers stepped over left out.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// The packet as it stands, to be changed in place.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..self.end]
    }

    /// Puts `header` in front of the packet. `header` is at most [`HEADROOM`] bytes, once per packet.
    pub fn prepend(&mut self, header: &[u8]) {
        let start = self.start - header.len();
        self.buffer[start..self.start].copy_from_slice(header);
        self.start = start;
    }

    /// Steps over the first `len` bytes.
    pub fn strip(&mut self, len: usize) {
        self.start = (self.start + len).min(self.end);
    }

    /// Cuts the packet to `len` bytes (padding after an inner packet goes).
    pub fn truncate(&mut self, len: usize) {
        self.end = self.end.min(self.start + len);
    }
}

/// Packets read in one go, at most as many as the batch was made for.
pub struct Batch {
    frames: Vec<Frame>,
    len: usize,
}

impl Batch {
    /// A batch of up to `capacity` packets.
    pub fn new(capacity: usize) -> Self {
        Batch {
            frames: (0..capacity).map(|_| Frame::new()).collect(),
            len: 0,
        }
    }

    /// Forgets the packets.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Offers the next free frame to `read`, and keeps it if `read` says how many bytes it read.
    ///
    /// `None` if the batch is full or `read` had nothing.
    pub fn fill<E>(
        &mut self,
        read: impl FnOnce(&mut Frame) -> Result<Option<usize>, E>,
    ) -> Result<bool, E> {
        let Some(frame) = self.frames.get_mut(self.len) else {
            return Ok(false);
        };
        let Some(len) = read(frame)? else {
            return Ok(false);
        };
        frame.filled(len);
        self.len += 1;
        Ok(true)
    }

    /// The packets.
    pub fn frames(&self) -> &[Frame] {
        &self.frames[..self.len]
    }

    /// The packets, to be worked on.
    pub fn frames_mut(&mut self) -> &mut [Frame] {
        &mut self.frames[..self.len]
    }
}

/// Where a finished packet's bytes lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the batch's frame of this index.
    Batch(usize),
    /// In the outbox's own memory.
    Made(Range<usize>),
}

/// One inner packet on its way to a peer: one datagram, or several if it had to be fragmented.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// The peer's underlay address and port.
    pub to: SocketAddr,
    /// The peer, in the tables that the batch was worked with.
    pub peer: PeerId,
    /// The outer ToS or traffic class byte.
    pub tos: u8,
    /// Length of the inner packet before fragmentation, in bytes.
    pub inner_len: usize,
    datagrams: Range<usize>,
}

/// One packet on its way to the device.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The peer that it came from; `None` for a packet made here (an ICMP error).
    pub peer: Option<PeerId>,
    /// Where it lies.
    pub place: Place,
}

/// What the stages made of a batch. The engine sends it, counts what became of each, and clears it.
#[derive(Default)]
pub struct Outbox {
    made: Vec<u8>,
    places: Vec<Place>,
    parcels: Vec<Parcel>,
    deliveries: Vec<Delivery>,
}

impl Outbox {
    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.made.clear();
        self.places.clear();
        self.parcels.clear();
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

    /// The datagrams of one parcel.
    pub fn datagrams<'a>(
        &'a self,
        batch: &'a Batch,
        parcel: &Parcel,
    ) -> impl Iterator<Item = &'a [u8]> {
        self.places[parcel.datagrams.clone()]
            .iter()
            .map(|place| self.bytes(batch, place))
    }

    /// The bytes at `place`.
    pub fn bytes<'a>(&'a self, batch: &'a Batch, place: &Place) -> &'a [u8] {
        match place {
            Place::Batch(index) => batch.frames()[*index].bytes(),
            Place::Made(range) => &self.made[range.clone()],
        }
    }

    /// Writes new bytes with `write` and says where they lie; `None` if `write` had nothing to write.
    pub(super) fn make(&mut self, write: impl FnOnce(&mut Vec<u8>) -> bool) -> Option<Place> {
        let start = self.made.len();
        write(&mut self.made).then_some(Place::Made(start..self.made.len()))
    }

    /// Queues the packet in the batch's frame `index` for a peer.
    pub(super) fn send(&mut self, hop: &NextHop, tos: u8, inner_len: usize, index: usize) {
        self.places.push(Place::Batch(index));
        self.push_parcel(hop, tos, inner_len, 1);
    }

    /// Queues a packet for a peer as the datagrams that `write` makes, until it has no more.
    pub(super) fn send_made(
        &mut self,
        hop: &NextHop,
        tos: u8,
        inner_len: usize,
        mut write: impl FnMut(&mut Vec<u8>) -> bool,
    ) {
        let before = self.places.len();
        while let Some(place) = self.make(&mut write) {
            self.places.push(place);
        }
        self.push_parcel(hop, tos, inner_len, self.places.len() - before);
    }

    fn push_parcel(&mut self, hop: &NextHop, tos: u8, inner_len: usize, datagrams: usize) {
        let end = self.places.len();
        self.parcels.push(Parcel {
            to: hop.to,
            peer: hop.peer,
            tos,
            inner_len,
            datagrams: end - datagrams..end,
        });
    }

    /// Queues a packet for the device.
    pub(super) fn deliver(&mut self, peer: Option<PeerId>, place: Place) {
        self.deliveries.push(Delivery { peer, place });
    }
}
