//! IPv6 extension headers (RFC 8200 section 4).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |  Next Header  |  Hdr Ext Len  |  options, or by the kind ...  |  of 8 x (Hdr Ext Len + 1) bytes
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |  Next Header  |   Reserved    |      Fragment Offset    |Res|M|  the fragment header
//! |                         Identification                        |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |  Next Header  |  Payload Len  |           Reserved            |  authentication (RFC 4302),
//! |                 Security Parameters Index (SPI)               |  of 4 x (Payload Len + 2) bytes
//! |                    Sequence Number Field                      |
//! |                Integrity Check Value (variable) ...           |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```

use super::ip::fragment;
use super::walk::{Pen, Walk};
use super::{Carrier, meaning};

pub(super) const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
pub(super) const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

/// The option that has the length of a packet whose header cannot say it (RFC 2675 section 2).
const JUMBO: u8 = 0xc2;

/// The jumbo payload option of a hop-by-hop options header: where it stands in it, and the bytes of payload it says.
pub(super) fn jumbo_payload(header: &[u8]) -> Option<(usize, usize)> {
    let len = (usize::from(*header.get(1)?) + 1) * 8;
    let header = &header[..len.min(header.len())];
    let mut at = 2;
    loop {
        let kind = *header.get(at)?;
        if kind == 0 {
            at += 1;
            continue;
        }
        let data = at + 2;
        let end = data + usize::from(*header.get(at + 1)?);
        if kind == JUMBO && end - data == 4 {
            let bytes = header.get(data..end)?.try_into().ok()?;
            return Some((at, usize::try_from(u32::from_be_bytes(bytes)).ok()?));
        }
        at = end;
    }
}

impl Walk<'_> {
    /// The extension headers of a packet, and then what they lead to. `carrier.protocol` is the first one's.
    pub(super) fn extensions(&mut self, mut carrier: Carrier, mut at: usize, end: usize) {
        loop {
            let (name, source) = match carrier.protocol {
                HOP_BY_HOP => ("IPv6 hop-by-hop options", "RFC 8200 section 4.3"),
                ROUTING => ("IPv6 routing", "RFC 8200 section 4.4"),
                FRAGMENT => ("IPv6 fragment", "RFC 8200 section 4.5"),
                AUTHENTICATION => ("authentication", "RFC 4302 section 2"),
                DESTINATION => ("IPv6 destination options", "RFC 8200 section 4.6"),
                MOBILITY => ("IPv6 mobility", "RFC 6275 section 6.1"),
                HIP => ("host identity", "RFC 7401 section 5.1"),
                SHIM6 => ("shim6", "RFC 5533 section 5.1"),
                _ => return self.transport(carrier, at, end),
            };
            let mut pen = self.header(name, source, at, end);
            let kind = carrier.protocol;
            carrier.protocol = pen.byte(("next header", "Next Header"));
            pen.means(meaning::protocol(carrier.protocol));
            let mut offset = 0;
            if kind == FRAGMENT {
                pen.reserved(8);
                offset = pen.number(("fragment offset", "Fragment Offset"), 13) * 8;
                pen.reserved(2);
                let field = pen.newest_index().saturating_sub(1);
                let more = pen.flag(("more fragments", "M"), "another fragment follows");
                if !pen.is_cut() {
                    let meaning = match (offset, more) {
                        (0, false) => "an atomic fragment: the whole packet (RFC 6946)".to_owned(),
                        _ => fragment(offset, more),
                    };
                    pen.walk.out.fields[field].meaning = meaning.into();
                }
                pen.hex(("identification", "Identification"), 32);
                if offset > 0 || more {
                    carrier.unjudged = Some("covers all fragments, and this is one of them");
                    carrier.first_fragment = offset == 0;
                }
            } else {
                pen.extension(kind, &mut carrier);
            }
            at = pen.at();
            if pen.is_cut() {
                return;
            }
            if offset > 0 {
                self.say(format_args!(
                    "{}, fragment at {offset}",
                    meaning::protocol(carrier.protocol)
                ));
                return self.payload("fragment", at, end);
            }
        }
    }
}

impl Pen<'_, '_> {
    /// What follows the next header field, except in a fragment header.
    fn extension(&mut self, kind: u8, carrier: &mut Carrier) {
        let start = self.at() - 1;
        let units = usize::from(self.byte(("header length", "Hdr Ext Len")));
        let len = if kind == AUTHENTICATION {
            (units + 2) * 4
        } else {
            (units + 1) * 8
        };
        self.means(format!("{len} bytes"));
        if self.is_cut() {
            return;
        }
        let lacking = (start + len).saturating_sub(self.at() + self.left());
        self.ends_at(start + len);
        match kind {
            HOP_BY_HOP | DESTINATION => self.ipv6_options(),
            ROUTING => {
                let routing = self.byte(("routing type", "Routing Type"));
                self.means(match routing {
                    0 => "source route, deprecated (RFC 5095)",
                    2 => "home address (RFC 6275)",
                    3 => "RPL source route (RFC 6554)",
                    4 => "segment routing (RFC 8754)",
                    _ => "",
                });
                let segments_left = self.byte(("segments left", "Segments Left"));
                if segments_left > 0 {
                    self.means("the destination above is not the last one");
                    carrier.unjudged = Some(
                        "covers the last destination, which the header above does not have yet",
                    );
                }
                if routing == 4 {
                    self.segments(segments_left);
                } else {
                    self.rest(("type-specific data", "Type-specific data"));
                }
            }
            AUTHENTICATION => {
                self.reserved(16);
                self.hex(("security parameters index", "SPI"), 32);
                self.number(("sequence number", "Sequence Number"), 32);
                self.rest(("integrity check value", "Integrity Check Value"));
            }
            _ => self.rest(("header data", "Data")),
        }
        if lacking > 0 {
            self.lacks(lacking);
        }
    }

    /// The rest of a segment routing header (RFC 8754 section 2). Its list is in reverse: the first is the last to be visited.
    ///
    /// ```text
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// |  Last Entry   |     Flags     |              Tag              |
    /// |       Segment List[0] ... [Last Entry] (128 bits each)        |
    /// |            Type Length Value objects (variable)               |
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// ```
    fn segments(&mut self, left: u8) {
        const SOURCE: &str = "RFC 8754 section 2";
        let at = self.at();
        let last = self.byte(("last entry", "Last Entry"));
        self.source(SOURCE);
        self.hex(("flags", "Flags"), 8);
        self.source(SOURCE);
        self.hex(("tag", "Tag"), 16);
        self.source(SOURCE);
        if self.is_cut() {
            return;
        }
        let room = self.left() / 16;
        let stated = usize::from(last) + 1;
        if !self.walk.quoted && stated > room {
            self.problem(
                at,
                format!("a list of {stated} segments, where the header has room for {room}"),
            );
        }
        if !self.walk.quoted && usize::from(left) > stated {
            self.problem(at, format!("{left} segments left, of {stated}"));
        }
        for index in 0..stated.min(room) {
            self.ipv6(("segment", "Segment List"));
            self.source(SOURCE);
            if index == usize::from(left) {
                self.means("the present one, to which the header above goes");
            }
        }
        self.rest(("type-length-value objects", "TLVs"));
    }

    /// The options of hop-by-hop and destination options headers.
    ///
    /// ```text
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+- - - - - - - - -
    /// |  Option Type  |  Opt Data Len |  Option Data         type 0 stands alone
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+- - - - - - - - -
    /// ```
    fn ipv6_options(&mut self) {
        while self.left() > 0 && !self.is_cut() {
            let kind = self.byte(("option type", "Option Type"));
            self.source("RFC 8200 section 4.2");
            self.means(match kind {
                0 => "Pad1, one byte of padding",
                1 => "PadN, padding",
                4 => "tunnel encapsulation limit (RFC 2473)",
                5 => "router alert (RFC 2711)",
                JUMBO => "jumbo payload (RFC 2675)",
                0xc9 => "home address (RFC 6275)",
                _ => "",
            });
            if kind == 0 {
                continue;
            }
            let at = self.at();
            let len = usize::from(self.byte(("option length", "Opt Data Len")));
            if self.is_cut() {
                return;
            }
            if len > self.left() {
                if !self.walk.quoted {
                    let left = self.left();
                    self.problem(
                        at,
                        format!("an IPv6 option of {len} bytes, where the header has {left} left"),
                    );
                }
                return self.rest(("options", "Options"));
            }
            if (kind, len) == (JUMBO, 4) {
                self.number(("jumbo payload length", "Jumbo Payload Length"), 32);
                self.source("RFC 2675 section 2");
                self.means("bytes behind the IPv6 header");
            } else {
                self.bytes(("option data", "Option Data"), len);
            }
        }
    }
}
