//! The lab: a multi-node overlay on this machine, in network namespaces.
//!
//! ```text
//!  namespace lab-underlay:   bridge underlay0 ──┬── node1          ──┬── node2  ...
//!                                               │ veth               │ veth
//!  namespace lab-node1:      eth0 ──────────────┘                    │
//!                            overlay0  (overlayd)                    │
//!                            cni0 ──┬── veth-pod1   ──┬── veth-pod2  │
//!                                   │ veth            │ veth         │
//!  a holder's namespace:     eth0 ──┘                 └── eth0       │
//!                            (pod1)                       (pod2)     │
//!  namespace lab-node2:      eth0 ───────────────────────────────────┘
//! ```
//!
//! With two segments (`--underlay l3`) there is a second bridge, `underlay1`, for node3 and those after it, and a namespace
//! `lab-router` with a cable to each bridge. With leases in etcd (`--store etcd`) that runs in a namespace `lab-etcd`, on the
//! first bridge.
//!
//! - [`topology`]: what a lab consists of, how it is built and taken down
//! - [`holder`]: the process that holds a pod's namespace, and how a lab's processes are known
//! - [`container`]: what runs in a pod beside it
//! - [`state`]: what stands on disk, written before anything is made
//! - [`graph`]: a topology as a picture, with ways of packets through it
//! - [`scenario`]: labs with something wrong in them, and their grades
//! - [`traffic`]: probes and generators that work in any namespace
//! - [`bench`]: what `overlayd bench` measures, in namespaces of its own
//! - [`demo`]: the story that `overlayd lab demo` tells

pub mod bench;
pub mod container;
pub mod demo;
pub mod graph;
pub mod holder;
pub mod scenario;
pub mod state;
pub mod topology;
pub mod traffic;
