//! The descriptor of a device that the `tun-tap` crate opened.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

/// Takes the descriptor out of `iface`, to be closed by its new owner.
pub fn into_fd(iface: tun_tap::Iface) -> OwnedFd {
    let fd = iface.into_raw_fd();
    // SAFETY: `into_raw_fd` consumed the only owner of an open descriptor and handed it to us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
