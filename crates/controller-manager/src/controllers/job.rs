//! Jobs: pods that run until enough of them have succeeded, or too many failed.
//!
//! Every pod carries a finalizer until it is counted, so that none is counted twice or not at all (KEP-2307): first its
//! uid goes to `status.uncountedTerminatedPods`, then its finalizer is taken away, then it moves to the counters. A
//! step that is lost is done again, since each is decided from what is there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use client::act::controlled_by;
use client::transport::Delete;
use client::{Action, Cache, Controller, Key, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, json};

use crate::pods::{
    adopters, claim, is_active, is_ended, is_ready, orphans, phase, picks, rank_for_deletion,
};
use conditions::Conditions;
use policy::Verdict;

mod conditions;
mod indexes;
mod policy;
pub mod strays;

/// What a pod carries until it is counted.
const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// Pods created or deleted at once.
const BURST_PODS: usize = 500;
/// As many uids wait in the status at a time.
const UNCOUNTED_MAX: usize = 500;
/// A pod that failed is replaced after this, twice as much after each further failure, …
const BACKOFF_FIRST_S: i64 = 10;
/// … and at the latest after this.
const BACKOFF_MOST_S: i64 = 600;

/// A Job and its pods.
#[derive(Debug)]
pub struct Seen {
    job: Arc<Job>,
    /// Controlled by the job, selected or not.
    own: Vec<Arc<Pod>>,
    /// Selected, and controlled by nobody.
    orphans: Vec<Arc<Pod>>,
}

/// The controller.
#[derive(Debug)]
pub struct Jobs;

fn selector(job: &Job) -> Option<&LabelSelector> {
    job.spec.as_ref()?.selector.as_ref()
}

fn has(job: &Job, condition: &str) -> bool {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == condition && c.status == "True")
}

/// Whether a Job has ended, well or not.
#[must_use]
pub fn is_finished(job: &Job) -> bool {
    has(job, "Complete") || has(job, "Failed")
}

/// Whether somebody else has said that the Job is theirs.
fn elsewhere(job: &Job) -> bool {
    let by = job.spec.as_ref().and_then(|s| s.managed_by.as_deref());
    by.is_some_and(|by| by != "kubernetes.io/job-controller")
}

impl Controller for Jobs {
    const NAME: &'static str = "job";
    type Seen = Seen;
    const WAKES: &'static [Wake] = &[
        Wake::own("Job"),
        Wake::owner_of("Pod"),
        Wake::keys("Pod", |cache, changed| {
            adopters::<Job>(cache, changed, |set, pod| picks(selector(set), pod))
        }),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<Seen> {
        let job = cache.at::<Job>(key)?;
        let own = cache.find::<Pod>("owner", job.metadata.uid.as_deref().unwrap_or_default());
        Some(Seen { own, orphans: orphans(cache, &key.namespace, selector(&job)), job })
    }

    fn reconcile(seen: &Seen, now: Timestamp) -> Plan {
        let job = &*seen.job;
        let Some(spec) = &job.spec else { return Plan::new() };
        if elsewhere(job) {
            // Its time after the end is ours all the same.
            return expire(Plan::new(), job, spec, now);
        }
        if job.metadata.deletion_timestamp.is_some() || is_finished(job) {
            let tracked = seen.own.iter().filter(|pod| tracked(pod));
            let plan = Plan::new().each(tracked, |pod| untrack(pod));
            return expire(plan, job, spec, now);
        }
        let (plan, own) = claim(Plan::new(), job, selector(job), &seen.own, &seen.orphans);
        let status = job.status.clone().unwrap_or_default();
        Turn { job, spec, status: &status, pods: &own, now }.run(plan)
    }
}

fn tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == TRACKING)
}

/// Takes the finalizer away.
fn untrack(pod: &Pod) -> Action {
    let gone = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": [TRACKING]}});
    Action::strategic(pod, gone)
}

/// Deletes a Job that has been finished for as long as it says.
fn expire(plan: Plan, job: &Job, spec: &JobSpec, now: Timestamp) -> Plan {
    let Some(ttl_s) = spec.ttl_seconds_after_finished else { return plan };
    if job.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let ends = conditions.filter(|c| matches!(c.type_.as_str(), "Complete" | "Failed"));
    let ended = ends.filter(|c| c.status == "True").find_map(|c| c.last_transition_time.as_ref());
    let Some(ended) = ended else { return plan };
    let left = ended.0.as_second() + i64::from(ttl_s) - now.as_second();
    if left > 0 {
        return plan.requeue_after(Duration::from_secs(left.unsigned_abs()));
    }
    let how = Delete { propagation: "Foreground", ..Delete::default() };
    plan.push(Action::delete_with(job, how))
}

/// Why a Job ends: condition, reason and message.
type End = (&'static str, &'static str, String);

/// One look at a Job.
struct Turn<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    status: &'a JobStatus,
    pods: &'a [Arc<Pod>],
    now: Timestamp,
}

/// What has been counted, as the new status says it.
#[derive(Debug, Default)]
struct Counts {
    succeeded: i32,
    failed: i32,
    /// Pods whose end is written down and whose finalizer can go.
    release: Vec<Arc<Pod>>,
    uncounted_succeeded: Vec<String>,
    uncounted_failed: Vec<String>,
    completed: BTreeSet<i32>,
    failed_indexes: BTreeSet<i32>,
    /// A pod that by the policy fails the whole.
    fatal: Option<String>,
}

impl<'a> Turn<'a> {
    fn indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    fn completions(&self) -> i32 {
        self.spec.completions.unwrap_or(0)
    }

    fn only_failed_replaced(&self) -> bool {
        self.spec.pod_replacement_policy.as_deref() == Some("Failed")
            || self.spec.pod_failure_policy.is_some()
    }

    fn suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    fn has_failed(&self, pod: &Pod) -> bool {
        phase(pod) == "Failed"
            || (!self.only_failed_replaced()
                && pod.metadata.deletion_timestamp.is_some()
                && phase(pod) != "Succeeded")
    }

    fn active(&self) -> Vec<&'a Pod> {
        self.pods.iter().map(|p| &**p).filter(|p| is_active(p)).collect()
    }

    fn run(&self, plan: Plan) -> Plan {
        let counts = self.count();
        let end = self.end(&counts);
        let active = self.active();
        let leaving = |p: &&Arc<Pod>| p.metadata.deletion_timestamp.is_some() && !is_ended(p);
        let terminating = self.pods.iter().filter(leaving).count();
        let mut deeds = Plan::new();
        let mut alive = active.len();
        if end.is_some() {
            // Deleted with their finalizers, so that they are counted.
            let going = active.iter().take(BURST_PODS);
            deeds = deeds.each(going, |pod| {
                Action::delete(*pod).announce(self.job, "SuccessfulDelete", "Deleted pod: {}")
            });
            alive = active.len().saturating_sub(BURST_PODS);
        } else if job_is(self.status, "Suspended") || self.suspended() {
            if self.suspended() {
                deeds = self.remove(deeds, active.clone());
                alive = 0;
            }
        } else {
            deeds = self.manage(deeds, &counts, &active, terminating);
        }
        let waiting = !counts.uncounted_succeeded.is_empty() || !counts.uncounted_failed.is_empty();
        let tracked = self.pods.iter().any(|pod| {
            tracked(pod) && !counts.release.iter().any(|r| r.metadata.uid == pod.metadata.uid)
        });
        let over = alive == 0 && active.is_empty() && terminating == 0 && !waiting && !tracked;
        let plan = self.write(plan, &counts, end, over, terminating);
        let plan = plan.each(&counts.release, |pod| untrack(pod));
        let mut plan = Plan { actions: [plan.actions, deeds.actions].concat(), ..plan };
        for wait in [deeds.requeue_after, self.deadline()].into_iter().flatten() {
            plan = plan.requeue_after(wait);
        }
        plan
    }

    /// Counts the pods that ended.
    fn count(&self) -> Counts {
        let old = self.status.uncounted_terminated_pods.clone().unwrap_or_default();
        let (old_succeeded, old_failed) =
            (old.succeeded.unwrap_or_default(), old.failed.unwrap_or_default());
        let completions = self.completions();
        let mut counts = Counts {
            succeeded: self.status.succeeded.unwrap_or(0),
            failed: self.status.failed.unwrap_or(0),
            completed: indexes::parse(self.status.completed_indexes.as_deref(), completions),
            failed_indexes: indexes::parse(self.status.failed_indexes.as_deref(), completions),
            ..Counts::default()
        };
        // Written down before, and let go since: they move to the counters.
        let held = |uid: &String| {
            self.pods.iter().any(|p| p.metadata.uid.as_ref() == Some(uid) && tracked(p))
        };
        for (uids, failed) in [(&old_succeeded, false), (&old_failed, true)] {
            for uid in uids {
                match (held(uid), failed) {
                    (true, false) => counts.uncounted_succeeded.push(uid.clone()),
                    (true, true) => counts.uncounted_failed.push(uid.clone()),
                    (false, false) => counts.succeeded += 1,
                    (false, true) => counts.failed += 1,
                }
            }
        }
        let dying = job_is(self.status, "FailureTarget");
        for pod in self.pods.iter().filter(|pod| tracked(pod)) {
            self.count_pod(pod, dying, &mut counts);
        }
        if self.indexed() {
            counts.succeeded = i32::try_from(counts.completed.len()).unwrap_or(i32::MAX);
        }
        counts
    }

    fn count_pod(&self, pod: &Arc<Pod>, dying: bool, counts: &mut Counts) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let index = indexes::of(pod).filter(|index| *index < self.completions());
        if phase(pod) == "Succeeded" {
            if self.indexed() {
                counts.completed.extend(index);
            } else if !counts.uncounted_succeeded.contains(&uid) {
                if counts.uncounted_succeeded.len() >= UNCOUNTED_MAX {
                    return;
                }
                counts.uncounted_succeeded.push(uid);
            }
            counts.release.push(pod.clone());
            return;
        }
        let ended = is_ended(pod) || pod.metadata.deletion_timestamp.is_some();
        if !(self.has_failed(pod) || dying && ended) {
            return;
        }
        let verdict = policy::verdict(self.spec, pod);
        if let Verdict::FailJob(why) = &verdict {
            counts.fatal.get_or_insert_with(|| why.clone());
        }
        if let (Some(limit), Some(index)) = (self.spec.backoff_limit_per_index, index) {
            let failures = indexes::failures_before(pod) + i32::from(verdict != Verdict::Ignore);
            if verdict == Verdict::FailIndex || failures > limit {
                counts.failed_indexes.insert(index);
            } else if !self.replaced(pod, index) && !counts.completed.contains(&index) && !dying {
                // Its failures are known from it until another one carries them on.
                return;
            }
        }
        if verdict != Verdict::Ignore && !counts.uncounted_failed.contains(&uid) {
            if counts.uncounted_failed.len() >= UNCOUNTED_MAX {
                return;
            }
            if !self.indexed() || index.is_some() {
                counts.uncounted_failed.push(uid);
            }
        }
        counts.release.push(pod.clone());
    }

    /// Whether a later pod of the index is there.
    fn replaced(&self, pod: &Pod, index: i32) -> bool {
        let created = |p: &Pod| p.metadata.creation_timestamp.as_ref().map(|t| t.0);
        self.pods.iter().any(|other| {
            indexes::of(other) == Some(index)
                && other.metadata.uid != pod.metadata.uid
                && (created(other), indexes::failures_before(other))
                    > (created(pod), indexes::failures_before(pod))
        })
    }

    /// Whether the Job ends, and why.
    fn end(&self, counts: &Counts) -> Option<End> {
        // What was decided once stays.
        let conditions = self.status.conditions.iter().flatten();
        let decided = conditions.filter(|c| c.status == "True").find_map(|c| {
            let kind = match c.type_.as_str() {
                "FailureTarget" => "Failed",
                "SuccessCriteriaMet" => "Complete",
                _ => return None,
            };
            let reason = known_reason(c.reason.as_deref().unwrap_or_default());
            Some((kind, reason, c.message.clone().unwrap_or_default()))
        });
        if decided.is_some() {
            return decided;
        }
        if let Some(why) = &counts.fatal {
            return Some(("Failed", "PodFailurePolicy", why.clone()));
        }
        let failed = |reason, text: &str| Some(("Failed", reason, text.to_owned()));
        let all_failed =
            counts.failed + i32::try_from(counts.uncounted_failed.len()).unwrap_or(i32::MAX);
        let limit = self.spec.backoff_limit.unwrap_or(6);
        if all_failed > limit || self.restarts_exceed(limit) {
            return failed("BackoffLimitExceeded", "Job has reached the specified backoff limit");
        }
        if self.deadline() == Some(Duration::ZERO) {
            return failed("DeadlineExceeded", "Job was active longer than specified deadline");
        }
        if let Some(why) = policy::success(self.spec, &counts.completed) {
            return Some(("Complete", "SuccessPolicy", why));
        }
        let (done, broken) = (counts.completed.len(), counts.failed_indexes.len());
        let completions = usize::try_from(self.completions()).unwrap_or(0);
        if self.indexed() && self.spec.backoff_limit_per_index.is_some() {
            let most = self.spec.max_failed_indexes.and_then(|n| usize::try_from(n).ok());
            if most.is_some_and(|most| broken > most) {
                let why = "Job has exceeded the specified maximal number of failed indexes";
                return failed("MaxFailedIndexesExceeded", why);
            }
            if broken > 0 && done + broken >= completions {
                return failed("FailedIndexes", "Job has failed indexes");
            }
        }
        let all_succeeded =
            counts.succeeded + i32::try_from(counts.uncounted_succeeded.len()).unwrap_or(0);
        let complete = match self.spec.completions {
            _ if self.suspended() && self.spec.completions != Some(0) => false,
            // Those that are too many are removed before, since they do not count.
            Some(wanted) => all_succeeded >= wanted && self.active().is_empty(),
            None => all_succeeded > 0 && self.active().is_empty(),
        };
        let why = "Reached expected number of succeeded pods";
        complete.then(|| ("Complete", "CompletionsReached", why.to_owned()))
    }

    /// Containers that are started again in their pods count as failures too.
    fn restarts_exceed(&self, limit: i32) -> bool {
        let template = self.spec.template.spec.as_ref();
        if template.and_then(|s| s.restart_policy.as_deref()) != Some("OnFailure") {
            return false;
        }
        let running = self.pods.iter().filter(|p| matches!(phase(p), "Running" | "Pending"));
        let statuses = running.flat_map(|p| &p.status).flat_map(|s| {
            let inits = s.init_container_statuses.iter().flatten();
            s.container_statuses.iter().flatten().chain(inits)
        });
        let restarts: i32 = statuses.map(|c| c.restart_count).sum();
        if limit == 0 { restarts > 0 } else { restarts >= limit }
    }

    /// How long until the deadline; none without one, or before the Job has begun.
    fn deadline(&self) -> Option<Duration> {
        if self.suspended() {
            return None;
        }
        let began = self.status.start_time.as_ref()?.0.as_second();
        let left = began + self.spec.active_deadline_seconds? - self.now.as_second();
        Some(Duration::from_secs(u64::try_from(left).unwrap_or(0)))
    }

    /// Deletes pods that are not to be counted.
    fn remove(&self, plan: Plan, pods: Vec<&Pod>) -> Plan {
        let mut plan = plan;
        for pod in pods.into_iter().take(BURST_PODS) {
            if tracked(pod) {
                plan = plan.push(untrack(pod));
            }
            let delete = Action::delete(pod);
            plan = plan.push(delete.announce(self.job, "SuccessfulDelete", "Deleted pod: {}"));
        }
        plan
    }

    /// Makes as many pods as should run, and removes those that are too many.
    fn manage(&self, plan: Plan, counts: &Counts, active: &[&Pod], terminating: usize) -> Plan {
        let all_succeeded =
            counts.succeeded + i32::try_from(counts.uncounted_succeeded.len()).unwrap_or(0);
        let parallelism = self.spec.parallelism.unwrap_or(1);
        let wanted = match self.spec.completions {
            None if all_succeeded > 0 => i32::try_from(active.len()).unwrap_or(i32::MAX),
            None => parallelism,
            Some(completions) => {
                let broken = i32::try_from(counts.failed_indexes.len()).unwrap_or(0);
                (completions - all_succeeded - broken).min(parallelism).max(0)
            }
        };
        let wanted = usize::try_from(wanted).unwrap_or(0);
        let mut extra: Vec<&Pod> = Vec::new();
        if self.indexed() {
            let mut seen = BTreeSet::new();
            extra.extend(active.iter().copied().filter(|pod| {
                let index = indexes::of(pod);
                index.is_none_or(|i| i >= self.completions() || !seen.insert(i))
            }));
        }
        let mut ranked: Vec<&Pod> = active.to_vec();
        ranked.retain(|p| !extra.iter().any(|e| e.metadata.uid == p.metadata.uid));
        rank_for_deletion(&mut ranked);
        extra.extend(ranked.iter().copied().take(ranked.len().saturating_sub(wanted)));
        if !extra.is_empty() {
            return self.remove(plan, extra);
        }
        let held = if self.only_failed_replaced() { terminating } else { 0 };
        let missing = wanted.saturating_sub(active.len() + held).min(BURST_PODS);
        if missing == 0 {
            return plan;
        }
        if self.indexed() {
            return self.fill_indexes(plan, counts, missing);
        }
        if let Some(wait) = self.backoff(None) {
            return plan.requeue_after(wait);
        }
        plan.each(0..missing, |_| self.create(None))
    }

    fn fill_indexes(&self, plan: Plan, counts: &Counts, missing: usize) -> Plan {
        let per_index = self.spec.backoff_limit_per_index.is_some();
        if !per_index && let Some(wait) = self.backoff(None) {
            return plan.requeue_after(wait);
        }
        let busy: BTreeSet<i32> = self
            .pods
            .iter()
            .filter(|p| !is_ended(p) && !self.has_failed(p))
            .filter_map(|p| indexes::of(p))
            .collect();
        let open = (0..self.completions()).filter(|index| {
            !busy.contains(index)
                && !counts.completed.contains(index)
                && !counts.failed_indexes.contains(index)
        });
        let mut plan = plan;
        let mut made = 0;
        for index in open {
            if made == missing {
                break;
            }
            let wait = if per_index { self.backoff(Some(index)) } else { None };
            match wait {
                Some(wait) => plan = plan.requeue_after(wait),
                None => {
                    made += 1;
                    plan = plan.push(self.create(Some(index)));
                }
            }
        }
        plan
    }

    /// How long to wait after the failures since the last success, or after those of one index.
    fn backoff(&self, index: Option<i32>) -> Option<Duration> {
        let ends = |wanted: &dyn Fn(&Pod) -> bool| {
            let of = |pod: &Pod| index.is_none_or(|index| indexes::of(pod) == Some(index));
            let pods = self.pods.iter().filter(|pod| of(pod) && wanted(pod));
            pods.map(|pod| self.ended_at(pod)).collect::<Vec<i64>>()
        };
        let last_success = ends(&|pod| phase(pod) == "Succeeded").into_iter().max();
        // Also those that the policy ignores: what fails at once must not be made again at once for ever.
        let mut failures = ends(&|pod| self.has_failed(pod));
        failures.retain(|at| last_success.is_none_or(|success| *at >= success));
        let last = failures.iter().max()?;
        let count = match index {
            Some(index) => self.failures_of(index).iter().sum(),
            None => i32::try_from(failures.len()).unwrap_or(i32::MAX),
        };
        let delay = (BACKOFF_FIRST_S << (count - 1).clamp(0, 10)).min(BACKOFF_MOST_S);
        let left = last + delay - self.now.as_second();
        (left > 0).then(|| Duration::from_secs(left.unsigned_abs()))
    }

    /// When a pod ended: its last container's end, or as near as is known.
    fn ended_at(&self, pod: &Pod) -> i64 {
        let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
        let ends =
            statuses.filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
        let last = ends.map(|t| t.0).max();
        let last = last.or_else(|| pod.metadata.deletion_timestamp.as_ref().map(|t| t.0));
        let ready =
            crate::pods::condition(pod, "Ready").and_then(|c| c.last_transition_time.as_ref());
        let last = last.or_else(|| ready.map(|t| t.0));
        last.map_or(self.now, |t| t.min(self.now)).as_second()
    }

    /// A new pod, of an index if the Job has them.
    fn create(&self, index: Option<i32>) -> Action {
        let template = self.spec.template.clone();
        let mut metadata = template.metadata.unwrap_or_default();
        let name = self.job.metadata.name.as_deref().unwrap_or_default();
        metadata.name = None;
        metadata.generate_name = Some(format!("{name}-"));
        metadata.namespace.clone_from(&self.job.metadata.namespace);
        metadata.owner_references = Some(vec![controlled_by(self.job)]);
        let finalizers = metadata.finalizers.get_or_insert_default();
        finalizers.push(TRACKING.to_owned());
        let mut spec = template.spec.unwrap_or_default();
        if let Some(index) = index {
            metadata.generate_name = Some(indexes::prefix(name, index));
            let annotations = metadata.annotations.get_or_insert_default();
            annotations.insert(indexes::INDEX.to_owned(), index.to_string());
            if self.spec.backoff_limit_per_index.is_some() {
                let [failures, ignored] = self.failures_of(index);
                annotations.insert(indexes::FAILURES.to_owned(), failures.to_string());
                if ignored > 0 {
                    annotations.insert(indexes::IGNORED.to_owned(), ignored.to_string());
                }
            }
            let labels = metadata.labels.get_or_insert_default();
            labels.insert(indexes::INDEX.to_owned(), index.to_string());
            spec.hostname = Some(format!("{name}-{index}"));
            let path = format!("metadata.labels['{}']", indexes::INDEX);
            let variable = json!({"name": "JOB_COMPLETION_INDEX",
                "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
            let inits = spec.init_containers.iter_mut().flatten();
            for container in spec.containers.iter_mut().chain(inits) {
                let env = container.env.get_or_insert_default();
                if env.iter().all(|e| e.name != "JOB_COMPLETION_INDEX") {
                    env.extend(serde_json::from_value(variable.clone()));
                }
            }
        }
        let pod = Pod { metadata, spec: Some(spec), status: None };
        Action::create(&pod)
            .announce(self.job, "SuccessfulCreate", "Created pod: {}")
            .or_warn("FailedCreate", "Error creating: {}")
    }

    /// How often pods of an index have failed, and how often so that the policy ignores it.
    fn failures_of(&self, index: i32) -> [i32; 2] {
        let pods = self.pods.iter().filter(|p| indexes::of(p) == Some(index));
        let failures = pods.filter(|p| self.has_failed(p)).map(|pod| {
            let ignored = i32::from(policy::verdict(self.spec, pod) == Verdict::Ignore);
            [indexes::failures_before(pod) + 1 - ignored, indexes::ignored_before(pod) + ignored]
        });
        failures.max_by_key(|counts| counts.iter().sum::<i32>()).unwrap_or_default()
    }

    /// Writes the status down, with the events of what changed in it.
    fn write(
        &self,
        plan: Plan,
        counts: &Counts,
        end: Option<End>,
        over: bool,
        terminating: usize,
    ) -> Plan {
        let active = self.active();
        let ready = active.iter().filter(|p| is_ready(p)).count();
        let some = |n: usize| if n == 0 { Value::Null } else { json!(n) };
        let count = |n: i32| if n == 0 { Value::Null } else { json!(n) };
        let list = |uids: &[String]| if uids.is_empty() { Value::Null } else { json!(uids) };
        let mut conditions = Conditions::new(self.status, self.now);
        let mut events = Vec::new();
        let mut completion = Value::Null;
        if self.suspended() && end.is_none() {
            if conditions.set("Suspended", "True", "JobSuspended", "Job suspended") {
                events.push(("Normal", "Suspended", "Job suspended".to_owned()));
            }
        } else if job_is(self.status, "Suspended")
            && conditions.set("Suspended", "False", "JobResumed", "Job resumed")
        {
            events.push(("Normal", "Resumed", "Job resumed".to_owned()));
        }
        if let Some((kind, reason, message)) = &end {
            let first = if *kind == "Failed" { "FailureTarget" } else { "SuccessCriteriaMet" };
            let decided = conditions.set(first, "True", reason, message);
            // The end itself is said once nothing of it can change any more.
            if over && !decided {
                conditions.set(kind, "True", reason, message);
                if *kind == "Complete" {
                    if self.spec.completions.is_some_and(|wanted| counts.succeeded > wanted) {
                        let text = "Too many succeeded pods running after completion count reached";
                        events.push(("Warning", "TooManySucceededPods", text.to_owned()));
                    }
                    completion = json!(self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
                    events.push(("Normal", "Completed", "Job completed".to_owned()));
                } else {
                    events.push(("Warning", reason, message.clone()));
                }
            }
        }
        let began = match &self.status.start_time {
            _ if self.suspended() => Value::Null,
            Some(time) => json!(time),
            None => json!(self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        };
        let indexed = self.indexed();
        let per_index = self.spec.backoff_limit_per_index.is_some();
        let plan = plan.status(
            self.job,
            json!({
                "active": some(active.len()),
                "ready": ready,
                "terminating": terminating,
                "succeeded": count(counts.succeeded),
                "failed": count(counts.failed),
                "startTime": began,
                "completionTime": completion,
                "completedIndexes": if indexed { text(&counts.completed) } else { Value::Null },
                "failedIndexes": if per_index { json!(indexes::write(&counts.failed_indexes)) } else { Value::Null },
                "uncountedTerminatedPods": {
                    "succeeded": list(&counts.uncounted_succeeded),
                    "failed": list(&counts.uncounted_failed),
                },
                "conditions": conditions.all,
            }),
        );
        plan.each(events, |(severity, reason, message)| {
            Action::event(self.job, severity, reason, message)
        })
    }
}

fn text(indexes: &BTreeSet<i32>) -> Value {
    if indexes.is_empty() { Value::Null } else { json!(indexes::write(indexes)) }
}

fn job_is(status: &JobStatus, condition: &str) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|c| c.type_ == condition && c.status == "True")
}

/// The reasons that a Job can end for, so that one read from a status can be written again.
fn known_reason(reason: &str) -> &'static str {
    const REASONS: [&str; 8] = [
        "PodFailurePolicy",
        "BackoffLimitExceeded",
        "DeadlineExceeded",
        "MaxFailedIndexesExceeded",
        "FailedIndexes",
        "SuccessPolicy",
        "CompletionsReached",
        "JobSuspended",
    ];
    REASONS.into_iter().find(|known| *known == reason).unwrap_or_default()
}

#[cfg(test)]
mod tests;
