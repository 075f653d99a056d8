//! What tests share; a dev-dependency only.
//!
//! - [`fake_api`]: the object service in memory, for whatever talks to the API server.
//! - [`sim`]: randomness, disks and a network that a seed describes wholly.

pub mod fake_api;
pub mod sim;
