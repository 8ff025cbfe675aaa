//! The host's network: namespaces, links, addresses, routes, kernel settings.
//!
//! [`Netlink`] speaks rtnetlink through the `rtnetlink` crate and says in its own words what went wrong: every error
//! names what was attempted. [`netns`] opens, makes and enters network namespaces, [`sysctl`] reads and writes
//! `/proc/sys`, [`preflight`] looks for settings of the host that would silently eat overlay traffic.
//!
//! Two rules hold everywhere. A namespace belongs to a *thread*: whoever wants to act in another one does so on a
//! thread of its own ([`netns::NetNs::run`]), so that no async task ever wakes up in the wrong place. And a netlink
//! socket stays in the namespace it was opened in, so a [`Netlink`] may be used from anywhere afterwards.

mod address;
mod device;
mod features;
pub mod hooks;
pub mod host;
mod ipsec;
mod link;
pub mod masquerade;
mod neighbour;
pub mod netns;
mod nftables;
mod nftables_batch;
pub mod preflight;
mod queue;
pub mod reconcile;
mod route;
pub mod sysctl;
mod watch;

use std::{fmt, io};

use nix::errno::Errno;
use rtnetlink::Handle;

pub use address::Address;
pub use encap::Family;
pub use features::{FeatureReader, Features};
pub use ipsec::Policies;
pub use link::{Link, VxlanInfo, VxlanSpec};
pub use neighbour::{BridgeEntry, Neighbour};
pub use netns::NetNs;
pub use queue::Queue;
pub use route::{PolicyRule, ROUTE_PROTOCOL, Route, RouteSpec, Way};
pub use watch::Change;

/// What was attempted on the host's network, and why it failed.
///
/// Displayed as `add route 10.244.0.0/16 dev overlay0: File exists`.
#[derive(Debug)]
pub struct Error {
    attempt: String,
    cause: io::Error,
}

/// The result of an operation on the host's network.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `cause` while doing `attempt` ("add link cni0").
    pub fn new(attempt: impl Into<String>, cause: impl Into<io::Error>) -> Self {
        Self {
            attempt: attempt.into(),
            cause: cause.into(),
        }
    }

    fn netlink(attempt: impl Into<String>, cause: rtnetlink::Error) -> Self {
        let cause = match cause {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            rtnetlink::Error::RequestFailed => io::Error::other("the netlink connection is closed"),
            other => io::Error::other(other.to_string()),
        };
        Self::new(attempt, cause)
    }

    /// The kernel's error, where it was one.
    pub fn errno(&self) -> Option<Errno> {
        self.cause.raw_os_error().map(Errno::from_raw)
    }

    /// The thing that was to be made is already there.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(Errno::EEXIST)
    }

    /// The thing that was asked for or to be removed is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self.errno(),
            Some(Errno::ENODEV | Errno::ENOENT | Errno::ESRCH | Errno::EADDRNOTAVAIL)
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errno() {
            // Without the "(os error 17)" that io::Error adds: the words are enough.
            Some(errno) => write!(f, "{}: {}", self.attempt, errno.desc()),
            None => write!(f, "{}: {}", self.attempt, self.cause),
        }
    }
}

/// `Display` says the cause as well, so none is given apart: a chain of causes would say it twice.
impl std::error::Error for Error {}

/// One rtnetlink connection, bound for good to the namespace it was opened in.
///
/// Cheap to clone; the connection's task ends with the last clone. Opening needs a running tokio runtime.
#[derive(Clone)]
pub struct Netlink {
    handle: Handle,
}

impl fmt::Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netlink").finish_non_exhaustive()
    }
}

impl Netlink {
    /// Opens a connection in the calling thread's namespace.
    ///
    /// # Errors
    /// Outside a tokio runtime, or when the kernel refuses the socket.
    pub fn open() -> Result<Self> {
        let runtime = runtime()?;
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| Error::new("open a netlink socket", e))?;
        runtime.spawn(connection);
        Ok(Self { handle })
    }

    /// Opens a connection in `namespace`. The caller's thread stays where it is.
    ///
    /// # Errors
    /// As [`Netlink::open`], and when the namespace cannot be entered.
    pub fn open_in(namespace: &NetNs) -> Result<Self> {
        let runtime = runtime()?;
        namespace
            .run(move || {
                let _context = runtime.enter();
                Self::open()
            })
            .map_err(|e| Error::new(format!("enter network namespace {namespace}"), e))?
    }
}

/// An error that says that the thing is so by now is none.
fn tolerate(result: Result<()>, is_so: impl Fn(&Error) -> bool) -> Result<()> {
    match result {
        Err(error) if is_so(&error) => Ok(()),
        other => other,
    }
}

fn runtime() -> Result<tokio::runtime::Handle> {
    tokio::runtime::Handle::try_current()
        .map_err(|e| Error::new("open a netlink socket", io::Error::other(e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_attempt_and_the_cause() {
        let error = Error::new("add route 10.244.0.0/16 dev overlay0", Errno::EEXIST);
        assert_eq!(
            error.to_string(),
            "add route 10.244.0.0/16 dev overlay0: File exists"
        );
        assert!(error.is_exists() && !error.is_not_found());
        let other = Error::new("open x", io::Error::other("no runtime"));
        assert_eq!(other.to_string(), "open x: no runtime");
    }

    #[test]
    fn a_netlink_refusal_keeps_its_errno() {
        let mut message = rtnetlink::packet_core::ErrorMessage::default();
        message.code = std::num::NonZeroI32::new(-nix::libc::ENODEV);
        let error = Error::netlink("del link x", rtnetlink::Error::NetlinkError(message));
        assert_eq!(error.errno(), Some(Errno::ENODEV));
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), "del link x: No such device");
    }

    #[test]
    fn opening_outside_a_runtime_is_an_error_not_a_panic() {
        let error = Netlink::open().unwrap_err();
        assert!(
            error.to_string().starts_with("open a netlink socket: "),
            "{error}"
        );
    }
}
