//! What an encapsulation costs: header budget, MTU, MSS and goodput.
//!
//! ```text
//!  on the wire   | preamble 8 | Ethernet 14 | outer IP ... headers | inner packet | FCS 4 | gap 12 |
//!                                            '----- overhead -----''---- MTU ----'
//!                                            '------------- link MTU ------------'
//!  inner packet  | IP 20 or 40 | TCP 20 | payload, at most the MSS |
//! ```
//!
//! Goodput is the share of a busy Ethernet line that carries TCP payload (IEEE 802.3 clauses 3.1 and 4.4.2), in one
//! direction, without acknowledgments, loss, or TCP options (timestamps, which Linux sends, take another 12 bytes).

use encap::{Family, ethernet, ipv4, ipv6, tcp, udp, vxlan};

/// Bytes that Ethernet adds to an IP packet on the wire: preamble 8, header 14, frame check sequence 4, gap 12.
pub const FRAMING: usize = 8 + ethernet::HEADER_LEN + 4 + 12;
/// The least payload of an Ethernet frame; shorter ones are padded.
const MIN_FRAME: usize = 46;
/// The least MTU of a link that carries IPv6 (RFC 8200 section 5).
pub const MIN_IPV6_MTU: usize = 1280;
/// The least link MTU that is computed for: what every host must take (RFC 791 section 3.1).
pub const MIN_LINK_MTU: u16 = 576;
const TCP_HEADER: usize = tcp::MIN_HEADER;

/// One header of an encapsulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// Its length in bytes.
    pub bytes: usize,
    /// Where it is defined.
    pub source: &'static str,
}

/// A way to carry IP packets in IP packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encapsulation {
    /// Its name.
    pub name: &'static str,
    /// What stands between the outer IP header and the inner IP packet, and what follows that.
    parts: &'static [Part],
    /// The inner packet is padded to a multiple of so many bytes, as far as the MTU allows.
    block: usize,
}

const UDP: Part = Part {
    name: "UDP",
    bytes: udp::HEADER_LEN,
    source: "RFC 768",
};
const ETHERNET: Part = Part {
    name: "inner Ethernet",
    bytes: ethernet::HEADER_LEN,
    source: "IEEE 802.3 clause 3",
};

/// Every encapsulation that is compared: ours first.
pub const ALL: [Encapsulation; 6] = [
    Encapsulation {
        name: "udp",
        parts: &[UDP],
        block: 1,
    },
    Encapsulation {
        name: "vxlan",
        parts: &[
            UDP,
            Part {
                name: "VXLAN",
                bytes: vxlan::HEADER_LEN,
                source: "RFC 7348 section 5",
            },
            ETHERNET,
        ],
        block: 1,
    },
    Encapsulation {
        name: "ipip",
        parts: &[],
        block: 1,
    },
    Encapsulation {
        name: "gre",
        // Without checksum, key and sequence number.
        parts: &[Part {
            name: "GRE",
            bytes: 4,
            source: "RFC 2784 section 2.1",
        }],
        block: 1,
    },
    Encapsulation {
        name: "geneve",
        // Without options.
        parts: &[
            UDP,
            Part {
                name: "Geneve",
                bytes: 8,
                source: "RFC 8926 section 3.4",
            },
            ETHERNET,
        ],
        block: 1,
    },
    Encapsulation {
        name: "wireguard",
        parts: &[
            UDP,
            Part {
                name: "WireGuard data",
                bytes: 16,
                source: "WireGuard paper section 5.4.6",
            },
            Part {
                name: "Poly1305 tag",
                bytes: 16,
                source: "RFC 8439 section 2.8",
            },
        ],
        block: 16,
    },
];

impl Encapsulation {
    /// All headers over an underlay of this family, outermost first.
    pub fn headers(&self, outer: Family) -> impl Iterator<Item = Part> {
        std::iter::once(ip_header(outer)).chain(self.parts.iter().copied())
    }

    /// Bytes that a packet grows by.
    #[must_use]
    pub fn overhead(&self, outer: Family) -> usize {
        self.headers(outer).map(|part| part.bytes).sum()
    }
}

fn ip_header(family: Family) -> Part {
    match family {
        Family::V4 => Part {
            name: "IPv4",
            bytes: ipv4::MIN_HEADER,
            source: "RFC 791 section 3.1",
        },
        Family::V6 => Part {
            name: "IPv6",
            bytes: ipv6::HEADER_LEN,
            source: "RFC 8200 section 3",
        },
    }
}

/// What remains of a link through an encapsulation, or without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// The encapsulation and the family of the underlay; `None` without encapsulation.
    pub through: Option<(Encapsulation, Family)>,
    /// The largest IP packet that the link carries, in bytes.
    pub link_mtu: usize,
}

impl Budget {
    /// One without encapsulation, and one for each encapsulation over each family that the link can carry.
    ///
    /// `link_mtu` is in bytes, [`MIN_LINK_MTU`] at least.
    pub fn all(link_mtu: u16) -> impl Iterator<Item = Self> {
        let link_mtu = usize::from(link_mtu.max(MIN_LINK_MTU));
        let families = [Family::V4, Family::V6]
            .into_iter()
            .filter(move |&family| family == Family::V4 || link_mtu >= MIN_IPV6_MTU);
        let through =
            families.flat_map(|family| ALL.map(|encapsulation| Some((encapsulation, family))));
        std::iter::once(None)
            .chain(through)
            .map(move |through| Self { through, link_mtu })
    }

    /// The encapsulation's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.through
            .map_or("none", |(encapsulation, _)| encapsulation.name)
    }

    /// The headers, outermost first.
    #[must_use]
    pub fn headers(&self) -> Vec<Part> {
        self.through
            .map(|(encapsulation, outer)| encapsulation.headers(outer).collect())
            .unwrap_or_default()
    }

    /// Bytes that a packet grows by.
    #[must_use]
    pub fn overhead(&self) -> usize {
        self.through
            .map_or(0, |(encapsulation, outer)| encapsulation.overhead(outer))
    }

    /// The largest inner packet, in bytes.
    #[must_use]
    pub fn mtu(&self) -> usize {
        self.link_mtu - self.overhead()
    }

    /// Bytes of TCP payload in an inner packet of this length. `None` if the packet has no room for the headers.
    #[must_use]
    pub fn payload(&self, packet: usize, inner: Family) -> Option<usize> {
        packet.checked_sub(ip_header(inner).bytes + TCP_HEADER)
    }

    /// The maximum segment size of TCP in an inner packet of a family (RFC 9293 section 3.7.1). `None` where the MTU is too
    /// small for IPv6.
    #[must_use]
    pub fn mss(&self, inner: Family) -> Option<usize> {
        if inner == Family::V6 && self.mtu() < MIN_IPV6_MTU {
            return None;
        }
        self.payload(self.mtu(), inner)
    }

    /// Bytes that an inner packet takes on an Ethernet line, all told. `None` if it is larger than the MTU.
    #[must_use]
    pub fn wire(&self, packet: usize) -> Option<usize> {
        let mtu = self.mtu();
        if packet > mtu {
            return None;
        }
        let block = self
            .through
            .map_or(1, |(encapsulation, _)| encapsulation.block);
        let padded = packet.next_multiple_of(block).min(mtu);
        Some(FRAMING + (self.overhead() + padded).max(MIN_FRAME))
    }

    /// The share of the line, from 0 to 1, that carries TCP payload in inner packets of this length in bytes. `None` if no such
    /// packet can be.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "packet lengths have 16 bits")]
    pub fn goodput(&self, packet: usize, inner: Family) -> Option<f64> {
        Some(self.payload(packet, inner)? as f64 / self.wire(packet)? as f64)
    }
}

#[cfg(test)]
mod tests {
    use encap::{Encapsulation as _, RawUdp, Vxlan};

    use super::*;

    fn budget(name: &str, outer: Family, link_mtu: u16) -> Budget {
        let is_it = |budget: &Budget| {
            budget
                .through
                .is_some_and(|(e, family)| e.name == name && family == outer)
        };
        Budget::all(link_mtu).find(is_it).unwrap()
    }

    /// The parts must add up to what the datapath reckons with.
    #[test]
    fn our_own_overheads_are_those_of_the_packet_path() {
        for family in [Family::V4, Family::V6] {
            let ours = |name| budget(name, family, 1500).overhead();
            assert_eq!(ours("udp"), usize::from(RawUdp::overhead(family)));
            assert_eq!(ours("vxlan"), usize::from(Vxlan::overhead(family)));
        }
    }

    /// What Linux gives devices of these kinds over a 1500-byte link: `ip link add` for ipip, gre and geneve, wg-quick's
    /// default of 1420, which is for IPv6.
    #[test]
    fn mtus_are_those_of_linux() {
        for (name, v4, v6) in [
            ("udp", 1472, 1452),
            ("vxlan", 1450, 1430),
            ("ipip", 1480, 1460),
            ("gre", 1476, 1456),
            ("geneve", 1450, 1430),
            ("wireguard", 1440, 1420),
        ] {
            assert_eq!(budget(name, Family::V4, 1500).mtu(), v4, "{name}");
            assert_eq!(budget(name, Family::V6, 1500).mtu(), v6, "{name}");
        }
    }

    #[test]
    fn a_bare_link() {
        let bare = Budget::all(1500).next().unwrap();
        assert_eq!(
            (bare.name(), bare.overhead(), bare.mtu()),
            ("none", 0, 1500)
        );
        assert_eq!(
            (bare.mss(Family::V4), bare.mss(Family::V6)),
            (Some(1460), Some(1440))
        );
        // 1460 of 1538 bytes: the well-known 949 Mbit/s of a gigabit line.
        let goodput = bare.goodput(1500, Family::V4).unwrap();
        assert!((goodput - 0.949_285).abs() < 1e-6, "{goodput}");
        assert_eq!(bare.goodput(1501, Family::V4), None);
        assert_eq!(bare.goodput(39, Family::V4), None);
        assert_eq!(bare.goodput(40, Family::V4), Some(0.0));
        // Ethernet pads 41 bytes to 46.
        assert_eq!(bare.wire(41), Some(84));
    }

    #[test]
    fn wireguard_pads_to_16_bytes_but_not_past_its_mtu() {
        let wireguard = budget("wireguard", Family::V4, 1500);
        assert_eq!(wireguard.wire(1001), wireguard.wire(1008));
        assert_ne!(wireguard.wire(1008), wireguard.wire(1009));
        let odd = budget("wireguard", Family::V4, 1501);
        assert_eq!(odd.mtu(), 1441);
        assert_eq!(odd.wire(1441), Some(FRAMING + 1501));
    }

    #[test]
    fn ipv6_only_where_it_fits() {
        assert_eq!(Budget::all(1279).count(), 7);
        assert_eq!(Budget::all(1280).count(), 13);
        let vxlan = budget("vxlan", Family::V4, 1300);
        assert_eq!(
            (vxlan.mss(Family::V4), vxlan.mss(Family::V6)),
            (Some(1210), None)
        );
        assert_eq!(Budget::all(0).next().unwrap().link_mtu, 576);
    }

    #[test]
    fn bigger_packets_never_carry_less() {
        for budget in Budget::all(9000).filter(|budget| budget.name() != "wireguard") {
            let shares: Vec<_> = (40..=budget.mtu())
                .map(|packet| budget.goodput(packet, Family::V4).unwrap())
                .collect();
            assert!(shares.is_sorted(), "{}", budget.name());
            assert!(shares.iter().all(|share| (0.0..1.0).contains(share)));
        }
    }
}
