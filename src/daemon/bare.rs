//! The backends that leave packets to the kernel: nothing stands in front of a packet, because none is carried here.
//! As encapsulations they only have a name and no overhead, so that leases, tables and status need not know of it.

use encap::{Encapsulation, Family, Header, HeaderNotes, MacAddr, Reject};

/// Routes through the nodes.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostGw;

/// The lease is all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alloc;

macro_rules! bare {
    ($backend:ty, $name:literal) => {
        impl Encapsulation for $backend {
            const NAME: &'static str = $name;
            const HEADER_LEN: usize = 0;

            fn overhead(_: Family) -> u16 {
                0
            }

            fn header(&self, _: Family, _: MacAddr) -> Header {
                Header::EMPTY
            }

            fn check_header(&self, _: &[u8]) -> Result<HeaderNotes, Reject> {
                Err(Reject::Truncated)
            }

            fn check_link(&self, _: &[u8]) -> Result<Family, Reject> {
                Err(Reject::Truncated)
            }
        }
    };
}

bare!(HostGw, "host-gw");
bare!(Alloc, "alloc");
