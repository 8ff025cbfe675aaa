//! What the daemon says about itself: its status, and the control socket that it is asked over.

pub mod client;
pub mod routes;
pub mod server;
pub mod status;
