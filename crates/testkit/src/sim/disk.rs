//! A disk in memory that keeps exactly what was promised: at a power cut, what was not synced is
//! gone, or there in part.
//!
//! Writes that were not synced land sector by sector, any of them or none, also an older write of
//! a sector that was written twice. Names that were not synced (created, renamed, removed) land in
//! order, as journals have it: the first few or none.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use daemon::{Disk, DiskFile};
use parking_lot::Mutex;

use super::Rng;

const SECTOR_BYTES: usize = 512;

/// What a power cut does to what was not synced.
#[derive(Debug, Clone)]
pub enum Cut {
    /// All of it is lost.
    Lost,
    /// All of it is there.
    Landed,
    /// A part of it is there.
    Torn(Rng),
}

/// The disk; clones are the same disk.
#[derive(Debug, Clone)]
pub struct SimDisk(Arc<Mutex<Platter>>);

#[derive(Debug)]
struct Platter {
    files: BTreeMap<u64, Content>,
    dirs: BTreeMap<PathBuf, Dir>,
    next_file: u64,
    /// Counts power cuts: a file opened before one is of no use after it.
    life: u64,
    steps: u64,
    cut_at: u64,
    free: u64,
    delay: Duration,
    busy: Duration,
    syncs: u64,
    lying: bool,
}

#[derive(Debug, Clone, Default)]
struct Content {
    bytes: Vec<u8>,
    durable_len: usize,
    /// Of every sector written since the last sync: what is durable, then older writes.
    dirty: BTreeMap<usize, Vec<Vec<u8>>>,
}

#[derive(Debug, Default)]
struct Dir {
    names: BTreeMap<PathBuf, u64>,
    durable: BTreeMap<PathBuf, u64>,
    pending: Vec<Naming>,
}

#[derive(Debug)]
enum Naming {
    Add(PathBuf, u64),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf, u64),
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            Self::Add(path, file) => drop(names.insert(path.clone(), *file)),
            Self::Remove(path) => drop(names.remove(path)),
            Self::Rename(from, to, file) => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
        }
    }
}

impl Default for SimDisk {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Platter {
            files: BTreeMap::new(),
            dirs: BTreeMap::new(),
            next_file: 0,
            life: 0,
            steps: 0,
            cut_at: u64::MAX,
            free: u64::MAX,
            delay: Duration::ZERO,
            busy: Duration::ZERO,
            syncs: 0,
            lying: false,
        })))
    }
}

impl SimDisk {
    /// Writes, syncs and changes of names so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.0.lock().steps
    }

    /// Syncs of files so far.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.0.lock().syncs
    }

    /// Cuts the power when that many steps are done: from then on everything fails.
    pub fn cut_after(&self, steps: u64) {
        self.0.lock().cut_at = steps;
    }

    /// Whether the power is off.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        let platter = self.0.lock();
        platter.steps >= platter.cut_at
    }

    /// The power comes back after it was cut just now, at the latest. Files must be opened again.
    pub fn restart(&self, cut: Cut) {
        let mut platter = self.0.lock();
        platter.cut_at = u64::MAX;
        platter.life += 1;
        platter.lose(cut);
    }

    /// How much may still be written.
    pub fn set_free(&self, bytes: u64) {
        self.0.lock().free = bytes;
    }

    /// How long every sync takes.
    pub fn set_delay(&self, delay: Duration) {
        self.0.lock().delay = delay;
    }

    /// From now on syncs do nothing, as if what they make durable were acknowledged before.
    pub fn lie(&self) {
        self.0.lock().lying = true;
    }

    /// The time that syncs took since this was asked last.
    #[must_use]
    pub fn take_busy(&self) -> Duration {
        std::mem::take(&mut self.0.lock().busy)
    }

    /// Turns a bit of a file.
    ///
    /// # Errors
    /// When the file does not reach so far.
    pub fn flip(&self, path: &Path, byte: usize, bit: u32) -> io::Result<()> {
        let mut platter = self.0.lock();
        let file = platter.find(path)?;
        let content = platter.files.get_mut(&file).ok_or(ErrorKind::NotFound)?;
        *content.bytes.get_mut(byte).ok_or(ErrorKind::UnexpectedEof)? ^= 1 << (bit % 8);
        Ok(())
    }

    fn add(&self, path: &Path) -> io::Result<SimFile> {
        let mut platter = self.0.lock();
        platter.step()?;
        let file = platter.next_file;
        platter.next_file += 1;
        platter.files.insert(file, Content::default());
        platter.rename(Naming::Add(path.to_owned(), file), path)?;
        Ok(SimFile { disk: self.clone(), file, at: 0, life: platter.life })
    }

    fn existing(&self, path: &Path) -> io::Result<SimFile> {
        let platter = self.0.lock();
        let file = platter.find(path)?;
        Ok(SimFile { disk: self.clone(), file, at: 0, life: platter.life })
    }
}

impl Platter {
    /// Counts a step, unless the power is off.
    fn step(&mut self) -> io::Result<()> {
        if self.steps >= self.cut_at {
            return Err(io::Error::other("the power is cut"));
        }
        self.steps += 1;
        Ok(())
    }

    fn dir(&mut self, path: &Path) -> io::Result<&mut Dir> {
        let above = path.parent().ok_or(ErrorKind::NotFound)?;
        Ok(self.dirs.get_mut(above).ok_or(ErrorKind::NotFound)?)
    }

    fn find(&self, path: &Path) -> io::Result<u64> {
        let dir = path.parent().and_then(|above| self.dirs.get(above));
        let file = dir.and_then(|dir| dir.names.get(path));
        Ok(*file.ok_or(ErrorKind::NotFound)?)
    }

    fn rename(&mut self, naming: Naming, path: &Path) -> io::Result<()> {
        let dir = self.dir(path)?;
        naming.apply(&mut dir.names);
        dir.pending.push(naming);
        let (files, dirs) = (&mut self.files, &self.dirs);
        // What has no name any more, and will have none again, gives its space back.
        let named = |file: &u64| {
            dirs.values().any(|dir| {
                let mut all = dir.names.values().chain(dir.durable.values());
                all.any(|named| named == file) || dir.pending.iter().any(|n| n.names(*file))
            })
        };
        let mut freed = 0;
        files.retain(|file, content| {
            let keep = named(file);
            freed += if keep { 0 } else { content.bytes.len() as u64 };
            keep
        });
        self.free = self.free.saturating_add(freed);
        Ok(())
    }

    fn write(&mut self, file: u64, bytes: &[u8], at: usize) -> io::Result<()> {
        self.step()?;
        let content = self.files.get_mut(&file).ok_or(ErrorKind::NotFound)?;
        let more = (at + bytes.len()).saturating_sub(content.bytes.len()) as u64;
        let fits = bytes.len() - usize::try_from(more.saturating_sub(self.free)).unwrap_or(0);
        self.free = self.free.saturating_sub(more);
        content.write(&bytes[..fits], at);
        if fits < bytes.len() {
            return Err(ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// Leaves on the disk what a power cut leaves.
    fn lose(&mut self, mut cut: Cut) {
        for dir in self.dirs.values_mut() {
            let landed = match &mut cut {
                Cut::Lost => 0,
                Cut::Landed => dir.pending.len(),
                Cut::Torn(rng) => rng.place(dir.pending.len() + 1),
            };
            for naming in dir.pending.drain(..).take(landed) {
                naming.apply(&mut dir.durable);
            }
            dir.names = dir.durable.clone();
        }
        let named: Vec<u64> =
            self.dirs.values().flat_map(|dir| dir.names.values().copied()).collect();
        self.files.retain(|file, _| named.contains(file));
        for content in self.files.values_mut() {
            content.lose(&mut cut);
        }
    }
}

impl Naming {
    fn names(&self, file: u64) -> bool {
        match self {
            Self::Add(_, named) | Self::Rename(_, _, named) => *named == file,
            Self::Remove(_) => false,
        }
    }
}

impl Content {
    fn sector(&self, number: usize) -> Vec<u8> {
        let start = (number * SECTOR_BYTES).min(self.bytes.len());
        let end = (start + SECTOR_BYTES).min(self.bytes.len());
        self.bytes[start..end].to_vec()
    }

    fn write(&mut self, bytes: &[u8], at: usize) {
        let end = at + bytes.len();
        if bytes.is_empty() {
            return;
        }
        for number in at / SECTOR_BYTES..=(end - 1) / SECTOR_BYTES {
            let before = self.sector(number);
            self.dirty.entry(number).or_default().push(before);
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[at..end].copy_from_slice(bytes);
    }

    fn sync(&mut self) {
        self.durable_len = self.bytes.len();
        self.dirty.clear();
    }

    fn lose(&mut self, cut: &mut Cut) {
        let mut len = self.durable_len;
        for (number, versions) in std::mem::take(&mut self.dirty) {
            let newest = self.sector(number);
            let landed = match cut {
                Cut::Lost => 0,
                Cut::Landed => versions.len(),
                Cut::Torn(rng) => rng.place(versions.len() + 1),
            };
            let left = versions.get(landed).unwrap_or(&newest);
            let start = number * SECTOR_BYTES;
            if landed > 0 {
                len = len.max(start + left.len());
            }
            let end = (start + SECTOR_BYTES).min(self.bytes.len());
            let sector = &mut self.bytes[start..end];
            sector.fill(0);
            sector[..left.len()].copy_from_slice(left);
        }
        self.bytes.truncate(len);
        self.durable_len = len;
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn create(&self, path: &Path) -> io::Result<SimFile> {
        self.add(path)
    }

    fn open(&self, path: &Path) -> io::Result<SimFile> {
        self.existing(path)
    }

    fn edit(&self, path: &Path) -> io::Result<SimFile> {
        self.existing(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut platter = self.0.lock();
        platter.step()?;
        let file = platter.find(from)?;
        platter.rename(Naming::Rename(from.to_owned(), to.to_owned(), file), from)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut platter = self.0.lock();
        platter.step()?;
        platter.find(path)?;
        platter.rename(Naming::Remove(path.to_owned()), path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let platter = self.0.lock();
        let names = platter.dirs.get(dir).into_iter().flat_map(|dir| dir.names.keys());
        Ok(names.cloned().collect())
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut platter = self.0.lock();
        if !platter.dirs.contains_key(dir) {
            platter.step()?;
            platter.dirs.insert(dir.to_owned(), Dir::default());
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut platter = self.0.lock();
        platter.step()?;
        let dir = platter.dirs.get_mut(dir).ok_or(ErrorKind::NotFound)?;
        dir.pending.clear();
        dir.durable = dir.names.clone();
        Ok(())
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        Ok(self.0.lock().free)
    }
}

/// A file of a [`SimDisk`].
#[derive(Debug)]
pub struct SimFile {
    disk: SimDisk,
    file: u64,
    at: usize,
    life: u64,
}

impl SimFile {
    fn with<T>(&self, act: impl FnOnce(&mut Platter) -> io::Result<T>) -> io::Result<T> {
        let mut platter = self.disk.0.lock();
        if platter.life != self.life {
            return Err(io::Error::other("opened before the power was cut"));
        }
        act(&mut platter)
    }
}

impl Read for SimFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let at = self.at;
        let count = self.with(|platter| {
            let content = platter.files.get(&self.file).ok_or(ErrorKind::NotFound)?;
            let rest = content.bytes.get(at..).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        })?;
        self.at += count;
        Ok(count)
    }
}

impl Write for SimFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.with(|platter| platter.write(self.file, bytes, self.at))?;
        self.at += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let at = usize::try_from(at).map_err(io::Error::other)?;
        self.with(|platter| platter.write(self.file, bytes, at))
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|platter| {
            platter.step()?;
            platter.syncs += 1;
            platter.busy += platter.delay;
            let lying = platter.lying;
            let content = platter.files.get_mut(&self.file).ok_or(ErrorKind::NotFound)?;
            if !lying {
                content.sync();
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> (SimDisk, PathBuf) {
        let disk = SimDisk::default();
        disk.create_dir(Path::new("/d")).unwrap();
        (disk, PathBuf::from("/d/f"))
    }

    #[test]
    fn what_is_not_synced_is_lost_and_its_name_with_it() {
        let (disk, path) = disk();
        let file = disk.create(&path).unwrap();
        file.write_at(b"one", 0).unwrap();
        file.sync().unwrap();
        disk.restart(Cut::Lost);
        assert!(disk.read(&path).is_err(), "the name was not synced");
        let file = disk.create(&path).unwrap();
        file.write_at(b"one", 0).unwrap();
        file.sync().unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        file.write_at(b"two and more", 0).unwrap();
        disk.restart(Cut::Lost);
        assert_eq!(disk.read(&path).unwrap(), b"one");
        assert!(file.sync().is_err(), "opened before the cut");
    }

    #[test]
    fn a_torn_write_is_there_by_sectors() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..64 {
            let (disk, path) = disk();
            let file = disk.create(&path).unwrap();
            file.write_at(&[1; 3 * SECTOR_BYTES], 0).unwrap();
            file.sync().unwrap();
            disk.sync_dir(Path::new("/d")).unwrap();
            file.write_at(&[2; 2 * SECTOR_BYTES], 0).unwrap();
            file.write_at(&[3; SECTOR_BYTES], 0).unwrap();
            disk.restart(Cut::Torn(Rng::new(seed)));
            let bytes = disk.read(&path).unwrap();
            assert_eq!(bytes.len(), 3 * SECTOR_BYTES);
            assert!(bytes.chunks(SECTOR_BYTES).all(|s| s.iter().all(|b| *b == s[0])));
            seen.insert((bytes[0], bytes[SECTOR_BYTES], bytes[2 * SECTOR_BYTES]));
        }
        let all = [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2)].map(|(a, b)| (a, b, 1));
        assert_eq!(seen, all.into());
    }

    #[test]
    fn a_full_disk_takes_a_part_and_a_removed_file_gives_it_back() {
        let (disk, path) = disk();
        disk.set_free(1000);
        let file = disk.create(&path).unwrap();
        let error = file.write_at(&[1; 1500], 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert_eq!(disk.read(&path).unwrap().len(), 1000);
        disk.remove(&path).unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        let other = disk.create(Path::new("/d/g")).unwrap();
        other.write_at(&[1; 900], 0).unwrap();
    }

    #[test]
    fn from_the_cut_on_everything_fails() {
        let (disk, path) = disk();
        let file = disk.create(&path).unwrap();
        disk.cut_after(disk.steps() + 1);
        file.write_at(b"one", 0).unwrap();
        assert!(file.sync().is_err());
        assert!(disk.rename(&path, Path::new("/d/g")).is_err());
        disk.restart(Cut::Landed);
        assert_eq!(disk.read(&path).unwrap(), b"one");
    }
}
