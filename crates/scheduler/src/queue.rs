//! Which pods wait, in which order they are tried, and when again. Pure.
//!
//! A pod that fits nowhere waits until something changes that its refusers care for (upstream's queueing hints), and
//! then for its backoff.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use client::Key;

use crate::filters::Plugins;

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
    state: State,
    group: Option<Group>,
}

/// What a pod waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its turn.
    Ready,
    /// The end of the round that it was taken for.
    Taken,
    /// A time.
    Backoff(Duration),
    /// A change that these care for; or a time.
    Refused(Plugins, Duration),
}

impl State {
    fn due(self) -> Option<Duration> {
        match self {
            Self::Backoff(at) | Self::Refused(_, at) => Some(at),
            Self::Ready | Self::Taken => None,
        }
    }
}

/// A group of pods that are placed together: its namespace and name.
pub type Group = (String, String);

/// The pods without a node.
#[derive(Debug, Default)]
pub struct Queue {
    pods: BTreeMap<Key, Waiting>,
    ready: BTreeSet<Rank>,
    due: BTreeSet<(Duration, Key)>,
    /// Those that were refused, by whom.
    refused: BTreeMap<Plugins, BTreeSet<Key>>,
    groups: BTreeMap<Group, BTreeSet<Key>>,
    /// Whom the changes since the last round began concern: a pod refused in it may have missed one.
    meanwhile: Plugins,
}

impl Queue {
    /// A pod waits (or has changed, which makes it worth another try).
    pub fn add(&mut self, key: &Key, priority: i32, created_s: i64, group: Option<Group>) {
        let rank = (std::cmp::Reverse(priority), created_s, key.clone());
        let tries = self.pods.get(key).map_or(0, |w| w.tries);
        self.remove(key);
        if let Some(group) = &group {
            self.groups.entry(group.clone()).or_default().insert(key.clone());
        }
        self.ready.insert(rank.clone());
        self.pods.insert(key.clone(), Waiting { rank, tries, state: State::Ready, group });
    }

    /// A pod waits no more.
    pub fn remove(&mut self, key: &Key) {
        self.put(key, State::Taken);
        let Some(waiting) = self.pods.remove(key) else { return };
        if let Some(group) = waiting.group
            && let Some(members) = self.groups.get_mut(&group)
        {
            members.remove(key);
            if members.is_empty() {
                self.groups.remove(&group);
            }
        }
    }

    fn put(&mut self, key: &Key, state: State) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        if waiting.state == State::Ready {
            self.ready.remove(&waiting.rank);
        }
        if let Some(at) = waiting.state.due() {
            self.due.remove(&(at, key.clone()));
        }
        if let State::Refused(by, _) = waiting.state
            && let Some(keys) = self.refused.get_mut(&by)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.refused.remove(&by);
            }
        }
        if state == State::Ready {
            self.ready.insert(waiting.rank.clone());
        }
        if let Some(at) = state.due() {
            self.due.insert((at, key.clone()));
        }
        if let State::Refused(by, _) = state {
            self.refused.entry(by).or_default().insert(key.clone());
        }
        waiting.state = state;
    }

    /// Takes the pods whose turn it is, about `most`: all of a group come together.
    pub fn take(&mut self, now: Duration, most: usize) -> Vec<Key> {
        while let Some((at, key)) = self.due.first().cloned()
            && at <= now
        {
            self.put(&key, State::Ready);
        }
        self.meanwhile = Plugins::default();
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some((_, _, key)) = self.ready.first().cloned()
        {
            let group = self.pods.get(&key).and_then(|w| w.group.as_ref());
            let members = group.and_then(|group| self.groups.get(group)).cloned();
            for key in members.unwrap_or_else(|| BTreeSet::from([key])) {
                self.put(&key, State::Taken);
                taken.push(key);
            }
        }
        taken
    }

    /// A pod was tried in vain at `now`, and these refused it.
    pub fn refuse(&mut self, key: &Key, now: Duration, by: Plugins) {
        if by.meets(self.meanwhile) {
            return self.fail(key, now);
        }
        if let Some(waiting) = self.pods.get_mut(key) {
            waiting.tries += 1;
        }
        self.put(key, State::Refused(by, now + RETRY_ANYWAY));
    }

    /// A pod had a node at `now` and could not be bound.
    pub fn fail(&mut self, key: &Key, now: Duration) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        waiting.tries += 1;
        let at = now + backoff(waiting.tries);
        self.put(key, State::Backoff(at));
    }

    /// Something changed that these care for: whom they refused is tried again, after its backoff.
    pub fn changed(&mut self, now: Duration, whom: Plugins) {
        self.meanwhile = self.meanwhile.and(whom);
        let met = self.refused.iter().filter(|(by, _)| by.meets(whom));
        for key in met.flat_map(|(_, keys)| keys).cloned().collect::<Vec<_>>() {
            let tries = self.pods.get(&key).map_or(0, |w| w.tries);
            self.put(&key, State::Backoff(now + backoff(tries)));
        }
    }

    /// When the next pod is due; `None` when nothing waits for a time.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        if self.ready.is_empty() {
            self.due.first().map(|(at, _)| *at)
        } else {
            Some(Duration::ZERO)
        }
    }

    /// How many pods are tried at their turn, wait for a time, and wait for a change.
    #[must_use]
    pub fn lengths(&self) -> (usize, usize, usize) {
        let refused = self.refused.values().map(BTreeSet::len).sum();
        (self.ready.len(), self.due.len() - refused, refused)
    }
}

fn backoff(tries: u32) -> Duration {
    let doubled = BACKOFF_FIRST.saturating_mul(1 << tries.saturating_sub(1).min(8));
    doubled.min(BACKOFF_MOST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filters::Plugin;

    const S: Duration = Duration::from_secs(1);
    const FIT: Plugins = Plugins::of(&[Plugin::NodeResourcesFit]);

    fn key(name: &str) -> Key {
        Key::new("ns", name)
    }

    #[test]
    fn priority_goes_before_age() {
        let mut queue = Queue::default();
        queue.add(&key("old"), 0, 1, None);
        queue.add(&key("new"), 0, 2, None);
        queue.add(&key("high"), 100, 3, None);
        assert_eq!(queue.take(S, 2), [key("high"), key("old")]);
        assert_eq!(queue.take(S, 10), [key("new")]);
        assert!(queue.take(S, 10).is_empty());
    }

    #[test]
    fn a_refused_pod_waits_for_a_change_that_matters_and_its_backoff() {
        let mut queue = Queue::default();
        queue.add(&key("p"), 0, 1, None);
        queue.take(S, 10);
        queue.refuse(&key("p"), S, FIT);
        assert!(queue.take(20 * S, 10).is_empty());
        queue.changed(20 * S, Plugins::of(&[Plugin::TaintToleration]));
        assert!(queue.take(25 * S, 10).is_empty());
        queue.changed(25 * S, FIT);
        assert!(queue.take(25 * S, 10).is_empty());
        assert_eq!(queue.next_due(), Some(26 * S));
        assert_eq!(queue.take(26 * S, 10), [key("p")]);
    }

    #[test]
    fn a_change_while_a_pod_is_decided_on_is_not_missed() {
        let mut queue = Queue::default();
        queue.add(&key("p"), 0, 1, None);
        queue.take(S, 10);
        queue.changed(S, FIT);
        queue.refuse(&key("p"), S, FIT);
        assert_eq!(queue.next_due(), Some(2 * S));
    }

    #[test]
    fn a_refused_pod_is_tried_again_some_day() {
        let mut queue = Queue::default();
        queue.add(&key("p"), 0, 1, None);
        queue.take(S, 10);
        queue.refuse(&key("p"), S, FIT);
        assert_eq!(queue.take(301 * S, 10), [key("p")]);
    }

    #[test]
    fn a_group_is_taken_whole() {
        let mut queue = Queue::default();
        let group = Some(("ns".to_owned(), "g".to_owned()));
        queue.add(&key("a"), 0, 1, group.clone());
        queue.add(&key("b"), 0, 2, None);
        queue.add(&key("c"), 0, 3, group);
        assert_eq!(queue.take(S, 1), [key("a"), key("c")]);
        queue.remove(&key("a"));
        queue.remove(&key("c"));
        assert!(queue.groups.is_empty());
    }

    #[test]
    fn a_pod_that_is_gone_is_not_taken() {
        let mut queue = Queue::default();
        queue.add(&key("p"), 0, 1, None);
        queue.refuse(&key("p"), S, FIT);
        queue.remove(&key("p"));
        assert!(queue.take(1000 * S, 10).is_empty());
        assert_eq!(queue.next_due(), None);
    }
}
