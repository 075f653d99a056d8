//! The life of every key: its versions in the order of their revisions.
//!
//! The versions between two tombstones are one generation of the key. A version without a value
//! is cold: its value is read from the archive by its revision. Old values go cold, and large ones.

use std::collections::BTreeMap;

use bytes::Bytes;
use smallvec::SmallVec;
use wire::mvccpb::KeyValue;

use super::span::Span;

/// A value of so many bytes goes cold when memory has no room for it. Below, it costs about as much as what stays of it.
pub const LARGE_BYTES: usize = 1 << 10;
/// What a version costs in memory beside its key and value.
pub const VERSION_BYTES: usize = size_of::<Version>();

/// Which change of which transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision {
    /// The store's revision after the transaction.
    pub main: i64,
    /// Changes before this one in the same transaction.
    pub sub: u32,
}

/// One version of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// When it was written.
    pub at: Revision,
    /// When its generation began.
    pub create: i64,
    /// Its number in the generation; 0 for a tombstone.
    pub version: i64,
    /// The lease it dies with, or 0.
    pub lease: i64,
    /// Its value while hot.
    pub value: Option<Bytes>,
    /// Bytes of its value, hot or cold.
    pub size: u32,
}

impl Version {
    /// The end of a generation.
    #[must_use]
    pub fn tombstone(at: Revision) -> Self {
        Self { at, create: 0, version: 0, lease: 0, value: Some(Bytes::new()), size: 0 }
    }

    /// Whether memory may do without its value as long as it is the newest.
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.size as usize >= LARGE_BYTES
    }

    /// Forgets its value, if there is anything to forget.
    fn cool(&mut self) {
        if self.size > 0 {
            self.value = None;
        }
    }

    /// Whether the key is deleted here.
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    /// The pair without its value.
    #[must_use]
    pub fn bare(&self, key: &Bytes) -> KeyValue {
        KeyValue {
            key: key.clone(),
            create_revision: self.create,
            mod_revision: self.at.main,
            version: self.version,
            value: Bytes::new(),
            lease: self.lease,
        }
    }
}

/// All versions of one key that are not compacted, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Never empty in the index.
    pub versions: SmallVec<[Version; 1]>,
}

impl History {
    /// The live version as of revision `main`.
    #[must_use]
    pub fn at(&self, main: i64) -> Option<&Version> {
        let last = self.versions.last()?;
        let version = if last.at.main <= main {
            last
        } else {
            let after = self.versions.partition_point(|v| v.at.main <= main);
            self.versions.get(after.checked_sub(1)?)?
        };
        (!version.is_tombstone()).then_some(version)
    }

    /// The version that `at` replaced, tombstones included.
    #[must_use]
    pub fn before(&self, at: Revision) -> Option<&Version> {
        let here = self.versions.partition_point(|v| v.at < at);
        self.versions.get(here.checked_sub(1)?)
    }

    /// Drops what no reader at or after `main` can see, and returns what it dropped. A tombstone
    /// of just that revision stays, since a watcher may still ask for it.
    pub fn trim(&mut self, main: i64) -> SmallVec<[Version; 1]> {
        let visible = self.versions.partition_point(|v| v.at.main <= main);
        let Some(last) = visible.checked_sub(1) else { return SmallVec::new() };
        let gone = self.versions[last].is_tombstone() && self.versions[last].at.main < main;
        let keep_from = if gone { visible } else { last };
        self.versions.drain(..keep_from).collect()
    }
}

/// Every key with its history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    keys: BTreeMap<Bytes, History>,
}

impl Index {
    /// The history of one key.
    #[must_use]
    pub fn history(&self, key: &[u8]) -> Option<&History> {
        self.keys.get(key)
    }

    /// The history of one key, to be changed.
    pub fn history_mut(&mut self, key: &[u8]) -> Option<&mut History> {
        self.keys.get_mut(key)
    }

    /// Adds the newest version of a key, and says whether it is the only one.
    pub fn push(&mut self, key: &Bytes, version: Version) -> bool {
        match self.keys.get_mut(key.as_ref()) {
            Some(history) => {
                history.versions.push(version);
                false
            }
            None => {
                let history = History { versions: SmallVec::from_buf([version]) };
                self.keys.insert(key.clone(), history);
                true
            }
        }
    }

    /// The key as the index holds it, or a copy to be put there: a slice of a log entry would keep
    /// the whole entry alive as long as the key lives.
    #[must_use]
    pub fn key(&self, key: &Bytes) -> Bytes {
        let held = self.keys.get_key_value(key.as_ref());
        held.map_or_else(|| Bytes::copy_from_slice(key), |(held, _)| held.clone())
    }

    /// Forgets the value of the version at `at` if it is large, and of the one that it replaced.
    pub fn cool(&mut self, key: &[u8], at: Revision) {
        let Some(history) = self.keys.get_mut(key) else { return };
        let here = history.versions.partition_point(|v| v.at < at);
        if let Some(before) = here.checked_sub(1).and_then(|i| history.versions.get_mut(i)) {
            before.cool();
        }
        if let Some(version) = history.versions.get_mut(here).filter(|v| v.at == at && v.is_large())
        {
            version.cool();
        }
    }

    /// Forgets every value that is old or large.
    pub fn cool_all(&mut self) {
        for history in self.keys.values_mut() {
            if let Some((last, old)) = history.versions.split_last_mut() {
                old.iter_mut().for_each(Version::cool);
                if last.is_large() {
                    last.cool();
                }
            }
        }
    }

    /// Trims one key's history and forgets the key when nothing is left.
    pub fn trim(&mut self, key: &[u8], main: i64) -> SmallVec<[Version; 1]> {
        let Some(history) = self.keys.get_mut(key) else { return SmallVec::new() };
        let gone = history.trim(main);
        if history.versions.is_empty() {
            self.keys.remove(key);
        }
        gone
    }

    /// The keys in `span` that live at revision `main`, in order.
    pub fn live(&self, span: &Span, main: i64) -> impl Iterator<Item = (&Bytes, &Version)> {
        let range = (!span.is_empty()).then(|| self.keys.range::<[u8], _>(span.bounds()));
        range.into_iter().flatten().filter_map(move |(key, history)| Some((key, history.at(main)?)))
    }

    /// Everything, in order of keys.
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, &History)> {
        self.keys.iter()
    }

    /// How many keys have a history.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are no keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}
