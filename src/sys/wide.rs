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
