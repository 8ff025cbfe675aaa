//! A trace drawn on a topology: the ways there and back, with the numbers of the rows where the packet was seen.

use anyhow::Result;

use super::tables::{Looker, PATIENCE};
use super::text;
use super::world::{Role, World};
use super::{Direction, Evidence, Leg, Row, Source, Step, Trace};
use crate::lab::graph::{self, Look, Mark, Node, Part, Picture, Pod, Point, Topology, Way};
use crate::observe::client;

/// Draws the trace on the topology that it went through.
#[must_use]
pub fn picture(trace: &Trace, topology: Topology) -> Picture {
    let mut ways: Vec<Way> = Vec::new();
    for (leg, name) in [
        (Leg::Request, "the echo request"),
        (Leg::Reply, "the echo reply"),
        (Leg::Error, "an ICMP error about it"),
    ] {
        let rows: Vec<_> = trace.rows.iter().filter(|row| row.leg == leg).collect();
        // Each error is a packet of its own, and begins with a row that says who sends it.
        let begins = |row: &&Row| leg == Leg::Error && row.step == Step::Send;
        let (first, mut name) = (ways.len(), name);
        for rows in rows.chunk_by(|_, next| !begins(next)) {
            let way = way(trace, rows, name);
            let mut same = ways[first..].iter_mut();
            match same.find(|known| known.points == way.points) {
                Some(known) => known.marks.extend(way.marks),
                None => ways.push(way),
            }
            name = "";
        }
    }
    let (source, destination) = (&trace.source, &trace.destination);
    let name = source.name.as_deref().unwrap_or("somebody");
    let from = if trace.spoofed {
        format!("{name}, which claims to be {},", source.ip)
    } else {
        format!("{name} ({})", source.ip)
    };
    let mut notes = vec![format!(
        "One marked packet of {} bytes from {from} to {}. TTL and bytes are the outermost IP header's.",
        trace.size, destination.ip
    )];
    let shown = trace.rows.iter().filter(|row| is_marked(row, &trace.rows));
    notes.extend(shown.map(note));
    Picture {
        topology,
        ways,
        outcome: text::outcome(trace),
        notes,
    }
}

/// Rows with a number in the drawing: where it was seen, what daemons did, which of their and the nodes' kernels' tables
/// decided, and what a bridge did without being seen at it.
fn is_marked(row: &Row, all: &[Row]) -> bool {
    match row.step {
        Step::Device | Step::Lost | Step::Encapsulation => true,
        // What begins or ends within a node was not seen at that end.
        Step::Delivery => !shares_point(row, all, Step::Device),
        // A table that decided, where the drawing has a box for it.
        Step::Route => row.routing.is_some() && matches!(row.point, Some(Point::Kernel { .. })),
        Step::Lease => row.lease.is_some(),
        Step::Send => row.leg == Leg::Reply && !shares_point(row, all, Step::Device),
        Step::Receive => !shares_point(row, all, Step::Lost),
        Step::Bridge => row.point.is_some() && !shares_point(row, all, Step::Device),
        _ => false,
    }
}

/// There is a row of this step where this one is drawn.
fn shares_point(row: &Row, all: &[Row], step: Step) -> bool {
    let same = |other: &&Row| other.leg == row.leg && other.point == row.point;
    all.iter().filter(same).any(|other| other.step == step)
}

fn way(trace: &Trace, rows: &[&Row], name: &str) -> Way {
    let mut way = Way {
        name: name.to_owned(),
        ..Way::default()
    };
    for (row, next) in rows.iter().zip(rows.iter().skip(1).map(Some).chain([None])) {
        let Some(point) = start(row, next.copied()) else {
            continue;
        };
        if way.points.last() != Some(&point) {
            way.points.push(point);
        }
        if trace.spoofed && row.number == 1 {
            let lie = format!("claims to be {}", trace.source.ip);
            way.tags.push((point, lie));
        }
        if is_marked(row, &trace.rows) {
            way.marks.push(Mark {
                at: point,
                number: u16::try_from(row.number).unwrap_or(u16::MAX),
                look: match (row.step, row.evidence) {
                    (Step::Lost, _) => Look::Lost,
                    (_, Evidence::Observed) => Look::Seen,
                    (_, Evidence::Derived) => Look::Derived,
                },
            });
        }
        if let (Step::Lost, Some(loss)) = (row.step, &trace.loss) {
            way.tags.push((point, format!("✗ lost: {}", loss.reason)));
        }
    }
    way
}

/// Where a row is drawn. What begins by arriving was not sent by the kernel that it arrives at, though its first row is
/// told there: a daemon wrote it, or it came from where we cannot look.
fn start(row: &Row, next: Option<&Row>) -> Option<Point> {
    let arrives = next.is_some_and(|next| next.direction == Some(Direction::In));
    match (row.step, row.source, row.point?) {
        (Step::Send, Source::Daemon, point) => point.node().map(|node| Point::Daemon { node }),
        (Step::Send, _, Point::Kernel { .. }) if row.leg == Leg::Error && arrives => None,
        (_, _, point) => Some(point),
    }
}

fn note(row: &Row) -> String {
    let (number, place) = (row.number, &row.place);
    match (row.direction, &row.device, row.ttl, row.length) {
        (Some(direction), Some(device), Some(ttl), Some(length)) => {
            let way = match direction {
                Direction::Out => "out by",
                Direction::In => "in by",
            };
            let fragments = match row.frames.len() {
                1 => String::new(),
                n => format!(", the first of {n} fragments"),
            };
            format!("{number} {place}: {way} {device}, TTL {ttl}, {length} bytes{fragments}")
        }
        _ => format!("{number} {place}: {}", row.text),
    }
}

/// This host as a topology: its daemon with device and underlay interface, a bridge, and what hangs on it; with the routes
/// that the trace is about.
///
/// # Errors
/// When its kernel refuses to answer.
pub fn of_host(world: &World, trace: &Trace) -> Result<Topology> {
    let mut looker = Looker::new(world)?;
    let status = world.places[0]
        .socket
        .as_ref()
        .and_then(|socket| client::status_within(socket, PATIENCE).ok());
    let text = |path: &str| {
        status
            .as_ref()
            .and_then(|s| s.pointer(path)?.as_str().map(str::to_owned))
    };
    let (device, underlay) = (text("/device/name"), text("/device/underlay"));
    let kernel = looker.look(0)?;
    let part = |name: &str, kind: &str| {
        let link = kernel.links.iter().find(|link| link.name == name)?;
        let addresses = kernel
            .addresses
            .iter()
            .filter(|a| a.ifindex == link.index && a.scope == 0);
        let addresses = addresses.map(|a| format!("{}/{}", a.ip, a.prefix_len));
        Some(
            Part::new(name, kind)
                .mtu(link.mtu)
                .lines(addresses)
                .on(link.up),
        )
    };
    let bridge = kernel
        .links
        .iter()
        .find(|link| link.kind.as_deref() == Some("bridge"));
    let about = [trace.source.ip, trace.destination.ip];
    let routes = graph::routes(&kernel.routes, &kernel.links, &about);
    let pods = world
        .places
        .iter()
        .enumerate()
        .filter(|(_, place)| place.role == Role::Guest);
    let pods = pods.filter_map(|(index, place)| {
        Some(Pod {
            number: u8::try_from(index).ok()?,
            name: place.name.clone(),
            eth: Some(Part::new("eth0", "")),
            veth: Some(Part::new("veth", "")),
            plugged: bridge.is_some(),
        })
    });
    Ok(Topology {
        title: "this host".into(),
        underlay: Part::new("the underlay", "not seen from here"),
        beyond: None,
        nodes: vec![Node {
            number: 1,
            name: text("/node").unwrap_or_else(|| "this host".into()),
            eth: underlay.and_then(|name| part(&name, "")),
            daemon: status.is_some().then(|| Part::new("overlayd", "leases")),
            tun: device.and_then(|name| part(&name, "TUN")),
            kernel: Some(Part::new("kernel", "routes").lines(routes)),
            bridge: bridge.and_then(|link| part(&link.name, "bridge")),
            pods: pods.collect(),
            ..Node::default()
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::super::{EndName, Outcome};
    use super::*;

    fn row(step: Step, source: Source, direction: Option<Direction>, point: Point) -> Row {
        Row {
            number: 1,
            leg: Leg::Error,
            place: "node1".into(),
            device: None,
            direction,
            step,
            evidence: source.evidence(),
            source,
            text: String::new(),
            details: Vec::new(),
            ttl: None,
            length: None,
            headers: Vec::new(),
            encapsulated: false,
            frames: Vec::new(),
            routing: None,
            lease: None,
            checks: Vec::new(),
            point: Some(point),
        }
    }

    fn points(rows: Vec<Row>) -> Vec<Point> {
        let trace = trace(rows);
        let rows: Vec<_> = trace.rows.iter().collect();
        way(&trace, &rows, "").points
    }

    fn trace(rows: Vec<Row>) -> Trace {
        let end = || EndName {
            name: None,
            ip: [10, 244, 1, 2].into(),
        };
        Trace {
            version: 1,
            lab: None,
            source: end(),
            sender_ip: Some([10, 244, 1, 2].into()),
            destination: end(),
            spoofed: false,
            size: 84,
            dont_fragment: false,
            token: String::new(),
            outcome: Outcome::Lost,
            loss: None,
            rows,
            unseen: Vec::new(),
            unreachable: Vec::new(),
            hanging: Vec::new(),
            restart: String::new(),
        }
    }

    /// Each error is a packet of its own: two that go the same way are one line with the numbers of both, a third that goes
    /// another way is another line.
    #[test]
    fn errors_are_not_joined_end_to_end() {
        let node = 1;
        let error = |device| {
            [
                row(Step::Send, Source::Kernel, None, Point::Kernel { node }),
                row(Step::Device, Source::Capture, Some(Direction::Out), device),
            ]
        };
        let (eth, tun) = (Point::Eth { node }, Point::Tun { node });
        let mut rows = [error(eth), error(eth), error(tun)].concat();
        for (row, number) in rows.iter_mut().zip(1..) {
            row.number = number;
        }
        let drawn = picture(&trace(rows), Topology::default()).ways;
        let seen: Vec<_> = drawn
            .iter()
            .map(|way| {
                let numbers: Vec<_> = way.marks.iter().map(|mark| mark.number).collect();
                (way.points.len(), numbers, way.name.is_empty())
            })
            .collect();
        assert_eq!(seen, [(2, vec![2, 4], false), (2, vec![6], true)]);
    }

    #[test]
    fn an_error_begins_where_it_is_made() {
        let node = 1;
        let (kernel, tun, eth) = (
            Point::Kernel { node },
            Point::Tun { node },
            Point::Eth { node },
        );
        let begun = |source, direction, device| {
            points(vec![
                row(Step::Send, source, None, kernel),
                row(Step::Device, Source::Capture, Some(direction), device),
                row(Step::Route, Source::Kernel, None, kernel),
            ])
        };
        // By the daemon: not from the kernel up into the device and back.
        let made = begun(Source::Daemon, Direction::In, tun);
        assert_eq!(made, [Point::Daemon { node }, tun, kernel]);
        // By somebody whom we do not see.
        assert_eq!(begun(Source::Kernel, Direction::In, eth), [eth, kernel]);
        // By the kernel itself.
        let made = begun(Source::Kernel, Direction::Out, eth);
        assert_eq!(made[..2], [kernel, eth]);
    }
}
