//! What the daemon says about itself: its status, the control socket that it is asked over, and metrics over HTTP.

pub mod client;
pub mod http;
pub mod metrics;
pub mod routes;
pub mod server;
pub mod status;
