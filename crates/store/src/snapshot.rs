//! Snapshot files: the whole state at one entry, checksummed, synced before they get their name.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

const FORMAT: u16 = 1;
const MAGIC: &[u8; 6] = b"ICSNP\n";
/// No block is larger: a value is bounded by the request, a summary by its leases.
const BLOCK_BYTES_MAX: usize = 256 << 20;
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
pub struct Writer {
    out: BufWriter<File>,
    dir: PathBuf,
    unfinished: PathBuf,
    mark: Mark,
    blocks: u64,
    bytes: u64,
}

impl Writer {
    /// Begins a snapshot in `dir`.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn create(dir: &Path, mark: Mark) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let unfinished = dir.join("unfinished");
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&unfinished)?);
        out.write_all(MAGIC)?;
        out.write_all(&FORMAT.to_le_bytes())?;
        out.write_all(&mark.index.to_le_bytes())?;
        out.write_all(&mark.term.to_le_bytes())?;
        Ok(Self { out, dir: dir.to_owned(), unfinished, mark, blocks: 0, bytes: 0 })
    }

    /// Adds a block.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn block(&mut self, body: &[u8]) -> io::Result<()> {
        let len = u32::try_from(body.len()).map_err(io::Error::other)?;
        self.out.write_all(&len.to_le_bytes())?;
        self.out.write_all(&checksum(self.blocks, body).to_le_bytes())?;
        self.out.write_all(body)?;
        self.blocks += 1;
        self.bytes += 8 + u64::from(len);
        Ok(())
    }

    /// Syncs the snapshot, gives it its name and removes older ones. Returns its bytes.
    ///
    /// # Errors
    /// When the disk fails; the older snapshots are still there then.
    pub fn finish(mut self) -> io::Result<u64> {
        self.out.write_all(&u32::MAX.to_le_bytes())?;
        let count = self.blocks.to_le_bytes();
        self.out.write_all(&checksum(self.blocks, &count).to_le_bytes())?;
        self.out.flush()?;
        self.out.get_ref().sync_all()?;
        let name = format!("{:016x}-{:016x}.snap", self.mark.index, self.mark.term);
        std::fs::rename(&self.unfinished, self.dir.join(name))?;
        crate::log::sync_dir(&self.dir)?;
        for (_, path) in list(&self.dir)?.into_iter().skip(KEPT) {
            std::fs::remove_file(path)?;
        }
        Ok(self.bytes)
    }
}

/// Reads one snapshot, block by block.
#[derive(Debug)]
pub struct Reader {
    input: BufReader<File>,
    blocks: u64,
    /// Which entry it ends with.
    pub mark: Mark,
}

impl Reader {
    /// Opens the snapshot at `path`.
    ///
    /// # Errors
    /// When it is not a snapshot of a format that this version reads.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut input = BufReader::with_capacity(1 << 20, File::open(path)?);
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
        if format != FORMAT {
            let text = format!("snapshot format {format}, but this version reads {FORMAT} only");
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

/// The snapshots in `dir`, newest first.
///
/// # Errors
/// When the disk fails.
pub fn list(dir: &Path) -> io::Result<Vec<(Mark, PathBuf)>> {
    let mut found = Vec::new();
    if !dir.exists() {
        return Ok(found);
    }
    for item in std::fs::read_dir(dir)? {
        let path = item?.path();
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
        let mut writer = Writer::create(dir, Mark { index, term: 2 }).unwrap();
        writer.block(b"one").unwrap();
        writer.block(b"two").unwrap();
        writer.finish().unwrap();
        list(dir).unwrap()[0].1.clone()
    }

    fn read(path: &Path) -> io::Result<Vec<Bytes>> {
        let mut reader = Reader::open(path)?;
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
        let kept: Vec<u64> = list(dir.path()).unwrap().iter().map(|(m, _)| m.index).collect();
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
