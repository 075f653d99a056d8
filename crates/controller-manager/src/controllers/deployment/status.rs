//! What a Deployment says of itself: counts, and the conditions Available, Progressing and ReplicaFailure.

use std::sync::Arc;

use client::Plan;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, ReplicaSet};
use serde_json::{Value, json};

use super::{Seen, available, look_again, margins, newest};

/// Adds the status to the plan.
pub(super) fn plan(plan: Plan, seen: &Seen, now: Timestamp) -> Plan {
    let deployment = &*seen.deployment;
    let new = newest(deployment, &seen.sets);
    let sum = |count: fn(&ReplicaSet) -> i32| -> i32 { seen.sets.iter().map(|s| count(s)).sum() };
    let total = sum(counted);
    let (ready, up) = (sum(ready), sum(available));
    let updated = new.map_or(0, |set| counted(set));
    let some = |n: i32| if n == 0 { Value::Null } else { json!(n) };
    let wanted: i32 = seen.sets.iter().map(|set| super::replicas(set)).sum();
    let (progressing, deadline_s) = progressing(seen, new, now);
    let mut conditions = vec![available_condition(seen, up)];
    conditions.extend(progressing);
    let conditions: Vec<Value> =
        conditions.into_iter().map(|condition| stamped(deployment, &condition, now)).collect();
    let plan = plan.status(
        deployment,
        json!({
            "observedGeneration": deployment.metadata.generation,
            "replicas": some(total),
            "updatedReplicas": some(updated),
            "readyReplicas": some(ready),
            "availableReplicas": some(up),
            "unavailableReplicas": some((wanted - up).max(0)),
            "terminatingReplicas": sum(terminating),
            "conditions": conditions,
        }),
    );
    match deadline_s {
        Some(seconds) => look_again(plan, seconds),
        None => plan,
    }
}

fn counted(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |s| s.replicas)
}

fn terminating(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.terminating_replicas).unwrap_or(0)
}

fn ready(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0)
}

/// Whether only the present version runs, and all of it is available.
pub(super) fn is_complete(
    deployment: &Deployment,
    new: &ReplicaSet,
    sets: &[Arc<ReplicaSet>],
) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let total: i32 = sets.iter().map(|set| counted(set)).sum();
    let observed = |set: &ReplicaSet| {
        set.status.as_ref().and_then(|s| s.observed_generation) >= set.metadata.generation
    };
    counted(new) == wanted && total == wanted && available(new) == wanted && observed(new)
}

struct Condition {
    kind: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
    /// The reason tells of something new, even if the status is as before.
    news: bool,
}

fn present<'a>(deployment: &'a Deployment, kind: &str) -> Option<&'a DeploymentCondition> {
    deployment.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// A condition with its times: of the last change of status, and of the last news.
fn stamped(deployment: &Deployment, condition: &Condition, now: Timestamp) -> Value {
    let text = |t: Timestamp| json!(t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    let old = present(deployment, condition.kind);
    let time = |t: Option<Timestamp>| text(t.unwrap_or(now));
    let same_status = old.filter(|o| o.status == condition.status);
    let transition = time(same_status.and_then(|o| o.last_transition_time.as_ref()).map(|t| t.0));
    let same = same_status.filter(|o| {
        o.reason.as_deref() == Some(condition.reason)
            && o.message.as_deref() == Some(&condition.message)
            && !condition.news
    });
    let update = time(same.and_then(|o| o.last_update_time.as_ref()).map(|t| t.0));
    json!({
        "type": condition.kind,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "lastTransitionTime": transition,
        "lastUpdateTime": update,
    })
}

fn available_condition(seen: &Seen, up: i32) -> Condition {
    let spec = seen.deployment.spec.clone().unwrap_or_default();
    let enough = up >= spec.replicas.unwrap_or(1) - margins(&spec).1;
    let kind = "Available";
    if enough {
        let message = "Deployment has minimum availability.".into();
        return Condition {
            kind,
            status: "True",
            reason: "MinimumReplicasAvailable",
            message,
            news: false,
        };
    }
    let message = "Deployment does not have minimum availability.".into();
    Condition { kind, status: "False", reason: "MinimumReplicasUnavailable", message, news: false }
}

/// The Progressing condition, and in how many seconds its deadline is to be looked at.
fn progressing(
    seen: &Seen,
    new: Option<&Arc<ReplicaSet>>,
    now: Timestamp,
) -> (Option<Condition>, Option<i64>) {
    let deployment = &*seen.deployment;
    let spec = deployment.spec.clone().unwrap_or_default();
    let deadline_s = spec.progress_deadline_seconds.filter(|s| *s != i32::MAX);
    let Some(deadline_s) = deadline_s else { return (None, None) };
    let old = present(deployment, "Progressing");
    let kind = "Progressing";
    let keep = |old: &DeploymentCondition| Condition {
        kind,
        status: if old.status == "True" {
            "True"
        } else if old.status == "False" {
            "False"
        } else {
            "Unknown"
        },
        reason: REASONS.iter().find(|r| old.reason.as_deref() == Some(**r)).unwrap_or(&REASONS[0]),
        message: old.message.clone().unwrap_or_default(),
        news: false,
    };
    if spec.paused == Some(true) {
        let reason = "DeploymentPaused";
        let message = "Deployment is paused".into();
        return (Some(Condition { kind, status: "Unknown", reason, message, news: false }), None);
    }
    let Some(set) = new else {
        let name = super::set_name(deployment);
        let message = format!("Created new replica set \"{name}\"");
        let reason = "NewReplicaSetCreated";
        return (Some(Condition { kind, status: "True", reason, message, news: false }), None);
    };
    let name = set.metadata.name.as_deref().unwrap_or_default();
    if is_complete(deployment, set, &seen.sets) {
        let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
        let reason = "NewReplicaSetAvailable";
        return (Some(Condition { kind, status: "True", reason, message, news: false }), None);
    }
    if progressed(seen, set)
        || old.is_none_or(|o| o.reason.as_deref() == Some("NewReplicaSetAvailable"))
    {
        let message = format!("ReplicaSet \"{name}\" is progressing.");
        let condition =
            Condition { kind, status: "True", reason: "ReplicaSetUpdated", message, news: true };
        return (Some(condition), Some(i64::from(deadline_s) + 1));
    }
    let Some(old) = old else { return (None, None) };
    let since = old.last_update_time.as_ref().map_or(now, |t| t.0);
    let left = i64::from(deadline_s) - (now.as_second() - since.as_second());
    if old.reason.as_deref() == Some("ProgressDeadlineExceeded") {
        return (Some(keep(old)), None);
    }
    if left > 0 {
        return (Some(keep(old)), Some(left + 1));
    }
    let message = format!("ReplicaSet \"{name}\" has timed out progressing.");
    let reason = "ProgressDeadlineExceeded";
    (Some(Condition { kind, status: "False", reason, message, news: true }), None)
}

const REASONS: [&str; 6] = [
    "ReplicaSetUpdated",
    "NewReplicaSetCreated",
    "NewReplicaSetAvailable",
    "ProgressDeadlineExceeded",
    "DeploymentPaused",
    "FoundNewReplicaSet",
];

/// Whether the counts have come nearer to the goal since the status was written.
fn progressed(seen: &Seen, new: &ReplicaSet) -> bool {
    let status = seen.deployment.status.clone().unwrap_or_default();
    let total: i32 = seen.sets.iter().map(|set| counted(set)).sum();
    let old = total - counted(new);
    let old_before = status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0);
    let ready: i32 = seen.sets.iter().map(|set| ready(set)).sum();
    let up: i32 = seen.sets.iter().map(|set| available(set)).sum();
    counted(new) > status.updated_replicas.unwrap_or(0)
        || old < old_before
        || ready > status.ready_replicas.unwrap_or(0)
        || up > status.available_replicas.unwrap_or(0)
}
