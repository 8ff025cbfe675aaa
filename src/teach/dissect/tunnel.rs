//! What carries another packet: in UDP flannel's udp, which has no header, VXLAN, which `encap::vxlan` draws, its
//! extension GPE, and Geneve; and GRE, which is a protocol of IP itself.

use encap::checksum;
use encap::ethernet::{ARP, IPV4, IPV6, VLAN, VLAN_SERVICE};

use super::link::{MPLS, MPLS_UPSTREAM};
use super::walk::{Pen, Walk};
use super::{Carrier, Tunnel, Verdict, meaning};

const OTV: &str = "Packet analysers call port 8472 OTV, to which the IANA gave it. Linux took it for VXLAN before VXLAN had \
    4789, and kept it. To see VXLAN: tshark -d udp.port==8472,vxlan (in Wireshark: Decode As).";

/// The protocol type of a whole Ethernet frame in GRE and Geneve (RFC 1701, RFC 8926).
const BRIDGED: u16 = 0x6558;

/// Geneve counts its options in words.
const WORD: usize = 4;

impl Walk<'_> {
    /// What a UDP datagram to a tunnel's port carries.
    pub(super) fn tunnel(&mut self, tunnel: Tunnel, port: u16, at: usize, end: usize) {
        match tunnel {
            Tunnel::Udp => {
                let mut pen = self.header("flannel udp", "flannel's udp backend", at, end);
                pen.note("No header at all: the datagram is the inner IP packet.");
                self.say(format_args!("| flannel udp:"));
                self.deeper(false, at, end, |walk| walk.ip(at, end));
            }
            Tunnel::Vxlan => self.vxlan(port, at, end),
            Tunnel::Gpe => self.gpe(at, end),
            Tunnel::Geneve => self.geneve(at, end),
            Tunnel::WireGuard => self.wireguard(at, end),
        }
    }

    fn vxlan(&mut self, port: u16, at: usize, end: usize) {
        let mut pen = self.header("VXLAN", "RFC 7348 section 5", at, end);
        if port == 8472 {
            pen.note(OTV);
        }
        pen.reserved(4);
        let valid = pen.flag(("I flag", "I"), "the VNI is valid");
        if !valid {
            pen.means("must be set");
        }
        pen.reserved(3);
        pen.reserved(24);
        let vni = pen.number(("network identifier", "VXLAN Network Identifier (VNI)"), 24);
        pen.reserved(8);
        if pen.is_cut() {
            return;
        }
        if !valid {
            pen.problem(at, "VXLAN without the I flag: receivers must drop it");
        }
        self.say(format_args!("| VXLAN {vni}:"));
        self.deeper(false, at + 8, end, |walk| walk.ethernet(at + 8, end));
    }

    /// VXLAN that says what it carries.
    ///
    /// ```text
    ///  0                   1                   2                   3
    ///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// |R|R|Ver|I|P|B|O|       Reserved                | Next Protocol |
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// |                VXLAN Network Identifier (VNI) |   Reserved    |
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// ```
    fn gpe(&mut self, at: usize, end: usize) {
        let source = "draft-ietf-nvo3-vxlan-gpe section 3";
        let mut pen = self.header("VXLAN-GPE", source, at, end);
        pen.reserved(2);
        let version = pen.number(("version", "Ver"), 2);
        if !pen.flag(("I flag", "I"), "the VNI is valid") {
            pen.means("the VNI is to be ignored");
        }
        let has_next = pen.flag(("P flag", "P"), "the next protocol is valid");
        if !has_next {
            pen.means("no next protocol: Ethernet, as in VXLAN");
        }
        pen.flag(
            ("B flag", "B"),
            "broadcast, unknown unicast or multicast, replicated by the sender",
        );
        let is_oam = pen.flag(
            ("O flag", "O"),
            "operations and maintenance: for the tunnel's end itself",
        );
        pen.reserved(16);
        let next = pen.byte(("next protocol", "Next Protocol"));
        pen.means(match next {
            1 => "IPv4",
            2 => "IPv6",
            3 => "Ethernet",
            4 => "NSH (RFC 8300)",
            _ => "",
        });
        let vni = pen.number(("network identifier", "VXLAN Network Identifier (VNI)"), 24);
        pen.reserved(8);
        if pen.is_cut() {
            return;
        }
        if version != 0 {
            pen.problem(
                at,
                format!("version {version} of VXLAN-GPE is not known: receivers must drop it"),
            );
        }
        self.say(format_args!("| VXLAN-GPE {vni}:"));
        let protocol = match next {
            _ if version != 0 || is_oam => None,
            _ if !has_next => Some(BRIDGED),
            1 => Some(IPV4),
            2 => Some(IPV6),
            3 => Some(BRIDGED),
            _ => None,
        };
        self.inside(protocol, at + 8, end);
    }

    /// Geneve.
    ///
    /// ```text
    ///  0                   1                   2                   3
    ///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// |Ver|  Opt Len  |O|C|    Rsvd.  |          Protocol Type        |
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// |        Virtual Network Identifier (VNI)       |    Reserved   |
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// ~                    Variable-Length Options                    ~
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// ```
    fn geneve(&mut self, at: usize, end: usize) {
        let mut pen = self.header("Geneve", "RFC 8926 section 3.4", at, end);
        let version = pen.number(("version", "Ver"), 2);
        let options = usize::try_from(pen.number(("options length", "Opt Len"), 6)).unwrap_or(0);
        let options = options * WORD;
        pen.means(match options {
            0 => "no options".to_owned(),
            _ => format!("x 4 = {options} bytes of options"),
        });
        let is_control = pen.flag(
            ("O flag", "O"),
            "a control packet: for the tunnel's end itself",
        );
        pen.flag(
            ("C flag", "C"),
            "critical options: who does not know them must drop the packet",
        );
        pen.reserved(6);
        let protocol = pen.short_hex(("protocol type", "Protocol Type"));
        pen.means(meaning::carried(protocol));
        let vni = pen.number(
            ("network identifier", "Virtual Network Identifier (VNI)"),
            24,
        );
        pen.reserved(8);
        if pen.is_cut() {
            return;
        }
        if version != 0 {
            pen.problem(
                at,
                format!("version {version} of Geneve is not known: receivers must drop it"),
            );
            return self.payload("payload", at + 8, end);
        }
        let inside = at + 8 + options;
        let lacking = inside.saturating_sub(end);
        pen.ends_at(inside);
        pen.geneve_options();
        pen.walk.say(format_args!("| Geneve {vni}:"));
        if lacking > 0 {
            return pen.lacks(lacking);
        }
        self.inside((!is_control).then_some(protocol), inside, end);
    }

    /// GRE; with a version of 1 it is what PPTP makes of it.
    ///
    /// ```text
    ///  0                   1                   2                   3
    ///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// |C| |K|S| Reserved0       | Ver |         Protocol Type         |
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// |      Checksum (if C)          |       Reserved1 (if C)        |
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// |                         Key (if K)                            |
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// |                    Sequence Number (if S)                     |
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// ```
    pub(super) fn gre(&mut self, carrier: Carrier, at: usize, end: usize) {
        let version = self.frame.get(at + 1).filter(|_| at + 1 < end);
        if version.is_some_and(|byte| byte & 7 == 1) {
            return self.pptp(at, end);
        }
        let mut pen = self.header("GRE", "RFC 2784 section 2", at, end);
        let has_checksum = pen.flag(("checksum present", "C"), "a checksum follows");
        let routing = pen.flag(
            ("routing present", "R"),
            "source routes, which RFC 2784 took away",
        );
        let has_key = pen.flag(("key present", "K"), "a key follows");
        pen.source("RFC 2890 section 2");
        let has_sequence = pen.flag(
            ("sequence number present", "S"),
            "a sequence number follows",
        );
        pen.source("RFC 2890 section 2");
        pen.reserved(9);
        let version = pen.number(("version", "Ver"), 3);
        let protocol = pen.short_hex(("protocol type", "Protocol Type"));
        pen.means(meaning::carried(protocol));
        if pen.is_cut() {
            return;
        }
        if version != 0 || routing {
            if version == 0 {
                pen.problem(
                    at,
                    "GRE with the routing bit of RFC 1701: receivers must drop it",
                );
            }
            self.say(format_args!("GRE"));
            return self.payload("payload", at + 4, end);
        }
        let mut checksum = None;
        if has_checksum {
            let found = pen.short_hex(("checksum", "Checksum"));
            checksum = Some((pen.newest_index(), found));
            pen.reserved(16);
        }
        if has_key {
            pen.hex(("key", "Key"), 32);
            pen.source("RFC 2890 section 2.1");
            pen.means("tells one tunnel from another between the same addresses");
        }
        if has_sequence {
            pen.number(("sequence number", "Sequence Number"), 32);
            pen.source("RFC 2890 section 2.2");
        }
        let inside = pen.at();
        if pen.is_cut() {
            return;
        }
        if let Some((field, found)) = checksum {
            let verdict = pen.walk.judge_gre(&carrier, at, end, found);
            pen.verdict(field, verdict);
        }
        self.say(format_args!("| GRE:"));
        self.inside(Some(protocol), inside, end);
    }

    /// GRE of version 1, around PPP.
    ///
    /// ```text
    ///  0                   1                   2                   3
    ///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// |C|R|K|S|s|Recur|A| Flags | Ver |         Protocol Type         |
    /// |        Payload Length         |            Call ID            |
    /// |                  Sequence Number (if S)                       |
    /// |               Acknowledgment Number (if A)                    |
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// ```
    fn pptp(&mut self, at: usize, end: usize) {
        let mut pen = self.header("GRE", "RFC 2637 section 4.1", at, end);
        pen.flag(("checksum present", "C"), "must be zero");
        pen.flag(("routing present", "R"), "must be zero");
        pen.flag(("key present", "K"), "payload length and call ID follow");
        let has_sequence = pen.flag(
            ("sequence number present", "S"),
            "a sequence number follows",
        );
        pen.flag(("strict source route", "s"), "must be zero");
        pen.number(("recursion control", "Recur"), 3);
        let has_acknowledgment = pen.flag(
            ("acknowledgment present", "A"),
            "an acknowledgment number follows",
        );
        pen.hex(("flags", "Flags"), 4);
        pen.number(("version", "Ver"), 3);
        pen.means("that of PPTP");
        let protocol = pen.short_hex(("protocol type", "Protocol Type"));
        pen.means(if protocol == 0x880b {
            "PPP"
        } else {
            "must be 0x880b, PPP"
        });
        let len = usize::from(pen.short(("payload length", "Payload Length")));
        pen.number(("call ID", "Call ID"), 16);
        if has_sequence {
            pen.number(("sequence number", "Sequence Number"), 32);
        }
        if has_acknowledgment {
            pen.number(("acknowledgment number", "Acknowledgment Number"), 32);
        }
        let (inside, cut) = (pen.at(), pen.is_cut());
        self.say(format_args!("| GRE of PPTP"));
        if cut {
            return;
        }
        if inside + len > end && self.is_captured(inside + len) {
            self.problem(
                at + 4,
                format!(
                    "the payload length says {len} bytes, the packet has {} for it",
                    end - inside
                ),
            );
        }
        let stop = end.min(inside + len);
        self.unnamed("PPP", inside, stop);
        self.padding("padding", stop, end);
    }

    /// Section 2.5: the complement of the sum of GRE's header and all that it carries; no pseudo-header.
    fn judge_gre(&self, carrier: &Carrier, at: usize, end: usize, found: u16) -> Verdict {
        if let Some(why) = carrier.unjudged {
            return Verdict::Unknown(why);
        }
        let Some(covered) = self.frame.get(at..end) else {
            return Verdict::Unknown("not all that it covers is there");
        };
        match checksum::sum(covered) {
            0xffff => Verdict::Right,
            sum => Verdict::Wrong(!checksum::add(sum, !found)),
        }
    }

    /// What a tunnel carries that tells it by an EtherType; `None` if it is none of a sender's packets.
    fn inside(&mut self, protocol: Option<u16>, at: usize, end: usize) {
        match protocol {
            Some(BRIDGED) => self.deeper(false, at, end, |walk| walk.ethernet(at, end)),
            Some(protocol @ (IPV4 | IPV6 | ARP | VLAN | VLAN_SERVICE | MPLS | MPLS_UPSTREAM)) => {
                self.deeper(false, at, end, |walk| walk.ether_type(protocol, at, end));
            }
            _ => self.payload("payload", at, end),
        }
    }
}

impl Pen<'_, '_> {
    /// All options, which end where the header does.
    ///
    /// ```text
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// |          Option Class         |      Type     |R|R|R| Length  |    the length counts words of data
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// ~                  Variable-Length Option Data                  ~
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// ```
    fn geneve_options(&mut self) {
        const SOURCE: &str = "RFC 8926 section 3.5";
        while self.left() > 0 && !self.is_cut() {
            let at = self.at();
            let class = self.short_hex(("option class", "Option Class"));
            self.means(match class {
                0..0x0100 => "for standards",
                0x0100 => "Linux",
                0x0101 => "Open vSwitch",
                0x0102 => "OVN",
                0xff00.. => "for experiments",
                _ => "",
            });
            self.source(SOURCE);
            let kind = self.hex(("option type", "Type"), 8);
            if kind & 0x80 != 0 {
                self.means("critical: who does not know it must drop the packet");
            }
            self.source(SOURCE);
            self.reserved(3);
            let len = usize::try_from(self.number(("option length", "Length"), 5)).unwrap_or(0);
            let len = len * WORD;
            self.means(format!("x 4 = {len} bytes of data"));
            self.source(SOURCE);
            if self.is_cut() {
                return;
            }
            if len > self.left() {
                if !self.walk.quoted {
                    let left = self.left();
                    self.problem(
                        at,
                        format!("a Geneve option with {len} bytes of data, where {left} are left"),
                    );
                }
                return self.rest(("options", "Options"));
            }
            self.bytes(("option data", "Data"), len);
        }
    }
}
