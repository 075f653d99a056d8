//! A snapshot as it leaves the store and comes back: padded to whole sectors, then a SHA-256 of
//! all before it, which is how etcd's tools tell a whole file from a cut one.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::{Bytes, BytesMut};
use daemon::SystemDisk;

use crate::applied::Applied;
use crate::mvcc::Archive;
use crate::snapshot;

/// Bytes of one part, as etcd sends them.
const PART_BYTES: usize = 32 << 10;
const SECTOR_BYTES: u64 = 512;
const DIGEST_BYTES: u64 = 32;

/// A part of a backup on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its bytes.
    pub blob: Bytes,
    /// How many follow.
    pub remaining_bytes: u64,
}

/// Gives a whole state away in parts.
///
/// # Errors
/// When `send` fails, or the archive lost a value.
pub fn write(
    applied: &Applied,
    archive: &dyn Archive,
    send: impl FnMut(Part) -> io::Result<()>,
) -> io::Result<()> {
    // Written twice: the first part says how many bytes follow.
    let bytes = snapshot::write(applied, archive, &mut io::sink())?;
    let padding = bytes.next_multiple_of(SECTOR_BYTES) - bytes;
    let left = bytes + padding + DIGEST_BYTES;
    let buffer = BytesMut::with_capacity(PART_BYTES);
    let mut parts = Parts { buffer, left, digest: Context::new(&SHA256), send };
    snapshot::write(applied, archive, &mut parts)?;
    io::copy(&mut io::repeat(0).take(padding), &mut parts)?;
    let digest = parts.digest.clone().finish();
    parts.write_all(digest.as_ref())?;
    parts.flush()
}

/// Reads a backup's state, once its digest was found to be right.
///
/// # Errors
/// When the file cannot be read, is cut or damaged.
pub fn read(path: &Path) -> io::Result<Applied> {
    let bytes = std::fs::metadata(path)?.len();
    let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    if bytes % SECTOR_BYTES != DIGEST_BYTES {
        return Err(wrong("it has no digest at its end: it is cut, or not a snapshot"));
    }
    let mut file = BufReader::with_capacity(PART_BYTES, File::open(path)?);
    let mut digest = Context::new(&SHA256);
    let mut left = bytes - DIGEST_BYTES;
    let mut buffer = vec![0; PART_BYTES];
    while left > 0 {
        let part = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.read_exact(&mut buffer[..part])?;
        digest.update(&buffer[..part]);
        left -= part as u64;
    }
    let mut expected = [0; DIGEST_BYTES as usize];
    file.read_exact(&mut expected)?;
    if digest.finish().as_ref() != expected {
        return Err(wrong("its digest is not that of its bytes: it is damaged"));
    }
    snapshot::load(&SystemDisk, path)
}

/// Cuts what is written into parts.
struct Parts<S> {
    buffer: BytesMut,
    left: u64,
    digest: Context,
    send: S,
}

impl<S: FnMut(Part) -> io::Result<()>> Write for Parts<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PART_BYTES - self.buffer.len());
        self.digest.update(&bytes[..taken]);
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == PART_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        let blob = std::mem::replace(&mut self.buffer, BytesMut::with_capacity(PART_BYTES));
        if blob.is_empty() {
            return Ok(());
        }
        self.left -= blob.len() as u64;
        (self.send)(Part { blob: blob.freeze(), remaining_bytes: self.left })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::Op;
    use crate::snapshot::Mark;

    fn sample() -> Applied {
        let mut applied = Applied { mark: Mark { index: 5, term: 2 }, ..Applied::default() };
        for n in 0..40u8 {
            let put = wire::etcdserverpb::PutRequest {
                key: vec![b'k', n % 30].into(),
                value: vec![n; 3000].into(),
                ..Default::default()
            };
            applied.mvcc.apply(&Op::Put(put), &());
        }
        applied
    }

    #[test]
    fn a_backup_comes_back_whole_or_is_refused() {
        let applied = sample();
        let mut parts = Vec::new();
        write(&applied, &(), |part| {
            parts.push(part);
            Ok(())
        })
        .unwrap();
        let mut bytes: Vec<u8> = parts.iter().flat_map(|part| part.blob.clone()).collect();
        assert_eq!(bytes.len() % 512, 32);
        let mut left = bytes.len() as u64;
        for part in &parts {
            left -= part.blob.len() as u64;
            assert_eq!(part.remaining_bytes, left);
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup");
        std::fs::write(&path, &bytes).unwrap();
        let back = read(&path).unwrap();
        assert_eq!(back.mark, applied.mark);
        assert_eq!(back.mvcc.summary(), applied.mvcc.summary());
        for at in [0, 100, bytes.len() / 2, bytes.len() - 40, bytes.len() - 1] {
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert!(read(&path).is_err(), "flipped byte {at}");
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes[..at]).unwrap();
            assert!(read(&path).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_raised_state_has_its_keys_and_none_of_its_history() {
        let mut mvcc = sample().mvcc;
        let before = mvcc.revision();
        mvcc.raise(1_000_000);
        assert_eq!(mvcc.revision(), before + 1_000_000);
        assert_eq!(mvcc.compacted(), mvcc.revision());
        let all = wire::etcdserverpb::RangeRequest {
            key: "k".into(),
            range_end: "l".into(),
            ..Default::default()
        };
        let found = mvcc.range(&(), &all).unwrap();
        assert_eq!(found.count, 30);
        assert!(found.kvs.iter().all(|kv| kv.mod_revision <= before));
        let then = wire::etcdserverpb::RangeRequest { revision: before, ..all };
        assert_eq!(mvcc.range(&(), &then), Err(crate::mvcc::Error::Compacted));
    }
}
