//! `overlayd peers`: the other nodes, as the running daemon knows them.

use super::lease::columns;
use super::{Exit, Socket, say};
use crate::observe::client::{self, AskError};
use crate::observe::status::{self, Status};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    socket: Socket,
    /// Print them as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn main(args: &Args) -> Exit {
    let status = match ask(&args.socket) {
        Ok(status) => status,
        Err(exit) => return exit,
    };
    if args.json {
        let peers = serde_json::json!({"version": status::VERSION, "peers": status.peers});
        say(format_args!("{peers:#}"));
        return Exit::Ok;
    }
    let none = || "-".to_owned();
    let mut rows = vec![
        [
            "subnet",
            "IPv6 subnet",
            "public IP",
            "public IPv6",
            "sent",
            "received",
        ]
        .map(str::to_owned),
    ];
    rows.extend(status.peers.iter().map(|peer| {
        [
            peer.subnet.map_or_else(none, |net| net.to_string()),
            peer.ipv6_subnet.map_or_else(none, |net| net.to_string()),
            peer.public_ip.map_or_else(none, |ip| ip.to_string()),
            peer.public_ipv6.map_or_else(none, |ip| ip.to_string()),
            peer.sent_packets.to_string(),
            peer.received_packets.to_string(),
        ]
    }));
    say(columns(&rows));
    Exit::Ok
}

/// The daemon's status, or what was complained of.
pub(super) fn ask(socket: &Socket) -> Result<Status, Exit> {
    let answer = client::status(&socket.socket).map_err(|error| refused(&error))?;
    serde_json::from_value(answer).map_err(|error| {
        tell!("overlayd: the daemon's status has a form that this version does not know: {error}");
        Exit::Error
    })
}

pub(super) fn refused(error: &AskError) -> Exit {
    tell!("overlayd: {error}");
    match error {
        AskError::Unreachable(_) => Exit::Unreachable,
        AskError::Permission(_) | AskError::Broken { .. } => Exit::Error,
    }
}
