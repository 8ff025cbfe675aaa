//! The ways to the peers, kept as the kernel has them: routes, neighbours, the underlay device and its features.
//!
//! A task hears of every change and publishes a new [`View`]; forwarding threads read it once per batch. What the view
//! does not have cannot be injected now, and goes through a socket, which is what makes the kernel look for a neighbour.
//! Injected packets do not: the kernel does not see who uses the neighbour, and would let it grow stale. So each path
//! notes that it was used, and for one that was, the task asks the kernel to make sure of it, as a packet would have.
//!
//! While the host has IPsec policies for what leaves it, there are no paths: injected packets would not be encrypted.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use encap::{Family, MacAddr};
use fdb::{Endpoint, Reader, Snapshot};
use futures_util::{Stream, StreamExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::debug;

use super::{Kind, Path};
use crate::kernel::{
    Change, FeatureReader, Features, Link, Neighbour, Netlink, Policies, Result, Way,
};

/// How often stale neighbours of used paths are asked for.
const CARE: Duration = Duration::from_secs(2);
/// Changes of routes often come in crowds: how long one waits for the others.
const SETTLE: Duration = Duration::from_millis(20);

/// What is known now. Immutable.
#[derive(Debug, Default)]
pub struct View {
    paths: HashMap<IpAddr, Known>,
    features: Features,
}

#[derive(Clone, Debug)]
struct Known {
    path: Path,
    used: Arc<AtomicBool>,
}

impl View {
    /// The path to the peer's public IP; `None` if there is none now, and the packet has to go through a socket.
    pub fn path(&self, to: IpAddr) -> Option<&Path> {
        let known = self.paths.get(&to)?;
        // Written once a while, read by all: the cache line stays shared.
        if !known.used.load(Ordering::Relaxed) {
            known.used.store(true, Ordering::Relaxed);
        }
        Some(&known.path)
    }

    /// The features of the underlay device.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Does the underlay device carry such superpackets in a tunnel whole? Where it does not, software in the kernel
    /// would cut them, more slowly than we do: split them.
    pub fn pays(&self, kind: Kind, inner: Family) -> bool {
        let segments = match (kind, inner) {
            (Kind::Tcp { .. }, Family::V4) => self.features.tcp4,
            (Kind::Tcp { .. }, Family::V6) => self.features.tcp6,
            (Kind::Udp, _) => self.features.udp,
        };
        segments && self.features.tunnel_csum
    }

    /// How many peers there is a path to.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// Is there no path at all?
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    fn is_like(&self, other: &View) -> bool {
        let same = |(to, known): (&IpAddr, &Known)| {
            other
                .paths
                .get(to)
                .is_some_and(|there| there.path == known.path)
        };
        self.features == other.features
            && self.paths.len() == other.paths.len()
            && self.paths.iter().all(same)
    }
}

/// The ways to the peers. Dropped, nobody watches them any more.
#[derive(Debug)]
pub struct Paths {
    view: Snapshot<View>,
    peers: watch::Sender<HashSet<IpAddr>>,
    task: JoinHandle<()>,
}

impl Paths {
    /// Watches the ways out through the device `underlay` from `sources`, in the calling thread's namespace. There
    /// are no peers yet. Needs a running tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses to be watched.
    pub async fn watch(underlay: u32, sources: Endpoint) -> Result<Self> {
        let features = FeatureReader::open()?;
        let ipsec = Policies::watch()?;
        let (netlink, changes) = Netlink::watch()?;
        let view = Snapshot::new(View::default());
        let (peers, wanted) = watch::channel(HashSet::new());
        let mut watcher = Watcher {
            netlink,
            features,
            ipsec,
            encrypted: true,
            underlay,
            sources,
            wanted,
            view: view.clone(),
            link: None,
            ways: HashMap::new(),
            neighbours: HashMap::new(),
            used: HashMap::new(),
        };
        watcher.read_all().await?;
        watcher.publish();
        let task = tokio::spawn(watcher.run(changes));
        Ok(Paths { view, peers, task })
    }

    /// From now on these are the peers' public IPs.
    pub fn set_peers(&self, peers: impl IntoIterator<Item = IpAddr>) {
        self.peers.send_replace(peers.into_iter().collect());
    }

    /// The current view, for the control plane.
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// A reader for one forwarding thread.
    pub fn reader(&self) -> Reader<View> {
        self.view.reader()
    }
}

impl Drop for Paths {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The task's own.
struct Watcher {
    netlink: Netlink,
    features: FeatureReader,
    ipsec: Policies,
    /// There are IPsec policies for what leaves the host. Injected packets would leave in the clear.
    encrypted: bool,
    underlay: u32,
    sources: Endpoint,
    wanted: watch::Receiver<HashSet<IpAddr>>,
    view: Snapshot<View>,
    /// The underlay device, while it is there and up, and its features.
    link: Option<(Link, Features)>,
    /// By peer: how to get there, those that lead through the underlay device.
    ways: HashMap<IpAddr, Way>,
    /// On the underlay device, those that a way leads through.
    neighbours: HashMap<IpAddr, Neighbour>,
    /// By peer: was the path used since somebody last looked?
    used: HashMap<IpAddr, Arc<AtomicBool>>,
}

impl Watcher {
    async fn run(mut self, mut changes: impl Stream<Item = Change> + Unpin) {
        let mut care = interval(CARE);
        care.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // When all is to be read again, if it is.
        let mut again: Option<Instant> = None;
        loop {
            let settled = sleep_until(again.unwrap_or_else(|| Instant::now() + CARE));
            let reread = tokio::select! {
                change = changes.next() => match change {
                    None => return,
                    Some(Change::Neighbour(neighbour)) => {
                        self.heard_of(neighbour);
                        false
                    }
                    Some(Change::Address) => false,
                    Some(Change::Link(index)) if index != self.underlay => false,
                    Some(Change::Link(_)) => true,
                    Some(Change::Route | Change::Lost) => {
                        again.get_or_insert_with(|| Instant::now() + SETTLE);
                        false
                    }
                },
                changed = self.wanted.changed() => match changed {
                    Err(_) => return,
                    Ok(()) => true,
                },
                () = self.ipsec.changed() => true,
                _ = care.tick() => {
                    self.care().await;
                    false
                }
                () = settled, if again.is_some() => true,
            };
            if reread {
                again = None;
                if let Err(error) = self.read_all().await {
                    debug!("no injection until the next change: {error}");
                    self.link = None;
                }
            }
            self.publish();
        }
    }

    /// Reads everything anew.
    async fn read_all(&mut self) -> Result<()> {
        self.encrypted = self.ipsec.outbound()?;
        let link = self.netlink.link_by_index(self.underlay).await?;
        self.link = match link.filter(|link| link.running) {
            Some(link) => {
                let features = self.features.read(&link.name)?;
                Some((link, features))
            }
            None => None,
        };
        let peers = self.wanted.borrow_and_update().clone();
        self.ways.clear();
        for peer in &peers {
            if let Some(source) = self.source(*peer) {
                let way = self.netlink.way(source, *peer).await?;
                let through = way.filter(|way| way.oif == self.underlay);
                self.ways.extend(through.map(|way| (*peer, way)));
            }
        }
        self.used.retain(|peer, _| peers.contains(peer));
        self.neighbours.clear();
        for neighbour in self.netlink.neighbours().await? {
            self.heard_of(neighbour);
        }
        Ok(())
    }

    fn source(&self, peer: IpAddr) -> Option<IpAddr> {
        match peer {
            IpAddr::V4(_) => self.sources.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.sources.v6.map(IpAddr::V6),
        }
    }

    fn heard_of(&mut self, neighbour: Neighbour) {
        let ours = self.ways.values().any(|way| way.next_hop == neighbour.ip);
        if neighbour.ifindex == self.underlay && ours {
            self.neighbours.insert(neighbour.ip, neighbour);
        }
    }

    /// Asks for stale neighbours of paths that were used.
    async fn care(&mut self) {
        for (peer, used) in &self.used {
            let Some(way) = self.ways.get(peer) else {
                continue;
            };
            let neighbour = self.neighbours.get(&way.next_hop);
            let stale = neighbour.is_some_and(|neighbour| neighbour.stale);
            if used.swap(false, Ordering::Relaxed) && stale {
                let asked = self
                    .netlink
                    .use_neighbour(self.underlay, way.next_hop)
                    .await;
                if let Err(error) = asked {
                    debug!("{error}");
                }
            }
        }
    }

    /// Publishes what is known, if it differs from what was.
    fn publish(&mut self) {
        let next = self.look();
        if !next.is_like(&self.view.load_full()) {
            self.view.publish(next);
        }
    }

    fn look(&mut self) -> View {
        let Some((link, features)) = &self.link else {
            return View::default();
        };
        let mut paths = HashMap::with_capacity(self.ways.len());
        for (peer, way) in self.ways.iter().filter(|_| !self.encrypted) {
            let mac = self
                .neighbours
                .get(&way.next_hop)
                .and_then(|there| there.mac);
            let (Some(source), Some(source_mac), Some(next_hop)) =
                (self.source(*peer), link.mac, mac)
            else {
                continue;
            };
            let mtu = way.mtu.unwrap_or(link.mtu).min(link.mtu);
            let path = Path {
                source,
                source_mac: MacAddr(source_mac),
                next_hop: MacAddr(next_hop),
                mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            };
            let used = Arc::clone(self.used.entry(*peer).or_default());
            paths.insert(*peer, Known { path, used });
        }
        View {
            paths,
            features: *features,
        }
    }
}
