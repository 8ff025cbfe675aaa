//! Names the fields of a frame one after the other.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use encap::MacAddr;
use encap::checksum::update_u16;

use super::{Dissection, Field, Layer, MAX_DEPTH, Ports, Problem, Role, Sum, Value, Verdict};
use crate::teach::capture::Link;

/// A field's name in full, and as drawings abbreviate it.
pub(super) type Name = (&'static str, &'static str);

/// A frame that is being taken apart.
pub(super) struct Walk<'f> {
    pub(super) frame: &'f [u8],
    wire_len: usize,
    pub(super) ports: &'f Ports,
    pub(super) out: &'f mut Dissection,
    pub(super) depth: u8,
    pub(super) quoted: bool,
    /// The layer with which the innermost packet begins, and the packet's length.
    original: Option<(usize, usize)>,
}

impl<'f> Walk<'f> {
    pub(super) fn new(
        frame: &'f [u8],
        wire_len: usize,
        ports: &'f Ports,
        out: &'f mut Dissection,
    ) -> Self {
        Self {
            frame,
            wire_len,
            ports,
            out,
            depth: 0,
            quoted: false,
            original: None,
        }
    }

    /// Takes the whole frame apart.
    pub(super) fn frame(mut self, link: Link) {
        let end = self.frame.len();
        match link {
            Link::Ethernet => self.ethernet(0, end),
            Link::Raw if self.frame.starts_with(&super::BARE_ARP) => self.arp(0, end),
            Link::Raw => self.ip(0, end),
            Link::Cooked => self.cooked(0, end),
            Link::Cooked2 => self.cooked2(0, end),
            Link::Unknown(number) => {
                self.problem(
                    0,
                    format!("link type {number} is none that is taken apart here"),
                );
                self.payload("frame", 0, end);
            }
        }
        if end < self.wire_len {
            self.problem(
                end,
                format!(
                    "the capture kept only the first {end} of the frame's {} bytes",
                    self.wire_len
                ),
            );
        }
        self.fill(end);
        if self.out.summary.is_empty() {
            let name = self.out.layers.last().map_or("nothing", |layer| layer.name);
            self.out.summary.push_str(name);
        }
        self.out.sum = self.sum();
        self.defer();
    }

    /// Finds checksums that wait for one further in, which they cover, to be finished.
    fn defer(&mut self) {
        let checksums: Vec<_> = (0..self.out.fields.len())
            .filter(|&index| self.out.fields[index].checksum.is_some())
            .collect();
        for (position, &outer) in checksums.iter().enumerate() {
            let (Some(Verdict::Wrong(right)), Value::Hex(found)) = (
                self.out.fields[outer].checksum,
                self.out.fields[outer].value,
            ) else {
                continue;
            };
            let is_deferred = checksums[position + 1..].iter().any(|&inner| {
                let inner = &self.out.fields[inner];
                match (inner.checksum, inner.value) {
                    (Some(Verdict::Unfinished(finished)), Value::Hex(now)) => {
                        let now = u16::try_from(now).unwrap_or(0);
                        u64::from(update_u16(right, now, finished)) == found
                    }
                    _ => false,
                }
            });
            if is_deferred {
                self.out.fields[outer].checksum = Some(Verdict::Deferred);
            }
        }
    }

    fn sum(&mut self) -> Option<Sum> {
        let (layer, original) = self.original?;
        let overhead = self.out.layers[layer].bytes.start;
        let Some(padding) = self.wire_len.checked_sub(overhead + original) else {
            let have = self.wire_len - overhead;
            self.problem(
                overhead,
                format!("the packet would have {original} bytes, but {have} were on the wire: the lengths do not add up"),
            );
            return None;
        };
        Some(Sum {
            layer,
            original,
            overhead,
            padding,
            wire: self.wire_len,
        })
    }

    /// The packet whose header is the newest layer is what the frame is about, unless another is found in it.
    pub(super) fn is_original(&mut self, layer: usize, len: usize) {
        if !self.quoted {
            self.original = Some((layer, len));
        }
    }

    pub(super) fn problem(&mut self, at: usize, text: impl Into<String>) {
        self.out.problems.push(Problem {
            at,
            text: text.into(),
        });
    }

    /// Adds to the line that sums the frame up. Quoted packets are not in it.
    pub(super) fn say(&mut self, text: std::fmt::Arguments<'_>) {
        if !self.quoted {
            if !self.out.summary.is_empty() {
                self.out.summary.push(' ');
            }
            let _ = self.out.summary.write_fmt(text);
        }
    }

    /// Why bytes end where they end.
    fn why_end(&self, end: usize) -> &'static str {
        match () {
            () if self.quoted => "the quotation ends there",
            () if end < self.frame.len() => "a length before it says that it ends there",
            () if end < self.wire_len => "the capture kept no more",
            () => "the frame ends there",
        }
    }

    /// Begins a layer at byte `at`, which may reach up to byte `end`.
    pub(super) fn header(
        &mut self,
        name: &'static str,
        source: &'static str,
        at: usize,
        end: usize,
    ) -> Pen<'_, 'f> {
        self.layer(name, source, Role::Header, at);
        Pen {
            bit: at * 8,
            end,
            cut: false,
            walk: self,
        }
    }

    /// What was left behind by a header that was given up becomes payload, up to byte `at`.
    fn fill(&mut self, at: usize) {
        let covered = self.out.layers.last().map_or(0, |layer| layer.bytes.end);
        if covered < at {
            self.push("rest", "", Role::Payload, covered);
            let mut pen = Pen {
                bit: covered * 8,
                end: at,
                cut: false,
                walk: self,
            };
            pen.rest(("bytes", "bytes"));
        }
    }

    fn layer(&mut self, name: &'static str, source: &'static str, role: Role, at: usize) {
        self.fill(at);
        self.push(name, source, role, at);
    }

    fn push(&mut self, name: &'static str, source: &'static str, role: Role, at: usize) {
        let fields = self.out.fields.len();
        self.out.layers.push(Layer {
            name,
            source,
            role,
            depth: self.depth,
            quoted: self.quoted,
            bytes: at..at,
            fields: fields..fields,
            note: "",
        });
    }

    /// Bytes that nobody here takes apart. None are no layer.
    pub(super) fn payload(&mut self, name: &'static str, at: usize, end: usize) {
        self.opaque(Role::Payload, name, "not taken apart here", at, end);
    }

    /// The same, where a header of a protocol that nobody here knows begins.
    pub(super) fn unnamed(&mut self, name: &'static str, at: usize, end: usize) {
        if at < end {
            self.payload(name, at, end);
            if let Some(layer) = self.out.layers.last_mut() {
                layer.note = "Not taken apart here.";
            }
        }
    }

    /// Bytes behind the end that a header states.
    pub(super) fn padding(&mut self, name: &'static str, at: usize, end: usize) {
        self.opaque(
            Role::Padding,
            name,
            "behind the end that the length above states",
            at,
            end,
        );
    }

    fn opaque(
        &mut self,
        role: Role,
        name: &'static str,
        meaning: &'static str,
        at: usize,
        end: usize,
    ) {
        if at < end {
            self.layer(name, "", role, at);
            let mut pen = Pen {
                bit: at * 8,
                end,
                cut: false,
                walk: self,
            };
            pen.bytes(("bytes", "bytes"), end - at);
            if role == Role::Padding {
                pen.means(meaning);
            }
        }
    }

    /// Goes one encapsulation or quotation deeper, unless that is too deep: then the bytes are payload.
    pub(super) fn deeper(
        &mut self,
        quoted: bool,
        at: usize,
        end: usize,
        inside: impl FnOnce(&mut Self),
    ) {
        if self.depth >= MAX_DEPTH {
            self.problem(
                at,
                format!("nested more than {MAX_DEPTH} times: not taken apart further"),
            );
            self.payload("nested packet", at, end);
            return;
        }
        let before = (self.depth, self.quoted);
        self.depth += 1;
        self.quoted |= quoted;
        inside(self);
        (self.depth, self.quoted) = before;
    }

    /// The frame's length on the wire in bytes.
    pub(super) fn wire_len(&self) -> usize {
        self.wire_len
    }

    /// Was everything up to this byte captured, where the frame on the wire had it?
    pub(super) fn is_captured(&self, end: usize) -> bool {
        end <= self.frame.len()
    }
}

/// Names the fields of one layer, each behind the one before.
///
/// Where the bytes do not suffice for a field, what is left of them becomes a last field, and this and all later ones read
/// as zero: ask [`is_cut`](Self::is_cut) before believing them.
pub(super) struct Pen<'w, 'f> {
    pub(super) walk: &'w mut Walk<'f>,
    bit: usize,
    end: usize,
    cut: bool,
}

impl Pen<'_, '_> {
    /// The byte at which the next field begins.
    pub(super) fn at(&self) -> usize {
        self.bit / 8
    }

    /// How many bytes are left.
    pub(super) fn left(&self) -> usize {
        self.end - self.at()
    }

    /// Did bytes lack?
    pub(super) fn is_cut(&self) -> bool {
        self.cut
    }

    /// The header ends at this byte at the latest. A later end than the present one changes nothing.
    pub(super) fn ends_at(&mut self, end: usize) {
        self.end = self.end.min(end).max(self.bit.div_ceil(8));
    }

    /// This layer's index.
    pub(super) fn index(&self) -> usize {
        self.walk.out.layers.len() - 1
    }

    fn add(&mut self, (name, short): Name, bits: usize, value: Value) {
        self.walk.out.fields.push(Field {
            name,
            short,
            bit: self.bit,
            bits,
            value,
            meaning: Cow::Borrowed(""),
            source: "",
            checksum: None,
        });
        self.bit += bits;
        let (bytes, fields) = (self.bit.div_ceil(8), self.walk.out.fields.len());
        if let Some(layer) = self.walk.out.layers.last_mut() {
            layer.bytes.end = bytes;
            layer.fields.end = fields;
        }
    }

    /// Are there so many bits? If not, the rest is named, and it is said what lacks.
    fn has(&mut self, name: &'static str, bits: usize) -> bool {
        if self.cut {
            return false;
        }
        let left = self.end * 8 - self.bit;
        if bits <= left {
            return true;
        }
        let at = self.at();
        self.cut = true;
        if !self.walk.quoted {
            let (layer, why) = (self.index(), self.walk.why_end(self.end));
            let header = self.walk.out.layers[layer].name;
            let have = left.div_ceil(8);
            let wanted = bits.div_ceil(8);
            self.walk.problem(
                at,
                format!(
                    "{header} is cut short: {name} takes {wanted} bytes, {have} are there: {why}"
                ),
            );
        }
        if left > 0 {
            self.add(("cut short", "cut short"), left, Value::Bytes);
            self.means(format!("the beginning of: {name}"));
        }
        false
    }

    fn read(&self, bits: usize) -> u64 {
        (self.bit..self.bit + bits).fold(0, |value, bit| {
            value << 1 | u64::from(self.walk.frame[bit / 8] >> (7 - bit % 8) & 1)
        })
    }

    fn take(&mut self, name: Name, bits: usize, value: fn(u64) -> Value) -> u64 {
        if bits == 0 || !self.has(name.0, bits) {
            return 0;
        }
        let number = if self.bit % 8 == 0 && bits % 8 == 0 {
            let bytes = &self.walk.frame[self.bit / 8..(self.bit + bits) / 8];
            bytes
                .iter()
                .fold(0, |value, &byte| value << 8 | u64::from(byte))
        } else {
            self.read(bits)
        };
        self.add(name, bits, value(number));
        number
    }

    /// A number of at most 64 bits, for people who count.
    pub(super) fn number(&mut self, name: Name, bits: usize) -> u64 {
        self.take(name, bits, Value::Number)
    }

    /// A number of 8 bits.
    pub(super) fn byte(&mut self, name: Name) -> u8 {
        u8::try_from(self.number(name, 8)).unwrap_or(0)
    }

    /// A number of 16 bits.
    pub(super) fn short(&mut self, name: Name) -> u16 {
        u16::try_from(self.number(name, 16)).unwrap_or(0)
    }

    /// The same, for people who look at bits.
    pub(super) fn short_hex(&mut self, name: Name) -> u16 {
        u16::try_from(self.hex(name, 16)).unwrap_or(0)
    }

    /// A number of at most 64 bits, for people who look at bits.
    pub(super) fn hex(&mut self, name: Name, bits: usize) -> u64 {
        self.take(name, bits, Value::Hex)
    }

    /// A number of at most 64 bits, in whole bytes, that is sent least significant byte first, and what it means.
    pub(super) fn little(&mut self, name: Name, bits: usize, meaning: &'static str) {
        self.take(name, bits, |number| Value::Little(number.swap_bytes()));
        if let Some(Field {
            value: Value::Little(number),
            ..
        }) = self.newest()
        {
            *number >>= 64 - bits;
        }
        self.means(meaning);
    }

    /// One bit, with what it means if set.
    pub(super) fn flag(&mut self, name: Name, set: &'static str) -> bool {
        let is_set = self.number(name, 1) == 1;
        if is_set {
            self.means(set);
        }
        is_set
    }

    /// Bits that the standard keeps for later and wants to be zero.
    pub(super) fn reserved(&mut self, bits: usize) {
        if self.hex(("reserved", "Rsvd"), bits) != 0 {
            self.means("should be zero");
        }
    }

    /// A link-layer address of six bytes.
    pub(super) fn mac(&mut self, name: Name) -> MacAddr {
        let mut mac = MacAddr([0; 6]);
        if self.has(name.0, 48) {
            mac.0
                .copy_from_slice(&self.walk.frame[self.at()..self.at() + 6]);
            self.add(name, 48, Value::Mac(mac));
            self.means(super::meaning::mac(mac));
        }
        mac
    }

    /// An IPv4 address.
    pub(super) fn ipv4(&mut self, name: Name) -> Ipv4Addr {
        let mut ip = super::UNSPECIFIED_V4;
        if self.has(name.0, 32) {
            let mut octets = [0; 4];
            octets.copy_from_slice(&self.walk.frame[self.at()..self.at() + 4]);
            ip = octets.into();
            self.add(name, 32, Value::Ip(IpAddr::V4(ip)));
            self.means(super::meaning::ipv4(ip));
        }
        ip
    }

    /// An IPv6 address.
    pub(super) fn ipv6(&mut self, name: Name) -> Ipv6Addr {
        let mut ip = super::UNSPECIFIED_V6;
        if self.has(name.0, 128) {
            let mut octets = [0; 16];
            octets.copy_from_slice(&self.walk.frame[self.at()..self.at() + 16]);
            ip = octets.into();
            self.add(name, 128, Value::Ip(IpAddr::V6(ip)));
            self.means(super::meaning::ipv6(ip));
        }
        ip
    }

    /// So many bytes of no further meaning. None are no field.
    pub(super) fn bytes(&mut self, name: Name, len: usize) {
        if len > 0 && self.has(name.0, len * 8) {
            self.add(name, len * 8, Value::Bytes);
        }
    }

    /// All that is left, as one field.
    pub(super) fn rest(&mut self, name: Name) {
        if !self.cut {
            self.bytes(name, self.left());
        }
    }

    fn newest(&mut self) -> Option<&mut Field> {
        if self.cut {
            return None;
        }
        self.walk.out.fields.last_mut()
    }

    /// Says what the newest field's value means.
    pub(super) fn means(&mut self, meaning: impl Into<Cow<'static, str>>) {
        // The cut-off rest is a field, too, and says of what.
        if let Some(field) = self.walk.out.fields.last_mut() {
            if !self.cut || field.name == "cut short" && field.meaning.is_empty() {
                field.meaning = meaning.into();
            }
        }
    }

    /// Says where the newest field is defined.
    pub(super) fn source(&mut self, source: &'static str) {
        if let Some(field) = self.newest() {
            field.source = source;
        }
    }

    /// Says whether the checksum that is field `index` verifies.
    pub(super) fn verdict(&mut self, index: usize, verdict: Verdict) {
        if let Some(field) = self.walk.out.fields.get_mut(index) {
            field.checksum = Some(verdict);
        }
    }

    /// Says what the value of field `index` means.
    pub(super) fn meaning_of(&mut self, index: usize, meaning: &'static str) {
        if let Some(field) = self.walk.out.fields.get_mut(index) {
            field.meaning = Cow::Borrowed(meaning);
        }
    }

    /// The index of the newest field.
    pub(super) fn newest_index(&self) -> usize {
        self.walk.out.fields.len().saturating_sub(1)
    }

    /// Says something about the layer.
    pub(super) fn note(&mut self, note: &'static str) {
        if let Some(layer) = self.walk.out.layers.last_mut() {
            layer.note = note;
        }
    }

    /// Something is not as it should be, at byte `at`.
    pub(super) fn problem(&mut self, at: usize, text: impl Into<String>) {
        self.walk.problem(at, text);
    }
}
