//! Socket options that no safe crate wraps.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// Sets an option whose value is an `int`.
///
/// # Errors
/// As setsockopt(2).
pub fn set_int(socket: &impl AsFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    let pointer = std::ptr::from_ref(&value).cast::<libc::c_void>();
    let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open while `socket` is borrowed, and `pointer` is valid for `len` bytes
    // during the call, which only reads them.
    let done = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, pointer, len) };
    Errno::result(done)?;
    Ok(())
}
