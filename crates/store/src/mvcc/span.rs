//! A set of neighbouring keys, as etcd writes it: a key and a range end.

use std::ops::Bound;

use bytes::Bytes;

/// The keys that a request is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Span {
    /// One key.
    Key(Bytes),
    /// From the key on, to the end of all keys.
    From(Bytes),
    /// From the first up to and without the second.
    Between(Bytes, Bytes),
}

impl Span {
    /// Reads etcd's form: no end for one key, a zero byte for all that follow.
    #[must_use]
    pub fn new(key: Bytes, range_end: Bytes) -> Self {
        match range_end.as_ref() {
            [] => Self::Key(key),
            [0] => Self::From(key),
            _ => Self::Between(key, range_end),
        }
    }

    /// Whether no key can be in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Between(from, to) if from >= to)
    }

    /// Whether `key` is in it.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Key(one) => one.as_ref() == key,
            Self::From(from) => from.as_ref() <= key,
            Self::Between(from, to) => from.as_ref() <= key && key < to.as_ref(),
        }
    }

    /// Bounds for a map's range; not for an empty span.
    #[must_use]
    pub fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        match self {
            Self::Key(key) => (Bound::Included(key), Bound::Included(key)),
            Self::From(from) => (Bound::Included(from), Bound::Unbounded),
            Self::Between(from, to) => (Bound::Included(from), Bound::Excluded(to)),
        }
    }
}
