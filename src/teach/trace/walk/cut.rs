//! Packets that are too long for a device, cut into fragments, and made whole again (RFC 791 section 3.2, RFC 8200 section
//! 4.5).

use std::net::IpAddr;

use anyhow::Result;

use super::super::explain;
use super::super::watch::Caught;
use super::super::{Source, Step};
use super::Walk;

impl Walk<'_> {
    /// A kernel has cut the packet, or put it together, since it was last seen: `found` is what is seen of it now.
    pub(super) fn note_cut(&mut self, place: usize, ifindex: u32, found: &[usize]) -> Result<()> {
        let lengths = inner_lengths(&self.caught, found);
        let fragmented = |i: &usize| self.caught[*i].sight.ip.fragment.is_some();
        let whole = !found.iter().any(fragmented);
        if whole && self.fragments > 1 {
            let text = format!(
                "the {} are one packet again: this kernel puts them together on the way, as connection tracking needs whole packets",
                explain::count(self.fragments, "fragment"),
            );
            self.derive(
                place,
                None,
                Step::Fragments,
                Source::Capture,
                text,
                Vec::new(),
            );
        } else if !whole && found.len() > self.fragments.max(1) {
            let route = self.looker.route(place, self.packet.dst).unwrap_or(None);
            let limit = self.limit(place, route.as_ref(), ifindex)?;
            let was = match (&self.lengths[..], self.size) {
                ([length], _) => format!("its {length} bytes are"),
                (_, Some(length)) => format!("its {length} bytes are"),
                _ => "it is".to_owned(),
            };
            let text = format!(
                "{was} more than {limit}: the kernel cuts it into {}, {} bytes; only the destination puts them together",
                explain::count(found.len(), "fragment"),
                sum(&lengths)
            );
            let details = self.cuts(found);
            self.derive(place, None, Step::Fragments, Source::Capture, text, details);
        }
        self.lengths = lengths;
        Ok(())
    }

    /// The later fragments of the datagram around the packet, where it was cut after it was encapsulated: they have none of
    /// the headers inside.
    pub(super) fn rest_of_datagram(
        &self,
        first: usize,
        here: impl Fn(&Caught) -> bool,
    ) -> Vec<usize> {
        let outer = self.caught[first].sight.outer.as_ref();
        let Some(ip) = outer
            .map(|outer| &outer.ip)
            .filter(|ip| ip.fragment.is_some())
        else {
            return Vec::new();
        };
        let same = |caught: &Caught| {
            let other = &caught.sight.ip;
            caught.sight.outer.is_none()
                && (other.src, other.dst, other.id) == (ip.src, ip.dst, ip.id)
        };
        let all = 0..self.caught.len();
        all.filter(|i| !self.used[*i] && here(&self.caught[*i]) && same(&self.caught[*i]))
            .collect()
    }

    /// The lengths of the fragments of the datagram around the packet.
    pub(super) fn lengths_of_datagram(&self, first: usize, rest: &[usize]) -> Vec<usize> {
        let outer = self.caught[first].sight.outer.as_ref();
        let first = outer.map(|outer| outer.ip.length);
        first
            .into_iter()
            .chain(inner_lengths(&self.caught, rest))
            .collect()
    }

    /// Someone on the underlay has cut the datagram.
    pub(super) fn note_outer_cut(
        &mut self,
        place: usize,
        device: &str,
        first: usize,
        rest: &[usize],
    ) {
        let text = format!(
            "the datagram is more than the MTU of {device}: the kernel cuts it into {}, {} bytes, which cost the peer time to put together",
            explain::count(rest.len() + 1, "fragment"),
            sum(&self.lengths_of_datagram(first, rest))
        );
        let details = vec![
            "it may, as the outer header has no DF; a bridge does so where IP's netfilter looks at bridged frames (net.bridge.bridge-nf-call-iptables), and else drops without a word".to_owned(),
            "the underlay's MTU is not the same everywhere: lower the overlay's (device.mtu), or raise that of this device".to_owned(),
        ];
        self.derive(place, None, Step::Fragments, Source::Capture, text, details);
    }

    /// The node has all fragments of the datagram.
    pub(super) fn note_whole_datagram(&mut self, place: usize) {
        if self.datagrams > 0 {
            let text = format!(
                "the kernel puts the {} of the datagram together, before its socket gets it",
                explain::count(self.datagrams + 1, "fragment")
            );
            self.derive(
                place,
                None,
                Step::Fragments,
                Source::Kernel,
                text,
                Vec::new(),
            );
            self.datagrams = 0;
        }
    }

    /// What each fragment is made of.
    pub(super) fn cuts(&self, found: &[usize]) -> Vec<String> {
        let mut lines = Vec::new();
        for (number, index) in found.iter().enumerate() {
            let ip = &self.caught[*index].sight.ip;
            let headers = match ip.src {
                IpAddr::V4(_) => 20,
                IpAddr::V6(_) => 48,
            };
            let data = ip.length.saturating_sub(headers);
            let at = ip.fragment.unwrap_or(0);
            lines.push(format!(
                "fragment {}: {headers} bytes of headers + bytes {at} to {} of the data",
                number + 1,
                at + (data as u64).saturating_sub(1),
            ));
        }
        lines
    }

    /// The destination has all of them.
    pub(super) fn note_reassembly(&mut self, place: usize) {
        if self.fragments < 2 || self.crippled {
            return;
        }
        let (counter, source) = match self.packet.dst {
            IpAddr::V4(_) => ("Ip.ReasmOKs", "RFC 791 section 3.2"),
            IpAddr::V6(_) => ("Ip6ReasmOKs", "RFC 8200 section 4.5"),
        };
        let rose = self.after[place].kernel_rise(&self.before[place], counter) > 0;
        let (source, details) = if rose {
            (
                Source::Counter,
                vec![format!("its counter {counter} rose; {source}")],
            )
        } else {
            (Source::Kernel, vec![source.to_owned()])
        };
        let whole = self
            .size
            .map_or(String::new(), |size| format!(" of {size} bytes"));
        let text = format!(
            "the kernel puts the {} together: one packet{whole} again",
            explain::count(self.fragments, "fragment")
        );
        self.derive(place, None, Step::Fragments, source, text, details);
        self.fragments = 1;
    }
}

/// How long the packets are, inside of encapsulations.
pub(super) fn inner_lengths(caught: &[Caught], found: &[usize]) -> Vec<usize> {
    found.iter().map(|i| caught[*i].sight.ip.length).collect()
}

/// `1444 + 76`
pub(super) fn sum(lengths: &[usize]) -> String {
    let lengths: Vec<_> = lengths.iter().map(usize::to_string).collect();
    lengths.join(" + ")
}
