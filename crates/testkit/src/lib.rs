//! What tests share; a dev-dependency only.
//!
//! - [`fake_api`]: the object service in memory, for whatever talks to the API server.

pub mod fake_api;
