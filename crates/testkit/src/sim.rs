//! A machine that a seed describes wholly: its randomness, its disks, its network.

pub mod disk;
pub mod rng;

pub use disk::{Cut, SimDisk};
pub use rng::Rng;
