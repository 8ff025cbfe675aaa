//! `overlayd mtu`: what each encapsulation costs. Needs no daemon and no root.

use std::path::PathBuf;

use anyhow::Context as _;
use encap::Family;
use serde_json::{Value, json};

use super::{Exit, complain, say};
use crate::teach::chart;
use crate::teach::overhead::{Budget, FRAMING, MIN_IPV6_MTU, MIN_LINK_MTU};

/// The version of the JSON object's form.
const VERSION: u32 = 1;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The largest IP packet that the underlay carries, in bytes
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 1500,
        value_parser = clap::value_parser!(u16).range(i64::from(MIN_LINK_MTU)..)
    )]
    link_mtu: u16,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Also draw goodput against packet size, into this file (SVG; `-` is stdout, and then nothing else is printed)
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

pub(super) fn main(args: &Args) -> Exit {
    if let Some(path) = &args.svg {
        let picture = chart::goodput(args.link_mtu);
        if path.as_os_str() == "-" {
            say(picture.trim_end());
            return Exit::Ok;
        }
        let written = std::fs::write(path, picture);
        if let Err(error) = written.with_context(|| format!("cannot write {}", path.display())) {
            complain(&error);
            return Exit::Error;
        }
    }
    if args.json {
        say(format_args!("{:#}", to_json(args.link_mtu)));
    } else {
        say(to_text(args.link_mtu).trim_end());
    }
    Exit::Ok
}

fn family(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn to_text(link_mtu: u16) -> String {
    use std::fmt::Write as _;
    let mut text = format!(
        "Link MTU {link_mtu} bytes. MTU, MSS and overhead in bytes; goodput in % of an Ethernet line, at full packets.\n\n"
    );
    let _ = writeln!(
        text,
        "{:<10} {:<5} {:>8} {:>6}   {:>8} {:>8}   {:>8} {:>8}   headers",
        "", "", "overhead", "MTU", "MSS IPv4", "IPv6", "goodput", "IPv6"
    );
    for budget in Budget::all(link_mtu) {
        let over = budget.through.map_or("", |(_, outer)| family(outer));
        let mss = |inner| {
            budget
                .mss(inner)
                .map_or("-".to_owned(), |mss| mss.to_string())
        };
        let goodput = |inner| {
            budget
                .mss(inner)
                .and(budget.goodput(budget.mtu(), inner))
                .map_or("-".to_owned(), |share| format!("{:.2}", share * 100.0))
        };
        let headers = budget
            .headers()
            .iter()
            .map(|part| format!("{} {}", part.name, part.bytes))
            .collect::<Vec<_>>()
            .join(" + ");
        let line = format!(
            "{:<10} {over:<5} {:>8} {:>6}   {:>8} {:>8}   {:>8} {:>8}   {headers}",
            budget.name(),
            budget.overhead(),
            budget.mtu(),
            mss(Family::V4),
            mss(Family::V6),
            goodput(Family::V4),
            goodput(Family::V6),
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let _ = writeln!(
        text,
        "\nMSS: TCP payload of an inner packet, without options (Linux's timestamps take 12 bytes of it).\n\
         Goodput: TCP payload as a share of what is on the line, {FRAMING} bytes of Ethernet framing per frame included.\n\
         Geneve and GRE without options; WireGuard pads to 16 bytes up to its MTU."
    );
    if usize::from(link_mtu) < MIN_IPV6_MTU {
        let _ = writeln!(
            text,
            "A link below {MIN_IPV6_MTU} bytes cannot carry IPv6 (RFC 8200 section 5)."
        );
    } else if Budget::all(link_mtu).any(|budget| budget.mtu() < MIN_IPV6_MTU) {
        let _ = writeln!(
            text,
            "-: an MTU below {MIN_IPV6_MTU} cannot carry IPv6 (RFC 8200 section 5)."
        );
    }
    text
}

fn to_json(link_mtu: u16) -> Value {
    let entry = |budget: Budget| {
        let headers = budget.headers().into_iter();
        let both = |value: &dyn Fn(Family) -> Value| json!({"ipv4": value(Family::V4), "ipv6": value(Family::V6)});
        json!({
            "name": budget.name(),
            "outer": budget.through.map(|(_, outer)| family(outer).to_lowercase()),
            "headers": headers
                .map(|part| json!({"name": part.name, "bytes": part.bytes, "source": part.source}))
                .collect::<Vec<_>>(),
            "overhead": budget.overhead(),
            "mtu": budget.mtu(),
            "mss": both(&|inner| json!(budget.mss(inner))),
            "goodput": both(&|inner| json!(budget.mss(inner).and(budget.goodput(budget.mtu(), inner)))),
        })
    };
    json!({
        "version": VERSION,
        "link_mtu": link_mtu,
        "framing": FRAMING,
        "encapsulations": Budget::all(link_mtu).map(entry).collect::<Vec<_>>(),
    })
}
