//! Goodput against packet size as an SVG picture that survives a black-and-white printer: curves differ in dashes and
//! marks, and each is named.

use std::fmt::{self, Write as _};

use encap::Family;

use super::overhead::{Budget, MIN_IPV6_MTU};

const WIDTH: f64 = 1120.0;
const HEIGHT: f64 = 760.0;
const TOP: f64 = 90.0;
const PANEL_HEIGHT: f64 = 430.0;
const LEFT: f64 = 80.0;
const GAP: f64 = 60.0;
const LEGEND: f64 = TOP + PANEL_HEIGHT + 85.0;
/// The smallest packet that is drawn, in bytes: every block of WireGuard's begins at a multiple of 16.
const SMALLEST: usize = 64;

/// Colour, dashes, mark.
type Look = (&'static str, &'static str, Mark);

#[derive(Clone, Copy)]
enum Mark {
    None,
    Circle,
    Dot,
    Square,
    Triangle,
    Cross,
}

/// How the curve of the encapsulation is drawn; Geneve's is VXLAN's.
fn look(name: &str) -> Look {
    match name {
        "none" => ("#000000", "", Mark::None),
        "ipip" => ("#555555", "2 4", Mark::Triangle),
        "gre" => ("#7a4f00", "10 4", Mark::Cross),
        "udp" => ("#0050a0", "", Mark::Circle),
        "vxlan" => ("#b00020", "12 4 3 4", Mark::Square),
        _ => ("#1b6e1b", "5 4", Mark::Dot),
    }
}

fn label(name: &str) -> &str {
    match name {
        "none" => "no encapsulation",
        "ipip" => "IPIP",
        "gre" => "GRE",
        "udp" => "flannel udp",
        "vxlan" => "VXLAN, Geneve",
        _ => "WireGuard",
    }
}

/// Draws the picture for a link MTU in bytes.
#[must_use]
pub fn goodput(link_mtu: u16) -> String {
    let mut svg = String::new();
    // Writing to a string cannot fail.
    let _ = draw(link_mtu, &mut svg);
    svg
}

/// A coordinate system: packet sizes in bytes to the right, by powers of two; goodput upward.
struct Panel {
    left: f64,
    width: f64,
    largest: f64,
}

#[expect(clippy::cast_precision_loss, reason = "packet lengths have 16 bits")]
fn number(bytes: usize) -> f64 {
    bytes as f64
}

impl Panel {
    fn x(&self, packet: usize) -> f64 {
        let smallest = number(SMALLEST);
        self.left + self.width * (number(packet) / smallest).ln() / (self.largest / smallest).ln()
    }

    fn y(share: f64) -> f64 {
        TOP + PANEL_HEIGHT * (1.0 - share)
    }
}

fn draw(link_mtu: u16, svg: &mut String) -> fmt::Result {
    let budgets: Vec<_> = Budget::all(link_mtu)
        .filter(|budget| budget.name() != "geneve")
        .collect();
    let both = usize::from(link_mtu) >= MIN_IPV6_MTU;
    let families: &[Family] = if both {
        &[Family::V4, Family::V6]
    } else {
        &[Family::V4]
    };
    writeln!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="297mm" font-family="Helvetica, Arial, sans-serif" font-size="15" fill="#000000">
<title>Goodput against packet size, link MTU {link_mtu}</title>
<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>
<text x="{LEFT}" y="36" font-size="22" font-weight="bold">Goodput of encapsulations on Ethernet, link MTU {link_mtu} bytes</text>"##
    )?;
    let panels = number(families.len());
    let width = (WIDTH - LEFT - 30.0 - GAP * (panels - 1.0)) / panels;
    for (index, &family) in families.iter().enumerate() {
        let panel = Panel {
            left: LEFT + number(index) * (width + GAP),
            width,
            largest: f64::from(link_mtu),
        };
        let of_family: Vec<_> = budgets
            .iter()
            .filter(|budget| budget.through.is_none_or(|(_, outer)| outer == family))
            .collect();
        panel_frame(&panel, family, index == 0, link_mtu, svg)?;
        for (order, budget) in of_family.iter().enumerate() {
            curve(&panel, budget, order, svg)?;
        }
        legend(&panel, &of_family, svg)?;
    }
    writeln!(
        svg,
        r#"<text x="{LEFT}" y="{}" font-size="13">Goodput: TCP payload without options, in inner IPv4 packets, as a share of the Ethernet line (38 bytes of framing per frame, preamble and gap included).</text>
<text x="{LEFT}" y="{}" font-size="13">Packets in steps of 16 bytes, to which WireGuard pads. Each curve ends at its MTU.</text>
</svg>"#,
        HEIGHT - 28.0,
        HEIGHT - 10.0
    )
}

fn panel_frame(
    panel: &Panel,
    family: Family,
    is_first: bool,
    link_mtu: u16,
    svg: &mut String,
) -> fmt::Result {
    let (left, right) = (panel.left, panel.left + panel.width);
    let bottom = TOP + PANEL_HEIGHT;
    let name = match family {
        Family::V4 => "over IPv4",
        Family::V6 => "over IPv6",
    };
    writeln!(
        svg,
        r#"<text x="{left:.1}" y="{:.1}" font-size="17" font-weight="bold">{name}</text>"#,
        TOP - 16.0
    )?;
    for percent in (0..=100u8).step_by(10) {
        let y = Panel::y(f64::from(percent) / 100.0);
        writeln!(
            svg,
            r##"<line x1="{left:.1}" y1="{y:.1}" x2="{right:.1}" y2="{y:.1}" stroke="#cccccc"/><text x="{:.1}" y="{:.1}" text-anchor="end">{percent}</text>"##,
            left - 8.0,
            y + 5.0
        )?;
    }
    let mut ticks: Vec<usize> = std::iter::successors(Some(SMALLEST), |tick| Some(tick * 2))
        // One close to the end would stand on the end's number.
        .take_while(|&tick| tick * 5 < usize::from(link_mtu) * 4)
        .collect();
    ticks.push(link_mtu.into());
    for tick in ticks {
        let x = panel.x(tick);
        writeln!(
            svg,
            r##"<line x1="{x:.1}" y1="{TOP:.1}" x2="{x:.1}" y2="{:.1}" stroke="#cccccc"/><text x="{x:.1}" y="{:.1}" text-anchor="middle">{tick}</text>"##,
            bottom + 6.0,
            bottom + 23.0
        )?;
    }
    writeln!(
        svg,
        r##"<rect x="{left:.1}" y="{TOP:.1}" width="{:.1}" height="{PANEL_HEIGHT:.1}" fill="none" stroke="#000000"/>
<text x="{:.1}" y="{:.1}" text-anchor="middle">inner IP packet, bytes (logarithmic)</text>"##,
        panel.width,
        (left + right) / 2.0,
        bottom + 46.0
    )?;
    if is_first {
        let (x, y) = (left - 52.0, TOP + PANEL_HEIGHT / 2.0);
        writeln!(
            svg,
            r#"<text transform="translate({x:.1} {y:.1}) rotate(-90)" text-anchor="middle">goodput, % of the line rate</text>"#
        )?;
    }
    Ok(())
}

fn curve(panel: &Panel, budget: &Budget, order: usize, svg: &mut String) -> fmt::Result {
    let (colour, dashes, mark) = look(budget.name());
    let mtu = budget.mtu();
    let packets = (SMALLEST..mtu).step_by(16).chain([mtu]);
    let points: Vec<_> = packets
        .filter_map(|packet| {
            Some((
                packet,
                panel.x(packet),
                Panel::y(budget.goodput(packet, Family::V4)?),
            ))
        })
        .collect();
    write!(
        svg,
        r#"<polyline fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}" points=""#
    )?;
    for (_, x, y) in &points {
        write!(svg, "{x:.1},{y:.1} ")?;
    }
    writeln!(svg, r#""/>"#)?;
    // Curves that run close to each other have their marks at different places.
    let mut next = panel.x(80) + 13.0 * number(order);
    for &(_, x, y) in &points {
        if x >= next {
            draw_mark(mark, colour, x, y, svg)?;
            next += 78.0;
        }
    }
    match points.last() {
        Some(&(_, x, y)) => draw_mark(mark, colour, x, y, svg),
        None => Ok(()),
    }
}

fn draw_mark(mark: Mark, colour: &str, x: f64, y: f64, svg: &mut String) -> fmt::Result {
    let style = format!(r##"stroke="{colour}" stroke-width="1.5""##);
    match mark {
        Mark::None => Ok(()),
        Mark::Circle => writeln!(
            svg,
            r##"<circle cx="{x:.1}" cy="{y:.1}" r="4" fill="#ffffff" {style}/>"##
        ),
        Mark::Dot => writeln!(
            svg,
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.5" fill="{colour}" {style}/>"#
        ),
        Mark::Square => {
            let (left, top) = (x - 3.5, y - 3.5);
            writeln!(
                svg,
                r##"<rect x="{left:.1}" y="{top:.1}" width="7" height="7" fill="#ffffff" {style}/>"##
            )
        }
        Mark::Triangle => writeln!(
            svg,
            r##"<path d="M{x:.1} {:.1} l4.5 8 h-9 z" fill="#ffffff" {style}/>"##,
            y - 5.0
        ),
        Mark::Cross => writeln!(
            svg,
            r#"<path d="M{:.1} {:.1} l8 8 m0 -8 l-8 8" fill="none" {style}/>"#,
            x - 4.0,
            y - 4.0
        ),
    }
}

/// Names, and the numbers that the curves end at.
fn legend(panel: &Panel, budgets: &[&Budget], svg: &mut String) -> fmt::Result {
    let left = panel.left;
    let columns = [left + 62.0, left + 275.0, left + 345.0, left + 465.0];
    for ((text, x), anchor) in ["", "overhead, bytes", "MTU", "goodput at MTU"]
        .into_iter()
        .zip(columns)
        .zip(["start", "end", "end", "end"])
    {
        writeln!(
            svg,
            r#"<text x="{x:.1}" y="{:.1}" font-size="13" text-anchor="{anchor}">{text}</text>"#,
            LEGEND - 17.0
        )?;
    }
    for (budget, row) in budgets.iter().zip(0u8..) {
        let y = LEGEND + f64::from(row) * 18.0;
        let (colour, dashes, mark) = look(budget.name());
        writeln!(
            svg,
            r#"<line x1="{left:.1}" y1="{y:.1}" x2="{:.1}" y2="{y:.1}" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>"#,
            left + 50.0
        )?;
        draw_mark(mark, colour, left + 25.0, y, svg)?;
        let share = budget.goodput(budget.mtu(), Family::V4).unwrap_or(0.0) * 100.0;
        let cells = [
            (label(budget.name()).to_owned(), "start"),
            (budget.overhead().to_string(), "end"),
            (budget.mtu().to_string(), "end"),
            (format!("{share:.2} %"), "end"),
        ];
        for ((text, anchor), x) in cells.into_iter().zip(columns) {
            writeln!(
                svg,
                r#"<text x="{x:.1}" y="{:.1}" font-size="14" text-anchor="{anchor}">{text}</text>"#,
                y + 5.0
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The points of every curve, in the order they are drawn.
    fn curves(svg: &str) -> Vec<Vec<(f64, f64)>> {
        let points = |line: &str| {
            let (_, rest) = line.split_once("points=\"").unwrap();
            let (points, _) = rest.split_once('"').unwrap();
            let pair = |pair: &str| {
                let (x, y) = pair.split_once(',').unwrap();
                (x.parse().unwrap(), y.parse().unwrap())
            };
            points.split_whitespace().map(pair).collect()
        };
        svg.lines()
            .filter(|line| line.starts_with("<polyline"))
            .map(points)
            .collect()
    }

    #[test]
    fn every_curve_is_in_the_picture_and_goes_up() {
        for (mtu, count) in [(576, 6), (1280, 12), (1500, 12), (9000, 12), (65535, 12)] {
            let svg = goodput(mtu);
            let curves = curves(&svg);
            assert_eq!(curves.len(), count, "{mtu}");
            for curve in curves {
                assert!(curve.len() > 20);
                assert!(curve.is_sorted_by(|a, b| a.0 <= b.0), "{mtu}");
                // Of WireGuard the last packet may be padded less than the one before; all others rise throughout.
                assert!(curve.is_sorted_by(|a, b| a.1 >= b.1 - 0.2), "{mtu}");
                let inside = |&(x, y): &(f64, f64)| {
                    (0.0..WIDTH).contains(&x) && (TOP..=TOP + PANEL_HEIGHT).contains(&y)
                };
                assert!(curve.iter().all(inside), "{mtu}");
            }
        }
    }

    #[test]
    fn curves_differ_without_colours_and_are_named() {
        let svg = goodput(1500);
        let names = ["none", "udp", "vxlan", "ipip", "gre", "wireguard"];
        for (index, name) in names.iter().enumerate() {
            assert_eq!(svg.matches(&format!(">{}<", label(name))).count(), 2);
            for other in &names[..index] {
                let (a, b) = (look(name), look(other));
                assert!(a.1 != b.1 || std::mem::discriminant(&a.2) != std::mem::discriminant(&b.2));
            }
        }
        assert!(
            svg.contains("94.93 %")
                && svg.contains("inner IP packet, bytes")
                && svg.contains("% of the line rate")
        );
    }
}
