//! The daemon while it runs: lease changes, reloads, and answers on the control socket.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use encap::{Encapsulation, Family};
use fdb::Snapshot;
use ipnet::IpNet;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Surroundings;
use super::engines::Extras;
use super::threads::Threads;
use crate::config::Config;
use crate::datapath::Forwarding;
use crate::datapath::counters::{Counters, PeerCounters};
use crate::kernel::device::DeviceSpec;
use crate::kernel::{Link, Netlink, Route, RouteSpec, preflight};
use crate::lease::Lease;
use crate::lease::store::{Face, LeaseStore};
use crate::lease::sync::{self, Ground, KnownPeers, Objection, PeerLeases, Synced};
use crate::observe::server::Control;
use crate::observe::status::{self, Health, Status, Warning};

/// What the daemon holds while it runs.
pub(super) struct Daemon<E> {
    pub(super) config: Config,
    pub(super) surroundings: Surroundings,
    pub(super) store: LeaseStore,
    /// The net-conf that the store held at start, if it holds one.
    pub(super) net_conf: Option<Vec<u8>>,
    /// The last good ones.
    pub(super) leases: Vec<Lease>,
    pub(super) ground: Ground,
    pub(super) encapsulation: E,
    pub(super) spec: DeviceSpec,
    pub(super) node: Arc<Node>,
}

/// The signals that mean something to us, listened to from before anything is made: a signal that comes
/// earlier than we can act on it waits, where its default would end us and leave things behind.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits until we are told to stop.
    pub(super) async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// What status answers are made from.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) backend: status::Backend,
    pub(super) engine: &'static str,
    pub(super) extras: Extras,
    pub(super) store: Face,
    pub(super) counters: Arc<Counters>,
    pub(super) device: DeviceSpec,
    pub(super) link: Link,
    pub(super) iface: Link,
    pub(super) site_warnings: Vec<String>,
    pub(super) netlink: Netlink,
    pub(super) snapshot: Snapshot<Forwarding>,
    pub(super) started: Instant,
    pub(super) view: Mutex<View>,
}

/// What changes with a reload.
#[derive(Default)]
pub(super) struct View {
    /// This node's lease.
    own: Lease,
    /// The device's addresses.
    pub(super) addresses: Vec<IpAddr>,
    peers: Vec<(PeerLeases, Arc<PeerCounters>)>,
    objections: Vec<Objection>,
    /// The prefixes that lead into the device.
    pub(super) routes: Vec<IpNet>,
    /// Why the tables may not be what the lease file says.
    store_fault: Option<String>,
    /// Why the settings may not be what the configuration says.
    config_fault: Option<String>,
    /// Routes that the kernel would not take.
    route_faults: Vec<String>,
}

/// The outcome of a sync, parted into what the datapath reads and what people read.
pub(super) struct Accepted {
    pub(super) tables: fdb::Tables<Arc<PeerCounters>>,
    pub(super) view: View,
}

impl Accepted {
    pub(super) fn new(synced: Synced) -> Self {
        let Synced {
            own,
            tables,
            peers,
            objections,
            ..
        } = synced;
        let counters = tables.peers().iter().map(|peer| peer.data.clone());
        let peers = peers.into_iter().zip(counters).collect();
        Accepted {
            tables,
            view: View {
                own,
                peers,
                objections,
                ..View::default()
            },
        }
    }
}

impl<E: Encapsulation> Daemon<E> {
    /// Says that packets are being forwarded.
    pub(super) fn announce(&self) {
        let view = self.node.view();
        log_objections(&view.objections, &[]);
        tracing::info!(
            node = self.node.name,
            backend = E::NAME,
            port = self.ground.port,
            device = self.spec.name,
            mtu = self.spec.mtu,
            lease = %view.own,
            peers = view.peers.len(),
            "forwarding, {:.0?} after start",
            self.node.started.elapsed()
        );
        if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
            tracing::warn!(%error, "cannot tell the service manager that we are ready");
        }
    }

    /// Serves until it is told to stop, or the forwarding thread ends. All changes pass through this one
    /// task, in order.
    pub(super) async fn serve(
        &mut self,
        control: &Control,
        signals: &mut Signals,
        threads: &mut Threads,
    ) -> anyhow::Result<()> {
        let node = self.node.clone();
        let clients = control.serve(move |request| node.clone().answer(request));
        tokio::pin!(clients);
        // What concerns the site was said before there was a device.
        for warning in self.node.host_warnings().await {
            tracing::warn!(cure = warning.cure, "{}", warning.what);
        }
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => return Ok(()),
                _ = signals.interrupt.recv() => return Ok(()),
                () = threads.one_ended() => return Ok(()),
                _ = signals.hangup.recv() => self.reload().await,
                () = self.store.changed() => { self.resync().await; }
                never = &mut clients => match never {},
            }
        }
    }

    /// Reads the configuration again and takes up what can change while packets flow, or nothing at all.
    async fn reload(&mut self) {
        let _ = NotifyState::monotonic_usec_now()
            .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now]));
        let fault = match (self.surroundings.reload)(self.net_conf.as_deref()) {
            Err(error) => Some(format!("the configuration was not taken up: {error}")),
            Ok(new) => match self.config.diff_needs_restart(&new).as_slice() {
                [] => {
                    (self.surroundings.set_log_level)(&new.log.level);
                    self.ground.routes.clone_from(&new.routes);
                    self.config = new;
                    None
                }
                keys => Some(format!(
                    "the configuration was not taken up: {} changed, which needs a restart",
                    keys.join(", ")
                )),
            },
        };
        match &fault {
            None => tracing::info!("configuration reloaded"),
            Some(fault) => tracing::error!("{fault}"),
        }
        self.node.view().config_fault = fault;
        // What somebody took from the device comes back.
        if let Err(error) = self.node.netlink.set_up_device(&self.spec).await {
            tracing::error!("cannot set up the device again: {error}");
        }
        // If the lease file is bad now, what changed still takes effect on the last good leases.
        if !self.resync().await {
            if let Ok(synced) = self.accept(&self.leases.clone()) {
                self.publish(synced).await;
            }
        }
        let _ = sd_notify::notify(&[NotifyState::Ready]);
    }

    /// Reads the leases again and publishes new tables, or keeps the last good ones and says why. Says
    /// whether there are new ones.
    async fn resync(&mut self) -> bool {
        let loaded = self.store.load();
        let accepted = loaded.and_then(|leases| Ok((self.accept(&leases)?, leases)));
        match accepted {
            Err(fault) => {
                let mut view = self.node.view();
                if view.store_fault.as_ref() != Some(&fault) {
                    tracing::error!("{fault}; the last good leases stay in force");
                }
                view.store_fault = Some(fault);
                false
            }
            Ok((synced, leases)) => {
                self.leases = leases;
                self.node.view().store_fault = None;
                self.publish(synced).await;
                true
            }
        }
    }

    fn accept(&self, leases: &[Lease]) -> Result<Synced, String> {
        let known: KnownPeers = self
            .node
            .snapshot
            .load_full()
            .tables
            .peers()
            .iter()
            .flat_map(|peer| peer.public.ips().map(|ip| (ip, peer.data.clone())))
            .collect();
        let synced = sync::sync(&self.ground, leases, &self.encapsulation, &known)
            .map_err(|error| error.to_string())?;
        let (old, new) = (self.node.view().own.clone(), &synced.own);
        // Sockets and headers are made for the addresses; other subnets only need other addresses of the device.
        let mac = |lease: &Lease| (lease.vtep_mac(Family::V4), lease.vtep_mac(Family::V6));
        if old.endpoint() != new.endpoint() || mac(&old) != mac(new) {
            return Err(format!(
                "this node's lease changed from {old} to {new}: restart to take it"
            ));
        }
        Ok(synced)
    }

    async fn publish(&mut self, synced: Synced) {
        self.readdress(&synced.own).await;
        self.route(&synced.routed).await;
        let Accepted { tables, view } = Accepted::new(synced);
        let options = super::options(&self.config, &view.own);
        let peers = tables.peers().iter().map(|peer| peer.public);
        self.node.extras.set_peers(peers);
        self.node.snapshot.publish(Forwarding { tables, options });
        let mut current = self.node.view();
        log_changes(&current.peers, &view.peers);
        log_objections(&view.objections, &current.objections);
        (current.peers, current.objections) = (view.peers, view.objections);
        current.own = view.own;
        current.routes.clone_from(&self.spec.routes);
    }

    /// Gives the device the addresses of another lease of ours.
    async fn readdress(&mut self, own: &Lease) {
        let addresses = super::addresses(own);
        if self.spec.addresses == addresses {
            return;
        }
        tracing::warn!(
            "this node's lease is {own} now: {} is readdressed",
            self.spec.name
        );
        self.spec.addresses = addresses;
        if let Err(error) = self.node.netlink.set_up_device(&self.spec).await {
            tracing::error!("cannot readdress {}: {error}", self.spec.name);
        }
        self.node.view().addresses.clone_from(&self.spec.addresses);
    }

    /// Leads static routes that came or went into the device or out of it. What the kernel refuses is tried
    /// again with the next change.
    async fn route(&mut self, routed: &[IpNet]) {
        let wanted = super::routes(&self.config, routed);
        let index = self.node.link.index;
        let mut faults = Vec::new();
        let mut there = Vec::new();
        for prefix in self.spec.routes.drain(..) {
            if wanted.contains(&prefix) {
                there.push(prefix);
                continue;
            }
            match self
                .node
                .netlink
                .del_route(&RouteSpec::new(prefix, index))
                .await
            {
                Ok(()) => {}
                // Somebody removed it before us, perhaps by taking the device down.
                Err(error) if error.is_not_found() => {}
                Err(error) => faults.push(error.to_string()),
            }
        }
        for prefix in wanted {
            if there.contains(&prefix) {
                continue;
            }
            let mtu = self.spec.ipv6_route_mtu;
            match self.node.netlink.add_device_route(index, prefix, mtu).await {
                Ok(()) => there.push(prefix),
                Err(error) => faults.push(error.to_string()),
            }
        }
        self.spec.routes = there;
        let mut view = self.node.view();
        faults
            .iter()
            .filter(|fault| !view.route_faults.contains(fault))
            .for_each(|fault| tracing::error!("{fault}"));
        view.route_faults = faults;
    }
}

/// Peers whose way is looked up for one status.
const MAX_ROUTES_ASKED: usize = 16;

/// Changes of peers that are logged one by one; more are only counted.
const MAX_CHANGES: usize = 20;

fn log_objections(objections: &[Objection], known: &[Objection]) {
    for objection in objections
        .iter()
        .filter(|objection| !known.contains(objection))
    {
        tracing::warn!("not taken: {}: {}", objection.subject, objection.reason);
    }
}

fn log_changes(old: &[(PeerLeases, Arc<PeerCounters>)], new: &[(PeerLeases, Arc<PeerCounters>)]) {
    let by_ip = |of: &'_ [(PeerLeases, Arc<PeerCounters>)]| -> HashMap<IpAddr, Lease> {
        let leases = of.iter().map(|(peer, _)| &peer.lease);
        let each = leases.flat_map(|lease| lease.endpoint().ips().map(|ip| (ip, lease.clone())));
        each.collect()
    };
    let (before, after) = (by_ip(old), by_ip(new));
    let find = |among: &HashMap<IpAddr, Lease>, lease: &Lease| {
        lease
            .endpoint()
            .ips()
            .find_map(|ip| among.get(&ip).cloned())
    };
    let mut lines = Vec::new();
    for (peer, _) in new {
        match find(&before, &peer.lease) {
            None => lines.push(format!("peer added: {}", peer.lease)),
            Some(lease) if lease != peer.lease => {
                lines.push(format!("peer changed: {lease} is now {}", peer.lease));
            }
            Some(_) => {}
        }
    }
    let gone = old
        .iter()
        .filter(|(peer, _)| find(&after, &peer.lease).is_none());
    lines.extend(gone.map(|(peer, _)| format!("peer gone: {}", peer.lease)));
    for line in lines.iter().take(MAX_CHANGES) {
        tracing::info!("{line}");
    }
    if lines.len() > MAX_CHANGES {
        tracing::info!("and {} more changes of peers", lines.len() - MAX_CHANGES);
    }
}

impl Node {
    /// The view stays whole even if a thread died over it: it is only ever replaced.
    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is unusual about the node's place on the underlay, and what on this host would eat overlay
    /// traffic, as it stands now.
    async fn warnings(&self) -> Vec<Warning> {
        let site = self.site_warnings.iter().map(|what| Warning {
            what: what.clone(),
            cure: String::new(),
        });
        self.host_warnings().await.into_iter().chain(site).collect()
    }

    /// What on this host would eat overlay traffic, as it stands now.
    async fn host_warnings(&self) -> Vec<Warning> {
        let (peers, routes): (Vec<IpAddr>, Vec<IpNet>) = {
            let view = self.view();
            let peers = view.peers.iter();
            let peers = peers.flat_map(|(peer, _)| peer.lease.endpoint().ips());
            (peers.collect(), view.routes.clone())
        };
        let subject = preflight::Subject {
            device: &self.device.name,
            iface: Some(&self.iface.name),
            networks: &routes,
            peers: &peers,
            accept_node_source: self.snapshot.load_full().options.accept_node_source,
        };
        let mut found: Vec<_> = preflight::check(&self.netlink, &subject)
            .await
            .into_iter()
            .map(|advice| Warning {
                what: advice.what,
                cure: advice.cure,
            })
            .collect();
        // One is enough to see that the overlay network swallows the underlay; a few catch mixed ones.
        for peer in peers.iter().take(MAX_ROUTES_ASKED) {
            if let Ok(Some(Route { oif: Some(oif), .. })) = self.netlink.route_to(*peer).await {
                if oif == self.link.index {
                    found.push(Warning {
                        what: format!(
                            "the way to the peer {peer} leads into {} itself: packets to it are dropped as looped",
                            self.device.name
                        ),
                        cure: format!(
                            "ip route add {peer} via <the underlay's gateway> dev {}, or choose an overlay network that does not contain the underlay",
                            self.iface.name
                        ),
                    });
                }
            }
        }
        found
    }

    /// What somebody took from the device since we set it up. Linux drops the IPv4 routes of a device that
    /// goes down, and does not bring them back with it.
    async fn device_faults(&self) -> Vec<String> {
        let (wanted, own) = {
            let view = self.view();
            (view.routes.clone(), view.addresses.clone())
        };
        let (name, index) = (&self.device.name, self.link.index);
        if matches!(self.netlink.link_by_index(index).await, Ok(Some(link)) if !link.up) {
            return vec![format!(
                "the device {name} is down: nothing enters or leaves the overlay; SIGHUP brings it up again, with its addresses and routes"
            )];
        }
        let (Ok(routes), Ok(addresses)) =
            (self.netlink.routes().await, self.netlink.addresses().await)
        else {
            return Vec::new();
        };
        let is_there = |ip: &&IpAddr| addresses.iter().any(|a| a.ifindex == index && a.ip == **ip);
        let lost = own
            .iter()
            .filter(|ip| !is_there(ip))
            .map(|ip| format!("the address {ip} of {name} is gone; SIGHUP brings it back"));
        let missing = wanted.iter().filter(|prefix| {
            let leads_there = |route: &&Route| route.dst == **prefix && route.oif == Some(index);
            routes.iter().find(leads_there).is_none()
        });
        let missing = missing.map(|prefix| {
                format!(
                    "the route {prefix} into {name} is gone: its packets go elsewhere; SIGHUP brings it back"
                )
            });
        lost.chain(missing).collect()
    }

    /// Where the tables that forwarding reads now lead a destination.
    fn who(&self, destination: IpAddr) -> status::Who {
        let forwarding = self.snapshot.load_full();
        let verdict = match forwarding.tables.route(destination) {
            fdb::Route::Local => status::Holder::Local,
            fdb::Route::None => status::Holder::None,
            fdb::Route::Peer(hop) => status::Holder::Peer {
                to: hop.to,
                mtu: hop.mtu,
                header: hop.header.as_slice().to_vec(),
            },
        };
        status::Who {
            version: status::VERSION,
            destination,
            holder: verdict,
        }
    }

    /// The answer to one request on the control socket.
    async fn answer(self: Arc<Self>, request: String) -> Bytes {
        let answer = match request.split_once(' ').unwrap_or((&request, "")) {
            ("status", "") => serde_json::to_string(&self.status().await),
            ("who", ip) => match ip.trim().parse() {
                Ok(ip) => serde_json::to_string(&self.who(ip)),
                Err(_) => serde_json::to_string(&serde_json::json!({
                    "error": format!("who asks for an IP address, like `who 10.244.2.2`, not {ip:?}")
                })),
            },
            ("release", "") => serde_json::to_string(&match self.store.release() {
                Ok(()) => serde_json::json!({"released": self.view().own.to_string()}),
                Err(why) => serde_json::json!({ "error": why }),
            }),
            _ => serde_json::to_string(&serde_json::json!({
                "error": format!("unknown request {request:?}; known: status, who ADDRESS, release")
            })),
        };
        // Neither document has anything that JSON cannot hold.
        let mut line = answer.unwrap_or_default();
        line.push('\n');
        Bytes::from(line)
    }

    async fn status(&self) -> Status {
        let (warnings, device_faults) = (self.warnings().await, self.device_faults().await);
        let vxlan = self.backend.vni.is_some();
        let mac = |lease: &Lease| vxlan.then(|| lease.vtep_mac(Family::V4).to_string());
        let view = self.view();
        let store = self.store.status();
        let reasons: Vec<_> = device_faults
            .iter()
            .chain(&store.reasons)
            .chain(&view.store_fault)
            .chain(&view.config_fault)
            .chain(&view.route_faults)
            .cloned()
            .collect();
        Status {
            version: status::VERSION,
            state: if reasons.is_empty() {
                Health::Ok
            } else {
                Health::Degraded
            },
            reasons,
            warnings,
            node: self.name.clone(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            program_version: env!("CARGO_PKG_VERSION").into(),
            backend: self.backend.clone(),
            engine: self.engine.into(),
            features: self.extras.features(),
            device: status::Device {
                name: self.device.name.clone(),
                index: self.link.index,
                mtu: self.device.mtu,
                addresses: view.addresses.clone(),
                underlay: self.iface.name.clone(),
                underlay_mtu: self.iface.mtu,
            },
            lease: status::OwnLease {
                subnet: view.own.subnet,
                ipv6_subnet: view.own.ipv6_subnet,
                public_ip: view.own.public_ip,
                public_ipv6: view.own.public_ipv6,
                vtep_mac: mac(&view.own),
            },
            store,
            peers: view
                .peers
                .iter()
                .map(|(peer, counters)| status::Peer {
                    subnet: peer.lease.subnet,
                    ipv6_subnet: peer.lease.ipv6_subnet,
                    also: peer.also.clone(),
                    public_ip: peer.lease.public_ip,
                    public_ipv6: peer.lease.public_ipv6,
                    vtep_mac: mac(&peer.lease),
                    sent_packets: counters.sent.packets.get(),
                    sent_bytes: counters.sent.bytes.get(),
                    received_packets: counters.received.packets.get(),
                    received_bytes: counters.received.bytes.get(),
                })
                .collect(),
            refused: view.objections.clone(),
            outbound: (&*self.counters.outbound).into(),
            inbound: (&*self.counters.inbound).into(),
            drops: status::drops(&self.counters),
        }
    }
}
