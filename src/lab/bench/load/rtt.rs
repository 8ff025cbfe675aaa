//! Round trips: one datagram on the way at a time.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::udp::is_pause;
use super::{LOOK, PATIENCE, Worker};

/// The longest round trip that is told apart from a loss.
const LONGEST: Duration = Duration::from_millis(200);
/// How many round trips before those that count: neighbours get resolved, caches warm.
const WARM: u64 = 20;

/// Round-trip times in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Rtt {
    /// How many came back.
    pub count: u64,
    /// How many did not, within 200 ms.
    pub lost: u64,
    /// The shortest.
    pub min: f64,
    /// Half took at most this.
    pub p50: f64,
    /// 99 % took at most this.
    pub p99: f64,
    /// 99.9 % took at most this.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

/// Sends everything back until it is asked to stop.
pub(super) fn echo(at: IpAddr, worker: &Worker<'_>) -> io::Result<()> {
    let socket = UdpSocket::bind((at, 0))?;
    socket.set_read_timeout(Some(LOOK))?;
    worker.ready(socket.local_addr()?.port());
    let mut buffer = vec![0; 1 << 16];
    while !worker.over() {
        match socket.recv_from(&mut buffer) {
            // Not sent is lost: the other end counts it.
            Ok((len, from)) => drop(socket.send_to(&buffer[..len], from)),
            Err(e) if is_pause(&e) => {}
            Err(e) => return Err(e),
        }
    }
    worker.cancel.check()
}

/// One round trip after the other, for this long.
pub(super) fn ping_pong(
    to: SocketAddr,
    size: u16,
    window: Duration,
    worker: &Worker<'_>,
) -> io::Result<Rtt> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(LONGEST))?;
    worker.ready(0);
    // Nanoseconds, three digits exact, up to a second.
    let mut times =
        Histogram::<u64>::new_with_bounds(1, 1_000_000_000, 3).map_err(io::Error::other)?;
    let mut lost = 0;
    let begin = Instant::now();
    let mut end = begin + window;
    let mut message = vec![0; usize::from(size.max(8))];
    let mut buffer = message.clone();
    let mut number = 0u64;
    // The first ones may be lost while neighbours get resolved; how long that takes does not matter.
    while number < WARM || Instant::now() < end {
        worker.cancel.check()?;
        number += 1;
        message[..8].copy_from_slice(&number.to_be_bytes());
        let sent = Instant::now();
        let back = match socket.send(&message) {
            Ok(_) => wait_for(&socket, &message, &mut buffer, sent)?,
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => None,
            Err(e) => return Err(e),
        };
        if number == WARM {
            end = Instant::now() + window;
        }
        if number <= WARM {
            if begin.elapsed() > PATIENCE {
                break;
            }
            continue;
        }
        match back {
            Some(took) => {
                times.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX))
            }
            None => lost += 1,
        }
    }
    if times.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer from {to}"),
        ));
    }
    #[allow(clippy::cast_precision_loss)] // three digits are exact
    let micros = |nanos: u64| nanos as f64 / 1e3;
    Ok(Rtt {
        count: times.len(),
        lost,
        min: micros(times.min()),
        p50: micros(times.value_at_quantile(0.5)),
        p99: micros(times.value_at_quantile(0.99)),
        p999: micros(times.value_at_quantile(0.999)),
        max: micros(times.max()),
    })
}

/// The time until `message` came back; late answers to earlier ones are passed over.
fn wait_for(
    socket: &UdpSocket,
    message: &[u8],
    buffer: &mut [u8],
    sent: Instant,
) -> io::Result<Option<Duration>> {
    loop {
        match socket.recv(buffer) {
            Ok(len) if buffer[..len] == *message => return Ok(Some(sent.elapsed())),
            Ok(_) => {}
            Err(e) if is_pause(&e) || e.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(e) => return Err(e),
        }
        if sent.elapsed() > LONGEST {
            return Ok(None);
        }
    }
}
