//! A steady trickle of numbered probes that counts what is lost while something else happens: a lease that changes, a
//! daemon that restarts.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::echo::{Event, Prober};
use super::{Cancel, Fragmenting, IcmpError, Stream, Wait, is_not_yet, unspecified};

/// Data bytes in each probe.
const SIZE: usize = 64;
/// How long after the last probe an answer is waited for.
const GRACE: Duration = Duration::from_secs(1);
/// A flow that nobody stops ends after this time.
const LONGEST: Duration = Duration::from_secs(600);
/// Errors kept in the report; a flow to nowhere hears one per probe.
const ERRORS_KEPT: usize = 64;

/// A running flow. It sends until [`Flow::stop`], a drop, or ten minutes have passed.
#[derive(Debug)]
pub struct Flow {
    thread: Option<JoinHandle<io::Result<FlowReport>>>,
    stop: Cancel,
}

/// What became of a flow's probes.
#[derive(Clone, Debug, Default)]
pub struct FlowReport {
    /// Probes sent, refused ones counted.
    pub sent: u64,
    /// Probes answered with their own bytes, duplicates not counted.
    pub received: u64,
    /// Probes never answered, up to one second after the last was sent.
    pub lost: u64,
    /// When the lost ones were sent, from the start of the flow; the first 1,000.
    pub lost_at: Vec<Duration>,
    /// The longest time without an answer: between two, from the start to the first, or from the last one to the last
    /// probe's sending.
    pub longest_gap: Duration,
    /// Answers that came more than once.
    pub duplicates: u64,
    /// Answers with other bytes than were sent.
    pub corrupted: u64,
    /// Probes that the local kernel refused to send (they are lost, too).
    pub refused: u64,
    /// ICMP errors about the probes (ping flows only), the first 64.
    pub errors: Vec<IcmpError>,
}

impl Flow {
    /// Pings `dst` every `interval`: nothing has to run there.
    ///
    /// # Errors
    /// Without CAP_NET_RAW.
    pub fn start(dst: IpAddr, interval: Duration) -> io::Result<Self> {
        let prober = Prober::open(dst, None, SIZE, Fragmenting::Allowed)?;
        Self::spawn(interval, Probe::Ping(Box::new(prober)))
    }

    /// Sends datagrams to a [`super::UdpEcho`] at `dst` every `interval`.
    ///
    /// # Errors
    /// When there is no route to `dst`.
    pub fn start_udp(dst: SocketAddr, interval: Duration) -> io::Result<Self> {
        let socket = UdpSocket::bind(unspecified(dst.ip()))?;
        socket.set_nonblocking(true)?;
        socket.connect(dst)?;
        Self::spawn(interval, Probe::Udp(socket, 0))
    }

    fn spawn(interval: Duration, probe: Probe) -> io::Result<Self> {
        let stop = Cancel::default();
        let seen = stop.clone();
        let thread = std::thread::Builder::new()
            .name("flow".into())
            .spawn(move || run(probe, interval, &seen))?;
        Ok(Self {
            thread: Some(thread),
            stop,
        })
    }

    /// Stops sending, waits for answers still on their way (at most one second), and reports.
    ///
    /// # Errors
    /// When the socket failed.
    pub fn stop(mut self) -> io::Result<FlowReport> {
        self.stop.set();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(report)) => report,
            _ => Err(io::Error::other("the flow's thread failed")),
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.set();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

enum Probe {
    Ping(Box<Prober>),
    Udp(UdpSocket, u64),
}

impl Probe {
    fn send(&mut self) -> io::Result<()> {
        match self {
            Self::Ping(prober) => prober.send().1.map(drop),
            Self::Udp(socket, sent) => {
                let payload = datagram(*sent);
                *sent += 1;
                // A refused connection of an earlier probe is reported by the next send, which then did not happen.
                match socket.send(&payload) {
                    Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                        socket.send(&payload).map(drop)
                    }
                    result => result.map(drop),
                }
            }
        }
    }

    fn recv(&mut self, wait: &Wait<'_>) -> io::Result<Option<(Event, Instant)>> {
        let socket = match self {
            Self::Ping(prober) => return prober.recv(wait),
            Self::Udp(socket, _) => socket,
        };
        let mut buffer = [0; SIZE + 1];
        loop {
            match socket.recv(&mut buffer) {
                Ok(len) => {
                    let at = Instant::now();
                    let number = buffer[..8]
                        .try_into()
                        .map(u64::from_be_bytes)
                        .unwrap_or_default();
                    let intact = buffer[..len] == datagram(number);
                    return Ok(Some((
                        Event::Reply {
                            probe: number,
                            intact,
                        },
                        at,
                    )));
                }
                Err(e) if is_not_yet(&e) => {
                    if !wait.for_input(socket)? {
                        return Ok(None);
                    }
                }
                // An ICMP error about one datagram: that one is lost, the flow goes on.
                Err(e) if e.raw_os_error().is_some() => {
                    if Instant::now() > wait.until {
                        return Ok(None);
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }
}

/// Number, then bytes that follow from it.
fn datagram(number: u64) -> Vec<u8> {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.extend(Stream::bytes(number, SIZE - 8));
    bytes
}

fn run(mut probe: Probe, interval: Duration, stop: &Cancel) -> io::Result<FlowReport> {
    let mut ledger = Ledger::new(Instant::now());
    let never = Cancel::default();
    let mut next = ledger.start;
    while !stop.is_set() && ledger.start.elapsed() < LONGEST {
        ledger.sent(Instant::now(), probe.send().is_err());
        // A schedule, not a pause: what receiving takes does not slow the flow.
        next = (next + interval).max(Instant::now());
        loop {
            let slice = next.min(Instant::now() + super::LOOK);
            if let Some((event, at)) = probe.recv(&Wait::until(slice, &never))? {
                ledger.heard(&event, at);
            }
            if stop.is_set() || Instant::now() >= next {
                break;
            }
        }
    }
    let wait = Wait::of(GRACE, &never);
    while ledger.outstanding() > 0 {
        match probe.recv(&wait)? {
            Some((event, at)) => ledger.heard(&event, at),
            None => break,
        }
    }
    Ok(ledger.close())
}

/// Who was sent when, and answered or not.
struct Ledger {
    start: Instant,
    last_heard: Instant,
    last_sent: Instant,
    /// Sending times of the probes from number `settled` on; `None` once answered.
    open: VecDeque<Option<Instant>>,
    settled: u64,
    report: FlowReport,
}

impl Ledger {
    fn new(start: Instant) -> Self {
        Self {
            start,
            last_heard: start,
            last_sent: start,
            open: VecDeque::new(),
            settled: 0,
            report: FlowReport::default(),
        }
    }

    fn sent(&mut self, at: Instant, refused: bool) {
        self.open.push_back(Some(at));
        self.last_sent = at;
        self.report.sent += 1;
        self.report.refused += u64::from(refused);
    }

    fn heard(&mut self, event: &Event, at: Instant) {
        match *event {
            Event::Error(error) => {
                if self.report.errors.len() < ERRORS_KEPT {
                    self.report.errors.push(error);
                }
            }
            Event::Reply { intact: false, .. } => self.report.corrupted += 1,
            Event::Reply { probe, .. } => {
                let slot = probe
                    .checked_sub(self.settled)
                    .and_then(|i| usize::try_from(i).ok())
                    .and_then(|i| self.open.get_mut(i));
                match slot.map(Option::take) {
                    Some(Some(_)) => {
                        self.report.received += 1;
                        self.gap(at);
                        self.last_heard = at;
                        while let Some(None) = self.open.front() {
                            self.open.pop_front();
                            self.settled += 1;
                        }
                    }
                    _ => self.report.duplicates += 1,
                }
            }
        }
    }

    fn gap(&mut self, until: Instant) {
        let gap = until.saturating_duration_since(self.last_heard);
        self.report.longest_gap = self.report.longest_gap.max(gap);
    }

    fn outstanding(&self) -> u64 {
        self.report.sent - self.report.received - self.report.refused
    }

    fn close(mut self) -> FlowReport {
        self.gap(self.last_sent);
        self.report.lost = self.report.sent - self.report.received;
        let start = self.start;
        let lost = self.open.iter().flatten().take(1000);
        self.report.lost_at = lost.map(|at| at.duration_since(start)).collect();
        self.report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_counts_losses_and_gaps() {
        let start = Instant::now();
        let ms = |n| start + Duration::from_millis(n);
        let mut ledger = Ledger::new(start);
        for i in 0..6 {
            ledger.sent(ms(10 * i), i == 3);
        }
        let reply = |probe| Event::Reply {
            probe,
            intact: true,
        };
        ledger.heard(&reply(1), ms(12)); // overtakes number 0
        ledger.heard(&reply(0), ms(13));
        ledger.heard(&reply(0), ms(14)); // again
        ledger.heard(&reply(9), ms(15)); // never sent
        ledger.heard(
            &Event::Reply {
                probe: 2,
                intact: false,
            },
            ms(21),
        );
        ledger.heard(&reply(5), ms(51));
        assert_eq!(ledger.outstanding(), 2);
        let report = ledger.close();
        assert_eq!((report.sent, report.received, report.lost), (6, 3, 3));
        assert_eq!(
            (report.duplicates, report.corrupted, report.refused),
            (2, 1, 1)
        );
        assert_eq!(report.longest_gap, Duration::from_millis(38));
        assert_eq!(report.lost_at, [20, 30, 40].map(Duration::from_millis));
    }

    #[test]
    fn a_flow_that_hears_nothing_is_one_gap() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        ledger.sent(start, false);
        ledger.sent(start + Duration::from_secs(2), false);
        let report = ledger.close();
        assert_eq!(
            (report.lost, report.longest_gap),
            (2, Duration::from_secs(2))
        );
    }
}
