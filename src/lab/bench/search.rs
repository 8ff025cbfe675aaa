//! The highest rate at which a path loses nothing (or almost nothing): a binary search as RFC 2544 §26.1 describes
//! it, and RFC 1242 §3.17 defines what is sought.
//!
//! One departure: a rate has failed when it loses twice, unless it loses a lot. On a machine that runs other things too, a
//! single moment without the CPU would otherwise halve the result.

/// What one trial found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Trial {
    /// The rate asked for, in packets per second; `None`: flat out.
    pub(super) asked: Option<f64>,
    /// The rate that the sender reached.
    pub(super) sent: f64,
    /// The share that was lost, 0 to 1.
    pub(super) loss: f64,
}

/// A search in progress. It asks for trials until it is satisfied.
#[derive(Debug)]
pub(super) struct Search {
    /// The share that may be lost.
    tolerance: f64,
    /// The highest rate that passed.
    passed: f64,
    /// The lowest that failed; none yet: as fast as the sender can.
    failed: Option<f64>,
    /// A rate that has failed once.
    doubtful: Option<f64>,
    /// Where to try next.
    guess: Option<f64>,
    trials_left: u32,
}

/// It is good enough when the two bounds are this near.
const RESOLUTION: f64 = 0.03;

/// A share that no moment without the CPU explains.
const A_LOT: f64 = 0.05;

impl Search {
    pub(super) fn new(tolerance: f64, trials: u32) -> Self {
        Self {
            tolerance,
            passed: 0.0,
            failed: None,
            doubtful: None,
            guess: None,
            trials_left: trials,
        }
    }

    /// The rate to try next; flat out first. The inner `None` is flat out, the outer one the end.
    pub(super) fn next(&self) -> Option<Option<f64>> {
        if self.trials_left == 0 {
            return None;
        }
        let Some(failed) = self.failed else {
            return (self.passed == 0.0).then_some(None);
        };
        if failed - self.passed <= RESOLUTION * failed {
            return None;
        }
        let middle = self.doubtful.or(self.guess);
        Some(Some(middle.unwrap_or(f64::midpoint(self.passed, failed))))
    }

    /// Takes the result of a trial, also of one that another search asked for.
    pub(super) fn tell(&mut self, trial: &Trial) {
        self.trials_left = self.trials_left.saturating_sub(1);
        let rate = trial.asked.unwrap_or(trial.sent).min(trial.sent);
        if trial.loss <= self.tolerance {
            self.doubtful = None;
            self.passed = self.passed.max(rate);
            // The sender itself is slower than what was asked: there is nothing above to be found.
            if trial.asked.is_some_and(|asked| trial.sent < 0.9 * asked) {
                self.failed = Some(self.passed);
            }
            self.guess = None;
            return;
        }
        match trial.asked {
            None => {
                self.failed = Some(rate);
                // What came through is a good place to begin.
                self.guess = Some(rate * (1.0 - trial.loss).clamp(0.05, 0.95));
            }
            Some(asked) if self.doubtful == Some(asked) || trial.loss > A_LOT => {
                self.doubtful = None;
                let through = asked * (1.0 - trial.loss);
                self.guess = (trial.loss > A_LOT && through > self.passed).then_some(through);
                self.failed = Some(self.failed.map_or(asked, |failed| failed.min(asked)));
            }
            Some(asked) => self.doubtful = Some(asked),
        }
    }

    /// The highest rate that passed, in packets per second; 0: none did.
    pub(super) fn found(&self) -> f64 {
        self.passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path that loses nothing up to `capacity`, and a sender that reaches `limit`.
    fn run(capacity: f64, limit: f64, tolerance: f64, hiccup: Option<u32>) -> (f64, u32) {
        let mut search = Search::new(tolerance, 30);
        let mut count = 0;
        while let Some(asked) = search.next() {
            let sent = asked.unwrap_or(f64::MAX).min(limit);
            let mut loss = (1.0 - capacity / sent).max(0.0);
            if hiccup == Some(count) {
                loss = loss.max(0.01);
            }
            count += 1;
            search.tell(&Trial { asked, sent, loss });
        }
        (search.found(), count)
    }

    #[test]
    fn the_capacity_is_found() {
        for capacity in [500.0, 40_000.0, 900_000.0] {
            let (found, trials) = run(capacity, 1e6, 0.0, None);
            assert!(
                found <= capacity && found > 0.96 * capacity,
                "{found} of {capacity}"
            );
            assert!(trials <= 24, "{trials}");
        }
    }

    #[test]
    fn a_sender_that_is_the_limit_ends_it_at_once() {
        assert_eq!(run(2e6, 1e6, 0.0, None), (1e6, 1));
    }

    #[test]
    fn one_hiccup_does_not_spoil_it() {
        for hiccup in 1..10 {
            let (found, _) = run(300_000.0, 1e6, 0.0, Some(hiccup));
            assert!(
                found > 0.95 * 300_000.0,
                "{found} with a hiccup in trial {hiccup}"
            );
        }
    }

    #[test]
    fn a_tolerance_finds_more() {
        let (none, _) = run(300_000.0, 1e6, 0.0, None);
        let (some, _) = run(300_000.0, 1e6, 0.1, None);
        assert!(some > none && some <= 300_000.0 / 0.9 + 1.0);
    }

    #[test]
    fn a_path_that_always_loses_has_no_rate() {
        let mut search = Search::new(0.0, 12);
        while let Some(asked) = search.next() {
            search.tell(&Trial {
                asked,
                sent: asked.unwrap_or(1e6),
                loss: 0.5,
            });
        }
        assert_eq!(search.found(), 0.0);
    }
}
