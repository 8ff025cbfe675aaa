//! Asks a running daemon over its control socket.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::status::Who;

/// How long the daemon may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens there.
    #[error(
        "no overlayd answers at {0}: is it running? (`overlayd run`, or give its socket with --socket)"
    )]
    Unreachable(PathBuf),
    /// We may not connect.
    #[error("no permission to ask the overlayd at {0}: run as the daemon's user (root)")]
    Permission(PathBuf),
    /// It does not forward yet.
    #[error("the overlayd at {path} does not forward yet: {why}")]
    Starting {
        /// The control socket.
        path: PathBuf,
        /// What it waits for.
        why: String,
    },
    /// The connection broke or the answer makes no sense.
    #[error("the overlayd at {path} gave no answer: {why}")]
    Broken {
        /// The control socket.
        path: PathBuf,
        /// What went wrong.
        why: String,
    },
}

/// The status document of the daemon behind `socket`.
///
/// # Errors
/// If it cannot be reached, or answers nonsense.
pub fn status(socket: &Path) -> Result<Value, AskError> {
    ask(socket, "status")
}

/// The status document of the daemon behind `socket`, if it takes no longer than `patience`.
///
/// # Errors
/// If it cannot be reached, is too slow, or answers nonsense.
pub fn status_within(socket: &Path, patience: Duration) -> Result<Value, AskError> {
    ask_within(socket, "status", patience)
}

/// Where the daemon's tables lead a destination.
///
/// # Errors
/// If it cannot be reached, is too old for the question, or answers nonsense.
pub fn who(socket: &Path, destination: IpAddr) -> Result<Who, AskError> {
    let answer = ask(socket, &format!("who {destination}"))?;
    serde_json::from_value(answer).map_err(|error| AskError::Broken {
        path: socket.into(),
        why: error.to_string(),
    })
}

/// Sends one request and reads its answer.
///
/// # Errors
/// If the daemon cannot be reached, or answers nonsense, or with an error.
pub fn ask(socket: &Path, request: &str) -> Result<Value, AskError> {
    ask_within(socket, request, PATIENCE)
}

fn ask_within(socket: &Path, request: &str, patience: Duration) -> Result<Value, AskError> {
    let broken = |why: String| AskError::Broken {
        path: socket.into(),
        why,
    };
    let stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => AskError::Permission(socket.into()),
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => AskError::Unreachable(socket.into()),
        _ => broken(error.to_string()),
    })?;
    let line = match exchange(stream, request, patience) {
        // The daemon is no more: it ended between our call and its answer.
        Ok(line) if line.is_empty() => return Err(AskError::Unreachable(socket.into())),
        Err(error) if gone(&error) => return Err(AskError::Unreachable(socket.into())),
        exchanged => exchanged.map_err(|error| broken(error.to_string()))?,
    };
    let answer: Value = serde_json::from_str(&line).map_err(|error| broken(error.to_string()))?;
    let word = |name| answer.get(name).and_then(Value::as_str);
    if let Some(why) = word("starting") {
        return Err(AskError::Starting {
            path: socket.into(),
            why: why.to_owned(),
        });
    }
    match word("error") {
        Some(error) => Err(broken(error.to_owned())),
        None => Ok(answer),
    }
}

fn gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}

fn exchange(mut stream: UnixStream, request: &str, patience: Duration) -> io::Result<String> {
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}
