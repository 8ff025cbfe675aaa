//! What comes before an IP packet on a link: Ethernet (drawn in `encap::ethernet`), tags, Linux's cooked headers; and ARP.

use encap::ethernet::{ARP, IPV4, IPV6, VLAN, VLAN_SERVICE};

/// MPLS (RFC 3032 section 5), and with labels that were assigned upstream (RFC 5332).
pub(super) const MPLS: u16 = 0x8847;
pub(super) const MPLS_UPSTREAM: u16 = 0x8848;

use super::meaning;
use super::walk::Walk;

/// Hardware types of ARP whose addresses are those of Ethernet (IANA, Address Resolution Protocol Parameters).
const ETHERNET: u16 = 1;
const IEEE_802: u16 = 6;

impl Walk<'_> {
    /// An Ethernet frame.
    pub(super) fn ethernet(&mut self, at: usize, end: usize) {
        let mut pen = self.header("Ethernet", "IEEE 802.3 clause 3", at, end);
        pen.mac(("destination", "Destination MAC"));
        pen.mac(("source", "Source MAC"));
        let ether_type = pen.short_hex(("EtherType", "EtherType"));
        pen.means(meaning::ether_type(ether_type));
        match ether_type {
            IPV4 => pen.source("RFC 894"),
            IPV6 => pen.source("RFC 2464"),
            _ => {}
        }
        let (at, cut) = (pen.at(), pen.is_cut());
        if !cut {
            self.ether_type(ether_type, at, end);
        }
    }

    /// What an EtherType announces.
    pub(super) fn ether_type(&mut self, ether_type: u16, at: usize, end: usize) {
        match ether_type {
            VLAN | VLAN_SERVICE => self.vlan(at, end),
            ARP => self.arp(at, end),
            IPV4 | IPV6 => {
                let version = self
                    .frame
                    .get(at)
                    .filter(|_| at < end)
                    .map(|byte| byte >> 4);
                let announced = if ether_type == IPV4 { 4 } else { 6 };
                match version {
                    Some(version) if version != announced => {
                        self.problem(
                            at,
                            format!("the EtherType announces IPv{announced}, the packet says version {version}"),
                        );
                        self.payload("packet", at, end);
                    }
                    _ if ether_type == IPV4 => self.ipv4(at, end),
                    _ => self.ipv6(at, end),
                }
            }
            0..0x0600 => {
                let stop = end.min(at + usize::from(ether_type));
                self.say(format_args!("LLC"));
                self.unnamed("LLC", at, stop);
                self.padding("Ethernet padding", stop, end);
            }
            MPLS | MPLS_UPSTREAM => self.mpls(at, end),
            _ => {
                let name = meaning::ether_type(ether_type);
                if name.is_empty() {
                    self.say(format_args!("EtherType {ether_type:#06x}"));
                } else {
                    self.say(format_args!("{name}"));
                }
                self.unnamed(if name.is_empty() { "payload" } else { name }, at, end);
            }
        }
    }

    /// A VLAN tag, which stands between the addresses and the EtherType.
    ///
    /// ```text
    ///  0                   1                   2                   3
    ///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// | PCP |D|       VLAN ID         |           EtherType           |
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// ```
    fn vlan(&mut self, mut at: usize, end: usize) {
        loop {
            let mut pen = self.header("VLAN tag", "IEEE 802.1Q clause 9.6", at, end);
            pen.number(("priority", "PCP"), 3);
            pen.flag(("drop eligible", "D"), "may be dropped first");
            pen.number(("VLAN ID", "VLAN ID"), 12);
            let ether_type = pen.short_hex(("EtherType", "EtherType"));
            pen.means(meaning::ether_type(ether_type));
            let cut = pen.is_cut();
            at = pen.at();
            if cut {
                return;
            }
            if !matches!(ether_type, VLAN | VLAN_SERVICE) {
                return self.ether_type(ether_type, at, end);
            }
        }
    }

    /// What a capture on all devices at once has in place of a link header: <https://www.tcpdump.org/linktypes/LINKTYPE_LINUX_SLL.html>.
    ///
    /// ```text
    ///  0                   1                   2                   3
    ///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// |          Packet Type          |           ARPHRD Type         |
    /// |        Address Length         |   Address (8 bytes) ...       |
    /// |  ... Address                                                  |
    /// |  ... Address                  |          Protocol Type        |
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// ```
    pub(super) fn cooked(&mut self, at: usize, end: usize) {
        let mut pen = self.header("Linux cooked", "tcpdump.org LINKTYPE_LINUX_SLL", at, end);
        let kind = pen.short(("packet type", "Packet Type"));
        pen.means(packet_type(kind));
        let hardware = pen.short(("hardware type", "ARPHRD Type"));
        pen.means(meaning::hardware(hardware));
        let len = pen.short(("address length", "Address Length"));
        if len == 6 {
            pen.mac(("source", "Address"));
            pen.bytes(("unused", "Unused"), 2);
        } else {
            pen.bytes(("source", "Address"), 8);
        }
        let ether_type = pen.short_hex(("protocol", "Protocol Type"));
        pen.means(meaning::ether_type(ether_type));
        let (at, cut) = (pen.at(), pen.is_cut());
        if !cut {
            self.ether_type(ether_type, at, end);
        }
    }

    /// The second version, which knows the device: <https://www.tcpdump.org/linktypes/LINKTYPE_LINUX_SLL2.html>.
    ///
    /// ```text
    ///  0                   1                   2                   3
    ///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// |          Protocol Type        |          Reserved (MBZ)       |
    /// |                        Interface Index                        |
    /// |           ARPHRD Type         |  Packet Type  |Address Length |
    /// |                     Address (8 bytes) ...                     |
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// ```
    pub(super) fn cooked2(&mut self, at: usize, end: usize) {
        let mut pen = self.header(
            "Linux cooked v2",
            "tcpdump.org LINKTYPE_LINUX_SLL2",
            at,
            end,
        );
        let ether_type = pen.short_hex(("protocol", "Protocol Type"));
        pen.means(meaning::ether_type(ether_type));
        pen.reserved(16);
        pen.number(("interface index", "Interface Index"), 32);
        let hardware = pen.short(("hardware type", "ARPHRD Type"));
        pen.means(meaning::hardware(hardware));
        let kind = pen.byte(("packet type", "Packet Type"));
        pen.means(packet_type(kind.into()));
        let len = pen.byte(("address length", "Addr Length"));
        if len == 6 {
            pen.mac(("source", "Address"));
            pen.bytes(("unused", "Unused"), 2);
        } else {
            pen.bytes(("source", "Address"), 8);
        }
        let (at, cut) = (pen.at(), pen.is_cut());
        if !cut {
            self.ether_type(ether_type, at, end);
        }
    }

    /// ARP.
    ///
    /// ```text
    ///  0                   1                   2                   3
    ///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// |         Hardware Type         |         Protocol Type         |
    /// |  HW Length    | Proto Length  |           Operation           |
    /// |  sender hardware, sender protocol, target hardware, target protocol address
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// ```
    pub(super) fn arp(&mut self, at: usize, end: usize) {
        let mut pen = self.header("ARP", "RFC 826", at, end);
        let index = pen.index();
        let hardware = pen.short(("hardware type", "Hardware Type"));
        pen.means(meaning::arp_hardware(hardware));
        let protocol = pen.short_hex(("protocol type", "Protocol Type"));
        pen.means(meaning::carried(protocol));
        let hardware_len = pen.byte(("hardware address length", "HW Length"));
        let protocol_len = pen.byte(("protocol address length", "Proto Length"));
        let operation = pen.short(("operation", "Operation"));
        let operation_is = match operation {
            1 => "request",
            2 => "reply",
            3 => "reverse request (RFC 903)",
            4 => "reverse reply (RFC 903)",
            8 => "inverse request (RFC 2390)",
            9 => "inverse reply (RFC 2390)",
            24 | 25 => "for experiments (RFC 5494)",
            0 | 65535 => "reserved (RFC 5494)",
            _ => "not known here",
        };
        pen.means(operation_is);
        // Other hardware has other addresses, even where they are as long.
        let of_ethernet = matches!(hardware, ETHERNET | IEEE_802)
            && (hardware_len, protocol_len, protocol) == (6, 4, IPV4);
        let mut addresses = None;
        if of_ethernet {
            pen.mac(("sender hardware address", "Sender HW Address"));
            let sender = pen.ipv4(("sender protocol address", "Sender Address"));
            let mac = pen.mac(("target hardware address", "Target HW Address"));
            if operation == 1 && mac.0 == [0; 6] {
                pen.means("unknown: that is what is asked for");
            }
            addresses = Some((
                sender,
                pen.ipv4(("target protocol address", "Target Address")),
            ));
        } else {
            let (hardware_len, protocol_len) = (hardware_len.into(), protocol_len.into());
            pen.bytes(
                ("sender hardware address", "Sender HW Address"),
                hardware_len,
            );
            pen.bytes(("sender protocol address", "Sender Address"), protocol_len);
            pen.bytes(
                ("target hardware address", "Target HW Address"),
                hardware_len,
            );
            pen.bytes(("target protocol address", "Target Address"), protocol_len);
        }
        let (stop, cut) = (pen.at(), pen.is_cut());
        if cut {
            self.say(format_args!("ARP, cut short"));
            return;
        }
        match addresses {
            Some((sender, target)) if operation == 1 => {
                self.say(format_args!("ARP: {sender} asks who has {target}"));
            }
            Some((sender, _)) if operation == 2 => self.say(format_args!("ARP: {sender} answers")),
            _ => self.say(format_args!("ARP: operation {operation}, {operation_is}")),
        }
        self.is_original(index, stop - at);
        self.padding("Ethernet padding", stop, end);
    }
}

/// `include/uapi/linux/if_packet.h`.
fn packet_type(number: u16) -> &'static str {
    match number {
        0 => "to us",
        1 => "broadcast",
        2 => "multicast",
        3 => "to someone else",
        4 => "sent by us",
        _ => "",
    }
}
