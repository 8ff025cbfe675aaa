//! Neighbours (IP address to Ethernet address) and forwarding entries of VXLAN devices (Ethernet address to remote).

use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use super::{Error, Netlink, Result};

/// What the kernel knows about an IP address on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The link.
    pub ifindex: u32,
    /// The address.
    pub ip: IpAddr,
    /// Where it is, in a state in which the kernel itself would send there (NUD_VALID, include/net/neighbour.h);
    /// `None` while that is not known, or no longer.
    pub mac: Option<[u8; 6]>,
    /// It was there, but that was some time ago: the next packet makes the kernel ask again.
    pub stale: bool,
}

impl Neighbour {
    pub(super) fn from_message(message: NeighbourMessage) -> Option<Self> {
        let (mut ip, mut mac) = (None, None);
        for attribute in message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(v4.into()),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                    ip = Some(v6.into())
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok(),
                _ => {}
            }
        }
        let state = message.header.state;
        let valid = matches!(
            state,
            NeighbourState::Permanent
                | NeighbourState::Noarp
                | NeighbourState::Reachable
                | NeighbourState::Probe
                | NeighbourState::Stale
                | NeighbourState::Delay
        );
        Some(Neighbour {
            ifindex: message.header.ifindex,
            ip: ip?,
            mac: mac.filter(|_| valid),
            stale: state == NeighbourState::Stale,
        })
    }
}

impl Netlink {
    /// The neighbours on all links, of both families.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn neighbours(&self) -> Result<Vec<Neighbour>> {
        let messages: Vec<NeighbourMessage> = self
            .handle
            .neighbours()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| Error::netlink("list neighbours", e))?;
        Ok(messages
            .into_iter()
            .filter_map(Neighbour::from_message)
            .collect())
    }

    /// Makes the kernel ask (ARP, neighbour discovery) where `ip` is if it does not know for certain, as a packet to
    /// it would (NTF_USE).
    ///
    /// # Errors
    /// When the link does not exist or is down.
    pub async fn use_neighbour(&self, ifindex: u32, ip: IpAddr) -> Result<()> {
        let neighbours = self.handle.neighbours();
        let request = neighbours
            .add(ifindex, ip)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        match request.execute().await {
            Ok(()) => Ok(()),
            Err(e) => {
                let name = self.name_of(ifindex).await;
                Err(Error::netlink(format!("use neighbour {ip} dev {name}"), e))
            }
        }
    }

    /// Sets a permanent neighbour: `ip` on that link is at `mac`. An entry that is there is replaced.
    ///
    /// # Errors
    /// When the link does not exist or is down.
    pub async fn add_neighbour(&self, ifindex: u32, ip: IpAddr, mac: [u8; 6]) -> Result<()> {
        let neighbours = self.handle.neighbours();
        let request = neighbours
            .add(ifindex, ip)
            .link_layer_address(&mac)
            .replace();
        match request.execute().await {
            Ok(()) => Ok(()),
            Err(e) => {
                let name = self.name_of(ifindex).await;
                Err(Error::netlink(format!("add neighbour {ip} dev {name}"), e))
            }
        }
    }

    /// Sets a permanent forwarding entry of a VXLAN device, as flannel does for every peer: frames for `mac` go to the
    /// VTEP at `remote`. An entry that is there is replaced.
    ///
    /// # Errors
    /// When the link does not exist or is no VXLAN device.
    pub async fn add_fdb(&self, ifindex: u32, mac: [u8; 6], remote: IpAddr) -> Result<()> {
        let neighbours = self.handle.neighbours();
        // NTF_SELF: the device's own table, not that of a bridge it may be a port of.
        let request = neighbours
            .add_bridge(ifindex, &mac)
            .flags(NeighbourFlags::Own)
            .destination(remote)
            .replace();
        match request.execute().await {
            Ok(()) => Ok(()),
            Err(e) => {
                let name = self.name_of(ifindex).await;
                Err(Error::netlink(
                    format!("add fdb entry to {remote} dev {name}"),
                    e,
                ))
            }
        }
    }
}
