//! What every request passes before the registry: who asks, and whether they may.

pub(crate) mod authenticate;
pub(crate) mod authorize;
mod node;
pub(crate) mod rbac;
