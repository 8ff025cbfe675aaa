//! Rows: written, and held against captures.

use anyhow::Result;

use super::super::explain;
use super::super::send::Sent;
use super::super::sight::{Kind, Sight};
use super::super::watch::Caught;
use super::super::world::Role;
use super::super::{Direction, Frame, Leg, Probe, Row, Source, Step};
use super::cut::{inner_lengths, sum};
use super::{State, Walk};
use crate::lab::graph::{Point, ROUTER};
use crate::teach::capture::Link;

impl Walk<'_> {
    /// Writes a row that no capture shows.
    pub(super) fn derive(
        &mut self,
        place: usize,
        device: Option<&str>,
        step: Step,
        source: Source,
        text: impl Into<String>,
        details: Vec<String>,
    ) {
        let row = Row {
            number: self.rows.len() + 1,
            leg: self.packet.leg,
            place: self.world.name(place).to_owned(),
            device: device.map(str::to_owned),
            direction: None,
            step,
            evidence: source.evidence(),
            source,
            text: text.into(),
            details,
            ttl: None,
            length: None,
            headers: Vec::new(),
            encapsulated: self.outer.is_some(),
            frames: Vec::new(),
            routing: None,
            lease: None,
            checks: Vec::new(),
            point: self.point(place, device, step),
        };
        self.rows.push(row);
    }

    /// The last row, to say more of it.
    pub(super) fn amend(&mut self, more: impl FnOnce(&mut Row)) {
        if let Some(row) = self.rows.last_mut() {
            more(row);
        }
    }

    /// Looks for the packet at a device, and writes what was seen there. `false`: it was not.
    pub(super) fn expect(&mut self, place: usize, ifindex: u32, out: bool) -> Result<bool> {
        let name = self.looker.look(place)?.name(ifindex);
        let here =
            |caught: &Caught| (caught.place, caught.ifindex, caught.out) == (place, ifindex, out);
        let mut found: Vec<usize> = (0..self.caught.len())
            .filter(|i| !self.used[*i] && here(&self.caught[*i]) && self.is_ours(&self.caught[*i]))
            .collect();
        let Some(&first) = found.first() else {
            return Ok(false);
        };
        // Once more at the same device is another round, unless it is in fragments.
        let fragmented = |i: usize| self.caught[i].sight.ip.fragment.is_some();
        found.retain(|i| *i == first || (fragmented(first) && fragmented(*i)));
        let missing = fragmented(first) && found.len() < self.fragments;
        let rest = self.rest_of_datagram(first, here);
        for index in found.iter().chain(&rest) {
            self.used[*index] = true;
        }
        if !rest.is_empty() && self.datagrams == 0 {
            self.note_outer_cut(place, &name, first, &rest);
        }
        self.datagrams = rest.len();
        if !missing {
            self.note_cut(place, ifindex, &found)?;
        } else if !self.crippled {
            self.lose_some(place, ifindex, out, &found)?;
        }
        if missing {
            self.lengths = inner_lengths(&self.caught, &found);
        }
        let sight = self.caught[first].sight.clone();
        if let Some(outer) = &sight.outer {
            self.outer = Some((outer.ip.src, outer.ip.dst));
        }
        let way = if out { "leaves by" } else { "arrives at" };
        let (mut details, mut text) = describe(
            &sight,
            &found.iter().map(|i| &self.caught[*i]).collect::<Vec<_>>(),
        );
        if !rest.is_empty() {
            text = format!(
                ", the datagram in {}: {} bytes",
                explain::count(rest.len() + 1, "fragment"),
                sum(&self.lengths_of_datagram(first, &rest))
            );
        }
        // What the last capture showed already, here or at the other end of a cable, is not said again.
        if let Some(last) = self.last {
            let (before, _) = describe(&self.caught[last].sight, &[]);
            details.retain(|detail| !before.contains(detail));
        }
        let where_to = self.what_is(place, ifindex, out)?;
        let outermost = sight.outer.as_ref().map_or(&sight.ip, |outer| &outer.ip);
        let mut trains = Vec::new();
        let whole = found.iter().map(|i| &self.caught[*i]).filter(|caught| {
            // One frame, however many of its datagrams are ours.
            let number = caught.train.map(|train| train.number);
            let known = number.is_some() && trains.contains(&number);
            trains.push(number);
            !known
        });
        let rest = rest.iter().map(|i| &self.caught[*i]);
        let frames = whole.chain(rest).map(frame).collect();
        let length = match self.caught[first].train {
            Some(train) => train.length,
            None => outermost.length,
        };
        let row = Row {
            number: self.rows.len() + 1,
            leg: self.packet.leg,
            place: self.world.name(place).to_owned(),
            device: Some(name.clone()),
            direction: Some(if out { Direction::Out } else { Direction::In }),
            step: Step::Device,
            evidence: Source::Capture.evidence(),
            source: Source::Capture,
            text: format!("{way} {name}{where_to}{text}"),
            details,
            ttl: Some(outermost.ttl),
            length: Some(length),
            encapsulated: sight.outer.is_some(),
            headers: sight.headers,
            frames,
            routing: None,
            lease: None,
            checks: Vec::new(),
            point: self.point(place, Some(&name), Step::Device),
        };
        self.rows.push(row);
        self.last = Some(first);
        self.fragments = found.len();
        self.pieces = found;
        self.passed = super::Passed::default();
        Ok(true)
    }

    /// What the device is, for those who meet it for the first time.
    fn what_is(&mut self, place: usize, ifindex: u32, out: bool) -> Result<&'static str> {
        if self.is_tun(place, ifindex) {
            return Ok(if out {
                ", the TUN device: from there overlayd reads it"
            } else {
                ", the TUN device: overlayd wrote it there, and to the kernel it is as if it came from a cable"
            });
        }
        let kernel = self.looker.look(place)?;
        let kind = kernel.link(ifindex).and_then(|link| link.kind.as_deref());
        Ok(match (kind, out) {
            (Some("veth"), false) => ", the other end of the cable (a veth pair)",
            (Some("bridge"), _) => ", the bridge",
            _ => "",
        })
    }

    /// Is it the packet of this leg, in the form that it has now?
    fn is_ours(&self, caught: &Caught) -> bool {
        self.is_leg(caught) && caught.sight.outer.is_some() == self.outer.is_some()
    }

    /// The mark in its payload says whose it is, and its type of which leg: addresses may be rewritten on the way.
    pub(super) fn is_leg(&self, caught: &Caught) -> bool {
        let (ip, packet) = (&caught.sight.ip, &self.packet);
        match caught.kind {
            Kind::Request => packet.leg == Leg::Request,
            Kind::Reply => packet.leg == Leg::Reply,
            // There may be several: one end of each is not rewritten.
            Kind::Error(kind, code, _) => {
                packet.leg == Leg::Error
                    && packet.error == Some((kind, code))
                    && (ip.src == packet.src || ip.dst == packet.dst)
            }
            Kind::Fragment => (ip.src, ip.dst) == (packet.src, packet.dst),
        }
    }

    /// The first time that the packet of this leg was seen and not yet told of.
    pub(super) fn earliest(&self) -> Option<usize> {
        self.unused().first().copied()
    }

    /// Where else it was seen and not yet told of, by the kernel's clock.
    pub(super) fn unused(&self) -> Vec<usize> {
        let all = 0..self.caught.len();
        all.filter(|i| !self.used[*i] && self.is_leg(&self.caught[*i]))
            .collect()
    }

    /// Was it seen at this device, in the form that it has now?
    pub(super) fn is_seen(&self, place: usize, ifindex: u32, out: bool) -> bool {
        let here =
            |caught: &Caught| (caught.place, caught.ifindex, caught.out) == (place, ifindex, out);
        let mut all = self.caught.iter().zip(&self.used);
        all.any(|(caught, used)| !used && here(caught) && self.is_ours(caught))
    }

    /// From here on it is, or is not, in the encapsulation in which it was seen.
    pub(super) fn note_outer(&mut self, index: usize) {
        let outer = self.caught[index].sight.outer.as_ref();
        self.outer = outer.map(|outer| (outer.ip.src, outer.ip.dst));
    }

    /// The first row.
    pub(super) fn sends(&mut self, place: usize, probe: &Probe, sent: &Sent) {
        let df = match (sent.dst.is_ipv4(), probe.dont_fragment) {
            (true, true) => ", not to be fragmented (DF)",
            (false, true) => ", not to be fragmented",
            _ => "",
        };
        let mut details = vec![format!(
            "its data repeats the mark {:?}, by which every capture knows it",
            sent.token
        )];
        if let Some(wanted) = sent.untaken {
            details.push(format!(
                "its source address was to be {wanted}, but the kernel put its own there, {}: this is no spoofed packet",
                sent.src
            ));
        } else if probe.spoof.is_some() {
            details.push(format!(
                "its source address {} is a lie: {} does not have it",
                sent.src,
                self.world.name(place)
            ));
        }
        let text = format!(
            "a program sends an ICMP echo request, a ping, of {} bytes to {}{df}",
            sent.size, sent.dst
        );
        self.derive(place, None, Step::Send, Source::Syscall, text, details);
    }

    /// The kernel of `place` answers, as far as we know.
    pub(super) fn replies(&mut self, place: usize) {
        let seen = self.earliest().is_some();
        let source = if seen {
            Source::Capture
        } else {
            Source::Kernel
        };
        let text = "the kernel answers with an echo reply: source and destination change places, the data stays, a new TTL";
        self.derive(place, None, Step::Send, source, text, Vec::new());
    }

    /// Someone sends an error.
    pub(super) fn complains(&mut self, index: usize, state: State) {
        let sight = self.caught[index].sight.clone();
        let Kind::Error(kind, code, mtu) = sight.kind else {
            return;
        };
        let what = error_name(sight.ip.src.is_ipv6(), kind, code);
        let mtu = mtu
            .filter(|mtu| *mtu > 0)
            .map(|mtu| format!(", MTU {mtu}"))
            .unwrap_or_default();
        let (place, who) = match state {
            State::Arrived { place, .. } if self.passed.daemon.is_some() => (
                place,
                "overlayd writes it into its TUN device, as a router on the way would have sent it",
            ),
            State::Arrived { place, .. } => (place, "it comes from where we cannot look"),
            State::Emit { place } => (place, "the kernel sends it"),
            _ => return,
        };
        let source = if matches!(state, State::Arrived { .. }) && self.passed.daemon.is_some() {
            Source::Daemon
        } else {
            Source::Kernel
        };
        let text = format!(
            "an ICMP error, {what}{mtu}, from {} to {}: {who}",
            sight.ip.src, sight.ip.dst
        );
        let details =
            vec!["it quotes the packet it is about, so that its sender knows which".to_owned()];
        self.derive(place, None, Step::Send, source, text, details);
    }

    /// The last row is about the daemon, which a drawing shows beside the kernel.
    pub(super) fn at_daemon(&mut self, place: usize) {
        let point = self.point(place, None, Step::Receive);
        if let Some(row) = self.rows.last_mut() {
            row.point = point;
        }
    }

    fn point(&self, place: usize, device: Option<&str>, step: Step) -> Option<Point> {
        // A drawing leads an encapsulated packet from the daemon to its interface: what the kernel does in between has no
        // place of its own there.
        if self.outer.is_some() && matches!(step, Step::Route | Step::Netfilter | Step::Neighbour) {
            return None;
        }
        Some(match self.world.places[place].role {
            Role::Pod(node, pod) => Point::Pod { node, pod },
            Role::Underlay => self.underlay_point(device, step)?,
            Role::Router => router_point(device),
            Role::Guest => Point::Pod {
                node: 1,
                pod: u8::try_from(place).ok()?,
            },
            Role::Node(node) => self.node_point(node, place, device, step),
            Role::Host => self.node_point(1, place, device, step),
        })
    }

    /// A port of the underlay is called as the node that it leads to. What the bridge itself does has no place of its own
    /// there; what it lost is lost where it was seen last.
    fn underlay_point(&self, device: Option<&str>, step: Step) -> Option<Point> {
        let mut places = self.world.places.iter();
        let named = places.find(|place| Some(place.name.as_str()) == device);
        match (named.map(|place| place.role), step) {
            (Some(Role::Node(node)), _) => Some(Point::Port { node }),
            (_, Step::Device) => {
                let beyond = device.is_some_and(|name| self.world.beyond.iter().any(|b| b == name));
                Some(if beyond {
                    Point::Beyond
                } else {
                    Point::Underlay
                })
            }
            (_, Step::Lost) => self.rows.iter().rev().find_map(|row| row.point),
            _ => None,
        }
    }

    fn node_point(&self, node: u8, place: usize, device: Option<&str>, step: Step) -> Point {
        let underlay = self.after[place]
            .daemon
            .as_ref()
            .map(|status| status.device.underlay.as_str());
        let tun = self.after[place]
            .daemon
            .as_ref()
            .map(|status| status.device.name.as_str())
            .filter(|name| Some(*name) != underlay);
        let pod = device
            .and_then(|name| name.strip_prefix("veth-pod"))
            .and_then(|number| number.parse().ok());
        // What is lost at a device is lost as far as it came.
        let step = match (step, device) {
            (Step::Lost, Some(_)) => Step::Device,
            _ => step,
        };
        match (step, device, pod) {
            (Step::Lease | Step::Encapsulation | Step::Receive, ..) => Point::Daemon { node },
            (Step::Device | Step::Bridge, _, Some(pod)) => Point::Veth { node, pod },
            (Step::Device, Some(_), _) if device == tun => Point::Tun { node },
            (Step::Device, Some(_), _) if device == underlay || device == Some("eth0") => {
                Point::Eth { node }
            }
            (Step::Device, Some("lo"), _) => Point::Kernel { node },
            (Step::Device | Step::Bridge, Some(_), _) => Point::Bridge { node },
            _ => Point::Kernel { node },
        }
    }
}

/// A drawing shows the router as a box that hangs on one segment and stands on the other.
fn router_point(device: Option<&str>) -> Point {
    match device {
        Some("eth1") => Point::Foot { node: ROUTER },
        Some(_) => Point::Eth { node: ROUTER },
        None => Point::Kernel { node: ROUTER },
    }
}

/// What a capture shows, for people: details, and what is to be said at once.
fn describe(sight: &Sight, all: &[&Caught]) -> (Vec<String>, String) {
    let mut details = Vec::new();
    if let Some(ether) = sight.ether {
        details.push(format!("Ethernet {} → {}", ether.src, ether.dst));
    }
    if let Some(outer) = &sight.outer {
        let vni = outer
            .vni
            .map(|vni| format!(", VNI {vni}"))
            .unwrap_or_default();
        details.push(format!(
            "outer IP {} → {}, UDP {} → {}{vni}",
            outer.ip.src, outer.ip.dst, outer.ports.0, outer.ports.1
        ));
        details.push(format!(
            "inside: {} → {}, TTL {}, {} bytes{}",
            sight.ip.src,
            sight.ip.dst,
            sight.ip.ttl,
            sight.ip.length,
            match sight.ip.fragment {
                Some(0) => ": the first fragment",
                Some(_) => ": a later fragment",
                None => "",
            }
        ));
        if outer.ip.fragment.is_none() {
            details.push(headers(sight));
        }
    }
    (details, pieces(all))
}

/// In how many pieces it was seen, if not in one.
fn pieces(all: &[&Caught]) -> String {
    let Some(first) = all.first() else {
        return String::new();
    };
    let length = |caught: &&Caught| {
        let sight = &caught.sight;
        sight
            .outer
            .as_ref()
            .map_or(sight.ip.length, |outer| outer.ip.length)
    };
    let lengths: Vec<_> = all.iter().map(length).collect();
    let lengths = sum(&lengths);
    match (first.train, all.len()) {
        (Some(train), ours) => {
            let n = train.datagrams;
            let ours = match ours == n {
                true => String::new(),
                false => format!(", {ours} of them of this packet"),
            };
            format!(
                ", as a train of {n} datagrams that cross this cable as one frame{ours}: on a wire {lengths} bytes"
            )
        }
        (None, 1) => String::new(),
        (None, n) if first.sight.outer.is_some() => format!(", as {n} datagrams: {lengths} bytes"),
        (None, n) => format!(", in {n} fragments: {lengths} bytes"),
    }
}

/// `IPv4 20 + UDP 8 + VXLAN 8 + Ethernet 14 + inner packet 84 = 134 bytes`
fn headers(sight: &Sight) -> String {
    let Some(outer) = &sight.outer else {
        return String::new();
    };
    // Everything between the frame's own Ethernet header and the inner packet's IP header.
    let skip = usize::from(sight.ether.is_some());
    let mut inner = 0;
    let mut parts = Vec::new();
    for header in sight.headers.iter().skip(skip) {
        if header.name == "IPv4" || header.name == "IPv6" {
            inner += 1;
            if inner == 2 {
                break;
            }
        }
        parts.push(format!("{} {}", header.name, header.bytes));
    }
    format!(
        "{} + packet {} = {} bytes",
        parts.join(" + "),
        sight.ip.length,
        outer.ip.length
    )
}

fn frame(caught: &Caught) -> Frame {
    Frame {
        at_ns: u64::try_from(caught.at.as_nanos()).unwrap_or(u64::MAX),
        bytes: caught.frame.len(),
        ethernet: caught.link == Link::Ethernet,
        hex: caught
            .frame
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    }
}

/// The error's name in its RFC.
pub(in crate::teach::trace) fn error_name(v6: bool, kind: u8, code: u8) -> &'static str {
    let from: std::net::IpAddr = if v6 {
        [0u16; 8].into()
    } else {
        [0u8; 4].into()
    };
    crate::lab::traffic::IcmpError {
        from,
        kind,
        code,
        mtu: None,
        probe: 0,
    }
    .what()
}
