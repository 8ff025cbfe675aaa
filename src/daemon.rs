//! The composition root: from a configuration to a running node and back to nothing. The only place that
//! matches on backend and engine.
//!
//! ```text
//! main thread (tokio)                          forwarding thread
//!   signals, lease file, control socket          classic engine
//!        │ one at a time, in order                    ▲
//!        ▼                                            │ load, once per batch
//!   sync leases ──▶ tables ──▶ Snapshot ──────────────┘
//! ```

mod engines;
mod serve;
mod threads;

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use encap::{Encapsulation, Family, OwnMacs, RawUdp, Vxlan};
use fdb::{Endpoint, Snapshot};
use ipnet::IpNet;
use sd_notify::NotifyState;

use crate::config::{self, Backend, Config, Df, Dscp, Ecn, Store, Zerocopy};
use crate::datapath::counters::Counters;
use crate::datapath::stop::Stop;
use crate::datapath::{Forwarding, Options};
use crate::kernel::Netlink;
use crate::kernel::device::DeviceSpec;
use crate::kernel::host::{Host, Site, Wanted};
use crate::lease::store::LeaseStore;
use crate::lease::sync::{self, Ground, KnownPeers};
use crate::lease::{self, Lease};
use crate::observe::server::Control;
use crate::observe::status;
use crate::sys;
use crate::underlay::receiver::Receiver;
use crate::underlay::sender::Sender;
use crate::underlay::{DontFragment, SocketOptions, Underlay};
use engines::{Extras, Injection, Opened, Plan};
use serve::{Accepted, Daemon, Node, Signals};
use threads::Threads;

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
/// If it cannot start, or the device is taken away while it runs. Everything it made is gone by then.
pub async fn run(config: Config, surroundings: Surroundings) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut signals = Signals::listen()?;
    config
        .warnings
        .iter()
        .for_each(|warning| tracing::warn!("{warning}"));
    let netlink = Netlink::open().context("cannot talk to the kernel")?;
    // Watched before it is read, so that no change falls between.
    let mut store = LeaseStore::open(&config.store).context("cannot watch the lease file")?;
    let net_conf = tokio::select! {
        net_conf = store.net_conf() => net_conf,
        () = signals.end() => return Ok(()),
    };
    let config = match &net_conf {
        Some(conf) => (surroundings.reload)(Some(conf))?,
        None => config,
    };

    let wanted = Wanted {
        iface: config.node.iface.clone(),
        public: Endpoint {
            v4: config.node.public_ip,
            v6: config.node.public_ipv6,
        },
    };
    let host = Host::read(&netlink, wanted).await?;
    let candidates = host.candidates()?;
    tokio::select! {
        () = store.take(&config, lease::store::public(&config, &candidates)) => {}
        () = signals.end() => return Ok(()),
    }
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
        leases,
        own,
        site,
        started,
        signals,
    };
    match start.config.backend.clone() {
        Backend::Udp(_) => start.run(RawUdp).await,
        Backend::Vxlan(vxlan) => {
            let macs = OwnMacs {
                v4: start.own.vtep_mac(Family::V4),
                v6: start.own.vtep_mac(Family::V6),
            };
            start
                .run(Vxlan {
                    vni: vxlan.vni,
                    macs,
                    strict: vxlan.strict,
                })
                .await
        }
    }
}

/// Everything that is known before anything is made.
struct Start {
    config: Config,
    surroundings: Surroundings,
    netlink: Netlink,
    store: LeaseStore,
    net_conf: Option<Vec<u8>>,
    leases: Vec<Lease>,
    own: Lease,
    site: Site,
    started: Instant,
    signals: Signals,
}

impl Start {
    /// Makes sockets, device, routes and thread, in this order, so that what fails most often fails before
    /// anything is changed; then serves.
    async fn run<E: Encapsulation>(self, encapsulation: E) -> anyhow::Result<()> {
        let Start {
            config,
            surroundings,
            netlink,
            store,
            net_conf,
            leases,
            own,
            site,
            started,
            mut signals,
        } = self;
        let port = config.backend.port();
        let underlay_mtu = site.mtu();
        let ground = Ground {
            network: config.network,
            public: site.public,
            vni: match &config.backend {
                Backend::Vxlan(vxlan) => Some(vxlan.vni),
                Backend::Udp(_) => None,
            },
            port,
            underlay_mtu,
            routes: config.routes.clone(),
        };
        let synced = sync::sync(&ground, &leases, &encapsulation, &KnownPeers::new())?;

        let control = Control::bind(&config.control.socket)?;
        let underlay =
            match Underlay::bind(site.bound.v4, site.bound.v6, port, socket_options(&config)) {
                Ok(underlay) => underlay,
                Err(error) => return Err(explain_port(error, port, &netlink).await),
            };
        let spec = device_spec::<E>(&config, &own, &site, &synced.routed)?;
        let device = Opened::open(config.datapath.engine, &spec.name)?;
        // No packet that a peer cut to size is larger than this, however large the device's MTU.
        let path_mtu = spec.mtu.min(largest_inner::<E>(&site, Family::V4));
        let link = netlink
            .set_up_device(&spec)
            .await
            .context("cannot set up the device")?;

        let counters = Arc::new(Counters::default());
        let options = options(&config, &own);
        let Accepted { tables, mut view } = Accepted::new(synced);
        view.routes.clone_from(&spec.routes);
        view.addresses.clone_from(&spec.addresses);
        let snapshot = Snapshot::new(Forwarding { tables, options });
        let stop = Arc::new(Stop::new()?);
        let plan = Plan {
            stop: stop.clone(),
            counters: counters.clone(),
            port,
            path_mtu,
            ipv6_mtu: spec.mtu.min(largest_inner::<E>(&site, Family::V6)),
            sums: sys::wide::sums(),
        };
        let (works, extras) = match device {
            Opened::Classic(queue) => (
                plan.classic(queue, underlay, &snapshot, &encapsulation),
                Extras::default(),
            ),
            Opened::Batched(device) => {
                let sender = match config.backend {
                    Backend::Udp(_) => Sender::of(&underlay)?,
                    Backend::Vxlan(_) => {
                        let (v4, v6) = (site.bound.v4, site.bound.v6);
                        let sender = Sender::pool(v4, v6, socket_options(&config))?;
                        match config.datapath.zerocopy {
                            Zerocopy::Auto => sender.with_zerocopy(false),
                            Zerocopy::On => sender.with_zerocopy(true),
                            Zerocopy::Off => sender,
                        }
                    }
                };
                let receiver = Receiver::new(underlay)?;
                let injection = Injection::open::<E>(&config, &netlink, &spec.name, &site).await;
                let extras = Extras::new(device.takes, &sender, &receiver, injection);
                extras.set_peers(snapshot.load_full().tables.peers().iter().map(|p| p.public));
                let sockets = (sender, receiver, extras.lane());
                let works = plan.batched(device, vec![sockets], &snapshot, &encapsulation);
                (works, extras)
            }
        };
        let mut threads = Threads::start(stop, works)?;

        let index = link.index;
        let node = Arc::new(Node {
            name: config.node.name.clone(),
            backend: status::Backend {
                name: E::NAME.into(),
                port,
                vni: ground.vni,
            },
            engine: config.datapath.engine.name(),
            extras,
            store: store.face(),
            counters,
            device: spec.clone(),
            link,
            iface: site.iface,
            site_warnings: site.warnings,
            netlink: netlink.clone(),
            snapshot,
            started,
            view: Mutex::new(view),
        });
        let mut daemon = Daemon {
            config,
            surroundings,
            store,
            net_conf,
            leases,
            ground,
            encapsulation,
            spec,
            node,
        };
        daemon.announce();
        let served = daemon.serve(&control, &mut signals, &mut threads).await;

        // Everything goes with its owner: the device with its queue, addresses and routes with the device,
        // the control socket with `control`.
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        let forwarded = threads.join()?;
        daemon.store.close().await;
        // A device that someone made persistent outlives its queue, but not us.
        if let Some(left) = netlink.link_by_index(index).await? {
            netlink.delete_link(&left.name).await?;
        }
        tracing::info!("stopped");
        match forwarded {
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => bail!(
                "the device {} was removed while it was in use: start again to have it back",
                daemon.spec.name
            ),
            forwarded => forwarded.context("forwarding failed")?,
        }
        served
    }
}

fn socket_options(config: &Config) -> SocketOptions {
    SocketOptions {
        dont_fragment: match config.datapath.df {
            Df::Unset => DontFragment::Unset,
            Df::Set => DontFragment::Set,
        },
        udp6_zero_checksum: config.datapath.udp6_zero_checksum,
    }
}

fn options(config: &Config, own: &Lease) -> Options {
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
    }
}

/// How the device shall be. Its MTU follows the IPv4 underlay; IPv6, which has the longer outer header,
/// gets its own on its routes.
fn device_spec<E: Encapsulation>(
    config: &Config,
    own: &Lease,
    site: &Site,
    routed: &[IpNet],
) -> anyhow::Result<DeviceSpec> {
    let mtu = config
        .device
        .mtu
        .unwrap_or(largest_inner::<E>(site, Family::V4));
    let v6_mtu = mtu.min(largest_inner::<E>(site, Family::V6));
    if config.network.v6.is_some() && v6_mtu < IPV6_MIN_MTU {
        bail!(
            "an MTU of {v6_mtu} bytes is too small for IPv6, which needs {IPV6_MIN_MTU}: raise the MTU of {} (now {}) or device.mtu, or leave out network.ipv6-network",
            site.iface.name,
            site.iface.mtu
        );
    }
    Ok(DeviceSpec {
        name: config.device.name.clone(),
        mtu,
        addresses: addresses(own),
        routes: routes(config, routed),
        ipv6_route_mtu: Some(v6_mtu).filter(|v6| *v6 < mtu),
    })
}

/// The device's addresses: the bases of the lease's subnets, like flannel's.
fn addresses(own: &Lease) -> Vec<IpAddr> {
    let v4 = own.subnet.map(|net| IpAddr::V4(net.network()));
    let v6 = own.ipv6_subnet.map(|net| IpAddr::V6(net.network()));
    v4.into_iter().chain(v6).collect()
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

/// What leads into the device: the overlay networks, and static routes that lie outside of them.
fn routes(config: &Config, routed: &[IpNet]) -> Vec<IpNet> {
    let networks = [
        config.network.v4.map(IpNet::V4),
        config.network.v6.map(IpNet::V6),
    ];
    let networks = networks.into_iter().flatten();
    let outside = |prefix: &&IpNet| !networks.clone().any(|network| network.contains(*prefix));
    networks
        .clone()
        .chain(routed.iter().filter(outside).copied())
        .collect()
}

/// A port that is taken is most often taken by a VXLAN device that flannel left behind: name it.
async fn explain_port(error: io::Error, port: u16, netlink: &Netlink) -> anyhow::Error {
    if error.kind() != io::ErrorKind::AddrInUse {
        return error.into();
    }
    match netlink.vxlan_on_port(port).await {
        Ok(Some(link)) => anyhow!(
            "UDP port {port} is taken by the kernel's VXLAN device {name}: remove it with `ip link del {name}` (a stopped flanneld leaves it behind), or set backend.port",
            name = link.name
        ),
        _ => anyhow!(
            "{error}: another process has the port: find it with `ss -ulpn sport = :{port}`, stop it, or set backend.port"
        ),
    }
}
