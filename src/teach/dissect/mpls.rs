//! MPLS labels (RFC 3032), in front of packets and in the ICMP errors about them (RFC 4884, RFC 4950).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                 Label                 | TC  |S|      TTL      |  a label, the last with S
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |Version|      (Reserved)       |           Checksum            |  extensions of ICMP
//! |             Length            |   Class-Num   |   C-Type      |  each object in them
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```

use super::icmp::icmp_verdict;
use super::walk::{Pen, Walk};
use super::{Verdict, meaning};

impl Walk<'_> {
    /// A label stack and the packet behind it, whose first bits tell what it is, as nothing else does.
    pub(super) fn mpls(&mut self, at: usize, end: usize) {
        let mut pen = self.header("MPLS", "RFC 3032 section 2.1", at, end);
        let mut labels = Vec::new();
        loop {
            let (label, is_last) = pen.label();
            if pen.is_cut() {
                break;
            }
            labels.push(label.to_string());
            if is_last {
                break;
            }
        }
        let (stop, cut) = (pen.at(), pen.is_cut());
        self.say(format_args!("MPLS {}:", labels.join(",")));
        if cut {
            return;
        }
        match self
            .frame
            .get(stop)
            .filter(|_| stop < end)
            .map(|byte| byte >> 4)
        {
            Some(4) => self.ipv4(stop, end),
            Some(6) => self.ipv6(stop, end),
            _ => self.unnamed("payload", stop, end),
        }
    }

    /// The structure behind the packet that an ICMP error quotes.
    pub(super) fn icmp_extensions(
        &mut self,
        at: usize,
        end: usize,
        unjudged: Option<&'static str>,
    ) {
        if at >= end {
            return;
        }
        let verdict = match (unjudged, self.frame.get(at..end)) {
            (_, Some([_, _, 0, 0, ..])) => Verdict::Absent,
            (None, Some(covered)) => icmp_verdict(covered),
            (why, _) => Verdict::Unknown(why.unwrap_or("not all that it covers is there")),
        };
        let mut pen = self.header("ICMP extensions", "RFC 4884 section 7", at, end);
        let version = pen.number(("version", "Version"), 4);
        pen.reserved(12);
        pen.hex(("checksum", "Checksum"), 16);
        if pen.is_cut() {
            return;
        }
        let field = pen.newest_index();
        pen.verdict(field, verdict);
        if version != 2 {
            pen.problem(
                at,
                format!("version {version} of ICMP extensions is not known: 2 is"),
            );
            return self.unnamed("payload", at + 4, end);
        }
        while pen.left() > 0 && !pen.is_cut() {
            pen.extension_object();
        }
    }
}

impl Pen<'_, '_> {
    /// One label. Is it the last?
    fn label(&mut self) -> (u64, bool) {
        let label = self.number(("label", "Label"), 20);
        self.means(match label {
            0 => "IPv4 explicit null",
            1 => "router alert",
            2 => "IPv6 explicit null",
            3 => "implicit null",
            7 => "entropy label indicator (RFC 6790)",
            13 => "generic associated channel (RFC 5586)",
            _ => "",
        });
        self.number(("traffic class", "TC"), 3);
        self.source("RFC 5462");
        let is_last = self.flag(("bottom of stack", "S"), "the last label");
        self.number(("time to live", "TTL"), 8);
        (label, is_last)
    }

    fn extension_object(&mut self) {
        let at = self.at();
        let len = usize::from(self.short(("object length", "Length")));
        let class = self.byte(("object class", "Class-Num"));
        self.means(meaning::extension_class(class));
        let kind = self.byte(("object type", "C-Type"));
        if self.is_cut() {
            return;
        }
        let left = self.left() + 4;
        if len < 4 || len > left {
            if !self.walk.quoted {
                self.problem(
                    at,
                    format!("an ICMP extension object of {len} bytes, where {left} are left"),
                );
            }
            return self.rest(("object data", "Data"));
        }
        if (class, kind) == (1, 1) && len % 4 == 0 {
            for _ in 1..len / 4 {
                self.label();
            }
        } else {
            self.bytes(("object data", "Data"), len - 4);
        }
    }
}
