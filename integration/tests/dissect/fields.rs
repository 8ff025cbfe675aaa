//! Every field that dissect names, held against tshark's reading of the same capture.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use etherparse::{PacketBuilder, TcpOptionElement};
use integration::pcap::{Capture, ETHERNET};
use integration::tshark::{self, Layer};
use serde_json::Value;

use super::{dissect, err, fixture, out};

fn frames(path: &Path) -> Vec<Value> {
    let output = dissect(&["--json", path.to_str().unwrap()], b"");
    assert!(output.status.success(), "{}", err(&output));
    assert_eq!(err(&output), "");
    out(&output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Our field (layer, name), tshark's, and by what ours must be multiplied: tshark tells header lengths in bytes.
const FIELDS: &[(&str, &str, &str, u64)] = &[
    ("Ethernet", "destination", "eth.dst", 1),
    ("Ethernet", "source", "eth.src", 1),
    ("Ethernet", "EtherType", "eth.type", 1),
    ("VLAN tag", "priority", "vlan.priority", 1),
    ("VLAN tag", "drop eligible", "vlan.dei", 1),
    ("VLAN tag", "VLAN ID", "vlan.id", 1),
    ("VLAN tag", "EtherType", "vlan.etype", 1),
    ("ARP", "hardware type", "arp.hw.type", 1),
    ("ARP", "protocol type", "arp.proto.type", 1),
    ("ARP", "hardware address length", "arp.hw.size", 1),
    ("ARP", "protocol address length", "arp.proto.size", 1),
    ("ARP", "operation", "arp.opcode", 1),
    ("ARP", "sender hardware address", "arp.src.hw_mac", 1),
    ("ARP", "sender protocol address", "arp.src.proto_ipv4", 1),
    ("ARP", "target hardware address", "arp.dst.hw_mac", 1),
    ("ARP", "target protocol address", "arp.dst.proto_ipv4", 1),
    ("IPv4", "version", "ip.version", 1),
    ("IPv4", "header length", "ip.hdr_len", 4),
    ("IPv4", "differentiated services", "ip.dsfield.dscp", 1),
    ("IPv4", "congestion notification", "ip.dsfield.ecn", 1),
    ("IPv4", "total length", "ip.len", 1),
    ("IPv4", "identification", "ip.id", 1),
    ("IPv4", "reserved flag", "ip.flags.rb", 1),
    ("IPv4", "don't fragment", "ip.flags.df", 1),
    ("IPv4", "more fragments", "ip.flags.mf", 1),
    ("IPv4", "fragment offset", "ip.frag_offset", 1),
    ("IPv4", "time to live", "ip.ttl", 1),
    ("IPv4", "protocol", "ip.proto", 1),
    ("IPv4", "header checksum", "ip.checksum", 1),
    ("IPv4", "source", "ip.src", 1),
    ("IPv4", "destination", "ip.dst", 1),
    ("IPv4", "option type", "ip.opt.type", 1),
    ("IPv4", "option length", "ip.opt.len", 1),
    ("IPv6", "version", "ipv6.version", 1),
    ("IPv6", "differentiated services", "ipv6.tclass.dscp", 1),
    ("IPv6", "congestion notification", "ipv6.tclass.ecn", 1),
    ("IPv6", "flow label", "ipv6.flow", 1),
    ("IPv6", "payload length", "ipv6.plen", 1),
    ("IPv6", "next header", "ipv6.nxt", 1),
    ("IPv6", "hop limit", "ipv6.hlim", 1),
    ("IPv6", "source", "ipv6.src", 1),
    ("IPv6", "destination", "ipv6.dst", 1),
    (
        "IPv6 hop-by-hop options",
        "next header",
        "ipv6.hopopts.nxt",
        1,
    ),
    (
        "IPv6 hop-by-hop options",
        "header length",
        "ipv6.hopopts.len",
        1,
    ),
    ("IPv6 hop-by-hop options", "option type", "ipv6.opt.type", 1),
    (
        "IPv6 hop-by-hop options",
        "option length",
        "ipv6.opt.length",
        1,
    ),
    ("IPv6 fragment", "next header", "ipv6.fraghdr.nxt", 1),
    ("IPv6 fragment", "fragment offset", "ipv6.fraghdr.offset", 1),
    ("IPv6 fragment", "more fragments", "ipv6.fraghdr.more", 1),
    ("IPv6 fragment", "identification", "ipv6.fraghdr.ident", 1),
    ("UDP", "source port", "udp.srcport", 1),
    ("UDP", "destination port", "udp.dstport", 1),
    ("UDP", "length", "udp.length", 1),
    ("UDP", "checksum", "udp.checksum", 1),
    ("VXLAN", "I flag", "vxlan.flag_i", 1),
    ("VXLAN", "network identifier", "vxlan.vni", 1),
    ("VXLAN-GPE", "version", "vxlan.ver", 1),
    ("VXLAN-GPE", "I flag", "vxlan.i_bit", 1),
    ("VXLAN-GPE", "P flag", "vxlan.p_bit", 1),
    ("VXLAN-GPE", "O flag", "vxlan.o_bit", 1),
    ("VXLAN-GPE", "next protocol", "vxlan.next_proto", 1),
    ("VXLAN-GPE", "network identifier", "vxlan.vni", 1),
    ("Geneve", "version", "geneve.version", 1),
    ("Geneve", "O flag", "geneve.flags.oam", 1),
    ("Geneve", "C flag", "geneve.flags.critical", 1),
    ("Geneve", "protocol type", "geneve.proto_type", 1),
    ("Geneve", "network identifier", "geneve.vni", 1),
    ("Geneve", "option class", "geneve.option.class", 1),
    ("Geneve", "option type", "geneve.option.type", 1),
    (
        "IPv6 hop-by-hop options",
        "jumbo payload length",
        "ipv6.opt.jumbo",
        1,
    ),
    ("IPv6 routing", "next header", "ipv6.routing.nxt", 1),
    ("IPv6 routing", "header length", "ipv6.routing.len", 1),
    ("IPv6 routing", "routing type", "ipv6.routing.type", 1),
    ("IPv6 routing", "segments left", "ipv6.routing.segleft", 1),
    (
        "IPv6 routing",
        "last entry",
        "ipv6.routing.srh.last_entry",
        1,
    ),
    ("IPv6 routing", "flags", "ipv6.routing.srh.flags", 1),
    ("IPv6 routing", "segment", "ipv6.routing.srh.addr", 1),
    ("IGMP", "type", "igmp.type", 1),
    ("IGMP", "maximum response code", "igmp.max_resp", 1),
    ("IGMP", "checksum", "igmp.checksum", 1),
    ("IGMP", "group", "igmp.maddr", 1),
    ("IGMP", "suppress", "igmp.s", 1),
    ("IGMP", "robustness", "igmp.qrv", 1),
    ("IGMP", "query interval code", "igmp.qqic", 1),
    ("IGMP", "number of sources", "igmp.num_src", 1),
    ("IGMP", "source", "igmp.saddr", 1),
    ("IGMP", "number of records", "igmp.num_grp_recs", 1),
    ("IGMP", "record type", "igmp.record_type", 1),
    ("IGMP", "auxiliary data length", "igmp.aux_data_len", 1),
    ("MPLS", "label", "mpls.label", 1),
    ("MPLS", "traffic class", "mpls.exp", 1),
    ("MPLS", "bottom of stack", "mpls.bottom", 1),
    ("MPLS", "time to live", "mpls.ttl", 1),
    ("GRE", "payload length", "gre.key.payload_length", 1),
    ("GRE", "call ID", "gre.key.call_id", 1),
    ("GRE", "acknowledgment number", "gre.ack_number", 1),
    ("ICMP extensions", "version", "icmp.ext.version", 1),
    ("ICMP extensions", "checksum", "icmp.ext.checksum", 1),
    ("ICMP extensions", "object length", "icmp.ext.length", 1),
    ("ICMP extensions", "object class", "icmp.ext.class", 1),
    ("ICMP extensions", "object type", "icmp.ext.ctype", 1),
    ("ICMP extensions", "label", "icmp.mpls.label", 1),
    ("ICMP extensions", "traffic class", "icmp.mpls.exp", 1),
    ("ICMP extensions", "bottom of stack", "icmp.mpls.s", 1),
    ("ICMP extensions", "time to live", "icmp.mpls.ttl", 1),
    ("GRE", "checksum present", "gre.flags.checksum", 1),
    ("GRE", "routing present", "gre.flags.routing", 1),
    ("GRE", "key present", "gre.flags.key", 1),
    (
        "GRE",
        "sequence number present",
        "gre.flags.sequence_number",
        1,
    ),
    ("GRE", "version", "gre.flags.version", 1),
    ("GRE", "protocol type", "gre.proto", 1),
    ("GRE", "checksum", "gre.checksum", 1),
    ("GRE", "key", "gre.key", 1),
    ("GRE", "sequence number", "gre.sequence_number", 1),
    ("WireGuard", "message type", "wg.type", 1),
    ("WireGuard", "sender index", "wg.sender", 1),
    ("WireGuard", "receiver index", "wg.receiver", 1),
    ("WireGuard", "counter", "wg.counter", 1),
    ("WireGuard", "nonce", "wg.nonce", 1),
    ("WireGuard", "MAC 1", "wg.mac1", 1),
    ("WireGuard", "MAC 2", "wg.mac2", 1),
    ("TCP", "source port", "tcp.srcport", 1),
    ("TCP", "destination port", "tcp.dstport", 1),
    ("TCP", "sequence number", "tcp.seq_raw", 1),
    ("TCP", "acknowledgment number", "tcp.ack_raw", 1),
    ("TCP", "data offset", "tcp.hdr_len", 4),
    ("TCP", "CWR", "tcp.flags.cwr", 1),
    ("TCP", "ECE", "tcp.flags.ece", 1),
    ("TCP", "URG", "tcp.flags.urg", 1),
    ("TCP", "ACK", "tcp.flags.ack", 1),
    ("TCP", "PSH", "tcp.flags.push", 1),
    ("TCP", "RST", "tcp.flags.reset", 1),
    ("TCP", "SYN", "tcp.flags.syn", 1),
    ("TCP", "FIN", "tcp.flags.fin", 1),
    ("TCP", "window", "tcp.window_size_value", 1),
    ("TCP", "checksum", "tcp.checksum", 1),
    ("TCP", "urgent pointer", "tcp.urgent_pointer", 1),
    ("TCP", "option kind", "tcp.option_kind", 1),
    ("TCP", "option length", "tcp.option_len", 1),
    ("TCP", "maximum segment size", "tcp.options.mss_val", 1),
    ("TCP", "window scale", "tcp.options.wscale.shift", 1),
    ("TCP", "timestamp", "tcp.options.timestamp.tsval", 1),
    ("TCP", "timestamp echo", "tcp.options.timestamp.tsecr", 1),
    ("TCP", "left edge", "tcp.options.sack_le", 1),
    ("TCP", "right edge", "tcp.options.sack_re", 1),
    ("ICMP", "type", "icmp.type", 1),
    ("ICMP", "code", "icmp.code", 1),
    ("ICMP", "checksum", "icmp.checksum", 1),
    ("ICMP", "identifier", "icmp.ident", 1),
    ("ICMP", "sequence number", "icmp.seq", 1),
    ("ICMP", "quotation length", "icmp.length", 1),
    ("ICMP", "next-hop MTU", "icmp.mtu", 1),
    ("ICMPv6", "type", "icmpv6.type", 1),
    ("ICMPv6", "code", "icmpv6.code", 1),
    ("ICMPv6", "checksum", "icmpv6.checksum", 1),
    ("ICMPv6", "identifier", "icmpv6.echo.identifier", 1),
    (
        "ICMPv6",
        "sequence number",
        "icmpv6.echo.sequence_number",
        1,
    ),
    ("ICMPv6", "MTU", "icmpv6.mtu", 1),
    ("ICMPv6", "router", "icmpv6.nd.na.flag.r", 1),
    ("ICMPv6", "solicited", "icmpv6.nd.na.flag.s", 1),
    ("ICMPv6", "override", "icmpv6.nd.na.flag.o", 1),
    ("ICMPv6", "option type", "icmpv6.opt.type", 1),
    ("ICMPv6", "option length", "icmpv6.opt.length", 1),
    ("ICMPv6", "link-layer address", "icmpv6.opt.linkaddr", 1),
];

/// tshark has a field for each message that has a target: together they are ours.
const TARGETS: [&str; 2] = ["icmpv6.nd.ns.target_address", "icmpv6.nd.na.target_address"];

/// Those that tshark has no value of its own for, or another one in each place. That they are zero is seen here.
const ZERO: &[&str] = &["reserved", "unused", "quotation length"];

/// Those that tshark tells otherwise: bytes as what they stand for, as base64, as one field with their neighbour, or with
/// the length of another header.
const UNTOLD: &[&str] = &[
    "option data",
    "option padding",
    "flags",
    "tag",
    "strict source route",
    "recursion control",
    "acknowledgment present",
    "options length",
    "B flag",
    "option length",
    "ephemeral key",
    "sealed static key",
    "sealed timestamp",
    "sealed nothing",
    "sealed cookie",
    "sealed packet",
    "authentication tag",
];

/// Checksums, and tshark's verdict: 0 bad, 1 good, 2 not verified, 3 absent.
const VERDICTS: &[(&str, &str)] = &[
    ("IPv4", "ip.checksum.status"),
    ("UDP", "udp.checksum.status"),
    ("GRE", "gre.checksum.status"),
    ("TCP", "tcp.checksum.status"),
    ("ICMP", "icmp.checksum.status"),
    ("IGMP", "igmp.checksum.status"),
    ("ICMP extensions", "icmp.ext.checksum.status"),
    ("ICMPv6", "icmpv6.checksum.status"),
];

/// A value in one way of writing, whoever wrote it.
fn plain(text: &str) -> String {
    match text
        .strip_prefix("0x")
        .map(|digits| u64::from_str_radix(digits, 16))
    {
        Some(Ok(number)) => number.to_string(),
        _ => match text {
            "True" => "1".to_owned(),
            "False" => "0".to_owned(),
            _ => text.to_owned(),
        },
    }
}

/// Reads a file with both, and compares every field of every frame. Returns the fields that were seen.
pub(super) fn compare(path: &Path, decode: (u16, &str)) -> BTreeSet<(String, String)> {
    assert!(
        tshark::is_installed(),
        "tshark is missing: install it (`./dev test` does), or what dissect says goes unchecked"
    );
    let ours = frames(path);
    let names: Vec<_> = FIELDS.iter().map(|field| field.2).collect();
    let verdicts: Vec<_> = VERDICTS.iter().map(|verdict| verdict.1).collect();
    let columns = [
        &names[..],
        &verdicts,
        &TARGETS,
        &["frame.len", "frame.cap_len", "tcp.payload"],
    ]
    .concat();
    let theirs = tshark::fields(path, decode, Layer::All, &columns).unwrap();
    assert_eq!(ours.len(), theirs.len());
    let mut seen = BTreeSet::new();
    for (frame, values) in ours.iter().zip(&theirs) {
        let number = &frame["frame"];
        let theirs: BTreeMap<&str, Vec<String>> = columns
            .iter()
            .zip(values)
            .map(|(&column, value)| {
                let values = value.split(',').filter(|value| !value.is_empty());
                (column, values.map(plain).collect())
            })
            .collect();
        let mut found: BTreeMap<&str, Vec<String>> =
            columns.iter().map(|&column| (column, Vec::new())).collect();
        for layer in frame["layers"].as_array().unwrap() {
            let layer_name = layer["name"].as_str().unwrap();
            for field in layer["fields"].as_array().unwrap() {
                let name = field["name"].as_str().unwrap();
                seen.insert((layer_name.to_owned(), name.to_owned()));
                if let Some(verdict) = field["checksum"].as_str() {
                    let column = VERDICTS
                        .iter()
                        .find(|verdict| verdict.0 == layer_name)
                        .unwrap()
                        .1;
                    let status = match verdict {
                        "right" => "1",
                        // tshark knows no unfinished ones.
                        "wrong" | "unfinished" | "deferred" => "0",
                        "unknown" => "2",
                        "absent" => "3",
                        other => panic!("{other}"),
                    };
                    found.get_mut(column).unwrap().push(status.to_owned());
                }
                let value = |factor: u64| match &field["value"] {
                    Value::Number(number) => (number.as_u64().unwrap() * factor).to_string(),
                    Value::String(text) => text.clone(),
                    Value::Null => field["hex"].as_str().unwrap().to_owned(),
                    other => panic!("{layer_name} {name}: {other}"),
                };
                if let Some(&(.., column, factor)) = FIELDS
                    .iter()
                    .find(|known| (known.0, known.1) == (layer_name, name))
                    // Of zero lengths tshark says nothing.
                    .filter(|_| !ZERO.contains(&name) || field["value"] != 0)
                {
                    found.get_mut(column).unwrap().push(value(factor));
                    if column == "ipv6.version" {
                        // tshark gives it under this name as well.
                        found.get_mut("ip.version").unwrap().push(value(1));
                    }
                } else if (layer_name, name) == ("ICMPv6", "target") {
                    let column = usize::from(found["icmpv6.type"] == ["136"]);
                    found.get_mut(TARGETS[column]).unwrap().push(value(1));
                } else if ZERO.contains(&name) {
                    assert_eq!(field["value"], 0, "frame {number}: {layer_name} {name}");
                } else if layer["role"] == "payload" {
                    let is_tcp = !found["tcp.srcport"].is_empty() && found["icmp.type"].is_empty();
                    if is_tcp {
                        let bytes = field["hex"].as_str().unwrap().to_owned();
                        found.get_mut("tcp.payload").unwrap().push(bytes);
                    }
                } else if layer["role"] == "header" && !UNTOLD.contains(&name) {
                    panic!("frame {number}: nothing to hold {layer_name} {name} against");
                }
            }
        }
        found.insert("frame.len", vec![frame["wire"].to_string()]);
        found.insert("frame.cap_len", vec![frame["captured"].to_string()]);
        for (column, values) in &found {
            assert_eq!(
                values,
                &theirs[column],
                "frame {number} of {}: {column}",
                path.display()
            );
        }
        let layers = frame["layers"].as_array().unwrap();
        let last = layers.last().unwrap();
        let end = last["offset"].as_u64().unwrap() + last["length"].as_u64().unwrap();
        assert_eq!(end, frame["captured"].as_u64().unwrap());
        assert_eq!(frame["version"], 1);
    }
    seen
}

#[test]
fn every_field_of_flannels_traffic_is_what_tshark_reads() {
    let mut seen = BTreeSet::new();
    for (backend, decode) in [
        ("udp", (8285, "ip")),
        ("vxlan", (8472, "vxlan")),
        ("vxlan-dualstack", (8472, "vxlan")),
        ("vxlan-directrouting", (8472, "vxlan")),
        ("host-gw", (8472, "vxlan")),
    ] {
        seen.extend(compare(&fixture(backend), decode));
    }
    // It would be no comparison if nothing had been compared.
    for expected in [
        ("TCP", "timestamp"),
        ("VXLAN", "network identifier"),
        ("ICMPv6", "target"),
        ("ARP", "operation"),
    ] {
        assert!(
            seen.contains(&(expected.0.to_owned(), expected.1.to_owned())),
            "{expected:?}"
        );
    }
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let header = [0x6b, 0x81, 0x23, 0x45, len[0], len[1], next, 64];
    let addresses = [[0xfd; 16], [0xfc; 16]].concat();
    [&[2; 12][..], &[0x86, 0xdd], &header, &addresses, payload].concat()
}

/// What flannel's traffic has none of.
fn rare_frames() -> Vec<Vec<u8>> {
    let ethernet = || PacketBuilder::ethernet2([2; 6], [4; 6]);
    let write = |builder: etherparse::PacketBuilderStep<etherparse::UdpHeader>, payload: &[u8]| {
        let mut frame = Vec::new();
        builder.write(&mut frame, payload).unwrap();
        frame
    };
    let plain = write(
        ethernet().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9).udp(7, 9),
        b"hello",
    );
    let vlan = ethernet().single_vlan(100.try_into().unwrap());
    let tagged = write(
        vlan.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9).udp(7, 9),
        b"hello",
    );
    let vxlan = |inner: &[u8]| {
        let datagram = [&[8, 0, 0, 0, 0xab, 0xcd, 0xef, 0], inner].concat();
        write(
            ethernet().ipv6([0xfd; 16], [0xfc; 16], 9).udp(50_000, 4789),
            &datagram,
        )
    };
    let mut sack = Vec::new();
    ethernet()
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
        .tcp(1000, 2000, 0xffff_fff0, 77)
        .ack(5)
        .cwr()
        .ece()
        .options(&[
            TcpOptionElement::Noop,
            TcpOptionElement::Noop,
            TcpOptionElement::SelectiveAcknowledgement((5, 9), [Some((20, 30)), None, None]),
        ])
        .unwrap()
        .write(&mut sack, &[])
        .unwrap();
    let mut too_big = Vec::new();
    ethernet()
        .ipv4([10, 0, 0, 2], [10, 0, 0, 1], 9)
        .icmpv4_raw(3, 4, [0, 0, 5, 0xaa])
        .write(&mut too_big, &plain[14..])
        .unwrap();
    let mut too_big6 = Vec::new();
    ethernet()
        .ipv6([0xfd; 16], [0xfc; 16], 9)
        .icmpv6_raw(2, 0, [0, 0, 5, 0])
        .write(&mut too_big6, &ipv6(17, &[0, 7, 0, 9, 0, 9, 1, 2, 3])[14..])
        .unwrap();
    let mut bad = plain.clone();
    *bad.last_mut().unwrap() ^= 1;
    bad[14 + 8] = 8;
    let mut absent = plain.clone();
    absent[40..42].fill(0);
    let mut fragment = plain.clone();
    fragment[20..22].copy_from_slice(&[0x20, 0x00]);
    let mut later = plain.clone();
    later[20..22].copy_from_slice(&[0x00, 0x10]);
    let mut options = plain.clone();
    options[14] = 0x46;
    options[17] += 4;
    options.splice(34..34, [148, 4, 0, 0]);
    let hop_by_hop = ipv6(
        0,
        &[
            44, 0, 5, 2, 0, 0, 1, 0, 17, 0, 0x05, 0xb1, 9, 9, 9, 9, 1, 2, 3,
        ],
    );
    vec![
        tagged,
        vxlan(&plain),
        vxlan(&vxlan(&sack)),
        sack,
        too_big,
        too_big6,
        bad,
        absent,
        fragment,
        later,
        options,
        hop_by_hop,
    ]
}

#[test]
fn every_field_of_rare_frames_is_what_tshark_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rare.pcap");
    let capture = Capture {
        link: ETHERNET,
        frames: rare_frames(),
    };
    fs::write(&path, capture.emit().unwrap()).unwrap();
    let seen = compare(&path, (4789, "vxlan"));
    for expected in [
        ("VLAN tag", "VLAN ID"),
        ("TCP", "left edge"),
        ("ICMP", "next-hop MTU"),
        ("IPv6 fragment", "fragment offset"),
    ] {
        assert!(
            seen.contains(&(expected.0.to_owned(), expected.1.to_owned())),
            "{expected:?}"
        );
    }
}
