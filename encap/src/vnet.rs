//! The header in front of every packet that a TUN device with IFF_VNET_HDR reads and writes: `struct virtio_net_hdr`
//! (virtio 1.2 section 5.1.6; include/uapi/linux/virtio_net.h).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |     Flags     |   GSO type    |         Header length         |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |           GSO size            |        Checksum start         |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |        Checksum offset        |  the packet
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```
//!
//! The 16-bit fields are in the machine's own byte order: so they are for a TUN device on which nobody has called
//! TUNSETVNETLE or TUNSETVNETBE (`tun_is_little_endian`, drivers/net/tun.c).

use crate::tcp::{self, Tcp};
use crate::udp;
use crate::{Family, Fragment, Inner, Reject};

/// Length of the header in bytes: that of a device on which nobody has called TUNSETVNETHDRSZ.
pub const LEN: usize = 10;

/// Flags: the transport checksum is to be finished.
const NEEDS_CSUM: u8 = 1;
/// Flags: the transport checksum was verified.
const DATA_VALID: u8 = 2;
/// GSO type: the superpacket has CWR set, which only its first segment may have (RFC 3168 section 6.1.2).
const ECN: u8 = 0x80;

/// How a packet is to be cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gso {
    /// Not at all.
    #[default]
    None,
    /// TCP over IPv4 (TSO).
    Tcp4,
    /// TCP over IPv6 (TSO).
    Tcp6,
    /// UDP over either, into datagrams (USO; VIRTIO_NET_HDR_GSO_UDP_L4). Not the fragments of UFO.
    UdpL4,
}

impl Gso {
    /// VIRTIO_NET_HDR_GSO_*.
    const fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Tcp4 => 1,
            Self::Tcp6 => 4,
            Self::UdpL4 => 5,
        }
    }
}

/// The header. The default says nothing: a whole packet, its checksum in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// The transport checksum is to be finished: the sum of the bytes from `csum_start` to the end is to be
    /// complemented and written `csum_offset` bytes behind `csum_start`, where the pseudo-header's sum stands now.
    pub needs_csum: bool,
    /// The transport checksum was verified by somebody.
    pub data_valid: bool,
    /// How the packet is to be cut.
    pub gso: Gso,
    /// The superpacket has CWR set.
    pub ecn: bool,
    /// Length of all headers in bytes. Not to be trusted: it can be wrong on packets that were forwarded.
    pub hdr_len: u16,
    /// Payload bytes of each segment but the last.
    pub gso_size: u16,
    /// Offset of the transport header in the packet, in bytes.
    pub csum_start: u16,
    /// Offset of the checksum field in the transport header, in bytes.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Reads the header at the start of what a TUN device gave; the packet follows at [`LEN`].
    ///
    /// Flags that we do not know are ignored, as virtio asks for.
    ///
    /// # Errors
    /// [`Reject::Truncated`] for fewer than [`LEN`] bytes; [`Reject::BadHeader`] for a GSO type that nobody asked the
    /// device for (UFO, tunnels), for GSO without a size, and for GSO without NEEDS_CSUM, which virtio rules out.
    pub fn parse(bytes: &[u8]) -> Result<Self, Reject> {
        let &[flags, gso_type, h, l, g, s, c, t, o, f] =
            bytes.first_chunk::<LEN>().ok_or(Reject::Truncated)?;
        let gso = match gso_type & !ECN {
            0 => Gso::None,
            1 => Gso::Tcp4,
            4 => Gso::Tcp6,
            5 => Gso::UdpL4,
            _ => return Err(Reject::BadHeader),
        };
        let header = Self {
            needs_csum: flags & NEEDS_CSUM != 0,
            data_valid: flags & DATA_VALID != 0,
            gso,
            ecn: gso_type & ECN != 0,
            hdr_len: u16::from_ne_bytes([h, l]),
            gso_size: u16::from_ne_bytes([g, s]),
            csum_start: u16::from_ne_bytes([c, t]),
            csum_offset: u16::from_ne_bytes([o, f]),
        };
        if gso != Gso::None && (header.gso_size == 0 || !header.needs_csum) {
            return Err(Reject::BadHeader);
        }
        Ok(header)
    }

    /// The header's bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; LEN] {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let [[h, l], [g, s], [c, t], [o, f]] = [
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
        ]
        .map(u16::to_ne_bytes);
        let flags = flag(self.needs_csum, NEEDS_CSUM) | flag(self.data_valid, DATA_VALID);
        let gso_type = self.gso.code() | flag(self.ecn, ECN);
        [flags, gso_type, h, l, g, s, c, t, o, f]
    }

    /// The header for a TCP or UDP packet with an unfinished checksum ([`L4Checksum::Unfinished`]
    /// (crate::L4Checksum::Unfinished)), as a kernel VXLAN sender on the same machine delivers it. The kernel will
    /// finish it and, if it is TCP and longer than `mtu` bytes, cut it into packets of at most that.
    ///
    /// # Errors
    /// [`Reject::BadHeader`] for a fragment, for another protocol than TCP or UDP, for UDP longer than `mtu` (where
    /// its datagrams end is not known any more), and if the headers leave no room for payload in `mtu`;
    /// [`Reject::Truncated`] or [`Reject::BadHeader`] for a TCP header that makes no sense.
    pub fn for_unfinished(packet: &[u8], inner: &Inner, mtu: usize) -> Result<Self, Reject> {
        if inner.fragment != Fragment::None {
            return Err(Reject::BadHeader);
        }
        let (gso, l4_header, csum_offset, ecn) = match (inner.protocol, inner.family) {
            (tcp::PROTOCOL, family) => {
                let tcp = Tcp::parse(inner.transport(packet))?;
                let gso = match family {
                    Family::V4 => Gso::Tcp4,
                    Family::V6 => Gso::Tcp6,
                };
                let cwr = tcp.flags & tcp::CWR != 0;
                (gso, usize::from(tcp.header_len), tcp::CHECKSUM, cwr)
            }
            (udp::PROTOCOL, _) => (Gso::None, udp::HEADER_LEN, udp::CHECKSUM, false),
            _ => return Err(Reject::BadHeader),
        };
        let hdr_len = inner.l4 + l4_header;
        let field = |len: usize| u16::try_from(len).map_err(|_| Reject::BadHeader);
        let whole = Self {
            needs_csum: true,
            hdr_len: field(hdr_len)?,
            csum_start: field(inner.l4)?,
            csum_offset: field(csum_offset)?,
            ..Self::default()
        };
        if inner.total_len <= mtu {
            return Ok(whole);
        }
        match mtu.checked_sub(hdr_len) {
            Some(room) if room > 0 && gso != Gso::None => Ok(Self {
                gso,
                ecn,
                gso_size: field(room)?,
                ..whole
            }),
            _ => Err(Reject::BadHeader),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use proptest::prelude::*;

    /// As a TUN device of a little-endian machine gave it, of TCP over IPv4 with timestamps and MSS 1398.
    #[test]
    #[cfg(target_endian = "little")]
    fn byte_by_byte() {
        let bytes = [1, 0x81, 52, 0, 0x76, 0x05, 20, 0, 16, 0];
        let header = VnetHeader {
            needs_csum: true,
            data_valid: false,
            gso: Gso::Tcp4,
            ecn: true,
            hdr_len: 52,
            gso_size: 1398,
            csum_start: 20,
            csum_offset: 16,
        };
        assert_eq!(VnetHeader::parse(&bytes), Ok(header));
        assert_eq!(header.emit(), bytes);
    }

    #[test]
    fn nonsense_is_refused() {
        let good = VnetHeader {
            needs_csum: true,
            gso: Gso::UdpL4,
            gso_size: 1,
            ..Default::default()
        };
        assert_eq!(VnetHeader::parse(&good.emit()), Ok(good));
        for len in 0..LEN {
            assert_eq!(
                VnetHeader::parse(&good.emit()[..len]),
                Err(Reject::Truncated)
            );
        }
        for wrong in [
            VnetHeader {
                gso_size: 0,
                ..good
            },
            VnetHeader {
                needs_csum: false,
                ..good
            },
        ] {
            assert_eq!(VnetHeader::parse(&wrong.emit()), Err(Reject::BadHeader));
        }
        // 3 is UFO, 0x20 and 0x40 are tunnels.
        for gso_type in (0u8..=255).filter(|gso_type| ![0, 1, 4, 5].contains(&(gso_type & 0x7f))) {
            let mut bytes = good.emit();
            bytes[1] = gso_type;
            assert_eq!(VnetHeader::parse(&bytes), Err(Reject::BadHeader));
        }
    }

    #[test]
    fn for_an_unfinished_packet() {
        let udp = testing::udp4(&[0; 100]);
        let inner = Inner::parse(&udp).unwrap();
        let whole = VnetHeader {
            needs_csum: true,
            hdr_len: 28,
            csum_start: 20,
            csum_offset: 6,
            ..Default::default()
        };
        assert_eq!(VnetHeader::for_unfinished(&udp, &inner, 128), Ok(whole));
        assert_eq!(
            VnetHeader::for_unfinished(&udp, &inner, 127),
            Err(Reject::BadHeader)
        );
        let mut fragment = udp.clone();
        fragment[6] = 0x20;
        let inner = Inner::parse(&fragment).unwrap();
        assert_eq!(
            VnetHeader::for_unfinished(&fragment, &inner, 1500),
            Err(Reject::BadHeader)
        );
        let mut icmp = udp;
        icmp[9] = 1;
        let inner = Inner::parse(&icmp).unwrap();
        assert_eq!(
            VnetHeader::for_unfinished(&icmp, &inner, 1500),
            Err(Reject::BadHeader)
        );
    }

    proptest! {
        #[test]
        fn parse_then_emit_is_the_identity(bytes: [u8; LEN]) {
            if let Ok(header) = VnetHeader::parse(&bytes) {
                let mut known = bytes;
                known[0] &= NEEDS_CSUM | DATA_VALID;
                prop_assert_eq!(header.emit(), known);
            }
        }

        /// The kernel is told to cut where we would.
        #[test]
        fn an_unfinished_superpacket(packet in testing::packet(3000), mtu in 0usize..2000) {
            let inner = Inner::parse(&packet).unwrap();
            let split = crate::Split::for_mtu(&packet, &inner, mtu);
            match VnetHeader::for_unfinished(&packet, &inner, mtu) {
                Ok(vnet) => {
                    prop_assert!(vnet.needs_csum);
                    prop_assert_eq!(usize::from(vnet.csum_start), inner.l4);
                    prop_assert_eq!(VnetHeader::parse(&vnet.emit()), Ok(vnet));
                    prop_assert_eq!(vnet.gso != Gso::None, packet.len() > mtu);
                    if vnet.gso != Gso::None {
                        let hdr_len = usize::from(vnet.hdr_len);
                        prop_assert_eq!(hdr_len, split.map(|split| split.header_len()).unwrap());
                        prop_assert_eq!(hdr_len + usize::from(vnet.gso_size), mtu);
                        let cwr = testing::verify(&packet).tcp.is_some_and(|tcp| tcp.cwr);
                        prop_assert_eq!(vnet.ecn, cwr);
                    }
                }
                Err(error) => {
                    prop_assert_eq!(error, Reject::BadHeader);
                    prop_assert!(split.is_err() || inner.protocol == udp::PROTOCOL);
                }
            }
        }
    }
}
