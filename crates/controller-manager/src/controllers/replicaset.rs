//! ReplicaSets and ReplicationControllers: as many pods as the spec says, made from its template.

use std::sync::Arc;
use std::time::Duration;

use client::act::controlled_by;
use client::transport::Object;
use client::{Action, Cache, Controller, Key, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::json;

use crate::pods::{
    adopters, available_in, claim, is_active, is_ended, is_ready, orphans, picks, rank_for_deletion,
};

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
        Wake::keys("Pod", |cache, changed| {
            adopters::<ReplicaSet>(cache, changed, |set, pod| picks(selector(set), pod))
        }),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<Seen> {
        let set = cache.at::<ReplicaSet>(key)?;
        let own = cache.find::<Pod>("owner", set.metadata.uid.as_deref().unwrap_or_default());
        let orphans = orphans(cache, &key.namespace, selector(&set));
        Some(Seen { set, own, orphans })
    }

    fn reconcile(seen: &Seen, now: Timestamp) -> Plan {
        let Some(spec) = &seen.set.spec else { return Plan::new() };
        let wanted = Wanted {
            replicas: spec.replicas.unwrap_or(1),
            selector: &spec.selector,
            template: spec.template.as_ref(),
            min_ready_s: spec.min_ready_seconds.unwrap_or(0),
        };
        wanted.plan(&*seen.set, &seen.own, &seen.orphans, now)
    }
}

/// A ReplicationController and the pods it has to do with.
#[derive(Debug)]
pub struct SeenByController {
    controller: Arc<ReplicationController>,
    own: Vec<Arc<Pod>>,
    orphans: Vec<Arc<Pod>>,
}

/// The controller of ReplicationControllers.
#[derive(Debug)]
pub struct ReplicationControllers;

impl Controller for ReplicationControllers {
    const NAME: &'static str = "replicationcontroller";
    type Seen = SeenByController;
    const WAKES: &'static [Wake] = &[
        Wake::own("ReplicationController"),
        Wake::owner_of("Pod"),
        Wake::keys("Pod", |cache, changed| {
            adopters::<ReplicationController>(cache, changed, |rc, pod| {
                picks(map_selector(rc).as_ref(), pod)
            })
        }),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<SeenByController> {
        let controller = cache.at::<ReplicationController>(key)?;
        let uid = controller.metadata.uid.as_deref().unwrap_or_default();
        let own = cache.find::<Pod>("owner", uid);
        let orphans = orphans(cache, &key.namespace, map_selector(&controller).as_ref());
        Some(SeenByController { controller, own, orphans })
    }

    fn reconcile(seen: &SeenByController, now: Timestamp) -> Plan {
        let rc = &*seen.controller;
        let (Some(spec), Some(selector)) = (&rc.spec, map_selector(rc)) else { return Plan::new() };
        let wanted = Wanted {
            replicas: spec.replicas.unwrap_or(1),
            selector: &selector,
            template: spec.template.as_ref(),
            min_ready_s: spec.min_ready_seconds.unwrap_or(0),
        };
        wanted.plan(rc, &seen.own, &seen.orphans, now)
    }
}

/// The plain map of a ReplicationController as a selector.
fn map_selector(rc: &ReplicationController) -> Option<LabelSelector> {
    let labels = rc.spec.as_ref()?.selector.clone()?;
    Some(LabelSelector { match_labels: Some(labels), match_expressions: None })
}

fn selector(set: &ReplicaSet) -> Option<&LabelSelector> {
    set.spec.as_ref().map(|s| &s.selector)
}

/// What both kinds ask for.
struct Wanted<'a> {
    replicas: i32,
    selector: &'a LabelSelector,
    template: Option<&'a PodTemplateSpec>,
    min_ready_s: i32,
}

impl Wanted<'_> {
    fn plan<T: Object>(
        &self,
        owner: &T,
        own: &[Arc<Pod>],
        orphans: &[Arc<Pod>],
        now: Timestamp,
    ) -> Plan {
        let (mut plan, own) = claim(Plan::new(), owner, Some(self.selector), own, orphans);
        let active: Vec<&Pod> = own.iter().map(|p| &**p).filter(|p| is_active(p)).collect();
        let wanted = usize::try_from(self.replicas).unwrap_or(0);
        if owner.metadata().deletion_timestamp.is_none() {
            let have = active.len() + orphans.len();
            let missing = wanted.saturating_sub(have).min(BURST_PODS);
            plan = plan.each(0..missing, |_| {
                Action::create(&self.pod(owner))
                    .announce(owner, "SuccessfulCreate", "Created pod: {}")
                    .or_warn("FailedCreate", "Error creating: {}")
            });
            let mut ranked = active.clone();
            rank_for_deletion(&mut ranked);
            let extra = have.saturating_sub(wanted).min(BURST_PODS);
            plan = plan.each(ranked.into_iter().take(extra), |pod| {
                Action::delete(pod).announce(owner, "SuccessfulDelete", "Deleted pod: {}")
            });
        }
        let leaving = |pod: &&Arc<Pod>| pod.metadata.deletion_timestamp.is_some() && !is_ended(pod);
        let terminating = own.iter().filter(leaving).count();
        self.status(plan, owner, &active, terminating, now)
    }

    fn status<T: Object>(
        &self,
        plan: Plan,
        owner: &T,
        active: &[&Pod],
        terminating: usize,
        now: Timestamp,
    ) -> Plan {
        let metadata = self.template.and_then(|t| t.metadata.as_ref());
        let labels = metadata.and_then(|m| m.labels.clone()).unwrap_or_default();
        let fully = active.iter().filter(|pod| {
            let own = pod.metadata.labels.as_ref();
            labels.iter().all(|(k, v)| own.and_then(|o| o.get(k)) == Some(v))
        });
        let ready = active.iter().filter(|pod| is_ready(pod)).count();
        let waits: Vec<i64> =
            active.iter().filter_map(|pod| available_in(pod, self.min_ready_s, now)).collect();
        let available = waits.iter().filter(|wait| **wait == 0).count();
        // Absent, not zero, as the API server leaves out zeros of optional fields.
        let some = |n: usize| if n == 0 { serde_json::Value::Null } else { json!(n) };
        let mut status = json!({
            "replicas": active.len(),
            "fullyLabeledReplicas": some(fully.count()),
            "readyReplicas": some(ready),
            "availableReplicas": some(available),
            "observedGeneration": owner.metadata().generation,
        });
        // ReplicationControllers have no such field.
        if T::KIND == "ReplicaSet" {
            status["terminatingReplicas"] = json!(terminating);
        }
        let plan = plan.status(owner, status);
        match waits.into_iter().filter(|wait| *wait > 0).min() {
            Some(wait) => plan.requeue_after(Duration::from_secs(wait.unsigned_abs())),
            None => plan,
        }
    }

    /// A new pod from the template.
    fn pod<T: Object>(&self, owner: &T) -> Pod {
        let template = self.template.cloned().unwrap_or_default();
        let mut metadata = template.metadata.unwrap_or_default();
        let name = owner.metadata().name.as_deref().unwrap_or_default();
        metadata.name = None;
        metadata.generate_name = Some(format!("{name}-"));
        metadata.namespace.clone_from(&owner.metadata().namespace);
        metadata.owner_references = Some(vec![controlled_by(owner)]);
        Pod { metadata, spec: template.spec, status: None }
    }
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

    #[test]
    fn a_replication_controller_does_the_same() {
        let rc = json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "u"},
            "spec": {"replicas": 2, "selector": {"app": "web"}, "template": {"metadata": {"labels": {"app": "web"}}}}
        });
        let controller = Arc::new(serde_json::from_value(rc).unwrap());
        let own = vec![pod("a", "Running")];
        let seen = SeenByController { controller, own, orphans: Vec::new() };
        let plan = ReplicationControllers::reconcile(&seen, Timestamp::UNIX_EPOCH);
        let deeds: Vec<String> = plan.actions.iter().map(ToString::to_string).collect();
        assert_eq!(deeds, ["create pods ns/web-*", "status replicationcontrollers ns/web"]);
    }
}
