//! Numbered datagrams at a set rate, and the books about them.
//!
//! ```text
//!  0                               4                               8                              12   16
//! +-------------------------------+-------------------------------+-------------------------------+----+ - - -
//! | "ovlb"                        | flow                          | number, from 0, over all flows     | filling
//! +-------------------------------+-------------------------------+-------------------------------+----+ - - -
//! ```
//!
//! All big-endian. The sender sleeps between bursts where its rate leaves it time to: on a machine with two cores a sender
//! that spins would take one of them from what is being measured.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{LOOK, Worker};
use crate::lab::bench::meter::Cost;
use crate::sys::mmsg::Batch;
use crate::sys::socket::set_int;

/// The shortest payload: the header.
pub const MIN_SIZE: u16 = 16;
const MAGIC: [u8; 4] = *b"ovlb";
/// Datagrams per system call at most; also the kernel's old limit for segments (UDP_MAX_SEGMENTS was 64 until 6.10).
const BURST: usize = 64;
/// The most bytes that one send with UDP_SEGMENT takes.
const MAX_SEND: usize = 65_507;
/// The shortest pause worth taking.
const TICK: Duration = Duration::from_micros(100);
/// A sender that falls behind its rate does not make up for more than this.
const ARREARS: Duration = Duration::from_millis(5);
/// Bytes of socket buffer asked for: a few milliseconds of the highest rates, so that a thread that was not scheduled for
/// a moment does not count as a path that loses.
const BUFFER: i32 = 8 << 20;
/// After the sender's end: what has not come in this time of silence is lost, and all waiting ends after `LAST_WORD`.
const SILENCE: Duration = Duration::from_millis(50);
const LAST_WORD: Duration = Duration::from_millis(400);

/// How datagrams are handed to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Send {
    /// One system call each.
    Single,
    /// Many to a call: sendmmsg(2).
    Batch,
    /// Many to a call as one train: UDP_SEGMENT (udp(7)).
    Gso,
}

/// What to send.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Source {
    /// Where the sink listens.
    pub to: SocketAddr,
    /// UDP payload in bytes, at least [`MIN_SIZE`].
    pub size: u16,
    /// From how many source ports, in turns. More than one: one system call each, whatever `send` says.
    pub flows: u16,
    /// Datagrams per second; flat out if `None`.
    pub rate: Option<f64>,
    /// How.
    pub send: Send,
    /// For how long, in seconds.
    pub window: f64,
}

/// What was sent.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct UdpSent {
    /// Datagrams that the kernel took.
    pub packets: u64,
    /// Datagrams that it refused (no buffers).
    pub refused: u64,
    /// The time this took, in seconds.
    pub seconds: f64,
    /// What it cost here.
    pub cost: Cost,
}

/// What arrived.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct UdpReceived {
    /// Different datagrams.
    pub packets: u64,
    /// Datagrams that came again.
    pub duplicates: u64,
    /// Datagrams that came after a later one of their flow.
    pub reordered: u64,
    /// What was none of ours.
    pub foreign: u64,
    /// From the first to the last one, in seconds.
    pub seconds: f64,
    /// CPU time and more of this host's daemon from the sink's start to its end.
    pub cost: Cost,
}

/// Is this only a time-out or a signal?
pub(super) fn is_pause(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// Counts until it is asked to stop, and then until nothing more comes.
pub(super) fn sink(at: IpAddr, worker: &Worker<'_>) -> io::Result<UdpReceived> {
    let socket = UdpSocket::bind((at, 0))?;
    set_int(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
    socket.set_read_timeout(Some(LOOK))?;
    let mut batch = Batch::new(BURST, MIN_SIZE.into());
    let mut ledger = Ledger::default();
    let (mut first, mut last) = (None, Instant::now());
    let before = worker.meter.read()?;
    worker.ready(socket.local_addr()?.port());
    let mut asked: Option<Instant> = None;
    loop {
        if worker.over() {
            let since = asked.get_or_insert_with(|| {
                last = last.max(Instant::now() - LAST_WORD);
                Instant::now()
            });
            let quiet = last.max(*since).elapsed() > SILENCE;
            if quiet || since.elapsed() > LAST_WORD || worker.cancel.is_set() {
                break;
            }
        }
        match batch.receive(&socket) {
            Ok(count) => {
                last = Instant::now();
                first.get_or_insert(last);
                for i in 0..count {
                    ledger.heard(batch.received(i));
                }
            }
            Err(e) if is_pause(&e) => {}
            Err(e) => return Err(e),
        }
    }
    worker.cancel.check()?;
    let after = worker.meter.read()?;
    let mut report = ledger.report;
    report.seconds = first.map_or(0.0, |first| last.duration_since(first).as_secs_f64());
    report.cost = after.since(&before);
    Ok(report)
}

/// Which numbers have come, and how far each flow is.
#[derive(Default)]
struct Ledger {
    /// A bit per number.
    seen: Vec<u64>,
    /// The highest number of each flow, plus one.
    next: Vec<u64>,
    report: UdpReceived,
}

impl Ledger {
    /// Numbers beyond this are not ours: no run sends so many.
    const MOST: u64 = 1 << 32;

    fn heard(&mut self, datagram: &[u8]) {
        let Some((flow, number)) = parse(datagram) else {
            self.report.foreign += 1;
            return;
        };
        let (Ok(word), Ok(flow)) = (usize::try_from(number / 64), usize::try_from(flow)) else {
            self.report.foreign += 1;
            return;
        };
        if number > Self::MOST || flow > usize::from(u16::MAX) {
            self.report.foreign += 1;
            return;
        }
        if word >= self.seen.len() {
            self.seen.resize((word + 1).next_power_of_two(), 0);
        }
        let bit = 1 << (number % 64);
        if self.seen[word] & bit != 0 {
            self.report.duplicates += 1;
            return;
        }
        self.seen[word] |= bit;
        self.report.packets += 1;
        if flow >= self.next.len() {
            self.next.resize(flow + 1, 0);
        }
        if number < self.next[flow] {
            self.report.reordered += 1;
        } else {
            self.next[flow] = number + 1;
        }
    }
}

fn parse(datagram: &[u8]) -> Option<(u32, u64)> {
    let (magic, rest) = datagram.split_first_chunk::<4>()?;
    let (flow, rest) = rest.split_first_chunk::<4>()?;
    let (number, _) = rest.split_first_chunk::<8>()?;
    (*magic == MAGIC).then_some((u32::from_be_bytes(*flow), u64::from_be_bytes(*number)))
}

fn put(datagram: &mut [u8], flow: u32, number: u64) {
    datagram[..4].copy_from_slice(&MAGIC);
    datagram[4..8].copy_from_slice(&flow.to_be_bytes());
    datagram[8..16].copy_from_slice(&number.to_be_bytes());
}

/// Sends for the time asked, at the rate asked or as near as it gets.
pub(super) fn source(source: &Source, worker: &Worker<'_>) -> io::Result<UdpSent> {
    if source.size < MIN_SIZE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "a numbered datagram has at least {MIN_SIZE} bytes, not {}",
                source.size
            ),
        ));
    }
    let mut sender = Sender::open(source)?;
    // The kernel's default lets a sleep last 50 us longer.
    nix::sys::prctl::set_timerslack(1)?;
    worker.ready(0);
    let window = Duration::from_secs_f64(source.window);
    let before = worker.meter.read()?;
    let start = Instant::now();
    // Datagrams that were due and given up, so that arrears do not pile up.
    let mut forgiven = 0.0;
    let mut elapsed = Duration::ZERO;
    while elapsed < window {
        worker.cancel.check()?;
        match source.rate {
            None => sender.burst(BURST)?,
            Some(rate) => {
                let due = rate * elapsed.as_secs_f64() - sender.number as f64 - forgiven;
                forgiven += (due - rate * ARREARS.as_secs_f64() - 1.0).max(0.0);
                if due >= 1.0 {
                    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                    sender.burst(due.min(BURST as f64) as usize)?;
                } else {
                    let next = Duration::from_secs_f64((1.0 - due) / rate).max(TICK);
                    std::thread::sleep(next.min(window.saturating_sub(elapsed)));
                }
            }
        }
        elapsed = start.elapsed();
    }
    let after = worker.meter.read()?;
    Ok(UdpSent {
        packets: sender.number,
        refused: sender.refused,
        seconds: elapsed.as_secs_f64(),
        cost: after.since(&before),
    })
}

/// The sockets of a source, and the datagrams under construction.
struct Sender {
    sockets: Vec<UdpSocket>,
    turn: usize,
    send: Send,
    size: usize,
    batch: Batch,
    /// Of a train: all its datagrams in a row.
    train: Vec<u8>,
    /// How many the kernel has taken: also the number of the next.
    number: u64,
    refused: u64,
}

impl Sender {
    fn open(source: &Source) -> io::Result<Self> {
        let flows = usize::from(source.flows.max(1));
        raise_file_limit(flows as u64 + 256)?;
        let any: IpAddr = match source.to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let sockets = (0..flows)
            .map(|_| {
                let socket = UdpSocket::bind((any, 0))?;
                socket.set_write_timeout(Some(LOOK))?;
                set_int(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, BUFFER)?;
                socket.connect(source.to)?;
                Ok(socket)
            })
            .collect::<io::Result<Vec<_>>>()?;
        let size = usize::from(source.size);
        let send = if flows > 1 { Send::Single } else { source.send };
        if send == Send::Gso {
            set_int(
                &sockets[0],
                libc::SOL_UDP,
                libc::UDP_SEGMENT,
                source.size.into(),
            )?;
        }
        Ok(Self {
            sockets,
            turn: 0,
            send,
            size,
            batch: Batch::new(BURST, size),
            train: vec![0; size * BURST.min(MAX_SEND / size).max(1)],
            number: 0,
            refused: 0,
        })
    }

    /// Sends up to `count` datagrams.
    fn burst(&mut self, count: usize) -> io::Result<()> {
        match self.send {
            Send::Single => {
                for _ in 0..count {
                    let flow = u32::try_from(self.turn).unwrap_or_default();
                    let datagram = &mut self.train[..self.size];
                    put(datagram, flow, self.number);
                    let sent = self.sockets[self.turn].send(datagram).map(|_| 1);
                    self.turn = (self.turn + 1) % self.sockets.len();
                    self.account(sent, 1)?;
                }
                Ok(())
            }
            Send::Batch => {
                for i in 0..count {
                    put(self.batch.buffer(i), 0, self.number + i as u64);
                }
                let sent = self.batch.send(&self.sockets[0], count);
                self.account(sent, 1)
            }
            Send::Gso => {
                let count = count.min(self.train.len() / self.size);
                for (i, datagram) in self
                    .train
                    .chunks_exact_mut(self.size)
                    .take(count)
                    .enumerate()
                {
                    put(datagram, 0, self.number + i as u64);
                }
                let sent = self.sockets[0].send(&self.train[..count * self.size]);
                self.account(sent.map(|_| count), count)
            }
        }
    }

    fn account(&mut self, sent: io::Result<usize>, tried: usize) -> io::Result<()> {
        match sent {
            Ok(count) => {
                self.number += count as u64;
                Ok(())
            }
            // An ICMP error about an earlier one, which this call only reports; the next call sends.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(e) if is_pause(&e) || e.raw_os_error() == Some(libc::ENOBUFS) => {
                self.refused += tried as u64;
                Ok(())
            }
            Err(e) => Err(e),
        }
    }
}

/// A thousand flows need a thousand sockets.
fn raise_file_limit(wanted: u64) -> io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(flow: u32, number: u64) -> [u8; 16] {
        let mut bytes = [0; 16];
        put(&mut bytes, flow, number);
        bytes
    }

    #[test]
    fn the_books_tell_reordered_from_doubled_and_foreign() {
        let mut ledger = Ledger::default();
        for number in [0, 1, 2, 2, 3, 1] {
            ledger.heard(&datagram(0, number));
        }
        ledger.heard(b"short");
        ledger.heard(&[0; 16]);
        ledger.heard(&datagram(0, u64::MAX));
        ledger.heard(&datagram(u32::MAX, 9));
        let report = ledger.report;
        assert_eq!((report.packets, report.duplicates), (4, 2));
        assert_eq!((report.reordered, report.foreign), (0, 4));

        let mut ledger = Ledger::default();
        for (flow, number) in [(0, 0), (0, 4), (1, 1), (0, 2), (0, 5), (1, 3)] {
            ledger.heard(&datagram(flow, number));
        }
        assert_eq!((ledger.report.packets, ledger.report.reordered), (6, 1));
    }
}
