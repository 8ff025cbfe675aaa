//! Where everything stands: boxes, and the lines that ways follow. All lengths are in the units of the SVG's viewBox,
//! of which a page's width has about 1200.

use super::{Node, Part, Picture, Pod, Point};

/// Width of a node with at most two ways.
const NODE: f64 = 384.0;
/// Between nodes, and around the whole.
pub(super) const GAP: f64 = 18.0;
/// From a node's left edge to its boxes.
pub(super) const INSET: f64 = 12.0;
/// From a node's right edge to its boxes: the cable that passes the daemon by runs there.
const BYPASS: f64 = 30.0;
/// Between the boxes of a node: words, and above them the ways that pass the daemon by.
const STEP: f64 = 34.0;
/// From a pod's box to the line that it hangs on: the name of its cable stands there.
const BRANCH: f64 = 78.0;
const HEADLINE: f64 = 52.0;
/// From the underlay to the nodes on it.
const DROP: f64 = 34.0;
const NODE_HEAD: f64 = 30.0;
/// Of a line of text in a box.
pub(super) const LINE: f64 = 15.0;
const BOX_HEAD: f64 = 26.0;
const BOX_FOOT: f64 = 6.0;
/// Around the lines beside a pod: even one without addresses has room for them.
const POD_MARGIN: f64 = 44.0;
/// Between the lines of two ways. A third one makes nodes wider by it.
const LANE: f64 = 36.0;
/// Between them where they run sideways to a pod.
const POD_LANE: f64 = 22.0;
/// Between the line that goes up to a bridge and the one that goes down from there again.
const TURN: f64 = 13.0;
/// The ways that have lines of their own.
pub(super) const LANES: usize = 3;

pub(super) type Spot = (f64, f64);

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Frame {
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

impl Frame {
    pub(super) fn bottom(self) -> f64 {
        self.y + self.height
    }

    pub(super) fn right(self) -> f64 {
        self.x + self.width
    }

    pub(super) fn middle(self) -> f64 {
        self.y + self.height / 2.0
    }
}

/// A box and what is in it.
pub(super) struct Placed<'a> {
    pub part: &'a Part,
    pub frame: Frame,
    pub point: Point,
}

pub(super) struct PlacedPod<'a> {
    pub pod: &'a Pod,
    pub frame: Frame,
}

pub(super) struct PlacedNode<'a> {
    pub node: &'a Node,
    pub frame: Frame,
    /// Of the underlay's line that it hangs on.
    pub bus: f64,
    /// Of the second segment's line, which a router stands on.
    pub below: Option<f64>,
    /// From top to bottom.
    pub boxes: Vec<Placed<'a>>,
    pub pods: Vec<PlacedPod<'a>>,
}

/// All of a picture but the notes, placed.
pub(super) struct Layout<'a> {
    pub nodes: Vec<PlacedNode<'a>>,
    pub width: f64,
    /// Of what is placed.
    pub height: f64,
    /// The underlay's lines: one per row of nodes, at these heights; those of the second segment apart.
    pub buses: [Vec<f64>; 2],
    lanes: usize,
    node_width: f64,
}

pub(super) fn number(count: usize) -> f64 {
    f64::from(u16::try_from(count).unwrap_or(u16::MAX))
}

impl<'a> Layout<'a> {
    pub(super) fn of(picture: &'a Picture) -> Self {
        let nodes = &picture.topology.nodes;
        let of = |stranger: bool, beyond: bool| -> Vec<&Node> {
            let same = |node: &&Node| (node.stranger, node.beyond) == (stranger, beyond);
            nodes.iter().filter(same).collect()
        };
        let (near, strangers, far) = (of(false, false), of(true, false), of(false, true));
        let across = match near.len().max(far.len()) {
            count @ 0..=3 => count.max(1),
            4 => 2,
            _ => 3,
        };
        let lanes = picture.ways.len().min(LANES);
        let node_width = NODE + LANE * number(lanes.saturating_sub(2));
        let mut layout = Layout {
            nodes: Vec::new(),
            width: GAP + number(across) * (node_width + GAP),
            height: HEADLINE,
            buses: [Vec::new(), Vec::new()],
            lanes,
            node_width,
        };
        let rows = near.chunks(across).chain(strangers.chunks(across));
        for row in rows.chain(far.chunks(across)) {
            let bus = layout.height + 24.0;
            let top = bus + DROP;
            let mut bottom = top;
            for (&node, column) in row.iter().zip(0..) {
                let x = GAP + number(column) * (node_width + GAP);
                let placed = layout.node(node, x, top, bus);
                bottom = bottom.max(placed.frame.bottom());
                layout.nodes.push(placed);
            }
            // All of a row are of the same height, whatever their pods.
            let from = layout.nodes.len() - row.len();
            for placed in &mut layout.nodes[from..] {
                placed.frame.height = bottom - top;
            }
            let segment = usize::from(row.iter().any(|node| node.beyond));
            layout.buses[segment].push(bus);
            layout.height = bottom + GAP;
        }
        let below = layout.buses[1].first().copied();
        for placed in &mut layout.nodes {
            placed.below = below.filter(|_| placed.node.foot.is_some());
        }
        layout
    }

    fn node(&self, node: &'a Node, x: f64, top: f64, bus: f64) -> PlacedNode<'a> {
        let n = node.number;
        let mut y = top + NODE_HEAD;
        let mut boxes = Vec::new();
        let parts = [
            (&node.eth, Point::Eth { node: n }),
            (&node.daemon, Point::Daemon { node: n }),
            (&node.tun, Point::Tun { node: n }),
            (&node.kernel, Point::Kernel { node: n }),
            (&node.bridge, Point::Bridge { node: n }),
            (&node.foot, Point::Foot { node: n }),
        ];
        for (part, point) in parts {
            if let Some(part) = part {
                let frame = Frame {
                    x: x + INSET,
                    y,
                    width: self.node_width - INSET - BYPASS,
                    height: box_height(part),
                };
                y = frame.bottom() + STEP;
                boxes.push(Placed { part, frame, point });
            }
        }
        let mut pods = Vec::new();
        let left = x + INSET + self.lane_x(LANES) + BRANCH;
        y -= STEP - 14.0;
        for pod in &node.pods {
            let frame = Frame {
                x: left,
                y,
                width: x + self.node_width - BYPASS - left,
                height: pod
                    .eth
                    .as_ref()
                    .map_or(0.0, box_height)
                    .max(self.pod_least()),
            };
            y = frame.bottom() + 10.0;
            pods.push(PlacedPod { pod, frame });
        }
        PlacedNode {
            node,
            frame: Frame {
                x,
                y: top,
                width: self.node_width,
                height: y + 4.0 - top,
            },
            bus,
            below: None,
            boxes,
            pods,
        }
    }

    /// How far right of a box's left edge a way runs. From the last lane on: the last.
    fn lane_x(&self, lane: usize) -> f64 {
        let last = self.lanes.saturating_sub(1);
        22.0 + LANE * number(lane.min(last))
    }

    /// The height of a way beside or above the middle of its line.
    fn sideways(&self, lane: usize) -> f64 {
        let last = self.lanes.saturating_sub(1);
        POD_LANE * (number(lane.min(last)) - number(last) / 2.0)
    }

    /// The least height of a pod's box.
    fn pod_least(&self) -> f64 {
        POD_MARGIN + POD_LANE * number(self.lanes.max(2) - 1)
    }

    /// Where the text of a box begins, right of its left edge: behind the marks.
    pub(super) fn text_x(&self) -> f64 {
        if self.lanes == 0 {
            14.0
        } else {
            self.lane_x(LANES) + 24.0
        }
    }

    /// The same of a pod's box.
    pub(super) fn pod_text_x(&self) -> f64 {
        if self.lanes == 0 { 10.0 } else { 42.0 }
    }

    /// How far above and below the line to a pod text has to stay: marks stand on it.
    pub(super) fn pod_clearance(&self) -> f64 {
        match self.lanes {
            0 => 4.0,
            lanes => POD_LANE * number(lanes - 1) / 2.0 + 12.5,
        }
    }

    /// Where the cables between a node's boxes run, right of their left edges: in the middle of all ways.
    pub(super) fn cable_x(&self) -> f64 {
        f64::midpoint(self.lane_x(0), self.lane_x(LANES))
    }

    fn node_of(&self, point: Point) -> Option<&PlacedNode<'a>> {
        let number = point.node()?;
        self.nodes.iter().find(|node| node.node.number == number)
    }

    /// Where the lane passes the point.
    pub(super) fn spot(&self, point: Point, lane: usize) -> Option<Spot> {
        let node = self.node_of(point)?;
        match point {
            Point::Pod { pod, .. } | Point::Veth { pod, .. } => {
                let placed = node.pods.iter().find(|placed| placed.pod.number == pod)?;
                let y = placed.frame.middle() + self.sideways(lane);
                let x = match point {
                    Point::Pod { .. } => placed.frame.x + 22.0,
                    _ => placed.frame.x - 22.0,
                };
                Some((x, y))
            }
            Point::Port { .. } => Some(self.on_bus(node, lane)),
            _ => {
                let placed = node.boxes.iter().find(|placed| placed.point == point)?;
                Some((placed.frame.x + self.lane_x(lane), placed.frame.middle()))
            }
        }
    }

    /// Where a way comes from the underlay's line to a node.
    fn on_bus(&self, node: &PlacedNode<'_>, lane: usize) -> Spot {
        let x = node.frame.x + INSET + self.lane_x(lane);
        (x, node.bus + self.sideways(lane) / 2.0)
    }

    /// The corners between two points of the underlay: around the nodes if these stand in different rows.
    fn along_the_bus(&self, from: Spot, to: Spot, lane: usize) -> Vec<Spot> {
        if (from.1 - to.1).abs() <= POD_LANE {
            return Vec::new();
        }
        let x = GAP / 2.0 + self.sideways(lane) / 6.0;
        vec![(x, from.1), (x, to.1)]
    }

    /// The line of a way, and where its marks can be set.
    pub(super) fn line(&self, points: &[Point], lane: usize) -> (Vec<Spot>, Vec<(Point, Spot)>) {
        let mut line: Vec<Spot> = Vec::new();
        let mut spots = Vec::new();
        let is_bus = |point: Point| matches!(point, Point::Underlay | Point::Beyond);
        let there = |point: &Point| is_bus(*point) || self.spot(*point, lane).is_some();
        let points: Vec<Point> = points.iter().copied().filter(there).collect();
        for (i, &point) in points.iter().enumerate() {
            let before = points[..i].last().copied();
            let after = points.get(i + 1).copied();
            if is_bus(point) {
                if let Some(spot) = self.underlay(before, after, lane, &mut line) {
                    spots.push((point, spot));
                }
            } else if let Some(spot) = self.spot(point, lane) {
                self.connect(&points[..i], point, spot, lane, &mut line);
                line.push(spot);
                spots.push((point, spot));
            }
        }
        (line, spots)
    }

    /// The corners between the last of the points before and the next.
    fn connect(&self, before: &[Point], to: Point, spot: Spot, lane: usize, line: &mut Vec<Spot>) {
        let (Some(&from), Some(&(x, y))) = (before.last(), line.last()) else {
            return;
        };
        let Some(node) = self.node_of(to) else {
            return;
        };
        let lane_x = node.frame.x + INSET + self.lane_x(lane);
        if let (Point::Port { .. }, Point::Port { .. }) = (from, to) {
            let last = line.last().copied().unwrap_or(spot);
            line.extend(self.along_the_bus(last, spot, lane));
            return;
        }
        let pod = |point| match point {
            Point::Pod { pod, .. } | Point::Veth { pod, .. } => Some(pod),
            _ => None,
        };
        match (pod(from), pod(to)) {
            (Some(from), Some(to)) if from == to => {}
            (Some(_), Some(_)) => line.extend([(lane_x, y), (lane_x, spot.1)]),
            (Some(_), None) => line.push((lane_x, y)),
            // What came up here goes down beside that.
            (None, Some(_))
                if before
                    .iter()
                    .any(|p| pod(*p).is_some() && p.node() == to.node()) =>
            {
                line.extend([(x + TURN, y), (x + TURN, spot.1)]);
            }
            (None, Some(_)) => line.push((lane_x, spot.1)),
            (None, None) => line.extend(self.past_the_daemon(node, from, to, lane)),
        }
    }

    /// The corners of what the kernel sends to the underlay, or gets from there, itself.
    fn past_the_daemon(
        &self,
        node: &PlacedNode<'_>,
        from: Point,
        to: Point,
        lane: usize,
    ) -> Vec<Spot> {
        let frame = |wanted| {
            let placed = node.boxes.iter().find(|placed| placed.point == wanted);
            placed.map(|placed| placed.frame)
        };
        let upward = match (from, to) {
            (Point::Kernel { .. }, Point::Eth { .. }) => true,
            (Point::Eth { .. }, Point::Kernel { .. }) => false,
            _ => return Vec::new(),
        };
        let (lower, upper) = if upward { (from, to) } else { (to, from) };
        let (Some(lower), Some(upper)) = (frame(lower), frame(upper)) else {
            return Vec::new();
        };
        if node.node.tun.is_none() && node.node.daemon.is_none() {
            return Vec::new();
        }
        let left = lower.x + self.lane_x(lane);
        // One around the other, so that none lies on another or crosses it.
        let apart = self.sideways(lane) * 0.3;
        let right = node.frame.right() - BYPASS / 2.0 + apart;
        // Above the words that stand between the boxes there.
        let (below, above) = (lower.y - STEP / 2.0 + apart, upper.bottom() + 9.0 - apart);
        let mut corners = vec![(left, below), (right, below), (right, above), (left, above)];
        if !upward {
            corners.reverse();
        }
        corners
    }

    /// From one node to another along the underlay; or between the underlay itself and a node.
    fn underlay(
        &self,
        before: Option<Point>,
        after: Option<Point>,
        lane: usize,
        line: &mut Vec<Spot>,
    ) -> Option<Spot> {
        let end = |point: Point| {
            let node = self.node_of(point)?;
            let (x, y) = self.on_bus(node, lane);
            match point {
                Point::Foot { .. } => Some((x, y - node.bus + node.below?)),
                _ => Some((x, y)),
            }
        };
        let (from, to) = (before.and_then(end), after.and_then(end));
        let (from, to) = match (from, to) {
            (Some(from), Some(to)) => (from, to),
            (Some(from), None) => (from, (from.0 + 120.0, from.1)),
            (None, Some(to)) => ((to.0 + 120.0, to.1), to),
            (None, None) => return None,
        };
        line.push(from);
        let corners = self.along_the_bus(from, to, lane);
        if let [corner, _] = corners[..] {
            line.extend(corners);
            line.push(to);
            return Some((f64::midpoint(from.0, corner.0), from.1));
        }
        line.push(to);
        // Counted from the left, whichever way it goes: marks of two ways never meet.
        let part = [0.33, 0.67, 0.5][lane.min(LANES - 1)];
        Some((from.0.min(to.0) + (to.0 - from.0).abs() * part, from.1))
    }
}

fn box_height(part: &Part) -> f64 {
    BOX_HEAD + number(part.lines.len()) * LINE + BOX_FOOT
}
