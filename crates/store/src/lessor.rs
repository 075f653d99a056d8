//! When leases expire, as the leader counts it. Pure: time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::mvcc::Leases;

/// The deadlines of all leases, on the leader's monotonic clock.
#[derive(Debug, Default)]
pub struct Lessor {
    by_id: BTreeMap<i64, Deadline>,
}

#[derive(Debug, Clone, Copy)]
struct Deadline {
    at: Duration,
    ttl_s: i64,
    /// Its end is already proposed, so it cannot be renewed any more.
    ending: bool,
}

impl Lessor {
    /// All leases of a state begin.
    #[must_use]
    pub fn new(leases: &Leases, now: Duration) -> Self {
        let mut lessor = Self::default();
        leases.iter().for_each(|(id, lease)| lessor.begin(id, lease.ttl_s, now));
        lessor
    }

    /// What a round of applied entries did: leases begun (with their life in seconds) or gone, and
    /// whether a new leader has begun.
    pub fn note(&mut self, changed: &[(i64, Option<i64>)], leads_anew: bool, now: Duration) {
        for (id, ttl_s) in changed {
            match ttl_s {
                Some(ttl_s) => self.begin(*id, *ttl_s, now),
                None => self.end(*id),
            }
        }
        if leads_anew {
            self.extend_all(now);
        }
    }

    /// A lease begins.
    pub fn begin(&mut self, id: i64, ttl_s: i64, now: Duration) {
        self.by_id.insert(id, Deadline { at: now + seconds(ttl_s), ttl_s, ending: false });
    }

    /// A new leader gives every lease its full life again: the old one may have renewed it.
    pub fn extend_all(&mut self, now: Duration) {
        for deadline in self.by_id.values_mut() {
            *deadline = Deadline { at: now + seconds(deadline.ttl_s), ending: false, ..*deadline };
        }
    }

    /// A lease is gone.
    pub fn end(&mut self, id: i64) {
        self.by_id.remove(&id);
    }

    /// Renews a lease and returns its life in seconds, unless it is gone or about to go.
    pub fn renew(&mut self, id: i64, now: Duration) -> Option<i64> {
        let deadline = self.by_id.get_mut(&id).filter(|d| !d.ending && d.at > now)?;
        deadline.at = now + seconds(deadline.ttl_s);
        Some(deadline.ttl_s)
    }

    /// Whole seconds left.
    #[must_use]
    pub fn left_s(&self, id: i64, now: Duration) -> Option<i64> {
        let left = self.by_id.get(&id)?.at.saturating_sub(now);
        i64::try_from(left.as_secs()).ok()
    }

    /// Leases whose end must be proposed now; each is returned once until [`Lessor::retry`].
    pub fn expired(&mut self, now: Duration) -> Vec<i64> {
        let due = self.by_id.iter_mut().filter(|(_, d)| !d.ending && d.at <= now);
        due.map(|(id, deadline)| {
            deadline.ending = true;
            *id
        })
        .collect()
    }

    /// The proposal to end a lease failed.
    pub fn retry(&mut self, id: i64) {
        if let Some(deadline) = self.by_id.get_mut(&id) {
            deadline.ending = false;
        }
    }
}

fn seconds(ttl_s: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl_s).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewed_lease_lives_on_and_an_expired_one_is_named_once() {
        let at = Duration::from_secs;
        let mut lessor = Lessor::default();
        lessor.begin(1, 5, at(0));
        lessor.begin(2, 5, at(0));
        assert_eq!(lessor.renew(1, at(4)), Some(5));
        assert_eq!(lessor.left_s(1, at(6)), Some(3));
        assert_eq!(lessor.expired(at(5)), [2]);
        assert_eq!(lessor.expired(at(6)), Vec::<i64>::new());
        assert_eq!(lessor.renew(2, at(6)), None);
        lessor.retry(2);
        assert_eq!(lessor.expired(at(6)), [2]);
    }
}
