//! Bridges: what arrives at a port of one, and what it sends on.

use anyhow::Result;

use super::super::explain;
use super::super::fate::Layer;
use super::super::{Source, Step};
use super::kernel::no_chain;
use super::{State, Walk};
use crate::kernel::Link;
use crate::kernel::hooks::{Hook, Rewrite};

impl Walk<'_> {
    /// A bridge looks up the destination's Ethernet address, as it stands in the last capture. `own`: the frame comes from
    /// the host that the bridge is in.
    pub(super) fn bridged(&mut self, place: usize, bridge: u32, own: bool) -> Result<State> {
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
        let hooks = [first, Hook::Postrouting];
        self.pass(place, &Layer::Bridge, &hooks, (None, None))?;
        if !own && self.calls_ip(place)? {
            let v6 = self.current().1.is_ipv6();
            let hooks = [Hook::Forward, Hook::Postrouting];
            let both = (bridge_name, bridge_name);
            self.pass(place, &Layer::BridgedIp { v6 }, &hooks, both)?;
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
            let cause = match self.stuck(place, port)? {
                None => {
                    let dst = self.current().1;
                    self.unreached(place, bridge, Some(mac), dst)?
                }
                cause => cause,
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
        let port = kernel.name(ifindex);
        let way = (Some(port.as_str()), Some(""));
        self.pass(place, &Layer::Bridge, &[Hook::Prerouting], way)?;
        let kernel = self.looker.look(place)?;
        let own = bridge.mac == Some(mac)
            || kernel
                .port(bridge.index, mac)
                .is_some_and(|entry| entry.local);
        let called = self.calls_ip(place)?;
        let turned = called && self.bridged_prerouting(place, &bridge, own)?;
        if !own && !turned {
            return self.bridged(place, bridge.index, false);
        }
        let name = &bridge.name;
        let text = match own {
            true => format!(
                "bridge {name}: {} is its own address, so the frame goes up to this host's IP",
                explain::mac(mac)
            ),
            false => format!(
                "bridge {name}: the packet has another destination now, so the frame goes up to this host's IP"
            ),
        };
        self.derive(
            place,
            Some(name),
            Step::Bridge,
            Source::Kernel,
            text,
            Vec::new(),
        );
        let way = (None, Some(""));
        self.pass(place, &Layer::Bridge, &[Hook::Input], way)?;
        if !self.expect(place, bridge.index, false)? {
            if !bridge.up {
                let cause = self.broken(place, bridge.index)?;
                self.blame(place, cause);
            }
            return self.missed(place, &format!("{name} of {}", self.world.name(place)));
        }
        self.at_device(place, bridge.index, Hook::Ingress)?;
        Ok(match called {
            true => State::Route { place },
            false => State::Receive { place },
        })
    }

    /// Chains of IP look at bridged frames of the packet's family.
    fn calls_ip(&mut self, place: usize) -> Result<bool> {
        let v6 = self.current().1.is_ipv6();
        let calls = self.looker.look(place)?.bridge_calls;
        Ok(if v6 { calls.1 } else { calls.0 })
    }

    /// IP's PREROUTING for a frame at a bridge, which it does not pass again behind that (`ip_sabotage_in`,
    /// net/bridge/br_netfilter_hooks.c). `true`: it has another destination there, for which it goes up.
    fn bridged_prerouting(&mut self, place: usize, bridge: &Link, own: bool) -> Result<bool> {
        let v6 = self.current().1.is_ipv6();
        let hooks = [Hook::Prerouting];
        // To IP it comes from the bridge, not from the port.
        let way = (Some(bridge.name.as_str()), Some(""));
        let said = self.pass(place, &Layer::BridgedIp { v6 }, &hooks, way)?;
        if own && !said {
            let text = no_chain(Hook::Prerouting.name());
            self.derive(
                place,
                None,
                Step::Netfilter,
                Source::Kernel,
                text,
                Vec::new(),
            );
            self.amend(|row| row.point = None);
        }
        let rewritten = self.rewrite(place, Rewrite::Destination, Hook::Prerouting);
        Ok(rewritten && self.is_seen(place, bridge.index, false))
    }
}
