//! Whatever the bytes: what was captured, what was made up, and what is almost a frame.

use super::*;

/// Every recorded frame, every frame that was ever found to be hard, and every one of these cut at every length.
#[test]
fn corpus_is_replayed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration");
    let mut files = 0;
    for corpus in ["corpus/decap", "corpus/dissect"] {
        for entry in fs::read_dir(root.join(corpus)).unwrap() {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            files += 1;
            for link in LINKS {
                read(&bytes, link);
            }
            // What is hard to decapsulate comes in a datagram.
            for port in [8285, 8472, 4790, 6081, 51820] {
                let frame = udp(port, &bytes[..bytes.len().min(60_000)]);
                for len in 0..frame.len().min(300) {
                    let mut dissection = Dissection::default();
                    dissection.read(
                        &frame[..len],
                        frame.len(),
                        Link::Ethernet,
                        &Ports::default(),
                    );
                    check(&frame[..len], frame.len(), &dissection);
                    read(&frame[..len], Link::Ethernet);
                }
                read(&frame, Link::Ethernet);
            }
        }
    }
    assert!(files > 50);
    for backend in ["udp", "vxlan", "vxlan-dualstack", "host-gw"] {
        let path = root.join(format!("fixtures/flannel-0.20.2/{backend}/underlay.pcap"));
        let file = fs::read(path).unwrap();
        let mut capture = Capture::open(&file[..]).unwrap();
        while let Some(frame) = capture.next_frame().unwrap() {
            let dissection = read(frame.bytes, Link::Ethernet);
            assert_eq!(
                problems(&dissection),
                [""; 0],
                "frame {} of {backend}",
                frame.number
            );
        }
    }
}

/// Frames that begin like something, so that the walk gets somewhere, with bytes changed here and there.
fn almost_a_frame() -> impl Strategy<Value = Vec<u8>> {
    let base = prop_oneof![
        Just(Vec::new()),
        Just(vxlan(&udp(8285, &tcp6()))),
        Just(vxlan(&vxlan(&udp(53, b"x")))),
        (0u8..=255, vec(any::<u8>(), 0..120)).prop_map(|(kind, rest)| icmp6(kind, &rest)),
        (0u8..=18, vec(any::<u8>(), 0..120)).prop_map(|(kind, rest)| {
            let mut frame = vec![2; 12];
            frame.extend([8, 0]);
            PacketBuilder::ipv4([10, 99, 0, 2], [10, 99, 0, 1], 64)
                .icmpv4_raw(kind, 4, [0; 4])
                .write(&mut frame, &rest)
                .unwrap();
            frame
        }),
        (
            prop::sample::select(vec![0u8, 43, 44, 51, 60, 135]),
            vec(any::<u8>(), 0..150)
        )
            .prop_map(|(next, rest)| ipv6(next, &rest)),
        vec(any::<u8>(), 0..40).prop_map(|rest| [&[2; 12][..], &[8, 6], &rest].concat()),
    ];
    let change = (any::<prop::sample::Index>(), any::<u8>());
    (base, vec(any::<u8>(), 0..80), vec(change, 0..6)).prop_map(|(base, rest, changes)| {
        let mut frame = [base, rest].concat();
        for (at, byte) in changes {
            if !frame.is_empty() {
                let at = at.index(frame.len());
                frame[at] = byte;
            }
        }
        frame
    })
}

fn icmp6(kind: u8, rest: &[u8]) -> Vec<u8> {
    // Kinds with a form of their own come often.
    let known = [1, 2, 3, 4, 130, 131, 133, 134, 135, 136, 137, 143];
    let kind = known.get(usize::from(kind) % 20).copied().unwrap_or(kind);
    ipv6(58, &[&[kind, 0, 0, 0], rest].concat())
}

proptest! {
    /// Whatever the bytes: no panic, and every bit is in one field.
    #[test]
    fn arbitrary_bytes(frame in almost_a_frame(), link in prop::sample::select(&LINKS[..]), more in 0usize..100) {
        read(&frame, link);
        read(&frame, Link::Ethernet);
        let mut dissection = Dissection::default();
        dissection.read(&frame, frame.len() + more, Link::Ethernet, &Ports::default());
        check(&frame, frame.len() + more, &dissection);
        let _ = guess_link(&frame);
    }

    /// etherparse builds it, we read the same.
    #[test]
    fn agrees_with_etherparse(ports in any::<(u16, u16)>(), seq in any::<u32>(), window in any::<u16>(), ttl in any::<u8>(), payload in vec(any::<u8>(), 0..50)) {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([10, 1, 2, 3], [10, 3, 2, 1], ttl)
            .tcp(ports.0, ports.1, seq, window)
            .options(&[etherparse::TcpOptionElement::Timestamp(seq, 7), etherparse::TcpOptionElement::WindowScale(3)]).unwrap()
            .write(&mut packet, &payload).unwrap();
        let dissection = read(&packet, Link::Raw);
        let number = |name| field(&dissection, "TCP", name).value;
        prop_assert_eq!(number("source port"), Value::Number(ports.0.into()));
        prop_assert_eq!(number("destination port"), Value::Number(ports.1.into()));
        prop_assert_eq!(number("sequence number"), Value::Number(seq.into()));
        prop_assert_eq!(number("window"), Value::Number(window.into()));
        prop_assert_eq!(number("timestamp"), Value::Number(seq.into()));
        prop_assert_eq!(number("window scale"), Value::Number(3));
        prop_assert_eq!(field(&dissection, "IPv4", "time to live").value, Value::Number(ttl.into()));
        let verdicts: Vec<_> = dissection.fields.iter().filter_map(|field| field.checksum).collect();
        prop_assert_eq!(verdicts, [Verdict::Right; 2]);
    }
}
