//! UDP datagrams of any size, there and back, contents compared.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Cancel, Fragmenting, Stream, Wait, is_not_yet, unspecified};

/// The most data that a UDP datagram over IPv4 carries, in bytes: 65,535 less 20 of IPv4 and 8 of UDP.
pub const MAX_UDP_V4: usize = 65_507;

/// A server that sends every datagram back to where it came from. It ends when dropped.
#[derive(Debug)]
pub struct UdpEcho {
    local: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    stop: Cancel,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Seen {
    datagrams: u64,
    clients: BTreeSet<SocketAddr>,
}

impl UdpEcho {
    /// Listens on this address (port 0: any free one) in the calling thread's namespace.
    ///
    /// # Errors
    /// As bind(2): address not ours, port taken.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        // Room for a few of the largest.
        socket2::SockRef::from(&socket).set_recv_buffer_size(1 << 20)?;
        let local = socket.local_addr()?;
        let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Cancel::default());
        let (shared, stopped) = (Arc::clone(&seen), stop.clone());
        let thread = std::thread::Builder::new()
            .name("udp-echo".into())
            .spawn(move || serve(&socket, &shared, &stopped))?;
        Ok(Self {
            local,
            seen,
            stop,
            thread: Some(thread),
        })
    }

    /// The address and port it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Datagrams received so far.
    pub fn datagrams(&self) -> u64 {
        self.seen().datagrams
    }

    /// The clients' addresses as they arrived here.
    pub fn clients(&self) -> Vec<SocketAddr> {
        self.seen().clients.iter().copied().collect()
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.set();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, seen: &Mutex<Seen>, stop: &Cancel) {
    let mut buffer = vec![0; 1 << 16];
    while !stop.is_set() {
        match socket.recv_from(&mut buffer) {
            Ok((len, from)) => {
                {
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.datagrams += 1;
                    seen.clients.insert(from);
                }
                // What cannot be sent back is a loss, which is the client's to notice.
                let _ = socket.send_to(&buffer[..len], from);
            }
            Err(e) if is_not_yet(&e) => {
                if Wait::of(super::LOOK, stop).for_input(socket).is_err() {
                    return;
                }
            }
            // An ICMP error about an earlier answer; reading it cleared it.
            Err(_) => {}
        }
    }
}

/// How to probe with UDP.
#[derive(Clone, Debug)]
pub struct UdpOpts {
    /// May the datagrams be fragmented (default: yes)?
    pub fragmenting: Fragmenting,
    /// How long to wait for each echo; the next datagram leaves as soon as it is there (default 1 s).
    pub timeout: Duration,
    /// Limit for the whole run (default 60 s).
    pub overall: Duration,
    /// Our address and port; the kernel chooses if `None`.
    pub source: Option<SocketAddr>,
    /// Seed of the contents.
    pub seed: u64,
    /// Ends the run early.
    pub cancel: Cancel,
}

impl Default for UdpOpts {
    fn default() -> Self {
        Self {
            fragmenting: Fragmenting::Allowed,
            timeout: Duration::from_secs(1),
            overall: Duration::from_secs(60),
            source: None,
            seed: 0,
            cancel: Cancel::default(),
        }
    }
}

/// What became of the datagrams of one run.
#[derive(Clone, Debug, Default)]
pub struct UdpReport {
    /// Datagrams that were to be sent.
    pub sent: usize,
    /// Datagrams that came back with the bytes they left with.
    pub intact: usize,
    /// Sizes, in bytes of data, of those that never came back.
    pub lost: Vec<usize>,
    /// Sizes of those that came back with other bytes, or another length.
    pub corrupted: Vec<usize>,
    /// Sizes of those that the kernel refused to send or that drew an ICMP error, with the error number
    /// (`EMSGSIZE`, `ECONNREFUSED`, ...).
    pub refused: Vec<(usize, i32)>,
    /// The time of the quickest round trip.
    pub best: Option<Duration>,
}

impl UdpReport {
    /// Everything came back as it left.
    pub fn all_intact(&self) -> bool {
        self.intact == self.sent
    }
}

/// Sends one datagram of each size to a [`UdpEcho`], one after the other, and compares what comes back.
///
/// # Errors
/// When there is no route, when the overall time is over, or when cancelled. Losses are results, not errors.
pub fn udp_probe(
    dst: SocketAddr,
    sizes: impl IntoIterator<Item = usize>,
    opts: &UdpOpts,
) -> io::Result<UdpReport> {
    let socket = UdpSocket::bind(opts.source.unwrap_or(unspecified(dst.ip())))?;
    socket.set_nonblocking(true)?;
    opts.fragmenting.apply(&socket, dst.ip())?;
    socket2::SockRef::from(&socket).set_recv_buffer_size(1 << 20)?;
    socket.connect(dst)?;
    let largest = match dst.ip() {
        IpAddr::V4(_) => MAX_UDP_V4,
        IpAddr::V6(_) => 65_535 - 8,
    };
    let end = Instant::now() + opts.overall;
    let mut report = UdpReport::default();
    let mut buffer = vec![0; 1 << 16];
    let mut late: Vec<Vec<u8>> = Vec::new();
    for (number, size) in (0..).zip(sizes) {
        if size > largest {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a UDP datagram carries at most {largest} bytes, not {size}"),
            ));
        }
        if Instant::now() >= end {
            return Err(Wait::timed_out("UDP probes"));
        }
        let data = Stream::bytes(opts.seed.wrapping_add(number), size);
        report.sent += 1;
        let start = Instant::now();
        let wait = Wait::until((start + opts.timeout).min(end), &opts.cancel);
        match echo(&socket, &data, &late, &mut buffer, &wait) {
            Ok(Outcome::Intact) => {
                report.intact += 1;
                let took = start.elapsed();
                report.best = Some(report.best.map_or(took, |best| best.min(took)));
            }
            Ok(Outcome::Corrupted) => report.corrupted.push(size),
            Ok(Outcome::Lost) => {
                report.lost.push(size);
                late.push(data);
            }
            Err(error) => report
                .refused
                .push((size, error.raw_os_error().ok_or(error)?)),
        }
    }
    Ok(report)
}

enum Outcome {
    Intact,
    Corrupted,
    Lost,
}

fn echo(
    socket: &UdpSocket,
    data: &[u8],
    late: &[Vec<u8>],
    buffer: &mut [u8],
    wait: &Wait<'_>,
) -> io::Result<Outcome> {
    socket.send(data)?;
    loop {
        match socket.recv(buffer) {
            Ok(len) if buffer[..len] == *data => return Ok(Outcome::Intact),
            // One that was given up comes after all: it stays lost, and is not this one.
            Ok(len) if late.iter().any(|old| buffer[..len] == **old) => {}
            Ok(_) => return Ok(Outcome::Corrupted),
            Err(e) if is_not_yet(&e) => {
                if !wait.for_input(socket)? {
                    return Ok(Outcome::Lost);
                }
            }
            Err(e) => return Err(e),
        }
    }
}
