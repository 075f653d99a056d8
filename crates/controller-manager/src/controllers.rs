//! The controllers, one module each.

pub mod deployment;
pub mod endpoints;
pub mod garbage;
pub mod namespace;
pub mod nodes;
pub mod replicaset;
pub mod serviceaccount;
