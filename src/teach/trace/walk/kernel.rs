//! What kernels do with the packet between their devices: netfilter, neighbours, cables.

use std::net::IpAddr;

use anyhow::Result;

use super::super::explain;
use super::super::fate::{self, Layer, Passage};
use super::super::world::Role;
use super::super::{Source, Step};
use super::{End, State, Walk};
use crate::kernel::hooks::Hook;

impl Walk<'_> {
    /// The chains of IP at these hooks.
    pub(super) fn hooks(&mut self, place: usize, hooks: &[Hook]) -> Result<()> {
        let v6 = self.current().1.is_ipv6();
        self.pass(place, &Layer::Ip { v6 }, hooks)
    }

    /// The chains at a device: before anything else on the way in, after everything else on the way out.
    pub(super) fn at_device(&mut self, place: usize, ifindex: u32, hook: Hook) -> Result<()> {
        let name = self.looker.look(place)?.name(ifindex);
        self.pass(place, &Layer::Device(name), &[hook])
    }

    /// The chains at these hooks. That there are none is worth a word only for IP.
    pub(super) fn pass(&mut self, place: usize, layer: &Layer, hooks: &[Hook]) -> Result<()> {
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
            Some("tun") if self.after[place].hangs => Ok(self.silent(place)),
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

    pub(super) fn beyond(&mut self, place: usize, device: &str, why: &str) -> Result<State> {
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

    /// For a place whose role says more than its name.
    pub(super) fn is_node(&self, place: usize) -> bool {
        matches!(self.world.places[place].role, Role::Node(_) | Role::Host)
    }
}
