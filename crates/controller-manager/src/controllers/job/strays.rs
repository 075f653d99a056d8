//! Pods whose Job is gone: the finalizer that kept them to be counted goes too, or they could never be deleted.

use std::sync::Arc;

use client::{Action, Cache, Controller, Key, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;

use super::{elsewhere, is_finished, tracked, untrack};

/// The controller.
#[derive(Debug)]
pub struct StrayPods;

impl Controller for StrayPods {
    const NAME: &'static str = "job-stray-pods";
    /// A pod that is tracked, and whether a Job will yet count it.
    type Seen = (Arc<Pod>, bool);
    const WAKES: &'static [Wake] = &[
        Wake::own("Pod"),
        Wake::keys("Job", |cache, changed| {
            // A Job that is there looks after its pods itself.
            let Some(job) = changed.old_as::<Job>().filter(|_| changed.new.is_none()) else {
                return Vec::new();
            };
            let pods = cache.find::<Pod>("owner", job.metadata.uid.as_deref().unwrap_or_default());
            pods.iter().map(|pod| Key::of(&pod.metadata)).collect()
        }),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<Self::Seen> {
        let pod = cache.at::<Pod>(key).filter(|pod| tracked(pod))?;
        let mut owners = pod.metadata.owner_references.iter().flatten();
        let Some(owner) = owners.find(|owner| owner.controller == Some(true)) else {
            return Some((pod, false));
        };
        if owner.kind != "Job" || owner.api_version != "batch/v1" {
            // Whoever took it over may use the finalizer as a Job does.
            return Some((pod, true));
        }
        let job = cache.get::<Job>(&key.namespace, &owner.name);
        let job = job.filter(|job| job.metadata.uid.as_deref() == Some(&owner.uid));
        let counted = job.is_some_and(|job| elsewhere(&job) || !is_finished(&job));
        Some((pod, counted))
    }

    fn reconcile((pod, counted): &Self::Seen, _: Timestamp) -> Plan {
        let free: Option<Action> = (!*counted).then(|| untrack(pod));
        Plan::new().maybe(free)
    }
}

#[cfg(test)]
mod tests {
    use client::Select;
    use client::cache::owner_uids;
    use serde_json::{Value, json};

    use super::*;

    /// What is done about a tracked pod that `owner` controls, when `jobs` are there.
    fn plan(owner: Option<Value>, jobs: Vec<Value>) -> Vec<String> {
        let pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "p",
            "finalizers": [super::super::TRACKING], "ownerReferences": owner.map(|o| vec![o])}});
        let jobs = jobs.into_iter().map(|job| serde_json::from_value::<Job>(job).unwrap());
        let pods = vec![serde_json::from_value::<Pod>(pod).unwrap()];
        let cache = Cache::fixed()
            .with::<Job>(Select::all(), jobs.collect())
            .with::<Pod>(Select::all().index("owner", owner_uids), pods);
        let seen = StrayPods::observe(&cache, &Key::new("ns", "p")).unwrap();
        let plan = StrayPods::reconcile(&seen, Timestamp::UNIX_EPOCH);
        plan.actions.iter().map(ToString::to_string).collect()
    }

    fn owner(kind: &str, api_version: &str) -> Option<Value> {
        Some(
            json!({"apiVersion": api_version, "kind": kind, "name": "j", "uid": "j", "controller": true}),
        )
    }

    fn job(uid: &str, more: &Value) -> Value {
        json!({"metadata": {"name": "j", "namespace": "ns", "uid": uid},
            "spec": {"template": {}, "managedBy": more["managedBy"]}, "status": more["status"]})
    }

    #[test]
    fn a_pod_is_let_go_once_no_job_will_count_it() {
        let free = ["patch pods ns/p"];
        let ours = || owner("Job", "batch/v1");
        let over = json!({"conditions": [{"type": "Failed", "status": "True"}]});
        assert_eq!(plan(None, vec![]), free);
        assert_eq!(plan(ours(), vec![]), free);
        assert_eq!(plan(ours(), vec![job("another", &json!({}))]), free);
        assert_eq!(plan(ours(), vec![job("j", &json!({"status": over}))]), free);
    }

    #[test]
    fn a_pod_that_somebody_will_count_is_left_alone() {
        let none: [&str; 0] = [];
        let over = json!({"conditions": [{"type": "Complete", "status": "True"}]});
        let theirs = json!({"managedBy": "example.com/queue", "status": over});
        assert_eq!(plan(owner("Job", "batch/v1"), vec![job("j", &json!({}))]), none);
        assert_eq!(plan(owner("Job", "batch/v1"), vec![job("j", &theirs)]), none);
        assert_eq!(plan(owner("Queue", "example.com/v1"), vec![]), none);
    }
}
