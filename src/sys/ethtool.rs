//! A device's features ("offloads"), by the SIOCETHTOOL ioctl: the names that the kernel has for them, and which
//! of them are on.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::inject::named;

// include/uapi/linux/ethtool.h
const GSTRINGS: u32 = 0x1b;
const GSSET_INFO: u32 = 0x37;
const GFEATURES: u32 = 0x3a;
const STRINGS_FEATURES: u32 = 4;
/// Bytes of each name (ETH_GSTRING_LEN).
const NAME_LEN: usize = 32;

/// The names of all features the kernel knows, in the order of their bits.
///
/// # Errors
/// ENODEV if there is no such device in the namespace of `socket`.
pub fn feature_names(socket: &impl AsFd, device: &str) -> io::Result<Vec<String>> {
    // struct ethtool_sset_info { cmd, reserved, u64 mask, data[] }
    let mut info = [GSSET_INFO, 0, 0, 0, 0];
    let mask = (1u64 << STRINGS_FEATURES).to_ne_bytes();
    info[2] = u32::from_ne_bytes([mask[0], mask[1], mask[2], mask[3]]);
    info[3] = u32::from_ne_bytes([mask[4], mask[5], mask[6], mask[7]]);
    ethtool(socket, device, &mut info)?;
    let count = info[4];
    // struct ethtool_gstrings { cmd, string_set, len, data[len * 32] }
    let words = NAME_LEN / size_of::<u32>();
    let len = usize::try_from(count).map_err(io::Error::other)?;
    let mut strings = vec![0; 3 + len * words];
    strings[..3].copy_from_slice(&[GSTRINGS, STRINGS_FEATURES, count]);
    ethtool(socket, device, &mut strings)?;
    let names = strings[3..].chunks_exact(words).map(|words| {
        let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
        let name: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&name).into_owned()
    });
    Ok(names.collect())
}

/// For each of the `count` features, in the order of their bits: is it on?
///
/// # Errors
/// ENODEV if there is no such device in the namespace of `socket`.
pub fn active_features(socket: &impl AsFd, device: &str, count: usize) -> io::Result<Vec<bool>> {
    // struct ethtool_gfeatures { cmd, size, { available, requested, active, never_changed }[size] }
    let blocks = count.div_ceil(32);
    let mut features = vec![0; 2 + 4 * blocks];
    features[0] = GFEATURES;
    features[1] = u32::try_from(blocks).map_err(io::Error::other)?;
    ethtool(socket, device, &mut features)?;
    let active = features[2..].chunks_exact(4).map(|block| block[2]);
    let bits = active.flat_map(|word| (0..32).map(move |bit| word >> bit & 1 == 1));
    Ok(bits.take(count).collect())
}

/// One command; `data` begins with its number and has room for its answer.
fn ethtool(socket: &impl AsFd, device: &str, data: &mut [u32]) -> io::Result<()> {
    let mut request = named(device)?;
    request.ifr_ifru.ifru_data = data.as_mut_ptr().cast();
    // SAFETY: the descriptor is open while `socket` is borrowed. `request` is a whole ifreq whose data pointer leads
    // to `data`, and each caller has sized that for what the command writes: as many blocks as it asks for, or the
    // names of all features, whose number the kernel was compiled with.
    let done = unsafe {
        libc::ioctl(
            socket.as_fd().as_raw_fd(),
            libc::SIOCETHTOOL,
            &raw mut request,
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
