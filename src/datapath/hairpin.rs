//! What goes back to the device that it came from: ICMP errors about packets that no peer can get.
//!
//! ```text
//!   RFC 792, Destination Unreachable; RFC 4443, the same and Packet Too Big
//!    0                   1                   2                   3
//!    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//!   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//!   |     Type      |     Code      |           Checksum            |
//!   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//!   |   unused (v6 Too Big: MTU)    | v4 Too Big: next-hop MTU      |
//!   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//!   |        as much of the offending packet as is allowed          |
//! ```
//!
//! The errors come from our overlay address with TTL 64. Linux takes a packet from one of its own
//! addresses for a martian, unless `accept_local` is set on the device, which start-up does.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use encap::ip::{Fragment, Inner};
use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, Ipv4Header, Ipv6FlowLabel,
    Ipv6Header, icmpv4, icmpv6,
};

use super::Options;
use super::batch::{Outbox, Place};

/// RFC 1812 section 4.3.2.3: the whole error is at most 576 bytes.
const MAX_ERROR_V4: usize = 576;
/// RFC 4443 section 2.4 (c): the whole error is at most the minimum IPv6 MTU.
const MAX_ERROR_V6: usize = 1280;
const ICMP_HEADER: usize = 8;
const TTL: u8 = 64;
/// RFC 1812 section 4.3.2.5: errors travel with IP precedence 6, Internetwork Control.
const ERROR_TOS: u8 = 0xc0;

/// What the sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// Nobody has a lease for the destination: Network Unreachable; ICMPv6: no route.
    NetUnreachable,
    /// The destination is in our own subnet, but nobody here is it: Host Unreachable; ICMPv6:
    /// address unreachable.
    HostUnreachable,
    /// Fragmentation Needed (RFC 1191 section 4) or Packet Too Big.
    TooBig {
        /// Largest packet that fits, in bytes.
        mtu: u16,
    },
}

/// May an error be sent about this packet at all (RFC 1812 section 4.3.2.7, RFC 4443 section 2.4 (e))?
///
/// Never about an ICMP error, a fragment other than the first, a source that is not one host, or a
/// destination that is not one host, but that an IPv6 multicast may be told that it is too big.
pub fn may_complain(packet: &[u8], inner: &Inner, complaint: Complaint) -> bool {
    let source_is_one_host = match inner.src {
        IpAddr::V4(ip) => {
            !(ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() || ip.is_loopback())
        }
        IpAddr::V6(ip) => !(ip.is_unspecified() || ip.is_multicast() || ip.is_loopback()),
    };
    let destination_is_one_host = match inner.dst {
        IpAddr::V4(ip) => !(ip.is_multicast() || ip.is_broadcast()),
        IpAddr::V6(ip) => !ip.is_multicast() || matches!(complaint, Complaint::TooBig { .. }),
    };
    source_is_one_host
        && destination_is_one_host
        && inner.fragment != Fragment::Later
        && !inner.is_icmp_error(packet)
}

/// Writes the ICMP error about `packet` to `out`. `None` if we have no overlay address of its family
/// to send it from.
pub fn complain(
    packet: &[u8],
    inner: &Inner,
    complaint: Complaint,
    options: &Options,
    out: &mut Outbox,
) -> Option<Place> {
    let packet = packet.get(..inner.total_len)?;
    match inner.src {
        IpAddr::V4(to) => {
            let quote = &packet[..packet
                .len()
                .min(MAX_ERROR_V4 - Ipv4Header::MIN_LEN - ICMP_HEADER)];
            let code = match complaint {
                Complaint::NetUnreachable => icmpv4::DestUnreachableHeader::Network,
                Complaint::HostUnreachable => icmpv4::DestUnreachableHeader::Host,
                Complaint::TooBig { mtu } => {
                    icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu }
                }
            };
            let icmp = Icmpv4Header::with_checksum(Icmpv4Type::DestinationUnreachable(code), quote);
            let len = u16::try_from(ICMP_HEADER + quote.len()).ok()?;
            let from = options.overlay_v4?.octets();
            let mut ip = Ipv4Header::new(len, TTL, IpNumber::ICMP, from, to.octets()).ok()?;
            ip.dscp = etherparse::IpDscp::try_new(ERROR_TOS >> 2).ok()?;
            ip.header_checksum = ip.calc_header_checksum();
            out.make(|made| write_all(made, |w| ip.write(w), |w| icmp.write(w), quote))
        }
        IpAddr::V6(to) => {
            let quote = &packet[..packet
                .len()
                .min(MAX_ERROR_V6 - Ipv6Header::LEN - ICMP_HEADER)];
            let kind = match complaint {
                Complaint::NetUnreachable => {
                    Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::NoRoute)
                }
                Complaint::HostUnreachable => {
                    Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Address)
                }
                Complaint::TooBig { mtu } => Icmpv6Type::PacketTooBig {
                    mtu: u32::from(mtu),
                },
            };
            let ip = Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: u16::try_from(ICMP_HEADER + quote.len()).ok()?,
                next_header: IpNumber::IPV6_ICMP,
                hop_limit: TTL,
                source: options.overlay_v6?.octets(),
                destination: to.octets(),
            };
            let icmp = Icmpv6Header::with_checksum(kind, ip.source, ip.destination, quote).ok()?;
            out.make(|made| write_all(made, |w| ip.write(w), |w| icmp.write(w), quote))
        }
    }
}

/// Appends an IP header, an ICMP header and the quote; false, and nothing appended, if one failed.
fn write_all<A, B>(
    made: &mut Vec<u8>,
    ip: impl FnOnce(&mut Vec<u8>) -> Result<(), A>,
    icmp: impl FnOnce(&mut Vec<u8>) -> Result<(), B>,
    quote: &[u8],
) -> bool {
    let start = made.len();
    let written = ip(made).is_ok() && icmp(made).is_ok();
    if written {
        made.extend_from_slice(quote);
    } else {
        made.truncate(start);
    }
    written
}

/// How many errors may be sent at once after a quiet time, as `icmp_msgs_burst` in Linux.
const BURST: u32 = 50;

/// A token bucket for ICMP errors (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)), its tokens
/// counted as the time they took to gather.
#[derive(Debug, Default)]
pub struct Limiter {
    credit: Duration,
    last: Option<Instant>,
}

impl Limiter {
    /// May one error be sent now, at a rate of `rate` per second? A rate of 0 allows none.
    pub fn allow(&mut self, now: Instant, rate: u32) -> bool {
        if rate == 0 {
            return false;
        }
        let token = Duration::from_secs(1) / rate;
        let full = token * BURST.min(rate);
        let gathered = self
            .last
            .map_or(full, |last| now.saturating_duration_since(last));
        self.last = Some(now);
        self.credit = (self.credit + gathered).min(full);
        let allowed = self.credit >= token;
        if allowed {
            self.credit -= token;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limiter_lets_a_burst_pass_and_then_the_rate() {
        let mut limiter = Limiter::default();
        let start = Instant::now() + Duration::from_secs(10);
        let burst = (0..100).filter(|_| limiter.allow(start, 1000)).count();
        assert_eq!(burst, 50);
        let second = (1..=1000u64)
            .filter(|ms| limiter.allow(start + Duration::from_millis(*ms), 1000))
            .count();
        assert_eq!(second, 1000);
        assert!(!limiter.allow(start + Duration::from_secs(2), 0));
    }

    #[test]
    fn a_low_rate_has_a_burst_no_larger_than_a_second() {
        let mut limiter = Limiter::default();
        let start = Instant::now() + Duration::from_secs(10);
        assert_eq!((0..100).filter(|_| limiter.allow(start, 2)).count(), 2);
    }
}
