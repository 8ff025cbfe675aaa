//! End-to-end tests of overlayd: the test beds they share.
//!
//! - [`bed`]: nodes, pods and an underlay made of network namespaces, and daemons that run in them
//! - [`probe`]: traffic between two namespaces that must arrive whole
//! - [`etcd`]: the lease store that flannel nodes share
//! - [`flannel`]: a node whose kernel is the VXLAN peer, as flannel makes it
//! - [`iproute`]: what others do to a node's addresses and routes
//! - [`offloads`]: what the underlay's devices leave to others
//! - [`wire`]: what passes on the underlay
//! - [`pcap`], [`tshark`]: recorded traffic, and an independent reading of it
//! - [`fuzz`]: what the decoders promise whatever the bytes
//!
//! Everything panics with a message where it fails: these are tests.

pub mod bed;
mod config;
mod daemon;
pub mod etcd;
pub mod flannel;
pub mod fuzz;
pub mod iproute;
mod leftovers;
mod node;
pub mod offloads;
pub mod pcap;
pub mod probe;
pub mod tshark;
pub mod wire;
