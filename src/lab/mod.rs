//! The lab: a multi-node overlay in network namespaces of this machine, and the traffic to try it with.

pub mod traffic;
