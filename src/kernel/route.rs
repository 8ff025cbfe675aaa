//! Routes of the main table.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::{
    IpVersion, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        route::{
            RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
            RouteProtocol, RouteScope, RouteType,
        },
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

use super::{Error, Family, Link, Netlink, Result};

/// The origin that marks our routes (`proto 82` in `ip route`), so that a person and a later start can tell them.
///
/// Free in `include/uapi/linux/rtnetlink.h` (RTPROT_*, where 0 to 18 and a few from 42 up are taken) and in iproute2's
/// `rt_protos`; the 82 is that of port 8285.
pub const ROUTE_PROTOCOL: u8 = 82;

/// A policy rule: it chooses the table that a packet is routed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyRule {
    /// Lower ones are looked at first.
    pub priority: u32,
    /// It looks at marks: at this one. Netfilter sets them, or the program that has the socket.
    pub mark: Option<u32>,
    /// The table that it leads to.
    pub table: u32,
    /// The word of ip-rule(8) for one that leads to none and lets nothing through: `blackhole`, `unreachable`, `prohibit`.
    pub refuses: Option<&'static str>,
}

/// A route to be added or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteSpec {
    /// The destination prefix.
    pub dst: IpNet,
    /// The index of the device it leads into.
    pub oif: u32,
    /// The next hop; without one the destination is on the link itself.
    pub via: Option<IpAddr>,
    /// The next hop is on the link although no address of ours covers it.
    pub onlink: bool,
    /// The largest packet to this destination, in bytes, where it is smaller than the device's.
    pub mtu: Option<u32>,
    /// The source address that our own packets take.
    pub src: Option<IpAddr>,
    /// The origin (rtnetlink(7), `rtm_protocol`).
    pub protocol: u8,
}

impl RouteSpec {
    /// A route of our own ([`ROUTE_PROTOCOL`]) to `dst` on the link `oif`.
    pub fn new(dst: IpNet, oif: u32) -> Self {
        Self {
            dst,
            oif,
            via: None,
            onlink: false,
            mtu: None,
            src: None,
            protocol: ROUTE_PROTOCOL,
        }
    }

    fn message(&self) -> RouteMessage {
        let mut message = match self.dst {
            IpNet::V4(dst) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(dst.addr(), dst.prefix_len())
                .output_interface(self.oif)
                .build(),
            IpNet::V6(dst) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(dst.addr(), dst.prefix_len())
                .output_interface(self.oif)
                .build(),
        };
        message.header.protocol = RouteProtocol::from(self.protocol);
        // IPv4 tells a neighbour (scope link) from what lies behind a next hop; IPv6 knows no scopes of routes.
        if self.via.is_none() && matches!(self.dst, IpNet::V4(_)) {
            message.header.scope = RouteScope::Link;
        }
        if self.onlink {
            message.header.flags |= RouteFlags::Onlink;
        }
        let attributes = &mut message.attributes;
        attributes.extend(self.via.map(|ip| RouteAttribute::Gateway(ip.into())));
        attributes.extend(self.src.map(|ip| RouteAttribute::PrefSource(ip.into())));
        attributes.extend(
            self.mtu
                .map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])),
        );
        message
    }
}

/// A route of the kernel's main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The destination prefix; `0.0.0.0/0` or `::/0` is the default route.
    pub dst: IpNet,
    /// The index of the device it leads into (of several next hops: the first's).
    pub oif: Option<u32>,
    /// The next hop, where there is one.
    pub via: Option<IpAddr>,
    /// The source address that our own packets take.
    pub src: Option<IpAddr>,
    /// The largest packet to this destination, in bytes.
    pub mtu: Option<u32>,
    /// In how many seconds it forgets that, where an ICMP error taught it (RFC 1191, RFC 8201).
    pub expires: Option<u32>,
    /// Among equal prefixes the lowest metric wins.
    pub metric: u32,
    /// The origin (rtnetlink(7), `rtm_protocol`).
    pub protocol: u8,
    /// 0 everywhere, 253 on the link, 254 on this host.
    pub scope: u8,
    /// Packets are forwarded (a unicast route), not refused or dropped.
    pub unicast: bool,
    /// The word of ip-route(8) for a route that lets nothing through: `blackhole`, `unreachable`, `prohibit`.
    pub refuses: Option<&'static str>,
}

/// The way of a packet out of this host, for those who write its Ethernet header themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// The index of the device.
    pub oif: u32,
    /// The neighbour it goes to: a router, or the destination itself.
    pub next_hop: IpAddr,
    /// The largest packet in bytes, where the route limits it.
    pub mtu: Option<u32>,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dst)?;
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        Ok(())
    }
}

impl Netlink {
    /// Adds a route.
    ///
    /// # Errors
    /// When one to the same prefix is there, or the device or next hop does not serve.
    pub async fn add_route(&self, route: &RouteSpec) -> Result<()> {
        let result = self.handle.route().add(route.message()).execute().await;
        self.explain("add", route, result).await
    }

    /// Adds a route, in place of one to the same prefix.
    ///
    /// # Errors
    /// When the device or next hop does not serve.
    pub async fn replace_route(&self, route: &RouteSpec) -> Result<()> {
        let result = self
            .handle
            .route()
            .add(route.message())
            .replace()
            .execute()
            .await;
        self.explain("replace", route, result).await
    }

    /// Removes a route.
    ///
    /// # Errors
    /// When there is none like it.
    pub async fn del_route(&self, route: &RouteSpec) -> Result<()> {
        let result = self.handle.route().del(route.message()).execute().await;
        self.explain("del", route, result).await
    }

    async fn explain(
        &self,
        verb: &str,
        route: &RouteSpec,
        result: std::result::Result<(), rtnetlink::Error>,
    ) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(e) => {
                let via = route.via.map(|ip| format!(" via {ip}")).unwrap_or_default();
                let name = self.name_of(route.oif).await;
                Err(Error::netlink(
                    format!("{verb} route {}{via} dev {name}", route.dst),
                    e,
                ))
            }
        }
    }

    /// The routes of the main table, of both families.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn routes(&self) -> Result<Vec<Route>> {
        let main = u32::from(RouteHeader::RT_TABLE_MAIN);
        let all = self.routes_of_tables().await?.into_iter();
        Ok(all
            .filter(|(table, _)| *table == main)
            .map(|(_, route)| route)
            .collect())
    }

    /// The routes of all tables, of both families, each with its table's number.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn routes_of_tables(&self) -> Result<Vec<(u32, Route)>> {
        let mut routes = Vec::new();
        for question in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let messages: Vec<RouteMessage> = self
                .handle
                .route()
                .get(question)
                .execute()
                .try_collect()
                .await
                .map_err(|e| Error::netlink("list routes", e))?;
            routes.extend(
                messages
                    .iter()
                    .filter(|m| !is_cached(m))
                    .filter_map(|m| Some((table(m), Route::from_message(m)?))),
            );
        }
        Ok(routes)
    }

    /// The route the kernel would take to `ip`, if it has one.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn route_to(&self, ip: IpAddr) -> Result<Option<Route>> {
        let question = match ip {
            IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(ip, 32)
                .build(),
            IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(ip, 128)
                .build(),
        };
        let mut replies = std::pin::pin!(self.handle.route().get(question).execute());
        match replies.try_next().await {
            Ok(message) => Ok(message
                .as_ref()
                .and_then(Route::from_message)
                .filter(|r| r.unicast)),
            Err(e) => {
                let error = Error::netlink(format!("look for a route to {ip}"), e);
                match error.errno() {
                    Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES) => Ok(None),
                    _ => Err(error),
                }
            }
        }
    }

    /// The route the kernel would take for a packet from `src` to `dst` that came in by the device `iif`, or is our own, and
    /// bears the `mark`, or none: so policy rules are followed.
    ///
    /// # Errors
    /// When the kernel refuses the question, which it also does where it would not take such a packet.
    pub async fn route_of(
        &self,
        src: IpAddr,
        dst: IpAddr,
        iif: Option<u32>,
        mark: Option<u32>,
    ) -> Result<Option<Route>> {
        let mut question = match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => RouteMessageBuilder::<Ipv4Addr>::new()
                .source_prefix(src, 32)
                .destination_prefix(dst, 32)
                .build(),
            (IpAddr::V6(src), IpAddr::V6(dst)) => RouteMessageBuilder::<Ipv6Addr>::new()
                .source_prefix(src, 128)
                .destination_prefix(dst, 128)
                .build(),
            _ => return Ok(None),
        };
        question.attributes.extend(iif.map(RouteAttribute::Iif));
        question.attributes.extend(mark.map(RouteAttribute::Mark));
        let mut replies = std::pin::pin!(self.handle.route().get(question).execute());
        let answer = replies.try_next().await;
        let message = answer
            .map_err(|e| Error::netlink(format!("look for a route from {src} to {dst}"), e))?;
        Ok(message
            .as_ref()
            .and_then(Route::from_message)
            .filter(|route| route.unicast))
    }

    /// The policy rules beyond those that every host has (ip-rule(8)).
    ///
    /// # Errors
    /// When the kernel refuses the question, as one without policy rules does.
    pub async fn policy_rules(&self, family: Family) -> Result<Vec<PolicyRule>> {
        let version = match family {
            Family::V4 => IpVersion::V4,
            Family::V6 => IpVersion::V6,
        };
        let rules: Vec<RuleMessage> = self
            .handle
            .rule()
            .get(version)
            .execute()
            .try_collect()
            .await
            .map_err(|e| Error::netlink("list policy rules", e))?;
        let found = rules.iter().filter_map(|rule| {
            let priority = rule.attributes.iter().find_map(|a| match a {
                RuleAttribute::Priority(priority) => Some(*priority),
                _ => None,
            });
            let mark = rule.attributes.iter().find_map(|a| match a {
                RuleAttribute::FwMark(mark) => Some(*mark),
                _ => None,
            });
            let priority = priority.unwrap_or(0);
            // local, main, default
            let standard = [(0, 255), (32766, 254), (32767, 253)];
            let more = !standard.contains(&(priority, rule.header.table));
            let table = rule.attributes.iter().find_map(|a| match a {
                RuleAttribute::Table(table) => Some(*table),
                _ => None,
            });
            more.then_some(PolicyRule {
                priority,
                mark,
                table: table.unwrap_or(u32::from(rule.header.table)),
                refuses: match rule.header.action {
                    RuleAction::Blackhole => Some("blackhole"),
                    RuleAction::Unreachable => Some("unreachable"),
                    RuleAction::Prohibit => Some("prohibit"),
                    _ => None,
                },
            })
        });
        Ok(found.collect())
    }

    /// The way that a packet from our address `from` to `to` takes, if it leaves through a device as it is: not
    /// delivered here, refused, or put into a tunnel by the route.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn way(&self, from: IpAddr, to: IpAddr) -> Result<Option<Way>> {
        let question = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => RouteMessageBuilder::<Ipv4Addr>::new()
                .source_prefix(from, 32)
                .destination_prefix(to, 32)
                .build(),
            (IpAddr::V6(from), IpAddr::V6(to)) => RouteMessageBuilder::<Ipv6Addr>::new()
                .source_prefix(from, 128)
                .destination_prefix(to, 128)
                .build(),
            _ => return Ok(None),
        };
        let mut replies = std::pin::pin!(self.handle.route().get(question).execute());
        match replies.try_next().await {
            Ok(message) => Ok(message.as_ref().and_then(|message| way(message, to))),
            Err(e) => {
                let error = Error::netlink(format!("look for a route from {from} to {to}"), e);
                match error.errno() {
                    // EINVAL: `from` is no address of ours (any more).
                    Some(
                        Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL,
                    ) => Ok(None),
                    _ => Err(error),
                }
            }
        }
    }

    /// The link that the default route leads into: of several the one with the lowest metric.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn default_route_iface(&self, family: Family) -> Result<Option<Link>> {
        match default_route(&self.routes().await?, family) {
            Some(oif) => self.link_by_index(oif).await,
            None => Ok(None),
        }
    }
}

/// The index of the link that the default route among `routes` leads into: of several the one with the lowest metric.
pub(super) fn default_route(routes: &[Route], family: Family) -> Option<u32> {
    let best = routes
        .iter()
        .filter(|r| r.dst.prefix_len() == 0 && r.unicast)
        .filter(|r| matches!(r.dst, IpNet::V4(_)) == (family == Family::V4))
        .filter_map(|r| r.oif.map(|oif| (r.metric, oif)))
        .min_by_key(|(metric, _)| *metric);
    best.map(|(_, oif)| oif)
}

fn way(message: &RouteMessage, to: IpAddr) -> Option<Way> {
    let route = Route::from_message(message).filter(|route| route.unicast)?;
    let changed = message.attributes.iter().any(|attribute| {
        matches!(
            attribute,
            RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) | RouteAttribute::Via(_)
        )
    });
    if changed {
        return None;
    }
    Some(Way {
        oif: route.oif?,
        next_hop: route.via.unwrap_or(to),
        mtu: route.mtu,
    })
}

/// What the kernel learned by ICMP stands among the routes it lists (`ip route show cache`), and is none.
fn is_cached(message: &RouteMessage) -> bool {
    message.header.flags.contains(RouteFlags::Cloned)
}

fn table(message: &RouteMessage) -> u32 {
    let extended = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    extended.unwrap_or(u32::from(message.header.table))
}

impl Route {
    fn from_message(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let mut dst = match header.address_family {
            AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let (mut oif, mut via, mut src, mut mtu, mut metric) = (None, None, None, None, 0);
        let mut expires = None;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => dst = ip(address)?,
                RouteAttribute::Oif(index) => oif = Some(*index),
                RouteAttribute::Gateway(address) => via = ip(address),
                RouteAttribute::PrefSource(address) => src = ip(address),
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::Metrics(metrics) => {
                    mtu = metrics.iter().find_map(|m| match m {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                // In hundredths of a second (`USER_HZ`).
                RouteAttribute::CacheInfo(info) if info.expires > 0 => {
                    expires = Some(info.expires.div_ceil(100));
                }
                RouteAttribute::MultiPath(hops) => {
                    oif = hops.first().map(|hop| hop.interface_index).or(oif)
                }
                _ => {}
            }
        }
        Some(Self {
            dst: IpNet::new(dst, header.destination_prefix_length).ok()?,
            oif,
            via,
            src,
            mtu,
            expires: expires.filter(|_| mtu.is_some()),
            metric,
            protocol: header.protocol.into(),
            scope: header.scope.into(),
            unicast: header.kind == RouteType::Unicast,
            refuses: match header.kind {
                RouteType::BlackHole => Some("blackhole"),
                RouteType::Unreachable => Some("unreachable"),
                RouteType::Prohibit => Some("prohibit"),
                _ => None,
            },
        })
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_spec_comes_back_as_the_route_it_describes() {
        let spec = RouteSpec {
            via: Some([10, 244, 2, 0].into()),
            onlink: true,
            mtu: Some(1400),
            src: Some([10, 244, 1, 0].into()),
            ..RouteSpec::new(net("10.244.2.0/24"), 9)
        };
        let message = spec.message();
        assert!(message.header.flags.contains(RouteFlags::Onlink));
        let route = Route::from_message(&message).unwrap();
        assert_eq!(
            (route.dst, route.oif, route.via),
            (spec.dst, Some(9), spec.via)
        );
        assert_eq!(
            (route.mtu, route.src, route.protocol),
            (Some(1400), spec.src, ROUTE_PROTOCOL)
        );
        assert_eq!((route.scope, route.unicast), (0, true));
        assert_eq!(table(&message), u32::from(RouteHeader::RT_TABLE_MAIN));
    }

    #[test]
    fn only_an_ipv4_route_without_next_hop_has_link_scope() {
        let scope = |spec: &RouteSpec| u8::from(spec.message().header.scope);
        let v4 = RouteSpec::new(net("10.244.0.0/16"), 9);
        assert_eq!(scope(&v4), 253);
        let behind = RouteSpec {
            via: Some([10, 0, 0, 1].into()),
            ..v4
        };
        assert_eq!(scope(&behind), 0);
        assert_eq!(scope(&RouteSpec::new(net("fd00:10:244::/48"), 9)), 0);
    }

    #[test]
    fn a_route_without_destination_is_the_default_route() {
        let mut message = RouteMessageBuilder::<Ipv6Addr>::new().build();
        assert_eq!(Route::from_message(&message).unwrap().dst, net("::/0"));
        message.header.table = 255;
        assert!(table(&message) != u32::from(RouteHeader::RT_TABLE_MAIN));
        message.attributes.push(RouteAttribute::Table(254));
        assert_eq!(table(&message), u32::from(RouteHeader::RT_TABLE_MAIN));
    }
}
