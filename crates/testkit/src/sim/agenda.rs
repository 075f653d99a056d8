//! The time of a simulation: what happens next, and when. Nothing happens by itself.

use std::collections::BTreeMap;
use std::time::Duration;

/// What is going to happen, in the order of time; at one instant in the order it was planned.
#[derive(Debug)]
pub struct Agenda<E> {
    now: Duration,
    planned: u64,
    events: BTreeMap<(Duration, u64), E>,
}

impl<E> Default for Agenda<E> {
    fn default() -> Self {
        Self { now: Duration::ZERO, planned: 0, events: BTreeMap::new() }
    }
}

impl<E> Agenda<E> {
    /// The time.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Plans an event.
    pub fn after(&mut self, delay: Duration, event: E) {
        self.planned += 1;
        self.events.insert((self.now + delay, self.planned), event);
    }

    /// Goes on to the next event.
    pub fn next_event(&mut self) -> Option<E> {
        let ((at, _), event) = self.events.pop_first()?;
        self.now = at;
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_the_order_of_time_then_of_planning() {
        let mut agenda = Agenda::default();
        for (delay, event) in [(5, 'c'), (1, 'a'), (5, 'd'), (1, 'b')] {
            agenda.after(Duration::from_millis(delay), event);
        }
        let order: String = std::iter::from_fn(|| agenda.next_event()).collect();
        assert_eq!(order, "abcd");
        assert_eq!(agenda.now(), Duration::from_millis(5));
    }
}
