//! CronJobs: a Job at each time of a schedule.

use std::sync::Arc;
use std::time::Duration;

use client::act::{controlled_by, reference};
use client::transport::Delete;
use client::{Action, Cache, Controller, Key, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::{Value, json};

use super::job::is_finished;
use schedule::{MISSED_MAX, Schedule};

mod schedule;

const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// A CronJob and its Jobs.
#[derive(Debug)]
pub struct Seen {
    cron: Arc<CronJob>,
    jobs: Vec<Arc<Job>>,
}

/// The controller.
#[derive(Debug)]
pub struct CronJobs;

impl Controller for CronJobs {
    const NAME: &'static str = "cronjob";
    type Seen = Seen;
    const WAKES: &'static [Wake] = &[Wake::own("CronJob"), Wake::owner_of("Job")];

    fn observe(cache: &Cache, key: &Key) -> Option<Seen> {
        let cron = cache.at::<CronJob>(key)?;
        let jobs = cache.find::<Job>("owner", cron.metadata.uid.as_deref().unwrap_or_default());
        Some(Seen { cron, jobs })
    }

    fn reconcile(seen: &Seen, now: Timestamp) -> Plan {
        let cron = &*seen.cron;
        let spec = &cron.spec;
        if cron.metadata.deletion_timestamp.is_some() {
            return Plan::new();
        }
        let status = cron.status.clone().unwrap_or_default();
        let mut plan = history(Plan::new(), cron, spec, &seen.jobs);
        let (mut active, events) = active(cron, &seen.jobs);
        plan = plan.each(events, |event| event);
        let mut last = status.last_schedule_time.as_ref().map(|t| t.0);
        match turn(cron, spec, &seen.jobs, last, now) {
            Turn::Nothing(wait) => {
                if let Some(wait) = wait {
                    plan = plan.requeue_after(wait);
                }
            }
            Turn::Say(severity, reason, message, wait) => {
                plan = plan.push(Action::event(cron, severity, reason, message));
                if let Some(wait) = wait {
                    plan = plan.requeue_after(wait);
                }
            }
            Turn::Started(at) => last = Some(at),
            Turn::Start(at, job, replaced, missed) => {
                if missed > MISSED_MAX {
                    let text = "too many missed start times. Set or decrease \
                                .spec.startingDeadlineSeconds or check clock skew";
                    plan = plan.push(Action::event(cron, "Warning", "TooManyMissedTimes", text));
                }
                active.retain(|known| {
                    !replaced.iter().any(|old| old.metadata.uid.as_deref() == known.uid.as_deref())
                });
                plan = plan.each(replaced, |old| {
                    let how = Delete { propagation: "Background", ..Delete::default() };
                    Action::delete_with(&*old, how).announce(
                        cron,
                        "SuccessfulDelete",
                        "Deleted job {}",
                    )
                });
                plan = plan.push(
                    Action::create(&*job)
                        .announce(cron, "SuccessfulCreate", "Created job {}")
                        .or_warn("FailedCreate", "Error creating job: {}"),
                );
                last = Some(at);
            }
        }
        let succeeded = seen.jobs.iter().filter_map(|j| j.status.as_ref()?.completion_time.clone());
        let succeeded = succeeded.chain(status.last_successful_time).map(|t| t.0).max();
        let time = |t: Option<Timestamp>| t.map_or(Value::Null, |t| json!(text(t)));
        let active = if active.is_empty() { Value::Null } else { json!(active) };
        plan.status(
            cron,
            json!({
                "active": active,
                "lastScheduleTime": time(last),
                "lastSuccessfulTime": time(succeeded),
            }),
        )
    }
}

fn text(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn name(job: &Job) -> &str {
    job.metadata.name.as_deref().unwrap_or_default()
}

/// The Jobs that run, and what is to be said of those that do no longer.
fn active(cron: &CronJob, jobs: &[Arc<Job>]) -> (Vec<ObjectReference>, Vec<Action>) {
    let known = cron.status.iter().flat_map(|s| s.active.iter().flatten());
    let (mut active, mut events) = (Vec::new(), Vec::new());
    for reference in known {
        let uid = reference.uid.as_deref();
        match jobs.iter().find(|job| job.metadata.uid.as_deref() == uid) {
            Some(job) if !is_finished(job) => active.push(reference.clone()),
            Some(job) => {
                let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
                let ends = |c: &str| matches!(c, "Complete" | "Failed");
                let end = conditions.filter(|c| c.status == "True").find(|c| ends(&c.type_));
                let end = end.map_or("", |c| c.type_.as_str());
                let text = format!("Saw completed job: {}, condition: {end}", name(job));
                events.push(Action::event(cron, "Normal", "SawCompletedJob", text));
            }
            None => {
                let name = reference.name.as_deref().unwrap_or_default();
                let text = format!("Active job went missing: {name}");
                events.push(Action::event(cron, "Normal", "MissingJob", text));
            }
        }
    }
    for job in jobs.iter().filter(|job| !is_finished(job)) {
        if !active.iter().any(|known| known.uid == job.metadata.uid) {
            active.push(reference(&**job));
        }
    }
    (active, events)
}

/// What is to be done now.
enum Turn {
    /// Nothing; again after so long.
    Nothing(Option<Duration>),
    /// Only to say why not.
    Say(&'static str, &'static str, String, Option<Duration>),
    /// The Job of that time is there already.
    Started(Timestamp),
    /// To make the Job of a time, in place of these; so many times have come since the last one.
    Start(Timestamp, Box<Job>, Vec<Arc<Job>>, usize),
}

fn turn(
    cron: &CronJob,
    spec: &CronJobSpec,
    jobs: &[Arc<Job>],
    last: Option<Timestamp>,
    now: Timestamp,
) -> Turn {
    if spec.suspend == Some(true) {
        return Turn::Nothing(None);
    }
    let schedule = match Schedule::read(spec) {
        Ok(schedule) => schedule,
        Err((reason, message)) => return Turn::Say("Warning", reason, message, None),
    };
    let next = schedule.next(now).map(|next| {
        Duration::try_from(next.duration_since(now)).unwrap_or_default()
            + Duration::from_millis(100)
    });
    let created = cron.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
    let deadline = spec.starting_deadline_seconds;
    let earliest = last.unwrap_or(created);
    let earliest = match deadline.and_then(|s| Timestamp::from_second(now.as_second() - s).ok()) {
        Some(limit) => earliest.max(limit),
        None => earliest,
    };
    let due = schedule.due(earliest, now);
    let Some(at) = due.last else { return Turn::Nothing(next) };
    let job = job_of(cron, spec, at, &schedule);
    if jobs.iter().any(|known| known.metadata.name == job.metadata.name) {
        return if last == Some(at) { Turn::Nothing(next) } else { Turn::Started(at) };
    }
    let running: Vec<Arc<Job>> = jobs.iter().filter(|job| !is_finished(job)).cloned().collect();
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !running.is_empty() => {
            let text = "Not starting job because prior execution is running and concurrency policy is Forbid";
            Turn::Say("Normal", "JobAlreadyActive", text.to_owned(), next)
        }
        Some("Replace") => Turn::Start(at, Box::new(job), running, due.count),
        _ => Turn::Start(at, Box::new(job), Vec::new(), due.count),
    }
}

/// The Job of a time; its name says which, so that it is made once.
fn job_of(cron: &CronJob, spec: &CronJobSpec, at: Timestamp, schedule: &Schedule) -> Job {
    let template = spec.job_template.clone();
    let mut metadata = template.metadata.unwrap_or_default();
    let cron_name = cron.metadata.name.as_deref().unwrap_or_default();
    metadata.name = Some(format!("{cron_name}-{}", at.as_second() / 60));
    metadata.namespace.clone_from(&cron.metadata.namespace);
    metadata.owner_references = Some(vec![controlled_by(cron)]);
    let local = at.to_zoned(schedule.zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
    let local = local.strip_suffix("+00:00").map_or(local.clone(), |utc| format!("{utc}Z"));
    metadata.annotations.get_or_insert_default().insert(SCHEDULED.to_owned(), local);
    Job { metadata, spec: template.spec, status: None }
}

/// Deletes the oldest finished Jobs beyond the limits.
fn history(plan: Plan, cron: &CronJob, spec: &CronJobSpec, jobs: &[Arc<Job>]) -> Plan {
    let mut plan = plan;
    let limits = [
        ("Complete", spec.successful_jobs_history_limit.unwrap_or(3)),
        ("Failed", spec.failed_jobs_history_limit.unwrap_or(1)),
    ];
    for (end, limit) in limits {
        let ended = |job: &&Arc<Job>| {
            let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
            conditions.into_iter().any(|c| c.type_ == end && c.status == "True")
                && job.metadata.deletion_timestamp.is_none()
        };
        let mut old: Vec<&Arc<Job>> = jobs.iter().filter(ended).collect();
        old.sort_by_key(|job| {
            let started = job.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
            (started, job.metadata.name.clone())
        });
        let extra = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        plan = plan.each(old.into_iter().take(extra), |job| {
            let how = Delete { propagation: "Background", ..Delete::default() };
            Action::delete_with(&**job, how).announce(cron, "SuccessfulDelete", "Deleted job {}")
        });
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::act::Op;

    struct Cluster {
        cron: CronJob,
        jobs: Vec<Arc<Job>>,
        now: Timestamp,
    }

    fn cluster(more: Value) -> Cluster {
        let mut cron = json!({
            "metadata": {"name": "c", "namespace": "ns", "uid": "c", "creationTimestamp": "2026-01-01T00:00:30Z"},
            "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": {"spec": {"containers": []}}}}}
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            cron["spec"][key] = value.clone();
        }
        let now = "2026-01-01T00:00:30Z".parse().unwrap();
        Cluster { cron: serde_json::from_value(cron).unwrap(), jobs: Vec::new(), now }
    }

    impl Cluster {
        fn plan(&self) -> Plan {
            let seen = Seen { cron: Arc::new(self.cron.clone()), jobs: self.jobs.clone() };
            CronJobs::reconcile(&seen, self.now)
        }

        /// Some seconds later; what was done, and how many Jobs there are.
        fn later(&mut self, seconds: i64) -> (Vec<String>, usize) {
            self.now = Timestamp::from_second(self.now.as_second() + seconds).unwrap();
            let plan = self.plan();
            let deeds = plan.actions.iter().map(ToString::to_string).collect();
            for action in plan.actions {
                match action.op {
                    Op::Create { body, .. } => {
                        let mut job: Job = serde_json::from_value(body).unwrap();
                        job.metadata.uid.clone_from(&job.metadata.name);
                        self.jobs.push(Arc::new(job));
                    }
                    Op::Delete { key, .. } => {
                        self.jobs.retain(|j| j.metadata.name.as_deref() != Some(&key.name));
                    }
                    Op::Status { patch, .. } => {
                        self.cron.status = serde_json::from_value(patch["status"].clone()).unwrap();
                    }
                    _ => {}
                }
            }
            (deeds, self.jobs.len())
        }

        fn finish(&mut self) {
            for job in &mut self.jobs {
                Arc::make_mut(job).status = serde_json::from_value(json!({
                    "completionTime": "2026-01-01T00:01:05Z",
                    "conditions": [{"type": "Complete", "status": "True"}]
                }))
                .unwrap();
            }
        }
    }

    const NAME: &str = "c-29453761";

    #[test]
    fn each_time_has_one_job_however_often_it_is_looked() {
        let mut cluster = cluster(json!({}));
        assert_eq!(cluster.later(10), (vec![], 0));
        assert_eq!(cluster.plan().requeue_after, Some(Duration::from_millis(20_100)));
        let create = format!("create jobs.batch ns/{NAME}");
        assert_eq!(cluster.later(20).0, [create.as_str(), "status cronjobs.batch ns/c"]);
        let annotations = cluster.jobs[0].metadata.annotations.as_ref().unwrap();
        assert_eq!(annotations[SCHEDULED], "2026-01-01T00:01:00Z");
        // Its reference comes once it is seen; after that nothing is left to do.
        assert_eq!(cluster.later(1).0, ["status cronjobs.batch ns/c"]);
        assert_eq!(cluster.later(1).0, Vec::<String>::new());
        // Should the status have been lost, the job is known by its name.
        cluster.cron.status = None;
        assert_eq!(cluster.later(1), (vec!["status cronjobs.batch ns/c".to_owned()], 1));
        cluster.finish();
        assert_eq!(cluster.later(1).0, ["event c SawCompletedJob", "status cronjobs.batch ns/c"]);
        assert!(cluster.cron.status.as_ref().unwrap().last_successful_time.is_some());
    }

    #[test]
    fn the_concurrency_policy_decides() {
        for (policy, jobs) in [("Allow", 2), ("Forbid", 1), ("Replace", 1)] {
            let mut cluster = cluster(json!({"concurrencyPolicy": policy}));
            cluster.later(30);
            assert_eq!(cluster.later(60).1, jobs, "{policy}");
            let newest = cluster.jobs.last().unwrap().metadata.name.as_deref() != Some(NAME);
            assert_eq!(newest, policy != "Forbid", "{policy}");
        }
    }

    #[test]
    fn what_is_too_late_is_not_started() {
        let mut cluster = cluster(json!({"startingDeadlineSeconds": 10}));
        assert_eq!(cluster.later(45).1, 0);
        assert_eq!(cluster.later(50).1, 1);
    }

    #[test]
    fn a_suspended_one_waits() {
        let mut cluster = cluster(json!({"suspend": true}));
        assert_eq!(cluster.later(300).1, 0);
        assert_eq!(cluster.plan().requeue_after, None);
    }

    #[test]
    fn old_jobs_go() {
        let mut cluster = cluster(json!({"successfulJobsHistoryLimit": 2}));
        for _ in 0..6 {
            cluster.later(60);
            cluster.finish();
        }
        assert_eq!(cluster.later(1).1, 2);
    }
}
