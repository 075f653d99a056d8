//! The disk as a log and its snapshots need it: the machine's own, or one that a test breaks.
//!
//! Small on purpose: everything here has a meaning across a power cut. What was written is there
//! afterwards only if its file was synced, and its name only if its directory was.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Where files are kept.
pub trait Disk: Clone + Debug + Send + Sync + 'static {
    /// An open file.
    type File: DiskFile;

    /// Creates an empty file, or empties the one that is there, for reading and writing.
    ///
    /// # Errors
    /// When the disk refuses.
    fn create(&self, path: &Path) -> io::Result<Self::File>;

    /// Opens a file for reading.
    ///
    /// # Errors
    /// When it is not there, or the disk refuses.
    fn open(&self, path: &Path) -> io::Result<Self::File>;

    /// Opens a file to change it in place.
    ///
    /// # Errors
    /// When it is not there, or the disk refuses.
    fn edit(&self, path: &Path) -> io::Result<Self::File>;

    /// Gives a file another name, in one step.
    ///
    /// # Errors
    /// When the disk refuses.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// When the disk refuses.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The files and directories in `dir` in the order of their names; none if it is not there.
    ///
    /// # Errors
    /// When the disk refuses.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;

    /// Makes a directory and those above it, so that they survive a power cut.
    ///
    /// # Errors
    /// When the disk refuses.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes the names in a directory survive a power cut.
    ///
    /// # Errors
    /// When the disk refuses.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Bytes that can still be written below `dir`.
    ///
    /// # Errors
    /// When the disk refuses.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;

    /// Reads a whole file.
    ///
    /// # Errors
    /// When it is not there, or the disk refuses.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(path)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Replaces a small file, so that a power cut leaves the old or the new one.
    ///
    /// # Errors
    /// When the disk refuses; the old one is still there then.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let unfinished = path.with_extension("unfinished");
        let mut file = self.create(&unfinished)?;
        file.write_all(bytes)?;
        file.sync()?;
        self.rename(&unfinished, path)?;
        path.parent().map_or(Ok(()), |dir| self.sync_dir(dir))
    }
}

/// An open file.
pub trait DiskFile: Read + Write + Debug + Send {
    /// Writes all of `bytes` at a place.
    ///
    /// # Errors
    /// When the disk refuses; a part may be written then.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Makes everything written survive a power cut. The file's name is its directory's business.
    ///
    /// # Errors
    /// When the disk refuses; nothing is known about what was written since the last sync then.
    fn sync(&self) -> io::Result<()>;
}

/// The machine's own disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    type File = File;

    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        File::open(path)
    }

    fn edit(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let items = match std::fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            items => items?,
        };
        let paths: io::Result<Vec<PathBuf>> = items.map(|item| Ok(item?.path())).collect();
        let mut paths = paths?;
        paths.sort();
        Ok(paths)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        let above = dir.parent().filter(|above| !above.as_os_str().is_empty());
        let above = above.unwrap_or(Path::new("."));
        self.create_dir(above)?;
        match std::fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            made => made?,
        }
        self.sync_dir(above)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let found = nix::sys::statvfs::statvfs(dir)?;
        Ok(found.blocks_available() * found.fragment_size())
    }
}

impl DiskFile for File {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
