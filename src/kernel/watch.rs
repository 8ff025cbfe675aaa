//! Changes of links, addresses, routes and neighbours, as the kernel announces them.

use std::future;

use futures_util::{Stream, StreamExt};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;

use super::{Error, Neighbour, Netlink, Result, runtime};

/// Something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The link of this index: its state, MTU, address, name or features; or it is gone.
    Link(u32),
    /// Some address.
    Address,
    /// Some route or routing rule.
    Route,
    /// This neighbour is now so.
    Neighbour(Neighbour),
    /// Announcements were lost: anything may have changed.
    Lost,
}

impl Netlink {
    /// Opens a connection in the calling thread's namespace, and the stream of what changes there from now on in the
    /// ways of packets: links, neighbours, routes, rules.
    ///
    /// # Errors
    /// As [`Netlink::open`].
    pub fn watch() -> Result<(Self, impl Stream<Item = Change> + Send + Unpin)> {
        Self::watch_groups(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ])
    }

    /// The same of what reconciling looks at: links, addresses, routes. Linux announces neither the routes that go with
    /// a device that is set down nor those that go with an address: the device and the address stand for them.
    ///
    /// # Errors
    /// As [`Netlink::open`].
    pub fn watch_host() -> Result<(Self, impl Stream<Item = Change> + Send + Unpin)> {
        Self::watch_groups(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])
    }

    fn watch_groups(
        groups: &[MulticastGroup],
    ) -> Result<(Self, impl Stream<Item = Change> + Send + Unpin + use<>)> {
        let runtime = runtime()?;
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(groups)
            .map_err(|error| Error::new("open a netlink socket", error))?;
        runtime.spawn(connection);
        let changes = messages.filter_map(|(message, _)| future::ready(change(message.payload)));
        Ok((Self { handle }, changes))
    }
}

fn change(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<Change> {
    use RouteNetlinkMessage as Message;
    match payload {
        NetlinkPayload::InnerMessage(message) => match message {
            Message::NewLink(link) | Message::DelLink(link) => {
                Some(Change::Link(link.header.index))
            }
            Message::NewAddress(_) | Message::DelAddress(_) => Some(Change::Address),
            Message::NewNeighbour(neighbour) => Neighbour::from(&neighbour).map(Change::Neighbour),
            Message::DelNeighbour(neighbour) => {
                let gone = Neighbour::from(&neighbour)?;
                Some(Change::Neighbour(Neighbour { mac: None, ..gone }))
            }
            Message::NewRoute(_)
            | Message::DelRoute(_)
            | Message::NewRule(_)
            | Message::DelRule(_) => Some(Change::Route),
            _ => None,
        },
        NetlinkPayload::Overrun(_) => Some(Change::Lost),
        _ => None,
    }
}
