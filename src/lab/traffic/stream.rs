//! Pseudo-random bytes that both ends can make from a seed, and the digest they are compared by.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// An endless stream of pseudo-random bytes: the same seed gives the same bytes, however they are cut into pieces.
///
/// The generator is SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014):
/// small, fast, and no two pages of a transfer look alike, which a repeated pattern would let go unnoticed.
#[derive(Clone, Debug)]
pub struct Stream {
    state: u64,
    word: [u8; 8],
    used: usize,
}

impl Stream {
    /// The stream of this seed, at its beginning.
    pub fn new(seed: u64) -> Self {
        Self {
            state: seed,
            word: [0; 8],
            used: 8,
        }
    }

    /// Writes the next bytes of the stream.
    pub fn fill(&mut self, out: &mut [u8]) {
        let rest = (8 - self.used).min(out.len());
        let (head, body) = out.split_at_mut(rest);
        head.copy_from_slice(&self.word[self.used..self.used + rest]);
        self.used += rest;
        let mut words = body.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.next().to_le_bytes());
        }
        let tail = words.into_remainder();
        if !tail.is_empty() {
            self.word = self.next().to_le_bytes();
            self.used = tail.len();
            tail.copy_from_slice(&self.word[..tail.len()]);
        }
    }

    /// The first `len` bytes of the stream of this seed.
    pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        Self::new(seed).fill(&mut bytes);
        bytes
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A SHA-256 digest (FIPS 180-4). Displayed as 64 hexadecimal digits; with a precision, as the first so many.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(64).min(64);
        for (i, byte) in self.0.iter().enumerate().take(digits.div_ceil(2)) {
            match digits - 2 * i {
                1 => write!(f, "{:x}", byte >> 4)?,
                _ => write!(f, "{byte:02x}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Bytes counted and digested as they pass.
#[derive(Clone, Default)]
pub(super) struct Tally {
    hash: Sha256,
    bytes: u64,
}

impl Tally {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn digest(&self) -> Digest {
        Digest(self.hash.clone().finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn splitmix64_gives_its_published_numbers() {
        // The first outputs for seed 1234567, from the reference implementation (Vigna, splitmix64.c).
        let mut stream = Stream::new(1_234_567);
        assert_eq!(stream.next(), 6_457_827_717_110_365_317);
        assert_eq!(stream.next(), 3_203_168_211_198_807_973);
        assert_eq!(stream.next(), 9_817_491_932_198_370_423);
    }

    #[test]
    fn digest_of_the_standards_example() {
        let digest = Digest::of(b"abc");
        assert_eq!(
            digest.to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(format!("{digest:.5}"), "ba781");
        assert_eq!(format!("{digest:.6}"), "ba7816");
    }

    proptest! {
        #[test]
        fn pieces_make_the_same_stream(seed: u64, cuts in prop::collection::vec(0usize..40, 0..20)) {
            let whole = Stream::bytes(seed, cuts.iter().sum());
            let mut stream = Stream::new(seed);
            let mut pieces = Vec::new();
            let mut tally = Tally::default();
            for cut in cuts {
                let mut piece = vec![0; cut];
                stream.fill(&mut piece);
                tally.add(&piece);
                pieces.extend(piece);
            }
            prop_assert_eq!(&pieces, &whole);
            prop_assert_eq!(tally.digest(), Digest::of(&whole));
            prop_assert_eq!(tally.bytes(), whole.len() as u64);
        }
    }
}
