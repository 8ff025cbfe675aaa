//! What a teacher shows: what an encapsulation costs.
//!
//! - [`overhead`], [`chart`]: header budgets, MTU, MSS and goodput of encapsulations, and their picture.
//!
//! None of it needs root, a daemon or a network.

pub mod chart;
pub mod overhead;
