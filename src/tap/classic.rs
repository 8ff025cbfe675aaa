//! Opens the classic engine's device: one queue, one whole packet per read, no offloads. So the kernel
//! finishes every checksum and splits every superpacket before we see it.

use std::io;

use nix::errno::Errno;
use tun_tap::{Iface, Mode};

use super::Queue;
use crate::sys;

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

/// Creates the TUN device `name`, or takes over one of that name that nobody has open. It goes when the
/// queue is dropped, unless someone made it persistent.
///
/// # Errors
/// See [`OpenError`].
pub fn open(name: &str) -> Result<Queue, OpenError> {
    let iface = Iface::without_packet_info(name, Mode::Tun).map_err(|cause| {
        let errno = cause.raw_os_error().map(Errno::from_raw);
        match errno {
            Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => OpenError::NoTun,
            Some(Errno::EPERM | Errno::EACCES) => OpenError::Privilege(name.into()),
            Some(Errno::EBUSY) => OpenError::Busy(name.into()),
            Some(Errno::EINVAL | Errno::EEXIST) => OpenError::Taken(name.into()),
            _ => OpenError::Other {
                name: name.into(),
                cause,
            },
        }
    })?;
    let real_name = iface.name().to_owned();
    iface.set_non_blocking().map_err(|cause| OpenError::Other {
        name: name.into(),
        cause,
    })?;
    Ok(Queue::new(sys::tun::into_fd(iface), real_name))
}
