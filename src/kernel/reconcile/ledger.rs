//! Who keeps undoing what we repair? Two programs that want different things of one route would otherwise take turns
//! for ever, as fast as they can.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::Object;

/// Repairs of one object within [`WINDOW`]; one more, and it is left alone for a while.
const MOST: usize = 10;
/// The time in which repairs are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// How long a contested object is left alone first; then twice that, and so on.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// The longest that it is left alone.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Which objects were repaired, and when.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    objects: HashMap<Object, Record>,
}

#[derive(Clone, Debug, Default)]
struct Record {
    /// Repairs, the oldest first; at most one more than [`MOST`].
    done: VecDeque<Instant>,
    /// Left alone until then, and for how long that is.
    pause: Option<(Instant, Duration)>,
}

impl Ledger {
    /// May the object be repaired now?
    pub fn allows(&self, object: Object, now: Instant) -> bool {
        let record = self.objects.get(&object);
        record.is_none_or(|record| record.pause.is_none_or(|(until, _)| now >= until))
    }

    /// It was repaired.
    pub fn note(&mut self, object: Object, now: Instant) {
        let record = self.objects.entry(object).or_default();
        record.done.push_back(now);
        if record.done.len() > MOST + 1 {
            record.done.pop_front();
        }
        let often = record.done.len() > MOST && now.duration_since(record.done[0]) <= WINDOW;
        // Undone once more after it had been left alone?
        let relapse = record.pause.filter(|(until, _)| now < *until + WINDOW);
        let pause = match relapse {
            Some((_, last)) => Some((last * 2).min(LONGEST_PAUSE)),
            None => often.then_some(FIRST_PAUSE),
        };
        record.pause = pause.map(|pause| (now + pause, pause));
    }

    /// Forgets what has been at rest since, and names what somebody fights over: until when each is left alone (that
    /// may have passed: then it is being watched).
    pub fn contested(&mut self, now: Instant) -> Vec<(Object, Instant)> {
        self.objects.retain(|_, record| {
            let last = record.done.back().copied().unwrap_or(now);
            let rested = record.pause.map_or(last, |(until, _)| until);
            now < rested + WINDOW
        });
        let mut contested: Vec<_> = self
            .objects
            .iter()
            .filter_map(|(object, record)| Some((*object, record.pause?.0)))
            .collect();
        contested.sort_by_key(|(object, until)| (*until, object.to_string()));
        contested
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: Object = Object::Up;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn ten_a_minute_are_repaired_and_the_eleventh_makes_a_pause() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        for n in 0..10 {
            assert!(ledger.allows(UP, start + seconds(n)));
            ledger.note(UP, start + seconds(n));
            assert!(ledger.contested(start + seconds(n)).is_empty());
        }
        let eleventh = start + seconds(10);
        assert!(ledger.allows(UP, eleventh));
        ledger.note(UP, eleventh);
        assert_eq!(ledger.contested(eleventh), [(UP, eleventh + FIRST_PAUSE)]);
        assert!(!ledger.allows(UP, eleventh + seconds(4)));
        assert!(ledger.allows(UP, eleventh + seconds(5)));
        assert!(ledger.allows(Object::Mtu, eleventh), "others do not suffer");
    }

    #[test]
    fn the_pause_grows_with_every_relapse_and_ends_with_a_minute_of_rest() {
        let (mut ledger, mut now) = (Ledger::default(), Instant::now());
        (0..=MOST).for_each(|_| ledger.note(UP, now));
        for pause in [5, 10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(ledger.contested(now), [(UP, now + seconds(pause))]);
            now += seconds(pause);
            assert!(ledger.allows(UP, now));
            ledger.note(UP, now);
        }
        now += LONGEST_PAUSE;
        assert_eq!(ledger.contested(now + seconds(59)).len(), 1);
        assert!(ledger.contested(now + WINDOW).is_empty());
        ledger.note(UP, now + WINDOW);
        assert!(ledger.contested(now + WINDOW).is_empty(), "it starts anew");
    }

    #[test]
    fn ten_a_minute_for_ever_are_no_fight() {
        let (mut ledger, mut now) = (Ledger::default(), Instant::now());
        for _ in 0..200 {
            now += Duration::from_millis(6_100);
            ledger.note(UP, now);
            assert!(ledger.contested(now).is_empty());
        }
    }
}
