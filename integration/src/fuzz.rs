//! What the fuzzers hold the decoders to, and the inputs they found, replayed.
//!
//! A target takes any bytes and panics where the code under test does, or breaks a promise. `fuzz/` runs them under
//! libFuzzer; the test here runs them over `integration/corpus/fuzz`, of which each folder belongs to one target.

use std::ffi::OsString;
use std::path::Path;

use encap::coalesce::{Join, Rules, Run};
use encap::transport::{self, L4Checksum};
use encap::vnet::{self, Gso, VnetHeader};
use encap::{
    Encapsulation, Family, Fragments, Inner, MacAddr, OwnMacs, RawUdp, Split, Sums, Vxlan, flow,
    ipv4,
};
use overlayd::config::{Config, Overrides};
use overlayd::teach::capture::Link;
use overlayd::teach::dissect::{self, Dissection, Ports};

/// Takes any bytes, and panics if a promise is broken.
pub type Target = fn(&[u8]);

/// Every target and its name.
pub const TARGETS: &[(&str, Target)] = &[
    ("coalesce", coalesce),
    ("decap", decap),
    ("dissect", dissect),
    ("lease", lease),
    ("netconf", netconf),
    ("vnet", vnet),
];

/// What a TUN device gave, header and packet, on its way to the wire.
pub fn vnet(bytes: &[u8]) {
    let Ok(header) = VnetHeader::parse(bytes) else {
        return;
    };
    let packet = &bytes[vnet::LEN..];
    let Ok(inner) = Inner::parse(packet) else {
        return;
    };
    if header.gso == Gso::None {
        let mut whole = packet.to_vec();
        let result = transport::complete_partial(&mut whole, &inner, &header, &Sums::PORTABLE);
        assert!(result.is_ok() || whole == packet);
    } else if let Ok(split) = Split::new(packet, &inner, usize::from(header.gso_size)) {
        assert_split(packet, &inner, &split);
    }
    let _ = VnetHeader::for_unfinished(packet, &inner, usize::from(header.gso_size));
}

/// The segments are packets with right lengths and checksums, and their payload is the superpacket's.
fn assert_split(packet: &[u8], inner: &Inner, split: &Split) {
    let prefix = [0xee; 7];
    let mut out = vec![0; split.total_len(prefix.len())];
    let written = split.write_all(&prefix, &mut out, &Sums::PORTABLE);
    assert_eq!(written, out.len());
    let mut payload = Vec::new();
    for segment in out.chunks(prefix.len() + split.segment_len()) {
        let segment = &segment[prefix.len()..];
        let got = Inner::parse_checked(segment).expect("a segment is a packet");
        assert_eq!(
            (got.src, got.dst, got.tos, got.l4),
            (inner.src, inner.dst, inner.tos, inner.l4)
        );
        assert_eq!(got.total_len, segment.len());
        assert_eq!(
            transport::l4_checksum_state(segment, &got),
            L4Checksum::Valid
        );
        payload.extend_from_slice(&segment[split.header_len()..]);
    }
    assert_eq!(payload, packet[split.header_len()..inner.total_len]);
}

/// A superpacket split, some of its segments changed, and what can be joined of them joined. The bytes are the GSO
/// size, how many changes, four bytes for each (segment, offset, bits; the top bit of the segment: with checksums that
/// are right), then the superpacket.
pub fn coalesce(bytes: &[u8]) {
    let Some((&[size, changes], rest)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let Some((changes, packet)) = rest.split_at_checked(usize::from(changes % 8) * 4) else {
        return;
    };
    let mut packet = packet.to_vec();
    mend(&mut packet);
    let Ok(inner) = Inner::parse_checked(&packet) else {
        return;
    };
    let Ok(split) = Split::new(&packet, &inner, usize::from(size)) else {
        return;
    };
    let mut segments = vec![0; split.total_len(0)];
    split.write_all(&[], &mut segments, &Sums::PORTABLE);
    let pieces = segments.chunks(split.segment_len());
    let mut pieces: Vec<Vec<u8>> = pieces.map(<[u8]>::to_vec).collect();
    for change in changes.chunks(4) {
        let index = usize::from(change[0] & 0x7f) % pieces.len();
        let piece = &mut pieces[index];
        let at = usize::from(u16::from_be_bytes([change[1], change[2]])) % piece.len();
        piece[at] ^= change[3];
        if change[0] & 0x80 != 0 {
            mend(piece);
        }
    }
    assert_lossless(&pieces);
}

/// Makes a packet's checksums right.
fn mend(packet: &mut [u8]) {
    if let Ok(inner) = Inner::parse(packet) {
        if inner.family == Family::V4 {
            ipv4::fill_checksum(&mut packet[..inner.l4]);
        }
        transport::complete_checksum(packet, &inner);
    }
}

/// Joins what can be joined, and splits it again: the same packets come out, in their order.
fn assert_lossless(packets: &[Vec<u8>]) {
    let rules = Rules {
        sums: Sums::PORTABLE,
        udp: true,
        tunnel_ports: &[4789],
    };
    let mut rest = packets;
    while let Some((first, mut following)) = rest.split_first() {
        let run = Inner::parse_checked(first)
            .ok()
            .and_then(|inner| Run::start(first, &inner, &rules));
        if let Some(mut run) = run {
            let mut joined = first.clone();
            while let Some((next, after)) = following.split_first() {
                match run.try_join(next) {
                    Join::No => break,
                    Join::Joined | Join::JoinedAndClosed => {
                        joined.extend_from_slice(&next[run.header_len()..]);
                    }
                }
                following = after;
            }
            let header = run.finish(&mut joined);
            assert_same(&joined, &header, &rest[..rest.len() - following.len()]);
        }
        rest = following;
    }
}

fn assert_same(joined: &[u8], header: &VnetHeader, packets: &[Vec<u8>]) {
    if let [packet] = packets {
        assert_eq!((joined, *header), (&packet[..], VnetHeader::default()));
        return;
    }
    let inner = Inner::parse_checked(joined).expect("a superpacket is a packet");
    let size = usize::from(header.gso_size);
    let split = Split::new(joined, &inner, size).expect("what was joined can be split");
    let mut out = vec![0; split.total_len(0)];
    split.write_all(&[], &mut out, &Sums::PORTABLE);
    assert_eq!(split.count(), packets.len());
    for (segment, packet) in out.chunks(split.segment_len()).zip(packets) {
        let mut packet = packet.clone();
        // Identifications mean nothing where DF is set (RFC 6864).
        if inner.family == Family::V4 && inner.dont_fragment {
            Inner::parse_checked(&packet).expect("what was joined was right");
            packet[4..6].copy_from_slice(&segment[4..6]);
            ipv4::fill_checksum(&mut packet[..inner.l4]);
        }
        assert_eq!(segment, packet);
    }
}

/// A datagram from the wire, through the decoders of both backends and everything that takes what they give.
pub fn decap(bytes: &[u8]) {
    let ours = MacAddr([0x0a, 0x58, 10, 99, 0, 1]);
    let vxlan = Vxlan {
        vni: 1,
        macs: OwnMacs { v4: ours, v6: ours },
        strict: bytes.len() % 2 == 0,
    };
    if vxlan.check_header(bytes).is_ok() && vxlan.check_link(bytes).is_ok() {
        packet(&bytes[Vxlan::HEADER_LEN..]);
    }
    if RawUdp.check_header(bytes).is_ok() && RawUdp.check_link(bytes).is_ok() {
        packet(bytes);
    }
}

fn packet(bytes: &[u8]) {
    let Ok(inner) = Inner::parse(bytes) else {
        return;
    };
    assert!(inner.l4 <= inner.total_len && inner.total_len <= bytes.len());
    let _ = (
        inner.ports(bytes),
        inner.is_icmp_error(bytes),
        flow::hash(bytes, &inner),
    );
    let state = transport::l4_checksum_state(bytes, &inner);
    assert!(state != L4Checksum::Unfinished || transport::looks_unfinished(bytes, &inner));
    let mut finished = bytes.to_vec();
    transport::complete_checksum(&mut finished, &inner);
    let state = transport::l4_checksum_state(&finished, &inner);
    assert_ne!(state, L4Checksum::Unfinished);
    let mtu = inner.l4 + 100;
    if let Ok(split) = Split::for_mtu(bytes, &inner, mtu) {
        assert_split(bytes, &inner, &split);
        assert!(split.segment_len() <= mtu);
    }
    if let Ok(mut fragments) = Fragments::new(bytes, &inner, mtu) {
        let mut out = Vec::new();
        while fragments.next_into(&mut out).is_some() {
            assert!(out.len() <= mtu);
            out.clear();
        }
    }
}

/// A lease file.
pub fn lease(bytes: &[u8]) {
    let _ = overlayd::lease::parse(bytes);
}

/// flannel's net-conf.json, as a file that the configuration names.
pub fn netconf(bytes: &[u8]) {
    let file = tempfile::NamedTempFile::new().expect("a file in the temporary folder");
    std::fs::write(&file, bytes).expect("the file can be written");
    let path = file.path().to_str().expect("a path of ours is UTF-8");
    let overrides = Overrides::default().set("network.net-conf", path);
    let no_environment = std::iter::empty::<(OsString, OsString)>();
    // Nothing but net-conf.json says anything.
    if let Ok(config) = Config::load(Some(Path::new("/dev/null")), &overrides, no_environment) {
        assert!(config.network.v4.is_some() || config.network.v6.is_some());
        assert_eq!(config.backend.port() != 0, config.backend.encapsulates());
    }
}

/// A frame, of the link type that the first byte picks.
pub fn dissect(bytes: &[u8]) {
    let Some((first, frame)) = bytes.split_first() else {
        return;
    };
    let links = [Link::Ethernet, Link::Raw, Link::Cooked, Link::Cooked2];
    let link = links.get(usize::from(first % 5)).copied();
    let link = link.unwrap_or_else(|| dissect::guess_link(frame));
    let wire_len = frame.len() + usize::from(first / 5);
    let mut dissection = Dissection::default();
    dissection.read(frame, wire_len, link, &Ports::default());
    // Layers and fields cover the frame without gap or overlap.
    let (mut byte, mut bit) = (0, 0);
    for layer in &dissection.layers {
        assert_eq!(layer.bytes.start, byte);
        byte = layer.bytes.end;
        for field in dissection.fields_of(layer) {
            assert_eq!(field.bit, bit);
            bit += field.bits;
        }
        assert_eq!(bit, byte * 8);
    }
    assert_eq!(byte, frame.len());
    if let Some(sum) = dissection.sum {
        assert_eq!(sum.original + sum.overhead + sum.padding, sum.wire);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_fuzzers_found_is_replayed() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/fuzz");
        for (name, target) in TARGETS {
            let mut files = 0;
            for entry in std::fs::read_dir(corpus.join(name)).unwrap() {
                let path = entry.unwrap().path();
                let bytes = std::fs::read(&path).unwrap();
                // The test's output names the file if the target panics.
                println!("{}", path.display());
                target(&bytes);
                files += 1;
            }
            assert!(files >= 10, "{files} files for {name}");
        }
    }
}
