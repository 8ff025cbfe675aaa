//! The rules by example, then against a model that compares every pair.

use proptest::prelude::*;

use super::*;

fn network() -> Network {
    Network {
        v4: Some("10.244.0.0/16".parse().unwrap()),
        v6: Some("fd00:10:244::/48".parse().unwrap()),
    }
}

/// A claim from subnets and public IPs in any order, as text.
fn claim(words: &str) -> Claim {
    let mut claim = Claim {
        v4: None,
        v6: None,
        public: Endpoint::default(),
        own: false,
    };
    for word in words.split(' ') {
        match (word.parse::<IpNet>(), word.parse::<IpAddr>()) {
            (Ok(IpNet::V4(net)), _) => claim.v4 = Some(net),
            (Ok(IpNet::V6(net)), _) => claim.v6 = Some(net),
            (_, Ok(IpAddr::V4(ip))) => claim.public.v4 = Some(ip),
            (_, Ok(IpAddr::V6(ip))) => claim.public.v6 = Some(ip),
            _ if word == "own" => claim.own = true,
            _ => assert_eq!(word, "-"),
        }
    }
    claim
}

fn claims(words: &[&str]) -> Vec<Claim> {
    words.iter().map(|words| claim(words)).collect()
}

fn route(prefix: &str, via: &str) -> StaticRoute {
    StaticRoute {
        prefix: prefix.parse().unwrap(),
        via: via.parse().unwrap(),
    }
}

/// Judges the claims; what each was refused for.
fn refusals(words: &[&str]) -> Vec<(Source, Refusal)> {
    Rib::build(&network(), &claims(words), &[])
        .refused()
        .to_vec()
}

/// The one refusal of the last claim.
fn last_refused(words: &[&str]) -> Refusal {
    let mut refused = refusals(words);
    let (source, refusal) = refused.pop().expect("refused");
    assert_eq!(source, Source::Lease(words.len() - 1));
    assert_eq!(refused, [], "others refused too");
    refusal
}

const ONE: &str = "10.244.1.0/24 fd00:10:244:1::/64 10.99.0.1 fd99::1 own";
const TWO: &str = "10.244.2.0/24 fd00:10:244:2::/64 10.99.0.2 fd99::2";

#[test]
fn good_leases_are_accepted() {
    let words = [
        ONE,
        TWO,
        "10.244.3.0/26 10.99.0.3",
        "fd00:10:244:4::/64 fd99::4",
        "10.244.5.0/30 fd99::5",
    ];
    let rib = Rib::build(&network(), &claims(&words), &[]);
    assert_eq!(rib.refused(), []);
    assert_eq!(rib.accepted(), [0, 1, 2, 3, 4]);
}

#[test]
fn a_lease_needs_a_subnet_and_a_public_ip() {
    assert_eq!(last_refused(&[ONE, "10.99.0.2"]), Refusal::Empty);
    assert_eq!(last_refused(&[ONE, "10.244.2.0/24"]), Refusal::NoPublicIp);
    for ip in ["0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1"] {
        let bad = last_refused(&[ONE, &format!("10.244.2.0/24 {ip}")]);
        assert_eq!(
            bad,
            Refusal::BadPublicIp {
                ip: ip.parse().unwrap()
            }
        );
    }
}

#[test]
fn subnets_must_fit_the_network() {
    let refused = |subnet: &str| last_refused(&[ONE, &format!("{subnet} 10.99.0.2")]);
    assert!(matches!(refused("10.244.2.1/24"), Refusal::HostBits { .. }));
    assert!(matches!(
        refused("fd00:10:244:2::1/64"),
        Refusal::HostBits { .. }
    ));
    assert!(matches!(
        refused("10.245.2.0/24"),
        Refusal::OutsideNetwork { .. }
    ));
    assert!(matches!(
        refused("10.0.0.0/8"),
        Refusal::OutsideNetwork { .. }
    ));
    assert!(matches!(
        refused("0.0.0.0/0"),
        Refusal::OutsideNetwork { .. }
    ));
    assert!(matches!(
        refused("fd00:10:245::/64"),
        Refusal::OutsideNetwork { .. }
    ));
    assert!(matches!(
        refused("10.244.0.0/16"),
        Refusal::PrefixLength { .. }
    ));
    assert!(matches!(
        refused("10.244.2.0/31"),
        Refusal::PrefixLength { .. }
    ));
    assert!(matches!(
        refused("fd00:10:244:2::/127"),
        Refusal::PrefixLength { .. }
    ));

    let v4_only = Network {
        v6: None,
        ..network()
    };
    let rib = Rib::build(&v4_only, &claims(&[TWO]), &[]);
    let prefix = "fd00:10:244:2::/64".parse().unwrap();
    assert_eq!(
        rib.refused(),
        [(Source::Lease(0), Refusal::NoNetwork { prefix })]
    );
}

#[test]
fn the_first_of_two_overlapping_leases_wins() {
    for subnet in [
        "10.244.2.0/24",
        "10.244.2.128/25",
        "10.244.0.0/22",
        "fd00:10:244:2::/64",
        "fd00:10:244::/56",
    ] {
        let Refusal::Overlaps {
            prefix, of, other, ..
        } = last_refused(&[TWO, &format!("{subnet} 10.99.0.7")])
        else {
            panic!("{subnet} refused for something else")
        };
        assert_eq!(
            (prefix, of, other),
            (subnet.parse().unwrap(), claim(TWO).public, Source::Lease(0))
        );
    }
    // Ours is no exception.
    assert!(matches!(
        last_refused(&[TWO, "10.244.2.0/24 10.99.0.1 own"]),
        Refusal::Overlaps { .. }
    ));
}

#[test]
fn a_refused_lease_is_refused_whole_and_shadows_nothing() {
    // The second is refused for its IPv6 subnet, so its IPv4 subnet is free for the third.
    let words = [
        TWO,
        "10.244.3.0/24 fd00:10:244:2::/64 10.99.0.3",
        "10.244.3.0/24 10.99.0.4",
    ];
    let rib = Rib::build(&network(), &claims(&words), &[]);
    assert_eq!(rib.accepted(), [0, 2]);
    assert_eq!(rib.refused().len(), 1);

    // A public IP inside the first lease would have the first refused; but the claim that names it
    // lies outside the network.
    let words = [TWO, "10.9.3.0/24 10.244.2.9"];
    assert_eq!(Rib::build(&network(), &claims(&words), &[]).accepted(), [0]);
}

#[test]
fn a_lease_must_not_cover_a_public_ip() {
    let wide = Network {
        v4: Some("10.0.0.0/8".parse().unwrap()),
        v6: None,
    };
    let judged = |words: &[&str]| Rib::build(&wide, &claims(words), &[]);
    let covering = |ip: &str, own, other| {
        let (prefix, ip) = ("10.99.0.0/24".parse().unwrap(), ip.parse().unwrap());
        Refusal::CoversPublicIp {
            prefix,
            ip,
            own,
            other: Source::Lease(other),
        }
    };
    // An earlier one's.
    let rib = judged(&["10.244.1.0/24 10.99.0.1", "10.99.0.0/24 192.0.2.1"]);
    assert_eq!(
        rib.refused(),
        [(Source::Lease(1), covering("10.99.0.1", false, 0))]
    );
    // A slip in a later lease's public IP costs that lease, not the one that stands there.
    let rib = judged(&["10.99.0.0/24 192.0.2.1", "10.244.1.0/24 10.99.0.1"]);
    let leased = Refusal::PublicIpLeased {
        ip: "10.99.0.1".parse().unwrap(),
        with: "10.99.0.0/24".parse().unwrap(),
        of: claim("10.99.0.0/24 192.0.2.1").public,
        other: Source::Lease(0),
    };
    assert_eq!(rib.refused(), [(Source::Lease(1), leased)]);
    // Its own.
    let rib = judged(&["10.99.0.0/24 10.99.0.9"]);
    assert_eq!(
        rib.refused(),
        [(Source::Lease(0), covering("10.99.0.9", false, 0))]
    );
    // Ours, even when our own lease comes later.
    let rib = judged(&["10.99.0.0/24 192.0.2.1", "10.244.1.0/24 10.99.0.1 own"]);
    assert_eq!(
        rib.refused(),
        [(Source::Lease(0), covering("10.99.0.1", true, 1))]
    );
    // Ours, even when our own lease is refused.
    let rib = judged(&["192.168.1.0/24 10.99.0.1 own", "10.99.0.0/24 192.0.2.1"]);
    assert_eq!(
        rib.refused()[1],
        (Source::Lease(1), covering("10.99.0.1", true, 0))
    );
}

#[test]
fn one_node_may_hold_several_leases_but_not_the_address_of_two() {
    let words = [
        ONE,
        TWO,
        "10.244.7.0/24 10.99.0.2",
        "10.244.8.0/24 10.99.0.3 fd99::2",
    ];
    assert_eq!(refusals(&words), []);
    // 10.99.0.3 is now that same node's, by its last lease.
    let Refusal::SharesPublicIp { ip, other, .. } = last_refused(&[
        ONE,
        TWO,
        "10.244.3.0/24 10.99.0.3",
        "10.244.8.0/24 10.99.0.3 fd99::2",
    ]) else {
        panic!("refused for something else")
    };
    assert_eq!((ip, other), ("fd99::2".parse().unwrap(), Source::Lease(1)));
    // Another node must not take our address.
    assert!(matches!(
        last_refused(&[ONE, "10.244.8.0/24 10.99.0.1"]),
        Refusal::SharesPublicIp { .. }
    ));
}

#[test]
fn a_static_route_takes_nothing_from_us() {
    let claims = claims(&[ONE, TWO]);
    let routes = [
        route("10.244.1.0/25", "10.99.0.2"),
        route("10.244.1.0/25", "10.99.0.1"),
        route("10.244.2.0/25", "10.99.0.1"),
    ];
    let rib = Rib::build(&network(), &claims, &routes);
    let taken: Vec<_> = rib.routes().iter().map(|route| route.route).collect();
    assert_eq!(taken, [1, 2]);
    let (source, refusal) = &rib.refused()[0];
    assert_eq!(*source, Source::Route(0));
    assert!(matches!(refusal, Refusal::Overlaps { .. }), "{refusal}");
}

#[test]
fn static_routes_follow_the_leases() {
    let claims = claims(&[
        ONE,
        TWO,
        "10.244.2.0/24 10.99.0.3",
        "10.244.4.0/24 10.99.0.2",
    ]);
    let routes = [
        route("192.168.2.0/24", "10.99.0.2"),
        route("192.168.1.0/24", "fd99::1"),
        // The node of the third claim holds no accepted lease.
        route("192.168.3.0/24", "10.99.0.3"),
        route("192.168.4.1/24", "10.99.0.2"),
        route("10.99.0.0/16", "10.99.0.2"),
        route("0.0.0.0/0", "10.99.0.2"),
        route("10.244.2.0/24", "10.99.0.1"),
        // Inside a lease and around all of them: the longest prefix decides.
        route("10.244.2.128/25", "10.99.0.1"),
        route("10.244.0.0/16", "10.99.0.2"),
        route("192.168.2.0/24", "10.99.0.1"),
        route("10.244.4.0/24", "10.99.0.2"),
    ];
    let rib = Rib::build(&network(), &claims, &routes);
    let accepted = |route, claim, local| AcceptedRoute {
        route,
        claim,
        local,
    };
    assert_eq!(
        rib.routes(),
        [
            accepted(0, 1, false),
            accepted(1, 0, true),
            accepted(7, 0, true),
            accepted(8, 1, false)
        ]
    );

    let refused: Vec<_> = rib
        .refused()
        .iter()
        .filter(|(source, _)| *source >= Source::Route(0))
        .collect();
    assert_eq!(refused.len(), 7);
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!(
        *refused[0],
        (
            Source::Route(2),
            Refusal::UnknownVia {
                via: ip("10.99.0.3")
            }
        )
    );
    assert!(matches!(
        refused[1],
        (Source::Route(3), Refusal::HostBits { .. })
    ));
    assert!(matches!(
        refused[2],
        (Source::Route(4), Refusal::CoversPublicIp { own: true, .. })
    ));
    assert!(matches!(
        refused[3],
        (Source::Route(5), Refusal::CoversPublicIp { own: true, .. })
    ));
    assert!(matches!(
        refused[4],
        (
            Source::Route(6),
            Refusal::Overlaps {
                other: Source::Lease(1),
                ..
            }
        )
    ));
    assert!(matches!(
        refused[5],
        (
            Source::Route(9),
            Refusal::SameRoute {
                other: Source::Route(0),
                ..
            }
        )
    ));
    assert!(matches!(
        refused[6],
        (
            Source::Route(10),
            Refusal::Overlaps {
                other: Source::Lease(3),
                ..
            }
        )
    ));
}

#[test]
fn refusals_say_what_with_whom_and_what_to_do() {
    assert_eq!(
        last_refused(&[TWO, "10.244.2.128/25 10.99.0.7"]).to_string(),
        "10.244.2.128/25 overlaps 10.244.2.0/24, which is leased to the node at 10.99.0.2 and fd99::2 and comes first; \
         choose a subnet that no lease touches or remove that lease"
    );
    assert_eq!(
        last_refused(&["10.244.2.7/24 10.99.0.7"]).to_string(),
        "10.244.2.7/24 has bits set beyond its prefix length; write 10.244.2.0/24"
    );
    assert_eq!(
        last_refused(&["10.245.2.0/24 10.99.0.7"]).to_string(),
        "10.245.2.0/24 lies outside the overlay network 10.244.0.0/16; give the node a subnet of that network"
    );
}

/// Rules 1 to 6 as they are written down, each pair compared.
fn model(network: &Network, claims: &[Claim]) -> Vec<usize> {
    let well_formed = |claim: &Claim| {
        let fits = |net: IpNet| match net {
            IpNet::V4(net) => {
                network
                    .v4
                    .is_some_and(|all| all != net && all.contains(&net))
                    && net.prefix_len() <= 30
            }
            IpNet::V6(net) => {
                network
                    .v6
                    .is_some_and(|all| all != net && all.contains(&net))
                    && net.prefix_len() <= 126
            }
        };
        claim.subnets().count() > 0
            && claim.public.ips().count() > 0
            && claim.subnets().all(|net| net == net.trunc() && fits(net))
            && claim
                .subnets()
                .all(|net| claim.public.ips().all(|ip| !net.contains(&ip)))
    };
    let mut accepted: Vec<usize> = Vec::new();
    let mut nodes: Vec<(IpAddr, usize)> = Vec::new();
    for (index, claim) in claims.iter().enumerate() {
        let covers = claims.iter().enumerate().any(|(place, other)| {
            (other.own || accepted.contains(&place))
                && other
                    .public
                    .ips()
                    .any(|ip| claim.subnets().any(|net| net.contains(&ip)))
        });
        let leased = accepted.iter().any(|other| {
            let mut subnets = claims[*other].subnets();
            subnets.any(|theirs| claim.public.ips().any(|ip| theirs.contains(&ip)))
        });
        let overlaps = accepted.iter().any(|other| {
            claims[*other].subnets().any(|theirs| {
                claim
                    .subnets()
                    .any(|net| net.contains(&theirs) || theirs.contains(&net))
            })
        });
        let mut same: Vec<usize> = nodes
            .iter()
            .filter(|(ip, _)| claim.public.ips().any(|mine| mine == *ip))
            .map(|(_, node)| *node)
            .collect();
        same.dedup();
        let clash = same.len() > 1 || same.iter().any(|node| claims[*node].own != claim.own);
        if well_formed(claim) && !covers && !leased && !overlaps && !clash {
            let node = same.first().copied().unwrap_or(index);
            nodes.extend(
                claim
                    .public
                    .ips()
                    .filter(|ip| nodes.iter().all(|(known, _)| known != ip))
                    .map(|ip| (ip, node))
                    .collect::<Vec<_>>(),
            );
            accepted.push(index);
        }
    }
    accepted
}

/// Claims that get in each other's way: few addresses, some of them public IPs inside the overlay.
fn any_claim() -> impl Strategy<Value = Claim> {
    let v4 = prop_oneof![
        8 => (0_u32..64, 22_u8..=28).prop_map(|(n, len)| Ipv4Net::new_assert(Ipv4Addr::from_bits(0x0af4_0000 | n << 7), len).trunc()),
        1 => (any::<u32>(), 14_u8..=32).prop_map(|(n, len)| Ipv4Net::new_assert(Ipv4Addr::from_bits(0x0af4_0000 ^ (n & 0x1_ffff)), len)),
    ];
    let v6 = (0_u128..64, 60_u8..=66).prop_map(|(n, len)| {
        Ipv6Net::new_assert(Ipv6Addr::from_bits(0xfd00_0010_0244 << 80 | n << 63), len).trunc()
    });
    let public_v4 = prop_oneof![
        8 => (1_u32..40).prop_map(|n| Ipv4Addr::from_bits(0x0a63_0000 | n)),
        1 => (0_u32..64).prop_map(|n| Ipv4Addr::from_bits(0x0af4_0005 | n << 7)),
    ];
    let public_v6 = (1_u128..40).prop_map(|n| Ipv6Addr::from_bits(0xfd99 << 112 | n));
    let endpoint = (
        prop::option::weighted(0.9, public_v4),
        prop::option::weighted(0.2, public_v6),
    );
    (
        prop::option::weighted(0.9, v4),
        prop::option::weighted(0.3, v6),
        endpoint,
        prop::bool::weighted(0.1),
    )
        .prop_map(|(v4, v6, (public_v4, public_v6), own)| Claim {
            v4,
            v6,
            public: Endpoint {
                v4: public_v4,
                v6: public_v6,
            },
            own,
        })
}

proptest! {
    #[test]
    fn the_rib_judges_as_the_model_does(claims in prop::collection::vec(any_claim(), 0..40)) {
        let rib = Rib::build(&network(), &claims, &[]);
        prop_assert_eq!(rib.accepted(), model(&network(), &claims));
        // Each claim ends in exactly one place.
        let mut all: Vec<_> = rib.accepted().iter().map(|index| Source::Lease(*index)).collect();
        all.extend(rib.refused().iter().map(|(source, _)| *source));
        all.sort_unstable();
        prop_assert_eq!(all, (0..claims.len()).map(Source::Lease).collect::<Vec<_>>());
    }

    #[test]
    fn accepted_leases_are_disjoint(claims in prop::collection::vec(any_claim(), 0..40)) {
        let rib = Rib::build(&network(), &claims, &[]);
        let subnets: Vec<_> = rib.accepted().iter().flat_map(|index| claims[*index].subnets()).collect();
        for (n, one) in subnets.iter().enumerate() {
            for two in &subnets[n + 1..] {
                prop_assert!(!one.contains(two) && !two.contains(one), "{one} and {two}");
            }
        }
    }

    #[test]
    fn a_refused_overlap_names_an_accepted_lease_that_overlaps(claims in prop::collection::vec(any_claim(), 0..40)) {
        let rib = Rib::build(&network(), &claims, &[]);
        for (source, refusal) in rib.refused() {
            let Refusal::Overlaps { prefix, with, of, other: Source::Lease(other) } = refusal else { continue };
            prop_assert!(rib.accepted().contains(other) && Source::Lease(*other) < *source);
            prop_assert!(claims[*other].subnets().any(|subnet| subnet == *with));
            prop_assert_eq!(claims[*other].public, *of);
            prop_assert!(with.contains(prefix) || prefix.contains(with));
        }
    }

    /// Whoever comes later changes nothing for those before, but for ourselves, whose public IPs always count.
    #[test]
    fn later_claims_do_not_unseat_earlier_ones(mut claims in prop::collection::vec(any_claim(), 0..40), cut in 0..40_usize) {
        claims.retain(|claim| !claim.own);
        let cut = cut.min(claims.len());
        let all = Rib::build(&network(), &claims, &[]);
        let some = Rib::build(&network(), &claims[..cut], &[]);
        let before: Vec<_> = all.accepted().iter().copied().filter(|index| *index < cut).collect();
        prop_assert_eq!(before, some.accepted());
    }
}
