//! Replicated key-value store that speaks etcd v3.

pub mod log;
pub mod mvcc;
