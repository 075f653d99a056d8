//! What a member finds on its disk when it starts: a state, and the log that goes on from it.

use std::io;
use std::path::Path;

use daemon::{Disk, SystemDisk};

use crate::applied::Applied;
use crate::log::{Entry, Log, LogError, Recovered, Sizes, Vote};
use crate::replica::KEPT_ENTRIES;
use crate::snapshot::{self, Mark};

/// A member's disk that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The log cannot.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The snapshots cannot, or the state beside them.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// State and log do not meet.
    #[error(
        "the log begins at entry {first}, but the state ends at entry {last}: a part is missing; \
         restore this member from a snapshot"
    )]
    Missing {
        /// The first entry of the log.
        first: u64,
        /// The last of the state.
        last: u64,
    },
}

/// What a member starts from.
#[derive(Debug)]
pub struct Recovery<D: Disk = SystemDisk> {
    /// The state.
    pub applied: Applied,
    /// The log, open for writing.
    pub log: Log<D>,
    /// The last vote.
    pub vote: Vote,
    /// The entry before those in `entries`.
    pub before: Mark,
    /// Entries behind the state, and those before it that members a little behind may need.
    pub entries: Vec<Entry>,
    /// Bytes of a torn tail that were cut off the log.
    pub torn_bytes: usize,
}

/// Opens the log in `logs` and the state that it goes on from: the newest snapshot in `snapshots`,
/// or what `known` says to have beside them, if that is not older than where the log begins.
///
/// # Errors
/// When something that was synced is damaged or missing, or the disk fails.
pub fn recover<D: Disk>(
    disk: &D,
    (logs, sizes): (&Path, Sizes),
    snapshots: &Path,
    known: Option<Applied>,
) -> Result<Recovery<D>, RecoveryError> {
    let last = known.as_ref().map_or(0, |known| known.mark.index);
    let needed = last.saturating_sub(KEPT_ENTRIES as u64);
    let (mut log, Recovered { mut entries, vote, begin, torn_bytes }) =
        Log::open_behind(disk, logs, sizes, needed)?;
    let known = known.filter(|known| known.mark.index >= begin.index);
    let applied = known.map_or_else(|| snapshot::newest(disk, snapshots), Ok)?;
    let mark = applied.mark;
    let first = entries.first().map_or(begin.index + 1, |first| first.index);
    if first > mark.index + 1 {
        return Err(RecoveryError::Missing { first, last: mark.index });
    }
    let last = entries.last().map_or(begin.index, |last| last.index);
    let of_another = entries.iter().any(|e| e.index == mark.index && e.term != mark.term);
    if of_another || last < mark.index {
        // A snapshot of the leader's had come when the end came, and was not installed. What is in
        // the log was never acknowledged or is in the snapshot, and what follows must not be taken
        // for its continuation at the next start.
        entries.clear();
        log.begin_again(mark);
        log.sync()?;
    }
    let before = kept_before(&mut entries, mark);
    Ok(Recovery { applied, log, vote, before, entries, torn_bytes })
}

/// Leaves entries that members a little behind may need, and returns what is before the first of
/// them.
fn kept_before(entries: &mut Vec<Entry>, mark: Mark) -> Mark {
    let applied = entries.iter().take_while(|entry| entry.index <= mark.index).count();
    let first = applied.saturating_sub(KEPT_ENTRIES);
    if applied == 0 {
        return mark;
    }
    let before = Mark { index: entries[first].index, term: entries[first].term };
    entries.drain(..=first);
    before
}
