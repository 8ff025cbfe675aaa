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
#![forbid(unsafe_code)]

mod fib;
mod rib;
mod snapshot;
mod tables;

pub use fib::{Fib, Fib4, Fib6, Key, Kind};
pub use rib::{AcceptedRoute, Claim, Endpoint, Network, Refusal, Rib, Source, StaticRoute};
pub use snapshot::{Reader, Snapshot};
pub use tables::{NextHop, Peer, PeerId, Route, Tables, TablesBuilder};
