//! One load per lookup, for prefixes that all have one length.
//!
//! ```text
//!   prefixes 10.244.3.0/24, 10.244.4.0/24, 10.244.6.0/24     shift = 32 - 24
//!
//!   key - 10.244.3.0  >> 8  = slot ─┬───┬───┬───┬───┐
//!                                   │ a │ b │ - │ c │
//!                                   └───┴───┴───┴───┘
//!   10.244.                           3   4   5   6
//! ```
//!
//! This is what a cluster looks like: every lease of `subnet-len`, all inside one network. The
//! array starts at the lowest prefix rather than at the network's base, so it is as short as the
//! leases allow.

use std::mem::size_of_val;

use super::{Entry, Key, Kind, NONE};

/// Never more slots than this: 1 MiB, which a second-level cache still holds.
const MAX_SLOTS: usize = 1 << 18;
/// A table this small is not worth looking for gaps.
const SMALL: usize = 1024;
/// Otherwise at most this many slots per prefix, so that a few leases strewn over a large network
/// do not cost a megabyte.
const MAX_SPREAD: usize = 64;

#[derive(Debug)]
pub(super) struct Direct<A> {
    /// First address of slot 0.
    low: A,
    /// Host bits of the one prefix length; below the address width.
    shift: u32,
    slots: Box<[u32]>,
}

impl<A: Key> Direct<A> {
    /// Builds from entries sorted by first address, or declines when they do not suit.
    pub(super) fn build(entries: &[Entry<A>]) -> Option<Self> {
        let (lowest, highest) = (entries.first()?, entries.last()?);
        let len = lowest.len;
        // A /0 would shift by the whole width; the ranges have no trouble with it.
        if len == 0 || entries.iter().any(|entry| entry.len != len) {
            return None;
        }
        let low = lowest.first;
        let shift = A::BITS - u32::from(len);
        let slot_of =
            |entry: &Entry<A>| entry.first.wrapping_sub(low).shift_right(shift).to_index();
        let count = slot_of(highest)?.checked_add(1)?;
        if count > MAX_SLOTS || count > SMALL.max(entries.len().saturating_mul(MAX_SPREAD)) {
            return None;
        }
        let mut slots = vec![NONE; count];
        for entry in entries {
            *slots.get_mut(slot_of(entry)?)? = entry.value;
        }
        Some(Self {
            low,
            shift,
            slots: slots.into_boxed_slice(),
        })
    }

    #[inline]
    pub(super) fn lookup(&self, key: A) -> u32 {
        // A key below `low` wraps round to a slot past the end: with s = low's own slot number,
        // there are at most 2^len - s slots, and the key lands at 2^len - s or more.
        let slot = key
            .wrapping_sub(self.low)
            .shift_right(self.shift)
            .to_index();
        slot.and_then(|slot| self.slots.get(slot))
            .copied()
            .unwrap_or(NONE)
    }

    pub(super) fn kind(&self) -> Kind {
        let prefix_len = u8::try_from(A::BITS - self.shift).unwrap_or(u8::MAX);
        Kind::Direct {
            prefix_len,
            slots: self.slots.len(),
        }
    }

    pub(super) fn memory(&self) -> usize {
        size_of_val(&*self.slots)
    }
}
