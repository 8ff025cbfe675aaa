//! The batched engine: superpackets from and to the device, trains of datagrams on the sockets, one thread per queue
//! of the device.
//!
//! ```text
//!              ┌─ device ─▶ read until it is dry ─▶ Outbound ─▶ Trains ─▶ sendmmsg, UDP_SEGMENT
//! epoll_wait ──┤
//!              └─ socket ─▶ recvmmsg, UDP_GRO ─▶ Inbound ─▶ Joiner ─▶ one writev per superpacket
//! ```
//!
//! Nothing waits for a batch to fill, but for sockets while streams come in: see [`Pace`]. A batch is what is there, so it
//! grows with the load and is one packet without.
//! Both directions of a queue take turns in one thread, because what one does makes work for the other: TCP answers
//! what was written to the device before the write returns, and the thread that is awake finds the answer without
//! being woken. Queues share the tables and nothing else.

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use encap::{Encapsulation, Family};
use fdb::{NextHop, PeerId, Reader};

use super::batch::{Batch, Outbox};
use super::counters::{Counters, Direction, PeerCounters};
use super::inbound::Inbound;
use super::join::Joiner;
use super::outbound::Outbound;
use super::precedence::Precedence;
use super::stop::Stop;
use super::train::Trains;
use super::wait::{self, Ready, Source, Waiter};
use super::{DropReason, Forwarding, send_failure};
use crate::inject::{Head, Injector, Super, View};
use crate::tap::Queue;
use crate::underlay::receiver::{MESSAGES, Receiver};
use crate::underlay::sender::Sender;

/// What is written to the device is a superpacket if it has more bytes than this: more than any link's MTU that is in use.
const SUPERPACKET: u64 = 16 << 10;

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

/// The way by which superpackets leave whole.
pub struct Lane {
    injector: Arc<Injector>,
    view: Reader<View>,
    /// Not before this, after the device failed.
    retry: Option<Instant>,
}

/// How long superpackets are split after the injection device failed.
const RETRY: Duration = Duration::from_secs(1);

impl Lane {
    /// Through `injector`, on the paths that `view` knows.
    pub fn new(injector: Arc<Injector>, view: Reader<View>) -> Self {
        Lane {
            injector,
            view,
            retry: None,
        }
    }

    /// The bytes in front of a superpacket, if it may go this way now and gains by it.
    fn head(&mut self, hop: &NextHop, tos: u8, source_port: u16, shape: &Super) -> Option<Head> {
        let view = self.view.load();
        if !view.pays(shape.kind, shape.family) {
            return None;
        }
        let path = view.path(hop.to.ip())?;
        self.injector.header(path, hop, source_port, tos, shape)
    }

    /// May it be tried now?
    fn is_open(&self, now: Instant) -> bool {
        self.retry.is_none_or(|retry| now >= retry)
    }

    /// Sends it; says whether it went.
    fn send(&mut self, head: &[u8], packet: &[u8]) -> bool {
        match self.injector.inject(head, packet) {
            Ok(()) => true,
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    self.retry = Some(Instant::now() + RETRY);
                }
                false
            }
        }
    }
}

/// One queue of the engine: both directions, and what wakes them.
pub struct Batched<E> {
    egress: Egress,
    ingress: Ingress<E>,
    waiter: Waiter,
    pace: Pace,
}

/// How a forwarding thread shares the processor with other programs.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How long it looks for packets before it sleeps.
    pub busy_poll: Duration,
    /// By how much its nice value changes while streams come in: zero or less.
    pub nice: i32,
    /// How long it leaves empty sockets alone while streams come in, unless it looks before it sleeps.
    pub rx_delay: Duration,
}

impl Pace {
    /// Does it ever leave empty sockets alone?
    pub fn rests(&self) -> bool {
        self.busy_poll.is_zero() && !self.rx_delay.is_zero()
    }
}

/// Without a packet for so long, a stream is over.
const PATIENCE: Duration = Duration::from_millis(100);

impl<E: Encapsulation> Batched<E> {
    /// A queue's thread's belongings.
    ///
    /// # Errors
    /// As epoll_create1(2) and epoll_ctl(2).
    pub fn new(egress: Egress, ingress: Ingress<E>, pace: Pace) -> io::Result<Self> {
        let waiter = Waiter::new(pace.busy_poll)?;
        waiter.watch(Source::Device, egress.common.device.as_fd())?;
        waiter.watch(Source::Stop, egress.common.stop.as_fd())?;
        for (source, family) in SOCKETS {
            if let Some(fd) = ingress.receiver.fd(family) {
                waiter.watch(source, fd)?;
            }
        }
        Ok(Batched {
            egress,
            ingress,
            waiter,
            pace,
        })
    }

    /// Forwards until it is told to stop.
    ///
    /// # Errors
    /// If the device is gone.
    pub fn run(mut self) -> io::Result<()> {
        let mut precedence = Precedence::new(self.pace.nice);
        if self.pace.rests() {
            // Without it the rests are longer, and all else is as before.
            let _ = wait::rest_precisely();
        }
        while !self.egress.common.stop.given() {
            let ready = self.ready(precedence.streaming())?;
            if ready.is_empty() {
                precedence.idle();
                continue;
            }
            if ready.has(Source::Device) {
                self.egress.turn()?;
            }
            let mut stream = false;
            for (source, family) in SOCKETS {
                if ready.has(source) {
                    stream |= self.ingress.turn(family);
                }
            }
            precedence.turned(stream);
        }
        Ok(())
    }

    /// Waits until there is something to do. While streams come in, empty sockets are left alone for a moment first, as a
    /// network card holds back its interrupts (ethtool(8), `rx-usecs`): to wake a thread for every superpacket is dear, above
    /// all for a sender on the same machine, in whose time it is done. The device is not kept waiting.
    fn ready(&self, streaming: bool) -> io::Result<Ready> {
        if !streaming {
            return self.waiter.wait(None);
        }
        if self.pace.rests() {
            let ready = self.waiter.look()?;
            if !ready.is_empty() {
                return Ok(ready);
            }
            let Common { device, stop, .. } = &self.egress.common;
            wait::rest(self.pace.rx_delay, [device.as_fd(), stop.as_fd()])?;
        }
        self.waiter.wait(Some(PATIENCE))
    }
}

/// The sockets of the families.
const SOCKETS: [(Source, Family); 2] = [(Source::V4, Family::V4), (Source::V6, Family::V6)];

/// From the device to the underlay.
pub struct Egress {
    common: Common,
    sender: Sender,
    /// The source ports of `sender`, by its numbers.
    ports: Vec<u16>,
    lane: Option<Lane>,
    forwarding: Reader<Forwarding>,
    outbound: Outbound,
    batch: Batch,
    out: Outbox,
    trains: Trains,
}

impl Egress {
    /// What one direction of a queue works with. `header_len` is that of the encapsulation, in bytes.
    pub fn new(
        common: Common,
        sender: Sender,
        lane: Option<Lane>,
        forwarding: Reader<Forwarding>,
        outbound: Outbound,
        header_len: usize,
    ) -> Self {
        Egress {
            common,
            ports: sender.ports().collect(),
            sender,
            lane,
            forwarding,
            outbound,
            batch: Batch::new(PACKETS, header_len),
            out: Outbox::default(),
            trains: Trains::default(),
        }
    }

    /// Works through what the device has now.
    fn turn(&mut self) -> io::Result<()> {
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
            return Ok(());
        }
        counts.batches.add(1);
        counts.device_calls.add(self.batch.len() as u64);
        let forwarding = self.forwarding.load();
        let now = Instant::now();
        let (sender, ports) = (&self.sender, &self.ports);
        let mut lane = self.lane.as_mut().filter(|lane| lane.is_open(now));
        self.outbound.run_with(
            &mut self.batch,
            forwarding,
            counts,
            now,
            &mut self.out,
            |hop, parcel, shape| {
                let port = sender.port(&parcel.to, parcel.flow)?;
                lane.as_mut()?.head(hop, parcel.tos, ports[port], shape)
            },
        );
        let mut sending = Sending {
            sender: &mut self.sender,
            lane: self.lane.as_mut(),
            outbound: &self.outbound,
            trains: &mut self.trains,
            batch: &self.batch,
            forwarding,
            counts,
        };
        sending.all(&mut self.out);

        // ICMP errors about what could not be sent. If the device refuses one, nobody can be told.
        for delivery in self.out.deliveries() {
            let bytes = self.out.bytes(&self.batch, &delivery.place);
            let _ = device.write_unfinished(&delivery.vnet, std::iter::once(bytes));
        }
        self.sender.set_aside(&mut self.batch, &mut self.out);
        self.out.clear();
        Ok(())
    }
}

/// The parcels of one batch on their way out, in order.
struct Sending<'a> {
    sender: &'a mut Sender,
    lane: Option<&'a mut Lane>,
    outbound: &'a Outbound,
    trains: &'a mut Trains,
    batch: &'a Batch,
    forwarding: &'a Forwarding,
    counts: &'a Direction,
}

impl Sending<'_> {
    /// Sends all parcels. A superpacket that goes whole takes another way than trains do, so trains of its flow that
    /// wait leave first.
    fn all(&mut self, out: &mut Outbox) {
        let count = out.parcels().len();
        let mut next = 0;
        while next < count {
            let mut rest = out.parcels()[next..count].iter();
            let whole = rest.position(|parcel| parcel.head.is_some());
            let end = whole.map_or(count, |n| next + n);
            self.assemble(out, next..end);
            next = end;
            if whole.is_some() {
                self.whole(out, next);
                next += 1;
            }
        }
        self.flush(out);
    }

    fn assemble(&mut self, out: &Outbox, parcels: Range<usize>) {
        let (sender, counts) = (&*self.sender, self.counts);
        self.trains.assemble(
            self.batch,
            out,
            parcels,
            |parcel| sender.port(&parcel.to, parcel.flow),
            |refused| counts.drop_many(DropReason::NoUnderlay, refused.packets),
        );
    }

    /// Sends the superpacket of a parcel whole, or split if that fails.
    fn whole(&mut self, out: &mut Outbox, index: usize) {
        let parcel = out.parcels()[index].clone();
        let port = self.sender.port(&parcel.to, parcel.flow);
        if port.is_some_and(|port| self.trains.go(parcel.to, port)) {
            self.flush(out);
        }
        let (Some(head), Some(frame)) = (parcel.head, out.frame(&parcel)) else {
            return;
        };
        let packet = self.batch.bytes(frame);
        let lane = self.lane.as_mut();
        if lane.is_some_and(|lane| lane.send(out.head(head), packet)) {
            self.counts.injected.add(1);
            sent(
                self.forwarding,
                self.counts,
                parcel.peer,
                parcel.packets,
                parcel.inner_bytes,
            );
            return;
        }
        let first = out.parcels().len();
        let (outbound, batch) = (self.outbound, self.batch);
        match outbound.split_after_all(batch, frame, self.forwarding, self.counts, out) {
            Ok(()) => self.assemble(out, first..out.parcels().len()),
            Err(reason) => self.counts.drop_many(reason, parcel.packets),
        }
    }

    /// Sends the trains that wait.
    fn flush(&mut self, out: &Outbox) {
        let (forwarding, counts) = (self.forwarding, self.counts);
        let cost = self
            .sender
            .send(self.trains, self.batch, out, |train, end| match end {
                Ok(()) => sent(
                    forwarding,
                    counts,
                    train.peer,
                    train.packets,
                    train.inner_bytes,
                ),
                Err(error) => counts.drop_many(send_failure(error), train.packets),
            });
        counts.socket_calls.add(cost.calls);
        counts.socket_messages.add(cost.messages);
        counts.datagrams.add(cost.datagrams);
        self.trains.clear();
    }
}

/// Counts packets that went to a peer.
fn sent(forwarding: &Forwarding, counts: &Direction, peer: PeerId, packets: u64, bytes: u64) {
    counts.forwarded.add(packets);
    counts.forwarded_bytes.add(bytes);
    let data: &Arc<PeerCounters> = &forwarding.tables.peer(peer).data;
    data.sent.count(packets, bytes);
}

/// From the underlay to the device.
pub struct Ingress<E> {
    common: Common,
    receiver: Receiver,
    forwarding: Reader<Forwarding>,
    inbound: Inbound<E>,
    batch: Batch,
    out: Outbox,
    joiner: Joiner,
}

impl<E: Encapsulation> Ingress<E> {
    /// What one direction of a queue works with.
    pub fn new(
        common: Common,
        receiver: Receiver,
        forwarding: Reader<Forwarding>,
        inbound: Inbound<E>,
        joiner: Joiner,
    ) -> Self {
        Ingress {
            common,
            receiver,
            forwarding,
            inbound,
            batch: Batch::of_messages(MESSAGES),
            out: Outbox::default(),
            joiner,
        }
    }

    /// Works through what has come by now, as far as one call takes it. Says whether superpackets of a peer were among it.
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
                return false;
            }
        };
        counts.batches.add(1);
        counts.socket_calls.add(1);
        counts.socket_messages.add(messages as u64);
        counts.datagrams.add(batch.len() as u64);
        counts.overflow.add(self.receiver.take_overflow());
        let forwarding = self.forwarding.load();
        self.inbound.run(batch, forwarding, counts, out);
        self.joiner.arrange(batch, out);
        write(&self.joiner, batch, out, device, forwarding, counts);
        out.clear();
        let mut writes = self.joiner.writes().iter();
        writes.any(|write| write.peer.is_some() && write.bytes > SUPERPACKET)
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
            if write.joined() {
                counts.coalesced.add(write.packets);
            }
            let data: &Arc<PeerCounters> = &forwarding.tables.peer(peer).data;
            data.received.count(write.packets, write.bytes);
        } else {
            counts.drop_many(DropReason::DeviceRefused, write.packets);
        }
    }
}
