//! The hash of everything up to a revision, by which members are compared: etcd's (`server/storage/mvcc/hash.go`), so that
//! equal changes give the same number here and there.
//!
//! It is the CRC-32C of the bucket's name and then, in the order of revisions, of what etcd keeps for each change: the
//! revision as bytes, and the pair as a message, of which a tombstone has the key alone.

use bytes::Bytes;
use prost::Message as _;
use wire::mvccpb::KeyValue;

use super::index::Version;
use super::{Archive, Error, Mvcc, range};

const BUCKET: &[u8] = b"key";
const TOMBSTONE: u8 = b't';

/// Hashes what is kept of the history up to revision `at`. Takes the time to read all values.
///
/// # Errors
/// When the archive lost a value.
pub fn hash(mvcc: &Mvcc, archive: &dyn Archive, at: i64) -> Result<u32, Error> {
    let mut versions: Vec<(&Bytes, &Version)> = Vec::new();
    // Of what is compacted, only what can still be read as of that revision counts; all of it, where nothing can be.
    let nothing_lives = mvcc.index().iter().all(|(_, history)| history.at(at).is_none());
    for (key, history) in mvcc.index().iter() {
        let live = history.at(at).map(|version| version.at);
        let counts = |version: &Version| {
            let compacted = version.at.main <= mvcc.compacted();
            // What a compaction leaves of a deleted key is for watchers only.
            let readable = Some(version.at) == live || nothing_lives && !version.is_tombstone();
            !compacted || readable
        };
        let wanted = history.versions.iter().filter(|v| v.at.main <= at && counts(v));
        versions.extend(wanted.map(|version| (key, version)));
    }
    versions.sort_unstable_by_key(|(_, version)| version.at);
    let mut crc = crc32c::crc32c(BUCKET);
    let mut bytes = Vec::new();
    for (key, version) in versions {
        bytes.clear();
        bytes.extend_from_slice(&version.at.main.to_be_bytes());
        bytes.push(b'_');
        bytes.extend_from_slice(&u64::from(version.at.sub).to_be_bytes());
        let kv = if version.is_tombstone() {
            bytes.push(TOMBSTONE);
            KeyValue { key: key.clone(), ..KeyValue::default() }
        } else {
            KeyValue { value: range::value(version, archive)?, ..version.bare(key) }
        };
        // A vector takes any number of bytes.
        kv.encode_raw(&mut bytes);
        crc = crc32c::crc32c_append(crc, &bytes);
    }
    Ok(crc)
}
