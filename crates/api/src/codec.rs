//! Object encodings: JSON, YAML and protobuf, all driven by the schema.

pub mod json;
pub mod proto;
pub mod yaml;

use crate::object::Value;

/// A decoded body and what a strict reader would object to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    /// The object, unknown fields pruned.
    pub value: Value,
    /// Complaints in the order found, as `unknown field "spec.foo"` or `duplicate field "data.a"`; the texts of
    /// warnings, and joined by `, ` of the strict error.
    pub strict: Vec<String>,
}

/// The deepest nesting a body may have.
pub const DEPTH_MAX: usize = 256;
/// The largest body a request may have.
pub const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
