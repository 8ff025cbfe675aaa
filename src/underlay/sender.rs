//! The sending half of the batched path: trains leave through a pool of source ports.
//!
//! A UDP socket cannot vary its source port, and RFC 7348 section 5 asks for one per flow, so that routers and
//! receive queues can spread the load: hence several sockets, of which a flow's hash picks one. They only send.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use encap::flow::FIRST_PORT;
use nix::errno::Errno;
use socket2::SockFilter;

use super::zerocopy::{self, Zerocopy};
use super::{Port, SocketOptions, Underlay};
use crate::datapath::batch::{Batch, Outbox};
use crate::datapath::train::{Train, Trains};
use crate::sys::udp::{Message, SendScratch, send_lent, send_many};

/// Source ports of a pool, per family.
const POOL: u16 = 16;
/// Distance of the ports that are tried first: spread over the dynamic range, so that hashes of them differ.
const STRIDE: u16 = 1021;

/// The sockets that datagrams leave by.
pub struct Sender {
    sockets: Vec<UdpSocket>,
    /// How many of them are IPv4's; the others are IPv6's.
    v4: usize,
    /// The kernel cuts trains into datagrams.
    segmentation: Arc<AtomicBool>,
    /// What large trains are lent to the kernel by, instead of being copied.
    zerocopy: Option<Zerocopy>,
    scratch: SendScratch,
    messages: Vec<Message>,
    order: Vec<usize>,
    failed: Vec<usize>,
}

/// The classic BPF instruction that returns how many bytes of a packet to keep: BPF_RET | BPF_K.
const RETURN: u16 = 0x06;

/// What sending cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// System calls.
    pub calls: u64,
    /// Messages handed over in them.
    pub messages: u64,
    /// Datagrams on the wire.
    pub datagrams: u64,
}

impl Sender {
    /// Sends through the sockets of `underlay` themselves, so that the source port is the overlay's own (flannel's
    /// udp backend).
    ///
    /// # Errors
    /// If a descriptor cannot be duplicated.
    pub fn of(underlay: &Underlay) -> io::Result<Self> {
        let clone = |port: &Option<Port>| port.as_ref().map(|p| p.socket.try_clone()).transpose();
        let v4 = clone(&underlay.v4)?;
        Ok(Self::new(v4.into_iter(), clone(&underlay.v6)?.into_iter()))
    }

    /// Sends from a pool of ports of the dynamic range on each address given (RFC 7348 section 5).
    ///
    /// # Errors
    /// As bind(2). Ports that others have are passed over.
    pub fn pool(
        v4: Option<Ipv4Addr>,
        v6: Option<Ipv6Addr>,
        options: SocketOptions,
    ) -> io::Result<Self> {
        let pool = |ip: Option<IpAddr>| match ip {
            Some(ip) => (0..POOL).map(|n| bind_near(ip, n, options)).collect(),
            None => Ok(Vec::new()),
        };
        let v4: Vec<UdpSocket> = pool(v4.map(IpAddr::V4))?;
        Ok(Self::new(
            v4.into_iter(),
            pool(v6.map(IpAddr::V6))?.into_iter(),
        ))
    }

    fn new(v4: impl Iterator<Item = UdpSocket>, v6: impl Iterator<Item = UdpSocket>) -> Self {
        let mut sockets: Vec<_> = v4.collect();
        let count = sockets.len();
        sockets.extend(v6);
        Sender {
            sockets,
            v4: count,
            segmentation: Arc::new(AtomicBool::new(true)),
            zerocopy: None,
            scratch: SendScratch::default(),
            messages: Vec::new(),
            order: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// From now on lends large trains to the kernel, which then reads them where they lie: as long as it does, or
    /// `always`. To be followed by [`Sender::set_aside`] after every [`Sender::send`].
    ///
    /// Not for sockets that someone receives on, whom every word of the kernel about it would wake.
    #[must_use]
    pub fn with_zerocopy(mut self, always: bool) -> Self {
        self.zerocopy = Some(Zerocopy::new(&self.sockets, self.v4, always));
        self
    }

    /// The same sockets, for another queue. A flow's source port must not depend on the queue by which it leaves: the
    /// peer's answers would come by another queue then, the kernel would move the flow to that one, and so on. It lends
    /// nothing: what the kernel says of lent memory, a socket says once.
    ///
    /// # Errors
    /// If a descriptor cannot be duplicated.
    pub fn another(&self) -> io::Result<Self> {
        let clones: Vec<_> = self
            .sockets
            .iter()
            .map(UdpSocket::try_clone)
            .collect::<io::Result<_>>()?;
        let mut clones = clones.into_iter();
        let v4: Vec<_> = clones.by_ref().take(self.v4).collect();
        let mut other = Self::new(v4.into_iter(), clones);
        other.segmentation = self.segmentation.clone();
        Ok(other)
    }

    /// What became of zerocopy, if it was asked for.
    pub fn zerocopy(&self) -> Option<Arc<zerocopy::Report>> {
        Some(self.zerocopy.as_ref()?.report())
    }

    /// Exchanges memory that the kernel still reads from for memory that it does not. Both must be cleared before they
    /// are used again.
    pub fn set_aside(&mut self, batch: &mut Batch, out: &mut Outbox) {
        if let Some(zerocopy) = &mut self.zerocopy {
            zerocopy.set_aside(&self.sockets, batch, out);
        }
    }

    /// The source port, as a number of ours, for a flow to `to`; `None` if we have no socket of that family.
    pub fn port(&self, to: &SocketAddr, flow: u32) -> Option<usize> {
        let (first, count) = if to.is_ipv4() {
            (0, self.v4)
        } else {
            (self.v4, self.sockets.len() - self.v4)
        };
        // The upper bits, scaled: as good as a remainder, and cheaper.
        let index = (u64::from(flow) * count as u64) >> 32;
        (count > 0).then_some(first + index as usize)
    }

    /// The source ports in use.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        let sockets = self.sockets.iter();
        sockets.filter_map(|socket| Some(socket.local_addr().ok()?.port()))
    }

    /// Does the kernel cut trains for us? It may turn out while sending that it does not.
    pub fn segmentation(&self) -> Arc<AtomicBool> {
        self.segmentation.clone()
    }

    /// Sends the trains, and tells `done` for each what became of it.
    pub fn send(
        &mut self,
        trains: &Trains,
        batch: &Batch,
        out: &Outbox,
        mut done: impl FnMut(&Train, Result<(), &io::Error>),
    ) -> Cost {
        let all = trains.trains();
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.extend(0..all.len());
        order.sort_unstable_by_key(|&index| (all[index].port, index));
        let mut cost = Cost::default();
        for group in order.chunk_by(|&a, &b| all[a].port == all[b].port) {
            let zerocopy = self.zerocopy.as_ref();
            if zerocopy.is_some_and(|zerocopy| zerocopy.lends(all[group[0]].port)) {
                self.send_mixed(group, trains, batch, out, &mut done, &mut cost);
                continue;
            }
            self.send_group(group, trains, batch, out, &mut done, &mut cost);
        }
        self.order = order;
        cost
    }

    /// Sends trains of one source port, of which large ones are lent to the kernel, in order.
    fn send_mixed(
        &mut self,
        mut group: &[usize],
        trains: &Trains,
        batch: &Batch,
        out: &Outbox,
        done: &mut impl FnMut(&Train, Result<(), &io::Error>),
        cost: &mut Cost,
    ) {
        while let Some(&first) = group.first() {
            let train = &trains.trains()[first];
            if self.lend(train, trains, batch, out, cost) {
                done(train, Ok(()));
                group = &group[1..];
                continue;
            }
            // This one is copied, and what follows it up to the next that may be lent.
            let piece = |&index: &usize| {
                let train = &trains.trains()[index];
                trains.piece(train, zerocopy::LARGE, batch, out).is_some()
            };
            let end = group[1..].iter().position(piece);
            let (copied, rest) = group.split_at(end.map_or(group.len(), |end| end + 1));
            self.send_group(copied, trains, batch, out, done, cost);
            group = rest;
        }
    }

    /// Lends a train to the kernel, if it is large enough to pay and there is other memory to go on with. `false`: it
    /// was not sent.
    fn lend(
        &mut self,
        train: &Train,
        trains: &Trains,
        batch: &Batch,
        out: &Outbox,
        cost: &mut Cost,
    ) -> bool {
        let Some(piece) = trains.piece(train, zerocopy::LARGE, batch, out) else {
            return false;
        };
        let Some(zerocopy) = self
            .zerocopy
            .as_mut()
            .filter(|_| self.segmentation.load(Relaxed))
        else {
            return false;
        };
        let message = Message {
            to: train.to,
            tos: train.tos,
            segment: train.kernel_segment(),
            slices: 1,
        };
        let socket = &self.sockets[train.port];
        let Some(sent) = zerocopy.lend(&self.sockets, train.port, || {
            send_lent(socket, &mut self.scratch, message, piece)
        }) else {
            return false;
        };
        cost.calls += 1;
        cost.messages += 1;
        cost.datagrams += if sent { train.datagrams as u64 } else { 0 };
        sent
    }

    /// Sends trains of one source port.
    fn send_group(
        &mut self,
        group: &[usize],
        trains: &Trains,
        batch: &Batch,
        out: &Outbox,
        done: &mut impl FnMut(&Train, Result<(), &io::Error>),
        cost: &mut Cost,
    ) {
        let all = trains.trains();
        if !self.segmentation.load(Relaxed) {
            for &index in group {
                self.send_singly(&all[index], trains, batch, out, done, cost);
            }
            return;
        }
        self.messages.clear();
        self.messages.extend(group.iter().map(|&index| {
            let train = &all[index];
            Message {
                to: train.to,
                tos: train.tos,
                segment: train.kernel_segment(),
                slices: trains.slices(train, batch, out).count(),
            }
        }));
        let slices = group
            .iter()
            .flat_map(|&index| trains.slices(&all[index], batch, out));
        let mut failed = std::mem::take(&mut self.failed);
        let socket = &self.sockets[all[group[0]].port];
        cost.messages += group.len() as u64;
        cost.calls += send_many(
            &socket.as_fd(),
            &mut self.scratch,
            &self.messages,
            slices,
            |position, end| {
                let train = &all[group[position]];
                match end {
                    Ok(()) => {
                        cost.datagrams += train.datagrams as u64;
                        done(train, Ok(()));
                    }
                    Err(error) if train.datagrams > 1 && !is_full(&error) => {
                        // A device that computes no checksums makes the kernel refuse to cut (EIO, before
                        // Linux 6.11).
                        if error.raw_os_error() == Some(libc::EIO) {
                            self.segmentation.store(false, Relaxed);
                        }
                        failed.push(group[position]);
                    }
                    Err(error) => done(train, Err(&error)),
                }
            },
        );
        for index in failed.drain(..) {
            self.send_singly(&all[index], trains, batch, out, done, cost);
        }
        self.failed = failed;
    }

    /// Sends a train's datagrams one by one: the kernel would not cut it. The train fails if one of them does.
    fn send_singly(
        &mut self,
        train: &Train,
        trains: &Trains,
        batch: &Batch,
        out: &Outbox,
        done: &mut impl FnMut(&Train, Result<(), &io::Error>),
        cost: &mut Cost,
    ) {
        let slices = || {
            trains
                .slices(train, batch, out)
                .flat_map(|slice| slice.chunks(train.segment.max(1)))
        };
        let message = Message {
            to: train.to,
            tos: train.tos,
            segment: 0,
            slices: 1,
        };
        self.messages.clear();
        self.messages.extend(slices().map(|_| message));
        let socket = &self.sockets[train.port];
        let mut ended = Ok(());
        cost.messages += self.messages.len() as u64;
        cost.calls += send_many(
            &socket.as_fd(),
            &mut self.scratch,
            &self.messages,
            slices(),
            |_, end| match end {
                Ok(()) => cost.datagrams += 1,
                Err(error) => ended = Err(error),
            },
        );
        done(train, ended.as_ref().copied());
    }
}

/// Is it a matter of waiting? Then sending in smaller pieces would not help.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM)
    )
}

/// Binds the `n`th socket of a pool, to the first free port from its place on.
fn bind_near(ip: IpAddr, n: u16, options: SocketOptions) -> io::Result<UdpSocket> {
    let mut port = FIRST_PORT + n * STRIDE;
    loop {
        match Port::bind(SocketAddr::new(ip, port), options, false) {
            Ok(bound) => {
                // Nothing that comes to it is for us; unread, it would fill the buffer.
                let drop_all = [SockFilter::new(RETURN, 0, 0, 0)];
                socket2::SockRef::from(&bound.socket).attach_filter(&drop_all)?;
                return Ok(bound.socket);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && port < u16::MAX => port += 1,
            Err(error) => {
                let at = SocketAddr::new(ip, port);
                return Err(io::Error::new(
                    error.kind(),
                    format!("cannot bind UDP {at} to send from: {error}"),
                ));
            }
        }
    }
}
