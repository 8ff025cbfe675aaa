use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

type Owned = (Option<Duration>, Option<Link>, Vec<u8>, usize);

/// All frames, what was complained about, and the error at the end.
fn read(file: &[u8]) -> (Vec<Owned>, Vec<String>, Option<String>) {
    let mut frames = Vec::new();
    let mut capture = match Capture::open(file) {
        Ok(capture) => capture,
        Err(error) => return (frames, Vec::new(), Some(error.to_string())),
    };
    let error = loop {
        match capture.next_frame() {
            Ok(Some(frame)) => {
                assert_eq!(frame.number, frames.len() as u64 + 1);
                assert!(frame.wire_len >= frame.bytes.len());
                frames.push((frame.time, frame.link, frame.bytes.to_vec(), frame.wire_len));
            }
            Ok(None) => break None,
            Err(error) => break Some(error.to_string()),
        }
    };
    (frames, capture.take_complaints(), error)
}

fn words(order: Order, words: &[u32]) -> Vec<u8> {
    let bytes = |word: &u32| match order {
        Order::Little => word.to_le_bytes(),
        Order::Big => word.to_be_bytes(),
    };
    words.iter().flat_map(bytes).collect()
}

fn version(order: Order) -> u32 {
    match order {
        Order::Little => 2 | 4 << 16,
        Order::Big => 2 << 16 | 4,
    }
}

#[test]
fn pcap_of_both_byte_orders_and_units() {
    for order in [Order::Little, Order::Big] {
        for (magic, nanoseconds) in [(0xa1b2_c3d4, 7000), (0xa1b2_3c4d, 7)] {
            let mut file = words(
                order,
                &[magic, version(order), 0, 0, 65535, 101 | 0x2400_0000],
            );
            file.extend(words(order, &[9, 7, 2, 1500]));
            file.extend([0xab, 0xcd]);
            file.extend(words(order, &[10, 0, 0, 0]));
            let (frames, _, error) = read(&file);
            assert_eq!(error, None);
            let first = (
                Some(Duration::new(9, nanoseconds)),
                Some(Link::Raw),
                vec![0xab, 0xcd],
                1500,
            );
            assert_eq!(frames[0], first);
            assert_eq!((frames.len(), frames[1].2.len()), (2, 0));
        }
    }
}

#[test]
fn a_cut_pcap_gives_its_whole_frames_and_says_where_it_ends() {
    let mut file = words(
        Order::Little,
        &[0xa1b2_c3d4, version(Order::Little), 0, 0, 65535, 1],
    );
    for _ in 0..2 {
        file.extend(words(Order::Little, &[0, 0, 3, 3]));
        file.extend([1, 2, 3]);
    }
    for len in 0..file.len() {
        let (frames, _, error) = read(&file[..len]);
        let whole = len.saturating_sub(24) / 19;
        assert_eq!(frames.len(), whole, "{len} bytes");
        assert_eq!(
            error.is_none(),
            len >= 24 && (len - 24) % 19 == 0,
            "{len} bytes: {error:?}"
        );
    }
    let (_, _, error) = read(&file[..file.len() - 1]);
    assert_eq!(
        error.unwrap(),
        "byte 61: the file ends within frame 2: 2 of its 3 bytes are there"
    );
    file[24 + 19 + 8..][..4].copy_from_slice(&[0xff; 4]);
    let error = read(&file).2.unwrap();
    assert!(
        error.starts_with("byte 43: frame 2 would have 4294967295 bytes"),
        "{error}"
    );
}

fn block(order: Order, kind: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(12 + body.len().next_multiple_of(4)).unwrap();
    let mut block = words(order, &[kind, len]);
    block.extend(body);
    block.resize(usize::try_from(len).unwrap() - 4, 0);
    block.extend(words(order, &[len]));
    block
}

fn half(order: Order, a: u16, b: u16) -> Vec<u8> {
    match order {
        Order::Little => [a.to_le_bytes(), b.to_le_bytes()].concat(),
        Order::Big => [a.to_be_bytes(), b.to_be_bytes()].concat(),
    }
}

/// A section of two interfaces and a frame in each kind of packet block.
fn section(order: Order) -> Vec<u8> {
    let header = [
        words(order, &[0x1a2b_3c4d]),
        half(order, 1, 0),
        vec![0xff; 8],
    ]
    .concat();
    let plain = [half(order, 1, 0), words(order, &[4])].concat();
    let fine = [
        half(order, 101, 0),
        words(order, &[0]),
        half(order, 9, 1),
        vec![9, 0, 0, 0],
        half(order, 0, 0),
    ]
    .concat();
    let enhanced = [words(order, &[1, 1, 0, 3, 60]), vec![7, 8, 9]].concat();
    let old = [
        half(order, 0, 5),
        words(order, &[0, 2_000_001, 1, 1]),
        vec![4],
    ]
    .concat();
    let simple = [words(order, &[9]), vec![1, 2, 3, 4]].concat();
    [
        block(order, 0x0a0d_0d0a, &header),
        block(order, 1, &plain),
        block(order, 1, &fine),
        block(order, 0x0bad, &[0; 5000]),
        block(order, 6, &enhanced),
        block(order, 2, &old),
        block(order, 3, &simple),
    ]
    .concat()
}

#[test]
fn pcapng_blocks_of_both_byte_orders() {
    // A file may change its byte order from section to section, as files that were put together do.
    let file = [section(Order::Little), section(Order::Big)].concat();
    let (frames, _, error) = read(&file);
    assert_eq!(error, None);
    let expected = [
        (
            Some(Duration::from_nanos(1 << 32)),
            Some(Link::Raw),
            vec![7, 8, 9],
            60,
        ),
        (
            Some(Duration::from_micros(2_000_001)),
            Some(Link::Ethernet),
            vec![4],
            1,
        ),
        (None, Some(Link::Ethernet), vec![1, 2, 3, 4], 9),
    ];
    assert_eq!(frames, [expected.clone(), expected].concat());
}

#[test]
fn a_cut_or_garbled_pcapng_says_where() {
    let file = section(Order::Big);
    let whole = read(&file).0;
    let mut clean = 0;
    for len in 4..file.len() {
        let (frames, _, error) = read(&file[..len]);
        assert_eq!(frames, whole[..frames.len()]);
        clean += usize::from(error.is_none());
    }
    // Only the ends of blocks are ends of files.
    assert_eq!(clean, 6);
    let mut bad = file.clone();
    bad[8] ^= 1;
    assert!(
        read(&bad)
            .2
            .unwrap()
            .starts_with("byte 8: [1b, 2b, 3c, 4d] is not the byte-order magic")
    );
    let mut bad = file.clone();
    bad[27] ^= 4;
    assert_eq!(
        read(&bad).2.unwrap(),
        "byte 24: the block that began at byte 0 states 28 bytes at its head and 24 at its end"
    );
    let mut bad = file;
    bad[28 + 7] = 7;
    assert!(
        read(&bad)
            .2
            .unwrap()
            .starts_with("byte 28: a block of 7 bytes is impossible")
    );
}

#[test]
fn what_is_no_capture_is_refused_by_name() {
    for (file, message) in [
        (&b""[..], "byte 0: the input is empty"),
        (
            b"\x1f\x8b\x08\x00",
            "byte 0: compressed by gzip: unpack it first (gunzip)",
        ),
        (
            b"\x7fELF",
            "byte 0: [7f, 45, 4c, 46] begins neither pcap nor pcapng nor hex text",
        ),
        (
            b"hello\nworld",
            "line 1: no hex digits in pairs, nor a capture file: \"hello\"",
        ),
        (b"\n# nothing\n", "line 2: no hex digits at all"),
        (
            b"4500 005",
            "line 1: no hex digits in pairs, nor a capture file: \"4500 005\"",
        ),
    ] {
        assert_eq!(read(file), (vec![], vec![], Some(message.to_owned())));
    }
}

/// 19 bytes, of which characters look like hex.
const SAMPLE: &[u8] = b"\x45\x00\x00\x14\x00\x00\x40\x00\x40\x01ab cd\x0a\x63\x00\x01";

#[test]
fn the_ways_to_write_hex() {
    let texts = [
        "4500001400004000400161622063640a630001",
        "45 00 00 14 00 00 40 00 40 01 61 62 20 63 64\n0a 63 00 01",
        "0x45, 0x00, 0x00, 0x14, 0x00, 0x00, 0x40, 0x00, 0x40, 0x01, 0x61,\r\n0x62,0x20,0x63,0x64,0x0a,0x63,0x00,0x01",
        "# a comment\n45:00:00:14:00:00:40:00:40:01:61:62:20:63:64:0a:63:00:01\n",
        "00000000: 4500 0014 0000 4000 4001 6162 2063 640a  E.....@.@.ab cd.\n00000010: 6300 01                                  c..\n",
        "02:45:06.2 IP 10.0.0.1 > 10.99.0.1: ICMP\n\t0x0000:  4500 0014 0000 4000 4001 6162 2063 640a  E.....@.@.ab.cd.\n\t0x0010:  6300 01                                  c..",
        "00000000  45 00 00 14 00 00 40 00  40 01 61 62 20 63 64 0a  |E.....@.@.ab cd.|\n00000010  63 00 01                                          |c..|\n00000013\n",
        "0000  45 00 00 14 00 00 40 00 40 01 61 62 20 63 64 0a   E.....@.@.ab cd.\n0010  63 00 01                                          c..\n",
        "0000000 0045 1400 0000 0040 0140 6261 6320 0a64\n0000010 0063 0001\n0000013\n",
        "0000000 45 00 00 14 00 00 40 00 40 01 61 62 20 63 64 0a\n0000020 63 00 01\n0000023\n",
    ];
    for text in texts {
        let (frames, complaints, error) = read(text.as_bytes());
        assert_eq!((complaints, error), (vec![], None), "{text}");
        assert_eq!(
            frames,
            [(None, None, SAMPLE.to_vec(), SAMPLE.len())],
            "{text}"
        );
    }
}

#[test]
fn frames_of_hex_are_told_apart() {
    let lengths = |text: &str| {
        let (frames, complaints, error) = read(text.as_bytes());
        assert_eq!(error, None);
        (
            frames.iter().map(|frame| frame.2.len()).collect::<Vec<_>>(),
            complaints,
        )
    };
    assert_eq!(lengths("45 00\n00 14\n\n\n60 00"), (vec![4, 2], vec![]));
    assert_eq!(
        lengths("0000  45 00\n0002  00\n0000  60 00\n"),
        (vec![3, 2], vec![])
    );
    assert_eq!(
        lengths("0x0000:  4500\ntalk\n\t0x0000:  4500 01"),
        (vec![2, 3], vec![])
    );
    // A piece out of the middle: xxd -s 40.
    let middle = "00000028: 4500\n0000002a: 0014\n";
    assert_eq!(lengths(middle), (vec![4], vec![]));
    let middle = "00000028  45 00  |E.|\n0000002a  00 14  |..|\n0000002c\n";
    assert_eq!(lengths(middle), (vec![4], vec![]));
    // tshark -x shows what it reassembled behind the frame; the next frame may have no name.
    let tabs = "0000  45 00   E.\n\nFrame (3 bytes):\n0000  45 00 01   E..\nReassembled IPv4 (17 bytes):\n\
        0000  00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00   ................\n0010  01   .\n\n0000  60 00 00 00   `...\n";
    assert_eq!(lengths(tabs), (vec![2, 3, 4], vec![]));
    // hexdump leaves out lines that repeat.
    let squeezed = "00000000  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|\n*\n00000040  01  |.|\n00000041\n";
    assert_eq!(lengths(squeezed), (vec![65], vec![]));
}

#[test]
fn hex_that_does_not_fit_is_complained_about() {
    let complaints = |text: &str| read(text.as_bytes()).1;
    assert_eq!(
        complaints("0000  45 00\n0010  00\n0011  00"),
        ["line 2: offset 0010, where 0x2 bytes came before: some are missing, or too many"]
    );
    assert_eq!(
        complaints("0x0000: 4500 zz00"),
        ["line 1: \"zz00\" is not hex digits in pairs: the rest of the line is left out"]
    );
    assert_eq!(
        complaints("45 00\n0g\n"),
        ["line 2: no hex digits in pairs: \"0g\": left out"]
    );
    let garbage = complaints(&format!("45 00\n{}", "0g\n".repeat(1000)));
    assert_eq!(garbage.len(), 21);
    assert!(garbage[20].contains("and more"), "{}", garbage[20]);
}

#[test]
fn the_longest_frame_may_stand_in_one_line() {
    let line = "0x45, ".repeat(200_000);
    let (frames, complaints, _) = read(line.as_bytes());
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].2.len(), 200_000);
    assert!(complaints.is_empty(), "{complaints:?}");
}

/// Something that begins like each of the formats.
fn almost_capture() -> impl Strategy<Value = Vec<u8>> {
    let start = prop_oneof![
        Just(Vec::new()),
        Just(words(
            Order::Little,
            &[0xa1b2_c3d4, version(Order::Little), 0, 0, 0, 1]
        )),
        Just(section(Order::Little)),
        Just(section(Order::Big)[..76].to_vec()),
        Just(b"00000000  ".to_vec()),
        Just(b"0x0000: ".to_vec()),
    ];
    let text = "[0-9a-f:x *\n|]{0,200}".prop_map(String::into_bytes);
    (start, prop_oneof![vec(any::<u8>(), 0..200), text])
        .prop_map(|(start, rest)| [start, rest].concat())
}

proptest! {
    #[test]
    fn arbitrary_files_never_panic(file in almost_capture(), flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)) {
        let mut file = file;
        for (at, byte) in flips {
            if !file.is_empty() {
                let at = at.index(file.len());
                file[at] = byte;
            }
        }
        let (frames, _, _) = read(&file);
        prop_assert!(frames.iter().all(|frame| frame.2.len() <= MAX_FRAME + 65_536));
    }

    /// Any bytes, in any of the notations.
    #[test]
    fn hex_is_read_back(bytes in vec(any::<u8>(), 1..100)) {
        let pairs: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let characters: String = bytes.iter().map(|&byte| if byte.is_ascii_graphic() { char::from(byte) } else { '.' }).collect();
        let mut xxd = String::new();
        for (row, at) in pairs.chunks(16).zip((0..).step_by(16)) {
            xxd += &format!("{at:08x}: {:<40} {}\n", row.chunks(2).map(<[String]>::concat).collect::<Vec<_>>().join(" "),
                &characters[at..(at + 16).min(characters.len())]);
        }
        for text in [pairs.concat() + "\n", pairs.join(" "), pairs.join(":"), xxd] {
            let (frames, complaints, error) = read(text.as_bytes());
            prop_assert_eq!((complaints, error), (vec![], None));
            prop_assert_eq!(&frames[0].2, &bytes, "{}", text);
        }
    }
}
