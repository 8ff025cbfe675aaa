//! Ingress and last egress: the queues of the TUN device.

pub mod classic;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

/// One queue of a TUN device, non-blocking: a read takes one packet, a write gives one.
pub struct Queue {
    fd: OwnedFd,
    name: String,
}

impl Queue {
    /// A queue on `fd`, which is open on the device `name` and non-blocking.
    pub fn new(fd: OwnedFd, name: String) -> Self {
        Queue { fd, name }
    }

    /// The device's name, as the kernel gave it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads the next packet; `None` if there is none now.
    ///
    /// # Errors
    /// An error means that the device is gone; it will not come back on this descriptor.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match nix::unistd::read(&self.fd, buffer) {
                Ok(len) => return Ok(Some(len)),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes one packet, which then enters the kernel as if it had come over a wire.
    ///
    /// # Errors
    /// EIO while the device is down, ENOBUFS or ENOMEM without memory, EINVAL for what is no packet.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        loop {
            match nix::unistd::write(&self.fd, packet) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
