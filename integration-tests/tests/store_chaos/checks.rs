//! What must be true in the end. The changes that the store tells of are what happened; all that clients saw has to
//! agree with them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use bytes::Bytes;
use testkit::history::{self, Call};

use super::clients::{Change, Memory, value};

/// What a watcher heard, and when.
pub type Heard = (Vec<Change>, Vec<Instant>);

/// Everything that is wrong.
pub fn violations(memory: &Memory, happened: &[Change], heard: &[Heard]) -> Vec<String> {
    let mut found = Vec::new();
    let values: BTreeSet<u64> = happened.iter().filter_map(|c| value(c.2.as_ref()?)).collect();
    for (key, operations) in &memory.operations {
        // A write without an answer that nobody ever sees did not happen; the others, nobody knows when.
        let mut operations = operations.clone();
        operations.retain(|operation| match operation.call {
            Call::Put(value) | Call::Swap(_, value) if operation.answered.is_none() => {
                values.contains(&value)
            }
            _ => true,
        });
        if let Err(violation) = history::linearizable(&operations) {
            found.push(format!("key {key}: {violation}"));
        }
    }
    if let Err(violation) = history::in_time_order(&memory.stamps) {
        found.push(violation.to_string());
    }
    let all: BTreeSet<&Change> = happened.iter().collect();
    let lost = memory.written.iter().filter(|written| !all.contains(written));
    found.extend(lost.map(|lost| format!("acknowledged, but it did not happen: {lost:?}")));
    for (watcher, (changes, _)) in heard.iter().enumerate() {
        if let Err(violation) = history::heard_all(happened, changes) {
            found.push(format!("watcher {watcher}: {violation}"));
        }
    }
    found.extend(ranges(memory, happened));
    found.extend(leases(memory, happened, heard));
    found
}

/// A read of several keys, also a serializable one, is the state at its revision.
fn ranges(memory: &Memory, happened: &[Change]) -> Vec<String> {
    let mut found = Vec::new();
    let revision = |at: usize| memory.ranges[at].1.header.as_ref().map_or(0, |h| h.revision);
    let mut reads: Vec<usize> = (0..memory.ranges.len()).collect();
    reads.sort_by_key(|at| revision(*at));
    let mut state: BTreeMap<&Bytes, (i64, &Bytes)> = BTreeMap::new();
    let mut changes = happened.iter().peekable();
    for read in reads {
        while let Some((at, key, value)) = changes.next_if(|change| change.0 <= revision(read)) {
            match value {
                Some(value) => state.insert(key, (*at, value)),
                None => state.remove(key),
            };
        }
        let (prefix, range) = &memory.ranges[read];
        let wanted = state.iter().filter(|(key, _)| key.starts_with(prefix.as_bytes()));
        let wanted = wanted.map(|(key, (at, value))| (*key, *at, *value));
        let was = range.kvs.iter().map(|kv| (&kv.key, kv.mod_revision, &kv.value));
        if !wanted.eq(was) {
            found.push(format!("at revision {} a read found {:?}", revision(read), range.kvs));
        }
    }
    found
}

/// No lease ended while it was kept alive, all have ended, and their keys went with them, once.
fn leases(memory: &Memory, happened: &[Change], heard: &[Heard]) -> Vec<String> {
    let mut found = Vec::new();
    let mut removed: BTreeMap<&Bytes, Instant> = BTreeMap::new();
    for (changes, times) in heard {
        for ((_, key, _), time) in changes.iter().zip(times).filter(|(c, _)| c.2.is_none()) {
            let first = removed.entry(key).or_insert(*time);
            *first = (*first).min(*time);
        }
    }
    for (id, lease) in &memory.leases {
        let key = Bytes::from(format!("l/{id}"));
        let kinds = happened.iter().filter(|c| c.1 == key).map(|c| c.2.is_some());
        let kinds: Vec<bool> = kinds.collect();
        let right = match kinds[..] {
            [] => !lease.attached,
            [true, false] => true,
            _ => false,
        };
        if !right {
            found.push(format!("the key of lease {id} was written, removed: {kinds:?}, {lease:?}"));
        }
        let early = removed.get(&key).zip(lease.safe_until).filter(|(ended, safe)| **ended < *safe);
        if let Some((ended, safe)) = early {
            found.push(format!("lease {id} ended {:?} before its time", safe - *ended));
        }
    }
    found
}
