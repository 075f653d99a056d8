//! Rows of the resource metrics API: what nodes and pods use just now. Answered from the node agents, never stored.

use super::Row;
use crate::columns;

/// Upstream's metrics server serves these as an aggregated API, so a server may be asked to leave them out.
pub(super) const ROWS: &[Row] = &[
    Row::cluster(
        "io.k8s.metrics.v1beta1",
        ("metrics.k8s.io", "v1beta1"),
        "NodeMetrics",
        "nodes",
        "node",
    )
    .columns("Name, CPU, Memory, Window", columns::groups::node_metrics)
    .measured(),
    Row::namespaced(
        "io.k8s.metrics.v1beta1",
        ("metrics.k8s.io", "v1beta1"),
        "PodMetrics",
        "pods",
        "pod",
    )
    .columns("Name, CPU, Memory, Window", columns::groups::pod_metrics)
    .measured(),
];
