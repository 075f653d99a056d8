//! Rows of apps.

use super::{Generation, RW, Row};
use crate::columns;
use crate::defaults::kinds;
use crate::rules;
use crate::strategy::kinds as strategy;

pub(super) const ROWS: &[Row] = &[
    Row::namespaced("io.k8s.api.apps.v1", ("apps", "v1"), "ControllerRevision", "controllerrevisions", "controllerrevision")
        .columns("Name, Controller, Revision, Age", columns::workloads::controller_revision),
    Row::namespaced("io.k8s.api.apps.v1", ("apps", "v1"), "DaemonSet", "daemonsets", "daemonset")
        .short(&["ds"])
        .categories(&["all"])
        .sub(&[("status", "DaemonSet", RW)])
        .status()
        .generation(Generation::Spec)
        .columns("Name, Desired:integer, Current:integer, Ready:integer, Up-to-date:integer, Available:integer, Node Selector, Age, Containers*, Images*, Selector*", columns::workloads::daemon_set)
        .rules(rules::apps::daemon_set)
        .warnings(rules::warnings::template)
        .on_create(strategy::daemon_set_create)
        .on_update(strategy::daemon_set_update)
        .defaults(kinds::daemon_set),
    Row::namespaced("io.k8s.api.apps.v1", ("apps", "v1"), "Deployment", "deployments", "deployment")
        .short(&["deploy"])
        .categories(&["all"])
        .sub(&[("scale", "autoscaling/v1/Scale", RW), ("status", "Deployment", RW)])
        .status()
        .scale(".spec.replicas", ".status.replicas", ".spec.selector")
        .generation(Generation::SpecAndAnnotations)
        .columns("Name, Ready, Up-to-date, Available, Age, Containers*, Images*, Selector*", columns::workloads::deployment)
        .rules(rules::apps::deployment)
        .status_rules(rules::apps::replica_counts)
        .warnings(rules::warnings::template)
        .defaults(kinds::deployment),
    Row::namespaced("io.k8s.api.apps.v1", ("apps", "v1"), "ReplicaSet", "replicasets", "replicaset")
        .short(&["rs"])
        .categories(&["all"])
        .sub(&[("scale", "autoscaling/v1/Scale", RW), ("status", "ReplicaSet", RW)])
        .status()
        .scale(".spec.replicas", ".status.replicas", ".spec.selector")
        .generation(Generation::Spec)
        .columns("Name, Desired:integer, Current:integer, Ready:integer, Age, Containers*, Images*, Selector*", columns::workloads::replica_set)
        .rules(rules::apps::replica_set)
        .status_rules(rules::apps::replica_counts)
        .warnings(rules::warnings::template)
        .defaults(kinds::replica_set),
    Row::namespaced("io.k8s.api.apps.v1", ("apps", "v1"), "StatefulSet", "statefulsets", "statefulset")
        .short(&["sts"])
        .categories(&["all"])
        .sub(&[("scale", "autoscaling/v1/Scale", RW), ("status", "StatefulSet", RW)])
        .status()
        .scale(".spec.replicas", ".status.replicas", ".spec.selector")
        .generation(Generation::Spec)
        .columns("Name, Ready, Age, Containers*, Images*", columns::workloads::stateful_set)
        .rules(rules::apps::stateful_set)
        .status_rules(rules::apps::replica_counts)
        .warnings(rules::warnings::stateful_set)
        .defaults(kinds::stateful_set),
];
