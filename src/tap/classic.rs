//! Opens the classic engine's device: one queue, one whole packet per read, no offloads. So the kernel
//! finishes every checksum and splits every superpacket before we see it.

use tun_tap::{Iface, Mode};

use super::{OpenError, Queue};
use crate::sys;

/// Creates the TUN device `name`, or takes over one of that name that nobody has open. It goes when the
/// queue is dropped, unless someone made it persistent.
///
/// # Errors
/// See [`OpenError`].
pub fn open(name: &str) -> Result<Queue, OpenError> {
    let iface =
        Iface::without_packet_info(name, Mode::Tun).map_err(|cause| OpenError::new(name, cause))?;
    let real_name = iface.name().to_owned();
    iface
        .set_non_blocking()
        .map_err(|cause| OpenError::new(name, cause))?;
    Ok(Queue::new(sys::tun::into_fd(iface), real_name))
}
