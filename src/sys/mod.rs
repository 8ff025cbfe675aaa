//! The only unsafe code: what the operating system offers and no safe crate wraps.
#![allow(unsafe_code)]

pub mod ethtool;
pub mod inject;
pub mod mmsg;
pub mod perf;
pub mod sched;
pub mod socket;
pub mod tun;
pub mod udp;
pub mod wide;
