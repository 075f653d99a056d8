//! Rows of the small groups: policy, events, scheduling, coordination, node, flow control.

use super::{Generation, RW, Row};
use crate::defaults::kinds;

pub(super) const EVENTS: &[Row] =
    &[Row::namespaced("io.k8s.api.events.v1", ("events.k8s.io", "v1"), "Event", "events", "event")
        .short(&["ev"])
        .selectable(&[
            ("reason", ""),
            ("regarding.apiVersion", ""),
            ("regarding.fieldPath", ""),
            ("regarding.kind", ""),
            ("regarding.name", ""),
            ("regarding.namespace", ""),
            ("regarding.resourceVersion", ""),
            ("regarding.uid", ""),
            ("reportingController", ""),
            ("type", ""),
        ])];

pub(super) const ROWS: &[Row] = &[Row::namespaced(
    "io.k8s.api.policy.v1",
    ("policy", "v1"),
    "PodDisruptionBudget",
    "poddisruptionbudgets",
    "poddisruptionbudget",
)
.short(&["pdb"])
.sub(&[("status", "PodDisruptionBudget", RW)])
.status()
.generation(Generation::Spec)];

pub(super) const SCHEDULING: &[Row] = &[Row::cluster(
    "io.k8s.api.scheduling.v1",
    ("scheduling.k8s.io", "v1"),
    "PriorityClass",
    "priorityclasses",
    "priorityclass",
)
.short(&["pc"])
.generation(Generation::Spec)
.defaults(kinds::priority_class)];

pub(super) const COORDINATION: &[Row] = &[Row::namespaced(
    "io.k8s.api.coordination.v1",
    ("coordination.k8s.io", "v1"),
    "Lease",
    "leases",
    "lease",
)];

pub(super) const NODE: &[Row] = &[Row::cluster(
    "io.k8s.api.node.v1",
    ("node.k8s.io", "v1"),
    "RuntimeClass",
    "runtimeclasses",
    "runtimeclass",
)];

pub(super) const FLOWCONTROL: &[Row] = &[
    Row::cluster(
        "io.k8s.api.flowcontrol.v1",
        ("flowcontrol.apiserver.k8s.io", "v1"),
        "FlowSchema",
        "flowschemas",
        "flowschema",
    )
    .sub(&[("status", "FlowSchema", RW)])
    .status()
    .generation(Generation::Spec)
    .defaults(kinds::flow_schema),
    Row::cluster(
        "io.k8s.api.flowcontrol.v1",
        ("flowcontrol.apiserver.k8s.io", "v1"),
        "PriorityLevelConfiguration",
        "prioritylevelconfigurations",
        "prioritylevelconfiguration",
    )
    .sub(&[("status", "PriorityLevelConfiguration", RW)])
    .status()
    .generation(Generation::Spec)
    .defaults(kinds::priority_level),
];
