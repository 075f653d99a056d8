//! Rows of storage.

use super::{Generation, RW, Row};
use crate::defaults::kinds;

pub(super) const ROWS: &[Row] = &[
    Row::cluster(
        "io.k8s.api.storage.v1",
        ("storage.k8s.io", "v1"),
        "CSIDriver",
        "csidrivers",
        "csidriver",
    )
    .generation(Generation::Spec)
    .defaults(kinds::csi_driver),
    Row::cluster(
        "io.k8s.api.storage.v1",
        ("storage.k8s.io", "v1"),
        "CSINode",
        "csinodes",
        "csinode",
    ),
    Row::namespaced(
        "io.k8s.api.storage.v1",
        ("storage.k8s.io", "v1"),
        "CSIStorageCapacity",
        "csistoragecapacities",
        "csistoragecapacity",
    ),
    Row::cluster(
        "io.k8s.api.storage.v1",
        ("storage.k8s.io", "v1"),
        "StorageClass",
        "storageclasses",
        "storageclass",
    )
    .short(&["sc"])
    .defaults(kinds::storage_class),
    Row::cluster(
        "io.k8s.api.storage.v1",
        ("storage.k8s.io", "v1"),
        "VolumeAttachment",
        "volumeattachments",
        "volumeattachment",
    )
    .sub(&[("status", "VolumeAttachment", RW)])
    .status(),
    Row::cluster(
        "io.k8s.api.storage.v1",
        ("storage.k8s.io", "v1"),
        "VolumeAttributesClass",
        "volumeattributesclasses",
        "volumeattributesclass",
    )
    .short(&["vac"]),
];
