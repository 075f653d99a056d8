//! Runs the pods of one node on containerd.
