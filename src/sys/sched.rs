//! What share of a processor a thread gets.

use std::io;

use nix::errno::Errno;

/// The calling thread's nice value, from -20 (goes first) to 19.
///
/// # Errors
/// As getpriority(2).
pub fn nice() -> io::Result<i32> {
    // -1 is a nice value too, so that only errno tells an error.
    Errno::clear();
    // SAFETY: the call takes integers only. In Linux a nice value belongs to a thread, and 0 names the calling one.
    let value = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    match Errno::last() {
        error if value == -1 && error != Errno::UnknownErrno => Err(error.into()),
        _ => Ok(value),
    }
}

/// Gives the calling thread, and no other, this nice value.
///
/// # Errors
/// As setpriority(2): EACCES if it is lower than what `RLIMIT_NICE` allows and there is no CAP_SYS_NICE.
pub fn set_nice(value: i32) -> io::Result<()> {
    // SAFETY: as above.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, value) })?;
    Ok(())
}
