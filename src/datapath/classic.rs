//! The classic engine: one packet per system call, one thread, poll.
//!
//! It works as flannel's proxy worked (a TUN device, a UDP socket, `poll`), without its faults: control
//! is never starved by data, an error of one peer never costs another one a packet, and every packet is
//! accounted for. It is the baseline that faster engines and the teaching compare with.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use encap::{Encapsulation, Family, MAX_HEADER};
use fdb::Reader;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::batch::{Batch, Outbox};
use super::counters::{Counters, Direction, PeerCounters};
use super::inbound::Inbound;
use super::outbound::Outbound;
use super::stop::Stop;
use super::{DropReason, Forwarding, send_failure};
use crate::tap::Queue;
use crate::underlay::Underlay;

/// Packets taken from one source before the others and the stop signal get their turn.
const BUDGET: usize = 64;

/// One forwarding thread's belongings.
pub struct Classic<E> {
    device: Queue,
    underlay: Underlay,
    stop: Arc<Stop>,
    forwarding: Reader<Forwarding>,
    counters: Arc<Counters>,
    outbound: Outbound,
    inbound: Inbound<E>,
    batch: Batch,
    out: Outbox,
}

/// What the wait ended with.
struct Ready {
    stop: bool,
    device: bool,
    v4: bool,
    v6: bool,
}

impl<E: Encapsulation> Classic<E> {
    /// An engine between `device` and `underlay`, which ends when `stop` becomes readable.
    pub fn new(
        device: Queue,
        underlay: Underlay,
        stop: Arc<Stop>,
        forwarding: Reader<Forwarding>,
        counters: Arc<Counters>,
        outbound: Outbound,
        inbound: Inbound<E>,
    ) -> Self {
        let (batch, out) = (Batch::new(1, MAX_HEADER), Outbox::default());
        Classic {
            device,
            underlay,
            stop,
            forwarding,
            counters,
            outbound,
            inbound,
            batch,
            out,
        }
    }

    /// Forwards until it is told to stop.
    ///
    /// # Errors
    /// If the device is gone.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            let ready = self.wait()?;
            if ready.stop {
                return Ok(());
            }
            if ready.device {
                self.drain_device()?;
            }
            if ready.v4 {
                self.drain_underlay(Family::V4);
            }
            if ready.v6 {
                self.drain_underlay(Family::V6);
            }
        }
    }

    /// Sleeps until a packet or the stop signal is there.
    fn wait(&self) -> io::Result<Ready> {
        let of = |fd| PollFd::new(fd, PollFlags::POLLIN);
        // A family without a socket waits on the stop signal once more, which changes nothing.
        let socket = |family| self.underlay.fd(family).unwrap_or(self.stop.as_fd());
        let mut fds = [
            of(self.stop.as_fd()),
            of(self.device.as_fd()),
            of(socket(Family::V4)),
            of(socket(Family::V6)),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [stop, device, v4, v6] = fds.map(|fd| fd.any().unwrap_or(false));
        Ok(Ready {
            stop,
            device,
            v4,
            v6,
        })
    }

    fn drain_device(&mut self) -> io::Result<()> {
        for _ in 0..BUDGET {
            self.batch.clear();
            if !self.batch.fill(|room, _| self.device.read(room))? {
                break;
            }
            let forwarding = self.forwarding.load();
            let (counts, now) = (&self.counters.outbound, Instant::now());
            self.outbound
                .run(&mut self.batch, forwarding, counts, now, &mut self.out);
            send(
                &self.out,
                &self.batch,
                &mut self.underlay,
                &forwarding.tables,
                counts,
            );
            // ICMP errors about what could not be sent. If the device refuses one, nobody can be told.
            deliver(
                &self.out,
                &self.batch,
                &self.device,
                &forwarding.tables,
                counts,
            );
            self.out.clear();
        }
        Ok(())
    }

    fn drain_underlay(&mut self, family: Family) {
        for _ in 0..BUDGET {
            self.batch.clear();
            match self
                .batch
                .fill(|room, frame| self.underlay.receive(family, room, frame))
            {
                Ok(true) => {}
                Ok(false) => break,
                // An error that was waiting on the socket: reported, and thereby cleared.
                Err(error) => {
                    tracing::trace!(%error, "pending socket error");
                    continue;
                }
            }
            let forwarding = self.forwarding.load();
            let counts = &self.counters.inbound;
            counts.overflow.add(self.underlay.take_overflow());
            self.inbound
                .run(&mut self.batch, forwarding, counts, &mut self.out);
            deliver(
                &self.out,
                &self.batch,
                &self.device,
                &forwarding.tables,
                counts,
            );
            self.out.clear();
        }
    }
}

type Tables = fdb::Tables<Arc<PeerCounters>>;

/// Sends each parcel, one system call a datagram, and counts what became of it.
fn send(out: &Outbox, batch: &Batch, underlay: &mut Underlay, tables: &Tables, counts: &Direction) {
    for parcel in out.parcels() {
        let sent = out
            .datagrams(batch, parcel)
            .try_for_each(|datagram| underlay.send(parcel.to, parcel.tos, datagram));
        match sent {
            Ok(()) => {
                let bytes = parcel.inner_bytes;
                counts.forwarded.add(1);
                counts.forwarded_bytes.add(bytes);
                tables.peer(parcel.peer).data.sent.count(1, bytes);
            }
            Err(error) => counts.drop_one(send_failure(&error)),
        }
    }
}

/// Writes each delivery to the device, one system call a packet. What came from a peer is counted.
fn deliver(out: &Outbox, batch: &Batch, device: &Queue, tables: &Tables, counts: &Direction) {
    for delivery in out.deliveries() {
        let packet = out.bytes(batch, &delivery.place);
        let written = device.write(packet);
        let Some(peer) = delivery.peer else { continue };
        if written.is_ok() {
            let bytes = packet.len() as u64;
            counts.forwarded.add(1);
            counts.forwarded_bytes.add(bytes);
            tables.peer(peer).data.received.count(1, bytes);
        } else {
            counts.drop_one(DropReason::DeviceRefused);
        }
    }
}
