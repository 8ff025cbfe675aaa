//! What IP carries: UDP, TCP and its options (drawn in `encap::udp` and `encap::tcp`), and whether checksums verify.

use std::net::IpAddr;

use encap::checksum;

use super::extension::AUTHENTICATION;
use super::ip::MOST;
use super::walk::{Pen, Walk};
use super::{Carrier, Verdict, meaning};

const ICMP: u8 = 1;
const IGMP: u8 = 2;
const IP_IN_IP: u8 = 4;
const TCP: u8 = 6;
const UDP: u8 = 17;
const IPV6_IN_IP: u8 = 41;
const ICMPV6: u8 = 58;
const GRE: u8 = 47;
const NOTHING: u8 = 59;

impl Walk<'_> {
    /// What an IP packet carries, behind all its options and extension headers.
    pub(super) fn transport(&mut self, carrier: Carrier, at: usize, end: usize) {
        if carrier.first_fragment {
            self.say(format_args!("first fragment"));
        }
        match (carrier.protocol, carrier.src) {
            (UDP, _) => self.udp(carrier, at, end),
            (TCP, _) => self.tcp(carrier, at, end),
            (ICMP, IpAddr::V4(_)) => self.icmp(carrier, at, end),
            (IGMP, IpAddr::V4(_)) => self.igmp(carrier, at, end),
            (ICMPV6, IpAddr::V6(_)) => self.icmpv6(carrier, at, end),
            (IP_IN_IP | IPV6_IN_IP, _) if !carrier.first_fragment => {
                self.say(format_args!("IP in IP:"));
                self.deeper(false, at, end, |walk| walk.ip(at, end));
            }
            (GRE, _) if !carrier.first_fragment => self.gre(carrier, at, end),
            (AUTHENTICATION, IpAddr::V4(_)) => self.extensions(carrier, at, end),
            (NOTHING, _) => self.payload("ignored bytes", at, end),
            (protocol, _) => {
                let name = meaning::protocol(protocol);
                if name.is_empty() {
                    self.say(format_args!("protocol {protocol}"));
                } else {
                    self.say(format_args!("{name}"));
                }
                self.unnamed(if name.is_empty() { "payload" } else { name }, at, end);
            }
        }
    }

    fn udp(&mut self, carrier: Carrier, at: usize, end: usize) {
        let mut pen = self.header("UDP", "RFC 768", at, end);
        let source = pen.port(("source port", "Source Port"));
        let destination = pen.port(("destination port", "Destination Port"));
        let stated = usize::from(pen.short(("length", "Length")));
        let len_field = pen.newest_index();
        let found = pen.short_hex(("checksum", "Checksum"));
        let field = pen.newest_index();
        if pen.is_cut() {
            return;
        }
        // RFC 2675 section 4 gives a length of zero to jumbograms; Linux to superpackets.
        let room = carrier.end.saturating_sub(at);
        let len = match stated {
            0 if room > MOST => {
                pen.meaning_of(
                    len_field,
                    "a superpacket or jumbogram: the length of IP counts",
                );
                room
            }
            0 => {
                pen.problem(
                    at + 4,
                    format!("the UDP length says 0 bytes, which only superpackets and jumbograms of more than {MOST} may: read up to the end of the packet"),
                );
                room
            }
            len => len,
        };
        let is_guess = stated == 0 && room <= MOST;
        if len < 8 {
            pen.problem(
                at + 4,
                format!("the UDP length says {len} bytes, its header alone has 8"),
            );
            return self.payload("payload", at + 8, end);
        }
        // Only a first fragment has less than the whole. Whoever quotes may have changed the length of IP.
        let is_beyond = len > room && !carrier.first_fragment;
        if is_beyond && !pen.walk.quoted {
            pen.problem(
                at + 4,
                format!("the UDP length says {len} bytes, the IP packet has {room} for it"),
            );
        }
        let verdict = match carrier.unjudged {
            _ if found == 0 => Verdict::Absent,
            Some(why) => Verdict::Unknown(why),
            None if is_guess => Verdict::Unknown("the datagram does not say where it ends"),
            None if is_beyond => {
                Verdict::Unknown("the datagram says that it is longer than its IP packet")
            }
            None if at + len > end => Verdict::Unknown("the datagram is not all there"),
            None => pen.walk.judge(&carrier, at, at + len, found),
        };
        pen.verdict(field, verdict);
        if verdict == Verdict::Absent {
            pen.meaning_of(
                field,
                match carrier.src {
                    IpAddr::V4(_) => "0: the sender computed none",
                    IpAddr::V6(_) => "0: over IPv6 for tunnels by agreement only (RFC 6935)",
                },
            );
        }
        self.say(format_args!("UDP {source} > {destination}"));
        let stop = end.min(at + len);
        // Half a packet is in a first fragment, and may be shown as far as it goes.
        match self.ports.between(source, destination) {
            Some(tunnel) => self.tunnel(tunnel, destination, at + 8, stop),
            None => self.payload("payload", at + 8, stop),
        }
        self.padding("padding", stop, end);
    }

    fn tcp(&mut self, carrier: Carrier, at: usize, end: usize) {
        let mut pen = self.header("TCP", "RFC 9293 section 3.1", at, end);
        let source = pen.port(("source port", "Source Port"));
        let destination = pen.port(("destination port", "Destination Port"));
        pen.number(("sequence number", "Sequence Number"), 32);
        pen.number(("acknowledgment number", "Acknowledgment Number"), 32);
        let header_len =
            usize::try_from(pen.number(("data offset", "DOffset"), 4)).unwrap_or(0) * 4;
        pen.means(match header_len.checked_sub(20) {
            Some(0) => "x 4 = 20 bytes, no options".to_owned(),
            Some(options) => format!("x 4 = {header_len} bytes, {options} of them options"),
            None => format!("x 4 = {header_len} bytes, less than the 20 that the header has"),
        });
        if pen.hex(("reserved", "Rsrvd"), 4) != 0 {
            pen.means("should be zero");
        }
        let mut flags = Vec::new();
        for (name, short, set) in [
            ("CWR", "C", "congestion window reduced (RFC 3168)"),
            (
                "ECE",
                "E",
                "congestion was seen; in a SYN: knows ECN (RFC 3168)",
            ),
            ("URG", "U", "the urgent pointer counts"),
            ("ACK", "A", "the acknowledgment number counts"),
            ("PSH", "P", "to be handed to the application at once"),
            ("RST", "R", "reset: the connection ends here and now"),
            ("SYN", "S", "opens the connection"),
            ("FIN", "F", "the sender has no more data"),
        ] {
            if pen.flag((name, short), set) {
                flags.push(name);
            }
        }
        let syn = flags.contains(&"SYN");
        pen.number(("window", "Window"), 16);
        pen.means(if syn {
            "bytes"
        } else {
            "bytes, to be shifted by the window scale of the SYN"
        });
        let found = pen.short_hex(("checksum", "Checksum"));
        let field = pen.newest_index();
        pen.number(("urgent pointer", "Urgent Pointer"), 16);
        if pen.is_cut() {
            if pen.at() >= at + 4 {
                self.say(format_args!("TCP {source} > {destination}"));
            }
            return;
        }
        let verdict = match carrier.unjudged {
            Some(why) => Verdict::Unknown(why),
            None => pen.walk.judge(&carrier, at, end, found),
        };
        pen.verdict(field, verdict);
        let flags = flags.join(",");
        pen.walk
            .say(format_args!("TCP {source} > {destination} [{flags}]"));
        if header_len < 20 {
            pen.problem(
                at + 12,
                format!("the data offset says {header_len} bytes, a header has at least 20"),
            );
            return self.payload("payload", at + 20, end);
        }
        let lacking = (at + header_len).saturating_sub(end);
        pen.ends_at(at + header_len);
        pen.tcp_options();
        if lacking > 0 {
            return pen.lacks(lacking);
        }
        self.payload("payload", at + header_len, end);
    }

    /// Does the checksum of the transport header at `at`, whose field holds `found`, verify over all up to `end`?
    ///
    /// It covers the pseudo-header, too, which `encap::checksum` draws.
    pub(super) fn judge(&self, carrier: &Carrier, at: usize, end: usize, found: u16) -> Verdict {
        let Some(covered) = self.frame.get(at..end) else {
            return Verdict::Unknown("not all that it covers is there");
        };
        let addresses = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => checksum::sum(&ip.octets()),
            IpAddr::V6(ip) => checksum::sum(&ip.octets()),
        };
        let len = u64::try_from(covered.len()).unwrap_or(u64::MAX);
        let pseudo = [
            addresses(carrier.dst),
            u16::from(carrier.protocol),
            checksum::sum(&len.to_be_bytes()),
        ]
        .into_iter()
        .fold(addresses(carrier.src), checksum::add);
        let sum = checksum::add(pseudo, checksum::sum(covered));
        if sum == 0xffff {
            return Verdict::Right;
        }
        let right = match !checksum::add(sum, !found) {
            // UDP's 0 means absent, and 0xffff is the same number.
            0 if carrier.protocol == UDP => 0xffff,
            right => right,
        };
        if found == pseudo {
            Verdict::Unfinished(right)
        } else {
            Verdict::Wrong(right)
        }
    }
}

impl Pen<'_, '_> {
    fn port(&mut self, name: (&'static str, &'static str)) -> u16 {
        let port = self.short(name);
        self.means(meaning::port(port));
        port
    }

    /// The header ends before it should.
    pub(super) fn lacks(&mut self, bytes: usize) {
        if !self.walk.quoted && !self.is_cut() {
            let at = self.at();
            let index = self.index();
            let name = self.walk.out.layers[index].name;
            self.problem(
                at,
                format!("{name} is cut short: {bytes} bytes of the header lack"),
            );
        }
    }

    /// All options, which end where the header does.
    fn tcp_options(&mut self) {
        while self.left() > 0 && !self.is_cut() {
            let at = self.at();
            let kind = self.byte(("option kind", "Kind"));
            let (meaning, source) = match kind {
                0 => ("end of options", "RFC 9293 section 3.1"),
                1 => ("no operation: padding", "RFC 9293 section 3.1"),
                2 => ("maximum segment size", "RFC 9293 section 3.7.1"),
                3 => ("window scale", "RFC 7323 section 2.2"),
                4 => ("selective acknowledgments permitted", "RFC 2018 section 2"),
                5 => ("selective acknowledgment", "RFC 2018 section 3"),
                8 => ("timestamps", "RFC 7323 section 3.2"),
                19 => ("MD5 signature", "RFC 2385 section 3"),
                28 => ("user timeout", "RFC 5482 section 3"),
                29 => ("authentication", "RFC 5925 section 2.2"),
                30 => ("multipath TCP", "RFC 8684 section 3"),
                34 => ("fast open", "RFC 7413 section 4.1.1"),
                _ => ("", ""),
            };
            self.means(meaning);
            self.source(source);
            match kind {
                0 => return self.rest(("option padding", "Padding")),
                1 => continue,
                _ => {}
            }
            let len = usize::from(self.byte(("option length", "Length")));
            if self.is_cut() {
                return;
            }
            if len < 2 || len - 2 > self.left() {
                if !self.walk.quoted {
                    let left = self.left() + 2;
                    self.problem(
                        at,
                        format!("a TCP option of {len} bytes, where {left} are left"),
                    );
                }
                return self.rest(("options", "Options"));
            }
            match (kind, len) {
                (2, 4) => {
                    self.number(("maximum segment size", "MSS"), 16);
                    self.means("bytes of payload that the sender of this takes in a segment");
                }
                (3, 3) => {
                    let shift = self.number(("window scale", "Shift"), 8);
                    if shift < 15 {
                        self.means(format!("windows of this sender count x {}", 1 << shift));
                    }
                }
                (5, _) if len % 8 == 2 => {
                    for _ in 0..len / 8 {
                        self.number(("left edge", "Left Edge"), 32);
                        self.number(("right edge", "Right Edge"), 32);
                    }
                }
                (8, 10) => {
                    self.number(("timestamp", "TSval"), 32);
                    self.number(("timestamp echo", "TSecr"), 32);
                }
                _ => self.bytes(("option data", "Data"), len - 2),
            }
        }
    }
}
