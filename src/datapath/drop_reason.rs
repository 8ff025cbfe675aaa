//! Why a packet was dropped: one reason, one counter, one line of advice each.

use encap::Reject;

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal, $advice:literal;)+) => {
        /// The one place where a packet that is not forwarded ends.
        ///
        /// The first line of each reason's text is what happened; [`DropReason::advice`] says what a
        /// person can do about it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropReason {
            /// Every reason, in the order of the checks.
            pub const ALL: &[DropReason] = &[$(DropReason::$variant,)+];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name under which status, logs and metrics report it.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)+ }
            }

            /// What it means, in one sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(DropReason::$variant => concat!($($doc,)+).trim(),)+ }
            }

            /// What to do about it, in one sentence.
            pub const fn advice(self) -> &'static str {
                match self { $(DropReason::$variant => $advice,)+ }
            }
        }
    };
}

drop_reasons! {
    /// The datagram is too short for its encapsulation.
    Truncated => "truncated",
        "something else sends to this port, or the underlay cuts datagrams: capture on the underlay interface";
    /// The VXLAN header does not have its I flag set (RFC 7348 section 5).
    VxlanFlag => "vxlan-flag",
        "the sender is no VXLAN endpoint: check which host it is and what it runs on this port";
    /// The VXLAN header has reserved bits set, and `strict` is on.
    ReservedBits => "reserved-bits",
        "the sender uses a VXLAN extension (GBP, GPE): turn it off there, or set backend.strict = false";
    /// The VXLAN network identifier is not ours.
    WrongVni => "wrong-vni",
        "compare backend.vni here with the sender's: all nodes of an overlay share one";
    /// The outer source is the public IP of no lease.
    UnknownPeer => "unknown-peer",
        "add the sender's lease, or find out who spoofs: a NAT on the underlay changes sources as well";
    /// The inner frame carries a VLAN tag, which TUN mode does not take (RFC 7348 section 6.1).
    VlanTag => "vlan-tag", "the peer bridges tagged frames into its VXLAN device: untag them there";
    /// The inner destination MAC is not ours.
    WrongMac => "wrong-mac",
        "the peer has a stale VTEP MAC for this node: compare its neighbour entry with `overlayd status`";
    /// The inner destination MAC is a multicast address, which TUN mode does not take.
    MulticastMac => "multicast-mac",
        "the peer floods multicast: harmless, but its VXLAN device should have no default FDB entry";
    /// The inner destination MAC is broadcast, which TUN mode does not take.
    BroadcastMac => "broadcast-mac",
        "the peer floods broadcasts: harmless, but its VXLAN device should have no default FDB entry";
    /// The inner source MAC is our own.
    OwnMac => "own-mac", "a frame came back: look for a loop on the underlay or a copied VTEP MAC";
    /// The inner frame is ARP, which TUN mode does not take: leases decide, not ARP.
    Arp => "arp", "the peer resolves neighbours over the overlay: give it permanent neighbour entries";
    /// The inner EtherType is neither IPv4 nor IPv6.
    EtherType => "ethertype", "the peer bridges something that is not IP into its VXLAN device";
    /// The inner packet is not a well-formed IPv4 or IPv6 packet.
    Malformed => "malformed", "capture it: a broken sender, or something else that sends to this port";
    /// The inner source lies outside the sending peer's lease.
    InnerSource => "inner-source",
        "the peer forwards packets of other networks, or spoofs; if it is the peer's own public IP, see datapath.accept-node-source";
    /// The packet is our own encapsulation once more: UDP to our port on a node's public IP (RFC 2003 section 3.2).
    Looped => "looped",
        "the route to a node's public IP leads into the overlay: check the routing table for a route that covers the underlay";
    /// The inner destination is not ours to deliver.
    InnerDestination => "inner-destination",
        "the peer has a stale lease table, or a node uses us as a relay, which the overlay never does";
    /// Congestion was signalled on the underlay for a packet that cannot carry the signal (RFC 6040 figure 4).
    EcnNotCapable => "ecn-not-capable",
        "the underlay marks packets that do not support ECN: check the router's queue configuration";
    /// A superpacket's TCP or UDP checksum is wrong, so it cannot be split.
    BadChecksum => "bad-checksum", "bytes were damaged on the way: look at the underlay and its offloads";
    /// The device would not take the packet.
    DeviceRefused => "device-refused", "the overlay device is down or out of memory: see `ip -s link`";
    /// A multicast, broadcast or link-local destination: in TUN mode there is nobody to send it to.
    NotUnicast => "not-unicast", "harmless: the kernel probes its neighbourhood on every new device";
    /// No lease covers the destination; the sender was told Network Unreachable.
    NoLease => "no-lease", "look for a lease that covers the address: is the node up, is its lease refused?";
    /// The destination lies in our own subnet but no local route took it; the sender was told Host Unreachable.
    OwnSubnet => "own-subnet",
        "give the subnet to a bridge on this node (a route more specific than the overlay's)";
    /// The packet is larger than the path's MTU and may not be fragmented; the sender was told the right MTU.
    TooBig => "too-big",
        "the sender should follow; if it does not, something filters ICMP between it and this node";
    /// The peer and this node share no underlay family for it, or the socket for it is missing.
    NoUnderlay => "no-underlay", "give both nodes a public IP of one family";
    /// The underlay's interface cannot take a datagram of that size.
    UnderlayMtu => "underlay-mtu", "the underlay MTU is smaller than it was at start: set device.mtu and restart";
    /// The socket's send buffer or the interface's queue was full.
    SendQueueFull => "send-queue-full", "the underlay is slower than the overlay's senders: expected under overload";
    /// The kernel refused to send the datagram.
    SendFailed => "send-failed",
        "no route to the peer's public IP, or a filter in OUTPUT: try `ip route get` for it";
}

impl From<Reject> for DropReason {
    fn from(reject: Reject) -> Self {
        match reject {
            Reject::Truncated => DropReason::Truncated,
            Reject::VxlanFlag => DropReason::VxlanFlag,
            Reject::ReservedBits => DropReason::ReservedBits,
            Reject::WrongVni => DropReason::WrongVni,
            Reject::VlanTag => DropReason::VlanTag,
            Reject::WrongMac => DropReason::WrongMac,
            Reject::Multicast => DropReason::MulticastMac,
            Reject::Broadcast => DropReason::BroadcastMac,
            Reject::OwnMac => DropReason::OwnMac,
            Reject::Arp => DropReason::Arp,
            Reject::EtherType => DropReason::EtherType,
            Reject::BadVersion | Reject::BadHeader | Reject::BadChecksum => DropReason::Malformed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_has_a_name_of_its_own_a_meaning_and_an_advice() {
        let names: HashSet<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), DropReason::COUNT);
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(reason.meaning().ends_with('.'), "{reason:?}");
            assert!(!reason.advice().is_empty());
        }
    }
}
