//! Superpackets cut packet by packet: [`Split`] for a caller that wants one segment at a time in a buffer that grows.

use crate::sums::Sums;
use crate::{Inner, Reject, Split};

pub use crate::split::header_len;
pub use crate::transport::{L4Checksum, complete_checksum, l4_checksum_state, looks_unfinished};

/// Cuts a TCP or UDP superpacket into packets, one at a time. What it makes of them, `split.rs` says.
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    split: Split<'a>,
    next: usize,
}

impl<'a> Segments<'a> {
    /// Prepares to cut `packet`, of which `inner` is the parsed summary, into segments of at most
    /// `payload_per_segment` payload bytes.
    ///
    /// # Errors
    /// Those of [`Split::new`].
    pub fn new(
        packet: &'a [u8],
        inner: &Inner,
        payload_per_segment: usize,
    ) -> Result<Self, Reject> {
        let split = Split::new(packet, inner, payload_per_segment)?;
        Ok(Self { split, next: 0 })
    }

    /// Prepares to cut `packet` into packets of at most `mtu` bytes.
    ///
    /// # Errors
    /// Those of [`Split::for_mtu`].
    pub fn for_mtu(packet: &'a [u8], inner: &Inner, mtu: usize) -> Result<Self, Reject> {
        let split = Split::for_mtu(packet, inner, mtu)?;
        Ok(Self { split, next: 0 })
    }

    /// Bytes of headers in front of each segment's payload.
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.split.header_len()
    }

    /// How many segments the whole superpacket makes; at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.split.count()
    }

    /// Appends the next segment to `out` and returns its length in bytes; `None` when there are no more.
    pub fn next_into(&mut self, out: &mut Vec<u8>) -> Option<usize> {
        let range = self.next..self.next + 1;
        let len = self.split.range_len(range.clone(), 0);
        if len == 0 {
            return None;
        }
        let start = out.len();
        out.resize(start + len, 0);
        self.split
            .write(range, &[], &mut out[start..], &Sums::PORTABLE);
        self.next += 1;
        Some(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, L4, Verified};
    use etherparse::{IpHeaders, Ipv4Extensions, Ipv4Header, TcpHeader};
    use proptest::prelude::*;

    fn tcp4(tcp: TcpHeader, payload: &[u8]) -> Vec<u8> {
        let ip = Ipv4Header {
            identification: 0xffff,
            source: [10, 244, 1, 2],
            destination: [10, 244, 2, 2],
            ..Default::default()
        };
        testing::build(
            &IpHeaders::Ipv4(ip, Ipv4Extensions::default()),
            &L4::Tcp(Box::new(tcp)),
            payload,
        )
    }

    fn cut(packet: &[u8], size: usize) -> Result<Vec<Vec<u8>>, Reject> {
        let inner = Inner::parse(packet)?;
        let mut segments = Segments::new(packet, &inner, size)?;
        let (count, header_len) = (segments.count(), segments.header_len());
        // Appended behind what is there, which stays.
        let mut out = vec![0xee; 3];
        let mut pieces = Vec::new();
        while let Some(len) = segments.next_into(&mut out) {
            pieces.push(out[out.len() - len..].to_vec());
        }
        assert_eq!(out[3..], pieces.concat());
        assert_eq!(out[..3], [0xee; 3]);
        assert_eq!(pieces.len(), count);
        assert!(pieces.iter().all(|piece| piece.len() <= header_len + size));
        assert_eq!(segments.next_into(&mut out), None);
        Ok(pieces)
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
        let mut segments = Segments::for_mtu(&packet, &inner, 1450).unwrap();
        let mut out = Vec::new();
        let lens: Vec<usize> = std::iter::from_fn(|| segments.next_into(&mut out)).collect();
        assert_eq!(lens, [1450, 1450, 220]);
        assert_eq!(header_len(&packet, &inner), Ok(40));
        assert_eq!(
            Segments::for_mtu(&packet, &inner, 40).map(|_| ()),
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
}
