//! Where the leases stand: a file, or etcd. One face for the daemon.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use encap::Family;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::etcd::{Handle, Releaser, Seen};
use super::file::FileStore;
use super::machine::Wanted;
use super::{Lease, VtepData, default_vtep_mac};
use crate::config::{Backend, Config, EtcdStore, Store};
use crate::observe::status;

/// A start waits so long for the store before it takes the saved leases.
const STORE_FIRST: Duration = Duration::from_secs(3);

/// The daemon's lease store.
#[derive(Debug)]
pub enum LeaseStore {
    /// A file.
    File {
        /// Which.
        file: FileStore,
        /// A tick for each change.
        changes: mpsc::Receiver<()>,
    },
    /// etcd.
    Etcd {
        /// The task that speaks to it.
        handle: Handle,
        /// How it is reached.
        store: Box<EtcdStore>,
    },
}

impl LeaseStore {
    /// Opens the configured store and begins to watch it.
    ///
    /// # Errors
    /// If a file cannot be watched.
    pub fn open(store: &Store) -> io::Result<Self> {
        Ok(match store {
            Store::File { path } => {
                let file = FileStore::new(path);
                let changes = file.watch()?;
                LeaseStore::File { file, changes }
            }
            Store::Etcd(store) => LeaseStore::Etcd {
                handle: Handle::start((**store).clone()),
                store: store.clone(),
            },
        })
    }

    /// The net-conf that the store holds, if it is a store that holds one. Waits for it.
    pub async fn net_conf(&mut self) -> Option<Vec<u8>> {
        let LeaseStore::Etcd { handle, store } = self else {
            return None;
        };
        let fresh = |seen: &Seen| seen.from_store && seen.config.is_some();
        let in_time = timeout(STORE_FIRST, handle.until(fresh)).await;
        let seen = match in_time {
            Ok(seen) => seen,
            Err(_) => {
                let seen = handle.seen();
                if seen.config.is_none() {
                    match seen.from_store {
                        true => tracing::warn!(
                            "etcd has no {prefix}/config yet: write one, for example etcdctl put {prefix}/config '{{\"Network\": \"10.244.0.0/16\", \"Backend\": {{\"Type\": \"vxlan\"}}}}'",
                            prefix = store.prefix
                        ),
                        false => tracing::warn!(
                            "the store is out of reach, and there are no saved leases to start with: waiting for it"
                        ),
                    }
                }
                handle.until(|seen| seen.config.is_some()).await
            }
        };
        seen.config.map(|config| config.to_vec())
    }

    /// Has the node's lease taken, where the store hands out leases, and waits until there is one.
    pub async fn take(&mut self, config: &Config, public: fdb::Endpoint) {
        let LeaseStore::Etcd { handle, .. } = self else {
            return;
        };
        handle.want(wanted(config, public));
        let fresh = |seen: &Seen| seen.from_store && seen.own.is_some() && seen.troubles.is_empty();
        if timeout(STORE_FIRST, handle.until(fresh)).await.is_err() {
            if handle.seen().own.is_none() {
                tracing::warn!("there is no lease for this node yet: waiting for one");
            }
            handle.until(|seen| seen.own.is_some()).await;
        }
    }

    /// Waits until something changed.
    pub async fn changed(&mut self) {
        match self {
            LeaseStore::File { changes, .. } => match changes.recv().await {
                Some(()) => {}
                None => std::future::pending().await,
            },
            LeaseStore::Etcd { handle, .. } => handle.changed().await,
        }
    }

    /// The leases now, in order of precedence.
    ///
    /// # Errors
    /// Why they cannot be read. Whoever has a good table keeps it.
    pub fn load(&self) -> Result<Vec<Lease>, String> {
        match self {
            LeaseStore::File { file, .. } => file.load().map_err(|error| error.to_string()),
            LeaseStore::Etcd { handle, .. } => Ok(handle.seen().leases.to_vec()),
        }
    }

    /// Lets go of the store. The lease stays: the next start takes it again.
    pub async fn close(self) {
        if let LeaseStore::Etcd { handle, .. } = self {
            handle.close().await;
        }
    }

    /// For status answers and requests.
    pub fn face(&self) -> Face {
        match self {
            LeaseStore::File { file, .. } => Face::File(file.path().to_owned()),
            LeaseStore::Etcd { handle, store } => Face::Etcd {
                seen: handle.watch(),
                releaser: handle.releaser(),
                prefix: store.prefix.clone(),
            },
        }
    }
}

/// What status answers need of a store.
#[derive(Clone, Debug)]
pub enum Face {
    /// A file.
    File(PathBuf),
    /// etcd.
    Etcd {
        /// What is known.
        seen: watch::Receiver<Seen>,
        /// For `release`.
        releaser: Releaser,
        /// What all keys begin with.
        prefix: String,
    },
}

impl Face {
    /// How the store is.
    pub fn status(&self) -> status::Store {
        match self {
            Face::File(path) => status::Store {
                kind: "file".into(),
                place: path.display().to_string(),
                ..status::Store::default()
            },
            Face::Etcd { seen, prefix, .. } => {
                let seen = seen.borrow();
                let figures = &seen.figures;
                let age = seen
                    .troubles
                    .iter()
                    .map(|trouble| trouble.since.elapsed().as_secs());
                status::Store {
                    kind: "etcd".into(),
                    place: format!("{}{prefix}", seen.endpoint),
                    reasons: seen
                        .troubles
                        .iter()
                        .map(|trouble| trouble.what.clone())
                        .collect(),
                    degraded_seconds: age.max(),
                    revision: figures.revision,
                    reservations: seen.reservations,
                    unreadable: seen
                        .unreadable
                        .iter()
                        .map(|(key, why)| format!("{key}: {why}"))
                        .collect(),
                    connects: figures.connects,
                    relists: figures.relists,
                    changes: figures.changes,
                    unreadable_values: figures.unreadable,
                    races_lost: figures.lost,
                    leases_taken: figures.taken,
                    renewals: figures.renewals,
                }
            }
        }
    }

    /// Gives the node's lease back.
    ///
    /// # Errors
    /// If the store hands out no leases.
    pub fn release(&self) -> Result<(), String> {
        match self {
            Face::File(path) => Err(format!(
                "the leases stand in the file {}: take this node's out of it",
                path.display()
            )),
            Face::Etcd { releaser, .. } => {
                releaser.release();
                Ok(())
            }
        }
    }
}

/// What a node with this configuration wants to hold.
pub fn wanted(config: &Config, public: fdb::Endpoint) -> Wanted {
    let data = match &config.backend {
        Backend::Vxlan(vxlan) => Some(VtepData {
            vni: Some(vxlan.vni),
            vtep_mac: Some(default_vtep_mac(public)),
        }),
        Backend::Udp(_) => None,
    };
    Wanted {
        attributes: Lease {
            public_ip: public.v4,
            public_ipv6: public.v6,
            backend_type: Some(config.backend.name().to_owned()),
            // Each family of the overlay has its own, as with flannel.
            backend_data: data.filter(|_| config.network.v4.is_some()),
            backend_v6_data: data.filter(|_| config.network.v6.is_some()),
            ..Lease::default()
        },
        pool: config.pool,
        hints: Vec::new(),
    }
}

/// The public IPs to write into the lease: the configured ones, else the interface's first of each family. IPv6
/// only where the overlay or the underlay has need of it, as flannel's.
pub fn public(config: &Config, candidates: &[std::net::IpAddr]) -> fdb::Endpoint {
    let first = |family: Family| {
        candidates
            .iter()
            .find(move |ip| Family::of(ip) == family)
            .copied()
    };
    let v4 = match first(Family::V4) {
        Some(std::net::IpAddr::V4(ip)) => Some(ip),
        _ => None,
    };
    let v6 = match first(Family::V6) {
        Some(std::net::IpAddr::V6(ip)) if config.network.v6.is_some() || v4.is_none() => Some(ip),
        _ => None,
    };
    fdb::Endpoint {
        v4: config.node.public_ip.or(v4),
        v6: config.node.public_ipv6.or(v6),
    }
}
