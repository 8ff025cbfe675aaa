//! overlayd: a userspace packet-switching overlay on TUN.
//!
//! The modules stand in the order in which a packet meets them.

pub mod config;
pub mod kernel;
pub mod lab;
pub mod lease;
pub mod sys;
