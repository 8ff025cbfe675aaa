//! The loops over payload bytes, compiled for machines with wider registers than the oldest supported ones.

use encap::Sums;

/// The fastest loops for the machine that we run on, which is asked once.
#[must_use]
pub fn sums() -> Sums {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        return Sums {
            // SAFETY: the machine has AVX2, as was just asked.
            sum: |bytes| unsafe { avx2::sum(bytes) },
            // SAFETY: the machine has AVX2, as was just asked.
            copy_and_sum: |dst, src| unsafe { avx2::copy_and_sum(dst, src) },
        };
    }
    Sums::PORTABLE
}

/// The portable loops, which the compiler turns into 256-bit ones here.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    /// # Safety
    /// The machine must have AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn sum(bytes: &[u8]) -> u16 {
        encap::sums::sum(bytes)
    }

    /// # Safety
    /// The machine must have AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn copy_and_sum(dst: &mut [u8], src: &[u8]) -> u16 {
        encap::sums::copy_and_sum(dst, src)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use encap::checksum::reference_sum;

    /// Every length to past four blocks, and one that has many, at every alignment a register can have.
    #[test]
    fn wide_is_the_reference_at_every_alignment_and_length() {
        let mut state = 1u32;
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .take(70_000)
        .collect();
        let sums = sums();
        let mut copy = vec![0; bytes.len() + 64];
        for start in 0..32 {
            for len in (0..=260).chain([65_535]) {
                let piece = &bytes[start..start + len];
                let expected = reference_sum(piece);
                assert_eq!((sums.sum)(piece), expected, "start {start}, length {len}");
                let to = &mut copy[start * 7 % 32..][..len];
                assert_eq!((sums.copy_and_sum)(to, piece), expected);
                assert_eq!(to, piece, "start {start}, length {len}");
            }
        }
        // The largest words there are.
        assert_eq!((sums.sum)(&[0xff; 65_535]), reference_sum(&[0xff; 65_535]));
    }
}
