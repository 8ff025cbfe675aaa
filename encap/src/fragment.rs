//! IPv4 fragmentation (RFC 791 section 3.2) of an inner packet that is too big for its path.
//!
//! The outer packet is never fragmented (RFC 7348 section 4.3); an inner IPv4 packet that allows it is, before it is
//! encapsulated, as any router would.

use crate::ipv4::{self, Ipv4};
use crate::{Family, Inner, Reject};

/// The most bytes of options a header holds.
const MAX_OPTIONS: usize = 40;
/// The copied flag in an option's type: the option goes into every fragment (RFC 791 section 3.1).
const COPIED: u8 = 0x80;
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;

/// Cuts an IPv4 packet into fragments. A packet that is a fragment itself is cut further.
///
/// The transport checksum must be finished before ([`complete_checksum`](crate::transport::complete_checksum)): no fragment
/// could carry an unfinished one.
#[derive(Clone, Debug)]
pub struct Fragments<'a> {
    packet: &'a [u8],
    ip: Ipv4,
    mtu: usize,
    /// Options of the fragments after the first, and how many bytes of them.
    later_options: [u8; MAX_OPTIONS],
    later_len: usize,
    /// Payload bytes already cut off.
    done: usize,
    finished: bool,
}

impl<'a> Fragments<'a> {
    /// Prepares to cut `packet`, of which `inner` is the parsed summary, into pieces of at most `mtu` bytes.
    ///
    /// # Errors
    /// [`Reject::BadVersion`] for IPv6, which only its sender may fragment. [`Reject::BadHeader`] for a packet with DF
    /// set, options without sense, an `mtu` that leaves no room for 8 bytes of payload, and a fragment that reaches
    /// past 65,535 bytes or is no multiple of 8 although more follow.
    pub fn new(packet: &'a [u8], inner: &Inner, mtu: usize) -> Result<Self, Reject> {
        if inner.family != Family::V4 {
            return Err(Reject::BadVersion);
        }
        let packet = packet.get(..inner.total_len).ok_or(Reject::Truncated)?;
        let ip = Ipv4::parse(packet)?;
        let header_len = usize::from(ip.header_len);
        let payload_len = packet.len() - header_len;
        let end = usize::from(ip.offset) * 8 + payload_len;
        let more = ip.flags & ipv4::MF != 0;
        if ip.flags & ipv4::DF != 0
            || mtu < header_len + 8
            || header_len + end > usize::from(u16::MAX)
            || more && payload_len % 8 != 0
        {
            return Err(Reject::BadHeader);
        }
        let (later_options, later_len) = copied_options(&packet[ipv4::MIN_HEADER..header_len])?;
        Ok(Self {
            packet,
            ip,
            mtu,
            later_options,
            later_len,
            done: 0,
            finished: false,
        })
    }

    /// Appends the next fragment to `out` and returns its length in bytes; `None` when there are no more.
    pub fn next_into(&mut self, out: &mut Vec<u8>) -> Option<usize> {
        if self.finished {
            return None;
        }
        let first_len = usize::from(self.ip.header_len);
        let options = if self.done == 0 {
            &self.packet[ipv4::MIN_HEADER..first_len]
        } else {
            &self.later_options[..self.later_len]
        };
        let header_len = ipv4::MIN_HEADER + options.len();
        let rest = &self.packet[first_len + self.done..];
        let room = self.mtu - header_len;
        // All but the last end on a multiple of 8, the unit of the offset.
        let payload = if rest.len() <= room {
            rest
        } else {
            &rest[..room / 8 * 8]
        };
        self.finished = payload.len() == rest.len();

        let ip = Ipv4 {
            header_len: u8::try_from(header_len).ok()?,
            total_len: u16::try_from(header_len + payload.len()).ok()?,
            flags: self.ip.flags | if self.finished { 0 } else { ipv4::MF },
            offset: self.ip.offset + u16::try_from(self.done / 8).ok()?,
            ..self.ip
        };
        let start = out.len();
        out.extend_from_slice(&ip.emit());
        out.extend_from_slice(options);
        ipv4::fill_checksum(&mut out[start..]);
        out.extend_from_slice(payload);
        self.done += payload.len();
        Some(out.len() - start)
    }
}

/// The options that every fragment repeats, padded to a multiple of 4 bytes, and their length.
fn copied_options(options: &[u8]) -> Result<([u8; MAX_OPTIONS], usize), Reject> {
    let mut copied = [END_OF_OPTIONS; MAX_OPTIONS];
    let mut len = 0;
    let mut rest = options;
    while let Some(&kind) = rest.first() {
        let size = match kind {
            END_OF_OPTIONS => break,
            NO_OPERATION => 1,
            _ => usize::from(*rest.get(1).ok_or(Reject::BadHeader)?),
        };
        if size > rest.len() || size < 2 && kind != NO_OPERATION {
            return Err(Reject::BadHeader);
        }
        if kind & COPIED != 0 {
            copied[len..len + size].copy_from_slice(&rest[..size]);
            len += size;
        }
        rest = &rest[size..];
    }
    Ok((copied, len.next_multiple_of(4)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fragment, testing};
    use etherparse::defrag::IpDefragPool;
    use etherparse::{IpHeaders, Ipv4Extensions, SlicedPacket};
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn cut(packet: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, Reject> {
        let mut fragments = Fragments::new(packet, &Inner::parse(packet)?, mtu)?;
        let mut out = vec![0xee];
        let mut pieces = Vec::new();
        while let Some(len) = fragments.next_into(&mut out) {
            pieces.push(out[out.len() - len..].to_vec());
        }
        assert_eq!(out[1..], pieces.concat());
        Ok(pieces)
    }

    fn reassemble(pieces: &[Vec<u8>]) -> Option<Vec<u8>> {
        let mut pool = IpDefragPool::<(), ()>::new();
        let mut done = None;
        for piece in pieces {
            assert!(done.is_none(), "complete before its last piece");
            let sliced = SlicedPacket::from_ip(piece).unwrap();
            done = pool.process_sliced_packet(&sliced, (), ()).unwrap();
        }
        done.map(|whole| whole.payload)
    }

    #[test]
    fn what_may_not_be_cut() {
        let good = testing::udp4(&[1; 100]);
        assert_eq!(cut(&good, 28).unwrap().len(), 14);
        assert_eq!(
            cut(&good, 27).map(|_| ()),
            Err(Reject::BadHeader),
            "no room"
        );
        let change = |at: usize, to: u8| {
            let mut packet = good.clone();
            packet[at] = to;
            cut(&packet, 60).map(|_| ())
        };
        assert_eq!(change(6, 0x40), Err(Reject::BadHeader), "DF");
        assert_eq!(
            change(6, 0x20),
            Err(Reject::BadHeader),
            "108 bytes of payload, and more to follow"
        );
        assert_eq!(change(6, 0x1f), Ok(()), "a last fragment, near the end");
        let mut packet = good.clone();
        packet[6..8].copy_from_slice(&0x1fffu16.to_be_bytes());
        assert_eq!(
            cut(&packet, 60).map(|_| ()),
            Err(Reject::BadHeader),
            "past 65,535 bytes"
        );
        let mut v6 = vec![0x60, 0, 0, 0, 0, 0, 59, 64];
        v6.resize(40, 0);
        assert_eq!(cut(&v6, 1280).map(|_| ()), Err(Reject::BadVersion));
    }

    #[test]
    fn options_without_sense_are_refused() {
        for options in [[7, 0, 0, 0], [7, 1, 0, 0], [7, 5, 0, 0], [1, 1, 1, 7]] {
            assert_eq!(
                copied_options(&options),
                Err(Reject::BadHeader),
                "{options:?}"
            );
        }
        // Record route (7) stays behind, strict source route (137) goes along.
        let options = [1, 7, 3, 4, 137, 3, 4, 0];
        let (copied, len) = copied_options(&options).unwrap();
        assert_eq!(copied[..len], [137, 3, 4, 0]);
    }

    #[test]
    fn what_fits_stays_as_it_is() {
        let packet = testing::udp4(&[1; 100]);
        assert_eq!(cut(&packet, 128).unwrap(), [packet]);
    }

    proptest! {
        #[test]
        fn reassembles(header in testing::ipv4_header(), payload in vec(any::<u8>(), 0..3000), mtu in 68usize..1600) {
            let ip = etherparse::Ipv4Header { dont_fragment: false, ..header };
            let ip = IpHeaders::Ipv4(ip, Ipv4Extensions::default());
            let packet = testing::build(&ip, &testing::L4::Udp(1, 2), &payload);
            let inner = Inner::parse(&packet).unwrap();
            let pieces = cut(&packet, mtu).unwrap();
            if packet.len() <= mtu {
                prop_assert_eq!(pieces, [packet]);
                return Ok(());
            }
            let whole = etherparse::Ipv4Header::from_slice(&packet).unwrap().0;
            for (index, piece) in pieces.iter().enumerate() {
                prop_assert!(piece.len() <= mtu);
                let seen = Inner::parse_checked(piece).unwrap();
                prop_assert_eq!(seen.total_len, piece.len());
                prop_assert_eq!(seen.fragment, if index == 0 { Fragment::First } else { Fragment::Later });
                let got = etherparse::Ipv4Header::from_slice(piece).unwrap().0;
                if index == 0 {
                    prop_assert_eq!(&got.options, &whole.options);
                }
                prop_assert_eq!(got.identification, whole.identification);
                prop_assert_eq!((got.time_to_live, got.protocol, got.dscp, got.ecn), (whole.time_to_live, whole.protocol, whole.dscp, whole.ecn));
                prop_assert_eq!((seen.src, seen.dst), (inner.src, inner.dst));
            }
            prop_assert_eq!(reassemble(&pieces).unwrap(), inner.transport(&packet));
        }

        /// A fragment that meets a smaller MTU further on: its pieces fit among those of the first cut.
        #[test]
        fn fragments_of_fragments_reassemble(payload in vec(any::<u8>(), 1500..4000), first in 800usize..1500, second in 68usize..700) {
            let packet = testing::udp4(&payload);
            let inner = Inner::parse(&packet).unwrap();
            let pieces: Vec<Vec<u8>> = cut(&packet, first).unwrap().iter().flat_map(|piece| cut(piece, second).unwrap()).collect();
            prop_assert_eq!(reassemble(&pieces).unwrap(), inner.transport(&packet));
        }
    }
}
