//! What tables say of a packet that did not come: devices that are down, cables that are plugged into nothing, MTUs of
//! bridges and cables, which drop without a word, and routes that are missing.

use std::net::IpAddr;

use anyhow::Result;

use super::super::explain;
use super::super::fate::{Cause, RAISE_TTL};
use super::super::tables::candidates;
use super::super::world::Role;
use super::{MAX_STATIONS, Walk};
use crate::kernel::hooks::{Rule, Table};
use crate::observe::status::Holder;

/// A device takes packets that are longer than its MTU by this, a VLAN tag's length (`__is_skb_forwardable`,
/// include/linux/netdevice.h).
const SLACK: usize = 4;

impl Walk<'_> {
    /// Says why the packet cannot have come further than `place`; the first word counts.
    pub(super) fn blame(&mut self, place: usize, cause: Option<Cause>) {
        if let (None, Some(cause)) = (&self.passed.cause, cause) {
            self.passed.cause = Some((place, cause));
        }
    }

    /// What is wrong with a device, or with the other end of its cable.
    pub(super) fn broken(&mut self, place: usize, ifindex: u32) -> Result<Option<Cause>> {
        let kernel = self.looker.look(place)?;
        let Some(link) = kernel.link(ifindex).cloned() else {
            return Ok(None);
        };
        let here = self.world.name(place).to_owned();
        let at = Some(link.name.clone());
        if !link.up {
            return Ok(Some(down(&link.name, &here)));
        }
        if link.kind.as_deref() != Some("veth") {
            return Ok(None);
        }
        let Some((other, peer)) = self.looker.other_end(place, ifindex)? else {
            return Ok(None);
        };
        let there = self.world.name(other).to_owned();
        let length = self.frame_length();
        let kernel = self.looker.look(other)?;
        let Some(end) = kernel.link(peer).cloned() else {
            return Ok(None);
        };
        if !end.up {
            let cause = down(&end.name, &there);
            return Ok(Some(Cause { at, ..cause }));
        }
        if length.is_some_and(|length| length > end.mtu as usize + SLACK) {
            return Ok(Some(Cause {
                reason: "too-big",
                meaning: format!(
                    "{} bytes are more than the MTU {} of {} of {there}, the other end of the cable, and a cable neither cuts nor tells",
                    length.unwrap_or(0),
                    end.mtu,
                    end.name
                ),
                advice: format!(
                    "give both ends of the cable one MTU (`ip link set {} mtu {}`, in {there}), or lower the overlay's (device.mtu) on all nodes",
                    end.name, link.mtu
                ),
                device: Some(link.name),
                at,
            }));
        }
        let cause = self.unplugged(other, peer)?;
        Ok(cause.map(|cause| Cause { at, ..cause }))
    }

    /// The cable's end at `place` is a port of no bridge. One with an address, an uplink, need not be.
    fn unplugged(&mut self, place: usize, port: u32) -> Result<Option<Cause>> {
        let here = self.world.name(place).to_owned();
        let is_switching = self.is_switching(place);
        let kernel = self.looker.look(place)?;
        let Some(link) = kernel.link(port).filter(|link| link.master.is_none()) else {
            return Ok(None);
        };
        let mut addresses = kernel.addresses.iter();
        if !is_switching || addresses.any(|a| a.ifindex == port && a.scope == 0) {
            return Ok(None);
        }
        let name = &link.name;
        let mut bridges = kernel
            .links
            .iter()
            .filter(|l| l.kind.as_deref() == Some("bridge"));
        let bridge = bridges.next().map_or("BRIDGE", |bridge| &bridge.name);
        Ok(Some(Cause {
            reason: "no-bridge",
            meaning: format!(
                "{name} of {here}, the node's end of the pod's cable, is plugged into nothing: it is no port of a bridge and has no address"
            ),
            advice: format!("`ip link set {name} master {bridge}`, in {here}"),
            device: None,
            at: Some(name.clone()),
        }))
    }

    /// Places in which cables of others end.
    fn is_switching(&self, place: usize) -> bool {
        self.is_node(place) || place == 0
    }

    /// Why a bridge does not bring a frame to whom it is for.
    pub(super) fn unreached(
        &mut self,
        place: usize,
        bridge: u32,
        mac: Option<[u8; 6]>,
        ip: IpAddr,
    ) -> Result<Option<Cause>> {
        let Some((port, _)) = self.port_towards(place, mac, ip)? else {
            return Ok(None);
        };
        let kernel = self.looker.look(place)?;
        let link = kernel.link(port).cloned();
        match link {
            Some(link) if link.master != Some(bridge) => self.unplugged(place, port),
            Some(link)
                if self
                    .frame_length()
                    .is_some_and(|l| l > link.mtu as usize + SLACK) =>
            {
                Ok(Some(self.too_long_for_port(place, bridge, port)?))
            }
            _ => self.broken(place, port),
        }
    }

    /// The port by which the one with these addresses is reached: this end of its cable.
    pub(super) fn port_towards(
        &mut self,
        place: usize,
        mac: Option<[u8; 6]>,
        ip: IpAddr,
    ) -> Result<Option<(u32, String)>> {
        for other in 0..self.world.places.len() {
            if other == place {
                continue;
            }
            let kernel = self.looker.look(other)?;
            let by_ip = kernel.owner(ip).map(|link| link.index);
            let mut ends: Vec<u32> = mac
                .and_then(|mac| kernel.with_mac(mac))
                .map(|link| link.index)
                .or(by_ip)
                .into_iter()
                .collect();
            // An interface that is down has lost its IPv6 addresses.
            if ends.is_empty()
                && self.world.destination.place == Some(other)
                && ip == self.world.destination.ip.unwrap_or(ip)
            {
                let veths = kernel
                    .links
                    .iter()
                    .filter(|l| l.kind.as_deref() == Some("veth"));
                ends.extend(veths.map(|link| link.index));
            }
            for end in ends {
                if let Some((at, port)) = self.looker.other_end(other, end)? {
                    if at == place {
                        return Ok(Some((port, self.looker.look(place)?.name(port))));
                    }
                }
            }
        }
        Ok(None)
    }

    /// The frame does not fit through a port of the bridge.
    pub(super) fn too_long_for_port(
        &mut self,
        place: usize,
        bridge: u32,
        port: u32,
    ) -> Result<Cause> {
        let here = self.world.name(place).to_owned();
        let length = self.frame_length().unwrap_or(0);
        let kernel = self.looker.look(place)?;
        let (name, master) = (kernel.name(port), Some(bridge));
        let bridge = kernel.name(bridge);
        let mtu = kernel.link(port).map_or(0, |link| link.mtu as usize);
        let ports = kernel.links.iter().filter(|link| link.master == master);
        let widest = ports.map(|link| link.mtu as usize).max().unwrap_or(0);
        let wanted = widest.max(length);
        Ok(Cause {
            reason: "too-big",
            meaning: format!(
                "{length} bytes are more than the MTU {mtu} of port {name}: a bridge neither cuts nor tells, so nobody learns of it"
            ),
            advice: format!(
                "give all ports of {bridge} one MTU (`ip link set {name} mtu {wanted}`, in {here}), or lower the overlay's (device.mtu) on all nodes by {}",
                wanted.saturating_sub(mtu)
            ),
            device: None,
            at: Some(name),
        })
    }

    /// What keeps a frame from leaving by this device: as a port of a bridge, or as any.
    pub(super) fn stuck(&mut self, place: usize, ifindex: u32) -> Result<Option<Cause>> {
        let length = self.frame_length();
        let link = self.looker.look(place)?.link(ifindex);
        let port = link.and_then(|link| Some((link.master?, link.mtu as usize)));
        match (port, length) {
            (Some((bridge, mtu)), Some(length)) if length > mtu + SLACK => {
                Ok(Some(self.too_long_for_port(place, bridge, ifindex)?))
            }
            _ => self.broken(place, ifindex),
        }
    }

    /// The length of the packet in the frame that was seen last, or of the longest of those that are missing; of a train no:
    /// that fits wherever its datagrams do.
    fn frame_length(&self) -> Option<usize> {
        let last = self.last?;
        let length = |index: &usize| {
            let caught = &self.caught[*index];
            let sight = &caught.sight;
            let ip = sight.outer.as_ref().map_or(&sight.ip, |outer| &outer.ip);
            caught.train.is_none().then_some(ip.length)
        };
        match &self.missing[..] {
            [] => length(&last),
            missing => missing.iter().filter_map(length).max(),
        }
    }

    /// There is no route to where it is to go.
    pub(super) fn no_route(&mut self, place: usize) -> Result<Cause> {
        let here = self.world.name(place).to_owned();
        let dst = self.current().1;
        let is_switching = self.is_switching(place);
        let kernel = self.looker.look(place)?;
        let v4 = dst.is_ipv4();
        let idle = kernel
            .links
            .iter()
            .find(|l| l.name != "lo" && l.mac.is_some() && !l.up);
        if let Some(link) = idle.filter(|_| !is_switching) {
            return Ok(down(&link.name.clone(), &here));
        }
        let default = kernel
            .routes
            .iter()
            .any(|r| r.dst.prefix_len() == 0 && r.dst.addr().is_ipv4() == v4);
        let six = if v4 { "" } else { "-6 " };
        let src = self.current().0;
        let came = self.last.map(|last| &self.caught[last]);
        let came = came.filter(|caught| caught.place == place && !caught.out);
        let kernel = self.looker.look(place)?;
        // Rules look at where a packet comes from: the question has to say so too.
        let question = match came {
            Some(caught) => format!(
                "ip {six}route get {dst} from {src} iif {}",
                kernel.name(caught.ifindex)
            ),
            None if !kernel.rules(dst).is_empty() => format!("ip {six}route get {dst} from {src}"),
            None => format!("ip {six}route get {dst}"),
        };
        let advice = if self.world.places[place].role == Role::Router {
            format!(
                "a router knows the underlay's networks, and {dst} is in none of them: if it is a pod's, the two nodes have to be on one segment, or the packet encapsulated (`overlayd routes`, on the node that sent it, says whom it cannot reach)"
            )
        } else if default || is_switching {
            format!("`{question}`, in {here}; on a node: does overlayd run, and is its device up?")
        } else {
            format!(
                "`ip {six}route`, in {here}: it has no default route (`ip {six}route add default via GATEWAY`)"
            )
        };
        let best = candidates(&kernel.routes, dst).into_iter().next();
        let best = best.filter(|best| best.matches);
        let by_rule = kernel.rule_that_forbids(dst).filter(|_| best.is_some());
        let forbids = best.and_then(|best| Some((best.route.refuses?, best.route.dst)));
        if let (None, Some((rule, does))) = (forbids, by_rule) {
            return Ok(Cause {
                reason: "no-route",
                meaning: format!("policy rule {rule} of {here} forbids {dst}: it {does}"),
                advice: format!(
                    "`ip {six}rule`, in {here}, shows the rule, and `{question}` what comes of it"
                ),
                device: None,
                at: None,
            });
        }
        let (meaning, advice) = match forbids {
            Some((word, net)) => (
                format!(
                    "the routing table of {here} forbids {dst}: of its routes `{word} {net}` wins"
                ),
                format!("`ip {six}route del {word} {net}`, in {here}, if nobody needs it"),
            ),
            None => (
                format!("the routing table of {here} has no route to {dst}"),
                advice,
            ),
        };
        Ok(Cause {
            reason: "no-route",
            meaning,
            advice,
            device: None,
            at: None,
        })
    }

    /// Its TTL ran out at a place that was to forward it.
    pub(super) fn spent(&mut self, place: usize) -> Result<Cause> {
        let inside = self.outer.is_some();
        let mut own = self.caught.iter().filter(|caught| {
            self.is_leg(caught) && caught.sight.outer.is_some() == inside && caught.out
        });
        let began = own.next().map(|caught| {
            let sight = &caught.sight;
            sight
                .outer
                .as_ref()
                .map_or(sight.ip.ttl, |outer| outer.ip.ttl)
        });
        let left = usize::from(self.last_seen().0);
        let ahead = self.routers_ahead(place)?;
        let meaning = match (began, ahead) {
            (Some(began), Some(ahead)) => format!(
                "its TTL ran out: it set out with {began}, and the way needs {}",
                usize::from(began) + (ahead + 1).saturating_sub(left)
            ),
            (Some(began), None) => format!("its TTL ran out: it set out with {began}"),
            (None, _) => "its TTL ran out".to_owned(),
        };
        Ok(Cause {
            reason: "ttl",
            meaning,
            advice: RAISE_TTL.to_owned(),
            device: None,
            at: None,
        })
    }

    /// How many would have to forward it, this place among them, by the tables. `None`: they lead round in a loop, or
    /// where we cannot look.
    fn routers_ahead(&mut self, place: usize) -> Result<Option<usize>> {
        let dst = self.current().1;
        let mut at = place;
        for routers in 0..MAX_STATIONS {
            if self.looker.look(at)?.owner(dst).is_some() {
                return Ok(Some(routers));
            }
            let Some(route) = self.looker.route(at, dst)? else {
                return Ok(None);
            };
            let next = if route.oif.is_some_and(|oif| self.is_tun(at, oif)) {
                match self.looker.who(at, dst).map(|who| who.holder) {
                    Some(Holder::Peer { to, .. }) => to.ip(),
                    _ => return Ok(None),
                }
            } else {
                route.via.unwrap_or(dst)
            };
            match self.place_of(next)? {
                Some(place) => at = place,
                None => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Who has this address.
    fn place_of(&mut self, ip: IpAddr) -> Result<Option<usize>> {
        for place in 0..self.world.places.len() {
            if self.looker.look(place)?.owner(ip).is_some() {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }

    /// Chains that may have eaten the question for a neighbour's address, or the answer: of the bridge and of ARP, here, at the
    /// other end of the cable, and where the neighbour is.
    pub(super) fn eaten(&mut self, place: usize, oif: u32, next: IpAddr) -> Result<Option<Cause>> {
        let mut places = vec![place];
        places.extend(self.looker.other_end(place, oif)?.map(|(other, _)| other));
        for other in 0..self.world.places.len() {
            if !places.contains(&other) && self.looker.look(other)?.owner(next).is_some() {
                places.push(other);
            }
        }
        let mut found = Vec::new();
        let mut where_ = Vec::new();
        for at in places {
            for chain in &self.after[at].chains {
                let family = match chain.family {
                    Table::Bridge => true,
                    Table::Arp => next.is_ipv4(),
                    _ => false,
                };
                let rose = |rule: &Rule| {
                    rule.packets.is_none()
                        || self.after[at].rule_rise(&self.before[at], chain, rule.handle) > 0
                };
                let rule = chain.rules.iter().any(|rule| rule.drops && rose(rule));
                if family && (chain.drops || rule) {
                    let what = if chain.drops {
                        "the policy drop"
                    } else {
                        "a rule that drops"
                    };
                    let here = self.world.name(at);
                    found.push(format!(
                        "{} in {here} has {what}",
                        explain::chain_name(chain)
                    ));
                    where_.push(here.to_owned());
                }
            }
        }
        where_.dedup();
        let asks = if next.is_ipv4() {
            "ARP"
        } else {
            "neighbour discovery"
        };
        Ok((!found.is_empty()).then(|| Cause {
            reason: "no-neighbour",
            meaning: format!(
                "nobody answers for {next}, and on the way of {asks} stand chains that may eat it: {}",
                found.join("; ")
            ),
            advice: format!(
                "`nft -a list ruleset`, in {}: let {asks} through",
                where_.join(" and ")
            ),
            device: None,
            at: None,
        }))
    }

    /// A frame for another Ethernet address came to a device that is no port of a bridge.
    pub(super) fn not_its_own(
        &mut self,
        place: usize,
        ifindex: u32,
        mac: [u8; 6],
    ) -> Result<Option<Cause>> {
        let kernel = self.looker.look(place)?;
        let Some(link) = kernel.link(ifindex).cloned() else {
            return Ok(None);
        };
        let own = link.mac.is_none_or(|own| own == mac) || mac[0] & 1 == 1;
        if own {
            return Ok(None);
        }
        let unplugged = self.unplugged(place, ifindex)?;
        if unplugged.is_some() {
            return Ok(unplugged);
        }
        let advice = match self.misled(place, ifindex, mac)? {
            Some(advice) => advice,
            None => "whoever sent it has a stale or static neighbour entry: `ip neighbour`, there"
                .to_owned(),
        };
        Ok(Some(Cause {
            reason: "other-host",
            meaning: format!(
                "the frame is for {}, and {} has {}: the kernel takes it for somebody else's",
                super::explain::mac(mac),
                link.name,
                super::explain::mac(link.mac.unwrap_or_default())
            ),
            advice,
            device: None,
            at: Some(link.name),
        }))
    }

    /// Whose neighbour table has a wrong Ethernet address for the device, and the cure.
    fn misled(&mut self, place: usize, ifindex: u32, mac: [u8; 6]) -> Result<Option<String>> {
        let kernel = self.looker.look(place)?;
        let addresses = kernel.addresses.iter();
        let own: Vec<IpAddr> = addresses
            .filter(|a| a.ifindex == ifindex)
            .map(|a| a.ip)
            .collect();
        for other in (0..self.world.places.len()).filter(|other| *other != place) {
            let there = self.world.name(other).to_owned();
            let kernel = self.looker.look(other)?;
            let mut entries = kernel.neighbours.iter();
            let wrong = entries.find(|entry| entry.mac == Some(mac) && own.contains(&entry.ip));
            if let Some(entry) = wrong {
                let kind = if entry.permanent {
                    "permanent"
                } else {
                    "stale"
                };
                return Ok(Some(format!(
                    "the {kind} neighbour entry for {} in {there} is wrong: `ip neigh del {} dev {}`, in {there}, makes it ask anew",
                    entry.ip,
                    entry.ip,
                    kernel.name(entry.ifindex)
                )));
            }
        }
        Ok(None)
    }
}

fn down(device: &str, place: &str) -> Cause {
    Cause {
        reason: "link-down",
        meaning: format!("{device} of {place} is down"),
        advice: format!(
            "`ip link set {device} up`, in {place}; a default route that went with it has to be set anew"
        ),
        device: None,
        at: Some(device.to_owned()),
    }
}
