//! Two reports side by side: what has become faster or slower, beyond the noise.

use serde::Serialize;

use super::figures::principals;
use super::report::{Report, Summary, summary};
use super::table::{align, number};

/// Version of what [`compare`] returns.
pub const VERSION: u32 = 1;

/// One figure in both reports.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// The offload setting.
    pub setting: String,
    /// The row.
    pub row: String,
    /// The test.
    pub test: String,
    /// The figure.
    pub figure: &'static str,
    /// Median in the old report.
    pub old: f64,
    /// Median in the new one.
    pub new: f64,
    /// New by old.
    pub ratio: f64,
    /// The same of the ratios to kernel VXLAN: what is left when the machine itself was slower or faster.
    pub relative: Option<f64>,
    /// Better or worse, and the ranges of the two do not touch; otherwise it may be noise. One round has no range.
    pub verdict: Option<&'static str>,
}

/// Every figure that tests are compared by ([`principals`]) and that both reports have.
pub fn compare(old: &Report, new: &Report) -> Vec<Change> {
    let mut changes = Vec::new();
    for setting in &new.settings {
        for row in &new.rows {
            for test in &new.tests {
                for figure in principals(test) {
                    let of = |report: &Report| -> Vec<f64> {
                        let values = report.values(setting, row, test, figure.name);
                        values.map(|(_, value)| value).collect()
                    };
                    let (olds, news) = (of(old), of(new));
                    let ranges = olds.len() > 1 && news.len() > 1;
                    let (Some(before), Some(after)) = (summary(olds), summary(news)) else {
                        continue;
                    };
                    let ratios = (
                        old.ratio(setting, row, test, figure.name),
                        new.ratio(setting, row, test, figure.name),
                    );
                    changes.push(Change {
                        setting: setting.clone(),
                        row: row.clone(),
                        test: test.clone(),
                        figure: figure.name,
                        old: before.median,
                        new: after.median,
                        ratio: after.median / before.median,
                        relative: ratios.1.zip(ratios.0).map(|(new, old)| new / old),
                        verdict: if ranges {
                            verdict(&before, &after, figure.more_is_better)
                        } else {
                            None
                        },
                    });
                }
            }
        }
    }
    changes
}

fn verdict(old: &Summary, new: &Summary, more_is_better: bool) -> Option<&'static str> {
    let (more, less) = if more_is_better {
        ("better", "worse")
    } else {
        ("worse", "better")
    };
    if new.low > old.high {
        Some(more)
    } else if new.high < old.low {
        Some(less)
    } else {
        None
    }
}

/// The changes for people.
pub fn to_text(changes: &[Change]) -> String {
    let head = [
        "setting",
        "row",
        "test",
        "old",
        "new",
        "new/old",
        "relative to kernel-vxlan",
        "",
    ];
    let mut lines = vec![head.map(String::from).to_vec()];
    lines.extend(changes.iter().map(|c| {
        vec![
            c.setting.clone(),
            c.row.clone(),
            format!("{} {}", c.test, c.figure),
            number(c.old),
            number(c.new),
            format!("x{:.2}", c.ratio),
            c.relative.map(|r| format!("x{r:.2}")).unwrap_or_default(),
            c.verdict.unwrap_or_default().to_owned(),
        ]
    }));
    align(&lines, 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ranges_that_do_not_touch_are_a_verdict() {
        let s = |median, low, high| Summary { median, low, high };
        assert_eq!(
            verdict(&s(2.0, 1.0, 3.0), &s(4.0, 3.5, 5.0), true),
            Some("better")
        );
        assert_eq!(
            verdict(&s(2.0, 1.0, 3.0), &s(4.0, 3.5, 5.0), false),
            Some("worse")
        );
        assert_eq!(
            verdict(&s(4.0, 3.5, 5.0), &s(2.0, 1.0, 3.0), false),
            Some("better")
        );
        assert_eq!(verdict(&s(2.0, 1.0, 3.0), &s(4.0, 2.9, 5.0), true), None);
    }
}
