use super::*;
use crate::testing::{self, L4};
use crate::{Split, transport};
use etherparse::{IpHeaders, Ipv4Extensions, Ipv4Header, Ipv6Extensions, TcpHeader};
use proptest::collection::vec;
use proptest::prelude::*;

const RULES: Rules = Rules {
    sums: Sums::PORTABLE,
    udp: true,
    tunnel_ports: &[4789, 8472],
};

fn start(packet: &[u8]) -> Option<Run> {
    Run::start(packet, &Inner::parse_checked(packet).ok()?, &RULES)
}

/// Joins what can be joined of `packets`, in their order, as the inbound path does.
fn join(packets: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
    let mut out = Vec::new();
    let mut rest = packets.iter();
    let mut next = rest.next();
    while let Some(first) = next {
        let mut bytes = first.clone();
        let Some(mut run) = start(first) else {
            out.push((VnetHeader::default(), bytes));
            next = rest.next();
            continue;
        };
        loop {
            next = rest.next();
            let Some(packet) = next else { break };
            if run.try_join(packet) == Join::No {
                break;
            }
            bytes.extend_from_slice(&packet[run.header_len()..]);
        }
        assert_eq!(run.total_len(), bytes.len());
        out.push((run.finish(&mut bytes), bytes));
    }
    out
}

/// What the kernel makes of a packet that it is to cut.
fn split(packet: &[u8], size: usize) -> Vec<Vec<u8>> {
    let inner = Inner::parse_checked(packet).unwrap();
    let split = Split::new(packet, &inner, size).unwrap();
    let mut out = vec![0; split.total_len(0)];
    assert_eq!(split.write_all(&[], &mut out, &Sums::PORTABLE), out.len());
    out.chunks(split.segment_len())
        .map(<[u8]>::to_vec)
        .collect()
}

/// Splits again what was joined.
fn split_again((vnet, packet): &(VnetHeader, Vec<u8>)) -> Vec<Vec<u8>> {
    if vnet.gso == Gso::None {
        assert_eq!(*vnet, VnetHeader::default());
        return vec![packet.clone()];
    }
    let inner = Inner::parse_checked(packet).unwrap();
    assert_eq!(VnetHeader::parse(&vnet.emit()), Ok(*vnet));
    assert_eq!(usize::from(vnet.csum_start), inner.l4);
    assert!(transport::looks_unfinished(packet, &inner));
    split(packet, usize::from(vnet.gso_size))
}

/// Is `out` what came in as `packet`? Identifications mean nothing where DF is set.
fn is_same(out: &[u8], packet: &[u8]) -> bool {
    let mut expected = packet.to_vec();
    if out != packet && packet[0] == 0x45 && packet[6] & 0x40 != 0 {
        // What was renumbered was right before.
        if Inner::parse_checked(packet).is_err() {
            return false;
        }
        expected[4..6].copy_from_slice(&out[4..6]);
        ipv4::fill_checksum(&mut expected[..20]);
    }
    out == expected
}

/// IP headers of packets that may be joined: no options, no extension headers.
fn bare_ip() -> impl Strategy<Value = IpHeaders> {
    prop_oneof![
        testing::ipv4_header().prop_map(|ip| {
            let ip = Ipv4Header {
                options: Default::default(),
                ..ip
            };
            IpHeaders::Ipv4(ip, Ipv4Extensions::default())
        }),
        testing::ipv6_header().prop_map(|ip| IpHeaders::Ipv6(ip, Ipv6Extensions::default())),
    ]
}

/// TCP with the flags that may be joined, or UDP not to a tunnel.
fn plain_l4() -> impl Strategy<Value = L4> {
    testing::l4().prop_map(|l4| match l4 {
        L4::Tcp(mut tcp) => {
            (tcp.ack, tcp.urg, tcp.ns) = (true, false, false);
            L4::Tcp(tcp)
        }
        L4::Udp(src, dst) => L4::Udp(
            src,
            if RULES.tunnel_ports.contains(&dst) {
                1
            } else {
                dst
            },
        ),
    })
}

fn plain_packet(most: usize) -> impl Strategy<Value = Vec<u8>> {
    (bare_ip(), plain_l4(), vec(any::<u8>(), 1..=most))
        .prop_map(|(ip, l4, payload)| testing::build(&ip, &l4, &payload))
}

/// Two packets that join, of both families and protocols, the identification that of each or with DF.
fn pairs() -> Vec<(&'static str, [Vec<u8>; 2])> {
    let v4 = |dont_fragment: bool| {
        let ip = Ipv4Header {
            identification: 7,
            dont_fragment,
            time_to_live: 63,
            source: [10, 244, 1, 2],
            destination: [10, 244, 2, 2],
            ..Default::default()
        };
        IpHeaders::Ipv4(ip, Ipv4Extensions::default())
    };
    let ip = etherparse::Ipv6Header {
        hop_limit: 63,
        source: [1; 16],
        destination: [2; 16],
        ..Default::default()
    };
    let v6 = IpHeaders::Ipv6(ip, Ipv6Extensions::default());
    let mut tcp = TcpHeader::new(40000, 5201, u32::MAX - 2, 502);
    (tcp.ack, tcp.acknowledgment_number) = (true, 99);
    tcp.set_options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
        .unwrap();
    let tcp = L4::Tcp(Box::new(tcp));
    let udp = L4::Udp(40000, 5201);
    let pair = |ip: &IpHeaders, l4: &L4| {
        let packets = split(&testing::build(ip, l4, b"some payload"), 6);
        <[Vec<u8>; 2]>::try_from(packets).unwrap()
    };
    vec![
        ("TCP over IPv4", pair(&v4(true), &tcp)),
        ("TCP over IPv4, no DF", pair(&v4(false), &tcp)),
        ("TCP over IPv6", pair(&v6, &tcp)),
        ("UDP over IPv4", pair(&v4(true), &udp)),
        ("UDP over IPv4, no DF", pair(&v4(false), &udp)),
        ("UDP over IPv6", pair(&v6, &udp)),
    ]
}

/// Makes the checksums of a packet right again after a change to it, if it still is a packet.
fn mend(packet: &mut [u8]) {
    if let Ok(inner) = Inner::parse(packet) {
        if inner.family == Family::V4 {
            ipv4::fill_checksum(&mut packet[..inner.l4]);
        }
        transport::complete_checksum(packet, &inner);
    }
}

/// Every bit of the second packet's headers, changed alone, with checksums that are right all the same.
#[test]
fn any_other_header_is_another_packet() {
    for (name, [first, second]) in pairs() {
        let run = start(&first).unwrap();
        let is_v4 = first[0] == 0x45;
        let (l4, df) = (run.l4, first[6] & 0x40 != 0);
        assert_ne!(run.clone().try_join(&second), Join::No, "{name}");
        for bit in 0..run.header_len() * 8 {
            let (byte, mask) = (bit / 8, 0x80 >> (bit % 8));
            let mut changed = second.clone();
            changed[byte] ^= mask;
            mend(&mut changed);
            let (ip_sum, l4_sum) = (
                is_v4 && (10..12).contains(&byte),
                l4 + if run.tcp {
                    tcp::CHECKSUM
                } else {
                    udp::CHECKSUM
                },
            );
            let mended = ip_sum || (l4_sum..l4_sum + 2).contains(&byte);
            let idle_id = is_v4 && df && (4..6).contains(&byte);
            let closing = run.tcp && byte == l4 + 13 && mask & (FIN | PSH) != 0;
            let joined = run.clone().try_join(&changed);
            assert_eq!(
                joined != Join::No,
                mended || idle_id || closing,
                "{name}: bit {bit}, {joined:?}"
            );
            assert!(!closing || joined == Join::JoinedAndClosed, "{name}");
        }
    }
}

/// Every bit of the second packet, and of the first, damaged on the way.
#[test]
fn damage_is_never_joined() {
    for (name, [first, second]) in pairs() {
        for bit in 0..second.len() * 8 {
            let (byte, mask) = (bit / 8, 0x80 >> (bit % 8));
            let mut damaged = second.clone();
            damaged[byte] ^= mask;
            let mut run = start(&first).unwrap();
            assert_eq!(run.try_join(&damaged), Join::No, "{name}: bit {bit}");
            // The run is as it was.
            assert_ne!(run.try_join(&second), Join::No, "{name}: bit {bit}");
            let mut damaged = first.clone();
            damaged[byte] ^= mask;
            // No checksum covers the traffic class, flow label and hop limit of IPv6; they are another flow's.
            let joined = start(&damaged).is_some_and(|mut run| run.try_join(&second) != Join::No);
            assert!(!joined, "{name}: bit {bit} of the first");
        }
    }
}

/// A packet's headers with another payload; lengths and checksums are right.
fn with_payload(packet: &[u8], payload: &[u8]) -> Vec<u8> {
    let inner = Inner::parse(packet).unwrap();
    let headers = crate::split::header_len(packet, &inner).unwrap();
    let mut packet = [&packet[..headers], payload].concat();
    let len = packet.len();
    match inner.family {
        Family::V4 => put(&mut packet, ipv4::TOTAL_LEN, len16(len)),
        Family::V6 => put(
            &mut packet,
            ipv6::PAYLOAD_LEN,
            len16(len - ipv6::HEADER_LEN),
        ),
    }
    if inner.protocol == udp::PROTOCOL {
        put(&mut packet[inner.l4..], udp::LEN, len16(len - inner.l4));
    }
    mend(&mut packet);
    packet
}

/// `packet` as the one that `run` waits for.
fn as_next(run: &Run, mut packet: Vec<u8>) -> Vec<u8> {
    if run.tcp {
        packet[run.l4 + 4..run.l4 + 8].copy_from_slice(&run.next_seq.to_be_bytes());
    }
    if let Some(id) = run.next_id {
        put(&mut packet, ipv4::ID, id);
    }
    mend(&mut packet);
    packet
}

#[test]
fn sizes() {
    for (name, [first, second]) in pairs() {
        let run = start(&first).unwrap();
        let offer = |packet: &[u8]| run.clone().try_join(packet);
        assert_eq!(offer(&second), Join::Joined, "{name}");
        for payload in [&b""[..], b"payload"] {
            assert_eq!(offer(&with_payload(&second, payload)), Join::No, "{name}");
        }
        assert!(start(&with_payload(&first, b"")).is_none(), "{name}");
        for len in 0..second.len() {
            assert_eq!(offer(&second[..len]), Join::No, "{name}: cut short");
        }
        assert_eq!(
            offer(&[&second[..], &[0]].concat()),
            Join::No,
            "{name}: bytes behind its end"
        );
        let mut run = run.clone();
        let shorter = with_payload(&second, b"x");
        assert_eq!(run.try_join(&shorter), Join::JoinedAndClosed, "{name}");
        assert_eq!(
            (run.count(), run.total_len()),
            (2, run.header_len() + 7),
            "{name}"
        );
        let next = as_next(&run, second.clone());
        assert_eq!(run.try_join(&next), Join::No, "{name}: closed");
    }
}

#[test]
fn order() {
    for (name, [first, _]) in pairs() {
        let pieces = split(&with_payload(&first, &[0x5a; 18]), 6);
        let mut run = start(&pieces[0]).unwrap();
        // Datagrams over IPv6 or with DF have no numbers to see a gap by, and need none.
        if run.tcp || run.next_id.is_some() {
            assert_eq!(run.try_join(&pieces[2]), Join::No, "{name}: a gap");
            assert_eq!(run.try_join(&pieces[0]), Join::No, "{name}: twice");
        }
        assert_eq!(run.try_join(&pieces[1]), Join::Joined, "{name}");
        assert_eq!(run.try_join(&pieces[2]), Join::Joined, "{name}");
    }
}

#[test]
fn a_superpacket_has_bounds() {
    for (name, [first, _]) in pairs() {
        let pieces = split(&with_payload(&first, &[0x5a; 130 * 6]), 6);
        let mut run = start(&pieces[0]).unwrap();
        let joins: Vec<Join> = pieces[1..].iter().map(|p| run.try_join(p)).collect();
        let mut expected = vec![Join::Joined; 126];
        expected.extend([Join::JoinedAndClosed, Join::No, Join::No]);
        assert_eq!(joins, expected, "{name}");
        assert_eq!(run.count(), MAX_SEGMENTS, "{name}");

        let pieces = split(&with_payload(&first, &[0x5a; 60_000]), 6000);
        let mut run = start(&pieces[0]).unwrap();
        assert!(pieces[1..].iter().all(|p| run.try_join(p) == Join::Joined));
        let room = 65_535 - run.total_len();
        let fill = |len: usize| as_next(&run, with_payload(&first, &vec![1; len]));
        assert_eq!(run.clone().try_join(&fill(room + 1)), Join::No, "{name}");
        let last = fill(room);
        assert_eq!(run.try_join(&last), Join::JoinedAndClosed, "{name}");
        assert_eq!(run.total_len(), 65_535, "{name}");
    }
}

/// FIN and PSH close, and are the superpacket's; CWR may only be on the first.
#[test]
fn flags() {
    for (name, [first, second]) in pairs().into_iter().filter(|(name, _)| name.contains("TCP")) {
        let at = start(&first).unwrap().l4 + 13;
        let with = |packet: &[u8], flags: u8| {
            let mut packet = packet.to_vec();
            packet[at] = flags;
            mend(&mut packet);
            packet
        };
        for flags in [0, FIN | ACK, PSH | ACK, 0x02 | ACK, 0x04 | ACK, 0x20 | ACK] {
            assert!(start(&with(&first, flags)).is_none(), "{name}: {flags:#x}");
        }
        let mut reserved = first.clone();
        reserved[at - 1] |= 1;
        mend(&mut reserved);
        assert!(start(&reserved).is_none(), "{name}: AE");
        for (on_first, on_second, joined) in [
            (ACK, ACK | FIN, Some(ACK | FIN)),
            (ACK, ACK | PSH, Some(ACK | PSH)),
            (ACK | CWR, ACK | FIN | PSH, Some(ACK | FIN | PSH | CWR)),
            (ACK | ECE, ACK | ECE, Some(ACK | ECE)),
            (ACK | ECE | CWR, ACK | ECE, Some(ACK | ECE | CWR)),
            (ACK | CWR, ACK | CWR, None),
            (ACK, ACK | CWR, None),
            (ACK | ECE, ACK, None),
        ] {
            let out = join(&[with(&first, on_first), with(&second, on_second)]);
            assert_eq!(out.len(), if joined.is_some() { 1 } else { 2 }, "{name}");
            let (vnet, packet) = &out[0];
            assert_eq!(packet[at], joined.unwrap_or(on_first), "{name}");
            assert_eq!(vnet.ecn, joined.is_some_and(|flags| flags & CWR != 0));
        }
    }
}

#[test]
fn identifications() {
    for (name, [first, second]) in pairs() {
        if name.contains("IPv6") {
            continue;
        }
        for (id, joins) in [(7, false), (8, true), (9, false), (0, false)] {
            let mut second = second.clone();
            put(&mut second, ipv4::ID, id);
            mend(&mut second);
            let joined = start(&first).unwrap().try_join(&second) == Join::Joined;
            assert_eq!(joined, joins || !name.contains("no DF"), "{name}: {id}");
        }
    }
}

#[test]
fn not_for_joining() {
    let udp = testing::udp4(b"payload");
    let inner = Inner::parse_checked(&udp).unwrap();
    assert!(start(&udp).is_some());
    assert!(
        Run::start(
            &udp,
            &inner,
            &Rules {
                udp: false,
                ..RULES
            }
        )
        .is_none()
    );
    let toward = Rules {
        tunnel_ports: &[2000],
        ..RULES
    };
    assert!(Run::start(&udp, &inner, &toward).is_none());
    assert!(start(&[&udp[..], &[0]].concat()).is_none(), "padding");

    // The sender did without a checksum, so nobody could tell damage; neither where it would have been 0xffff, the
    // other zero, with which the sum comes out right.
    let mut ones = testing::udp4(&[0, 0]);
    let last = ones.len() - 2;
    let without = [ones[26], ones[27]];
    ones[last..].copy_from_slice(&without);
    mend(&mut ones);
    assert_eq!(ones[26..28], [0xff, 0xff]);
    for packet in [udp.clone(), ones] {
        let mut bare = packet.clone();
        bare[26..28].fill(0);
        assert!(start(&bare).is_none());
        let mut run = start(&packet).unwrap();
        assert_eq!(run.try_join(&as_next(&run, packet)), Join::Joined);
        let mut bare = as_next(&run, bare);
        bare[26..28].fill(0);
        assert_eq!(run.try_join(&bare), Join::No);
    }

    let mut fragment = udp.clone();
    fragment[6] = 0x20;
    ipv4::fill_checksum(&mut fragment[..20]);
    assert!(start(&fragment).is_none(), "a fragment");
    let mut icmp = udp.clone();
    icmp[9] = 1;
    ipv4::fill_checksum(&mut icmp[..20]);
    assert!(start(&icmp).is_none(), "ICMP");
    let mut unfinished = udp.clone();
    testing::unfinish(&mut unfinished, &inner);
    assert!(start(&unfinished).is_none(), "unfinished");
    assert!(start(&testing::source_routed(b"payload")).is_none());
    let options = Ipv4Header {
        options: [1, 1, 1, 1].into(),
        ..Ipv4Header::default()
    };
    let options = IpHeaders::Ipv4(options, Ipv4Extensions::default());
    assert!(start(&testing::build(&options, &L4::Udp(1, 2), b"payload")).is_none());
}

/// A packet without companion leaves as it came, and the device is told nothing of it.
#[test]
fn alone() {
    for (_, [first, _]) in pairs() {
        assert_eq!(
            join(std::slice::from_ref(&first)),
            [(VnetHeader::default(), first)]
        );
    }
}

proptest! {
    /// Split then join is the identity, but for the checksum, which is left to the device to finish.
    #[test]
    fn split_then_join_is_the_identity(packet in plain_packet(5000), size in 1usize..2000) {
        let pieces = split(&packet, size);
        let joined = join(&pieces);
        let again: Vec<Vec<u8>> = joined.iter().flat_map(split_again).collect();
        prop_assert_eq!(&again, &pieces);
        prop_assert_eq!(joined.len(), pieces.len().div_ceil(MAX_SEGMENTS));
        if let [(vnet, whole)] = &joined[..] {
            let mut whole = whole.clone();
            let inner = Inner::parse_checked(&whole).unwrap();
            if vnet.needs_csum {
                transport::complete_partial(&mut whole, &inner, vnet, &Sums::PORTABLE).unwrap();
            }
            prop_assert_eq!(&whole, &packet);
        }
    }

    /// Whatever comes, whatever befell it: what goes up is, cut again, what came, in its order. So nothing is joined
    /// that must not be, and nothing damaged leaves with a right checksum.
    #[test]
    fn nothing_is_lost_or_mended(
        packets in vec((plain_packet(60), 1usize..30), 1..4),
        damage in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0u8..8, any::<bool>()), 0..6),
        swaps in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..4),
    ) {
        let mut pieces: Vec<Vec<u8>> = packets.iter().flat_map(|(packet, size)| split(packet, *size)).collect();
        for (which, at, bit, mended) in damage {
            let index = which.index(pieces.len());
            let packet = &mut pieces[index];
            let at = at.index(packet.len());
            packet[at] ^= 1 << bit;
            if mended {
                mend(packet);
            }
        }
        for (a, b) in swaps {
            let (a, b) = (a.index(pieces.len()), b.index(pieces.len()));
            pieces.swap(a, b);
        }
        let again: Vec<Vec<u8>> = join(&pieces).iter().flat_map(split_again).collect();
        prop_assert_eq!(again.len(), pieces.len());
        for (out, packet) in again.iter().zip(&pieces) {
            prop_assert!(is_same(out, packet), "{:x?} came out as {:x?}", packet, out);
        }
    }
}
