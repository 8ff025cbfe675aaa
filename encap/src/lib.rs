//! Wire formats, checksums, segmentation and encapsulation of overlayd's packet path.
//!
//! The files follow the packet from the outside in:
//!
//! ```text
//!  datagram     [ encapsulation: raw | vxlan + ethernet ] [ inner IP packet ]
//!                 encapsulation.rs, raw.rs, vxlan.rs,       ip.rs (ipv4.rs, ipv6.rs, icmp.rs,
//!                 ethernet.rs                               tcp.rs, udp.rs), ecn.rs, flow.rs
//!  then         checksum.rs    sums, and changes to them
//!               transport.rs   the state of a transport checksum, an unfinished one finished
//!               split.rs       superpackets cut to size
//!               fragment.rs    IPv4 packets cut to size
//! ```
//!
//! Nothing here does I/O. Parsing allocates nothing; what is cut is appended to a buffer that the caller
//! keeps, so that it grows once. Bytes from the network never panic: they are refused with a [`Reject`].
//! Every multi-byte field is in network byte order on the wire and in host order in our structs.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod coalesce;
pub mod ecn;
pub mod encapsulation;
pub mod ethernet;
pub mod flow;
pub mod fragment;
pub mod icmp;
pub mod ip;
pub mod ipv4;
pub mod ipv6;
pub mod raw;
pub mod reject;
pub mod split;
pub mod sums;
pub mod tcp;
#[cfg(test)]
mod testing;
pub mod transport;
pub mod udp;
pub mod vnet;
pub mod vxlan;

pub use ecn::Ecn;
pub use encapsulation::{Encapsulation, Header, HeaderNotes, MAX_HEADER};
pub use ethernet::MacAddr;
pub use fragment::Fragments;
pub use ip::{Family, Fragment, Inner};
pub use raw::RawUdp;
pub use reject::Reject;
pub use split::Split;
pub use sums::Sums;
pub use transport::L4Checksum;
pub use vnet::VnetHeader;
pub use vxlan::{OwnMacs, Vxlan};
