//! VXLAN (RFC 7348 section 5): the 8-byte header, and the inner Ethernet header behind it.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |R|R|R|R|I|R|R|R|            Reserved                           |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                VXLAN Network Identifier (VNI) |   Reserved    |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |               Inner Ethernet header (14 bytes) ...            |
//! ```
//!
//! Toward a TUN device the inner Ethernet header has no station behind it: we make it up on send, from our
//! VTEP MAC to the peer's, and check it on receive.

use crate::ethernet::{self, Ethernet};
use crate::{Encapsulation, Family, Header, HeaderNotes, MAX_HEADER, MacAddr, Reject};

/// Length of the VXLAN header in bytes.
pub const HEADER_LEN: usize = 8;
/// The greatest VNI: 24 bits.
pub const MAX_VNI: u32 = 0x00ff_ffff;

const I_FLAG: u8 = 0x08;
const INNER: usize = HEADER_LEN + ethernet::HEADER_LEN;
const _: () = assert!(INNER <= MAX_HEADER);

/// The header for a VNI (24 bits; those above are not sent): the I flag, and every reserved bit zero.
#[must_use]
pub const fn emit(vni: u32) -> [u8; HEADER_LEN] {
    let [_, a, b, c] = vni.to_be_bytes();
    [I_FLAG, 0, 0, 0, a, b, c, 0]
}

/// Reads the VNI at the start of a datagram's payload, and whether a reserved bit was set.
///
/// # Errors
/// [`Reject::Truncated`] below 8 bytes, [`Reject::VxlanFlag`] without the I flag.
pub fn parse(bytes: &[u8]) -> Result<(u32, HeaderNotes), Reject> {
    let &[flags, r0, r1, r2, a, b, c, r3] =
        bytes.first_chunk::<HEADER_LEN>().ok_or(Reject::Truncated)?;
    if flags & I_FLAG == 0 {
        return Err(Reject::VxlanFlag);
    }
    let reserved_bits = flags & !I_FLAG | r0 | r1 | r2 | r3 != 0;
    Ok((
        u32::from_be_bytes([0, a, b, c]),
        HeaderNotes { reserved_bits },
    ))
}

/// Our VTEP MACs. flannel gives each inner family a VXLAN device of its own, and so an address of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnMacs {
    /// Source of the frames that carry IPv4.
    pub v4: MacAddr,
    /// Source of the frames that carry IPv6.
    pub v6: MacAddr,
}

impl OwnMacs {
    /// Is this one of ours? Either will do: peers that know only one of the two use it for both families.
    #[must_use]
    pub fn contains(&self, mac: MacAddr) -> bool {
        mac == self.v4 || mac == self.v6
    }
}

/// VXLAN in TUN mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// The network's identifier, at most [`MAX_VNI`].
    pub vni: u32,
    /// Our own addresses on the inner link.
    pub macs: OwnMacs,
    /// Refuse headers with a reserved bit set, which RFC 7348 says to ignore and Linux drops.
    pub strict: bool,
}

impl Encapsulation for Vxlan {
    const NAME: &'static str = "vxlan";
    const HEADER_LEN: usize = INNER;

    fn overhead(outer: Family) -> u16 {
        match outer {
            Family::V4 => 50,
            Family::V6 => 70,
        }
    }

    fn header(&self, inner: Family, peer: MacAddr) -> Header {
        let src = match inner {
            Family::V4 => self.macs.v4,
            Family::V6 => self.macs.v6,
        };
        let mut bytes = [0; INNER];
        bytes[..HEADER_LEN].copy_from_slice(&emit(self.vni));
        bytes[HEADER_LEN..].copy_from_slice(
            &Ethernet {
                dst: peer,
                src,
                ethertype: inner.ethertype(),
            }
            .emit(),
        );
        Header::new(&bytes).unwrap_or(Header::EMPTY)
    }

    fn check_header(&self, datagram: &[u8]) -> Result<HeaderNotes, Reject> {
        if datagram.len() < INNER {
            return Err(Reject::Truncated);
        }
        let (vni, notes) = parse(datagram)?;
        if self.strict && notes.reserved_bits {
            return Err(Reject::ReservedBits);
        }
        if vni != self.vni {
            return Err(Reject::WrongVni);
        }
        Ok(notes)
    }

    /// In this order: the destination MAC (to everybody: [`Reject::Arp`] if it is that, or [`Reject::Broadcast`];
    /// to a group: [`Reject::Multicast`]; to another station: [`Reject::WrongMac`]), then the source
    /// ([`Reject::OwnMac`]), then the EtherType ([`Reject::VlanTag`], [`Reject::Arp`], [`Reject::EtherType`]), and
    /// last whether the IP version is the one it promises ([`Reject::BadVersion`]).
    fn check_link(&self, datagram: &[u8]) -> Result<Family, Reject> {
        let frame = datagram.get(HEADER_LEN..).ok_or(Reject::Truncated)?;
        let ethernet = Ethernet::parse(frame)?;
        if ethernet.dst.is_broadcast() {
            return Err(if ethernet.ethertype == ethernet::ARP {
                Reject::Arp
            } else {
                Reject::Broadcast
            });
        }
        if ethernet.dst.is_multicast() {
            return Err(Reject::Multicast);
        }
        if !self.macs.contains(ethernet.dst) {
            return Err(Reject::WrongMac);
        }
        if self.macs.contains(ethernet.src) {
            return Err(Reject::OwnMac);
        }
        let family = match ethernet.ethertype {
            ethernet::IPV4 => Family::V4,
            ethernet::IPV6 => Family::V6,
            ethernet::ARP => return Err(Reject::Arp),
            ethernet::VLAN | ethernet::VLAN_SERVICE => return Err(Reject::VlanTag),
            _ => return Err(Reject::EtherType),
        };
        if Family::of_packet(&frame[ethernet::HEADER_LEN..])? != family {
            return Err(Reject::BadVersion);
        }
        Ok(family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OURS: OwnMacs = OwnMacs {
        v4: MacAddr([0x0a, 0x58, 10, 99, 0, 1]),
        v6: MacAddr([0x0a, 0x58, 0xfd, 0x99, 0, 1]),
    };
    const PEER: MacAddr = MacAddr([0x0a, 0x58, 10, 99, 0, 2]);
    const VXLAN: Vxlan = Vxlan {
        vni: 0x12_3456,
        macs: OURS,
        strict: false,
    };

    /// What the peer sends us.
    fn datagram(dst: MacAddr, src: MacAddr, ethertype: u16, first: u8) -> Vec<u8> {
        let ethernet = Ethernet {
            dst,
            src,
            ethertype,
        }
        .emit();
        [&emit(VXLAN.vni)[..], &ethernet, &[first; 20]].concat()
    }

    #[test]
    fn the_header_byte_by_byte() {
        let header = VXLAN.header(Family::V6, PEER);
        let expected = [
            0x08, 0, 0, 0, 0x12, 0x34, 0x56, 0, // VXLAN
            0x0a, 0x58, 10, 99, 0, 2, // to the peer
            0x0a, 0x58, 0xfd, 0x99, 0, 1, // from our address for IPv6
            0x86, 0xdd,
        ];
        assert_eq!(header.as_slice(), expected);
        let header = VXLAN.header(Family::V4, PEER);
        assert_eq!(
            header.as_slice()[14..],
            [0x0a, 0x58, 10, 99, 0, 1, 0x08, 0x00]
        );
        assert_eq!(
            (Vxlan::overhead(Family::V4), Vxlan::overhead(Family::V6)),
            (50, 70)
        );
    }

    #[test]
    fn what_we_send_the_peer_accepts() {
        let peer = Vxlan {
            macs: OwnMacs { v4: PEER, v6: PEER },
            strict: true,
            ..VXLAN
        };
        for (family, first) in [(Family::V4, 0x45), (Family::V6, 0x60)] {
            let datagram = [VXLAN.header(family, PEER).as_slice(), &[first; 40]].concat();
            assert_eq!(
                peer.check_header(&datagram),
                Ok(HeaderNotes {
                    reserved_bits: false
                })
            );
            assert_eq!(peer.check_link(&datagram), Ok(family));
        }
    }

    #[test]
    fn the_header_checks_in_their_order() {
        let good = datagram(OURS.v4, PEER, ethernet::IPV4, 0x45);
        let strict = Vxlan {
            strict: true,
            ..VXLAN
        };
        for len in 0..INNER {
            assert_eq!(VXLAN.check_header(&good[..len]), Err(Reject::Truncated));
        }
        // Everything wrong at once; then one thing after the other put right.
        let mut bad = good.clone();
        bad[0] = 0x80;
        bad[6] = 0;
        assert_eq!(strict.check_header(&bad), Err(Reject::VxlanFlag));
        bad[0] = 0x88;
        assert_eq!(strict.check_header(&bad), Err(Reject::ReservedBits));
        assert_eq!(VXLAN.check_header(&bad), Err(Reject::WrongVni));
        bad[6] = 0x56;
        assert_eq!(
            VXLAN.check_header(&bad),
            Ok(HeaderNotes {
                reserved_bits: true
            })
        );
        bad[0] = 0x08;
        assert_eq!(
            strict.check_header(&bad),
            Ok(HeaderNotes {
                reserved_bits: false
            })
        );
    }

    #[test]
    fn every_reserved_bit_is_noted() {
        for bit in (0..64).filter(|bit| *bit != 4 && !(32..56).contains(bit)) {
            let mut bytes = datagram(OURS.v4, PEER, ethernet::IPV4, 0x45);
            bytes[bit / 8] |= 0x80 >> (bit % 8);
            assert_eq!(
                VXLAN.check_header(&bytes),
                Ok(HeaderNotes {
                    reserved_bits: true
                }),
                "bit {bit}"
            );
            assert_eq!(
                Vxlan {
                    strict: true,
                    ..VXLAN
                }
                .check_header(&bytes),
                Err(Reject::ReservedBits),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn the_link_checks_each_with_its_reason() {
        let group = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
        let other = MacAddr([0x0a, 0x58, 10, 99, 0, 3]);
        let broadcast = MacAddr::BROADCAST;
        let cases = [
            (OURS.v4, PEER, ethernet::IPV4, 0x45, Ok(Family::V4)),
            (OURS.v6, PEER, ethernet::IPV4, 0x45, Ok(Family::V4)),
            (OURS.v4, PEER, ethernet::IPV6, 0x60, Ok(Family::V6)),
            (OURS.v6, PEER, ethernet::IPV6, 0x60, Ok(Family::V6)),
            (broadcast, PEER, ethernet::ARP, 0, Err(Reject::Arp)),
            (OURS.v4, PEER, ethernet::ARP, 0, Err(Reject::Arp)),
            (
                broadcast,
                PEER,
                ethernet::IPV4,
                0x45,
                Err(Reject::Broadcast),
            ),
            (group, PEER, ethernet::IPV6, 0x60, Err(Reject::Multicast)),
            (other, PEER, ethernet::IPV4, 0x45, Err(Reject::WrongMac)),
            (other, OURS.v4, ethernet::IPV4, 0x45, Err(Reject::WrongMac)),
            (other, PEER, ethernet::VLAN, 0, Err(Reject::WrongMac)),
            (OURS.v4, OURS.v4, ethernet::IPV4, 0x45, Err(Reject::OwnMac)),
            (OURS.v4, OURS.v6, ethernet::IPV4, 0x45, Err(Reject::OwnMac)),
            (OURS.v4, PEER, ethernet::VLAN, 0, Err(Reject::VlanTag)),
            (
                OURS.v4,
                PEER,
                ethernet::VLAN_SERVICE,
                0,
                Err(Reject::VlanTag),
            ),
            (OURS.v4, PEER, 0x88cc, 0, Err(Reject::EtherType)),
            (OURS.v4, PEER, ethernet::IPV4, 0x60, Err(Reject::BadVersion)),
            (OURS.v4, PEER, ethernet::IPV6, 0x45, Err(Reject::BadVersion)),
            (OURS.v4, PEER, ethernet::IPV4, 0x00, Err(Reject::BadVersion)),
        ];
        for (dst, src, ethertype, first, expected) in cases {
            let found = VXLAN.check_link(&datagram(dst, src, ethertype, first));
            assert_eq!(
                found, expected,
                "{src} to {dst}, {ethertype:#06x}, {first:#04x}"
            );
        }
        let good = datagram(OURS.v4, PEER, ethernet::IPV4, 0x45);
        for len in 0..=INNER {
            assert_eq!(
                VXLAN.check_link(&good[..len]),
                Err(Reject::Truncated),
                "{len}"
            );
        }
    }

    proptest! {
        #[test]
        fn emit_then_parse_is_the_identity(vni in 0..=MAX_VNI) {
            prop_assert_eq!(parse(&emit(vni)), Ok((vni, HeaderNotes { reserved_bits: false })));
        }

        #[test]
        fn arbitrary_bytes(bytes: Vec<u8>) {
            let _ = (parse(&bytes), VXLAN.check_header(&bytes), VXLAN.check_link(&bytes));
        }
    }
}
