//! ReplicaSets: as many pods as the spec says, made from its template.

use std::sync::Arc;
use std::time::Duration;

use client::act::controlled_by;
use client::{Action, Cache, Controller, Key, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::json;

use crate::pods::{adopters, available_in, claim, is_active, is_ready, orphans, rank_for_deletion};

/// Pods created or deleted at once.
const BURST_PODS: usize = 500;

/// A ReplicaSet and the pods it has to do with.
#[derive(Debug)]
pub struct Seen {
    set: Arc<ReplicaSet>,
    /// Controlled by the set, selected or not.
    own: Vec<Arc<Pod>>,
    /// Selected, and controlled by nobody.
    orphans: Vec<Arc<Pod>>,
}

/// The controller.
#[derive(Debug)]
pub struct ReplicaSets;

impl Controller for ReplicaSets {
    const NAME: &'static str = "replicaset";
    type Seen = Seen;
    const WAKES: &'static [Wake] = &[
        Wake::own("ReplicaSet"),
        Wake::owner_of("Pod"),
        Wake::keys("Pod", |cache, changed| adopters::<ReplicaSet>(cache, changed, selector)),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<Seen> {
        let set = cache.at::<ReplicaSet>(key)?;
        let own = cache.find::<Pod>("owner", set.metadata.uid.as_deref().unwrap_or_default());
        let orphans = orphans(cache, &key.namespace, selector(&set));
        Some(Seen { set, own, orphans })
    }

    fn reconcile(seen: &Seen, now: Timestamp) -> Plan {
        let set = &*seen.set;
        let Some(spec) = &set.spec else { return Plan::new() };
        let (mut plan, own) = claim(Plan::new(), set, selector(set), &seen.own, &seen.orphans);
        let active: Vec<&Pod> = own.iter().map(|p| &**p).filter(|p| is_active(p)).collect();
        let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
        if set.metadata.deletion_timestamp.is_none() {
            let have = active.len() + seen.orphans.len();
            let missing = wanted.saturating_sub(have).min(BURST_PODS);
            plan = plan.each(0..missing, |_| {
                Action::create(&pod_of(set))
                    .announce(set, "SuccessfulCreate", "Created pod: {}")
                    .or_warn("FailedCreate", "Error creating: {}")
            });
            let mut ranked = active.clone();
            rank_for_deletion(&mut ranked);
            let extra = have.saturating_sub(wanted).min(BURST_PODS);
            plan = plan.each(ranked.into_iter().take(extra), |pod| {
                Action::delete(pod).announce(set, "SuccessfulDelete", "Deleted pod: {}")
            });
        }
        status(plan, set, &active, now)
    }
}

fn selector(set: &ReplicaSet) -> Option<&LabelSelector> {
    set.spec.as_ref().map(|s| &s.selector)
}

fn status(plan: Plan, set: &ReplicaSet, active: &[&Pod], now: Timestamp) -> Plan {
    let spec = set.spec.clone().unwrap_or_default();
    let min_ready_s = spec.min_ready_seconds.unwrap_or(0);
    let labels = spec.template.and_then(|t| t.metadata).and_then(|m| m.labels).unwrap_or_default();
    let fully = active.iter().filter(|pod| {
        let own = pod.metadata.labels.as_ref();
        labels.iter().all(|(k, v)| own.and_then(|o| o.get(k)) == Some(v))
    });
    let ready = active.iter().filter(|pod| is_ready(pod)).count();
    let waits: Vec<i64> =
        active.iter().filter_map(|pod| available_in(pod, min_ready_s, now)).collect();
    let available = waits.iter().filter(|wait| **wait == 0).count();
    // Absent, not zero, as the API server leaves out zeros of optional fields.
    let some = |n: usize| if n == 0 { serde_json::Value::Null } else { json!(n) };
    let plan = plan.status(
        set,
        json!({
            "replicas": active.len(),
            "fullyLabeledReplicas": some(fully.count()),
            "readyReplicas": some(ready),
            "availableReplicas": some(available),
            "observedGeneration": set.metadata.generation,
        }),
    );
    match waits.into_iter().filter(|wait| *wait > 0).min() {
        Some(wait) => plan.requeue_after(Duration::from_secs(wait.unsigned_abs())),
        None => plan,
    }
}

/// A new pod from the set's template.
fn pod_of(set: &ReplicaSet) -> Pod {
    let template = set.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default();
    let mut metadata = template.metadata.unwrap_or_default();
    metadata.name = None;
    metadata.generate_name = Some(format!("{}-", set.metadata.name.as_deref().unwrap_or_default()));
    metadata.namespace.clone_from(&set.metadata.namespace);
    metadata.owner_references = Some(vec![controlled_by(set)]);
    Pod { metadata, spec: template.spec, status: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "u"},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}}
            }
        }))
        .unwrap()
    }

    fn pod(name: &str, phase: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "web"}},
                "status": {"phase": phase}
            }))
            .unwrap(),
        )
    }

    fn plan(replicas: i32, own: Vec<Arc<Pod>>) -> Vec<String> {
        let seen = Seen { set: Arc::new(set(replicas)), own, orphans: Vec::new() };
        let plan = ReplicaSets::reconcile(&seen, Timestamp::UNIX_EPOCH);
        plan.actions.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_ended_pod_is_replaced_and_the_healthy_one_left_alone() {
        assert_eq!(
            plan(2, vec![pod("a", "Running"), pod("b", "Failed")]),
            ["create pods ns/web-*", "status replicasets.apps ns/web"]
        );
    }

    #[test]
    fn a_pod_that_is_no_longer_selected_is_let_go_and_replaced() {
        let mut stray = (*pod("a", "Running")).clone();
        stray.metadata.labels = None;
        let actions = plan(1, vec![Arc::new(stray)]);
        assert_eq!(actions[..2], ["patch pods ns/a", "create pods ns/web-*"]);
    }

    #[test]
    fn the_pod_missed_least_is_deleted() {
        let actions = plan(1, vec![pod("a", "Running"), pod("b", "Pending")]);
        assert_eq!(actions[0], "delete pods ns/b");
    }
}
