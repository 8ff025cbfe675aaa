//! What the datapath counts, and the balance that the counts must keep.
//!
//! Every cell has one writer, a forwarding thread; status reads while it counts on. So a cell is an
//! atomic only to make that reading defined: an increment is a plain load, add and store, no locked
//! instruction. Each direction and each peer's direction has cache lines of its own. Only what is counted
//! of a peer has several writers, the threads of all queues, which count once per train or superpacket.

use std::iter::Sum;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam::utils::CachePadded;
use serde::{Deserialize, Serialize};

use super::DropReason;

/// A count with one writer.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// Adds `n`. Only the cell's own thread may call it.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Reads it, from any thread.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A count with any number of writers.
#[derive(Debug, Default)]
pub struct SharedCell(AtomicU64);

impl SharedCell {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Reads it.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One direction's counts. All in inner packets, unless a name says otherwise; a superpacket counts
/// as the packets that it is split into.
#[derive(Debug)]
pub struct Direction {
    /// Packets taken in.
    pub packets_in: Cell,
    /// Packets handed on: to a peer (outbound) or to the device (inbound).
    pub forwarded: Cell,
    /// Inner bytes of those.
    pub forwarded_bytes: Cell,
    /// Packets that were answered here in the destination's stead (neighbour requests in TAP mode).
    pub answered: Cell,
    /// Packets flooded to all peers (TAP mode).
    pub flooded: Cell,
    dropped: [Cell; DropReason::COUNT],
    /// IPv4 fragments made of packets too big for the path; counted apart from the balance.
    pub fragments: Cell,
    /// ICMP errors sent about dropped packets; apart from the balance.
    pub icmp_sent: Cell,
    /// ICMP errors not sent because of the rate limit; apart from the balance.
    pub icmp_limited: Cell,
    /// Superpackets split; apart from the balance.
    pub split: Cell,
    /// Unfinished transport checksums completed; apart from the balance.
    pub checksums_completed: Cell,
    /// Datagrams accepted although reserved header bits were set; apart from the balance.
    pub reserved_bits: Cell,
    /// Datagrams that the kernel dropped before we saw them: the socket's receive buffer was full, or the UDP
    /// checksum wrong. Datagrams that it had joined (`UDP_GRO`, or a train that was never cut) count as one. Apart
    /// from the balance.
    pub overflow: Cell,
    /// System calls on the device: reads (outbound) or writes (inbound) that moved something.
    pub device_calls: Cell,
    /// System calls on the sockets: sends (outbound) or receives (inbound) that moved something.
    pub socket_calls: Cell,
    /// Messages in those calls. One may be many datagrams.
    pub socket_messages: Cell,
    /// Datagrams in those messages.
    pub datagrams: Cell,
    /// Packets handed to the device in one piece with others (inbound).
    pub coalesced: Cell,
    /// Superpackets sent whole (outbound).
    pub injected: Cell,
    /// Batches that packets came in.
    pub batches: Cell,
}

impl Default for Direction {
    fn default() -> Self {
        Direction {
            packets_in: Cell::default(),
            forwarded: Cell::default(),
            forwarded_bytes: Cell::default(),
            answered: Cell::default(),
            flooded: Cell::default(),
            dropped: std::array::from_fn(|_| Cell::default()),
            fragments: Cell::default(),
            icmp_sent: Cell::default(),
            icmp_limited: Cell::default(),
            split: Cell::default(),
            checksums_completed: Cell::default(),
            reserved_bits: Cell::default(),
            overflow: Cell::default(),
            device_calls: Cell::default(),
            socket_calls: Cell::default(),
            socket_messages: Cell::default(),
            datagrams: Cell::default(),
            coalesced: Cell::default(),
            injected: Cell::default(),
            batches: Cell::default(),
        }
    }
}

impl Direction {
    /// Counts one packet as dropped.
    pub fn drop_one(&self, reason: DropReason) {
        self.drop_many(reason, 1);
    }

    /// Counts `n` packets as dropped.
    pub fn drop_many(&self, reason: DropReason, n: u64) {
        self.dropped[reason as usize].add(n);
    }

    /// How many packets ended under `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize].get()
    }

    /// How many packets were dropped, all reasons together.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().map(Cell::get).sum()
    }

    /// Packets taken in that have not yet ended anywhere. What lies in queues, and nothing else:
    /// `in = forwarded + answered + flooded + dropped + queued`.
    pub fn queued(&self) -> i128 {
        let ended = [
            self.forwarded.get(),
            self.answered.get(),
            self.flooded.get(),
            self.dropped_total(),
        ];
        i128::from(self.packets_in.get()) - ended.into_iter().map(i128::from).sum::<i128>()
    }
}

/// All counts of one forwarding thread.
#[derive(Debug, Default)]
pub struct Counters {
    /// From the device to the underlay.
    pub outbound: CachePadded<Direction>,
    /// From the underlay to the device.
    pub inbound: CachePadded<Direction>,
}

/// A direction of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the device to the underlay.
    Outbound,
    /// From the underlay to the device.
    Inbound,
}

impl Way {
    /// Both.
    pub const ALL: [Self; 2] = [Way::Outbound, Way::Inbound];

    /// Its name in status and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Way::Outbound => "outbound",
            Way::Inbound => "inbound",
        }
    }
}

/// The counts of all forwarding threads: one for each queue.
#[derive(Debug)]
pub struct Tally(Vec<Arc<Counters>>);

impl Tally {
    /// Counts for the threads of so many queues.
    pub fn new(queues: u16) -> Self {
        Tally((0..queues).map(|_| Arc::default()).collect())
    }

    /// Those of each queue.
    pub fn queues(&self) -> &[Arc<Counters>] {
        &self.0
    }

    fn directions(&self, way: Way) -> impl Iterator<Item = &Direction> {
        self.0.iter().map(move |counters| match way {
            Way::Outbound => &*counters.outbound,
            Way::Inbound => &*counters.inbound,
        })
    }

    /// What all queues counted in one direction.
    pub fn counts(&self, way: Way) -> DirectionCounts {
        self.directions(way).map(DirectionCounts::from).sum()
    }

    /// How many packets of one direction ended under `reason`.
    pub fn dropped(&self, way: Way, reason: DropReason) -> u64 {
        self.directions(way)
            .map(|counts| counts.dropped(reason))
            .sum()
    }
}

/// One direction of one peer.
#[derive(Debug, Default)]
pub struct PeerDirection {
    /// Inner packets.
    pub packets: SharedCell,
    /// Inner bytes.
    pub bytes: SharedCell,
}

impl PeerDirection {
    /// Counts inner packets of `bytes` together.
    pub fn count(&self, packets: u64, bytes: u64) {
        self.packets.add(packets);
        self.bytes.add(bytes);
    }
}

/// What was exchanged with one peer. Lives as long as the peer's subnet does, over all reloads.
///
/// Not spread over cache lines: the threads of all queues write to the same peer's counters anyway, once per train or
/// superpacket, and there are as many of these as peers. Lines of their own took 3 MB for 10,000 peers.
#[derive(Debug, Default)]
pub struct PeerCounters {
    /// To the peer.
    pub sent: PeerDirection,
    /// From the peer.
    pub received: PeerDirection,
}

/// A [`Direction`] as it stood at one moment, for people and programs to read.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct DirectionCounts {
    /// Packets taken in.
    #[serde(rename = "in")]
    pub packets_in: u64,
    /// Packets handed on.
    pub forwarded: u64,
    /// Inner bytes of those.
    pub forwarded_bytes: u64,
    /// Packets answered here.
    pub answered: u64,
    /// Packets flooded.
    pub flooded: u64,
    /// Packets dropped, all reasons.
    pub dropped: u64,
    /// Packets still in queues.
    pub queued: u64,
    /// Fragments made.
    pub fragments: u64,
    /// ICMP errors sent.
    pub icmp_sent: u64,
    /// ICMP errors held back by the rate limit.
    pub icmp_limited: u64,
    /// Superpackets split.
    pub split: u64,
    /// Transport checksums completed.
    pub checksums_completed: u64,
    /// Datagrams accepted with reserved bits set.
    pub reserved_bits: u64,
    /// Packets that the kernel dropped before we saw them: outbound those that found the device's queue full, inbound
    /// datagrams that found the socket's buffer full or had a wrong checksum.
    #[serde(default)]
    pub overflow: u64,
    /// System calls on the device.
    #[serde(default)]
    pub device_calls: u64,
    /// System calls on the sockets.
    #[serde(default)]
    pub socket_calls: u64,
    /// Messages in those.
    #[serde(default)]
    pub socket_messages: u64,
    /// Datagrams in those.
    #[serde(default)]
    pub datagrams: u64,
    /// Packets handed to the device together with others.
    #[serde(default)]
    pub coalesced: u64,
    /// Superpackets sent whole.
    #[serde(default)]
    pub injected: u64,
    /// Batches that packets came in.
    #[serde(default)]
    pub batches: u64,
}

impl From<&Direction> for DirectionCounts {
    fn from(counts: &Direction) -> Self {
        // Ends are read before the beginning, so that a packet that passes meanwhile shows as queued
        // and never makes the sum negative.
        let mut copy = DirectionCounts {
            forwarded: counts.forwarded.get(),
            forwarded_bytes: counts.forwarded_bytes.get(),
            answered: counts.answered.get(),
            flooded: counts.flooded.get(),
            dropped: counts.dropped_total(),
            fragments: counts.fragments.get(),
            icmp_sent: counts.icmp_sent.get(),
            icmp_limited: counts.icmp_limited.get(),
            split: counts.split.get(),
            checksums_completed: counts.checksums_completed.get(),
            reserved_bits: counts.reserved_bits.get(),
            overflow: counts.overflow.get(),
            device_calls: counts.device_calls.get(),
            socket_calls: counts.socket_calls.get(),
            socket_messages: counts.socket_messages.get(),
            datagrams: counts.datagrams.get(),
            coalesced: counts.coalesced.get(),
            injected: counts.injected.get(),
            batches: counts.batches.get(),
            ..DirectionCounts::default()
        };
        copy.packets_in = counts.packets_in.get();
        let ended = copy.forwarded + copy.answered + copy.flooded + copy.dropped;
        copy.queued = copy.packets_in.saturating_sub(ended);
        copy
    }
}

impl Sum for DirectionCounts {
    /// The counts of several threads together.
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |all, one| DirectionCounts {
            packets_in: all.packets_in + one.packets_in,
            forwarded: all.forwarded + one.forwarded,
            forwarded_bytes: all.forwarded_bytes + one.forwarded_bytes,
            answered: all.answered + one.answered,
            flooded: all.flooded + one.flooded,
            dropped: all.dropped + one.dropped,
            queued: all.queued + one.queued,
            fragments: all.fragments + one.fragments,
            icmp_sent: all.icmp_sent + one.icmp_sent,
            icmp_limited: all.icmp_limited + one.icmp_limited,
            split: all.split + one.split,
            checksums_completed: all.checksums_completed + one.checksums_completed,
            reserved_bits: all.reserved_bits + one.reserved_bits,
            overflow: all.overflow + one.overflow,
            device_calls: all.device_calls + one.device_calls,
            socket_calls: all.socket_calls + one.socket_calls,
            socket_messages: all.socket_messages + one.socket_messages,
            datagrams: all.datagrams + one.datagrams,
            coalesced: all.coalesced + one.coalesced,
            injected: all.injected + one.injected,
            batches: all.batches + one.batches,
        })
    }
}
