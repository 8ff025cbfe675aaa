//! Addresses that netfilter rewrites (NAT): known by the next capture, which has others than the last.

use std::collections::HashMap;
use std::net::IpAddr;

use super::super::explain;
use super::super::fate::{Layer, Passage};
use super::super::{Leg, Source, Step};
use super::Walk;
use crate::kernel::hooks::{Fit, Hook, Rewrite};

impl Walk<'_> {
    /// The packet has passed a hook at which addresses may be rewritten: has this one been? `true`: it has, and goes on with
    /// the new one.
    pub(super) fn rewrite(&mut self, place: usize, which: Rewrite, hook: Hook) -> bool {
        let Some(next) = self.upcoming() else {
            return false;
        };
        let now = self.current();
        let (from, to) = match which {
            Rewrite::Source => (now.0, next.0),
            Rewrite::Destination => (now.1, next.1),
        };
        if from == to {
            return false;
        }
        self.say_rewritten(place, which, hook, from, &to.to_string(), Source::Capture);
        let addresses = match &mut self.outer {
            Some((src, dst)) => (src, dst),
            None => (&mut self.packet.src, &mut self.packet.dst),
        };
        match which {
            Rewrite::Source => *addresses.0 = to,
            Rewrite::Destination => *addresses.1 = to,
        }
        self.rewritten.push((place, from, to));
        true
    }

    /// A rule gave the packet an address of this place as destination, so that no capture shows it any more: it is answered
    /// from here, in the name of another.
    pub(super) fn redirected(&mut self, place: usize) -> bool {
        let (rules, _) = self.rewriters(place, Rewrite::Destination, Hook::Prerouting);
        if rules.is_empty() || self.upcoming().is_some() || !self.answered_from(place) {
            return false;
        }
        let dst = self.current().1;
        let to = "an address of this place, which answers below";
        self.say_rewritten(
            place,
            Rewrite::Destination,
            Hook::Prerouting,
            dst,
            to,
            Source::Kernel,
        );
        true
    }

    /// The addresses in the header that counts now, as the next capture has them.
    pub(super) fn upcoming(&self) -> Option<(IpAddr, IpAddr)> {
        let sight = &self.caught[self.earliest()?].sight;
        match (&self.outer, &sight.outer) {
            (Some(_), Some(outer)) => Some((outer.ip.src, outer.ip.dst)),
            // It is taken out of its encapsulation first.
            (Some(_), None) => None,
            (None, _) => Some((sight.ip.src, sight.ip.dst)),
        }
    }

    /// The rules that may have done it, in words; and whether a counter says that it was the one that stands alone here.
    fn rewriters(&self, place: usize, which: Rewrite, hook: Hook) -> (Vec<String>, bool) {
        let passage = Passage {
            place,
            hook,
            layer: Layer::Ip {
                v6: self.current().1.is_ipv6(),
            },
            views: self.views(place, hook, (None, None)),
            rises: HashMap::new(),
            row: (0, 0),
        };
        let (before, after) = (&self.before[place], &self.after[place]);
        let mut possible = Vec::new();
        for chain in after
            .chains
            .iter()
            .filter(|chain| explain::sees(chain, &passage))
        {
            for rule in chain
                .rules
                .iter()
                .filter(|rule| rule.rewrites == Some(which))
                .filter(|rule| rule.fits(&passage.views) != Fit::No)
            {
                let name = explain::rule_name(chain, rule);
                if after.rule_rise(before, chain, rule.handle) > 0 {
                    return (vec![name], true);
                }
                // One that counts, and did not, is innocent.
                if rule.packets.is_none() {
                    possible.push(name);
                }
            }
        }
        (possible, false)
    }

    fn say_rewritten(
        &mut self,
        place: usize,
        which: Rewrite,
        hook: Hook,
        from: IpAddr,
        to: &str,
        source: Source,
    ) {
        let what = match which {
            Rewrite::Source => "source",
            Rewrite::Destination => "destination",
        };
        let (rules, counted) = self.rewriters(place, which, hook);
        let undone =
            self.packet.leg != Leg::Request && self.rewritten.iter().any(|(at, ..)| *at == place);
        let mut details = Vec::new();
        let who = match &rules[..] {
            _ if undone => {
                details.push("the kernel keeps for each connection what it did to the first packet, and undoes it for the answers (conntrack)".to_owned());
                "connection tracking, which undoes for the answer what was done to the request".to_owned()
            }
            [] => "someone unseen: no rule of nftables here does that (a BPF program, iptables-legacy?)".to_owned(),
            [one] => {
                if counted {
                    details.push("its counter says so".to_owned());
                }
                one.clone()
            }
            many => {
                details.extend(many.iter().cloned());
                format!("one of {} rules at {}", many.len(), hook.name())
            }
        };
        let text = format!("rewritten: {what} {from} → {to}, by {who}");
        self.derive(place, None, Step::Rewrite, source, text, details);
    }
}
