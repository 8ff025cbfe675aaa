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
