//! overlayd: a userspace packet-switching overlay on TUN.
//!
//! The modules stand in the order in which a packet meets them. Out, from a pod to a pod on another node:
//!
//! ```text
//!  pod eth0 ─▶ veth ─▶ cni0 ─▶ kernel: route 10.244.0.0/16 dev overlay0
//!                                   │
//!   [tap]        1  the TUN device: a read is one packet, or one superpacket of many segments
//!   [datapath]   2  outbound: which node holds the destination? does the packet fit?
//!                   [fdb::Tables] destination ─▶ NextHop      no lease, too big ─▶ hairpin: ICMP ─▶ tap
//!   [underlay]   3  UDP to the peer's public IP, the NextHop's finished header in front, in trains
//!   [inject]     3  or, where the underlay device can cut them: superpackets whole
//!                                   │
//!              kernel: UDP ─▶ eth0 ─▶ the underlay
//! ```
//!
//! And in:
//!
//! ```text
//!              the underlay ─▶ eth0 ─▶ kernel: UDP port 8472 or 8285
//!                                   │
//!   [underlay]   3  a receive takes datagrams, with their outer source and ToS
//!   [datapath]   2  inbound: the receive checks; step over the header; ECN; join what continues
//!                   [fdb::Tables] outer source ─▶ peer, inner source ─▶ the same peer?
//!   [tap]        1  a write, and the packets enter the kernel as if they came over a wire
//!                                   │
//!              kernel: route 10.244.1.0/24 dev cni0 ─▶ veth ─▶ pod eth0
//! ```
//!
//! Around the path stand the control plane, which runs on tokio, and what serves people:
//!
//! - [`config`], [`lease`], [`kernel`]: what shall be, who holds which subnet, and the host's links, addresses
//!   and routes; [`daemon`] puts it all together;
//! - [`inject`]: a second way from the outbound stage to the underlay, for superpackets that the NIC can cut;
//! - [`observe`]: status and the control socket; [`cli`]: the commands; [`lab`]: a whole overlay on one machine,
//!   and traffic to try it with; [`teach`]: frames taken apart, overheads counted; [`sys`]: the only unsafe code.

pub mod tap;

pub mod datapath;

pub mod underlay;

pub mod cli;
pub mod config;
pub mod daemon;
pub mod inject;
pub mod kernel;
pub mod lab;
pub mod lease;
pub mod observe;
pub mod sys;
pub mod teach;
