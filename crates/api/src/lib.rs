//! What a Kubernetes object is: kinds, schemas, codecs, patches, selectors; pure code.
//!
//! - `object` is the tree all else walks, `meta` its metadata, `schema` what its fields are.
//! - `catalog` is the table of resources; a row names schema, columns, rules.
//! - `codec` reads and writes JSON, YAML and protobuf; `defaults` completes what was read.
//! - `rules` validate, `strategy` says what a write may touch.
//! - `patch` has the four patches and the record of who owns which field.
//! - `selector`, `quantity`, `intstr`, `time` and `name` parse the small formats.
//! - `columns` makes table rows, `openapi` and `crd` schemas for clients and from clients.
//! - `error` is what any of it fails with.
//!
//! There is no clock, no randomness and no I/O here: times and random bytes are arguments.

pub mod catalog;
pub mod codec;
pub mod columns;
pub mod crd;
pub mod defaults;
pub mod error;
pub mod intstr;
pub mod jsonpath;
pub mod meta;
pub mod name;
pub mod object;
pub mod openapi;
pub mod patch;
pub mod pod_security;
pub mod quantity;
pub mod quota;
pub mod rules;
pub mod schema;
pub mod selector;
pub mod strategy;
pub mod time;

pub use catalog::{Catalog, Resource};
pub use error::{ApiError, FieldErrors};
pub use object::{Map, Value};
