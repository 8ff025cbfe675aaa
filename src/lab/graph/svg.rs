//! The picture as an SVG: shapes first, ways over them, and text on top, so that nothing crosses a letter out.

use std::fmt::{self, Formatter, Write as _};

use super::layout::{
    Frame, GAP, INSET, LANES, LINE, Layout, Placed, PlacedNode, PlacedPod, Spot, number,
};
use super::{Look, Mark, Part, Picture, Point, Way};

/// Of a line of text, in viewBox units.
pub(super) const SIZE: f64 = 12.0;
pub(super) const SMALL: f64 = 11.0;
/// Of a letter, of its size. Fonts of one width keep it nearly all: DejaVu Sans Mono 0.602, Courier 0.6.
pub(super) const ADVANCE: f64 = 0.602;
/// The width of a page, in viewBox units, and in millimetres.
const PAGE: f64 = 1224.0;
const PAPER: f64 = 287.0;
/// Solid, dashed and dotted: ways that can be told apart without colours.
pub(super) const LOOKS: [(&str, &str); LANES] =
    [("#0050a0", ""), ("#b00020", "9 5"), ("#7a4b00", "1 7")];

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Anchor {
    Start,
    End,
}

/// A piece of text, and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Text {
    pub x: f64,
    /// Of its base line.
    pub y: f64,
    pub size: f64,
    pub anchor: Anchor,
    pub bold: bool,
    pub colour: &'static str,
    pub content: String,
}

/// What there is to draw.
#[derive(Default)]
pub(super) struct Canvas {
    pub(super) shapes: String,
    pub texts: Vec<Text>,
    marks: String,
    pub width: f64,
    pub height: f64,
}

pub(super) fn write(picture: &Picture, f: &mut Formatter<'_>) -> fmt::Result {
    let canvas = draw(picture);
    let (width, height) = (canvas.width, canvas.height);
    let paper = PAPER * width.min(PAGE) / PAGE;
    writeln!(
        f,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0} {height:.0}" width="{paper:.0}mm" font-family="DejaVu Sans Mono, Menlo, Consolas, Liberation Mono, monospace" font-size="{SIZE}" fill="#000000">
<title>{}</title>
<rect width="{width:.0}" height="{height:.0}" fill="#ffffff"/>"##,
        escape(&picture.topology.title)
    )?;
    f.write_str(&canvas.shapes)?;
    for text in &canvas.texts {
        let anchor = match text.anchor {
            Anchor::Start => "",
            Anchor::End => r#" text-anchor="end""#,
        };
        let weight = if text.bold {
            r#" font-weight="bold""#
        } else {
            ""
        };
        writeln!(
            f,
            r#"<text x="{:.1}" y="{:.1}" font-size="{}" fill="{}"{anchor}{weight}>{}</text>"#,
            text.x,
            text.y,
            text.size,
            text.colour,
            escape(&text.content)
        )?;
    }
    f.write_str(&canvas.marks)?;
    writeln!(f, "</svg>")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Everything, placed but not yet written.
pub(super) fn draw(picture: &Picture) -> Canvas {
    let layout = Layout::of(picture);
    let mut canvas = Canvas {
        width: layout.width,
        height: layout.height,
        ..Canvas::default()
    };
    let room = layout.width - 2.0 * GAP;
    canvas.text(
        (GAP, 32.0),
        16.0,
        Anchor::Start,
        true,
        fit(&picture.topology.title, room, 16.0),
    );
    canvas.underlay(picture, &layout);
    for node in &layout.nodes {
        canvas.node(&layout, node);
    }
    for (way, lane) in picture.ways.iter().zip(lanes()) {
        canvas.way(&layout, way, lane);
        canvas.tags(&layout, way);
    }
    canvas.legend(picture);
    canvas.outcome(&picture.outcome);
    canvas.notes(&picture.notes);
    canvas
}

/// The lane of each way: further ones lie on the last.
pub(super) fn lanes() -> impl Iterator<Item = usize> {
    (0..LANES).chain(std::iter::repeat(LANES - 1))
}

/// Half the width of a mark.
fn half(label: &str) -> f64 {
    (number(label.chars().count()) * 10.0 * ADVANCE / 2.0 + 4.0).max(9.0)
}

/// Where the mark of what was seen and that of a loss stand at one point, so that neither hides the other.
fn apart(point: Point, (x, y): Spot, seen: &str, lost: &str) -> (Spot, Spot) {
    let beside = half(seen) + half(lost) + 1.0;
    match point {
        // On the cable into the node; the loss at the port itself.
        Point::Port { .. } => ((x, y + 20.0), (x, y)),
        Point::Veth { .. } => ((x, y), (x - beside - 5.0, y)),
        Point::Pod { .. } => ((x - 16.0, y), (x - 16.0 + beside, y)),
        _ => ((x, y - 10.0), (x, y + 10.0)),
    }
}

/// The text, shortened to what has room.
pub(super) fn fit(text: &str, room: f64, size: f64) -> String {
    let mut letters = 0;
    while number(letters + 1) * size * ADVANCE <= room {
        letters += 1;
    }
    if text.chars().count() <= letters {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(letters.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// The text in lines of at most so many letters, broken between words.
pub(super) fn wrap(text: &str, letters: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().map_or(0, |line| line.chars().count());
        if line > 0 && line + 1 + word.chars().count() > letters {
            lines.push("    ".to_owned());
        }
        if let Some(line) = lines.last_mut() {
            if !line.trim().is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

impl Canvas {
    // Writing to a string cannot fail: the results of `writeln!` below are let go.

    pub(super) fn text(
        &mut self,
        at: Spot,
        size: f64,
        anchor: Anchor,
        bold: bool,
        content: String,
    ) {
        self.texts.push(Text {
            x: at.0,
            y: at.1,
            size,
            anchor,
            bold,
            colour: "#000000",
            content,
        });
    }

    fn rect(&mut self, frame: Frame, radius: f64, style: &str) {
        let Frame {
            x,
            y,
            width,
            height,
        } = frame;
        let _ = writeln!(
            self.shapes,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="{radius}" {style}/>"#
        );
    }

    pub(super) fn path(&mut self, spots: &[Spot], style: &str) {
        let points: Vec<_> = spots
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = writeln!(
            self.shapes,
            r#"<polyline points="{}" fill="none" {style}/>"#,
            points.join(" ")
        );
    }

    fn cable(&mut self, spots: &[Spot]) {
        self.path(spots, r##"stroke="#000000" stroke-width="1.6""##);
    }

    /// The lines that stand for the bridges between the nodes.
    fn underlay(&mut self, picture: &Picture, layout: &Layout<'_>) {
        let topology = &picture.topology;
        self.segment(&topology.underlay, &layout.buses[0]);
        if let Some(beyond) = &topology.beyond {
            self.segment(beyond, &layout.buses[1]);
        }
    }

    /// A bridge that nodes hang on, in one or more rows.
    fn segment(&mut self, bridge: &Part, buses: &[f64]) {
        let right = self.width - GAP;
        for &y in buses {
            self.path(
                &[(GAP, y), (right, y)],
                r##"stroke="#8c8c8c" stroke-width="9" stroke-linecap="round""##,
            );
        }
        if let (Some(&first), Some(&last)) = (buses.first(), buses.last()) {
            if first < last {
                let x = GAP / 2.0;
                self.path(
                    &[(GAP, first), (x, first), (x, last), (GAP, last)],
                    r##"stroke="#8c8c8c" stroke-width="9" stroke-linejoin="round""##,
                );
            }
            let mtu = mtu(bridge.mtu);
            let name = format!("{} ({})  {mtu}", bridge.name, bridge.kind);
            let room = right - GAP;
            self.text(
                (right, first - 10.0),
                SIZE,
                Anchor::End,
                false,
                fit(name.trim_end(), room, SIZE),
            );
        }
    }

    fn node(&mut self, layout: &Layout<'_>, placed: &PlacedNode<'_>) {
        let frame = placed.frame;
        let style = r##"fill="#f6f6f6" stroke="#000000" stroke-width="1.4""##;
        self.rect(frame, 8.0, style);
        let name = fit(&placed.node.name, frame.width - 40.0, 15.0);
        self.text(
            (frame.right() - 14.0, frame.y + 20.0),
            15.0,
            Anchor::End,
            true,
            name,
        );

        let x = frame.x + INSET + layout.cable_x();
        if let Some(eth) = placed
            .boxes
            .first()
            .filter(|first| matches!(first.point, Point::Eth { .. }))
        {
            self.cable(&[(x, placed.bus), (x, eth.frame.y)]);
        }
        let foot = placed
            .boxes
            .last()
            .filter(|last| matches!(last.point, Point::Foot { .. }));
        if let (Some(foot), Some(below)) = (foot, placed.below) {
            self.cable(&[(x, foot.frame.bottom()), (x, below)]);
        }
        if let Some(port) = &placed.node.port {
            // Right of the cable, and of the ways along it.
            let beside = layout.text_x().max(layout.cable_x() + 7.0);
            let at = (frame.x + INSET + beside, frame.y - 4.0);
            let label = format!("port {}  {}", port.name, state(port));
            let room = frame.right() - at.0;
            self.text(
                at,
                SMALL,
                Anchor::Start,
                false,
                fit(label.trim_end(), room, SMALL),
            );
        }
        for pair in placed.boxes.windows(2) {
            // A daemon that only sets routes has no socket, and no device.
            if placed.node.tun.is_none() && matches!(pair[1].point, Point::Daemon { .. }) {
                continue;
            }
            self.link(x, &pair[0], &pair[1]);
        }
        self.bypass(placed);
        for part in &placed.boxes {
            self.part(layout, part);
        }
        for pod in &placed.pods {
            self.pod(layout, x, placed, pod);
        }
    }

    /// Between two boxes, one above the other.
    fn link(&mut self, x: f64, upper: &Placed<'_>, lower: &Placed<'_>) {
        let ends = [(x, upper.frame.bottom()), (x, lower.frame.y)];
        let label = match (upper.point, lower.point) {
            // What is not there leads nowhere.
            (Point::Eth { .. }, Point::Daemon { .. })
            | (Point::Daemon { .. }, Point::Tun { .. })
                if upper.part.off.is_some() || lower.part.off.is_some() =>
            {
                return;
            }
            (Point::Daemon { .. }, Point::Kernel { .. }) => return,
            (Point::Eth { .. }, Point::Daemon { .. }) => Some("UDP socket"),
            (Point::Daemon { .. }, Point::Tun { .. }) => Some("read, write"),
            // Nothing leads from the interface of a node into a bridge that it does not route to.
            (Point::Eth { .. }, Point::Bridge { .. }) => return,
            _ => None,
        };
        let Some(label) = label else {
            return self.cable(&ends);
        };
        self.path(
            &ends,
            r##"stroke="#000000" stroke-width="1.6" stroke-dasharray="3 3""##,
        );
        let at = (upper.frame.right() - 8.0, lower.frame.y - 9.0);
        self.text(at, SMALL, Anchor::End, false, label.to_owned());
    }

    /// The kernel reaches the underlay without the daemon, too.
    fn bypass(&mut self, placed: &PlacedNode<'_>) {
        let find = |wanted: Point| placed.boxes.iter().find(|part| part.point == wanted);
        let node = placed.node.number;
        let (Some(eth), Some(kernel)) = (find(Point::Eth { node }), find(Point::Kernel { node }))
        else {
            return;
        };
        if placed.node.daemon.is_none() && placed.node.tun.is_none() {
            return;
        }
        let x = placed.frame.right() - 15.0;
        let (from, to) = (kernel.frame, eth.frame);
        self.cable(&[
            (from.right(), from.middle()),
            (x, from.middle()),
            (x, to.middle()),
            (to.right(), to.middle()),
        ]);
    }

    fn part(&mut self, layout: &Layout<'_>, placed: &Placed<'_>) {
        let (part, frame) = (placed.part, placed.frame);
        let program = matches!(placed.point, Point::Daemon { .. });
        let fill = if program && part.off.is_none() {
            "#e4e4e4"
        } else {
            "#ffffff"
        };
        let dashes = dashes(part);
        let style = format!(r##"fill="{fill}" stroke="#000000" stroke-width="1.2"{dashes}"##);
        self.rect(frame, if program { 14.0 } else { 3.0 }, &style);
        self.inscribe(part, &part.name, frame, layout.text_x());
    }

    /// Name and kind at the left, MTU at the right, lines below.
    fn inscribe(&mut self, part: &Part, name: &str, frame: Frame, text_x: f64) {
        let x = frame.x + text_x;
        let right = frame.right() - 10.0;
        let room = right - x;
        let mtu = state(part);
        let y = frame.y + 18.0;
        let left = room - (number(mtu.chars().count()) + 1.0) * SIZE * ADVANCE;
        let name = fit(name, left, SIZE);
        let behind = (number(name.chars().count()) + 1.0) * SIZE * ADVANCE;
        self.text((x, y), SIZE, Anchor::Start, true, name);
        if left > behind && !part.kind.is_empty() {
            let kind = fit(&part.kind, left - behind, SIZE);
            self.text((x + behind, y), SIZE, Anchor::Start, false, kind);
        }
        if !mtu.is_empty() {
            self.text((right, y), SIZE, Anchor::End, false, mtu);
        }
        for (line, i) in part.lines.iter().zip(1..) {
            let at = (x, y + number(i) * LINE);
            self.text(at, SMALL, Anchor::Start, false, fit(line, room, SMALL));
        }
    }

    fn pod(&mut self, layout: &Layout<'_>, x: f64, node: &PlacedNode<'_>, placed: &PlacedPod<'_>) {
        let (pod, frame) = (placed.pod, placed.frame);
        let nothing = Part::default();
        let eth = pod.eth.as_ref().unwrap_or(&nothing);
        let dashes = dashes(eth);
        let style = format!(r##"fill="#ffffff" stroke="#000000" stroke-width="1.2"{dashes}"##);
        self.rect(frame, 10.0, &style);
        let name = match &pod.eth {
            None => format!("{}  no interface", pod.name),
            Some(eth) => format!("{} {}", pod.name, eth.name).trim_end().to_owned(),
        };
        self.inscribe(eth, &name, frame, layout.pod_text_x());
        let Some(veth) = &pod.veth else {
            return;
        };
        let y = frame.middle();
        let bridge = node
            .boxes
            .iter()
            .find(|part| matches!(part.point, Point::Bridge { .. }));
        let end = frame.x - 2.0;
        match bridge.filter(|_| pod.plugged) {
            Some(bridge) => self.cable(&[(x, bridge.frame.bottom()), (x, y), (end, y)]),
            None => self.cable(&[(end - 30.0, y), (end, y)]),
        }
        let clearance = layout.pod_clearance();
        let label = fit(&veth.name, 72.0, 10.0);
        self.text(
            (frame.x - 5.0, y - clearance),
            10.0,
            Anchor::End,
            false,
            label,
        );
        let state = state(veth);
        self.text(
            (frame.x - 5.0, y + clearance + 8.0),
            10.0,
            Anchor::End,
            false,
            state,
        );
    }

    fn way(&mut self, layout: &Layout<'_>, way: &Way, lane: usize) {
        let (line, spots) = layout.line(&way.points, lane);
        let (colour, dashes) = LOOKS[lane];
        let style = format!(
            r#"stroke="{colour}" stroke-width="4" stroke-linejoin="round" stroke-linecap="round" stroke-dasharray="{dashes}" stroke-opacity="0.85""#
        );
        self.path(&line, &style);
        self.arrows(&line, colour);
        for (index, &(point, spot)) in spots.iter().enumerate() {
            // A way may pass a point twice: its marks stand where it passes first.
            if spots[..index].iter().any(|(earlier, _)| *earlier == point) {
                continue;
            }
            let here = way.marks.iter().filter(|mark| mark.at == point);
            let (lost, seen): (Vec<&Mark>, _) = here.partition(|mark| mark.look == Look::Lost);
            let label = |marks: &[&Mark]| {
                let numbers: Vec<_> = marks.iter().map(|mark| mark.number).collect();
                joined(&numbers)
            };
            // The strongest counts for all that stand together.
            let look = match seen.iter().any(|mark| mark.look == Look::Seen) {
                true => Look::Seen,
                false => Look::Derived,
            };
            let (seen, lost) = (label(&seen), label(&lost));
            let (beside, crossed) = match seen.is_empty() || lost.is_empty() {
                true => (spot, spot),
                false => apart(point, spot, &seen, &lost),
            };
            for (spot, label, look) in [(beside, seen, look), (crossed, lost, Look::Lost)] {
                if !label.is_empty() {
                    self.mark(spot, &label, look, colour);
                }
            }
        }
    }

    pub(super) fn mark(&mut self, (x, y): Spot, label: &str, look: Look, colour: &str) {
        let half = half(label);
        let (fill, ink) = match look {
            Look::Seen => (colour, "#ffffff"),
            Look::Derived => ("#ffffff", colour),
            Look::Lost => ("#000000", "#ffffff"),
        };
        let _ = writeln!(
            self.marks,
            r#"<rect x="{:.1}" y="{:.1}" width="{:.1}" height="18" rx="9" fill="{fill}" stroke="{colour}" stroke-width="1.6"/><text x="{x:.1}" y="{:.1}" font-size="10" font-weight="bold" fill="{ink}" text-anchor="middle">{label}</text>"#,
            x - half,
            y - 9.0,
            2.0 * half,
            y + 3.6
        );
        if look == Look::Lost {
            let arm = half.max(9.0) + 5.0;
            let _ = writeln!(
                self.marks,
                r##"<path d="M{:.1} {:.1} L{:.1} {:.1} M{:.1} {:.1} L{:.1} {:.1}" stroke="#000000" stroke-width="3" stroke-opacity="0.8"/>"##,
                x - arm,
                y - 13.0,
                x - half + 3.0,
                y - 6.0,
                x + half - 3.0,
                y + 6.0,
                x + arm,
                y + 13.0
            );
        }
    }

    fn notes(&mut self, notes: &[String]) {
        if notes.is_empty() {
            return;
        }
        let room = self.width - 2.0 * GAP;
        let mut letters = 20;
        while number(letters + 1) * SIZE * ADVANCE <= room {
            letters += 1;
        }
        let mut y = self.height + 12.0;
        for line in notes.iter().flat_map(|note| wrap(note, letters)) {
            self.text((GAP, y), SIZE, Anchor::Start, false, fit(&line, room, SIZE));
            y += LINE + 1.0;
        }
        self.height = y + 4.0;
    }
}

/// The MTU, or what the part is instead of being on.
fn state(part: &Part) -> String {
    part.off.clone().unwrap_or_else(|| mtu(part.mtu))
}

/// How the edge of a part is drawn that is not on.
fn dashes(part: &Part) -> &'static str {
    if part.off.is_some() {
        r#" stroke-dasharray="6 4""#
    } else {
        ""
    }
}

fn mtu(mtu: Option<u32>) -> String {
    mtu.map_or(String::new(), |mtu| format!("MTU {mtu}"))
}

/// Numbers in a few letters: `3`, `3-5`, `3,7`.
fn joined(numbers: &[u16]) -> String {
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    numbers.dedup();
    let runs = numbers.chunk_by(|a, b| a + 1 == *b);
    let runs: Vec<_> = runs
        .map(|run| match run {
            [first, .., last] => format!("{first}-{last}"),
            [one] => one.to_string(),
            [] => String::new(),
        })
        .collect();
    runs.join(",")
}
