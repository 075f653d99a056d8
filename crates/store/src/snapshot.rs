//! Snapshot files: the whole state at one entry, checksummed, synced before they get their name.

use std::io::{self, BufReader, BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use daemon::{Disk, DiskFile as _, SystemDisk};
use prost::Message as _;

use crate::applied::Applied;
use crate::auth::Auth;
use crate::members::Members;
use crate::mvcc::record::{self, REVISION_BYTES, Summary};
use crate::mvcc::{Archive, Mvcc};

/// The format that is written, and the oldest that is read. Format 2 knows no members that change jointly.
const FORMAT: u16 = 3;
const FORMAT_MIN: u16 = 2;
const MAGIC: &[u8; 6] = b"ICSNP\n";
/// No block is larger: a value is bounded by the request, a summary by its leases.
const BLOCK_BYTES_MAX: usize = 256 << 20;
/// What is written or read at once.
const BUFFER_BYTES: usize = 256 << 10;
/// How many snapshots are kept.
const KEPT: usize = 2;

/// Which entry a snapshot ends with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// Its place.
    pub index: u64,
    /// Its term.
    pub term: u64,
}

/// Writes one snapshot, block by block.
#[derive(Debug)]
pub struct Writer<D: Disk = SystemDisk> {
    disk: D,
    out: BufWriter<D::File>,
    dir: PathBuf,
    unfinished: PathBuf,
    mark: Mark,
    blocks: u64,
    bytes: u64,
}

impl<D: Disk> Writer<D> {
    /// Begins a snapshot in `dir`.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn create(disk: &D, dir: &Path, mark: Mark) -> io::Result<Self> {
        disk.create_dir(dir)?;
        let unfinished = dir.join("unfinished");
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, disk.create(&unfinished)?);
        out.write_all(&head(mark))?;
        let (disk, dir) = (disk.clone(), dir.to_owned());
        Ok(Self { disk, out, dir, unfinished, mark, blocks: 0, bytes: 0 })
    }

    /// Adds a block.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn block(&mut self, body: &[u8]) -> io::Result<()> {
        self.out.write_all(&frame(self.blocks, body)?)?;
        self.out.write_all(body)?;
        self.blocks += 1;
        self.bytes += 8 + body.len() as u64;
        Ok(())
    }

    /// Syncs the snapshot, gives it its name and removes older ones. Returns its bytes.
    ///
    /// # Errors
    /// When the disk fails; the older snapshots are still there then.
    pub fn finish(mut self) -> io::Result<u64> {
        self.out.write_all(&end(self.blocks))?;
        self.out.flush()?;
        self.out.get_ref().sync()?;
        self.disk.rename(&self.unfinished, &self.dir.join(file_name(self.mark)))?;
        self.disk.sync_dir(&self.dir)?;
        for (_, path) in list(&self.disk, &self.dir)?.into_iter().skip(KEPT) {
            self.disk.remove(&path)?;
        }
        Ok(self.bytes)
    }
}

/// Reads one snapshot, block by block.
#[derive(Debug)]
pub struct Reader<D: Disk = SystemDisk> {
    input: BufReader<D::File>,
    blocks: u64,
    /// Which entry it ends with.
    pub mark: Mark,
}

impl<D: Disk> Reader<D> {
    /// Opens the snapshot at `path`.
    ///
    /// # Errors
    /// When it is not a snapshot of a format that this version reads.
    pub fn open(disk: &D, path: &Path) -> io::Result<Self> {
        let mut input = BufReader::with_capacity(BUFFER_BYTES, disk.open(path)?);
        let mut head = [0; 24];
        input.read_exact(&mut head)?;
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&head[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let format = u16::from_le_bytes([head[6], head[7]]);
        if &head[..6] != MAGIC {
            return Err(damaged(path, "it is not a snapshot"));
        }
        if !(FORMAT_MIN..=FORMAT).contains(&format) {
            let text = format!(
                "snapshot format {format}, but this version reads formats {FORMAT_MIN} to {FORMAT}"
            );
            return Err(damaged(path, &text));
        }
        Ok(Self { input, blocks: 0, mark: Mark { index: number(8), term: number(16) } })
    }

    /// The next block, or none at the end.
    ///
    /// # Errors
    /// When a block is damaged or the end is missing.
    pub fn block(&mut self) -> io::Result<Option<Bytes>> {
        let mut head = [0; 8];
        self.input.read_exact(&mut head)?;
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "snapshot: damaged block");
        if len == u32::MAX {
            let whole = crc == checksum(self.blocks, &self.blocks.to_le_bytes());
            return if whole { Ok(None) } else { Err(wrong()) };
        }
        if len as usize > BLOCK_BYTES_MAX {
            return Err(wrong());
        }
        let mut body = vec![0; len as usize];
        self.input.read_exact(&mut body)?;
        if crc != checksum(self.blocks, &body) {
            return Err(wrong());
        }
        self.blocks += 1;
        Ok(Some(body.into()))
    }
}

/// Writes a whole state to a snapshot in `dir`. Returns its bytes.
///
/// # Errors
/// When the disk fails, or the archive lost a value.
pub fn save<D: Disk>(
    disk: &D,
    dir: &Path,
    applied: &Applied,
    archive: &dyn Archive,
) -> io::Result<u64> {
    let mut writer = Writer::create(disk, dir, applied.mark)?;
    let unfinished = writer.unfinished.clone();
    let filled = blocks(applied, archive, |block| writer.block(block));
    filled.and_then(|()| writer.finish()).inspect_err(|_| {
        // Its space may be what is missing.
        if let Err(error) = disk.remove(&unfinished) {
            tracing::debug!(%error, "cannot remove an unfinished snapshot");
        }
    })
}

/// Writes a whole state in the form of a snapshot file. Returns its bytes.
///
/// # Errors
/// When `out` fails, or the archive lost a value.
pub fn write(applied: &Applied, archive: &dyn Archive, out: &mut dyn Write) -> io::Result<u64> {
    let begin = head(applied.mark);
    out.write_all(&begin)?;
    let (mut count, mut bytes) = (0, begin.len() as u64);
    blocks(applied, archive, |block| {
        out.write_all(&frame(count, block)?)?;
        count += 1;
        bytes += 8 + block.len() as u64;
        out.write_all(block)
    })?;
    out.write_all(&end(count))?;
    Ok(bytes + 8)
}

/// What a snapshot says, block by block: what is beside the keys, then every change.
fn blocks(
    applied: &Applied,
    archive: &dyn Archive,
    mut each: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    each(&applied.mvcc.summary().encode())?;
    each(&applied.members.encode_to_vec())?;
    each(&applied.auth.encode_to_vec())?;
    let mut block = Vec::new();
    applied.mvcc.records(archive, |at, event| {
        block.clear();
        block.extend_from_slice(&record::encode_revision(at));
        record::encode(event, &mut block);
        each(&block)
    })
}

fn head(mark: Mark) -> Vec<u8> {
    let (index, term) = (mark.index.to_le_bytes(), mark.term.to_le_bytes());
    [MAGIC.as_slice(), &FORMAT.to_le_bytes(), &index, &term].concat()
}

/// What stands before a block: its length and checksum.
fn frame(place: u64, body: &[u8]) -> io::Result<[u8; 8]> {
    let len = u32::try_from(body.len()).map_err(io::Error::other)?.to_le_bytes();
    let crc = checksum(place, body).to_le_bytes();
    Ok([len[0], len[1], len[2], len[3], crc[0], crc[1], crc[2], crc[3]])
}

/// What stands after the last block.
fn end(count: u64) -> [u8; 8] {
    let crc = checksum(count, &count.to_le_bytes()).to_le_bytes();
    [255, 255, 255, 255, crc[0], crc[1], crc[2], crc[3]]
}

/// Reads the newest snapshot in `dir` that is whole; an empty state if there never was one.
///
/// # Errors
/// When there are snapshots and none can be used.
pub fn newest<D: Disk>(disk: &D, dir: &Path) -> io::Result<Applied> {
    let snapshots = list(disk, dir)?;
    let any = !snapshots.is_empty();
    for (_, path) in snapshots {
        match load(disk, &path) {
            Ok(read) => return Ok(read),
            Err(error) => {
                let path = path.display();
                tracing::error!(%path, %error, "cannot use a snapshot");
            }
        }
    }
    if any {
        return Err(damaged(dir, "no snapshot can be used; restore this member from a backup"));
    }
    Ok(Applied::default())
}

/// Reads the state in one snapshot.
///
/// # Errors
/// When it is damaged.
pub fn load<D: Disk>(disk: &D, path: &Path) -> io::Result<Applied> {
    let mut reader = Reader::open(disk, path)?;
    let summary = reader.block()?.and_then(|block| Summary::decode(&block));
    let members = reader.block()?.and_then(|block| Members::decode(block).ok());
    let auth = reader.block()?.and_then(|block| Auth::decode(block).ok());
    let mut mvcc = Mvcc::begin(&summary.ok_or_else(|| damaged(path, "its summary"))?);
    let members = members.ok_or_else(|| damaged(path, "its members"))?;
    let auth = auth.ok_or_else(|| damaged(path, "its users"))?;
    while let Some(mut block) = reader.block()? {
        if block.len() < REVISION_BYTES {
            return Err(damaged(path, "a record is too short"));
        }
        let at = record::decode_revision(&block.split_to(REVISION_BYTES));
        let (Some(at), Some(event)) = (at, record::decode(block)) else {
            return Err(damaged(path, "a record does not parse"));
        };
        mvcc.load(at, &event);
    }
    Ok(Applied { mvcc, members, auth, mark: reader.mark })
}

/// Reads the members in one snapshot, and its mark.
///
/// # Errors
/// When it is damaged.
pub fn members<D: Disk>(disk: &D, path: &Path) -> io::Result<(Mark, Members)> {
    let mut reader = Reader::open(disk, path)?;
    reader.block()?;
    let members = reader.block()?.and_then(|block| Members::decode(block).ok());
    Ok((reader.mark, members.ok_or_else(|| damaged(path, "its members"))?))
}

/// What the file of a snapshot is called.
#[must_use]
pub fn file_name(mark: Mark) -> String {
    format!("{:016x}-{:016x}.snap", mark.index, mark.term)
}

/// Reads a snapshot file in pieces until `take` wants no more.
///
/// # Errors
/// When it is not there, or the disk fails.
pub fn chunks<D: Disk>(
    disk: &D,
    path: &Path,
    chunk_bytes: usize,
    mut take: impl FnMut(Bytes) -> bool,
) -> io::Result<()> {
    let mut file = disk.open(path)?;
    loop {
        let mut chunk = vec![0; chunk_bytes];
        let read = file.read(&mut chunk)?;
        chunk.truncate(read);
        if read == 0 || !take(chunk.into()) {
            return Ok(());
        }
    }
}

/// Writes the pieces of another member's snapshot to a file in `dir`, checks it and syncs it before it gets its name.
/// Returns its members.
///
/// # Errors
/// When it is damaged or another snapshot, or the disk fails.
pub fn receive<D: Disk>(
    disk: &D,
    dir: &Path,
    mark: Mark,
    pieces: impl Iterator<Item = Bytes>,
) -> io::Result<Members> {
    disk.create_dir(dir)?;
    let unfinished = dir.join("arriving");
    let mut file = disk.create(&unfinished)?;
    for piece in pieces {
        file.write_all(&piece)?;
    }
    file.sync()?;
    let (found, members) = members(disk, &unfinished)?;
    if found != mark {
        return Err(damaged(&unfinished, "it is another snapshot than it was said to be"));
    }
    let mut reader = Reader::open(disk, &unfinished)?;
    while reader.block()?.is_some() {}
    disk.rename(&unfinished, &dir.join(file_name(mark)))?;
    disk.sync_dir(dir)?;
    Ok(members)
}

/// The snapshots in `dir`, newest first.
///
/// # Errors
/// When the disk fails.
pub fn list<D: Disk>(disk: &D, dir: &Path) -> io::Result<Vec<(Mark, PathBuf)>> {
    let mut found = Vec::new();
    for path in disk.list(dir)? {
        let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".snap"));
        let mark = name.and_then(|name| name.split_once('-')).and_then(|(index, term)| {
            let index = u64::from_str_radix(index, 16).ok()?;
            Some(Mark { index, term: u64::from_str_radix(term, 16).ok()? })
        });
        if let Some(mark) = mark {
            found.push((mark, path));
        }
    }
    found.sort();
    found.reverse();
    Ok(found)
}

/// A block's checksum, in which its place counts.
fn checksum(place: u64, body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&place.to_le_bytes());
    crc.update(body);
    crc.finalize()
}

fn damaged(path: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(dir: &Path, index: u64) -> PathBuf {
        let mut writer = Writer::create(&SystemDisk, dir, Mark { index, term: 2 }).unwrap();
        writer.block(b"one").unwrap();
        writer.block(b"two").unwrap();
        writer.finish().unwrap();
        list(&SystemDisk, dir).unwrap()[0].1.clone()
    }

    fn read(path: &Path) -> io::Result<Vec<Bytes>> {
        let mut reader = Reader::open(&SystemDisk, path)?;
        let mut blocks = Vec::new();
        while let Some(block) = reader.block()? {
            blocks.push(block);
        }
        Ok(blocks)
    }

    #[test]
    fn blocks_come_back_and_old_snapshots_go() {
        let dir = tempfile::tempdir().unwrap();
        for index in [3, 4, 5] {
            let path = sample(dir.path(), index);
            assert_eq!(read(&path).unwrap(), ["one", "two"]);
        }
        let kept: Vec<u64> =
            list(&SystemDisk, dir.path()).unwrap().iter().map(|(m, _)| m.index).collect();
        assert_eq!(kept, [5, 4]);
    }

    #[test]
    fn damage_anywhere_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = sample(dir.path(), 1);
        let good = std::fs::read(&path).unwrap();
        for at in 24..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            std::fs::write(&path, &bad).unwrap();
            assert!(read(&path).is_err(), "flipped byte {at}");
            std::fs::write(&path, &good[..at]).unwrap();
            assert!(read(&path).is_err(), "cut at byte {at}");
        }
    }
}
