//! Both forms, both families, against a linear scan for the longest prefix.

use proptest::prelude::*;

use super::*;

/// The definition of longest prefix match; of equal prefixes the first given wins.
fn scan<A: Key>(prefixes: &[(A::Net, u32)], key: A) -> Option<u32> {
    let mut best: Option<(u8, u32)> = None;
    for (net, value) in prefixes {
        let (first, last, len) = A::span(net);
        if first <= key && key <= last && best.is_none_or(|(longest, _)| len > longest) {
            best = Some((len, *value));
        }
    }
    best.map(|(_, value)| value)
}

fn entries<A: Key>(prefixes: &[(A::Net, u32)]) -> Vec<Entry<A>> {
    let mut entries: Vec<_> = prefixes
        .iter()
        .map(|(net, value)| {
            let (first, last, len) = A::span(net);
            Entry {
                first,
                last,
                len,
                value: *value,
            }
        })
        .collect();
    entries.sort_by_key(|entry| (entry.first, entry.len));
    entries.dedup_by_key(|entry| (entry.first, entry.len));
    entries
}

/// Every address where an answer may change, and its neighbours.
fn edges<A: Key>(prefixes: &[(A::Net, u32)]) -> Vec<A> {
    let mut keys = vec![A::ZERO, A::ZERO.wrapping_sub(A::ONE)];
    for (net, _) in prefixes {
        let (first, last, _) = A::span(net);
        keys.extend([first, first.wrapping_sub(A::ONE), last]);
        keys.extend(last.successor());
    }
    keys
}

/// Checks the table as chosen, and the ranges form whatever was chosen.
fn agrees<A: Key>(prefixes: &[(A::Net, u32)], keys: &[A]) -> Result<(), TestCaseError>
where
    A::Net: Copy,
{
    let fib = Fib::<A>::build(prefixes.iter().copied());
    let ranges = Ranges::build(&entries::<A>(prefixes));
    for key in edges::<A>(prefixes).iter().chain(keys) {
        let expected = scan(prefixes, *key);
        prop_assert_eq!(fib.lookup(*key), expected, "{} for {:?}", fib.kind(), key);
        prop_assert_eq!(
            ranges.lookup(*key),
            expected.unwrap_or(NONE),
            "ranges for {:?}",
            key
        );
    }
    Ok(())
}

/// Mostly a cluster's leases, with routes of any length about them.
fn v4_prefix() -> impl Strategy<Value = Ipv4Net> {
    prop_oneof![
        6 => (any::<u32>(), 17_u8..=32).prop_map(|(bits, len)| (0x0af4_0000 | bits & 0xffff, len)),
        2 => (any::<u32>(), 0_u8..=32),
        1 => (Just(0), Just(0)),
    ]
    .prop_map(|(bits, len)| Ipv4Net::new_assert(Ipv4Addr::from_bits(bits), len))
}

const SITE: u128 = 0xfd00_0010_0244 << 80;

fn v6_prefix() -> impl Strategy<Value = Ipv6Net> {
    let low = (1_u128 << 80) - 1;
    prop_oneof![
        6 => (any::<u128>(), 49_u8..=72).prop_map(move |(bits, len)| (SITE | bits & low, len)),
        2 => (any::<u128>(), 0_u8..=128),
        1 => (Just(SITE | 1), Just(128)),
        1 => (Just(0), Just(0)),
    ]
    .prop_map(|(bits, len)| Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), len))
}

proptest! {
    #[test]
    fn v4_mixed_lengths_match_a_scan(
        prefixes in prop::collection::vec((v4_prefix(), 0..1000_u32), 0..300),
        keys in prop::collection::vec(any::<u32>(), 32),
    ) {
        agrees::<u32>(&prefixes, &keys)?;
    }

    #[test]
    fn v6_mixed_lengths_match_a_scan(
        prefixes in prop::collection::vec((v6_prefix(), 0..1000_u32), 0..300),
        keys in prop::collection::vec(any::<u128>(), 32),
    ) {
        agrees::<u128>(&prefixes, &keys)?;
    }

    #[test]
    fn v4_one_length_matches_a_scan(
        len in 0_u8..=32,
        near in any::<u32>(),
        prefixes in prop::collection::vec((0..2000_u32, 0..1000_u32), 0..200),
        keys in prop::collection::vec(any::<u32>(), 32),
    ) {
        // Neighbouring prefixes somewhere in the address space, its end included.
        let shift = u32::from(32 - len);
        let prefixes: Vec<_> = prefixes
            .into_iter()
            .map(|(step, value)| (near.wrapping_add(step.checked_shl(shift).unwrap_or(0)), value))
            .map(|(bits, value)| (Ipv4Net::new_assert(Ipv4Addr::from_bits(bits), len), value))
            .collect();
        agrees::<u32>(&prefixes, &keys)?;
    }

    #[test]
    fn v6_one_length_matches_a_scan(
        len in 0_u8..=128,
        near in any::<u128>(),
        prefixes in prop::collection::vec((0..2000_u128, 0..1000_u32), 0..200),
        keys in prop::collection::vec(any::<u128>(), 32),
    ) {
        let shift = u32::from(128 - len);
        let prefixes: Vec<_> = prefixes
            .into_iter()
            .map(|(step, value)| (near.wrapping_add(step.checked_shl(shift).unwrap_or(0)), value))
            .map(|(bits, value)| (Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), len), value))
            .collect();
        agrees::<u128>(&prefixes, &keys)?;
    }
}

fn v4(prefixes: &[(&str, u32)]) -> Fib4 {
    Fib::build(
        prefixes
            .iter()
            .map(|(net, value)| (net.parse().unwrap(), *value)),
    )
}

fn v6(prefixes: &[(&str, u32)]) -> Fib6 {
    Fib::build(
        prefixes
            .iter()
            .map(|(net, value)| (net.parse().unwrap(), *value)),
    )
}

fn at4(fib: &Fib4, addr: &str) -> Option<u32> {
    fib.lookup(addr.parse::<Ipv4Addr>().unwrap().to_bits())
}

fn at6(fib: &Fib6, addr: &str) -> Option<u32> {
    fib.lookup(addr.parse::<Ipv6Addr>().unwrap().to_bits())
}

#[test]
fn an_empty_table_holds_nothing() {
    let fib = v4(&[]);
    assert_eq!(at4(&fib, "0.0.0.0"), None);
    assert_eq!(at4(&fib, "255.255.255.255"), None);
    assert_eq!(at6(&v6(&[]), "::"), None);
}

#[test]
fn leases_of_one_length_are_direct() {
    let fib = v4(&[("10.244.6.0/24", 6), ("10.244.3.0/24", 3)]);
    assert_eq!(
        fib.kind(),
        Kind::Direct {
            prefix_len: 24,
            slots: 4
        }
    );
    assert_eq!(at4(&fib, "10.244.3.0"), Some(3));
    assert_eq!(at4(&fib, "10.244.3.255"), Some(3));
    assert_eq!(at4(&fib, "10.244.4.1"), None);
    assert_eq!(at4(&fib, "10.244.6.1"), Some(6));
    assert_eq!(at4(&fib, "10.244.2.255"), None);
    assert_eq!(at4(&fib, "10.244.7.0"), None);
    assert_eq!(at4(&fib, "0.0.0.0"), None);

    let fib = v6(&[("fd00:10:244:1::/64", 1), ("fd00:10:244:100::/64", 2)]);
    assert_eq!(
        fib.kind(),
        Kind::Direct {
            prefix_len: 64,
            slots: 256
        }
    );
    assert_eq!(at6(&fib, "fd00:10:244:1:ffff::1"), Some(1));
    assert_eq!(at6(&fib, "fd00:10:244:100::"), Some(2));
    assert_eq!(at6(&fib, "fd00:10:244:2::"), None);
}

#[test]
fn mixed_lengths_are_ranges_and_the_longest_wins() {
    let fib = v4(&[
        ("0.0.0.0/0", 0),
        ("10.0.0.0/8", 8),
        ("10.2.0.0/16", 16),
        ("10.2.0.1/32", 32),
    ]);
    assert!(matches!(fib.kind(), Kind::Ranges { .. }));
    assert_eq!(at4(&fib, "9.255.255.255"), Some(0));
    assert_eq!(at4(&fib, "10.1.0.0"), Some(8));
    assert_eq!(at4(&fib, "10.2.0.0"), Some(16));
    assert_eq!(at4(&fib, "10.2.0.1"), Some(32));
    assert_eq!(at4(&fib, "10.2.0.2"), Some(16));
    assert_eq!(at4(&fib, "10.3.0.0"), Some(8));
    assert_eq!(at4(&fib, "255.255.255.255"), Some(0));
}

#[test]
fn few_leases_far_apart_take_little_memory() {
    // Apart by 65,535 slots: ranges, not 256 KiB of empty slots.
    let fib = v4(&[("10.0.0.0/24", 1), ("10.255.255.0/24", 2)]);
    assert!(matches!(fib.kind(), Kind::Ranges { .. }), "{}", fib.kind());
    assert!(fib.memory() < 256, "{}", fib.memory());
    // And a /128 at either end of the world cannot be an index at all.
    let fib = v6(&[("::/128", 1), ("ffff::/128", 2)]);
    assert_eq!(at6(&fib, "ffff::"), Some(2));
    assert_eq!(at6(&fib, "::"), Some(1));
    assert_eq!(at6(&fib, "::1"), None);
}

#[test]
fn of_equal_prefixes_the_first_wins_in_both_forms() {
    assert_eq!(
        at4(&v4(&[("10.0.1.0/24", 7), ("10.0.1.0/24", 8)]), "10.0.1.1"),
        Some(7)
    );
    assert_eq!(
        at4(
            &v4(&[("10.0.1.0/24", 7), ("10.0.1.0/24", 8), ("10.0.0.0/8", 9)]),
            "10.0.1.1"
        ),
        Some(7)
    );
}

#[test]
fn an_outlier_does_not_spoil_the_index() {
    // 2,000 leases of one site and a route at the other end of the address space: without the
    // window all leases would fall into one chunk, and a lookup would search all of them.
    let site = (0..2000_u128).map(|n| {
        (
            Ipv6Net::new_assert(Ipv6Addr::from_bits(SITE | n << 65), 64),
            1,
        )
    });
    let prefixes: Vec<_> = site
        .chain([
            ("2001:db8::/32".parse().unwrap(), 2),
            ("fc00::/7".parse().unwrap(), 3),
        ])
        .collect();
    let ranges = Ranges::build(&entries::<u128>(&prefixes));
    assert!(ranges.longest_search() <= 4, "{}", ranges.longest_search());
    agrees::<u128>(&prefixes, &[]).unwrap();
}
