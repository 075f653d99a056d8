//! Rows of storage.

use super::{RW, Row};
use crate::columns;
use crate::defaults::kinds;
use crate::rules;

pub(super) const ROWS: &[Row] = &[
    Row::cluster("io.k8s.api.storage.v1", ("storage.k8s.io", "v1"), "CSIDriver", "csidrivers", "csidriver")
        .columns("Name, AttachRequired:boolean, PodInfoOnMount:boolean, StorageCapacity:boolean, TokenRequests, RequiresRepublish:boolean, Modes, Age", columns::groups::csi_driver)
        .rules(rules::groups::csi_driver)
        .defaults(kinds::csi_driver),
    Row::cluster("io.k8s.api.storage.v1", ("storage.k8s.io", "v1"), "CSINode", "csinodes", "csinode")
        .columns("Name, Drivers:integer, Age", columns::groups::csi_node)
        .rules(rules::groups::csi_node),
    Row::namespaced("io.k8s.api.storage.v1", ("storage.k8s.io", "v1"), "CSIStorageCapacity", "csistoragecapacities", "csistoragecapacity"),
    Row::cluster("io.k8s.api.storage.v1", ("storage.k8s.io", "v1"), "StorageClass", "storageclasses", "storageclass")
        .short(&["sc"])
        .columns("Name, Provisioner, ReclaimPolicy, VolumeBindingMode, AllowVolumeExpansion, Age", columns::groups::storage_class)
        .rules(rules::groups::storage_class)
        .warnings(rules::warnings::storage_class)
        .defaults(kinds::storage_class),
    Row::cluster("io.k8s.api.storage.v1", ("storage.k8s.io", "v1"), "VolumeAttachment", "volumeattachments", "volumeattachment")
        .sub(&[("status", "VolumeAttachment", RW)])
        .status()
        .columns("Name, Attacher!, PV, Node, Attached:boolean, Age", columns::groups::volume_attachment)
        .rules(rules::groups::volume_attachment),
    Row::cluster("io.k8s.api.storage.v1", ("storage.k8s.io", "v1"), "VolumeAttributesClass", "volumeattributesclasses", "volumeattributesclass")
        .short(&["vac"])
        .columns("Name, DriverName, Age", columns::groups::volume_attributes_class)
        .rules(rules::groups::volume_attributes_class),
];
