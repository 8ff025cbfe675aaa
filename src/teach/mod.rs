//! What a teacher shows: frames taken apart byte by byte, and what an encapsulation costs.
//!
//! - [`capture`]: frames out of pcap, pcapng and hex text, one at a time;
//! - [`dissect`]: a frame as layers and fields, each with its place, value, meaning and source;
//! - [`show`]: a dissection as text, as the RFCs draw headers, as JSON;
//! - [`overhead`], [`chart`]: header budgets, MTU, MSS and goodput of encapsulations, and their picture.
//! - [`trace`]: one packet's way through namespaces, hop by hop.
//!
//! None of it but `trace` needs root, a daemon or a network.

pub mod capture;
pub mod chart;
pub mod dissect;
pub mod overhead;
pub mod show;
pub mod trace;
