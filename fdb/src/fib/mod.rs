//! The forwarding table: longest prefix match from an address to a small number.
//!
//! Two forms, chosen at build time by what the prefixes look like: [`direct`] and [`ranges`].

mod direct;
mod ranges;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use self::direct::Direct;
use self::ranges::Ranges;

/// The value that stands for "no prefix holds this address" inside the tables.
const NONE: u32 = u32::MAX;

/// An address as a number, in native byte order: `u32` for IPv4, `u128` for IPv6 (`to_bits()` of
/// the `std::net` types).
///
/// Sealed: these two are all there are.
pub trait Key: sealed::Arithmetic {
    /// The prefix type of the family.
    type Net;
    /// First address, last address and prefix length of `net`; host bits are ignored.
    fn span(net: &Self::Net) -> (Self, Self, u8);
}

mod sealed {
    /// What the tables need to compute with an address.
    pub trait Arithmetic: Copy + Ord + std::fmt::Debug + Send + Sync + 'static {
        const BITS: u32;
        const ZERO: Self;
        const ONE: Self;
        fn wrapping_sub(self, other: Self) -> Self;
        /// `self >> by`, with `by` below [`Self::BITS`].
        fn shift_right(self, by: u32) -> Self;
        fn successor(self) -> Option<Self>;
        fn significant_bits(self) -> u32;
        fn to_index(self) -> Option<usize>;
    }
}

macro_rules! key {
    ($bits:ty, $net:ty, $addr:ty) => {
        impl sealed::Arithmetic for $bits {
            const BITS: u32 = <$bits>::BITS;
            const ZERO: Self = 0;
            const ONE: Self = 1;
            #[inline]
            fn wrapping_sub(self, other: Self) -> Self {
                <$bits>::wrapping_sub(self, other)
            }
            #[inline]
            fn shift_right(self, by: u32) -> Self {
                self >> by
            }
            #[inline]
            fn successor(self) -> Option<Self> {
                self.checked_add(1)
            }
            #[inline]
            fn significant_bits(self) -> u32 {
                <$bits>::BITS - self.leading_zeros()
            }
            #[inline]
            fn to_index(self) -> Option<usize> {
                usize::try_from(self).ok()
            }
        }

        impl Key for $bits {
            type Net = $net;
            fn span(net: &$net) -> ($bits, $bits, u8) {
                (
                    <$addr>::to_bits(net.network()),
                    <$addr>::to_bits(net.broadcast()),
                    net.prefix_len(),
                )
            }
        }
    };
}

key!(u32, Ipv4Net, Ipv4Addr);
key!(u128, Ipv6Net, Ipv6Addr);

/// One prefix on its way into a table.
#[derive(Clone, Copy, Debug)]
struct Entry<A> {
    first: A,
    last: A,
    len: u8,
    value: u32,
}

/// Longest prefix match over one address family. Immutable once built.
#[derive(Debug)]
pub struct Fib<A: Key> {
    form: Form<A>,
}

/// The IPv4 table; look up `addr.to_bits()`.
pub type Fib4 = Fib<u32>;
/// The IPv6 table; look up `addr.to_bits()`.
pub type Fib6 = Fib<u128>;

#[derive(Debug)]
enum Form<A: Key> {
    Direct(Direct<A>),
    Ranges(Ranges<A>),
}

/// Which form a table took, and how large it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An array with one slot per possible prefix of the one length there is.
    Direct {
        /// The length of every prefix.
        prefix_len: u8,
        /// Slots in the array, empty ones too.
        slots: usize,
    },
    /// Sorted ranges of addresses, found through an index of equal chunks.
    Ranges {
        /// Ranges, those that no prefix holds too.
        ranges: usize,
        /// Chunks of the index.
        chunks: usize,
    },
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Direct { prefix_len, slots } => {
                write!(f, "direct, {slots} slots of /{prefix_len}")
            }
            Kind::Ranges { ranges, chunks } => write!(f, "{ranges} ranges in {chunks} chunks"),
        }
    }
}

impl<A: Key> Fib<A> {
    /// Builds a table in O(n log n). Of two equal prefixes the first given wins, so the order of
    /// leases decides here as it does everywhere. Host bits are ignored. The value `u32::MAX` means
    /// "no route": it hides shorter prefixes.
    pub fn build(prefixes: impl IntoIterator<Item = (A::Net, u32)>) -> Self {
        let mut entries: Vec<Entry<A>> = prefixes
            .into_iter()
            .map(|(net, value)| {
                let (first, last, len) = A::span(&net);
                Entry {
                    first,
                    last,
                    len,
                    value,
                }
            })
            .collect();
        // Stable, so that of equals the first given stays first and is the one kept.
        entries.sort_by_key(|entry| (entry.first, entry.len));
        entries.dedup_by_key(|entry| (entry.first, entry.len));
        let form = match Direct::build(&entries) {
            Some(direct) => Form::Direct(direct),
            None => Form::Ranges(Ranges::build(&entries)),
        };
        Self { form }
    }

    /// The value of the longest prefix that holds `key`.
    #[inline]
    pub fn lookup(&self, key: A) -> Option<u32> {
        let value = match &self.form {
            Form::Direct(direct) => direct.lookup(key),
            Form::Ranges(ranges) => ranges.lookup(key),
        };
        if value == NONE { None } else { Some(value) }
    }

    /// The form this table took.
    pub fn kind(&self) -> Kind {
        match &self.form {
            Form::Direct(direct) => direct.kind(),
            Form::Ranges(ranges) => ranges.kind(),
        }
    }

    /// Bytes on the heap.
    pub fn memory(&self) -> usize {
        match &self.form {
            Form::Direct(direct) => direct.memory(),
            Form::Ranges(ranges) => ranges.memory(),
        }
    }
}

impl<A: Key> Default for Fib<A> {
    /// A table that holds nothing.
    fn default() -> Self {
        Self::build([])
    }
}
