//! The Internet checksum (RFC 1071), changes to it (RFC 1624), and the pseudo-header (RFC 9293 section 3.1,
//! RFC 768, RFC 8200 section 8.1).
//!
//! The sum is the ones' complement sum of the bytes taken as big-endian 16-bit words, an odd last byte padded
//! with zero; the checksum is its complement. Ones' complement means that a carry out of the top comes back
//! in at the bottom, and so the sum of anything but zeros is never 0: its zero is 0xffff.

use std::net::IpAddr;

use crate::{Inner, sums};

/// Ones' complement sum of `bytes`, folded to 16 bits.
#[must_use]
pub fn sum(bytes: &[u8]) -> u16 {
    sums::sum(bytes)
}

/// The checksum of `bytes` as it goes into a header's field: the complement of [`sum`].
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    !sum(bytes)
}

/// Ones' complement addition: joins the sums of two pieces, of which the first has an even length.
#[must_use]
pub const fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    // After a carry the sum is at most 0xfffe, so this never carries again.
    sum + carry as u16
}

/// The checksum after one 16-bit word it covers changed from `old` to `new`: RFC 1624 equation 3,
/// HC' = ~(~HC + ~m + m').
#[must_use]
pub const fn update_u16(checksum: u16, old: u16, new: u16) -> u16 {
    !add(add(!checksum, !old), new)
}

/// The same for two words in a row, such as an IPv4 address or a sequence number.
#[must_use]
pub const fn update_u32(checksum: u16, old: u32, new: u32) -> u16 {
    let upper = update_u16(checksum, (old >> 16) as u16, (new >> 16) as u16);
    update_u16(upper, (old & 0xffff) as u16, (new & 0xffff) as u16)
}

/// Sum of the pseudo-header that TCP and UDP checksums cover: addresses, protocol, and `l4_len`, the length in
/// bytes of the transport header and its payload.
///
/// ```text
///  IPv4                                                IPv6: the same sum, wider fields
/// +--------+--------+--------+--------+
/// |           source address          |                 source address (16 bytes)
/// +--------+--------+--------+--------+
/// |         destination address       |                 destination address (16 bytes)
/// +--------+--------+--------+--------+
/// |  zero  |protocol|      length     |                 length (4 bytes), zero (3), next header (1)
/// +--------+--------+--------+--------+
/// ```
#[must_use]
pub fn pseudo_header(inner: &Inner, l4_len: usize) -> u16 {
    let addresses = match (inner.src, inner.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => u64::from(src.to_bits()) + u64::from(dst.to_bits()),
        (src, dst) => wide(src) + wide(dst),
    };
    fold(addresses + u64::from(inner.protocol) + l4_len as u64)
}

/// An address as 32-bit words, summed.
fn wide(ip: IpAddr) -> u64 {
    let bits = match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let word = |shift: u32| (bits >> shift & 0xffff_ffff) as u64;
    word(96) + word(64) + word(32) + word(0)
}

/// Folds a sum of wider words to 16 bits: 2^16 is 1 in this arithmetic, so the 16-bit digits just add up.
pub(crate) fn fold(mut sum: u64) -> u16 {
    sum = (sum >> 32) + (sum & 0xffff_ffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    (sum & 0xffff) as u16
}

/// The sum as RFC 1071 section 4.1 writes it down, word by word: what [`sum`] is tested and measured against.
#[must_use]
pub fn reference_sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]));
        sum = (sum >> 16) + (sum & 0xffff);
    }
    (sum & 0xffff) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 section 3.
    const EXAMPLE: [u8; 8] = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];

    #[test]
    fn rfc_1071_section_3() {
        assert_eq!(sum(&EXAMPLE), 0xddf2);
        assert_eq!(reference_sum(&EXAMPLE), 0xddf2);
        assert_eq!(checksum(&EXAMPLE), 0x220d);
    }

    #[test]
    fn an_odd_byte_counts_as_the_upper_one() {
        assert_eq!(sum(&[0x12, 0x34, 0x56]), 0x1234 + 0x5600);
        assert_eq!(sum(&[]), 0);
    }

    #[test]
    fn the_sum_of_anything_but_zeros_is_not_zero() {
        assert_eq!(sum(&[0; 1500]), 0);
        assert_eq!(sum(&[0xff; 1500]), 0xffff);
        assert_eq!(sum(&[0xff; 65535]), reference_sum(&[0xff; 65535]));
        assert_eq!(sum(&[0xff, 0xfe, 0x00, 0x01]), 0xffff);
    }

    /// RFC 1624 section 4: equation 3 gives 0x0000 where equation 2 gave 0xffff.
    #[test]
    fn rfc_1624_section_4() {
        assert_eq!(update_u16(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    /// Every length to past four blocks, at every alignment a block can have.
    #[test]
    fn wide_sum_is_the_reference_at_every_alignment_and_length() {
        let mut state = 1u32;
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .take(64 + 200)
        .collect();
        for start in 0..64 {
            for len in 0..=200 {
                let piece = &bytes[start..start + len];
                assert_eq!(
                    sum(piece),
                    reference_sum(piece),
                    "start {start}, length {len}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn wide_sum_is_the_reference(bytes in proptest::collection::vec(any::<u8>(), 0..=9000), skip in 0usize..32) {
            let piece = &bytes[skip.min(bytes.len())..];
            prop_assert_eq!(sum(piece), reference_sum(piece));
        }

        #[test]
        fn pieces_add_up(a in proptest::collection::vec(any::<u8>(), 0..100), b in proptest::collection::vec(any::<u8>(), 0..100)) {
            let even = &a[..a.len() & !1];
            let whole = [even, &b].concat();
            prop_assert_eq!(add(sum(even), sum(&b)), sum(&whole));
        }

        /// A header is never all zeros, and neither is this.
        #[test]
        fn incremental_is_recompute(mut bytes in proptest::collection::vec(any::<u8>(), 20..60), at in 0usize..8, new in any::<[u8; 4]>()) {
            bytes.truncate(bytes.len() & !1);
            bytes[18] |= 1;
            let before = checksum(&bytes);
            let old = [bytes[at * 2], bytes[at * 2 + 1], bytes[at * 2 + 2], bytes[at * 2 + 3]];

            let mut one = bytes.clone();
            one[at * 2..at * 2 + 2].copy_from_slice(&new[..2]);
            let updated = update_u16(before, u16::from_be_bytes([old[0], old[1]]), u16::from_be_bytes([new[0], new[1]]));
            prop_assert_eq!(updated, checksum(&one));

            let mut two = bytes.clone();
            two[at * 2..at * 2 + 4].copy_from_slice(&new);
            prop_assert_eq!(update_u32(before, u32::from_be_bytes(old), u32::from_be_bytes(new)), checksum(&two));
        }
    }
}
