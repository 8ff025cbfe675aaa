//! Sends that the kernel reads where they lie (`MSG_ZEROCOPY`, Documentation/networking/msg_zerocopy.rst).
//!
//! The kernel does not copy what it is lent, and says on the socket's error queue when it has done with it. Until
//! then the memory must not change, so the sender goes on with other memory, of which it has a few lots:
//!
//! ```text
//! batch, outbox ── large train ─▶ sendmsg(MSG_ZEROCOPY) ─▶ kernel reads for a while ─▶ error queue: "0 to 3 done"
//!       │                                                                                    │
//!       └── set aside as a lot, another lot takes its place          the lot is free again ◀─┘
//! ```
//!
//! If no lot is free, the train is copied as any other. And where the kernel had to copy after all, as it does
//! for everything that is received on the same machine (a veth, a socket, a packet capture: `skb_orphan_frags_rx`) and for
//! devices that cannot gather or finish checksums, it says so. Lending cost more than copying there, so it is given
//! up for that family, unless it was asked for in any case.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use encap::Family;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::datapath::batch::{Batch, Outbox};
use crate::observe::status::Feature;
use crate::sys;

/// Trains from this size on are lent, in bytes: "generally only effective at writes over around 10 KB"
/// (msg_zerocopy.rst).
pub const LARGE: usize = 10 << 10;

/// How many lots there are beside the memory in use.
const LOTS: usize = 8;

/// Of include/uapi/linux/errqueue.h.
const SO_EE_ORIGIN_ZEROCOPY: u8 = 5;
const SO_EE_CODE_ZEROCOPY_COPIED: u8 = 1;

/// What became of lending, for people; read while it goes on.
#[derive(Debug, Default)]
pub struct Report {
    families: [FamilyReport; 2],
}

#[derive(Debug, Default)]
struct FamilyReport {
    state: AtomicU8,
    lent: AtomicU64,
    copied: AtomicU64,
}

/// How a family's sockets stand to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum State {
    /// There are none.
    Absent,
    /// Large trains are lent.
    On,
    /// The kernel copied.
    Copied,
    /// The kernel does not know of it.
    Refused,
}

impl FamilyReport {
    fn state(&self) -> State {
        let states = [State::Absent, State::On, State::Copied, State::Refused];
        states[usize::from(self.state.load(Relaxed)).min(3)]
    }

    fn set(&self, state: State) {
        self.state.store(state as u8, Relaxed);
    }
}

impl fmt::Display for FamilyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (lent, copied) = (self.lent.load(Relaxed), self.copied.load(Relaxed));
        match self.state() {
            State::Absent => f.write_str("no sockets"),
            State::On if lent == 0 => f.write_str("no large send yet"),
            State::On => write!(
                f,
                "{lent} sends lent to the kernel, {copied} copied after all"
            ),
            State::Copied => write!(
                f,
                "the kernel copied {copied} of {lent} sends after all (the path stays on this machine, the device cannot gather, or packets are captured)"
            ),
            State::Refused => f.write_str("the kernel does not know it for UDP (Linux 5.0)"),
        }
    }
}

impl Report {
    fn of(&self, family: Family) -> &FamilyReport {
        match family {
            Family::V4 => &self.families[0],
            Family::V6 => &self.families[1],
        }
    }

    /// As status shows it: one feature for each family that has sockets.
    pub fn features(&self) -> Vec<Feature> {
        let of = |family, name| {
            let report = self.of(family);
            let state = report.state();
            (state != State::Absent)
                .then(|| Feature::new(name, state == State::On, &report.to_string()))
        };
        let v4 = of(Family::V4, "zerocopy-ipv4");
        v4.into_iter()
            .chain(of(Family::V6, "zerocopy-ipv6"))
            .collect()
    }
}

/// What has been lent, and the lots to go on with.
pub(super) struct Zerocopy {
    always: bool,
    /// Of each socket; the first `v4` are IPv4's.
    ledgers: Vec<Ledger>,
    v4: usize,
    lots: Vec<Lot>,
    /// The lot that the memory now in use will be, should it be set aside.
    current: Option<usize>,
    control: Vec<u8>,
    report: Arc<Report>,
}

/// Memory for one batch.
#[derive(Default)]
struct Lot {
    /// None before it was needed.
    memory: Option<(Batch, Outbox)>,
    /// How many sends the kernel reads from it.
    reading: usize,
}

/// Which sends of a socket are not done. The kernel numbers those that it took, from 0.
#[derive(Default)]
struct Ledger {
    /// The number of the first in `sends`.
    oldest: u32,
    /// The lot that each reads from, or that it is done.
    sends: VecDeque<Option<usize>>,
    /// The numbers may differ from the kernel's: nothing more is lent by this socket.
    lost_count: bool,
}

impl Ledger {
    /// The sends `first` to `last` are done; `free` hears of their lots.
    fn done(&mut self, first: u32, last: u32, mut free: impl FnMut(usize)) {
        for number in 0..=last.wrapping_sub(first) {
            let place = first.wrapping_add(number).wrapping_sub(self.oldest);
            let send = usize::try_from(place)
                .ok()
                .and_then(|p| self.sends.get_mut(p));
            match send {
                Some(send) => send.take().into_iter().for_each(&mut free),
                None => {
                    self.lost_count = true;
                    break;
                }
            }
        }
        while self.sends.front().is_some_and(Option::is_none) {
            self.sends.pop_front();
            self.oldest = self.oldest.wrapping_add(1);
        }
    }
}

impl Zerocopy {
    /// Prepares `sockets`, of which the first `v4` are IPv4's.
    pub(super) fn new(sockets: &[UdpSocket], v4: usize, always: bool) -> Self {
        let report = Report::default();
        let enable =
            |socket| sys::socket::set_int(socket, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1).is_ok();
        let (of_v4, of_v6) = sockets.split_at(v4);
        for (family, sockets) in [(Family::V4, of_v4), (Family::V6, of_v6)] {
            report.of(family).set(match sockets {
                [] => State::Absent,
                some if some.iter().all(enable) => State::On,
                _ => State::Refused,
            });
        }
        Zerocopy {
            always,
            ledgers: sockets.iter().map(|_| Ledger::default()).collect(),
            v4,
            lots: Vec::new(),
            current: None,
            control: nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6),
            report: Arc::new(report),
        }
    }

    pub(super) fn report(&self) -> Arc<Report> {
        self.report.clone()
    }

    fn family(&self, socket: usize) -> &FamilyReport {
        let family = if socket < self.v4 {
            Family::V4
        } else {
            Family::V6
        };
        self.report.of(family)
    }

    /// Does the socket of this number lend at all?
    pub(super) fn lends(&self, socket: usize) -> bool {
        self.family(socket).state() == State::On && !self.ledgers[socket].lost_count
    }

    /// Lets `send` lend memory of the batch in use to the kernel by the socket of this number: says whether it was sent,
    /// or `None` if that is not to be tried.
    pub(super) fn lend(
        &mut self,
        sockets: &[UdpSocket],
        socket: usize,
        send: impl FnOnce() -> io::Result<()>,
    ) -> Option<bool> {
        if !self.lends(socket) {
            return None;
        }
        let lot = match self.current.or_else(|| self.free_lot()) {
            Some(lot) => lot,
            None => {
                self.hear(sockets);
                self.free_lot()?
            }
        };
        let sent = send();
        match &sent {
            Ok(()) => {
                self.current = Some(lot);
                self.lots[lot].reading += 1;
                self.ledgers[socket].sends.push_back(Some(lot));
                self.family(socket).lent.fetch_add(1, Relaxed);
            }
            // Refused before the kernel gave it a number (net/core/skbuff.c, msg_zerocopy_realloc and
            // msg_zerocopy_put_abort; net/ipv4/ip_output.c, __ip_append_data).
            Err(error) if is_shortage(error) => {}
            // It may have one, and those that follow another than we think.
            Err(_) => self.ledgers[socket].lost_count = true,
        }
        Some(sent.is_ok())
    }

    /// A lot that nobody reads.
    fn free_lot(&mut self) -> Option<usize> {
        let free = self.lots.iter().position(|lot| lot.reading == 0);
        if free.is_none() && self.lots.len() < LOTS {
            self.lots.push(Lot::default());
            return Some(self.lots.len() - 1);
        }
        free
    }

    /// Exchanges the memory in use if the kernel still reads from it.
    pub(super) fn set_aside(&mut self, sockets: &[UdpSocket], batch: &mut Batch, out: &mut Outbox) {
        let Some(lot) = self.current.take() else {
            return;
        };
        self.hear(sockets);
        let lot = &mut self.lots[lot];
        if lot.reading > 0 {
            let spare = || (batch.another(), Outbox::default());
            let mut memory = lot.memory.take().unwrap_or_else(spare);
            std::mem::swap(&mut memory.0, batch);
            std::mem::swap(&mut memory.1, out);
            lot.memory = Some(memory);
        }
    }

    /// Reads what the kernel has said so far.
    fn hear(&mut self, sockets: &[UdpSocket]) {
        for (index, socket) in sockets.iter().enumerate() {
            while !self.ledgers[index].sends.is_empty() {
                let Some(word) = read_word(socket, &mut self.control) else {
                    break;
                };
                let (lots, ledger) = (&mut self.lots, &mut self.ledgers[index]);
                ledger.done(word.first, word.last, |lot| lots[lot].reading -= 1);
                if word.copied {
                    self.copied(index, word.last.wrapping_sub(word.first).wrapping_add(1));
                }
            }
        }
    }

    /// The kernel copied so many sends of a socket.
    fn copied(&self, socket: usize, sends: u32) {
        let family = self.family(socket);
        family.copied.fetch_add(sends.into(), Relaxed);
        if !self.always && family.state() == State::On {
            family.set(State::Copied);
            let name = if socket < self.v4 { "IPv4" } else { "IPv6" };
            tracing::info!("zerocopy is off for {name}: {family}");
        }
    }
}

/// The kernel's word that it has done with some sends.
struct Word {
    first: u32,
    last: u32,
    /// It had to copy them.
    copied: bool,
}

/// The next word on the socket's error queue, if there is one.
fn read_word(socket: &UdpSocket, control: &mut [u8]) -> Option<Word> {
    loop {
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let message = match recvmsg::<()>(socket.as_raw_fd(), &mut [], Some(control), flags) {
            Ok(message) => message,
            Err(Errno::EINTR) => continue,
            Err(_) => return None,
        };
        for control in message.cmsgs().ok()? {
            if let ControlMessageOwned::Ipv4RecvErr(error, _)
            | ControlMessageOwned::Ipv6RecvErr(error, _) = control
            {
                if error.ee_origin == SO_EE_ORIGIN_ZEROCOPY && error.ee_errno == 0 {
                    return Some(Word {
                        first: error.ee_info,
                        last: error.ee_data,
                        copied: error.ee_code & SO_EE_CODE_ZEROCOPY_COPIED != 0,
                    });
                }
            }
        }
    }
}

/// Is it for want of memory, the socket's or the kernel's?
fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EAGAIN | Errno::ENOBUFS)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ledger of sends from the lots 0, 1, 2 ..., which has come to this number.
    fn ledger(oldest: u32, sends: usize) -> Ledger {
        Ledger {
            oldest,
            sends: (0..sends).map(Some).collect(),
            lost_count: false,
        }
    }

    fn done(ledger: &mut Ledger, first: u32, last: u32) -> Vec<usize> {
        let mut lots = Vec::new();
        ledger.done(first, last, |lot| lots.push(lot));
        lots
    }

    #[test]
    fn sends_end_in_any_order_and_their_numbers_wrap() {
        let mut ledger = ledger(u32::MAX - 1, 5);
        assert_eq!(done(&mut ledger, 0, 1), [2, 3]);
        assert_eq!((ledger.oldest, ledger.sends.len()), (u32::MAX - 1, 5));
        assert_eq!(done(&mut ledger, u32::MAX - 1, u32::MAX), [0, 1]);
        assert_eq!((ledger.oldest, ledger.sends.len()), (2, 1));
        assert_eq!(done(&mut ledger, 2, 2), [4]);
        assert!(ledger.sends.is_empty() && !ledger.lost_count);
    }

    #[test]
    fn a_number_that_was_not_given_ends_the_lending_and_frees_nothing_else() {
        let mut ledger = ledger(7, 2);
        assert_eq!(done(&mut ledger, 8, 9), [1]);
        assert!(ledger.lost_count);
        assert_eq!(done(&mut ledger, 6, 6), [0; 0]);
        assert_eq!(done(&mut ledger, 0, u32::MAX), [0; 0]);
        assert_eq!(done(&mut ledger, 7, 7), [0]);
    }

    #[test]
    fn what_the_kernel_reads_is_set_aside_and_lots_run_out() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sockets = [socket];
        let mut zerocopy = Zerocopy::new(&sockets, 1, true);
        let (mut batch, mut out) = (Batch::new(4, 0), Outbox::default());
        let mut seen = Vec::new();
        for turn in 0..LOTS {
            let at = batch.slots().next().map(|slot| slot.as_ptr());
            assert!(!seen.contains(&at), "turn {turn}");
            seen.push(at);
            // Nothing is really sent, so the kernel never says that it is done.
            assert_eq!(zerocopy.lend(&sockets, 0, || Ok(())), Some(true));
            zerocopy.set_aside(&sockets, &mut batch, &mut out);
        }
        let never = || -> io::Result<()> { panic!("no lot is free") };
        assert_eq!(zerocopy.lend(&sockets, 0, never), None);
        let (lots, ledger) = (&mut zerocopy.lots, &mut zerocopy.ledgers[0]);
        ledger.done(3, 3, |lot| lots[lot].reading -= 1);
        assert_eq!(zerocopy.lend(&sockets, 0, || Ok(())), Some(true));
    }

    #[test]
    fn a_failed_send_may_have_a_number_unless_it_was_for_want_of_memory() {
        let sockets = [UdpSocket::bind("127.0.0.1:0").unwrap()];
        let mut zerocopy = Zerocopy::new(&sockets, 1, true);
        let fail = |code| move || Err(io::Error::from_raw_os_error(code));
        assert_eq!(zerocopy.lend(&sockets, 0, fail(libc::ENOBUFS)), Some(false));
        assert!(zerocopy.lends(0));
        assert_eq!(
            zerocopy.lend(&sockets, 0, fail(libc::EMSGSIZE)),
            Some(false)
        );
        assert!(!zerocopy.lends(0));
    }

    #[test]
    fn the_kernel_copies_what_stays_here_and_says_so() {
        use crate::sys::udp::{Message, SendScratch, send_lent};
        for (ip, v4) in [("127.0.0.1", 1), ("::1", 0)] {
            for always in [false, true] {
                let ip: std::net::IpAddr = ip.parse().unwrap();
                let sockets = [UdpSocket::bind((ip, 0)).unwrap()];
                let to = UdpSocket::bind((ip, 0)).unwrap();
                let mut zerocopy = Zerocopy::new(&sockets, v4, always);
                let (mut batch, mut out) = (Batch::new(4, 0), Outbox::default());
                let message = Message {
                    to: to.local_addr().unwrap(),
                    tos: 0,
                    segment: 1400,
                    slices: 1,
                };
                let (socket, mut scratch) = (&sockets[0], SendScratch::default());
                let piece = vec![7; 14_000];
                let send = || send_lent(socket, &mut scratch, message, &piece);
                assert_eq!(zerocopy.lend(&sockets, 0, send), Some(true));
                zerocopy.set_aside(&sockets, &mut batch, &mut out);
                assert!(zerocopy.ledgers[0].sends.is_empty());
                let feature = zerocopy.report().features().remove(0);
                assert_eq!(feature.on, always, "{feature:?}");
                assert!(feature.note.contains('1'), "{feature:?}");
            }
        }
    }
}
