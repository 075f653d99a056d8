//! Which pods wait, in which order they are tried, and when again. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use client::Key;

const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MOST: Duration = Duration::from_secs(10);
/// A pod that fits nowhere is tried again at the latest after this, should an event have been missed.
const RETRY_ANYWAY: Duration = Duration::from_secs(300);

/// How a waiting pod ranks: higher priority first, then older.
type Rank = (std::cmp::Reverse<i32>, i64, Key);

#[derive(Debug, Clone)]
struct Waiting {
    rank: Rank,
    tries: u32,
    /// Not before this time; `None`: ready.
    not_before: Option<Duration>,
    /// Tried and refused: waits for something to change.
    refused: bool,
}

/// The pods without a node.
#[derive(Debug, Default)]
pub struct Queue {
    pods: BTreeMap<Key, Waiting>,
    ready: BTreeSet<Rank>,
}

impl Queue {
    /// A pod waits (or has changed, which makes it worth another try).
    pub fn add(&mut self, key: &Key, priority: i32, created_s: i64) {
        let rank = (std::cmp::Reverse(priority), created_s, key.clone());
        if let Some(old) = self.pods.get(key) {
            self.ready.remove(&old.rank);
        }
        let tries = self.pods.get(key).map_or(0, |w| w.tries);
        self.ready.insert(rank.clone());
        self.pods.insert(key.clone(), Waiting { rank, tries, not_before: None, refused: false });
    }

    /// A pod waits no more.
    pub fn remove(&mut self, key: &Key) {
        if let Some(waiting) = self.pods.remove(key) {
            self.ready.remove(&waiting.rank);
        }
    }

    /// Takes the pods whose turn it is, at most `most`.
    pub fn take(&mut self, now: Duration, most: usize) -> Vec<Key> {
        let due: Vec<Key> = self
            .pods
            .iter()
            .filter(|(_, w)| w.not_before.is_some_and(|at| at <= now))
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            self.wake(&key);
        }
        let taken: Vec<Rank> = self.ready.iter().take(most).cloned().collect();
        for rank in &taken {
            self.ready.remove(rank);
        }
        taken.into_iter().map(|(_, _, key)| key).collect()
    }

    fn wake(&mut self, key: &Key) {
        if let Some(waiting) = self.pods.get_mut(key) {
            waiting.not_before = None;
            waiting.refused = false;
            self.ready.insert(waiting.rank.clone());
        }
    }

    /// A pod was tried in vain at `now`; `failed` if it had a node and could not be bound.
    pub fn refuse(&mut self, key: &Key, now: Duration, failed: bool) {
        if let Some(waiting) = self.pods.get_mut(key) {
            waiting.tries += 1;
            waiting.refused = !failed;
            let wait = if failed { backoff(waiting.tries) } else { RETRY_ANYWAY };
            waiting.not_before = Some(now + wait);
        }
    }

    /// Something changed that may let refused pods in: they are tried again, after their backoff.
    pub fn something_changed(&mut self, now: Duration) {
        for waiting in self.pods.values_mut().filter(|w| w.refused) {
            waiting.refused = false;
            let at = now + backoff(waiting.tries);
            waiting.not_before = Some(waiting.not_before.map_or(at, |old| old.min(at)));
        }
    }

    /// When the next pod is due; `None` when nothing waits for a time.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        if self.ready.is_empty() {
            self.pods.values().filter_map(|w| w.not_before).min()
        } else {
            Some(Duration::ZERO)
        }
    }
}

fn backoff(tries: u32) -> Duration {
    let doubled = BACKOFF_FIRST.saturating_mul(1 << tries.saturating_sub(1).min(8));
    doubled.min(BACKOFF_MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn key(name: &str) -> Key {
        Key::new("ns", name)
    }

    #[test]
    fn priority_goes_before_age() {
        let mut queue = Queue::default();
        queue.add(&key("old"), 0, 1);
        queue.add(&key("new"), 0, 2);
        queue.add(&key("high"), 100, 3);
        assert_eq!(queue.take(S, 10), [key("high"), key("old"), key("new")]);
        assert!(queue.take(S, 10).is_empty());
    }

    #[test]
    fn a_refused_pod_waits_for_a_change_and_its_backoff() {
        let mut queue = Queue::default();
        queue.add(&key("p"), 0, 1);
        queue.take(S, 10);
        queue.refuse(&key("p"), S, false);
        assert!(queue.take(20 * S, 10).is_empty());
        queue.something_changed(20 * S);
        assert!(queue.take(20 * S, 10).is_empty());
        assert_eq!(queue.take(21 * S, 10), [key("p")]);
    }

    #[test]
    fn a_pod_that_is_gone_is_not_taken() {
        let mut queue = Queue::default();
        queue.add(&key("p"), 0, 1);
        queue.remove(&key("p"));
        assert!(queue.take(S, 10).is_empty());
        assert_eq!(queue.next_due(), None);
    }
}
