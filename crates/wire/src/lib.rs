//! Code generated from `proto/`: messages, clients and servers. No logic lives here.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

/// The descriptors of every service, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ironclad.bin"));

/// Our own object and node services (`proto/apiserver`).
pub mod apiserver {
    tonic::include_proto!("ironclad.api.v1");
}

/// The etcd v3 services (`proto/etcd`).
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}

/// Permissions of etcd's users (`proto/etcd`).
pub mod authpb {
    tonic::include_proto!("authpb");
}

/// etcd's key-value pairs and events (`proto/etcd`).
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

/// The container runtime interface, as far as we use it (`proto/cri`).
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// What the store's members say to each other (`proto/store`).
pub mod store {
    tonic::include_proto!("ironclad.store.v1");
}
