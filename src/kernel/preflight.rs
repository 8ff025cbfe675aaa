//! Settings of the host that would eat overlay traffic without a word, each with the command that cures it.
//!
//! What is looked at, in the calling thread's namespace:
//!
//! - forwarding off (`ip_forward`, IPv6 `forwarding`): packets between the overlay device and the pods' bridge are
//!   dropped by the host's own router;
//! - a chain on the forward hook with policy drop (nftables, and iptables as `iptables-nft` keeps it there) in whose
//!   table no rule accepts by the overlay device's name or by the overlay network's prefix. A rule that accepts by
//!   anything else (marks, sets, address lists) is not understood: the advice may then be needless;
//! - strict `rp_filter` (RFC 3704 §2.2) where the way back to a sender does not lead into the device its packets
//!   arrive on: underlay datagrams of peers on the underlay interface, overlay packets on the overlay device.
//!
//! Not seen: policies of `iptables-legacy` (the old xtables interface, its own kernel tables), firewalls attached as
//! eBPF programs, and firewalls elsewhere on the underlay.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Netlink,
    nftables::{self, AcceptingRule, DroppingChain, Protocol},
    sysctl,
};

/// A setting that would eat overlay traffic, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// What is wrong and what comes of it, in one sentence.
    pub what: String,
    /// The command that cures it.
    pub cure: String,
}

/// What the overlay needs the host to let through.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The overlay device.
    pub device: &'a str,
    /// The underlay interface, where one is known.
    pub iface: Option<&'a str>,
    /// The prefixes of the overlay network; a family without one is not looked at.
    pub networks: &'a [IpNet],
    /// The public IPs of peers, in so far as they are known.
    pub peers: &'a [IpAddr],
    /// Packets from the peers' own public IPs are let through from the overlay too.
    pub accept_node_source: bool,
}

/// Looks at the host. What cannot be read (no such file, no privilege) gives no advice.
///
/// `netlink` must have been opened in the namespace of the calling thread, whose `/proc/sys` and firewall are read.
pub async fn check(netlink: &Netlink, subject: &Subject<'_>) -> Vec<Advice> {
    let mut advice = Vec::new();
    let of_v4 = |network: &&IpNet| matches!(network, IpNet::V4(_));
    let of_v6 = |network: &&IpNet| matches!(network, IpNet::V6(_));
    let one_of_each = [
        subject.networks.iter().find(of_v4),
        subject.networks.iter().find(of_v6),
    ];
    for network in one_of_each.into_iter().flatten() {
        advice.extend(forwarding(subject.device, network, family_name(network)));
    }
    match nftables::forward_drops() {
        Ok((chains, rules)) => advice.extend(forward_policy(subject, &chains, &rules)),
        Err(error) => {
            tracing::debug!(%error, "the firewall cannot be asked for its forward policy")
        }
    }
    advice.extend(reverse_path(netlink, subject).await);
    advice
}

fn family_name(network: &IpNet) -> &'static str {
    match network {
        IpNet::V4(_) => "ipv4",
        IpNet::V6(_) => "ipv6",
    }
}

fn forwarding(device: &str, network: &IpNet, family: &str) -> Option<Advice> {
    let (all, title) = match network {
        IpNet::V4(_) => ("net.ipv4.ip_forward".to_owned(), "IPv4"),
        IpNet::V6(_) => (sysctl::conf("ipv6", "all", "forwarding"), "IPv6"),
    };
    let own = sysctl::conf(family, device, "forwarding");
    // Not every kernel has IPv6, and the device may not be there yet: then there is nothing to say.
    let off = |key: &str| sysctl::read(key).is_ok_and(|value| value == "0");
    let key = if off(&all) {
        all
    } else if off(&own) {
        own
    } else {
        return None;
    };
    Some(Advice {
        what: format!(
            "{title} forwarding is off ({key} = 0): packets between {device} and the pods are dropped"
        ),
        cure: format!("sysctl -w {key}=1"),
    })
}

fn forward_policy(
    subject: &Subject<'_>,
    chains: &[DroppingChain],
    rules: &[AcceptingRule],
) -> Vec<Advice> {
    let device = subject.device;
    let concerned = chains.iter().filter(|chain| match chain.protocol {
        Protocol::Inet => true,
        Protocol::V4 => subject.networks.iter().any(|n| matches!(n, IpNet::V4(_))),
        Protocol::V6 => subject.networks.iter().any(|n| matches!(n, IpNet::V6(_))),
    });
    let mut advice = Vec::new();
    for chain in concerned {
        let DroppingChain {
            protocol,
            table,
            name,
        } = chain;
        let opened = rules
            .iter()
            .filter(|rule| rule.protocol == *protocol && rule.table == *table)
            .any(|rule| rule.compared.iter().any(|value| speaks_of(value, subject)));
        if opened {
            continue;
        }
        // The tables that iptables keeps are to be changed with iptables: it refuses what nft wrote into them.
        let tool = match protocol {
            Protocol::V4 if table == "filter" && name == "FORWARD" => Some("iptables"),
            Protocol::V6 if table == "filter" && name == "FORWARD" => Some("ip6tables"),
            _ => None,
        };
        let cure = match tool {
            Some(tool) => {
                format!(
                    "{tool} -I FORWARD -i {device} -j ACCEPT && {tool} -I FORWARD -o {device} -j ACCEPT"
                )
            }
            None => {
                let insert = format!("nft insert rule {} {table} {name}", protocol.name());
                format!("{insert} iifname {device} accept && {insert} oifname {device} accept")
            }
        };
        advice.push(Advice {
            what: format!(
                "chain {name} of table {} {table} has policy drop, and no rule there accepts packets of {device}: \
                 packets between {device} and the pods are dropped",
                protocol.name()
            ),
            cure,
        });
    }
    advice
}

/// Is this value, taken from a rule, the overlay device's name or the overlay network's prefix?
fn speaks_of(value: &[u8], subject: &Subject<'_>) -> bool {
    // nft pads a name to the register's 16 bytes, iptables ends it with one NUL.
    let name = value.split(|b| *b == 0).next().unwrap_or_default();
    if name == subject.device.as_bytes() && value[name.len()..].iter().all(|b| *b == 0) {
        return true;
    }
    subject.networks.iter().any(|network| {
        let address = match network.network() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        // A prefix of whole bytes is compared in just these bytes, any other as the masked address.
        let bytes = usize::from(network.prefix_len()).div_ceil(8);
        bytes > 0 && (value == address || value == &address[..bytes])
    })
}

/// The strict filter drops what comes from an address to which the route leads elsewhere (RFC 3704 §2.2; the kernel:
/// net/ipv4/fib_frontend.c `__fib_validate_source`). The kernel takes the larger of `all` and the device's own value;
/// IPv6 has no such setting.
async fn reverse_path(netlink: &Netlink, subject: &Subject<'_>) -> Vec<Advice> {
    let mut advice = Vec::new();
    let v4_peers = || subject.peers.iter().copied().filter(IpAddr::is_ipv4);
    if let Some(iface) = subject.iface {
        if let (Some(key), Some((peer, way))) =
            (strict(iface), astray(netlink, v4_peers(), iface).await)
        {
            advice.push(Advice {
                what: format!(
                    "{key} = 1 and the route to peer {peer} leads {way}, not into {iface}: its datagrams are dropped \
                     if they arrive on {iface}"
                ),
                cure: format!("sysctl -w {key}=2"),
            });
        }
    }
    let device = subject.device;
    let Some(key) = strict(device) else {
        return advice;
    };
    // The first host address of the network stands for all of it.
    let samples = subject.networks.iter().filter_map(|n| match n {
        IpNet::V4(n) => n.hosts().next().map(IpAddr::V4),
        IpNet::V6(_) => None,
    });
    if let Some((_, way)) = astray(netlink, samples, device).await {
        advice.push(Advice {
            what: format!(
                "{key} = 1 and the route to the overlay network leads {way}, not into {device}: packets from the \
                 overlay are dropped"
            ),
            cure: format!("sysctl -w {key}=2"),
        });
    } else if subject.accept_node_source {
        if let Some((peer, way)) = astray(netlink, v4_peers(), device).await {
            advice.push(Advice {
                what: format!(
                    "{key} = 1: packets that peers send from their own public IPs are dropped on {device}, because \
                     the route to {peer} leads {way}"
                ),
                cure: format!("sysctl -w {key}=2"),
            });
        }
    }
    advice
}

/// The key that makes the filter on `device` strict, if it is.
fn strict(device: &str) -> Option<String> {
    let own = sysctl::conf("ipv4", device, "rp_filter");
    let all = sysctl::conf("ipv4", "all", "rp_filter");
    let value = |key: &str| sysctl::read(key).ok()?.parse::<u8>().ok();
    let (own_value, all_value) = (value(&own)?, value(&all)?);
    // Loose (2) wins over strict (1), whichever of the two files says so, so changing the device's own is enough.
    (own_value.max(all_value) == 1).then_some(own)
}

/// The first address whose route does not lead into `device`, and where it leads instead.
async fn astray(
    netlink: &Netlink,
    addresses: impl Iterator<Item = IpAddr>,
    device: &str,
) -> Option<(IpAddr, String)> {
    for address in addresses {
        let Ok(route) = netlink.route_to(address).await else {
            continue;
        };
        let Some(oif) = route.and_then(|r| r.oif) else {
            return Some((address, "nowhere".to_owned()));
        };
        let name = netlink.name_of(oif).await;
        if name != device {
            return Some((address, format!("into {name}")));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject<'a>(networks: &'a [IpNet]) -> Subject<'a> {
        Subject {
            device: "overlay0",
            iface: Some("eth0"),
            networks,
            peers: &[],
            accept_node_source: false,
        }
    }

    fn chain(protocol: Protocol, table: &str, name: &str) -> DroppingChain {
        DroppingChain {
            protocol,
            table: table.into(),
            name: name.into(),
        }
    }

    fn accept(protocol: Protocol, table: &str, value: &[u8]) -> AcceptingRule {
        AcceptingRule {
            protocol,
            table: table.into(),
            compared: vec![value.to_vec()],
        }
    }

    #[test]
    fn a_dropping_chain_is_told_with_its_tool() {
        let networks = ["10.244.0.0/16".parse().unwrap()];
        let subject = subject(&networks);
        let chains = [
            chain(Protocol::V4, "filter", "FORWARD"),
            chain(Protocol::V6, "filter", "FORWARD"),
            chain(Protocol::Inet, "fw", "forward"),
        ];
        let advice = forward_policy(&subject, &chains, &[]);
        assert_eq!(
            advice.len(),
            2,
            "no IPv6 network, so ip6 is of no concern: {advice:?}"
        );
        assert_eq!(
            advice[0].cure,
            "iptables -I FORWARD -i overlay0 -j ACCEPT && iptables -I FORWARD -o overlay0 -j ACCEPT"
        );
        assert_eq!(
            advice[1].cure,
            "nft insert rule inet fw forward iifname overlay0 accept && nft insert rule inet fw forward oifname overlay0 accept"
        );
    }

    #[test]
    fn a_rule_that_names_device_or_network_silences_it() {
        let networks = ["10.244.0.0/16".parse().unwrap()];
        let subject = subject(&networks);
        let chains = [chain(Protocol::V4, "filter", "FORWARD")];
        let left = |rule| forward_policy(&subject, &chains, &[rule]).len();
        assert_eq!(left(accept(Protocol::V4, "filter", b"overlay0\0")), 0);
        assert_eq!(
            left(accept(Protocol::V4, "filter", b"overlay0\0\0\0\0\0\0\0\0")),
            0
        );
        assert_eq!(left(accept(Protocol::V4, "filter", &[10, 244])), 0);
        assert_eq!(left(accept(Protocol::V4, "filter", &[10, 244, 0, 0])), 0);
        assert_eq!(left(accept(Protocol::V4, "filter", b"overlay01\0")), 1);
        assert_eq!(left(accept(Protocol::V4, "filter", b"overlay\0")), 1);
        assert_eq!(left(accept(Protocol::V4, "filter", &[10, 245])), 1);
        assert_eq!(left(accept(Protocol::V4, "other", b"overlay0\0")), 1);
        assert_eq!(left(accept(Protocol::V6, "filter", b"overlay0\0")), 1);
    }
}
