//! What a simulated node plays of a pod's life: pure over the pod and the manner of playing.
//!
//! Every draw follows from the seed, the pod's uid and how often it restarted, so that a run is repeated by its seed.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

/// How long containers of a simulated node wait after a crash.
const RESTART_DELAY: Duration = Duration::from_secs(1);
/// What a failed container exits with.
const FAILED: i32 = 1;

/// How pods are played.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// What all draws follow from.
    pub(crate) seed: u64,
    /// About how long a bound pod takes to run.
    pub(crate) start: Duration,
    /// About how long a pod marked for deletion takes to end.
    pub(crate) stop: Duration,
    /// About how long a container that ends runs.
    pub(crate) run: Duration,
    /// How many of a hundred runs fail.
    pub(crate) failing_percent: u8,
}

/// What comes next in a pod's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scene {
    /// It is bound: its containers start.
    Start,
    /// Its containers fail, and will be started again.
    Crash,
    /// They are started again.
    Restart,
    /// They have done their work.
    Succeed,
    /// They have failed for good.
    Fail,
    /// It is marked for deletion: it goes.
    Stop,
}

/// The next scene of a bound pod and when it is due; none when nothing is to happen any more.
pub(crate) fn next(pod: &Pod, manner: Manner) -> Option<(Scene, Duration)> {
    let status = pod.status.as_ref();
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let containers = status.and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    let restarts = containers.iter().map(|c| c.restart_count).max().unwrap_or(0);
    let draw = |what: &str| {
        let mut hasher = DefaultHasher::new();
        (manner.seed, uid, restarts, what).hash(&mut hasher);
        hasher.finish()
    };
    // Between a half and one and a half of what is usual.
    let about = |usual: Duration, what: &str| usual * (500 + (draw(what) % 1000) as u32) / 1000;
    if pod.metadata.deletion_timestamp.is_some() {
        return Some((Scene::Stop, about(manner.stop, "stop")));
    }
    let policy = pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always");
    match status.and_then(|s| s.phase.as_deref()).unwrap_or("Pending") {
        "Pending" => Some((Scene::Start, about(manner.start, "start"))),
        "Running" if containers.iter().any(|c| !c.ready) => Some((Scene::Restart, RESTART_DELAY)),
        "Running" => {
            let scene = match (policy, draw("fail") % 100 < u64::from(manner.failing_percent)) {
                ("Always", false) => return None,
                ("Never", true) => Scene::Fail,
                (_, true) => Scene::Crash,
                (_, false) => Scene::Succeed,
            };
            Some((scene, about(manner.run, "run")))
        }
        _ => None,
    }
}

/// The status that a scene gives the pod, as a merge patch has it; none for the scene that ends it.
pub(crate) fn status(pod: &Pod, scene: Scene, address: &str, now: Timestamp) -> Option<Value> {
    let (phase, ready, reason) = match scene {
        Scene::Stop => return None,
        Scene::Start | Scene::Restart => ("Running", true, None),
        Scene::Crash => ("Running", false, Some("ContainersNotReady")),
        Scene::Succeed => ("Succeeded", false, Some("PodCompleted")),
        Scene::Fail => ("Failed", false, Some("PodFailed")),
    };
    let old = pod.status.as_ref();
    let held = old.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let mut conditions: Vec<Value> = Vec::new();
    let ours = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"];
    for (kind, holds) in ours.into_iter().zip([phase == "Running", true, ready, ready]) {
        let status = if holds { "True" } else { "False" };
        let same = held.iter().find(|c| c.type_ == kind && c.status == status);
        let since = same.and_then(|c| c.last_transition_time.clone()).unwrap_or(Time(now));
        conditions.push(json!({"type": kind, "status": status, "lastTransitionTime": since,
            "reason": reason.filter(|_| !holds)}));
    }
    conditions.extend(held.iter().filter(|c| !ours.contains(&c.type_.as_str())).map(|c| json!(c)));
    let spec = pod.spec.as_ref();
    let containers = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
    let before = old.and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    let statuses: Vec<Value> = containers
        .iter()
        .map(|container| {
            let before = before.iter().find(|s| s.name == container.name);
            container_status(container, before, scene, now)
        })
        .collect();
    let address = old.and_then(|s| s.pod_ip.as_deref()).unwrap_or(address);
    let began = old.and_then(|s| s.start_time.clone()).unwrap_or(Time(now));
    Some(json!({"status": {
        "phase": phase,
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": began,
        "conditions": conditions,
        "containerStatuses": statuses,
    }}))
}

fn container_status(
    container: &Container,
    before: Option<&ContainerStatus>,
    scene: Scene,
    now: Timestamp,
) -> Value {
    let running = before.and_then(|s| s.state.as_ref()?.running.as_ref()?.started_at.clone());
    let ended = |code: i32, reason: &str| {
        json!({"terminated": {"exitCode": code, "reason": reason, "finishedAt": Time(now),
            "startedAt": running.clone().unwrap_or(Time(now))}})
    };
    let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    let began = json!({"running": {"startedAt": Time(now)}});
    let (state, last) = match scene {
        Scene::Crash => (waiting, Some(ended(FAILED, "Error"))),
        Scene::Fail => (ended(FAILED, "Error"), None),
        Scene::Succeed => (ended(0, "Completed"), None),
        Scene::Start | Scene::Restart | Scene::Stop => {
            (began, before.and_then(|s| s.last_state.as_ref()).map(|s| json!(s)))
        }
    };
    let restarted = i32::from(scene == Scene::Restart);
    let runs = matches!(scene, Scene::Start | Scene::Restart);
    json!({
        "name": container.name,
        "image": container.image,
        "imageID": format!("simulated://{}", container.image.as_deref().unwrap_or_default()),
        "containerID": format!("simulated://{}", container.name),
        "ready": runs,
        "started": runs,
        "restartCount": before.map_or(0, |s| s.restart_count) + restarted,
        "state": state,
        "lastState": last.unwrap_or_else(|| json!({})),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANNER: Manner = Manner {
        seed: 1,
        start: Duration::from_secs(1),
        stop: Duration::from_secs(1),
        run: Duration::from_secs(10),
        failing_percent: 0,
    };

    fn pod(policy: &str) -> Pod {
        let pod = json!({
            "metadata": {"name": "p", "uid": "u"},
            "spec": {"nodeName": "n", "restartPolicy": policy, "containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]},
        });
        serde_json::from_value(pod).unwrap()
    }

    /// Plays until nothing is due, or `most` scenes.
    fn played(pod: &mut Pod, manner: Manner, most: usize) -> Vec<Scene> {
        let mut scenes = Vec::new();
        while let Some((scene, _)) = next(pod, manner).filter(|_| scenes.len() < most) {
            scenes.push(scene);
            let Some(patch) = status(pod, scene, "10.1.2.3", Timestamp::UNIX_EPOCH) else { break };
            pod.status = serde_json::from_value(patch["status"].clone()).unwrap();
        }
        scenes
    }

    #[test]
    fn a_service_starts_and_runs_on() {
        let mut service = pod("Always");
        assert_eq!(played(&mut service, MANNER, 9), [Scene::Start]);
        let status = service.status.clone().unwrap();
        assert_eq!(status.pod_ip.as_deref(), Some("10.1.2.3"));
        let kinds: Vec<String> = status.conditions.unwrap().into_iter().map(|c| c.type_).collect();
        assert!(kinds.contains(&"PodScheduled".to_owned()), "{kinds:?}");
        service.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        assert_eq!(played(&mut service, MANNER, 9), [Scene::Stop]);
    }

    #[test]
    fn work_ends_well_or_badly_as_drawn() {
        let failing = Manner { failing_percent: 100, ..MANNER };
        assert_eq!(played(&mut pod("Never"), MANNER, 9), [Scene::Start, Scene::Succeed]);
        assert_eq!(played(&mut pod("Never"), failing, 9), [Scene::Start, Scene::Fail]);
        let mut again = pod("OnFailure");
        let crashed = [Scene::Start, Scene::Crash, Scene::Restart, Scene::Crash];
        assert_eq!(played(&mut again, failing, 4), crashed);
        assert_eq!(again.status.unwrap().container_statuses.unwrap()[0].restart_count, 1);
    }

    #[test]
    fn delays_follow_from_the_seed() {
        let due = |seed| next(&pod("Always"), Manner { seed, ..MANNER }).unwrap().1;
        assert_eq!(due(1), due(1));
        assert!((1..20).any(|seed| due(seed) != due(1)));
        assert!((1..200).all(|seed| (500..1500).contains(&due(seed).as_millis())));
    }
}
