//! overlayd: a userspace packet-switching overlay on TUN.

pub mod datapath;
pub mod sys;
pub mod tap;
pub mod underlay;
