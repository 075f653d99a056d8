//! What a pod's status says, in Kubernetes' words: phase, conditions, one status per container.
//!
//! Pure: spec, runtime and the agent's memory in, the status out. [`change`] is the merge patch that
//! brings the stored status there, if one is needed.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container as ContainerSpec, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus,
    VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Map, Value, json};

use super::resources::qos;
use super::spec::NodeFacts;
use super::{
    Container, Local, Role, RuntimePod, State, containers, ephemeral_containers, host_network,
    name, namespace, restart_policy, uid,
};

const SCHEME: &str = "containerd://";

/// The status of a pod.
#[must_use]
pub fn status(
    pod: &Pod,
    seen: &RuntimePod,
    local: &Local,
    node: &NodeFacts,
    now: Timestamp,
) -> PodStatus {
    let old = pod.status.clone().unwrap_or_default();
    // Nothing of it runs, nor will again.
    let ended = pod.metadata.deletion_timestamp.is_some() && !seen.running();
    let Some(spec) = &pod.spec else { return old };
    let look = Look { pod, spec, seen, local, now };
    let statuses: Vec<(Role, ContainerStatus)> =
        containers(spec).map(|(role, c)| (role, look.container(role, c))).collect();
    let mut phase = look.phase(&statuses, ended);
    let final_phase = old.phase.as_deref().filter(|p| is_final(p));
    if let Some(held) = final_phase {
        held.clone_into(&mut phase); // a pod never comes back from its end
    } else if is_final(&phase) && seen.containers.iter().any(|c| c.state == State::Running) {
        // Who reads of the end may count on it that nothing runs any more, a sidecar among them.
        phase = old.phase.clone().unwrap_or_else(|| "Pending".to_owned());
    }
    let (init, app): (Vec<_>, Vec<_>) = statuses.into_iter().partition(|(r, _)| *r != Role::App);
    let added = ephemeral_containers(spec);
    let added: Vec<(Role, ContainerStatus)> =
        added.iter().map(|c| (Role::Ephemeral, look.container(Role::Ephemeral, c))).collect();
    let conditions = look.conditions(&old, &phase, &init, &app);
    let list = |part: Vec<(Role, ContainerStatus)>| {
        let list: Vec<ContainerStatus> = part.into_iter().map(|(_, status)| status).collect();
        (!list.is_empty()).then_some(list)
    };
    let ips = look.ips(node, &old);
    let (reason, message) = match &local.evicted {
        Some((reason, message)) => (Some(reason.clone()), Some(message.clone())),
        None if final_phase.is_some() => (old.reason.clone(), old.message.clone()),
        None => (None, None),
    };
    PodStatus {
        phase: Some(phase),
        conditions: Some(conditions),
        init_container_statuses: list(init),
        container_statuses: list(app),
        ephemeral_container_statuses: list(added),
        host_ip: node.ips.first().cloned(),
        host_ips: Some(node.ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
        start_time: old.start_time.clone().or_else(|| local.start_time.map(Time)),
        qos_class: old.qos_class.clone().or_else(|| Some(qos(spec).text().to_owned())),
        observed_generation: pod.metadata.generation,
        reason,
        message,
        ..old
    }
}

fn is_final(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

/// The merge patch (`{"status": …}`) from what is stored to `wanted`; none when it says the same.
/// Fields of the status that the agent does not write stay as they are.
#[must_use]
pub fn change(stored: Option<&PodStatus>, wanted: &PodStatus) -> Option<Value> {
    // A status is plain data: it can always be written as JSON.
    let as_map = |status: &PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (old, new) = (stored.map(as_map).unwrap_or_default(), as_map(wanted));
    let mut patch = Map::new();
    for (field, value) in &new {
        if old.get(field) != Some(value) {
            patch.insert(field.clone(), value.clone());
        }
    }
    for field in old.keys().filter(|field| !new.contains_key(*field)) {
        patch.insert(field.clone(), Value::Null);
    }
    (!patch.is_empty()).then(|| json!({ "status": patch }))
}

/// Whether a container that ended with `exit_code` is to be started again by its policy.
#[must_use]
pub fn restarts(spec: &PodSpec, role: Role, exit_code: i32) -> bool {
    match (role, restart_policy(spec)) {
        (Role::Sidecar, _) => true,
        // An init container is done once it has succeeded, whatever the policy.
        (Role::Init, "Always" | "OnFailure") => exit_code != 0,
        (Role::App, "Always") => true,
        (Role::App, "OnFailure") => exit_code != 0,
        _ => false,
    }
}

struct Look<'a> {
    pod: &'a Pod,
    spec: &'a PodSpec,
    seen: &'a RuntimePod,
    local: &'a Local,
    now: Timestamp,
}

impl Look<'_> {
    fn container(&self, role: Role, container: &ContainerSpec) -> ContainerStatus {
        let latest = self.seen.latest(&container.name);
        let previous = self.seen.previous(&container.name).map(terminated);
        let (state, last_state) = self.state(role, container, latest, previous);
        let running = latest.filter(|c| c.state == State::Running && state.running.is_some());
        let started = running.is_some_and(|run| self.started(container, run));
        let ready = match (role, running) {
            (Role::Ephemeral, _) => false,
            (Role::Init, _) => state.terminated.as_ref().is_some_and(|end| end.exit_code == 0),
            (_, Some(run)) => started && self.ready(container, run),
            (_, None) => false,
        };
        let image = container.image.clone().unwrap_or_default();
        ContainerStatus {
            name: container.name.clone(),
            container_id: latest.map(|run| format!("{SCHEME}{}", run.id)),
            image: latest.map_or(image, |run| run.image.clone()),
            image_id: latest.map(|run| run.image_id.clone()).unwrap_or_default(),
            restart_count: latest.map_or(0, |run| i32::try_from(run.attempt).unwrap_or(i32::MAX)),
            ready,
            started: Some(started),
            state: Some(state),
            last_state: Some(last_state.unwrap_or_default()),
            resources: container.resources.clone(),
            allocated_resources: container.resources.as_ref().and_then(|r| r.requests.clone()),
            volume_mounts: mounts(container),
            ..ContainerStatus::default()
        }
    }

    fn state(
        &self,
        role: Role,
        container: &ContainerSpec,
        latest: Option<&Container>,
        previous: Option<ContainerState>,
    ) -> (ContainerState, Option<ContainerState>) {
        let Some(run) = latest else {
            return (self.waiting(container), None);
        };
        match run.state {
            State::Running => {
                let started_at = run.started_at.map(Time);
                let running = Some(ContainerStateRunning { started_at });
                (ContainerState { running, ..Default::default() }, previous)
            }
            State::Created => (self.waiting(container), previous),
            State::Unknown => {
                let unknown = "the container's state is not known to the runtime";
                (waiting("ContainerStatusUnknown", unknown), previous)
            }
            State::Exited => {
                let end = terminated(run);
                if !self.comes_back(role, run) {
                    return (end, previous);
                }
                if let Some(held) = self.local.waiting.get(&container.name) {
                    return (waiting(&held.reason, &held.message), Some(end));
                }
                match self.crash_loop(container, run) {
                    Some(state) => (state, Some(end)),
                    None => (end, previous),
                }
            }
        }
    }

    fn comes_back(&self, role: Role, run: &Container) -> bool {
        let leaving =
            self.pod.metadata.deletion_timestamp.is_some() || self.local.evicted.is_some();
        let ended = self.phase_is_final();
        !leaving && !ended && restarts(self.spec, role, run.exit_code)
    }

    fn phase_is_final(&self) -> bool {
        self.pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(is_final)
    }

    fn crash_loop(&self, container: &ContainerSpec, run: &Container) -> Option<ContainerState> {
        let backoff = self.local.backoff.get(&container.name)?;
        backoff.left(run.finished_at?, self.now)?;
        let message = format!(
            "back-off {} restarting failed container={} pod={}_{}({})",
            backoff.text(),
            container.name,
            name(self.pod),
            namespace(self.pod),
            uid(self.pod)
        );
        Some(waiting("CrashLoopBackOff", &message))
    }

    /// A container that has not run yet.
    fn waiting(&self, container: &ContainerSpec) -> ContainerState {
        if let Some(held) = self.local.waiting.get(&container.name) {
            return waiting(&held.reason, &held.message);
        }
        let has_init = self.spec.init_containers.as_ref().is_some_and(|list| !list.is_empty());
        waiting(
            if has_init && !self.initialized() { "PodInitializing" } else { "ContainerCreating" },
            "",
        )
    }

    fn started(&self, container: &ContainerSpec, run: &Container) -> bool {
        let verdict = self.local.probes.get(&run.id).and_then(|v| v.started);
        let told = || self.told(run).is_some_and(|status| status.started == Some(true));
        container.startup_probe.is_none() || verdict.unwrap_or_else(told)
    }

    fn ready(&self, container: &ContainerSpec, run: &Container) -> bool {
        let verdict = self.local.probes.get(&run.id).and_then(|v| v.ready);
        let told = || self.told(run).is_some_and(|status| status.ready);
        container.readiness_probe.is_none() || verdict.unwrap_or_else(told)
    }

    /// What was told of this very container. It stands until a probe says more: an agent that starts anew must not take
    /// pods out of their Services.
    fn told(&self, run: &Container) -> Option<&ContainerStatus> {
        let status = self.pod.status.as_ref()?;
        let lists = [&status.container_statuses, &status.init_container_statuses];
        let id = format!("{SCHEME}{}", run.id);
        lists.into_iter().flatten().flatten().find(|s| s.container_id.as_ref() == Some(&id))
    }

    /// Init containers not done, by name: those that have not succeeded, and sidecars not started.
    fn uninitialized(&self) -> Vec<&str> {
        let undone = containers(self.spec).filter(|(role, c)| {
            let latest = self.seen.latest(&c.name);
            match role {
                Role::App | Role::Ephemeral => false,
                Role::Init => {
                    // A later container exists only because this one had succeeded.
                    let done = latest.is_some_and(|r| r.state == State::Exited && r.exit_code == 0);
                    !done && !self.any_app_ran()
                }
                Role::Sidecar => {
                    let up =
                        latest.is_some_and(|r| r.state == State::Running && self.started(c, r));
                    !up && !self.any_app_ran()
                }
            }
        });
        undone.map(|(_, c)| c.name.as_str()).collect()
    }

    fn initialized(&self) -> bool {
        self.uninitialized().is_empty()
    }

    fn any_app_ran(&self) -> bool {
        self.spec.containers.iter().any(|c| self.seen.latest(&c.name).is_some())
    }

    fn phase(&self, statuses: &[(Role, ContainerStatus)], ended: bool) -> String {
        if self.local.evicted.is_some() {
            return "Failed".to_owned();
        }
        let never = restart_policy(self.spec) == "Never";
        let init_failed = statuses.iter().any(|(role, status)| {
            *role == Role::Init && exit(status).is_some_and(|code| code != 0)
        });
        if init_failed && (never || ended) {
            return "Failed".to_owned();
        }
        if !self.initialized() && !ended {
            return "Pending".to_owned();
        }
        let apps = || statuses.iter().filter(|(role, _)| *role == Role::App).map(|(_, s)| s);
        let ran = |s: &&ContainerStatus| exit(s).is_some() || last_exit(s).is_some();
        let running = apps().filter(|s| is_running(s)).count();
        let stopped = apps().filter(|s| !is_running(s) && ran(s)).count();
        let succeeded = apps().filter(|s| exit(s) == Some(0)).count();
        let waiting = apps().count() - running - stopped;
        let always = restart_policy(self.spec) == "Always";
        if ended && running == 0 {
            // What never ran has not succeeded.
            let all = stopped > 0 && waiting == 0 && succeeded == stopped;
            return if all { "Succeeded" } else { "Failed" }.to_owned();
        }
        let phase = match (waiting, running, stopped) {
            (1.., _, _) => "Pending",
            (0, 1.., _) => "Running",
            (0, 0, 1..) if always => "Running",
            (0, 0, 1..) if succeeded == stopped => "Succeeded",
            (0, 0, 1..) if never => "Failed",
            (0, 0, 1..) => "Running",
            _ => "Pending",
        };
        phase.to_owned()
    }

    fn ips(&self, node: &NodeFacts, old: &PodStatus) -> Vec<String> {
        if host_network(self.pod) {
            return node.ips.clone();
        }
        match self.seen.sandboxes.first() {
            Some(sandbox) if !sandbox.ips.is_empty() => sandbox.ips.clone(),
            // A pod that has ended keeps the address it had.
            _ if self.phase_is_final() || self.pod.metadata.deletion_timestamp.is_some() => {
                old.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect()
            }
            _ => Vec::new(),
        }
    }

    fn conditions(
        &self,
        old: &PodStatus,
        phase: &str,
        init: &[(Role, ContainerStatus)],
        app: &[(Role, ContainerStatus)],
    ) -> Vec<PodCondition> {
        let sandbox = self.seen.sandboxes.first();
        let network = host_network(self.pod);
        let has_network = sandbox.is_some_and(|s| s.ready && (network || !s.ips.is_empty()));
        let mut own = vec![("PodReadyToStartContainers", Verdict::plain(has_network))];
        own.push(("Initialized", self.is_initialized(phase)));
        let containers_ready = containers_ready(phase, init, app);
        own.push(("Ready", self.is_ready(&containers_ready, old)));
        own.push(("ContainersReady", containers_ready));
        if !old.conditions.iter().flatten().any(|c| c.type_ == "PodScheduled") {
            own.push(("PodScheduled", Verdict::plain(true)));
        }
        let mut conditions = old.conditions.clone().unwrap_or_default();
        for (kind, verdict) in own {
            self.put(&mut conditions, kind, verdict);
        }
        conditions
    }

    fn put(&self, conditions: &mut Vec<PodCondition>, kind: &str, verdict: Verdict) {
        let status = if verdict.holds { "True" } else { "False" };
        let present = conditions.iter().position(|c| c.type_ == kind);
        let same = present.map(|at| &conditions[at]).filter(|c| c.status == status);
        let condition = PodCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: verdict.reason.map(str::to_owned),
            message: verdict.message,
            last_transition_time: same
                .and_then(|c| c.last_transition_time.clone())
                .or(Some(Time(self.now))),
            last_probe_time: None,
            observed_generation: self.pod.metadata.generation,
        };
        match present {
            Some(at) => conditions[at] = condition,
            None => conditions.push(condition),
        }
    }

    fn is_initialized(&self, phase: &str) -> Verdict {
        let undone = self.uninitialized();
        if phase == "Succeeded" {
            return Verdict { holds: true, reason: Some("PodCompleted"), message: None };
        }
        if undone.is_empty() {
            return Verdict::plain(true);
        }
        let message = format!("containers with incomplete status: [{}]", undone.join(" "));
        Verdict::not("ContainersNotInitialized", Some(message))
    }

    fn is_ready(&self, containers: &Verdict, old: &PodStatus) -> Verdict {
        if !containers.holds {
            return containers.clone();
        }
        let mut messages = Vec::new();
        for gate in self.spec.readiness_gates.iter().flatten() {
            let kind = &gate.condition_type;
            let held = old.conditions.iter().flatten().find(|c| c.type_ == *kind);
            match held.map(|c| c.status.as_str()) {
                Some("True") => {}
                Some(status) => messages.push(format!(
                    "the status of pod readiness gate \"{kind}\" is not \"True\", but {status}"
                )),
                None => messages.push(format!(
                    "corresponding condition of pod readiness gate \"{kind}\" does not exist."
                )),
            }
        }
        if messages.is_empty() {
            return Verdict::plain(true);
        }
        Verdict::not("ReadinessGatesNotReady", Some(messages.join(", ")))
    }
}

/// A condition's content.
#[derive(Clone, Debug)]
struct Verdict {
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn plain(holds: bool) -> Self {
        Self { holds, reason: None, message: None }
    }

    fn not(reason: &'static str, message: Option<String>) -> Self {
        Self { holds: false, reason: Some(reason), message }
    }
}

fn containers_ready(
    phase: &str,
    init: &[(Role, ContainerStatus)],
    app: &[(Role, ContainerStatus)],
) -> Verdict {
    match phase {
        "Succeeded" => return Verdict::not("PodCompleted", None),
        "Failed" => return Verdict::not("PodFailed", None),
        _ => {}
    }
    let sidecars = init.iter().filter(|(role, _)| *role == Role::Sidecar);
    let unready: Vec<&str> =
        sidecars.chain(app).filter(|(_, s)| !s.ready).map(|(_, s)| s.name.as_str()).collect();
    if unready.is_empty() {
        return Verdict::plain(true);
    }
    let message = format!("containers with unready status: [{}]", unready.join(" "));
    Verdict::not("ContainersNotReady", Some(message))
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    let message = (!message.is_empty()).then(|| message.to_owned());
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ContainerState { waiting: Some(waiting), ..Default::default() }
}

fn terminated(run: &Container) -> ContainerState {
    let usual = if run.exit_code == 0 { "Completed" } else { "Error" };
    let reason = if run.reason.is_empty() { usual } else { &run.reason };
    let terminated = ContainerStateTerminated {
        container_id: Some(format!("{SCHEME}{}", run.id)),
        exit_code: run.exit_code,
        reason: Some(reason.to_owned()),
        message: (!run.message.is_empty()).then(|| run.message.clone()),
        started_at: run.started_at.map(Time),
        finished_at: run.finished_at.map(Time),
        signal: None,
    };
    ContainerState { terminated: Some(terminated), ..Default::default() }
}

fn mounts(container: &ContainerSpec) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref()?;
    let status = mounts.iter().map(|mount| VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: mount.read_only.filter(|read_only| *read_only),
        recursive_read_only: (mount.read_only == Some(true)).then(|| "Disabled".to_owned()),
        ..Default::default()
    });
    Some(status.collect())
}

fn is_running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.running.is_some())
}

fn exit(status: &ContainerStatus) -> Option<i32> {
    status.state.as_ref()?.terminated.as_ref().map(|end| end.exit_code)
}

fn last_exit(status: &ContainerStatus) -> Option<i32> {
    status.last_state.as_ref()?.terminated.as_ref().map(|end| end.exit_code)
}

#[cfg(test)]
mod tests {
    use super::super::probe::Verdicts;
    use super::super::{Sandbox, Waiting};
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "d", "uid": "u", "generation": 3},
            "spec": spec,
        }))
        .unwrap()
    }

    fn run(name: &str, attempt: u32, state: State, exit_code: i32) -> Container {
        Container {
            id: format!("{name}-{attempt}"),
            name: name.to_owned(),
            sandbox_id: "s".to_owned(),
            attempt,
            state,
            created_at: at(0),
            started_at: Some(at(1)),
            finished_at: (state == State::Exited).then(|| at(5)),
            exit_code,
            reason: String::new(),
            message: String::new(),
            image: "i".to_owned(),
            image_id: "sha256:1".to_owned(),
            fingerprint: String::new(),
            grace_s: None,
            log_path: String::new(),
            termination_file: String::new(),
            termination_policy: String::new(),
        }
    }

    fn seen(containers: Vec<Container>) -> RuntimePod {
        let sandbox = Sandbox {
            id: "s".to_owned(),
            attempt: 0,
            ready: true,
            created_at: at(0),
            ips: vec!["10.0.0.5".to_owned()],
        };
        RuntimePod { sandboxes: vec![sandbox], containers, ..RuntimePod::default() }
    }

    fn node() -> NodeFacts {
        NodeFacts { ips: vec!["192.0.2.1".to_owned()], ..Default::default() }
    }

    fn of(pod: &Pod, seen: &RuntimePod, local: &Local) -> PodStatus {
        status(pod, seen, local, &node(), at(10))
    }

    fn one(policy: &str) -> Pod {
        pod(json!({"restartPolicy": policy, "containers": [{"name": "c", "image": "i"}]}))
    }

    fn condition(status: &PodStatus, kind: &str) -> String {
        let held = status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap();
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        format!("{} {} {}", held.status, part(&held.reason), part(&held.message)).trim().to_owned()
    }

    fn reason(state: Option<&ContainerState>) -> String {
        let state = state.cloned().unwrap_or_default();
        let waiting = state.waiting.and_then(|w| w.reason);
        waiting.or(state.terminated.and_then(|t| t.reason)).unwrap_or_default()
    }

    #[test]
    fn phases_follow_the_containers_and_the_policy() {
        use State::{Exited, Running};
        for (policy, state, code, want) in [
            ("Always", Running, 0, "Running"),
            ("Always", Exited, 0, "Running"),
            ("Always", Exited, 1, "Running"),
            ("OnFailure", Exited, 0, "Succeeded"),
            ("OnFailure", Exited, 1, "Running"),
            ("Never", Exited, 0, "Succeeded"),
            ("Never", Exited, 1, "Failed"),
        ] {
            let status = of(&one(policy), &seen(vec![run("c", 0, state, code)]), &Local::default());
            assert_eq!(status.phase.as_deref(), Some(want), "{policy} {state:?} {code}");
        }
        let status = of(&one("Always"), &RuntimePod::default(), &Local::default());
        assert_eq!(status.phase.as_deref(), Some("Pending"));
    }

    #[test]
    fn a_running_pod_is_ready_once_its_probe_says_so() {
        let spec =
            json!({"containers": [{"name": "c", "readinessProbe": {"tcpSocket": {"port": 1}}}]});
        let (pod, seen) = (pod(spec), seen(vec![run("c", 0, State::Running, 0)]));
        let mut local = Local::default();
        let status = of(&pod, &seen, &local);
        assert_eq!(
            condition(&status, "Ready"),
            "False ContainersNotReady containers with unready status: [c]"
        );
        let verdicts = Verdicts { ready: Some(true), ..Default::default() };
        local.probes.insert("c-0".to_owned(), verdicts);
        let status = of(&pod, &seen, &local);
        assert_eq!(condition(&status, "Ready"), "True");
        assert_eq!(condition(&status, "PodReadyToStartContainers"), "True");
        assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.5"));
        assert_eq!(status.observed_generation, Some(3));
    }

    #[test]
    fn a_new_agent_goes_on_from_what_was_told() {
        let spec = json!({"containers": [{
            "name": "c", "readinessProbe": {"tcpSocket": {"port": 1}}, "startupProbe": {"tcpSocket": {"port": 1}},
        }]});
        let (mut pod, runs) = (pod(spec), seen(vec![run("c", 0, State::Running, 0)]));
        let verdicts = Verdicts { ready: Some(true), started: Some(true), ..Default::default() };
        let mut local = Local::default();
        local.probes.insert("c-0".to_owned(), verdicts);
        pod.status = Some(of(&pod, &runs, &local));
        let new = of(&pod, &runs, &Local::default());
        assert_eq!(condition(&new, "Ready"), "True");
        assert_eq!(new.container_statuses.unwrap()[0].started, Some(true));
        // Of another container nothing was told.
        let runs = seen(vec![run("c", 1, State::Running, 0)]);
        assert!(condition(&of(&pod, &runs, &Local::default()), "Ready").starts_with("False"));
    }

    #[test]
    fn a_crash_loop_shows_the_wait_and_the_last_end() {
        let mut local = Local::default();
        let mut backoff = super::super::backoff::Backoff::default();
        backoff.restarted(at(0), at(0));
        local.backoff.insert("c".to_owned(), backoff);
        let mut runs = seen(vec![run("c", 1, State::Exited, 2)]);
        runs.containers[0].reason = "Error".to_owned();
        let status = of(&one("Always"), &runs, &local);
        let shown = &status.container_statuses.as_ref().unwrap()[0];
        let waiting = shown.state.as_ref().unwrap().waiting.clone().unwrap();
        assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
        assert_eq!(
            waiting.message.as_deref(),
            Some("back-off 10s restarting failed container=c pod=web_d(u)")
        );
        assert_eq!((reason(shown.last_state.as_ref()).as_str(), shown.restart_count), ("Error", 1));
        assert_eq!(status.phase.as_deref(), Some("Running"));
    }

    #[test]
    fn init_containers_hold_the_others_back() {
        let pod = pod(json!({"initContainers": [{"name": "i"}, {"name": "j"}],
            "containers": [{"name": "c"}]}));
        let runs = seen(vec![run("j", 0, State::Running, 0), run("i", 0, State::Exited, 0)]);
        let status = of(&pod, &runs, &Local::default());
        assert_eq!(status.phase.as_deref(), Some("Pending"));
        assert_eq!(
            condition(&status, "Initialized"),
            "False ContainersNotInitialized containers with incomplete status: [j]"
        );
        let app = &status.container_statuses.as_ref().unwrap()[0];
        assert_eq!(reason(app.state.as_ref()), "PodInitializing");
        let init = &status.init_container_statuses.as_ref().unwrap()[0];
        assert!(init.ready && reason(init.state.as_ref()) == "Completed");
    }

    #[test]
    fn what_keeps_a_container_from_starting_is_shown() {
        let mut local = Local::default();
        let held = Waiting { reason: "ErrImagePull".to_owned(), message: "no".to_owned() };
        local.waiting.insert("c".to_owned(), held);
        let status = of(&one("Always"), &seen(vec![]), &local);
        let shown = &status.container_statuses.as_ref().unwrap()[0];
        assert_eq!(reason(shown.state.as_ref()), "ErrImagePull");
        assert_eq!(status.phase.as_deref(), Some("Pending"));
    }

    #[test]
    fn a_deleted_pod_ends_by_how_its_containers_ended() {
        for (code, want) in [(0, "Succeeded"), (137, "Failed")] {
            let mut pod = one("Always");
            pod.metadata.deletion_timestamp = Some(Time(at(0)));
            let runs = seen(vec![run("c", 0, State::Exited, code)]);
            let status = status(&pod, &runs, &Local::default(), &node(), at(10));
            assert_eq!(status.phase.as_deref(), Some(want));
        }
    }

    #[test]
    fn an_end_is_final_and_evictions_say_why() {
        let mut pod = one("Never");
        pod.status = Some(PodStatus { phase: Some("Failed".to_owned()), ..Default::default() });
        let status = of(&pod, &seen(vec![run("c", 0, State::Running, 0)]), &Local::default());
        assert_eq!(status.phase.as_deref(), Some("Failed"));
        let evicted = Some(("Evicted".to_owned(), "low on memory".to_owned()));
        let local = Local { evicted, ..Local::default() };
        let status = of(&one("Always"), &seen(vec![]), &local);
        let told = (status.phase.as_deref(), status.reason.as_deref(), status.message.as_deref());
        assert_eq!(told, (Some("Failed"), Some("Evicted"), Some("low on memory")));
    }

    #[test]
    fn an_end_is_told_once_sidecars_have_ended_too() {
        let mut pod = pod(json!({
            "restartPolicy": "Never",
            "initContainers": [{"name": "side", "restartPolicy": "Always"}],
            "containers": [{"name": "c"}],
        }));
        pod.status = Some(PodStatus { phase: Some("Running".to_owned()), ..Default::default() });
        for (side, want) in [(State::Running, "Running"), (State::Exited, "Succeeded")] {
            let runs = vec![run("side", 0, side, 0), run("c", 0, State::Exited, 0)];
            assert_eq!(of(&pod, &seen(runs), &Local::default()).phase.as_deref(), Some(want));
        }
    }

    #[test]
    fn conditions_of_others_and_times_of_transition_stay() {
        let mut pod = one("Always");
        let runs = seen(vec![run("c", 0, State::Running, 0)]);
        let mut first = of(&pod, &runs, &Local::default());
        let gate = PodCondition { type_: "x".into(), status: "True".into(), ..Default::default() };
        first.conditions.as_mut().unwrap().push(gate);
        pod.status = Some(first.clone());
        let later = status(&pod, &runs, &Local::default(), &node(), at(99));
        assert_eq!(later, first);
        assert_eq!(change(pod.status.as_ref(), &later), None);
    }

    #[test]
    fn a_change_names_only_what_differs() {
        let old = PodStatus {
            reason: Some("x".into()),
            phase: Some("Pending".into()),
            ..Default::default()
        };
        let new = PodStatus { phase: Some("Running".into()), ..Default::default() };
        let patch = change(Some(&old), &new).unwrap();
        assert_eq!(patch, json!({"status": {"phase": "Running", "reason": null}}));
    }
}
