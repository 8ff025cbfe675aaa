//! One end of the comparison: a host's underlay device, the path that is up on it, and the loads that run there.
//!
//! Addresses are those that RFC 2544 (appendix C.2.2) sets aside for benchmarks: the overlay is 198.18.0.0/16, of which
//! host n has 198.18.n.0/24; the underlay of the bench's own namespaces is 198.19.0.0/24.

mod record;
mod script;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixDatagram;
use std::path::{Path as FilePath, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use encap::Family;
use ipnet::{IpNet, Ipv4Net};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use super::load::{Job, Outcome, Running, Surroundings};
use super::machine::Machine;
use super::meter::Meter;
use super::plan::{Between, Path, Row, Setting};
use crate::kernel::{Link, NetNs, Netlink, RouteSpec, VxlanSpec};
use crate::lab::holder;
use crate::lab::topology::Backend;
use crate::lab::traffic::Cancel;
use crate::observe::client;
use crate::sys::ethtool::{self, Features};

pub(super) use record::Record;

/// The device of whatever path is up.
const DEVICE: &str = "ovb0";
const BRIDGE: &str = "ovb-br0";
const POD_VETH: &str = "ovb-pod";
const POD_ETH: &str = "eth0";
const VNI: u32 = 1;
const READY: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);
/// Of an administrator (RTPROT_STATIC).
const STATIC: u8 = 4;

/// Where a host stands and what it may use.
#[derive(Debug)]
pub(super) struct Site {
    /// 1 sends, 2 receives.
    pub(super) number: u8,
    pub(super) node: NetNs,
    /// Where pods are wanted: their namespace.
    pub(super) pod: Option<NetNs>,
    /// The underlay device.
    pub(super) device: String,
    pub(super) public: Ipv4Addr,
    pub(super) peer: Ipv4Addr,
    /// For configurations and logs; removed by its owner.
    pub(super) dir: PathBuf,
    /// The overlayd that daemons run.
    pub(super) exe: PathBuf,
    /// What marks our processes.
    pub(super) mark: String,
    pub(super) ports: Ports,
    pub(super) scripts: Scripts,
    pub(super) cpus: Vec<usize>,
    pub(super) cancel: Cancel,
}

/// The scripts of outside controls, by name.
pub type Scripts = BTreeMap<String, PathBuf>;

/// The UDP ports of the encapsulations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ports {
    /// Of the udp backend.
    pub(super) udp: u16,
    /// Of VXLAN.
    pub(super) vxlan: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            udp: 8285,
            vxlan: 8472,
        }
    }
}

impl Ports {
    /// For hosts that may have an overlay of their own.
    pub(super) fn apart() -> Self {
        Self {
            udp: 28285,
            vxlan: 28472,
        }
    }
}

/// The address of a path's end, and the largest packet that the path carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct End {
    /// The address.
    pub(super) ip: IpAddr,
    /// The MTU in bytes.
    pub(super) mtu: u16,
}

/// A host at work.
#[derive(Debug)]
pub(super) struct Host {
    site: Site,
    runtime: Runtime,
    /// The device's features as they were, of those that settings change.
    original: Features,
    underlay_mtu: u16,
    up: Option<Up>,
    meter: Meter,
    jobs: BTreeMap<u32, Running>,
    last_job: u32,
}

/// What has been made for the path that is up.
#[derive(Debug, Default)]
struct Up {
    pods: bool,
    links: Vec<&'static str>,
    routes: Vec<RouteSpec>,
    addresses: Vec<(u32, IpNet)>,
    daemon: Option<Child>,
    socket: Option<PathBuf>,
    script: Option<String>,
}

/// A host's subnet of the overlay.
fn subnet(number: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(198, 18, number, 0), 24)
}

fn host_address(number: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, number, host)
}

fn mac(number: u8) -> [u8; 6] {
    [0x0a, 0x58, 198, 18, number, 0]
}

impl Host {
    pub(super) fn new(site: Site) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (original, link) = (
            site.node.run(|| features(&site.device))??,
            runtime.block_on(async { find(&Netlink::open_in(&site.node)?, &site.device).await })?,
        );
        // The kernel refuses to be told about some of the others, even to leave them.
        let touched = Setting::ALL.iter().flat_map(|s| s.features().into_keys());
        let touched: Vec<String> = touched.collect();
        let original = original
            .into_iter()
            .filter(|(name, _)| touched.contains(name))
            .collect();
        Ok(Self {
            runtime,
            original,
            underlay_mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
            up: None,
            meter: Meter::default(),
            jobs: BTreeMap::new(),
            last_job: 0,
            site,
        })
    }

    fn other(&self) -> u8 {
        3 - self.site.number
    }

    /// Sets the underlay device as the setting says. Features that the device lacks stay off; those that should be off
    /// and stay on are told.
    pub(super) fn set_offloads(&self, setting: Setting) -> Result<Features> {
        let mut wanted = self.original.clone();
        let changed = setting.features();
        wanted.extend(changed.clone());
        let device = &self.site.device;
        let active = self.site.node.run(|| {
            set_features(device, &wanted)?;
            features(device)
        })?;
        let active = active.with_context(|| format!("cannot set the offloads of {device}"))?;
        let stubborn: Vec<_> = changed
            .keys()
            .filter(|name| active.get(*name).is_some_and(|on| *on && !changed[*name]))
            .map(String::as_str)
            .collect();
        if !stubborn.is_empty() {
            bail!(
                "{device} does not let {} be turned off: leave the setting {setting} out (--settings)",
                stubborn.join(", ")
            );
        }
        Ok(active)
    }

    /// Brings a path up. One at a time.
    pub(super) fn up(&mut self, row: &Row) -> Result<End> {
        self.down()?;
        self.up = Some(Up::default());
        let made = self.build(row);
        if made.is_err() {
            if let Err(error) = self.down() {
                // The reason why it did not come up says more.
                tracing::warn!("{row} could not all be taken down: {error:#}");
            }
        }
        made.with_context(|| format!("cannot bring {row} up"))
    }

    fn build(&mut self, row: &Row) -> Result<End> {
        let (me, other) = (self.site.number, self.other());
        let netlink = {
            let _context = self.runtime.enter();
            Netlink::open_in(&self.site.node)?
        };
        let mut up = self.up.take().unwrap_or_default();
        let made = match &row.path {
            Path::Bare => Ok((self.site.public, self.underlay_mtu)),
            Path::HostGw => {
                let pods = row.between == Between::Pods;
                self.runtime
                    .block_on(host_gw(&netlink, &self.site, pods, other, &mut up))
                    .map(|ip| (ip, self.underlay_mtu))
            }
            Path::KernelVxlan => {
                let mtu = self.underlay_mtu - Backend::Vxlan.overhead(Family::V4);
                self.runtime
                    .block_on(kernel_vxlan(&netlink, &self.site, mtu, other, &mut up))
                    .map(|()| (subnet(me).addr(), mtu))
            }
            Path::Overlayd { backend, engine } => {
                let mtu = self.underlay_mtu - backend.overhead(Family::V4);
                self.start_daemon(*backend, engine, &mut up)
                    .map(|()| (subnet(me).addr(), mtu))
            }
            Path::Script { name } => {
                up.script = Some(name.clone());
                self.run_script(name, &netlink)
                    .map(|mtu| (host_address(me, 1), mtu))
            }
        };
        let made = made.and_then(|(ip, mtu)| {
            if row.between == Between::Nodes {
                return Ok(End { ip: ip.into(), mtu });
            }
            let pod = self.site.pod.clone().context("no pods here")?;
            up.pods = true;
            self.runtime
                .block_on(plug_pod(&netlink, &pod, me, mtu, &mut up))?;
            Ok(End {
                ip: host_address(me, 2).into(),
                mtu,
            })
        });
        self.up = Some(up);
        made
    }

    fn start_daemon(&mut self, backend: Backend, engine: &str, up: &mut Up) -> Result<()> {
        let dir = &self.site.dir;
        let socket = dir.join("overlayd.sock");
        let (config, leases, log) = (
            dir.join("overlayd.toml"),
            dir.join("leases.json"),
            dir.join("overlayd.log"),
        );
        fs::write(&leases, self.leases())?;
        fs::write(&config, self.config(backend, engine, &leases, &socket))?;
        let mut command = holder::marked(
            &self.site.exe,
            &self.site.mark,
            &format!("host{}", self.site.number),
        );
        let stderr = File::create(&log)?;
        command.arg("run").arg("--config").arg(&config);
        command.stdout(Stdio::null()).stderr(stderr);
        let child = self.site.node.spawn(command)?;
        let pid = child.id();
        let child = up.daemon.insert(child);
        up.links.push(DEVICE);
        up.socket = Some(socket.clone());
        super::pin::pin_process(pid, &self.site.cpus)?;
        let end = Instant::now() + READY;
        while client::status(&socket).is_err() {
            self.site.cancel.check()?;
            let ended = child.try_wait()?;
            if ended.is_some() || Instant::now() > end {
                let log = fs::read_to_string(&log).unwrap_or_default();
                let what = if ended.is_some() {
                    "ended at its start"
                } else {
                    "does not answer"
                };
                bail!("overlayd {what}; its log:\n{log}");
            }
            sleep(POLL);
        }
        self.meter = Meter::of_daemon(pid);
        Ok(())
    }

    fn config(
        &self,
        backend: Backend,
        engine: &str,
        leases: &FilePath,
        socket: &FilePath,
    ) -> String {
        let Ports { udp, vxlan } = self.site.ports;
        let port = match backend {
            Backend::Udp => udp,
            // A route has no port.
            Backend::Vxlan | Backend::HostGw => vxlan,
        };
        let (number, public) = (self.site.number, self.site.public);
        format!(
            "[network]\nnetwork = \"198.18.0.0/16\"\n[backend]\ntype = \"{backend}\"\nport = {port}\n\
             [node]\nname = \"host{number}\"\npublic-ip = \"{public}\"\n[device]\nname = \"{DEVICE}\"\n\
             [datapath]\nengine = \"{engine}\"\n[store]\ntype = \"file\"\npath = {leases:?}\n[control]\nsocket = {socket:?}\n"
        )
    }

    fn leases(&self) -> String {
        let lease =
            |number, public| serde_json::json!({"Subnet": subnet(number), "PublicIP": public});
        let leases = [
            lease(self.site.number, self.site.public),
            lease(self.other(), self.site.peer),
        ];
        serde_json::Value::from(leases.to_vec()).to_string()
    }

    /// Takes the path down that is up.
    pub(super) fn down(&mut self) -> Result<()> {
        self.jobs.clear();
        self.meter = Meter::default();
        let Some(mut up) = self.up.take() else {
            return Ok(());
        };
        if let Some(child) = &mut up.daemon {
            end(child)?;
        }
        let script = match &up.script {
            Some(name) => self.end_script(name),
            None => Ok(()),
        };
        let site = &self.site;
        self.runtime.block_on(async {
            let netlink = Netlink::open_in(&site.node)?;
            if up.script.is_some() {
                netlink.delete_link(&script::device(site.number)).await?;
            }
            for route in &up.routes {
                ignore_missing(netlink.del_route(route).await)?;
            }
            for (index, address) in &up.addresses {
                ignore_missing(netlink.del_address(*index, *address).await)?;
            }
            for link in &up.links {
                netlink.delete_link(link).await?;
            }
            anyhow::Ok(())
        })?;
        script
    }

    /// What machine this is.
    pub(super) fn machine(&self) -> Machine {
        let Site { device, public, .. } = &self.site;
        Machine::here(format!("{device}, {public}, MTU {}", self.underlay_mtu))
    }

    /// The status document of the daemon, where the path has one.
    pub(super) fn status(&self) -> Option<serde_json::Value> {
        let socket = self.up.as_ref()?.socket.as_ref()?;
        client::status(socket).ok()
    }

    /// Has the daemon that carries the path ended by itself?
    pub(super) fn daemon_ended(&mut self) -> bool {
        match self.up.as_mut().and_then(|up| up.daemon.as_mut()) {
            Some(child) => matches!(child.try_wait(), Ok(Some(_))),
            None => {
                let ended = |pid| self.started().is_ok_and(|left| !left.contains(&pid));
                self.meter.daemon().is_some_and(ended)
            }
        }
    }

    /// Starts one end of a load where the path ends, and counts the daemon's system calls meanwhile if `calls` says so. Its
    /// number, and the port it listens on.
    pub(super) fn start(&mut self, job: Job, calls: bool) -> Result<(u32, u16)> {
        let pods = self.up.as_ref().is_some_and(|up| up.pods);
        let namespace = match &self.site.pod {
            Some(pod) if pods => pod,
            _ => &self.site.node,
        };
        let running = Running::start(
            job,
            &Surroundings {
                namespace: namespace.clone(),
                meter: if calls {
                    self.meter.with_syscalls()
                } else {
                    self.meter.clone()
                },
                cpus: self.site.cpus.clone(),
                cancel: self.site.cancel.clone(),
            },
        )?;
        self.last_job += 1;
        let port = running.port;
        self.jobs.insert(self.last_job, running);
        Ok((self.last_job, port))
    }

    /// Waits for the end of a load, or stops it, and says what it saw.
    pub(super) fn finish(&mut self, job: u32) -> Result<Outcome> {
        let running = self.jobs.remove(&job).context("there is no such job")?;
        Ok(running.finish()?)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let (device, original) = (&self.site.device, &self.original);
        let restored = self.site.node.run(|| set_features(device, original));
        if let Err(error) = restored.and_then(|done| done) {
            tracing::warn!("the offloads of {device} could not be set back: {error}");
        }
        if let Err(error) = self.down() {
            tracing::warn!("not all of the bench could be taken down: {error:#}");
        }
    }
}

/// Ends a daemon: asked first, killed when it does not listen.
fn end(child: &mut Child) -> Result<()> {
    holder::send(child.id(), Signal::SIGTERM)?;
    let end = Instant::now() + READY;
    while child.try_wait()?.is_none() {
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            break;
        }
        sleep(POLL);
    }
    Ok(())
}

/// To the subnet of host `number` by way of its underlay address.
fn gateway_route(number: u8, via: Ipv4Addr, underlay: u32, src: Option<Ipv4Addr>) -> RouteSpec {
    RouteSpec {
        via: Some(via.into()),
        src: src.map(IpAddr::from),
        protocol: STATIC,
        ..RouteSpec::new(subnet(number).into(), underlay)
    }
}

async fn host_gw(
    netlink: &Netlink,
    site: &Site,
    pods: bool,
    other: u8,
    up: &mut Up,
) -> Result<Ipv4Addr> {
    let ip = host_address(site.number, 1);
    if !pods {
        let lo = find(netlink, "lo").await?.index;
        let address = IpNet::new_assert(ip.into(), 32);
        netlink.add_address(lo, address, true).await?;
        up.addresses.push((lo, address));
    }
    let underlay = find(netlink, &site.device).await?.index;
    let route = gateway_route(other, site.peer, underlay, (!pods).then_some(ip));
    netlink.add_route(&route).await?;
    up.routes.push(route);
    Ok(ip)
}

/// As flannel's vxlan backend does it (`pkg/backend/vxlan/device.go`): no learning, permanent neighbour and FDB entry.
async fn kernel_vxlan(
    netlink: &Netlink,
    site: &Site,
    mtu: u16,
    other: u8,
    up: &mut Up,
) -> Result<()> {
    let dev = find(netlink, &site.device).await?.index;
    let spec = VxlanSpec {
        name: DEVICE.into(),
        vni: VNI,
        local: site.public.into(),
        dev,
        port: site.ports.vxlan,
        mac: Some(mac(site.number)),
    };
    let link = netlink.add_vxlan(&spec).await?.index;
    up.links.push(DEVICE);
    netlink.set_mtu(link, mtu.into()).await?;
    let own = IpNet::new_assert(subnet(site.number).addr().into(), 32);
    netlink.add_address(link, own, true).await?;
    netlink.set_up(link).await?;
    let there: IpAddr = subnet(other).addr().into();
    netlink.add_neighbour(link, there, mac(other)).await?;
    netlink.add_fdb(link, mac(other), site.peer.into()).await?;
    let route = RouteSpec {
        via: Some(there),
        onlink: true,
        protocol: STATIC,
        ..RouteSpec::new(subnet(other).into(), link)
    };
    Ok(netlink.add_route(&route).await?)
}

/// A bridge on the node with the subnet's first address, and a pod behind it with the second.
async fn plug_pod(netlink: &Netlink, pod: &NetNs, number: u8, mtu: u16, up: &mut Up) -> Result<()> {
    let bridge = netlink.add_bridge(BRIDGE).await?.index;
    up.links.push(BRIDGE);
    let gateway = host_address(number, 1);
    netlink.set_mtu(bridge, mtu.into()).await?;
    netlink
        .add_address(bridge, IpNet::new_assert(gateway.into(), 24), true)
        .await?;
    let veth = netlink.add_veth(POD_VETH, POD_ETH, Some(pod)).await?.index;
    up.links.push(POD_VETH);
    netlink.set_mtu(veth, mtu.into()).await?;
    netlink.set_master(veth, bridge).await?;
    netlink.set_up(veth).await?;
    let inside = Netlink::open_in(pod)?;
    let eth = find(&inside, POD_ETH).await?.index;
    inside.set_mtu(eth, mtu.into()).await?;
    inside.set_up(eth).await?;
    let address = IpNet::new_assert(host_address(number, 2).into(), 24);
    inside.add_address(eth, address, true).await?;
    let route = RouteSpec {
        via: Some(gateway.into()),
        protocol: STATIC,
        ..RouteSpec::new(IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0), eth)
    };
    Ok(inside.add_route(&route).await?)
}

async fn find(netlink: &Netlink, name: &str) -> Result<Link> {
    netlink
        .link(name)
        .await?
        .with_context(|| format!("there is no device {name}"))
}

fn ignore_missing(result: crate::kernel::Result<()>) -> crate::kernel::Result<()> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

/// The features of a device in the calling thread's namespace.
fn features(device: &str) -> io::Result<Features> {
    ethtool::features(&UnixDatagram::unbound()?, device)
}

fn set_features(device: &str, wanted: &Features) -> io::Result<()> {
    ethtool::set_features(&UnixDatagram::unbound()?, device, wanted)
}
