//! What clients saw, and whether a store that does one thing at a time could have shown it.
//!
//! [`linearizable`] searches an order of all operations on one key that explains every answer and
//! respects time (Wing and Gong's search with Lowe's memory of where it has been). An operation
//! without an answer may have happened at any time since it was called, or never. Keys are looked
//! at one by one, which is enough: a history is linearizable if that of every key is. What several
//! keys say together is in their revisions: [`in_time_order`]. [`heard_all`] is for watches.

use std::collections::BTreeSet;
use std::fmt::{self, Debug};

/// What a client asked of one key. Values are numbers, each written once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Its value.
    Get,
    /// Write it.
    Put(u64),
    /// Remove it.
    Delete,
    /// Write the second if the first is there (none: if nothing is).
    Swap(Option<u64>, u64),
}

/// What the client heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The value, if there is one.
    Found(Option<u64>),
    /// It is written or removed.
    Done,
    /// Whether it was swapped.
    Swapped(bool),
}

/// One operation on one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// When it was called; any count that grows.
    pub called: u64,
    /// What was asked.
    pub call: Call,
    /// When the answer came and what it was; none if nobody knows what happened.
    pub answered: Option<(u64, Answer)>,
}

/// A history that no correct store could have shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// States looked at before a history is called too hard: a bound on time, far above real ones.
const STATES_MAX: usize = 4_000_000;

/// Whether one order of the operations explains all answers.
///
/// # Errors
/// The operations around which none was found.
pub fn linearizable(operations: &[Operation]) -> Result<(), Violation> {
    let mut all: Vec<Operation> = operations.to_vec();
    // Nobody knows what a read without an answer found, so it says nothing.
    all.retain(|operation| operation.answered.is_some() || operation.call != Call::Get);
    all.sort_by_key(|operation| operation.called);
    let mut search = Search {
        done: vec![false; all.len()],
        left: all.iter().filter(|operation| operation.answered.is_some()).count(),
        all: &all,
        seen: BTreeSet::new(),
        deepest: 0,
        stuck: Vec::new(),
    };
    if search.from(None, 0) {
        return Ok(());
    }
    let what = if search.seen.len() > STATES_MAX { "too hard to judge" } else { "impossible" };
    Err(Violation(format!(
        "{what} after {} of {} operations; next would be one of {:#?}",
        search.deepest,
        all.len(),
        search.stuck
    )))
}

struct Search<'a> {
    all: &'a [Operation],
    done: Vec<bool>,
    /// Operations with an answer that are not in the order yet.
    left: usize,
    /// Which operations were done in which state: what follows does not depend on their order.
    seen: BTreeSet<(Vec<bool>, Option<u64>)>,
    deepest: usize,
    stuck: Vec<Operation>,
}

impl Search<'_> {
    /// Whether the rest can be put in order; all operations before `first` are done.
    fn from(&mut self, value: Option<u64>, first: usize) -> bool {
        if self.left == 0 {
            return true;
        }
        let first = first + self.done[first..].iter().take_while(|done| **done).count();
        let known = (self.done[first..].to_vec(), value);
        if self.seen.len() > STATES_MAX || !self.seen.insert(known) {
            return false;
        }
        let next = self.candidates(first);
        let depth = self.done.iter().filter(|done| **done).count();
        if depth >= self.deepest {
            self.deepest = depth;
            self.stuck = next.iter().map(|at| self.all[*at]).collect();
        }
        for at in next {
            let operation = self.all[at];
            let answer = operation.answered.map(|(_, answer)| answer);
            let Some(after) = step(value, operation.call, answer) else { continue };
            self.done[at] = true;
            self.left -= usize::from(answer.is_some());
            if self.from(after, first) {
                return true;
            }
            self.done[at] = false;
            self.left += usize::from(answer.is_some());
        }
        false
    }

    /// Operations that may be next: called before any other that is left was answered. Those with
    /// an answer come first, since they must be placed somewhere.
    fn candidates(&self, first: usize) -> Vec<usize> {
        let mut answered = Vec::new();
        let mut unknown = Vec::new();
        let mut until = u64::MAX;
        for at in first..self.all.len() {
            let operation = self.all[at];
            if operation.called > until {
                break;
            }
            if self.done[at] {
                continue;
            }
            match operation.answered {
                Some((time, _)) => {
                    until = until.min(time);
                    answered.push(at);
                }
                None => unknown.push(at),
            }
        }
        answered.extend(unknown);
        answered.retain(|at| self.all[*at].called <= until);
        answered
    }
}

/// The value after an operation, unless its answer contradicts the value before it. An operation
/// without an answer that would change nothing need not be placed at all.
fn step(value: Option<u64>, call: Call, answer: Option<Answer>) -> Option<Option<u64>> {
    match (call, answer) {
        (Call::Get, Some(Answer::Found(found))) => (found == value).then_some(value),
        (Call::Put(new), Some(Answer::Done) | None) => Some(Some(new)),
        (Call::Delete, Some(Answer::Done)) => Some(None),
        (Call::Delete, None) => value.is_some().then_some(None),
        (Call::Swap(from, to), Some(Answer::Swapped(swapped))) => {
            let after = if swapped { Some(to) } else { value };
            (swapped == (from == value)).then_some(after)
        }
        (Call::Swap(from, to), None) => (from == value).then_some(Some(to)),
        _ => None,
    }
}

/// One answer of a store whose every change has a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// When it was called.
    pub called: u64,
    /// When it was answered.
    pub answered: u64,
    /// The store's revision in the answer.
    pub revision: i64,
    /// Whether it made that revision.
    pub wrote: bool,
}

/// Whether revisions respect time over all keys: what is called after an answer has at least its
/// revision, and a greater one if it writes.
///
/// # Errors
/// Two answers that contradict each other.
pub fn in_time_order(stamps: &[Stamp]) -> Result<(), Violation> {
    let mut by_answer: Vec<&Stamp> = stamps.iter().collect();
    by_answer.sort_by_key(|stamp| stamp.answered);
    let mut by_call: Vec<&Stamp> = stamps.iter().collect();
    by_call.sort_by_key(|stamp| stamp.called);
    let mut answered = by_answer.into_iter().peekable();
    let mut newest: Option<&Stamp> = None;
    for stamp in by_call {
        while let Some(before) = answered.next_if(|before| before.answered < stamp.called) {
            if newest.is_none_or(|newest| newest.revision < before.revision) {
                newest = Some(before);
            }
        }
        let Some(before) = newest else { continue };
        if stamp.revision < before.revision || (stamp.wrote && stamp.revision == before.revision) {
            return Err(Violation(format!("{stamp:?} came after {before:?}")));
        }
    }
    let mut written = BTreeSet::new();
    match stamps.iter().find(|stamp| stamp.wrote && !written.insert(stamp.revision)) {
        Some(twice) => Err(Violation(format!("two writes made revision {}", twice.revision))),
        None => Ok(()),
    }
}

/// Whether a watcher heard what happened, all of it, in order and once.
///
/// # Errors
/// The first difference.
pub fn heard_all<E: PartialEq + Debug>(happened: &[E], heard: &[E]) -> Result<(), Violation> {
    let same = happened.iter().zip(heard).take_while(|(a, b)| a == b).count();
    if same == happened.len() && same == heard.len() {
        return Ok(());
    }
    Err(Violation(format!(
        "after {same} events a watcher heard {:?} where {:?} happened",
        heard.get(same),
        happened.get(same)
    )))
}

#[cfg(test)]
mod tests;
