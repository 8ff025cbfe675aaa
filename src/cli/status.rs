//! `overlayd status`: asks a running daemon how it is.

use serde_json::Value;

use super::{Exit, ask, say};
use crate::observe::status::Status;

pub(super) fn main(args: &ask::Args) -> Exit {
    let shown = match args.json {
        // As it came, also from a daemon of another version.
        true => ask::document(&args.socket, "status")
            .inspect(|(_, answer): &(_, Value)| say(format_args!("{answer:#}")))
            .map(|(answer, _)| answer),
        false => ask::document(&args.socket, "status")
            .inspect(|(_, status): &(_, Status)| say(status.to_text().trim_end()))
            .map(|(answer, _)| answer),
    };
    match shown {
        Ok(answer) if answer["state"] == "degraded" => Exit::Degraded,
        Ok(_) => Exit::Ok,
        Err(exit) => exit,
    }
}
