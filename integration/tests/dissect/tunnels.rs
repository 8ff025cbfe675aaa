//! The tunnels that flannel does not use, held against tshark's reading.

use std::fs;

use encap::checksum;
use etherparse::{IpNumber, PacketBuilder};
use integration::pcap::{Capture, ETHERNET};

use super::fields::compare;

fn udp(port: u16, parts: &[&[u8]]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
        .udp(50_000, port)
        .write(&mut frame, &parts.concat())
        .unwrap();
    frame
}

fn gre(parts: &[&[u8]]) -> Vec<u8> {
    let mut frame = [&[2; 12][..], &[8, 0]].concat();
    PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
        .write(&mut frame, IpNumber::GRE, &parts.concat())
        .unwrap();
    frame
}

/// The same in IPv6, which `PacketBuilder` gives an extension header if asked to.
fn gre6(parts: &[&[u8]]) -> Vec<u8> {
    let payload = parts.concat();
    let len = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let header = [0x60, 0, 0, 0, len[0], len[1], 47, 64];
    let addresses = [[0xfd; 16], [0xfc; 16]].concat();
    [&[2; 12][..], &[0x86, 0xdd], &header, &addresses, &payload].concat()
}

/// A message of WireGuard: its kind, then bytes that differ.
fn wireguard(kind: u8, len: u8) -> Vec<u8> {
    let bytes: Vec<u8> = [kind, 0, 0, 0].into_iter().chain(4..len).collect();
    udp(51820, &[&bytes])
}

fn frames() -> Vec<Vec<u8>> {
    let inner = udp(9, &[b"hello"]);
    let packet = &inner[14..];
    let mut sum = [
        &[
            0xb0, 0, 0x65, 0x58, 0, 0, 0, 0, 0xde, 0xad, 0xbe, 0xef, 0, 0, 1, 2,
        ],
        &inner[..],
    ]
    .concat();
    let right = !checksum::sum(&sum);
    sum[4..6].copy_from_slice(&right.to_be_bytes());
    let mut wrong = sum.clone();
    wrong[5] ^= 1;
    let geneve: &[u8] = &[3, 0x40, 0x65, 0x58, 0x12, 0x34, 0x56, 0];
    let options: &[u8] = &[1, 2, 0x80, 1, 0, 1, 0, 2, 0xff, 0xff, 3, 0];
    vec![
        gre(&[&[0, 0, 8, 0], packet]),
        gre(&[&[0x20, 0, 8, 0, 0, 0, 0, 7], packet]),
        gre(&[&sum]),
        gre(&[&wrong]),
        gre6(&[&[0x10, 0, 8, 0, 0, 0, 0, 9], packet]),
        udp(6081, &[geneve, options, &inner]),
        udp(6081, &[&[0, 0, 8, 0, 0, 0, 9, 0], packet]),
        // Nested: Geneve in GRE in VXLAN-GPE.
        udp(
            4790,
            &[
                &[0x0c, 0, 0, 1, 0, 0, 5, 0],
                &gre(&[&[0, 0, 0x65, 0x58], &udp(6081, &[geneve, options, &inner])])[14..],
            ],
        ),
        udp(4790, &[&[0x0c, 0, 0, 3, 0, 0, 5, 0], &inner]),
        wireguard(1, 148),
        wireguard(2, 92),
        wireguard(3, 64),
        wireguard(4, 32),
        wireguard(4, 96),
    ]
}

#[test]
fn every_field_of_other_tunnels_is_what_tshark_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tunnels.pcap");
    let capture = Capture {
        link: ETHERNET,
        frames: frames(),
    };
    fs::write(&path, capture.emit().unwrap()).unwrap();
    let seen = compare(&path, (51820, "wg"));
    for expected in [
        ("GRE", "key"),
        ("GRE", "sequence number"),
        ("GRE", "checksum"),
        ("Geneve", "option class"),
        ("VXLAN-GPE", "next protocol"),
        ("WireGuard", "sender index"),
        ("WireGuard", "nonce"),
        ("WireGuard", "MAC 2"),
        ("WireGuard", "sealed packet"),
    ] {
        assert!(
            seen.contains(&(expected.0.to_owned(), expected.1.to_owned())),
            "{expected:?}"
        );
    }
}

fn with_checksum(mut message: Vec<u8>, at: usize) -> Vec<u8> {
    let right = !checksum::sum(&message);
    message[at..at + 2].copy_from_slice(&right.to_be_bytes());
    message
}

/// Labels, groups, segments, and what routers say of labels in their errors.
fn other_headers() -> Vec<Vec<u8>> {
    let ether = |ether_type: [u8; 2], rest: &[u8]| [&[2; 12][..], &ether_type, rest].concat();
    let ip = |protocol: u8, payload: &[u8]| {
        let mut frame = ether([8, 0], &[]);
        PacketBuilder::ipv4([10, 0, 0, 1], [224, 0, 0, 22], 1)
            .write(&mut frame, IpNumber(protocol), payload)
            .unwrap();
        frame
    };
    let inner = udp(9, &[b"hello"]);
    let labels = [&[0, 1, 0, 64, 0, 2, 0x5b, 63], &inner[14..]].concat();
    let report = vec![
        0x22, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 1, 239, 1, 2, 3, 10, 0, 0, 1,
    ];
    let query = vec![0x11, 100, 0, 0, 239, 1, 2, 3, 0x0a, 125, 0, 1, 10, 0, 0, 9];
    let mut segments = vec![0x60, 0, 0, 0, 0, 40, 43, 64];
    segments.extend([[0xfd; 16], [0xfc; 16]].concat());
    segments.extend([59, 4, 4, 1, 1, 0, 0, 7]);
    segments.extend([[0xfa; 16], [0xfc; 16]].concat());
    let mut error = vec![11, 0, 0, 0, 0, 32, 0, 0];
    error.extend_from_slice(&inner[14..]);
    error.resize(8 + 128, 0);
    error.extend(with_checksum(
        vec![0x20, 0, 0, 0, 0, 8, 1, 1, 0, 1, 1, 64],
        2,
    ));
    vec![
        ether([0x88, 0x47], &labels),
        ip(2, &with_checksum(report, 2)),
        ip(2, &with_checksum(query, 2)),
        ip(2, &with_checksum(vec![0x16, 0, 0, 0, 239, 1, 2, 3], 2)),
        ether([0x86, 0xdd], &segments),
        gre(&[
            &[0x30, 0x81, 0x88, 0x0b, 0, 8, 0, 7, 0, 0, 0, 1, 0, 0, 0, 2],
            &[0xff, 3, 0xc0, 0x21, 9, 1, 0, 4],
        ]),
        ip(1, &with_checksum(error, 2)),
    ]
}

#[test]
fn every_field_of_other_headers_is_what_tshark_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("headers.pcap");
    let capture = Capture {
        link: ETHERNET,
        frames: other_headers(),
    };
    fs::write(&path, capture.emit().unwrap()).unwrap();
    let seen = compare(&path, (51820, "wg"));
    for expected in [
        ("MPLS", "label"),
        ("IGMP", "record type"),
        ("IPv6 routing", "segment"),
        ("GRE", "call ID"),
        ("ICMP extensions", "label"),
    ] {
        assert!(
            seen.contains(&(expected.0.to_owned(), expected.1.to_owned())),
            "{expected:?}"
        );
    }
}
