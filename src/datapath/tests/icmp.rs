//! ICMP errors: what the sender is told, about which packets, and how often.

use std::net::IpAddr;
use std::time::Duration;

use encap::{Family, Inner, RawUdp, Vxlan, icmp, ipv4};
use etherparse::{Icmpv4Type, Icmpv6Type, NetHeaders, TransportHeader, icmpv4, icmpv6};

use crate::datapath::DropReason;
use crate::datapath::hairpin::{self, Complaint};
use crate::datapath::testbed::{
    Backend, Bed, FAMILIES, PEER, Packet, US, overlay, pattern, pod, stranger, verified,
};

/// The error's type and code in etherparse's words, its source, and the packet quoted in it.
#[derive(Debug)]
struct IcmpError<'a> {
    from: IpAddr,
    to: IpAddr,
    ttl: u8,
    tos: u8,
    v4: Option<Icmpv4Type>,
    v6: Option<Icmpv6Type>,
    quote: &'a [u8],
}

/// Reads an error with etherparse, checksums verified.
fn parse(packet: &[u8]) -> IcmpError<'_> {
    let parsed = verified(packet);
    let (from, to, ttl, tos) = match parsed.net.unwrap() {
        NetHeaders::Ipv4(ip, _) => (
            IpAddr::from(ip.source),
            IpAddr::from(ip.destination),
            ip.time_to_live,
            ip.dscp.value() << 2 | ip.ecn.value(),
        ),
        NetHeaders::Ipv6(ip, _) => (
            IpAddr::from(ip.source),
            IpAddr::from(ip.destination),
            ip.hop_limit,
            ip.traffic_class,
        ),
        NetHeaders::Arp(_) => unreachable!(),
    };
    let (v4, v6) = match parsed.transport.unwrap() {
        TransportHeader::Icmpv4(icmp) => (Some(icmp.icmp_type), None),
        TransportHeader::Icmpv6(icmp) => (None, Some(icmp.icmp_type)),
        other => panic!("{other:?} is not ICMP"),
    };
    IcmpError {
        from,
        to,
        ttl,
        tos,
        v4,
        v6,
        quote: parsed.payload.slice(),
    }
}

fn unreachable_v4(code: icmpv4::DestUnreachableHeader) -> Option<Icmpv4Type> {
    Some(Icmpv4Type::DestinationUnreachable(code))
}

fn unreachable_v6(code: icmpv6::DestUnreachableCode) -> Option<Icmpv6Type> {
    Some(Icmpv6Type::DestinationUnreachable(code))
}

/// Sends `packet` and expects it to be dropped under `reason`, with one error that quotes it.
fn complaint<E: Backend>(
    packet: &[u8],
    reason: DropReason,
) -> (Option<Icmpv4Type>, Option<Icmpv6Type>) {
    let worked = Bed::<E>::new().send(packet);
    assert_eq!(worked.counts.dropped(reason), 1);
    assert_eq!(worked.counts.dropped_total(), 1);
    assert_eq!((worked.sent.len(), worked.errors.len()), (0, 1));
    let error = parse(&worked.errors[0]);
    let inner = Inner::parse(packet).unwrap();
    assert_eq!(error.from, overlay(US, inner.family));
    assert_eq!((error.to, error.ttl), (inner.src, 64));
    let (tos, most) = match inner.family {
        Family::V4 => (0xc0, 576 - 28),
        Family::V6 => (0, 1280 - 48),
    };
    assert_eq!(error.tos, tos);
    assert_eq!(error.quote, &packet[..packet.len().min(most)]);
    (error.v4, error.v6)
}

#[test]
fn without_a_lease_the_network_is_unreachable() {
    fn check<E: Backend>() {
        for family in FAMILIES {
            let mut packet = Packet::between(US, PEER, family);
            packet.dst = stranger(family);
            for len in [0, 100, 520, 521, 1200, 1201, 1400] {
                let told = complaint::<E>(&packet.udp(53, &pattern(len)), DropReason::NoLease);
                let expected = match family {
                    Family::V4 => (unreachable_v4(icmpv4::DestUnreachableHeader::Network), None),
                    Family::V6 => (None, unreachable_v6(icmpv6::DestUnreachableCode::NoRoute)),
                };
                assert_eq!(told, expected);
            }
        }
    }
    check::<RawUdp>();
    check::<Vxlan>();
}

#[test]
fn in_our_own_subnet_the_host_is_unreachable() {
    for family in FAMILIES {
        let told = complaint::<Vxlan>(
            &Packet::between(US, US, family).tcp(b"hello"),
            DropReason::OwnSubnet,
        );
        let expected = match family {
            Family::V4 => (unreachable_v4(icmpv4::DestUnreachableHeader::Host), None),
            Family::V6 => (None, unreachable_v6(icmpv6::DestUnreachableCode::Address)),
        };
        assert_eq!(told, expected);
    }
}

#[test]
fn too_big_tells_the_mtu_of_the_path() {
    fn check<E: Backend>() {
        for family in FAMILIES {
            let mtu = 1500 - E::overhead(family);
            for len in [1480, 9000, 65_000] {
                let packet = Packet::between(US, PEER, family).udp(53, &pattern(len));
                let expected = match family {
                    Family::V4 => {
                        let next_hop_mtu = mtu;
                        let code =
                            icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu };
                        (unreachable_v4(code), None)
                    }
                    Family::V6 => (None, Some(Icmpv6Type::PacketTooBig { mtu: mtu.into() })),
                };
                assert_eq!(complaint::<E>(&packet, DropReason::TooBig), expected);
            }
        }
    }
    check::<RawUdp>();
    check::<Vxlan>();
}

/// The mutations after which nobody may be told, each of a packet that else would be complained about.
fn unmentionable(family: Family) -> Vec<(&'static str, Vec<u8>)> {
    let base = Packet {
        dst: stranger(family),
        ..Packet::between(US, PEER, family)
    };
    let from = |src: &str| {
        let src = src.parse().unwrap();
        let packet = Packet {
            src,
            ..base.clone()
        };
        packet.udp(53, b"question")
    };
    match family {
        Family::V4 => {
            let mut later = base.udp(53, &pattern(64));
            (later[6], later[7]) = (0x20, 8);
            ipv4::fill_checksum(&mut later[..20]);
            let mut found = vec![
                ("multicast source", from("224.0.0.1")),
                ("broadcast source", from("255.255.255.255")),
                ("unspecified source", from("0.0.0.0")),
                ("loopback source", from("127.0.0.1")),
                ("later fragment", later),
                ("ICMP without a type", base.raw(icmp::PROTOCOL, &[])),
            ];
            for error in [3, 4, 5, 11, 12] {
                found.push((
                    "ICMP error",
                    base.raw(icmp::PROTOCOL, &[error, 0, 0, 0, 0, 0, 0, 0]),
                ));
            }
            found
        }
        Family::V6 => {
            // A fragment header: UDP, offset 1, more to come.
            let fragment = [17, 0, 0, 9, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8];
            let mut found = vec![
                ("multicast source", from("ff02::1")),
                ("unspecified source", from("::")),
                ("loopback source", from("::1")),
                ("later fragment", base.raw(44, &fragment)),
                ("ICMPv6 without a type", base.raw(icmp::PROTOCOL_V6, &[])),
                // Hop-by-hop options (padding) in front of the error do not hide it.
                (
                    "ICMPv6 error behind an extension header",
                    base.raw(0, &[58, 0, 1, 4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]),
                ),
            ];
            for error in [1, 2, 3, 4, 100, 127, 137] {
                let message = [error, 0, 0, 0, 0, 0, 0, 0];
                found.push(("ICMPv6 error", base.raw(icmp::PROTOCOL_V6, &message)));
            }
            found
        }
    }
}

#[test]
fn some_packets_are_never_complained_about() {
    for family in FAMILIES {
        for (what, packet) in unmentionable(family) {
            let worked = Bed::<Vxlan>::new().send(&packet);
            assert_eq!(worked.counts.dropped(DropReason::NoLease), 1, "{what}");
            assert!(worked.errors.is_empty(), "{what}");
            // Silence by rule is not silence by rate limit.
            assert_eq!(worked.counts.icmp_limited.get(), 0, "{what}");
        }
    }
}

#[test]
fn a_first_fragment_an_echo_and_a_tcp_segment_are_complained_about() {
    for family in FAMILIES {
        let packet = Packet {
            dst: stranger(family),
            ..Packet::between(US, PEER, family)
        };
        let first_fragment = match family {
            Family::V4 => {
                let mut first = packet.udp(53, &pattern(64));
                (first[6], first[7]) = (0x20, 0);
                ipv4::fill_checksum(&mut first[..20]);
                first
            }
            Family::V6 => packet.raw(44, &[17, 0, 0, 1, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8]),
        };
        for packet in [first_fragment, packet.echo(b"ping"), packet.tcp(b"syn")] {
            complaint::<RawUdp>(&packet, DropReason::NoLease);
        }
    }
}

#[test]
fn a_multicast_destination_hears_only_packet_too_big_and_only_in_ipv6() {
    let too_big = Complaint::TooBig { mtu: 1280 };
    for (dst, told) in [
        ("239.1.2.3", false),
        ("255.255.255.255", false),
        ("ff0e::1", true),
    ] {
        let dst: IpAddr = dst.parse().unwrap();
        let family = Family::of(&dst);
        let packet = Packet {
            dst,
            ..Packet::between(US, PEER, family)
        };
        let bytes = packet.udp(53, b"everyone");
        let inner = Inner::parse(&bytes).unwrap();
        assert_eq!(
            hairpin::may_complain(&bytes, &inner, too_big),
            told,
            "{dst}"
        );
        for complaint in [Complaint::NetUnreachable, Complaint::HostUnreachable] {
            assert!(!hairpin::may_complain(&bytes, &inner, complaint), "{dst}");
        }
    }
}

#[test]
fn without_an_overlay_address_of_its_family_there_is_no_error() {
    for family in FAMILIES {
        let mut bed = Bed::<Vxlan>::new();
        let options = &mut bed.forwarding.options;
        match family {
            Family::V4 => options.overlay_v4 = None,
            Family::V6 => options.overlay_v6 = None,
        }
        let worked = bed.send(&Packet::between(US, US, family).tcp(b"hello"));
        assert_eq!(worked.counts.dropped(DropReason::OwnSubnet), 1);
        assert!(worked.errors.is_empty());
    }
}

#[test]
fn errors_are_rate_limited_on_a_clock_that_is_passed_in() {
    let mut bed = Bed::<Vxlan>::new();
    bed.forwarding.options.icmp_rate = 100;
    let packets: Vec<_> = (0..200u16)
        .map(|id| {
            let packet = Packet {
                dst: stranger(Family::V4),
                id,
                ..Packet::between(US, PEER, Family::V4)
            };
            assert_eq!(packet.src, pod(US, Family::V4));
            packet.udp(53, b"question")
        })
        .collect();
    let round = |bed: &mut Bed<Vxlan>| {
        let worked = bed.send_all(&packets);
        assert_eq!(worked.counts.dropped(DropReason::NoLease), 200);
        assert_eq!(
            worked.counts.icmp_sent.get() + worked.counts.icmp_limited.get(),
            200
        );
        worked.errors.len()
    };
    assert_eq!(round(&mut bed), 50, "the burst");
    assert_eq!(round(&mut bed), 0, "no time has passed");
    bed.now += Duration::from_millis(100);
    assert_eq!(round(&mut bed), 10, "100 a second for 100 ms");
    bed.now += Duration::from_secs(60);
    assert_eq!(round(&mut bed), 50, "never more than the burst");
    bed.forwarding.options.icmp_rate = 0;
    bed.now += Duration::from_secs(60);
    assert_eq!(round(&mut bed), 0, "turned off");
}
