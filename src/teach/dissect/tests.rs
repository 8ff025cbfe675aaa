use std::fs;
use std::path::Path;

use encap::checksum;
use etherparse::PacketBuilder;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::teach::capture::{Capture, Link};

mod bytes;
mod tunnels;

const LINKS: [Link; 5] = [
    Link::Ethernet,
    Link::Raw,
    Link::Cooked,
    Link::Cooked2,
    Link::Unknown(7),
];

fn read(frame: &[u8], link: Link) -> Dissection {
    let mut dissection = Dissection::default();
    dissection.read(frame, frame.len(), link, &Ports::default());
    check(frame, frame.len(), &dissection);
    dissection
}

/// What holds of every dissection: each bit is in exactly one field, in order, and the sum adds up.
fn check(frame: &[u8], wire_len: usize, dissection: &Dissection) {
    let mut bit = 0;
    for field in &dissection.fields {
        assert_eq!(field.bit, bit, "{field:?} in {dissection:#?}");
        assert!(field.bits > 0 && !field.name.is_empty() && !field.short.is_empty());
        bit += field.bits;
    }
    assert_eq!(bit, frame.len() * 8, "{dissection:#?}");
    let (mut byte, mut index) = (0, 0);
    for layer in &dissection.layers {
        assert_eq!(
            (layer.bytes.start, layer.fields.start),
            (byte, index),
            "{dissection:#?}"
        );
        (byte, index) = (layer.bytes.end, layer.fields.end);
        assert!(layer.depth <= MAX_DEPTH && !layer.name.is_empty());
        assert!(layer.role != Role::Header || !layer.source.is_empty());
    }
    assert_eq!((byte, index), (frame.len(), dissection.fields.len()));
    for field in &dissection.fields {
        let number = frame[field.bytes()]
            .iter()
            .fold(0u128, |number, &byte| number << 8 | u128::from(byte));
        if let Value::Number(value) | Value::Hex(value) = field.value {
            let below = field.bytes().end * 8 - field.bit - field.bits;
            assert_eq!(
                u128::from(value),
                number >> below & ((1 << field.bits) - 1),
                "{field:?}"
            );
        }
        if let Value::Little(value) = field.value {
            let bytes = frame[field.bytes()].iter().rev();
            assert_eq!(
                value,
                bytes.fold(0, |number, &byte| number << 8 | u64::from(byte)),
                "{field:?}"
            );
        }
    }
    if let Some(sum) = dissection.sum {
        assert_eq!(sum.original + sum.overhead + sum.padding, sum.wire);
        assert_eq!(sum.wire, wire_len);
        assert_eq!(dissection.layers[sum.layer].bytes.start, sum.overhead);
    }
}

fn field<'d>(dissection: &'d Dissection, layer: &str, name: &str) -> &'d Field {
    let of_layer = dissection.layers.iter().filter(|found| found.name == layer);
    of_layer
        .flat_map(|layer| dissection.fields_of(layer))
        .find(|field| field.name == name)
        .unwrap_or_else(|| panic!("no {name} of {layer} in {dissection:#?}"))
}

fn names(dissection: &Dissection) -> Vec<&str> {
    dissection.layers.iter().map(|layer| layer.name).collect()
}

fn problems(dissection: &Dissection) -> Vec<String> {
    let text = |problem: &Problem| format!("{}: {}", problem.at, problem.text);
    dissection.problems.iter().map(text).collect()
}

/// An Ethernet frame with a UDP datagram to `port`.
fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 99, 0, 1], [10, 99, 0, 2], 64)
        .udp(50_000, port)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

/// The same, in VXLAN.
fn vxlan(frame: &[u8]) -> Vec<u8> {
    udp(4789, &[&[8, 0, 0, 0, 0, 0, 1, 0], frame].concat())
}

/// An IPv6 packet in Ethernet.
fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let header = [0x60, 0, 0, 0, len[0], len[1], next, 64];
    [&[2; 12][..], &[0x86, 0xdd], &header, &[0xfe; 32], payload].concat()
}

fn tcp6() -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv6([1; 16], [2; 16], 64)
        .tcp(1, 2, 3, 4)
        .write(&mut packet, b"payload")
        .unwrap();
    packet
}

#[test]
fn a_packet_in_vxlan() {
    let dissection = read(&vxlan(&udp(53, b"hello")), Link::Ethernet);
    let names = names(&dissection);
    assert_eq!(
        names,
        [
            "Ethernet", "IPv4", "UDP", "VXLAN", "Ethernet", "IPv4", "UDP", "payload"
        ]
    );
    assert_eq!(problems(&dissection), [""; 0]);
    assert_eq!(
        field(&dissection, "VXLAN", "network identifier").value,
        Value::Number(1)
    );
    let verdicts: Vec<_> = dissection
        .fields
        .iter()
        .filter_map(|field| field.checksum)
        .collect();
    assert_eq!(verdicts, [Verdict::Right; 4]);
    let sum = Sum {
        layer: 5,
        original: 33,
        overhead: 64,
        padding: 0,
        wire: 97,
    };
    assert_eq!(dissection.sum, Some(sum));
    assert_eq!(
        dissection.summary,
        "10.99.0.1 > 10.99.0.2 UDP 50000 > 4789 | VXLAN 1: 10.99.0.1 > 10.99.0.2 UDP 50000 > 53"
    );
}

#[test]
fn ports_decide_what_a_datagram_carries() {
    let inner = tcp6();
    let frame = udp(8285, &inner);
    let dissection = read(&frame, Link::Ethernet);
    assert_eq!(
        names(&dissection),
        [
            "Ethernet",
            "IPv4",
            "UDP",
            "flannel udp",
            "IPv6",
            "TCP",
            "payload"
        ]
    );
    let mut ports = Ports::default();
    ports.insert(8285, Tunnel::Vxlan);
    ports.insert(99, Tunnel::Udp);
    let mut other = Dissection::default();
    other.read(&frame, frame.len(), Link::Ethernet, &ports);
    assert_eq!(other.layers[3].name, "VXLAN");
    let frame = udp(99, &inner);
    other.read(&frame, frame.len(), Link::Ethernet, &ports);
    assert_eq!(other.layers[3].name, "flannel udp");
}

#[test]
fn every_state_of_a_checksum() {
    let at = 14 + 20 + 6;
    let good = udp(53, b"hello");
    let verdict = |frame: &[u8]| field(&read(frame, Link::Ethernet), "UDP", "checksum").checksum;
    let right = u16::from_be_bytes([good[at], good[at + 1]]);
    assert_eq!(verdict(&good), Some(Verdict::Right));
    let with = |value: u16| {
        let mut frame = good.clone();
        frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
        frame
    };
    assert_eq!(verdict(&with(right ^ 1)), Some(Verdict::Wrong(right)));
    assert_eq!(verdict(&with(0)), Some(Verdict::Absent));
    let inner = encap::Inner::parse(&good[14..]).unwrap();
    let pseudo = encap::checksum::pseudo_header(&inner, 13);
    let unfinished = with(pseudo);
    assert_eq!(verdict(&unfinished), Some(Verdict::Unfinished(right)));

    // A tunnel's checksum is computed as if the one inside were finished.
    let mut outer = vxlan(&good);
    let inside = 14 + 20 + 8 + 8 + at;
    outer[inside..inside + 2].copy_from_slice(&pseudo.to_be_bytes());
    assert_eq!(verdict(&outer), Some(Verdict::Deferred));
    outer[at] ^= 0x10;
    assert!(matches!(verdict(&outer), Some(Verdict::Wrong(_))));

    let mut bad_header = good.clone();
    bad_header[14 + 8] -= 1;
    let right = u16::from_be_bytes([good[24], good[25]]);
    let dissection = read(&bad_header, Link::Ethernet);
    let found = field(&dissection, "IPv4", "header checksum").checksum;
    assert_eq!(
        found,
        Some(Verdict::Wrong(encap::checksum::update_u16(
            right, 0x4011, 0x3f11
        )))
    );

    let mut cut = Dissection::default();
    cut.read(
        &good[..good.len() - 1],
        good.len(),
        Link::Ethernet,
        &Ports::default(),
    );
    let found = field(&cut, "UDP", "checksum").checksum;
    assert_eq!(
        found,
        Some(Verdict::Unknown("not all that it covers was captured"))
    );
    assert_eq!(
        problems(&cut),
        ["46: the capture kept only the first 46 of the frame's 47 bytes"]
    );
    assert_eq!(cut.sum.unwrap().wire, 47);
}

#[test]
fn nesting_is_bounded() {
    let mut frame = udp(53, b"x");
    for _ in 0..MAX_DEPTH {
        frame = vxlan(&frame);
    }
    let dissection = read(&frame, Link::Ethernet);
    assert_eq!(dissection.layers.last().unwrap().depth, MAX_DEPTH);
    assert_eq!(problems(&dissection), [""; 0]);
    assert_eq!(dissection.sum.unwrap().original, 29);
    let dissection = read(&vxlan(&frame), Link::Ethernet);
    assert!(
        problems(&dissection)[0].ends_with("nested more than 8 times: not taken apart further")
    );
    // IP in IP alone could nest 3,000 times in a frame.
    let mut packets = Vec::new();
    for nested in 0..3000u16 {
        packets.extend([0x45, 0]);
        packets.extend((60_000 - nested * 20).to_be_bytes());
        packets.extend([0, 0, 0, 0, 64, 4, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    }
    assert_eq!(
        read(&packets, Link::Raw).layers.len(),
        1 + usize::from(MAX_DEPTH) + 1
    );
}

#[test]
fn fragments_are_said_to_be_such() {
    let mut whole = udp(53, &[7; 64])[14..].to_vec();
    // etherparse forbids fragmentation.
    whole[6] = 0;
    let inner = encap::Inner::parse(&whole).unwrap();
    let mut fragments = encap::Fragments::new(&whole, &inner, 60).unwrap();
    let (mut first, mut second) = (Vec::new(), Vec::new());
    fragments.next_into(&mut first).unwrap();
    fragments.next_into(&mut second).unwrap();
    let dissection = read(&first, Link::Raw);
    assert_eq!(names(&dissection), ["IPv4", "UDP", "payload"]);
    let found = field(&dissection, "UDP", "checksum").checksum;
    assert_eq!(
        found,
        Some(Verdict::Unknown(
            "covers all fragments, and this is one of them"
        ))
    );
    assert!(
        field(&dissection, "IPv4", "fragment offset")
            .meaning
            .starts_with("the first fragment")
    );
    assert_eq!(problems(&dissection), [""; 0]);
    let dissection = read(&second, Link::Raw);
    assert_eq!(names(&dissection), ["IPv4", "fragment"]);
    assert!(
        field(&dissection, "IPv4", "fragment offset")
            .meaning
            .contains("at byte 40")
    );
    assert!(dissection.summary.ends_with("UDP, fragment at 40"));
}

#[test]
fn a_message_that_is_not_there_is_not_made_up() {
    // An IPv4 header alone: protocol 1, and nothing behind it.
    let header = [
        0x45, 0, 0, 0x14, 0, 0, 0x40, 0, 0x40, 1, 0xd7, 0xa4, 0x7f, 0, 0, 1, 0x7f, 0, 0, 1,
    ];
    let dissection = read(&header, Link::Raw);
    assert!(
        dissection
            .summary
            .ends_with("ICMP of which nothing is there"),
        "{}",
        dissection.summary
    );
}

#[test]
fn an_icmp_error_quotes_what_caused_it() {
    let quoted = &udp(8472, &[8, 0, 0, 0, 0, 0, 1, 0, 1, 2, 3])[14..];
    let mut packet = Vec::new();
    PacketBuilder::ipv4([10, 99, 0, 2], [10, 99, 0, 1], 64)
        .icmpv4_raw(3, 4, [0, 0, 5, 0xaa])
        .write(&mut packet, quoted)
        .unwrap();
    let dissection = read(&packet, Link::Raw);
    assert_eq!(
        names(&dissection),
        ["IPv4", "ICMP", "IPv4", "UDP", "VXLAN", "Ethernet"]
    );
    assert_eq!(
        field(&dissection, "ICMP", "next-hop MTU").value,
        Value::Number(1450)
    );
    assert!(dissection.layers[2..].iter().all(|layer| layer.quoted));
    // That the quotation is cut is as it should be; the sum is that of the error.
    assert_eq!(problems(&dissection), [""; 0]);
    assert_eq!(
        (
            dissection.sum.unwrap().layer,
            dissection.sum.unwrap().original
        ),
        (0, packet.len())
    );
    assert_eq!(
        dissection.summary,
        "10.99.0.2 > 10.99.0.1 ICMP destination unreachable"
    );
}

#[test]
fn extension_headers_and_options() {
    let mut packet = vec![0x60, 0, 0, 0, 0, 8 + 16 + 8 + 8, 0, 64];
    packet.extend([0xfd; 32]);
    packet.extend([60, 0, 5, 2, 0, 0, 1, 0]);
    packet.extend([43, 1, 1, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    packet.extend([44, 0, 2, 1, 9, 9, 9, 9]);
    packet.extend([17, 0, 0, 8, 0, 0, 0, 5]);
    let dissection = read(&packet, Link::Raw);
    assert_eq!(
        names(&dissection),
        [
            "IPv6",
            "IPv6 hop-by-hop options",
            "IPv6 destination options",
            "IPv6 routing",
            "IPv6 fragment"
        ]
    );
    let routing = field(&dissection, "IPv6 routing", "segments left");
    assert_eq!(routing.value, Value::Number(1));
    assert!(
        field(&dissection, "IPv6 fragment", "fragment offset")
            .meaning
            .contains("at byte 8")
    );
    assert_eq!(problems(&dissection), [""; 0]);
    // An extension header longer than the packet.
    packet[41] = 200;
    assert!(
        problems(&read(&packet, Link::Raw))[0].contains("IPv6 hop-by-hop options is cut short")
    );
}

#[test]
fn garbled_headers_are_said_to_be_such() {
    let good = udp(53, b"hello");
    let with = |at: usize, byte: u8| {
        let mut frame = good.clone();
        frame[at] = byte;
        problems(&read(&frame, Link::Ethernet))
    };
    assert_eq!(
        with(14, 0x44),
        ["14: the header length says 16 bytes, a header has at least 20"]
    );
    assert_eq!(
        with(14, 0x65),
        ["14: the EtherType announces IPv4, the packet says version 6"]
    );
    assert_eq!(
        with(17, 10),
        ["16: the total length says 10 bytes, its header alone has 20"]
    );
    assert_eq!(
        with(17, 60),
        ["14: the packet would have 60 bytes, but 33 were on the wire: the lengths do not add up"]
    );
    assert_eq!(
        with(39, 7),
        ["38: the UDP length says 7 bytes, its header alone has 8"]
    );
    let cut = read(&good[..30], Link::Ethernet);
    assert_eq!(
        problems(&cut),
        ["30: IPv4 is cut short: destination takes 4 bytes, 0 are there: the frame ends there"]
    );
    assert_eq!(
        problems(&read(&vxlan(&good)[..47], Link::Ethernet)),
        [
            "46: VXLAN is cut short: network identifier takes 3 bytes, 1 are there: the frame ends there",
            "14: the packet would have 83 bytes, but 33 were on the wire: the lengths do not add up"
        ]
    );
    assert_eq!(
        problems(&read(&[], Link::Raw)),
        ["0: no IP packet: no byte is left for one"]
    );
    assert_eq!(
        problems(&read(&[0x10], Link::Raw)),
        ["0: no IP packet: version 1 is neither 4 nor 6"]
    );
}

#[test]
fn only_superpackets_may_have_a_length_of_zero() {
    let checksum = |dissection: &Dissection| field(dissection, "UDP", "checksum").checksum;
    let mut frame = udp(53, b"hello");
    frame[16..18].fill(0);
    let dissection = read(&frame, Link::Ethernet);
    assert_eq!(names(&dissection), ["Ethernet", "IPv4", "UDP", "payload"]);
    assert_eq!(dissection.sum.unwrap().original, 33);
    assert!(problems(&dissection)[0].starts_with("16: the total length says 0 bytes"));
    assert_eq!(field(&dissection, "IPv4", "total length").meaning, "");
    assert_eq!(
        checksum(&dissection),
        Some(Verdict::Unknown("the packet does not say where it ends"))
    );
    frame[38..40].fill(0);
    frame.resize(14 + 20 + 65_536, 0);
    let dissection = read(&frame, Link::Ethernet);
    assert_eq!(problems(&dissection), [""; 0]);
    assert!(
        field(&dissection, "IPv4", "total length")
            .meaning
            .starts_with("a superpacket")
    );

    // IPv6, where what follows is a UDP header of length 0.
    let mut frame = ipv6(17, &[0, 7, 0, 9, 0, 0, 1, 2]);
    frame[18..20].fill(0);
    let dissection = read(&frame, Link::Ethernet);
    assert_eq!(problems(&dissection).len(), 2, "{dissection:#?}");
    assert!(problems(&dissection)[0].starts_with("18: the payload length says 0 bytes"));
    assert!(problems(&dissection)[1].starts_with("58: the UDP length says 0 bytes"));
    frame.resize(14 + 40 + 65_536, 0);
    assert_eq!(problems(&read(&frame, Link::Ethernet)), [""; 0]);
}

#[test]
fn a_udp_length_beyond_the_packet_is_no_cut_capture() {
    let mut frame = udp(53, b"hey");
    frame[38..40].copy_from_slice(&200u16.to_be_bytes());
    let dissection = read(&frame, Link::Ethernet);
    assert_eq!(
        problems(&dissection),
        ["38: the UDP length says 200 bytes, the IP packet has 11 for it"]
    );
    let checksum = |dissection: &Dissection| field(dissection, "UDP", "checksum").checksum;
    let beyond = "the datagram says that it is longer than its IP packet";
    assert_eq!(checksum(&dissection), Some(Verdict::Unknown(beyond)));
    // Its capture may be cut as well: both are said.
    let mut cut = Dissection::default();
    cut.read(&frame[..44], 45, Link::Ethernet, &Ports::default());
    assert_eq!(problems(&cut).len(), 2);
    // A whole datagram of which the capture kept a part.
    let whole = udp(53, b"hey");
    cut.read(&whole[..44], 45, Link::Ethernet, &Ports::default());
    assert_eq!(problems(&cut).len(), 1);
    let captured = "not all that it covers was captured";
    assert_eq!(checksum(&cut), Some(Verdict::Unknown(captured)));
}

#[test]
fn jumbograms_are_held_against_their_option() {
    let jumbogram = |payload_len: u16, jumbo: u32, len: usize| {
        let mut payload = vec![17, 0, 0xc2, 4];
        payload.extend(jumbo.to_be_bytes());
        payload.extend([0, 7, 0, 9, 0, 0, 1, 2]);
        payload.resize(len, 0);
        let mut frame = ipv6(0, &[]);
        frame[18..20].copy_from_slice(&payload_len.to_be_bytes());
        frame.extend(payload);
        read(&frame, Link::Ethernet)
    };
    let option = ("IPv6 hop-by-hop options", "jumbo payload length");
    let good = jumbogram(0, 65_544, 65_544);
    assert_eq!(problems(&good), [""; 0]);
    assert_eq!(
        field(&good, option.0, option.1).value,
        Value::Number(65_544)
    );
    assert!(matches!(
        field(&good, "UDP", "checksum").checksum,
        Some(Verdict::Wrong(_))
    ));
    let lacking = jumbogram(0, 65_544, 108);
    assert_eq!(
        problems(&lacking),
        [
            "14: the packet would have 65584 bytes, but 148 were on the wire: the lengths do not add up"
        ]
    );
    assert_eq!(
        field(&lacking, "UDP", "checksum").checksum,
        Some(Verdict::Unknown(
            "the packet says that it is longer than what is there"
        ))
    );
    assert!(problems(&jumbogram(0, 108, 108))[0].starts_with("56: a jumbo payload of 108 bytes"));
    assert!(
        problems(&jumbogram(16, 65_536, 16))[0].ends_with("a payload length of 16: it must be 0")
    );
}

#[test]
fn bytes_without_a_link_type_are_guessed() {
    let frame = udp(53, b"hello");
    assert_eq!(guess_link(&frame), Link::Ethernet);
    assert_eq!(guess_link(&frame[14..]), Link::Raw);
    assert_eq!(guess_link(&tcp6()), Link::Raw);
    // A MAC address may begin like an IPv4 header.
    let mut frame = frame;
    frame[0] = 0x45;
    assert_eq!(guess_link(&frame), Link::Ethernet);
    assert_eq!(guess_link(&[]), Link::Ethernet);
    // What `tcpdump -x` prints of an ARP frame begins behind the Ethernet header.
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend([2; 20]);
    assert_eq!(guess_link(&arp), Link::Raw);
    assert_eq!(names(&read(&arp, Link::Raw)), ["ARP"]);
}
