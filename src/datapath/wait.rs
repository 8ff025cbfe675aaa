//! Waiting for packets: asking the kernel what there is to do, and sleeping while there is nothing.
//!
//! One epoll(7) set per thread: what is waited on is registered once, not anew for every sleep. It is asked again after
//! every turn, so no source is tried in vain, and none can keep another waiting for longer than a turn.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::prctl;
use nix::sys::time::TimeSpec;

/// What a forwarding thread waits on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The device.
    Device,
    /// The IPv4 socket.
    V4,
    /// The IPv6 socket.
    V6,
    /// The word to stop.
    Stop,
}

const SOURCES: [Source; 4] = [Source::Device, Source::V4, Source::V6, Source::Stop];

/// What there is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready(u64);

impl Ready {
    /// Is there nothing?
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Is there something at `source`?
    pub fn has(self, source: Source) -> bool {
        self.0 & bit(source) != 0
    }
}

fn bit(source: Source) -> u64 {
    1 << source as u64
}

/// One thread's way of waiting.
pub struct Waiter {
    epoll: Epoll,
    /// How long to look before sleeping.
    busy_poll: Duration,
}

impl Waiter {
    /// A way of waiting that looks for `busy_poll` before it sleeps: zero leaves the processor to others at once.
    ///
    /// # Errors
    /// As epoll_create1(2).
    pub fn new(busy_poll: Duration) -> io::Result<Self> {
        Ok(Waiter {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            busy_poll,
        })
    }

    /// Waits on `fd` too. It is waited on until it is closed.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn watch(&self, source: Source, fd: BorrowedFd<'_>) -> io::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, source as u64);
        Ok(self.epoll.add(fd, event)?)
    }

    /// Waits until there is something to do, at most for `patience`, and says what: nothing, when that is over or a signal
    /// came. An error that waits at a source is something too.
    ///
    /// # Errors
    /// As epoll_wait(2), but for EINTR.
    pub fn wait(&self, patience: Option<Duration>) -> io::Result<Ready> {
        if !self.busy_poll.is_zero() {
            let started = Instant::now();
            while started.elapsed() < self.busy_poll {
                let ready = self.look()?;
                if !ready.is_empty() {
                    return Ok(ready);
                }
                std::hint::spin_loop();
            }
        }
        self.ask(patience.map_or(EpollTimeout::NONE, |patience| {
            patience.try_into().unwrap_or(EpollTimeout::MAX)
        }))
    }

    /// Says what there is to do now, without waiting.
    ///
    /// # Errors
    /// As [`Waiter::wait`].
    pub fn look(&self) -> io::Result<Ready> {
        self.ask(EpollTimeout::ZERO)
    }

    fn ask(&self, timeout: EpollTimeout) -> io::Result<Ready> {
        let mut events = [EpollEvent::empty(); SOURCES.len()];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let bits = events[..count].iter().map(|event| 1 << event.data());
        Ok(Ready(bits.fold(0, |all, bit: u64| all | bit)))
    }
}

/// Sleeps for `delay`, unless there is something at one of `urgent` before. Whatever comes to other sources meanwhile wakes
/// nobody.
///
/// # Errors
/// As ppoll(2), but for EINTR, which ends the sleep.
pub fn rest(delay: Duration, urgent: [BorrowedFd<'_>; 2]) -> io::Result<()> {
    let mut urgent = urgent.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    match ppoll(&mut urgent, Some(TimeSpec::from_duration(delay)), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes the calling thread's [`rest`]s as short as they are told to be: otherwise they take up to 50 us longer, so that the
/// kernel can end several sleeps at once (timer slack, prctl(2)).
///
/// # Errors
/// As prctl(2), where a filter of system calls forbids it.
pub fn rest_precisely() -> io::Result<()> {
    const SLACK_NS: u64 = 1000;
    Ok(prctl::set_timerslack(SLACK_NS)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::thread::JoinHandle;

    /// Writes a byte after a while, and gives the end back, so that it stays open until then.
    fn write_later(mut far: UnixStream) -> JoinHandle<UnixStream> {
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            far.write_all(b"x").unwrap();
            far
        })
    }

    #[test]
    fn says_what_is_there_and_nothing_else() {
        for busy_poll in [Duration::ZERO, Duration::from_millis(1)] {
            let waiter = Waiter::new(busy_poll).unwrap();
            let pairs = SOURCES.map(|source| (source, UnixStream::pair().unwrap()));
            for (source, (near, _)) in &pairs {
                waiter.watch(*source, near.as_fd()).unwrap();
            }
            let mut written = Vec::new();
            for (source, (_, far)) in &pairs {
                (&*far).write_all(b"x").unwrap();
                written.push(*source);
                let ready = waiter.wait(None).unwrap();
                for other in SOURCES {
                    assert_eq!(ready.has(other), written.contains(&other), "{other:?}");
                }
            }
        }
    }

    #[test]
    fn sleeps_until_something_comes() {
        let waiter = Waiter::new(Duration::ZERO).unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        waiter.watch(Source::Stop, near.as_fd()).unwrap();
        let later = write_later(far);
        let started = Instant::now();
        assert!(waiter.wait(None).unwrap().has(Source::Stop));
        assert!(started.elapsed() >= Duration::from_millis(15));
        later.join().unwrap();
    }

    #[test]
    fn sleeps_no_longer_than_it_is_told() {
        let waiter = Waiter::new(Duration::ZERO).unwrap();
        let started = Instant::now();
        let patience = Duration::from_millis(20);
        assert!(waiter.wait(Some(patience)).unwrap().is_empty());
        assert!(started.elapsed() >= patience);
    }

    #[test]
    fn rests_for_as_long_as_it_is_told_whatever_comes_elsewhere() {
        rest_precisely().unwrap();
        assert_eq!(prctl::get_timerslack().unwrap(), 1000);
        let waiter = Waiter::new(Duration::ZERO).unwrap();
        let pairs = SOURCES.map(|source| (source, UnixStream::pair().unwrap()));
        for (source, (near, far)) in &pairs {
            waiter.watch(*source, near.as_fd()).unwrap();
            if matches!(source, Source::V4 | Source::V6) {
                (&*far).write_all(b"x").unwrap();
            }
        }
        let [device, _, _, stop] = pairs.each_ref().map(|(_, (near, _))| near.as_fd());
        let delay = Duration::from_millis(20);
        let started = Instant::now();
        rest(delay, [device, stop]).unwrap();
        assert!(started.elapsed() >= delay);
        let ready = waiter.look().unwrap();
        assert!(ready.has(Source::V4) && ready.has(Source::V6));
        assert!(!ready.has(Source::Device) && !ready.has(Source::Stop));
    }

    /// What must not wait ends the rest, before it begins or later.
    #[test]
    fn rests_no_longer_than_until_something_urgent_comes() {
        let long = Duration::from_secs(60);
        for urgent in 0..2 {
            let pairs = [(); 2].map(|()| UnixStream::pair().unwrap());
            let later = write_later(pairs[urgent].1.try_clone().unwrap());
            let started = Instant::now();
            let near = pairs.each_ref().map(|(near, _)| near.as_fd());
            rest(long, near).unwrap();
            later.join().unwrap();
            rest(long, near).unwrap();
            assert!(started.elapsed() < long);
        }
    }
}
