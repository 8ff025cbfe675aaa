//! Traffic generators and probes of our own: the lab, the tests and the benches need no external program.
//!
//! Every function works in the calling thread's network namespace (a namespace belongs to a thread; a thread started
//! inside one stays there), so probes run through `NetNs::run`, and servers and flows started there remain there.
//! Sockets are blocking to the caller but never without end: each wait has a deadline and looks at a [`Cancel`] every
//! 50 ms.
//!
//! | file | what it does |
//! |---|---|
//! | `icmp` | the messages: echo requests built, replies and errors recognised. No I/O |
//! | `echo` | a raw socket that sends probes and hears what comes back for them |
//! | `ping` | [`ping()`]: replies, losses, round-trip times, ICMP errors |
//! | `path` | [`trace_path`]: which hops a packet passes, as traceroute finds them |
//! | `tcp` | [`TcpServer`] and [`tcp_transfer`]: a pseudo-random stream each way, digests compared |
//! | `udp` | [`UdpEcho`] and [`udp_probe`]: datagrams of any size, contents compared |
//! | `flow` | [`Flow`]: a steady trickle of numbered probes that counts losses and the longest gap |
//! | `stream` | the pseudo-random bytes, their SHA-256 |

mod echo;
mod flow;
mod icmp;
mod path;
mod ping;
mod stream;
mod tcp;
mod udp;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

pub use flow::{Flow, FlowReport};
pub use icmp::IcmpError;
pub use path::{Answer, Hop, PathOpts, trace_path};
pub use ping::{PingOpts, PingReport, Refusal, ping};
pub use stream::{Digest, Stream};
pub use tcp::{Session, TcpOpts, TcpServer, Transfer, tcp_fetch, tcp_send, tcp_transfer};
pub use udp::{MAX_UDP_V4, UdpEcho, UdpOpts, UdpReport, udp_probe};

/// How often a wait looks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(50);

/// A flag that ends waits early: set it from any thread, and every probe and server that holds a clone gives up
/// within 50 ms with [`io::ErrorKind::Interrupted`].
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Ends the waits.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Has it been set?
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// The error of a cancelled wait, once the flag is set.
    ///
    /// # Errors
    /// [`io::ErrorKind::Interrupted`] once the flag is set.
    pub fn check(&self) -> io::Result<()> {
        if self.is_set() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "cancelled"));
        }
        Ok(())
    }
}

impl From<Arc<AtomicBool>> for Cancel {
    fn from(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }
}

/// May a probe be cut into fragments on its way?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragmenting {
    /// Yes: IPv4 with DF 0, IPv6 fragmented here at the known path MTU.
    #[default]
    Allowed,
    /// No, and the path MTU that the kernel has learned is ignored: every probe goes out and can meet the narrow link
    /// again (`IP_PMTUDISC_PROBE`). What the outgoing interface cannot carry is refused here.
    Probe,
    /// No, and what exceeds the path MTU that the kernel has learned is refused here (`IP_PMTUDISC_DO`).
    Forbidden,
}

impl Fragmenting {
    fn apply(self, socket: &impl AsFd, dst: IpAddr) -> io::Result<()> {
        let (v4, v6) = match self {
            Self::Allowed => (libc::IP_PMTUDISC_DONT, libc::IPV6_PMTUDISC_WANT),
            Self::Probe => (libc::IP_PMTUDISC_PROBE, libc::IPV6_PMTUDISC_PROBE),
            Self::Forbidden => (libc::IP_PMTUDISC_DO, libc::IPV6_PMTUDISC_DO),
        };
        let (level, option, value) = match dst {
            IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, v4),
            IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, v6),
        };
        crate::sys::socket::set_int(socket, level, option, value)
    }
}

/// A bounded wait: until a moment, or until cancelled.
#[derive(Clone, Copy)]
struct Wait<'a> {
    until: Instant,
    cancel: &'a Cancel,
}

impl<'a> Wait<'a> {
    fn until(until: Instant, cancel: &'a Cancel) -> Self {
        Self { until, cancel }
    }

    fn of(time: Duration, cancel: &'a Cancel) -> Self {
        Self::until(Instant::now() + time, cancel)
    }

    /// Waits until there is something to read: `true`, or `false` when the time has passed.
    fn for_input(&self, fd: &impl AsFd) -> io::Result<bool> {
        self.poll(fd, PollFlags::POLLIN)
    }

    /// Waits until there is room to write: `true`, or `false` when the time has passed.
    fn for_output(&self, fd: &impl AsFd) -> io::Result<bool> {
        self.poll(fd, PollFlags::POLLOUT)
    }

    fn poll(&self, fd: &impl AsFd, what: PollFlags) -> io::Result<bool> {
        loop {
            self.cancel.check()?;
            let left = self.until.saturating_duration_since(Instant::now());
            // ppoll and not SO_RCVTIMEO: its clock is finer than a kernel tick.
            let slice = TimeSpec::from_duration(left.min(LOOK));
            match ppoll(&mut [PollFd::new(fd.as_fd(), what)], Some(slice), None) {
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sleeps to the end.
    fn pause(&self) -> io::Result<()> {
        loop {
            self.cancel.check()?;
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(LOOK));
        }
    }

    /// The error of a wait that was in vain, for those who cannot go on.
    fn timed_out(what: &str) -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, format!("{what}: timed out"))
    }
}

/// The wildcard address and port 0 of a destination's family.
fn unspecified(dst: IpAddr) -> SocketAddr {
    match dst {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// Is this only "nothing there yet"?
fn is_not_yet(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_wait_ends_at_its_deadline() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let cancel = Cancel::default();
        let start = Instant::now();
        let ready = Wait::of(Duration::from_millis(120), &cancel).for_input(&socket);
        assert!(!ready.unwrap());
        let took = start.elapsed();
        assert!(
            took >= Duration::from_millis(120) && took < Duration::from_secs(5),
            "{took:?}"
        );
    }

    #[test]
    fn a_wait_ends_when_cancelled() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let cancel = Cancel::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(60));
                cancel.set();
            });
            let start = Instant::now();
            let error = Wait::of(Duration::from_secs(60), &cancel)
                .for_input(&socket)
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Interrupted);
            assert!(start.elapsed() < Duration::from_secs(5));
        });
        let error = Wait::of(Duration::from_secs(60), &cancel)
            .pause()
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }
}
