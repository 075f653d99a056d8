//! A machine room that a seed describes wholly: its time, randomness, disks and network.

pub mod agenda;
pub mod disk;
pub mod network;
pub mod rng;

pub use agenda::Agenda;
pub use disk::{Cut, SimDisk};
pub use network::Network;
pub use rng::Rng;
