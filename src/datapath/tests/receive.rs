//! What is delivered and what is not: the receive checks, in their order, and ECN.

use std::net::IpAddr;

use encap::{Family, MacAddr, RawUdp, Sums, Vxlan, ethernet, ipv4};

use crate::datapath::DropReason;
use crate::datapath::inbound::{Inbound, Takes};
use crate::datapath::testbed::{
    Backend, Bed, FAMILIES, PEER, Packet, THIRD, US, mac, overlay, pattern, pod, public, stranger,
    verified,
};

/// A datagram to us, field by field, right in every one until a test says otherwise.
#[derive(Clone)]
struct Wire {
    source: IpAddr,
    outer_tos: u8,
    flags: u8,
    reserved: u8,
    vni: u8,
    dst_mac: MacAddr,
    src_mac: MacAddr,
    ethertype: u16,
    vlan: bool,
    packet: Packet,
    version: Option<u8>,
    port: u16,
    cut: usize,
}

impl Wire {
    fn from_peer(family: Family) -> Self {
        Wire {
            source: public(PEER, family),
            outer_tos: 0,
            flags: 0x08,
            reserved: 0,
            vni: 1,
            dst_mac: mac(US),
            src_mac: mac(PEER),
            ethertype: family.ethertype(),
            vlan: false,
            packet: Packet::between(PEER, US, family),
            version: None,
            port: 53,
            cut: usize::MAX,
        }
    }

    fn bytes<E: Backend>(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if E::HEADER_LEN > 0 {
            bytes.extend([self.flags, 0, 0, 0, 0, 0, self.vni, self.reserved]);
            bytes.extend(self.dst_mac.0);
            bytes.extend(self.src_mac.0);
            if self.vlan {
                bytes.extend([0x81, 0x00, 0x00, 0x05]);
            }
            bytes.extend(self.ethertype.to_be_bytes());
        }
        let start = bytes.len();
        bytes.extend(self.packet.udp(self.port, b"payload"));
        if let Some(version) = self.version {
            bytes[start] = version << 4 | bytes[start] & 0x0f;
        }
        bytes.truncate(self.cut);
        bytes
    }
}

/// One way to break a datagram.
struct Rule {
    reason: DropReason,
    /// Two rules that write the same field cannot be broken together.
    field: &'static str,
    vxlan_only: bool,
    violate: fn(&mut Wire),
}

const fn rule(reason: DropReason, field: &'static str, violate: fn(&mut Wire)) -> Rule {
    Rule {
        reason,
        field,
        vxlan_only: false,
        violate,
    }
}

const fn vxlan(reason: DropReason, field: &'static str, violate: fn(&mut Wire)) -> Rule {
    Rule {
        vxlan_only: true,
        ..rule(reason, field, violate)
    }
}

fn family(wire: &Wire) -> Family {
    Family::of(&wire.packet.src)
}

/// DESIGN.md 4.4, from the first check to the last.
const RULES: &[Rule] = &[
    rule(DropReason::Truncated, "length", |w| w.cut = 7),
    vxlan(DropReason::VxlanFlag, "flags", |w| w.flags = 0),
    vxlan(DropReason::VxlanFlag, "flags", |w| w.flags = 0xf7),
    vxlan(DropReason::ReservedBits, "reserved", |w| w.reserved = 0x80),
    vxlan(DropReason::WrongVni, "vni", |w| w.vni = 2),
    rule(DropReason::UnknownPeer, "source", |w| {
        w.source = stranger(family(w));
    }),
    // Our own public IP is the public IP of no peer.
    rule(DropReason::UnknownPeer, "source", |w| {
        w.source = public(US, family(w));
    }),
    vxlan(DropReason::BroadcastMac, "dst mac", |w| {
        w.dst_mac = MacAddr::BROADCAST;
    }),
    vxlan(DropReason::MulticastMac, "dst mac", |w| {
        w.dst_mac = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
    }),
    vxlan(DropReason::WrongMac, "dst mac", |w| w.dst_mac = mac(THIRD)),
    vxlan(DropReason::OwnMac, "src mac", |w| w.src_mac = mac(US)),
    vxlan(DropReason::VlanTag, "ethertype", |w| w.vlan = true),
    vxlan(DropReason::VlanTag, "ethertype", |w| {
        w.ethertype = ethernet::VLAN_SERVICE;
    }),
    vxlan(DropReason::Arp, "ethertype", |w| {
        w.ethertype = ethernet::ARP
    }),
    vxlan(DropReason::EtherType, "ethertype", |w| w.ethertype = 0x88cc),
    rule(DropReason::Malformed, "version", |w| w.version = Some(5)),
    rule(DropReason::InnerSource, "inner source", |w| {
        w.packet.src = pod(THIRD, family(w));
    }),
    rule(DropReason::InnerSource, "inner source", |w| {
        w.packet.src = pod(US, family(w));
    }),
    rule(DropReason::InnerSource, "inner source", |w| {
        w.packet.src = overlay(US, family(w));
    }),
    rule(DropReason::InnerSource, "inner source", |w| {
        w.packet.src = stranger(family(w));
    }),
    // Only accept_node_source lets it pass.
    rule(DropReason::InnerSource, "inner source", |w| {
        w.packet.src = public(PEER, family(w));
    }),
    rule(DropReason::Looped, "inner destination", |w| {
        w.packet.dst = public(THIRD, family(w));
        w.port = 0;
    }),
    rule(DropReason::Looped, "inner destination", |w| {
        w.packet.dst = public(US, family(w));
        w.port = 0;
    }),
    rule(DropReason::InnerDestination, "inner destination", |w| {
        w.packet.dst = pod(THIRD, family(w));
    }),
    rule(DropReason::InnerDestination, "inner destination", |w| {
        w.packet.dst = pod(PEER, family(w));
    }),
    rule(DropReason::InnerDestination, "inner destination", |w| {
        w.packet.dst = stranger(family(w));
    }),
    // To a node's public IP, but not to our port: no loop, and still not ours.
    rule(DropReason::InnerDestination, "inner destination", |w| {
        w.packet.dst = public(US, family(w));
    }),
    rule(DropReason::EcnNotCapable, "outer tos", |w| w.outer_tos = 3),
];

fn strict<E: Backend>(encapsulation: E) -> Bed<E> {
    let mut bed = Bed::<E>::new();
    bed.inbound = Inbound::new(encapsulation, E::PORT, Takes::Finished, Sums::PORTABLE);
    bed
}

fn strict_vxlan() -> Bed<Vxlan> {
    strict(Vxlan {
        strict: true,
        ..Vxlan::of(US)
    })
}

/// Breaks `rules` together and asserts that `expected` alone counts it.
fn assert_dropped<E: Backend>(
    bed: &mut Bed<E>,
    family: Family,
    rules: &[&Rule],
    expected: DropReason,
) {
    let mut wire = Wire::from_peer(family);
    for rule in rules {
        (rule.violate)(&mut wire);
    }
    if wire.port == 0 {
        wire.port = E::PORT;
    }
    let fields: Vec<_> = rules.iter().map(|r| (r.reason, r.field)).collect();
    let received = bed.receive(wire.source, wire.outer_tos, &wire.bytes::<E>());
    assert!(received.delivered.is_empty(), "{fields:?} was delivered");
    let counted: Vec<_> = DropReason::ALL
        .iter()
        .filter(|reason| received.counts.dropped(**reason) > 0)
        .collect();
    assert_eq!(counted, [&expected], "{} {family:?} {fields:?}", E::NAME);
    assert_eq!(received.counts.dropped_total(), 1);
    assert_eq!(received.counts.queued(), 0);
}

fn matrix<E: Backend>(mut bed: Bed<E>) {
    let rules: Vec<&Rule> = RULES
        .iter()
        .filter(|rule| !rule.vxlan_only || E::HEADER_LEN > 0)
        .collect();
    for family in FAMILIES {
        for (index, first) in rules.iter().enumerate() {
            assert_dropped(&mut bed, family, &[first], first.reason);
            for second in &rules[index + 1..] {
                let both = (first.reason, second.reason);
                // An ARP request is broadcast by nature and has a reason of its own.
                if first.field == second.field
                    || both == (DropReason::BroadcastMac, DropReason::Arp)
                {
                    continue;
                }
                assert_dropped(&mut bed, family, &[first, second], first.reason);
            }
        }
    }
}

#[test]
fn each_broken_rule_has_its_counter_and_of_two_the_earlier_counts() {
    matrix(strict(RawUdp));
    matrix(strict_vxlan());
}

#[test]
fn an_arp_request_to_everybody_counts_as_arp() {
    let mut wire = Wire::from_peer(Family::V4);
    (wire.dst_mac, wire.ethertype) = (MacAddr::BROADCAST, ethernet::ARP);
    let received = Bed::<Vxlan>::new().receive(wire.source, 0, &wire.bytes::<Vxlan>());
    assert_eq!(received.counts.dropped(DropReason::Arp), 1);
    assert!(received.delivered.is_empty());
}

#[test]
fn what_breaks_no_rule_is_delivered_byte_by_byte() {
    fn check<E: Backend>() {
        for family in FAMILIES {
            let mut wire = Wire::from_peer(family);
            // A link, not a hop: a TTL of 1 or 0 passes, and so does any ToS.
            for (ttl, tos) in [(64, 0), (1, 0xb8), (0, 0x2e)] {
                (wire.packet.ttl, wire.packet.tos) = (ttl, tos);
                let packet = wire.packet.udp(wire.port, b"payload");
                let received = Bed::<E>::new().receive(wire.source, 0, &wire.bytes::<E>());
                assert_eq!(received.delivered, [packet]);
                assert_eq!(received.counts.reserved_bits.get(), 0);
                assert_eq!(received.counts.checksums_completed.get(), 0);
            }
        }
    }
    check::<RawUdp>();
    check::<Vxlan>();
}

#[test]
fn a_source_of_the_peers_other_family_is_accepted() {
    for (outer, inner) in [(Family::V4, Family::V6), (Family::V6, Family::V4)] {
        let wire = Wire::from_peer(inner);
        let mut bed = Bed::<Vxlan>::new();
        let received = bed.receive(public(PEER, outer), 0, &wire.bytes::<Vxlan>());
        assert_eq!(received.delivered.len(), 1);
        let received = bed.receive(public(THIRD, outer), 0, &wire.bytes::<Vxlan>());
        assert_eq!(received.counts.dropped(DropReason::InnerSource), 1);
    }
}

#[test]
fn a_datagram_cut_at_any_length_is_truncated() {
    fn check<E: Backend>() {
        let mut bed = Bed::<E>::new();
        for family in FAMILIES {
            let wire = Wire::from_peer(family);
            let whole = wire.bytes::<E>();
            for len in 0..whole.len() {
                let received = bed.receive(wire.source, 0, &whole[..len]);
                assert!(received.delivered.is_empty(), "{len} bytes");
                assert_eq!(
                    received.counts.dropped(DropReason::Truncated),
                    1,
                    "{len} bytes"
                );
                assert_eq!(received.counts.dropped_total(), 1);
            }
            assert_eq!(bed.receive(wire.source, 0, &whole).delivered.len(), 1);
        }
    }
    check::<RawUdp>();
    check::<Vxlan>();
}

#[test]
fn bytes_after_the_packet_are_left_out() {
    fn check<E: Backend>() {
        for family in FAMILIES {
            let wire = Wire::from_peer(family);
            let packet = wire.packet.udp(wire.port, b"payload");
            for trailing in [1, 18, 1000] {
                let datagram = [wire.bytes::<E>(), pattern(trailing)].concat();
                let received = Bed::<E>::new().receive(wire.source, 0, &datagram);
                assert_eq!(received.delivered, std::slice::from_ref(&packet));
            }
        }
    }
    check::<RawUdp>();
    check::<Vxlan>();
}

#[test]
fn a_reserved_bit_is_counted_and_refused_only_when_strict() {
    let wire = Wire::from_peer(Family::V4);
    let clean = wire.bytes::<Vxlan>();
    for (byte, bits) in [(0, 0xf7), (1, 0xff), (2, 0xff), (3, 0xff), (7, 0xffu8)] {
        for bit in (0..8).map(|n| 1 << n).filter(|bit| bits & bit != 0) {
            let mut datagram = clean.clone();
            datagram[byte] |= bit;
            let received = Bed::<Vxlan>::new().receive(wire.source, 0, &datagram);
            assert_eq!(received.delivered.len(), 1, "byte {byte} bit {bit:#x}");
            assert_eq!(received.counts.reserved_bits.get(), 1);
            let received = strict_vxlan().receive(wire.source, 0, &datagram);
            assert_eq!(received.counts.dropped(DropReason::ReservedBits), 1);
            assert_eq!(received.counts.reserved_bits.get(), 0);
        }
    }
}

#[test]
fn a_wrong_ipv4_header_checksum_is_malformed() {
    fn check<E: Backend>() {
        let wire = Wire::from_peer(Family::V4);
        let clean = wire.bytes::<E>();
        for bit in 0..16 {
            let mut datagram = clean.clone();
            datagram[E::HEADER_LEN + ipv4::CHECKSUM + bit / 8] ^= 1 << (bit % 8);
            let received = Bed::<E>::new().receive(wire.source, 0, &datagram);
            assert_eq!(received.counts.dropped(DropReason::Malformed), 1);
        }
    }
    check::<RawUdp>();
    check::<Vxlan>();
}

#[test]
fn an_ethertype_that_promises_the_other_version_is_malformed() {
    for family in FAMILIES {
        let mut wire = Wire::from_peer(family);
        wire.ethertype ^= ethernet::IPV4 ^ ethernet::IPV6;
        let received = Bed::<Vxlan>::new().receive(wire.source, 0, &wire.bytes::<Vxlan>());
        assert_eq!(received.counts.dropped(DropReason::Malformed), 1);
    }
}

#[test]
fn a_nodes_own_public_ip_is_a_source_by_option_and_only_from_itself() {
    fn check<E: Backend>() {
        for family in FAMILIES {
            let mut bed = Bed::<E>::new();
            bed.forwarding.options.accept_node_source = true;
            for (source, accepted) in [
                (public(PEER, family), true),
                (public(THIRD, family), false),
                (public(US, family), false),
                (stranger(family), false),
                (pod(THIRD, family), false),
                (pod(PEER, family), true),
            ] {
                let mut wire = Wire::from_peer(family);
                wire.packet.src = source;
                let received = bed.receive(wire.source, 0, &wire.bytes::<E>());
                assert_eq!(received.delivered.len(), usize::from(accepted), "{source}");
                let dropped = received.counts.dropped(DropReason::InnerSource);
                assert_eq!(dropped, u64::from(!accepted));
            }
        }
    }
    check::<RawUdp>();
    check::<Vxlan>();
}

/// The later fragments of a looped datagram have no port to know them by; they are not ours either way.
#[test]
fn a_fragment_towards_a_public_ip_is_not_delivered() {
    let mut packet = Packet::between(PEER, US, Family::V4);
    packet.dst = public(THIRD, Family::V4);
    let mut bytes = packet.udp(Vxlan::PORT, &[0; 64]);
    (bytes[6], bytes[7]) = (0, 8);
    ipv4::fill_checksum(&mut bytes[..20]);
    let datagram = Vxlan::datagram(PEER, &bytes);
    let received = Bed::<Vxlan>::new().receive(public(PEER, Family::V4), 0, &datagram);
    assert_eq!(received.counts.dropped(DropReason::InnerDestination), 1);
}

/// RFC 6040 figure 4, by inner field (rows) and outer field (columns), both as Not-ECT, ECT(1), ECT(0), CE. The
/// DSCP beside it is the inner one (RFC 2983, pipe model), or the outer one (uniform model).
#[test]
fn ecn_is_combined_as_figure_4_says_and_dscp_by_its_model() {
    const DROP: u8 = 0xff;
    const FIGURE_4: [[u8; 4]; 4] = [[0, 0, 0, DROP], [1, 1, 1, 3], [2, 1, 2, 3], [3, 3, 3, 3]];
    const INNER_DSCP: u8 = 0xb8;
    const OUTER_DSCP: u8 = 0x44;
    fn check<E: Backend>(family: Family, uniform: bool) {
        for (inner, row) in (0..).zip(FIGURE_4) {
            for (outer, expected) in (0..).zip(row) {
                let mut wire = Wire::from_peer(family);
                wire.packet.tos = INNER_DSCP | inner;
                let datagram = wire.bytes::<E>();
                let mut bed = Bed::<E>::new();
                bed.forwarding.options.copy_dscp = uniform;
                let received = bed.receive(wire.source, OUTER_DSCP | outer, &datagram);
                if expected == DROP {
                    let dropped = received.counts.dropped(DropReason::EcnNotCapable);
                    assert_eq!((received.delivered.len(), dropped), (0, 1));
                    continue;
                }
                let dscp = if uniform { OUTER_DSCP } else { INNER_DSCP };
                wire.packet.tos = dscp | expected;
                let packet = wire.packet.udp(wire.port, b"payload");
                assert_eq!(
                    received.delivered,
                    [packet],
                    "{family:?} {inner} {outer} {uniform}"
                );
                verified(&received.delivered[0]);
            }
        }
    }
    for family in FAMILIES {
        for uniform in [false, true] {
            check::<RawUdp>(family, uniform);
            check::<Vxlan>(family, uniform);
        }
    }
}
