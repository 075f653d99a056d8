//! Decides which node a pod runs on.
