//! Tunnels other than flannel's, and ARP of other hardware.

use super::*;

/// An IPv4 packet of protocol 47 in Ethernet.
fn gre(header: &[u8], inside: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([8, 0]);
    let payload = [header, inside].concat();
    PacketBuilder::ipv4([10, 99, 0, 1], [10, 99, 0, 2], 64)
        .write(&mut frame, etherparse::IpNumber(47), &payload)
        .unwrap();
    frame
}

fn inner() -> Vec<u8> {
    udp(53, b"hello")
}

#[test]
fn gre_with_and_without_its_optional_fields() {
    let plain = read(&gre(&[0, 0, 8, 0], &inner()[14..]), Link::Ethernet);
    assert_eq!(
        names(&plain),
        ["Ethernet", "IPv4", "GRE", "IPv4", "UDP", "payload"]
    );
    assert_eq!(problems(&plain), [""; 0]);
    assert_eq!(
        (plain.sum.unwrap().original, plain.sum.unwrap().overhead),
        (33, 38)
    );
    assert_eq!(
        plain.summary,
        "10.99.0.1 > 10.99.0.2 | GRE: 10.99.0.1 > 10.99.0.2 UDP 50000 > 53"
    );
    // All of RFC 2890's, around a bridged frame.
    let mut header = vec![0xb0, 0, 0x65, 0x58, 0, 0, 0, 0];
    header.extend([0, 0, 0, 7, 0, 0, 0, 9]);
    let covered = [&header[..], &inner()].concat();
    let right = !checksum::sum(&covered);
    header[4..6].copy_from_slice(&right.to_be_bytes());
    let full = read(&gre(&header, &inner()), Link::Ethernet);
    assert_eq!(
        names(&full)[2..],
        ["GRE", "Ethernet", "IPv4", "UDP", "payload"]
    );
    assert_eq!(field(&full, "GRE", "key").value, Value::Hex(7));
    assert_eq!(
        field(&full, "GRE", "sequence number").value,
        Value::Number(9)
    );
    let verdict = |dissection: &Dissection| field(dissection, "GRE", "checksum").checksum;
    assert_eq!(verdict(&full), Some(Verdict::Right));
    header[15] = 10;
    let bad = read(&gre(&header, &inner()), Link::Ethernet);
    assert_eq!(verdict(&bad), Some(Verdict::Wrong(right - 1)));
    // What is cut short, and what is another protocol under the same number.
    let cut = read(&gre(&header[..10], &[]), Link::Ethernet);
    assert!(problems(&cut)[0].contains("GRE is cut short: key takes 4 bytes, 2 are there"));
    let pptp = gre(
        &[0x30, 0x81, 0x88, 0x0b],
        &[0, 2, 0, 7, 0, 0, 0, 1, 0, 0, 0, 2, 0xff, 3],
    );
    let pptp = read(&pptp, Link::Ethernet);
    assert_eq!(names(&pptp)[2..], ["GRE", "PPP"]);
    assert_eq!(field(&pptp, "GRE", "call ID").value, Value::Number(7));
    assert_eq!(
        field(&pptp, "GRE", "acknowledgment number").value,
        Value::Number(2)
    );
    let routed = read(&gre(&[0x40, 0, 8, 0], &inner()[14..]), Link::Ethernet);
    assert_eq!(names(&routed)[2..], ["GRE", "payload"]);
    assert!(problems(&routed)[0].contains("routing bit"));
    // A small protocol type is no length, as it would be in Ethernet.
    let odd = read(&gre(&[0, 0, 0, 5], b"12345678"), Link::Ethernet);
    assert_eq!(field(&odd, "GRE", "protocol type").meaning, "");
    assert_eq!(names(&odd)[2..], ["GRE", "payload"]);
}

#[test]
fn geneve_with_its_options() {
    let options = [
        [0x01, 0x02, 0x80, 1, 0, 1, 0, 2].as_slice(),
        &[0xff, 0xff, 3, 0],
    ]
    .concat();
    let header = [&[3, 0x40, 0x65, 0x58, 0, 0x12, 0x34, 0], &options[..]].concat();
    let frame = udp(6081, &[&header[..], &inner()].concat());
    let dissection = read(&frame, Link::Ethernet);
    assert_eq!(
        names(&dissection)[3..],
        ["Geneve", "Ethernet", "IPv4", "UDP", "payload"]
    );
    assert_eq!(problems(&dissection), [""; 0]);
    assert_eq!(
        field(&dissection, "Geneve", "network identifier").value,
        Value::Number(0x1234)
    );
    assert_eq!(field(&dissection, "Geneve", "option class").meaning, "OVN");
    assert_eq!(dissection.sum.unwrap().overhead, 14 + 20 + 8 + 20 + 14);
    // Options longer than they say together, and versions to come.
    let with = |at: usize, byte: u8| {
        let mut frame = frame.clone();
        frame[42 + at] = byte;
        problems(&read(&frame, Link::Ethernet))
    };
    assert!(with(19, 1)[0].contains("a Geneve option with 4 bytes of data, where 0 are left"));
    assert!(with(0, 0x43)[0].contains("version 1 of Geneve is not known"));
    assert!(with(0, 63)[0].contains("Geneve"));
}

#[test]
fn gpe_says_what_it_carries() {
    let gpe = |flags: u8, next: u8, inside: &[u8]| {
        let header = [flags, 0, 0, next, 0, 0, 5, 0];
        read(&udp(4790, &[&header[..], inside].concat()), Link::Ethernet)
    };
    let ip = &inner()[14..];
    assert_eq!(
        names(&gpe(0x0c, 1, ip))[3..],
        ["VXLAN-GPE", "IPv4", "UDP", "payload"]
    );
    assert_eq!(names(&gpe(0x0c, 3, &inner()))[4], "Ethernet");
    assert_eq!(names(&gpe(0x08, 0, &inner()))[4], "Ethernet");
    assert_eq!(names(&gpe(0x0c, 4, ip))[4], "payload");
    assert_eq!(names(&gpe(0x0d, 1, ip))[4], "payload");
    assert!(problems(&gpe(0x1c, 1, ip))[0].contains("version 1 of VXLAN-GPE"));
}

#[test]
fn wireguards_messages() {
    let message = |kind: u8, len: usize| {
        let mut bytes = vec![0xaa; len];
        bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
        bytes[4..8].copy_from_slice(&[1, 2, 0, 0]);
        bytes
    };
    for (kind, len, last) in [
        (1, 148, "MAC 2"),
        (2, 92, "MAC 2"),
        (3, 64, "sealed cookie"),
    ] {
        let dissection = read(&udp(51820, &message(kind, len)), Link::Ethernet);
        assert_eq!(names(&dissection)[3..], ["WireGuard"], "{kind}");
        assert_eq!(problems(&dissection), [""; 0], "{kind}");
        assert_eq!(dissection.fields.last().unwrap().name, last);
        let cut = read(&udp(51820, &message(kind, len - 1)), Link::Ethernet);
        assert!(
            problems(&cut)[0].contains("WireGuard is cut short"),
            "{kind}"
        );
    }
    let mut data = message(4, 48);
    data[8..16].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    let dissection = read(&udp(51820, &data), Link::Ethernet);
    let value = |name| field(&dissection, "WireGuard", name).value;
    assert_eq!(value("receiver index"), Value::Little(0x201));
    assert_eq!(value("counter"), Value::Little(256));
    assert_eq!(
        field(&dissection, "WireGuard", "sealed packet").bits,
        16 * 8
    );
    assert!(
        dissection
            .layers
            .iter()
            .any(|layer| layer.note.contains("without keys"))
    );
    let keepalive = read(&udp(51820, &data[..32]), Link::Ethernet);
    let tag = field(&keepalive, "WireGuard", "authentication tag");
    assert_eq!(tag.meaning, "nothing is sealed: a keepalive");
    assert!(problems(&read(&udp(51820, &data[..31]), Link::Ethernet))[0].contains("tag takes 16"));
    assert!(problems(&read(&udp(51820, &message(9, 40)), Link::Ethernet))[0].contains("type 9"));
    // The answer goes to whatever port the first message came from; other tunnels' answers do not.
    let mut answer = udp(40_000, &data);
    answer[34..36].copy_from_slice(&51820u16.to_be_bytes());
    assert_eq!(names(&read(&answer, Link::Ethernet))[3..], ["WireGuard"]);
    answer[34..36].copy_from_slice(&4789u16.to_be_bytes());
    assert_eq!(names(&read(&answer, Link::Ethernet))[3..], ["payload"]);
}

/// A meaning is only told of numbers that have it.
#[test]
fn arp_of_other_hardware_and_operations() {
    let arp = |hardware: u8, operation: u8, protocol: [u8; 2]| {
        let mut frame = vec![2; 12];
        frame.extend([
            8,
            6,
            0,
            hardware,
            protocol[0],
            protocol[1],
            6,
            4,
            0,
            operation,
        ]);
        frame.extend([2; 20]);
        read(&frame, Link::Ethernet)
    };
    let meaning = |dissection: &Dissection, name| field(dissection, "ARP", name).meaning.clone();
    let none = arp(0, 0, [8, 0]);
    assert_eq!(meaning(&none, "operation"), "reserved (RFC 5494)");
    assert_eq!(meaning(&none, "hardware type"), "reserved (RFC 5494)");
    assert_eq!(meaning(&none, "sender hardware address"), "");
    assert_eq!(none.summary, "ARP: operation 0, reserved (RFC 5494)");
    // ARCNET's addresses are no Ethernet addresses, whatever their length.
    assert_eq!(meaning(&arp(7, 1, [8, 0]), "sender hardware address"), "");
    assert_eq!(
        meaning(&arp(200, 77, [8, 0]), "operation"),
        "not known here"
    );
    assert_eq!(
        meaning(&arp(200, 77, [8, 0]), "hardware type"),
        "not known here"
    );
    // No length of an IEEE 802.3 frame.
    assert_eq!(meaning(&arp(1, 1, [0, 5]), "protocol type"), "");
    assert_eq!(
        meaning(&arp(1, 1, [8, 0]), "sender hardware address"),
        "locally administered"
    );
}

proptest! {
    /// Whatever the bytes behind a tunnel's port or in GRE: no panic, and every bit is in one field.
    #[test]
    fn arbitrary_bytes_in_tunnels(
        port in prop::sample::select(&[4790u16, 6081, 51820][..]),
        bytes in vec(any::<u8>(), 0..200),
        low in 0u8..5,
    ) {
        read(&udp(port, &bytes), Link::Ethernet);
        read(&gre(&[], &bytes), Link::Ethernet);
        // Those that begin like one get further.
        read(&udp(port, &[&[low, 0, 0, 0], &bytes[..]].concat()), Link::Ethernet);
        read(&udp(port, &[&[low, 0, 0x65, 0x58], &bytes[..]].concat()), Link::Ethernet);
        read(&gre(&[low << 4, 0, 8, 0], &bytes), Link::Ethernet);
    }
}

#[test]
fn labels_and_what_is_not_taken_apart_are_named() {
    let ether = |ether_type: u16, rest: &[u8]| {
        let frame = [&[2; 12][..], &ether_type.to_be_bytes(), rest].concat();
        read(&frame, Link::Ethernet)
    };
    let labels = [&[0, 1, 0, 64, 0, 2, 1, 64], &inner()[14..]].concat();
    let mpls = ether(0x8847, &labels);
    assert_eq!(names(&mpls)[1..], ["MPLS", "IPv4", "UDP", "payload"]);
    assert_eq!(field(&mpls, "MPLS", "label").value, Value::Number(16));
    assert_eq!(
        mpls.summary,
        "MPLS 16,32: 10.99.0.1 > 10.99.0.2 UDP 50000 > 53"
    );
    for (ether_type, name) in [
        (0x88cc, "LLDP"),
        (0x8864, "PPPoE"),
        (38, "LLC"),
        (0x1234, "EtherType 0x1234"),
    ] {
        let other = ether(ether_type, &[9; 40]);
        assert_eq!(other.summary, name);
        assert_eq!(other.layers[1].note, "Not taken apart here.");
    }
    assert_eq!(read(&[1, 2], Link::Ethernet).summary, "Ethernet");
    assert_eq!(read(&[], Link::Raw).summary, "nothing");
}

#[test]
fn segments_groups_and_extensions_of_icmp() {
    let mut header = vec![17, 4, 4, 1, 1, 0, 0, 7];
    header.extend([[1; 16], [2; 16]].concat());
    let routed = read(
        &ipv6(43, &[&header[..], &[0, 7, 0, 9, 0, 8, 1, 2]].concat()),
        Link::Ethernet,
    );
    assert_eq!(problems(&routed), [""; 0]);
    assert_eq!(field(&routed, "IPv6 routing", "tag").value, Value::Hex(7));
    assert_eq!(
        field(&routed, "IPv6 routing", "segment").value,
        Value::Ip([1; 16].into())
    );
    header[4] = 2;
    assert!(
        problems(&read(&ipv6(43, &header), Link::Ethernet))[0]
            .ends_with("3 segments, where the header has room for 2")
    );

    let ip = |protocol: u8, payload: &[u8]| {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([10, 99, 0, 1], [224, 0, 0, 22], 1)
            .write(&mut packet, etherparse::IpNumber(protocol), payload)
            .unwrap();
        read(&packet, Link::Raw)
    };
    let mut report = vec![
        0x22, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 1, 239, 1, 2, 3, 10, 0, 0, 1,
    ];
    let right = !checksum::sum(&report);
    report[2..4].copy_from_slice(&right.to_be_bytes());
    let igmp = ip(2, &report);
    assert_eq!(problems(&igmp), [""; 0]);
    assert_eq!(
        field(&igmp, "IGMP", "checksum").checksum,
        Some(Verdict::Right)
    );
    assert_eq!(
        field(&igmp, "IGMP", "group").value,
        Value::Ip([239, 1, 2, 3].into())
    );
    assert!(igmp.summary.ends_with("IGMP membership report v3"));

    let mut error = vec![11, 0, 0, 0, 0, 32, 0, 0];
    error.extend_from_slice(&inner()[14..]);
    error.resize(8 + 128, 0);
    let mut extensions = vec![0x20, 0, 0, 0, 0, 8, 1, 1, 0, 1, 1, 64];
    let right = !checksum::sum(&extensions);
    extensions[2..4].copy_from_slice(&right.to_be_bytes());
    error.extend(&extensions);
    let error = ip(1, &error);
    assert_eq!(problems(&error), [""; 0]);
    let (layer, name) = ("ICMP extensions", "label");
    assert_eq!(field(&error, layer, name).value, Value::Number(16));
    assert_eq!(
        field(&error, layer, "checksum").checksum,
        Some(Verdict::Right)
    );
}
