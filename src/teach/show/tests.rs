use super::*;
use crate::teach::capture::{Frame, Link};
use crate::teach::dissect::Ports;

/// A datagram in VXLAN whose inner packet is cut.
fn frame() -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 99, 0, 1], [10, 99, 0, 2], 64)
        .udp(50_000, 8472)
        .write(&mut frame, &[8, 0, 0, 0, 0, 0, 1, 0, 2, 2, 2, 2, 2, 2])
        .unwrap();
    frame
}

fn show(show: impl FnOnce(&Shown<'_>, &mut Vec<u8>) -> std::io::Result<()>) -> String {
    let bytes = frame();
    let mut dissection = Dissection::default();
    dissection.read(&bytes, bytes.len(), Link::Ethernet, &Ports::default());
    let shown = Shown {
        file: None,
        frame: Frame {
            number: 3,
            time: None,
            link: None,
            bytes: &bytes,
            wire_len: bytes.len(),
        },
        since_first: Some(-0.5),
        dissection: &dissection,
    };
    let mut out = Vec::new();
    show(&shown, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

const PLAIN: Palette = Palette { colours: false };

#[test]
fn rows_have_place_bytes_name_value_and_meaning() {
    let text = show(|shown, mut out| text::rows(shown, PLAIN, &mut out));
    for line in [
        "frame 3, 56 bytes, -0.500000 s: 10.99.0.1 > 10.99.0.2 UDP 50000 > 8472 | VXLAN 1:",
        "  IPv4: 20 bytes at 14, RFC 791 section 3.1",
        "      14  .5                       header length             5                  x 4 = 20 bytes, no options",
        "      20  ...00000 00000000        fragment offset           0",
        "      46  00 00 01                 network identifier        1",
        "    Ethernet: 6 bytes at 50, IEEE 802.3 clause 3",
        "        50  02 02 02 02 02 02        destination               02:02:02:02:02:02  locally administered",
        "  sum: 42 (IPv4 packet) + 14 overhead (Ethernet 14) = 56 bytes on the wire",
        "  ! byte 56: Ethernet is cut short: source takes 6 bytes, 0 are there: the frame ends there",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line}\nis not in\n{text}"
        );
    }
    assert!(!text.contains('\x1b'));
    let colourful = show(|shown, mut out| text::rows(shown, Palette { colours: true }, &mut out));
    assert_eq!(anstream::adapter::strip_str(&colourful).to_string(), text);
    assert!(colourful.contains('\x1b'));
}

#[test]
fn drawings_are_those_of_the_rfcs() {
    let text = show(|shown, mut out| drawing::drawings(shown, PLAIN, &mut out));
    let expected = "  VXLAN: 8 bytes at 42, RFC 7348 section 5
    Packet analysers call port 8472 OTV, to which the IANA gave it.
    Linux took it for VXLAN before VXLAN had 4789, and kept it.
    To see VXLAN: tshark -d udp.port==8472,vxlan (in Wireshark: Decode As).
     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    | Rsvd  |I|Rsvd |                   reserved                    |
    |  0x0  |1| 0x0 |                   0x000000                    |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |              network identifier               |   reserved    |
    |                       1                       |     0x00      |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    Ethernet: 6 bytes at 50, IEEE 802.3 clause 3
       0                   1                   2                   3
       0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
      +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
      |                          destination                          |
      |                       02:02:02:02:02:02                       |
      +                               +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
      |                               |
      +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn a_json_object_is_one_line_and_has_every_field() {
    let text = show(|shown, mut out| json::line(shown, &mut out));
    assert_eq!(text.lines().count(), 1);
    let object: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&object["version"], &object["frame"]),
        (&1.into(), &3.into())
    );
    let fields = |layer: &serde_json::Value| layer["fields"].as_array().unwrap().len();
    let layers = object["layers"].as_array().unwrap();
    assert_eq!(
        layers.iter().map(fields).collect::<Vec<_>>(),
        [3, 15, 4, 6, 1]
    );
    let ttl = &layers[1]["fields"][10];
    let expected = serde_json::json!({
        "name": "time to live", "bit": 176, "bits": 8, "value": 64, "source": "RFC 791 section 3.1"
    });
    assert_eq!(ttl, &expected);
    assert_eq!(object["problems"][0]["offset"], 56);
    assert_eq!(object["sum"]["wire"], 56);
}

/// Every drawing: nothing is ragged, whatever is drawn.
#[test]
fn every_drawing_is_rectangular_up_to_its_last_row() {
    let text = show(|shown, mut out| drawing::drawings(shown, PLAIN, &mut out));
    let rows = text
        .lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with(['|', '+']));
    let mut count = 0;
    for row in rows {
        count += 1;
        assert!([33, 65].contains(&row.chars().count()), "{row:?}");
        assert!(row.ends_with(['|', '+']));
    }
    assert!(count > 20);
}
