//! What tests share; a dev-dependency only.
//!
//! - [`fake_api`]: the object service in memory, for whatever talks to the API server.
//! - [`history`]: whether what clients saw is what a correct store could have shown.
//! - [`sim`]: randomness, disks and a network that a seed describes wholly.

pub mod fake_api;
pub mod history;
pub mod sim;
