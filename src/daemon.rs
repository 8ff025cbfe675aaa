//! The composition root: from a configuration to a running node and back to nothing. The only place that
//! matches on backend and engine.
//!
//! ```text
//! main thread (tokio)                          forwarding threads
//!   signals, lease store, netlink                an engine
//!        │ one at a time, in order                    ▲
//!        ▼                                            │ load, once per batch
//!   sync leases ──▶ tables ──▶ Snapshot ──────────────┘
//!        │
//!        └──▶ desired state ──▶ repairs ──▶ the kernel: device, addresses, routes
//! ```

mod bare;
mod engines;
mod habits;
mod node;
mod plane;
mod reconcile;
mod routing;
mod serve;
mod signals;
mod threads;

use std::future::ready;
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, anyhow};
use encap::{Encapsulation, Family, OwnMacs, RawUdp, Vxlan};
use fdb::{Endpoint, Snapshot};
use futures_util::Stream;
use sd_notify::NotifyState;

use crate::config::{self, Backend, Config, Dscp, Ecn, Store};
use crate::datapath::counters::Tally;
use crate::datapath::{Forwarding, Options};
use crate::kernel::host::{Host, Site, Wanted};
use crate::kernel::{Change, Netlink};
use crate::lease::Lease;
use crate::lease::store::{self, LeaseStore, NetConf};
use crate::lease::sync::{self, Ground, KnownPeers};
use crate::observe::http::Web;
use crate::observe::server::Control;
use crate::observe::status;
use engines::Extras;
use habits::Habits;
use node::{Accepted, Faults, Node, Ration, View};
use plane::Plane;
use reconcile::{Reconciler, Report};
use serve::Daemon;
use signals::Signals;

/// The smallest MTU that IPv6 can live with (RFC 8200 section 5), in bytes.
const IPV6_MIN_MTU: u16 = 1280;

/// Sets the log level.
pub type SetLogLevel = Box<dyn Fn(&str)>;

/// Reads the configuration, given the net-conf that the store holds.
pub type Reload = dyn Fn(Option<&[u8]>) -> Result<Config, config::ConfigError>;

/// What the daemon asks of its surroundings.
pub struct Surroundings {
    /// Reads the configuration again, on SIGHUP, and when the store's net-conf is known.
    pub reload: Box<Reload>,
    /// Sets the log level.
    pub set_log_level: SetLogLevel,
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start, or a forwarding thread fails. Everything it made is gone by then.
pub async fn run(config: Config, surroundings: Surroundings) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut signals = Signals::listen()?;
    config
        .warnings
        .iter()
        .for_each(|warning| tracing::warn!("{warning}"));
    let web = match config.control.metrics {
        Some(at) => Some(Web::start(at).await?),
        None => None,
    };
    let netlink = Netlink::open().context("cannot talk to the kernel")?;
    // Watched before it is read, so that no change falls between.
    let mut store = LeaseStore::open(&config.store).context("cannot watch the lease file")?;
    let (_, host_changes) = Netlink::watch_host().context("cannot watch the host")?;
    let control = Control::bind(&config.control.socket)?;
    let face = store.face();
    // Whoever asks meanwhile hears what we wait for.
    let waiting = control.serve(move |_| ready(face.waiting()));
    let told = tokio::select! {
        told = told(&mut store, config, &surroundings, &netlink) => told?,
        () = signals.end() => return Ok(()),
        never = waiting => match never {},
    };
    let Told {
        config,
        net_conf,
        fault,
        host,
        candidates,
    } = told;
    let leases = store.load().map_err(|fault| anyhow!(fault))?;
    let own = sync::find_own(&leases, &candidates)
        .with_context(|| match &config.store {
            Store::File { path } => format!("lease file {}", path.display()),
            Store::Etcd(etcd) => format!("etcd {}", etcd.prefix),
        })?
        .clone();
    let site = host.site(own.endpoint())?;
    site.warnings
        .iter()
        .for_each(|warning| tracing::warn!("{warning}"));

    let start = Start {
        config,
        surroundings,
        netlink,
        store,
        net_conf,
        fault,
        host_changes,
        leases,
        own,
        site,
        candidates,
        started,
        signals,
        web,
        control,
    };
    match start.config.backend.clone() {
        Backend::Udp(_) => start.run(|_: &Lease| RawUdp).await,
        Backend::Vxlan(vxlan) => {
            let make = move |own: &Lease| Vxlan {
                vni: vxlan.vni,
                macs: OwnMacs {
                    v4: own.vtep_mac(Family::V4),
                    v6: own.vtep_mac(Family::V6),
                },
                strict: vxlan.strict,
            };
            start.run(make).await
        }
        Backend::HostGw => start.run(|_: &Lease| bare::HostGw).await,
        Backend::Alloc => start.run(|_: &Lease| bare::Alloc).await,
    }
}

/// What the store has to say first, which may take as long as it is away.
struct Told {
    config: Config,
    net_conf: Option<Vec<u8>>,
    /// Why it is not what the store has now.
    fault: Option<String>,
    host: Host,
    candidates: Vec<IpAddr>,
}

/// Waits until the store has told what the network is, and has a lease for this node.
async fn told(
    store: &mut LeaseStore,
    config: Config,
    surroundings: &Surroundings,
    netlink: &Netlink,
) -> anyhow::Result<Told> {
    let read = |bytes: &[u8]| {
        let read = (surroundings.reload)(Some(bytes));
        read.map_err(|error| error.to_string())
    };
    let (config, net_conf, fault) = match store.net_conf(read).await {
        Some(NetConf {
            bytes,
            config,
            fault,
        }) => {
            store.took(&bytes);
            if let Some(fault) = &fault {
                tracing::error!("{fault}; the last good one stays in force");
            }
            // What only stands in for another is not what was read.
            (config, Some(bytes).filter(|_| fault.is_none()), fault)
        }
        None => (config, None, None),
    };
    let host = Host::look(netlink, wanted(&config), &netlink.actual().await?).await?;
    let candidates = host.candidates()?;
    let wanted = store::wanted(&config, &candidates);
    // A lease names this node and its MAC address to all others. It is not taken, nor changed under whoever forwards here
    // now, before it is sure that we can.
    if matches!(store, LeaseStore::Etcd { .. }) && config.backend.encapsulates() {
        let site = host.site(wanted.attributes.endpoint())?;
        drop(plane::bind(&config, site.bound, netlink).await?);
        drop(Plane::open(&config, netlink).await?);
    }
    store.take(wanted).await;
    Ok(Told {
        config,
        net_conf,
        fault,
        host,
        candidates,
    })
}

/// Everything that is known before anything is made.
struct Start<S> {
    config: Config,
    surroundings: Surroundings,
    netlink: Netlink,
    store: LeaseStore,
    net_conf: Option<Vec<u8>>,
    fault: Option<String>,
    host_changes: S,
    leases: Vec<Lease>,
    own: Lease,
    site: Site,
    candidates: Vec<IpAddr>,
    started: Instant,
    signals: Signals,
    web: Option<Web>,
    control: Control,
}

impl<S: Stream<Item = Change> + Unpin> Start<S> {
    /// Makes sockets, device, routes and threads, in this order, so that what fails most often fails before
    /// anything is changed; then serves.
    async fn run<E: Encapsulation>(
        self,
        make: impl Fn(&Lease) -> E + 'static,
    ) -> anyhow::Result<()> {
        let Start {
            config,
            surroundings,
            netlink,
            store,
            net_conf,
            fault,
            mut host_changes,
            leases,
            own,
            site,
            candidates,
            started,
            mut signals,
            web,
            control,
        } = self;
        let ground = ground(&config, &site);
        let synced = sync::sync(&ground, &leases, &make(&own), &KnownPeers::new())?;
        let hops = routing::hops(&synced.peers);

        let (mut underlay, mut plane) = (None, None);
        if config.backend.encapsulates() {
            underlay = Some(plane::bind(&config, site.bound, &netlink).await?);
            plane = Some(Plane::open(&config, &netlink).await?);
        }
        let habits = Habits::start(&config, &own)?;
        let options = options(&config, &own, Sizes::of::<E>(&config, &site));
        let Accepted {
            tables,
            peers,
            objections,
            routed,
        } = Accepted::new(synced);
        let node = Arc::new(Node {
            name: config.node.name.clone(),
            backend: status::Backend {
                name: E::NAME.into(),
                port: ground.port,
                vni: ground.vni,
            },
            engine: match plane {
                Some(_) => config.datapath.engine.name(),
                None => "kernel",
            },
            tally: Tally::new(config.datapath.queues()),
            netlink: netlink.clone(),
            snapshot: Snapshot::new(Forwarding { tables, options }),
            started,
            view: Mutex::new(View {
                ration: Ration::default(),
                peers,
                objections,
                unroutable: Vec::new(),
                own: own.clone(),
                site: site.clone(),
                extras: Arc::new(Extras::default()),
                prefixes: Vec::new(),
                report: Report::default(),
                faults: Faults {
                    config: fault,
                    ..Faults::default()
                },
            }),
            store: store.face(),
            ip_masq: config.firewall.ip_masq,
            filter_repairs: AtomicU64::new(0),
        });
        if let Some(web) = &web {
            let node = node.clone();
            web.ready(Box::new(move || Box::pin(node.clone().report())));
        }
        let mut daemon = Daemon {
            config,
            surroundings,
            store,
            net_conf,
            leases,
            make: Box::new(make),
            own,
            site,
            candidates,
            hops,
            routed,
            plane,
            reconciler: Reconciler::default(),
            node,
            habits,
        };
        let served = match daemon.begin(underlay).await {
            Err(error) => Err(error),
            Ok(()) => {
                daemon.tell_host();
                daemon.announce();
                let served = daemon.serve(&control, &mut signals, &mut host_changes);
                served.await
            }
        };

        // Everything goes with its owner: the device with its queues, addresses and routes with the device,
        // the control socket with `control`, rules in the packet filter with `daemon`. Routes to peers have no owner but
        // us.
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        daemon.reconciler.withdraw(&netlink).await;
        let mut forwarded = Ok(());
        if let Some(mut plane) = daemon.plane.take() {
            forwarded = plane.stop()?;
            let index = plane.link.index;
            drop(plane);
            // A device that someone made persistent outlives its queue, but not us.
            if let Some(left) = netlink.link_by_index(index).await? {
                netlink.delete_link(&left.name).await?;
            }
        }
        daemon.store.close().await;
        served?;
        forwarded.context("forwarding failed")?;
        tracing::info!("stopped");
        Ok(())
    }
}

/// What the configuration says about the node's place.
fn wanted(config: &Config) -> Wanted {
    Wanted {
        iface: config.node.iface.clone(),
        iface_regex: config.node.iface_regex.clone(),
        can_reach: config.node.can_reach,
        public: Endpoint {
            v4: config.node.public_ip,
            v6: config.node.public_ipv6,
        },
    }
}

/// What tables are made from, at this place.
fn ground(config: &Config, site: &Site) -> Ground {
    Ground {
        network: config.network,
        public: site.public,
        vni: match &config.backend {
            Backend::Vxlan(vxlan) => Some(vxlan.vni),
            Backend::Udp(_) | Backend::HostGw | Backend::Alloc => None,
        },
        port: config.backend.port(),
        underlay_mtu: site.mtu(),
        routes: config.routes.clone(),
    }
}

/// How large packets may be, in bytes. The device follows the IPv4 underlay; IPv6, which has the longer outer header,
/// gets its own MTU on its routes.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// The device's MTU.
    device: u16,
    /// The largest IPv4 packet that one datagram carries, however large the device's MTU is set.
    path: u16,
    /// The largest IPv6 packet.
    ipv6_path: u16,
}

impl Sizes {
    fn of<E: Encapsulation>(config: &Config, site: &Site) -> Self {
        let largest = largest_inner::<E>(site, Family::V4);
        let device = config.device.mtu.unwrap_or(largest);
        Sizes {
            device,
            path: device.min(largest),
            ipv6_path: device.min(largest_inner::<E>(site, Family::V6)),
        }
    }
}

fn options(config: &Config, own: &Lease, sizes: Sizes) -> Options {
    Options {
        overlay_v4: own.subnet.map(|net| net.network()),
        overlay_v6: own.ipv6_subnet.map(|net| net.network()),
        copy_ecn: match config.datapath.ecn {
            Ecn::Auto => matches!(config.backend, Backend::Vxlan(_)),
            Ecn::Copy => true,
            Ecn::Clear => false,
        },
        copy_dscp: config.datapath.dscp == Dscp::Uniform,
        accept_node_source: config.datapath.accept_node_source,
        icmp_rate: config.datapath.icmp_rate,
        path_mtu: sizes.path,
        ipv6_path_mtu: sizes.ipv6_path,
    }
}

/// The largest inner packet of a family that one datagram carries over our underlay, in bytes. Each family
/// travels over its own underlay, or over the only one that we have.
fn largest_inner<E: Encapsulation>(site: &Site, inner: Family) -> u16 {
    let outer = match inner {
        Family::V4 if site.public.v4.is_none() => Family::V6,
        Family::V6 if site.public.v6.is_none() => Family::V4,
        own => own,
    };
    site.mtu().saturating_sub(E::overhead(outer))
}
