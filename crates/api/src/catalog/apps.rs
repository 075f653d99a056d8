//! Rows of apps.

use super::{Generation, RW, Row};
use crate::defaults::kinds;

pub(super) const ROWS: &[Row] = &[
    Row::namespaced(
        "io.k8s.api.apps.v1",
        ("apps", "v1"),
        "ControllerRevision",
        "controllerrevisions",
        "controllerrevision",
    ),
    Row::namespaced("io.k8s.api.apps.v1", ("apps", "v1"), "DaemonSet", "daemonsets", "daemonset")
        .short(&["ds"])
        .categories(&["all"])
        .sub(&[("status", "DaemonSet", RW)])
        .status()
        .generation(Generation::Spec)
        .defaults(kinds::daemon_set),
    Row::namespaced(
        "io.k8s.api.apps.v1",
        ("apps", "v1"),
        "Deployment",
        "deployments",
        "deployment",
    )
    .short(&["deploy"])
    .categories(&["all"])
    .sub(&[("scale", "autoscaling/v1/Scale", RW), ("status", "Deployment", RW)])
    .status()
    .scale(".spec.replicas", ".status.replicas", ".spec.selector")
    .generation(Generation::SpecAndAnnotations)
    .defaults(kinds::deployment),
    Row::namespaced(
        "io.k8s.api.apps.v1",
        ("apps", "v1"),
        "ReplicaSet",
        "replicasets",
        "replicaset",
    )
    .short(&["rs"])
    .categories(&["all"])
    .sub(&[("scale", "autoscaling/v1/Scale", RW), ("status", "ReplicaSet", RW)])
    .status()
    .scale(".spec.replicas", ".status.replicas", ".spec.selector")
    .generation(Generation::Spec)
    .defaults(kinds::replica_set),
    Row::namespaced(
        "io.k8s.api.apps.v1",
        ("apps", "v1"),
        "StatefulSet",
        "statefulsets",
        "statefulset",
    )
    .short(&["sts"])
    .categories(&["all"])
    .sub(&[("scale", "autoscaling/v1/Scale", RW), ("status", "StatefulSet", RW)])
    .status()
    .scale(".spec.replicas", ".status.replicas", ".spec.selector")
    .generation(Generation::Spec)
    .defaults(kinds::stateful_set),
];
