//! Neighbours (IP address to Ethernet address) and forwarding entries of VXLAN devices (Ethernet address to remote).

use std::net::IpAddr;

use rtnetlink::packet_route::neighbour::NeighbourFlags;

use super::{Error, Netlink, Result};

impl Netlink {
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
