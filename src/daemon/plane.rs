//! What carries packets: the device, the sockets, the threads between them. All of it can be made again while the rest
//! of the daemon stays: counters, tables and control socket do not notice.
//!
//! The plane keeps a descriptor of the device beside those of the threads, so that the device stays, with its addresses
//! and routes, while threads come and go.

use std::io;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use encap::{Encapsulation, Family, MacAddr};
use fdb::{Endpoint, Snapshot};

use super::engines::{Extras, Injection, Opened, Plan};
use super::threads::Threads;
use crate::config::{Backend, Config, Df, Zerocopy};
use crate::datapath::Forwarding;
use crate::datapath::batched::Pace;
use crate::datapath::counters::Tally;
use crate::datapath::stop::Stop;
use crate::kernel::host::Site;
use crate::kernel::{Link, Netlink};
use crate::lease::Lease;
use crate::sys;
use crate::underlay::receiver::Receiver;
use crate::underlay::sender::Sender;
use crate::underlay::{DontFragment, SocketOptions, Underlay};

/// What threads are made for: when it changes, others are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wiring {
    /// What the sockets are bound to.
    bound: Endpoint,
    /// The index of the underlay interface, which superpackets are injected into.
    iface: u32,
    /// The inner destination MACs that are ours.
    macs: [MacAddr; 2],
}

impl Wiring {
    pub(super) fn of(own: &Lease, site: &Site) -> Self {
        Wiring {
            bound: site.bound,
            iface: site.iface.index,
            macs: [own.vtep_mac(Family::V4), own.vtep_mac(Family::V6)],
        }
    }
}

/// What the threads share with the rest of the daemon.
pub(super) struct Kit<'a, E> {
    pub(super) config: &'a Config,
    pub(super) netlink: &'a Netlink,
    pub(super) tally: &'a Tally,
    pub(super) snapshot: &'a Snapshot<Forwarding>,
    pub(super) encapsulation: &'a E,
    pub(super) own: &'a Lease,
    pub(super) site: &'a Site,
}

/// The device, and the threads while they run.
pub(super) struct Plane {
    device: Opened,
    /// The device as it was opened: its index tells it from another of its name.
    pub(super) link: Link,
    running: Option<(Wiring, Threads)>,
}

impl Plane {
    /// Opens the device. Nothing is carried yet.
    pub(super) async fn open(config: &Config, netlink: &Netlink) -> anyhow::Result<Self> {
        let name = &config.device.name;
        let device = Opened::open(config.datapath.engine, name, config.datapath.queues())?;
        let link = netlink
            .prepare_device(name)
            .await
            .context("cannot set up the device")?;
        Ok(Plane {
            device,
            link,
            running: None,
        })
    }

    /// Do the threads that run fit?
    pub(super) fn fits(&self, wiring: Wiring) -> bool {
        self.running.as_ref().is_some_and(|(is, _)| *is == wiring)
    }

    /// Starts threads between the device and `underlay`.
    pub(super) async fn start<E: Encapsulation>(
        &mut self,
        mut underlays: Vec<Underlay>,
        kit: &Kit<'_, E>,
    ) -> anyhow::Result<Extras> {
        let stop = Arc::new(Stop::new()?);
        let plan = Plan {
            stop: stop.clone(),
            tally: kit.tally,
            port: kit.config.backend.port(),
            sums: sys::wide::sums(),
            pace: Pace {
                busy_poll: kit.config.datapath.busy_poll,
                nice: kit.config.datapath.nice,
                rx_delay: kit.config.datapath.rx_delay,
            },
        };
        let (works, extras) = match self.device.try_clone()? {
            Opened::Classic(queue) => {
                let underlay = underlays.pop().context("no sockets")?;
                let works = plan.classic(queue, underlay, kit.snapshot, kit.encapsulation);
                (works, Extras::default())
            }
            Opened::Batched(device) => {
                let mut pairs: Vec<(Sender, Receiver)> = Vec::new();
                for underlay in underlays {
                    let sender = match pairs.first() {
                        None => sender(kit.config, &underlay, kit.site.bound)?,
                        Some((first, _)) => first.another()?,
                    };
                    pairs.push((sender, Receiver::new(underlay)?));
                }
                let (sender, receiver) = pairs.first().context("no sockets")?;
                let injection =
                    Injection::open::<E>(kit.config, kit.netlink, &self.link.name, kit.site).await;
                let extras = Extras::new(&device, sender, receiver, injection, plan.pace);
                let tables = kit.snapshot.load_full();
                extras.set_peers(tables.tables.peers().iter().map(|peer| peer.public));
                let with_lane = |(sender, receiver)| (sender, receiver, extras.lane());
                let sockets = pairs.into_iter().map(with_lane).collect();
                let works = plan.batched(device, sockets, kit.snapshot, kit.encapsulation)?;
                (works, extras)
            }
        };
        let wiring = Wiring::of(kit.own, kit.site);
        self.running = Some((wiring, Threads::start(stop, works)?));
        Ok(extras)
    }

    /// Waits until a thread has ended, which none should.
    pub(super) async fn one_ended(&mut self) {
        match &mut self.running {
            Some((_, threads)) => threads.one_ended().await,
            None => std::future::pending().await,
        }
    }

    /// Stops the threads, if any run: the first error that one of them ended with. Their sockets are closed then.
    pub(super) fn stop(&mut self) -> anyhow::Result<io::Result<()>> {
        match self.running.take() {
            Some((_, threads)) => threads.join(),
            None => Ok(Ok(())),
        }
    }
}

/// Binds the node's sockets, for each queue its own.
pub(super) async fn bind(
    config: &Config,
    bound: Endpoint,
    netlink: &Netlink,
) -> anyhow::Result<Vec<Underlay>> {
    let port = config.backend.port();
    let (options, queues) = (socket_options(config), config.datapath.queues());
    match Underlay::bind_many(bound.v4, bound.v6, port, options, queues) {
        Ok(underlays) => Ok(underlays),
        Err(error) => Err(explain_port(error, port, netlink).await),
    }
}

fn sender(config: &Config, underlay: &Underlay, bound: Endpoint) -> io::Result<Sender> {
    if let Backend::Udp(_) = config.backend {
        return Sender::of(underlay);
    }
    let sender = Sender::pool(bound.v4, bound.v6, socket_options(config))?;
    Ok(match config.datapath.zerocopy {
        Zerocopy::Auto => sender.with_zerocopy(false),
        Zerocopy::On => sender.with_zerocopy(true),
        Zerocopy::Off => sender,
    })
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
