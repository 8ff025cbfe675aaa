//! Addresses of links.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};

use super::{Error, Link, Netlink, Result};

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The link that has it.
    pub ifindex: u32,
    /// The address itself (of a point-to-point link: our end).
    pub ip: IpAddr,
    /// The length of its on-link prefix, in bits.
    pub prefix_len: u8,
    /// How far it is valid: 0 everywhere, 253 on the link, 254 on this host (rtnetlink(7), `rtm_scope`).
    pub scope: u8,
    /// IPv6: duplicate address detection has not finished, the address cannot be used yet.
    pub tentative: bool,
}

impl Netlink {
    /// All addresses of the namespace, of both families.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn addresses(&self) -> Result<Vec<Address>> {
        let addresses: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| Error::netlink("list addresses", e))?;
        Ok(addresses
            .into_iter()
            .filter_map(Address::from_message)
            .collect())
    }

    /// The link that has this address, if one has it.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn iface_of(&self, ip: IpAddr) -> Result<Option<Link>> {
        let owner = self.addresses().await?.into_iter().find(|a| a.ip == ip);
        match owner {
            Some(address) => self.link_by_index(address.ifindex).await,
            None => Ok(None),
        }
    }

    /// Gives a link an address. `nodad` (IPv6) makes it usable at once, without duplicate address detection, which
    /// takes a second or two; right where the address is ours by decree, as a lease's is.
    ///
    /// # Errors
    /// When the link does not exist or has the address already.
    pub async fn add_address(&self, ifindex: u32, address: IpNet, nodad: bool) -> Result<()> {
        let mut request = self
            .handle
            .address()
            .add(ifindex, address.addr(), address.prefix_len());
        if nodad && matches!(address, IpNet::V6(_)) {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        match request.execute().await {
            Ok(()) => Ok(()),
            Err(e) => {
                let name = self.name_of(ifindex).await;
                Err(Error::netlink(
                    format!("add address {address} dev {name}"),
                    e,
                ))
            }
        }
    }

    /// Takes an address from a link.
    ///
    /// # Errors
    /// When the link does not have it.
    pub async fn del_address(&self, ifindex: u32, address: IpNet) -> Result<()> {
        let message = self
            .handle
            .address()
            .add(ifindex, address.addr(), address.prefix_len())
            .message_mut()
            .clone();
        match self.handle.address().del(message).execute().await {
            Ok(()) => Ok(()),
            Err(e) => {
                let name = self.name_of(ifindex).await;
                Err(Error::netlink(
                    format!("del address {address} dev {name}"),
                    e,
                ))
            }
        }
    }
}

impl Address {
    fn from_message(message: AddressMessage) -> Option<Self> {
        let mut address = None;
        let mut local = None;
        // The header's flags are the low byte of the attribute's, which older kernels do not send.
        let mut tentative = message.header.flags.contains(AddressHeaderFlags::Tentative);
        for attribute in message.attributes {
            match attribute {
                AddressAttribute::Address(ip) => address = Some(ip),
                AddressAttribute::Local(ip) => local = Some(ip),
                AddressAttribute::Flags(flags) => {
                    tentative = flags.contains(AddressFlags::Tentative)
                }
                _ => {}
            }
        }
        Some(Self {
            ifindex: message.header.index,
            // On a point-to-point link IFA_ADDRESS is the other end (include/uapi/linux/if_addr.h).
            ip: local.or(address)?,
            prefix_len: message.header.prefix_len,
            scope: scope_number(message.header.scope),
            tentative,
        })
    }
}

fn scope_number(scope: AddressScope) -> u8 {
    scope.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_end_is_the_address() {
        let mut message = AddressMessage::default();
        message.header.index = 3;
        message.header.prefix_len = 32;
        message
            .attributes
            .push(AddressAttribute::Address([10, 0, 0, 2].into()));
        message
            .attributes
            .push(AddressAttribute::Local([10, 0, 0, 1].into()));
        let address = Address::from_message(message).unwrap();
        assert_eq!(address.ip, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(
            (address.ifindex, address.prefix_len, address.scope),
            (3, 32, 0)
        );
        assert!(Address::from_message(AddressMessage::default()).is_none());
    }
}
