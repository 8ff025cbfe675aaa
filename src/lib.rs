//! overlayd: a userspace packet-switching overlay on TUN.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod datapath;
pub mod kernel;
pub mod lease;
pub mod observe;
pub mod sys;
pub mod tap;
pub mod underlay;
