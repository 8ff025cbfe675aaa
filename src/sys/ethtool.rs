//! The offload features of a network device, by the names that ethtool(8) lists with `-k`: SIOCETHTOOL
//! (`include/uapi/linux/ethtool.h`), which every kernel knows.
//!
//! The socket that is asked says which network namespace is meant; any kind will do.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

use super::inject::named;

const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
/// The string set of feature names.
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;

/// Features of one device: name, and whether it is on.
pub type Features = BTreeMap<String, bool>;

/// What features the device has on.
///
/// # Errors
/// When there is no such device.
pub fn features(socket: &impl AsFd, device: &str) -> io::Result<Features> {
    let names = names(socket, device)?;
    // struct ethtool_gfeatures: cmd, size, then per 32 features: available, requested, active, never_changed.
    let blocks = names.len().div_ceil(32);
    let mut words = vec![0u32; 2 + 4 * blocks];
    words[0] = ETHTOOL_GFEATURES;
    words[1] = u32::try_from(blocks).map_err(io::Error::other)?;
    request(socket, device, &mut words)?;
    Ok(names
        .into_iter()
        .enumerate()
        .filter(|(_, name)| !name.is_empty())
        .map(|(bit, name)| {
            let active = words[2 + 4 * (bit / 32) + 2];
            (name, active & (1 << (bit % 32)) != 0)
        })
        .collect())
}

/// Turns these features on or off and leaves the others as they are. Names the kernel does not know are passed over, and
/// what the device cannot change stays: look at [`features`] afterwards.
///
/// # Errors
/// When there is no such device, or without CAP_NET_ADMIN.
pub fn set_features(socket: &impl AsFd, device: &str, wanted: &Features) -> io::Result<()> {
    let names = names(socket, device)?;
    // struct ethtool_sfeatures: cmd, size, then per 32 features: valid, requested.
    let blocks = names.len().div_ceil(32);
    let mut words = vec![0u32; 2 + 2 * blocks];
    words[0] = ETHTOOL_SFEATURES;
    words[1] = u32::try_from(blocks).map_err(io::Error::other)?;
    for (bit, name) in names.iter().enumerate() {
        if let Some(on) = wanted.get(name) {
            let mask = 1 << (bit % 32);
            words[2 + 2 * (bit / 32)] |= mask;
            words[2 + 2 * (bit / 32) + 1] |= if *on { mask } else { 0 };
        }
    }
    request(socket, device, &mut words)
}

/// The names of all features, by their bit; some bits have none.
fn names(socket: &impl AsFd, device: &str) -> io::Result<Vec<String>> {
    // struct ethtool_sset_info: cmd, reserved, sset_mask (u64), then one u32 per set asked for.
    let mut info = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0];
    request(socket, device, &mut info)?;
    let count = info[4] as usize;
    // struct ethtool_gstrings: cmd, string_set, len, then the strings.
    let per_string = ETH_GSTRING_LEN / 4;
    let mut words = vec![0u32; 3 + count * per_string];
    words[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, info[4]]);
    request(socket, device, &mut words)?;
    let strings = words[3..].chunks_exact(per_string);
    Ok(strings
        .map(|words| {
            let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
            let bytes: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        })
        .collect())
}

/// One request. `words` is the command's struct, long enough for what the command writes there: the callers size it from
/// the counts that they put into it.
fn request(socket: &impl AsFd, device: &str, words: &mut [u32]) -> io::Result<()> {
    let mut request = named(device)?;
    request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    // SAFETY: the descriptor is open while `socket` is borrowed. `request` is a whole ifreq whose data pointer leads to
    // memory that we borrow mutably and that is as long as the command says in its own fields, which the kernel keeps to.
    let done = unsafe {
        libc::ioctl(
            socket.as_fd().as_raw_fd(),
            libc::SIOCETHTOOL,
            &raw mut request,
        )
    };
    Errno::result(done)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn the_loopback_device_tells_its_features() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let features = features(&socket, "lo").unwrap();
        assert_eq!(features.get("tx-tcp-segmentation"), Some(&true));
        assert!(features.contains_key("rx-gro") && features.len() > 30);
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let error = features(&socket, "no-such-dev").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        for name in ["", "a-name-that-is-far-too-long"] {
            let error = features(&socket, name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
        }
    }
}
