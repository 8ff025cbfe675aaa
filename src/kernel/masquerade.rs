//! What overlayd adds to the host's packet filter, where it is asked to: masquerade for packets that leave the overlay,
//! and accepts for packets that the host forwards from and to it.
//!
//! **Masquerade** stands in a table of our own, named after the device, one for each IP version. The meaning is flannel's
//! (`pkg/iptables/iptables.go`, `masqRules`); `network` is the whole overlay, `subnet` this node's part of it:
//!
//! ```text
//! table ip overlayd-overlay0 { chain postrouting { type nat hook postrouting priority srcnat;
//!     mark & 0x4000 == 0x4000                     return      kube-proxy translates these itself
//!     saddr subnet      daddr network             return      within the overlay: pods see each other's addresses
//!     saddr network     daddr subnet              return
//!     saddr != network  daddr subnet              return      from outside to our pods: they see who asks
//!     saddr network     daddr != 224.0.0.0/4      masquerade  from the overlay to the outside, multicast apart
//!     saddr != network  daddr network             masquerade  from this host to other nodes' pods
//! } }
//! ```
//!
//! **Accepts** cannot stand in a table of our own: each table's chain on the forward hook judges by itself, and a DROP
//! policy of one is not overruled by another's accept. So where there is a table `filter` with a chain `FORWARD`, as
//! `iptables` and Docker make it, a chain of ours is put in there, and a jump to it behind all other rules: it overrules
//! the policy, and nothing that somebody drops on purpose.
//!
//! ```text
//! table ip filter { chain FORWARD { policy drop; ...; jump OVERLAYD-overlay0 }
//!                   chain OVERLAYD-overlay0 { saddr network accept; daddr network accept } }
//! ```
//!
//! All is spoken to the kernel directly: no `nft` or `iptables` program is needed, and no text of anybody's is ever part
//! of a command. Tables of `iptables-legacy` are out of reach of this.

use std::io;
use std::time::Duration;

use ipnet::IpNet;
use rtnetlink::sys::{
    AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER,
};
use tokio::time::Instant;

use super::nftables::{
    self, CHAIN_NAME, CHAIN_TABLE, DATA_VERDICT, EXPR_DATA, GET_CHAIN, GET_RULE, IMMEDIATE_DATA,
    LIST_ELEMENT, NEW_CHAIN, NEW_RULE, NFGEN_HEADER, NFTABLES, RULE_EXPRESSIONS, RULE_TABLE,
    VERDICT_CODE, attribute, attributes, be, string,
};
use super::nftables_batch::{
    self as batch, Batch, Expr, Ip, JUMP, NewRule, RULE_CHAIN, RULE_HANDLE, RULE_USERDATA, Side,
    VERDICT_CHAIN,
};
use super::{Error, Result};

const NEW_TABLE: u16 = NFTABLES;
const GET_TABLE: u16 = NFTABLES | 1;
const TABLE_NAME: u16 = 1;
/// NFNLGRP_NFTABLES (`linux/netfilter/nfnetlink.h`): every change of nftables is told there.
const NFTABLES_GROUP: u32 = 7;

/// Our tables' names begin with this, and go on with the device's.
const TABLE: &str = "overlayd-";
/// Our chains' names in other people's tables; in capitals, as is the custom there.
const CHAIN: &str = "OVERLAYD-";
const POSTROUTING: &str = "postrouting";
const FILTER: &str = "filter";
const FORWARD: &str = "FORWARD";

/// The bit by which kube-proxy marks what it will masquerade itself.
const KUBE_PROXY_MARK: u32 = 0x4000;

/// How long changes of others are let come together before we look.
const SETTLE: Duration = Duration::from_millis(200);

/// What shall be there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The overlay device: our tables and chains are named after it.
    pub device: String,
    /// Of each IP version that the overlay has, the overlay network and this node's subnet.
    pub nets: Vec<(IpNet, IpNet)>,
    /// Masquerade packets that leave the overlay.
    pub masquerade: bool,
    /// Accept packets that the host forwards from and to the overlay.
    pub forward: bool,
}

impl Wanted {
    fn table(&self) -> String {
        format!("{TABLE}{}", self.device)
    }

    fn chain(&self) -> String {
        format!("{CHAIN}{}", self.device)
    }

    fn nets(&self, ip: Ip) -> Option<(IpNet, IpNet)> {
        let mut nets = self.nets.iter().copied();
        nets.find(|(network, _)| Ip::of(network) == ip)
    }

    /// What our table's chain holds; nothing if there shall be none.
    fn masquerade_rules(&self, ip: Ip) -> Vec<NewRule> {
        let Some((network, subnet)) = self.nets(ip).filter(|_| self.masquerade) else {
            return Vec::new();
        };
        let multicast = match ip {
            Ip::V4 => "224.0.0.0/4",
            Ip::V6 => "ff00::/8",
        };
        let Ok(multicast) = multicast.parse() else {
            return Vec::new();
        };
        let mut rules = vec![NewRule {
            comment: "overlayd: marked by kube-proxy".to_owned(),
            exprs: vec![Expr::Mark(KUBE_PROXY_MARK), Expr::Count, Expr::Return],
        }];
        let mut rule = |source: (bool, IpNet), destination: (bool, IpNet), verdict: Expr| {
            let word = |(inside, prefix): (bool, IpNet)| {
                let not = if inside { "" } else { "not " };
                format!("{not}{prefix}")
            };
            let what = match verdict {
                Expr::Masquerade => "masquerade",
                _ => "keep",
            };
            let address = |side, (inside, prefix)| Expr::Address {
                side,
                prefix,
                inside,
            };
            rules.push(NewRule {
                comment: format!("overlayd: {what} {} to {}", word(source), word(destination)),
                exprs: vec![
                    address(Side::Source, source),
                    address(Side::Destination, destination),
                    Expr::Count,
                    verdict,
                ],
            });
        };
        rule((true, subnet), (true, network), Expr::Return);
        rule((true, network), (true, subnet), Expr::Return);
        rule((false, network), (true, subnet), Expr::Return);
        rule((true, network), (false, multicast), Expr::Masquerade);
        rule((false, network), (true, network), Expr::Masquerade);
        rules
    }

    /// What our chain in the filter table holds; nothing if there shall be none.
    fn forward_rules(&self, ip: Ip) -> Vec<NewRule> {
        let Some((network, _)) = self.nets(ip).filter(|_| self.forward) else {
            return Vec::new();
        };
        let accept = |side, word: &str| NewRule {
            comment: format!("overlayd: forward {word} {network}"),
            exprs: vec![
                Expr::Address {
                    side,
                    prefix: network,
                    inside: true,
                },
                Expr::Count,
                Expr::Accept,
            ],
        };
        vec![
            accept(Side::Source, "from"),
            accept(Side::Destination, "to"),
        ]
    }
}

/// A rule that is there.
struct Found {
    handle: u64,
    comment: Option<String>,
    jump: Option<String>,
}

/// The rules of one chain; none if there is no such chain.
fn rules_of(ip: Ip, table: &str, chain: &str) -> io::Result<Vec<Found>> {
    let selection = [
        batch::text(RULE_TABLE, table),
        batch::text(RULE_CHAIN, chain),
    ];
    let bodies = nftables::dump_of(GET_RULE, NEW_RULE, ip.number(), &selection.concat())?;
    let found = bodies.iter().filter_map(|body| {
        let body = body.get(NFGEN_HEADER..)?;
        // Not every kernel heeds the selection.
        let is = |kind, name: &str| attribute(body, kind).map(string).as_deref() == Some(name);
        if !is(RULE_TABLE, table) || !is(RULE_CHAIN, chain) {
            return None;
        }
        let handle = attribute(body, RULE_HANDLE)?.first_chunk()?;
        Some(Found {
            handle: u64::from_be_bytes(*handle),
            comment: attribute(body, RULE_USERDATA).and_then(batch::comment),
            jump: attribute(body, RULE_EXPRESSIONS).and_then(jump),
        })
    });
    Ok(found.collect())
}

/// The chain that a rule jumps to.
fn jump(expressions: &[u8]) -> Option<String> {
    attributes(expressions)
        .filter(|(kind, _)| *kind == LIST_ELEMENT)
        .find_map(|(_, element)| {
            let data = attribute(attribute(element, EXPR_DATA)?, IMMEDIATE_DATA)?;
            let verdict = attribute(data, DATA_VERDICT)?;
            let jumps = be(attribute(verdict, VERDICT_CODE)?)? == JUMP;
            jumps.then(|| attribute(verdict, VERDICT_CHAIN).map(string))?
        })
}

fn has_chain(ip: Ip, table: &str, chain: &str) -> io::Result<bool> {
    let selection = [
        batch::text(CHAIN_TABLE, table),
        batch::text(CHAIN_NAME, chain),
    ];
    let found = nftables::get(GET_CHAIN, NEW_CHAIN, ip.number(), &selection.concat())?;
    Ok(found.is_some())
}

fn has_table(ip: Ip, table: &str) -> io::Result<bool> {
    let selection = batch::text(TABLE_NAME, table);
    let found = nftables::get(GET_TABLE, NEW_TABLE, ip.number(), &selection)?;
    Ok(found.is_some())
}

/// The rules are the ones that we would write, in order.
fn same(found: &[Found], wanted: &[NewRule]) -> bool {
    let found = found.iter().map(|rule| rule.comment.as_deref());
    found.eq(wanted.iter().map(|rule| Some(rule.comment.as_str())))
}

/// Adds what makes it so that our table holds these rules, or is gone if there are none.
fn plan_masquerade(batch: &mut Batch, ip: Ip, table: &str, wanted: &[NewRule]) -> io::Result<()> {
    if wanted.is_empty() {
        if has_table(ip, table)? {
            batch.delete_table(ip, table);
        }
        return Ok(());
    }
    if same(&rules_of(ip, table, POSTROUTING)?, wanted) {
        return Ok(());
    }
    batch.delete_table(ip, table);
    batch.add_table(ip, table);
    batch.add_nat_chain(ip, table, POSTROUTING);
    for rule in wanted {
        batch.append_rule(ip, table, POSTROUTING, rule);
    }
    Ok(())
}

/// Adds what makes it so that FORWARD, where there is one, jumps to our chain once and that holds these rules, or neither
/// is there if there are none.
fn plan_forward(batch: &mut Batch, ip: Ip, chain: &str, wanted: &[NewRule]) -> io::Result<()> {
    let there = has_chain(ip, FILTER, chain)?;
    if !there && !has_chain(ip, FILTER, FORWARD)? {
        return Ok(());
    }
    let jumps: Vec<_> = rules_of(ip, FILTER, FORWARD)?
        .into_iter()
        .filter(|rule| rule.jump.as_deref() == Some(chain))
        .collect();
    if !wanted.is_empty() && jumps.len() == 1 && same(&rules_of(ip, FILTER, chain)?, wanted) {
        return Ok(());
    }
    for jump in jumps {
        batch.delete_rule(ip, FILTER, FORWARD, jump.handle);
    }
    if wanted.is_empty() {
        if there {
            batch.delete_chain(ip, FILTER, chain);
        }
        return Ok(());
    }
    batch.add_chain(ip, FILTER, chain);
    batch.flush_chain(ip, FILTER, chain);
    for rule in wanted {
        batch.append_rule(ip, FILTER, chain, rule);
    }
    let jump = NewRule {
        comment: "overlayd: forward".to_owned(),
        exprs: vec![Expr::Count, Expr::Jump(chain.to_owned())],
    };
    batch.append_rule(ip, FILTER, FORWARD, &jump);
    Ok(())
}

/// Makes it so, in one go: true if something had to be changed.
///
/// # Errors
/// If the kernel has no nf_tables, or refuses.
fn apply(wanted: &Wanted) -> Result<bool> {
    let mut batch = Batch::default();
    for ip in [Ip::V4, Ip::V6] {
        let (masquerade, forward) = (wanted.masquerade_rules(ip), wanted.forward_rules(ip));
        let planned = plan_masquerade(&mut batch, ip, &wanted.table(), &masquerade)
            .and_then(|()| plan_forward(&mut batch, ip, &wanted.chain(), &forward));
        match planned {
            Ok(()) => {}
            // Without nf_tables there is nothing of ours either.
            Err(error) if no_nftables(&error) && masquerade.is_empty() => {}
            Err(error) => return Err(Error::new("read the packet filter (nf_tables)", error)),
        }
    }
    let changes = !batch.is_empty();
    batch.commit().map(|()| changes)
}

fn no_nftables(error: &io::Error) -> bool {
    use nix::libc::{EAFNOSUPPORT, EINVAL, EOPNOTSUPP, EPROTONOSUPPORT};
    let none = [EAFNOSUPPORT, EINVAL, EOPNOTSUPP, EPROTONOSUPPORT];
    error
        .raw_os_error()
        .is_some_and(|errno| none.contains(&errno))
}

/// Removes what daemons that were killed have left: tables and chains of ours whose device is not there any more.
fn remove_stale() -> Result<()> {
    let read = |error| Error::new("read the packet filter (nf_tables)", error);
    let stale = |name: &str, prefix: &str| {
        let device = name.strip_prefix(prefix)?;
        let gone = nix::net::if_::if_nametoindex(device).is_err();
        gone.then(|| device.to_owned())
    };
    let name = |body: &[u8], kind| {
        let name = attribute(body.get(NFGEN_HEADER..)?, kind)?;
        Some(string(name))
    };
    let mut devices = Vec::new();
    for ip in [Ip::V4, Ip::V6] {
        let tables = match nftables::dump_of(GET_TABLE, NEW_TABLE, ip.number(), &[]) {
            Err(error) if no_nftables(&error) => continue,
            tables => tables.map_err(read)?,
        };
        let chains = nftables::dump_of(GET_CHAIN, NEW_CHAIN, ip.number(), &[]).map_err(read)?;
        let of_tables = tables
            .iter()
            .filter_map(|body| stale(&name(body, TABLE_NAME)?, TABLE));
        let of_chains = chains
            .iter()
            .filter_map(|body| stale(&name(body, CHAIN_NAME)?, CHAIN));
        devices.extend(of_tables.chain(of_chains));
    }
    devices.sort();
    devices.dedup();
    for device in devices {
        tracing::info!("removing the packet filter rules that an overlayd on {device} left behind");
        apply(&Wanted {
            device,
            ..Wanted::default()
        })?;
    }
    Ok(())
}

/// Our part of the host's packet filter, while it stands. Dropped, it is removed.
pub struct PacketFilter {
    wanted: Wanted,
    /// Tells of every change, ours too.
    changes: Option<TokioSocket>,
    /// Looked at again at least this often.
    period: Duration,
    due: Instant,
}

impl PacketFilter {
    /// Makes it so, and first clears away what killed daemons have left. All of it concerns the calling thread's
    /// namespace, in which every other call must be made too.
    ///
    /// # Errors
    /// If the kernel has no nf_tables although masquerade is wanted, or refuses.
    pub fn start(wanted: Wanted, period: Duration) -> Result<Self> {
        let (masquerade, forward) = (wanted.masquerade, wanted.forward);
        let cleared = remove_stale();
        if masquerade || forward {
            cleared?;
        }
        // Before the first look, so that no change falls between.
        let changes = (masquerade || forward).then(subscribe).transpose();
        let changes = changes.map_err(|error| Error::new("watch the packet filter", error))?;
        let mut filter = PacketFilter {
            wanted,
            changes,
            period,
            due: Instant::now() + period,
        };
        filter.restore()?;
        Ok(filter)
    }

    /// Something else shall be there from now on.
    ///
    /// # Errors
    /// As [`PacketFilter::restore`].
    pub fn set(&mut self, nets: Vec<(IpNet, IpNet)>) -> Result<()> {
        if self.wanted.nets != nets {
            self.wanted.nets = nets;
            self.restore()?;
        }
        Ok(())
    }

    /// Waits until it may not be as it shall: somebody changed the packet filter, or it was long ago that we looked. May be
    /// dropped and called again without losing anything.
    pub async fn disturbed(&mut self) {
        let Some(changes) = &mut self.changes else {
            return std::future::pending().await;
        };
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(self.due) => return,
                // What changed does not matter; that announcements were lost is one more reason to look.
                told = changes.recv_from_full() => {
                    self.due = self.due.min(Instant::now() + SETTLE);
                    if told.is_err() {
                        return tokio::time::sleep_until(self.due).await;
                    }
                }
            }
        }
    }

    /// Makes it so again: true if something had to be mended.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn restore(&mut self) -> Result<bool> {
        self.due = Instant::now() + self.period;
        apply(&self.wanted)
    }
}

fn subscribe() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    socket.socket_mut().add_membership(NFTABLES_GROUP)?;
    Ok(socket)
}

impl Drop for PacketFilter {
    fn drop(&mut self) {
        let nothing = Wanted {
            device: std::mem::take(&mut self.wanted.device),
            ..Wanted::default()
        };
        if self.changes.is_some() {
            if let Err(error) = apply(&nothing) {
                tracing::error!("packet filter rules are left behind: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            device: "overlay0".to_owned(),
            nets: vec![
                (
                    "10.244.0.0/16".parse().unwrap(),
                    "10.244.1.0/24".parse().unwrap(),
                ),
                (
                    "fd00::/48".parse().unwrap(),
                    "fd00:0:0:1::/64".parse().unwrap(),
                ),
            ],
            masquerade: true,
            forward: true,
        }
    }

    #[test]
    fn the_rules_are_flannels_in_flannels_order() {
        let comments = |rules: Vec<NewRule>| -> Vec<String> {
            rules.into_iter().map(|rule| rule.comment).collect()
        };
        assert_eq!(
            comments(wanted().masquerade_rules(Ip::V4)),
            [
                "overlayd: marked by kube-proxy",
                "overlayd: keep 10.244.1.0/24 to 10.244.0.0/16",
                "overlayd: keep 10.244.0.0/16 to 10.244.1.0/24",
                "overlayd: keep not 10.244.0.0/16 to 10.244.1.0/24",
                "overlayd: masquerade 10.244.0.0/16 to not 224.0.0.0/4",
                "overlayd: masquerade not 10.244.0.0/16 to 10.244.0.0/16",
            ]
        );
        assert_eq!(
            comments(wanted().masquerade_rules(Ip::V6))[4],
            "overlayd: masquerade fd00::/48 to not ff00::/8"
        );
        assert_eq!(
            comments(wanted().forward_rules(Ip::V4)),
            [
                "overlayd: forward from 10.244.0.0/16",
                "overlayd: forward to 10.244.0.0/16"
            ]
        );
    }

    #[test]
    fn nothing_is_wanted_of_a_family_without_a_network_or_when_it_is_off() {
        let mut v4 = wanted();
        v4.nets.truncate(1);
        assert!(v4.masquerade_rules(Ip::V6).is_empty() && v4.forward_rules(Ip::V6).is_empty());
        v4.masquerade = false;
        assert!(v4.masquerade_rules(Ip::V4).is_empty() && !v4.forward_rules(Ip::V4).is_empty());
        v4.forward = false;
        assert!(v4.forward_rules(Ip::V4).is_empty());
    }
}
