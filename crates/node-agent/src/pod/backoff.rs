//! How long a crashing container waits before it is started again.

use jiff::{SignedDuration, Timestamp};

const FIRST_S: i64 = 10;
const MOST_S: i64 = 300;
/// A container that ran this long has earned a fresh start.
const FORGOTTEN_AFTER_S: i64 = 600;

/// The back-off of one container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    wait_s: i64,
    updated: Option<Timestamp>,
}

impl Backoff {
    fn forgotten(&self, at: Timestamp) -> bool {
        let since = self.updated.map(|updated| at.duration_since(updated).as_secs());
        since.is_none_or(|s| s > FORGOTTEN_AFTER_S)
    }

    /// How long the container, which ended at `finished`, must still wait.
    #[must_use]
    pub fn left(&self, finished: Timestamp, now: Timestamp) -> Option<SignedDuration> {
        if self.forgotten(finished) {
            return None;
        }
        let left = SignedDuration::from_secs(self.wait_s) - now.duration_since(finished);
        left.is_positive().then_some(left)
    }

    /// The container, which ended at `finished`, is started again now.
    pub fn restarted(&mut self, finished: Timestamp, now: Timestamp) {
        let next = (self.wait_s * 2).clamp(FIRST_S, MOST_S);
        self.wait_s = if self.forgotten(finished) { FIRST_S } else { next };
        self.updated = Some(now);
    }

    /// The present wait, as messages show it: `10s`, `1m20s`, `5m0s`.
    #[must_use]
    pub fn text(&self) -> String {
        let (minutes, seconds) = (self.wait_s / 60, self.wait_s % 60);
        if minutes > 0 { format!("{minutes}m{seconds}s") } else { format!("{seconds}s") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    #[test]
    fn the_first_crash_restarts_at_once_and_then_waits_double() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.left(at(0), at(0)), None);
        backoff.restarted(at(0), at(0));
        assert_eq!(backoff.left(at(1), at(1)).map(|d| d.as_secs()), Some(10));
        let mut waits = Vec::new();
        for i in 0..7 {
            backoff.restarted(at(i * 10), at(i * 10));
            waits.push(backoff.text());
        }
        assert_eq!(waits, ["20s", "40s", "1m20s", "2m40s", "5m0s", "5m0s", "5m0s"]);
    }

    #[test]
    fn ten_good_minutes_are_a_fresh_start() {
        let mut backoff = Backoff::default();
        backoff.restarted(at(0), at(0));
        backoff.restarted(at(10), at(20));
        assert!(backoff.left(at(30), at(30)).is_some());
        assert_eq!(backoff.left(at(700), at(700)), None);
        backoff.restarted(at(700), at(700));
        assert_eq!(backoff.text(), "10s");
    }
}
