//! IGMP: which multicast groups the hosts of an IPv4 link listen to.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |     Type      | Max Resp Code |           Checksum            |  a report of version 3 has
//! |                         Group Address                         |  records here, each for a group
//! | Resv  |S| QRV |     QQIC      |     Number of Sources (N)     |  queries of version 3
//! |                       Source Address ...                      |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```

use super::icmp::icmp_verdict;
use super::walk::{Pen, Walk};
use super::{Carrier, Verdict};

const QUERY: u8 = 0x11;
const REPORT_3: u8 = 0x22;

impl Walk<'_> {
    pub(super) fn igmp(&mut self, carrier: Carrier, at: usize, end: usize) {
        let verdict = match (carrier.unjudged, self.frame.get(at..end)) {
            (None, Some(covered)) => icmp_verdict(covered),
            (why, _) => Verdict::Unknown(why.unwrap_or("not all that it covers is there")),
        };
        let mut pen = self.header("IGMP", "RFC 3376 section 4", at, end);
        let kind = pen.byte(("type", "Type"));
        let name = match kind {
            QUERY => "membership query",
            0x12 => "membership report",
            0x16 => "membership report v2",
            0x17 => "leave group",
            REPORT_3 => "membership report v3",
            _ => "",
        };
        pen.means(name);
        if kind == REPORT_3 {
            pen.reserved(8);
        } else {
            pen.byte(("maximum response code", "Max Resp Code"));
            pen.means("tenths of a second; from 128 on with an exponent");
        }
        pen.hex(("checksum", "Checksum"), 16);
        if !pen.is_cut() {
            let field = pen.newest_index();
            pen.verdict(field, verdict);
        }
        if kind == REPORT_3 {
            pen.reserved(16);
            let records = pen.short(("number of records", "Number of Group Records (M)"));
            for _ in 0..records {
                if pen.is_cut() {
                    break;
                }
                pen.group_record();
            }
        } else if !name.is_empty() {
            pen.ipv4(("group", "Group Address"));
            // Longer queries are of version 3.
            if kind == QUERY && pen.left() >= 4 && !pen.is_cut() {
                pen.reserved(4);
                pen.flag(("suppress", "S"), "routers do not restart their timers");
                pen.number(("robustness", "QRV"), 3);
                pen.byte(("query interval code", "QQIC"));
                let sources = pen.short(("number of sources", "Number of Sources (N)"));
                pen.sources_v4(sources);
            }
        }
        let (stop, cut) = (pen.at(), pen.is_cut());
        if name.is_empty() {
            self.say(format_args!("IGMP type {kind}"));
        } else {
            self.say(format_args!("IGMP {name}"));
        }
        if !cut {
            self.payload("payload", stop, end);
        }
    }
}

impl Pen<'_, '_> {
    fn group_record(&mut self) {
        let kind = self.byte(("record type", "Record Type"));
        self.means(super::icmp6_options::record_type(kind));
        let words = self.byte(("auxiliary data length", "Aux Data Len"));
        let sources = self.short(("number of sources", "Number of Sources (N)"));
        self.ipv4(("group", "Multicast Address"));
        self.sources_v4(sources);
        self.bytes(("auxiliary data", "Auxiliary Data"), usize::from(words) * 4);
    }

    fn sources_v4(&mut self, number: u16) {
        for _ in 0..number {
            if self.is_cut() {
                return;
            }
            self.ipv4(("source", "Source Address"));
        }
    }
}
