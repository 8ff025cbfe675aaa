//! Trains: datagrams of one size for one peer, which leave in one system call and cross the kernel as one packet
//! (UDP GSO, `UDP_SEGMENT` in udp(7)).
//!
//! ```text
//! parcels, in order      trains                                    system calls
//! A1 A2 B1 A3 A4 B2  ─▶  [A1 A2 A3 A4]  (4 datagrams, 2 slices) ─▶ one sendmmsg per source port
//!                        [B1 B2]        (2 datagrams, 2 slices)
//! ```
//!
//! A train ends where the kernel's rules end it: all its datagrams have the size of the first, but the last, which
//! may be shorter; one ToS byte; at most 128 of them and 65,507 bytes. Nothing waits for a train to fill: what one batch holds
//! goes out when the batch ends. The packets of a flow share a source port, so they stay in order: a later
//! one joins the newest train of its port and peer, or starts a new one behind it.

use std::net::SocketAddr;
use std::ops::Range;

use fdb::PeerId;

use super::batch::{Batch, Memory, Outbox, Parcel};

/// The most datagrams in one send (the kernel's `UDP_MAX_SEGMENTS`, include/linux/udp.h).
pub const MAX_DATAGRAMS: usize = 128;
/// The most bytes in one send: the payload of the largest UDP datagram over IPv4.
pub const MAX_BYTES: usize = 65_507;

/// Datagrams that leave together.
#[derive(Clone, Debug)]
pub struct Train {
    /// The peer's underlay address and port.
    pub to: SocketAddr,
    /// The peer, in the tables that the batch was worked with.
    pub peer: PeerId,
    /// The outer ToS or traffic class byte.
    pub tos: u8,
    /// The source port, as a number of the sender's.
    pub port: usize,
    /// Size of each datagram but the last, in bytes.
    pub segment: usize,
    /// How many datagrams.
    pub datagrams: usize,
    /// How many inner packets end in it.
    pub packets: u64,
    /// Their bytes.
    pub inner_bytes: u64,
    bytes: usize,
    /// A datagram shorter than the others came: nothing can follow it.
    closed: bool,
    first: usize,
    last: usize,
}

impl Train {
    /// The size that the kernel shall cut it to; 0 if there is nothing to cut.
    pub fn kernel_segment(&self) -> u16 {
        let segment = if self.datagrams > 1 { self.segment } else { 0 };
        u16::try_from(segment).unwrap_or(0)
    }
}

/// A piece of memory, and the piece that follows it in the same train.
#[derive(Clone, Debug)]
struct Slice {
    memory: Memory,
    range: Range<usize>,
    next: Option<usize>,
}

/// The trains of one batch.
#[derive(Default)]
pub struct Trains {
    trains: Vec<Train>,
    slices: Vec<Slice>,
}

impl Trains {
    /// Forgets them, keeping the memory.
    pub fn clear(&mut self) {
        self.trains.clear();
        self.slices.clear();
    }

    /// Is there a train by this way?
    pub fn go(&self, to: SocketAddr, port: usize) -> bool {
        let mut trains = self.trains.iter();
        trains.any(|train| train.to == to && train.port == port)
    }

    /// Adds trains of the `parcels` of `out` to those that are there. `port` chooses the source port for a parcel, or says that there is
    /// none for its family; those are returned to `refused`.
    pub fn assemble(
        &mut self,
        batch: &Batch,
        out: &Outbox,
        parcels: Range<usize>,
        port: impl Fn(&Parcel) -> Option<usize>,
        mut refused: impl FnMut(&Parcel),
    ) {
        for parcel in &out.parcels()[parcels] {
            let Some(port) = port(parcel) else {
                refused(parcel);
                continue;
            };
            let places = out.places(parcel);
            for (index, place) in places.iter().enumerate() {
                let (memory, range) = Memory::of(place, batch);
                let train = self.add(parcel, port, memory, range);
                // A packet is gone when the last of its datagrams is.
                if index + 1 == places.len() {
                    train.packets += parcel.packets;
                    train.inner_bytes += parcel.inner_bytes;
                }
            }
        }
    }

    /// The trains, in the order in which they must leave.
    pub fn trains(&self) -> &[Train] {
        &self.trains
    }

    /// The memory that `train` consists of, in order.
    pub fn slices<'a>(
        &'a self,
        train: &Train,
        batch: &'a Batch,
        out: &'a Outbox,
    ) -> impl Iterator<Item = &'a [u8]> {
        let first = &self.slices[train.first];
        let chain = std::iter::successors(Some(first), |slice| slice.next.map(|n| &self.slices[n]));
        chain.map(|slice| out.slice(batch, slice.memory, slice.range.clone()))
    }

    /// The memory that `train` consists of, if it is one piece of at least `len` bytes, and stays where it is until
    /// batch and outbox are cleared.
    pub fn piece<'a>(
        &self,
        train: &Train,
        len: usize,
        batch: &'a Batch,
        out: &'a Outbox,
    ) -> Option<&'a [u8]> {
        let slice = &self.slices[train.first];
        let lasts = train.first == train.last && slice.memory != Memory::Made;
        (lasts && train.bytes >= len).then(|| out.slice(batch, slice.memory, slice.range.clone()))
    }

    /// Adds the datagrams in `range` to a train, new or not.
    fn add(
        &mut self,
        parcel: &Parcel,
        port: usize,
        memory: Memory,
        range: Range<usize>,
    ) -> &mut Train {
        let bytes = range.len();
        let segment = match parcel.segment {
            0 => bytes,
            segment => segment,
        };
        let datagrams = bytes.div_ceil(segment.max(1)).max(1);
        // Of whatever mark: the packets of a flow need not all have the same, and stay in order.
        let same_way = |train: &Train| train.port == port && train.to == parcel.to;
        let newest = self.trains.iter().rposition(same_way);
        let fits = newest.filter(|&index| {
            let train = &self.trains[index];
            !train.closed
                && train.tos == parcel.tos
                && train.datagrams + datagrams <= MAX_DATAGRAMS
                && train.bytes + bytes <= MAX_BYTES
                && (segment == train.segment || datagrams == 1 && bytes < train.segment)
        });
        let Some(index) = fits else {
            let slice = self.slices.len();
            self.slices.push(Slice {
                memory,
                range,
                next: None,
            });
            self.trains.push(Train {
                to: parcel.to,
                peer: parcel.peer,
                tos: parcel.tos,
                port,
                segment,
                datagrams,
                packets: 0,
                inner_bytes: 0,
                bytes,
                closed: bytes < segment * datagrams,
                first: slice,
                last: slice,
            });
            let index = self.trains.len() - 1;
            return &mut self.trains[index];
        };
        let train = &mut self.trains[index];
        let next = self.slices.len();
        let last = &mut self.slices[train.last];
        // Neighbours in memory are one slice: the kernel takes a few large ones faster than many small ones.
        if last.memory == memory && last.range.end == range.start {
            last.range.end = range.end;
        } else {
            last.next = Some(next);
            train.last = next;
            self.slices.push(Slice {
                memory,
                range,
                next: None,
            });
        }
        train.datagrams += datagrams;
        train.bytes += bytes;
        train.closed = bytes < train.segment * datagrams;
        train
    }
}
