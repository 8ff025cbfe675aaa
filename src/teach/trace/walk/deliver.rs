//! What a place's IP layer does with what it gets: forwards it, gives it to the daemon, or delivers it.

use anyhow::Result;

use super::super::fate;
use super::super::{Leg, Source, Step};
use super::{End, Kind, State, Walk};
use crate::kernel::hooks::{Hook, Rewrite};
use crate::lab::state;

impl Walk<'_> {
    /// IP has it: for this host, or to be forwarded?
    pub(super) fn receive(&mut self, place: usize) -> Result<State> {
        self.hooks(place, &[Hook::Prerouting], None)?;
        self.rewrite(place, Rewrite::Destination, Hook::Prerouting);
        self.forward(place)
    }

    /// IP has it, behind PREROUTING.
    pub(super) fn forward(&mut self, place: usize) -> Result<State> {
        let (_, dst) = self.current();
        if self.looker.look(place)?.owner(dst).is_none() && self.redirected(place) {
            self.hooks(place, &[Hook::Input], None)?;
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
            self.hooks(place, &[Hook::Input], None)?;
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
            let cause = self.spent(place)?;
            self.blame(place, Some(cause));
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
        self.hooks(place, &[Hook::Forward, Hook::Postrouting], Some(oif))?;
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
        let pieces = self.fragments.max(1) as u64;
        let culprit = fate::culprit(place, &self.passed, after, pieces);
        // Captures see a reply before INPUT does.
        let dropped = self.packet.leg == Leg::Reply && culprit.as_ref().is_some_and(|c| c.sure);
        if dropped
            || !came_of_it
                && (culprit.is_some() || fate::legacy(place, &self.passed, after).is_some())
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
        let counted = self
            .counter_of_icmp()
            .filter(|name| after.kernel_rise(before, name) > 0);
        let (source, details) = match (source, counted) {
            (Source::Kernel, Some(name)) => {
                (Source::Counter, vec![format!("its counter {name} rose")])
            }
            _ => (source, Vec::new()),
        };
        let mut details = details;
        details.extend(self.ended(place));
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
        self.derive(place, None, Step::Delivery, source, text, details);
        Ok(State::End(End::Delivered(place)))
    }

    /// Pings are answered by the kernel: that says nothing of the programs.
    fn ended(&self, place: usize) -> Option<String> {
        let ended = &self.world.places[place].ended;
        let which = ended.join(", ");
        let lab = self.world.lab.as_ref()?;
        (!ended.is_empty() && self.packet.leg == Leg::Request).then(|| {
            format!(
                "of the pod's processes these have ended: {which}. What is left of it keeps the namespace, whose kernel answers pings, whatever runs there; `{}` starts them again",
                state::command(lab, "revive")
            )
        })
    }

    /// Which counter says that ICMP got a packet of this leg's kind (proc_net(5), RFC 4293 section 5 and before).
    fn counter_of_icmp(&self) -> Option<&'static str> {
        let v6 = self.packet.dst.is_ipv6();
        Some(match (self.packet.leg, self.packet.error) {
            (Leg::Request, _) if v6 => "Icmp6InEchos",
            (Leg::Request, _) => "Icmp.InEchos",
            (Leg::Reply, _) if v6 => "Icmp6InEchoReplies",
            (Leg::Reply, _) => "Icmp.InEchoReps",
            (Leg::Error, Some((1, _))) if v6 => "Icmp6InDestUnreachs",
            (Leg::Error, Some((2, _))) if v6 => "Icmp6InPktTooBigs",
            (Leg::Error, Some((3, _))) if v6 => "Icmp6InTimeExcds",
            (Leg::Error, Some((3, _))) => "Icmp.InDestUnreachs",
            (Leg::Error, Some((11, _))) if !v6 => "Icmp.InTimeExcds",
            (Leg::Error, _) => return None,
        })
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
}
