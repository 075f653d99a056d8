//! Rows of autoscaling.

use super::{RW, Row, convert};
use crate::columns;
use crate::defaults::kinds;
use crate::rules;

pub(super) const ROWS: &[Row] = &[
    Row::namespaced(
        "io.k8s.api.autoscaling.v2",
        ("autoscaling", "v2"),
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        "horizontalpodautoscaler",
    )
    .short(&["hpa"])
    .categories(&["all"])
    .sub(&[("status", "HorizontalPodAutoscaler", RW)])
    .status()
    .columns(
        "Name, Reference, Targets, MinPods, MaxPods, Replicas, Age",
        columns::groups::autoscaler_v2,
    )
    .rules(rules::autoscaling::autoscaler)
    .defaults(kinds::autoscaler_v2),
    Row::namespaced(
        "io.k8s.api.autoscaling.v1",
        ("autoscaling", "v1"),
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        "horizontalpodautoscaler",
    )
    .short(&["hpa"])
    .categories(&["all"])
    .sub(&[("status", "HorizontalPodAutoscaler", RW)])
    .status()
    .columns(
        "Name, Reference, Targets, MinPods, MaxPods, Replicas, Age",
        columns::groups::autoscaler_v1,
    )
    .rules(rules::autoscaling::autoscaler)
    .stored_as(("autoscaling", "v2"), convert::autoscaler_to_v2, convert::autoscaler_from_v2)
    .defaults(kinds::autoscaler_v1),
];
