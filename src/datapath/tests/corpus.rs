//! The corpus of hand-picked datagrams in `integration/corpus/decap`, replayed through the inbound stage.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use encap::{Family, RawUdp, Vxlan};

use crate::datapath::DropReason;
use crate::datapath::testbed::{Backend, Bed, PEER, public};

/// What became of a datagram: the drop reason's name, or `delivered`.
fn outcome<E: Backend>(datagram: &[u8]) -> &'static str {
    let received = Bed::<E>::new().receive(public(PEER, Family::V4), 0, datagram);
    let dropped = DropReason::ALL
        .iter()
        .find(|reason| received.counts.dropped(**reason) > 0);
    match dropped {
        Some(reason) => {
            assert!(received.delivered.is_empty());
            reason.name()
        }
        None => "delivered",
    }
}

/// `index.txt` has a line for each file: its name, what the udp backend and what the VXLAN backend makes of
/// it, and why it is there. Files named `ip-` are inner packets, which come to VXLAN with a right header in
/// front; all others are whole datagrams, the same for both.
#[test]
fn every_datagram_of_the_corpus_ends_where_the_index_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/corpus/decap");
    let index = std::fs::read_to_string(folder.join("index.txt")).unwrap();
    let mut expected = BTreeMap::new();
    for line in index.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<_> = line.split_whitespace().collect();
        let [name, udp, vxlan, ..] = words[..] else {
            panic!("{line:?} has no name and two outcomes");
        };
        assert!(words.len() > 3, "{name} does not say why it is there");
        expected.insert(format!("{name}.bin"), [udp.to_owned(), vxlan.to_owned()]);
    }
    let files: BTreeSet<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".bin"))
        .collect();
    assert_eq!(
        files,
        expected.keys().cloned().collect(),
        "index and files differ"
    );

    for (name, expected) in expected {
        let bytes = std::fs::read(folder.join(&name)).unwrap();
        let vxlan = if name.starts_with("ip-") {
            // The packet's own version nibble promises the family, as the sender's kernel would.
            Vxlan::datagram(PEER, &bytes)
        } else {
            bytes.clone()
        };
        let found = [outcome::<RawUdp>(&bytes), outcome::<Vxlan>(&vxlan)];
        assert_eq!(found, expected, "{name}");
    }
}
