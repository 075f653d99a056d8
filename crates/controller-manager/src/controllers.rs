//! The controllers, one module each.

pub mod aggregation;
pub mod autoscaler;
pub mod bootstrap;
pub mod cronjob;
pub mod csr;
pub mod daemonset;
pub mod deployment;
pub mod disruption;
pub mod endpoints;
pub mod endpointslice;
pub mod ephemeral;
pub mod eviction;
pub mod garbage;
pub mod ipam;
pub mod job;
pub mod namespace;
pub mod nodes;
pub mod podgc;
pub mod protection;
pub mod quota;
pub mod replicaset;
pub mod serviceaccount;
pub mod servicecidr;
pub mod statefulset;
pub mod volumes;
