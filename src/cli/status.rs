//! `overlayd status`: asks a running daemon how it is.

use super::{Exit, Socket, say};
use crate::observe::client::{self, AskError};
use crate::observe::status::Status;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    socket: Socket,
    /// Print the whole status as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn main(args: &Args) -> Exit {
    let answer = match client::status(&args.socket.socket) {
        Ok(answer) => answer,
        Err(error) => {
            tell!("overlayd: {error}");
            return match error {
                AskError::Unreachable(_) => Exit::Unreachable,
                AskError::Permission(_) | AskError::Broken { .. } => Exit::Error,
            };
        }
    };
    let degraded = answer["state"] == "degraded";
    if args.json {
        say(format_args!("{answer:#}"));
    } else {
        match serde_json::from_value::<Status>(answer) {
            Ok(status) => say(status.to_text().trim_end()),
            Err(error) => {
                tell!(
                    "overlayd: the daemon's status has a form that this version does not know ({error}): ask with --json"
                );
                return Exit::Error;
            }
        }
    }
    if degraded { Exit::Degraded } else { Exit::Ok }
}
