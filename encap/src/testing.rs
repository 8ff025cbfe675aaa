//! Packets for the tests, built by etherparse, which shares no code with us and so is the oracle as well.

use etherparse::{
    IpAuthHeader, IpFragOffset, IpHeaders, IpNumber, IpSlice, Ipv4Extensions, Ipv4Header,
    Ipv6Extensions, Ipv6FlowLabel, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader,
    Ipv6RoutingExtensions, PacketBuilder, TcpHeader, TcpSlice, UdpSlice,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::{Inner, checksum, tcp, udp};

/// A transport header to build with; lengths and checksums are filled in.
#[derive(Clone, Debug)]
pub(crate) enum L4 {
    Tcp(Box<TcpHeader>),
    Udp(u16, u16),
}

/// Well-formed IPv4 options, copied ones and others, padded to a multiple of 4.
pub(crate) fn ipv4_options() -> impl Strategy<Value = Vec<u8>> {
    let option = prop_oneof![
        Just(vec![1]),
        (2u8..32, any::<bool>(), vec(any::<u8>(), 0..12)).prop_map(|(number, copied, data)| {
            let kind = number | if copied { 0x80 } else { 0 };
            let len = u8::try_from(data.len() + 2).unwrap();
            [&[kind, len], data.as_slice()].concat()
        }),
    ];
    vec(option, 0..6).prop_map(|options| {
        let mut bytes = Vec::new();
        for option in options {
            if bytes.len() + option.len() <= 40 {
                bytes.extend(option);
            }
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    })
}

pub(crate) fn ipv4_header() -> impl Strategy<Value = Ipv4Header> {
    (
        any::<[u8; 2]>(),
        any::<u16>(),
        any::<bool>(),
        any::<u8>(),
        any::<[u8; 4]>(),
        any::<[u8; 4]>(),
        ipv4_options(),
    )
        .prop_map(
            |(
                [dscp, ecn],
                identification,
                dont_fragment,
                time_to_live,
                source,
                destination,
                options,
            )| {
                Ipv4Header {
                    dscp: (dscp >> 2).try_into().unwrap(),
                    ecn: (ecn >> 6).try_into().unwrap(),
                    identification,
                    dont_fragment,
                    fragment_offset: IpFragOffset::ZERO,
                    time_to_live,
                    source,
                    destination,
                    options: options.as_slice().try_into().unwrap(),
                    ..Ipv4Header::default()
                }
            },
        )
}

pub(crate) fn ipv6_header() -> impl Strategy<Value = Ipv6Header> {
    (
        any::<u8>(),
        any::<u32>(),
        any::<u8>(),
        any::<[u8; 16]>(),
        any::<[u8; 16]>(),
    )
        .prop_map(
            |(traffic_class, label, hop_limit, source, destination)| Ipv6Header {
                traffic_class,
                flow_label: Ipv6FlowLabel::try_new(label >> 12).unwrap(),
                hop_limit,
                source,
                destination,
                ..Ipv6Header::default()
            },
        )
}

/// Extension headers of every kind that we walk, none of which makes the packet a fragment or source-routed.
pub(crate) fn ipv6_extensions() -> impl Strategy<Value = Ipv6Extensions> {
    let raw = || {
        (0usize..4, any::<u8>()).prop_map(|(units, fill)| {
            let mut payload = vec![fill; 6 + 8 * units];
            payload[1] = 0;
            Ipv6RawExtHeader::new_raw(IpNumber::UDP, &payload).unwrap()
        })
    };
    let auth = (0usize..5, any::<u8>()).prop_map(|(words, fill)| {
        IpAuthHeader::new(IpNumber::UDP, 1, 2, &vec![fill; 4 * words]).unwrap()
    });
    let routing = (raw(), option::of(raw())).prop_map(|(routing, final_destination_options)| {
        Ipv6RoutingExtensions {
            routing,
            final_destination_options,
        }
    });
    let fragment = any::<u32>()
        .prop_map(|id| Ipv6FragmentHeader::new(IpNumber::UDP, IpFragOffset::ZERO, false, id));
    (
        option::of(raw()),
        option::of(raw()),
        option::of(routing),
        option::of(fragment),
        option::of(auth),
    )
        .prop_map(
            |(hop_by_hop_options, destination_options, routing, fragment, auth)| Ipv6Extensions {
                hop_by_hop_options,
                destination_options,
                routing,
                fragment,
                auth,
            },
        )
}

pub(crate) fn ip_headers() -> impl Strategy<Value = IpHeaders> {
    prop_oneof![
        ipv4_header().prop_map(|ip| IpHeaders::Ipv4(ip, Ipv4Extensions::default())),
        (
            ipv6_header(),
            prop_oneof![Just(Ipv6Extensions::default()), ipv6_extensions()]
        )
            .prop_map(|(ip, extensions)| IpHeaders::Ipv6(ip, extensions)),
    ]
}

/// A TCP header with any flags but SYN and RST, and any option bytes.
pub(crate) fn tcp_header() -> impl Strategy<Value = TcpHeader> {
    (
        any::<[u16; 4]>(),
        any::<[u32; 2]>(),
        any::<[bool; 7]>(),
        vec(any::<u8>(), 0..=40),
    )
        .prop_map(
            |(
                [src, dst, window, urgent],
                [seq, ack],
                [fin, psh, with_ack, urg, ece, cwr, ns],
                options,
            )| {
                let mut tcp = TcpHeader::new(src, dst, seq, window);
                tcp.acknowledgment_number = ack;
                tcp.urgent_pointer = if urg { urgent } else { 0 };
                (tcp.fin, tcp.psh, tcp.ack, tcp.urg) = (fin, psh, with_ack, urg);
                (tcp.ece, tcp.cwr, tcp.ns) = (ece, cwr, ns);
                tcp.set_options_raw(&options).unwrap();
                tcp
            },
        )
}

pub(crate) fn l4() -> impl Strategy<Value = L4> {
    prop_oneof![
        tcp_header().prop_map(|tcp| L4::Tcp(Box::new(tcp))),
        any::<(u16, u16)>().prop_map(|(src, dst)| L4::Udp(src, dst)),
    ]
}

/// A packet with right lengths and checksums.
pub(crate) fn build(ip: &IpHeaders, l4: &L4, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ip(ip.clone());
    match l4 {
        L4::Tcp(tcp) => builder
            .tcp_header((**tcp).clone())
            .write(&mut bytes, payload),
        L4::Udp(src, dst) => builder.udp(*src, *dst).write(&mut bytes, payload),
    }
    .unwrap();
    bytes
}

/// A whole TCP or UDP packet of either family, with up to `most` bytes of payload.
pub(crate) fn packet(most: usize) -> impl Strategy<Value = Vec<u8>> {
    (ip_headers(), l4(), vec(any::<u8>(), 0..=most))
        .prop_map(|(ip, l4, payload)| build(&ip, &l4, &payload))
}

/// A packet of TCP over IPv4, whose identification is about to come round.
pub(crate) fn tcp4(tcp: TcpHeader, payload: &[u8]) -> Vec<u8> {
    let ip = Ipv4Header {
        identification: 0xffff,
        source: [10, 244, 1, 2],
        destination: [10, 244, 2, 2],
        ..Default::default()
    };
    build(
        &IpHeaders::Ipv4(ip, Ipv4Extensions::default()),
        &L4::Tcp(Box::new(tcp)),
        payload,
    )
}

/// A plain IPv4 UDP packet between two addresses of the documentation.
pub(crate) fn udp4(payload: &[u8]) -> Vec<u8> {
    let ip = Ipv4Header {
        source: [192, 0, 2, 1],
        destination: [192, 0, 2, 2],
        time_to_live: 64,
        dont_fragment: false,
        ..Default::default()
    };
    build(
        &IpHeaders::Ipv4(ip, Ipv4Extensions::default()),
        &L4::Udp(1000, 2000),
        payload,
    )
}

/// An IPv6 UDP packet on its way through a routing header with one station left.
pub(crate) fn source_routed(payload: &[u8]) -> Vec<u8> {
    let routing = Ipv6RawExtHeader::new_raw(IpNumber::UDP, &[4, 1, 0, 0, 0, 0]).unwrap();
    let extensions = Ipv6Extensions {
        routing: Some(Ipv6RoutingExtensions {
            routing,
            final_destination_options: None,
        }),
        ..Default::default()
    };
    let ip = IpHeaders::Ipv6(
        Ipv6Header {
            source: [1; 16],
            destination: [2; 16],
            ..Default::default()
        },
        extensions,
    );
    build(&ip, &L4::Udp(1000, 2000), payload)
}

/// Replaces the transport checksum of a packet by what the kernel leaves for a network card to finish.
pub(crate) fn unfinish(packet: &mut [u8], inner: &Inner) {
    let field = inner.l4
        + if inner.protocol == tcp::PROTOCOL {
            tcp::CHECKSUM
        } else {
            udp::CHECKSUM
        };
    let pseudo = checksum::pseudo_header(inner, inner.total_len - inner.l4);
    packet[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
}

/// What etherparse makes of a packet whose every length and checksum it found right.
pub(crate) struct Verified {
    pub(crate) ip: IpHeaders,
    pub(crate) tcp: Option<TcpHeader>,
    pub(crate) udp: Option<etherparse::UdpHeader>,
    pub(crate) payload: Vec<u8>,
}

/// Lets etherparse judge a packet.
pub(crate) fn verify(packet: &[u8]) -> Verified {
    let slice = IpSlice::from_slice(packet).unwrap();
    let ip = slice.to_header();
    let transport = slice.payload().payload;
    match &slice {
        IpSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(
                header.header_checksum,
                header.calc_header_checksum(),
                "IPv4 header checksum"
            );
            assert_eq!(usize::from(header.total_len), packet.len(), "total length");
        }
        IpSlice::Ipv6(ip) => {
            assert_eq!(
                usize::from(ip.header().payload_length()) + 40,
                packet.len(),
                "payload length"
            );
        }
    }
    let verified = match slice.payload().ip_number {
        IpNumber::TCP => {
            let tcp = TcpSlice::from_slice(transport).unwrap();
            Verified {
                ip,
                tcp: Some(tcp.to_header()),
                udp: None,
                payload: tcp.payload().to_vec(),
            }
        }
        IpNumber::UDP => {
            let udp = UdpSlice::from_slice(transport).unwrap();
            assert_eq!(usize::from(udp.length()), transport.len(), "UDP length");
            Verified {
                ip,
                tcp: None,
                udp: Some(udp.to_header()),
                payload: udp.payload().to_vec(),
            }
        }
        other => panic!("neither TCP nor UDP: {other:?}"),
    };
    verified.assert_checksum();
    verified
}

impl Verified {
    fn assert_checksum(&self) {
        let (found, expected) = match (&self.ip, &self.tcp, &self.udp) {
            (IpHeaders::Ipv4(ip, _), Some(tcp), _) => {
                (tcp.checksum, tcp.calc_checksum_ipv4(ip, &self.payload))
            }
            (IpHeaders::Ipv6(ip, _), Some(tcp), _) => {
                (tcp.checksum, tcp.calc_checksum_ipv6(ip, &self.payload))
            }
            (IpHeaders::Ipv4(ip, _), _, Some(udp)) => {
                (udp.checksum, udp.calc_checksum_ipv4(ip, &self.payload))
            }
            (IpHeaders::Ipv6(ip, _), _, Some(udp)) => {
                (udp.checksum, udp.calc_checksum_ipv6(ip, &self.payload))
            }
            _ => unreachable!("verify found one of the two"),
        };
        assert_eq!(found, expected.unwrap(), "transport checksum");
    }
}
