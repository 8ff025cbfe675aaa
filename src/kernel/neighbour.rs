//! Neighbours (IP address to Ethernet address) and forwarding entries of VXLAN devices (Ethernet address to remote).

use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::{
    AddressFamily,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
};

use super::{Error, Netlink, Result};

/// An entry of the neighbour table: who is at an IP address of a link (ARP, neighbour discovery).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The link.
    pub ifindex: u32,
    /// The neighbour's IP address.
    pub ip: IpAddr,
    /// Its Ethernet address, in a state in which the kernel itself would send there (NUD_VALID,
    /// include/net/neighbour.h); `None` while it is not known, or no longer.
    pub mac: Option<[u8; 6]>,
    /// It was there, but that was some time ago: the next packet makes the kernel ask again.
    pub stale: bool,
    /// It was asked for and nobody answered.
    pub failed: bool,
    /// It was set, and is never asked for.
    pub permanent: bool,
}

/// An entry of a bridge's forwarding table: behind which port an Ethernet address is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeEntry {
    /// The port, or the bridge itself.
    pub port: u32,
    /// The bridge.
    pub bridge: u32,
    /// The Ethernet address.
    pub mac: [u8; 6],
    /// The address is the port's own (`permanent` in bridge(8)): frames for it go up to this host.
    pub local: bool,
}

impl Netlink {
    /// The neighbour tables of all links, both families, as `ip neighbour` lists them.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn neighbours(&self) -> Result<Vec<Neighbour>> {
        let all = self.neighbour_dump(AddressFamily::Unspec, "list neighbours");
        Ok(all.await?.iter().filter_map(Neighbour::from).collect())
    }

    /// The forwarding tables of all bridges, as `bridge fdb` lists them.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn bridge_entries(&self) -> Result<Vec<BridgeEntry>> {
        let all = self.neighbour_dump(AddressFamily::Bridge, "list bridge entries");
        Ok(all.await?.iter().filter_map(BridgeEntry::from).collect())
    }

    async fn neighbour_dump(
        &self,
        family: AddressFamily,
        attempt: &str,
    ) -> Result<Vec<NeighbourMessage>> {
        let question = self.handle.neighbours().get().set_address_family(family);
        question
            .execute()
            .try_collect()
            .await
            .map_err(|e| Error::netlink(attempt, e))
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

impl Neighbour {
    pub(super) fn from(message: &NeighbourMessage) -> Option<Self> {
        let ip = message.attributes.iter().find_map(|a| match a {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
            _ => None,
        });
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
        Some(Self {
            ifindex: message.header.ifindex,
            ip: ip?,
            mac: link_layer_address(message).filter(|_| valid),
            stale: state == NeighbourState::Stale,
            failed: state == NeighbourState::Failed,
            permanent: state == NeighbourState::Permanent,
        })
    }
}

impl BridgeEntry {
    fn from(message: &NeighbourMessage) -> Option<Self> {
        let bridge = message.attributes.iter().find_map(|a| match a {
            NeighbourAttribute::Controller(index) => Some(*index),
            _ => None,
        });
        Some(Self {
            port: message.header.ifindex,
            bridge: bridge?,
            mac: link_layer_address(message)?,
            local: message.header.state == NeighbourState::Permanent,
        })
    }
}

fn link_layer_address(message: &NeighbourMessage) -> Option<[u8; 6]> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    })
}
