//! The tables that a packet is led by, read where and when they are needed: links, addresses, routes, neighbours, bridge
//! entries, netfilter chains, counters of the kernel, status and leases of daemons.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use ipnet::IpNet;
use nix::errno::Errno;
use tokio::runtime::Runtime;

use super::facts::{HeldRoute, NextHop, Routing};
use super::world::World;
use crate::kernel::hooks::{self, Chain, Hook, LegacyTable, Rewrite};
use crate::kernel::{
    Address, BridgeEntry, Family, Link, Neighbour, NetNs, Netlink, PolicyRule, Route,
};
use crate::observe::client;
use crate::observe::status::{Status, Who};

/// How long a daemon may take to answer. It needs less than a millisecond, unless it is stopped, or the machine is busy.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

pub(super) fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// The kernel's tables of one place.
#[derive(Debug)]
pub(super) struct Kernel {
    netlink: Netlink,
    pub(super) links: Vec<Link>,
    pub(super) addresses: Vec<Address>,
    pub(super) routes: Vec<Route>,
    /// Routes that let nothing through, of other tables, with the table's number.
    refusals: Vec<(u32, Route)>,
    pub(super) neighbours: Vec<Neighbour>,
    pub(super) bridge: Vec<BridgeEntry>,
    /// Policy rules that not every host has, of IPv4 and IPv6.
    rules: (Vec<PolicyRule>, Vec<PolicyRule>),
    /// `net.ipv4.ip_forward`, `net.ipv6.conf.all.forwarding`
    pub(super) forwards: (bool, bool),
    /// Chains of IP see bridged frames too: `net.bridge.bridge-nf-call-iptables`, and `ip6tables`.
    pub(super) bridge_calls: (bool, bool),
    /// Pings are not answered: `net.ipv4.icmp_echo_ignore_all`, `net.ipv6.icmp.echo_ignore_all`.
    pub(super) deaf: (bool, bool),
}

/// What has a kernel answer no ping, over IPv4 and IPv6 (ip-sysctl in the kernel's documentation).
pub(super) const DEAF: (&str, &str) = (
    "net.ipv4.icmp_echo_ignore_all",
    "net.ipv6.icmp.echo_ignore_all",
);

/// What has chains of IP look at bridged frames, IPv4 and IPv6 (ip-sysctl in the kernel's documentation).
pub(super) const BRIDGE_CALLS: (&str, &str) = (
    "net.bridge.bridge-nf-call-iptables",
    "net.bridge.bridge-nf-call-ip6tables",
);

impl Kernel {
    async fn read(namespace: &NetNs) -> Result<Self> {
        let netlink = Netlink::open_in(namespace)?;
        let (forwards, bridge_calls, deaf) = namespace.run(|| {
            let on = |key| crate::kernel::sysctl::read(key).is_ok_and(|value| value != "0");
            let forwards = (
                on("net.ipv4.ip_forward"),
                on("net.ipv6.conf.all.forwarding"),
            );
            let calls = (on(BRIDGE_CALLS.0), on(BRIDGE_CALLS.1));
            let deaf = (on(DEAF.0), on(DEAF.1));
            (forwards, calls, deaf)
        })?;
        let main = u32::from(libc::RT_TABLE_MAIN);
        let (routes, others): (Vec<_>, Vec<_>) = netlink
            .routes_of_tables()
            .await?
            .into_iter()
            .partition(|(table, _)| *table == main);
        Ok(Self {
            links: netlink.links().await?,
            addresses: netlink.addresses().await?,
            routes: routes.into_iter().map(|(_, route)| route).collect(),
            refusals: others
                .into_iter()
                .filter(|(_, route)| route.refuses.is_some())
                .collect(),
            neighbours: netlink.neighbours().await?,
            bridge: netlink.bridge_entries().await?,
            // A kernel may be built without them.
            rules: (
                netlink.policy_rules(Family::V4).await.unwrap_or_default(),
                netlink.policy_rules(Family::V6).await.unwrap_or_default(),
            ),
            forwards,
            bridge_calls,
            deaf,
            netlink,
        })
    }

    /// The policy rules beyond the standard ones, for the address's family.
    pub(super) fn rules(&self, ip: IpAddr) -> &[PolicyRule] {
        if ip.is_ipv4() {
            &self.rules.0
        } else {
            &self.rules.1
        }
    }

    /// The policy rule that may forbid `dst`, with what it leads to: its own word, or such a route of its table.
    pub(super) fn rule_that_forbids(&self, dst: IpAddr) -> Option<(u32, String)> {
        self.rules(dst).iter().find_map(|rule| {
            if let Some(word) = rule.refuses {
                return Some((rule.priority, format!("says `{word}`")));
            }
            let table = self
                .refusals
                .iter()
                .filter(|(table, _)| *table == rule.table);
            let mut matching = table.filter(|(_, route)| route.dst.contains(&dst));
            let (table, route) = matching.next()?;
            let word = route.refuses?;
            let net = match route.dst.prefix_len() {
                0 => "default".to_owned(),
                _ => route.dst.to_string(),
            };
            Some((
                rule.priority,
                format!("leads to table {table}, whose route `{word} {net}` lets nothing through"),
            ))
        })
    }

    pub(super) fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// For people: the link's name, or its number where it has gone.
    pub(super) fn name(&self, index: u32) -> String {
        let link = self.link(index);
        link.map_or_else(|| format!("#{index}"), |link| link.name.clone())
    }

    pub(super) fn owner(&self, ip: IpAddr) -> Option<&Link> {
        let address = self.addresses.iter().find(|address| address.ip == ip)?;
        self.link(address.ifindex)
    }

    pub(super) fn neighbour(&self, ifindex: u32, ip: IpAddr) -> Option<&Neighbour> {
        let mut entries = self.neighbours.iter();
        entries.find(|entry| entry.ifindex == ifindex && entry.ip == ip)
    }

    /// The device with this Ethernet address.
    pub(super) fn with_mac(&self, mac: [u8; 6]) -> Option<&Link> {
        self.links.iter().find(|link| link.mac == Some(mac))
    }

    /// Behind which port of the bridge an Ethernet address is.
    pub(super) fn port(&self, bridge: u32, mac: [u8; 6]) -> Option<&BridgeEntry> {
        let mut entries = self.bridge.iter();
        entries.find(|entry| entry.bridge == bridge && entry.mac == mac)
    }
}

/// What can be counted at a place.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// The kernel's own: `Ip.InAddrErrors`.
    pub(super) kernel: BTreeMap<String, u64>,
    pub(super) chains: Vec<Chain>,
    /// Tables whose rules are not read.
    pub(super) legacy: Vec<LegacyTable>,
    pub(super) daemon: Option<Status>,
    /// Its daemon runs, and gave no answer in time.
    pub(super) hangs: bool,
    /// What each device has dropped or could not send, by its name.
    devices: HashMap<String, u64>,
    /// What the queues and filters of each device have dropped, by its name; with the kind of the queue.
    queues: HashMap<String, Vec<(String, u64)>>,
}

impl Counts {
    /// What it counts now. A daemon that cannot be asked is none, and one that hung before is not asked again.
    pub(super) fn read(
        namespace: &NetNs,
        socket: Option<&Path>,
        before: Option<&Self>,
    ) -> Result<Self> {
        let runtime = runtime()?;
        let (kernel, chains, legacy, devices) = namespace.run(|| {
            let (chains, legacy) = (hooks::chains(), hooks::legacy_tables());
            (kernel_counters(), chains, legacy, device_drops())
        })?;
        let mut hangs = before.is_some_and(|before| before.hangs);
        let mut answer = None;
        if let Some(socket) = socket.filter(|_| !hangs) {
            let asked = Instant::now();
            answer = client::status_within(socket, PATIENCE).ok();
            hangs = answer.is_none() && asked.elapsed() >= PATIENCE;
        }
        Ok(Self {
            kernel,
            chains: chains?,
            legacy,
            daemon: answer.and_then(|answer| serde_json::from_value(answer).ok()),
            hangs,
            devices,
            queues: runtime.block_on(queue_drops(namespace))?,
        })
    }

    /// By how much a device's count of dropped packets has grown.
    pub(super) fn device_rise(&self, before: &Self, name: &str) -> u64 {
        let get = |counts: &Self| counts.devices.get(name).copied().unwrap_or(0);
        get(self).saturating_sub(get(before))
    }

    /// The kind of the queue of a device whose count of drops has grown.
    pub(super) fn queue_that_dropped(&self, before: &Self, name: &str) -> Option<&str> {
        let none = Vec::new();
        let then = before.queues.get(name).unwrap_or(&none);
        let was = |kind: &str| then.iter().find(|(k, _)| k == kind).map_or(0, |(_, n)| *n);
        let mut now = self.queues.get(name)?.iter();
        now.find(|(kind, drops)| *drops > was(kind))
            .map(|(kind, _)| kind.as_str())
    }

    /// By how much a counter of the kernel has grown.
    pub(super) fn kernel_rise(&self, before: &Self, name: &str) -> u64 {
        let get = |counts: &Self| counts.kernel.get(name).copied().unwrap_or(0);
        get(self).saturating_sub(get(before))
    }

    /// By how much a daemon's count of drops for this reason has grown.
    pub(super) fn drop_rise(&self, before: &Self, direction: &str, reason: &str) -> u64 {
        let get = |counts: &Self| {
            let drops = counts.daemon.iter().flat_map(|status| &status.drops);
            let mut drops = drops.filter(|d| d.direction == direction && d.reason == reason);
            drops.next().map_or(0, |drop| drop.packets)
        };
        get(self).saturating_sub(get(before))
    }

    /// A rule here may give packets another source, as far as can be read.
    pub(super) fn rewrites_sources(&self, v6: bool) -> bool {
        let mut rules = self.chains.iter().flat_map(|chain| &chain.rules);
        rules.any(|rule| rule.rewrites == Some(Rewrite::Source))
            || self
                .legacy
                .iter()
                .any(|table| table.v6 == v6 && table.name == "nat")
    }

    /// The tables of legacy iptables that look at a packet at these hooks.
    pub(super) fn legacy_at(&self, v6: bool, hooks: &[Hook]) -> Vec<&LegacyTable> {
        let stands = |table: &&LegacyTable| hooks.iter().any(|hook| table.stands_at(*hook));
        let tables = self.legacy.iter().filter(|table| table.v6 == v6);
        tables.filter(stands).collect()
    }

    /// By how much a rule's count has grown.
    pub(super) fn rule_rise(&self, before: &Self, chain: &Chain, handle: u64) -> u64 {
        let get = |counts: &Self| {
            let same = |c: &&Chain| {
                (c.family, &c.table, &c.name) == (chain.family, &chain.table, &chain.name)
            };
            let rules = counts.chains.iter().find(same).map(|c| &c.rules);
            let rule = rules.and_then(|rules| rules.iter().find(|rule| rule.handle == handle));
            rule.and_then(|rule| rule.packets).unwrap_or(0)
        };
        get(self).saturating_sub(get(before))
    }
}

/// The counters of the calling thread's namespace (proc_net(5); RFC 1213 defines most of those in `snmp`).
fn kernel_counters() -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for file in ["snmp", "netstat"] {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        let text = text.unwrap_or_default();
        let mut lines = text.lines();
        // A line of names, then one of values.
        while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
            let mut names = names.split_whitespace();
            let group = names.next().unwrap_or_default().trim_end_matches(':');
            for (name, value) in names.zip(values.split_whitespace().skip(1)) {
                found.insert(format!("{group}.{name}"), value.parse().unwrap_or(0));
            }
        }
    }
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap_or_default();
    for line in text.lines() {
        if let Some((name, value)) = line.split_once(char::is_whitespace) {
            found.insert(name.to_owned(), value.trim().parse().unwrap_or(0));
        }
    }
    found
}

/// Drops and errors of each device of the calling thread's namespace, in and out: columns 3, 4, 11 and 12 of
/// `/proc/net/dev` (net/core/net-procfs.c).
fn device_drops() -> HashMap<String, u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let lines = text.lines().filter_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers
            .split_whitespace()
            .filter_map(|number| number.parse().ok())
            .collect();
        let all = [2, 3, 10, 11].map(|column| numbers.get(column).copied().unwrap_or(0));
        Some((name.trim().to_owned(), all.iter().sum()))
    });
    lines.collect()
}

async fn queue_drops(namespace: &NetNs) -> Result<HashMap<String, Vec<(String, u64)>>> {
    let netlink = Netlink::open_in(namespace)?;
    let links = netlink.links().await?;
    let mut found: HashMap<String, Vec<_>> = HashMap::new();
    for queue in netlink.queues().await? {
        if let Some(link) = links.iter().find(|link| link.index == queue.ifindex) {
            let of_link = found.entry(link.name.clone()).or_default();
            of_link.push((queue.kind, queue.drops));
        }
    }
    Ok(found)
}

/// A route held against a destination.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) route: Route,
    /// The destination AND the route's mask.
    pub(super) masked: IpAddr,
    pub(super) matches: bool,
}

/// The routes of the destination's family held against it, the one that wins first: among those that match, the one with
/// the longest prefix, then the one with the lowest metric (RFC 1812 section 5.2.4.3).
pub(super) fn candidates(routes: &[Route], dst: IpAddr) -> Vec<Candidate> {
    let same = |route: &&Route| matches!(route.dst, IpNet::V4(_)) == dst.is_ipv4();
    let mut found: Vec<_> = routes
        .iter()
        .filter(same)
        .map(|route| {
            let masked = IpNet::new_assert(dst, route.dst.prefix_len())
                .trunc()
                .addr();
            Candidate {
                matches: masked == route.dst.trunc().addr(),
                masked,
                route: route.clone(),
            }
        })
        .collect();
    found.sort_by_key(|c| {
        (
            !c.matches,
            std::cmp::Reverse(c.route.dst.prefix_len()),
            c.route.metric,
        )
    });
    found
}

/// What was looked up and what won, for programs: in these routes, which stand as [`candidates`] has them.
pub(super) fn routing(
    kernel: &Kernel,
    candidates: &[Candidate],
    dst: IpAddr,
    chosen: Option<&Route>,
) -> Routing {
    let is_chosen = |route: &Route| {
        chosen.is_some_and(|chosen| (chosen.oif, chosen.via) == (route.oif, route.via))
    };
    let first = candidates.first().filter(|first| first.matches);
    let first_wins = first.is_some_and(|first| is_chosen(&first.route));
    let held = |(number, candidate): (usize, &Candidate)| HeldRoute {
        prefix: candidate.route.dst,
        and: candidate.masked,
        matches: candidate.matches,
        wins: number == 0 && first_wins,
        device: candidate.route.oif.map(|oif| kernel.name(oif)),
        via: candidate.route.via,
        metric: candidate.route.metric,
        forbids: candidate.route.refuses,
    };
    let winner = chosen.and_then(|route| {
        let oif = route.oif?;
        Some(NextHop {
            device: kernel.name(oif),
            via: route.via,
            mtu: route.mtu.or(kernel.link(oif).map(|link| link.mtu)),
        })
    });
    Routing {
        destination: dst,
        routes: candidates.iter().enumerate().map(held).collect(),
        winner,
        rules: kernel.rules(dst).iter().map(|rule| rule.priority).collect(),
    }
}

/// Looks tables up, and keeps what it has read.
pub(super) struct Looker<'a> {
    world: &'a World,
    runtime: Runtime,
    kernels: HashMap<usize, Kernel>,
}

impl<'a> Looker<'a> {
    pub(super) fn new(world: &'a World) -> Result<Self> {
        Ok(Self {
            world,
            runtime: runtime()?,
            kernels: HashMap::new(),
        })
    }

    /// Reads a place's tables, if they were not yet.
    pub(super) fn look(&mut self, place: usize) -> Result<&Kernel> {
        if !self.kernels.contains_key(&place) {
            let namespace = &self.world.places[place].namespace;
            let kernel = self.runtime.block_on(Kernel::read(namespace))?;
            self.kernels.insert(place, kernel);
        }
        Ok(&self.kernels[&place])
    }

    /// The route that the kernel itself takes to `dst`.
    pub(super) fn route(&mut self, place: usize, dst: IpAddr) -> Result<Option<Route>> {
        let netlink = self.look(place)?.netlink.clone();
        match self.runtime.block_on(netlink.route_to(dst)) {
            // A route that forbids it, blackhole or prohibit (fib_props, net/ipv4/fib_semantics.c): that is none.
            Err(error) if matches!(error.errno(), Some(Errno::EINVAL | Errno::EACCES)) => Ok(None),
            answer => Ok(answer?),
        }
    }

    /// The route that the kernel takes for a packet with this source that came in by `iif`, or is its own, and bears this mark
    /// or none: `None` where there are no policy rules that would look at these, or it does not say.
    pub(super) fn ruled(
        &mut self,
        place: usize,
        src: IpAddr,
        dst: IpAddr,
        iif: Option<u32>,
        mark: Option<u32>,
    ) -> Result<Option<Option<Route>>> {
        let kernel = self.look(place)?;
        if kernel.rules(dst).is_empty() {
            return Ok(None);
        }
        let netlink = kernel.netlink.clone();
        let forbidden = kernel.rule_that_forbids(dst).is_some();
        Ok(
            match self.runtime.block_on(netlink.route_of(src, dst, iif, mark)) {
                Ok(route) => Some(route),
                Err(error) => match error.errno() {
                    Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES) => Some(None),
                    // What a blackhole answers (fib_props, net/ipv4/fib_semantics.c), and a question that makes no sense.
                    Some(Errno::EINVAL) if forbidden => Some(None),
                    _ => None,
                },
            },
        )
    }

    /// Where the other end of a veth is: place and index. `None`: not in a place that we can look into.
    pub(super) fn other_end(&mut self, place: usize, ifindex: u32) -> Result<Option<(usize, u32)>> {
        let world = self.world;
        let kernel = self.look(place)?;
        let Some((peer, id)) = kernel
            .link(ifindex)
            .and_then(|link| Some((link.lower?, link.lower_ns)))
        else {
            return Ok(None);
        };
        let Some(id) = id else {
            return Ok(Some((place, peer)));
        };
        let netlink = kernel.netlink.clone();
        for (index, other) in world.places.iter().enumerate() {
            if self.runtime.block_on(netlink.id_of(&other.namespace))? == Some(id) {
                return Ok(Some((index, peer)));
            }
        }
        Ok(None)
    }

    /// Where a daemon's tables lead a destination; `None`: it cannot be asked.
    pub(super) fn who(&self, place: usize, dst: IpAddr) -> Option<Who> {
        let socket = self.world.places[place].socket.as_ref()?;
        client::who(socket, dst).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(dst: &str, oif: u32, metric: u32) -> Route {
        Route {
            dst: dst.parse().unwrap(),
            oif: Some(oif),
            via: None,
            src: None,
            mtu: None,
            expires: None,
            metric,
            protocol: 2,
            scope: 0,
            unicast: true,
            refuses: None,
        }
    }

    #[test]
    fn the_longest_match_stands_first_then_the_lowest_metric() {
        let routes = [
            route("0.0.0.0/0", 1, 0),
            route("10.244.0.0/16", 2, 0),
            route("10.99.0.0/24", 3, 0),
            route("10.244.2.0/24", 4, 200),
            route("10.244.2.0/24", 5, 100),
            route("fd00::/8", 6, 0),
        ];
        let found = candidates(&routes, "10.244.2.2".parse().unwrap());
        let order: Vec<_> = found
            .iter()
            .map(|c| (c.route.oif.unwrap(), c.matches))
            .collect();
        assert_eq!(
            order,
            [(5, true), (4, true), (2, true), (1, true), (3, false)]
        );
        assert_eq!(found[4].masked.to_string(), "10.244.2.0");
        assert_eq!(found[2].masked.to_string(), "10.244.0.0");
    }
}
