//! Why a packet was lost: the daemon's drop counters, netfilter's rules, ICMP errors, the kernel's counters, in this order
//! of certainty. What none of them shows is said to be unknown.

mod chains;
mod known;

use std::collections::HashMap;
use std::net::IpAddr;

use super::sight::Kind;
use super::tables::Counts;
use super::walk::error_name;
use super::watch::Caught;
use super::{Evidence, Leg, Loss, NOBODY};
use crate::datapath::DropReason;
use crate::kernel::hooks::{Chain, Hook, Rule, Table, View};
use chains::{by_chain, by_legacy};

pub(super) use chains::{Culprit, culprit, legacy};
pub(super) use known::{
    hanging_daemon, no_reader, not_forwarding, refused, silent_daemon, unanswered,
};

/// At which part of a kernel a hook is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Layer {
    /// IPv4 or IPv6.
    Ip { v6: bool },
    /// IPv4 or IPv6 in frames that a bridge forwards (br_netfilter).
    BridgedIp { v6: bool },
    /// A bridge.
    Bridge,
    /// The device of this name.
    Device(String),
}

/// A rule: its table's family and name, its handle.
pub(super) type RuleKey = (Table, String, u64);

/// A hook that the packet passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Passage {
    pub(super) place: usize,
    pub(super) hook: Hook,
    pub(super) layer: Layer,
    /// What is known of the packet there: where it is rewritten, before and after that.
    pub(super) views: Vec<View>,
    /// How much of each rule's rise is not that of earlier passages.
    pub(super) rises: HashMap<RuleKey, u64>,
    /// The first of the hooks that the same row is about, and the row's index.
    pub(super) row: (usize, usize),
}

impl Passage {
    /// What a rule's counter may have counted of this packet.
    pub(super) fn rise(&self, chain: &Chain, rule: &Rule) -> u64 {
        let key = (chain.family, chain.table.clone(), rule.handle);
        self.rises.get(&key).copied().unwrap_or(0)
    }
}

/// What tables say of a packet that was seen no more: why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cause {
    pub(super) reason: &'static str,
    pub(super) meaning: String,
    pub(super) advice: String,
    /// Whose count of drops would confirm it.
    pub(super) device: Option<String>,
    /// By which device of the place the packet should have gone, where that is known.
    pub(super) at: Option<String>,
}

/// What the packet passed since it was last seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Passed {
    pub(super) hooks: Vec<Passage>,
    /// Why it cannot have come further.
    pub(super) cause: Option<(usize, Cause)>,
    /// A neighbour that is not known.
    pub(super) neighbour: Option<(usize, IpAddr)>,
    /// It was asked for, so the packet has come that far.
    pub(super) asked: bool,
    /// A daemon, and in which direction.
    pub(super) daemon: Option<(usize, &'static str)>,
}

/// A packet that was seen no more.
pub(super) struct Case<'a> {
    pub(super) place: usize,
    pub(super) name: &'a str,
    pub(super) leg: Leg,
    /// It is about several fragments of it.
    pub(super) many: bool,
    /// In how many pieces it is.
    pub(super) pieces: u64,
    pub(super) passed: &'a Passed,
    pub(super) before: &'a Counts,
    pub(super) after: &'a Counts,
    pub(super) caught: &'a [Caught],
}

impl Case<'_> {
    fn it(&self) -> &'static str {
        if self.many { "them" } else { "it" }
    }

    fn it_was(&self) -> &'static str {
        if self.many { "they were" } else { "it was" }
    }
}

/// Against a TTL that ran out.
pub(super) const RAISE_TTL: &str = "raise the TTL; if it was 64, look for a routing loop";

/// Counters of the kernel that tell of a loss (net/ipv4/proc.c, net/ipv6/proc.c): name, reason, meaning, advice.
const KERNEL: &[(&str, &str, &str, &str)] = &[
    (
        "TcpExt.IPReversePathFilter",
        "rp-filter",
        "The kernel would not answer the packet's source by the device it came from (RFC 3704)",
        "is the source address a lie? If not, see `sysctl net.ipv4.conf.all.rp_filter` and the route back to it",
    ),
    (
        "Ip.InAddrErrors",
        "bad-address",
        "The kernel found an address in the packet that cannot be",
        "look at the packet's addresses: is the source one of this node's own?",
    ),
    (
        "Ip6InAddrErrors",
        "bad-address",
        "The kernel found an address in the packet that cannot be",
        "look at the packet's addresses: is the source one of this node's own?",
    ),
    (
        "IpExt.InNoRoutes",
        "no-route",
        "The kernel has no route to the destination",
        "`ip route get` for the destination, there; on a node: does overlayd run, and is its device up?",
    ),
    (
        "Ip.OutNoRoutes",
        "no-route",
        "The kernel has no route to the destination",
        "`ip route get` for the destination, there; on a node: does overlayd run, and is its device up?",
    ),
    (
        "Ip6InNoRoutes",
        "no-route",
        "The kernel has no route to the destination",
        "`ip -6 route get` for the destination, there; on a node: does overlayd run, and is its device up?",
    ),
    (
        "Ip6OutNoRoutes",
        "no-route",
        "The kernel has no route to the destination",
        "`ip -6 route get` for the destination, there; on a node: does overlayd run, and is its device up?",
    ),
    (
        "Ip6InTooBigErrors",
        "too-big",
        "The packet is larger than the next device's MTU, and IPv6 routers do not fragment",
        "send smaller packets; a sender that hears the ICMP error does so by itself",
    ),
    (
        "Ip.FragFails",
        "too-big",
        "The packet is larger than the next device's MTU and may not be fragmented",
        "send smaller packets, or let them be fragmented; a sender that hears the ICMP error does so by itself",
    ),
    (
        "Udp.InCsumErrors",
        "udp-checksum",
        "The kernel found a wrong UDP checksum on the outer datagram",
        "bytes were damaged on the underlay: look at its offloads",
    ),
    (
        "Udp.NoPorts",
        "no-port",
        "No program has a socket for the datagram",
        "does overlayd run on this node, with the same port as its peers?",
    ),
];

/// Which chains the loss is put down to, if to any.
pub(super) fn blamed(case: &Case<'_>, loss: &Loss) -> Option<Culprit> {
    let culprit = culprit(case.place, case.passed, case.after, case.pieces)?;
    (by_chain(case, false).as_ref() == Some(loss)).then_some(culprit)
}

/// Finds out why the packet was lost.
pub(super) fn why(case: &Case<'_>) -> Loss {
    by_daemon(case)
        .or_else(|| by_chain(case, true))
        .or_else(|| by_cause(case, &["no-bridge", "link-down"]))
        .or_else(|| by_error(case))
        .or_else(|| by_cause(case, &[]))
        .or_else(|| by_queue(case))
        .or_else(|| by_counter(case))
        .or_else(|| by_neighbour(case).filter(|_| case.passed.asked))
        .or_else(|| by_chain(case, false))
        .or_else(|| by_legacy(case))
        .or_else(|| by_neighbour(case))
        .or_else(|| by_device(case))
        .unwrap_or_else(|| Loss {
            leg: case.leg,
            place: case.name.to_owned(),
            device: None,
            reason: "unknown".into(),
            by: NOBODY,
            evidence: Evidence::Derived,
            meaning: format!(
                "{} seen no more, and nothing that is looked at tells of {}",
                case.it_was(),
                case.it()
            ),
            advice: "capture around this place (tcpdump), and look at `nstat` and at BPF programs there (`bpftool net`)".into(),
        })
}

fn by_daemon(case: &Case<'_>) -> Option<Loss> {
    let (place, direction) = case.passed.daemon?;
    if place != case.place {
        return None;
    }
    let reason = daemon_drop(case.before, case.after, direction, DropReason::ALL)?;
    Some(Loss {
        leg: case.leg,
        place: case.name.to_owned(),
        device: None,
        reason: reason.name().into(),
        by: "overlayd",
        evidence: Evidence::Observed,
        meaning: lower(reason.meaning()),
        advice: reason.advice().into(),
    })
}

/// Which of the reasons' counters rose. What the kernel itself probes new devices with does not count.
pub(super) fn daemon_drop(
    before: &Counts,
    after: &Counts,
    direction: &str,
    among: &[DropReason],
) -> Option<DropReason> {
    let mut reasons = among
        .iter()
        .filter(|reason| **reason != DropReason::NotUnicast);
    let rose = |reason: &&DropReason| after.drop_rise(before, direction, reason.name()) > 0;
    reasons.find(rose).copied()
}

/// An ICMP error that this place sent.
fn by_error(case: &Case<'_>) -> Option<Loss> {
    let sent = |caught: &&Caught| caught.place == case.place && caught.out;
    let first = case
        .caught
        .iter()
        .find(|c| matches!(c.sight.kind, Kind::Error(..)))?;
    let error = Some(first).filter(sent)?;
    let Kind::Error(kind, code, mtu) = error.sight.kind else {
        return None;
    };
    let v6 = error.sight.ip.src.is_ipv6();
    let name = error_name(v6, kind, code);
    let too_big = (!v6 && (kind, code) == (3, 4)) || (v6 && kind == 2);
    let time = (kind == 11 && !v6) || (kind == 3 && v6);
    let unreachable = kind == (if v6 { 1 } else { 3 });
    let (reason, advice) = match () {
        () if too_big => (
            "too-big",
            "send smaller packets, or let them be fragmented; a sender that hears the ICMP error does so by itself (path MTU discovery, RFC 1191, RFC 8201)",
        ),
        () if time => ("ttl", RAISE_TTL),
        () if name.contains("Prohibited") => {
            ("filtered", "`nft list ruleset`, there: a rule rejects it")
        }
        () if unreachable && code == 0 => (
            "no-route",
            "`ip route get` for the destination, there; on a node: does overlayd run, and is its device up?",
        ),
        () if unreachable && code == (if v6 { 3 } else { 1 }) => (
            "no-neighbour",
            "nobody on that network has the address: is the pod there? See `ip neighbour`",
        ),
        () => ("refused", "see what the error says"),
    };
    let (mut reason, mut advice) = (reason, advice.to_owned());
    // To reject is what a rule does, with an error of its choice.
    if let ("refused" | "filtered", Some((tables, command))) =
        (reason, legacy(case.place, case.passed, case.after))
    {
        reason = "filtered";
        advice = format!("a rule rejects it, most likely one of {tables}: `{command} -c`, there");
    }
    let mtu = mtu
        .filter(|mtu| *mtu > 0)
        .map(|mtu| format!(", MTU {mtu}"))
        .unwrap_or_default();
    // A route may forbid with the errors of rules and of neighbours: the table knows better. And the walk knows how far it
    // would still have been.
    let cause = case.passed.cause.as_ref().filter(|(place, cause)| {
        let fits = (unreachable && cause.reason == "no-route") || (time && cause.reason == "ttl");
        fits && *place == case.place
    });
    if let Some((_, cause)) = cause {
        return Some(Loss {
            leg: case.leg,
            place: case.name.to_owned(),
            device: None,
            reason: cause.reason.into(),
            by: "kernel",
            evidence: Evidence::Observed,
            meaning: format!(
                "{}; its kernel says so with an ICMP error, {name}",
                cause.meaning
            ),
            advice: cause.advice.clone(),
        });
    }
    Some(Loss {
        leg: case.leg,
        place: case.name.to_owned(),
        device: None,
        reason: reason.into(),
        by: "kernel",
        evidence: Evidence::Observed,
        meaning: if time {
            format!("its TTL ran out; its kernel says so with an ICMP error, {name}")
        } else {
            format!("its kernel says so with an ICMP error, {name}{mtu}")
        },
        advice,
    })
}

/// What tables say, confirmed by the count of drops of the device that they accuse.
///
/// `among`: only for these reasons, of which an ICMP error knows just what follows from them; none: for any.
fn by_cause(case: &Case<'_>, among: &[&str]) -> Option<Loss> {
    let (place, cause) = case.passed.cause.as_ref()?;
    if *place != case.place || !(among.is_empty() || among.contains(&cause.reason)) {
        return None;
    }
    let device = cause.device.as_ref();
    let counted = device.filter(|name| case.after.device_rise(case.before, name) > 0);
    Some(Loss {
        leg: case.leg,
        place: case.name.to_owned(),
        device: cause.at.clone(),
        reason: cause.reason.into(),
        by: "kernel",
        evidence: match counted {
            Some(_) => Evidence::Observed,
            None => Evidence::Derived,
        },
        meaning: match counted {
            Some(name) => format!("{}: the drop counter of {name} rose", cause.meaning),
            None => cause.meaning.clone(),
        },
        advice: cause.advice.clone(),
    })
}

fn devices<'a>(case: &'a Case<'_>) -> impl Iterator<Item = &'a str> {
    let here = case
        .passed
        .hooks
        .iter()
        .filter(|hook| hook.place == case.place);
    here.filter_map(|hook| match &hook.layer {
        Layer::Device(name) => Some(name.as_str()),
        _ => None,
    })
}

/// A queue, or a filter at it, that dropped.
fn by_queue(case: &Case<'_>) -> Option<Loss> {
    let (device, kind) = devices(case).find_map(|name| {
        let kind = case.after.queue_that_dropped(case.before, name)?;
        Some((name, kind))
    })?;
    let it = case.it();
    let filters = matches!(kind, "clsact" | "ingress");
    let (reason, meaning, advice) = if filters {
        (
            "filtered",
            format!("a tc filter at {device} dropped {it}, as the counter of its {kind} hook says"),
            format!(
                "`tc filter show dev {device} ingress` and `egress`, in {}",
                case.name
            ),
        )
    } else {
        (
            "queue-drop",
            format!("the queue of {device} ({kind}) dropped {it}, as its counter says"),
            format!(
                "`tc -s qdisc show dev {device}`, in {}: is it too short, or made to lose packets (netem)?",
                case.name
            ),
        )
    };
    Some(Loss {
        leg: case.leg,
        place: case.name.to_owned(),
        device: Some(device.to_owned()),
        reason: reason.into(),
        by: "kernel",
        evidence: Evidence::Observed,
        meaning,
        advice,
    })
}

/// A device whose count of drops rose, for whatever reason.
fn by_device(case: &Case<'_>) -> Option<Loss> {
    let rose = |name: &&str| case.after.device_rise(case.before, name) > 0;
    let device = devices(case).find(rose)?;
    Some(Loss {
        leg: case.leg,
        place: case.name.to_owned(),
        device: Some(device.to_owned()),
        reason: "device-drop".into(),
        by: "kernel",
        evidence: Evidence::Observed,
        meaning: format!("the drop counter of {device} rose"),
        advice: format!(
            "`ip -s -s link show {device}`, in {}, says of which kind",
            case.name
        ),
    })
}

fn by_counter(case: &Case<'_>) -> Option<Loss> {
    let rose = |name: &str| case.after.kernel_rise(case.before, name) > 0;
    let (name, reason, meaning, advice) = KERNEL.iter().find(|(name, ..)| rose(name))?;
    Some(Loss {
        leg: case.leg,
        place: case.name.to_owned(),
        device: None,
        reason: (*reason).into(),
        by: "kernel",
        evidence: Evidence::Observed,
        meaning: format!("{}: its counter {name} rose", lower(meaning)),
        advice: (*advice).into(),
    })
}

fn by_neighbour(case: &Case<'_>) -> Option<Loss> {
    let (place, next) = case.passed.neighbour?;
    (place == case.place).then(|| Loss {
        leg: case.leg,
        place: case.name.to_owned(),
        device: None,
        reason: "no-neighbour".into(),
        by: "kernel",
        evidence: Evidence::Derived,
        meaning: format!(
            "nobody answers for {next} on that network, so there is no Ethernet address to send to"
        ),
        advice: format!("is the pod with {next} there, and up? See `ip neighbour`, `bridge link`"),
    })
}

/// A sentence as part of another.
fn lower(sentence: &str) -> String {
    let mut letters = sentence.trim_end_matches('.').chars();
    let first = letters
        .next()
        .map(|c| c.to_lowercase().to_string())
        .unwrap_or_default();
    first + letters.as_str()
}
