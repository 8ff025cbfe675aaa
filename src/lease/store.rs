//! Where the leases stand: a file, or etcd. One face for the daemon.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use encap::Family;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout_at;

use super::etcd::{Handle, Releaser, Seen};
use super::file::FileStore;
use super::machine::Wanted;
use super::schema::Subnets;
use super::subnet_env::{self, Previous};
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
        /// What status answers tell of it.
        figures: Arc<Mutex<status::Store>>,
    },
    /// etcd.
    Etcd {
        /// The task that speaks to it.
        handle: Handle,
        /// How it is reached.
        store: Box<EtcdStore>,
        /// Until when a start waits for the store before it takes what is saved.
        patience: Instant,
        /// What a start waits for.
        waiting: Arc<Mutex<String>>,
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
                let figures = status::Store {
                    kind: "file".into(),
                    place: file.path().display().to_string(),
                    ..status::Store::default()
                };
                LeaseStore::File {
                    file,
                    changes,
                    figures: Arc::new(Mutex::new(figures)),
                }
            }
            Store::Etcd(store) => LeaseStore::Etcd {
                handle: Handle::start((**store).clone()),
                store: store.clone(),
                patience: Instant::now() + STORE_FIRST,
                waiting: Arc::default(),
            },
        })
    }

    /// What `read` makes of the net-conf that the store holds, if it is a store that holds one. Waits for one that can be
    /// read; the last that was taken up here stands in for one that cannot, or for a store that is out of reach.
    pub async fn net_conf<C>(
        &mut self,
        read: impl Fn(&[u8]) -> Result<C, String>,
    ) -> Option<NetConf<C>> {
        let LeaseStore::Etcd {
            handle,
            store,
            patience,
            waiting,
        } = self
        else {
            return None;
        };
        loop {
            let seen = handle.look();
            let fault = match &seen.config {
                _ if !seen.from_store => "the store is out of reach".to_owned(),
                None => no_config(&store.prefix),
                Some(bytes) => match read(bytes) {
                    Ok(config) => return Some(NetConf::new(bytes, config, None)),
                    Err(why) => not_taken(&why),
                },
            };
            let late = Instant::now() >= *patience;
            if seen.from_store || late {
                if let Some(good) = &seen.good {
                    if let Ok(config) = read(good) {
                        // That the store is out of reach is said by the store.
                        let fault = seen.from_store.then_some(fault);
                        return Some(NetConf::new(good, config, fault));
                    }
                }
                let mut waiting = lock(waiting);
                if *waiting != fault {
                    tracing::warn!("{fault}: waiting");
                    *waiting = fault;
                }
            }
            match late {
                true => handle.changed().await,
                false => drop(timeout_at((*patience).into(), handle.changed()).await),
            }
        }
    }

    /// Tells that this net-conf was taken up: the next start has it if the store has none that is as good.
    pub fn took(&self, net_conf: &[u8]) {
        if let LeaseStore::Etcd { handle, .. } = self {
            handle.good(net_conf);
        }
    }

    /// Has the node's lease taken, where the store hands out leases, and waits until there is one.
    pub async fn take(&mut self, wanted: Wanted) {
        let LeaseStore::Etcd {
            handle,
            patience,
            waiting,
            ..
        } = self
        else {
            return;
        };
        handle.want(wanted);
        let fresh = |seen: &Seen| seen.from_store && seen.own.is_some() && seen.troubles.is_empty();
        if timeout_at((*patience).into(), handle.until(fresh))
            .await
            .is_err()
        {
            if handle.seen().own.is_none() {
                let what = "there is no lease for this node yet";
                tracing::warn!("{what}: waiting for one");
                *lock(waiting) = what.to_owned();
            }
            handle.until(|seen| seen.own.is_some()).await;
        }
    }

    /// Has the node's lease say what is so now, where the store hands out leases.
    pub fn want(&self, wanted: Wanted) {
        if let LeaseStore::Etcd { handle, .. } = self {
            handle.want(wanted);
        }
    }

    /// The net-conf that the store holds now, or why it holds none; nothing, if there is no news of it.
    pub fn net_conf_now(&self) -> Option<Result<Vec<u8>, String>> {
        let LeaseStore::Etcd { handle, store, .. } = self else {
            return None;
        };
        let seen = handle.seen();
        Some(match &seen.config {
            Some(config) => Ok(config.to_vec()),
            None if seen.from_store => Err(no_config(&store.prefix)),
            None => return None,
        })
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
            LeaseStore::File { file, figures, .. } => {
                let loaded = file.load().map_err(|error| error.to_string());
                let mut figures = lock(figures);
                figures.reachable = loaded.is_ok();
                match &loaded {
                    Ok(leases) => {
                        figures.reads += 1;
                        figures.leases = leases.len();
                    }
                    Err(_) => figures.faults += 1,
                }
                loaded
            }
            LeaseStore::Etcd { handle, .. } => {
                let seen = handle.seen();
                // Between two leases, such as when the old one was stolen, there is no table of ours to make.
                let has_own = |own: &Lease| seen.leases.contains(own);
                if seen.own.as_ref().is_some_and(has_own) {
                    return Ok(seen.leases.to_vec());
                }
                let troubles: Vec<&str> = seen.troubles.iter().map(|t| &*t.what).collect();
                Err(match troubles.is_empty() {
                    true => "this node has no lease in etcd at the moment".to_owned(),
                    false => troubles.join("; "),
                })
            }
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
            LeaseStore::File { figures, .. } => Face::File(figures.clone()),
            LeaseStore::Etcd {
                handle,
                store,
                waiting,
                ..
            } => Face::Etcd {
                waiting: waiting.clone(),
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
    File(Arc<Mutex<status::Store>>),
    /// etcd.
    Etcd {
        /// What a start waits for.
        waiting: Arc<Mutex<String>>,
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
            Face::File(figures) => lock(figures).clone(),
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
                        .map(|trouble| {
                            let seconds = trouble.since.elapsed().as_secs();
                            format!("{}, for {}", trouble.what, status::duration(seconds))
                        })
                        .collect(),
                    degraded_seconds: age.max(),
                    reachable: seen.reachable,
                    leases: seen.leases.len(),
                    age_seconds: seen.outage.map(|since| since.elapsed().as_secs()),
                    lease_left_seconds: seen
                        .ends
                        .map(|end| end.saturating_duration_since(Instant::now()).as_secs()),
                    reads: figures.lists,
                    faults: figures.faults,
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

    /// The answer to every request of a daemon that has no lease yet: why not.
    pub fn waiting(&self) -> Bytes {
        let store = self.status();
        let waiting = match self {
            Face::File(_) => String::new(),
            Face::Etcd { waiting, .. } => lock(waiting).clone(),
        };
        let mut reasons = store.reasons;
        if reasons.is_empty() {
            reasons.push(match waiting.is_empty() {
                true => "it has not answered yet".to_owned(),
                false => waiting,
            });
        }
        let why = reasons.join("; ");
        let what = format!(
            "it waits for the leases in {} {}: {why}",
            store.kind, store.place
        );
        let mut line = serde_json::json!({ "starting": what }).to_string();
        line.push('\n');
        Bytes::from(line)
    }

    /// Gives the node's lease back.
    ///
    /// # Errors
    /// If the store hands out no leases.
    pub async fn release(&self) -> Result<(), String> {
        match self {
            Face::File(figures) => Err(format!(
                "the leases stand in the file {}: take this node's out of it",
                lock(figures).place
            )),
            Face::Etcd { releaser, .. } => releaser.release().await,
        }
    }
}

/// What is kept stays whole even if a thread died over it.
fn lock<T>(kept: &Mutex<T>) -> MutexGuard<'_, T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

fn no_config(prefix: &str) -> String {
    format!(
        "etcd has no {prefix}/config: write one, for example etcdctl put {prefix}/config '{{\"Network\": \"10.244.0.0/16\", \"Backend\": {{\"Type\": \"vxlan\"}}}}'"
    )
}

/// What is said of a configuration that is not taken up.
pub fn not_taken(why: &str) -> String {
    format!("the configuration was not taken up: {why}")
}

/// The network's configuration, as it was taken from the store.
#[derive(Debug)]
pub struct NetConf<C> {
    /// As it is written.
    pub bytes: Vec<u8>,
    /// What it means.
    pub config: C,
    /// Why it is an earlier one that stands in for what the store has now.
    pub fault: Option<String>,
}

impl<C> NetConf<C> {
    fn new(bytes: &[u8], config: C, fault: Option<String>) -> Self {
        NetConf {
            bytes: bytes.to_vec(),
            config,
            fault,
        }
    }
}

/// What a node with this configuration and these underlay addresses wants to hold: the subnet that the subnet file of
/// an earlier run names, if it can have it.
pub fn wanted(config: &Config, candidates: &[IpAddr]) -> Wanted {
    let previous = config.subnet_file.as_deref().map(subnet_env::read_previous);
    let hints = match previous {
        Some(Err(why)) => {
            tracing::warn!("{why}");
            Vec::new()
        }
        Some(Ok(Previous {
            subnet,
            ipv6_subnet,
        })) if subnet.is_some() || ipv6_subnet.is_some() => vec![Subnets {
            v4: subnet,
            v6: ipv6_subnet,
        }],
        Some(Ok(_)) | None => Vec::new(),
    };
    Wanted {
        attributes: attributes(config, public(config, candidates)),
        pool: config.pool,
        hints,
    }
}

/// The lease of a node with this configuration and these public IPs, but for its subnets.
pub fn attributes(config: &Config, public: fdb::Endpoint) -> Lease {
    let data = match &config.backend {
        Backend::Vxlan(vxlan) => Some(VtepData {
            vni: Some(vxlan.vni),
            vtep_mac: Some(default_vtep_mac(public)),
        }),
        Backend::Udp(_) | Backend::HostGw | Backend::Alloc => None,
    };
    Lease {
        public_ip: public.v4,
        public_ipv6: public.v6,
        backend_type: Some(config.backend.name().to_owned()),
        // Each family of the overlay has its own, as with flannel.
        backend_data: data.filter(|_| config.network.v4.is_some()),
        backend_v6_data: data.filter(|_| config.network.v6.is_some()),
        ..Lease::default()
    }
}

/// The public IPs to write into the lease: the configured ones, else the interface's first of each family. IPv6
/// only where the overlay or the underlay has need of it, as flannel's.
fn public(config: &Config, candidates: &[IpAddr]) -> fdb::Endpoint {
    let first = |family: Family| {
        candidates
            .iter()
            .find(move |ip| Family::of(ip) == family)
            .copied()
    };
    let v4 = match first(Family::V4) {
        Some(IpAddr::V4(ip)) => Some(ip),
        _ => None,
    };
    let v6 = match first(Family::V6) {
        Some(IpAddr::V6(ip)) if config.network.v6.is_some() || v4.is_none() => Some(ip),
        _ => None,
    };
    fdb::Endpoint {
        v4: config.node.public_ip.or(v4),
        v6: config.node.public_ipv6.or(v6),
    }
}
