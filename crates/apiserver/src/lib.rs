//! The Kubernetes API over REST and gRPC; the only writer of cluster state.
