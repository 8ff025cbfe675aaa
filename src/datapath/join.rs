//! Deliveries joined to superpackets: consecutive packets of a flow enter the kernel in one write.
//!
//! ```text
//! deliveries, in order      writes
//! A1 A2 B1 A3 C1 B2     ─▶  [header | A1 headers | A1 payload | A2 payload | A3 payload]
//!                           [header | B1 headers | B1 payload | B2 payload]
//!                           [header | C1]
//! ```
//!
//! No payload is copied: a write is a list of pieces of memory. What may be joined, `encap::coalesce` says. The order
//! within a flow stays: a packet that does not continue its flow's run ends it, and is written after it.

use std::ops::Range;

use encap::coalesce::{Join, Rules, Run};
use encap::{Inner, Sums, VnetHeader, flow};
use fdb::PeerId;

use super::batch::{Batch, Delivery, Memory, Outbox, Place};

/// Runs that are open at a time: flows that are interleaved in one batch.
const OPEN: usize = 16;

/// Ports where tunnels listen: VXLAN, flannel's VXLAN and udp, Geneve, GTP-U, WireGuard, L2TP.
const TUNNEL_PORTS: [u16; 7] = [4789, 8472, 8285, 6081, 2152, 51820, 1701];

/// One write to the device.
#[derive(Clone, Debug)]
pub struct Write {
    /// The peer that it came from; `None` for a packet made here (an ICMP error).
    pub peer: Option<PeerId>,
    /// Inner packets in it.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What the device's kernel finishes.
    pub vnet: VnetHeader,
    first: usize,
    last: usize,
}

impl Write {
    /// Were several packets joined in it here?
    pub fn joined(&self) -> bool {
        self.first != self.last
    }
}

/// A piece of memory, and the one that follows it in the same write.
#[derive(Clone, Debug)]
struct Piece {
    memory: Memory,
    range: Range<usize>,
    next: Option<usize>,
}

/// A run that may still take packets.
struct Open {
    run: Run,
    flow: u32,
    write: usize,
    /// Where its first packet lies.
    head: usize,
}

/// Arranges the deliveries of a batch as writes.
pub struct Joiner {
    sums: Sums,
    udp: bool,
    ports: Vec<u16>,
    writes: Vec<Write>,
    pieces: Vec<Piece>,
    open: Vec<Open>,
}

impl Joiner {
    /// For a device that takes TCP superpackets, and with `udp` UDP ones; our own tunnel listens on `port`.
    pub fn new(sums: Sums, udp: bool, port: u16) -> Self {
        Joiner {
            sums,
            udp,
            ports: TUNNEL_PORTS.into_iter().chain([port]).collect(),
            writes: Vec::new(),
            pieces: Vec::new(),
            open: Vec::with_capacity(OPEN),
        }
    }

    /// The writes, in the order in which they must be made.
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    /// The memory that `write` consists of, in order.
    pub fn pieces<'a>(
        &'a self,
        write: &Write,
        batch: &'a Batch,
        out: &'a Outbox,
    ) -> impl Iterator<Item = &'a [u8]> {
        let first = &self.pieces[write.first];
        let chain = std::iter::successors(Some(first), |piece| piece.next.map(|n| &self.pieces[n]));
        chain.map(|piece| out.slice(batch, piece.memory, piece.range.clone()))
    }

    /// Arranges the deliveries in `out`. The first packet's headers of each superpacket are changed in the batch.
    pub fn arrange(&mut self, batch: &mut Batch, out: &Outbox) {
        self.writes.clear();
        self.pieces.clear();
        for delivery in out.deliveries() {
            let alone = match delivery.place {
                Place::Batch(index) if delivery.packets == 1 && !delivery.vnet.needs_csum => {
                    if self.join(batch, index) {
                        continue;
                    }
                    Some(index)
                }
                _ => None,
            };
            let bytes = out.bytes(batch, &delivery.place);
            // What cannot be parsed belongs to no flow; nothing like that is delivered.
            let parsed = Inner::parse(bytes).ok();
            let hash = parsed.map(|inner| flow::hash(bytes, &inner));
            let rules = Rules {
                sums: self.sums,
                udp: self.udp,
                tunnel_ports: &self.ports,
            };
            let run = match (alone, parsed) {
                (Some(_), Some(inner)) => Run::start(bytes, &inner, &rules),
                _ => None,
            };
            let (memory, range) = Memory::of(&delivery.place, batch);
            if let Some(hash) = hash {
                self.end_flow(hash, batch);
            }
            let write = self.write(delivery, memory, range);
            if let (Some(run), Some(flow), Some(head)) = (run, hash, alone) {
                if self.open.len() == OPEN {
                    let oldest = self.open.remove(0);
                    self.finish(oldest, batch);
                }
                self.open.push(Open {
                    run,
                    flow,
                    write,
                    head,
                });
            }
        }
        while let Some(open) = self.open.pop() {
            self.finish(open, batch);
        }
    }

    /// Adds the packet in frame `index` to the open run that it continues, if there is one.
    fn join(&mut self, batch: &mut Batch, index: usize) -> bool {
        let bytes = batch.bytes(index);
        let joined = self
            .open
            .iter_mut()
            .enumerate()
            .rev()
            .find_map(|(n, open)| {
                let join = open.run.try_join(bytes);
                (join != Join::No).then_some((n, join))
            });
        let Some((n, join)) = joined else {
            return false;
        };
        let (memory, mut range) = Memory::of(&Place::Batch(index), batch);
        let open = &self.open[n];
        let write = &mut self.writes[open.write];
        write.packets += 1;
        write.bytes += range.len() as u64;
        range.start += open.run.header_len();
        self.pieces[write.last].next = Some(self.pieces.len());
        write.last = self.pieces.len();
        self.pieces.push(Piece {
            memory,
            range,
            next: None,
        });
        if join == Join::JoinedAndClosed {
            let open = self.open.remove(n);
            self.finish(open, batch);
        }
        true
    }

    /// Ends the open run of a flow: a packet came that does not continue it.
    fn end_flow(&mut self, flow: u32, batch: &mut Batch) {
        if let Some(n) = self.open.iter().position(|open| open.flow == flow) {
            let open = self.open.remove(n);
            self.finish(open, batch);
        }
    }

    fn write(&mut self, delivery: &Delivery, memory: Memory, range: Range<usize>) -> usize {
        let piece = self.pieces.len();
        self.writes.push(Write {
            peer: delivery.peer,
            packets: delivery.packets,
            bytes: range.len() as u64,
            vnet: delivery.vnet,
            first: piece,
            last: piece,
        });
        self.pieces.push(Piece {
            memory,
            range,
            next: None,
        });
        self.writes.len() - 1
    }

    fn finish(&mut self, open: Open, batch: &mut Batch) {
        let mut head = batch.packet(open.head);
        self.writes[open.write].vnet = open.run.finish(head.bytes_mut());
    }
}
