//! The word to stop, for forwarding threads: read while there is work, waited on while there is none.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// A signal that is given once, to any number of threads.
pub struct Stop {
    given: AtomicBool,
    /// Readable from then on.
    event: EventFd,
}

impl Stop {
    /// A signal not yet given.
    ///
    /// # Errors
    /// As eventfd(2).
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Stop {
            given: AtomicBool::new(false),
            event,
        })
    }

    /// Gives it.
    ///
    /// # Errors
    /// As write(2).
    pub fn give(&self) -> io::Result<()> {
        self.given.store(true, Relaxed);
        self.event.write(1)?;
        Ok(())
    }

    /// Was it given?
    pub fn given(&self) -> bool {
        self.given.load(Relaxed)
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
