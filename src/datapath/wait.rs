//! Waiting for packets: look again for a short while, then sleep.
//!
//! Going to sleep and being woken costs more than most batches take to work through, so a thread that ran dry looks
//! again for a while first. On a processor that others want, that is the wrong thing: the time is taken from whoever
//! would make the next packet. So it gives the processor away between two looks, and where that took long, there are
//! others, and it stops looking for some time.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long to look before sleeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// So long, unless others want the processor.
    Adaptive(Duration),
    /// So long, whatever others want.
    Fixed(Duration),
}

/// A turn of the processor to others that took longer than this was taken.
const TAKEN: Duration = Duration::from_micros(5);
/// Sleeps without looking first, once others wanted the processor.
const MODESTY: u32 = 64;

/// One thread's way of waiting.
#[derive(Clone, Debug)]
pub struct Waiter {
    patience: Patience,
    /// Sleeps left without looking first.
    modest: u32,
}

impl Waiter {
    /// A way of waiting with this patience.
    pub fn new(patience: Patience) -> Self {
        Waiter {
            patience,
            modest: 0,
        }
    }

    /// Calls `look` until it finds something, or it is time to sleep: says whether it found something.
    ///
    /// # Errors
    /// Those of `look`.
    pub fn look(&mut self, mut look: impl FnMut() -> io::Result<bool>) -> io::Result<bool> {
        let (most, adaptive) = match self.patience {
            Patience::Adaptive(most) => (most, true),
            Patience::Fixed(most) => (most, false),
        };
        if adaptive && self.modest > 0 {
            self.modest -= 1;
            return Ok(false);
        }
        let started = Instant::now();
        let mut now = started;
        while now - started < most {
            if look()? {
                return Ok(true);
            }
            if adaptive {
                let before = Instant::now();
                std::thread::yield_now();
                now = Instant::now();
                if now - before > TAKEN {
                    self.modest = MODESTY;
                    // Whoever ran meanwhile may have left something.
                    return look();
                }
            } else {
                std::hint::spin_loop();
                now = Instant::now();
            }
        }
        Ok(false)
    }

    /// Sleeps until one of `fds` is readable.
    ///
    /// # Errors
    /// As poll(2), but for EINTR.
    pub fn sleep<const N: usize>(&self, fds: [BorrowedFd<'_>; N]) -> io::Result<()> {
        let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
