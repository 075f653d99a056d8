//! Validation: of metadata for all kinds, and one function per kind in the modules below.

pub mod pod;

use crate::catalog::Resource;
use crate::error::FieldErrors;
use crate::object::Value;

/// Checks a new object (with defaults).
pub fn validate_create(resource: &Resource, new: &Value) -> FieldErrors {
    let _ = (resource, new);
    FieldErrors::new()
}

/// Checks an update of the main resource.
pub fn validate_update(resource: &Resource, new: &Value, old: &Value) -> FieldErrors {
    let _ = (resource, new, old);
    FieldErrors::new()
}

/// Checks an update through the status subresource.
pub fn validate_status_update(resource: &Resource, new: &Value, old: &Value) -> FieldErrors {
    let _ = (resource, new, old);
    FieldErrors::new()
}

/// Warnings about an object that is written.
pub fn warnings(resource: &Resource, new: &Value, old: Option<&Value>) -> Vec<String> {
    let _ = (resource, new, old);
    Vec::new()
}
