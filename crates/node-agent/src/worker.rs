//! One task per pod: looks, asks `pod::sync` what to do, does it, reports.
//!
//! It is woken by changes of the pod, ends of containers and verdicts of probes, and by its own
//! waits. All it remembers is in `Local`; after a restart it starts from what the runtime has.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use client::act::reference;
use client::events::Recorder;
use client::transport::{Client, Delete};
use daemon::{Backoff, Context};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, ObjectReference, Pod, PodStatus};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::cgroup;
use crate::pod::probe::Verdicts;
use crate::pod::spec::NodeFacts;
use crate::pod::status::{change, status};
use crate::pod::sync::{Outcome, Step, Why, sync, sync_orphan, time_left};
use crate::pod::{
    Container, Local, Role, RuntimePod, State, containers, ephemeral_containers, resources, uid,
};
use crate::probes::Probes;
use crate::report::Reporter;
use crate::runtime::{Error, Runtime};
use crate::start::{Place, Starter};
use crate::volumes::Volumes;

const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MOST: Duration = Duration::from_secs(20);
const EXIT_POLL: Duration = Duration::from_millis(4);
const EXIT_WAIT: Duration = Duration::from_secs(2);
/// How often a pod is looked at though nothing has happened.
const RESYNC: Duration = Duration::from_secs(60);
/// How often volumes of a running pod take over changes.
pub(crate) const REFRESH: Duration = Duration::from_secs(10);
/// Rounds in a row that may have something to do; more is a fault of ours.
const ROUNDS_MAX: u32 = 200;

/// What all workers of a node share.
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) cache: client::Cache,
    pub(crate) runtime: Runtime,
    pub(crate) events: Recorder,
    pub(crate) ctx: Context,
    pub(crate) node: NodeFacts,
    pub(crate) volumes: Volumes,
    pub(crate) reporter: Reporter,
    /// Pod uid of each container, to know whose an exit is.
    pub(crate) owners: Mutex<HashMap<String, String>>,
}

/// How a worker is told of things.
#[derive(Default)]
pub(crate) struct Inbox {
    /// The pod as the API server has it; none when it has it no more.
    pub(crate) pod: Mutex<Option<Arc<Pod>>>,
    /// Containers that have ended.
    pub(crate) exits: Mutex<HashSet<String>>,
    /// Containers that were killed for want of memory.
    pub(crate) oom: Mutex<HashSet<String>>,
    /// What probes have found, by container id.
    pub(crate) verdicts: Mutex<HashMap<String, Verdicts>>,
    /// Stops that are over.
    stopped: Mutex<Vec<String>>,
    /// A status could not be written.
    pub(crate) unsaid: std::sync::atomic::AtomicBool,
    pub(crate) wake: Notify,
}

/// What follows a round.
enum Next {
    Again,
    Wait(Option<Duration>),
    Gone,
}

pub(crate) struct Worker {
    shared: Arc<Shared>,
    uid: String,
    inbox: Arc<Inbox>,
    local: Local,
    said: Option<PodStatus>,
    probes: Probes,
    messages: HashMap<String, String>,
    starter: Starter,
    finished: bool,
    /// When what it refers to was read last by us; an agent that adopts a pod has yet to.
    refreshed: Option<Duration>,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, uid: String, inbox: Arc<Inbox>) -> Self {
        let probes = Probes::new(shared.clone(), inbox.clone());
        let starter = Starter::new(shared.clone());
        let local = Local { start_time: Some(shared.ctx.clock.now()), ..Local::default() };
        let (said, messages, refreshed) = (None, HashMap::new(), None);
        Self {
            shared,
            uid,
            inbox,
            local,
            said,
            probes,
            messages,
            starter,
            finished: false,
            refreshed,
        }
    }

    /// Runs until nothing is left of the pod, or shutdown.
    pub(crate) async fn run(mut self) {
        let shutdown = self.shared.ctx.shutdown.clone();
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
        let mut rounds = 0;
        loop {
            let next = tokio::select! {
                () = shutdown.cancelled() => return,
                next = self.round() => next,
            };
            rounds += 1;
            let wait = match next {
                Ok(Next::Gone) => return,
                Ok(Next::Again) if rounds < ROUNDS_MAX => continue,
                Ok(Next::Again) => RETRY_MOST,
                Ok(Next::Wait(wait)) => {
                    backoff.reset();
                    wait.unwrap_or(RESYNC).min(RESYNC)
                }
                Err(error) => {
                    tracing::warn!(pod = self.uid, %error, "pod not synced yet");
                    backoff.delay()
                }
            };
            rounds = 0;
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.inbox.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn round(&mut self) -> Result<Next, Error> {
        let seen = self.observe().await?;
        let now = self.shared.ctx.clock.now();
        let pod = self.inbox.pod.lock().clone();
        let Some(pod) = pod else { return self.orphan(&seen).await };
        self.local.probes.clone_from(&self.inbox.verdicts.lock());
        let overdue = time_left(&pod, &self.local, now);
        if overdue.is_some_and(|left| !left.is_positive()) && self.local.evicted.is_none() {
            let text = "Pod was active on the node longer than the specified deadline";
            self.local.evicted = Some(("DeadlineExceeded".to_owned(), text.to_owned()));
            self.tell(&pod, None, "Normal", "DeadlineExceeded", text);
        }
        self.hold_pulls(&pod, now);
        let outcome = sync(&pod, &seen, &self.local, now);
        self.report(&pod, &seen, now);
        let running = pod.metadata.deletion_timestamp.is_none() && self.local.evicted.is_none();
        self.probes.follow(&pod, &seen, running);
        if outcome.steps.is_empty() || (self.finished && outcome.steps == [Step::Finish]) {
            if running && seen.running() {
                self.refresh(&pod, &seen).await;
            }
            return Ok(Next::Wait(self.wait(&outcome, &pod, now)));
        }
        if outcome.steps.iter().any(|step| matches!(step, Step::CreateSandbox { .. })) {
            // Its volumes are made from what is read then.
            self.refreshed = Some(self.shared.ctx.clock.monotonic());
        }
        self.take(&pod, &seen, outcome, now).await?;
        Ok(Next::Again)
    }

    /// How long nothing needs to be done.
    fn wait(&self, outcome: &Outcome, pod: &Pod, now: Timestamp) -> Option<Duration> {
        let deadline = time_left(pod, &self.local, now).filter(|left| left.is_positive());
        let waits = [outcome.look_again, deadline];
        let soonest = waits.into_iter().flatten().min().and_then(|w| Duration::try_from(w).ok());
        let refresh = crate::volumes::changes(pod).then_some(REFRESH);
        [soonest, refresh].into_iter().flatten().min()
    }

    /// What the runtime has, once it knows of the ends that events told of.
    async fn observe(&mut self) -> Result<RuntimePod, Error> {
        for id in self.inbox.stopped.lock().drain(..) {
            self.local.stopping.remove(&id);
        }
        let mut waited = Duration::ZERO;
        let mut seen = loop {
            let seen = self.shared.runtime.pod(&self.uid).await?;
            let mut exits = self.inbox.exits.lock().clone();
            exits.retain(|id| {
                seen.containers.iter().any(|c| c.id == *id && c.state == State::Running)
            });
            if exits.is_empty() || waited >= EXIT_WAIT {
                self.inbox.exits.lock().clear();
                break seen;
            }
            tokio::time::sleep(EXIT_POLL).await;
            waited += EXIT_POLL;
        };
        let ids = seen.containers.iter().map(|c| &c.id).chain(seen.sandboxes.iter().map(|s| &s.id));
        let mut owners = self.shared.owners.lock();
        for id in ids {
            if !owners.contains_key(id) {
                owners.insert(id.clone(), self.uid.clone());
            }
        }
        drop(owners);
        let oom = self.inbox.oom.lock().clone();
        for run in seen.containers.iter_mut().filter(|run| run.state == State::Exited) {
            if oom.contains(&run.id) && run.exit_code == 137 {
                run.reason = "OOMKilled".to_owned();
            }
            let message = self.messages.entry(run.id.clone());
            let message = message.or_insert_with(|| crate::termination::message(run));
            if !message.is_empty() {
                run.message.clone_from(message);
            }
        }
        self.messages.retain(|id, _| seen.containers.iter().any(|run| run.id == *id));
        Ok(seen)
    }

    async fn orphan(&mut self, seen: &RuntimePod) -> Result<Next, Error> {
        self.probes.end();
        let outcome = sync_orphan(seen, &self.local);
        if outcome.steps.is_empty() {
            return Ok(Next::Wait(None));
        }
        for step in outcome.steps {
            match step {
                Step::Stop { id, name, grace_s, .. } => {
                    let grace = Duration::from_secs(u64::try_from(grace_s).unwrap_or(0));
                    tracing::info!(pod = self.uid, name, "container of a forgotten pod stopped");
                    self.stop(id, grace, None);
                }
                Step::StopSandbox { id } => self.shared.runtime.stop_sandbox(&id).await?,
                Step::RemoveSandbox { id } => self.shared.runtime.remove_sandbox(&id).await?,
                Step::RemoveContainer { id } => self.shared.runtime.remove_container(&id).await?,
                Step::Forget => {
                    self.clean(seen);
                    return Ok(Next::Gone);
                }
                Step::CreateSandbox { .. } | Step::Start { .. } | Step::Finish => {}
            }
        }
        Ok(Next::Again)
    }

    /// Removes what the node has of a pod beside its containers.
    fn clean(&self, seen: &RuntimePod) {
        let shared = &self.shared;
        if let Err(error) = shared.volumes.remove(&self.uid) {
            tracing::warn!(pod = self.uid, %error, "volumes not removed");
        }
        let root = &shared.node.cgroup_root;
        for class in ["", "burstable/", "besteffort/"] {
            if let Err(error) = cgroup::remove(&format!("/{root}/{class}pod{}", self.uid)) {
                tracing::warn!(pod = self.uid, %error, "cgroup not removed");
            }
        }
        let logs = format!("{}/{}_{}_{}", shared.node.log_dir, seen.namespace, seen.name, self.uid);
        if !seen.name.is_empty()
            && let Err(error) = std::fs::remove_dir_all(&logs)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(pod = self.uid, %error, "logs not removed");
        }
        shared.owners.lock().retain(|_, owner| *owner != self.uid);
    }

    /// A pull that failed shows as ImagePullBackOff while it waits.
    fn hold_pulls(&mut self, pod: &Pod, now: Timestamp) {
        let mut told = Vec::new();
        for (name, waiting) in &mut self.local.waiting {
            let held = self.local.not_before.get(name).is_some_and(|at| *at > now);
            if held && waiting.reason == "ErrImagePull" {
                let image = pod.spec.iter().flat_map(containers).find(|(_, c)| c.name == *name);
                let image = image.and_then(|(_, c)| c.image.clone()).unwrap_or_default();
                waiting.reason = "ImagePullBackOff".to_owned();
                let text = format!("Back-off pulling image {image:?}");
                waiting.message = format!("{text}: ErrImagePull: {}", waiting.message);
                told.push((name.clone(), text));
            }
        }
        for (name, text) in told {
            self.tell(pod, Some(&name), "Normal", "BackOff", text);
        }
    }

    fn report(&mut self, pod: &Pod, seen: &RuntimePod, now: Timestamp) {
        if self.inbox.unsaid.swap(false, std::sync::atomic::Ordering::SeqCst) {
            self.said = None;
        }
        let wanted = status(pod, seen, &self.local, &self.shared.node, now);
        if let Some(patch) = change(self.said.as_ref().or(pod.status.as_ref()), &wanted) {
            self.shared.reporter.put(pod, patch, self.inbox.clone());
            self.said = Some(wanted);
        }
    }

    async fn take(
        &mut self,
        pod: &Arc<Pod>,
        seen: &RuntimePod,
        outcome: Outcome,
        now: Timestamp,
    ) -> Result<(), Error> {
        for step in outcome.steps {
            tracing::debug!(pod = self.uid, ?step, "step");
            match step {
                Step::CreateSandbox { attempt } => self.sandbox(pod, attempt).await?,
                Step::StopSandbox { id } => self.shared.runtime.stop_sandbox(&id).await?,
                Step::RemoveSandbox { id } => self.shared.runtime.remove_sandbox(&id).await?,
                Step::RemoveContainer { id } => self.shared.runtime.remove_container(&id).await?,
                Step::Start { name, attempt, crashed, sandbox } => {
                    if let Some(crashed) = crashed {
                        let backoff = self.local.backoff.entry(name.clone()).or_default();
                        backoff.restarted(crashed, now);
                    }
                    self.start(pod, seen, &name, attempt, &sandbox).await;
                }
                Step::Stop { id, name, grace_s, why } => {
                    self.stop_one(pod, seen, id, &name, grace_s, why);
                }
                Step::Finish => self.finish(pod).await?,
                Step::Forget => {}
            }
        }
        Ok(())
    }

    async fn sandbox(&mut self, pod: &Arc<Pod>, attempt: u32) -> Result<(), Error> {
        let shared = self.shared.clone();
        let spec = pod.spec.clone().unwrap_or_default();
        let path = resources::cgroup(&shared.node.cgroup_root, &spec, uid(pod));
        let limits = resources::pod_limits(&spec);
        let positive = |value: i64| (value > 0).then_some(value);
        let limits = cgroup::Limits {
            cpu_shares: positive(limits.cpu_shares),
            cpu_milli: positive(limits.cpu_quota_us * 1000 / limits.cpu_period_us.max(1)),
            memory_bytes: positive(limits.memory_bytes),
        };
        if let Err(error) = cgroup::make(&path, &limits) {
            tracing::warn!(pod = self.uid, %error, path, "cgroup not made");
        }
        match self.starter.sandbox(pod, attempt).await {
            Ok(_) => {
                self.local.sandbox_error = None;
                Ok(())
            }
            Err((reason, message)) => {
                self.local.sandbox_error = Some(message.clone());
                self.tell(pod, None, "Warning", reason, message.clone());
                Err(Error { not_found: false, message })
            }
        }
    }

    async fn start(
        &mut self,
        pod: &Arc<Pod>,
        seen: &RuntimePod,
        name: &str,
        attempt: u32,
        sandbox: &str,
    ) {
        let Some((role, container)) = find(pod, name) else { return };
        let ips = seen.sandboxes.first().map(|s| s.ips.clone()).unwrap_or_default();
        let place = Place { sandbox, target_id: target(pod, name, seen), ips };
        match self.starter.container(pod, role, &container, attempt, place).await {
            Ok(()) => {
                self.local.waiting.remove(name);
                self.local.not_before.remove(name);
            }
            Err(failure) => {
                let again = self.shared.ctx.clock.now().checked_add(failure.wait);
                if let Ok(again) = again {
                    self.local.not_before.insert(name.to_owned(), again);
                }
                let text = format!("Error: {}", failure.waiting.message);
                self.tell(pod, Some(name), "Warning", "Failed", text);
                self.local.waiting.insert(name.to_owned(), failure.waiting);
            }
        }
    }

    fn stop_one(
        &mut self,
        pod: &Arc<Pod>,
        seen: &RuntimePod,
        id: String,
        name: &str,
        grace_s: i64,
        why: Why,
    ) {
        let text = match why {
            Why::Ending => format!("Stopping container {name}"),
            Why::Liveness => format!("Container {name} failed liveness probe, will be restarted"),
            Why::Startup => format!("Container {name} failed startup probe, will be restarted"),
            Why::Changed => format!("Container {name} definition changed, will be restarted"),
            Why::Sandbox => "Stopping container ".to_owned() + name,
        };
        self.tell(pod, Some(name), "Normal", "Killing", text);
        let run: Option<Container> = seen.containers.iter().find(|c| c.id == id).cloned();
        let ip = seen.sandboxes.first().and_then(|s| s.ips.first().cloned());
        let hook = find(pod, name)
            .filter(|(_, c)| c.lifecycle.as_ref().is_some_and(|l| l.pre_stop.is_some()))
            .zip(run)
            .map(|((_, container), run)| {
                let ip = ip.unwrap_or_else(|| "127.0.0.1".to_owned());
                (container, run.id, ip, self.reference(pod, Some(name)))
            });
        self.stop(id, Duration::from_secs(u64::try_from(grace_s).unwrap_or(0)), hook);
    }

    /// Ends a container beside us: its hook, then its process, all within `grace`.
    fn stop(&mut self, id: String, grace: Duration, hook: Option<Hook>) {
        let shared = self.shared.clone();
        self.local.stopping.insert(id.clone(), shared.ctx.clock.now());
        let inbox = self.inbox.clone();
        let tasks = shared.ctx.tasks.clone();
        tasks.job(async move {
            let begun = shared.ctx.clock.monotonic();
            if let Some((container, run, ip, about)) = hook {
                pre_stop(&shared, &container, &run, &ip, grace, about).await;
            }
            let left = grace.saturating_sub(shared.ctx.clock.monotonic().saturating_sub(begun));
            // Whatever time the hook took, the process gets a moment of its own.
            let left = if grace.is_zero() { left } else { left.max(Duration::from_secs(2)) };
            let shutdown = shared.ctx.shutdown.clone();
            let stopped = tokio::select! {
                () = shutdown.cancelled() => return,
                stopped = shared.runtime.stop_container(&id, left) => stopped,
            };
            if let Err(error) = stopped {
                tracing::warn!(container = id, %error, "container not stopped");
            }
            inbox.stopped.lock().push(id);
            inbox.wake.notify_one();
        });
    }

    /// Tells the API server that nothing of a deleted pod runs any more.
    async fn finish(&mut self, pod: &Pod) -> Result<(), Error> {
        if let Err(error) = self.shared.volumes.remove(&self.uid) {
            tracing::warn!(pod = self.uid, %error, "volumes not removed");
        }
        self.shared.reporter.flushed(&self.uid).await;
        let how = Delete { uid: self.uid.clone(), grace_period_s: Some(0), ..Delete::default() };
        let (namespace, name) = (crate::pod::namespace(pod), crate::pod::name(pod));
        match self.shared.client.delete::<Pod>(namespace, name, how).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => {
                Err(Error { not_found: false, message: error.to_string() })
            }
            _ => {
                self.finished = true;
                Ok(())
            }
        }
    }

    async fn refresh(&mut self, pod: &Arc<Pod>, seen: &RuntimePod) {
        let now = self.shared.ctx.clock.monotonic();
        let fresh = self.refreshed.is_some_and(|at| now.saturating_sub(at) < REFRESH);
        if fresh || !crate::volumes::changes(pod) {
            return;
        }
        self.refreshed = Some(now);
        let ips = seen.sandboxes.first().map(|s| s.ips.clone()).unwrap_or_default();
        if let Err(error) = self.starter.volumes(pod, ips).await {
            tracing::warn!(pod = self.uid, error, "volumes not refreshed");
        }
    }

    fn reference(&self, pod: &Pod, container: Option<&str>) -> ObjectReference {
        about(pod, container)
    }

    fn tell(
        &self,
        pod: &Pod,
        container: Option<&str>,
        severity: &'static str,
        reason: &str,
        text: impl Into<String>,
    ) {
        self.shared.events.record(about(pod, container), severity, reason, text);
    }
}

type Hook = (ContainerSpec, String, String, ObjectReference);

async fn pre_stop(
    shared: &Shared,
    container: &ContainerSpec,
    id: &str,
    ip: &str,
    grace: Duration,
    about: ObjectReference,
) {
    let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()) else { return };
    let hook = crate::probing::hook(&shared.runtime, id, hook, container, ip);
    let text = match tokio::time::timeout(grace, hook).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => format!("PreStopHook failed: {error}"),
        Err(_) => "PreStopHook did not end in time".to_owned(),
    };
    shared.events.record(about, "Warning", "FailedPreStopHook", text);
}

/// The running container that one which was added is to look at, if it names one.
fn target(pod: &Pod, name: &str, seen: &RuntimePod) -> Option<String> {
    let mut added = pod.spec.as_ref()?.ephemeral_containers.iter().flatten();
    let target = added.find(|c| c.name == name)?.target_container_name.as_deref()?;
    seen.latest(target).filter(|run| run.state == State::Running).map(|run| run.id.clone())
}

/// A container of a pod by name.
pub(crate) fn find(pod: &Pod, name: &str) -> Option<(Role, ContainerSpec)> {
    let spec = pod.spec.as_ref()?;
    let own = containers(spec).find(|(_, c)| c.name == name).map(|(role, c)| (role, c.clone()));
    let added = || ephemeral_containers(spec).into_iter().find(|c| c.name == name);
    own.or_else(|| Some((Role::Ephemeral, added()?)))
}

/// A reference to a pod, or to one of its containers.
pub(crate) fn about(pod: &Pod, container: Option<&str>) -> ObjectReference {
    let mut about = reference(pod);
    if let Some(name) = container {
        let role = find(pod, name).map(|(role, _)| role);
        let list = match role {
            Some(Role::App) => "containers",
            Some(Role::Ephemeral) => "ephemeralContainers",
            _ => "initContainers",
        };
        about.field_path = Some(format!("spec.{list}{{{name}}}"));
    }
    about
}
