//! A Job step by step, against pods that run and end as the test says.

use super::*;
use client::act::Op;
use proptest::prelude::*;

struct Cluster {
    job: Job,
    pods: Vec<Arc<Pod>>,
    now: i64,
    made: usize,
    events: Vec<String>,
}

fn cluster(more: Value) -> Cluster {
    let mut job = json!({
        "metadata": {"name": "j", "namespace": "ns", "uid": "j"},
        "spec": {
            "parallelism": 1, "completions": 1, "backoffLimit": 6,
            "selector": {"matchLabels": {"job": "j"}},
            "template": {
                "metadata": {"labels": {"job": "j"}},
                "spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}
            }
        }
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        job["spec"][key] = value.clone();
    }
    let job = serde_json::from_value(job).unwrap();
    Cluster { job, pods: Vec::new(), now: 1000, made: 0, events: Vec::new() }
}

impl Cluster {
    fn plan(&self) -> Plan {
        let seen =
            Seen { job: Arc::new(self.job.clone()), own: self.pods.clone(), orphans: Vec::new() };
        Jobs::reconcile(&seen, Timestamp::from_second(self.now).unwrap())
    }

    /// Decides and carries out the first `most` actions; how many there were.
    fn step(&mut self, most: usize) -> usize {
        let plan = self.plan();
        let count = plan.actions.len();
        plan.actions.into_iter().take(most).for_each(|action| self.carry_out(action.op));
        count
    }

    /// Steps until nothing is to be done.
    fn settle(&mut self) {
        for _ in 0..20 {
            if self.step(usize::MAX) == 0 {
                return;
            }
        }
        panic!("does not settle: {:?}", self.plan());
    }

    fn carry_out(&mut self, op: Op) {
        let named = |pod: &Arc<Pod>, key: &Key| pod.metadata.name.as_deref() == Some(&key.name);
        match op {
            Op::Create { body, .. } => {
                let mut pod: Pod = serde_json::from_value(body).unwrap();
                self.made += 1;
                pod.metadata.name = Some(format!("p{}", self.made));
                pod.metadata.uid.clone_from(&pod.metadata.name);
                let at = Timestamp::from_second(self.now).unwrap();
                pod.metadata.creation_timestamp =
                    Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at));
                pod.status = serde_json::from_value(json!({"phase": "Running"})).unwrap();
                self.pods.push(Arc::new(pod));
            }
            Op::Patch { key, .. } => {
                for pod in self.pods.iter_mut().filter(|p| named(p, &key)) {
                    Arc::make_mut(pod).metadata.finalizers = None;
                }
                self.bury();
            }
            Op::Delete { kind, key, .. } if kind.resource == "pods" => {
                let at = Timestamp::from_second(self.now).unwrap();
                for pod in self.pods.iter_mut().filter(|p| named(p, &key)) {
                    Arc::make_mut(pod).metadata.deletion_timestamp =
                        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at));
                }
                self.bury();
            }
            Op::Status { patch, .. } => {
                let mut status = json!(self.job.status);
                for (key, value) in patch["status"].as_object().unwrap() {
                    status[key] = value.clone();
                }
                self.job.status = serde_json::from_value(status).unwrap();
            }
            Op::Event { reason, .. } => self.events.push(reason),
            Op::Delete { .. } => self.events.push("deleted".into()),
        }
    }

    /// Deleted pods without finalizers are gone.
    fn bury(&mut self) {
        self.pods.retain(|p| p.metadata.deletion_timestamp.is_none() || tracked(p));
    }

    fn running(&self) -> Vec<String> {
        let running = self.pods.iter().filter(|p| phase(p) == "Running" && is_active(p));
        running.map(|p| p.metadata.name.clone().unwrap()).collect()
    }

    fn end(&mut self, name: &str, code: i32) {
        let phase = if code == 0 { "Succeeded" } else { "Failed" };
        let at = Timestamp::from_second(self.now).unwrap().to_string();
        for pod in self.pods.iter_mut().filter(|p| p.metadata.name.as_deref() == Some(name)) {
            Arc::make_mut(pod).status = serde_json::from_value(json!({
                "phase": phase,
                "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"terminated": {"exitCode": code, "finishedAt": at}}}]
            }))
            .unwrap();
        }
    }

    fn end_all(&mut self, code: i32) {
        self.running().into_iter().for_each(|name| self.end(&name, code));
    }

    fn status(&self) -> JobStatus {
        self.job.status.clone().unwrap()
    }

    fn counts(&self) -> (i32, i32, i32) {
        let status = self.status();
        let n = |count: Option<i32>| count.unwrap_or(0);
        (n(status.active), n(status.succeeded), n(status.failed))
    }

    /// The reason of a condition that holds.
    fn reason(&self, kind: &str) -> Option<String> {
        let conditions = self.status().conditions.unwrap_or_default();
        conditions.into_iter().find(|c| c.type_ == kind && c.status == "True")?.reason
    }
}

#[test]
fn as_many_run_as_may_until_enough_have_succeeded() {
    let mut cluster = cluster(json!({"parallelism": 2, "completions": 3}));
    cluster.settle();
    assert_eq!(cluster.counts(), (2, 0, 0));
    cluster.end_all(0);
    cluster.settle();
    assert_eq!(cluster.counts(), (1, 2, 0));
    cluster.end_all(0);
    cluster.settle();
    assert_eq!(cluster.counts(), (0, 3, 0));
    assert_eq!(cluster.reason("Complete").as_deref(), Some("CompletionsReached"));
    assert_eq!(cluster.events, ["Completed"]);
    assert!(cluster.status().completion_time.is_some());
}

#[test]
fn failures_are_tried_again_later_and_not_for_ever() {
    let mut cluster = cluster(json!({"backoffLimit": 1}));
    cluster.settle();
    cluster.end_all(1);
    cluster.settle();
    assert_eq!(
        (cluster.counts(), cluster.plan().requeue_after),
        ((0, 0, 1), Some(Duration::from_secs(10)))
    );
    cluster.now += 10;
    cluster.settle();
    assert_eq!(cluster.counts(), (1, 0, 1));
    cluster.end_all(1);
    cluster.settle();
    assert_eq!(cluster.counts(), (0, 0, 2));
    assert_eq!(cluster.reason("Failed").as_deref(), Some("BackoffLimitExceeded"));
}

#[test]
fn each_index_succeeds_once() {
    let mut cluster =
        cluster(json!({"parallelism": 2, "completions": 3, "completionMode": "Indexed"}));
    cluster.settle();
    let pod = &cluster.pods[1];
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!(spec.hostname.as_deref(), Some("j-1"));
    assert_eq!(spec.containers[0].env.as_ref().unwrap()[0].name, "JOB_COMPLETION_INDEX");
    cluster.end("p2", 0);
    cluster.settle();
    assert_eq!(cluster.status().completed_indexes.as_deref(), Some("1"));
    cluster.end_all(0);
    cluster.settle();
    assert_eq!(cluster.status().completed_indexes.as_deref(), Some("0-2"));
    assert_eq!(cluster.reason("Complete").as_deref(), Some("CompletionsReached"));
    assert_eq!(cluster.made, 3);
}

#[test]
fn an_index_that_fails_too_often_does_not_hold_up_the_others() {
    let mut cluster =
        cluster(json!({"parallelism": 2, "completions": 2, "completionMode": "Indexed",
        "backoffLimitPerIndex": 1, "backoffLimit": 100}));
    cluster.settle();
    cluster.end("p1", 1);
    cluster.end("p2", 0);
    cluster.settle();
    cluster.now += 10;
    cluster.settle();
    assert_eq!(indexes::failures_before(cluster.pods.last().unwrap()), 1);
    cluster.end_all(1);
    cluster.settle();
    assert_eq!(cluster.status().failed_indexes.as_deref(), Some("0"));
    assert_eq!(cluster.reason("Failed").as_deref(), Some("FailedIndexes"));
    assert_eq!(cluster.counts(), (0, 1, 2));
}

#[test]
fn a_suspended_job_has_no_pods_and_counts_none() {
    let mut cluster = cluster(json!({}));
    cluster.settle();
    cluster.job.spec.as_mut().unwrap().suspend = Some(true);
    cluster.settle();
    assert_eq!((cluster.counts(), cluster.pods.len()), ((0, 0, 0), 0));
    assert_eq!(cluster.reason("Suspended").as_deref(), Some("JobSuspended"));
    assert!(cluster.status().start_time.is_none());
    cluster.job.spec.as_mut().unwrap().suspend = Some(false);
    cluster.settle();
    assert_eq!(cluster.counts(), (1, 0, 0));
    assert_eq!(cluster.events, ["Suspended", "Resumed"]);
}

#[test]
fn the_failure_policy_decides() {
    let rule = |action: &str, code: i32| json!({"action": action, "onExitCodes": {"operator": "In", "values": [code]}});
    let policy = json!({"podFailurePolicy": {"rules": [rule("Ignore", 3), rule("FailJob", 42)]}});
    let mut cluster = cluster(policy);
    cluster.settle();
    cluster.end_all(3);
    cluster.settle();
    // It does not count, but the next one has to wait all the same.
    assert_eq!(cluster.plan().requeue_after, Some(Duration::from_secs(10)));
    cluster.now += 10;
    cluster.settle();
    assert_eq!(cluster.counts(), (1, 0, 0));
    cluster.end_all(42);
    cluster.settle();
    assert_eq!(cluster.reason("Failed").as_deref(), Some("PodFailurePolicy"));
    let conditions = cluster.status().conditions.unwrap();
    let message = conditions[0].message.as_deref();
    assert_eq!(
        message,
        Some("Container c for pod ns/p2 failed with exit code 42 matching FailJob rule at index 1")
    );
}

#[test]
fn the_success_policy_ends_the_others() {
    let mut cluster =
        cluster(json!({"parallelism": 3, "completions": 3, "completionMode": "Indexed",
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]}}));
    cluster.settle();
    cluster.end("p1", 0);
    cluster.settle();
    assert_eq!(cluster.reason("Complete").as_deref(), Some("SuccessPolicy"));
    assert_eq!(cluster.running().len(), 0);
}

#[test]
fn a_deadline_ends_it_and_after_a_while_it_is_deleted() {
    let mut cluster = cluster(json!({"activeDeadlineSeconds": 5, "ttlSecondsAfterFinished": 60}));
    cluster.settle();
    cluster.now += 5;
    cluster.settle();
    assert_eq!(cluster.reason("Failed").as_deref(), Some("DeadlineExceeded"));
    assert_eq!(cluster.counts(), (0, 0, 1));
    assert_eq!(cluster.plan().requeue_after, Some(Duration::from_secs(60)));
    cluster.now += 60;
    assert_eq!(cluster.step(usize::MAX), 1);
    assert_eq!(cluster.events, ["DeadlineExceeded", "deleted"]);
}

#[test]
fn an_index_carries_its_ignored_failures_on() {
    let mut cluster = cluster(json!({"completionMode": "Indexed", "backoffLimitPerIndex": 1,
        "podFailurePolicy": {"rules": [
            {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [3]}}]}}));
    cluster.settle();
    for wait in [10, 20, 40] {
        cluster.end_all(3);
        cluster.settle();
        assert_eq!(cluster.plan().requeue_after, Some(Duration::from_secs(wait)));
        cluster.now += i64::try_from(wait).unwrap();
        cluster.settle();
    }
    let last = cluster.pods.last().unwrap();
    assert_eq!((indexes::failures_before(last), indexes::ignored_before(last)), (0, 3));
    assert_eq!(cluster.counts(), (1, 0, 0));
}

#[test]
fn pods_beyond_the_completions_are_removed_and_not_counted() {
    let mut cluster = cluster(json!({"parallelism": 3, "completions": 3}));
    cluster.settle();
    cluster.end("p1", 0);
    cluster.job.spec.as_mut().unwrap().completions = Some(1);
    cluster.settle();
    assert_eq!((cluster.counts(), cluster.pods.len()), ((0, 1, 0), 1));
    assert_eq!(cluster.events, ["Completed"]);
}

#[test]
fn more_successes_than_wanted_are_told() {
    let mut cluster = cluster(json!({"parallelism": 2, "completions": 2}));
    cluster.settle();
    cluster.end_all(0);
    cluster.job.spec.as_mut().unwrap().completions = Some(1);
    cluster.settle();
    assert_eq!(cluster.events, ["TooManySucceededPods", "Completed"]);
}

#[test]
fn another_s_job_is_left_alone_until_its_time_after_the_end_is_over() {
    let mut cluster =
        cluster(json!({"managedBy": "example.com/queue", "ttlSecondsAfterFinished": 5}));
    assert!(cluster.plan().is_empty());
    cluster.job.status = serde_json::from_value(json!({"conditions": [{"type": "Complete",
        "status": "True", "lastTransitionTime": "1970-01-01T00:16:40Z"}]}))
    .unwrap();
    assert_eq!(cluster.plan().requeue_after, Some(Duration::from_secs(5)));
    cluster.now += 5;
    cluster.step(usize::MAX);
    assert_eq!(cluster.events, ["deleted"]);
}

proptest! {
    /// Whatever part of each plan is carried out, and whenever pods end: each is counted once.
    #[test]
    fn every_pod_is_counted_once(
        steps in prop::collection::vec((0..6_usize, 0..4_u8), 1..80),
        indexed in any::<bool>(),
    ) {
        let mode = if indexed { "Indexed" } else { "NonIndexed" };
        let mut cluster = cluster(json!({"parallelism": 3, "completions": 5, "completionMode": mode, "backoffLimit": 1000}));
        let (mut well, mut badly) = (0, 0);
        for (most, what) in steps {
            cluster.step(most);
            if let Some(name) = cluster.running().first().cloned() {
                match what {
                    0 => {
                        cluster.end(&name, 0);
                        well += 1;
                    }
                    1 => {
                        cluster.end(&name, 1);
                        badly += 1;
                    }
                    _ => {}
                }
            }
            cluster.now += 700;
        }
        for _ in 0..40 {
            cluster.step(usize::MAX);
            cluster.now += 700;
        }
        let (_, succeeded, failed) = cluster.counts();
        prop_assert_eq!((succeeded, failed), (well, badly));
        prop_assert!(succeeded <= 5);
        prop_assert_eq!(cluster.reason("Complete").is_some(), succeeded == 5);
    }
}
