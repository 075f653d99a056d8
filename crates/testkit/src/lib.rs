//! Builders, golden cases and simulated machinery for tests.
