//! TUN devices: the descriptor that the `tun-tap` crate opened, and the ioctls it does not know.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Takes the descriptor out of `iface`, to be closed by its new owner.
pub fn into_fd(iface: tun_tap::Iface) -> OwnedFd {
    let fd = iface.into_raw_fd();
    // SAFETY: `into_raw_fd` consumed the only owner of an open descriptor and handed it to us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// What the reader of a device finishes in the kernel's stead: the `TUN_F_*` bits of include/uapi/linux/if_tun.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads(libc::c_uint);

impl Offloads {
    /// Nothing.
    pub const NONE: Self = Offloads(0);
    /// Transport checksums (`TUN_F_CSUM`).
    pub const CHECKSUM: Self = Offloads(0x01);
    /// TCP superpackets over IPv4 and IPv6, with ECN, and checksums (`TUN_F_TSO4`, `TUN_F_TSO6`, `TUN_F_TSO_ECN`).
    pub const TCP: Self = Offloads(0x01 | 0x02 | 0x04 | 0x08);
    /// TCP and UDP superpackets (`TUN_F_USO4`, `TUN_F_USO6`; Linux 6.2).
    pub const TCP_AND_UDP: Self = Offloads(Self::TCP.0 | 0x20 | 0x40);
}

mod ioctls {
    nix::ioctl_readwrite_bad!(
        set_iff,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_int_bad!(
        set_offload,
        nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>())
    );
}

/// Opens one queue of the TUN device `name`, non-blocking, whose packets are led by a virtio_net_hdr of 10 bytes
/// (`IFF_VNET_HDR`). With `multi_queue`, more can follow. Returns the name the kernel gave.
///
/// # Errors
/// As open(2) of `/dev/net/tun` and as `TUNSETIFF`: EPERM, EBUSY, EINVAL if the name is another kind of device's.
pub fn open_with_header(name: &str, multi_queue: bool) -> io::Result<(OwnedFd, String)> {
    let file: File = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    // SAFETY: an ifreq is integers and a union of them, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let mut flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    // All of them lie in the lower 16 bits, and the field is 16 bits wide.
    request.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open, and the request a complete ifreq, which the call reads and writes the name of.
    unsafe { ioctls::set_iff(file.as_raw_fd(), &raw mut request) }?;
    let name = request
        .ifr_name
        .iter()
        .take_while(|c| **c != 0)
        .map(|c| char::from(c.to_ne_bytes()[0]))
        .collect();
    Ok((file.into(), name))
}

/// Says what the reader of the device's queues finishes itself.
///
/// # Errors
/// EINVAL if the kernel does not know one of them.
pub fn set_offloads(queue: &impl AsFd, offloads: Offloads) -> io::Result<()> {
    let Offloads(bits) = offloads;
    // SAFETY: the descriptor is open while `queue` is borrowed; the argument is passed by value.
    unsafe { ioctls::set_offload(queue.as_fd().as_raw_fd(), bits as libc::c_int) }?;
    Ok(())
}
