//! A cluster that tests can start, kill and look at.
