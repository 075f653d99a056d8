//! Replicated key-value store that speaks etcd v3.
