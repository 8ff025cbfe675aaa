//! Losses of which nobody has to be asked: the walk itself meets them.

use std::io;
use std::net::IpAddr;

use super::super::explain;
use super::super::tables::PATIENCE;
use super::super::{Evidence, Leg, Loss, NO_ANSWER, NOBODY};
use super::Cause;
use crate::kernel::hooks::LegacyTable;

/// The sender's own kernel would not take it.
pub(in crate::teach::trace) fn refused(
    place: &str,
    leg: Leg,
    error: &io::Error,
    limit: Option<&str>,
    cause: Option<Cause>,
    legacy: &[&LegacyTable],
) -> Loss {
    if let Some(cause) = cause {
        return Loss {
            leg,
            place: place.to_owned(),
            device: None,
            reason: cause.reason.into(),
            by: "kernel",
            evidence: Evidence::Observed,
            meaning: cause.meaning,
            advice: cause.advice,
        };
    }
    let (reason, meaning, advice) = match error.raw_os_error() {
        Some(libc::EMSGSIZE) => (
            "too-big",
            match limit {
                Some(limit) => format!(
                    "the sender's own kernel refuses it: more than {limit}, and it may not be fragmented"
                ),
                None => "the sender's own kernel refuses it: too big, and it may not be fragmented"
                    .to_owned(),
            },
            "send smaller packets, or without --df",
        ),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH) => (
            "no-route",
            "the sender's own kernel has no route to the destination".to_owned(),
            "`ip route`, there: is the link up, is there a default route?",
        ),
        Some(libc::EPERM) => (
            "filtered",
            "the sender's own kernel refuses it: a rule at the hook output drops it".to_owned(),
            "`nft list ruleset`, there",
        ),
        _ => (
            "refused",
            format!("the sender's own kernel refuses it: {error}"),
            "see what the error says",
        ),
    };
    let mut advice = advice.to_owned();
    if let ("filtered", [first, ..]) = (reason, legacy) {
        let names = explain::legacy_names(legacy);
        advice += &format!(
            "; or a rule of {names}, which cannot be seen: `{} -c`, there",
            first.command()
        );
    }
    Loss {
        leg,
        place: place.to_owned(),
        device: None,
        reason: reason.into(),
        by: "kernel",
        evidence: Evidence::Observed,
        meaning,
        advice,
    }
}

/// A host that does not forward got somebody else's packet.
pub(in crate::teach::trace) fn not_forwarding(place: &str, leg: Leg, dst: IpAddr) -> Loss {
    let key = if dst.is_ipv4() {
        "net.ipv4.ip_forward"
    } else {
        "net.ipv6.conf.all.forwarding"
    };
    Loss {
        leg,
        place: place.to_owned(),
        device: None,
        reason: "not-forwarding".into(),
        by: "kernel",
        evidence: Evidence::Derived,
        meaning: format!(
            "the packet is for {dst}, which is not here, and {key} is 0: this place forwards nothing"
        ),
        advice: format!("on a node: `sysctl -w {key}=1`; on a pod: why did it get this packet?"),
    }
}

/// A TUN device that nobody reads.
pub(in crate::teach::trace) fn no_reader(place: &str, leg: Leg, device: &str) -> Loss {
    no_daemon(
        place,
        leg,
        format!(
            "it went into the TUN device {device}, and no overlayd that could be asked reads that"
        ),
        "is overlayd running there, and does it answer? `overlayd status`",
    )
}

/// A daemon that runs, and does nothing.
pub(in crate::teach::trace) fn hanging_daemon(place: &str, leg: Leg) -> Loss {
    no_daemon(
        place,
        leg,
        format!(
            "the overlayd of this node runs, but gave no answer within {} s: it hangs or is stopped, so nobody takes the packet on",
            PATIENCE.as_secs_f32()
        ),
        "`ps -C overlayd -o pid,stat,args`: one with the state T is stopped (`kill -CONT PID`); otherwise look into its log, and restart it",
    )
}

fn no_daemon(place: &str, leg: Leg, meaning: String, advice: &str) -> Loss {
    Loss {
        leg,
        place: place.to_owned(),
        device: None,
        reason: "no-daemon".into(),
        by: NOBODY,
        evidence: Evidence::Derived,
        meaning,
        advice: advice.into(),
    }
}

/// The request arrived, and no answer was seen: `deaf` is the setting that forbids one.
pub(in crate::teach::trace) fn unanswered(place: &str, deaf: Option<&str>) -> Loss {
    let (by, meaning, advice) = match deaf {
        Some(key) => (
            "kernel",
            format!("it was delivered, but {key} is 1: this kernel answers no ping"),
            format!("`sysctl -w {key}=0`, there; the way itself is whole as far as {place}"),
        ),
        None => (
            NOBODY,
            "it was delivered, and no answer to it was seen leaving".to_owned(),
            "the way itself is whole that far: look there for what answers no ping (BPF programs, `bpftool net`; limits of ICMP, `sysctl net.ipv4.icmp_ratelimit`)".to_owned(),
        ),
    };
    Loss {
        leg: Leg::Reply,
        place: place.to_owned(),
        device: None,
        reason: NO_ANSWER.into(),
        by,
        evidence: Evidence::Derived,
        meaning,
        advice,
    }
}

/// A daemon that does not answer.
pub(in crate::teach::trace) fn silent_daemon(place: &str, leg: Leg, no_port: bool) -> Loss {
    let meaning = if no_port {
        "no overlayd runs on this node: no program has its UDP port, as the kernel's counter Udp.NoPorts says, so nobody takes the packet on"
    } else {
        "the overlayd of this node does not answer, so nobody takes the packet on"
    };
    Loss {
        leg,
        place: place.to_owned(),
        device: None,
        reason: "no-daemon".into(),
        by: NOBODY,
        evidence: if no_port {
            Evidence::Observed
        } else {
            Evidence::Derived
        },
        meaning: meaning.into(),
        advice: "start it (`overlayd run`) and look into its log".into(),
    }
}
