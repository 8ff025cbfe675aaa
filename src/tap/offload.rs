//! Opens the batched engine's device: superpackets in both directions, checksums left to the other side.
//!
//! Each packet is led by a virtio_net_hdr (`encap::vnet`), which says what is left to do. So one read takes what the
//! kernel's TCP made of one write of an application, and one write gives it as much as can be joined.
//!
//! The device keeps its default `gso_max_size`. A smaller one, by which what is split would always fit one send, suits
//! TCP of this host only: what pods send comes larger, and the kernel would split it to single packets.

use std::io;

use crate::datapath::inbound::Takes;
use crate::sys::tun::{self, Offloads};

use super::{OpenError, Queue};

/// A device with one queue or several, and what its kernel takes and gives unfinished.
pub struct Device {
    /// Its queues.
    pub queues: Vec<Queue>,
    /// What it takes, and gives.
    pub takes: Takes,
}

impl Device {
    /// The same device under other descriptors, see [`Queue::try_clone`].
    ///
    /// # Errors
    /// As dup(2).
    pub fn try_clone(&self) -> io::Result<Self> {
        let queues = self.queues.iter().map(Queue::try_clone);
        Ok(Device {
            queues: queues.collect::<io::Result<_>>()?,
            takes: self.takes,
        })
    }
}

/// Creates the TUN device `name`, or takes over one of that name that nobody has open, with so many queues. It goes
/// when the last is dropped, unless someone made it persistent.
///
/// # Errors
/// See [`OpenError`].
pub fn open(name: &str, queues: u16) -> Result<Device, OpenError> {
    let fail = |cause| OpenError::new(name, cause);
    let multi_queue = queues > 1;
    let mut opened = Vec::new();
    for _ in 0..queues {
        let (fd, name) = tun::open_with_header(name, multi_queue).map_err(fail)?;
        opened.push(Queue::new(fd, name));
    }
    // The offloads belong to the device, not to a queue. A kernel refuses what it does not know.
    let mut takes = Takes::Finished;
    if let Some(queue) = opened.first() {
        takes = if tun::set_offloads(queue, Offloads::TCP_AND_UDP).is_ok() {
            Takes::TcpAndUdp
        } else if tun::set_offloads(queue, Offloads::TCP).is_ok() {
            Takes::Tcp
        } else {
            Takes::Finished
        };
    }
    Ok(Device {
        queues: opened,
        takes,
    })
}
