//! What kernels do with the packet: route, filter, find neighbours, bridge, deliver.

use std::io;
use std::net::IpAddr;

use anyhow::Result;

use super::super::explain;
use super::super::fate::{self, Layer, Passage};
use super::super::tables::candidates;
use super::super::world::Role;
use super::super::{Leg, Source, Step};
use super::{End, Kind, State, Walk};
use crate::kernel::hooks::{Hook, Rewrite};

/// Said once.
const TEACH_ROUTES: &str = "a route matches if the destination AND the route's mask give the route's network; of those that match, the longest mask wins";

impl Walk<'_> {
    /// A program or the kernel of `place` sends: route, OUTPUT, POSTROUTING.
    pub(super) fn emit(&mut self, place: usize, refused: Option<&io::Error>) -> Result<State> {
        if let Some(error) = refused {
            let (mtu, local) = self.first_mtu(place)?;
            let no_route = match error.raw_os_error() {
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH) => true,
                // What the kernel says of a route that forbids (fib_props, net/ipv4/fib_semantics.c).
                Some(libc::EACCES | libc::EINVAL) => {
                    self.looker.route(place, self.packet.dst)?.is_none()
                }
                _ => false,
            };
            let cause = match no_route {
                true => Some(self.no_route(place)?),
                false => None,
            };
            let name = self.world.name(place);
            let v6 = self.packet.dst.is_ipv6();
            let mut legacy = self.after[place].legacy_at(v6, &[Hook::Output]);
            legacy.retain(|table| table.may_drop());
            let loss = fate::refused(name, self.packet.leg, error, mtu, &local, cause, &legacy);
            return Ok(self.lost(place, loss));
        }
        let Some((mut oif, mut next)) = self.routed(place, "looks up the route")? else {
            return Ok(self.lose(place));
        };
        self.hooks(place, &[Hook::Output, Hook::Postrouting])?;
        if self.rewrite(place, Rewrite::Destination, Hook::Output) {
            let again = self.routed(place, "looks up the route again")?;
            (oif, next) = again.unwrap_or((oif, next));
        }
        self.rewrite(place, Rewrite::Source, Hook::Postrouting);
        Ok(State::Transmit { place, oif, next })
    }

    /// The MTU of the device that the packet would leave by, and the device's name.
    fn first_mtu(&mut self, place: usize) -> Result<(Option<u32>, String)> {
        let (_, dst) = self.current();
        let route = self.looker.route(place, dst)?;
        let kernel = self.looker.look(place)?;
        let link = route.as_ref().and_then(|route| kernel.link(route.oif?));
        let mtu = route
            .as_ref()
            .and_then(|route| route.mtu)
            .or(link.map(|link| link.mtu));
        Ok((mtu, link.map(|link| link.name.clone()).unwrap_or_default()))
    }

    /// Looks up the route: the device and the next hop. `None`: there is none.
    fn routed(&mut self, place: usize, what: &str) -> Result<Option<(u32, IpAddr)>> {
        let (src, dst) = self.current();
        let came = self.last.map(|last| &self.caught[last]);
        let iif = came
            .filter(|caught| caught.place == place && !caught.out)
            .map(|caught| caught.ifindex);
        let ruled = self.looker.ruled(place, src, dst, iif)?;
        let follows = ruled.is_some();
        let chosen = match ruled {
            Some(route) => route,
            None => self.looker.route(place, dst)?,
        };
        let length = self.last.map(|_| self.last_seen().1);
        let kernel = self.looker.look(place)?;
        if let Some(link) = kernel.owner(dst) {
            let (text, oif) = (
                format!(
                    "{dst} is an address of {} here: it stays here, over lo",
                    link.name
                ),
                link.index,
            );
            let lo = kernel
                .links
                .iter()
                .find(|link| link.name == "lo")
                .map_or(oif, |link| link.index);
            self.derive(place, None, Step::Route, Source::Kernel, text, Vec::new());
            return Ok(Some((lo, dst)));
        }
        let all = candidates(&kernel.routes, dst);
        let mut details = explain::routes(kernel, &all, dst, chosen.as_ref());
        if !std::mem::replace(&mut self.taught_routes, true) {
            details.insert(0, TEACH_ROUTES.to_owned());
        }
        let rules: Vec<_> = kernel.rules(dst).iter().map(u32::to_string).collect();
        if !rules.is_empty() {
            let how = match follows {
                true => {
                    "followed: the kernel itself was asked, for this source and device; of marks it was told nothing"
                }
                false => "not followed",
            };
            details.push(format!(
                "policy rules stand there beside the standard ones, of priority {} (`ip rule`): {how}",
                rules.join(", ")
            ));
        }
        let Some((route, oif)) = chosen.and_then(|route| route.oif.map(|oif| (route, oif))) else {
            let best = all.first().filter(|best| best.matches);
            let refusing = best.and_then(|best| Some((best.route.refuses?, best.route.dst)));
            let text = match refusing {
                Some((word, net)) => format!("{what} to {dst}: `{word} {net}` forbids it"),
                None => format!("{what} to {dst}: there is none"),
            };
            self.derive(place, None, Step::Route, Source::Kernel, text, details);
            let cause = self.no_route(place)?;
            self.blame(place, Some(cause));
            return Ok(None);
        };
        let link = kernel.link(oif);
        let name = kernel.name(oif);
        let mtu = route.mtu.or(link.map(|link| link.mtu));
        let fits = match (length, mtu) {
            _ if self.outer.is_some() => String::new(),
            (Some(length), Some(mtu)) if length > mtu as usize => {
                format!("; its {length} bytes are more than the MTU of {mtu}")
            }
            (Some(length), Some(mtu)) => format!("; its {length} bytes fit the MTU of {mtu}"),
            _ => String::new(),
        };
        let via = route
            .via
            .map(|via| format!(", next hop {via}"))
            .unwrap_or_default();
        let text = format!("{what} to {dst}: out by {name}{via}{fits}");
        let next = route.via.unwrap_or(dst);
        self.derive(place, None, Step::Route, Source::Kernel, text, details);
        Ok(Some((oif, next)))
    }

    /// TTL and length of the header that the kernel looks at, as they were last seen.
    fn last_seen(&self) -> (u8, usize) {
        let Some(last) = self.last else {
            return (u8::MAX, 0);
        };
        let sight = &self.caught[last].sight;
        let ip = match (&self.outer, &sight.outer) {
            (Some(_), Some(outer)) => &outer.ip,
            _ => &sight.ip,
        };
        (ip.ttl, ip.length)
    }

    /// The chains of IP at these hooks.
    fn hooks(&mut self, place: usize, hooks: &[Hook]) -> Result<()> {
        let v6 = self.current().1.is_ipv6();
        self.pass(place, &Layer::Ip { v6 }, hooks)
    }

    /// The chains at a device: before anything else on the way in, after everything else on the way out.
    pub(super) fn at_device(&mut self, place: usize, ifindex: u32, hook: Hook) -> Result<()> {
        let name = self.looker.look(place)?.name(ifindex);
        self.pass(place, &Layer::Device(name), &[hook])
    }

    /// The chains at these hooks. That there are none is worth a word only for IP.
    fn pass(&mut self, place: usize, layer: &Layer, hooks: &[Hook]) -> Result<()> {
        let passages: Vec<_> = hooks
            .iter()
            .map(|hook| Passage {
                place,
                hook: *hook,
                layer: layer.clone(),
            })
            .collect();
        let (before, after) = (&self.before[place], &self.after[place]);
        let kernel = self.looker.look(place)?;
        let rose = |chain: &_, handle| after.rule_rise(before, chain, handle);
        let (mut lines, counted) = explain::chains(&kernel.chains, &passages, rose);
        let (legacy, unread) = match layer {
            Layer::Ip { v6 } | Layer::BridgedIp { v6 } => {
                let any = after.legacy.iter().filter(|table| table.v6 == *v6);
                (after.legacy_at(*v6, hooks), any.collect())
            }
            _ => (Vec::new(), Vec::new()),
        };
        self.passed.hooks.extend(passages);
        let names: Vec<_> = hooks.iter().map(|hook| hook.name()).collect();
        let names = names.join(", ");
        let text = match (layer, lines.len()) {
            (Layer::Ip { .. } | Layer::BridgedIp { .. }, 0) if !legacy.is_empty() => format!(
                "netfilter at {names}: no chain of nftables stands there, but {} may drop or rewrite it, unread",
                explain::legacy_names(&legacy)
            ),
            (Layer::Ip { .. }, 0) => {
                format!("netfilter at {names}: no chain stands there, so nothing is filtered")
            }
            (_, 0) => return Ok(()),
            (Layer::Ip { .. }, _) => format!("netfilter at {names}: chains look at it"),
            (Layer::Bridge, _) => {
                format!("netfilter of the bridge at {names}: chains look at the frame")
            }
            (Layer::BridgedIp { .. }, _) => format!(
                "netfilter at {names}: chains of IP look at the bridged frame too (net.bridge.bridge-nf-call-iptables)"
            ),
            (Layer::Device(name), _) => {
                format!("netfilter at {names} of {name}: chains look at the frame")
            }
        };
        if let Some(first) = legacy.first() {
            lines.push(format!(
                "{}: rules that cannot be read from here; `{} -c`, there, shows them",
                explain::legacy_names(&legacy),
                first.command()
            ));
        }
        if !unread.is_empty() {
            let text = format!(
                "{}: the rules of {}",
                self.world.name(place),
                explain::legacy_names(&unread)
            );
            if !self.unseen.contains(&text) {
                self.unseen.push(text);
            }
        }
        let source = if counted {
            Source::Counter
        } else {
            Source::Kernel
        };
        self.derive(place, None, Step::Netfilter, source, text, lines);
        if !matches!(layer, Layer::Ip { .. }) {
            // Bridges and devices have places of their own in a drawing: the way does not go up to IP.
            if let Some(row) = self.rows.last_mut() {
                row.point = None;
            }
        }
        Ok(())
    }

    /// To the next hop, through a device.
    pub(super) fn transmit(&mut self, place: usize, oif: u32, next: IpAddr) -> Result<State> {
        let kernel = self.looker.look(place)?;
        let name = kernel.name(oif);
        let link = kernel.link(oif).cloned();
        let is_lo = name == "lo";
        if !is_lo && link.as_ref().is_some_and(|link| link.mac.is_some()) {
            let entry = kernel.neighbour(oif, next).cloned();
            let asks = if next.is_ipv4() {
                "ARP"
            } else {
                "neighbour discovery"
            };
            let text = match entry.as_ref().and_then(|entry| entry.mac) {
                Some(mac) => {
                    let how = match entry.as_ref().is_some_and(|entry| entry.permanent) {
                        true => format!("permanent: set, and never asked for by {asks}"),
                        false => format!("learned by {asks}"),
                    };
                    format!(
                        "who is {next} on {name}? The neighbour table says: {} ({how})",
                        explain::mac(mac)
                    )
                }
                None if entry.is_none() => {
                    format!("who is {next} on {name}? The neighbour table has nothing of it")
                }
                None => format!("who is {next} on {name}? {asks} asked, and nobody answered"),
            };
            let unknown = entry.as_ref().is_none_or(|entry| entry.mac.is_none());
            self.passed.asked = entry.is_some();
            self.passed.neighbour = unknown.then_some((place, next));
            if unknown {
                let is_bridge = link
                    .as_ref()
                    .is_some_and(|l| l.kind.as_deref() == Some("bridge"));
                let cause = match is_bridge {
                    true => self.unreached(place, oif, None, next)?,
                    false => self.broken(place, oif)?,
                };
                self.blame(place, cause);
            }
            // What was lost earlier never asked.
            if unknown || self.is_seen(place, oif, true) {
                self.derive(
                    place,
                    Some(&name),
                    Step::Neighbour,
                    Source::Kernel,
                    text,
                    Vec::new(),
                );
            }
        }
        self.at_device(place, oif, Hook::Egress)?;
        if !self.expect(place, oif, true)? {
            let cause = self.broken(place, oif)?;
            self.blame(place, cause);
            return self.missed(place, &format!("{name} of {}", self.world.name(place)));
        }
        if is_lo {
            return Ok(match self.expect(place, oif, false)? {
                true => State::Receive { place },
                false => self.lose(place),
            });
        }
        Ok(State::Left {
            place,
            ifindex: oif,
        })
    }

    /// It left through a device: what is behind that?
    pub(super) fn left(&mut self, place: usize, ifindex: u32) -> Result<State> {
        if self.is_tun(place, ifindex) {
            return Ok(State::DaemonOut { place });
        }
        let kernel = self.looker.look(place)?;
        let Some(link) = kernel.link(ifindex).cloned() else {
            return self.missed(place, "a device that is gone");
        };
        match link.kind.as_deref() {
            Some("bridge") => self.bridged(place, link.index, true),
            Some("veth") => {
                let Some((other, peer)) = self.looker.other_end(place, ifindex)? else {
                    return self.beyond(place, &link.name, "the other end of this cable is in a namespace that this trace does not look into");
                };
                if !self.expect(other, peer, false)? {
                    let cause = self.broken(place, ifindex)?;
                    self.blame(place, cause);
                    let name = self.looker.look(other)?.name(peer);
                    return self.missed(place, &format!("{name} of {}", self.world.name(other)));
                }
                Ok(State::Arrived {
                    place: other,
                    ifindex: peer,
                })
            }
            Some("tun") => {
                let loss = fate::no_reader(self.world.name(place), self.packet.leg, &link.name);
                Ok(self.lost(place, loss))
            }
            kind => {
                let kind = kind
                    .map(|kind| format!(" (a {kind} device)"))
                    .unwrap_or_default();
                self.beyond(
                    place,
                    &link.name,
                    &format!("it left this machine here{kind}"),
                )
            }
        }
    }

    fn beyond(&mut self, place: usize, device: &str, why: &str) -> Result<State> {
        if self
            .earliest()
            .is_some_and(|i| self.caught[i].place != place)
        {
            return self.missed(place, "a place beyond");
        }
        let text = format!(
            "{}, {device}: {why}; what happens further on cannot be seen from here",
            self.world.name(place)
        );
        self.unseen.push(text);
        Ok(State::End(End::Beyond))
    }

    /// A bridge looks up the destination's Ethernet address, as it stands in the last capture. `own`: the frame comes from
    /// the host that the bridge is in.
    fn bridged(&mut self, place: usize, bridge: u32, own: bool) -> Result<State> {
        let mac = self
            .last
            .and_then(|last| self.caught[last].sight.ether)
            .map(|ether| ether.dst.0);
        let Some(mac) = mac else {
            return self.missed(place, "a bridge");
        };
        let kernel = self.looker.look(place)?;
        let name = kernel.name(bridge);
        let written = explain::mac(mac);
        let calls = kernel.bridge_calls;
        let entry = kernel.port(bridge, mac).cloned();
        let text = match &entry {
            Some(entry) => format!(
                "bridge {name}: its table says that {written} is behind port {}",
                kernel.name(entry.port)
            ),
            None => format!(
                "bridge {name}: {written} is not in its table, so the frame goes to all ports but its own"
            ),
        };
        let bridge_name = Some(name.as_str());
        self.derive(
            place,
            bridge_name,
            Step::Bridge,
            Source::Kernel,
            text,
            Vec::new(),
        );
        let first = if own { Hook::Output } else { Hook::Forward };
        self.pass(place, &Layer::Bridge, &[first, Hook::Postrouting])?;
        let v6 = self.current().1.is_ipv6();
        if !own && (calls.0 && !v6 || calls.1 && v6) {
            let hooks = [Hook::Prerouting, Hook::Forward, Hook::Postrouting];
            self.pass(place, &Layer::BridgedIp { v6 }, &hooks)?;
        }
        let port = match entry {
            Some(entry) => entry.port,
            None => match self.flooded(place, bridge, mac)? {
                Some(port) => port,
                None => return self.missed(place, &format!("every port of {name}")),
            },
        };
        self.at_device(place, port, Hook::Egress)?;
        if !self.expect(place, port, true)? {
            let cause = if self.fits_port(place, port)? {
                let dst = self.current().1;
                match self.broken(place, port)? {
                    None => self.unreached(place, bridge, Some(mac), dst)?,
                    cause => cause,
                }
            } else {
                Some(self.too_long_for_port(place, bridge, port)?)
            };
            self.blame(place, cause);
            let port = self.looker.look(place)?.name(port);
            return self.missed(place, &format!("{port} of {}", self.world.name(place)));
        }
        Ok(State::Left {
            place,
            ifindex: port,
        })
    }

    /// A frame that goes to all ports: the copies that are for nobody, and the port of the one that it is for. `None`: there
    /// is no such port.
    fn flooded(&mut self, place: usize, bridge: u32, mac: [u8; 6]) -> Result<Option<u32>> {
        let dst = self.current().1;
        let right = self
            .port_towards(place, Some(mac), dst)?
            .map(|(port, _)| port);
        let ports: Vec<u32> = self
            .looker
            .look(place)?
            .links
            .iter()
            .filter(|link| link.master == Some(bridge) && Some(link.index) != right)
            .map(|link| link.index)
            .collect();
        let (last, passed) = (self.last, self.passed.clone());
        for port in ports {
            if !self.expect(place, port, true)? {
                continue;
            }
            self.say_copy("a copy that is for nobody there");
            if let Some((other, peer)) = self.looker.other_end(place, port)? {
                if self.expect(other, peer, false)? {
                    self.say_copy("whose address it does not bear: dropped");
                }
            }
        }
        (self.last, self.passed) = (last, passed);
        let Some(right) = right else { return Ok(None) };
        let plugged = self
            .looker
            .look(place)?
            .link(right)
            .and_then(|link| link.master);
        if plugged == Some(bridge) {
            return Ok(Some(right));
        }
        let cause = self.unreached(place, bridge, Some(mac), dst)?;
        self.blame(place, cause);
        Ok(None)
    }

    /// The last row is about a copy.
    fn say_copy(&mut self, what: &str) {
        if let Some(row) = self.rows.last_mut() {
            row.text = format!("{}: {what}", row.text);
        }
    }

    /// It arrived by a device: a port of a bridge, or one of the host's own?
    pub(super) fn arrived(&mut self, place: usize, ifindex: u32) -> Result<State> {
        let mac = self
            .last
            .and_then(|last| self.caught[last].sight.ether)
            .map(|ether| ether.dst.0);
        self.at_device(place, ifindex, Hook::Ingress)?;
        let kernel = self.looker.look(place)?;
        let bridge = kernel
            .link(ifindex)
            .and_then(|link| kernel.link(link.master?))
            .filter(|master| master.kind.as_deref() == Some("bridge"))
            .cloned();
        let (Some(bridge), Some(mac)) = (bridge, mac) else {
            if let Some(mac) = mac {
                let cause = self.not_its_own(place, ifindex, mac)?;
                if cause.is_some() && self.earliest().is_none() {
                    self.blame(place, cause);
                    return Ok(self.lose(place));
                }
            }
            return Ok(State::Receive { place });
        };
        self.pass(place, &Layer::Bridge, &[Hook::Prerouting])?;
        let kernel = self.looker.look(place)?;
        let own = bridge.mac == Some(mac)
            || kernel
                .port(bridge.index, mac)
                .is_some_and(|entry| entry.local);
        if !own {
            return self.bridged(place, bridge.index, false);
        }
        let name = &bridge.name;
        let text = format!(
            "bridge {name}: {} is its own address, so the frame goes up to this host's IP",
            explain::mac(mac)
        );
        self.derive(
            place,
            Some(name),
            Step::Bridge,
            Source::Kernel,
            text,
            Vec::new(),
        );
        self.pass(place, &Layer::Bridge, &[Hook::Input])?;
        if !self.expect(place, bridge.index, false)? {
            if !bridge.up {
                let cause = self.broken(place, bridge.index)?;
                self.blame(place, cause);
            }
            return self.missed(place, &format!("{name} of {}", self.world.name(place)));
        }
        self.at_device(place, bridge.index, Hook::Ingress)?;
        Ok(State::Receive { place })
    }

    /// IP has it: for this host, or to be forwarded?
    pub(super) fn receive(&mut self, place: usize) -> Result<State> {
        self.hooks(place, &[Hook::Prerouting])?;
        self.rewrite(place, Rewrite::Destination, Hook::Prerouting);
        let (_, dst) = self.current();
        if self.looker.look(place)?.owner(dst).is_none() && self.redirected(place) {
            self.hooks(place, &[Hook::Input])?;
            return self.delivered(place);
        }
        let kernel = self.looker.look(place)?;
        let owner = kernel.owner(dst).map(|link| link.name.clone());
        let forwards = if dst.is_ipv4() {
            kernel.forwards.0
        } else {
            kernel.forwards.1
        };
        if let Some(owner) = owner {
            let text = format!("{dst} is an address of {owner} here: the packet is for this place");
            self.derive(place, None, Step::Route, Source::Kernel, text, Vec::new());
            if self.outer.is_none() {
                self.note_reassembly(place);
            } else {
                self.note_whole_datagram(place);
            }
            self.hooks(place, &[Hook::Input])?;
            if self.outer.is_some() && self.world.places[place].socket.is_some() {
                return Ok(State::DaemonIn { place });
            }
            return self.delivered(place);
        }
        if !forwards {
            let loss = fate::not_forwarding(self.world.name(place), self.packet.leg, dst);
            return Ok(self.lost(place, loss));
        }
        let (ttl, length) = self.last_seen();
        if ttl <= 1 && self.earliest().is_none() {
            let text = "is to forward it, but a TTL of 1 has nothing left for the next router";
            self.derive(place, None, Step::Route, Source::Kernel, text, Vec::new());
            return Ok(self.lose(place));
        }
        let what = "forwards it, with a TTL of 1 less, and looks up the route";
        let Some((oif, next)) = self.routed(place, what)? else {
            return Ok(self.lose(place));
        };
        // The kernel looks at the size before it asks netfilter (net/ipv4/ip_forward.c).
        let mtu = self.looker.route(place, dst)?.and_then(|route| route.mtu);
        let mtu = mtu.or(self.looker.look(place)?.link(oif).map(|link| link.mtu));
        if mtu.is_some_and(|mtu| length > mtu as usize) && self.earliest().is_none() {
            return Ok(self.lose(place));
        }
        self.hooks(place, &[Hook::Forward, Hook::Postrouting])?;
        self.rewrite(place, Rewrite::Source, Hook::Postrouting);
        Ok(State::Transmit { place, oif, next })
    }

    /// It has come to its destination, unless it was dropped after its last capture.
    fn delivered(&mut self, place: usize) -> Result<State> {
        if self.crippled {
            let text =
                "only a part has arrived: the kernel waits for the missing fragments, in vain";
            self.derive(
                place,
                None,
                Step::Delivery,
                Source::Kernel,
                text,
                Vec::new(),
            );
            return Ok(State::End(End::Lost(place)));
        }
        // Chains at INPUT stand behind the last device: only what comes of the packet shows that it passed them.
        let came_of_it = match self.packet.leg {
            Leg::Request => self.answered_from(place),
            Leg::Reply | Leg::Error => true,
        };
        let (before, after) = (&self.before[place], &self.after[place]);
        if !came_of_it
            && (fate::dropped_by_chains(place, &self.passed, before, after).is_some()
                || fate::legacy(place, &self.passed, after).is_some())
        {
            return Ok(self.lose(place));
        }
        let (source, text) = match (self.packet.leg, came_of_it) {
            (Leg::Request, true) => (
                Source::Capture,
                "delivered: ICMP has it, as its answer below shows",
            ),
            (Leg::Request, false) => (Source::Kernel, "delivered to ICMP"),
            (Leg::Reply, _) => (
                Source::Kernel,
                "delivered: the program that sent the ping has its answer",
            ),
            (Leg::Error, _) => (Source::Kernel, "delivered: the sender learns of it"),
        };
        let to_sender = self.world.source.place == Some(place);
        let told = format!(
            "delivered to {}, whose overlayd sent the datagram: but {} hears nothing of it, and waits in vain",
            self.world.name(place),
            self.world.name(self.world.source.place.unwrap_or(place))
        );
        let text = match self.world.source.place {
            Some(start) if self.packet.leg == Leg::Reply && start != place => {
                "delivered, to one who never asked: the source address of the request was a lie"
            }
            Some(_) if self.packet.leg == Leg::Error && !to_sender && self.is_node(place) => &told,
            Some(_) if self.packet.leg == Leg::Error && !to_sender => {
                "delivered, to one who sent nothing"
            }
            _ => text,
        };
        self.derive(place, None, Step::Delivery, source, text, Vec::new());
        Ok(State::End(End::Delivered(place)))
    }

    /// The echo reply was seen leaving `place`.
    pub(super) fn answered_from(&self, place: usize) -> bool {
        self.caught.iter().any(|caught| {
            let ip = &caught.sight.ip;
            caught.place == place
                && caught.out
                && match caught.kind {
                    Kind::Reply => true,
                    // Someone may answer in the name of the one it was for.
                    Kind::Error(..) => (ip.src, ip.dst) == (self.packet.dst, self.packet.src),
                    Kind::Request | Kind::Fragment => false,
                }
        })
    }

    /// For a place whose role says more than its name.
    pub(super) fn is_node(&self, place: usize) -> bool {
        matches!(self.world.places[place].role, Role::Node(_) | Role::Host)
    }
}
