//! What kernels do with the packet between their devices: netfilter, neighbours, cables.

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::Result;

use super::super::explain;
use super::super::fate::{self, Culprit, Layer, Passage, RuleKey};
use super::super::tables::BRIDGE_CALLS;
use super::super::world::Role;
use super::super::{Leg, Source, Step};
use super::{End, State, Walk};
use crate::kernel::hooks::{Chain, Fit, Hook, Rewrite, Rule, View};

/// That nothing stands at hooks of IP.
pub(super) fn no_chain(hooks: &str) -> String {
    format!("netfilter at {hooks}: no chain stands there, so nothing is filtered")
}

impl Walk<'_> {
    /// The chains of IP at these hooks; `output`: by which device it is to go, where that is known.
    pub(super) fn hooks(
        &mut self,
        place: usize,
        hooks: &[Hook],
        output: Option<u32>,
    ) -> Result<()> {
        let v6 = self.current().1.is_ipv6();
        let came = self.last.map(|last| &self.caught[last]);
        let came = came.filter(|caught| caught.place == place && !caught.out);
        let input = came.map(|caught| caught.ifindex);
        let kernel = self.looker.look(place)?;
        let input = input.map_or(String::new(), |input| kernel.name(input));
        let output = output.map(|output| kernel.name(output));
        self.pass(
            place,
            &Layer::Ip { v6 },
            hooks,
            (Some(&input), output.as_deref()),
        )?;
        Ok(())
    }

    /// The chains at a device: before anything else on the way in, after everything else on the way out.
    pub(super) fn at_device(&mut self, place: usize, ifindex: u32, hook: Hook) -> Result<()> {
        let name = self.looker.look(place)?.name(ifindex);
        let devices = match hook {
            Hook::Egress => (None, Some(name.as_str())),
            _ => (Some(name.as_str()), Some("")),
        };
        self.pass(place, &Layer::Device(name.clone()), &[hook], devices)?;
        Ok(())
    }

    /// The chains at these hooks, between these devices. That there are none is worth a word only for IP. `false`: nothing
    /// was said.
    pub(super) fn pass(
        &mut self,
        place: usize,
        layer: &Layer,
        hooks: &[Hook],
        (input, output): (Option<&str>, Option<&str>),
    ) -> Result<bool> {
        let first = self.passed.hooks.len();
        for hook in hooks {
            let devices = match (layer, hook) {
                (Layer::Ip { .. }, Hook::Prerouting | Hook::Input) => (input, Some("")),
                (Layer::Ip { .. }, Hook::Output) => (Some(""), output),
                // Not every kernel still knows here by which device it came.
                (_, Hook::Postrouting) => (None, output),
                _ => (input, output),
            };
            let passage = Passage {
                place,
                hook: *hook,
                layer: layer.clone(),
                views: self.views(place, *hook, devices),
                rises: HashMap::new(),
                row: (first, self.rows.len()),
            };
            let passage = self.credit(passage);
            self.passed.hooks.push(passage);
        }
        let passages = self.passed.hooks[first..].to_vec();
        Ok(self.write_hooks(place, &passages, None))
    }

    /// What rules can ask of the packet at a hook: where it is rewritten there, before and after that.
    pub(super) fn views(
        &self,
        place: usize,
        hook: Hook,
        (input, output): (Option<&str>, Option<&str>),
    ) -> Vec<View> {
        let (src, dst) = self.current();
        let v6 = dst.is_ipv6();
        let (protocol, transport) = self.transport();
        let view =
            |src, dst| View::new(v6, (src, dst), protocol, &transport).between(input, output);
        let now = view(Some(src), Some(dst));
        match (self.upcoming(), hook) {
            (Some((_, to)), Hook::Prerouting | Hook::Output) if to != dst => {
                vec![now, view(Some(src), Some(to))]
            }
            (Some((from, _)), Hook::Input | Hook::Postrouting) if from != src => {
                vec![now, view(Some(from), Some(dst))]
            }
            (Some(_), _) => vec![now],
            // What it was given and then lost with stands in no capture.
            (None, _) => {
                let may = |which| self.may_rewrite(place, which);
                let known = (
                    (!may(Rewrite::Source)).then_some(src),
                    (!may(Rewrite::Destination)).then_some(dst),
                );
                vec![view(known.0, known.1)]
            }
        }
    }

    /// Rules here may have given the packet another address.
    fn may_rewrite(&self, place: usize, which: Rewrite) -> bool {
        let after = &self.after[place];
        let mut rules = after.chains.iter().flat_map(|chain| &chain.rules);
        // For what comes back, either is undone as the other.
        let like = |rule: &Rule| match self.packet.leg {
            Leg::Request => rule.rewrites == Some(which),
            Leg::Reply | Leg::Error => rule.rewrites.is_some(),
        };
        rules.any(like) || after.legacy.iter().any(|table| table.name == "nat")
    }

    /// The protocol in the header that counts now, and what is known of the header behind it.
    fn transport(&self) -> (u8, Vec<u8>) {
        if self.outer.is_some() {
            let last = self
                .last
                .and_then(|last| self.caught[last].sight.outer.as_ref());
            let mut all = self.caught.iter().filter(|caught| self.is_leg(caught));
            let outer = last.or_else(|| all.find_map(|caught| caught.sight.outer.as_ref()));
            let ports = outer.map(|outer| outer.ports);
            let bytes = ports.map(|(from, to)| [from.to_be_bytes(), to.to_be_bytes()].concat());
            return (17, bytes.unwrap_or_default());
        }
        let v6 = self.packet.dst.is_ipv6();
        let (kind, code) = match (self.packet.leg, self.packet.error) {
            (_, Some(error)) => error,
            (Leg::Reply, _) => (if v6 { 129 } else { 0 }, 0),
            _ => (if v6 { 128 } else { 8 }, 0),
        };
        (if v6 { 58 } else { 1 }, vec![kind, code])
    }

    /// A rule's counter rises once for a packet: that of what fits first, and of nothing that does not.
    fn credit(&mut self, mut passage: Passage) -> Passage {
        let (before, after) = (&self.before[passage.place], &self.after[passage.place]);
        let pieces = self.fragments.max(1) as u64;
        let mut rises = HashMap::new();
        for chain in after.chains.iter().filter(|c| explain::sees(c, &passage)) {
            for rule in &chain.rules {
                let total = after.rule_rise(before, chain, rule.handle);
                let key = (chain.family, chain.table.clone(), rule.handle);
                if total == 0 || rises.contains_key(&key) {
                    continue;
                }
                let spent = self
                    .credited
                    .entry((passage.place, key.clone()))
                    .or_default();
                let left = total.saturating_sub(*spent);
                if rule.fits(&passage.views) != Fit::No {
                    *spent += left.min(pieces);
                }
                rises.insert(key, left);
            }
        }
        passage.rises = rises;
        passage
    }

    /// The row about chains at hooks of one layer. `last`: the rule that dropped the packet at the last hook. `false`: they
    /// are not worth one.
    pub(super) fn write_hooks(
        &mut self,
        place: usize,
        passages: &[Passage],
        last: Option<&(RuleKey, String)>,
    ) -> bool {
        let Some(layer) = passages.first().map(|passage| &passage.layer) else {
            return false;
        };
        let hooks: Vec<_> = passages.iter().map(|passage| passage.hook).collect();
        let (before, after) = (&self.before[place], &self.after[place]);
        let rose = |chain: &Chain, rule: &Rule| after.rule_rise(before, chain, rule.handle);
        let (mut lines, counted) = explain::chains(&after.chains, passages, rose, last);
        let (legacy, unread) = match layer {
            Layer::Ip { v6 } | Layer::BridgedIp { v6 } => {
                let any = after.legacy.iter().filter(|table| table.v6 == *v6);
                (after.legacy_at(*v6, &hooks), any.collect())
            }
            _ => (Vec::new(), Vec::new()),
        };
        let names: Vec<_> = hooks.iter().map(|hook| hook.name()).collect();
        let names = names.join(", ");
        let text = match (layer, lines.len()) {
            (Layer::Ip { .. } | Layer::BridgedIp { .. }, 0) if !legacy.is_empty() => format!(
                "netfilter at {names}: no chain of nftables stands there, but {} may drop or rewrite it, unread",
                explain::legacy_names(&legacy)
            ),
            (Layer::Ip { .. }, 0) => no_chain(&names),
            (_, 0) => return false,
            (Layer::Ip { .. }, _) => format!("netfilter at {names}: chains look at it"),
            (Layer::Bridge, _) => {
                format!("netfilter of the bridge at {names}: chains look at the frame")
            }
            (Layer::BridgedIp { v6 }, _) => format!(
                "netfilter at {names}: chains of IP look at the frame already at the bridge ({})",
                if *v6 { BRIDGE_CALLS.1 } else { BRIDGE_CALLS.0 }
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
            self.amend(|row| row.point = None);
        }
        true
    }

    /// It was lost at chains that it passed: what would have come behind these did not.
    pub(super) fn cut_back(&mut self, place: usize, culprit: &Culprit) {
        let (index, rule) = &culprit.last;
        let Some((first, row)) = self.passed.hooks.get(*index).map(|passage| passage.row) else {
            return;
        };
        let passages = self.passed.hooks[first..=*index].to_vec();
        self.rows.truncate(row);
        self.write_hooks(place, &passages, rule.as_ref());
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
                if self.passed.asked {
                    let cause = self.eaten(place, oif, next)?;
                    self.blame(place, cause);
                }
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
