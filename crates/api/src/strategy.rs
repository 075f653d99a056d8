//! What a write may touch: fields the server owns, status against spec, generation.

use crate::catalog::Resource;
use crate::object::Value;
use crate::time::Timestamp;

/// What the server gives a new object.
#[derive(Clone, Copy, Debug)]
pub struct Birth<'a> {
    /// A fresh UUID.
    pub uid: &'a str,
    /// Now.
    pub now: Timestamp,
    /// Namespace of the request; empty for cluster-scoped kinds.
    pub namespace: &'a str,
    /// Five random bytes for `generateName`.
    pub random: [u8; 5],
}

/// Prepares an object for creation: server-owned metadata set, status reset, generation started, name generated.
pub fn prepare_for_create(object: &mut Value, resource: &Resource, birth: Birth<'_>) {
    let _ = (object, resource, birth);
}

/// Prepares an update of the main resource: server-owned metadata and status taken from `old`, generation counted.
pub fn prepare_for_update(new: &mut Value, old: &Value, resource: &Resource) {
    let _ = (new, old, resource);
}

/// Prepares an update through `status`: all but status (and the metadata status writes may touch) taken from `old`.
pub fn prepare_for_status_update(new: &mut Value, old: &Value, resource: &Resource) {
    let _ = (new, old, resource);
}
