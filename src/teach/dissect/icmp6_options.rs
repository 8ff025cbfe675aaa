//! The ICMPv6 messages of neighbour discovery (RFC 4861 section 4) and multicast listener discovery (RFC 2710, RFC 3810).
//! Both begin behind type, code and checksum.
//!
//! ```text
//!  option of neighbour discovery
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |     Type      |    Length     |              ...              |    Length counts 8 bytes, both fields included
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//!  record of a multicast listener report, version 2
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |  Record Type  |  Aux Data Len |     Number of Sources (N)     |
//! |                 Multicast Address (16 bytes)                  |
//! |                 Source Addresses (N x 16 bytes)               |
//! |                 Auxiliary Data (Aux Data Len x 4 bytes)       |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```

use super::walk::Pen;

impl Pen<'_, '_> {
    pub(super) fn neighbour_discovery(&mut self, kind: u8) {
        match kind {
            134 => {
                self.byte(("current hop limit", "Cur Hop Limit"));
                self.flag(("managed", "M"), "addresses come from DHCPv6");
                self.flag(("other", "O"), "other settings come from DHCPv6");
                self.reserved(6);
                self.number(("router lifetime", "Router Lifetime"), 16);
                self.means("seconds");
                self.number(("reachable time", "Reachable Time"), 32);
                self.means("milliseconds");
                self.number(("retransmission timer", "Retrans Timer"), 32);
                self.means("milliseconds");
            }
            136 => {
                self.flag(("router", "R"), "the sender is a router");
                self.flag(("solicited", "S"), "answers a solicitation");
                self.flag(("override", "O"), "replaces what is known");
                self.reserved(29);
                self.ipv6(("target", "Target Address"));
            }
            _ => {
                self.reserved(32);
                if kind != 133 {
                    self.ipv6(("target", "Target Address"));
                }
                if kind == 137 {
                    self.ipv6(("destination", "Destination Address"));
                }
            }
        }
        while !self.is_cut() && self.left() > 0 {
            self.neighbour_option();
        }
    }

    fn neighbour_option(&mut self) {
        let at = self.at();
        let kind = self.byte(("option type", "Type"));
        let (meaning, source) = match kind {
            1 => ("source link-layer address", "RFC 4861 section 4.6.1"),
            2 => ("target link-layer address", "RFC 4861 section 4.6.1"),
            3 => ("prefix information", "RFC 4861 section 4.6.2"),
            4 => ("redirected packet", "RFC 4861 section 4.6.3"),
            5 => ("MTU", "RFC 4861 section 4.6.4"),
            14 => ("nonce", "RFC 3971 section 5.3.2"),
            25 => ("DNS servers", "RFC 8106 section 5.1"),
            _ => ("", "RFC 4861 section 4.6"),
        };
        self.means(meaning);
        self.source(source);
        let units = usize::from(self.byte(("option length", "Length")));
        self.means("x 8 bytes");
        if self.is_cut() {
            return;
        }
        if units == 0 {
            if !self.walk.quoted {
                self.problem(at, "an option of neighbour discovery of 0 bytes cannot be");
            }
            return self.rest(("options", "Options"));
        }
        match (kind, units) {
            (1 | 2, 1) => {
                self.mac(("link-layer address", "Link-Layer Address"));
            }
            (3, 4) => {
                self.byte(("prefix length", "Prefix Length"));
                self.flag(("on-link", "L"), "its addresses are on this link");
                self.flag(("autonomous", "A"), "hosts may make addresses of it");
                self.reserved(6);
                self.number(("valid lifetime", "Valid Lifetime"), 32);
                self.means("seconds");
                self.number(("preferred lifetime", "Preferred Lifetime"), 32);
                self.means("seconds");
                self.reserved(32);
                self.ipv6(("prefix", "Prefix"));
            }
            (5, 1) => {
                self.reserved(16);
                self.number(("MTU", "MTU"), 32);
            }
            _ => self.bytes(("option data", "Data"), units * 8 - 2),
        }
    }

    pub(super) fn multicast_listener(&mut self, kind: u8) {
        if kind == 143 {
            self.reserved(16);
            let records = self.short(("number of records", "Nr of Mcast Address Records (M)"));
            for _ in 0..records {
                if self.is_cut() {
                    return;
                }
                self.listener_record();
            }
            return;
        }
        self.number(("maximum response delay", "Maximum Response Delay"), 16);
        self.means("milliseconds");
        self.reserved(16);
        self.ipv6(("multicast address", "Multicast Address"));
        // Longer queries are of version 2.
        if kind == 130 && self.left() >= 4 {
            self.reserved(4);
            self.flag(("suppress", "S"), "routers do not restart their timers");
            self.number(("robustness", "QRV"), 3);
            self.byte(("query interval code", "QQIC"));
            let sources = self.short(("number of sources", "Number of Sources (N)"));
            self.sources(sources);
        }
    }

    fn listener_record(&mut self) {
        let kind = self.byte(("record type", "Record Type"));
        self.means(record_type(kind));
        let words = self.byte(("auxiliary data length", "Aux Data Len"));
        let sources = self.short(("number of sources", "Number of Sources (N)"));
        self.ipv6(("multicast address", "Multicast Address"));
        self.sources(sources);
        self.bytes(("auxiliary data", "Auxiliary Data"), usize::from(words) * 4);
    }

    fn sources(&mut self, number: u16) {
        for _ in 0..number {
            if self.is_cut() {
                return;
            }
            self.ipv6(("source", "Source Address"));
        }
    }
}

/// What a report of MLDv2 (RFC 3810 section 5.2.12) or IGMPv3 (RFC 3376 section 4.2.12) says of a group.
pub(super) fn record_type(kind: u8) -> &'static str {
    match kind {
        1 => "is listening to these sources only",
        2 => "is listening to all but these sources",
        3 => "changes to these sources only",
        4 => "changes to all but these sources",
        5 => "allows these sources, too",
        6 => "blocks these sources",
        _ => "",
    }
}
