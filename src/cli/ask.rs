//! What the commands share that ask a running daemon.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Exit, Socket};
use crate::observe::client::{self, AskError};

/// The flags of a command that shows one document of the daemon.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) socket: Socket,
    /// Print the document as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// The daemon's answer to a request, as it came and as `T`; or how to end, after it was said why.
pub(super) fn document<T: DeserializeOwned>(
    socket: &Socket,
    request: &str,
) -> Result<(Value, T), Exit> {
    let answer = client::ask(&socket.socket, request).map_err(|error| refused(&error))?;
    match T::deserialize(&answer) {
        Ok(document) => Ok((answer, document)),
        Err(error) => {
            tell!(
                "overlayd: the daemon's {request} has a form that this version does not know: {error}"
            );
            Err(Exit::Error)
        }
    }
}

/// Says why there is no answer.
pub(super) fn refused(error: &AskError) -> Exit {
    tell!("overlayd: {error}");
    match error {
        AskError::Unreachable(_) => Exit::Unreachable,
        AskError::Starting { .. } => Exit::Degraded,
        AskError::Permission(_) | AskError::Broken { .. } => Exit::Error,
    }
}
