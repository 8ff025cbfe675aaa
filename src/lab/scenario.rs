//! Labs with something wrong in them, for a class to find out.
//!
//! A scenario says what its users complain of, asks for a prediction, and has hints that are given one at a time. Its
//! grade looks at what packets do, never at how somebody made them do it: any cure that works is right, and one that
//! only moves the trouble is not. What is behind each stands in the book (`docs/src/scenarios.md`).

mod grade;
mod spoof;
mod texts;

use std::time::{Duration, Instant};
use std::{fmt, fs, thread};

use anyhow::{Context as _, Result, bail};

pub use grade::{Check, Grade, VERSION, grade};
pub use spoof::intrude;
pub use texts::{CHAPTER, PAGE, Story};

use super::topology::{Lab, Scenario, on_runtime};
use crate::kernel::{Netlink, sysctl};
use crate::observe::client;

/// How long a daemon may take to notice a change.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// What the way to the last node takes in the scenario `mtu`, in bytes less than everybody believes.
const NARROWER: u16 = 100;

/// What makes a bridge treat IP packets as a router does, of a namespace each; there if br_netfilter is loaded.
const BRIDGE_FILTERS: [&str; 2] = [
    "net.bridge.bridge-nf-call-iptables",
    "net.bridge.bridge-nf-call-ip6tables",
];

impl Scenario {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Mtu, Self::NoLease, Self::Spoof];

    /// What is told and asked.
    pub fn story(self) -> &'static Story {
        match self {
            Self::Mtu => &texts::MTU,
            Self::NoLease => &texts::NO_LEASE,
            Self::Spoof => &texts::SPOOF,
        }
    }

    /// What is behind it: its part of the book's chapter.
    pub fn explanation(self) -> &'static str {
        let heading = format!("\n## {self}\n");
        let start = texts::TEXT.find(&heading).map_or(0, |at| at + 1);
        let rest = &texts::TEXT[start..];
        let end = rest.find("\n## ").map_or(rest.len(), |at| at + 1);
        &rest[..end]
    }

    /// Breaks a lab that was built for it.
    ///
    /// # Errors
    /// When the lab is not as it was built.
    pub fn begin(self, lab: &mut Lab) -> Result<()> {
        match self {
            Self::Mtu => narrow(lab),
            Self::NoLease => forget(lab),
            Self::Spoof => {
                let name = lab.spec().name.clone();
                lab.start_helper("intruder", &["intrude", &name])
            }
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mtu => "mtu",
            Self::NoLease => "no-lease",
            Self::Spoof => "spoof",
        })
    }
}

/// The underlay's end of the last node's cable carries less than its other end believes. A bridge drops what does not
/// fit, and tells nobody: it is no router. (Linux' bridges act as one where the module br_netfilter is loaded, as Docker
/// loads it, and cut packets to size; not this one.)
fn narrow(lab: &Lab) -> Result<()> {
    let last = lab.node(lab.spec().nodes)?.name.clone();
    let underlay = lab.place("underlay")?;
    let mtu = lab.spec().mtu - NARROWER;
    on_runtime(|| async move {
        underlay.run(|| {
            let there = |key: &&str| sysctl::read(key).is_ok();
            let mut keys = BRIDGE_FILTERS.into_iter().filter(there);
            keys.try_for_each(|key| sysctl::write(key, "0"))
        })??;
        let netlink = Netlink::open_in(&underlay)?;
        let port = netlink.link(&last).await?;
        let port = port.with_context(|| format!("{last} is not connected to the underlay"))?;
        Ok(netlink.set_mtu(port.index, mtu.into()).await?)
    })
}

/// The second node's lease is gone from the lease file, which is replaced as a whole, as every tool should do it.
fn forget(lab: &Lab) -> Result<()> {
    let path = lab.leases();
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut leases: Vec<serde_json::Value> = serde_json::from_str(&text)?;
    let gone = lab.node(2)?.subnet.to_string();
    leases.retain(|lease| lease["Subnet"] != gone.as_str());
    let lines: Vec<_> = leases.iter().map(|lease| format!("  {lease}")).collect();
    let new = path.with_extension("json.new");
    fs::write(&new, format!("[\n{}\n]\n", lines.join(",\n")))
        .and_then(|()| fs::rename(&new, &path))
        .with_context(|| format!("cannot write {}", path.display()))?;
    // The daemons read it a moment later; whoever looks first shall see the scenario, not what was before it.
    let first = lab.socket(1);
    let deadline = Instant::now() + PATIENCE;
    let knows = |status: &serde_json::Value| status["peers"].to_string().contains(&gone);
    while client::status(&first).is_ok_and(|status| knows(&status)) {
        if Instant::now() > deadline {
            bail!(
                "overlayd on node1 does not take note of the lease file {}",
                path.display()
            );
        }
        thread::sleep(POLL);
    }
    Ok(())
}
