//! What to do next for a pod. Pure: it is asked again after every step, with what the runtime has
//! then, so that it need only ever name the next steps.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod, PodSpec};

use super::spec::{fingerprint, grace_s};
use super::status::restarts;
use super::{
    Container, Local, Role, RuntimePod, Sandbox, State, containers, ephemeral_containers,
    host_network,
};

/// Grace that what must end always gets, unless none at all is wanted.
const GRACE_LEAST_S: i64 = 1;
/// Runs of a container that are kept: the latest, and one to look at its log.
const RUNS_KEPT: usize = 2;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make a sandbox.
    CreateSandbox {
        /// How many there were before.
        attempt: u32,
    },
    /// End a sandbox.
    StopSandbox {
        /// Its id.
        id: String,
    },
    /// Remove a sandbox that has ended.
    RemoveSandbox {
        /// Its id.
        id: String,
    },
    /// Start a container.
    Start {
        /// Its name.
        name: String,
        /// How many runs there were before.
        attempt: u32,
        /// When the run before ended, for the back-off.
        crashed: Option<Timestamp>,
        /// The sandbox it goes to.
        sandbox: String,
    },
    /// End a container. This takes time; the pod is looked at again when it has ended.
    Stop {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
        /// Grace in seconds.
        grace_s: i64,
        /// Why.
        why: Why,
    },
    /// Forget a run that is of no more use.
    RemoveContainer {
        /// Its id.
        id: String,
    },
    /// Nothing of a deleted pod runs any more: tell the API server.
    Finish,
    /// Nothing of a pod that nobody knows is left: forget it.
    Forget,
}

/// Why a container is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The pod ends.
    Ending,
    /// Its liveness probe failed.
    Liveness,
    /// Its startup probe failed.
    Startup,
    /// Its spec changed.
    Changed,
    /// Its sandbox is gone.
    Sandbox,
}

/// What to do, and when to look again though nothing has happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// How long until a wait ends.
    pub look_again: Option<SignedDuration>,
}

impl Outcome {
    fn soonest(&mut self, wait: SignedDuration) {
        self.look_again = Some(self.look_again.map_or(wait, |known| known.min(wait)));
    }
}

/// What to do next for a pod that the API server knows.
#[must_use]
pub fn sync(pod: &Pod, seen: &RuntimePod, local: &Local, now: Timestamp) -> Outcome {
    let Some(spec) = &pod.spec else { return Outcome::default() };
    let mut outcome = Outcome::default();
    let deleted = pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    if let Some(deadline) = deleted {
        let none = pod.metadata.deletion_grace_period_seconds == Some(0);
        let least = if none { 0 } else { GRACE_LEAST_S };
        let grace = deadline.duration_since(now).as_secs().max(least);
        if wind_down(spec, seen, local, grace, &mut outcome) {
            outcome.steps.push(Step::Finish);
        }
        return outcome;
    }
    if local.evicted.is_some() || ended(pod) || finished(spec, seen) {
        wind_down(spec, seen, local, grace_s(spec), &mut outcome);
        return outcome;
    }
    match seen.sandboxes.first().filter(|s| usable(pod, s)) {
        Some(sandbox) => {
            Progress { spec, seen, local, now, sandbox, outcome: &mut outcome }.containers();
            tidy(seen, &mut outcome);
        }
        None => new_sandbox(spec, seen, local, &mut outcome),
    }
    outcome
}

/// What to do next for a pod that only the runtime knows.
#[must_use]
pub fn sync_orphan(seen: &RuntimePod, local: &Local) -> Outcome {
    let mut outcome = Outcome::default();
    for container in seen.containers.iter().filter(|c| c.state != State::Exited) {
        if container.state == State::Created {
            outcome.steps.push(Step::RemoveContainer { id: container.id.clone() });
        } else {
            stop(container, container.grace_s.unwrap_or(30), Why::Ending, local, &mut outcome);
        }
    }
    if seen.running() {
        return outcome;
    }
    for sandbox in &seen.sandboxes {
        outcome.steps.push(Step::StopSandbox { id: sandbox.id.clone() });
        outcome.steps.push(Step::RemoveSandbox { id: sandbox.id.clone() });
    }
    outcome.steps.push(Step::Forget);
    outcome
}

/// How long a pod may still be active; negative when it is overdue.
#[must_use]
pub fn time_left(pod: &Pod, local: &Local, now: Timestamp) -> Option<SignedDuration> {
    let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
    let stored = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|time| time.0);
    let since = stored.or(local.start_time)?;
    Some(SignedDuration::from_secs(seconds) - now.duration_since(since))
}

/// Whether the pod has reached its end, by what was reported.
fn ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether all of a pod's work is done, well or not.
#[must_use]
pub fn finished(spec: &PodSpec, seen: &RuntimePod) -> bool {
    let over = |role, name: &str| {
        let run = seen.latest(name).filter(|run| run.state == State::Exited);
        run.is_some_and(|run| !restarts(spec, role, run.exit_code))
    };
    let failed_init = containers(spec).any(|(role, c)| {
        let failed = seen.latest(&c.name).is_some_and(|run| run.exit_code != 0);
        role == Role::Init && failed && over(role, &c.name)
    });
    failed_init || spec.containers.iter().all(|c| over(Role::App, &c.name))
}

fn usable(pod: &Pod, sandbox: &Sandbox) -> bool {
    sandbox.ready && (host_network(pod) || !sandbox.ips.is_empty())
}

fn stop(run: &Container, grace_s: i64, why: Why, local: &Local, outcome: &mut Outcome) {
    if !local.stopping.contains_key(&run.id) {
        let (id, name) = (run.id.clone(), run.name.clone());
        outcome.steps.push(Step::Stop { id, name, grace_s, why });
    }
}

/// Ends what runs: app and init containers first, then sidecars from the last to the first, then
/// the sandbox. True when nothing is left to end.
fn wind_down(
    spec: &PodSpec,
    seen: &RuntimePod,
    local: &Local,
    grace_s: i64,
    outcome: &mut Outcome,
) -> bool {
    let alive = |run: &&Container| matches!(run.state, State::Running | State::Unknown);
    let sidecars: Vec<&str> = containers(spec)
        .filter(|(role, _)| *role == Role::Sidecar)
        .map(|(_, container)| container.name.as_str())
        .collect();
    let rank = |name: &str| sidecars.iter().position(|sidecar| *sidecar == name);
    let running: Vec<&Container> = seen.containers.iter().filter(alive).collect();
    let (side, main): (Vec<&Container>, Vec<&Container>) =
        running.into_iter().partition(|run| rank(&run.name).is_some());
    if !main.is_empty() {
        main.iter().for_each(|run| stop(run, grace_s, Why::Ending, local, outcome));
        return false;
    }
    if let Some(last) = side.iter().max_by_key(|run| rank(&run.name)) {
        stop(last, grace_s, Why::Ending, local, outcome);
        return false;
    }
    for sandbox in seen.sandboxes.iter().filter(|s| s.ready) {
        outcome.steps.push(Step::StopSandbox { id: sandbox.id.clone() });
    }
    outcome.steps.is_empty()
}

fn new_sandbox(spec: &PodSpec, seen: &RuntimePod, local: &Local, outcome: &mut Outcome) {
    let running = seen.containers.iter().filter(|run| run.state == State::Running);
    for run in running {
        stop(run, grace_s(spec), Why::Sandbox, local, outcome);
    }
    if seen.running() {
        return;
    }
    for sandbox in &seen.sandboxes {
        if sandbox.ready {
            outcome.steps.push(Step::StopSandbox { id: sandbox.id.clone() });
        }
    }
    let attempt = seen.sandboxes.first().map_or(0, |last| last.attempt.saturating_add(1));
    outcome.steps.push(Step::CreateSandbox { attempt });
}

/// Forgets runs and sandboxes that are of no more use.
fn tidy(seen: &RuntimePod, outcome: &mut Outcome) {
    for (i, run) in seen.containers.iter().enumerate() {
        let newer = seen.containers[..i].iter().filter(|other| other.name == run.name).count();
        if newer >= RUNS_KEPT && run.state != State::Running {
            outcome.steps.push(Step::RemoveContainer { id: run.id.clone() });
        }
    }
    for sandbox in seen.sandboxes.iter().skip(1).filter(|s| !s.ready) {
        if !seen.containers.iter().any(|run| run.sandbox_id == sandbox.id) {
            outcome.steps.push(Step::RemoveSandbox { id: sandbox.id.clone() });
        }
    }
}

struct Progress<'a> {
    spec: &'a PodSpec,
    seen: &'a RuntimePod,
    local: &'a Local,
    now: Timestamp,
    sandbox: &'a Sandbox,
    outcome: &'a mut Outcome,
}

impl Progress<'_> {
    fn containers(mut self) {
        for container in ephemeral_containers(self.spec) {
            // What it left behind when it ended is there to be looked at.
            if self.seen.latest(&container.name).is_none() {
                self.start(Role::Ephemeral, &container, None);
            }
        }
        let apps_begun = self.spec.containers.iter().any(|c| self.here(&c.name).is_some());
        for (role, container) in containers(self.spec) {
            let go_on = match role {
                Role::Init => apps_begun || self.init(container),
                Role::Sidecar => self.keep(role, container) || apps_begun,
                Role::App | Role::Ephemeral => {
                    self.keep(role, container);
                    true
                }
            };
            if !go_on {
                return;
            }
        }
    }

    /// The latest run in the present sandbox.
    fn here(&self, name: &str) -> Option<&Container> {
        self.seen.latest(name).filter(|run| run.sandbox_id == self.sandbox.id)
    }

    /// Brings an init container on; true when it has done its work.
    fn init(&mut self, container: &ContainerSpec) -> bool {
        let run = self.here(&container.name).cloned();
        match run {
            Some(run) if run.state == State::Running => false,
            Some(run) if run.state == State::Exited && run.exit_code == 0 => true,
            run => {
                self.start(Role::Init, container, run.as_ref());
                false
            }
        }
    }

    /// Keeps a container running; true when it runs and has started.
    fn keep(&mut self, role: Role, container: &ContainerSpec) -> bool {
        let run = self.here(&container.name).cloned();
        let Some(run) = run.filter(|run| run.state == State::Running) else {
            let run = self.here(&container.name).cloned();
            self.start(role, container, run.as_ref());
            return false;
        };
        let verdicts = self.local.probes.get(&run.id).cloned().unwrap_or_default();
        let why = if run.fingerprint != fingerprint(container) {
            Some(Why::Changed)
        } else if verdicts.started == Some(false) {
            Some(Why::Startup)
        } else if verdicts.alive == Some(false) {
            Some(Why::Liveness)
        } else {
            None
        };
        if let Some(why) = why {
            let probe = match why {
                Why::Startup => container.startup_probe.as_ref(),
                _ => container.liveness_probe.as_ref(),
            };
            let own = probe.and_then(|p| p.termination_grace_period_seconds);
            let grace = if why == Why::Changed { None } else { own };
            let grace = grace.unwrap_or_else(|| grace_s(self.spec));
            stop(&run, grace, why, self.local, self.outcome);
            return false;
        }
        container.startup_probe.is_none() || verdicts.started == Some(true)
    }

    /// Starts a container, unless it must not be or must wait.
    fn start(&mut self, role: Role, container: &ContainerSpec, run: Option<&Container>) {
        if let Some(run) = run.filter(|run| run.state == State::Exited)
            && !restarts(self.spec, role, run.exit_code)
        {
            return;
        }
        let held = self.local.not_before.get(&container.name);
        if let Some(wait) = held.map(|at| at.duration_since(self.now)).filter(|w| w.is_positive()) {
            return self.outcome.soonest(wait);
        }
        let crashed = run.and_then(|run| run.finished_at);
        let backoff = self.local.backoff.get(&container.name);
        if let Some(wait) = backoff.zip(crashed).and_then(|(b, at)| b.left(at, self.now)) {
            return self.outcome.soonest(wait);
        }
        let latest = self.seen.latest(&container.name);
        self.outcome.steps.push(Step::Start {
            name: container.name.clone(),
            attempt: latest.map_or(0, |run| run.attempt.saturating_add(1)),
            crashed,
            sandbox: self.sandbox.id.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Probe;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

    use super::super::probe::Verdicts;
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn spec(name: &str) -> ContainerSpec {
        ContainerSpec { name: name.into(), image: Some("x".into()), ..Default::default() }
    }

    fn pod(init: &[&str], apps: &[&str], policy: &str) -> Pod {
        let init = init.iter().map(|name| {
            let policy = name.starts_with("side").then(|| "Always".to_owned());
            ContainerSpec { restart_policy: policy, ..spec(name) }
        });
        Pod {
            metadata: ObjectMeta { name: Some("p".into()), ..Default::default() },
            spec: Some(PodSpec {
                init_containers: Some(init.collect()),
                containers: apps.iter().map(|name| spec(name)).collect(),
                restart_policy: Some(policy.into()),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn run(name: &str, state: State, exit_code: i32, attempt: u32) -> Container {
        Container {
            id: format!("{name}-{attempt}"),
            name: name.into(),
            sandbox_id: "s".into(),
            attempt,
            state,
            created_at: at(0),
            started_at: Some(at(0)),
            finished_at: (state == State::Exited).then(|| at(10)),
            exit_code,
            reason: String::new(),
            message: String::new(),
            image: String::new(),
            image_id: String::new(),
            fingerprint: fingerprint(&spec(name)),
            grace_s: Some(30),
            log_path: String::new(),
            termination_file: String::new(),
            termination_policy: String::new(),
        }
    }

    fn seen(runs: Vec<Container>) -> RuntimePod {
        let sandbox = Sandbox {
            id: "s".into(),
            attempt: 0,
            ready: true,
            created_at: at(0),
            ips: vec!["10.0.0.2".into()],
        };
        RuntimePod { sandboxes: vec![sandbox], containers: runs, ..Default::default() }
    }

    /// The steps in a line of text.
    fn steps(pod: &Pod, seen: &RuntimePod, local: &Local) -> String {
        let steps = sync(pod, seen, local, at(20)).steps;
        let text = steps.iter().map(|step| match step {
            Step::CreateSandbox { attempt } => format!("sandbox {attempt}"),
            Step::StopSandbox { id } => format!("stop-sandbox {id}"),
            Step::RemoveSandbox { id } => format!("remove-sandbox {id}"),
            Step::Start { name, attempt, .. } => format!("start {name} {attempt}"),
            Step::Stop { id, grace_s, why, .. } => format!("stop {id} {grace_s}s {why:?}"),
            Step::RemoveContainer { id } => format!("remove {id}"),
            Step::Finish => "finish".to_owned(),
            Step::Forget => "forget".to_owned(),
        });
        text.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn a_container_that_was_added_runs_once() {
        use k8s_openapi::api::core::v1::EphemeralContainer;
        let mut pod = pod(&["a"], &["x"], "Always");
        let added = EphemeralContainer {
            name: "look".into(),
            target_container_name: Some("x".into()),
            ..Default::default()
        };
        pod.spec.as_mut().unwrap().ephemeral_containers = Some(vec![added]);
        let local = Local::default();
        // It waits for nobody, and nobody for it.
        assert_eq!(steps(&pod, &seen(Vec::new()), &local), "start look 0, start a 0");
        for (state, code) in [(State::Running, 0), (State::Exited, 0), (State::Exited, 1)] {
            let runs = vec![run("look", state, code, 0), run("x", State::Running, 0, 0)];
            assert_eq!(steps(&pod, &seen(runs), &local), "");
        }
    }

    #[test]
    fn a_pod_comes_up_in_order() {
        use State::{Exited, Running};
        let pod = pod(&["a", "side", "b"], &["x", "y"], "Always");
        let local = Local::default();
        assert_eq!(steps(&pod, &RuntimePod::default(), &local), "sandbox 0");
        let mut runs = Vec::new();
        assert_eq!(steps(&pod, &seen(runs.clone()), &local), "start a 0");
        runs.push(run("a", Running, 0, 0));
        assert_eq!(steps(&pod, &seen(runs.clone()), &local), "");
        runs[0] = run("a", Exited, 0, 0);
        assert_eq!(steps(&pod, &seen(runs.clone()), &local), "start side 0");
        runs.push(run("side", Running, 0, 0));
        assert_eq!(steps(&pod, &seen(runs.clone()), &local), "start b 0");
        runs.push(run("b", Exited, 0, 0));
        assert_eq!(steps(&pod, &seen(runs.clone()), &local), "start x 0, start y 0");
        runs.extend([run("x", Running, 0, 0), run("y", Running, 0, 0)]);
        assert_eq!(steps(&pod, &seen(runs.clone()), &local), "");
        runs[1] = run("side", Exited, 1, 0);
        assert_eq!(steps(&pod, &seen(runs), &local), "start side 1");
    }

    #[test]
    fn what_ends_is_restarted_by_policy() {
        let exited = |code| seen(vec![run("x", State::Exited, code, 3)]);
        let local = Local::default();
        assert_eq!(steps(&pod(&[], &["x"], "Always"), &exited(0), &local), "start x 4");
        assert_eq!(steps(&pod(&[], &["x"], "OnFailure"), &exited(1), &local), "start x 4");
        let over = "stop-sandbox s";
        assert_eq!(steps(&pod(&[], &["x"], "OnFailure"), &exited(0), &local), over);
        assert_eq!(steps(&pod(&[], &["x"], "Never"), &exited(1), &local), over);
    }

    #[test]
    fn a_crashing_container_waits() {
        let pod = pod(&[], &["x"], "Always");
        let mut local = Local::default();
        local.backoff.entry("x".into()).or_default().restarted(at(5), at(5));
        let runs = seen(vec![run("x", State::Exited, 1, 1)]);
        let outcome = sync(&pod, &runs, &local, at(12));
        assert!(outcome.steps.is_empty());
        assert_eq!(outcome.look_again, Some(SignedDuration::from_secs(8)));
        assert_eq!(steps(&pod, &runs, &local), "start x 2");
    }

    #[test]
    fn a_deleted_pod_winds_down_sidecars_last() {
        let mut pod = pod(&["side1", "side2"], &["x"], "Always");
        pod.metadata.deletion_timestamp = Some(Time(at(50)));
        let mut local = Local::default();
        let running = |name| run(name, State::Running, 0, 0);
        let mut runs = vec![running("x"), running("side1"), running("side2")];
        assert_eq!(steps(&pod, &seen(runs.clone()), &local), "stop x-0 30s Ending");
        local.stopping.insert("x-0".into(), at(20));
        assert_eq!(steps(&pod, &seen(runs.clone()), &local), "");
        runs[0] = run("x", State::Exited, 0, 0);
        assert_eq!(steps(&pod, &seen(runs.clone()), &local), "stop side2-0 30s Ending");
        runs[2] = run("side2", State::Exited, 0, 0);
        assert_eq!(steps(&pod, &seen(runs.clone()), &local), "stop side1-0 30s Ending");
        runs[1] = run("side1", State::Exited, 0, 0);
        let mut all = seen(runs);
        assert_eq!(steps(&pod, &all, &local), "stop-sandbox s");
        all.sandboxes[0].ready = false;
        assert_eq!(steps(&pod, &all, &local), "finish");
    }

    #[test]
    fn a_failed_liveness_probe_stops_with_the_probes_grace() {
        let mut pod = pod(&[], &["x"], "Always");
        let probe = Probe { termination_grace_period_seconds: Some(5), ..Default::default() };
        pod.spec.as_mut().unwrap().containers[0].liveness_probe = Some(probe);
        let mut local = Local::default();
        local.probes.insert("x-0".into(), Verdicts { alive: Some(false), ..Default::default() });
        let runs = seen(vec![run("x", State::Running, 0, 0)]);
        assert_eq!(steps(&pod, &runs, &local), "stop x-0 5s Liveness");
    }

    #[test]
    fn a_lost_sandbox_is_replaced_and_old_runs_go() {
        let pod = pod(&[], &["x"], "Always");
        let mut lost = seen(vec![run("x", State::Exited, 137, 0)]);
        lost.sandboxes[0].ready = false;
        assert_eq!(steps(&pod, &lost, &Local::default()), "sandbox 1");
        let exited = |attempt| run("x", State::Exited, 1, attempt);
        let many = seen(vec![run("x", State::Running, 0, 3), exited(2), exited(1), exited(0)]);
        assert_eq!(steps(&pod, &many, &Local::default()), "remove x-1, remove x-0");
    }
}
