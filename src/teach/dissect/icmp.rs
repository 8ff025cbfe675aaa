//! ICMP (RFC 792) and ICMPv6 (RFC 4443), with the packets that errors quote.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |     Type      |     Code      |           Checksum            |
//! |                 four bytes that depend on the type            |
//! |        errors: the packet that caused them, as much as fits   |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```

use super::walk::{Pen, Walk};
use super::{Carrier, Verdict};

impl Walk<'_> {
    pub(super) fn icmp(&mut self, carrier: Carrier, at: usize, end: usize) {
        let verdict = match (carrier.unjudged, self.frame.get(at..end)) {
            (None, Some(covered)) => icmp_verdict(covered),
            (why, _) => Verdict::Unknown(why.unwrap_or("not all that it covers is there")),
        };
        let mut pen = self.header("ICMP", "RFC 792", at, end);
        let kind = pen.byte(("type", "Type"));
        let name = icmp_type(kind);
        pen.means(name);
        let code = pen.byte(("code", "Code"));
        pen.means(icmp_code(kind, code));
        pen.hex(("checksum", "Checksum"), 16);
        if !pen.is_cut() {
            let field = pen.newest_index();
            pen.verdict(field, verdict);
        }
        let mut quotes = None;
        match kind {
            0 | 8 => pen.echo(),
            3 | 11 | 12 => quotes = Some(pen.icmp_error(kind, code)),
            // Source quench quotes, too (RFC 6633 deprecates it).
            4 => {
                pen.hex(("unused", "Unused"), 32);
                quotes = Some(0);
            }
            5 => {
                pen.ipv4(("gateway", "Gateway Internet Address"));
                quotes = Some(0);
            }
            13 | 14 => {
                pen.echo();
                for name in [
                    ("originate timestamp", "Originate Timestamp"),
                    ("receive timestamp", "Receive Timestamp"),
                    ("transmit timestamp", "Transmit Timestamp"),
                ] {
                    pen.number(name, 32);
                    pen.means("milliseconds since midnight UTC");
                }
            }
            _ => pen.bytes(("rest of header", "Rest of Header"), 4),
        }
        let (stop, cut) = (pen.at(), pen.is_cut());
        if at >= end.min(self.frame.len()) {
            self.say(format_args!("ICMP of which nothing is there"));
        } else if name.is_empty() {
            self.say(format_args!("ICMP type {kind}"));
        } else {
            self.say(format_args!("ICMP {name}"));
        }
        if !cut {
            self.behind_icmp(quotes, stop, end, carrier.unjudged);
        }
    }

    pub(super) fn icmpv6(&mut self, carrier: Carrier, at: usize, end: usize) {
        let found = self
            .frame
            .get(at + 2..end.min(at + 4))
            .filter(|two| two.len() == 2);
        let found = found.map_or(0, |two| u16::from_be_bytes([two[0], two[1]]));
        let verdict = match carrier.unjudged {
            Some(why) => Verdict::Unknown(why),
            None => self.judge(&carrier, at, end, found),
        };
        let kind = self
            .frame
            .get(at)
            .filter(|_| at < end)
            .copied()
            .unwrap_or(0);
        let mut pen = self.header("ICMPv6", icmpv6_source(kind), at, end);
        let kind = pen.byte(("type", "Type"));
        let name = icmpv6_type(kind);
        pen.means(name);
        let code = pen.byte(("code", "Code"));
        pen.means(icmpv6_code(kind, code));
        pen.hex(("checksum", "Checksum"), 16);
        if !pen.is_cut() {
            let field = pen.newest_index();
            pen.verdict(field, verdict);
        }
        let mut quotes = None;
        match kind {
            1 | 3 => quotes = Some(pen.icmpv6_error()),
            2 => {
                pen.number(("MTU", "MTU"), 32);
                pen.means("bytes that fit through the link ahead");
                quotes = Some(0);
            }
            4 => {
                pen.number(("pointer", "Pointer"), 32);
                pen.means("the byte of the quoted packet that is the problem");
                quotes = Some(0);
            }
            128 | 129 => pen.echo(),
            130..=132 | 143 => pen.multicast_listener(kind),
            133..=137 => pen.neighbour_discovery(kind),
            _ => pen.bytes(("rest of header", "Rest of Header"), 4),
        }
        let (stop, cut) = (pen.at(), pen.is_cut());
        if at >= end.min(self.frame.len()) {
            self.say(format_args!("ICMPv6 of which nothing is there"));
        } else if name.is_empty() {
            self.say(format_args!("ICMPv6 type {kind}"));
        } else {
            self.say(format_args!("ICMPv6 {name}"));
        }
        if !cut {
            self.behind_icmp(quotes, stop, end, carrier.unjudged);
        }
    }

    /// What follows the header. `quotes`: a packet of so many bytes, 0 for all there are; then come extensions.
    fn behind_icmp(
        &mut self,
        quotes: Option<usize>,
        at: usize,
        end: usize,
        unjudged: Option<&'static str>,
    ) {
        let Some(len) = quotes else {
            return self.payload("payload", at, end);
        };
        let stop = if len == 0 { end } else { end.min(at + len) };
        if at < stop {
            self.deeper(true, at, stop, |walk| walk.ip(at, stop));
        }
        self.icmp_extensions(stop, end, unjudged);
    }
}

/// The Internet checksum of the message alone: no pseudo-header.
pub(super) fn icmp_verdict(message: &[u8]) -> Verdict {
    use encap::checksum::{add, sum};
    let sum = sum(message);
    match message {
        _ if sum == 0xffff => Verdict::Right,
        [_, _, high, low, ..] => Verdict::Wrong(!add(sum, !u16::from_be_bytes([*high, *low]))),
        _ => Verdict::Unknown("not all that it covers is there"),
    }
}

impl Pen<'_, '_> {
    fn echo(&mut self) {
        self.number(("identifier", "Identifier"), 16);
        self.number(("sequence number", "Sequence Number"), 16);
    }

    /// The four bytes of an error. Returns the stated length of the quotation in bytes, 0 if it is the rest.
    fn icmp_error(&mut self, kind: u8, code: u8) -> usize {
        if kind == 12 {
            self.byte(("pointer", "Pointer"));
            self.means("the byte of the quoted packet that is the problem");
        } else {
            self.hex(("unused", "unused"), 8);
        }
        let words = self.byte(("quotation length", "Length"));
        self.source("RFC 4884 section 4");
        self.means(if words == 0 {
            "no extensions follow"
        } else {
            "x 4 bytes"
        });
        if (kind, code) == (3, 4) {
            self.number(("next-hop MTU", "Next-Hop MTU"), 16);
            self.means("bytes that fit through the link ahead");
            self.source("RFC 1191 section 4");
        } else {
            self.hex(("unused", "unused"), 16);
        }
        usize::from(words) * 4
    }

    fn icmpv6_error(&mut self) -> usize {
        let units = self.byte(("quotation length", "Length"));
        self.source("RFC 4884 section 4");
        self.means(if units == 0 {
            "no extensions follow"
        } else {
            "x 8 bytes"
        });
        self.hex(("unused", "Unused"), 24);
        usize::from(units) * 8
    }
}

fn icmp_type(kind: u8) -> &'static str {
    match kind {
        0 => "echo reply",
        3 => "destination unreachable",
        4 => "source quench",
        5 => "redirect",
        8 => "echo request",
        9 => "router advertisement",
        10 => "router solicitation",
        11 => "time exceeded",
        12 => "parameter problem",
        13 => "timestamp request",
        14 => "timestamp reply",
        _ => "",
    }
}

fn icmp_code(kind: u8, code: u8) -> &'static str {
    match (kind, code) {
        (3, 0) => "network unreachable",
        (3, 1) => "host unreachable",
        (3, 2) => "protocol unreachable",
        (3, 3) => "port unreachable",
        (3, 4) => "fragmentation needed, and forbidden by DF",
        (3, 5) => "source route failed",
        (3, 9 | 10 | 13) => "administratively prohibited",
        (5, 0) => "for the network",
        (5, 1) => "for the host",
        (11, 0) => "the time to live ran out on the way",
        (11, 1) => "not all fragments came in time",
        _ => "",
    }
}

fn icmpv6_type(kind: u8) -> &'static str {
    match kind {
        1 => "destination unreachable",
        2 => "packet too big",
        3 => "time exceeded",
        4 => "parameter problem",
        128 => "echo request",
        129 => "echo reply",
        130 => "multicast listener query",
        131 => "multicast listener report",
        132 => "multicast listener done",
        133 => "router solicitation",
        134 => "router advertisement",
        135 => "neighbour solicitation",
        136 => "neighbour advertisement",
        137 => "redirect",
        143 => "multicast listener report v2",
        _ => "",
    }
}

fn icmpv6_code(kind: u8, code: u8) -> &'static str {
    match (kind, code) {
        (1, 0) => "no route",
        (1, 1) => "administratively prohibited",
        (1, 2) => "beyond the scope of the source address",
        (1, 3) => "address unreachable",
        (1, 4) => "port unreachable",
        (1, 5) => "source address failed policy",
        (1, 6) => "route rejects",
        (3, 0) => "the hop limit ran out on the way",
        (3, 1) => "not all fragments came in time",
        (4, 0) => "a field makes no sense",
        (4, 1) => "unknown next header",
        (4, 2) => "unknown IPv6 option",
        _ => "",
    }
}

fn icmpv6_source(kind: u8) -> &'static str {
    match kind {
        1 => "RFC 4443 section 3.1",
        2 => "RFC 4443 section 3.2",
        3 => "RFC 4443 section 3.3",
        4 => "RFC 4443 section 3.4",
        128 => "RFC 4443 section 4.1",
        129 => "RFC 4443 section 4.2",
        130 => "RFC 3810 section 5.1",
        131 | 132 => "RFC 2710 section 3",
        133 => "RFC 4861 section 4.1",
        134 => "RFC 4861 section 4.2",
        135 => "RFC 4861 section 4.3",
        136 => "RFC 4861 section 4.4",
        137 => "RFC 4861 section 4.5",
        143 => "RFC 3810 section 5.2",
        _ => "RFC 4443 section 2.1",
    }
}
