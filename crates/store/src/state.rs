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

use bytes::Bytes;
use daemon::{Disk as _, SystemDisk};
use parking_lot::Mutex;
use prost::Message as _;
use wire::mvccpb::Event;

use crate::applied::{Applied, Round};
use crate::auth::Auth;
use crate::block::{self, Block, Packer};
use crate::members::Members;
use crate::mvcc::record::{self, REVISION_BYTES, Summary};
use crate::mvcc::{self, Archive, Changes, LARGE_BYTES, Mvcc, Revision};
use crate::snapshot::Mark;

const BLOCK: u8 = b'b';
const VALUES: u8 = b'v';
const LEASE: u8 = b'l';
const ALARM: u8 = b'a';
/// Another name for each layout: a state of an older one looks empty and is filled again.
const MARK: &[u8] = b"mark 3";
const MEMBERS: &[u8] = b"p";
const AUTH: &[u8] = b"u";
const KEY_BYTES: usize = 1 + REVISION_BYTES;
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
                let Some((event, size)) = block::read(bytes) else { return Ok(None) };
                mvcc.load_archived(at, &event, size);
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
        let mut writer = Writer::default();
        mvcc.records(self, |at, event| {
            writer.add(at, event);
            if writer.blocks >= BATCH_BLOCKS {
                writer.blocks = 0;
                let batch = std::mem::take(&mut writer.batch);
                self.db.apply_batch(batch).map_err(io::Error::other)?;
            }
            Ok(())
        })?;
        self.db.apply_batch(writer.finish())?;
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
        let mut writer = Writer::default();
        for changes in &round.changes {
            for (sub, event) in changes.events.iter().enumerate() {
                let sub = u32::try_from(sub).unwrap_or(u32::MAX);
                let at = Revision { main: changes.main, sub };
                if !removed.contains(&at) {
                    writer.add(at, event);
                }
            }
        }
        let mut batch = writer.finish();
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
        self.forget_in(BLOCK, &removed)?;
        self.forget_in(VALUES, &removed)
    }

    fn forget_in(&self, family: u8, removed: &BTreeSet<Revision>) -> Result<(), StateError> {
        let (mut batch, mut count) = (sled::Batch::default(), 0);
        let mut next = removed.first().copied();
        while let Some(at) = next {
            let found = self.block(family, at)?;
            let last = found.as_ref().and_then(|(_, block)| block::records(block).last());
            let Some(((key, block), (last, _))) = found.as_ref().zip(last).filter(|f| f.1.0 >= at)
            else {
                // In no block: go on where the next one begins.
                let after =
                    (Bound::Excluded(key(family, at)), Bound::Excluded([family + 1; KEY_BYTES]));
                let Some((begin, _)) = self.db.range(after).next().transpose()? else { break };
                let begin = begin.get(1..).and_then(record::decode_revision).unwrap_or(at);
                next = removed.range(begin..).next().copied();
                continue;
            };
            next = removed.range((Bound::Excluded(last), Bound::Unbounded)).next().copied();
            batch.remove(key);
            if let Some((first, left)) = block::without(block, |at| removed.contains(&at)) {
                batch.insert(&self::key(family, first)[..], left);
            }
            count += 1;
            if count % BATCH_BLOCKS == 0 {
                self.db.apply_batch(std::mem::take(&mut batch))?;
            }
        }
        self.db.apply_batch(batch)?;
        Ok(())
    }

    /// The block of a family that a revision is in, if it is in one.
    fn block(&self, family: u8, at: Revision) -> sled::Result<Option<(sled::IVec, sled::IVec)>> {
        self.db.range(&[family][..]..=&key(family, at)[..]).next_back().transpose()
    }

    /// One value, from the block that was read last or from another one.
    fn find(
        &self,
        (at, size): (Revision, u32),
        last: &mut Option<(u8, sled::IVec)>,
    ) -> sled::Result<Option<Bytes>> {
        let family = if size as usize >= LARGE_BYTES { VALUES } else { BLOCK };
        let within = |block: &sled::IVec| {
            block::records(block).find(|(found, _)| *found == at).map(|(_, bytes)| {
                if family == VALUES {
                    return Some(Bytes::copy_from_slice(bytes));
                }
                block::read(bytes)?.0.kv.map(|kv| kv.value)
            })
        };
        let known = last.as_ref().filter(|(of, _)| *of == family);
        if let Some(value) = known.and_then(|(_, block)| within(block)) {
            return Ok(value);
        }
        let Some((_, block)) = self.block(family, at)? else { return Ok(None) };
        let value = within(&block).flatten();
        *last = Some((family, block));
        Ok(value)
    }

    /// The changes of one revision with the values that are elsewhere, if there are any changes.
    fn whole(
        &self,
        main: i64,
        events: Vec<(Revision, Event, u32)>,
    ) -> sled::Result<Option<Changes>> {
        let (mut last, mut filled) = (None, Vec::with_capacity(events.len()));
        for (at, mut event, size) in events {
            if let Some(kv) = event.kv.as_mut().filter(|_| size as usize >= LARGE_BYTES) {
                // Lost, unless it is compacted meanwhile: whoever asks looks at that first.
                let lost = || sled::Error::ReportableBug(format!("no value of {at:?}"));
                kv.value = self.find((at, size), &mut last)?.ok_or_else(lost)?;
            }
            filled.push(event);
        }
        Ok((!filled.is_empty()).then(|| Changes { main, events: filled.into() }))
    }

    fn changes_on_disk(&self, from: i64, to: i64, bytes_max: usize) -> sled::Result<Vec<Changes>> {
        let (from, to) = (Revision { main: from, sub: 0 }, Revision { main: to, sub: u32::MAX });
        // The first may be in the middle of a block.
        let first = self.block(BLOCK, from)?;
        let first = first.map_or_else(|| key(BLOCK, from).to_vec(), |(key, _)| key.to_vec());
        let mut all: Vec<Changes> = Vec::new();
        let (mut main, mut events, mut bytes) = (from.main, Vec::new(), 0);
        for item in self.db.range(first..=key(BLOCK, to).to_vec()) {
            let (_, block) = item?;
            for (at, record) in block::records(&block) {
                if at < from || at > to {
                    continue;
                }
                if at.main != main {
                    all.extend(self.whole(main, std::mem::take(&mut events))?);
                    if bytes >= bytes_max {
                        return Ok(all);
                    }
                    main = at.main;
                }
                let Some((event, size)) = block::read(record) else { continue };
                bytes += record.len() + size as usize;
                events.push((at, event, size));
            }
        }
        all.extend(self.whole(main, events)?);
        Ok(all)
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
    fn values(&self, wanted: &[(Revision, u32)]) -> Vec<Option<Bytes>> {
        let mut order: Vec<usize> = (0..wanted.len()).collect();
        // In the order of the disk, so that each block is read once.
        order.sort_unstable_by_key(|i| wanted[*i].0);
        let (mut values, mut last) = (vec![None; wanted.len()], None);
        for i in order {
            values[i] = self.find(wanted[i], &mut last).unwrap_or_else(|error| {
                tracing::error!(%error, main = wanted[i].0.main, "cannot read a cold value");
                None
            });
        }
        values
    }

    fn changes(&self, from: i64, to: i64, bytes_max: usize) -> Result<Vec<Changes>, mvcc::Error> {
        self.changes_on_disk(from, to, bytes_max).map_err(|error| {
            tracing::error!(%error, from, to, "cannot read history");
            mvcc::Error::Corrupt
        })
    }
}

/// Changes on their way into blocks.
#[derive(Debug, Default)]
struct Writer {
    changes: Packer,
    values: Packer,
    batch: sled::Batch,
    blocks: usize,
}

impl Writer {
    fn add(&mut self, at: Revision, event: &Event) {
        let block = self.changes.add(at, |out| block::write(event, out));
        self.put(BLOCK, block);
        if let Some(value) = block::large(event) {
            let block = self.values.add(at, |out| out.extend_from_slice(value));
            self.put(VALUES, block);
        }
    }

    fn put(&mut self, family: u8, block: Option<Block>) {
        if let Some((first, block)) = block {
            self.batch.insert(&key(family, first)[..], block);
            self.blocks += 1;
        }
    }

    fn finish(mut self) -> sled::Batch {
        let (changes, values) = (self.changes.take(), self.values.take());
        self.put(BLOCK, changes);
        self.put(VALUES, values);
        self.batch
    }
}

fn open_database(path: &Path) -> sled::Result<sled::Db> {
    sled::Config::new()
        .path(path)
        .cache_capacity(CACHE_BYTES)
        .mode(sled::Mode::HighThroughput)
        .flush_every_ms(Some(1000))
        .open()
}

fn key(family: u8, at: Revision) -> [u8; KEY_BYTES] {
    let mut key = [family; KEY_BYTES];
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
    use std::sync::Arc;

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
        assert_eq!(state.value(at(2), 0).as_deref(), Some(&b"old"[..]));
        drop(one);
        forget(3);
        assert!(state.value(at(2), 0).is_some() && state.value(at(3), 0).is_some());
        drop(other);
        state.write(&Round { revision: 4, ..Round::default() }).unwrap();
        assert!(state.value(at(2), 0).is_none() && state.value(at(3), 0).is_none());
        assert_eq!(state.value(at(4), 0).as_deref(), Some(&b"new"[..]));
    }
}
