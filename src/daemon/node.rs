//! What the daemon's tasks share: what people are told when they ask.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use encap::Family;
use fdb::Snapshot;
use ipnet::IpNet;

use super::engines::Extras;
use super::reconcile::Report;
use crate::datapath::Forwarding;
use crate::datapath::counters::{DirectionCounts, PeerCounters, Tally, Way};
use crate::kernel::host::Site;
use crate::kernel::{Netlink, Route, preflight};
use crate::lease::Lease;
use crate::lease::store::Face;
use crate::lease::sync::{Objection, PeerLeases, Synced};
use crate::observe::routes::Routes;
use crate::observe::status::{self, Health, Status, Warning};

/// What status answers are made from.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) backend: status::Backend,
    pub(super) engine: &'static str,
    pub(super) tally: Tally,
    pub(super) netlink: Netlink,
    pub(super) snapshot: Snapshot<Forwarding>,
    pub(super) started: Instant,
    pub(super) view: Mutex<View>,
    pub(super) store: Face,
    /// Whether packets that leave the overlay are masqueraded here.
    pub(super) ip_masq: bool,
    /// How often rules of ours were put back into the packet filter.
    pub(super) filter_repairs: AtomicU64,
}

/// What changes while it runs.
pub(super) struct View {
    pub(super) ration: Ration,
    pub(super) peers: Vec<(PeerLeases, Arc<PeerCounters>)>,
    /// Leases and static routes that were not taken.
    pub(super) objections: Vec<Objection>,
    /// Peers that there can be no route to.
    pub(super) unroutable: Vec<Objection>,
    /// Our own lease, and where we stand.
    pub(super) own: Lease,
    pub(super) site: Site,
    /// What the kernel does for the engine.
    pub(super) extras: Arc<Extras>,
    /// The prefixes that the kernel leads to peers.
    pub(super) prefixes: Vec<IpNet>,
    /// What the kernel's state was brought to.
    pub(super) report: Report,
    pub(super) faults: Faults,
}

/// Why the daemon is degraded, besides what the [`Report`] says.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    /// The tables may not be what the lease file says.
    pub(super) store: Option<String>,
    /// The settings may not be what the configuration says.
    pub(super) config: Option<String>,
    /// The node is not where it was on the underlay.
    pub(super) place: Option<String>,
    /// Nothing is carried.
    pub(super) plane: Option<String>,
    /// The underlay is too small.
    pub(super) mtu: Option<String>,
    /// The packet filter is not as it shall be.
    pub(super) filter: Option<String>,
    /// The subnet file does not say what is so.
    pub(super) subnet: Option<String>,
}

impl Faults {
    fn all(&self) -> impl Iterator<Item = &String> {
        let Faults {
            store,
            config,
            place,
            plane,
            mtu,
            filter,
            subnet,
        } = self;
        let all = [plane, place, store, config, mtu, filter, subnet];
        all.into_iter().flatten()
    }
}

/// The outcome of a sync, parted into what the datapath reads and what people read.
pub(super) struct Accepted {
    pub(super) tables: fdb::Tables<Arc<PeerCounters>>,
    pub(super) peers: Vec<(PeerLeases, Arc<PeerCounters>)>,
    pub(super) objections: Vec<Objection>,
    pub(super) routed: Vec<IpNet>,
}

impl Accepted {
    pub(super) fn new(synced: Synced) -> Self {
        let Synced {
            tables,
            peers,
            objections,
            routed,
            ..
        } = synced;
        let counters = tables.peers().iter().map(|peer| peer.data.clone());
        let peers = peers.into_iter().zip(counters).collect();
        Accepted {
            tables,
            peers,
            objections,
            routed,
        }
    }
}

/// Peers whose way is looked up for one status.
const MAX_ROUTES_ASKED: usize = 16;

/// Changes of peers that are logged one by one within a [`Ration::SPAN`]; more are only counted.
const MAX_CHANGES: usize = 20;

pub(super) fn log_objections(objections: &[Objection], known: &[Objection]) {
    if objections == known {
        return;
    }
    let known: HashSet<_> = known.iter().map(|o| (&o.subject, &o.reason)).collect();
    let is_new = |o: &&Objection| !known.contains(&(&o.subject, &o.reason));
    let new: Vec<_> = objections.iter().filter(is_new).collect();
    for objection in new.iter().take(MAX_CHANGES) {
        tracing::warn!("not taken: {}: {}", objection.subject, objection.reason);
    }
    if new.len() > MAX_CHANGES {
        tracing::warn!("and {} more are not taken", new.len() - MAX_CHANGES);
    }
}

/// The peers' leases by their public IPs.
fn by_ip(peers: &[(PeerLeases, Arc<PeerCounters>)]) -> HashMap<IpAddr, &Lease> {
    let leases = peers.iter().map(|(peer, _)| &peer.lease);
    let each = leases.flat_map(|lease| lease.endpoint().ips().map(move |ip| (ip, lease)));
    each.collect()
}

/// The lease among these of the node that has this one.
fn find<'a>(among: &HashMap<IpAddr, &'a Lease>, lease: &Lease) -> Option<&'a Lease> {
    let mut ips = lease.endpoint().ips();
    ips.find_map(|ip| among.get(&ip).copied())
}

/// So many lines about changes of peers are logged in one [`Ration::SPAN`], whatever a cluster does.
#[derive(Debug)]
pub(super) struct Ration {
    since: Instant,
    told: usize,
    held: usize,
}

impl Default for Ration {
    fn default() -> Self {
        Ration {
            since: Instant::now(),
            told: 0,
            held: 0,
        }
    }
}

impl Ration {
    const SPAN: Duration = Duration::from_secs(10);

    /// Logs it, if there were not many before.
    fn tell(&mut self, line: &str) {
        if self.since.elapsed() >= Self::SPAN {
            if self.held > 0 {
                tracing::info!("and {} more changes of peers", self.held);
            }
            *self = Ration::default();
        }
        if self.told < MAX_CHANGES {
            self.told += 1;
            tracing::info!("{line}");
        } else {
            self.held += 1;
        }
    }
}

pub(super) fn log_changes(
    ration: &mut Ration,
    old: &[(PeerLeases, Arc<PeerCounters>)],
    new: &[(PeerLeases, Arc<PeerCounters>)],
) {
    let (before, after) = (by_ip(old), by_ip(new));
    let mut lines = Vec::new();
    for (peer, _) in new {
        match find(&before, &peer.lease) {
            None => lines.push(format!("peer added: {}", peer.lease)),
            Some(lease) if *lease != peer.lease => {
                lines.push(format!("peer changed: {lease} is now {}", peer.lease));
            }
            Some(_) => {}
        }
    }
    let gone = old
        .iter()
        .filter(|(peer, _)| find(&after, &peer.lease).is_none());
    lines.extend(gone.map(|(peer, _)| format!("peer gone: {}", peer.lease)));
    lines.iter().for_each(|line| ration.tell(line));
}

impl Node {
    /// The view stays whole even if a thread died over it: it is only ever replaced.
    pub(super) fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is unusual about the node's place on the underlay, and what on this host would eat overlay
    /// traffic, as it stands now.
    async fn warnings(&self) -> Vec<Warning> {
        let site = self.view().site.warnings.clone();
        let site = site.into_iter().map(|what| Warning {
            what,
            cure: String::new(),
        });
        self.host_warnings().await.into_iter().chain(site).collect()
    }

    /// What on this host would eat overlay traffic, as it stands now.
    pub(super) async fn host_warnings(&self) -> Vec<Warning> {
        let (peers, prefixes, iface, device) = {
            let view = self.view();
            let peers = view.peers.iter();
            let peers = peers.flat_map(|(peer, _)| peer.lease.endpoint().ips());
            let device = view.report.desired.device.clone();
            (
                peers.collect::<Vec<IpAddr>>(),
                view.prefixes.clone(),
                view.site.iface.name.clone(),
                device,
            )
        };
        let subject = preflight::Subject {
            device: device.as_ref().map_or(&iface, |device| &device.name),
            iface: Some(&iface),
            networks: &prefixes,
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
        found.extend(self.strange_addresses().await);
        let Some(device) = device else { return found };
        // One is enough to see that the overlay network swallows the underlay; a few catch mixed ones.
        for peer in peers.iter().take(MAX_ROUTES_ASKED) {
            if let Ok(Some(Route { oif: Some(oif), .. })) = self.netlink.route_to(*peer).await {
                if oif == device.index {
                    found.push(Warning {
                        what: format!(
                            "the way to the peer {peer} leads into {} itself: packets to it are dropped as looped",
                            device.name
                        ),
                        cure: format!(
                            "ip route add {peer} via <the underlay's gateway> dev {iface}, or choose an overlay network that does not contain the underlay",
                        ),
                    });
                }
            }
        }
        found
    }

    /// Interfaces that have addresses of the overlay outside of this node's subnet, such as a bridge has that was made for an
    /// earlier lease.
    async fn strange_addresses(&self) -> Vec<Warning> {
        let Ok(actual) = self.netlink.actual().await else {
            return Vec::new();
        };
        let (networks, own, device, public) = {
            let view = self.view();
            let own = [
                view.own.subnet.map(IpNet::from),
                view.own.ipv6_subnet.map(IpNet::from),
            ];
            let device = view.report.desired.device.as_ref().map(|d| d.index);
            let networks = view.report.desired.networks.clone();
            (networks, own, device, view.site.public)
        };
        let is_strange = |ip: &IpAddr| {
            networks.iter().any(|net| net.contains(ip))
                && !own.iter().flatten().any(|net| net.contains(ip))
                && !public.ips().any(|public| public == *ip)
        };
        let name = |index| {
            let mut links = actual.links.iter();
            links
                .find(|link| link.index == index)
                .map(|link| link.name.clone())
        };
        actual
            .addresses
            .iter()
            .filter(|address| Some(address.ifindex) != device && is_strange(&address.ip))
            .filter_map(|address| Some((name(address.ifindex)?, address.ip)))
            .take(MAX_ROUTES_ASKED)
            .map(|(name, ip)| Warning {
                what: format!(
                    "{name} has {ip}, which lies in the overlay but not in this node's subnet: what lives behind it gets no packets"
                ),
                cure: format!(
                    "give {name} an address of this node's subnet, and its pods theirs; or have the old subnet back (overlayd lease reserve)"
                ),
            })
            .collect()
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
    pub(super) async fn answer(self: Arc<Self>, request: String) -> Bytes {
        let answer = match request.split_once(' ').unwrap_or((&request, "")) {
            ("status", "") => serde_json::to_string(&self.status().await),
            ("routes", "") => match self.routes().await {
                Ok(routes) => serde_json::to_string(&routes),
                Err(error) => {
                    serde_json::to_string(&serde_json::json!({"error": error.to_string()}))
                }
            },
            ("who", ip) => match ip.trim().parse() {
                Ok(ip) => serde_json::to_string(&self.who(ip)),
                Err(_) => serde_json::to_string(&serde_json::json!({
                    "error": format!("who asks for an IP address, like `who 10.244.2.2`, not {ip:?}")
                })),
            },
            ("release", "") => serde_json::to_string(&match self.store.release().await {
                Ok(()) => serde_json::json!({"released": self.view().own.to_string()}),
                Err(why) => serde_json::json!({ "error": why }),
            }),
            _ => serde_json::to_string(&serde_json::json!({
                "error": format!("unknown request {request:?}; known: status, routes, who ADDRESS, release")
            })),
        };
        // Neither document has anything that JSON cannot hold.
        let mut line = answer.unwrap_or_default();
        line.push('\n');
        Bytes::from(line)
    }

    /// Our routes, each as it shall be and as it is.
    async fn routes(&self) -> crate::kernel::Result<Routes> {
        let actual = self.netlink.actual().await?;
        let view = self.view();
        let Report { desired, held, .. } = &view.report;
        Ok(Routes::new(desired, held, &actual, &view.unroutable))
    }

    /// What the kernel dropped at the device before a forwarding thread could read it.
    async fn dropped_by_device(&self) -> u64 {
        let device = self.view().report.desired.device.as_ref().map(|d| d.index);
        match device {
            Some(index) => self.netlink.dropped_by(index).await.unwrap_or_default(),
            None => 0,
        }
    }

    pub(super) async fn status(&self) -> Status {
        let warnings = self.warnings().await;
        let full_queue = self.dropped_by_device().await;
        let vxlan = self.backend.vni.is_some();
        let mac = |lease: &Lease| vxlan.then(|| lease.vtep_mac(Family::V4).to_string());
        let view = self.view();
        let report = &view.report;
        let faults = report.faults.iter().map(|(_, fault)| fault);
        let store = self.store.status();
        let reasons = view.faults.all().chain(&store.reasons).chain(faults);
        let reasons: Vec<_> = reasons.cloned().collect();
        let iface = &view.site.iface;
        let device = report.desired.device.as_ref();
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
            features: view.extras.features(),
            // Without a device of its own, packets leave through the underlay interface as they are.
            device: status::Device {
                name: device.map_or(&iface.name, |device| &device.name).clone(),
                index: device.map_or(iface.index, |device| device.index),
                mtu: device.map_or(view.site.mtu(), |device| device.mtu),
                addresses: device
                    .map(|device| device.addresses.clone())
                    .unwrap_or_default(),
                underlay: iface.name.clone(),
                underlay_mtu: iface.mtu,
            },
            lease: status::OwnLease {
                subnet: view.own.subnet,
                ipv6_subnet: view.own.ipv6_subnet,
                public_ip: view.own.public_ip,
                public_ipv6: view.own.public_ipv6,
                vtep_mac: mac(&view.own),
            },
            ip_masq: self.ip_masq,
            repairs: status::Repairs {
                count: report.repairs,
                recent: report
                    .recent
                    .iter()
                    .map(|(at, what)| status::Repair {
                        seconds_ago: at.elapsed().as_secs(),
                        what: what.clone(),
                    })
                    .collect(),
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
            refused: view
                .objections
                .iter()
                .chain(&view.unroutable)
                .cloned()
                .collect(),
            outbound: DirectionCounts {
                overflow: full_queue,
                ..self.tally.counts(Way::Outbound)
            },
            inbound: self.tally.counts(Way::Inbound),
            drops: status::drops(&self.tally),
        }
    }
}
