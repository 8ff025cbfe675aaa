//! The batched engine: superpackets from and to the device, trains of datagrams on the sockets, one thread per
//! direction.
//!
//! ```text
//! outbound thread   read until the device is dry ─▶ Outbound ─▶ Trains ─▶ sendmmsg, UDP_SEGMENT
//! inbound thread    recvmmsg, UDP_GRO ─▶ Inbound ─▶ Joiner ─▶ one writev per superpacket
//! ```
//!
//! Nothing waits for a batch to fill: a batch is what is there, so it grows with the load and is one packet without.
//! The directions share the tables and nothing else.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use encap::{Encapsulation, Family};
use fdb::Reader;

use super::batch::{Batch, Outbox};
use super::counters::{Counters, Direction, PeerCounters};
use super::inbound::Inbound;
use super::join::Joiner;
use super::outbound::Outbound;
use super::stop::Stop;
use super::train::Trains;
use super::wait::Waiter;
use super::{DropReason, Forwarding, send_failure};
use crate::tap::Queue;
use crate::underlay::receiver::{MESSAGES, Receiver};
use crate::underlay::sender::Sender;

/// Packets read before they are sent, at most.
const PACKETS: usize = 128;

/// What both directions of one queue share.
#[derive(Clone)]
pub struct Common {
    /// The queue of the device.
    pub device: Arc<Queue>,
    /// The word to stop.
    pub stop: Arc<Stop>,
    /// What is counted, each direction by its thread.
    pub counters: Arc<Counters>,
}

/// From the device to the underlay.
pub struct Egress {
    common: Common,
    sender: Sender,
    forwarding: Reader<Forwarding>,
    outbound: Outbound,
    waiter: Waiter,
    batch: Batch,
    out: Outbox,
    trains: Trains,
}

impl Egress {
    /// An outbound thread's belongings. `header_len` is that of the encapsulation, in bytes.
    pub fn new(
        common: Common,
        sender: Sender,
        forwarding: Reader<Forwarding>,
        outbound: Outbound,
        waiter: Waiter,
        header_len: usize,
    ) -> Self {
        Egress {
            common,
            sender,
            forwarding,
            outbound,
            waiter,
            batch: Batch::new(PACKETS, header_len),
            out: Outbox::default(),
            trains: Trains::default(),
        }
    }

    /// Forwards until it is told to stop.
    ///
    /// # Errors
    /// If the device is gone.
    pub fn run(mut self) -> io::Result<()> {
        let mut waiter = self.waiter.clone();
        while !self.common.stop.given() {
            if self.turn()? || waiter.look(|| self.turn())? {
                continue;
            }
            self.common.counters.outbound.sleeps.add(1);
            waiter.sleep([self.common.stop.as_fd(), self.common.device.as_fd()])?;
        }
        Ok(())
    }

    /// Works through what the device has now; says whether there was anything.
    fn turn(&mut self) -> io::Result<bool> {
        let Common {
            device, counters, ..
        } = &self.common;
        let counts = &*counters.outbound;
        self.batch.clear();
        while self.batch.fill(|room, frame| {
            let Some((vnet, len)) = device.read_unfinished(room)? else {
                return io::Result::Ok(None);
            };
            frame.vnet = vnet;
            Ok(Some(len))
        })? {}
        if self.batch.is_empty() {
            return Ok(false);
        }
        counts.device_calls.add(self.batch.len() as u64);
        let forwarding = self.forwarding.load();
        let (batch, out) = (&mut self.batch, &mut self.out);
        self.outbound
            .run(batch, forwarding, counts, Instant::now(), out);

        let sender = &mut self.sender;
        self.trains.assemble(
            batch,
            out,
            |parcel| sender.port(&parcel.to, parcel.flow),
            |refused| counts.drop_many(DropReason::NoUnderlay, refused.packets),
        );
        let cost = sender.send(&self.trains, batch, out, |train, end| match end {
            Ok(()) => {
                counts.forwarded.add(train.packets);
                counts.forwarded_bytes.add(train.inner_bytes);
                let peer = forwarding.tables.peer(train.peer);
                peer.data.sent.count(train.packets, train.inner_bytes);
            }
            Err(error) => counts.drop_many(send_failure(error), train.packets),
        });
        counts.socket_calls.add(cost.calls);
        counts.socket_messages.add(cost.messages);
        counts.datagrams.add(cost.datagrams);

        // ICMP errors about what could not be sent. If the device refuses one, nobody can be told.
        for delivery in out.deliveries() {
            let bytes = out.bytes(batch, &delivery.place);
            let _ = device.write_unfinished(&delivery.vnet, std::iter::once(bytes));
        }
        self.trains.clear();
        sender.set_aside(batch, out);
        out.clear();
        Ok(true)
    }
}

/// From the underlay to the device.
pub struct Ingress<E> {
    common: Common,
    receiver: Receiver,
    forwarding: Reader<Forwarding>,
    inbound: Inbound<E>,
    waiter: Waiter,
    batch: Batch,
    out: Outbox,
    joiner: Joiner,
}

impl<E: Encapsulation> Ingress<E> {
    /// An inbound thread's belongings.
    pub fn new(
        common: Common,
        receiver: Receiver,
        forwarding: Reader<Forwarding>,
        inbound: Inbound<E>,
        joiner: Joiner,
        waiter: Waiter,
    ) -> Self {
        Ingress {
            common,
            receiver,
            forwarding,
            inbound,
            waiter,
            batch: Batch::of_messages(MESSAGES),
            out: Outbox::default(),
            joiner,
        }
    }

    /// Forwards until it is told to stop.
    ///
    /// # Errors
    /// None in practice: what goes wrong concerns single packets.
    pub fn run(mut self) -> io::Result<()> {
        let mut waiter = self.waiter.clone();
        while !self.common.stop.given() {
            if self.turns() || waiter.look(|| Ok(self.turns()))? {
                continue;
            }
            self.common.counters.inbound.sleeps.add(1);
            // A family without a socket waits on the stop signal once more, which changes nothing.
            let stop = self.common.stop.as_fd();
            let socket = |family| self.receiver.fd(family).unwrap_or(stop);
            waiter.sleep([stop, socket(Family::V4), socket(Family::V6)])?;
        }
        Ok(())
    }

    /// A turn for each family; says whether there was anything.
    fn turns(&mut self) -> bool {
        let v4 = self.turn(Family::V4);
        self.turn(Family::V6) || v4
    }

    /// Works through what has come by now, as far as one call takes it.
    fn turn(&mut self, family: Family) -> bool {
        let Common {
            device, counters, ..
        } = &self.common;
        let counts = &*counters.inbound;
        let (batch, out) = (&mut self.batch, &mut self.out);
        batch.clear();
        let whole = Inbound::<E>::is_one_datagram;
        let messages = match self.receiver.receive(family, batch, whole) {
            Ok(0) => return false,
            Ok(messages) => messages,
            // An error that was waiting on the socket: reported, and thereby cleared.
            Err(error) => {
                tracing::trace!(%error, "pending socket error");
                return true;
            }
        };
        counts.socket_calls.add(1);
        counts.socket_messages.add(messages as u64);
        counts.datagrams.add(batch.len() as u64);
        counts.overflow.add(self.receiver.take_overflow());
        let forwarding = self.forwarding.load();
        self.inbound.run(batch, forwarding, counts, out);
        self.joiner.arrange(batch, out);
        write(&self.joiner, batch, out, device, forwarding, counts);
        out.clear();
        true
    }
}

/// Makes the writes, and counts what became of each.
fn write(
    joiner: &Joiner,
    batch: &Batch,
    out: &Outbox,
    device: &Queue,
    forwarding: &Forwarding,
    counts: &Direction,
) {
    for write in joiner.writes() {
        let pieces = joiner.pieces(write, batch, out);
        let written = device.write_unfinished(&write.vnet, pieces);
        counts.device_calls.add(1);
        let Some(peer) = write.peer else { continue };
        if written.is_ok() {
            counts.forwarded.add(write.packets);
            counts.forwarded_bytes.add(write.bytes);
            if write.packets > 1 {
                counts.coalesced.add(write.packets);
            }
            let data: &Arc<PeerCounters> = &forwarding.tables.peer(peer).data;
            data.received.count(write.packets, write.bytes);
        } else {
            counts.drop_many(DropReason::DeviceRefused, write.packets);
        }
    }
}
