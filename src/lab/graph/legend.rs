//! What makes a picture with ways readable by itself: arrow heads, words beside points, a legend, and the outcome.

use std::fmt::Write as _;

use super::layout::{GAP, INSET, LINE, Layout, Spot, number};
use super::svg::{ADVANCE, Anchor, Canvas, LOOKS, SIZE, SMALL, Text, lanes, wrap};
use super::{Look, Picture, Point, Way};

/// Of a warning.
const WARNING: &str = "#b00020";
/// Shorter pieces of a line have no room for an arrow head beside the marks.
const LEAST: f64 = 40.0;

impl Canvas {
    /// Arrow heads in the middle of the longer pieces of a line.
    pub(super) fn arrows(&mut self, line: &[Spot], colour: &str) {
        for pair in line.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            let (dx, dy) = (to.0 - from.0, to.1 - from.1);
            let length = dx.hypot(dy);
            if length < LEAST {
                continue;
            }
            let (ux, uy) = (dx / length, dy / length);
            let middle = (f64::midpoint(from.0, to.0), f64::midpoint(from.1, to.1));
            let tip = (middle.0 + ux * 8.0, middle.1 + uy * 8.0);
            let back = (middle.0 - ux * 6.0, middle.1 - uy * 6.0);
            let _ = writeln!(
                self.shapes,
                r#"<polygon points="{:.1},{:.1} {:.1},{:.1} {:.1},{:.1}" fill="{colour}"/>"#,
                tip.0,
                tip.1,
                back.0 - uy * 7.0,
                back.1 + ux * 7.0,
                back.0 + uy * 7.0,
                back.1 - ux * 7.0,
            );
        }
    }

    /// The words beside points of a way.
    pub(super) fn tags(&mut self, layout: &Layout<'_>, way: &Way) {
        for (point, words) in &way.tags {
            let node = point
                .node()
                .and_then(|n| layout.nodes.iter().find(|node| node.node.number == n));
            let place = match (*point, node) {
                (Point::Pod { pod, .. } | Point::Veth { pod, .. }, Some(node)) => {
                    let placed = node.pods.iter().find(|placed| placed.pod.number == pod);
                    placed.map(|placed| {
                        (
                            placed.frame.right() - 8.0,
                            placed.frame.bottom() - 4.0,
                            Anchor::End,
                        )
                    })
                }
                (Point::Port { .. }, Some(node)) => {
                    let x = node.frame.x + INSET + layout.text_x();
                    Some((x, node.frame.y - 17.0, Anchor::Start))
                }
                (point, Some(node)) => {
                    let placed = node.boxes.iter().find(|placed| placed.point == point);
                    placed.map(|placed| {
                        let frame = placed.frame;
                        (
                            frame.x + layout.text_x(),
                            frame.bottom() + 17.0,
                            Anchor::Start,
                        )
                    })
                }
                (Point::Underlay | Point::Beyond, None) => layout.buses
                    [usize::from(*point == Point::Beyond)]
                .first()
                .map(|bus| (GAP, bus - 12.0, Anchor::Start)),
                _ => None,
            };
            if let Some((x, y, anchor)) = place {
                self.texts.push(Text {
                    x,
                    y,
                    size: SMALL,
                    anchor,
                    bold: true,
                    colour: WARNING,
                    content: words.clone(),
                });
            }
        }
    }

    /// What the lines and marks mean, of those that occur.
    pub(super) fn legend(&mut self, picture: &Picture) {
        let named = picture.ways.iter().zip(lanes());
        // What never left its first point has no line.
        let drawn = |way: &Way| !way.name.is_empty() && way.points.len() > 1;
        let named: Vec<_> = named.filter(|(way, _)| drawn(way)).collect();
        if picture.ways.iter().all(|way| way.name.is_empty()) {
            return;
        }
        let mut at = (GAP, self.height + 12.0);
        for (way, lane) in &named {
            let (colour, dashes) = LOOKS[*lane];
            let (x, y) = self.entry(&mut at, 62.0, &way.name);
            let line = [(x, y - 4.0), (x + 54.0, y - 4.0)];
            let style =
                format!(r#"stroke="{colour}" stroke-width="4" stroke-dasharray="{dashes}""#);
            self.path(&line, &style);
            self.arrows(&line, colour);
        }
        let marks = || picture.ways.iter().flat_map(|way| &way.marks);
        for (look, words) in [
            (Look::Seen, "seen there: a capture or a counter"),
            (Look::Derived, "read from a table"),
            (Look::Lost, "lost there"),
        ] {
            if marks().any(|mark| mark.look == look) {
                let (x, y) = self.entry(&mut at, 34.0, words);
                self.mark((x + 12.0, y - 4.0), "n", look, LOOKS[0].0);
            }
        }
        self.height = at.1 + LINE;
    }

    /// Words of the legend behind room for a sample, on the next line if this one is full; where the sample stands.
    fn entry(&mut self, next: &mut Spot, sample: f64, words: &str) -> Spot {
        let width = sample + number(words.chars().count()) * SMALL * ADVANCE;
        if next.0 > GAP && next.0 + width > self.width - GAP {
            *next = (GAP, next.1 + LINE + 6.0);
        }
        let at = *next;
        self.text(
            (at.0 + sample, at.1),
            SMALL,
            Anchor::Start,
            false,
            words.to_owned(),
        );
        next.0 += width + 22.0;
        at
    }

    /// What came of it.
    pub(super) fn outcome(&mut self, outcome: &str) {
        if outcome.is_empty() {
            return;
        }
        let room = self.width - 2.0 * GAP;
        let mut letters = 20;
        while number(letters + 1) * SIZE * ADVANCE <= room {
            letters += 1;
        }
        let mut y = self.height + 8.0;
        for line in wrap(outcome, letters) {
            self.text((GAP, y), SIZE, Anchor::Start, true, line);
            y += LINE + 1.0;
        }
        self.height = y - 6.0;
    }
}
