use super::*;
use crate::testing::{self, Verified, tcp4};
use etherparse::{IpHeaders, Ipv4Header, TcpHeader};
use proptest::prelude::*;

/// The packets that a superpacket is split into, as long as all of them.
fn cut(packet: &[u8], size: usize) -> Result<Vec<Vec<u8>>, Reject> {
    let inner = Inner::parse(packet)?;
    let split = Split::new(packet, &inner, size)?;
    let mut piece = vec![0xee; split.segment_len()];
    let pieces = (0..split.count()).map(|index| {
        let len = split.write(index..index + 1, &[], &mut piece, &Sums::PORTABLE);
        assert!(len <= split.header_len() + size);
        assert!(len == split.segment_len() || index + 1 == split.count());
        piece[..len].to_vec()
    });
    Ok(pieces.collect())
}

#[test]
fn a_superpacket_packet_by_packet() {
    let mut tcp = TcpHeader::new(1, 2, u32::MAX - 1, 512);
    (tcp.fin, tcp.psh, tcp.cwr, tcp.ack, tcp.ece) = (true, true, true, true, true);
    let pieces = cut(&tcp4(tcp.clone(), b"abcdefgh"), 3).unwrap();
    let seen: Vec<Verified> = pieces.iter().map(|piece| testing::verify(piece)).collect();
    let expected: [(&[u8], u32, u16, [bool; 3]); 3] = [
        (b"abc", u32::MAX - 1, 0xffff, [true, false, false]),
        (b"def", 1, 0, [false, false, false]),
        (b"gh", 4, 1, [false, true, true]),
    ];
    for (seen, (payload, seq, id, [cwr, fin, psh])) in seen.iter().zip(expected) {
        let (IpHeaders::Ipv4(ip, _), Some(got)) = (&seen.ip, &seen.tcp) else {
            panic!("not TCP over IPv4")
        };
        assert_eq!((seen.payload.as_slice(), ip.identification), (payload, id));
        let want = TcpHeader {
            sequence_number: seq,
            cwr,
            fin,
            psh,
            checksum: got.checksum,
            ..tcp.clone()
        };
        assert_eq!(*got, want);
    }
}

#[test]
fn an_urgent_pointer_moves_along() {
    let mut tcp = TcpHeader::new(1, 2, 100, 512);
    (tcp.urg, tcp.urgent_pointer) = (true, 5);
    let pieces = cut(&tcp4(tcp, b"abcdefghi"), 3).unwrap();
    let seen: Vec<_> = pieces
        .iter()
        .filter_map(|p| testing::verify(p).tcp)
        .map(|t| (t.urg, t.urgent_pointer))
        .collect();
    assert_eq!(seen, [(true, 5), (true, 2), (false, 0)]);
}

#[test]
fn nonsense_is_refused() {
    let size = 4;
    let good = tcp4(TcpHeader::new(1, 2, 3, 4), b"payload");
    let change = |at: usize, to: u8| {
        let mut packet = good.clone();
        packet[at] = to;
        cut(&packet, size).map(|_| ())
    };
    assert_eq!(cut(&good, 0).map(|_| ()), Err(Reject::BadHeader));
    assert_eq!(change(9, 1), Err(Reject::BadHeader), "ICMP");
    assert_eq!(change(6, 0x20), Err(Reject::BadHeader), "first fragment");
    assert_eq!(change(7, 0x01), Err(Reject::BadHeader), "later fragment");
    assert_eq!(change(32, 0x40), Err(Reject::BadHeader), "data offset 4");
    assert_eq!(
        change(32, 0x70),
        Err(Reject::Truncated),
        "data offset past the end"
    );
    assert_eq!(change(33, 0x02), Err(Reject::BadHeader), "SYN");
    assert_eq!(change(33, 0x04), Err(Reject::BadHeader), "RST");
    // A SYN that fits is no superpacket.
    let mut syn = good.clone();
    syn[33] = 0x02;
    assert_eq!(cut(&syn, 7).unwrap().len(), 1);

    let udp = testing::udp4(b"payload");
    for len in [0, 7, 14, 16] {
        let mut packet = udp.clone();
        packet[25] = len;
        assert!(cut(&packet, size).is_err(), "UDP length {len}");
    }
    assert_eq!(cut(&udp, size).unwrap().len(), 2);
    let routed = testing::source_routed(b"payload");
    assert_eq!(
        cut(&routed, size).map(|_| ()),
        Err(Reject::BadHeader),
        "stations left"
    );
}

#[test]
fn sizes_for_an_mtu() {
    let packet = tcp4(TcpHeader::new(1, 2, 3, 4), &[0; 3000]);
    let inner = Inner::parse(&packet).unwrap();
    let split = Split::for_mtu(&packet, &inner, 1450).unwrap();
    let lens: Vec<usize> = (0..split.count())
        .map(|index| split.range_len(index..index + 1, 0))
        .collect();
    assert_eq!(lens, [1450, 1450, 220]);
    assert_eq!(header_len(&packet, &inner), Ok(40));
    assert_eq!(
        Split::for_mtu(&packet, &inner, 40).map(|_| ()),
        Err(Reject::BadHeader)
    );
}

#[test]
fn the_longest_packet() {
    let packet = tcp4(TcpHeader::new(1, 2, 3, 4), &[0xab; 65495]);
    assert_eq!(packet.len(), 65535);
    let pieces = cut(&packet, 1398).unwrap();
    assert_eq!(pieces.len(), 47);
    assert_eq!(
        pieces
            .iter()
            .map(|piece| testing::verify(piece).payload.len())
            .sum::<usize>(),
        65495
    );
}

proptest! {

    /// Split superpackets re-assemble to the same payload, and etherparse finds every length and checksum right.
    #[test]
    fn split_reassembles(packet in testing::packet(5000), size in 1usize..2000, unfinished: bool, padding in 0usize..9) {
        let whole = testing::verify(&packet);
        let inner = Inner::parse(&packet).unwrap();
        let mut input = packet.clone();
        if unfinished {
            testing::unfinish(&mut input, &inner);
        }
        input.resize(packet.len() + padding, 0xcc);
        let pieces = cut(&input, size).unwrap();
        prop_assert_eq!(pieces.len(), whole.payload.len().div_ceil(size).max(1));

        let mut payload = Vec::new();
        let last = pieces.len() - 1;
        for (index, piece) in pieces.iter().enumerate() {
            let seen = testing::verify(piece);
            match (&seen.ip, &whole.ip) {
                (IpHeaders::Ipv4(got, _), IpHeaders::Ipv4(want, _)) => {
                    let identification = want.identification.wrapping_add(u16::try_from(index).unwrap());
                    let want = Ipv4Header {
                        identification, total_len: got.total_len, header_checksum: got.header_checksum, ..want.clone()
                    };
                    prop_assert_eq!(got, &want);
                }
                (IpHeaders::Ipv6(got, got_extensions), IpHeaders::Ipv6(want, extensions)) => {
                    let want = etherparse::Ipv6Header { payload_length: got.payload_length, ..want.clone() };
                    prop_assert_eq!((got, got_extensions), (&want, extensions));
                }
                _ => prop_assert!(false, "the family changed"),
            }
            match (seen.tcp, &whole.tcp) {
                (Some(got), Some(want)) => {
                    let done = u32::try_from(payload.len()).unwrap();
                    let want = TcpHeader {
                        sequence_number: want.sequence_number.wrapping_add(done),
                        fin: want.fin && index == last,
                        psh: want.psh && index == last,
                        cwr: want.cwr && index == 0,
                        // Tested by itself.
                        urg: got.urg,
                        urgent_pointer: got.urgent_pointer,
                        checksum: got.checksum,
                        ..want.clone()
                    };
                    prop_assert_eq!(got, want);
                }
                (None, None) => {
                    let ports = |udp: &etherparse::UdpHeader| (udp.source_port, udp.destination_port);
                    prop_assert_eq!(seen.udp.as_ref().map(ports), whole.udp.as_ref().map(ports));
                }
                _ => prop_assert!(false, "the protocol changed"),
            }
            payload.extend(seen.payload);
        }
        prop_assert_eq!(payload, whole.payload);
    }

    /// What is not cut stays as it was.
    #[test]
    fn one_segment_is_the_packet_itself(packet in testing::packet(100)) {
        prop_assert_eq!(cut(&packet, 100).unwrap(), [packet]);
    }
}

#[test]
fn no_room_no_segment() {
    let packet = testing::udp4(&[1; 25]);
    let inner = Inner::parse(&packet).unwrap();
    let split = Split::new(&packet, &inner, 10).unwrap();
    assert_eq!((split.count(), split.segment_len()), (3, 38));
    assert_eq!(split.total_len(8), 3 * 36 + 25);
    let mut out = [0xee; 3 * 36 + 25];
    for len in 0..out.len() {
        let written = split.write_all(&[0; 8], &mut out[..len], &Sums::PORTABLE);
        assert_eq!(written, len / 46 * 46, "{len} bytes of room");
    }
    assert_eq!(
        split.write_all(&[0; 8], &mut out, &Sums::PORTABLE),
        out.len()
    );
    assert_eq!(split.write(3..9, &[], &mut out, &Sums::PORTABLE), 0);
    assert_eq!(
        (split.range_len(3..9, 0), split.range_len(2..9, 0)),
        (0, 33)
    );
}

proptest! {
    /// What these packets are, the tests above say; here, that all ways to write them agree.
    #[test]
    fn in_one_go_or_piece_by_piece(
        packet in testing::packet(3000), size in 1usize..1000, prefix in proptest::collection::vec(any::<u8>(), 0..60),
        at: prop::sample::Index,
    ) {
        let inner = Inner::parse(&packet).unwrap();
        let split = Split::new(&packet, &inner, size).unwrap();
        let expected: Vec<u8> = cut(&packet, size).unwrap().iter().flat_map(|piece| [&prefix[..], piece].concat()).collect();
        let mut out = vec![0xee; expected.len() + 5];
        prop_assert_eq!(split.total_len(prefix.len()), expected.len());
        prop_assert_eq!(split.write_all(&prefix, &mut out, &Sums::PORTABLE), expected.len());
        prop_assert_eq!(&out[..expected.len()], &expected[..]);
        prop_assert_eq!(&out[expected.len()..], [0xee; 5]);

        let at = at.index(split.count());
        out.fill(0xee);
        let first = split.write(0..at, &prefix, &mut out, &Sums::PORTABLE);
        prop_assert_eq!(first, split.range_len(0..at, prefix.len()));
        let rest = split.write(at..split.count(), &prefix, &mut out[first..], &Sums::PORTABLE);
        prop_assert_eq!(rest, split.range_len(at..split.count(), prefix.len()));
        prop_assert_eq!(&out[..first + rest], &expected[..]);
    }
}
