//! overlayd's tables: who owns which addresses, and where a packet goes.
//!
//! ```text
//!  leases, static routes             (control plane, any order of events)
//!        │
//!        ▼
//!   [Rib]      judges every claim: one winner per address, every loser told why
//!        │ accepted
//!        ▼
//!   [Tables]   longest prefix -> ready NextHop; public IP -> peer; built once, then never changed
//!        │ publish
//!        ▼
//!   [Snapshot] forwarding threads load it once per batch, without a lock
//! ```
//!
//! No I/O, no clock, no unsafe. Addresses are `std::net` types or their value as a native integer
//! (`Ipv4Addr::to_bits`), never bytes in wire order.
//!
//! # Why not a trie
//!
//! A trie (or a compressed one: LC-trie, Poptrie, Linux' `fib_trie`) earns its keep when single
//! routes come and go in a table of hundreds of thousands. Neither holds here: a cluster has some
//! thousands of leases, and they change a few times a minute at most. So the table is rebuilt whole
//! from the accepted claims, which takes milliseconds and leaves nothing half-updated for a reader
//! to see, and a flat array wins: a trie walk is a chain of dependent loads, one cache miss after
//! another, while leases of one length need one load from an array ([`Kind::Direct`]), and mixed
//! lengths a load and a search of a few neighbouring words ([`Kind::Ranges`]).
//!
//! # What it costs
//!
//! 10,000 dual-stack leases, random destinations, on one core of a shared two-core AMD EPYC machine
//! (`cargo bench --bench fdb`). "Batch" lookups are independent and overlap, as those of a batch of
//! packets do; "alone" each waits for the one before, the longest a lookup can take.
//!
//! | longest prefix match | batch | alone |
//! |---|---|---|
//! | direct, IPv4 | 0.8 ns | 6 ns |
//! | direct, IPv6 | 1.8 ns | 10 ns |
//! | ranges, IPv4 | 4 ns | 12 ns |
//! | ranges, IPv6 | 6 ns | 17 ns |
//!
//! [`Tables::route`] adds the read of the next hop, one line of a megabyte: 3 to 15 ns a packet in a
//! batch. [`Reader::load`] takes 1 ns. All tables together are 2.8 MB (direct) or 3.4 MB (ranges).
//! Judging the leases takes 11 ms, building the tables 3 to 5 ms, swapping them 0.1 ms, which is
//! the freeing of the old ones. While tables are republished without pause, the median batch of 64
//! takes a reader the same 0.15 µs as at rest.
#![forbid(unsafe_code)]

mod fib;
mod rib;
mod snapshot;
mod tables;

pub use fib::{Fib, Fib4, Fib6, Key, Kind};
pub use rib::{AcceptedRoute, Claim, Endpoint, Network, Refusal, Rib, Source, StaticRoute};
pub use snapshot::{Reader, Snapshot};
pub use tables::{NextHop, Peer, PeerId, Route, Tables, TablesBuilder};
