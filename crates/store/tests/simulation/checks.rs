//! What must be true of every world in the end.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use testkit::history;
use wire::mvccpb::KeyValue;
use wire::mvccpb::event::EventType;

use super::member::Member;
use super::world::World;

/// A write must be acknowledged after this moment: all is well again, and somebody leads.
const PROGRESS: Duration = Duration::from_secs(13);

/// Everything that is wrong with a world at its end.
pub fn violations(world: &World) -> Vec<String> {
    let mut found = world.violations.clone();
    if !found.is_empty() {
        return found; // it did not reach its end
    }
    for (key, operations) in &world.memory.operations {
        if let Err(violation) = history::linearizable(operations) {
            found.push(format!("key {key}: {violation}"));
        }
    }
    if let Err(violation) = history::in_time_order(&world.memory.stamps) {
        found.push(violation.to_string());
    }
    found.extend(ranges(world));
    found.extend(watches(world));
    found.extend(leases(world));
    found.extend(members(world));
    if world.memory.last_write < PROGRESS {
        found.push(format!("no write since {:?}", world.memory.last_write));
    }
    found
}

/// A read of all keys is the state at its revision, which the changes tell.
fn ranges(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    let mut reads: Vec<_> = world.memory.ranges.iter().collect();
    reads.sort_by_key(|range| range.header.as_ref().map_or(0, |header| header.revision));
    let mut state: BTreeMap<Bytes, KeyValue> = BTreeMap::new();
    let mut changes = world.changes.values().peekable();
    for read in reads {
        let revision = read.header.as_ref().map_or(0, |header| header.revision);
        while let Some(change) = changes.next_if(|change| change.main <= revision) {
            for event in change.events.iter() {
                let kv = event.kv.clone().unwrap_or_default();
                if event.r#type == i32::from(EventType::Put) {
                    state.insert(kv.key.clone(), kv);
                } else {
                    state.remove(&kv.key);
                }
            }
        }
        let wanted = state.values().filter(|kv| kv.key.len() == 1);
        if !wanted.eq(read.kvs.iter()) {
            found.push(format!("at revision {revision} a read found {:?}", read.kvs));
        }
    }
    found
}

/// A watcher heard every change, except those it was told it would not.
fn watches(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    for (watcher, listener) in &world.listeners {
        let told =
            |main: i64| listener.missed.iter().any(|(from, to)| (*from..*to).contains(&main));
        let happened: Vec<_> = world
            .changes
            .values()
            .filter(|change| !told(change.main))
            .flat_map(|change| change.events.iter().cloned())
            .map(|event| wire::mvccpb::Event { prev_kv: None, ..event })
            .collect();
        if let Err(violation) = history::heard_all(&happened, &listener.heard) {
            found.push(format!("watcher {watcher}: {violation}"));
        }
    }
    found
}

/// Every lease has ended, and its key was removed with it, once.
fn leases(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    for (id, lease) in &world.memory.leases {
        if lease.renewed.is_some() && lease.ended.is_none() {
            found.push(format!("lease {id} outlived its time: {lease:?}"));
        }
        let key = Bytes::from(format!("lease-{id}"));
        let (mut alive, mut removed) = (false, 0);
        let events = world.changes.values().flat_map(|change| change.events.iter());
        for event in events.filter(|e| e.kv.as_ref().is_some_and(|kv| kv.key == key)) {
            alive = event.r#type == i32::from(EventType::Put);
            removed += u64::from(!alive);
        }
        if alive || (lease.attached && removed != 1) || removed > 1 {
            found.push(format!("the key of lease {id} was removed {removed} times: {lease:?}"));
        }
    }
    found
}

/// All members are up and have the same state, which every change made.
fn members(world: &World) -> Vec<String> {
    let states: Vec<(u64, String)> =
        world.members().map(|(id, member)| (id, state(member))).collect();
    let mut found = Vec::new();
    for (id, state) in &states {
        if *state != states[0].1 {
            found.push(format!("member {id} has {state}, but {} has {}", states[0].0, states[0].1));
        }
    }
    if let Some((id, _)) = world.members().find(|(_, member)| !member.all_level()) {
        found.push(format!("a watcher of member {id} never caught up"));
    }
    found
}

/// Everything that a member's state says, in words.
fn state(member: &Member) -> String {
    let mut text = format!("{:?} {:?}", member.applied.mark, member.applied.mvcc.summary());
    let read = member.applied.mvcc.records(&(), |at, event| {
        text.push_str(&format!(" {at:?} {event:?}"));
        Ok(())
    });
    assert!(read.is_ok(), "memory has every value");
    text
}
