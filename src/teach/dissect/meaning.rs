//! What addresses, ports and numbers stand for.

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};

use encap::MacAddr;
use etherparse::IpNumber;

/// What a VTEP MAC begins with where none was chosen; the IPv4 address follows (see `lease`).
const VTEP_MAC_PREFIX: [u8; 2] = [0x0a, 0x58];

pub(super) fn mac(mac: MacAddr) -> Cow<'static, str> {
    let [a, b, rest @ ..] = mac.0;
    match mac {
        _ if mac.is_broadcast() => "broadcast".into(),
        _ if [a, b] == VTEP_MAC_PREFIX => {
            format!("made from {}, locally administered", Ipv4Addr::from(rest)).into()
        }
        _ if [a, b] == [0x33, 0x33] => "multicast of IPv6 (RFC 2464 section 7)".into(),
        _ if mac.is_multicast() => "multicast".into(),
        _ if mac.0 == [0; 6] => "unknown".into(),
        _ if a & 2 != 0 => "locally administered".into(),
        _ => "".into(),
    }
}

pub(super) fn ipv4(ip: Ipv4Addr) -> &'static str {
    match ip {
        _ if ip.is_private() => "private (RFC 1918)",
        _ if ip.is_loopback() => "loopback",
        _ if ip.is_link_local() => "link-local (RFC 3927)",
        _ if ip.is_broadcast() => "broadcast",
        _ if ip.is_multicast() => "multicast",
        _ if ip.is_documentation() => "documentation (RFC 5737)",
        _ if ip.is_unspecified() => "unspecified",
        _ => "",
    }
}

pub(super) fn ipv6(ip: Ipv6Addr) -> &'static str {
    match ip {
        _ if ip.is_unspecified() => "unspecified",
        _ if ip.is_loopback() => "loopback",
        _ if ip.is_unicast_link_local() => "link-local (RFC 4291)",
        _ if ip.is_unique_local() => "unique local (RFC 4193)",
        _ if ip.segments()[..2] == [0x2001, 0xdb8] => "documentation (RFC 3849)",
        _ if ip.segments()[..7] == [0xff02, 0, 0, 0, 0, 1, 0xff00 | ip.segments()[6] & 0xff] => {
            "solicited-node multicast (RFC 4291)"
        }
        _ if ip.is_multicast() => "multicast",
        _ => "",
    }
}

pub(super) fn port(port: u16) -> &'static str {
    match port {
        22 => "ssh",
        53 => "DNS",
        67 | 68 => "DHCP",
        80 => "HTTP",
        443 => "HTTPS",
        546 | 547 => "DHCPv6",
        2379 => "etcd",
        4789 => "VXLAN as IANA assigned it",
        4790 => "VXLAN-GPE",
        5201 => "iperf3",
        5353 => "multicast DNS",
        6081 => "Geneve",
        6443 => "Kubernetes API",
        8285 => "flannel udp",
        8472 => "VXLAN of Linux and flannel; assigned to OTV",
        51820 => "WireGuard",
        _ => "",
    }
}

pub(super) fn ether_type(number: u16) -> &'static str {
    match number {
        0..0x0600 => "a length: IEEE 802.2 LLC follows",
        0x0800 => "IPv4",
        0x0806 => "ARP",
        0x6558 => "Ethernet, bridged through a tunnel",
        0x8100 => "VLAN tag",
        0x86dd => "IPv6",
        0x8847 | 0x8848 => "MPLS",
        0x8863 | 0x8864 => "PPPoE",
        0x888e => "EAPOL",
        0x88a8 => "VLAN service tag",
        0x88be => "ERSPAN",
        0x88cc => "LLDP",
        _ => "",
    }
}

/// An EtherType that tells what a tunnel carries or ARP asks for: where no length can stand in its place.
pub(super) fn carried(number: u16) -> &'static str {
    match number {
        0..0x0600 => "",
        _ => ether_type(number),
    }
}

/// IANA, ICMP Extension Object Classes.
pub(super) fn extension_class(number: u8) -> &'static str {
    match number {
        1 => "MPLS label stack (RFC 4950)",
        2 => "interface (RFC 5837)",
        3 => "interface identification (RFC 8335)",
        4 => "extended information (RFC 8335)",
        _ => "",
    }
}

/// The name of an IP protocol, as the IANA's keywords have it.
pub(super) fn protocol(number: u8) -> &'static str {
    match number {
        0 => "hop-by-hop options",
        59 => "nothing follows",
        _ => IpNumber(number).keyword_str().unwrap_or(""),
    }
}

/// RFC 2474, RFC 2597, RFC 3246, RFC 5865, RFC 8622.
pub(super) fn dscp(number: u64) -> &'static str {
    match number {
        0 => "default",
        1 => "LE, lower effort",
        8 => "CS1",
        10 => "AF11",
        12 => "AF12",
        14 => "AF13",
        16 => "CS2",
        18 => "AF21",
        20 => "AF22",
        22 => "AF23",
        24 => "CS3",
        26 => "AF31",
        28 => "AF32",
        30 => "AF33",
        32 => "CS4",
        34 => "AF41",
        36 => "AF42",
        38 => "AF43",
        40 => "CS5",
        44 => "voice admit",
        46 => "EF, expedited forwarding",
        48 => "CS6, network control",
        56 => "CS7",
        _ => "",
    }
}

/// RFC 3168 section 5.
pub(super) fn ecn(number: u64) -> &'static str {
    match number {
        0 => "not ECN-capable",
        1 => "ECT(1)",
        2 => "ECT(0)",
        _ => "congestion experienced",
    }
}

/// `include/uapi/linux/if_arp.h`.
pub(super) fn hardware(number: u16) -> &'static str {
    match number {
        1 => "Ethernet",
        768 => "IPIP tunnel",
        769 => "IPv6 tunnel",
        772 => "loopback",
        776 => "SIT tunnel",
        778 => "GRE tunnel",
        65534 => "none, as of a TUN device",
        _ => "",
    }
}

/// IANA, Address Resolution Protocol Parameters: not the numbers that Linux gives to devices.
pub(super) fn arp_hardware(number: u16) -> &'static str {
    match number {
        0 | 65535 => "reserved (RFC 5494)",
        1 => "Ethernet",
        6 => "IEEE 802 networks",
        7 => "ARCNET",
        15 => "frame relay",
        16 | 19 | 21 => "ATM",
        18 => "Fibre Channel",
        24 => "IEEE 1394",
        32 => "InfiniBand",
        36 | 256 => "for experiments (RFC 5494)",
        _ => "not known here",
    }
}
