//! Tunnel-GSO injection on real devices: what arrives, what does not pass, what is left, and what it knows about the
//! underlay. Needs root and Linux 6.17.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in test functions; their helpers are meant too

mod bed;
mod carry;
mod daemon;
mod paths;
mod safety;
