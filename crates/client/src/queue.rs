//! A keyed work queue: a key waits at most once, is worked on by one worker at a time, and comes
//! back later when asked or, with doubling delays, after failures.
//!
//! `add` from anywhere; a worker loops `next().await`, works, then calls `done` (and `retry` or
//! `forget` first). A key added while it is worked on comes again after `done`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use daemon::{Clock, jitter};
use parking_lot::Mutex;
use tokio::sync::Notify;

const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_MOST: Duration = Duration::from_secs(1000);
/// Doublings after which the delay cannot grow any more.
const DOUBLINGS_MAX: u32 = 18;

/// The queue without its clock: every call is told the time.
#[derive(Debug)]
pub struct Pending<K> {
    ready: VecDeque<K>,
    waiting: BTreeSet<K>,
    later: BTreeMap<K, Duration>,
    running: BTreeMap<K, bool>,
    failures: BTreeMap<K, u32>,
}

impl<K> Default for Pending<K> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            waiting: BTreeSet::new(),
            later: BTreeMap::new(),
            running: BTreeMap::new(),
            failures: BTreeMap::new(),
        }
    }
}

impl<K: Ord + Clone> Pending<K> {
    /// The key needs work now.
    pub fn add(&mut self, key: K) {
        if let Some(again) = self.running.get_mut(&key) {
            *again = true;
        } else if self.waiting.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    /// The key needs work at `due`, or earlier when it was promised earlier.
    pub fn add_at(&mut self, key: K, due: Duration) {
        let at = self.later.entry(key).or_insert(due);
        *at = due.min(*at);
    }

    /// The next key to work on at `now`.
    pub fn take(&mut self, now: Duration) -> Option<K> {
        if self.later.values().any(|at| *at <= now) {
            let due: Vec<K> =
                self.later.iter().filter(|(_, at)| **at <= now).map(|(k, _)| k.clone()).collect();
            for key in due {
                self.later.remove(&key);
                self.add(key);
            }
        }
        let key = self.ready.pop_front()?;
        self.waiting.remove(&key);
        self.running.insert(key.clone(), false);
        Some(key)
    }

    /// When the first delayed key is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        self.later.values().min().copied()
    }

    /// The work on a key has ended.
    pub fn done(&mut self, key: &K) {
        if self.running.remove(key) == Some(true) {
            self.add(key.clone());
        }
    }

    /// The work failed: how long to wait before the next attempt.
    pub fn failed(&mut self, key: &K) -> Duration {
        let failures = self.failures.entry(key.clone()).or_insert(0);
        let delay = RETRY_FIRST * 2_u32.pow((*failures).min(DOUBLINGS_MAX));
        *failures += 1;
        delay.min(RETRY_MOST)
    }

    /// The work succeeded: the next failure waits briefly again.
    pub fn forget(&mut self, key: &K) {
        self.failures.remove(key);
    }

    /// How many keys wait to be worked on now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ready.len()
    }

    /// Whether none waits to be worked on now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }
}

/// A shared queue. Clones share it.
#[derive(Clone, Debug)]
pub struct Queue<K> {
    pending: Arc<Mutex<Pending<K>>>,
    wake: Arc<Notify>,
    clock: Clock,
}

impl<K: Ord + Clone> Queue<K> {
    /// An empty queue.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { pending: Arc::default(), wake: Arc::default(), clock }
    }

    /// The key needs work now.
    pub fn add(&self, key: K) {
        self.pending.lock().add(key);
        self.wake.notify_one();
    }

    /// The key needs work after `delay`.
    pub fn add_after(&self, key: K, delay: Duration) {
        let due = self.clock.monotonic() + delay;
        self.pending.lock().add_at(key, due);
        self.wake.notify_one();
    }

    /// The work failed: it comes again after a delay that doubles with each failure.
    pub fn retry(&self, key: &K) {
        let delay = jitter(self.pending.lock().failed(key));
        self.add_after(key.clone(), delay);
    }

    /// The work succeeded.
    pub fn forget(&self, key: &K) {
        self.pending.lock().forget(key);
    }

    /// The work on a key has ended; call it after every [`Queue::next`].
    pub fn done(&self, key: &K) {
        self.pending.lock().done(key);
        self.wake.notify_one();
    }

    /// How many keys wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pending.lock().len()
    }

    /// Whether no key waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.lock().is_empty()
    }

    /// Waits for the next key. Dropping the future loses no key.
    pub async fn next(&self) -> K {
        loop {
            let now = self.clock.monotonic();
            let (key, due, more) = {
                let mut pending = self.pending.lock();
                let key = pending.take(now);
                (key, pending.next_due(), !pending.is_empty())
            };
            if let Some(key) = key {
                if more {
                    self.wake.notify_one(); // another worker may take the next one
                }
                return key;
            }
            match due {
                Some(due) => tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep(due.saturating_sub(now)) => {}
                },
                None => self.wake.notified().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_key_waits_once_and_is_not_worked_on_twice_at_a_time() {
        let mut q = Pending::default();
        q.add("a");
        q.add("a");
        assert_eq!(q.take(S), Some("a"));
        q.add("a");
        assert_eq!(q.take(S), None, "still running");
        q.done(&"a");
        assert_eq!(q.take(S), Some("a"));
        q.done(&"a");
        assert_eq!(q.take(S), None);
    }

    #[test]
    fn the_earliest_promise_counts() {
        let mut q = Pending::default();
        q.add_at("a", 5 * S);
        q.add_at("a", 3 * S);
        q.add_at("a", 9 * S);
        assert_eq!((q.take(2 * S), q.next_due()), (None, Some(3 * S)));
        assert_eq!(q.take(3 * S), Some("a"));
        assert_eq!(q.next_due(), None);
    }

    #[test]
    fn failures_wait_longer_until_forgotten() {
        let mut q = Pending::<&str>::default();
        let waits: Vec<u128> = (0..4).map(|_| q.failed(&"a").as_millis()).collect();
        assert_eq!(waits, [5, 10, 20, 40]);
        q.forget(&"a");
        assert_eq!(q.failed(&"a").as_millis(), 5);
        for _ in 0..40 {
            q.failed(&"a");
        }
        assert_eq!(q.failed(&"a"), RETRY_MOST);
    }
}
