use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;
use crate::inject::device_name;

const PATH: Path = Path {
    source: IpAddr::V4(std::net::Ipv4Addr::new(10, 99, 0, 1)),
    source_mac: MacAddr([0x02, 0, 0, 0, 0, 0x01]),
    next_hop: MacAddr([0x02, 0, 0, 0, 0, 0x02]),
    mtu: 1500,
};

/// TCP over IPv4 without options, ten segments of 1,000 bytes.
const TEN: Super = Super {
    family: Family::V4,
    kind: Kind::Tcp { ecn: false },
    l4: 20,
    len: 40 + 10_000,
    payload: 40,
    gso_size: 1000,
};

fn encapsulation(len: usize) -> Header {
    Header::new(&[0xee; encap::MAX_HEADER][..len]).unwrap()
}

fn outer<'a>(path: &'a Path, to: &str, encapsulation: &'a Header) -> Outer<'a> {
    Outer {
        path,
        to: to.parse().unwrap(),
        encapsulation,
        source_port: 0xc350,
        tos: 0xb8,
        id: 0x1234,
        dont_fragment: true,
    }
}

#[test]
fn the_bytes_are_those_drawn() {
    let vxlan = encapsulation(22);
    let head = outer(&PATH, "10.99.0.2:8472", &vxlan).head(&TEN).unwrap();
    #[rustfmt::skip]
    let drawn: [u8; 24 + 14 + 20 + 8] = [
        // NEEDS_CSUM | UDP_TUNNEL_CSUM, TCPV4 | UDP_TUNNEL_IPV4, hdr_len 14 + 50 + 40, gso_size 1000
        0x09, 0x21, 104, 0, 0xe8, 0x03,
        // csum_start 14 + 50 + 20, csum_offset 16, num_buffers, hash
        84, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        // outer_th 14 + 20, inner_nh 14 + 50
        34, 0, 64, 0,
        // Ethernet
        0x02, 0, 0, 0, 0, 0x02, 0x02, 0, 0, 0, 0, 0x01, 0x08, 0x00,
        // IPv4: 50 + 10,040 bytes, DF, TTL 64, UDP
        0x45, 0xb8, 0x27, 0x6a, 0x12, 0x34, 0x40, 0, 64, 17, 0xeb, 0xce, 10, 99, 0, 1, 10, 99, 0, 2,
        // UDP: 50000 to 8472, 30 + 10,040 bytes, sum of the pseudo-header
        0xc3, 0x50, 0x21, 0x18, 0x27, 0x56, 0x3c, 0x30,
    ];
    assert_eq!(&head.as_slice()[..drawn.len()], drawn);
    assert_eq!(&head.as_slice()[drawn.len()..], [0xee; 22]);
}

#[test]
fn the_longest_head_is_as_long_as_promised() {
    let path = Path {
        source: "fd99::1".parse().unwrap(),
        ..PATH
    };
    let longest = encapsulation(encap::MAX_HEADER);
    let head = outer(&path, "[fd99::2]:8472", &longest).head(&TEN).unwrap();
    assert_eq!((head.as_slice().len(), MAX_HEAD), (110, 110));
}

#[test]
fn the_kernel_is_told_the_kind() {
    let none = encapsulation(0);
    let path6 = Path {
        source: "fd99::1".parse().unwrap(),
        ..PATH
    };
    let vnet = |path, to, inner: Super| {
        let head = outer(path, to, &none).head(&inner).unwrap();
        (head.as_slice()[1], head.as_slice()[8])
    };
    let cwr = Super {
        kind: Kind::Tcp { ecn: true },
        ..TEN
    };
    let tcp6 = Super {
        family: Family::V6,
        l4: 40,
        payload: 60,
        ..TEN
    };
    let udp = Super {
        kind: Kind::Udp,
        payload: 28,
        ..TEN
    };
    assert_eq!(vnet(&PATH, "10.99.0.2:8285", TEN), (0x21, 16));
    assert_eq!(vnet(&PATH, "10.99.0.2:8285", cwr), (0xa1, 16));
    assert_eq!(vnet(&path6, "[fd99::2]:8285", TEN), (0x41, 16));
    assert_eq!(vnet(&PATH, "10.99.0.2:8285", tcp6), (0x24, 16));
    assert_eq!(vnet(&path6, "[fd99::2]:8285", udp), (0x45, 6));
}

#[test]
fn what_cannot_go_has_no_head() {
    let vxlan = encapsulation(22);
    let to = "10.99.0.2:8472";
    let head = |path: &Path, to: &str, inner: Super| outer(path, to, &vxlan).head(&inner);
    let sized = |gso_size| Super { gso_size, ..TEN };
    // 1,500 bytes of MTU, 50 outside, 40 of inner headers.
    assert!(head(&PATH, to, sized(1410)).is_some());
    assert!(head(&PATH, to, sized(1411)).is_none());
    let narrow = Path { mtu: 1089, ..PATH };
    assert!(head(&narrow, to, TEN).is_none());
    assert!(
        head(&PATH, "[fd99::2]:8472", TEN).is_none(),
        "another family"
    );
    assert!(head(&PATH, to, sized(0)).is_none());
    let long = |len| Super { len, ..TEN };
    assert!(head(&PATH, to, long(1040)).is_none(), "a single segment");
    assert!(head(&PATH, to, long(1041)).is_some());
    assert!(head(&PATH, to, long(40)).is_none());
    assert!(head(&PATH, to, long(0)).is_none());
    // 65,535 is all that the outer IPv4 header can say, and the UDP header over IPv6.
    assert!(head(&PATH, to, long(65_485)).is_some());
    assert!(head(&PATH, to, long(65_486)).is_none());
    let path6 = Path {
        source: "fd99::1".parse().unwrap(),
        ..PATH
    };
    assert!(head(&path6, "[fd99::2]:8472", long(65_505)).is_some());
    assert!(head(&path6, "[fd99::2]:8472", long(65_506)).is_none());
}

#[test]
fn devices_are_named_after_the_overlay() {
    assert_eq!(device_name("overlay0"), "overlay0-tx");
    assert_eq!(device_name("a-name-of-15-by"), "a-name-of-15-tx");
    assert_eq!(device_name("überlänge-ää"), "überlänge--tx");
}

fn address() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    prop_oneof![
        any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (a.into(), b.into())),
        any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (a.into(), b.into())),
    ]
}

proptest! {
    /// An independent parser reads from the bytes what was put in, and finds the offsets where the headers are.
    #[test]
    fn a_head_says_what_it_was_made_of(
        (source, dst) in address(),
        macs in any::<([u8; 6], [u8; 6])>(),
        (port, source_port, tos, id, dont_fragment) in any::<(u16, u16, u8, u16, bool)>(),
        header_len in 0..=encap::MAX_HEADER,
        (inner6, udp, ecn) in any::<(bool, bool, bool)>(),
        options in 0usize..=10,
        gso_size in 1u16..9000,
        len in 0usize..66_000,
        mtu in 500u16..,
    ) {
        let path = Path { source, source_mac: MacAddr(macs.0), next_hop: MacAddr(macs.1), mtu };
        let (family, l4) = if inner6 { (Family::V6, 40) } else { (Family::V4, 20) };
        let (kind, payload) =
            if udp { (Kind::Udp, l4 + 8) } else { (Kind::Tcp { ecn }, l4 + 20 + 4 * options) };
        let inner = Super { family, kind, l4, len, payload, gso_size };
        let encapsulation = encapsulation(header_len);
        let outer = Outer {
            path: &path,
            to: SocketAddr::new(dst, port),
            encapsulation: &encapsulation,
            source_port,
            tos,
            id,
            dont_fragment,
        };
        let ip_len = if source.is_ipv4() { 20 } else { 40 };
        let total = ip_len + 8 + header_len + len;
        let largest = ip_len + 8 + header_len + payload + usize::from(gso_size);
        let limit = if source.is_ipv4() { 65_535 } else { 65_575 };
        let fits = total <= limit && largest <= usize::from(mtu) && len > payload + usize::from(gso_size);
        let head = outer.head(&inner);
        prop_assert_eq!(head.is_some(), fits);
        let Some(head) = head else { return Ok(()) };

        let le = |at: usize| usize::from(u16::from_le_bytes([head.as_slice()[at], head.as_slice()[at + 1]]));
        let frame = [&head.as_slice()[VNET_LEN..], &vec![0; len][..]].concat();
        prop_assert_eq!(le(20), 14 + ip_len);
        prop_assert_eq!(le(22), 14 + ip_len + 8 + header_len);
        prop_assert_eq!((le(2), le(4), le(6)), (le(22) + payload, usize::from(gso_size), le(22) + l4));
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        match packet.net.unwrap() {
            NetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                prop_assert_eq!(header.calc_header_checksum(), header.header_checksum);
                prop_assert_eq!((IpAddr::from(header.source), IpAddr::from(header.destination)), (source, dst));
                prop_assert_eq!((header.identification, header.dont_fragment), (id, dont_fragment));
                prop_assert_eq!((header.time_to_live, header.dscp.value() << 2 | header.ecn.value()), (64, tos));
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header().to_header();
                prop_assert_eq!((IpAddr::from(header.source), IpAddr::from(header.destination)), (source, dst));
                prop_assert_eq!((header.hop_limit, header.traffic_class, header.flow_label.value()), (64, tos, 0));
            }
            NetSlice::Arp(_) => unreachable!(),
        }
        let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("no UDP") };
        prop_assert_eq!((udp.source_port(), udp.destination_port()), (source_port, port));
        prop_assert_eq!(usize::from(udp.length()), 8 + header_len + len);
        prop_assert_eq!(&udp.payload()[..header_len], encapsulation.as_slice());
    }
}
