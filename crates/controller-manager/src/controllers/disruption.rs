//! Disruption budgets: how many pods there should be, how many are well, and so how many may be evicted now.
//!
//! The API server takes an eviction off `disruptionsAllowed` and notes the pod in `disruptedPods`; this controller
//! counts anew when the pod is gone, or when it is still there after a while.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use client::cache::Changed;
use client::{Action, Cache, Controller, Key, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Map, Value, json};

use crate::pods::{is_ready, picks, share};

/// An evicted pod that is still there after this was not deleted after all.
const DELETION_MAX_S: i64 = 120;

/// A budget, its pods, and how many there should be.
#[derive(Debug)]
pub struct Seen {
    budget: Arc<PodDisruptionBudget>,
    pods: Vec<Arc<Pod>>,
    /// How many pods the owners of these pods want in all.
    wanted: i32,
}

/// The controller.
#[derive(Debug)]
pub struct Disruptions;

fn selected(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    picks(selector, pod)
}

/// The budgets that a pod has to do with, before and after a change.
fn of_pod(cache: &Cache, changed: &Changed<'_>) -> Vec<Key> {
    let (old, new) = (changed.old_as::<Pod>(), changed.new_as::<Pod>());
    let budgets = cache.find::<PodDisruptionBudget>("namespace", &changed.key.namespace);
    let concerned =
        budgets.iter().filter(|b| [old, new].into_iter().flatten().any(|p| selected(b, p)));
    concerned.map(|budget| Key::of(&budget.metadata)).collect()
}

/// All budgets of the namespace: a workload's scale may have changed.
fn of_namespace(cache: &Cache, changed: &Changed<'_>) -> Vec<Key> {
    if changed.old.map(|m| m.generation) == changed.new.map(|m| m.generation) {
        return Vec::new();
    }
    let budgets = cache.find::<PodDisruptionBudget>("namespace", &changed.key.namespace);
    budgets.iter().map(|budget| Key::of(&budget.metadata)).collect()
}

impl Controller for Disruptions {
    const NAME: &'static str = "disruption";
    type Seen = Seen;
    const WAKES: &'static [Wake] = &[
        Wake::own("PodDisruptionBudget"),
        Wake::keys("Pod", of_pod),
        Wake::keys("Deployment", of_namespace),
        Wake::keys("ReplicaSet", of_namespace),
        Wake::keys("StatefulSet", of_namespace),
        Wake::keys("ReplicationController", of_namespace),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<Seen> {
        let budget = cache.at::<PodDisruptionBudget>(key)?;
        let mut pods = cache.find::<Pod>("namespace", &key.namespace);
        pods.retain(|pod| selected(&budget, pod));
        let mut scales: BTreeMap<String, i32> = BTreeMap::new();
        for pod in &pods {
            if let Some((uid, scale)) = scale(cache, pod) {
                scales.insert(uid, scale);
            }
        }
        Some(Seen { budget, pods, wanted: scales.into_values().sum() })
    }

    fn reconcile(seen: &Seen, now: Timestamp) -> Plan {
        let budget = &*seen.budget;
        let Some(spec) = &budget.spec else { return Plan::new() };
        if budget.metadata.deletion_timestamp.is_some() {
            return Plan::new();
        }
        let there = i32::try_from(seen.pods.len()).unwrap_or(i32::MAX);
        let (expected, desired) = match (&spec.max_unavailable, &spec.min_available) {
            (Some(most), _) => {
                (seen.wanted, (seen.wanted - share(Some(most), seen.wanted, 0)).max(0))
            }
            (None, Some(IntOrString::Int(least))) => (there, *least),
            (None, Some(least)) => (seen.wanted, share(Some(least), seen.wanted, 0)),
            (None, None) => (there, 0),
        };
        let (disrupted, late, recheck) = disrupted(seen, now);
        let healthy = seen.pods.iter().filter(|pod| {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            pod.metadata.deletion_timestamp.is_none() && is_ready(pod) && !disrupted.contains(name)
        });
        let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
        let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
        let known = budget.status.iter().flat_map(|s| s.disrupted_pods.iter().flatten());
        // What is left out of a merge stays: those that go have to be named.
        let gone: Map<String, Value> = known
            .map(|(name, _)| name)
            .filter(|name| !disrupted.contains(name.as_str()))
            .map(|name| (name.clone(), Value::Null))
            .collect();
        let mut plan = Plan::new().each(late, |pod| {
            let namespace = budget.metadata.namespace.as_deref().unwrap_or_default();
            let name = budget.metadata.name.as_deref().unwrap_or_default();
            let text =
                format!("Pod was expected by PDB {namespace}/{name} to be deleted but it wasn't");
            Action::event(pod, "Warning", "NotDeleted", text)
        });
        if let Some(recheck) = recheck {
            plan = plan.requeue_after(recheck);
        }
        plan.status(
            budget,
            json!({
                "currentHealthy": healthy,
                "desiredHealthy": desired,
                "expectedPods": expected,
                "disruptionsAllowed": allowed,
                "disruptedPods": if gone.is_empty() { json!({}) } else { Value::Object(gone) },
                "observedGeneration": budget.metadata.generation,
                "conditions": [condition(budget, allowed > 0, now)],
            }),
        )
    }
}

/// The owner of a pod whose scale counts, and its scale.
fn scale(cache: &Cache, pod: &Pod) -> Option<(String, i32)> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let owner =
        pod.metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true))?;
    if owner.kind == "StatefulSet" {
        let set = cache.get::<StatefulSet>(namespace, &owner.name)?;
        let replicas = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
        return Some((owner.uid.clone(), replicas));
    }
    if owner.kind == "ReplicationController" {
        let rc = cache.get::<ReplicationController>(namespace, &owner.name)?;
        return Some((owner.uid.clone(), rc.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)));
    }
    let set =
        cache.get::<ReplicaSet>(namespace, &owner.name).filter(|_| owner.kind == "ReplicaSet")?;
    let above = set.metadata.owner_references.iter().flatten().find(|o| o.kind == "Deployment");
    let deployment = above.and_then(|o| cache.get::<Deployment>(namespace, &o.name));
    let replicas = match &deployment {
        Some(deployment) => deployment.spec.as_ref().and_then(|s| s.replicas),
        None => set.spec.as_ref().and_then(|s| s.replicas),
    };
    let uid = above.map_or(&owner.uid, |o| &o.uid);
    Some((uid.clone(), replicas.unwrap_or(1)))
}

/// The pods whose eviction is under way, those whose eviction came to nothing, and when to look again.
fn disrupted(seen: &Seen, now: Timestamp) -> (BTreeSet<&str>, Vec<&Pod>, Option<Duration>) {
    let (mut names, mut late, mut recheck) = (BTreeSet::new(), Vec::new(), None::<Duration>);
    let status = seen.budget.status.as_ref();
    let noted = status.and_then(|s| s.disrupted_pods.as_ref());
    for pod in seen.pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none()) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let Some(at) = noted.and_then(|noted| noted.get(name)) else { continue };
        let left = at.0.as_second() + DELETION_MAX_S - now.as_second();
        if left <= 0 {
            late.push(&**pod);
            continue;
        }
        names.insert(name);
        let left = Duration::from_secs(left.unsigned_abs());
        recheck = Some(recheck.map_or(left, |soonest| soonest.min(left)));
    }
    (names, late, recheck)
}

fn condition(budget: &PodDisruptionBudget, allowed: bool, now: Timestamp) -> Value {
    let (status, reason) =
        if allowed { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let conditions = budget.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let old = conditions.into_iter().find(|c| c.type_ == "DisruptionAllowed");
    let since = old.filter(|c| c.status == status).map(|c| json!(c.last_transition_time));
    json!({
        "type": "DisruptionAllowed",
        "status": status,
        "reason": reason,
        "message": "",
        "observedGeneration": budget.metadata.generation,
        "lastTransitionTime":
            since.unwrap_or_else(|| json!(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::act::Op;

    fn pod(name: &str, ready: bool) -> Arc<Pod> {
        let ready = if ready { "True" } else { "False" };
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "ns", "labels": {"app": "web"}},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}
            }))
            .unwrap(),
        )
    }

    fn budget(spec: Value, status: Value) -> Arc<PodDisruptionBudget> {
        let budget = json!({"metadata": {"name": "b", "namespace": "ns", "generation": 1}, "spec": spec, "status": status});
        Arc::new(serde_json::from_value(budget).unwrap())
    }

    /// Expected, desired, healthy and allowed.
    fn counts(plan: &Plan) -> [i64; 4] {
        let status = plan.actions.iter().find_map(|action| match &action.op {
            Op::Status { patch, .. } => Some(&patch["status"]),
            _ => None,
        });
        ["expectedPods", "desiredHealthy", "currentHealthy", "disruptionsAllowed"]
            .map(|field| status.unwrap()[field].as_i64().unwrap())
    }

    fn plan(spec: Value, status: Value, pods: Vec<Arc<Pod>>, wanted: i32) -> Plan {
        let seen = Seen { budget: budget(spec, status), pods, wanted };
        Disruptions::reconcile(&seen, Timestamp::from_second(1000).unwrap())
    }

    #[test]
    fn what_may_go_is_what_is_well_beyond_what_is_needed() {
        let pods = || vec![pod("a", true), pod("b", true), pod("c", false)];
        for (spec, wanted, expected) in [
            (json!({"minAvailable": 1}), 3, [3, 1, 2, 1]),
            (json!({"minAvailable": "50%"}), 3, [3, 2, 2, 0]),
            (json!({"maxUnavailable": 2}), 3, [3, 1, 2, 1]),
            (json!({"maxUnavailable": "10%"}), 10, [10, 9, 2, 0]),
            // Nobody wants these pods: a share of nothing allows nothing.
            (json!({"maxUnavailable": 1}), 0, [0, 0, 2, 0]),
        ] {
            assert_eq!(
                counts(&plan(spec.clone(), json!(null), pods(), wanted)),
                expected,
                "{spec}"
            );
        }
    }

    #[test]
    fn a_pod_under_eviction_is_not_counted_until_that_came_to_nothing() {
        let at = |s: i64| Timestamp::from_second(s).unwrap().to_string();
        let status = |s: i64| {
            json!({"disruptedPods": {"a": at(s)}, "disruptionsAllowed": 0,
            "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0})
        };
        let spec = || json!({"minAvailable": 1});
        let pods = || vec![pod("a", true), pod("b", true)];
        let waiting = plan(spec(), status(990), pods(), 2);
        assert_eq!(counts(&waiting), [2, 1, 1, 0]);
        assert_eq!(waiting.requeue_after, Some(Duration::from_secs(110)));
        let late = plan(spec(), status(800), pods(), 2);
        assert_eq!(counts(&late), [2, 1, 2, 1]);
        assert_eq!(late.actions[0].to_string(), "event a NotDeleted");
    }
}
