//! Which subnets nodes may take, and the choice of a free one.
//!
//! flannel's range goes from `SubnetMin` to `SubnetMax`, both included; without them from the second
//! subnet of the network to the last (flannel `pkg/subnet/config.go`: the first subnet's base is the
//! network's own address). The choice is random, so that nodes that start in the same instant seldom
//! choose the same one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::schema::Subnets;

/// What nodes may take, per family that the overlay has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// IPv4.
    pub v4: Option<Range>,
    /// IPv6.
    pub v6: Option<Range>,
}

/// Subnets of one length, one beside the other. Addresses are numbers, of both families alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    network: IpNet,
    /// Prefix length of each subnet.
    len: u8,
    /// The first subnet's base address.
    first: u128,
    /// How many there are; at least 1.
    count: u128,
}

/// 32 or 128.
fn bits(net: &IpNet) -> u8 {
    net.max_prefix_len()
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// First and last address.
fn ends(net: &IpNet) -> (u128, u128) {
    (number(net.network()), number(net.broadcast()))
}

impl Range {
    /// The subnets of length `len` in `network` from the one at `min` to the one at `max`.
    ///
    /// # Errors
    /// If `min` or `max` lie outside of the network, are not the base of a subnet, or leave none.
    pub fn new(
        network: impl Into<IpNet>,
        len: u8,
        min: Option<IpAddr>,
        max: Option<IpAddr>,
    ) -> Result<Self, String> {
        let network = network.into();
        let (first, last) = ends(&network);
        if len <= network.prefix_len() || len > bits(&network) {
            return Err(format!("no subnets of length /{len} fit into {network}"));
        }
        let size = 1u128 << (bits(&network) - len);
        let check = |name: &str, ip: IpAddr| -> Result<u128, String> {
            let base = number(ip);
            if !network.contains(&ip) {
                return Err(format!("{name} {ip} lies outside of the network {network}"));
            }
            if base % size != 0 {
                let net = IpNet::new(ip, len).map(|net| net.network());
                let cure = net.map_or(String::new(), |net| format!("; write {net}"));
                return Err(format!("{name} {ip} is not the base of a /{len}{cure}"));
            }
            Ok(base)
        };
        let low = min.map_or(Ok(first + size), |ip| check("SubnetMin", ip))?;
        let high = max.map_or(Ok(last - (size - 1)), |ip| check("SubnetMax", ip))?;
        if low > high {
            return Err("SubnetMin comes after SubnetMax: exchange them".to_owned());
        }
        Ok(Range {
            network,
            len,
            first: low,
            count: (high - low) / size + 1,
        })
    }

    fn size(&self) -> u128 {
        1 << (bits(&self.network) - self.len)
    }

    /// The subnet whose base is this number.
    fn at(&self, base: u128) -> Option<IpNet> {
        let ip = match self.network {
            IpNet::V4(_) => Ipv4Addr::from_bits(u32::try_from(base).ok()?).into(),
            IpNet::V6(_) => Ipv6Addr::from_bits(base).into(),
        };
        IpNet::new(ip, self.len).ok()
    }

    /// Is it one of these subnets?
    pub fn contains(&self, net: &IpNet) -> bool {
        let (base, _) = ends(net);
        net.max_prefix_len() == bits(&self.network)
            && net.prefix_len() == self.len
            && base >= self.first
            && (base - self.first) / self.size() < self.count
    }

    /// A free one, or none if all are taken. Where much is free each is equally likely; where little is,
    /// those behind long taken stretches are likelier, which does no harm.
    fn choose(&self, rng: &mut fastrand::Rng, taken: &Taken) -> Option<IpNet> {
        let size = self.size();
        let start = rng.u128(0..self.count);
        // From a random place to the end, then from the beginning up to that place.
        for (from, to) in [(start, self.count), (0, start)] {
            let mut index = from;
            while index < to {
                let base = self.first + index * size;
                match taken.last_over(base, base + (size - 1)) {
                    None => return self.at(base),
                    // On to the first subnet behind what is in the way.
                    Some(last) => index = (last.max(base) - self.first) / size + 1,
                }
            }
        }
        None
    }
}

impl Pool {
    /// May a node hold these subnets: one of each family, each out of its range?
    pub fn contains(&self, subnets: &Subnets) -> bool {
        let fits = |range: Option<Range>, net: Option<IpNet>| match (range, net) {
            (None, None) => true,
            (Some(range), Some(net)) => range.contains(&net),
            _ => false,
        };
        fits(self.v4, subnets.v4.map(IpNet::V4)) && fits(self.v6, subnets.v6.map(IpNet::V6))
    }

    /// Do these subnets lie in the networks? Less than [`Pool::contains`] asks: an administrator may reserve
    /// what nodes would not take.
    pub fn network_contains(&self, subnets: &Subnets) -> bool {
        let fits = |range: Option<Range>, net: Option<IpNet>| match (range, net) {
            (_, None) => true,
            (Some(range), Some(net)) => range.network.contains(&net),
            (None, Some(_)) => false,
        };
        fits(self.v4, subnets.v4.map(IpNet::V4)) && fits(self.v6, subnets.v6.map(IpNet::V6))
    }

    /// May an administrator reserve these subnets for a node: one of each family, of the length that nodes take, anywhere
    /// in the network?
    ///
    /// # Errors
    /// Why not, and what to write instead.
    pub fn check_reservation(&self, subnets: &Subnets) -> Result<(), String> {
        let families = [
            ("IPv4", self.v4, subnets.v4.map(IpNet::V4)),
            ("IPv6", self.v6, subnets.v6.map(IpNet::V6)),
        ];
        for (family, range, net) in families {
            match (range, net) {
                (None, None) => {}
                (None, Some(net)) => {
                    return Err(format!(
                        "the overlay has no {family} network for {net}: leave it out"
                    ));
                }
                (Some(range), None) => {
                    return Err(format!(
                        "nodes of this overlay take a subnet of {} in one lease with the other family's: give both, parted by a comma",
                        range.network
                    ));
                }
                (Some(range), Some(net)) if !range.network.contains(&net.network()) => {
                    return Err(format!(
                        "{net} lies outside of the overlay network {}",
                        range.network
                    ));
                }
                (Some(range), Some(net)) if net.prefix_len() != range.len => {
                    return Err(format!(
                        "no node takes {net}: each has a /{} of {}, by SubnetLen",
                        range.len, range.network
                    ));
                }
                (Some(_), Some(_)) => {}
            }
        }
        Ok(())
    }

    /// A free subnet of each family.
    ///
    /// # Errors
    /// The family of which none is free.
    pub fn choose(
        &self,
        rng: &mut fastrand::Rng,
        taken: &TakenBoth,
    ) -> Result<Subnets, &'static str> {
        let mut subnets = Subnets::default();
        if let Some(range) = self.v4 {
            match range.choose(rng, &taken.v4) {
                Some(IpNet::V4(net)) => subnets.v4 = Some(net),
                _ => return Err("IPv4"),
            }
        }
        if let Some(range) = self.v6 {
            match range.choose(rng, &taken.v6) {
                Some(IpNet::V6(net)) => subnets.v6 = Some(net),
                _ => return Err("IPv6"),
            }
        }
        Ok(subnets)
    }

    /// How many subnets the scarcer family has, for a message.
    pub fn size(&self) -> u128 {
        let counts = [self.v4, self.v6].into_iter().flatten();
        counts.map(|range| range.count).min().unwrap_or(0)
    }
}

/// Stretches of addresses of one family that nobody may take any more.
#[derive(Debug, Default)]
struct Taken {
    /// First address, and the last of this and all stretches before: in order of both.
    stretches: Vec<(u128, u128)>,
}

impl Taken {
    fn new(mut stretches: Vec<(u128, u128)>) -> Self {
        stretches.sort_unstable();
        let mut furthest = 0;
        for (_, last) in &mut stretches {
            furthest = furthest.max(*last);
            *last = furthest;
        }
        Taken { stretches }
    }

    /// The last address of what is in the way of `first..=last`, if anything is.
    fn last_over(&self, first: u128, last: u128) -> Option<u128> {
        let before = self.stretches.partition_point(|(start, _)| *start <= last);
        let (_, furthest) = self.stretches[..before].last()?;
        (*furthest >= first).then_some(*furthest)
    }
}

/// What is taken of both families.
#[derive(Debug, Default)]
pub struct TakenBoth {
    v4: Taken,
    v6: Taken,
}

impl FromIterator<IpNet> for TakenBoth {
    fn from_iter<T: IntoIterator<Item = IpNet>>(nets: T) -> Self {
        let (v4, v6): (Vec<IpNet>, Vec<IpNet>) = nets
            .into_iter()
            .partition(|net| matches!(net, IpNet::V4(_)));
        let taken = |nets: Vec<IpNet>| Taken::new(nets.iter().map(ends).collect());
        TakenBoth {
            v4: taken(v4),
            v6: taken(v6),
        }
    }
}

impl TakenBoth {
    /// Are these subnets free?
    pub fn is_free(&self, subnets: &Subnets) -> bool {
        subnets.iter().all(|net| {
            let (first, last) = ends(&net);
            let taken = match net {
                IpNet::V4(_) => &self.v4,
                IpNet::V6(_) => &self.v6,
            };
            taken.last_over(first, last).is_none()
        })
    }
}

/// IPv4 networks of the default length, for tests and messages.
impl From<Ipv4Net> for Subnets {
    fn from(net: Ipv4Net) -> Self {
        Subnets {
            v4: Some(net),
            v6: None,
        }
    }
}

impl From<Ipv6Net> for Subnets {
    fn from(net: Ipv6Net) -> Self {
        Subnets {
            v4: None,
            v6: Some(net),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn v4(network: &str, len: u8, min: Option<&str>, max: Option<&str>) -> Result<Range, String> {
        let ip = |text: Option<&str>| text.map(|text| text.parse().unwrap());
        Range::new(network.parse::<IpNet>().unwrap(), len, ip(min), ip(max))
    }

    #[test]
    fn ranges_as_flannel_has_them() {
        let range = v4("10.244.0.0/16", 24, None, None).unwrap();
        assert_eq!(range.count, 255);
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        assert!(!range.contains(&net("10.244.0.0/24")));
        assert!(range.contains(&net("10.244.1.0/24")));
        assert!(range.contains(&net("10.244.255.0/24")));
        assert!(!range.contains(&net("10.244.1.0/25")));
        assert!(!range.contains(&net("10.245.1.0/24")));
        let range = v4(
            "10.244.0.0/16",
            24,
            Some("10.244.10.0"),
            Some("10.244.12.0"),
        );
        assert_eq!(range.unwrap().count, 3);
        let v6 = Range::new("fc00::/48".parse::<IpNet>().unwrap(), 64, None, None).unwrap();
        assert_eq!(v6.count, 65535);
        for (len, min, max) in [
            (24, Some("10.245.0.0"), None),
            (24, Some("10.244.1.128"), None),
            (24, Some("10.244.9.0"), Some("10.244.8.0")),
            (16, None, None),
            (33, None, None),
        ] {
            v4("10.244.0.0/16", len, min, max).unwrap_err();
        }
    }

    #[test]
    fn what_may_be_reserved() {
        let v4 = v4("10.244.0.0/16", 24, Some("10.244.10.0"), None).ok();
        let v6 = Range::new("fc00::/48".parse::<IpNet>().unwrap(), 64, None, None).ok();
        let subnets = |text: &str| {
            let mut subnets = Subnets::default();
            for part in text.split(',') {
                match part.parse().unwrap() {
                    IpNet::V4(net) => subnets.v4 = Some(net),
                    IpNet::V6(net) => subnets.v6 = Some(net),
                }
            }
            subnets
        };
        let (single, dual) = (Pool { v4, v6: None }, Pool { v4, v6 });
        // Before SubnetMin too.
        for good in ["10.244.10.0/24", "10.244.1.0/24", "10.244.0.0/24"] {
            single.check_reservation(&subnets(good)).unwrap();
        }
        dual.check_reservation(&subnets("10.244.1.0/24,fc00:0:0:1::/64"))
            .unwrap();
        for (pool, bad, why) in [
            (single, "10.244.0.0/16", "no node takes"),
            (single, "10.244.10.0/25", "no node takes"),
            (single, "10.0.0.0/8", "outside"),
            (single, "10.245.10.0/24", "outside"),
            (single, "10.244.1.0/24,fc00:0:0:1::/64", "no IPv6"),
            (dual, "10.244.1.0/24", "give both"),
            (dual, "fc00:0:0:1::/64", "give both"),
            (dual, "10.244.1.0/24,fc00:0:0:1::/65", "no node takes"),
        ] {
            let error = pool.check_reservation(&subnets(bad)).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn every_subnet_is_found_and_then_no_more() {
        let pool = Pool {
            v4: Some(v4("10.0.0.0/24", 28, None, None).unwrap()),
            v6: None,
        };
        let mut rng = fastrand::Rng::with_seed(1);
        let mut taken: Vec<IpNet> = Vec::new();
        for _ in 0..15 {
            let subnets = pool.choose(&mut rng, &taken.iter().copied().collect());
            taken.extend(subnets.unwrap().iter());
        }
        assert_eq!(taken.iter().collect::<HashSet<_>>().len(), 15);
        assert_eq!(
            pool.choose(&mut rng, &taken.into_iter().collect()),
            Err("IPv4")
        );
    }

    #[test]
    fn the_whole_of_ipv6_is_no_trouble() {
        let network: IpNet = "fc00::/7".parse().unwrap();
        let pool = Pool {
            v4: None,
            v6: Some(Range::new(network, 127, None, None).unwrap()),
        };
        let mut rng = fastrand::Rng::with_seed(1);
        let taken = ["fc00::/8".parse::<IpNet>().unwrap()].into_iter().collect();
        for _ in 0..100 {
            let chosen = pool.choose(&mut rng, &taken).unwrap().v6.unwrap();
            assert!(chosen.addr().octets()[0] == 0xfd);
        }
    }

    proptest! {
        /// Against looking at every subnet.
        #[test]
        fn a_chosen_one_is_free(
            seed: u64,
            blocks in prop::collection::vec((0u32..=0xffff, 17u8..=32), 0..60),
        ) {
            let pool = Pool { v4: Some(v4("10.244.0.0/16", 22, None, None).unwrap()), v6: None };
            let blocks: Vec<IpNet> = blocks
                .into_iter()
                .map(|(low, len)| IpNet::new(Ipv4Addr::from_bits(0x0af4_0000 + low).into(), len).unwrap().trunc())
                .collect();
            let free = |net: &IpNet| !blocks.iter().any(|block| block.contains(net) || net.contains(block));
            let all: Vec<IpNet> = (1..64u32)
                .map(|n| IpNet::new(Ipv4Addr::from_bits(0x0af4_0000 + n * 1024).into(), 22).unwrap())
                .collect();
            let taken: TakenBoth = blocks.iter().copied().collect();
            for net in &all {
                let IpNet::V4(v4) = net else { unreachable!() };
                prop_assert_eq!(taken.is_free(&Subnets::from(*v4)), free(net));
            }
            match pool.choose(&mut fastrand::Rng::with_seed(seed), &taken) {
                Ok(subnets) => prop_assert!(all.contains(&subnets.v4.unwrap().into()) && free(&subnets.v4.unwrap().into())),
                Err(_) => prop_assert!(!all.iter().any(free)),
            }
        }
    }
}
