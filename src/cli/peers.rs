//! `overlayd peers`: the other nodes, as the running daemon knows them.

use super::lease::columns;
use super::{Exit, ask, say};
use crate::observe::status::{self, Status};

pub(super) fn main(args: &ask::Args) -> Exit {
    let status: Status = match ask::document(&args.socket, "status") {
        Ok((_, status)) => status,
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
