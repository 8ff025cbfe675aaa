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
