//! `overlayd trace`: one packet's way, hop by hop. Needs root.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ColorChoice;
use nix::unistd::Uid;

use super::{Exit, LAB_NAME, Socket, complain, say};
use crate::lab::graph::Topology;
use crate::lab::state;
use crate::lab::topology::{DEFAULT_NAME, Lab};
use crate::lab::traffic::Cancel;
use crate::teach::trace::world::{Names, World};
use crate::teach::trace::{self, Outcome, Probe, Trace, text};

#[derive(clap::Args)]
#[command(
    after_help = "SRC and DST are addresses, or in a lab also names: node1/pod1 is a pod, node1 a node at its underlay address.\n\
    Without --host the trace is made in a lab, if there is one; otherwise on this host, between addresses, as far as this \
    host can see.\n\n\
    Exit codes: 0 answered; 5 lost, or answered elsewhere; 3 lost at a node whose overlayd does not answer; 1 no trace could \
    be made.\n\n\
    Examples:\n  overlayd trace node1/pod1 node2/pod1\n  overlayd trace 10.244.1.2 10.244.2.2 --size 1500 --df\n  \
    overlayd trace node1/pod1 node2/pod1 --spoof 10.244.3.2\n  overlayd trace -6 node1/pod1 node2/pod1 --svg way.svg"
)]
pub(super) struct Args {
    /// Where the packet starts
    #[arg(value_name = "SRC")]
    source: String,
    /// Where it is to go
    #[arg(value_name = "DST")]
    destination: String,
    /// The lab [default: `lab`]
    #[arg(long, env = LAB_NAME)]
    name: Option<String>,
    /// Trace on this host, whatever labs there are
    #[arg(long)]
    host: bool,
    #[command(flatten)]
    socket: Socket,
    /// Names stand for their IPv6 addresses
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Length of the IP packet, headers included [default: ping's, 84 over IPv4 and 104 over IPv6]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(64..))]
    size: Option<u16>,
    /// The packet may not be fragmented
    #[arg(long)]
    df: bool,
    /// TTL or hop limit
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u8).range(1..))]
    ttl: u8,
    /// Send with this source address, which is not the sender's
    #[arg(long, value_name = "IP", value_parser = parse_spoof)]
    spoof: Option<IpAddr>,
    /// How long to wait for the answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = parse_seconds)]
    timeout: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Also draw the way into this file (SVG; `-` is stdout, and then nothing else is printed)
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Colours: on terminals that want them, always, or never
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if (0.05..=60.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("0.05 to 60 seconds".to_owned())
    }
}

/// An address that a packet can claim to come from (RFC 1122 section 3.2.1.3, RFC 4291 sections 2.5 and 2.7). The kernel
/// would put another in the place of most of the others, or send nothing.
fn parse_spoof(text: &str) -> Result<IpAddr, String> {
    let ip: IpAddr = text.parse().map_err(|_| "it is no IP address".to_owned())?;
    let mapped = matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
    let what = match ip {
        _ if mapped => "an IPv4 address in IPv6's clothes",
        _ if ip.is_multicast() => "a multicast address, a group's",
        _ if ip.is_loopback() => "a loopback address, which never leaves a host",
        _ if ip.is_unspecified() => "the unspecified address",
        IpAddr::V4(ip) if ip.is_broadcast() => "the broadcast address",
        _ => return Ok(ip),
    };
    Err(format!("it is {what}: no packet can come from there"))
}

pub(super) fn main(args: &Args) -> Exit {
    if let Some(problem) = mixed(args) {
        tell!("overlayd: {problem}");
        return Exit::Usage;
    }
    if !Uid::effective().is_root() {
        tell!(
            "overlayd: a trace needs root, to capture packets and enter network namespaces: use sudo"
        );
        return Exit::Error;
    }
    run(args).unwrap_or_else(|error| {
        complain(&error);
        Exit::Error
    })
}

/// Addresses of two families make no packet.
fn mixed(args: &Args) -> Option<String> {
    let given = [
        args.source.parse().ok(),
        args.destination.parse().ok(),
        args.spoof,
    ];
    let given: Vec<IpAddr> = given.into_iter().flatten().collect();
    let other = given.iter().find(|ip| ip.is_ipv6() != given[0].is_ipv6());
    if let Some(other) = other {
        return Some(format!(
            "{} and {other} are of two families: one packet has one",
            given[0]
        ));
    }
    let v4 = given.first().filter(|ip| ip.is_ipv4() && args.ipv6)?;
    Some(format!("{v4} is an IPv4 address, and --ipv6 asks for IPv6"))
}

fn run(args: &Args) -> Result<Exit> {
    let names = Names {
        source: &args.source,
        destination: &args.destination,
        ipv6: args.ipv6,
        spoof: args.spoof,
    };
    let probe = Probe {
        size: args.size,
        dont_fragment: args.df,
        ttl: args.ttl,
        spoof: args.spoof,
        patience: Duration::from_secs_f64(args.timeout),
    };
    let lab = find_lab(args)?;
    let world = match &lab {
        Some(lab) => World::of_lab(lab, &names)?,
        None => World::of_host(&args.socket.socket, &names)?,
    };
    if args.timeout > 2.0 {
        tell!("waiting for the answer, at most {} s ...", args.timeout);
    }
    let trace = trace::run(&world, &probe, &Cancel::default())?;
    if let Some(path) = &args.svg {
        let topology = match &lab {
            Some(lab) => Topology::seen(lab, &[trace.source.ip, trace.destination.ip])?,
            None => trace::of_host(&world, &trace)?,
        };
        let picture = trace::picture(&trace, topology).to_string();
        if path.as_os_str() == "-" {
            say(picture.trim_end());
            return Ok(exit(&trace));
        }
        write(path, &picture)?;
    }
    if args.json {
        say(serde_json::to_string_pretty(&trace)?);
    } else {
        let colours = match args.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => {
                anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never
            }
        };
        say(text::text(&trace, colours).trim_end());
    }
    Ok(exit(&trace))
}

fn write(path: &Path, picture: &str) -> Result<()> {
    std::fs::write(path, picture).with_context(|| format!("cannot write {}", path.display()))
}

/// The lab that is meant; `None`: this host.
fn find_lab(args: &Args) -> Result<Option<Lab>> {
    if args.host {
        return Ok(None);
    }
    let exe = std::env::current_exe()
        .context("cannot find the overlayd that is running (is /proc mounted?)")?;
    if let Some(name) = &args.name {
        return Lab::load(name, &exe).map(Some);
    }
    let named = [&args.source, &args.destination];
    let named = named.iter().any(|text| text.parse::<IpAddr>().is_err());
    // Names are a lab's: where there is none, its own complaint says best what to do.
    if named || state::dir(DEFAULT_NAME).exists() {
        return Lab::load(DEFAULT_NAME, &exe).map(Some);
    }
    Ok(None)
}

fn exit(trace: &Trace) -> Exit {
    for node in &trace.unreachable {
        if trace.hanging.contains(node) {
            tell!(
                "overlayd: the overlayd of {node} runs, but does not answer: it hangs, or is stopped"
            );
        } else {
            let restart = &trace.restart;
            tell!("overlayd: the overlayd of {node} does not answer: {restart}");
        }
    }
    match trace.outcome {
        Outcome::Answered => Exit::Ok,
        _ if !trace.unreachable.is_empty() => Exit::Unreachable,
        Outcome::Lost | Outcome::Elsewhere | Outcome::Unseen => Exit::Failed,
    }
}
