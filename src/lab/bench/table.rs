//! The report as people read it: medians, ranges, ratios.

use std::fmt::Write as _;

use super::figures::{Principal, principals};
use super::report::{Report, Sample, summary};

/// What every row is compared with.
const REFERENCE: &str = "kernel-vxlan";

impl Report {
    /// The report for people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_text(&mut text);
        text
    }

    fn write_text(&self, to: &mut String) -> std::fmt::Result {
        for machine in &self.machines {
            writeln!(
                to,
                "{}: {}, {} CPUs, {} MiB, Linux {}{}, load {}; {}",
                machine.hostname,
                machine.cpu,
                machine.cpus,
                machine.memory_mib,
                machine.kernel,
                if machine.hypervisor { ", virtual" } else { "" },
                machine.load,
                machine.underlay
            )?;
        }
        let s = if self.rounds == 1 { "" } else { "s" };
        let pin = if self.machines.len() > 1 && self.pin == super::pin::Pin::default() {
            "each host on all of its CPUs".to_owned()
        } else {
            self.pin.to_string()
        };
        writeln!(
            to,
            "{} round{s} of {:.2} s per measurement, interleaved; {pin}; medians (lowest-highest), x: ratio to {REFERENCE} of the same round",
            self.rounds, self.window
        )?;
        for setting in &self.settings {
            writeln!(to, "\noffloads: {setting}")?;
            to.push_str(&self.figures_under(setting));
        }
        self.write_errors(to)?;
        if self.rounds < 3 || self.window < 0.3 {
            writeln!(
                to,
                "\nnote: in so few or so short measurements a busy moment of the machine shows: --rounds 5 --seconds 0.5 tells more, and takes longer"
            )?;
        }
        for note in &self.notes {
            writeln!(to, "\nnote: {note}")?;
        }
        Ok(())
    }

    fn figures_under(&self, setting: &str) -> String {
        let measured = |test: &&String| {
            self.samples
                .iter()
                .any(|s| s.setting == setting && s.test == **test)
        };
        let columns: Vec<(&str, &Principal)> = self
            .tests
            .iter()
            .filter(measured)
            .flat_map(|test| {
                principals(test)
                    .iter()
                    .map(move |figure| (test.as_str(), figure))
            })
            .collect();
        let head = columns
            .iter()
            .map(|(test, figure)| format!("{test} {}", figure.unit));
        let mut lines = vec![
            std::iter::once(String::new())
                .chain(head)
                .collect::<Vec<_>>(),
        ];
        let there = |row: &&String| {
            self.samples
                .iter()
                .any(|s| s.setting == setting && s.row == **row)
        };
        for row in self.rows.iter().filter(there) {
            let cells = columns
                .iter()
                .map(|(test, figure)| self.one(setting, row, test, figure));
            lines.push(std::iter::once(row.clone()).chain(cells).collect());
        }
        align(&lines, 1)
    }

    fn one(&self, setting: &str, row: &str, test: &str, figure: &Principal) -> String {
        let values = self
            .values(setting, row, test, figure.name)
            .map(|(_, value)| value / figure.scale);
        let Some(found) = summary(values) else {
            let tried = |s: &Sample| s.setting == setting && s.row == row && s.test == test;
            return if self.samples.iter().any(tried) {
                "failed"
            } else {
                "-"
            }
            .into();
        };
        let range = if self.rounds > 1 {
            format!(" ({}-{})", number(found.low), number(found.high))
        } else {
            String::new()
        };
        let ratio = match self.ratio(setting, row, test, figure.name) {
            Some(ratio) if row != REFERENCE => format!("  x{ratio:.2}"),
            _ => String::new(),
        };
        format!("{}{range}{ratio}", number(found.median))
    }

    /// The median of the ratios to kernel VXLAN, round by round; of a row between pods to that between pods.
    pub fn ratio(&self, setting: &str, row: &str, test: &str, figure: &str) -> Option<f64> {
        let reference = if row.starts_with("pods:") {
            format!("pods:{REFERENCE}")
        } else {
            REFERENCE.to_owned()
        };
        let ratios = self
            .values(setting, row, test, figure)
            .filter_map(|(round, value)| {
                let mut others = self.values(setting, &reference, test, figure);
                let (_, other) = others.find(|(r, _)| *r == round)?;
                Some(value / other)
            });
        summary(ratios.collect::<Vec<_>>()).map(|s| s.median)
    }

    fn write_errors(&self, to: &mut String) -> std::fmt::Result {
        let mut told: Vec<&str> = Vec::new();
        for sample in &self.samples {
            if let Some(error) = &sample.error {
                if !told.contains(&error.as_str()) {
                    writeln!(
                        to,
                        "\n{} {} {}: {error}",
                        sample.setting, sample.row, sample.test
                    )?;
                    told.push(error);
                }
            }
        }
        Ok(())
    }
}

/// Three significant digits, or all before the point.
pub fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        v if v >= 0.9995 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Columns, the first `left` to the left, the others to the right.
pub(super) fn align(lines: &[Vec<String>], left: usize) -> String {
    let mut text = String::new();
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..lines.first().map_or(0, Vec::len)).map(width).collect();
    for line in lines {
        let mut out = String::new();
        for (i, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let _ = if i < left {
                write!(out, " {cell:width$} ")
            } else {
                write!(out, "  {cell:>width$}")
            };
        }
        text.push_str(out.trim_end());
        text.push('\n');
    }
    text
}
