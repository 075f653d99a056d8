//! Applied state on disk: every change by its revision, in blocks. The only file that names sled.
//!
//! A cache: the log and the snapshots are the truth. It is used after a restart only if it was
//! closed cleanly, or the machine has not been started again since (then no write was lost with
//! the page cache); else it is thrown away and filled again.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use daemon::{Disk as _, SystemDisk};
use parking_lot::Mutex;
use prost::Message as _;

use crate::applied::{Applied, Round};
use crate::auth::Auth;
use crate::block::{self, Packer};
use crate::members::Members;
use crate::mvcc::record::{self, REVISION_BYTES, Summary};
use crate::mvcc::{Archive, Changes, Mvcc, Revision};
use crate::snapshot::Mark;

const BLOCK: u8 = b'b';
const LEASE: u8 = b'l';
const ALARM: u8 = b'a';
/// Another name for each layout: a state of an older one looks empty and is filled again.
const MARK: &[u8] = b"mark 2";
const MEMBERS: &[u8] = b"p";
const AUTH: &[u8] = b"u";
const CACHE_BYTES: u64 = 16 << 20;
const CLEAN: &str = "clean";
/// Blocks written at once while the state is filled from a snapshot or forgets what was compacted.
const BATCH_BLOCKS: usize = 64;

/// The state on disk.
#[derive(Debug)]
pub struct State {
    db: sled::Db,
    dir: PathBuf,
    mark_file: PathBuf,
    kept: Mutex<Kept>,
}

/// What the state has forgotten and somebody may still read.
#[derive(Debug, Default)]
struct Kept {
    readers: usize,
    removed: BTreeSet<Revision>,
}

/// As long as it lives, compacted values stay readable for a clone of the state made after it.
#[derive(Debug)]
pub struct Held<'a>(&'a State);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.kept.lock().readers -= 1;
    }
}

/// A state that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The disk refused.
    #[error("state: {0}")]
    Io(#[from] io::Error),
    /// The database refused.
    #[error("state: {0}")]
    Database(#[from] sled::Error),
}

impl State {
    /// Opens the state below `dir`; empty if what is there cannot be trusted.
    ///
    /// # Errors
    /// When the disk fails or another process has it open.
    pub fn open(dir: &Path, boot_id: &str) -> Result<Self, StateError> {
        let (tree, mark_file) = (dir.join("state"), dir.join("state.mark"));
        let trusted = std::fs::read_to_string(&mark_file).is_ok_and(|mark| {
            mark.trim() == CLEAN || (mark.trim() == boot_id && !boot_id.is_empty())
        });
        if !trusted && tree.exists() {
            tracing::info!("state was not closed cleanly; filling it from snapshot and log");
            std::fs::remove_dir_all(&tree)?;
        }
        let db = match open_database(&tree) {
            Err(sled::Error::Corruption { .. }) => {
                tracing::warn!("state is damaged; filling it from snapshot and log");
                std::fs::remove_dir_all(&tree)?;
                open_database(&tree)?
            }
            opened => opened?,
        };
        SystemDisk.replace(&mark_file, boot_id.as_bytes())?;
        Ok(Self { db, dir: tree, mark_file, kept: Mutex::default() })
    }

    /// Reads the whole state, if there is one.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn load(&self) -> Result<Option<Applied>, StateError> {
        let Some(mark) = self.db.get(MARK)? else { return Ok(None) };
        let Some((mark, mut summary)) = decode_mark(&mark) else { return Ok(None) };
        for item in self.db.scan_prefix([LEASE]) {
            let (key, value) = item?;
            summary.leases.extend(number(&key[1..]).zip(number(&value)));
        }
        for item in self.db.scan_prefix([ALARM]) {
            let (key, _) = item?;
            let kind = key.get(9..).and_then(number).and_then(|n| i32::try_from(n).ok());
            let member = key.get(1..9).and_then(number).map(i64::cast_unsigned);
            summary.alarms.extend(member.zip(kind));
        }
        let members = self.db.get(MEMBERS)?.and_then(|bytes| Members::decode(&*bytes).ok());
        let Some(members) = members else { return Ok(None) };
        let auth = match self.db.get(AUTH)? {
            Some(bytes) => Auth::decode(&*bytes).ok(),
            None => Some(Auth::default()),
        };
        let Some(auth) = auth else { return Ok(None) };
        let mut mvcc = Mvcc::begin(&summary);
        for item in self.db.scan_prefix([BLOCK]) {
            let (_, block) = item?;
            for (at, bytes) in block::records(&block) {
                let Some(event) = decode(bytes) else { return Ok(None) };
                mvcc.load(at, &event, true);
            }
        }
        Ok(Some(Applied { mvcc, members, auth, mark }))
    }

    /// Writes a whole state, as a snapshot gives it, over an empty one.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn fill(&self, applied: &Applied) -> Result<(), StateError> {
        let Applied { mvcc, members, auth, mark } = applied;
        // First, so that a crash leaves no state that looks whole.
        self.db.remove(MARK)?;
        self.db.clear()?;
        let (mut packer, mut batch, mut count) = (Packer::default(), sled::Batch::default(), 0);
        mvcc.records(self, |at, event| {
            let Some((first, block)) = packer.add(at, event) else { return Ok(()) };
            batch.insert(&block_key(first)[..], block);
            count += 1;
            if count % BATCH_BLOCKS == 0 {
                self.db.apply_batch(std::mem::take(&mut batch)).map_err(io::Error::other)?;
            }
            Ok(())
        })?;
        if let Some((first, block)) = packer.take() {
            batch.insert(&block_key(first)[..], block);
        }
        self.db.apply_batch(batch)?;
        let summary = mvcc.summary();
        self.write(&Round {
            mark: *mark,
            members: Some(members.clone()),
            auth: Some(auth.clone()),
            revision: summary.revision,
            compacted: summary.compacted,
            leases: summary.leases.iter().map(|(id, ttl)| (*id, Some(*ttl))).collect(),
            alarms: summary.alarms.iter().map(|alarm| (*alarm, true)).collect(),
            ..Round::default()
        })
    }

    /// Writes what a round changed, all of it or nothing, then forgets what it compacted.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn write(&self, round: &Round) -> Result<(), StateError> {
        let removed: BTreeSet<Revision> = round.removed.iter().copied().collect();
        let (mut packer, mut batch) = (Packer::default(), sled::Batch::default());
        for changes in &round.changes {
            for (sub, event) in changes.events.iter().enumerate() {
                let sub = u32::try_from(sub).unwrap_or(u32::MAX);
                let at = Revision { main: changes.main, sub };
                if removed.contains(&at) {
                    continue;
                }
                if let Some((first, block)) = packer.add(at, event) {
                    batch.insert(&block_key(first)[..], block);
                }
            }
        }
        if let Some((first, block)) = packer.take() {
            batch.insert(&block_key(first)[..], block);
        }
        for (id, ttl_s) in &round.leases {
            let key = [&[LEASE][..], &id.to_be_bytes()].concat();
            match ttl_s {
                Some(ttl_s) => batch.insert(key, &ttl_s.to_be_bytes()),
                None => batch.remove(key),
            }
        }
        for ((member, kind), raised) in &round.alarms {
            let kind = i64::from(*kind).to_be_bytes();
            let key = [&[ALARM][..], &member.to_be_bytes(), &kind].concat();
            if *raised { batch.insert(key, &[]) } else { batch.remove(key) }
        }
        if let Some(members) = &round.members {
            batch.insert(MEMBERS, members.encode_to_vec());
        }
        if let Some(auth) = &round.auth {
            batch.insert(AUTH, auth.encode_to_vec());
        }
        batch.insert(MARK, encode_mark(round));
        self.db.apply_batch(batch)?;
        self.forget(removed)
    }

    /// Keeps what compaction removes from here on until the result is dropped.
    #[must_use]
    pub fn hold(&self) -> Held<'_> {
        self.kept.lock().readers += 1;
        Held(self)
    }

    /// Removes these revisions and those of earlier rounds, unless somebody may still read them. What a crash leaves over
    /// goes with the next compaction.
    fn forget(&self, mut removed: BTreeSet<Revision>) -> Result<(), StateError> {
        {
            let mut kept = self.kept.lock();
            if kept.readers > 0 {
                kept.removed.append(&mut removed);
                return Ok(());
            }
            removed.append(&mut kept.removed);
        }
        let (mut batch, mut count) = (sled::Batch::default(), 0);
        let mut next = removed.first().copied();
        while let Some(at) = next {
            let block = self.block(at)?;
            // What was compacted before it was ever written is in no block.
            let last = block.as_ref().and_then(|(_, block)| block::records(block).last());
            let last = last.map_or(at, |(last, _)| last.max(at));
            next = removed.range((Bound::Excluded(last), Bound::Unbounded)).next().copied();
            let Some((key, block)) = block else { continue };
            batch.remove(key);
            if let Some((first, left)) = block::without(&block, |at| removed.contains(&at)) {
                batch.insert(&block_key(first)[..], left);
            }
            count += 1;
            if count % BATCH_BLOCKS == 0 {
                self.db.apply_batch(std::mem::take(&mut batch))?;
            }
        }
        self.db.apply_batch(batch)?;
        Ok(())
    }

    /// The block that a revision is in, if it is in one.
    fn block(&self, at: Revision) -> Result<Option<(sled::IVec, sled::IVec)>, sled::Error> {
        self.db.range(&[BLOCK][..]..=&block_key(at)[..]).next_back().transpose()
    }

    /// Bytes on disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.db.size_on_disk().unwrap_or(0)
    }

    /// Closes the state so that it can be used after a restart of the machine.
    ///
    /// # Errors
    /// When the disk fails; the state is filled again then.
    pub fn close(&self) -> Result<(), StateError> {
        self.db.flush()?;
        sync_below(&self.dir)?;
        SystemDisk.replace(&self.mark_file, CLEAN.as_bytes())?;
        Ok(())
    }
}

impl Archive for State {
    fn value(&self, at: Revision) -> Option<Bytes> {
        let found = self.block(at).map_err(|error| {
            tracing::error!(%error, main = at.main, "cannot read an old value");
        });
        let (_, block) = found.ok()??;
        let (_, bytes) = block::records(&block).find(|(found, _)| *found == at)?;
        decode(bytes)?.kv.map(|kv| kv.value)
    }

    fn changes(&self, from: i64, to: i64, bytes_max: usize) -> Vec<Changes> {
        let (from, to) = (Revision { main: from, sub: 0 }, Revision { main: to, sub: u32::MAX });
        // The first may be in the middle of a block.
        let first = self.block(from).ok().flatten();
        let first = first.map_or_else(|| block_key(from).to_vec(), |(key, _)| key.to_vec());
        let mut all: Vec<Changes> = Vec::new();
        let (mut main, mut events, mut bytes) = (from.main, Vec::new(), 0);
        for item in self.db.range(first..=block_key(to).to_vec()) {
            let Ok((_, block)) = item else { break };
            for (at, record) in block::records(&block) {
                if at < from || at > to {
                    continue;
                }
                if at.main != main {
                    if !events.is_empty() {
                        all.push(Changes { main, events: Arc::from(std::mem::take(&mut events)) });
                    }
                    if bytes >= bytes_max {
                        return all;
                    }
                    main = at.main;
                }
                bytes += record.len();
                events.extend(decode(record));
            }
        }
        if !events.is_empty() {
            all.push(Changes { main, events: events.into() });
        }
        all
    }
}

/// A change on its own: whoever keeps it does not keep the block.
fn decode(record: &[u8]) -> Option<wire::mvccpb::Event> {
    record::decode(Bytes::copy_from_slice(record))
}

fn open_database(path: &Path) -> sled::Result<sled::Db> {
    sled::Config::new()
        .path(path)
        .cache_capacity(CACHE_BYTES)
        .mode(sled::Mode::HighThroughput)
        .flush_every_ms(Some(1000))
        .open()
}

fn block_key(at: Revision) -> [u8; 1 + REVISION_BYTES] {
    let mut key = [BLOCK; 1 + REVISION_BYTES];
    key[1..].copy_from_slice(&record::encode_revision(at));
    key
}

fn number(bytes: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(bytes.get(..8)?.try_into().ok()?))
}

fn encode_mark(round: &Round) -> Vec<u8> {
    let numbers = [
        round.mark.index.cast_signed(),
        round.mark.term.cast_signed(),
        round.revision,
        round.compacted,
    ];
    numbers.map(i64::to_be_bytes).concat()
}

fn decode_mark(bytes: &[u8]) -> Option<(Mark, Summary)> {
    let mark = Mark {
        index: number(bytes)?.cast_unsigned(),
        term: number(bytes.get(8..)?)?.cast_unsigned(),
    };
    let (revision, compacted) = (number(bytes.get(16..)?)?, number(bytes.get(24..)?)?);
    Some((mark, Summary { revision, compacted, ..Summary::default() }))
}

fn sync_below(dir: &Path) -> io::Result<()> {
    for item in std::fs::read_dir(dir)? {
        let path = item?.path();
        if path.is_dir() {
            sync_below(&path)?;
        } else {
            File::open(&path)?.sync_all()?;
        }
    }
    SystemDisk.sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(main: i64, value: &'static [u8]) -> Changes {
        let kv = wire::mvccpb::KeyValue {
            key: Bytes::from_static(b"key"),
            value: Bytes::from_static(value),
            mod_revision: main,
            ..Default::default()
        };
        let event = wire::mvccpb::Event { kv: Some(kv), ..Default::default() };
        Changes { main, events: Arc::from(vec![event]) }
    }

    #[test]
    fn what_is_held_is_removed_when_the_last_holder_has_gone() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path(), "boot").unwrap();
        let at = |main: i64| Revision { main, sub: 0 };
        let changes = vec![put(2, b"old"), put(3, b"older"), put(4, b"new")];
        state.write(&Round { changes, revision: 4, ..Round::default() }).unwrap();
        let forget = |main: i64| {
            let removed = vec![at(main)];
            state.write(&Round { removed, revision: 4, ..Round::default() }).unwrap();
        };
        let (one, other) = (state.hold(), state.hold());
        forget(2);
        assert_eq!(state.value(at(2)).as_deref(), Some(&b"old"[..]));
        drop(one);
        forget(3);
        assert!(state.value(at(2)).is_some() && state.value(at(3)).is_some());
        drop(other);
        state.write(&Round { revision: 4, ..Round::default() }).unwrap();
        assert!(state.value(at(2)).is_none() && state.value(at(3)).is_none());
        assert_eq!(state.value(at(4)).as_deref(), Some(&b"new"[..]));
    }
}
