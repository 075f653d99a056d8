//! The four patches and the record of field owners.

pub mod apply;
pub mod fields;
pub mod json;
pub mod merge;
pub mod strategic;
mod typed;
