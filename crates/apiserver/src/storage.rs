//! Where objects are kept: the store behind its etcd API, and the watch cache in front of it.
//!
//! Only this module knows how keys are laid out and what stored bytes look like.

pub(crate) mod cache;
pub(crate) mod compact;
pub(crate) mod entry;
pub(crate) mod etcd;
pub(crate) mod feed;
pub(crate) mod keys;
