//! Trains hold what the parcels held: every datagram once, in its order, within the kernel's limits.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use encap::Family;
use encap::Vxlan;
use fdb::PeerId;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::datapath::batch::{Batch, Outbox, Parcel};
use crate::datapath::testbed::{Bed, PEER, fill, public};
use crate::datapath::train::{MAX_BYTES, MAX_DATAGRAMS, Train, Trains};

/// Where a parcel's datagrams lie.
#[derive(Clone, Debug)]
enum Kind {
    /// One, in the batch.
    Whole(usize),
    /// Of a superpacket: so many of a size, and one shorter or as long.
    Split {
        segment: usize,
        count: usize,
        last: usize,
    },
    /// Fragments.
    Made(Vec<usize>),
}

#[derive(Clone, Debug)]
struct Item {
    kind: Kind,
    tos: u8,
    /// One of two destinations, by one of two ports.
    to: u16,
    port: u32,
}

fn kind() -> impl Strategy<Value = Kind> {
    // Few sizes, so that many are equal; each holds a number of four bytes.
    let size = prop_oneof![Just(60usize), Just(1450), 4..1500usize];
    let split = (size.clone(), 0..MAX_DATAGRAMS, any::<prop::sample::Index>());
    let split = split.prop_map(|(segment, count, last)| Kind::Split {
        segment,
        count: count.min(MAX_BYTES / segment - 1),
        last: 4 + last.index(segment - 3),
    });
    prop_oneof![
        6 => size.clone().prop_map(Kind::Whole),
        2 => split,
        1 => vec(size, 1..5).prop_map(Kind::Made),
    ]
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let tos = prop::sample::select(vec![0, 0, 0, 2]);
    let item = (kind(), tos, 1..3u16, 0..2u32);
    let item = item.prop_map(|(kind, tos, to, port)| Item {
        kind,
        tos,
        to,
        port,
    });
    vec(item, 0..40)
}

/// One datagram, and what must stay with it.
type Datagram = (u8, Vec<u8>);

/// The parcels of a batch, and the datagrams in them by port and destination.
struct Made {
    batch: Batch,
    out: Outbox,
    sent: BTreeMap<(usize, SocketAddr), Vec<Datagram>>,
    bytes: u64,
}

fn peer() -> PeerId {
    let tables = Bed::<Vxlan>::new().forwarding.tables;
    tables.peer_by_public(public(PEER, Family::V4)).unwrap()
}

fn make(items: &[Item]) -> Made {
    let (mut batch, mut out) = (Batch::new(items.len().max(1), 0), Outbox::default());
    let (mut sent, mut number, mut total) = (BTreeMap::<_, Vec<_>>::new(), 0u32, 0);
    for item in items {
        let to = SocketAddr::from(([10, 99, 0, 2], item.to));
        let lens = match &item.kind {
            Kind::Whole(len) => vec![*len],
            Kind::Split {
                segment,
                count,
                last,
            } => [vec![*segment; *count], vec![*last]].concat(),
            Kind::Made(lens) => lens.clone(),
        };
        let datagrams: Vec<Vec<u8>> = lens
            .iter()
            .map(|len| {
                number += 1;
                let filler = number.to_le_bytes()[0];
                let mut datagram = vec![filler; *len];
                datagram[..4].copy_from_slice(&number.to_be_bytes());
                datagram
            })
            .collect();
        let bytes = datagrams.concat();
        let parcel = Parcel {
            to,
            peer: peer(),
            tos: item.tos,
            flow: item.port,
            packets: 1,
            inner_bytes: bytes.len() as u64,
            head: None,
            segment: 0,
            places: 0..0,
        };
        match &item.kind {
            Kind::Whole(_) => {
                fill(&mut batch, &bytes);
                let index = batch.len() - 1;
                out.send(parcel, index);
            }
            Kind::Split { segment, .. } => {
                let parcel = Parcel {
                    packets: datagrams.len() as u64,
                    segment: *segment,
                    ..parcel
                };
                out.send_split(parcel, bytes.len(), |room| room.copy_from_slice(&bytes));
            }
            Kind::Made(_) => {
                let mut each = datagrams.iter();
                out.send_made(parcel, |made| {
                    each.next().map(|bytes| made.extend(bytes)).is_some()
                });
            }
        }
        total += bytes.len() as u64;
        let key = (item.port as usize, to);
        let tagged = datagrams.into_iter().map(|bytes| (item.tos, bytes));
        sent.entry(key).or_default().extend(tagged);
    }
    Made {
        batch,
        out,
        sent,
        bytes: total,
    }
}

fn datagrams(trains: &Trains, train: &Train, made: &Made) -> Vec<Datagram> {
    let bytes: Vec<u8> = trains
        .slices(train, &made.batch, &made.out)
        .flatten()
        .copied()
        .collect();
    assert!(bytes.len() <= MAX_BYTES, "{train:?}: {} bytes", bytes.len());
    let each = bytes.chunks(train.segment);
    each.map(|bytes| (train.tos, bytes.to_vec())).collect()
}

fn assembled(made: &Made) -> Trains {
    let mut trains = Trains::default();
    let refused = |parcel: &Parcel| panic!("{parcel:?} was refused");
    let port = |parcel: &Parcel| Some(parcel.flow as usize);
    let all = 0..made.out.parcels().len();
    trains.assemble(&made.batch, &made.out, all, port, refused);
    trains
}

fn check(items: &[Item]) {
    let made = make(items);
    let trains = assembled(&made);
    let mut sent = BTreeMap::<_, Vec<_>>::new();
    let (mut packets, mut bytes) = (0, 0);
    for train in trains.trains() {
        let datagrams = datagrams(&trains, train, &made);
        assert_eq!(datagrams.len(), train.datagrams);
        assert!(datagrams.len() <= MAX_DATAGRAMS, "{train:?}");
        packets += train.packets;
        bytes += train.inner_bytes;
        let way = (train.port, train.to);
        sent.entry(way).or_default().extend(datagrams);
    }
    let counted: u64 = made.out.parcels().iter().map(|parcel| parcel.packets).sum();
    assert_eq!((packets, bytes), (counted, made.bytes));
    // Maps of what left in which order: cutting a train at its segment size gave back the datagrams that it was made of.
    assert!(sent == made.sent, "{:#?}", trains.trains());
}

proptest! {
    #[test]
    fn every_datagram_leaves_once_in_its_order(items in items()) {
        check(&items);
    }
}

fn whole(len: usize, tos: u8) -> Item {
    Item {
        kind: Kind::Whole(len),
        tos,
        to: 1,
        port: 0,
    }
}

/// A flow's packets need not carry one mark: TCP's acknowledgments are Not-ECT among ECT data (RFC 3168 section 6.1.4).
#[test]
fn a_packet_does_not_overtake_one_of_another_mark() {
    check(&[whole(100, 2), whole(100, 0), whole(100, 2)]);
}

#[test]
fn a_train_takes_equal_sizes_and_a_shorter_one_last() {
    let lens = |items: &[Item]| -> Vec<Vec<usize>> {
        let made = make(items);
        let trains = assembled(&made);
        let of = |train| datagrams(&trains, train, &made);
        let lens = |train| of(train).iter().map(|(_, bytes)| bytes.len()).collect();
        trains.trains().iter().map(lens).collect()
    };
    let all = [100, 100, 60, 60, 60, 100].map(|len| whole(len, 0));
    assert_eq!(lens(&all), [vec![100, 100, 60], vec![60, 60], vec![100]]);
    let many = vec![whole(4, 0); MAX_DATAGRAMS + 1];
    assert_eq!(lens(&many), [vec![4; MAX_DATAGRAMS], vec![4]]);
    let large = vec![whole(1450, 0); 45];
    assert_eq!(lens(&large), [vec![1450; 45]]);
    let most = MAX_BYTES / 1450;
    let splits = [40, 10].map(|count| Item {
        kind: Kind::Split {
            segment: 1450,
            count: count - 1,
            last: 1450,
        },
        ..whole(0, 0)
    });
    assert!(40 + 10 > most);
    assert_eq!(lens(&splits), [vec![1450; 40], vec![1450; 10]]);
}
