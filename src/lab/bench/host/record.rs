//! What a bench on a real host sets back at its end, kept where the next one finds it if this one is killed. (Namespaces
//! of the bench's own go as a whole.)

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Result;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    DEVICE, Host, find, gateway_route, host_address, ignore_missing, script, set_features,
};
use crate::kernel::{NetNs, Netlink};
use crate::sys::ethtool::Features;

const FILE: &str = "underlay.json";

/// The underlay as it was, and what else the paths put beside it.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::lab::bench) struct Record {
    /// Which namespace that is (see [`NetNs::id`]).
    namespace: (u64, u64),
    number: u8,
    device: String,
    peer: Ipv4Addr,
    features: Features,
}

impl Record {
    /// Keeps that of a host that has just been looked at in its directory.
    pub(in crate::lab::bench) fn keep(host: &Host) -> Result<()> {
        let site = &host.site;
        let record = Self {
            namespace: site.node.id()?,
            number: site.number,
            device: site.device.clone(),
            peer: site.peer,
            features: host.original.clone(),
        };
        Ok(fs::write(
            site.dir.join(FILE),
            serde_json::to_vec(&record)?,
        )?)
    }

    /// What is kept in that directory, if anything.
    pub(in crate::lab::bench) fn kept(dir: &Path) -> Option<Self> {
        let text = fs::read(dir.join(FILE)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Is it of the namespace that we are in?
    pub(in crate::lab::bench) fn is_here(&self) -> bool {
        let here = NetNs::current().and_then(|namespace| namespace.id());
        here.is_ok_and(|here| here == self.namespace)
    }

    /// Sets all of it back. Daemons must have ended before, which takes their devices away.
    pub(in crate::lab::bench) fn undo(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let netlink = Netlink::open()?;
            for link in [DEVICE, &script::device(self.number)] {
                netlink.delete_link(link).await?;
            }
            let underlay = find(&netlink, &self.device).await?.index;
            let own = host_address(self.number, 1);
            // Between nodes and between pods it differs in its source, by which the kernel does not tell them apart.
            let route = gateway_route(3 - self.number, self.peer, underlay, None);
            ignore_missing(netlink.del_route(&route).await)?;
            let lo = find(&netlink, "lo").await?.index;
            let address = IpNet::new_assert(own.into(), 32);
            ignore_missing(netlink.del_address(lo, address).await)?;
            anyhow::Ok(())
        })?;
        Ok(set_features(&self.device, &self.features)?)
    }
}
