//! Object encodings: JSON, YAML and protobuf, all driven by the schema.

pub mod json;
pub mod proto;
pub mod yaml;

use crate::error::{ApiError, Result};
use crate::object::Value;
use crate::schema::Type;

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

/// Why a body was not decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// It is not JSON (or YAML).
    Syntax(String),
    /// A field has the wrong type or form.
    Type(String),
    /// A value of another type than the field's.
    Mismatch {
        /// What it is, and where.
        found: String,
        /// The field's type.
        wanted: String,
    },
}

impl DecodeError {
    /// What is wrong, in a sentence.
    pub fn message(&self) -> String {
        match self {
            Self::Syntax(m) | Self::Type(m) => m.clone(),
            Self::Mismatch { found, wanted } => {
                format!("json: cannot unmarshal {found} of type {wanted}")
            }
        }
    }

    /// The answer to a request whose body should have been of this kind.
    pub fn for_body(&self, version: &str, kind: &str) -> ApiError {
        ApiError::BadRequest(match self {
            Self::Syntax(m) => format!(
                "the object provided is unrecognized (must be of type {kind}): couldn't get \
                 version/kind; json parse error: {m}"
            ),
            Self::Type(_) | Self::Mismatch { .. } => {
                let detail = self.message();
                format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {detail}")
            }
        })
    }
}

/// The answer to a strict request whose body has complaints.
pub fn strict_error(version: &str, kind: &str, complaints: &[String]) -> ApiError {
    ApiError::BadRequest(format!(
        "{kind} in version \"{version}\" cannot be handled as a {kind}: strict decoding error: {}",
        complaints.join(", ")
    ))
}

/// Encodings of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`
    Proto,
}

/// Decodes a body of type `ty`; `version` and `kind` are for messages.
pub fn decode(
    bytes: &[u8],
    encoding: Encoding,
    ty: &Type,
    version: &str,
    kind: &str,
) -> Result<Decoded> {
    match encoding {
        Encoding::Json => json::decode(bytes, ty).map_err(|e| e.for_body(version, kind)),
        Encoding::Yaml => yaml::decode(bytes, ty).map_err(|e| e.for_body(version, kind)),
        Encoding::Proto => {
            let envelope = proto::open(bytes)?;
            let mut value = proto::decode(envelope.raw, ty)?;
            value.set("apiVersion", envelope.api_version);
            value.set("kind", envelope.kind);
            Ok(Decoded { value, strict: Vec::new() })
        }
    }
}
