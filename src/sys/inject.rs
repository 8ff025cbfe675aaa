//! The injection device: a TAP with the tunnel fields in its virtio_net_hdr, and an eBPF program at its ingress.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;

/// `TUN_F_UDP_TUNNEL_GSO` and `TUN_F_UDP_TUNNEL_GSO_CSUM` (include/uapi/linux/if_tun.h, Linux 6.17).
const TUN_F_UDP_TUNNEL_GSO: libc::c_uint = 0x80;
const TUN_F_UDP_TUNNEL_GSO_CSUM: libc::c_uint = 0x100;

/// One eBPF instruction (include/uapi/linux/bpf.h, struct `bpf_insn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    registers: u8,
    /// Of a load or store: bytes from the register; of a jump: instructions to step over.
    pub offset: i16,
    immediate: i32,
}

impl Instruction {
    /// An instruction of destination and source register, offset and immediate value.
    pub fn new(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Self {
        // Two bit fields of four bits each, in the order of the machine.
        let registers = if cfg!(target_endian = "little") {
            src << 4 | dst
        } else {
            dst << 4 | src
        };
        Instruction {
            code,
            registers,
            offset,
            immediate,
        }
    }
}

/// Makes the TAP device `name`, which is never persistent: it goes with the descriptor. Frames written to it begin
/// with a little-endian virtio_net_hdr of `vnet_len` bytes. It has no carrier, so that nobody sends through it;
/// what is written to it comes in nevertheless, of at most `send_buffer` bytes in flight.
///
/// # Errors
/// EINVAL from a kernel that does not know tunnel segmentation (before 6.17), EBUSY if there is a device of that
/// name, EPERM without CAP_NET_ADMIN, ENOENT without `/dev/net/tun`.
pub fn tap(name: &str, vnet_len: i32, send_buffer: i32) -> io::Result<OwnedFd> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    let mut request = named(name)?;
    // The kernel takes the 16 flags as unsigned; IFF_TUN_EXCL is the topmost.
    request.ifr_ifru.ifru_flags = i16::from_ne_bytes(
        u16::try_from(flags)
            .map_err(io::Error::other)?
            .to_ne_bytes(),
    );
    // SAFETY: the descriptor is open, and `request` is a whole ifreq that outlives the call.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    for (option, value) in [
        (libc::TUNSETVNETLE, 1),
        (libc::TUNSETVNETHDRSZ, vnet_len),
        (libc::TUNSETSNDBUF, send_buffer),
        (libc::TUNSETCARRIER, 0),
    ] {
        // SAFETY: the descriptor is open; these read one int through the pointer, which outlives the call.
        Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), option, &raw const value) })?;
    }
    let offloads = libc::TUN_F_CSUM
        | libc::TUN_F_TSO4
        | libc::TUN_F_TSO6
        | libc::TUN_F_TSO_ECN
        | libc::TUN_F_USO4
        | libc::TUN_F_USO6
        | TUN_F_UDP_TUNNEL_GSO
        | TUN_F_UDP_TUNNEL_GSO_CSUM;
    // SAFETY: the descriptor is open, and this one takes its argument by value.
    Errno::result(unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(offloads),
        )
    })?;
    Ok(file.into())
}

/// An `ifreq` with nothing but a name in it.
///
/// # Errors
/// A name that is too long for a device, or has a NUL in it.
pub(super) fn named(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: a C struct of integers and arrays, for which zeroes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    if name.is_empty() || name.len() > room || name.contains('\0') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "no name for a device",
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// The part of `union bpf_attr` for BPF_PROG_LOAD that we use; the kernel takes the rest as zero.
#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The part of `union bpf_attr` for BPF_LINK_CREATE that we use.
#[repr(C)]
struct LinkCreate {
    program: RawFd,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// Loads `program` and attaches it to the ingress of a device (tcx, Linux 6.6). It stays for as long as the
/// descriptor that comes back is open.
///
/// # Errors
/// EPERM without CAP_BPF and CAP_NET_ADMIN, EINVAL or ENOSYS from a kernel without it, EACCES for a program that
/// the verifier refuses.
pub fn attach(program: &[Instruction], ifindex: u32) -> io::Result<OwnedFd> {
    const PROG_LOAD: libc::c_long = 5;
    const LINK_CREATE: libc::c_long = 28;
    const SCHED_CLS: u32 = 3;
    const TCX_INGRESS: u32 = 46;
    const LICENSE: &CStr = c"MIT";
    let load = ProgramLoad {
        program_type: SCHED_CLS,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr().expose_provenance() as u64,
        license: LICENSE.as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: `ProgramLoad` is what the command takes; its pointers lead to `count` instructions and to a C string,
    // which the kernel copies before it returns. On success it returns a descriptor that is ours alone.
    let loaded = unsafe { bpf(PROG_LOAD, &load) }?;
    let create = LinkCreate {
        program: loaded.as_fd().as_raw_fd(),
        ifindex,
        attach_type: TCX_INGRESS,
        flags: 0,
    };
    // SAFETY: `LinkCreate` is what the command takes, and holds no pointers. As above.
    unsafe { bpf(LINK_CREATE, &create) }
}

/// bpf(2), for commands that return a descriptor.
///
/// # Safety
/// `attributes` is what `command` takes, its pointers are valid, and the command returns a new descriptor.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    let pointer = std::ptr::from_ref(attributes);
    // SAFETY: the kernel reads `size_of::<T>()` bytes from `attributes`; the rest is the caller's word.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, pointer, size_of::<T>()) };
    let fd = Errno::result(fd)?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the caller's word: a new descriptor, nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
