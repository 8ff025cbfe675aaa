//! The daemon while it runs: lease changes, reloads, changes of the host, and what each leads to.
//!
//! Whatever happens, the same steps follow: where do we stand and which lease is ours ([`Daemon::place`]), tables of the
//! leases ([`Daemon::publish`]), threads that fit ([`Daemon::wire`]), and the kernel's state
//! ([`Daemon::reconcile`]). What did not change costs nothing and loses no packet.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use encap::Encapsulation;
use futures_util::{Stream, StreamExt};
use ipnet::IpNet;
use sd_notify::NotifyState;
use tokio::time::sleep_until;

use super::engines::Extras;
use super::habits::Habits;
use super::node::{Accepted, Node, View, log_changes, log_objections};
use super::plane::{self, Kit, Plane, Wiring};
use super::reconcile::{PAUSE, POLL, Reconciler, SETTLE};
use super::routing::{self, Direct, Hop};
use super::signals::Signals;
use super::{IPV6_MIN_MTU, Sizes, Surroundings, ground, options, wanted};
use crate::config::{Backend, Config};
use crate::datapath::Forwarding;
use crate::kernel::host::{Host, Site};
use crate::kernel::reconcile::{Actual, Desired, DeviceSpec};
use crate::kernel::{Change, RouteSpec};
use crate::lease::Lease;
use crate::lease::store::{self, LeaseStore};
use crate::lease::sync::{self, Ground, KnownPeers, Objection, Synced};
use crate::observe::server::Control;
use crate::underlay::Underlay;

/// What the daemon holds while it runs.
pub(super) struct Daemon<E> {
    pub(super) config: Config,
    pub(super) surroundings: Surroundings,
    pub(super) store: LeaseStore,
    /// The store's net-conf as it was read last, if it holds one.
    pub(super) net_conf: Option<Vec<u8>>,
    /// The last good ones.
    pub(super) leases: Vec<Lease>,
    /// The encapsulation of a node with this lease.
    pub(super) make: Box<dyn Fn(&Lease) -> E>,
    pub(super) own: Lease,
    pub(super) site: Site,
    /// The addresses by which our lease can be recognised, as they were last seen.
    pub(super) candidates: Vec<IpAddr>,
    /// The prefixes of the peers.
    pub(super) hops: Vec<Hop>,
    /// Static routes that are taken.
    pub(super) routed: Vec<IpNet>,
    /// What carries packets, if the backend does that here.
    pub(super) plane: Option<Plane>,
    pub(super) reconciler: Reconciler,
    pub(super) node: Arc<Node>,
    pub(super) habits: Habits,
}

impl<E: Encapsulation> Daemon<E> {
    /// Sets up the device and the routes, and starts to carry packets.
    ///
    /// # Errors
    /// If something stands in the way of the device or of what leads into it.
    pub(super) async fn begin(&mut self, underlays: Option<Vec<Underlay>>) -> anyhow::Result<()> {
        self.reconcile(self.node.netlink.actual().await?).await;
        let report = self.reconciler.report();
        if let Some(fault) = report.of_device().next() {
            bail!("cannot set up the device: {fault}");
        }
        if let Some(fault) = &self.node.view().faults.mtu {
            bail!("{fault}");
        }
        if let Some(underlays) = underlays {
            self.carry(underlays).await?;
        }
        Ok(())
    }

    /// Says that packets are being forwarded.
    pub(super) fn announce(&self) {
        let view = self.node.view();
        log_objections(&view.objections, &[]);
        let port = self.config.backend.port();
        let device = self.plane.as_ref().map(|plane| &*plane.link.name);
        let doing = match self.config.backend {
            Backend::Udp(_) | Backend::Vxlan(_) => "forwarding",
            Backend::HostGw => "routing",
            Backend::Alloc => "ready",
        };
        tracing::info!(
            node = self.node.name,
            backend = E::NAME,
            port,
            device = device.unwrap_or("none"),
            mtu = Sizes::of::<E>(&self.config, &self.site).device,
            lease = %self.own,
            peers = view.peers.len(),
            "{doing}, {:.0?} after start",
            self.node.started.elapsed()
        );
        if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
            tracing::warn!(%error, "cannot tell the service manager that we are ready");
        }
    }

    /// Serves until it is told to stop, or a forwarding thread ends. All changes pass through this one
    /// task, in order.
    pub(super) async fn serve(
        &mut self,
        control: &Control,
        signals: &mut Signals,
        host: impl Stream<Item = Change> + Unpin,
    ) -> anyhow::Result<()> {
        let node = self.node.clone();
        let clients = control.serve(move |request| node.clone().answer(request));
        tokio::pin!(clients);
        // What concerns the site was said before there was a device.
        for warning in self.node.host_warnings().await {
            tracing::warn!(cure = warning.cure, "{}", warning.what);
        }
        let mut host = host.fuse();
        let mut looked = Instant::now();
        let mut due = looked + POLL;
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => return Ok(()),
                _ = signals.interrupt.recv() => return Ok(()),
                () = ended(&mut self.plane) => {
                    self.revive().await?;
                    due = Instant::now();
                }
                _ = signals.hangup.recv() => self.reload().await,
                () = self.store.changed() => self.heed_store().await,
                Some(_) = host.next() => {
                    due = due.min((Instant::now() + SETTLE).max(looked + PAUSE));
                }
                () = sleep_until(due.into()) => {
                    self.look().await;
                    looked = Instant::now();
                    let again = self.reconciler.report().again;
                    due = again.map_or(looked + POLL, |again| again.min(looked + POLL));
                }
                () = self.habits.disturbed() => self.mend_filter(),
                never = &mut clients => match never {},
            }
        }
    }

    /// The leases have changed, or what the store says of the whole network.
    async fn heed_store(&mut self) {
        match self.store.net_conf_now() {
            Some(Ok(net_conf)) if self.net_conf.as_ref() != Some(&net_conf) => {
                return self.reload().await;
            }
            // What was read stays in force; when it is back, it is read again.
            Some(Err(why)) => {
                self.net_conf = None;
                let known = &mut self.node.view().faults.config;
                if known.as_ref() != Some(&why) {
                    tracing::error!("{why}; the last one stays in force");
                    *known = Some(why);
                }
            }
            _ => {}
        }
        self.resync().await;
    }

    /// Reads the configuration again and takes up what can change while packets flow, or nothing at all.
    async fn reload(&mut self) {
        let _ = NotifyState::monotonic_usec_now()
            .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now]));
        let read = match self.store.net_conf_now().transpose() {
            Err(why) => Err(why),
            Ok(net_conf) => {
                self.net_conf = net_conf;
                (self.surroundings.reload)(self.net_conf.as_deref())
                    .map_err(|error| store::not_taken(&error.to_string()))
            }
        };
        let fault = match read {
            Err(why) => Some(why),
            Ok(new) => match self.config.diff_needs_restart(&new).as_slice() {
                [] => {
                    (self.surroundings.set_log_level)(&new.log.level);
                    if let Some(net_conf) = &self.net_conf {
                        self.store.took(net_conf);
                    }
                    self.config = new;
                    None
                }
                keys => Some(store::not_taken(&format!(
                    "{} changed, which needs a restart",
                    keys.join(", ")
                ))),
            },
        };
        match &fault {
            None => tracing::info!("configuration reloaded"),
            Some(fault) => tracing::error!("{fault}"),
        }
        self.node.view().faults.config = fault;
        // If the lease file is bad now, what changed still takes effect on the last good leases.
        if !self.resync().await {
            let leases = std::mem::take(&mut self.leases);
            // They were good, so they are again.
            let _ = self.take_up(&leases).await;
            self.leases = leases;
        }
        let _ = sd_notify::notify(&[NotifyState::Ready]);
    }

    /// Reads the leases again and publishes new tables, or keeps the last good ones and says why. Says
    /// whether there are new ones.
    async fn resync(&mut self) -> bool {
        let taken = match self.store.load() {
            Ok(leases) => self.take_up(&leases).await.map(|()| leases),
            Err(fault) => Err(fault),
        };
        match taken {
            Err(fault) => {
                let mut view = self.node.view();
                if view.faults.store.as_ref() != Some(&fault) {
                    tracing::error!("{fault}; the last good leases stay in force");
                }
                view.faults.store = Some(fault);
                false
            }
            Ok(leases) => {
                self.leases = leases;
                self.node.view().faults.store = None;
                true
            }
        }
    }

    /// Looks at the host: where do we stand, and is the kernel's state as it shall be?
    async fn look(&mut self) {
        let actual = match self.node.netlink.actual().await {
            Ok(actual) => actual,
            Err(error) => return tracing::warn!("{error}"),
        };
        let told = self.heed_addresses(&actual).await;
        let leases = std::mem::take(&mut self.leases);
        let placed = self.place(&actual, &leases).await;
        let fault = match placed {
            // The lease that says so comes with the store's next news.
            Err(_) if told => self.node.view().faults.place.clone(),
            Err(fault) => Some(fault),
            Ok((own, site)) if own != self.own || !is_like(&site, &self.site) => {
                self.accept(&leases, own, site).await.err()
            }
            Ok(_) => None,
        };
        self.leases = leases;
        let is_there = self.reconcile(actual).await;
        if self.config.backend.encapsulates() && !is_there {
            self.reopen().await;
        }
        self.wire().await;
        self.tell_place(fault);
    }

    /// Notes the addresses by which our lease can be recognised. A store that takes leases itself is told: the lease that
    /// it holds for us has to carry the new address. A lease file is for others to change. Says whether a store was told.
    async fn heed_addresses(&mut self, actual: &Actual) -> bool {
        let Ok(host) = self.host(actual).await else {
            return false;
        };
        let Ok(now) = host.candidates() else {
            return false;
        };
        if now == self.candidates {
            return false;
        }
        let all: Vec<_> = now.iter().map(IpAddr::to_string).collect();
        tracing::info!("this node's underlay addresses are now {}", all.join(", "));
        self.store.want(store::wanted(&self.config, &now));
        self.candidates = now;
        matches!(self.store, LeaseStore::Etcd { .. })
    }

    /// The host as `actual` has it, seen as the configuration wants.
    async fn host(&self, actual: &Actual) -> Result<Host, String> {
        let host = Host::look(&self.node.netlink, wanted(&self.config), actual).await;
        host.map_err(|error| error.to_string())
    }

    /// Makes tables of `leases`, at the place where we are now, or as long as that is unclear, where we were.
    async fn take_up(&mut self, leases: &[Lease]) -> Result<(), String> {
        let actual = self.node.netlink.actual().await;
        let actual = actual.map_err(|error| error.to_string())?;
        let ((own, site), fault) = match self.place(&actual, leases).await {
            Ok(placed) => (placed, None),
            Err(fault) => {
                let ours: Vec<IpAddr> = self.site.public.ips().collect();
                let own = sync::find_own(leases, &ours).map_err(|_| fault.clone())?;
                ((own.clone(), self.site.clone()), Some(fault))
            }
        };
        self.accept(leases, own, site).await?;
        self.reconcile(actual).await;
        self.wire().await;
        self.tell_place(fault);
        Ok(())
    }

    /// Which lease is ours, and where it puts us. We stay where we are for as long as the node is reached there and
    /// has a lease for it: an address more on the interface, or a second lease of ours, changes nothing.
    async fn place(&self, actual: &Actual, leases: &[Lease]) -> Result<(Lease, Site), String> {
        let host = self.host(actual).await?;
        if let Some(site) = host.still(&self.site) {
            let ours: Vec<IpAddr> = site.public.ips().collect();
            if let Ok(own) = sync::find_own(leases, &ours) {
                if own.endpoint() == site.public {
                    return Ok((own.clone(), site));
                }
            }
        }
        let candidates = host.candidates().map_err(|error| error.to_string())?;
        let own = sync::find_own(leases, &candidates).map_err(|error| error.to_string())?;
        let site = host.site(own.endpoint());
        Ok((own.clone(), site.map_err(|error| error.to_string())?))
    }

    /// Takes up what may be a new place, with tables of `leases` that fit it.
    async fn accept(&mut self, leases: &[Lease], own: Lease, site: Site) -> Result<(), String> {
        let known: KnownPeers = self
            .node
            .snapshot
            .load_full()
            .tables
            .peers()
            .iter()
            .flat_map(|peer| peer.public.ips().map(|ip| (ip, peer.data.clone())))
            .collect();
        let ground: Ground = ground(&self.config, &site);
        let synced = sync::sync(&ground, leases, &(self.make)(&own), &known)
            .map_err(|error| error.to_string())?;
        if own != self.own {
            tracing::info!("this node's lease was {}, and is now {own}", self.own);
        }
        if overlay_addresses(&own).ne(overlay_addresses(&self.own)) {
            tracing::warn!(
                "this node has other subnets than before: bridges and pods with addresses of the old ones are cut off until they get new ones"
            );
        }
        if site.iface.mtu != self.site.iface.mtu {
            let (name, mtu) = (&site.iface.name, site.iface.mtu);
            tracing::info!(
                "the MTU of {name} was {}, and is now {mtu}",
                self.site.iface.mtu
            );
        }
        (self.own, self.site) = (own, site);
        self.publish(synced);
        self.tell_host();
        Ok(())
    }

    fn publish(&mut self, synced: Synced) {
        self.hops = routing::hops(&synced.peers);
        let Accepted {
            tables,
            peers,
            objections,
            routed,
        } = Accepted::new(synced);
        self.routed = routed;
        let sizes = Sizes::of::<E>(&self.config, &self.site);
        let options = options(&self.config, &self.own, sizes);
        let mut view = self.node.view();
        view.extras
            .set_peers(tables.peers().iter().map(|peer| peer.public));
        self.node.snapshot.publish(Forwarding { tables, options });
        let View {
            ration, peers: old, ..
        } = &mut *view;
        log_changes(ration, old, &peers);
        log_objections(&objections, &view.objections);
        (view.peers, view.objections) = (peers, objections);
    }

    /// Says where we stand, once all of us stands there, and what keeps us from standing where we should.
    fn tell_place(&self, fault: Option<String>) {
        let mut view = self.node.view();
        if let Some(fault) = &fault {
            if view.faults.place.as_ref() != Some(fault) {
                tracing::error!("{fault}; what was stays in force");
            }
        }
        (view.own, view.site) = (self.own.clone(), self.site.clone());
        view.faults.place = fault;
    }

    /// What the kernel shall have, and the peers that it can have no route to.
    fn desired(&self, actual: &Actual) -> (Desired, Vec<Objection>) {
        let direct = Direct::of(&self.config.backend);
        let (mut routes, unroutable) =
            routing::to_peers(direct, &self.hops, &self.site.iface, actual);
        let sizes = Sizes::of::<E>(&self.config, &self.site);
        // Linux has no IPv6 on a device that is too small for it.
        let fits = |ip: &IpAddr| ip.is_ipv4() || sizes.device >= IPV6_MIN_MTU;
        let device = self.plane.as_ref().map(|plane| DeviceSpec {
            name: plane.link.name.clone(),
            index: plane.link.index,
            mtu: sizes.device,
            addresses: overlay_addresses(&self.own).filter(fits).collect(),
        });
        if let Some(device) = &device {
            let ipv6_mtu = Some(sizes.ipv6_path).filter(|mtu| *mtu < sizes.device);
            for prefix in routing::into_device(&self.config, &self.routed) {
                let straight = routes.iter().any(|route| route.dst == prefix);
                if straight || !fits(&prefix.network()) {
                    continue;
                }
                let mtu = match prefix {
                    IpNet::V4(_) => None,
                    IpNet::V6(_) => ipv6_mtu.map(u32::from),
                };
                routes.push(RouteSpec {
                    mtu,
                    ..RouteSpec::new(prefix, device.index)
                });
            }
        }
        let desired = Desired {
            device,
            routes,
            networks: routing::networks(&self.config),
        };
        (desired, unroutable)
    }

    /// Makes the kernel's state what it shall be. Says whether the device is there.
    async fn reconcile(&mut self, actual: Actual) -> bool {
        let (desired, unroutable) = self.desired(&actual);
        let prefixes = match Direct::of(&self.config.backend) {
            Direct::All => routing::networks(&self.config),
            Direct::No | Direct::Near => routing::into_device(&self.config, &self.routed),
        };
        let is_there = self
            .reconciler
            .run(&self.node.netlink, desired, actual)
            .await;
        let mut view = self.node.view();
        view.faults.mtu = self.too_small();
        log_objections(&unroutable, &view.unroutable);
        (view.unroutable, view.prefixes) = (unroutable, prefixes);
        view.report = self.reconciler.report();
        is_there && self.plane.is_some()
    }

    /// Why there is no IPv6 inside, if the underlay is too small for it.
    fn too_small(&self) -> Option<String> {
        let mtu = Sizes::of::<E>(&self.config, &self.site).ipv6_path;
        let iface = &self.site.iface;
        (self.config.network.v6.is_some() && mtu < IPV6_MIN_MTU).then(|| format!(
            "an MTU of {mtu} bytes is too small for IPv6, which needs {IPV6_MIN_MTU}: raise the MTU of {} (now {}) or device.mtu, or leave out network.ipv6-network",
            iface.name, iface.mtu
        ))
    }

    /// A forwarding thread has ended. If somebody removed the device, it is made again; anything else is an error.
    async fn revive(&mut self) -> anyhow::Result<()> {
        let Some(plane) = &mut self.plane else {
            return Ok(());
        };
        match plane.stop()? {
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => {
                self.reopen().await;
                self.wire().await;
                Ok(())
            }
            Err(error) => Err(error).context("forwarding failed"),
            Ok(()) => bail!("a forwarding thread ended, though nobody told it to"),
        }
    }

    /// Makes the device again, which somebody removed or carried off, unless somebody keeps doing so.
    async fn reopen(&mut self) {
        // Its descriptor would keep a device in another namespace alive.
        if let Some(mut plane) = self.plane.take() {
            if let Ok(Err(error)) | Err(error) = plane.stop().map(|ended| ended.map_err(Into::into))
            {
                tracing::debug!("{error:#}");
            }
        }
        if !self.reconciler.may_reopen() {
            return;
        }
        match Plane::open(&self.config, &self.node.netlink).await {
            Err(error) => self.not_carrying(&error),
            Ok(plane) => {
                self.reconciler.reopened(&plane.link.name);
                self.plane = Some(plane);
                match self.node.netlink.actual().await {
                    Ok(actual) => drop(self.reconcile(actual).await),
                    Err(error) => tracing::warn!("{error}"),
                }
            }
        }
    }

    /// Sees to it that threads run, and that they are the right ones.
    async fn wire(&mut self) {
        let wiring = Wiring::of(&self.own, &self.site);
        let Some(plane) = &mut self.plane else { return };
        if plane.fits(wiring) {
            return;
        }
        if let Err(error) = plane.stop() {
            tracing::error!("{error:#}");
        }
        // What was injected through goes first: the next takes its name.
        self.node.view().extras = Arc::new(Extras::default());
        let bound = plane::bind(&self.config, self.site.bound, &self.node.netlink).await;
        let started = match bound {
            Ok(underlays) => self.carry(underlays).await,
            Err(error) => Err(error),
        };
        match started {
            Ok(()) => {
                tracing::info!("forwarding from {}", self.site.bound);
                self.node.view().faults.plane = None;
            }
            Err(error) => self.not_carrying(&error),
        }
    }

    async fn carry(&mut self, underlays: Vec<Underlay>) -> anyhow::Result<()> {
        let Some(plane) = &mut self.plane else {
            return Ok(());
        };
        let kit = Kit {
            config: &self.config,
            netlink: &self.node.netlink,
            tally: &self.node.tally,
            snapshot: &self.node.snapshot,
            encapsulation: &(self.make)(&self.own),
            own: &self.own,
            site: &self.site,
        };
        let extras = plane.start(underlays, &kit).await?;
        self.node.view().extras = Arc::new(extras);
        Ok(())
    }

    fn not_carrying(&self, error: &anyhow::Error) {
        let fault = format!("no packet is carried: {error:#}");
        let mut view = self.node.view();
        if view.faults.plane.as_ref() != Some(&fault) {
            tracing::error!("{fault}");
        }
        view.faults.plane = Some(fault);
    }
}

/// Waits until a forwarding thread has ended; for ever, where there are none.
async fn ended(plane: &mut Option<Plane>) {
    match plane {
        Some(plane) => plane.one_ended().await,
        None => std::future::pending().await,
    }
}

/// The addresses that our lease gives the device: the base addresses of its subnets, as flannel does.
fn overlay_addresses(own: &Lease) -> impl Iterator<Item = IpAddr> + use<> {
    let v4 = own.subnet.map(|net| IpAddr::V4(net.network()));
    let v6 = own.ipv6_subnet.map(|net| IpAddr::V6(net.network()));
    v4.into_iter().chain(v6)
}

/// The same place, as far as it matters to the tables, the sockets and the device.
fn is_like(one: &Site, other: &Site) -> bool {
    let of = |site: &Site| {
        let iface = &site.iface;
        (
            site.public,
            site.bound,
            iface.index,
            iface.mtu,
            iface.name.clone(),
        )
    };
    of(one) == of(other)
}
