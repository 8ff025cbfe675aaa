//! Features of network devices ("offloads"): what they do for us, as `ethtool -k` lists it.

use std::io;

use socket2::{Domain, Socket, Type};

use super::{Error, Result};
use crate::sys::ethtool;

/// The features that decide how superpackets are best sent through a device: which it carries whole, to be cut by
/// the hardware (or, through a veth, perhaps never).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// TCP over IPv4: `tx-tcp-segmentation`.
    pub tcp4: bool,
    /// TCP over IPv6: `tx-tcp6-segmentation`.
    pub tcp6: bool,
    /// UDP: `tx-udp-segmentation`.
    pub udp: bool,
    /// Any of them in a UDP tunnel without an outer checksum: `tx-udp_tnl-segmentation`.
    pub tunnel: bool,
    /// Any of them in a UDP tunnel with one: `tx-udp_tnl-csum-segmentation`.
    pub tunnel_csum: bool,
}

/// Reads the features of devices of one namespace.
#[derive(Debug)]
pub struct FeatureReader {
    socket: Socket,
}

impl FeatureReader {
    /// A reader for the calling thread's namespace, usable from anywhere afterwards.
    ///
    /// # Errors
    /// When the kernel refuses a socket.
    pub fn open() -> Result<Self> {
        // Any socket serves: it only says which namespace is meant.
        let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)
            .map_err(|error| Error::new("open a socket to read device features", error))?;
        Ok(FeatureReader { socket })
    }

    /// The features of the device `name` as they are now. A change is announced as a change of the link
    /// ([`Change::Link`](super::Change)).
    ///
    /// # Errors
    /// When there is no such device.
    pub fn read(&self, name: &str) -> Result<Features> {
        self.try_read(name)
            .map_err(|error| Error::new(format!("read the features of {name}"), error))
    }

    fn try_read(&self, name: &str) -> io::Result<Features> {
        let all = ethtool::features(&self.socket, name)?;
        let is_on = |feature: &str| all.get(feature) == Some(&true);
        Ok(Features {
            tcp4: is_on("tx-tcp-segmentation"),
            tcp6: is_on("tx-tcp6-segmentation"),
            udp: is_on("tx-udp-segmentation"),
            tunnel: is_on("tx-udp_tnl-segmentation"),
            tunnel_csum: is_on("tx-udp_tnl-csum-segmentation"),
        })
    }
}
