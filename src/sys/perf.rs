//! Counts of a tracepoint's hits, per thread: perf_event_open(2).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{FromRawFd, OwnedFd};

use nix::errno::Errno;

const PERF_TYPE_TRACEPOINT: u32 = 2;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;

/// The first 112 bytes of struct perf_event_attr (`include/uapi/linux/perf_event.h`, PERF_ATTR_SIZE_VER5); the size field
/// tells the kernel that the rest is not there.
#[repr(C)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    rest: [u64; 12],
}

const _: () = assert!(size_of::<Attributes>() == 112);

/// A running count of one thread's hits of one tracepoint.
#[derive(Debug)]
pub struct Counter(File);

impl Counter {
    /// Counts hits of the tracepoint with this number (its `id` file in tracefs) by this thread, from now on.
    ///
    /// # Errors
    /// When the thread is gone, or without CAP_PERFMON.
    pub fn tracepoint(id: u64, thread: u32) -> io::Result<Self> {
        let attributes = Attributes {
            kind: PERF_TYPE_TRACEPOINT,
            size: 112,
            config: id,
            rest: [0; 12],
        };
        let thread = libc::pid_t::try_from(thread).map_err(io::Error::other)?;
        // SAFETY: the kernel reads `size` bytes of `attributes`, which is that long, and keeps no pointer to it.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                thread,
                -1,
                -1,
                PERF_FLAG_FD_CLOEXEC,
            )
        };
        let fd = i32::try_from(Errno::result(fd)?).map_err(io::Error::other)?;
        // SAFETY: a descriptor that was just opened for us and that nobody else owns.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// The hits so far.
    ///
    /// # Errors
    /// As read(2).
    pub fn read(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        (&self.0).read_exact(&mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}
