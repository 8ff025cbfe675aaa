//! The status document: what `overlayd status` shows and `--json` prints.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::datapath::DropReason;
use crate::datapath::counters::{DirectionCounts, Tally, Way};
use crate::lease::sync::Objection;

/// Version of the document. Fields may be added within a version, none renamed or removed.
pub const VERSION: u32 = 1;

/// How many repairs the text shows.
const SHOWN_REPAIRS: usize = 3;

/// Is the daemon well?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// All is as configured.
    Ok,
    /// It forwards, but on tables that are not what the store says now; see the reasons.
    Degraded,
}

/// The whole document.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Status {
    /// [`VERSION`].
    pub version: u32,
    /// Health first.
    pub state: Health,
    /// Why it is degraded.
    pub reasons: Vec<String>,
    /// What would eat overlay traffic on this host, and the cure.
    pub warnings: Vec<Warning>,
    /// The node's name.
    pub node: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Seconds since start.
    pub uptime_seconds: u64,
    /// Version of the program.
    pub program_version: String,
    /// Which encapsulation.
    pub backend: Backend,
    /// Which engine forwards.
    pub engine: String,
    /// What the kernel does for the engine.
    #[serde(default)]
    pub features: Vec<Feature>,
    /// The TUN device.
    pub device: Device,
    /// The node's own lease.
    pub lease: OwnLease,
    /// Whether packets that leave the overlay are masqueraded here.
    #[serde(default)]
    pub ip_masq: bool,
    /// What others undid on this host, and we mended.
    #[serde(default)]
    pub repairs: Repairs,
    /// The other nodes.
    pub peers: Vec<Peer>,
    /// Where the leases stand.
    #[serde(default)]
    pub store: Store,
    /// Leases and routes that were not taken.
    pub refused: Vec<Objection>,
    /// From the device to peers.
    pub outbound: DirectionCounts,
    /// From peers to the device.
    pub inbound: DirectionCounts,
    /// Drops that happened, by reason.
    pub drops: Vec<Drop>,
}

/// What was mended: the device, its addresses, our routes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Repairs {
    /// How often, since start.
    pub count: u64,
    /// The last of them, the newest last.
    pub recent: Vec<Repair>,
}

/// One thing that was mended.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Repair {
    /// How long ago.
    pub seconds_ago: u64,
    /// What was done.
    pub what: String,
}

/// Something that the kernel may do for an engine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// Is it in use?
    pub on: bool,
    /// What it is, or why it is not in use.
    pub note: String,
}

impl Feature {
    /// A feature as it stands now.
    pub fn new(name: &str, on: bool, note: &str) -> Self {
        Feature {
            name: name.into(),
            on,
            note: note.into(),
        }
    }
}

/// Something on the host that would eat overlay traffic.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Warning {
    /// What was found.
    pub what: String,
    /// The command that mends it.
    pub cure: String,
}

/// The encapsulation in use.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Backend {
    /// `udp`, `vxlan`, `host-gw` or `alloc`.
    #[serde(rename = "type")]
    pub name: String,
    /// UDP port; 0 where nothing is encapsulated.
    pub port: u16,
    /// VXLAN network identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
}

/// The TUN device; where nothing is encapsulated, the underlay interface in its stead.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its interface index.
    pub index: u32,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// Its overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// The underlay interface.
    pub underlay: String,
    /// The underlay interface's MTU in bytes.
    pub underlay_mtu: u32,
}

/// The lease store. Counts are since the daemon's start; those of revisions, races and renewals are of etcd.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Store {
    /// `file` or `etcd`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The file, or the member that is asked and the prefix of all keys.
    pub place: String,
    /// It could be read the last time, and is being watched.
    #[serde(default)]
    pub reachable: bool,
    /// Leases in it, our own and refused ones too.
    #[serde(default)]
    pub leases: usize,
    /// For how long the leases in force have not been compared with the store, in seconds, while it is out of reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<u64>,
    /// What is left of this node's lease if it is not renewed, in seconds, where leases end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_left_seconds: Option<u64>,
    /// Times that the whole of it was read.
    #[serde(default)]
    pub reads: u64,
    /// Attempts to read or write that failed.
    #[serde(default)]
    pub faults: u64,
    /// What is not as it should be; empty: the store is in order.
    pub reasons: Vec<String>,
    /// For how long that is so, in seconds.
    pub degraded_seconds: Option<u64>,
    /// The last revision that we know all of.
    pub revision: i64,
    /// Leases that do not end.
    pub reservations: usize,
    /// Keys whose values cannot be read, and why.
    pub unreadable: Vec<String>,
    /// Connections made.
    pub connects: u64,
    /// Whole lists read after the first.
    pub relists: u64,
    /// Changes that the watch reported.
    pub changes: u64,
    /// Unreadable values that came.
    pub unreadable_values: u64,
    /// Writes that another node was faster with.
    pub races_lost: u64,
    /// Leases that this node took.
    pub leases_taken: u64,
    /// Renewals of its lease.
    pub renewals: u64,
}

/// The node's own lease.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct OwnLease {
    /// IPv4 subnet.
    pub subnet: Option<Ipv4Net>,
    /// IPv6 subnet.
    pub ipv6_subnet: Option<Ipv6Net>,
    /// Underlay IPv4 address.
    pub public_ip: Option<Ipv4Addr>,
    /// Underlay IPv6 address.
    pub public_ipv6: Option<Ipv6Addr>,
    /// VTEP MAC, with the vxlan backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vtep_mac: Option<String>,
}

/// One other node.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Peer {
    /// Its IPv4 subnet.
    pub subnet: Option<Ipv4Net>,
    /// Its IPv6 subnet.
    pub ipv6_subnet: Option<Ipv6Net>,
    /// Further prefixes that lead to it: of a second lease, or of static routes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<IpNet>,
    /// Its underlay IPv4 address.
    pub public_ip: Option<Ipv4Addr>,
    /// Its underlay IPv6 address.
    pub public_ipv6: Option<Ipv6Addr>,
    /// Its VTEP MAC, with the vxlan backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vtep_mac: Option<String>,
    /// Inner packets sent to it.
    pub sent_packets: u64,
    /// Inner bytes sent to it.
    pub sent_bytes: u64,
    /// Inner packets received from it.
    pub received_packets: u64,
    /// Inner bytes received from it.
    pub received_bytes: u64,
}

/// The answer to `who ADDRESS`: which node the forwarding tables lead a destination to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Who {
    /// [`VERSION`].
    pub version: u32,
    /// What was asked for.
    pub destination: IpAddr,
    /// Who holds it.
    #[serde(flatten)]
    pub holder: Holder,
}

/// Who holds an overlay address.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "holder", rename_all = "lowercase")]
pub enum Holder {
    /// This node.
    Local,
    /// Nobody.
    None,
    /// Another node.
    Peer {
        /// Where the datagrams go.
        to: SocketAddr,
        /// The largest inner packet that fits, in bytes.
        mtu: u16,
        /// The finished encapsulation header; of the udp backend, none.
        header: Vec<u8>,
    },
}

/// One drop reason that has happened.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Drop {
    /// `outbound` or `inbound`.
    pub direction: String,
    /// The reason's name.
    pub reason: String,
    /// How many inner packets.
    pub packets: u64,
    /// What it means.
    pub meaning: String,
    /// What to do.
    pub advice: String,
}

/// The drops in `tally` that have happened, in the order of the checks.
pub fn drops(tally: &Tally) -> Vec<Drop> {
    let of = |way: Way| {
        DropReason::ALL.iter().map(move |reason| Drop {
            direction: way.name().into(),
            reason: reason.name().into(),
            packets: tally.dropped(way, *reason),
            meaning: reason.meaning().into(),
            advice: reason.advice().into(),
        })
    };
    let all = Way::ALL.into_iter().flat_map(of);
    all.filter(|drop| drop.packets > 0).collect()
}

impl Peer {
    /// All prefixes that lead to it.
    fn prefixes(&self) -> String {
        let also = self.also.iter().map(|prefix| format!(" {prefix}"));
        pair(self.subnet, self.ipv6_subnet) + &also.collect::<String>()
    }
}

impl Status {
    /// The document for people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_text(&mut text);
        text
    }

    fn write_text(&self, to: &mut String) -> std::fmt::Result {
        let health = match self.state {
            Health::Ok => "ok",
            Health::Degraded => "DEGRADED",
        };
        let refused = match self.refused.len() {
            0 => String::new(),
            1 => ", 1 lease or route not taken".into(),
            n => format!(", {n} leases or routes not taken"),
        };
        writeln!(
            to,
            "{}: {health}{refused}, up {}, overlayd {}, pid {}",
            self.node,
            duration(self.uptime_seconds),
            self.program_version,
            self.pid
        )?;
        for reason in &self.reasons {
            writeln!(to, "  degraded: {reason}")?;
        }
        for warning in &self.warnings {
            writeln!(to, "  warning: {}", warning.what)?;
            if !warning.cure.is_empty() {
                writeln!(to, "           cure: {}", warning.cure)?;
            }
        }
        let vni = self
            .backend
            .vni
            .map(|vni| format!(", VNI {vni}"))
            .unwrap_or_default();
        if self.backend.port == 0 {
            let how = "packets are not encapsulated: the kernel routes them";
            writeln!(to, "\nbackend   {}, {how}", self.backend.name)?;
        } else {
            writeln!(
                to,
                "\nbackend   {}{vni}, UDP port {}, engine {}",
                self.backend.name, self.backend.port, self.engine
            )?;
        }
        for (index, feature) in self.features.iter().enumerate() {
            writeln!(
                to,
                "{:<9} {:<16} {:<3}  {}",
                if index == 0 { "kernel" } else { "" },
                feature.name,
                if feature.on { "on" } else { "off" },
                feature.note
            )?;
        }
        let device = &self.device;
        if self.backend.port != 0 {
            writeln!(
                to,
                "device    {} (index {}), MTU {}, address {}",
                device.name,
                device.index,
                device.mtu,
                list(&device.addresses)
            )?;
        }
        writeln!(
            to,
            "underlay  {}, MTU {}",
            device.underlay, device.underlay_mtu
        )?;
        let lease = &self.lease;
        writeln!(
            to,
            "lease     {} at {}{}",
            pair(lease.subnet, lease.ipv6_subnet),
            pair(lease.public_ip, lease.public_ipv6),
            lease
                .vtep_mac
                .as_ref()
                .map(|mac| format!(", VTEP MAC {mac}"))
                .unwrap_or_default()
        )?;

        if !self.store.kind.is_empty() {
            let store = &self.store;
            write!(to, "store     {} {}", store.kind, store.place)?;
            if store.kind == "etcd" {
                write!(
                    to,
                    ", revision {}, {} renewals, {} relists, {} races lost",
                    store.revision, store.renewals, store.relists, store.races_lost
                )?;
            }
            writeln!(to)?;
            for unreadable in &store.unreadable {
                writeln!(to, "          unreadable: {unreadable}")?;
            }
        }

        if self.repairs.count > 0 {
            writeln!(to, "\nrepairs   {}, the last:", self.repairs.count)?;
            for repair in self.repairs.recent.iter().rev().take(SHOWN_REPAIRS) {
                writeln!(
                    to,
                    "  {} ago: {}",
                    duration(repair.seconds_ago),
                    repair.what
                )?;
            }
        }

        if !self.refused.is_empty() {
            writeln!(to, "\nnot taken")?;
            for objection in &self.refused {
                writeln!(to, "  {}: {}", objection.subject, objection.reason)?;
            }
        }

        writeln!(to, "\npeers     {}", self.peers.len())?;
        if !self.peers.is_empty() {
            let names: Vec<_> = self.peers.iter().map(Peer::prefixes).collect();
            let ips: Vec<_> = self
                .peers
                .iter()
                .map(|p| pair(p.public_ip, p.public_ipv6))
                .collect();
            let width = |of: &[String], title: usize| {
                of.iter().map(String::len).max().unwrap_or(0).max(title)
            };
            let (a, b) = (width(&names, 6), width(&ips, 9));
            writeln!(
                to,
                "  {:a$}  {:b$}  {:>12} {:>10}  {:>12} {:>10}",
                "subnet", "public IP", "sent packets", "bytes", "recv packets", "bytes"
            )?;
            for ((peer, name), ip) in self.peers.iter().zip(&names).zip(&ips) {
                writeln!(
                    to,
                    "  {name:a$}  {ip:b$}  {:>12} {:>10}  {:>12} {:>10}",
                    peer.sent_packets,
                    bytes(peer.sent_bytes),
                    peer.received_packets,
                    bytes(peer.received_bytes)
                )?;
            }
        }

        writeln!(
            to,
            "\npackets     {:>12} {:>12} {:>12} {:>12}",
            "in", "forwarded", "dropped", "queued"
        )?;
        for (name, counts) in [("outbound", &self.outbound), ("inbound", &self.inbound)] {
            writeln!(
                to,
                "  {name:8}  {:>12} {:>12} {:>12} {:>12}",
                counts.packets_in, counts.forwarded, counts.dropped, counts.queued
            )?;
        }
        if self.outbound.overflow > 0 {
            writeln!(
                to,
                "\n{} packets were dropped by the kernel: the queue of {} was full",
                self.outbound.overflow, self.device.name
            )?;
        }
        if self.inbound.overflow > 0 {
            writeln!(
                to,
                "\n{} datagrams were dropped by the kernel: the socket's buffer was full, or the UDP checksum wrong",
                self.inbound.overflow
            )?;
        }
        if !self.drops.is_empty() {
            writeln!(to, "\ndrops")?;
            let width = self.drops.iter().map(|d| d.reason.len()).max().unwrap_or(0);
            for drop in &self.drops {
                writeln!(
                    to,
                    "  {:8}  {:width$}  {:>10}\n      {}\n      -> {}",
                    drop.direction, drop.reason, drop.packets, drop.meaning, drop.advice
                )?;
            }
        }
        Ok(())
    }
}

fn list(ips: &[IpAddr]) -> String {
    let ips: Vec<_> = ips.iter().map(IpAddr::to_string).collect();
    ips.join(", ")
}

fn pair<A: ToString, B: ToString>(a: Option<A>, b: Option<B>) -> String {
    match (a, b) {
        (Some(a), Some(b)) => format!("{} {}", a.to_string(), b.to_string()),
        (Some(a), None) => a.to_string(),
        (None, Some(b)) => b.to_string(),
        (None, None) => "-".into(),
    }
}

/// A count of bytes with a binary unit.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut tenths = u128::from(count) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// A time as people say it.
pub(crate) fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_durations_read_well() {
        let read: Vec<_> = [0, 1023, 1024, 1536, 1 << 20, 5 << 40].map(bytes).into();
        assert_eq!(
            read,
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "5.0 TiB"]
        );
        let read: Vec<_> = [0, 59, 60, 3661, 90_000].map(duration).into();
        assert_eq!(read, ["0 s", "59 s", "1 min 0 s", "1 h 1 min", "1 d 1 h"]);
    }

    #[test]
    fn only_drops_that_happened_are_listed() {
        let tally = Tally::new(2);
        assert!(drops(&tally).is_empty());
        for counters in tally.queues() {
            counters.inbound.drop_many(DropReason::WrongVni, 3);
        }
        let drops = drops(&tally);
        assert_eq!(drops.len(), 1);
        assert_eq!(
            (&*drops[0].direction, &*drops[0].reason, drops[0].packets),
            ("inbound", "wrong-vni", 6)
        );
    }
}
