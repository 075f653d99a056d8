//! Which history may go by itself. Pure: time is an argument.

use std::collections::VecDeque;
use std::time::Duration;

/// How much history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// All of it, until a client compacts.
    All,
    /// So much time of it.
    Time(Duration),
    /// So many revisions of it.
    Revisions(i64),
}

/// How often revisions are counted, as in etcd.
const REVISIONS_EVERY: Duration = Duration::from_secs(300);
/// History of a long time is compacted at least so often, as in etcd.
const TIME_EVERY: Duration = Duration::from_secs(3600);
/// Into how many pieces the time between compactions is cut to remember revisions.
const SAMPLES: u32 = 10;

/// Remembers when which revision was the newest.
#[derive(Debug)]
pub struct Compactor {
    keep: Keep,
    seen: VecDeque<(Duration, i64)>,
    last: Duration,
}

impl Compactor {
    /// Begins at `now`.
    #[must_use]
    pub fn new(keep: Keep, now: Duration) -> Self {
        Self { keep, seen: VecDeque::new(), last: now }
    }

    /// How long to wait between calls of [`Compactor::due`]; none if there is nothing to do ever.
    #[must_use]
    pub fn period(&self) -> Option<Duration> {
        match self.keep {
            Keep::All => None,
            Keep::Revisions(_) => Some(REVISIONS_EVERY),
            Keep::Time(time) => Some(time.min(TIME_EVERY) / SAMPLES),
        }
    }

    /// The revision to compact to, if it is time to.
    pub fn due(&mut self, now: Duration, revision: i64) -> Option<i64> {
        match self.keep {
            Keep::All => None,
            Keep::Revisions(count) => Some(revision - count).filter(|due| *due > 0),
            Keep::Time(time) => {
                self.seen.push_back((now, revision));
                let old = |seen: &VecDeque<(Duration, i64)>, place: usize| {
                    seen.get(place).is_some_and(|(at, _)| now.saturating_sub(*at) >= time)
                };
                while old(&self.seen, 1) {
                    self.seen.pop_front();
                }
                let waited = now.saturating_sub(self.last) >= time.min(TIME_EVERY);
                if !waited || !old(&self.seen, 0) {
                    return None;
                }
                self.last = now;
                self.seen.front().map(|(_, revision)| *revision)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_of_the_last_hours_stays() {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let mut compactor = Compactor::new(Keep::Time(minutes(120)), minutes(0));
        assert_eq!(compactor.period(), Some(minutes(6)));
        let mut done = Vec::new();
        for n in 0..=50u64 {
            let revision = i64::try_from(100 + n).unwrap();
            done.extend(compactor.due(minutes(6 * n), revision).map(|due| (6 * n, due)));
        }
        // After two hours, then every hour, to what was the newest two hours before.
        assert_eq!(done, [(120, 100), (180, 110), (240, 120), (300, 130)]);
    }

    #[test]
    fn so_many_revisions_stay() {
        let mut compactor = Compactor::new(Keep::Revisions(100), Duration::ZERO);
        assert_eq!(compactor.due(REVISIONS_EVERY, 100), None);
        assert_eq!(compactor.due(REVISIONS_EVERY, 250), Some(150));
        assert_eq!(Compactor::new(Keep::All, Duration::ZERO).due(REVISIONS_EVERY, 250), None);
    }
}
