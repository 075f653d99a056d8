//! What every process of Ironclad needs, so that a daemon's `main.rs` only names its `run`.
//!
//! [`start`] reads the configuration ([`config`]), starts logs ([`telemetry`]) and health
//! ([`health`]), waits for signals, drains, and turns the end into an exit code. A daemon gets a
//! [`Context`]: where to spawn ([`Tasks`]), when to stop, what time it is ([`Clock`]), where its
//! metrics go ([`Metrics`]). [`disk`] is what survives a power cut. [`channel`] and [`serve`] are the two ends of every connection, over
//! TLS ([`tls`]) or in memory.

mod authority;
pub mod channel;
pub mod clock;
pub mod config;
pub mod context;
pub mod disk;
mod gathered;
pub mod health;
pub mod metrics;
pub mod serve;
mod start;
pub mod tasks;
pub mod telemetry;
pub mod tls;

pub use channel::Channel;
pub use clock::{Backoff, Clock, jitter};
pub use config::Config;
pub use context::Context;
pub use disk::{Disk, DiskFile, SystemDisk};
pub use metrics::Metrics;
pub use start::{signalled, start};
pub use tasks::Tasks;
