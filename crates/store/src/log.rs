//! The write-ahead log: segments of checksummed records, synced once for all that wait.
//!
//! A segment begins with a header (magic, format version, sequence number). Every record says how
//! far the segment was durable when the record was written. After a crash this tells a torn tail,
//! which was never acknowledged and is cut off, from a corrupt middle, which is refused. Space is
//! filled with zeros ahead of the writes, so that a sync need not commit the file's new length.

use std::collections::VecDeque;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use daemon::{Clock, Disk, DiskFile as _, SystemDisk};
use prometheus_client::metrics::histogram::Histogram;

use crate::snapshot::Mark;

/// The format that is written, and the oldest that is read; others are refused by name. Format 2 has no joint changes of
/// members, and is the same otherwise.
const FORMAT: u16 = 3;
const FORMAT_MIN: u16 = 2;
const MAGIC: &[u8; 6] = b"ICWAL\n";
const HEADER_BYTES: usize = 16;
const RECORD_BYTES: usize = 16;
/// Where the first entry of a segment is looked for.
const BEGINNING_BYTES: u64 = 4 << 10;
/// How large the pieces of a log are; the simulation takes smaller ones.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Data after which a new segment begins.
    pub segment_bytes: usize,
    /// Zeros written ahead at once. So much is always kept ahead, too: what still fits when the
    /// disk is full.
    pub ahead_bytes: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { segment_bytes: 32 << 20, ahead_bytes: 1 << 20 }
    }
}

const KIND_ENTRY: u32 = 1;
const KIND_VOTE: u32 = 2;
const KIND_SEAL: u32 = 3;
const KIND_BEGIN: u32 = 4;

/// One entry of the replicated log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The term in which its leader proposed it.
    pub term: u64,
    /// Its place.
    pub index: u64,
    /// What its data is.
    pub kind: EntryKind,
    /// The operation, or a change of members; may be empty.
    pub data: Bytes,
}

/// What an entry's data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// An operation on the state, or nothing.
    Operation,
    /// A change of one member.
    Member,
    /// A joint change of members.
    Members,
}

/// What a member must not forget about terms and votes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Vote {
    /// The newest term it knows.
    pub term: u64,
    /// Whom it voted for in that term; 0 is nobody.
    pub vote: u64,
    /// What it knows to be committed.
    pub commit: u64,
}

/// What the log holds when it is opened.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Entries in order without gaps; later ones have replaced earlier ones of the same place.
    pub entries: Vec<Entry>,
    /// The last vote.
    pub vote: Vote,
    /// The snapshot that took the place of all entries before; the state must not be older.
    pub begin: Mark,
    /// Bytes of a torn tail that were cut off.
    pub torn_bytes: usize,
}

/// A log that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk refused.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of another format.
    #[error("{path}: log format {found}, but this version reads formats {FORMAT_MIN} to {FORMAT}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The format it names.
        found: u16,
    },
    /// Something that was synced is damaged.
    #[error(
        "{path}: corrupt at byte {offset}, before data that was synced later; restore this member \
         from a snapshot or replace it"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where the damage is.
        offset: usize,
    },
    /// A segment or entry is missing.
    #[error("{path}: entry {found} follows entry {last}; a part of the log is missing")]
    Gap {
        /// The file.
        path: PathBuf,
        /// The last entry before the gap.
        last: u64,
        /// The first behind it.
        found: u64,
    },
}

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    last_index: u64,
}

/// The log, open for writing.
#[derive(Debug)]
pub struct Log<D: Disk = SystemDisk> {
    disk: D,
    dir: PathBuf,
    sizes: Sizes,
    old: VecDeque<Segment>,
    file: D::File,
    path: PathBuf,
    sequence: u32,
    /// Bytes written, bytes durable, and bytes that exist in the active segment.
    offset: usize,
    synced: usize,
    zeroed: usize,
    /// The disk had no space for more zeros.
    full: bool,
    last_index: u64,
    vote: Vote,
    buffer: Vec<u8>,
    timer: Option<Timer>,
}

/// Measures syncs.
#[derive(Debug)]
pub struct Timer {
    /// The time.
    pub clock: Clock,
    /// Where the seconds of each go.
    pub seconds: Histogram,
}

impl<D: Disk> Log<D> {
    /// Opens the log in `dir`, or begins one, and reads what it holds.
    ///
    /// # Errors
    /// When the disk fails, or something that was synced is damaged or missing.
    pub fn open(disk: &D, dir: &Path, sizes: Sizes) -> Result<(Self, Recovered), LogError> {
        Self::open_behind(disk, dir, sizes, 0)
    }

    /// Opens the log without reading segments that have only entries before `needed`, which somebody else has. They stay
    /// until they are released.
    ///
    /// # Errors
    /// As [`Log::open`], but damage where nothing is read is not found.
    pub fn open_behind(
        disk: &D,
        dir: &Path,
        sizes: Sizes,
        needed: u64,
    ) -> Result<(Self, Recovered), LogError> {
        disk.create_dir(dir).map_err(io_error("create", dir))?;
        let mut recovered = Recovered::default();
        let mut old = VecDeque::new();
        let mut sequence = 0;
        let names = segments(disk, dir)?;
        let count = names.len();
        let skipped = skipped(disk, &names, needed)?;
        for (i, (number, path)) in names.into_iter().enumerate() {
            let is_last = i + 1 == count;
            sequence = number;
            if let Some(last_index) = skipped.get(i).copied() {
                old.push_back(Segment { path, last_index });
                continue;
            }
            read_segment(disk, &path, number, is_last, &mut recovered)?;
            let last_index = recovered.entries.last().map_or(0, |entry| entry.index);
            old.push_back(Segment { path, last_index });
        }
        let last_index = recovered.entries.last().map_or(0, |entry| entry.index);
        sequence += 1;
        let (file, unnamed) = create(disk, dir, sequence, sizes)?;
        let path = name(disk, &unnamed)?;
        let mut log = Self {
            disk: disk.clone(),
            dir: dir.to_owned(),
            sizes,
            old,
            file,
            path,
            sequence,
            offset: HEADER_BYTES,
            synced: HEADER_BYTES,
            zeroed: sizes.ahead_bytes,
            full: false,
            last_index,
            vote: recovered.vote,
            buffer: Vec::new(),
            timer: None,
        };
        log.vote(log.vote);
        log.sync()?;
        Ok((log, recovered))
    }

    /// Measures syncs from now on.
    pub fn measure(&mut self, timer: Timer) {
        self.timer = Some(timer);
    }

    /// Adds an entry to what the next sync writes.
    pub fn entry(&mut self, entry: &Entry) {
        let kind = match entry.kind {
            EntryKind::Operation => 0u64,
            EntryKind::Member => 1,
            EntryKind::Members => 2,
        };
        let head = [entry.term.to_le_bytes(), entry.index.to_le_bytes(), kind.to_le_bytes()];
        self.record(KIND_ENTRY, &[head.as_flattened(), &entry.data]);
        self.last_index = entry.index;
    }

    /// Adds a vote to what the next sync writes.
    pub fn vote(&mut self, vote: Vote) {
        self.vote = vote;
        let body = [vote.term.to_le_bytes(), vote.vote.to_le_bytes(), vote.commit.to_le_bytes()];
        self.record(KIND_VOTE, &[body.as_flattened()]);
    }

    /// Adds to what the next sync writes that entries up to `index` are committed.
    pub fn committed(&mut self, index: u64) {
        self.vote(Vote { commit: self.vote.commit.max(index), ..self.vote });
    }

    /// Adds that a snapshot takes the place of all entries so far.
    pub fn begin_again(&mut self, mark: Mark) {
        self.last_index = mark.index;
        let body = [mark.index.to_le_bytes(), mark.term.to_le_bytes()];
        self.record(KIND_BEGIN, &[body.as_flattened()]);
    }

    /// Writes and syncs everything added. When it returns, all of it survives a power cut.
    ///
    /// # Errors
    /// When the disk fails; nothing may be acknowledged then, and the log must be opened again.
    pub fn sync(&mut self) -> Result<(), LogError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let end = self.offset + self.buffer.len();
        self.zero_ahead(end)?;
        self.write(self.offset)?;
        self.offset = end;
        let began = self.timer.as_ref().map(|timer| timer.clock.monotonic());
        self.file.sync().map_err(io_error("sync", &self.path))?;
        if let Some((timer, began)) = self.timer.as_ref().zip(began) {
            let took = timer.clock.monotonic().saturating_sub(began);
            timer.seconds.observe(took.as_secs_f64());
        }
        self.synced = end;
        if self.offset >= self.sizes.segment_bytes {
            self.roll()?;
        }
        Ok(())
    }

    /// Removes segments that hold nothing after `index`, which a snapshot covers.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn release(&mut self, index: u64) -> Result<(), LogError> {
        while self.old.front().is_some_and(|segment| segment.last_index <= index) {
            if let Some(segment) = self.old.pop_front() {
                self.disk.remove(&segment.path).map_err(io_error("remove", &segment.path))?;
                // One by one and in order, or a power cut could leave a gap.
                self.disk.sync_dir(&self.dir).map_err(io_error("sync", &self.dir))?;
            }
        }
        Ok(())
    }

    /// Whether the disk is full: only what was set aside is left to write on.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Bytes of all segments, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.old.len() * self.sizes.segment_bytes + self.offset
    }

    /// How many segments there are beside the active one.
    #[must_use]
    pub fn old_segments(&self) -> usize {
        self.old.len()
    }

    fn record(&mut self, kind: u32, parts: &[&[u8]]) {
        frame(&mut self.buffer, self.sequence, self.synced, kind, parts);
    }

    fn write(&mut self, at: usize) -> Result<(), LogError> {
        let written = self.file.write_at(&self.buffer, at as u64);
        self.buffer.clear();
        self.buffer.shrink_to(4 << 20);
        written.map_err(io_error("write", &self.path))
    }

    fn zero_ahead(&mut self, end: usize) -> Result<(), LogError> {
        // One record's header of zeros must always follow the last record.
        let needed = end + RECORD_BYTES;
        self.full = false;
        while needed + self.sizes.ahead_bytes > self.zeroed {
            let zeros = vec![0; self.sizes.ahead_bytes];
            let written = self.file.write_at(&zeros, self.zeroed as u64);
            self.full = written.as_ref().is_err_and(is_full);
            if self.full && needed <= self.zeroed {
                break;
            }
            written.map_err(io_error("extend", &self.path))?;
            self.zeroed += self.sizes.ahead_bytes;
        }
        Ok(())
    }

    /// Seals the active segment and begins the next, which gets its name when the seal is durable:
    /// only the last segment can be without one. On a full disk the active one goes on.
    fn roll(&mut self) -> Result<(), LogError> {
        let (file, unnamed) = match create(&self.disk, &self.dir, self.sequence + 1, self.sizes) {
            Err(LogError::Io { source, .. }) if is_full(&source) => {
                self.full = true;
                return Ok(());
            }
            created => created?,
        };
        self.record(KIND_SEAL, &[]);
        self.write(self.offset)?;
        self.file.sync().map_err(io_error("sync", &self.path))?;
        let path = std::mem::replace(&mut self.path, name(&self.disk, &unnamed)?);
        self.file = file;
        self.sequence += 1;
        self.old.push_back(Segment { path, last_index: self.last_index });
        (self.offset, self.synced) = (HEADER_BYTES, HEADER_BYTES);
        self.zeroed = self.sizes.ahead_bytes;
        self.vote(self.vote);
        self.sync()
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError::Io { what, path, source }
}

/// Whether the disk refused for want of space.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn segments<D: Disk>(disk: &D, dir: &Path) -> Result<Vec<(u32, PathBuf)>, LogError> {
    let mut found = Vec::new();
    for path in disk.list(dir).map_err(io_error("list", dir))? {
        let is_segment = path.extension().is_some_and(|e| e == "wal");
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let number = stem.and_then(|stem| u32::from_str_radix(stem, 16).ok());
        if let (true, Some(number)) = (is_segment, number) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Makes an empty segment, whole and durable, but without the name under which it counts.
fn create<D: Disk>(
    disk: &D,
    dir: &Path,
    sequence: u32,
    sizes: Sizes,
) -> Result<(D::File, PathBuf), LogError> {
    let path = dir.join(format!("{sequence:08x}.unfinished"));
    let file = disk.create(&path).map_err(io_error("create", &path))?;
    let mut first = vec![0; sizes.ahead_bytes];
    first[..6].copy_from_slice(MAGIC);
    first[6..8].copy_from_slice(&FORMAT.to_le_bytes());
    first[8..12].copy_from_slice(&sequence.to_le_bytes());
    file.write_at(&first, 0).map_err(io_error("write", &path))?;
    file.sync().map_err(io_error("sync", &path))?;
    Ok((file, path))
}

/// Gives a new segment its name.
fn name<D: Disk>(disk: &D, unnamed: &Path) -> Result<PathBuf, LogError> {
    let path = unnamed.with_extension("wal");
    disk.rename(unnamed, &path).map_err(io_error("rename", unnamed))?;
    path.parent().map_or(Ok(()), |dir| disk.sync_dir(dir)).map_err(io_error("sync", &path))?;
    Ok(path)
}

/// A record: length, checksum, how far the segment was durable, kind, body, padding to 8 bytes.
fn frame(out: &mut Vec<u8>, sequence: u32, synced: usize, kind: u32, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let synced = u32::try_from(synced).unwrap_or(u32::MAX);
    let len32 = u32::try_from(len).unwrap_or(u32::MAX);
    let mut crc = crc32fast::Hasher::new_with_initial(sequence);
    for word in [len32, synced, kind] {
        crc.update(&word.to_le_bytes());
    }
    for part in parts {
        crc.update(part);
    }
    out.reserve(RECORD_BYTES + len + 8);
    for word in [len32, crc.finalize(), synced, kind] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out.resize(out.len().next_multiple_of(8), 0);
}

struct Record<'a> {
    synced: usize,
    kind: u32,
    body: &'a [u8],
    next: usize,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The record at `at`, if there is a valid one.
fn record_at(bytes: &[u8], sequence: u32, at: usize) -> Option<Record<'_>> {
    let len = word(bytes, at)? as usize;
    let kind = word(bytes, at + 12)?;
    if kind == 0 {
        return None;
    }
    let body = bytes.get(at + RECORD_BYTES..(at + RECORD_BYTES).checked_add(len)?)?;
    let mut crc = crc32fast::Hasher::new_with_initial(sequence);
    crc.update(&bytes[at..at + 4]);
    crc.update(&bytes[at + 8..at + 16]);
    crc.update(body);
    let valid = word(bytes, at + 4)? == crc.finalize();
    let next = (at + RECORD_BYTES + len).next_multiple_of(8);
    valid.then_some(Record { synced: word(bytes, at + 8)? as usize, kind, body, next })
}

/// The first segments, which have nothing that is needed, with the last entry of each that the next ones did not replace.
fn skipped<D: Disk>(disk: &D, names: &[(u32, PathBuf)], needed: u64) -> Result<Vec<u64>, LogError> {
    let firsts: Vec<Option<u64>> = names
        .iter()
        .map(|(_, path)| first_index(disk, path).map_err(io_error("read", path)))
        .collect::<Result<_, _>>()?;
    // What is behind the first entry of a segment follows without a gap.
    let read_from = firsts.iter().rposition(|first| first.is_some_and(|first| first <= needed));
    let behind = |i: usize| firsts[i + 1..].iter().flatten().next().map_or(0, |next| next - 1);
    Ok((0..read_from.unwrap_or(0)).map(behind).collect())
}

/// The first entry of a segment, if one comes before anything but votes. Not checked: whoever relies on it reads it.
fn first_index<D: Disk>(disk: &D, path: &Path) -> io::Result<Option<u64>> {
    let mut bytes = Vec::new();
    disk.open(path)?.take(BEGINNING_BYTES).read_to_end(&mut bytes)?;
    let mut at = HEADER_BYTES;
    while let Some((len, kind)) = word(&bytes, at).zip(word(&bytes, at + 12)) {
        match kind {
            KIND_VOTE => at = (at + RECORD_BYTES).saturating_add(len as usize).next_multiple_of(8),
            KIND_ENTRY => return Ok(long(&bytes, at + RECORD_BYTES + 8).filter(|first| *first > 0)),
            _ => break,
        }
    }
    Ok(None)
}

fn read_segment<D: Disk>(
    disk: &D,
    path: &Path,
    number: u32,
    is_last: bool,
    recovered: &mut Recovered,
) -> Result<(), LogError> {
    let bytes = disk.read(path).map_err(io_error("read", path))?;
    let corrupt = |offset| LogError::Corrupt { path: path.to_owned(), offset };
    if bytes.get(..6) != Some(MAGIC) || word(&bytes, 8) != Some(number) {
        return Err(corrupt(0));
    }
    let format = u16::from_le_bytes([bytes[6], bytes[7]]);
    if !(FORMAT_MIN..=FORMAT).contains(&format) {
        return Err(LogError::Format { path: path.to_owned(), found: format });
    }
    let mut at = HEADER_BYTES;
    while let Some(record) = record_at(&bytes, number, at) {
        match record.kind {
            KIND_SEAL => return Ok(()),
            KIND_VOTE => {
                let body = record.body;
                let (Some(term), Some(vote), Some(commit)) =
                    (long(body, 0), long(body, 8), long(body, 16))
                else {
                    return Err(corrupt(at));
                };
                recovered.vote = Vote { term, vote, commit };
            }
            KIND_BEGIN => {
                let (Some(index), Some(term)) = (long(record.body, 0), long(record.body, 8)) else {
                    return Err(corrupt(at));
                };
                recovered.begin = Mark { index, term };
                recovered.entries.clear();
            }
            KIND_ENTRY => {
                let entry = read_entry(record.body).ok_or_else(|| corrupt(at))?;
                keep(entry, path, recovered)?;
            }
            _ => return Err(corrupt(at)),
        }
        at = record.next;
    }
    if !is_last {
        return Err(corrupt(at));
    }
    let was_synced = (at..bytes.len())
        .step_by(8)
        .filter_map(|later| record_at(&bytes, number, later))
        .any(|record| record.synced > at);
    if was_synced {
        return Err(corrupt(at));
    }
    recovered.torn_bytes = bytes[at..].iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    seal(disk, path, number, at, bytes.len())
}

fn read_entry(body: &[u8]) -> Option<Entry> {
    let kind = match long(body, 16)? {
        0 => EntryKind::Operation,
        1 => EntryKind::Member,
        2 => EntryKind::Members,
        _ => return None,
    };
    let data = Bytes::copy_from_slice(body.get(24..)?);
    Some(Entry { term: long(body, 0)?, index: long(body, 8)?, kind, data })
}

fn keep(entry: Entry, path: &Path, recovered: &mut Recovered) -> Result<(), LogError> {
    let entries = &mut recovered.entries;
    while entries.last().is_some_and(|last| last.index >= entry.index) {
        entries.pop(); // a newer leader wrote this place again
    }
    if let Some(last) = entries.last().filter(|last| last.index + 1 != entry.index) {
        let path = path.to_owned();
        return Err(LogError::Gap { path, last: last.index, found: entry.index });
    }
    entries.push(entry);
    Ok(())
}

/// Ends a segment at `at`, so that nothing behind it is ever read again.
fn seal<D: Disk>(
    disk: &D,
    path: &Path,
    number: u32,
    at: usize,
    len: usize,
) -> Result<(), LogError> {
    let mut tail = Vec::new();
    frame(&mut tail, number, at, KIND_SEAL, &[]);
    tail.resize(tail.len().max(len.saturating_sub(at)), 0);
    let file = disk.edit(path).map_err(io_error("open", path))?;
    file.write_at(&tail, at as u64).map_err(io_error("write", path))?;
    file.sync().map_err(io_error("sync", path))
}

#[cfg(test)]
mod tests;
