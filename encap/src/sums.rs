//! The two loops that touch every payload byte: summing it, and copying it while summing it.
//!
//! They are plain function pointers, because which version is the fastest is known at run time only, and finding it
//! out takes what this crate does without. The portable ones are the reference.

use crate::checksum::fold;

/// A pair of loops over payload bytes. All pairs compute the same; they differ in speed.
#[derive(Clone, Copy, Debug)]
pub struct Sums {
    /// Ones' complement sum of the bytes as big-endian 16-bit words, an odd last byte padded with zero
    /// ([`checksum::sum`](crate::checksum::sum)).
    pub sum: fn(&[u8]) -> u16,
    /// Copies the second slice into the first, of the same length, and returns the sum of what it copied. Panics, as
    /// `copy_from_slice` does, if the lengths differ.
    pub copy_and_sum: fn(&mut [u8], &[u8]) -> u16,
}

impl Sums {
    /// The reference: safe code, vectorised by the compiler for the oldest machine it may run on.
    pub const PORTABLE: Self = Self {
        sum: crate::checksum::sum,
        copy_and_sum: |dst, src| copy_and_sum(dst, src),
    };
}

/// Bytes taken in one step of the loops.
const BLOCK: usize = 64;
/// 32-bit words in a block, each with a sum of its own: the compiler puts them into whatever vector registers there are.
const LANES: usize = BLOCK / 4;

/// Adds the words of one block to their sums. No slice is so long that these overflow.
#[inline(always)]
fn add_block(lanes: &mut [u64; LANES], block: &[u8; BLOCK]) {
    for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(4)) {
        *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    }
}

/// The sums of all blocks and of what was left after them, in one.
#[inline(always)]
fn finish(lanes: &[u64; LANES], mut rest: &[u8]) -> u16 {
    let mut total: u64 = lanes.iter().sum();
    while let Some((&word, tail)) = rest.split_first_chunk::<4>() {
        total += u64::from(u32::from_ne_bytes(word));
        rest = tail;
    }
    if let Some((&word, tail)) = rest.split_first_chunk::<2>() {
        total += u64::from(u16::from_ne_bytes(word));
        rest = tail;
    }
    if let &[last] = rest {
        total += u64::from(u16::from_ne_bytes([last, 0]));
    }
    u16::from_be(fold(total))
}

/// [`checksum::sum`](crate::checksum::sum), to be inlined into a function that is compiled for newer machines.
///
/// RFC 1071 section 2 gives the two licences this takes: words may be summed in any byte order and swapped at
/// the end (B), and wider words summed and folded at the end (C).
#[inline(always)]
#[must_use]
pub fn sum(bytes: &[u8]) -> u16 {
    let mut lanes = [0; LANES];
    let mut rest = bytes;
    while let Some((block, tail)) = rest.split_first_chunk::<BLOCK>() {
        add_block(&mut lanes, block);
        rest = tail;
    }
    finish(&lanes, rest)
}

/// [`Sums::copy_and_sum`], to be inlined into a function that is compiled for newer machines.
#[inline(always)]
pub fn copy_and_sum(dst: &mut [u8], src: &[u8]) -> u16 {
    assert_eq!(dst.len(), src.len(), "a copy is as long as its original");
    let mut lanes = [0; LANES];
    let blocks = src.len() / BLOCK * BLOCK;
    let ((to, to_rest), (from, rest)) = (dst.split_at_mut(blocks), src.split_at(blocks));
    for (to, from) in to.chunks_exact_mut(BLOCK).zip(from.chunks_exact(BLOCK)) {
        if let Some(block) = from.first_chunk() {
            to.copy_from_slice(block);
            add_block(&mut lanes, block);
        }
    }
    to_rest.copy_from_slice(rest);
    finish(&lanes, rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::reference_sum;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn portable_is_the_reference(bytes in proptest::collection::vec(any::<u8>(), 0..=3000), skip in 0usize..64) {
            let piece = &bytes[skip.min(bytes.len())..];
            let mut copy = vec![0xee; piece.len() + 2];
            let end = 1 + piece.len();
            prop_assert_eq!((Sums::PORTABLE.sum)(piece), reference_sum(piece));
            prop_assert_eq!((Sums::PORTABLE.copy_and_sum)(&mut copy[1..end], piece), reference_sum(piece));
            prop_assert_eq!(&copy[1..end], piece);
            prop_assert_eq!((copy[0], copy[end]), (0xee, 0xee));
        }
    }

    #[test]
    #[should_panic(expected = "as long as its original")]
    fn lengths_must_agree() {
        (Sums::PORTABLE.copy_and_sum)(&mut [0; 3], &[0; 4]);
    }
}
