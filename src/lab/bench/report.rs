//! What a run has found: the document behind the table, as `--json` prints it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::pin::Pin;

/// Version of the document. Fields may be added within a version, none renamed or removed.
pub const VERSION: u32 = 1;

/// A whole run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// Version of overlayd.
    pub program_version: String,
    /// The command that was typed.
    pub command: Vec<String>,
    /// When it began: seconds since 1970.
    pub started: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// The machines: one, or with `--peer` the sending and the receiving one.
    pub machines: Vec<Machine>,
    /// Which CPUs each host had.
    #[serde(default)]
    pub pin: Pin,
    /// The underlay device's active features under each setting.
    pub offloads: BTreeMap<String, Vec<String>>,
    /// The rows, in order.
    pub rows: Vec<String>,
    /// The settings, in order.
    pub settings: Vec<String>,
    /// The tests, in order.
    pub tests: Vec<String>,
    /// Rounds; each is every row under every setting once. The last may lack some: see the notes.
    pub rounds: u32,
    /// Seconds of one measurement.
    pub window: f64,
    /// Every single measurement.
    pub samples: Vec<Sample>,
    /// What went not as planned.
    pub notes: Vec<String>,
}

/// One measurement.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sample {
    /// The round, from 1.
    pub round: u32,
    /// The offload setting.
    pub setting: String,
    /// The row.
    pub row: String,
    /// The test.
    pub test: String,
    /// What was found, by name; the unit is the end of the name. Empty: it failed.
    pub figures: BTreeMap<String, f64>,
    /// What the generators and meters counted.
    pub raw: serde_json::Value,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Report {
    /// The values of one figure over the rounds, with the number of each's round.
    pub fn values<'a>(
        &'a self,
        setting: &'a str,
        row: &'a str,
        test: &'a str,
        figure: &'a str,
    ) -> impl Iterator<Item = (u32, f64)> + 'a {
        self.samples
            .iter()
            .filter(move |s| s.setting == setting && s.row == row && s.test == test)
            .filter_map(move |s| Some((s.round, *s.figures.get(figure)?)))
    }
}

/// The middle one, and the ends of the range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// The median.
    pub median: f64,
    /// The lowest.
    pub low: f64,
    /// The highest.
    pub high: f64,
}

/// `None` of nothing.
pub fn summary(values: impl IntoIterator<Item = f64>) -> Option<Summary> {
    let mut values: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (*values.first()?, *values.last()?);
    let middle = values.len() / 2;
    let median = if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    };
    Some(Summary { median, low, high })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let s = |values: &[f64]| summary(values.iter().copied()).map(|s| (s.median, s.low, s.high));
        assert_eq!(s(&[]), None);
        assert_eq!(s(&[3.0]), Some((3.0, 3.0, 3.0)));
        assert_eq!(s(&[9.0, 1.0, 2.0]), Some((2.0, 1.0, 9.0)));
        assert_eq!(s(&[4.0, 1.0, 2.0, f64::NAN, 9.0]), Some((3.0, 1.0, 9.0)));
    }
}
