//! The flow hash: one number for all packets of a flow, far apart for different flows.
//!
//! It picks the outer source port (RFC 7348 section 5, RFC 6438 for IPv6), by which routers and receive queues
//! spread the load, so every bit of the result must depend on every bit of the flow. The mixing step is the folded
//! multiplication of wyhash and its kin: a 64 by 64 bit product, its halves joined by XOR.

use std::net::IpAddr;

use crate::{Fragment, Inner};

/// The first port of the dynamic range (RFC 6335 section 6), as RFC 7348 section 5 recommends.
pub const FIRST_PORT: u16 = 49152;

// Digits of pi: odd-looking, and nobody chose them.
const SEED: u64 = 0x243f_6a88_85a3_08d3;
const FACTOR: u64 = 0x1319_8a2e_0370_7345;
const FINISH: u64 = 0xa409_3822_299f_31d1;
/// The lower half of a product.
const LOW: u128 = 0xffff_ffff_ffff_ffff;

/// The hash of a packet's flow: addresses, protocol and, for TCP and UDP, ports.
///
/// Fragments, the first one too, hash on their addresses alone, so that all pieces of a packet travel together.
#[must_use]
pub fn hash(packet: &[u8], inner: &Inner) -> u32 {
    let mut state = SEED;
    match (inner.src, inner.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            state = mix(
                state,
                u64::from(src.to_bits()) << 32 | u64::from(dst.to_bits()),
            );
        }
        (src, dst) => {
            for half in halves(src).into_iter().chain(halves(dst)) {
                state = mix(state, half);
            }
        }
    }
    let transport = if inner.fragment == Fragment::None {
        let (src, dst) = inner.ports(packet).unwrap_or_default();
        u64::from(inner.protocol) << 32 | u64::from(src) << 16 | u64::from(dst)
    } else {
        0
    };
    state = mix(state, transport);
    (fold(state, FINISH) >> 32) as u32
}

/// The outer source port for a hash: 49152 to 65535, by its upper 14 bits.
#[must_use]
pub const fn source_port(hash: u32) -> u16 {
    FIRST_PORT + (hash >> 18) as u16
}

/// An IPv6 address as two words (an IPv4 one never comes here with a partner of its own family).
fn halves(ip: IpAddr) -> [u64; 2] {
    let bits = match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    [(bits >> 64) as u64, (bits & LOW) as u64]
}

fn mix(state: u64, word: u64) -> u64 {
    fold(state ^ word, FACTOR) ^ state.rotate_left(23)
}

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ (product & LOW) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, L4};
    use etherparse::{IpHeaders, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header};
    use std::collections::HashSet;

    fn flow(src: [u8; 4], dst: [u8; 4], ports: (u16, u16)) -> u32 {
        let ip = Ipv4Header {
            source: src,
            destination: dst,
            ..Ipv4Header::default()
        };
        of(&testing::build(
            &IpHeaders::Ipv4(ip, Ipv4Extensions::default()),
            &L4::Udp(ports.0, ports.1),
            b"data",
        ))
    }

    fn flow6(src: u128, dst: u128, ports: (u16, u16)) -> u32 {
        let ip = Ipv6Header {
            source: src.to_be_bytes(),
            destination: dst.to_be_bytes(),
            ..Ipv6Header::default()
        };
        of(&testing::build(
            &IpHeaders::Ipv6(ip, Ipv6Extensions::default()),
            &L4::Udp(ports.0, ports.1),
            b"data",
        ))
    }

    fn of(packet: &[u8]) -> u32 {
        hash(packet, &Inner::parse(packet).unwrap())
    }

    /// 1,000 balls thrown into 16,384 bins hit 970 different ones, give or take 5; and any eight queues chosen by
    /// the low bits of the port get 125 each, give or take 11.
    fn assert_spread(hashes: impl Iterator<Item = u32>) {
        let ports: Vec<u16> = hashes.map(source_port).collect();
        assert_eq!(ports.len(), 1000);
        assert!(ports.iter().all(|&port| port >= FIRST_PORT));
        assert!(ports.iter().collect::<HashSet<_>>().len() > 940);
        let mut queues = [0; 8];
        for port in &ports {
            queues[usize::from(port % 8)] += 1;
        }
        assert!(queues.iter().all(|&n| (75..175).contains(&n)), "{queues:?}");
        assert!(
            *ports.iter().min().unwrap() < 49152 + 200
                && *ports.iter().max().unwrap() > 65535 - 200
        );
    }

    #[test]
    fn a_thousand_flows_spread() {
        let (a, b) = ([10, 244, 1, 2], [10, 244, 2, 3]);
        assert_spread((0..1000).map(|n| flow(a, b, (32768 + n, 80))));
        assert_spread((0..1000).map(|n| flow(a, b, (40000 + 2 * n, 443))));
        assert_spread((0..1000u16).map(|n| {
            flow(
                a,
                [10, 244, n.to_be_bytes()[0], n.to_be_bytes()[1]],
                (53, 53),
            )
        }));
        assert_spread(
            (0..1000).map(|n| flow6(0xfd00 << 112 | 1, 0xfd00 << 112 | n << 64, (53, 53))),
        );
        assert_spread((0..1000).map(|n| flow6(0xfd00 << 112 | n, 0xfd00 << 112, (53, 53))));
    }

    #[test]
    fn the_ports_are_the_whole_dynamic_range() {
        assert_eq!((source_port(0), source_port(u32::MAX)), (49152, 65535));
    }

    /// Flipping any bit of the flow flips every bit of the hash in about half the cases.
    #[test]
    fn avalanche() {
        const FLOWS: u32 = 2000;
        for input in 0..96 {
            let mut flips = [0u32; 32];
            for n in 0..FLOWS {
                // Low-entropy flows, as real ones are.
                let mut key = [10, 244, 1, 2, 10, 244, 2, 3, 0, 0, 0, 80];
                key[3] = n.to_be_bytes()[2];
                key[8..10].copy_from_slice(&n.to_be_bytes()[2..]);
                let hash_of = |k: &[u8; 12]| {
                    let ports = (
                        u16::from_be_bytes([k[8], k[9]]),
                        u16::from_be_bytes([k[10], k[11]]),
                    );
                    flow([k[0], k[1], k[2], k[3]], [k[4], k[5], k[6], k[7]], ports)
                };
                let before = hash_of(&key);
                key[input / 8] ^= 1 << (input % 8);
                let changed = before ^ hash_of(&key);
                for (bit, count) in flips.iter_mut().enumerate() {
                    *count += changed >> bit & 1;
                }
            }
            // The standard deviation is 1.1 %; 32 * 96 samples of it stay within five.
            for (bit, count) in flips.iter().enumerate() {
                assert!(
                    count.abs_diff(FLOWS / 2) < FLOWS * 6 / 100,
                    "input bit {input}, output bit {bit}: {count}"
                );
            }
        }
    }

    #[test]
    fn all_pieces_of_a_packet_hash_alike() {
        let packet = testing::udp4(&[7; 3000]);
        let inner = Inner::parse(&packet).unwrap();
        let mut fragments = crate::Fragments::new(&packet, &inner, 1000).unwrap();
        let mut hashes = HashSet::new();
        let mut out = Vec::new();
        while fragments.next_into(&mut out).is_some() {
            hashes.insert(of(&out));
            out.clear();
        }
        assert_eq!(hashes.len(), 1);
    }

    #[test]
    fn payload_and_ttl_do_not_matter_but_protocol_does() {
        let mut packet = testing::udp4(b"one");
        let udp = of(&packet);
        packet[8] = 3;
        *packet.last_mut().unwrap() = 0;
        assert_eq!(of(&packet), udp);
        packet[9] = 6;
        assert_ne!(of(&packet), udp);
        let icmp = |payload: u8| {
            let mut packet = testing::udp4(b"one");
            packet[9] = 1;
            packet[20] = payload;
            of(&packet)
        };
        assert_eq!(icmp(8), icmp(0), "no ports outside TCP and UDP");
    }
}
