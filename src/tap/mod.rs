//! Ingress and last egress: the queues of the TUN device.

pub mod classic;
pub mod offload;

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use arrayvec::ArrayVec;
use encap::coalesce::MAX_SEGMENTS;
use encap::vnet::{self, VnetHeader};
use nix::errno::Errno;

/// Why the device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no `/dev/net/tun`.
    #[error(
        "no TUN support: /dev/net/tun is missing; load it with `modprobe tun`, or give the container the device"
    )]
    NoTun,
    /// We may not open or create devices.
    #[error(
        "no privilege to create the device `{0}`: run as root, or with CAP_NET_ADMIN and access to /dev/net/tun"
    )]
    Privilege(String),
    /// The name belongs to a TUN device that another process has open.
    #[error(
        "the device `{0}` is in use by another process: stop it (`fuser -v /dev/net/tun` lists the openers), or set device.name"
    )]
    Busy(String),
    /// The name belongs to a device of another kind.
    #[error(
        "the name `{0}` is taken by a device that is not our kind of TUN device: remove it with `ip link del {0}`, or set device.name"
    )]
    Taken(String),
    /// Something else.
    #[error("cannot open the TUN device `{name}`: {cause}")]
    Other {
        /// The device's name.
        name: String,
        /// The kernel's word.
        cause: io::Error,
    },
}

impl OpenError {
    fn new(name: &str, cause: io::Error) -> Self {
        match cause.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => OpenError::NoTun,
            Some(Errno::EPERM | Errno::EACCES) => OpenError::Privilege(name.into()),
            Some(Errno::EBUSY) => OpenError::Busy(name.into()),
            Some(Errno::EINVAL | Errno::EEXIST) => OpenError::Taken(name.into()),
            _ => OpenError::Other {
                name: name.into(),
                cause,
            },
        }
    }
}

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

    /// The same queue under another descriptor: the device stays as long as one of them is open.
    ///
    /// # Errors
    /// As dup(2).
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Queue {
            fd: self.fd.try_clone()?,
            name: self.name.clone(),
        })
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

    /// Reads the next packet from a device that leads each with a virtio_net_hdr; `None` if there is none now. A
    /// header that makes no sense comes as an empty packet.
    ///
    /// # Errors
    /// As [`Queue::read`].
    pub fn read_unfinished(&self, buffer: &mut [u8]) -> io::Result<Option<(VnetHeader, usize)>> {
        let mut header = [0; vnet::LEN];
        loop {
            let mut parts = [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)];
            match nix::sys::uio::readv(self, &mut parts) {
                Ok(len) => {
                    let len = len.saturating_sub(header.len());
                    return Ok(Some(match VnetHeader::parse(&header) {
                        Ok(header) => (header, len),
                        Err(_) => (VnetHeader::default(), 0),
                    }));
                }
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes one packet, in pieces, to a device that wants a virtio_net_hdr in front of each.
    ///
    /// # Errors
    /// As [`Queue::write`].
    pub fn write_unfinished<'a>(
        &self,
        header: &VnetHeader,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        let header = header.emit();
        let mut parts: ArrayVec<IoSlice<'_>, { MAX_SEGMENTS + 1 }> = ArrayVec::new();
        parts.push(IoSlice::new(&header));
        for piece in pieces {
            parts.push(IoSlice::new(piece));
        }
        loop {
            match nix::sys::uio::writev(self, &parts) {
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
