//! Links: what devices there are, and the kinds this project makes.

use std::net::IpAddr;

use futures_util::{StreamExt, TryStreamExt};
use nix::errno::Errno;
use rtnetlink::{
    LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    },
    packet_route::{
        RouteNetlinkMessage,
        link::{InfoData, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        nsid::{NsidAttribute, NsidMessage},
    },
};

use super::{Error, NetNs, Netlink, Result};

/// The longest device name, in bytes (IFNAMSIZ without its NUL, `include/uapi/linux/if.h`).
const NAME_MAX: usize = 15;

/// A network device, as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The interface index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The kind of a virtual device: `vxlan`, `tun`, `bridge`, `veth`, ...; `None` for hardware and loopback.
    pub kind: Option<String>,
    /// The largest packet it carries, in bytes, without its link-layer header.
    pub mtu: u32,
    /// Administratively up (IFF_UP).
    pub up: bool,
    /// Able to carry packets (IFF_RUNNING: up, and with a carrier where it needs one).
    pub running: bool,
    /// The Ethernet address, in the order of the wire; `None` for a device that has none (TUN).
    pub mac: Option<[u8; 6]>,
    /// The index of the bridge or bond it is a port of.
    pub master: Option<u32>,
    /// The index of the device below it, or, of a veth, of its other end (which may be in another namespace).
    pub lower: Option<u32>,
    /// By which number this namespace knows the one that `lower` is in, where that is another
    /// ([`Netlink::id_of`]).
    pub lower_ns: Option<i32>,
    /// What a VXLAN device holds.
    pub vxlan: Option<VxlanInfo>,
}

#[cfg(test)]
impl Link {
    /// A device that is up and has nothing special.
    pub(crate) fn named(index: u32, name: &str) -> Self {
        Link {
            index,
            name: name.into(),
            kind: None,
            mtu: 1500,
            up: true,
            running: true,
            mac: None,
            master: None,
            lower: None,
            lower_ns: None,
            vxlan: None,
        }
    }
}

/// What a kernel VXLAN device was made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanInfo {
    /// The VXLAN network identifier, 24 bits; `None` for a device that takes it from each packet ("external").
    pub vni: Option<u32>,
    /// The UDP port it listens on, held in its namespace as long as the device is up.
    pub port: u16,
    /// The outer source address, where one was given.
    pub local: Option<IpAddr>,
}

/// A kernel VXLAN device to be made, with the settings of flannel's vxlan backend: no learning, checksums on.
#[derive(Debug, Clone)]
pub struct VxlanSpec {
    /// The device's name (flannel's: `flannel.<vni>`).
    pub name: String,
    /// The VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// The outer source address.
    pub local: IpAddr,
    /// The index of the underlay device.
    pub dev: u32,
    /// The UDP port, both ends.
    pub port: u16,
    /// The Ethernet address of the device; the kernel makes one up otherwise.
    pub mac: Option<[u8; 6]>,
}

impl Netlink {
    /// All links of the namespace.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn links(&self) -> Result<Vec<Link>> {
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| Error::netlink("list links", e))?;
        Ok(links.into_iter().map(Link::from_message).collect())
    }

    /// The link with this name, if there is one.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn link(&self, name: &str) -> Result<Option<Link>> {
        if name.is_empty() || name.len() > NAME_MAX {
            // No device can have it, and the kernel would answer with an error about the length.
            return Ok(None);
        }
        let request = self.handle.link().get().match_name(name.to_owned());
        one(request, format!("look for link {name}")).await
    }

    /// The link with this index, if there is one.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn link_by_index(&self, index: u32) -> Result<Option<Link>> {
        one(
            self.handle.link().get().match_index(index),
            format!("look for link #{index}"),
        )
        .await
    }

    /// How many packets a device dropped instead of sending them, since it was made: of a TUN device, those that found its
    /// queue full (`tx_dropped`, `drivers/net/tun.c` `tun_net_xmit`). 0 if the device is gone.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn dropped_by(&self, index: u32) -> Result<u64> {
        let request = self.handle.link().get().match_index(index);
        let attempt = || format!("ask for the drops of link #{index}");
        let mut replies = std::pin::pin!(request.execute());
        let message = match replies.try_next().await {
            Ok(message) => message,
            Err(e) => {
                let error = Error::netlink(attempt(), e);
                return if error.is_not_found() {
                    Ok(0)
                } else {
                    Err(error)
                };
            }
        };
        let attributes = message.map(|message| message.attributes);
        let dropped = attributes.into_iter().flatten().find_map(|a| match a {
            LinkAttribute::Stats64(stats) => Some(stats.tx_dropped),
            _ => None,
        });
        Ok(dropped.unwrap_or(0))
    }

    /// The kernel VXLAN device that listens on this UDP port, if one does: such a device owns the port of its
    /// namespace without any process holding it, so `ss -p` names nobody.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn vxlan_on_port(&self, port: u16) -> Result<Option<Link>> {
        let links = self.links().await?;
        Ok(links
            .into_iter()
            .find(|link| link.up && link.vxlan.as_ref().is_some_and(|v| v.port == port)))
    }

    /// By which number this connection's namespace knows another one; `None`: by none, so that no link here has its
    /// other end there (rtnetlink(7), RTM_GETNSID).
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn id_of(&self, namespace: &NetNs) -> Result<Option<i32>> {
        let attempt = || format!("ask for the number of network namespace {namespace}");
        let fd = u32::try_from(namespace.raw_fd())
            .map_err(|e| Error::new(attempt(), std::io::Error::other(e)))?;
        let mut question = NsidMessage::default();
        question.attributes.push(NsidAttribute::Fd(fd));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(question));
        request.header.flags = NLM_F_REQUEST;
        let mut handle = self.handle.clone();
        let mut replies = handle
            .request(request)
            .map_err(|e| Error::netlink(attempt(), e))?;
        match replies.next().await.map(|reply| reply.payload) {
            Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer))) => {
                let id = answer
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        NsidAttribute::Id(id) => Some(*id),
                        _ => None,
                    });
                // -1: not assigned (NETNSA_NSID_NOT_ASSIGNED, linux/net_namespace.h).
                Ok(id.filter(|id| *id >= 0))
            }
            Some(NetlinkPayload::Error(e)) => {
                Err(Error::netlink(attempt(), rtnetlink::Error::NetlinkError(e)))
            }
            _ => Ok(None),
        }
    }

    /// Sets the MTU, in bytes.
    ///
    /// # Errors
    /// When the device does not exist or does not take that MTU.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<()> {
        let change = LinkUnspec::new_with_index(index).mtu(mtu);
        self.change(change, index, format!("set mtu {mtu}")).await
    }

    /// Brings the device up.
    ///
    /// # Errors
    /// When the device does not exist, or cannot be opened (a VXLAN port that is taken).
    pub async fn set_up(&self, index: u32) -> Result<()> {
        self.change(
            LinkUnspec::new_with_index(index).up(),
            index,
            "set up".into(),
        )
        .await
    }

    /// Takes the device down.
    ///
    /// # Errors
    /// When the device does not exist.
    pub async fn set_down(&self, index: u32) -> Result<()> {
        self.change(
            LinkUnspec::new_with_index(index).down(),
            index,
            "set down".into(),
        )
        .await
    }

    /// Sets the Ethernet address.
    ///
    /// # Errors
    /// When the device does not exist or has no Ethernet address.
    pub async fn set_mac(&self, index: u32, mac: [u8; 6]) -> Result<()> {
        let change = LinkUnspec::new_with_index(index).address(mac.to_vec());
        self.change(change, index, "set the Ethernet address".into())
            .await
    }

    /// Makes the device a port of the bridge `master`.
    ///
    /// # Errors
    /// When either does not exist, or the bridge refuses it.
    pub async fn set_master(&self, index: u32, master: u32) -> Result<()> {
        let change = LinkUnspec::new_with_index(index).controller(master);
        self.change(change, index, format!("join bridge #{master}"))
            .await
    }

    /// Moves the device to another namespace (where it may get another index, and is down).
    ///
    /// # Errors
    /// When it does not exist, cannot be moved, or its name is taken there.
    pub async fn move_to_ns(&self, index: u32, namespace: &NetNs) -> Result<()> {
        let change = LinkUnspec::new_with_index(index).setns_by_fd(namespace.raw_fd());
        self.change(
            change,
            index,
            format!("move to network namespace {namespace}"),
        )
        .await
    }

    /// Makes a bridge, up.
    ///
    /// # Errors
    /// When the name is taken or too long.
    pub async fn add_bridge(&self, name: &str) -> Result<Link> {
        self.add(LinkBridge::new(name).build(), name, "bridge")
            .await
    }

    /// Makes a veth pair, both ends down: `name` here, `peer` in `peer_ns` (or here too).
    ///
    /// The peer is born in its namespace, so that no name of ours ever meets one of the host's.
    ///
    /// # Errors
    /// When a name is taken or too long.
    pub async fn add_veth(&self, name: &str, peer: &str, peer_ns: Option<&NetNs>) -> Result<Link> {
        let mut end = LinkMessageBuilder::<LinkUnspec>::new().name(peer);
        if let Some(namespace) = peer_ns {
            end = end.setns_by_fd(namespace.raw_fd());
        }
        let pair =
            LinkVeth::new(name, peer).set_info_data(InfoData::Veth(InfoVeth::Peer(end.build())));
        self.add(pair.build(), name, "veth").await
    }

    /// Makes a kernel VXLAN device as flannel's vxlan backend does, down.
    ///
    /// # Errors
    /// When the name, or the pair of VNI and port, is taken.
    pub async fn add_vxlan(&self, spec: &VxlanSpec) -> Result<Link> {
        let mut link = LinkVxlan::new(&spec.name, spec.vni)
            .dev(spec.dev)
            .port(spec.port)
            .learning(false);
        link = match spec.local {
            IpAddr::V4(local) => link.local(local),
            IpAddr::V6(local) => link.local6(local),
        };
        if let Some(mac) = spec.mac {
            link = link.address(mac.to_vec());
        }
        self.add(link.build(), &spec.name, "vxlan").await
    }

    /// Removes the device with this name. `Ok(false)`: there is none.
    ///
    /// # Errors
    /// When it cannot be removed (hardware).
    pub async fn delete_link(&self, name: &str) -> Result<bool> {
        let Some(link) = self.link(name).await? else {
            return Ok(false);
        };
        match self.handle.link().del(link.index).execute().await {
            Ok(()) => Ok(true),
            Err(e) => {
                let error = Error::netlink(format!("del link {name}"), e);
                if error.is_not_found() {
                    Ok(false)
                } else {
                    Err(error)
                }
            }
        }
    }

    /// Makes a link and returns it as the kernel then describes it.
    async fn add(&self, message: LinkMessage, name: &str, kind: &str) -> Result<Link> {
        let attempt = || format!("add link {name} type {kind}");
        if name.is_empty() || name.len() > NAME_MAX {
            let cause = std::io::Error::other(format!("a device name has 1 to {NAME_MAX} bytes"));
            return Err(Error::new(attempt(), cause));
        }
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewLink(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let mut handle = self.handle.clone();
        let mut replies = handle
            .request(request)
            .map_err(|e| Error::netlink(attempt(), e))?;
        while let Some(reply) = replies.next().await {
            if let NetlinkPayload::Error(e) = reply.payload {
                return Err(Error::netlink(attempt(), rtnetlink::Error::NetlinkError(e)));
            }
        }
        self.link(name)
            .await?
            .ok_or_else(|| Error::new(attempt(), Errno::ENODEV))
    }

    async fn change(
        &self,
        change: LinkMessageBuilder<LinkUnspec>,
        index: u32,
        attempt: String,
    ) -> Result<()> {
        match self.handle.link().change(change.build()).execute().await {
            Ok(()) => Ok(()),
            Err(e) => {
                let name = self.name_of(index).await;
                Err(Error::netlink(format!("link {name}: {attempt}"), e))
            }
        }
    }

    /// For error messages: the device's name, or its number where it has gone.
    pub(super) async fn name_of(&self, index: u32) -> String {
        match self.link_by_index(index).await {
            Ok(Some(link)) => link.name,
            _ => format!("#{index}"),
        }
    }
}

async fn one(request: rtnetlink::LinkGetRequest, attempt: String) -> Result<Option<Link>> {
    let mut replies = std::pin::pin!(request.execute());
    match replies.try_next().await {
        Ok(link) => Ok(link.map(Link::from_message)),
        Err(e) => {
            let error = Error::netlink(attempt, e);
            if error.is_not_found() {
                Ok(None)
            } else {
                Err(error)
            }
        }
    }
}

impl Link {
    fn from_message(message: LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            running: flags.contains(LinkFlags::Running),
            mac: None,
            master: None,
            lower: None,
            lower_ns: None,
            vxlan: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
                LinkAttribute::Controller(index) => link.master = Some(index),
                LinkAttribute::Link(index) => link.lower = Some(index).filter(|i| *i != 0),
                LinkAttribute::LinkNetNsId(id) => link.lower_ns = Some(id),
                LinkAttribute::LinkInfo(infos) => link.read_info(infos),
                _ => {}
            }
        }
        link
    }

    fn read_info(&mut self, infos: Vec<LinkInfo>) {
        for info in infos {
            match info {
                LinkInfo::Kind(kind) => self.kind = Some(kind.to_string()),
                LinkInfo::Data(InfoData::Vxlan(infos)) => {
                    self.vxlan = Some(VxlanInfo::from_infos(&infos))
                }
                _ => {}
            }
        }
    }
}

impl VxlanInfo {
    fn from_infos(infos: &[InfoVxlan]) -> Self {
        let mut vxlan = Self {
            vni: None,
            port: 0,
            local: None,
        };
        let mut external = false;
        for info in infos {
            match info {
                InfoVxlan::Id(vni) => vxlan.vni = Some(*vni),
                InfoVxlan::Port(port) => vxlan.port = *port,
                InfoVxlan::Local(ip) => vxlan.local = Some(IpAddr::V4(*ip)),
                InfoVxlan::Local6(ip) => vxlan.local = Some(IpAddr::V6(*ip)),
                InfoVxlan::CollectMetadata(on) => external = *on,
                _ => {}
            }
        }
        if external {
            vxlan.vni = None;
        }
        vxlan
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::InfoKind;

    use super::*;

    #[test]
    fn a_vxlan_link_tells_its_port_and_vni() {
        let mut message = LinkVxlan::new("flannel.1", 1)
            .port(8472)
            .local([10, 99, 0, 1].into())
            .up()
            .mtu(1450)
            .address(vec![0x0a, 0x58, 10, 99, 0, 1])
            .build();
        message.header.index = 7;
        let link = Link::from_message(message);
        assert_eq!(
            (link.index, link.name.as_str(), link.mtu),
            (7, "flannel.1", 1450)
        );
        assert_eq!(link.kind.as_deref(), Some("vxlan"));
        assert!(link.up && !link.running);
        assert_eq!(link.mac, Some([0x0a, 0x58, 10, 99, 0, 1]));
        let vxlan = link.vxlan.unwrap();
        assert_eq!((vxlan.vni, vxlan.port), (Some(1), 8472));
        assert_eq!(vxlan.local, Some([10, 99, 0, 1].into()));
    }

    #[test]
    fn a_link_without_an_ethernet_address_has_none() {
        let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Tun)
            .name("overlay0")
            .address(vec![])
            .build();
        let link = Link::from_message(message);
        assert_eq!(
            (link.kind.as_deref(), link.mac, link.vxlan),
            (Some("tun"), None, None)
        );
    }
}
