//! Runs the pods of one node on containerd.
//!
//! - `pod` decides, purely: what to do next (`sync`), what to report (`status`), what to ask of the
//!   runtime (`spec`).
//! - `runtime` is the only file that knows CRI; `containerd` runs a private one; `images` packs and
//!   imports images.

pub mod cgroup;
pub mod cni;
pub mod containerd;
pub mod images;
pub mod logs;
pub mod node;
pub mod pod;
pub mod probing;
pub mod runtime;
pub mod serve;
pub mod stats;
pub mod tasks;
