//! Which leases exist and which keys die with them. When one expires is the leader's business.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::error::Error;

/// The longest life of a lease, in seconds.
pub const TTL_S_MAX: i64 = 9_000_000_000;
/// The shortest: a lease must survive the election of a new leader.
pub const TTL_S_MIN: i64 = 2;

/// One lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Granted life in seconds.
    pub ttl_s: i64,
    /// Keys that are deleted with it.
    pub keys: BTreeSet<Bytes>,
}

/// All leases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leases {
    by_id: BTreeMap<i64, Lease>,
}

impl Leases {
    /// Creates a lease and returns its life in seconds.
    ///
    /// # Errors
    /// When the id is taken or the life too long.
    pub fn grant(&mut self, id: i64, ttl_s: i64) -> Result<i64, Error> {
        if id == 0 {
            return Err(Error::LeaseNotFound);
        }
        if ttl_s > TTL_S_MAX {
            return Err(Error::LeaseTtlTooLarge);
        }
        if self.by_id.contains_key(&id) {
            return Err(Error::LeaseExists);
        }
        let ttl_s = ttl_s.max(TTL_S_MIN);
        self.by_id.insert(id, Lease { ttl_s, keys: BTreeSet::new() });
        Ok(ttl_s)
    }

    /// Ends a lease and returns it.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn revoke(&mut self, id: i64) -> Result<Lease, Error> {
        self.by_id.remove(&id).ok_or(Error::LeaseNotFound)
    }

    /// The lease with this id.
    #[must_use]
    pub fn find(&self, id: i64) -> Option<&Lease> {
        self.by_id.get(&id)
    }

    /// Moves a key from one lease to another; 0 is none.
    pub fn attach(&mut self, key: &Bytes, old: i64, new: i64) {
        if old == new {
            return;
        }
        if let Some(lease) = self.by_id.get_mut(&old) {
            lease.keys.remove(key);
        }
        if let Some(lease) = self.by_id.get_mut(&new) {
            lease.keys.insert(Bytes::copy_from_slice(key));
        }
    }

    /// All leases, by id.
    pub fn iter(&self) -> impl Iterator<Item = (i64, &Lease)> {
        self.by_id.iter().map(|(id, lease)| (*id, lease))
    }
}
