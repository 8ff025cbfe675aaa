//! Why bytes were refused.

use std::fmt;

/// Why bytes were refused: one variant per rule, so that each can be a counter of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reject {
    /// The bytes end before the header does, or before the length that the header states.
    Truncated,
    /// The IP version nibble is neither 4 nor 6, or is not the one the EtherType promised.
    BadVersion,
    /// The header contradicts itself: lengths that disagree, an IHL below 5, too many extension headers.
    BadHeader,
    /// The inner IPv4 header checksum is wrong.
    BadChecksum,
    /// VXLAN: the I flag is not set, so there is no VNI (RFC 7348 section 5).
    VxlanFlag,
    /// VXLAN, strict mode only: a reserved bit is set.
    ReservedBits,
    /// VXLAN: another network's VNI.
    WrongVni,
    /// The inner frame carries a VLAN tag (RFC 7348 section 6.1: drop unless configured).
    VlanTag,
    /// The inner frame is for another station's MAC address.
    WrongMac,
    /// The inner frame is for a multicast group.
    Multicast,
    /// The inner frame is for everybody.
    Broadcast,
    /// The inner frame claims to come from our own MAC address.
    OwnMac,
    /// The inner frame is ARP.
    Arp,
    /// The inner frame is neither IPv4 nor IPv6.
    EtherType,
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "shorter than its header says",
            Self::BadVersion => "the IP version is not the expected one",
            Self::BadHeader => "the header contradicts itself",
            Self::BadChecksum => "the IPv4 header checksum is wrong",
            Self::VxlanFlag => "the VXLAN I flag is not set",
            Self::ReservedBits => "a reserved VXLAN bit is set",
            Self::WrongVni => "the VNI is not ours",
            Self::VlanTag => "the inner frame carries a VLAN tag",
            Self::WrongMac => "the inner destination MAC is not ours",
            Self::Multicast => "the inner frame is multicast",
            Self::Broadcast => "the inner frame is broadcast",
            Self::OwnMac => "the inner source MAC is our own",
            Self::Arp => "the inner frame is ARP",
            Self::EtherType => "the inner frame is not IP",
        })
    }
}

impl std::error::Error for Reject {}
