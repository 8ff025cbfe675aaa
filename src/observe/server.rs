//! The control socket: a Unix stream socket that takes one-line requests and gives one-line JSON answers.
//!
//! ```text
//! > status\n
//! < {"version":1,"state":"ok",...}\n
//! > who 10.244.2.2\n
//! < {"version":1,"destination":"10.244.2.2","holder":"peer","to":"10.99.0.2:8472",...}\n
//! ```
//!
//! A request that is not known is answered by `{"error":"..."}`. Only the daemon's user may connect.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use nix::fcntl::{Flock, FlockArg};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::AbortHandle;
use tokio_util::codec::{BytesCodec, FramedRead, FramedWrite, LinesCodec};

/// A request longer than this is not one of ours.
const MAX_REQUEST: usize = 1024;
/// How long a client may take over one request or answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many clients are served at once; one more takes the place of the oldest. Far more than ask at a
/// time, so that it is an idle one, and far fewer than the descriptors that a process gets.
const MAX_CLIENTS: usize = 256;

/// Why the control socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another daemon serves it.
    #[error(
        "another overlayd serves the control socket {0}: stop it, or give this one its own with control.socket or --socket"
    )]
    Taken(PathBuf),
    /// Something that is no socket is in the way.
    #[error(
        "{0} is in the way of the control socket and is not a socket: remove it, or set control.socket"
    )]
    NotASocket(PathBuf),
    /// We may not write there.
    #[error(
        "no permission to make the control socket {0}: run as root, or set control.socket to a place where this user may write"
    )]
    Permission(PathBuf),
    /// The path does not fit into a socket address.
    #[error("the control socket's path {0} is too long: the kernel takes at most 107 bytes")]
    TooLong(PathBuf),
    /// Something else.
    #[error("cannot open the control socket {path}: {cause}")]
    Io {
        /// The socket's path.
        path: PathBuf,
        /// The kernel's word.
        cause: io::Error,
    },
}

/// The bound control socket. The lock beside it is what makes it ours: it goes with the process, however
/// that ends, while the socket's file may stay.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
    _lock: Lock,
}

/// The lock on a control socket's path, and the file it is on.
struct Lock {
    _held: Flock<File>,
    path: PathBuf,
}

impl Control {
    /// Binds the socket at `path`, making its directory if need be, and taking the place of a socket that
    /// a dead daemon left.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn bind(path: &Path) -> Result<Self, OpenError> {
        let io_error = |cause: io::Error| match cause.kind() {
            io::ErrorKind::PermissionDenied => OpenError::Permission(path.into()),
            _ => OpenError::Io {
                path: path.into(),
                cause,
            },
        };
        if path.as_os_str().len() > 107 {
            return Err(OpenError::TooLong(path.into()));
        }
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(io_error)?;
        }
        let lock = Lock::take(path).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => OpenError::Taken(path.into()),
            _ => io_error(error),
        })?;
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                fs::remove_file(path).map_err(io_error)?
            }
            Ok(_) => return Err(OpenError::NotASocket(path.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error(error)),
        }
        let listener = UnixListener::bind(path).map_err(io_error)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(io_error)?;
        Ok(Control {
            listener,
            path: path.into(),
            _lock: lock,
        })
    }

    /// Serves clients for ever; `answer` makes the answer to a request.
    pub async fn serve<A>(
        &self,
        answer: impl Fn(String) -> A + Clone + Send + 'static,
    ) -> Infallible
    where
        A: Future<Output = Bytes> + Send + 'static,
    {
        // The one that came first stands first. It gives way when there are too many: whoever connects
        // and then says nothing keeps nobody else out.
        let mut clients: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    clients.retain(|client| !client.is_finished());
                    if clients.len() == MAX_CLIENTS {
                        clients.pop_front().iter().for_each(AbortHandle::abort);
                    }
                    let client = tokio::spawn(serve_client(stream, answer.clone()));
                    clients.push_back(client.abort_handle());
                }
                Err(error) => {
                    // Out of descriptors, most likely: others may end meanwhile.
                    tracing::warn!(%error, "cannot accept a control client");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Nothing can be done about a failure, and the next daemon clears up as well. The lock goes after
        // this: who holds it owns the path.
        let _ = fs::remove_file(&self.path);
    }
}

impl Lock {
    /// Locks a file beside `socket`, which its last owner may be removing at this moment: a lock on a file
    /// that is no longer there would keep nobody out.
    fn take(socket: &Path) -> io::Result<Self> {
        // Appended, so that two sockets that differ in their extensions have two locks.
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&path)?;
            let held =
                Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
            match fs::metadata(&path) {
                Ok(there) if there.ino() == held.metadata()?.ino() => {
                    return Ok(Lock { _held: held, path });
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Still held here; only then is the file ours to remove.
        let _ = fs::remove_file(&self.path);
    }
}

async fn serve_client<A: Future<Output = Bytes>>(
    mut stream: UnixStream,
    answer: impl Fn(String) -> A,
) {
    let (read, write) = stream.split();
    let mut requests = FramedRead::new(read, LinesCodec::new_with_max_length(MAX_REQUEST));
    let mut answers = FramedWrite::new(write, BytesCodec::new());
    while let Ok(Some(Ok(request))) = tokio::time::timeout(PATIENCE, requests.next()).await {
        let answer = answer(request.trim().to_owned()).await;
        if !matches!(
            tokio::time::timeout(PATIENCE, answers.send(answer)).await,
            Ok(Ok(()))
        ) {
            return;
        }
    }
}
