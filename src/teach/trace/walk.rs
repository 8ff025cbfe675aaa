//! From table to table and from capture to capture: the way of the packet as rows.
//!
//! The walk knows at each point what the tables make of the packet next, writes that down as derived, and looks for the
//! capture that confirms it. Where the packet was seen elsewhere instead, it goes on from there and says so; where it was
//! seen no more, it was lost.

mod bridge;
mod cut;
mod daemon;
mod deliver;
mod faults;
mod kernel;
mod nat;
mod route;
mod rows;

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::Result;

use super::explain;
use super::fate::{self, Passed, RuleKey};
use super::send::Sent;
use super::sight::Kind;
use super::tables::{Counts, DEAF, Looker};
use super::watch::Caught;
use super::world::World;
use crate::lab::state;
use crate::observe::status::Status;
pub(super) use rows::error_name;

use super::{
    EndName, Evidence, Leg, Loss, NO_ANSWER, NOBODY, Outcome, Probe, Row, Source, Step, Trace,
    VERSION,
};

/// No way has more stations; a loop has.
const MAX_STATIONS: usize = 100;

/// Where the packet is, and what happens next.
#[derive(Clone, Copy, Debug)]
enum State {
    /// A program of this place, or its kernel, sends it.
    Emit { place: usize },
    /// It goes to a next hop through a device.
    Transmit {
        place: usize,
        oif: u32,
        next: IpAddr,
    },
    /// It was seen leaving through a device.
    Left { place: usize, ifindex: u32 },
    /// It was seen arriving by a device.
    Arrived { place: usize, ifindex: u32 },
    /// A place's IP layer has it.
    Receive { place: usize },
    /// A place's IP layer has it, which has been through PREROUTING.
    Route { place: usize },
    /// A place's daemon reads it from its device.
    DaemonOut { place: usize },
    /// A place's daemon receives it over the underlay.
    DaemonIn { place: usize },
    /// It is over.
    End(End),
}

/// How a leg ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It was delivered at this place.
    Delivered(usize),
    /// It was lost at this place.
    Lost(usize),
    /// It went where we cannot look.
    Beyond,
}

/// The packet of a leg: the one that is walked. Its addresses are those that it has now.
#[derive(Clone, Copy, Debug)]
struct Packet {
    leg: Leg,
    src: IpAddr,
    dst: IpAddr,
    /// Of an ICMP error: type and code.
    error: Option<(u8, u8)>,
}

struct Walk<'a> {
    world: &'a World,
    looker: Looker<'a>,
    before: &'a [Counts],
    after: &'a [Counts],
    caught: Vec<Caught>,
    used: Vec<bool>,
    rows: Vec<Row>,
    unseen: Vec<String>,
    unreachable: Vec<String>,
    hanging: Vec<String>,
    packet: Packet,
    /// While it is encapsulated: the outer addresses.
    outer: Option<(IpAddr, IpAddr)>,
    /// The last capture on its way.
    last: Option<usize>,
    /// What it passed since.
    passed: Passed,
    /// In how many pieces it was last seen, or expected; 0: it was not.
    fragments: usize,
    /// How long these were, in bytes; of an encapsulated packet, inside.
    lengths: Vec<usize>,
    /// The captures in which they were last seen.
    pieces: Vec<usize>,
    /// While it is asked why some of them are lost: these.
    missing: Vec<usize>,
    /// While its datagram is in fragments: how many there are behind the first.
    datagrams: usize,
    /// Addresses that were rewritten on the request's way: where, from what, to what.
    rewritten: Vec<(usize, IpAddr, IpAddr)>,
    /// How much of a rule's rise is put down to a packet: place, rule.
    credited: HashMap<(usize, RuleKey), u64>,
    /// Its length before anyone cut it, in bytes.
    size: Option<usize>,
    /// Some of them are lost: what is left will never be a packet again.
    crippled: bool,
    /// How a route wins has been said.
    taught_routes: bool,
    loss: Option<Loss>,
}

/// Walks the request, what came of it, and the errors about either.
pub(super) fn walk(
    world: &World,
    probe: &Probe,
    sent: &Sent,
    caught: Vec<Caught>,
    before: &[Counts],
    after: &[Counts],
) -> Result<Trace> {
    let start = world.source.place.unwrap_or(0);
    let mut walk = Walk {
        world,
        looker: Looker::new(world)?,
        before,
        after,
        used: vec![false; caught.len()],
        caught,
        rows: Vec::new(),
        unseen: Vec::new(),
        unreachable: Vec::new(),
        hanging: Vec::new(),
        packet: Packet {
            leg: Leg::Request,
            src: sent.src,
            dst: sent.dst,
            error: None,
        },
        outer: None,
        last: None,
        passed: Passed::default(),
        fragments: 0,
        lengths: Vec::new(),
        pieces: Vec::new(),
        missing: Vec::new(),
        datagrams: 0,
        rewritten: Vec::new(),
        credited: HashMap::new(),
        size: Some(sent.size),
        crippled: false,
        taught_routes: false,
        loss: None,
    };
    walk.sends(start, probe, sent);
    let outcome = walk.legs(start, sent)?;
    walk.errors()?;
    let own = match world.source.ip {
        Some(ip) => Some(ip),
        None => walk
            .looker
            .route(start, sent.dst)?
            .and_then(|route| route.src),
    };
    Ok(Trace {
        version: VERSION,
        lab: world.lab.clone(),
        source: EndName {
            name: Some(world.name(start).to_owned()),
            ip: sent.src,
        },
        sender_ip: match probe.spoof {
            Some(_) if sent.untaken.is_none() => own,
            _ => Some(sent.src),
        },
        destination: EndName {
            name: world
                .destination
                .place
                .map(|place| world.name(place).to_owned())
                .or_else(|| world.dead.clone()),
            ip: sent.dst,
        },
        spoofed: probe.spoof.is_some() && sent.untaken.is_none(),
        size: sent.size,
        dont_fragment: probe.dont_fragment && sent.dst.is_ipv4(),
        token: sent.token.clone(),
        outcome,
        loss: walk.loss,
        rows: walk.rows,
        unseen: walk.unseen,
        hanging: walk.hanging,
        restart: world.restart(),
        unreachable: walk.unreachable,
    })
}

impl Walk<'_> {
    /// The request, and the reply if there was one.
    fn legs(&mut self, start: usize, sent: &Sent) -> Result<Outcome> {
        let there = self.run(State::Emit { place: start }, sent.refused.as_ref())?;
        let delivered = match there {
            End::Lost(_) => return Ok(Outcome::Lost),
            End::Delivered(place) => Some(place),
            End::Beyond => None,
        };
        let (src, dst) = (self.packet.dst, self.packet.src);
        self.begin(Packet {
            leg: Leg::Reply,
            src,
            dst,
            error: None,
        });
        // What answers a ping is as long as the ping.
        self.size = Some(sent.size);
        let state = match (self.entrance()?, delivered) {
            (Some(state), _) => state,
            (None, Some(place)) if self.is_deaf(place)? => {
                let name = self.world.name(place);
                let v6 = self.packet.src.is_ipv6();
                let loss = fate::unanswered(name, Some(if v6 { DEAF.1 } else { DEAF.0 }));
                self.lost(place, loss);
                return Ok(Outcome::Lost);
            }
            (None, Some(place)) => State::Emit { place },
            (None, None) => return Ok(Outcome::Unseen),
        };
        if let State::Emit { place } = state {
            self.replies(place);
        }
        Ok(match self.run(state, None)? {
            End::Delivered(place) if place == start => Outcome::Answered,
            End::Delivered(_) => Outcome::Elsewhere,
            End::Lost(_) => Outcome::Lost,
            End::Beyond => Outcome::Unseen,
        })
    }

    /// Its kernel answers no ping.
    fn is_deaf(&mut self, place: usize) -> Result<bool> {
        let deaf = self.looker.look(place)?.deaf;
        Ok(if self.packet.src.is_ipv6() {
            deaf.1
        } else {
            deaf.0
        })
    }

    /// The ICMP errors that were seen, each from where it was first seen.
    fn errors(&mut self) -> Result<()> {
        while let Some(index) = self.next_error() {
            let sight = &self.caught[index].sight;
            let error = match sight.kind {
                Kind::Error(kind, code, _) => Some((kind, code)),
                _ => None,
            };
            self.begin(Packet {
                leg: Leg::Error,
                src: sight.ip.src,
                dst: sight.ip.dst,
                error,
            });
            let Some(state) = self.entrance()? else {
                return Ok(());
            };
            self.complains(index, state);
            let kept = self.loss.take();
            self.run(state, None)?;
            // That an error got lost is no news beside what it is about.
            self.loss = kept.or(self.loss.take());
            self.used[index] = true;
        }
        Ok(())
    }

    fn next_error(&self) -> Option<usize> {
        let mut all = self.caught.iter().zip(&self.used);
        all.position(|(caught, used)| !used && is_error(caught.sight.kind))
    }

    fn begin(&mut self, packet: Packet) {
        self.packet = packet;
        self.fragments = 0;
        self.lengths.clear();
        self.pieces.clear();
        self.datagrams = 0;
        self.size = None;
        self.crippled = false;
        self.outer = None;
        self.last = None;
        self.passed = Passed::default();
    }

    /// Where the packet of this leg came from: it was sent by a place, or arrived there from where we cannot look.
    ///
    /// The kernel's clock does not decide between the two ends of a cable: both may carry the same time. So the place
    /// that has the source address comes first.
    fn entrance(&mut self) -> Result<Option<State>> {
        let all = self.unused();
        let mut sent = None;
        for &index in &all {
            let (place, ifindex, out) = self.where_seen(index);
            if self.looker.look(place)?.owner(self.packet.src).is_none() {
                continue;
            }
            if out {
                sent = sent.or(Some(index));
            } else if self.is_tun(place, ifindex) && self.packet.leg == Leg::Error {
                // That node's daemon wrote it.
                self.passed.daemon = Some((place, "outbound"));
                return Ok(Some(State::Arrived { place, ifindex }));
            }
        }
        let Some(index) = sent.or(all.first().copied()) else {
            return Ok(None);
        };
        let (place, ifindex, out) = self.where_seen(index);
        if out {
            return Ok(Some(State::Emit { place }));
        }
        self.note_outer(index);
        Ok(Some(State::Arrived { place, ifindex }))
    }

    fn where_seen(&self, index: usize) -> (usize, u32, bool) {
        let caught = &self.caught[index];
        (caught.place, caught.ifindex, caught.out)
    }

    /// From state to state.
    fn run(&mut self, from: State, refused: Option<&std::io::Error>) -> Result<End> {
        let mut state = from;
        // A leg that begins with an arrival has not shown it yet.
        if let State::Arrived { place, ifindex } = state {
            self.expect(place, ifindex, false)?;
        }
        for _ in 0..MAX_STATIONS {
            state = match state {
                State::Emit { place } => self.emit(place, refused)?,
                State::Transmit { place, oif, next } => self.transmit(place, oif, next)?,
                State::Left { place, ifindex } => self.left(place, ifindex)?,
                State::Arrived { place, ifindex } => self.arrived(place, ifindex)?,
                State::Receive { place } => self.receive(place)?,
                State::Route { place } => self.forward(place)?,
                State::DaemonOut { place } => self.daemon_out(place)?,
                State::DaemonIn { place } => self.daemon_in(place)?,
                State::End(end) => return Ok(end),
            };
        }
        Ok(End::Beyond)
    }

    /// It was seen no more at `place`: on from where it was seen next, if it was; else it was lost.
    fn missed(&mut self, place: usize, expected: &str) -> Result<State> {
        if let Some(index) = self.earliest() {
            let (to, ifindex, out) = self.where_seen(index);
            self.note_outer(index);
            let text =
                format!("the tables lead to {expected}, but it was seen elsewhere: on from there");
            self.derive(place, None, Step::Device, Source::Kernel, text, Vec::new());
            self.expect(to, ifindex, out)?;
            return Ok(if out {
                State::Left { place: to, ifindex }
            } else {
                State::Arrived { place: to, ifindex }
            });
        }
        Ok(self.lose(place))
    }

    /// It ends here: why?
    fn lose(&mut self, place: usize) -> State {
        let mut loss = self.why(place);
        if let Some(culprit) = fate::blamed(&self.case(place), &loss) {
            self.cut_back(place, &culprit);
        }
        // Nobody has seen a reply at all: that it was sent is no more than what should be.
        if self.packet.leg == Leg::Reply && self.last.is_none() && loss.reason == "unknown" {
            loss = fate::unanswered(self.world.name(place), None);
        }
        self.lost(place, loss)
    }

    /// Some of its fragments came no further than here, on their way to or through a device, and the packet with them.
    fn lose_some(&mut self, place: usize, ifindex: u32, out: bool, found: &[usize]) -> Result<()> {
        let offset = |i: &usize| self.caught[*i].sight.ip.fragment;
        let came: Vec<_> = found.iter().map(offset).collect();
        let is_missing = |i: &usize| !came.contains(&offset(i));
        self.missing = self.pieces.iter().copied().filter(is_missing).collect();
        // What arrives nowhere was lost at the other end of the cable.
        let mut at = place;
        if out {
            let cause = self.stuck(place, ifindex)?;
            self.blame(place, cause);
        } else if let Some((other, end)) = self.looker.other_end(place, ifindex)? {
            at = other;
            let cause = self.broken(other, end)?;
            self.blame(other, cause);
        }
        let mut loss = self.why(at);
        let are = if self.missing.len() == 1 { "is" } else { "are" };
        loss.meaning = format!(
            "{} of the {} fragments {are} lost: {}",
            self.fragments.saturating_sub(found.len()),
            self.fragments,
            loss.meaning
        );
        self.missing.clear();
        self.crippled = true;
        self.lost(at, loss);
        Ok(())
    }

    fn why(&self, place: usize) -> Loss {
        fate::why(&self.case(place))
    }

    fn case(&self, place: usize) -> fate::Case<'_> {
        fate::Case {
            place,
            name: self.world.name(place),
            leg: self.packet.leg,
            many: self.missing.len() > 1,
            pieces: self.fragments.max(1) as u64,
            passed: &self.passed,
            before: &self.before[place],
            after: &self.after[place],
            caught: &self.caught,
        }
    }

    /// It ends here, for this reason.
    fn lost(&mut self, place: usize, mut loss: Loss) -> State {
        self.note_dead(&mut loss);
        if let Some(unbuilt) = self.world.unbuilt.as_ref().filter(|_| is_unbuilt(&loss)) {
            loss.advice = unbuilt.to_string();
        } else if self.is_silent(place) && ["no-daemon", "no-route"].contains(&loss.reason.as_str())
        {
            let restart = self.world.restart();
            loss.advice = match &self.world.lab {
                Some(_) => format!(
                    "the overlayd of {} does not run: {restart}",
                    self.world.name(place)
                ),
                None => restart,
            };
        }
        let source = match (loss.evidence, loss.by) {
            (Evidence::Observed, _) if loss.meaning.contains("ICMP error") => Source::Capture,
            (Evidence::Observed, _) => Source::Counter,
            (_, "overlayd") => Source::Daemon,
            _ => Source::Kernel,
        };
        if loss.reason == "no-route" {
            self.note_silent(place);
        }
        let text = match loss.reason.as_str() {
            NO_ANSWER => format!("no answer: {}", loss.meaning),
            _ => format!("lost here: {} ({})", loss.meaning, loss.cause()),
        };
        let details = vec![format!("what to do: {}", loss.advice)];
        let device = loss.device.clone();
        self.derive(place, device.as_deref(), Step::Lost, source, text, details);
        if loss.by == "overlayd" {
            self.at_daemon(place);
        }
        self.loss.get_or_insert(loss);
        State::End(End::Lost(place))
    }

    /// Where the destination is a dead pod, nothing that looks for it finds it.
    fn note_dead(&self, loss: &mut Loss) {
        const KINDS: [&str; 3] = ["no-neighbour", "no-bridge", "unknown"];
        let Some(pod) = self.world.dead.as_ref() else {
            return;
        };
        if loss.leg != Leg::Request || !KINDS.contains(&loss.reason.as_str()) {
            return;
        }
        "dead-pod".clone_into(&mut loss.reason);
        loss.by = NOBODY;
        loss.meaning = format!(
            "{} is an address of {pod}, which is dead: all its processes have ended, and its network namespace and cable with them, so nobody here takes the packet",
            self.packet.dst
        );
        loss.advice = match &self.world.lab {
            Some(lab) => format!("`{}` builds it anew", state::command(lab, "revive")),
            None => "start the pod again".to_owned(),
        };
    }

    /// A daemon should run there, and does not.
    fn is_silent(&self, place: usize) -> bool {
        let counts = &self.after[place];
        self.world.daemons && self.is_node(place) && counts.daemon.is_none() && !counts.hangs
    }

    /// The addresses in the header that the kernel looks at now: the outermost.
    fn current(&self) -> (IpAddr, IpAddr) {
        self.outer.unwrap_or((self.packet.src, self.packet.dst))
    }

    /// The device is the daemon's own. With host-gw it has none: what it names is the interface on the underlay.
    fn is_tun(&self, place: usize, ifindex: u32) -> bool {
        let status = self.after[place].daemon.as_ref();
        status.is_some_and(|Status { device, .. }| {
            device.index == ifindex && device.name != device.underlay
        })
    }
}

/// The loss is of a kind that a lab's missing stages explain.
fn is_unbuilt(loss: &Loss) -> bool {
    const KINDS: [&str; 6] = [
        "no-route",
        "no-neighbour",
        "no-bridge",
        "link-down",
        "not-forwarding",
        "no-daemon",
    ];
    KINDS.contains(&loss.reason.as_str())
}

fn is_error(kind: Kind) -> bool {
    matches!(kind, Kind::Error(..))
}
