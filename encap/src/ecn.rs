//! ECN across the tunnel (RFC 6040), and changes to the ToS byte.
//!
//! The lower two bits of the ToS byte or traffic class (RFC 3168 section 5). The upper six, the DSCP, have
//! rules of their own (RFC 2983), so the byte is never treated as one field.
//!
//! ```text
//!    0     1     2     3     4     5     6     7
//! +-----+-----+-----+-----+-----+-----+-----+-----+
//! |          DSCP                     | ECN FIELD |     00 Not-ECT   01 ECT(1)   10 ECT(0)   11 CE
//! +-----+-----+-----+-----+-----+-----+-----+-----+
//! ```

use crate::{Family, checksum, ipv4};

/// The ECN field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ecn {
    /// 00: the transport does not understand ECN.
    NotEct,
    /// 01: ECN-capable, ECT(1).
    Ect1,
    /// 10: ECN-capable, ECT(0).
    Ect0,
    /// 11: congestion experienced.
    Ce,
}

impl Ecn {
    /// The field in a ToS byte or traffic class.
    #[must_use]
    pub const fn of(tos: u8) -> Self {
        match tos & 0b11 {
            0b00 => Self::NotEct,
            0b01 => Self::Ect1,
            0b10 => Self::Ect0,
            _ => Self::Ce,
        }
    }

    /// Its two bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::NotEct => 0b00,
            Self::Ect1 => 0b01,
            Self::Ect0 => 0b10,
            Self::Ce => 0b11,
        }
    }
}

/// The outer field for an inner one: normal mode copies it (RFC 6040 section 4.1).
#[must_use]
pub const fn encapsulate(inner: Ecn) -> Ecn {
    inner
}

/// The field of the packet that leaves the tunnel; `None` means drop it: it met congestion, and its transport
/// would not hear of it any other way (RFC 6040 section 4.2, figure 4).
///
/// ```text
/// +---------+------------------------------------------------+
/// |Arriving |            Arriving Outer Header               |
/// |   Inner +---------+------------+------------+------------+
/// |  Header | Not-ECT | ECT(0)     | ECT(1)     |     CE     |
/// +---------+---------+------------+------------+------------+
/// | Not-ECT | Not-ECT |Not-ECT(!!!)|Not-ECT(!!!)| <drop>(!!!)|
/// |  ECT(0) |  ECT(0) | ECT(0)     | ECT(1)     |     CE     |
/// |  ECT(1) |  ECT(1) | ECT(1) (!) | ECT(1)     |     CE     |
/// |    CE   |      CE |     CE     |     CE(!!!)|     CE     |
/// +---------+---------+------------+------------+------------+
/// ```
#[must_use]
pub const fn decapsulate(inner: Ecn, outer: Ecn) -> Option<Ecn> {
    match (inner, outer) {
        (Ecn::NotEct, Ecn::Ce) => None,
        (Ecn::NotEct, _) => Some(Ecn::NotEct),
        (Ecn::Ce, _) | (_, Ecn::Ce) => Some(Ecn::Ce),
        (Ecn::Ect0, Ecn::Ect1) => Some(Ecn::Ect1),
        (Ecn::Ect0 | Ecn::Ect1, _) => Some(inner),
    }
}

/// Sets the ECN field of an IP packet and leaves its DSCP alone. IPv4: the header checksum follows.
/// Does nothing to a slice shorter than the header.
pub fn set_ecn(packet: &mut [u8], family: Family, ecn: Ecn) {
    if let Some(tos) = tos(packet, family) {
        set_tos(packet, family, tos & !0b11 | ecn.bits());
    }
}

/// Sets the whole ToS byte or traffic class. IPv4: the header checksum is updated, not recomputed (RFC 1624),
/// so that a wrong one stays wrong. Does nothing to a slice shorter than the header.
pub fn set_tos(packet: &mut [u8], family: Family, tos: u8) {
    match family {
        Family::V4 => {
            if let Some(h) = packet.first_chunk_mut::<{ ipv4::MIN_HEADER }>() {
                let old = u16::from_be_bytes([h[0], h[1]]);
                let new = u16::from_be_bytes([h[0], tos]);
                let sum = checksum::update_u16(u16::from_be_bytes([h[10], h[11]]), old, new);
                h[1] = tos;
                [h[10], h[11]] = sum.to_be_bytes();
            }
        }
        Family::V6 => {
            // The traffic class lies across the first two bytes.
            if let Some([first, second, ..]) =
                packet.first_chunk_mut::<{ crate::ipv6::HEADER_LEN }>()
            {
                *first = *first & 0xf0 | tos >> 4;
                *second = *second & 0x0f | tos << 4;
            }
        }
    }
}

/// The ToS byte or traffic class, if there is a header's worth of bytes.
fn tos(packet: &[u8], family: Family) -> Option<u8> {
    match family {
        Family::V4 => packet.first_chunk::<{ ipv4::MIN_HEADER }>().map(|h| h[1]),
        Family::V6 => packet
            .first_chunk::<{ crate::ipv6::HEADER_LEN }>()
            .map(|h| h[0] << 4 | h[1] >> 4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Inner, testing};
    use proptest::prelude::*;

    const ALL: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce];

    #[test]
    fn the_bits_are_those_of_rfc_3168() {
        assert_eq!(ALL.map(Ecn::bits), [0b00, 0b10, 0b01, 0b11]);
        for ecn in ALL {
            assert_eq!(Ecn::of(ecn.bits() | 0xb8), ecn);
            assert_eq!(encapsulate(ecn), ecn);
        }
    }

    /// RFC 6040 figure 4, row by row; the columns in the order of `ALL`.
    #[test]
    fn figure_4() {
        use Ecn::{Ce, Ect0, Ect1, NotEct};
        let figure = [
            (NotEct, [Some(NotEct), Some(NotEct), Some(NotEct), None]),
            (Ect0, [Some(Ect0), Some(Ect0), Some(Ect1), Some(Ce)]),
            (Ect1, [Some(Ect1), Some(Ect1), Some(Ect1), Some(Ce)]),
            (Ce, [Some(Ce), Some(Ce), Some(Ce), Some(Ce)]),
        ];
        for (inner, row) in figure {
            assert_eq!(
                ALL.map(|outer| decapsulate(inner, outer)),
                row,
                "inner {inner:?}"
            );
        }
    }

    #[test]
    fn too_short_a_packet_is_left_alone() {
        for (family, len) in [(Family::V4, 19), (Family::V6, 39)] {
            let mut packet = vec![0; len];
            set_ecn(&mut packet, family, Ecn::Ce);
            assert!(packet.iter().all(|&byte| byte == 0));
        }
    }

    proptest! {
        #[test]
        fn setting_it_changes_nothing_else(packet in testing::packet(40), which in 0usize..4) {
            let before = Inner::parse_checked(&packet).unwrap();
            let mut changed = packet.clone();
            set_ecn(&mut changed, before.family, ALL[which]);
            let after = Inner::parse_checked(&changed).unwrap();
            testing::verify(&changed);
            prop_assert_eq!(after, Inner { tos: before.tos & 0xfc | ALL[which].bits(), ..before });
            set_tos(&mut changed, before.family, before.tos);
            prop_assert_eq!(changed, packet);
        }

        #[test]
        fn a_wrong_checksum_stays_wrong(tos: u8) {
            let mut packet = testing::udp4(&[]);
            packet[ipv4::CHECKSUM] ^= 1;
            set_tos(&mut packet, Family::V4, tos);
            prop_assert_eq!(Inner::parse_checked(&packet), Err(crate::Reject::BadChecksum));
        }
    }
}
