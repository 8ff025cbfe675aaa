//! The steps of the demo. Each acts, measures, and says what it saw; what it claims is checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use encap::Family;
use serde_json::json;

use super::Step;
use super::stage::{PATIENCE, Stage, family, ips};
use crate::config::Engine;
use crate::kernel::NetNs;
use crate::lab::topology::{Backend, Node};
use crate::lab::traffic::{
    Answer, Fragmenting, Hop, PathOpts, PingOpts, PingReport, TcpOpts, TcpServer, UdpEcho, UdpOpts,
    tcp_transfer, trace_path, udp_probe,
};
use crate::teach::trace::{Direction, Leg, Outcome};

type Act = fn(&Stage<'_>, &mut Step) -> Result<()>;

/// The story.
pub(super) const STORY: [(&str, Act); 9] = [
    ("Two pods of one node", one_node),
    ("Two pods of different nodes", two_nodes),
    ("A node and a pod of another node", node_to_pod),
    ("No address translation", no_nat),
    ("A TCP transfer, both ways at once", transfer),
    ("The way a packet takes", path),
    ("A packet that is too big", too_big),
    ("An address that no node has a lease for", no_lease),
    ("The books of the daemons", books),
];

/// How much each direction of the TCP transfer carries.
const TRANSFER: u64 = 32 << 20;

fn one_node(stage: &Stage<'_>, step: &mut Step) -> Result<()> {
    let (from, to) = (stage.pod(stage.a, 1)?, stage.pod(stage.a, 2)?);
    step.about = format!("{} pings {} over the bridge cni0", from.place, to.place);
    let carried = || -> Result<u64> {
        let peers = stage.status(stage.a)?.peers;
        Ok(peers.iter().map(|peer| peer.sent_packets).sum())
    };
    let before = carried()?;
    for ip in ips(to) {
        pings(stage, step, from.netns(), ip)?;
    }
    let through = carried()? - before;
    step.check(
        through == 0,
        format!(
            "overlayd on {} had no part in it: {through} packets sent to peers",
            stage.a.name
        ),
        json!({ "packets_to_peers": through }),
    );
    Ok(())
}

fn two_nodes(stage: &Stage<'_>, step: &mut Step) -> Result<()> {
    let (from, to) = (stage.pod(stage.a, 1)?, stage.pod(stage.b, 1)?);
    step.about = format!("{} pings {} through the overlay", from.place, to.place);
    let before = stage.exchanged(stage.a, stage.b)?;
    let mut sent = 0;
    for ip in ips(to) {
        sent += u64::from(pings(stage, step, from.netns(), ip)?.sent);
    }
    let after = stage.exchanged(stage.a, stage.b)?;
    let (there, back) = (after.sent - before.sent, after.received - before.received);
    step.check(
        there >= sent && back >= sent,
        format!(
            "overlayd on {}: {there} packets ({} bytes) sent to {}, {back} received from it",
            stage.a.name,
            after.sent_bytes - before.sent_bytes,
            stage.b.name
        ),
        json!({ "sent_packets": there, "received_packets": back }),
    );
    Ok(())
}

fn node_to_pod(stage: &Stage<'_>, step: &mut Step) -> Result<()> {
    let (from, to) = (stage.a, stage.pod(stage.c, 2)?);
    step.about = format!(
        "{} itself, not one of its pods, talks to {}",
        from.name, to.place
    );
    for ip in ips(to) {
        pings(stage, step, from.netns(), ip)?;
        let echo = to.netns().run(|| UdpEcho::bind((ip, 0).into()))??;
        let opts = UdpOpts {
            cancel: stage.cancel.clone(),
            ..UdpOpts::default()
        };
        let report = from
            .netns()
            .run(|| udp_probe(echo.local_addr(), [100], &opts))??;
        let client = echo.clients().first().map(|client| client.ip());
        let client = client.context("no datagram arrived")?;
        step.check(
            report.all_intact()
                && stage.owner(client) == Some(format!("overlay0 of {}", from.name)),
            format!("the pod sees {}", stage.named(client)),
            json!({ "to": ip, "seen_as": client }),
        );
    }
    Ok(())
}

fn no_nat(stage: &Stage<'_>, step: &mut Step) -> Result<()> {
    let (from, to) = (stage.pod(stage.a, 1)?, stage.pod(stage.b, 2)?);
    step.about = format!(
        "a TCP server in {} prints who connects; {} does",
        to.place, from.place
    );
    for (ip, own) in ips(to).into_iter().zip(ips(from)) {
        let server = to.netns().run(|| TcpServer::bind((ip, 0).into()))??;
        let opts = tcp_opts(stage);
        let transfer = from
            .netns()
            .run(|| tcp_transfer(server.local_addr(), 1000, 1000, &opts))??;
        let session = server.next_session(Duration::from_secs(5))?;
        let same = session.client == transfer.local
            && session.client.ip() == own
            && transfer.is_untranslated();
        step.check(
            same && transfer.is_intact(),
            format!("server  {}: \"hello, {}\"", server.local_addr(), session.client),
            json!({ "server": server.local_addr(), "seen_as": session.client, "client": transfer.local }),
        );
        let own = if same { ", the same" } else { ", ANOTHER ONE" };
        step.note(format!(
            "client  {}: my own address and port{own}",
            transfer.local
        ));
    }
    Ok(())
}

fn transfer(stage: &Stage<'_>, step: &mut Step) -> Result<()> {
    let (from, to) = (stage.pod(stage.a, 1)?, stage.pod(stage.b, 1)?);
    step.about = format!(
        "{} and {} send each other {} MiB of pseudo-random bytes",
        from.place,
        to.place,
        TRANSFER >> 20
    );
    let spec = stage.spec();
    if spec.engine == Engine::Classic && spec.backend != Backend::HostGw {
        step.about += ", one packet per system call (--engine batched moves superpackets)";
    }
    for ip in ips(to) {
        let server = to.netns().run(|| TcpServer::bind((ip, 0).into()))??;
        let opts = tcp_opts(stage);
        let done = from
            .netns()
            .run(|| tcp_transfer(server.local_addr(), TRANSFER, TRANSFER, &opts))??;
        let whole = done.is_intact() && (done.sent, done.received) == (TRANSFER, TRANSFER);
        let rate = done.bytes_per_second();
        step.check(
            whole,
            format!(
                "{}  {} MiB in {:.2} s: {}",
                version(ip),
                (done.sent + done.received) >> 20,
                done.elapsed.as_secs_f64(),
                bit_rate(rate)
            ),
            json!({
                "to": ip,
                "bytes": done.sent + done.received,
                "seconds": done.elapsed.as_secs_f64(),
                "bytes_per_second": rate,
                "there": { "sent_sha256": done.sent_digest.to_string(), "arrived_sha256": done.arrived_digest.to_string() },
                "back": { "sent_sha256": done.offered_digest.to_string(), "arrived_sha256": done.received_digest.to_string() },
            }),
        );
        for (way, left, arrived) in [
            ("there", done.sent_digest, done.arrived_digest),
            ("back ", done.offered_digest, done.received_digest),
        ] {
            let verdict = if left == arrived { "=" } else { "≠" };
            step.note(format!(
                "      {way} sha256 {left:.16}… sent {verdict} {arrived:.16}… arrived"
            ));
        }
    }
    Ok(())
}

fn path(stage: &Stage<'_>, step: &mut Step) -> Result<()> {
    let (from, to) = (stage.pod(stage.a, 1)?, stage.pod(stage.b, 1)?);
    step.about = format!(
        "who says that the TTL ran out, from {} to {}",
        from.place, to.place
    );
    for ip in ips(to) {
        let opts = PathOpts {
            max_hops: 6,
            timeout: PATIENCE,
            cancel: stage.cancel.clone(),
            ..PathOpts::default()
        };
        let hops = from.netns().run(|| trace_path(ip, &opts))??;
        let expected = [
            Some(format!("cni0 of {}", stage.a.name)),
            Some(format!("overlay0 of {}", stage.b.name)),
            Some(format!("eth0 of {}", to.place)),
        ];
        for (i, hop) in hops.iter().enumerate() {
            let owner = hop.from.and_then(|from| stage.owner(from));
            let expected = expected.get(i).is_some_and(|expected| *expected == owner);
            step.check(
                expected,
                format!("TTL {}  {}", hop.ttl, hop_text(stage, hop)),
                json!({ "ttl": hop.ttl, "from": hop.from, "device": owner, "seconds": hop.rtt.map(|t| t.as_secs_f64()) }),
            );
        }
        if hops.len() != expected.len() {
            step.check(
                false,
                format!("{} hops, not {}", hops.len(), expected.len()),
                json!(null),
            );
        }
    }
    layers(stage, step)?;
    marked(stage, step)
}

/// One marked packet, traced: where captures saw it.
fn marked(stage: &Stage<'_>, step: &mut Step) -> Result<()> {
    let (from, to) = (stage.pod(stage.a, 1)?, stage.pod(stage.b, 1)?);
    let trace = stage.trace(&from.place, &to.place)?;
    let seen: Vec<_> = trace
        .rows
        .iter()
        .filter(|row| row.leg == Leg::Request && row.direction.is_some())
        .collect();
    step.note("");
    step.check(
        trace.outcome == Outcome::Answered,
        format!(
            "one marked packet, seen by captures {} times on its way there (all of it: `overlayd lab up`, then `overlayd trace {} {}`):",
            seen.len(),
            from.place,
            to.place
        ),
        json!({ "token": trace.token, "outcome": trace.outcome, "rows": trace.rows.len() }),
    );
    for row in seen {
        let arrow = if row.direction == Some(Direction::Out) {
            "→"
        } else {
            "←"
        };
        let device = row.device.as_deref().unwrap_or_default();
        step.note(format!(
            "      {:<10} {arrow} {device:<10} TTL {:<3} {} bytes",
            row.place,
            row.ttl.unwrap_or_default(),
            row.length.unwrap_or_default()
        ));
    }
    Ok(())
}

/// The devices that the packet passed, and what is put around it.
fn layers(stage: &Stage<'_>, step: &mut Step) -> Result<()> {
    let (from, to) = (stage.pod(stage.a, 1)?, stage.pod(stage.b, 1)?);
    let port = stage.status(stage.a)?.backend.port;
    let public = |node: &Node| {
        node.public_ip
            .map(IpAddr::V4)
            .or(node.public_ipv6.map(IpAddr::V6))
    };
    let (here, there) = (public(stage.a), public(stage.b));
    let (here, there) = (
        here.context("no public IP")?,
        there.context("no public IP")?,
    );
    let (ip, outer) = match here {
        IpAddr::V4(_) => ("IPv4 20", 20),
        IpAddr::V6(_) => ("IPv6 40", 40),
    };
    let (headers, inner) = match stage.spec().backend {
        Backend::HostGw => bail!("nothing is put in front of a packet here"),
        Backend::Udp => ("", stage.spec().mtu - outer - 8),
        Backend::Vxlan => ("VXLAN 8│Ethernet 14│", stage.spec().mtu - outer - 8 - 22),
    };
    let there_row = format!(
        "{} eth0 → {} → cni0 → overlay0 → overlayd → eth0 ─╮",
        from.place, from.veth
    );
    let wire = format!("UDP {here} → {there}, port {port} ");
    let width = there_row.chars().count() - 1;
    step.note("");
    step.note(there_row);
    step.note(format!("{wire:>width$}│"));
    step.note(format!(
        "{} eth0 ← {} ← cni0 ← overlay0 ← overlayd ← eth0 ─╯",
        to.place, to.veth
    ));
    step.note(format!(
        "on the wire: │{ip}│UDP 8│{headers}the pod's packet, up to {inner}│"
    ));
    Ok(())
}

fn too_big(stage: &Stage<'_>, step: &mut Step) -> Result<()> {
    let (from, to) = (stage.pod(stage.a, 1)?, stage.pod(stage.b, 1)?);
    let (large, usual) = (stage.spec().mtu, stage.spec().overlay_mtu());
    step.about = format!(
        "{} gets an MTU of {large}, as if nobody had told it of the overlay",
        from.place
    );
    stage.set_pod_mtu(stage.a, from, large)?;
    let probed = ips(to)
        .into_iter()
        .try_for_each(|ip| discover(stage, step, from.netns(), ip));
    stage.set_pod_mtu(stage.a, from, usual)?;
    probed
}

/// Path MTU discovery by hand: what is told is tried next, until a packet arrives.
fn discover(stage: &Stage<'_>, step: &mut Step, from: &NetNs, to: IpAddr) -> Result<()> {
    let (large, fits) = (
        u32::from(stage.spec().mtu),
        u32::from(stage.fits(family(to))),
    );
    let probe = |packet: u32, fragmenting| {
        let headers = if to.is_ipv4() { 28 } else { 48 };
        let opts = PingOpts {
            count: 1,
            size: usize::try_from(packet.saturating_sub(headers))?,
            fragmenting,
            ..PingOpts::default()
        };
        stage.ping(from, to, opts)
    };
    let mut packet = large;
    let mut label = version(to);
    loop {
        let report = probe(packet, Fragmenting::Probe)?;
        let told = report
            .errors
            .first()
            .and_then(|error| error.mtu.map(|mtu| (error, mtu)));
        let said = match told {
            Some((error, mtu)) => {
                let who = stage.owner(error.from).unwrap_or(error.from.to_string());
                format!("{}, MTU {mtu}, says {who}", error.what())
            }
            None => outcome(&report),
        };
        // Each is told of something smaller, never of less than fits, until it does fit.
        let good = match told {
            Some((_, mtu)) => mtu < packet && mtu >= fits,
            None => report.all_answered() && packet == fits,
        };
        step.check(
            good,
            format!("{label:4}  {packet} bytes in one piece: {said}"),
            json!({ "to": to, "packet": packet, "answered": report.all_answered(),
                    "mtu_told": told.map(|(_, mtu)| mtu), "told_by": told.map(|(error, _)| error.from) }),
        );
        match told {
            Some((_, mtu)) if good => packet = mtu,
            _ => break,
        }
        label = "";
    }
    let cut = probe(large, Fragmenting::Allowed)?;
    step.check(
        cut.all_answered(),
        format!("      {large} bytes in fragments: {}", outcome(&cut)),
        json!({ "to": to, "packet": large, "answered": cut.all_answered() }),
    );
    Ok(())
}

fn no_lease(stage: &Stage<'_>, step: &mut Step) -> Result<()> {
    let from = stage.pod(stage.a, 1)?;
    let taken = |ip: IpAddr| {
        let mut nodes = stage.nodes().iter();
        nodes.any(|node| match ip {
            IpAddr::V4(ip) => node.subnet.contains(&ip),
            IpAddr::V6(ip) => node.ipv6_subnet.is_some_and(|net| net.contains(&ip)),
        })
    };
    let free = |at: fn(u8) -> IpAddr| (0..=254).rev().map(at).find(|ip| !taken(*ip));
    let nowhere = [
        free(|n| Ipv4Addr::new(10, 244, n, 9).into()),
        from.ipv6.and_then(|_| {
            free(|n| Ipv6Addr::new(0xfd00, 0x10, 0x244, n.into(), 0, 0, 0, 9).into())
        }),
    ];
    step.about = format!(
        "{} pings into a subnet of the overlay that is nobody's",
        from.place
    );
    for ip in nowhere.into_iter().flatten() {
        let start = Instant::now();
        let once = PingOpts {
            count: 1,
            ..PingOpts::default()
        };
        let report = stage.ping(from.netns(), ip, once)?;
        let took = start.elapsed();
        let told = report.errors.first();
        let text = match told {
            Some(error) => format!(
                "{}, says {}, after {}",
                error.what(),
                stage.owner(error.from).unwrap_or(error.from.to_string()),
                ms(took)
            ),
            None => outcome(&report),
        };
        step.check(
            report.received == 0 && told.is_some_and(|error| error.is_unreachable() && error.code == 0),
            format!("{ip:<18}  {text}"),
            json!({ "to": ip, "told": told.map(|e| e.what()), "told_by": told.map(|e| e.from), "seconds": took.as_secs_f64() }),
        );
    }
    Ok(())
}

fn books(stage: &Stage<'_>, step: &mut Step) -> Result<()> {
    step.about = "every packet that a daemon took in ended in exactly one place".to_owned();
    for node in stage.nodes() {
        let status = stage.status(node)?;
        for (way, counts) in [("out", &status.outbound), ("in", &status.inbound)] {
            let ended = counts.forwarded + counts.answered + counts.flooded + counts.dropped;
            step.check(
                counts.packets_in == ended + counts.queued && counts.queued == 0,
                format!(
                    "{}  {way:3}  {:>7} packets = {} forwarded + {} dropped{}",
                    node.name,
                    counts.packets_in,
                    counts.forwarded,
                    counts.dropped,
                    reasons(&status, way)
                ),
                json!({ "node": node.name, "direction": way, "in": counts.packets_in, "forwarded": counts.forwarded,
                        "dropped": counts.dropped }),
            );
        }
    }
    Ok(())
}

/// Why packets were dropped: ` (2 no-lease)`.
fn reasons(status: &crate::observe::status::Status, way: &str) -> String {
    let drops = status
        .drops
        .iter()
        .filter(|drop| drop.direction.starts_with(way));
    let reasons: Vec<_> = drops
        .map(|drop| format!("{} {}", drop.packets, drop.reason))
        .collect();
    if reasons.is_empty() {
        String::new()
    } else {
        format!(" ({})", reasons.join(", "))
    }
}

/// Three pings, all of which must be answered.
fn pings(stage: &Stage<'_>, step: &mut Step, from: &NetNs, to: IpAddr) -> Result<PingReport> {
    let report = stage.ping(from, to, PingOpts::default())?;
    step.check(
        report.all_answered(),
        format!("{to:<18}  {}", outcome(&report)),
        json!({ "to": to, "sent": report.sent, "received": report.received,
                "seconds": report.rtts.iter().map(Duration::as_secs_f64).collect::<Vec<_>>() }),
    );
    Ok(report)
}

fn outcome(report: &PingReport) -> String {
    let mut text = match (report.sent, report.received, report.best()) {
        (1, 1, Some(rtt)) => format!("answered after {}", ms(rtt)),
        (1, 0, _) => "no answer".to_owned(),
        (sent, received, best) => {
            let best = best.map(|rtt| format!(", round trip {}", ms(rtt)));
            format!("{received} of {sent} answered{}", best.unwrap_or_default())
        }
    };
    if let Some(error) = report.errors.first() {
        text += &format!("; {error}");
    }
    if let Some(refusal) = report.refusals.first() {
        text += &format!(
            "; refused here: {}",
            std::io::Error::from_raw_os_error(refusal.errno)
        );
    }
    if report.corrupted + report.duplicates > 0 {
        text += &format!(
            "; {} damaged, {} duplicated",
            report.corrupted, report.duplicates
        );
    }
    text
}

fn hop_text(stage: &Stage<'_>, hop: &Hop) -> String {
    let from = hop.from.map_or("*".to_owned(), |ip| ip.to_string());
    let what = match hop.answer {
        Answer::TimeExceeded | Answer::Reply => {
            let owner = hop.from.and_then(|ip| stage.owner(ip));
            owner.unwrap_or("nobody's here".to_owned())
        }
        Answer::Error(error) => error.what().to_owned(),
        Answer::Refused(errno) => std::io::Error::from_raw_os_error(errno).to_string(),
        Answer::Silent => "no answer".to_owned(),
    };
    let rtt = hop.rtt.map(ms).unwrap_or_default();
    format!("{from:<17} {what:<20}{rtt}")
}

fn tcp_opts(stage: &Stage<'_>) -> TcpOpts {
    TcpOpts {
        cancel: stage.cancel.clone(),
        overall: Duration::from_secs(20),
        seed: 2014,
        ..TcpOpts::default()
    }
}

fn version(ip: IpAddr) -> &'static str {
    match family(ip) {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

fn bit_rate(bytes_per_second: f64) -> String {
    let bits = bytes_per_second * 8.0;
    if bits >= 1e9 {
        format!("{:.2} Gbit/s", bits / 1e9)
    } else {
        format!("{:.0} Mbit/s", bits / 1e6)
    }
}
