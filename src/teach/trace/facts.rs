//! What a row's sentences say, in fields for programs: routes, leases and checks.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::Serialize;

/// A decision of a routing table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Routing {
    /// What was looked up.
    pub destination: IpAddr,
    /// The routes of its family in the main table, the longest match first, then those that do not match.
    pub routes: Vec<HeldRoute>,
    /// What the kernel chose, by whatever table; `None`: nothing leads there, or it is forbidden.
    pub winner: Option<NextHop>,
    /// Priorities of the policy rules beside the standard ones (`ip rule`).
    pub rules: Vec<u32>,
}

/// A route held against a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeldRoute {
    /// The destinations that it is for.
    pub prefix: IpNet,
    /// The destination AND the prefix's mask.
    pub and: IpAddr,
    /// That is the prefix's network.
    pub matches: bool,
    /// This is the route that the kernel chose.
    pub wins: bool,
    /// By which device.
    pub device: Option<String>,
    /// To which next hop.
    pub via: Option<IpAddr>,
    /// Among equal prefixes the lower wins.
    pub metric: u32,
    /// It lets nothing through: `blackhole`, `prohibit`, ...
    pub forbids: Option<&'static str>,
}

/// Where a packet is sent next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NextHop {
    /// By which device.
    pub device: String,
    /// To which next hop; `None`: the destination is on the device's own network.
    pub via: Option<IpAddr>,
    /// What fits there, in bytes.
    pub mtu: Option<u32>,
}

/// A decision of the daemon's lease table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeaseAnswer {
    /// What was looked up.
    pub destination: IpAddr,
    /// Who holds it.
    pub holder: LeaseHolder,
    /// The node that does, if it is another: where datagrams for it go.
    pub to: Option<SocketAddr>,
    /// The largest inner packet that fits there, in bytes.
    pub mtu: Option<u16>,
    /// The leases of the destination's family, of all peers.
    pub leases: Vec<HeldLease>,
}

/// Who holds a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseHolder {
    /// Another node.
    Peer,
    /// This node.
    Local,
    /// Nobody.
    None,
}

/// A lease held against a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeldLease {
    /// Its subnet, or another network that its node has.
    pub subnet: IpNet,
    /// The public IPs of its node.
    pub at: Vec<IpAddr>,
    /// The destination lies in it.
    pub holds: bool,
}

/// A check of the daemon's on a datagram that it received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The datagram passed it. None is made after one that failed.
    pub passed: bool,
    /// The drop reason of what does not pass.
    pub reason: &'static str,
    /// What it found: what is right, or what is wrong.
    pub text: String,
}
