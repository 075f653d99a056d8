//! The two conversions between versions that upstream really has: events and autoscalers.

use crate::json;
use crate::object::Value;

const EVENT_FIELDS: [(&str, &str); 7] = [
    ("count", "deprecatedCount"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("source", "deprecatedSource"),
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
];

fn rename(v: &mut Value, pairs: impl Iterator<Item = (&'static str, &'static str)>) {
    for (from, to) in pairs {
        if let Some(x) = v.remove(from) {
            v.set(to, x);
        }
    }
}

/// An event of events.k8s.io in the core form.
pub(crate) fn event_to_core(v: &mut Value) {
    rename(v, EVENT_FIELDS.iter().map(|(core, new)| (*new, *core)));
    v.set("apiVersion", "v1");
    settle(v, "io.k8s.api.core.v1.Event");
}

/// A core event in the form of events.k8s.io.
pub(super) fn event_from_core(v: &mut Value) {
    rename(v, EVENT_FIELDS.iter().copied());
    v.set("apiVersion", "events.k8s.io/v1");
    settle(v, "io.k8s.api.events.v1.Event");
    if v["reportingInstance"].is_empty() {
        v.remove("reportingInstance");
    }
}

fn settle(v: &mut Value, name: &str) {
    if let Some(ty) = crate::schema::find(name) {
        crate::defaults::canonicalize(v, ty);
    }
}

/// An autoscaler of v1 as v2.
pub(super) fn autoscaler_to_v2(v: &mut Value) {
    v.set("apiVersion", "autoscaling/v2");
    let target = v.remove_at(&["spec", "targetCPUUtilizationPercentage"]);
    if let Some(t) = target.as_ref().and_then(Value::as_int) {
        let metric = json!([{"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": t}}}]);
        v.set_at(&["spec", "metrics"], metric);
    }
    let current = v.remove_at(&["status", "currentCPUUtilizationPercentage"]);
    if let Some(c) = current.as_ref().and_then(Value::as_int) {
        let metric = json!([{"type": "Resource", "resource": {"name": "cpu",
            "current": {"averageValue": "0", "averageUtilization": c}}}]);
        v.set_at(&["status", "currentMetrics"], metric);
    }
    settle(v, "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler");
}

/// An autoscaler of v2 as v1: the first cpu utilization stands for all metrics.
pub(super) fn autoscaler_from_v2(v: &mut Value) {
    v.set("apiVersion", "autoscaling/v1");
    let cpu = |list: &Value, key: &str| {
        let mut items = list.items().iter();
        let found = items.find(|m| m["resource"]["name"].text() == "cpu");
        found.and_then(|m| m["resource"][key]["averageUtilization"].as_int())
    };
    let target = cpu(&v["spec"]["metrics"], "target");
    let current = cpu(&v["status"]["currentMetrics"], "current");
    for path in [
        ["spec", "metrics"],
        ["spec", "behavior"],
        ["status", "currentMetrics"],
        ["status", "conditions"],
    ] {
        v.remove_at(&path);
    }
    if let Some(t) = target {
        v.set_at(&["spec", "targetCPUUtilizationPercentage"], t);
    }
    if let Some(c) = current {
        v.set_at(&["status", "currentCPUUtilizationPercentage"], c);
    }
    settle(v, "io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler");
}
