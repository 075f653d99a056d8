//! Whole clusters under a seed: crashes, torn writes, partitions, bad weather, slow disks and
//! clocks that disagree, while clients write, read, swap, hold leases and watch.
//!
//! `SEED=n` runs that one world and prints what it finds; `SEEDS=n` runs so many. Five planted
//! bugs show that the checks can fail.

#![allow(unreachable_pub)] // modules of one test

#[path = "simulation/checks.rs"]
mod checks;
#[path = "simulation/clients.rs"]
mod clients;
#[path = "simulation/member.rs"]
mod member;
#[path = "simulation/world.rs"]
mod world;

use member::Bug;
use world::{Counts, World};

/// Worlds in CI.
const SEEDS: u64 = 200;

fn run(seed: u64, bug: Option<Bug>) -> (World, Vec<String>) {
    let mut world = World::new(seed, bug);
    world.run();
    let found = checks::violations(&world);
    (world, found)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn every_seed_keeps_all_promises() {
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(SEEDS),
    };
    let mut sum = Counts::default();
    for seed in seeds.clone() {
        let (world, found) = run(seed, None);
        let members = world.members().map(|(id, member)| format!("{id}: {}\n", member.describe()));
        let text = || [members.collect::<String>(), found.join("\n")].concat();
        assert!(found.is_empty(), "SEED={seed}\n{}", text());
        sum.crashes += world.counts.crashes;
        sum.partitions += world.counts.partitions;
        sum.leaders += world.counts.leaders;
        sum.writes += world.counts.writes;
        sum.expired += world.counts.expired;
        sum.compacted += world.counts.compacted;
        sum.events += world.counts.events;
        sum.snapshots += world.counts.snapshots;
        sum.members += world.counts.members;
    }
    println!("{sum:?}");
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..5 {
        let ((one, _), (two, _)) = (run(seed, None), run(seed, None));
        assert_eq!(one.trace, two.trace, "SEED={seed}");
    }
    assert_ne!(run(1, None).0.trace, run(2, None).0.trace);
}

fn caught(bug: Bug) {
    let found = (0..SEEDS).find_map(|seed| {
        let (_, found) = run(seed, Some(bug));
        found.first().map(|first| (seed, first.clone()))
    });
    let (seed, first) = found.unwrap_or_else(|| panic!("{bug:?} was not found in {SEEDS} seeds"));
    println!("{bug:?} found at seed {seed}: {first}");
}

#[test]
fn an_acknowledgement_before_the_sync_is_caught() {
    caught(Bug::EarlyAcknowledgement);
}

#[test]
fn a_stale_read_after_a_change_of_leaders_is_caught() {
    caught(Bug::StaleRead);
}

#[test]
fn a_watch_event_lost_at_a_compaction_is_caught() {
    caught(Bug::LostWatchEvent);
}

#[test]
fn a_lease_ended_by_a_follower_is_caught() {
    caught(Bug::FollowerExpiry);
}

#[test]
fn a_snapshot_without_its_last_entry_is_caught() {
    caught(Bug::ShortSnapshot);
}
