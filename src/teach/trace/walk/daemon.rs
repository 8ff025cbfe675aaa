//! What daemons do with the packet: leases, encapsulation, receive checks.

use std::net::IpAddr;

use anyhow::Result;

use super::super::explain;
use super::super::facts::{Check, HeldLease, LeaseAnswer, LeaseHolder};
use super::super::fate;
use super::super::sight::Sight;
use super::super::{Source, Step};
use super::cut::{inner_lengths, sum};
use super::{State, Walk};
use crate::datapath::DropReason;
use crate::kernel::hooks::Hook;
use crate::observe::status::{Holder, Peer, Status};

impl Walk<'_> {
    /// The daemon has read the packet from its TUN device: lease, size, encapsulation.
    pub(super) fn daemon_out(&mut self, place: usize) -> Result<State> {
        self.passed.daemon = Some((place, "outbound"));
        let dst = self.packet.dst;
        let Some(status) = self.after[place].daemon.clone() else {
            return Ok(self.silent(place));
        };
        let Some(who) = self.looker.who(place, dst) else {
            return Ok(self.silent(place));
        };
        let held = leases(&status, dst);
        let answer = answer(dst, &who.holder, held.clone());
        let (to, mtu, header) = match who.holder {
            Holder::Peer { to, mtu, header } => (to, mtu, header.len()),
            Holder::None => {
                let text = format!(
                    "overlayd reads it from its TUN device and asks its leases who holds {dst}: nobody"
                );
                let details = say_leases(&held, dst);
                self.derive(place, None, Step::Lease, Source::Daemon, text, details);
                self.amend(|row| row.lease = Some(answer));
                return Ok(self.lose(place));
            }
            Holder::Local => {
                let text = format!(
                    "overlayd reads it from its TUN device and asks its leases who holds {dst}: this node itself"
                );
                self.derive(place, None, Step::Lease, Source::Daemon, text, Vec::new());
                self.amend(|row| row.lease = Some(answer));
                return Ok(self.lose(place));
            }
        };
        let text = format!(
            "overlayd reads it from its TUN device and asks its leases who holds {dst}: the node at {}",
            to.ip()
        );
        let mut details = say_leases(&held, dst);
        details.push(format!("packets of at most {mtu} bytes fit there"));
        self.derive(place, None, Step::Lease, Source::Daemon, text, details);
        self.amend(|row| row.lease = Some(answer));
        let dropped = fate::daemon_drop(
            &self.before[place],
            &self.after[place],
            "outbound",
            &[DropReason::TooBig, DropReason::UnderlayMtu],
        );
        let length = self
            .last
            .map_or(0, |last| self.caught[last].sight.ip.length);
        let sent = self.encapsulated(place);
        let seen_again = !sent.is_empty();
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
        self.note_daemon_cut(place, mtu, &sent);
        // Each packet that came out of the TUN device goes into a datagram of its own.
        let lengths = match self.lengths.len() {
            0 => vec![length],
            _ => self.lengths.clone(),
        };
        let sums: Vec<_> = lengths
            .iter()
            .map(|length| format!("{length} + {overhead} = {}", length + overhead))
            .collect();
        let (each, what, datagrams) = match lengths.len() {
            1 => ("", "it".to_owned(), "a UDP datagram".to_owned()),
            n => (
                " of each",
                format!("each of the {n} fragments"),
                format!("{n} UDP datagrams"),
            ),
        };
        let mut details = vec![format!(
            "{parts} = {overhead} bytes in front{each}: {} bytes",
            sums.join(", ")
        )];
        details.push("overlayd is a link, not a hop: the inner TTL stays as it is".to_owned());
        let text = format!(
            "{}: {datagrams} to {}, port {}",
            encapsulates(&status, &what),
            to.ip(),
            to.port()
        );
        let counted = self.sent_to(place, to.ip());
        let (source, text) = match counted {
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
        // What was sent and not seen leaving was lost in the kernel on the way to the device.
        if !seen_again && (counted == 0 || self.outer.is_none()) {
            self.outer = None;
            return self.missed(place, "the underlay");
        }
        Ok(State::Emit { place })
    }

    /// Where the encapsulated packet was seen leaving `place`, at the first device.
    fn encapsulated(&self, place: usize) -> Vec<usize> {
        let mut all = self.unused();
        all.retain(|i| {
            let caught = &self.caught[*i];
            caught.place == place && caught.out && caught.sight.outer.is_some()
        });
        if let Some(first) = all.first().map(|i| self.caught[*i].ifindex) {
            all.retain(|i| self.caught[*i].ifindex == first);
        }
        all
    }

    /// The daemon has cut the packet: more of it came out than went in.
    fn note_daemon_cut(&mut self, place: usize, mtu: u16, sent: &[usize]) {
        if sent.len() <= self.lengths.len().max(1) {
            return;
        }
        let made = |counts: &super::Counts| {
            let status = counts.daemon.as_ref();
            status.map_or(0, |status| status.outbound.fragments)
        };
        let rise = made(&self.after[place]).saturating_sub(made(&self.before[place]));
        let source = if rise > 0 {
            Source::Counter
        } else {
            Source::Daemon
        };
        let (was, cut) = (sum(&self.lengths), inner_lengths(&self.caught, sent));
        let text = format!(
            "{was} bytes are more than the {mtu} that fit there, and the packet may be cut (DF is not set): overlayd itself makes {} of it, {} bytes; only the destination puts them together",
            explain::count(cut.len(), "fragment"),
            sum(&cut)
        );
        let mut details = self.cuts(sent);
        details.push("it cuts the inner packet and never the outer: a tunnel endpoint must not (RFC 7348 section 4.3)".to_owned());
        if rise > 0 {
            details.push(format!("counter: {rise} fragments made meanwhile"));
        }
        self.derive(place, None, Step::Fragments, source, text, details);
        self.at_daemon(place);
        self.fragments = sent.len();
        self.pieces = sent.to_vec();
        self.lengths = cut;
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
        // What a rule may have dropped at INPUT, and the daemon counts nowhere, never came to it.
        let (before, after) = (&self.before[place], &self.after[place]);
        let dropped = fate::daemon_drop(before, after, "inbound", DropReason::ALL).is_some();
        let pieces = self.fragments.max(1) as u64;
        if !dropped
            && self.earliest().is_none()
            && fate::culprit(place, &self.passed, after, pieces).is_some()
        {
            return Ok(self.lose(place));
        }
        let checks = self.checks(place, &status, &sight);
        let passed = checks.iter().all(|check| check.passed);
        let details = checks.iter().map(|Check { passed, text, .. }| {
            let mark = if *passed { '✓' } else { '✗' };
            format!("{mark} {text}")
        });
        let details = details.collect();
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
        let text = match (passed, self.fragments) {
            (true, 0 | 1) => {
                "overlayd receives the datagram, checks it, takes the outer headers off and writes the packet into its TUN device"
            }
            (true, _) => {
                "overlayd receives the datagrams, checks each, takes the outer headers off and writes the fragments into its TUN device, as they are: it puts nothing together"
            }
            (false, _) => "overlayd receives the datagram and checks it: a check fails",
        };
        self.derive(place, None, Step::Receive, source, text, details);
        self.amend(|row| row.checks = checks);
        self.outer = None;
        if !self.expect(place, device.0, false)? {
            return Ok(self.lose(place));
        }
        self.at_device(place, device.0, Hook::Ingress)?;
        Ok(State::Receive { place })
    }

    /// The receive checks held against what was captured, up to the first that fails.
    fn checks(&self, place: usize, status: &Status, sight: &Sight) -> Vec<Check> {
        let Some(outer) = &sight.outer else {
            return Vec::new();
        };
        let from = outer.ip.src;
        let sender = status
            .peers
            .iter()
            .find(|peer| publics(peer).contains(&from));
        let mut made: Vec<Check> = Vec::new();
        // Each outcome has words of its own: what is wrong shall not read as if it were right.
        let mut check = |reason: DropReason, passed: bool, right: String, wrong: String| {
            if made.iter().all(|check| check.passed) {
                let reason = reason.name();
                made.push(Check {
                    passed,
                    reason,
                    text: if passed { right } else { wrong },
                });
            }
        };
        if let Some(vni) = outer.vni {
            let own = status.backend.vni;
            check(
                DropReason::WrongVni,
                own.map(u64::from) == Some(vni),
                format!("the VNI {vni} is ours"),
                match own {
                    Some(own) => format!("the VNI {vni} is not ours, which is {own}"),
                    None => format!("the VNI {vni} is not ours: we have none"),
                },
            );
        }
        let holder = sender.map_or("nobody".to_owned(), prefixes);
        check(
            DropReason::UnknownPeer,
            sender.is_some(),
            format!("the outer source {from} is the public IP of a lease: of {holder}"),
            format!("the outer source {from} is the public IP of no lease"),
        );
        if let Some(ether) = outer.ether {
            let mac = ether.dst.to_string();
            let own = status.lease.vtep_mac.as_deref();
            check(
                DropReason::WrongMac,
                own == Some(&*mac),
                format!("the inner Ethernet destination {mac} is our VTEP MAC"),
                match own {
                    Some(own) => format!(
                        "the inner Ethernet destination {mac} is not our VTEP MAC, which is {own}"
                    ),
                    None => format!("the inner Ethernet destination {mac} is not our VTEP MAC"),
                },
            );
        }
        let who = self.looker.who(place, sight.ip.src).map(|who| who.holder);
        let lies_in = match &who {
            Some(Holder::Peer { to, .. }) => {
                sender.is_some_and(|peer| publics(peer).contains(&to.ip()))
            }
            _ => false,
        };
        let (src, dst) = (sight.ip.src, sight.ip.dst);
        check(
            DropReason::InnerSource,
            lies_in,
            format!(
                "the inner source {src} lies in that same lease: nobody speaks for another node"
            ),
            format!("the inner source {src} does not lie in that same lease, {holder}"),
        );
        let ours = self.looker.who(place, dst).map(|who| who.holder) == Some(Holder::Local);
        check(
            DropReason::InnerDestination,
            ours,
            format!("the inner destination {dst} is ours to deliver"),
            format!("the inner destination {dst} is not ours to deliver"),
        );
        made
    }

    /// The daemon should do something here, and does not answer.
    pub(super) fn silent(&mut self, place: usize) -> State {
        let name = self.world.name(place).to_owned();
        let rose = |name| self.after[place].kernel_rise(&self.before[place], name) > 0;
        let no_port = self.outer.is_some() && (rose("Udp.NoPorts") || rose("Udp6NoPorts"));
        let loss = match self.after[place].hangs {
            true => fate::hanging_daemon(&name, self.packet.leg),
            false => fate::silent_daemon(&name, self.packet.leg, no_port),
        };
        self.note_silent(place);
        self.lost(place, loss)
    }

    /// A node whose daemon does not answer is worth a word even where the packet never came to it.
    pub(super) fn note_silent(&mut self, place: usize) {
        let name = self.world.name(place);
        if !self.world.daemons {
            return;
        }
        let known = self.unreachable.iter().any(|known| known == name);
        if self.is_node(place) && self.after[place].daemon.is_none() && !known {
            self.unreachable.push(name.to_owned());
            if self.after[place].hangs {
                self.hanging.push(name.to_owned());
            }
        }
    }
}

fn encapsulates(status: &Status, what: &str) -> String {
    match status.backend.vni {
        Some(vni) => format!("encapsulates {what} in VXLAN {vni}"),
        None => format!("encapsulates {what}, with no header of its own"),
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

/// The leases of the destination's family, those that hold it first.
fn leases(status: &Status, dst: IpAddr) -> Vec<HeldLease> {
    let mut found = Vec::new();
    for peer in &status.peers {
        let own = [
            peer.subnet.map(ipnet::IpNet::from),
            peer.ipv6_subnet.map(ipnet::IpNet::from),
        ];
        let nets = own.into_iter().flatten().chain(peer.also.iter().copied());
        let same = nets.filter(|net| net.addr().is_ipv4() == dst.is_ipv4());
        found.extend(same.map(|subnet| HeldLease {
            subnet,
            at: publics(peer),
            holds: subnet.contains(&dst),
        }));
    }
    found.sort_by_key(|lease| !lease.holds);
    found
}

/// The same in words, of at most ten.
fn say_leases(leases: &[HeldLease], dst: IpAddr) -> Vec<String> {
    const SHOWN: usize = 10;
    let say = |lease: &HeldLease| {
        let at: Vec<_> = lease.at.iter().map(ToString::to_string).collect();
        let holds = match lease.holds {
            true => format!("  holds {dst}"),
            false => String::new(),
        };
        format!("lease {} at {}{holds}", lease.subnet, at.join(", "))
    };
    let mut lines: Vec<_> = leases.iter().take(SHOWN).map(say).collect();
    if leases.len() > SHOWN {
        let more = leases.len() - SHOWN;
        lines.push(format!("and {more} more that do not hold it"));
    }
    lines
}

fn answer(destination: IpAddr, holder: &Holder, leases: Vec<HeldLease>) -> LeaseAnswer {
    let (holder, to, mtu) = match holder {
        Holder::Peer { to, mtu, .. } => (LeaseHolder::Peer, Some(*to), Some(*mtu)),
        Holder::Local => (LeaseHolder::Local, None, None),
        Holder::None => (LeaseHolder::None, None, None),
    };
    LeaseAnswer {
        destination,
        holder,
        to,
        mtu,
        leases,
    }
}
