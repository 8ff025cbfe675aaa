//! Injected superpackets arrive, whole or cut to size, with the bytes they were sent with.

use std::net::IpAddr;

use encap::checksum;
use encap::ipv4::Ipv4;
use encap::ipv6::Ipv6;
use encap::tcp::Tcp;
use encap::udp::{self, Udp};
use encap::{Family, Inner};
use integration::bed::Backend;
use integration::wire::Wire;
use overlayd::inject::{Injector, Kind};

use crate::bed::{FAMILIES, KINDS, OURS4, OURS6, Pair, frame, hop, pattern, port, superpacket};

const GSO_SIZE: u16 = 1000;
/// Ten segments of 1,000 bytes and one of 300.
const PAYLOAD: usize = 10_300;
const SEGMENTS: usize = 11;

/// How the underlay device treats superpackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offloads {
    /// It takes them whole, and through a veth they arrive whole.
    All,
    /// Software cuts them, the device finishes checksums.
    NoTunnel,
    /// Software does everything.
    None,
}

#[test]
fn everything_accepted_arrives_under_all_offloads() {
    let pair = Pair::new();
    for offloads in [Offloads::All, Offloads::NoTunnel, Offloads::None] {
        match offloads {
            Offloads::All => {}
            Offloads::NoTunnel => {
                pair.us(
                    "ethtool -K eth0 tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off",
                );
            }
            Offloads::None => {
                pair.us("ethtool -K eth0 tso off gso off tx off sg off");
            }
        }
        for backend in [Backend::Vxlan, Backend::Udp] {
            let injector = pair.open(backend);
            for outer in FAMILIES {
                for inner in FAMILIES {
                    for kind in KINDS {
                        let what = format!(
                            "{offloads:?} {backend:?} over {outer:?}, {kind:?} over {inner:?} inside"
                        );
                        assert!(injector.accepted(outer).takes(kind, inner), "{what}");
                        carries(
                            &pair,
                            &injector,
                            (backend, outer, inner, kind),
                            offloads,
                            &what,
                        );
                    }
                }
            }
        }
    }
}

fn carries(
    pair: &Pair,
    injector: &Injector,
    (backend, outer, inner, kind): (Backend, Family, Family, Kind),
    offloads: Offloads,
    what: &str,
) {
    let sent = pattern(PAYLOAD);
    let packet = superpacket(inner, kind, GSO_SIZE, &sent);
    let hop = hop(backend, outer, inner);
    let frame = frame(injector, &pair.path(outer), &hop, &packet);
    let wire = Wire::listen(&pair.peer);
    injector.inject(&frame, &[]).unwrap();
    let frames = wire.stop();
    let arrived: Vec<_> = frames
        .iter()
        .filter_map(|frame| outer_payload(frame, outer, port(backend), offloads))
        .collect();
    let segments = if offloads == Offloads::All {
        1
    } else {
        SEGMENTS
    };
    assert_eq!(arrived.len(), segments, "{what}");
    let mut received: Vec<u8> = Vec::new();
    for datagram in &arrived {
        let (header, bytes) = datagram.split_at(hop.header.len());
        assert_eq!(header, hop.header.as_slice(), "{what}");
        let parsed = Inner::parse_checked(bytes).unwrap();
        let l4 = parsed.transport(bytes);
        if offloads == Offloads::None {
            let pseudo = checksum::pseudo_header(&parsed, l4.len());
            let sum = checksum::add(pseudo, checksum::sum(l4));
            assert_eq!(sum, 0xffff, "{what}: inner checksum");
        }
        let header_len = match kind {
            Kind::Udp => udp::HEADER_LEN,
            Kind::Tcp { .. } => {
                let tcp = Tcp::parse(l4).unwrap();
                assert_eq!(tcp.seq as usize, 1 + received.len(), "{what}");
                usize::from(tcp.header_len)
            }
        };
        received.extend(&l4[header_len..]);
    }
    assert!(received == sent, "{what}: other bytes arrived");
}

/// The payload of a frame from us to that UDP port; its outer checksums are verified where they are finished.
fn outer_payload(frame: &[u8], family: Family, port: u16, offloads: Offloads) -> Option<&[u8]> {
    let ip = frame.get(14..)?;
    let expected = match family {
        Family::V4 => [0x08, 0x00],
        Family::V6 => [0x86, 0xdd],
    };
    if frame[12..14] != expected {
        return None;
    }
    let outer = Inner::parse_checked(ip).ok()?;
    let ours: IpAddr = match family {
        Family::V4 => OURS4.into(),
        Family::V6 => OURS6.into(),
    };
    if outer.src != ours || outer.protocol != udp::PROTOCOL {
        return None;
    }
    match family {
        Family::V4 => {
            let header = Ipv4::parse(ip).unwrap();
            assert_eq!((header.ttl, header.flags), (64, encap::ipv4::DF));
        }
        Family::V6 => assert_eq!(Ipv6::parse(ip).unwrap().hop_limit, 64),
    }
    let l4 = outer.transport(ip);
    let udp = Udp::parse(l4).unwrap();
    if udp.dst != port {
        return None;
    }
    assert_eq!(udp.src, 50_000);
    assert_ne!(
        udp.checksum, 0,
        "an outer checksum, or what it is finished from"
    );
    if offloads == Offloads::None {
        let pseudo = checksum::pseudo_header(&outer, l4.len());
        assert_eq!(checksum::add(pseudo, checksum::sum(l4)), 0xffff);
    }
    Some(&l4[udp::HEADER_LEN..])
}
