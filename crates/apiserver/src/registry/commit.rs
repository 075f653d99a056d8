//! One conditional transaction for one decision.

use std::sync::Arc;
use std::time::Duration;

use api::catalog::Resource;
use api::error::ApiError;
use api::object::Value;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{Api, store_error};
use crate::storage::entry::Entry;
use crate::storage::etcd::{Expect, Stored, TxnEnd, Write};
use crate::storage::keys;

/// What else has to be true, and is written, in an object's transaction: claims on addresses and ports.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    pub(crate) expect: Vec<Expect>,
    pub(crate) writes: Vec<Write>,
}

/// How a commit ended.
#[derive(Debug)]
pub(crate) enum Committed {
    /// Written; the object as it now is.
    Done(Arc<Entry>),
    /// The object is not what was expected, but this (or absent).
    Changed(Option<Arc<Entry>>),
    /// A claim was taken by somebody else in the meantime.
    ClaimTaken,
}

/// How long events are kept.
pub(crate) const EVENT_TTL: Duration = Duration::from_secs(3600);
/// Objects that expire together: a lease is shared by what is written within this time.
const LEASE_SHARED: Duration = Duration::from_secs(60);

/// The store's lease under which events are written.
#[derive(Debug, Default)]
pub(crate) struct Leases(Mutex<Option<(i64, Duration)>>);

/// The bytes that are stored: the object without its revision.
pub(crate) fn stored_bytes(resource: &Resource, object: &Value) -> Bytes {
    let version = resource.storage_api_version();
    let (given, _) = api::meta::type_meta(object);
    let bare = api::meta::resource_version(object).is_empty();
    if resource.to_storage.is_none() && bare && given == version {
        return object.to_bytes().into();
    }
    let mut object = object.clone();
    if let Some(convert) = resource.to_storage {
        convert(&mut object);
    }
    object.remove_at(&["metadata", "resourceVersion"]);
    object.set("apiVersion", version);
    object.to_bytes().into()
}

impl Api {
    /// Stores `object` if its key was last written at `expected` (0: absent) and all claims hold.
    pub(crate) async fn put(
        &self,
        resource: &Resource,
        object: &Value,
        expected: i64,
        claims: Claims,
    ) -> Result<Committed, ApiError> {
        let (namespace, name) = (api::meta::namespace(object), api::meta::name(object));
        let key = keys::object(resource, namespace, name);
        let value = stored_bytes(resource, object);
        let lease = if resource.storage_prefix == "events" { self.event_lease().await? } else { 0 };
        let write = Write::Put { key: key.clone(), value: value.clone(), lease };
        match self.transact(key, write, expected, claims).await? {
            Ok(revision) => Ok(Committed::Done(Entry::new(&value, revision))),
            Err(other) => Ok(other),
        }
    }

    /// Removes the object of `entry` if it is still at that revision.
    pub(crate) async fn remove(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        entry: &Entry,
        claims: Claims,
    ) -> Result<Committed, ApiError> {
        let key = keys::object(resource, namespace, name);
        let write = Write::Delete { key: key.clone() };
        match self.transact(key, write, entry.revision, claims).await? {
            Ok(revision) => Ok(Committed::Done(entry.at(revision))),
            Err(other) => Ok(other),
        }
    }

    async fn transact(
        &self,
        key: Bytes,
        write: Write,
        expected: i64,
        claims: Claims,
    ) -> Result<Result<i64, Committed>, ApiError> {
        let mut expect = vec![Expect { key, revision: expected }];
        expect.extend(claims.expect);
        let mut writes = vec![write];
        writes.extend(claims.writes);
        debug_assert!(writes.len() <= crate::storage::etcd::TXN_OPS_MAX);
        match self.etcd.txn(&expect, writes).await.map_err(store_error)? {
            TxnEnd::Done(revision) => Ok(Ok(revision)),
            TxnEnd::Failed(present) => {
                let own: Option<&Stored> = present.first().and_then(Option::as_ref);
                if own.map_or(0, |stored| stored.revision) == expected {
                    return Ok(Err(Committed::ClaimTaken));
                }
                Ok(Err(Committed::Changed(own.map(Entry::of))))
            }
        }
    }

    /// The lease for events written now.
    async fn event_lease(&self) -> Result<i64, ApiError> {
        let now = self.clock.monotonic();
        if let Some((lease, since)) = *self.leases.0.lock()
            && now.saturating_sub(since) < LEASE_SHARED
        {
            return Ok(lease);
        }
        let ttl = EVENT_TTL.as_secs() + LEASE_SHARED.as_secs();
        let granted = self.etcd.grant(i64::try_from(ttl).unwrap_or(i64::MAX)).await;
        let lease = granted.map_err(store_error)?;
        *self.leases.0.lock() = Some((lease, now));
        Ok(lease)
    }
}
