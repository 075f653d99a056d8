//! What a member finds on its disk when it starts: a state, and the log that goes on from it.

use std::io;
use std::path::Path;

use daemon::Disk;

use crate::applied::Applied;
use crate::log::{Log, LogError, Recovered, Sizes};
use crate::snapshot;

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

/// Opens the log in `logs` and the state that it goes on from: the newest snapshot in `snapshots`,
/// or what `known` says to have beside them, if that is not older than where the log begins. The
/// entries returned are those behind that state.
///
/// # Errors
/// When something that was synced is damaged or missing, or the disk fails.
pub fn recover<D: Disk>(
    disk: &D,
    (logs, sizes): (&Path, Sizes),
    snapshots: &Path,
    known: Option<Applied>,
) -> Result<(Applied, Log<D>, Recovered), RecoveryError> {
    let (mut log, mut recovered) = Log::open(disk, logs, sizes)?;
    let known = known.filter(|known| known.mark.index >= recovered.begin.index);
    let applied = known.map_or_else(|| snapshot::newest(disk, snapshots), Ok)?;
    let mark = applied.mark;
    let mut entries = recovered.entries.iter();
    let other = entries.any(|entry| entry.index == mark.index && entry.term != mark.term);
    let last = recovered.entries.last().map_or(recovered.begin.index, |last| last.index);
    recovered.entries.retain(|entry| entry.index > mark.index && !other);
    let first = recovered.entries.first().map_or(recovered.begin.index + 1, |first| first.index);
    if first > mark.index + 1 {
        return Err(RecoveryError::Missing { first, last: mark.index });
    }
    if other || last < mark.index {
        // The end came after a snapshot of the leader's had come and before it was installed.
        log.begin_again(mark);
        log.sync()?;
    }
    Ok((applied, log, recovered))
}
