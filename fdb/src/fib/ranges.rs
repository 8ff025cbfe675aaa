//! Longest prefix match for any mixture of prefixes, as a search among ranges of addresses.
//!
//! After Zec, Rizzo and Mikuc, "DXR: Towards a Billion Routing Lookups per Second in Software", ACM
//! SIGCOMM CCR 42(5), 2012. Nested prefixes are cut into ranges that do not overlap, each with the
//! value of the longest prefix there. Only where a range starts needs to be stored; it ends where
//! the next one starts:
//!
//! ```text
//!   10.0.0.0/8 = a,  10.2.0.0/16 = b          starts   0.0.0.0   10.0.0.0   10.2.0.0   10.3.0.0   11.0.0.0
//!                                             values      -          a          b          a          -
//! ```
//!
//! A lookup finds the last start at or below the key. To keep that search short, the addresses are
//! divided into chunks of equal size (a power of two), and an array says for each chunk which
//! starts can answer for it. The paper takes the chunk from the key's top 16 to 20 bits. The top
//! bits of IPv6 addresses of one site are all the same, so here the chunks cover only a window:
//! from the lowest to the highest start but for a few outliers at either end (a static route far
//! from the overlay network, say), which are searched on their own. With that, 10,000 leases need a
//! search of one or two steps in both families.

use std::mem::size_of_val;

use super::{Entry, Key, Kind, NONE};

/// At most 2^16 chunks: 256 KiB of index.
const MAX_CHUNK_BITS: u32 = 16;
/// At most this many starts are left outside the window at either end; their search takes five
/// steps.
const MAX_OUTLIERS: usize = 32;

#[derive(Debug)]
pub(super) struct Ranges<A> {
    /// Where each range starts; the first is 0.
    starts: Box<[A]>,
    /// The value of each range.
    values: Box<[u32]>,
    /// The index of the last start at or below the beginning of each chunk; one entry more than
    /// there are chunks, the last being `window_last`.
    chunks: Box<[u32]>,
    /// Chunks are 2^shift addresses wide; the first begins at `low`.
    shift: u32,
    /// The window is `width` addresses from `low`: `starts[window_first]` up to, not including,
    /// `starts[window_last]`.
    low: A,
    width: A,
    window_first: usize,
    window_last: usize,
}

impl<A: Key> Ranges<A> {
    /// Builds from entries sorted by first address, then by length.
    pub(super) fn build(entries: &[Entry<A>]) -> Self {
        let (starts, values) = flatten(entries);
        let (window_first, window_last) = window(&starts);
        let low = starts[window_first];
        let width = starts[window_last].wrapping_sub(low);
        let (chunks, shift) = index(&starts, window_first, window_last);
        Self {
            starts: starts.into_boxed_slice(),
            values: values.into_boxed_slice(),
            chunks: chunks.into_boxed_slice(),
            shift,
            low,
            width,
            window_first,
            window_last,
        }
    }

    #[inline]
    pub(super) fn lookup(&self, key: A) -> u32 {
        let offset = key.wrapping_sub(self.low);
        // The answer is among starts[first..=last]. A key below `low` wraps to an offset beyond the
        // window.
        let (first, last) = if offset < self.width {
            match self.chunk(offset) {
                Some((first, last)) => (first as usize, last as usize),
                None => (0, self.starts.len() - 1),
            }
        } else if key < self.low {
            (0, self.window_first)
        } else {
            (self.window_last, self.starts.len() - 1)
        };
        // starts[first] <= key always, so the search is for how many of the others are.
        let after = self.starts.get(first + 1..=last).unwrap_or_default();
        let at = first + after.partition_point(|start| *start <= key);
        self.values.get(at).copied().unwrap_or(NONE)
    }

    #[inline]
    fn chunk(&self, offset: A) -> Option<(u32, u32)> {
        let chunk = offset.shift_right(self.shift).to_index()?;
        match self.chunks.get(chunk..)? {
            [first, last, ..] => Some((*first, *last)),
            _ => None,
        }
    }

    pub(super) fn kind(&self) -> Kind {
        Kind::Ranges {
            ranges: self.starts.len(),
            chunks: self.chunks.len().saturating_sub(1),
        }
    }

    pub(super) fn memory(&self) -> usize {
        size_of_val(&*self.starts) + size_of_val(&*self.values) + size_of_val(&*self.chunks)
    }
}

/// Cuts nested prefixes into ranges: one sweep from the lowest address to the highest, with the
/// prefixes that are open at the current address on a stack, the longest on top.
fn flatten<A: Key>(entries: &[Entry<A>]) -> (Vec<A>, Vec<u32>) {
    let mut ranges = Flat {
        starts: vec![A::ZERO],
        values: vec![NONE],
    };
    let mut open: Vec<&Entry<A>> = Vec::new();
    for entry in entries {
        while open.last().is_some_and(|top| top.last < entry.first) {
            ranges.close(&mut open);
        }
        ranges.push(entry.first, entry.value);
        open.push(entry);
    }
    while !open.is_empty() {
        ranges.close(&mut open);
    }
    (ranges.starts, ranges.values)
}

struct Flat<A> {
    starts: Vec<A>,
    values: Vec<u32>,
}

impl<A: Key> Flat<A> {
    /// From `start` on the value is `value`.
    fn push(&mut self, start: A, value: u32) {
        // A longer prefix at the same address, or one that begins where another ends: the later
        // word stands.
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.values.pop();
        }
        if self.values.last() != Some(&value) {
            self.starts.push(start);
            self.values.push(value);
        }
    }

    /// The innermost open prefix ends; after it the one around it holds again, if there is one.
    fn close(&mut self, open: &mut Vec<&Entry<A>>) {
        let next = open.pop().and_then(|ended| ended.last.successor());
        if let Some(next) = next {
            self.push(next, open.last().map_or(NONE, |around| around.value));
        }
    }
}

/// The narrowest window, in bits, that leaves few enough starts outside; of equal ones that which
/// leaves the fewest.
fn window<A: Key>(starts: &[A]) -> (usize, usize) {
    let end = starts.len() - 1;
    let reach = MAX_OUTLIERS.min(end);
    (0..=reach)
        .flat_map(|below| (0..=reach).map(move |above| (below, above)))
        .filter(|(below, above)| below + above <= end)
        .min_by_key(|(below, above)| {
            let width = starts[end - above].wrapping_sub(starts[*below]);
            (width.significant_bits(), below + above)
        })
        .map_or((0, end), |(below, above)| (below, end - above))
}

/// The chunks of the window, and the shift that leads from an offset to its chunk.
fn index<A: Key>(starts: &[A], first: usize, last: usize) -> (Vec<u32>, u32) {
    let low = starts[first];
    let width_bits = starts[last].wrapping_sub(low).significant_bits();
    // About two chunks per start: most then hold one start or none.
    let wanted = (last - first).next_power_of_two().ilog2() + 1;
    let shift = width_bits.saturating_sub(wanted.min(MAX_CHUNK_BITS));
    let mut chunks = Vec::new();
    let mut at = first;
    while at < last {
        // starts[at] is the last start at or below the beginning of chunk number chunks.len(). It
        // also is for every chunk that begins before the next start does.
        chunks.push(number(at));
        while at < last && begins(starts[at + 1].wrapping_sub(low), shift) <= chunks.len() {
            at += 1;
        }
    }
    chunks.push(number(last));
    (chunks, shift)
}

/// The first chunk that begins at or after `offset`.
fn begins<A: Key>(offset: A, shift: u32) -> usize {
    // offset is above zero here, so this is the ceiling of offset / 2^shift.
    let before = offset.wrapping_sub(A::ONE);
    before
        .shift_right(shift)
        .to_index()
        .map_or(usize::MAX, |chunk| chunk.saturating_add(1))
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

#[cfg(test)]
impl<A> Ranges<A> {
    /// The most starts that one chunk leaves to search.
    pub(super) fn longest_search(&self) -> u32 {
        self.chunks
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap_or(0)
    }
}
