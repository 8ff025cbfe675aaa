//! IPv4 and its options, IPv6. `encap::ipv4` and `encap::ipv6` draw the headers.

use std::net::IpAddr;

use encap::checksum;

use super::extension::{HOP_BY_HOP, jumbo_payload};
use super::walk::{Pen, Walk};
use super::{Carrier, Verdict, meaning};

/// What the length fields of 16 bits can say. Longer packets leave them zero: jumbograms (RFC 2675), and Linux's superpackets
/// (`IP_MAX_MTU` in `include/net/ip.h`).
pub(super) const MOST: usize = 0xffff;
const SUPERPACKET: &str =
    "a superpacket longer than this field can say, to be cut by the network card";
const IS_SUPER: &str = "a superpacket, to be cut by the network card";
const NO_LENGTH: &str = "the packet does not say where it ends";

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;

impl Walk<'_> {
    /// An IP packet of the version that its first nibble says.
    pub(super) fn ip(&mut self, at: usize, end: usize) {
        match self
            .frame
            .get(at)
            .filter(|_| at < end)
            .map(|byte| byte >> 4)
        {
            Some(4) => self.ipv4(at, end),
            Some(6) => self.ipv6(at, end),
            None => {
                if !self.quoted {
                    self.problem(at, "no IP packet: no byte is left for one");
                }
            }
            Some(version) => {
                self.problem(
                    at,
                    format!("no IP packet: version {version} is neither 4 nor 6"),
                );
                self.payload("payload", at, end);
            }
        }
    }

    pub(super) fn ipv4(&mut self, at: usize, end: usize) {
        let mut pen = self.header("IPv4", "RFC 791 section 3.1", at, end);
        let index = pen.index();
        pen.number(("version", "Version"), 4);
        let words = usize::try_from(pen.number(("header length", "IHL"), 4)).unwrap_or(0);
        let header_len = words * 4;
        pen.means(match header_len.checked_sub(V4_HEADER) {
            Some(0) => "x 4 = 20 bytes, no options".to_owned(),
            Some(options) => format!("x 4 = {header_len} bytes, {options} of them options"),
            None => format!("x 4 = {header_len} bytes, less than the 20 that the header has"),
        });
        pen.traffic_class();
        let total_len = usize::from(pen.short(("total length", "Total Length")));
        let total_len_field = pen.newest_index();
        let wire_len = pen.walk.wire_len();
        let on_wire = if end == pen.walk.frame.len() {
            wire_len - at
        } else {
            end - at
        };
        let is_super = total_len == 0 && on_wire > MOST;
        let packet_len = if total_len == 0 { on_wire } else { total_len };
        pen.hex(("identification", "Identification"), 16);
        if pen.flag(("reserved flag", "R"), "must be zero") {
            pen.problem(at + 6, "the reserved flag of IPv4 is set");
        }
        pen.flag(("don't fragment", "DF"), "routers must not fragment it");
        let more = pen.flag(("more fragments", "MF"), "another fragment follows");
        let offset = pen.number(("fragment offset", "Fragment Offset"), 13) * 8;
        if offset > 0 || more {
            pen.means(fragment(offset, more));
        }
        pen.number(("time to live", "Time to Live"), 8);
        let protocol = pen.byte(("protocol", "Protocol"));
        pen.means(meaning::protocol(protocol));
        pen.hex(("header checksum", "Header Checksum"), 16);
        let checksum_field = pen.newest_index();
        let src = pen.ipv4(("source", "Source Address"));
        let dst = pen.ipv4(("destination", "Destination Address"));
        if pen.is_cut() {
            return;
        }
        pen.walk.say(format_args!("{src} > {dst}"));
        let header_end = at + header_len;
        if header_len < V4_HEADER {
            pen.problem(
                at,
                format!("the header length says {header_len} bytes, a header has at least 20"),
            );
            pen.walk.payload("payload", at + V4_HEADER, end);
            return;
        }
        if header_end <= end {
            let stored = [pen.walk.frame[at + 10], pen.walk.frame[at + 11]];
            let found = u16::from_be_bytes(stored);
            let sum = checksum::sum(&pen.walk.frame[at..header_end]);
            let verdict = match sum {
                0xffff => Verdict::Right,
                // Taking the field out of the sum again leaves what it should complement.
                _ => Verdict::Wrong(!checksum::add(sum, !found)),
            };
            pen.verdict(checksum_field, verdict);
        } else {
            pen.verdict(
                checksum_field,
                Verdict::Unknown("not all of the header is there"),
            );
        }
        pen.ends_at(header_end.min(end));
        let lacking = (header_end > end).then(|| header_end - end);
        pen.ipv4_options();
        if let Some(lacking) = lacking {
            if !pen.walk.quoted && !pen.is_cut() {
                pen.problem(
                    end,
                    format!("the IPv4 header is cut short: {lacking} bytes of options lack"),
                );
            }
            return;
        }
        if is_super {
            pen.meaning_of(total_len_field, SUPERPACKET);
        } else if total_len == 0 {
            pen.problem(
                at + 2,
                format!(
                    "the total length says 0 bytes, which only superpackets of more than {MOST} may: read up to the end"
                ),
            );
        }
        if packet_len < header_len {
            pen.problem(
                at + 2,
                format!(
                    "the total length says {packet_len} bytes, its header alone has {header_len}"
                ),
            );
            pen.walk.payload("payload", header_end, end);
            return;
        }
        self.is_original(index, packet_len);
        let stop = self.packet_end(at, packet_len, end);
        let carrier = Carrier {
            src: IpAddr::V4(src),
            dst: IpAddr::V4(dst),
            protocol,
            end: at + packet_len,
            unjudged: self.unjudged(
                at + packet_len,
                end,
                offset > 0 || more,
                zero_length(total_len, is_super),
            ),
            first_fragment: offset == 0 && more,
        };
        if offset > 0 {
            self.say(format_args!(
                "{}, fragment at {offset}",
                meaning::protocol(protocol)
            ));
            self.payload("fragment", header_end, stop);
        } else {
            self.transport(carrier, header_end, stop);
        }
        self.padding(padding_name(at), stop, end);
    }

    pub(super) fn ipv6(&mut self, at: usize, end: usize) {
        let mut pen = self.header("IPv6", "RFC 8200 section 3", at, end);
        let index = pen.index();
        pen.number(("version", "Version"), 4);
        pen.traffic_class();
        pen.hex(("flow label", "Flow Label"), 20);
        pen.source("RFC 6437");
        let payload_len = usize::from(pen.short(("payload length", "Payload Length")));
        let payload_len_field = pen.newest_index();
        let next = pen.byte(("next header", "Next Header"));
        pen.means(meaning::protocol(next));
        pen.number(("hop limit", "Hop Limit"), 8);
        let src = pen.ipv6(("source", "Source Address"));
        let dst = pen.ipv6(("destination", "Destination Address"));
        if pen.is_cut() {
            return;
        }
        pen.walk.say(format_args!("{src} > {dst}"));
        let wire_len = self.wire_len();
        let on_wire = if end == self.frame.len() {
            wire_len - at
        } else {
            end - at
        };
        let options = self.frame.get(at + V6_HEADER..end).unwrap_or_default();
        let jumbo = (next == HOP_BY_HOP)
            .then(|| jumbo_payload(options))
            .flatten();
        // What the header leaves open.
        let is_open = payload_len == 0 && jumbo.is_none() && next != 59 && on_wire > V6_HEADER;
        let is_super = is_open && on_wire - V6_HEADER > MOST;
        let packet_len = match jumbo {
            _ if is_open => on_wire,
            Some((_, jumbo)) if payload_len == 0 => V6_HEADER.saturating_add(jumbo),
            _ => V6_HEADER + payload_len,
        };
        let meaning = match jumbo {
            _ if payload_len > 0 => "",
            Some(_) => "the jumbo payload option says it (RFC 2675)",
            None if is_super => SUPERPACKET,
            None if is_open => "",
            None => "nothing follows",
        };
        self.out.fields[payload_len_field].meaning = meaning.into();
        if let Some((place, jumbo)) = jumbo.filter(|_| !self.quoted) {
            let place = at + V6_HEADER + place;
            if jumbo <= MOST {
                self.problem(
                    place,
                    format!("a jumbo payload of {jumbo} bytes: the option is for more than {MOST}"),
                );
            }
            if payload_len > 0 {
                self.problem(
                    place,
                    format!("a jumbo payload option, and a payload length of {payload_len}: it must be 0"),
                );
            }
        }
        if is_open && !is_super {
            self.problem(
                at + 4,
                format!(
                    "the payload length says 0 bytes, which without a jumbo payload option only superpackets of more than {MOST} may: read up to the end"
                ),
            );
        }
        self.is_original(index, packet_len);
        let stop = self.packet_end(at, packet_len, end);
        let carrier = Carrier {
            src: IpAddr::V6(src),
            dst: IpAddr::V6(dst),
            protocol: next,
            end: at.saturating_add(packet_len),
            unjudged: self.unjudged(
                at.saturating_add(packet_len),
                end,
                false,
                if is_open {
                    zero_length(0, is_super)
                } else {
                    None
                },
            ),
            first_fragment: false,
        };
        self.extensions(carrier, at + V6_HEADER, stop);
        self.padding(padding_name(at), stop, end);
    }

    /// Where the packet's bytes end; says so where that is not where its header says.
    fn packet_end(&mut self, at: usize, packet_len: usize, end: usize) -> usize {
        let states = at.saturating_add(packet_len);
        // What the capture cut off the end of the frame is said once, for the frame.
        if states > end && !self.quoted && !(end == self.frame.len() && states <= self.wire_len()) {
            let have = end - at;
            // The frame's sum says it for the innermost packet; packets inside of others are said here.
            if end < self.frame.len() {
                self.problem(
                    at,
                    format!("the packet would have {packet_len} bytes, {have} are there"),
                );
            }
        }
        states.min(end)
    }

    /// Why a transport checksum in a packet that ends at byte `stop`, where there are bytes up to `end`, cannot be judged, if
    /// it cannot. `length`: what is wrong with the length already.
    fn unjudged(
        &self,
        stop: usize,
        end: usize,
        is_fragment: bool,
        length: Option<&'static str>,
    ) -> Option<&'static str> {
        let is_beyond = stop > end && end < self.frame.len() || stop > self.wire_len();
        match () {
            () if is_fragment => Some("covers all fragments, and this is one of them"),
            () if self.quoted && stop > end => Some("only the beginning is quoted"),
            () if is_beyond => Some("the packet says that it is longer than what is there"),
            () if !self.is_captured(stop) => Some("not all that it covers was captured"),
            () => length,
        }
    }
}

impl Pen<'_, '_> {
    /// The byte that RFC 791 calls type of service and RFC 8200 traffic class.
    fn traffic_class(&mut self) {
        let dscp = self.number(("differentiated services", "DSCP"), 6);
        self.means(meaning::dscp(dscp));
        self.source("RFC 2474 section 3");
        let ecn = self.number(("congestion notification", "ECN"), 2);
        self.means(meaning::ecn(ecn));
        self.source("RFC 3168 section 5");
    }

    /// All options, which end where the header does.
    ///
    /// ```text
    /// +--------+--------+--------//------+
    /// |  type  | length |     data       |    length counts all three; types 0 and 1 stand alone
    /// +--------+--------+--------//------+
    /// ```
    fn ipv4_options(&mut self) {
        while self.left() > 0 && !self.is_cut() {
            let at = self.at();
            let kind = self.byte(("option type", "Type"));
            self.source("RFC 791 section 3.1");
            self.means(match kind {
                0 => "end of options",
                1 => "no operation",
                7 => "record route",
                68 => "timestamp",
                130 => "security (RFC 1108)",
                131 => "loose source route",
                136 => "stream ID",
                137 => "strict source route",
                148 => "router alert (RFC 2113)",
                _ => "",
            });
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
                self.problem(at, format!("an IPv4 option of {len} bytes cannot be"));
                return self.rest(("options", "Options"));
            }
            self.bytes(("option data", "Data"), len - 2);
        }
    }
}

/// What an offset in bytes and the flag amount to.
pub(super) fn fragment(offset: u64, more: bool) -> String {
    match (offset, more) {
        (0, _) => {
            "the first fragment: the transport header is here, the rest comes in others".to_owned()
        }
        (_, true) => format!(
            "x 8: a fragment from the middle, at byte {offset}; its transport header is in the first"
        ),
        (_, false) => format!(
            "x 8: the last fragment, at byte {offset}; its transport header is in the first"
        ),
    }
}

/// What a length of zero does to checksums.
fn zero_length(len: usize, is_super: bool) -> Option<&'static str> {
    match len {
        0 if is_super => Some(IS_SUPER),
        0 => Some(NO_LENGTH),
        _ => None,
    }
}

fn padding_name(packet_at: usize) -> &'static str {
    if packet_at == 14 {
        "Ethernet padding"
    } else {
        "padding"
    }
}
