//! Rows of the small groups: policy, events, scheduling, coordination, node, flow control.

use super::{Generation, RW, Row, convert};
use crate::columns;
use crate::defaults::kinds;
use crate::rules;

pub(super) const EVENTS: &[Row] = &[Row::namespaced(
    "io.k8s.api.events.v1",
    ("events.k8s.io", "v1"),
    "Event",
    "events",
    "event",
)
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
])
.columns(
    "Last Seen, Type, Reason, Object, Subobject*, Source*, Message, First Seen*, Count*, Name*",
    columns::core::event,
)
.rules(rules::event::new_event)
.create_on_update()
.stored_as(("", "v1"), convert::event_to_core, convert::event_from_core)];

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
.generation(Generation::Spec)
.columns(
    "Name, Min Available, Max Unavailable, Allowed Disruptions:integer, Age",
    columns::groups::disruption_budget,
)
.rules(rules::groups::disruption_budget)
.update_needs_version()];

pub(super) const SCHEDULING: &[Row] = &[Row::cluster(
    "io.k8s.api.scheduling.v1",
    ("scheduling.k8s.io", "v1"),
    "PriorityClass",
    "priorityclasses",
    "priorityclass",
)
.short(&["pc"])
.generation(Generation::Spec)
.columns(
    "Name, Value:integer, Global-Default:boolean, Age, PreemptionPolicy",
    columns::groups::priority_class,
)
.rules(rules::groups::priority_class)
.defaults(kinds::priority_class)];

pub(super) const COORDINATION: &[Row] = &[Row::namespaced(
    "io.k8s.api.coordination.v1",
    ("coordination.k8s.io", "v1"),
    "Lease",
    "leases",
    "lease",
)
.columns("Name, Holder, Age", columns::groups::lease)
.rules(rules::core::lease)
.create_on_update()
.update_needs_version()];

pub(super) const NODE: &[Row] = &[Row::cluster(
    "io.k8s.api.node.v1",
    ("node.k8s.io", "v1"),
    "RuntimeClass",
    "runtimeclasses",
    "runtimeclass",
)
.columns("Name, Handler, Age", columns::groups::runtime_class)
.rules(rules::groups::runtime_class)
.warnings(rules::warnings::runtime_class)];

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
    .columns(
        "Name, PriorityLevel, MatchingPrecedence, DistinguisherMethod, Age, MissingPL",
        columns::groups::flow_schema,
    )
    .rules(rules::flow::schema)
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
    .columns(
        "Name, Type, NominalConcurrencyShares, Queues, HandSize, QueueLengthLimit, Age",
        columns::groups::priority_level,
    )
    .rules(rules::flow::level)
    .defaults(kinds::priority_level),
];
