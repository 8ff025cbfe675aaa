use super::svg::{ADVANCE, Anchor, Canvas, Text, draw};
use super::*;
use crate::lab::topology::{Backend, Underlay};

fn spec(nodes: u8, pods: u8) -> Spec {
    Spec {
        nodes,
        pods,
        ..Spec::default()
    }
}

/// Everything a way can meet between two pods.
fn way(from: (u8, u8), to: (u8, u8), first: u16) -> Way {
    let (node, pod) = from;
    let mut points = vec![
        Point::Pod { node, pod },
        Point::Veth { node, pod },
        Point::Bridge { node },
    ];
    if from.0 != to.0 {
        points.extend([
            Point::Kernel { node },
            Point::Tun { node },
            Point::Daemon { node },
            Point::Eth { node },
            Point::Underlay,
        ]);
        let node = to.0;
        points.extend([
            Point::Eth { node },
            Point::Daemon { node },
            Point::Tun { node },
            Point::Kernel { node },
            Point::Bridge { node },
        ]);
    }
    let (node, pod) = to;
    points.extend([Point::Veth { node, pod }, Point::Pod { node, pod }]);
    let marks = points.iter().zip(first..).map(|(&at, number)| Mark {
        at,
        number,
        look: if number % 2 == 0 {
            Look::Seen
        } else {
            Look::Derived
        },
    });
    Way {
        marks: marks.collect(),
        points,
        ..Way::default()
    }
}

/// Left, top, right, bottom of a text: letters reach three quarters of the size above the line and a quarter below.
fn bounds(text: &Text) -> [f64; 4] {
    let width = super::layout::number(text.content.chars().count()) * text.size * ADVANCE;
    let left = match text.anchor {
        Anchor::Start => text.x,
        Anchor::End => text.x - width,
    };
    [
        left,
        text.y - 0.75 * text.size,
        left + width,
        text.y + 0.22 * text.size,
    ]
}

#[track_caller]
fn assert_readable(canvas: &Canvas, what: &str) {
    assert!(canvas.texts.len() > 5, "{what}");
    for (i, text) in canvas.texts.iter().enumerate() {
        let [left, top, right, bottom] = bounds(text);
        assert!(
            left >= 0.0 && top >= 0.0 && right <= canvas.width && bottom <= canvas.height,
            "{what}: {text:?} leaves the page"
        );
        for other in &canvas.texts[..i] {
            let [left2, top2, right2, bottom2] = bounds(other);
            let apart = right <= left2 || right2 <= left || bottom <= top2 || bottom2 <= top;
            assert!(apart, "{what}: {text:?} lies on {other:?}");
        }
        assert!(!text.content.contains('…'), "{what}: {text:?} is cut");
    }
}

#[test]
fn no_text_lies_on_another_from_one_node_to_six() {
    for nodes in 1..=6 {
        for pods in 0..=4 {
            for ways in 0..=2 {
                for (backend, ipv6, underlay) in [
                    (Backend::Vxlan, true, Underlay::Dual),
                    (Backend::Udp, false, Underlay::V6),
                ] {
                    let spec = Spec {
                        backend,
                        ipv6,
                        underlay,
                        ..spec(nodes, pods)
                    };
                    let picture = Picture {
                        topology: Topology::planned(&spec),
                        ways: vec![
                            way((1, 1), (nodes, pods), 1),
                            way((nodes, pods), (1, 1), 16),
                        ][..ways]
                            .to_vec(),
                        notes: vec!["a note of many words, ".repeat(20); 3],
                        ..Picture::default()
                    };
                    let what = format!("{nodes} nodes, {pods} pods, {ways} ways, {backend}");
                    assert_readable(&draw(&picture), &what);
                }
            }
        }
    }
}

#[test]
fn the_legend_stays_on_the_page_however_small_the_lab() {
    for nodes in 1..=6 {
        let mut ways = vec![
            way((1, 1), (nodes, 2), 1),
            way((nodes, 2), (1, 1), 16),
            way((nodes, 2), (1, 1), 31),
        ];
        ways[1].marks[0].look = Look::Lost;
        let names = [
            "the echo request",
            "the echo reply",
            "an ICMP error about it",
        ];
        for (way, name) in ways.iter_mut().zip(names) {
            name.clone_into(&mut way.name);
        }
        let picture = Picture {
            topology: Topology::planned(&spec(nodes, 2)),
            ways,
            outcome: "Lost.".into(),
            ..Picture::default()
        };
        assert_readable(&draw(&picture), &format!("{nodes} nodes"));
    }
}

/// Left, top, right and bottom of each mark, with what is written in it.
fn marks(svg: &str) -> Vec<([f64; 4], String)> {
    let lines = svg.lines().filter(|line| line.contains(r#"rx="9""#));
    let read = |line: &str| {
        let value = |name: &str| -> f64 {
            let (_, rest) = line.split_once(&format!("{name}=\"")).unwrap();
            rest.split('"').next().unwrap().parse().unwrap()
        };
        let (left, top) = (value("<rect x"), value(" y"));
        let label = line.strip_suffix("</text>").unwrap();
        let label = label.rsplit('>').next().unwrap().to_owned();
        let corner = (left + value(" width"), top + value(" height"));
        ([left, top, corner.0, corner.1], label)
    };
    lines.map(read).collect()
}

fn are_apart(a: [f64; 4], b: [f64; 4]) -> bool {
    a[2] <= b[0] || b[2] <= a[0] || a[3] <= b[1] || b[3] <= a[1]
}

#[test]
fn marks_stand_on_their_way_and_hide_neither_text_nor_each_other() {
    for count in [2, 3] {
        let ways = [
            way((1, 1), (3, 2), 1),
            way((3, 2), (1, 1), 16),
            way((2, 1), (1, 1), 31),
        ];
        let picture = Picture {
            topology: Topology::planned(&spec(3, 2)),
            ways: ways[..count].to_vec(),
            ..Picture::default()
        };
        let texts = draw(&picture).texts;
        let marks = marks(&picture.to_string());
        assert_eq!(marks.len(), 15 * count, "one per point of each way");
        for (number, (mark, label)) in marks.iter().enumerate() {
            let hidden = texts.iter().find(|text| !are_apart(*mark, bounds(text)));
            assert!(hidden.is_none(), "{label} hides {hidden:?}");
            for (other, hidden) in &marks[..number] {
                assert!(are_apart(*mark, *other), "{label} hides {hidden}");
            }
        }
    }
}

/// A port, the two ends of a pod's cable, a box: what was seen there and what was lost there are two marks.
#[test]
fn a_loss_has_a_mark_of_its_own() {
    let (node, pod) = (2, 1);
    for at in [
        Point::Port { node },
        Point::Pod { node, pod },
        Point::Veth { node, pod },
        Point::Eth { node },
    ] {
        let mark = |number, look| Mark { at, number, look };
        let lost = Way {
            points: vec![Point::Eth { node: 1 }, Point::Port { node: 1 }, at],
            marks: vec![
                mark(7, Look::Seen),
                mark(8, Look::Lost),
                mark(9, Look::Derived),
            ],
            tags: vec![(at, "lost: too-big".into())],
            ..Way::default()
        };
        let picture = Picture {
            topology: Topology::planned(&spec(2, 1)),
            ways: vec![lost],
            ..Picture::default()
        };
        let marks = marks(&picture.to_string());
        let labels: Vec<_> = marks.iter().map(|(_, label)| label.as_str()).collect();
        assert_eq!(labels, ["7,9", "8"], "{at:?}");
        assert!(are_apart(marks[0].0, marks[1].0), "{at:?}: {marks:?}");
        assert_readable(&draw(&picture), &format!("{at:?}"));
    }
}

/// Between two pods of one node: the line down from the bridge does not lie on the one up.
#[test]
fn a_way_that_turns_at_a_bridge_is_two_lines() {
    let picture = Picture {
        topology: Topology::planned(&spec(1, 2)),
        ways: vec![way((1, 1), (1, 2), 1)],
        ..Picture::default()
    };
    let turned = Way {
        points: vec![
            Point::Veth { node: 1, pod: 1 },
            Point::Bridge { node: 1 },
            Point::Veth { node: 1, pod: 2 },
        ],
        ..Way::default()
    };
    let layout = super::layout::Layout::of(&picture);
    let (line, _) = layout.line(&turned.points, 0);
    let upright = line.windows(2).filter(|pair| pair[0].0 == pair[1].0);
    let at: Vec<_> = upright.map(|pair| pair[0].0).collect();
    assert!(at.len() == 2 && at[0] != at[1], "{line:?}");
}

#[test]
fn everything_that_a_lab_has_is_named() {
    let svg = Picture {
        topology: Topology::planned(&Spec::default()),
        ..Picture::default()
    }
    .to_string();
    for part in [
        "lab \"lab\": vxlan over UDP port 8472",
        ">node3<",
        ">10.99.0.2/24<",
        ">fd99::2/64<",
        ">overlay0<",
        ">10.244.2.0/32<",
        ">10.244.0.0/16 → overlay0<",
        ">10.244.3.0/24 at 10.99.0.3<",
        ">cni0<",
        ">fd00:10:244:3::1/64<",
        ">pod2 eth0<",
        ">10.244.3.3/24<",
        ">veth-pod2<",
        ">MTU 1450<",
        ">MTU 1500<",
    ] {
        assert!(svg.contains(part), "{part} is not in the picture");
    }
    // Well-formed: what opens closes, and nothing of XML's own is in a text.
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
}

#[test]
fn what_is_not_there_is_not_drawn_and_ways_pass_it_over() {
    let mut topology = Topology::planned(&spec(2, 1));
    topology.nodes[0].daemon = None;
    topology.nodes[0].tun = None;
    topology.nodes[1].pods.clear();
    let picture = Picture {
        topology,
        ways: vec![way((1, 1), (2, 1), 1)],
        notes: Vec::new(),
        ..Picture::default()
    };
    let svg = picture.to_string();
    assert_eq!(svg.matches(">overlayd<").count(), 1);
    assert!(!svg.contains("NaN"));
    // 15 points less the two of node 1 and the two of the missing pod.
    assert_eq!(svg.matches(r#"rx="9""#).count(), 11);
}

#[test]
fn text_from_elsewhere_is_escaped_and_cut() {
    let mut topology = Topology::planned(&spec(1, 1));
    topology.title = format!("<&> {}", "long ".repeat(50));
    topology.nodes[0].name = "a-host-with-a-name-of-very-many-letters.example.org".into();
    let picture = Picture {
        topology,
        ..Picture::default()
    };
    let svg = picture.to_string();
    assert!(
        svg.contains("&lt;&amp;&gt; long") && svg.contains('…'),
        "{svg}"
    );
    let canvas = draw(&picture);
    for text in &canvas.texts {
        let [left, _, right, _] = bounds(text);
        assert!(left >= 0.0 && right <= canvas.width, "{text:?}");
    }
}

#[test]
fn a_lost_packet_is_crossed_out_where_it_was_lost() {
    let mut lost = way((1, 1), (2, 1), 1);
    lost.points.truncate(6);
    lost.marks.truncate(6);
    lost.marks[5].look = Look::Lost;
    let svg = Picture {
        topology: Topology::planned(&spec(2, 1)),
        ways: vec![lost],
        notes: Vec::new(),
        ..Picture::default()
    }
    .to_string();
    assert_eq!(svg.matches("<path d=").count(), 1);
    assert_eq!(svg.matches(r#"rx="9""#).count(), 6);
}

#[test]
fn what_passes_the_daemon_by_is_drawn_around_it() {
    let direct = Way {
        points: vec![
            Point::Kernel { node: 1 },
            Point::Eth { node: 1 },
            Point::Underlay,
        ],
        marks: Vec::new(),
        ..Way::default()
    };
    let back = Way {
        points: direct.points.iter().copied().rev().collect(),
        marks: Vec::new(),
        ..Way::default()
    };
    let mut topology = Topology::planned(&spec(1, 1));
    let mut picture = Picture {
        topology: topology.clone(),
        ways: vec![direct, back],
        notes: Vec::new(),
        ..Picture::default()
    };
    let mut svg = picture.to_string();
    // One that is off, and its device gone with it, is passed by as well.
    topology.nodes[0].tun = None;
    picture.topology = topology;
    svg += &picture.to_string();
    let ways = svg.lines().filter(|line| line.contains("stroke-opacity"));
    let mut levels: Vec<Vec<String>> = Vec::new();
    for way in ways {
        let (_, points) = way.split_once("points=\"").unwrap();
        let points: Vec<_> = points.split('"').next().unwrap().split(' ').collect();
        // Both ends, four corners around the daemon, and two on the underlay.
        assert_eq!(points.len(), 8, "{way}");
        let spots: Vec<_> = points
            .iter()
            .map(|spot| spot.split_once(',').unwrap())
            .collect();
        let level = spots.windows(2).filter(|pair| pair[0].1 == pair[1].1);
        levels.push(level.map(|pair| pair[0].1.to_owned()).collect());
    }
    // Not one on the other: of each picture's two ways no two pieces run at one height.
    for pair in levels.chunks(2) {
        let same = pair[0].iter().find(|y| pair[1].contains(y));
        assert!(pair[0].len() == 3 && same.is_none(), "{levels:?}");
    }
}

/// A packet that its own sender refuses goes no way: the legend explains the mark, and no arrow.
#[test]
fn the_legend_has_no_arrow_that_is_not_drawn() {
    let mut refused = way((1, 1), (1, 2), 1);
    refused.points.truncate(1);
    refused.marks.truncate(1);
    refused.marks[0].look = Look::Lost;
    "the echo request".clone_into(&mut refused.name);
    let svg = Picture {
        topology: Topology::planned(&spec(1, 2)),
        ways: vec![refused],
        ..Picture::default()
    }
    .to_string();
    assert!(svg.contains(">lost there<"), "{svg}");
    assert!(!svg.contains(">the echo request<") && !svg.contains("<polygon"));
}
