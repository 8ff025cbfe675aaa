//! A trace for people to read, from the top.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use super::{Evidence, Leg, NO_ANSWER, Outcome, Row, Step, Trace};

/// The width of a row's sentence, before TTL and length.
const WIDTH: usize = 92;

/// The trace as text; with colours, or plain.
#[must_use]
pub fn text(trace: &Trace, colours: bool) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(trace, Paint { colours }, &mut text);
    text
}

#[derive(Clone, Copy)]
struct Paint {
    colours: bool,
}

impl Paint {
    fn paint(self, style: Style, text: &str) -> String {
        if self.colours && !text.is_empty() {
            format!("{}{text}{}", style.render(), style.render_reset())
        } else {
            text.to_owned()
        }
    }

    fn bold(self, text: &str) -> String {
        self.paint(Style::new().bold(), text)
    }

    fn quiet(self, text: &str) -> String {
        self.paint(Style::new().dimmed(), text)
    }

    fn colour(self, colour: AnsiColor, text: &str) -> String {
        self.paint(Style::new().bold().fg_color(Some(colour.into())), text)
    }
}

fn write(trace: &Trace, paint: Paint, to: &mut String) -> std::fmt::Result {
    let end = |end: &super::EndName, spoofed: bool| match &end.name {
        Some(name) if spoofed => format!("{name} (claims to be {})", end.ip),
        Some(name) => format!("{name} ({})", end.ip),
        None if trace.lab.is_some() => format!("{} (nobody in this lab)", end.ip),
        None => format!("{} (not on this host)", end.ip),
    };
    let df = if trace.dont_fragment { ", DF set" } else { "" };
    let version = if trace.source.ip.is_ipv4() {
        "IPv4"
    } else {
        "IPv6"
    };
    let headline = format!(
        "{} → {}: one marked {version} packet of {} bytes{df}",
        end(&trace.source, trace.spoofed),
        end(&trace.destination, false),
        trace.size
    );
    writeln!(to, "{}", paint.bold(&headline))?;
    writeln!(
        to,
        "{} observed: a capture or a counter saw it there    {} derived: read from a table",
        mark(Evidence::Observed, paint),
        mark(Evidence::Derived, paint)
    )?;
    let mut leg = None;
    let mut place = "";
    for row in &trace.rows {
        // A second error is another story.
        if leg != Some(row.leg) || (row.leg == Leg::Error && row.step == Step::Send) {
            let title = match row.leg {
                Leg::Request => "The way there: the echo request",
                Leg::Reply => "The way back: the echo reply",
                Leg::Error => "What comes of it: an ICMP error",
            };
            // The padding counts letters, not the colours' codes.
            let fill = WIDTH.saturating_sub(title.chars().count());
            writeln!(
                to,
                "\n{}{:fill$}  {}",
                paint.bold(title),
                "",
                paint.quiet(" TTL bytes")
            )?;
            leg = Some(row.leg);
            place = "";
        }
        if place != row.place {
            writeln!(to, " {}", paint.colour(AnsiColor::Cyan, &row.place))?;
            place = &row.place;
        }
        write_row(row, paint, to)?;
    }
    writeln!(to)?;
    for unseen in &trace.unseen {
        writeln!(to, "not seen: {unseen}")?;
    }
    writeln!(to, "{}", verdict(trace, paint))
}

fn mark(evidence: Evidence, paint: Paint) -> String {
    match evidence {
        Evidence::Observed => paint.colour(AnsiColor::Green, "●"),
        Evidence::Derived => paint.paint(Style::new(), "○"),
    }
}

fn write_row(row: &Row, paint: Paint, to: &mut String) -> std::fmt::Result {
    let seen = match (row.ttl, row.length) {
        (Some(ttl), Some(length)) => format!("{ttl:>5} {length:>5}"),
        _ => String::new(),
    };
    let width = if seen.is_empty() {
        WIDTH + 8
    } else {
        WIDTH - 8
    };
    for (number, line) in wrap(&row.text, width).iter().enumerate() {
        let shown = match row.step {
            Step::Lost => paint.colour(AnsiColor::Red, line),
            Step::Device | Step::Delivery => paint.bold(line),
            _ => line.clone(),
        };
        if number > 0 {
            writeln!(to, "        {shown}")?;
            continue;
        }
        // The padding counts letters, not the colours' codes.
        let fill = (WIDTH - 6).saturating_sub(line.chars().count());
        let fill = if seen.is_empty() { 0 } else { fill };
        let line = format!(
            " {:>3} {} {shown}{:fill$}{}",
            row.number,
            mark(row.evidence, paint),
            "",
            paint.bold(&seen)
        );
        writeln!(to, "{}", line.trim_end())?;
    }
    for detail in &row.details {
        for line in wrap(detail, WIDTH + 14) {
            writeln!(to, "          {}", paint.quiet(&line))?;
        }
    }
    Ok(())
}

/// The text in lines of at most so many letters, broken between words; runs of spaces stay.
fn wrap(text: &str, letters: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last().map_or(0, |line| line.chars().count());
        if line > 0 && line + 1 + word.chars().count() > letters {
            lines.push(format!("  {word}"));
        } else if let Some(last) = lines.last_mut() {
            if line > 0 {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

/// What became of it, in a sentence and without a style.
pub(super) fn outcome(trace: &Trace) -> String {
    let told = verdict(trace, Paint { colours: false });
    let told = told.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    told.replace(" what to do: ", ". What to do: ")
}

/// The last lines: what became of it.
fn verdict(trace: &Trace, paint: Paint) -> String {
    let good = |text: &str| paint.colour(AnsiColor::Green, text);
    match (trace.outcome, &trace.loss) {
        (Outcome::Answered, _) => good("answered: the packet arrived, and its answer came back"),
        (Outcome::Elsewhere, _) => paint.colour(
            AnsiColor::Yellow,
            "arrived, and was answered: but the answer went to the one whose address was used",
        ),
        (Outcome::Unseen, _) => {
            "unknown: the packet left what can be seen from here, and no answer came back"
                .to_owned()
        }
        (Outcome::Lost, Some(loss)) => {
            let which = match loss.leg {
                Leg::Request => "the request",
                Leg::Reply => "the request arrived, but the reply",
                Leg::Error => "an ICMP error",
            };
            let bad = match loss.reason.as_str() {
                NO_ANSWER => format!(
                    "no answer: the request arrived at {}: {}",
                    loss.place, loss.meaning
                ),
                _ => format!(
                    "lost: {which} ended at {}: {} ({})",
                    loss.place,
                    loss.meaning,
                    loss.cause()
                ),
            };
            let mut text = String::new();
            for line in wrap(&bad, WIDTH + 12) {
                let _ = writeln!(text, "{}", paint.colour(AnsiColor::Red, &line));
            }
            let advice = format!("what to do: {}", loss.advice);
            text + &wrap(&advice, WIDTH + 12).join("\n")
        }
        (Outcome::Lost, None) => "lost".to_owned(),
    }
}
