//! The bench's own ground: two hosts in network namespaces, joined by a veth.
//!
//! ```text
//!  bench-<pid>-a: eth0 198.19.0.1 ────── veth, MTU 1500 ────── eth0 198.19.0.2 :bench-<pid>-b
//!                 ovb0 198.18.1.0    the path under test    198.18.2.0 ovb0
//!                 ovb-br0 198.18.1.1                        198.18.2.1 ovb-br0     (rows between pods)
//!                   └─ pod 198.18.1.2                        198.18.2.2 pod ─┘
//! ```
//!
//! Everything carries the number of the process that made it. What a bench that was killed has left is removed by the
//! next one.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ipnet::IpNet;

use super::Plan;
use super::host::{Host, Ports, Record, Site};
use crate::kernel::{NetNs, Netlink, sysctl};
use crate::lab::holder;
use crate::lab::traffic::Cancel;

const PREFIX: &str = "bench-";
/// Where configurations and logs are while the bench runs.
const ROOT: &str = "/run/overlayd/bench";
const ETH: &str = "eth0";

/// The namespaces and the directory. They go with it: drop the hosts first.
#[derive(Debug)]
pub(super) struct Bed {
    mark: String,
    dir: PathBuf,
}

impl Bed {
    /// Builds the two hosts.
    pub(super) fn build(
        exe: &Path,
        plan: &Plan,
        pods: bool,
        cancel: &Cancel,
    ) -> Result<(Host, Host, Self)> {
        let bed = Self::claim()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let names = [bed.namespace('a'), bed.namespace('b')];
        let nodes = [
            NetNs::create_named(&names[0])?,
            NetNs::create_named(&names[1])?,
        ];
        runtime.block_on(wire(&nodes, plan.mtu))?;
        let [a, b] = nodes;
        let host = |number: u8, node: NetNs, cpus: &[usize]| -> Result<Host> {
            let pod = if pods {
                Some(pod_namespace(&runtime)?)
            } else {
                None
            };
            let dir = bed.host_dir(number)?;
            Host::new(Site {
                number,
                node,
                pod,
                device: ETH.into(),
                public: address(number),
                peer: address(3 - number),
                dir,
                exe: exe.to_owned(),
                mark: bed.mark().to_owned(),
                ports: Ports::default(),
                scripts: plan.scripts.clone(),
                cpus: cpus.to_vec(),
                cancel: cancel.clone(),
            })
        };
        Ok((host(1, a, &plan.pin.a)?, host(2, b, &plan.pin.b)?, bed))
    }

    /// The directory, and the name that marks what is ours.
    pub(super) fn claim() -> Result<Self> {
        sweep();
        let mark = format!("{PREFIX}{}", std::process::id());
        let dir = Path::new(ROOT).join(&mark);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self { mark, dir })
    }

    /// What our processes carry.
    pub(super) fn mark(&self) -> &str {
        &self.mark
    }

    /// A host's own directory.
    pub(super) fn host_dir(&self, number: u8) -> Result<PathBuf> {
        let dir = self.dir.join(format!("host{number}"));
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    fn namespace(&self, which: char) -> String {
        format!("{}-{which}", self.mark)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for which in ['a', 'b'] {
            if let Err(error) = NetNs::delete_named(&self.namespace(which)) {
                tracing::warn!("{error}");
            }
        }
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!("{}: {error}", self.dir.display());
        }
        // Others may be there, or a daemon of this host.
        for parent in self.dir.ancestors().skip(1).take(2) {
            if fs::remove_dir(parent).is_err() {
                break;
            }
        }
    }
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 19, 0, number)
}

async fn wire(nodes: &[NetNs; 2], mtu: u16) -> Result<()> {
    for node in nodes {
        node.run(|| sysctl::write("net.ipv4.ip_forward", "1"))??;
    }
    let first = Netlink::open_in(&nodes[0])?;
    first.add_veth(ETH, ETH, Some(&nodes[1])).await?;
    for (number, node) in (1..).zip(nodes) {
        let netlink = Netlink::open_in(node)?;
        for name in ["lo", ETH] {
            let link = netlink.link(name).await?.context("a link has vanished")?;
            if name == ETH {
                netlink.set_mtu(link.index, mtu.into()).await?;
                let address = IpNet::new_assert(address(number).into(), 24);
                netlink.add_address(link.index, address, true).await?;
            }
            netlink.set_up(link.index).await?;
        }
    }
    Ok(())
}

fn pod_namespace(runtime: &tokio::runtime::Runtime) -> Result<NetNs> {
    let pod = NetNs::create_unnamed()?;
    runtime.block_on(async {
        let netlink = Netlink::open_in(&pod)?;
        let lo = netlink.link("lo").await?.context("there is no lo")?;
        Ok::<_, anyhow::Error>(netlink.set_up(lo.index).await?)
    })?;
    Ok(pod)
}

/// Removes what benches that were killed have left. What is in the way of it shows when ours is built.
pub(super) fn sweep() {
    let dead = |name: &str| {
        let pid = name
            .strip_prefix(PREFIX)?
            .split('-')
            .next()?
            .parse::<u32>()
            .ok()?;
        (!Path::new("/proc").join(pid.to_string()).exists()).then(|| format!("{PREFIX}{pid}"))
    };
    let directories = fs::read_dir(ROOT).into_iter().flatten().flatten();
    let directories = directories.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let names = NetNs::list_named().unwrap_or_default().into_iter();
    let marks: BTreeSet<String> = names.chain(directories).filter_map(|n| dead(&n)).collect();
    for mark in marks {
        let _ = holder::end_all(&mark, || ());
        for which in ['a', 'b'] {
            let _ = NetNs::delete_named(&format!("{mark}-{which}"));
        }
        set_back(&Path::new(ROOT).join(mark));
    }
}

/// Sets back what a bench on a real host has changed there, and removes its directory. That of a host which is a namespace
/// that we are not in stays, for one that is.
fn set_back(directory: &Path) {
    let hosts = fs::read_dir(directory).into_iter().flatten().flatten();
    let records: Vec<Record> = hosts
        .filter_map(|host| Record::kept(&host.path()))
        .collect();
    if !records.iter().all(Record::is_here) {
        return;
    }
    for record in records {
        if let Err(error) = record.undo() {
            tracing::warn!("what a killed bench has left could not all be removed: {error:#}");
        }
    }
    let _ = fs::remove_dir_all(directory);
}
