//! Talking to the API server: how every daemon observes and acts.
//!
//! - [`transport`]: [`Client`], the typed calls; [`Error`], what the server refused and why.
//! - [`cache`]: [`Cache`], one watch per kind kept as parsed objects with indexes.
//! - [`queue`]: a keyed work queue that deduplicates, delays and backs off.
//! - [`controller`]: the trait of two functions, and the loop that runs it.
//! - [`act`]: [`Action`], [`Plan`] and their only executor.
//! - [`fit`]: which nodes a pod allows.
//! - [`lease`]: leader election. [`events`]: the event recorder.
//!
//! A daemon makes a `Client` over a [`daemon::Channel`], starts a `Cache` of the kinds it reads,
//! and either runs controllers on it or waits for [`Cache::changes`] and looks again.

pub mod act;
pub mod cache;
pub mod controller;
pub mod events;
pub mod fit;
pub mod lease;
pub mod queue;
mod store;
pub mod transport;

pub use act::{Action, Executor, Plan};
pub use cache::{Cache, Select};
pub use controller::{Controller, Wake};
pub use events::Recorder;
pub use transport::{Client, Error, Key, Kind, Patch};
