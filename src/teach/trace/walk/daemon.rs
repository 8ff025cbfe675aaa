//! What daemons do with the packet: leases, encapsulation, receive checks.

use std::net::IpAddr;

use anyhow::Result;

use super::super::explain;
use super::super::fate;
use super::super::sight::Sight;
use super::super::{Source, Step};
use super::{State, Walk};
use crate::datapath::DropReason;
use crate::observe::status::{Holder, Peer, Status};

impl Walk<'_> {
    /// The daemon has read the packet from its TUN device: lease, size, encapsulation.
    pub(super) fn daemon_out(&mut self, place: usize) -> Result<State> {
        self.passed.daemon = Some((place, "outbound"));
        let dst = self.packet.dst;
        let (Some(status), Some(who)) = (
            self.after[place].daemon.clone(),
            self.looker.who(place, dst),
        ) else {
            return Ok(self.silent(place));
        };
        let (to, mtu, header) = match who.holder {
            Holder::Peer { to, mtu, header } => (to, mtu, header.len()),
            Holder::None => {
                let text = format!(
                    "overlayd reads it from its TUN device and asks its leases who holds {dst}: nobody"
                );
                let details = leases(&status, dst);
                self.derive(place, None, Step::Lease, Source::Daemon, text, details);
                return Ok(self.lose(place));
            }
            Holder::Local => {
                let text = format!(
                    "overlayd reads it from its TUN device and asks its leases who holds {dst}: this node itself"
                );
                self.derive(place, None, Step::Lease, Source::Daemon, text, Vec::new());
                return Ok(self.lose(place));
            }
        };
        let text = format!(
            "overlayd reads it from its TUN device and asks its leases who holds {dst}: the node at {}",
            to.ip()
        );
        let mut details = leases(&status, dst);
        details.push(format!("packets of at most {mtu} bytes fit there"));
        self.derive(place, None, Step::Lease, Source::Daemon, text, details);
        let dropped = fate::daemon_drop(
            &self.before[place],
            &self.after[place],
            "outbound",
            &[DropReason::TooBig, DropReason::UnderlayMtu],
        );
        let length = self
            .last
            .map_or(0, |last| self.caught[last].sight.ip.length);
        let seen_again = self.seen_encapsulated(place);
        if !seen_again && length > usize::from(mtu) && dropped.is_some() {
            return Ok(self.lose(place));
        }
        let own = if to.is_ipv4() {
            status.lease.public_ip.map(IpAddr::from)
        } else {
            status.lease.public_ipv6.map(IpAddr::from)
        };
        let ip = if to.is_ipv4() { 20 } else { 40 };
        let version = if to.is_ipv4() { "IPv4" } else { "IPv6" };
        let parts = match header {
            0 => format!("{version} {ip} + UDP 8"),
            _ => format!("{version} {ip} + UDP 8 + VXLAN 8 + Ethernet 14"),
        };
        let overhead = ip + 8 + header;
        let mut details = vec![format!(
            "{parts} = {overhead} bytes in front: {length} + {overhead} = {} bytes",
            length + overhead
        )];
        details.push("overlayd is a link, not a hop: the inner TTL stays as it is".to_owned());
        let text = format!(
            "{}: a UDP datagram to {}, port {}",
            encapsulates(&status),
            to.ip(),
            to.port()
        );
        let (source, text) = match self.sent_to(place, to.ip()) {
            0 => (Source::Daemon, text),
            n => {
                details.push(format!(
                    "counter: {} sent to {} meanwhile",
                    explain::count(n, "packet"),
                    to.ip()
                ));
                (Source::Counter, text)
            }
        };
        self.derive(place, None, Step::Encapsulation, source, text, details);
        self.outer = own.map(|own| (own, to.ip()));
        if !seen_again {
            self.outer = None;
            return self.missed(place, "the underlay");
        }
        Ok(State::Emit { place })
    }

    /// The encapsulated packet was seen leaving `place`.
    fn seen_encapsulated(&self, place: usize) -> bool {
        let mut all = self.caught.iter().zip(&self.used);
        all.any(|(caught, used)| {
            !used
                && caught.place == place
                && caught.out
                && caught.sight.outer.is_some()
                && caught.sight.ip.dst == self.packet.dst
        })
    }

    /// By how much the count of packets sent to the peer with this public IP rose.
    fn sent_to(&self, place: usize, ip: IpAddr) -> usize {
        let sent = |counts: &super::Counts| {
            let peers = counts.daemon.iter().flat_map(|status| &status.peers);
            peers
                .filter(|peer| publics(peer).contains(&ip))
                .map(|peer| peer.sent_packets)
                .sum::<u64>()
        };
        let rise = sent(&self.after[place]).saturating_sub(sent(&self.before[place]));
        usize::try_from(rise).unwrap_or(usize::MAX)
    }

    /// The daemon has received the datagram: the receive checks, in their order.
    pub(super) fn daemon_in(&mut self, place: usize) -> Result<State> {
        self.passed.daemon = Some((place, "inbound"));
        let Some(status) = self.after[place].daemon.clone() else {
            return Ok(self.silent(place));
        };
        let Some(sight) = self.last.map(|last| self.caught[last].sight.clone()) else {
            return Ok(self.lose(place));
        };
        let device = (status.device.index, status.device.name.clone());
        let (details, passed) = self.checks(place, &status, &sight);
        let forwarded = |counts: &super::Counts| {
            counts
                .daemon
                .as_ref()
                .map_or(0, |status| status.inbound.forwarded)
        };
        let rise = forwarded(&self.after[place]).saturating_sub(forwarded(&self.before[place]));
        let source = if rise > 0 || !passed {
            Source::Counter
        } else {
            Source::Daemon
        };
        let text = if passed {
            "overlayd receives the datagram, checks it, takes the outer headers off and writes the packet into its TUN device"
        } else {
            "overlayd receives the datagram and checks it: a check fails"
        };
        self.derive(place, None, Step::Receive, source, text, details);
        self.outer = None;
        if !self.expect(place, device.0, false)? {
            return Ok(self.lose(place));
        }
        Ok(State::Receive { place })
    }

    /// The receive checks held against what was captured, up to the first that fails.
    fn checks(&self, place: usize, status: &Status, sight: &Sight) -> (Vec<String>, bool) {
        let Some(outer) = &sight.outer else {
            return (Vec::new(), true);
        };
        let from = outer.ip.src;
        let sender = status
            .peers
            .iter()
            .find(|peer| publics(peer).contains(&from));
        let mut lines = Vec::new();
        let mut good = true;
        let mut check = |passed: bool, text: String| {
            if good {
                lines.push(format!("{} {text}", if passed { "✓" } else { "✗" }));
            }
            good &= passed;
        };
        if let Some(vni) = outer.vni {
            check(
                status.backend.vni.map(u64::from) == Some(vni),
                format!("the VNI {vni} is ours"),
            );
        }
        let holder = sender.map_or("nobody".to_owned(), prefixes);
        check(
            sender.is_some(),
            format!("the outer source {from} is the public IP of a lease: of {holder}"),
        );
        if let Some(ether) = outer.ether {
            let mac = ether.dst.to_string();
            let own = status.lease.vtep_mac.as_deref() == Some(&*mac);
            check(
                own,
                format!("the inner Ethernet destination {mac} is our VTEP MAC"),
            );
        }
        let who = self.looker.who(place, sight.ip.src).map(|who| who.holder);
        let lies_in = match &who {
            Some(Holder::Peer { to, .. }) => {
                sender.is_some_and(|peer| publics(peer).contains(&to.ip()))
            }
            _ => false,
        };
        let text = if lies_in {
            format!(
                "the inner source {} lies in that same lease: nobody speaks for another node",
                sight.ip.src
            )
        } else {
            format!(
                "the inner source {} must lie in that same lease, {holder}: it does not",
                sight.ip.src
            )
        };
        check(lies_in, text);
        let ours =
            self.looker.who(place, sight.ip.dst).map(|who| who.holder) == Some(Holder::Local);
        check(
            ours,
            format!("the inner destination {} is ours to deliver", sight.ip.dst),
        );
        (lines, good)
    }

    /// The daemon should do something here, and does not answer.
    fn silent(&mut self, place: usize) -> State {
        let name = self.world.name(place).to_owned();
        let loss = fate::silent_daemon(&name, self.packet.leg);
        self.unreachable.push(name);
        self.lost(place, loss)
    }

    /// A node whose daemon does not answer is worth a word even where the packet never came to it.
    pub(super) fn note_silent(&mut self, place: usize) {
        let name = self.world.name(place);
        let known = self.unreachable.iter().any(|known| known == name);
        if self.is_node(place) && self.after[place].daemon.is_none() && !known {
            self.unreachable.push(name.to_owned());
        }
    }
}

fn encapsulates(status: &Status) -> String {
    match status.backend.vni {
        Some(vni) => format!("encapsulates it in VXLAN {vni}"),
        None => "encapsulates it, with no header of its own".to_owned(),
    }
}

fn publics(peer: &Peer) -> Vec<IpAddr> {
    let v4 = peer.public_ip.map(IpAddr::from);
    v4.into_iter()
        .chain(peer.public_ipv6.map(IpAddr::from))
        .collect()
}

fn prefixes(peer: &Peer) -> String {
    let own = [
        peer.subnet.map(ipnet::IpNet::from),
        peer.ipv6_subnet.map(ipnet::IpNet::from),
    ];
    let all: Vec<_> = own
        .into_iter()
        .flatten()
        .chain(peer.also.iter().copied())
        .collect();
    let all: Vec<_> = all.iter().map(ToString::to_string).collect();
    all.join(" ")
}

/// The leases of the destination's family, and which holds it. At most ten.
fn leases(status: &Status, dst: IpAddr) -> Vec<String> {
    const SHOWN: usize = 10;
    let mut lines = Vec::new();
    for peer in &status.peers {
        let own = [
            peer.subnet.map(ipnet::IpNet::from),
            peer.ipv6_subnet.map(ipnet::IpNet::from),
        ];
        let nets = own.into_iter().flatten().chain(peer.also.iter().copied());
        for net in nets.filter(|net| net.addr().is_ipv4() == dst.is_ipv4()) {
            let at: Vec<_> = publics(peer).iter().map(ToString::to_string).collect();
            let holds = if net.contains(&dst) {
                format!("  holds {dst}")
            } else {
                String::new()
            };
            let line = format!("lease {net} at {}{holds}", at.join(", "));
            if net.contains(&dst) {
                lines.insert(0, line);
            } else {
                lines.push(line);
            }
        }
    }
    let more = lines.len().saturating_sub(SHOWN);
    lines.truncate(SHOWN);
    if more > 0 {
        lines.push(format!("and {more} more that do not hold it"));
    }
    lines
}
