//! Runs the probes of a pod's containers, each on its own schedule, and tells its worker the
//! verdicts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod, Probe};
use tokio_util::sync::CancellationToken;

use crate::pod::probe::{Count, Purpose};
use crate::pod::{Role, RuntimePod, State, containers};
use crate::worker::{Inbox, Shared, about};

const STARTED_POLL: Duration = Duration::from_millis(100);

/// The running probes of one pod.
pub(crate) struct Probes {
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    running: HashMap<(String, Purpose), CancellationToken>,
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.end();
    }
}

impl Probes {
    pub(crate) fn new(shared: Arc<Shared>, inbox: Arc<Inbox>) -> Self {
        Self { shared, inbox, running: HashMap::new() }
    }

    /// Ends all probes.
    pub(crate) fn end(&mut self) {
        self.running.drain().for_each(|(_, token)| token.cancel());
        self.inbox.verdicts.lock().clear();
    }

    /// Probes what runs, and nothing else. A pod that ends is probed for readiness only.
    pub(crate) fn follow(&mut self, pod: &Arc<Pod>, seen: &RuntimePod, alive: bool) {
        let Some(spec) = &pod.spec else { return };
        let ids: Vec<&str> = seen
            .containers
            .iter()
            .filter(|run| run.state == State::Running)
            .map(|run| run.id.as_str())
            .collect();
        self.running.retain(|(id, purpose), token| {
            let keep = ids.contains(&id.as_str()) && (alive || *purpose == Purpose::Readiness);
            if !keep {
                token.cancel();
            }
            keep
        });
        self.inbox.verdicts.lock().retain(|id, _| ids.contains(&id.as_str()));
        let ip = seen.sandboxes.first().and_then(|s| s.ips.first().cloned());
        let ip = ip.or_else(|| self.shared.node.ips.first().cloned()).unwrap_or_default();
        for (role, container) in containers(spec).filter(|(role, _)| *role != Role::Init) {
            let run = seen.latest(&container.name).filter(|run| run.state == State::Running);
            let Some(run) = run else { continue };
            debug_assert!(role != Role::Init);
            let all = [
                (Purpose::Startup, &container.startup_probe),
                (Purpose::Liveness, &container.liveness_probe),
                (Purpose::Readiness, &container.readiness_probe),
            ];
            for (purpose, probe) in all {
                let key = (run.id.clone(), purpose);
                let Some(probe) = probe else { continue };
                if self.running.contains_key(&key) || (!alive && purpose != Purpose::Readiness) {
                    continue;
                }
                let token = self.shared.ctx.shutdown.child_token();
                self.running.insert(key, token.clone());
                let task = Task {
                    shared: self.shared.clone(),
                    inbox: self.inbox.clone(),
                    pod: pod.clone(),
                    container: container.clone(),
                    probe: probe.clone(),
                    purpose,
                    id: run.id.clone(),
                    ip: ip.clone(),
                };
                self.shared.ctx.tasks.job(async move {
                    tokio::select! {
                        () = token.cancelled() => {}
                        () = task.run() => {}
                    }
                });
            }
        }
    }
}

struct Task {
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    pod: Arc<Pod>,
    container: ContainerSpec,
    probe: Probe,
    purpose: Purpose,
    id: String,
    ip: String,
}

impl Task {
    async fn run(self) {
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default))
        };
        let period = seconds(self.probe.period_seconds, 10).max(Duration::from_secs(1));
        if self.purpose != Purpose::Startup && self.container.startup_probe.is_some() {
            while self.verdict().started != Some(true) {
                tokio::time::sleep(STARTED_POLL).await;
            }
        }
        tokio::time::sleep(seconds(self.probe.initial_delay_seconds, 0)).await;
        let mut count = Count::default();
        loop {
            let (probe, runtime) = (&self.probe, &self.shared.runtime);
            let result =
                crate::probing::check(runtime, &self.id, probe, &self.container, &self.ip).await;
            if let Err(output) = &result {
                let text = format!("{} probe failed: {output}", self.purpose.text());
                let place = about(&self.pod, Some(&self.container.name));
                self.shared.events.record(place, "Warning", "Unhealthy", text);
            }
            if let Some(good) = count.result(result.is_ok(), &self.probe) {
                self.tell(good, result.err().unwrap_or_default());
                // A startup probe has done its work; a failed one ends the container.
                if self.purpose == Purpose::Startup {
                    return;
                }
            }
            tokio::time::sleep(period).await;
        }
    }

    fn verdict(&self) -> crate::pod::probe::Verdicts {
        self.inbox.verdicts.lock().get(&self.id).cloned().unwrap_or_default()
    }

    fn tell(&self, good: bool, output: String) {
        let mut all = self.inbox.verdicts.lock();
        let verdicts = all.entry(self.id.clone()).or_default();
        let slot = match self.purpose {
            Purpose::Startup => &mut verdicts.started,
            Purpose::Liveness => &mut verdicts.alive,
            Purpose::Readiness => &mut verdicts.ready,
        };
        if *slot == Some(good) {
            return;
        }
        *slot = Some(good);
        verdicts.output = output;
        drop(all);
        self.inbox.wake.notify_one();
    }
}
