//! Cells of pods and of the kinds that make them.

use super::{age, containers, int, label_map, or, selector};
use crate::meta;
use crate::object::Value;
use crate::time::{self, Timestamp};

/// Pod.
pub fn pod(v: &Value, now: Timestamp) -> Vec<Value> {
    let s = summary(v, now);
    let ips = v["status"]["podIPs"].items();
    let ip = match ips.first() {
        Some(ip) => &ip["ip"],
        None => &v["status"]["podIP"],
    };
    let gates = v["spec"]["readinessGates"].items();
    let ready_gates = if gates.is_empty() {
        "<none>".to_owned()
    } else {
        let met = gates.iter().filter(|g| {
            let c = meta::condition(v, g["conditionType"].text());
            c.is_some_and(|c| c["status"].text() == "True")
        });
        format!("{}/{}", met.count(), gates.len())
    };
    vec![
        meta::name(v).into(),
        format!("{}/{}", s.ready, s.total).into(),
        s.reason.into(),
        s.restarts.into(),
        age(v, now),
        or(ip, "<none>"),
        or(&v["spec"]["nodeName"], "<none>"),
        or(&v["status"]["nominatedNodeName"], "<none>"),
        ready_gates.into(),
    ]
}

struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: String,
}

/// What the STATUS column says, and why: init containers first, then containers, then deletion.
fn summary(v: &Value, now: Timestamp) -> Summary {
    let (spec, status) = (&v["spec"], &v["status"]);
    let mut reason = match status["reason"].text() {
        "" => status["phase"].text().to_owned(),
        r => r.to_owned(),
    };
    for c in status["conditions"].items() {
        if c["type"].text() == "PodScheduled" && c["reason"].text() == "SchedulingGated" {
            reason = "SchedulingGated".to_owned();
        }
    }
    let init_specs = spec["initContainers"].items();
    let sidecar = |name: &str| {
        init_specs.iter().any(|c| c["name"].text() == name && c["restartPolicy"].text() == "Always")
    };
    let sidecars = init_specs.iter().filter(|c| sidecar(c["name"].text())).count();
    let mut s = Summary {
        ready: 0,
        total: spec["containers"].items().len() + sidecars,
        reason: String::new(),
        restarts: String::new(),
    };
    let mut restarts = Restarts::default();
    let mut sidecar_restarts = Restarts::default();
    let mut initializing = false;
    for (i, c) in status["initContainerStatuses"].items().iter().enumerate() {
        restarts.count(c);
        let is_sidecar = sidecar(c["name"].text());
        if is_sidecar {
            sidecar_restarts.count(c);
        }
        let state = &c["state"];
        if state["terminated"]["exitCode"].as_int() == Some(0) && state.has("terminated") {
            continue;
        }
        if is_sidecar && c["started"].as_bool() == Some(true) {
            s.ready += usize::from(c["ready"].as_bool() == Some(true));
            continue;
        }
        reason = init_reason(state, i, init_specs.len());
        initializing = true;
        break;
    }
    if !initializing
        || meta::condition(v, "Initialized").is_some_and(|c| c["status"].text() == "True")
    {
        restarts = sidecar_restarts;
        let mut running = false;
        for c in status["containerStatuses"].items().iter().rev() {
            restarts.count(c);
            let state = &c["state"];
            if !state["waiting"]["reason"].text().is_empty() {
                reason = state["waiting"]["reason"].text().to_owned();
            } else if state.has("terminated") {
                reason = terminated_reason(&state["terminated"]);
            } else if c["ready"].as_bool() == Some(true) && state.has("running") {
                running = true;
                s.ready += 1;
            }
        }
        if reason == "Completed" && running {
            let ready = meta::condition(v, "Ready").is_some_and(|c| c["status"].text() == "True");
            reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
    reason = deleted_reason(v).unwrap_or(reason);
    s.reason = reason;
    s.restarts = restarts.text(now);
    s
}

/// What a pod says that is being deleted.
fn deleted_reason(v: &Value) -> Option<String> {
    meta::deletion_timestamp(v)?;
    let status = &v["status"];
    let text = if status["reason"].text() == "NodeLost" {
        "Unknown"
    } else if matches!(status["phase"].text(), "Failed" | "Succeeded") {
        return None;
    } else {
        "Terminating"
    };
    Some(text.to_owned())
}

fn init_reason(state: &Value, i: usize, total: usize) -> String {
    let terminated = &state["terminated"];
    if state.has("terminated") {
        return match terminated["reason"].text() {
            "" => format!("Init:{}", exit_text(terminated)),
            r => format!("Init:{r}"),
        };
    }
    match state["waiting"]["reason"].text() {
        "" | "PodInitializing" => format!("Init:{i}/{total}"),
        r => format!("Init:{r}"),
    }
}

fn terminated_reason(t: &Value) -> String {
    match t["reason"].text() {
        "" => exit_text(t),
        r => r.to_owned(),
    }
}

fn exit_text(t: &Value) -> String {
    match t["signal"].as_int() {
        Some(signal) if signal != 0 => format!("Signal:{signal}"),
        _ => format!("ExitCode:{}", t["exitCode"].as_int().unwrap_or(0)),
    }
}

#[derive(Default)]
struct Restarts {
    n: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn count(&mut self, status: &Value) {
        self.n += status["restartCount"].as_int().unwrap_or(0);
        let finished =
            status.str_at(&["lastState", "terminated", "finishedAt"]).and_then(time::parse);
        self.last = self.last.max(finished);
    }

    fn text(&self, now: Timestamp) -> String {
        match self.last {
            Some(t) if self.n > 0 => {
                let ago = time::human_duration(now.as_second() - t.as_second());
                format!("{} ({ago} ago)", self.n)
            }
            _ => self.n.to_string(),
        }
    }
}

/// Deployment.
pub fn deployment(v: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&v["spec"], &v["status"]);
    let (names, images) = containers(&spec["template"]["spec"]);
    let ready = status["readyReplicas"].as_int().unwrap_or(0);
    let wanted = spec["replicas"].as_int().unwrap_or(0);
    vec![
        meta::name(v).into(),
        format!("{ready}/{wanted}").into(),
        int(&status["updatedReplicas"]),
        int(&status["availableReplicas"]),
        age(v, now),
        names,
        images,
        selector(&spec["selector"]),
    ]
}

/// ReplicaSet.
pub fn replica_set(v: &Value, now: Timestamp) -> Vec<Value> {
    replicas(v, now, selector(&v["spec"]["selector"]))
}

/// ReplicationController.
pub fn replication_controller(v: &Value, now: Timestamp) -> Vec<Value> {
    replicas(v, now, label_map(&v["spec"]["selector"]))
}

fn replicas(v: &Value, now: Timestamp, selector: Value) -> Vec<Value> {
    let (names, images) = containers(&v["spec"]["template"]["spec"]);
    vec![
        meta::name(v).into(),
        int(&v["spec"]["replicas"]),
        int(&v["status"]["replicas"]),
        int(&v["status"]["readyReplicas"]),
        age(v, now),
        names,
        images,
        selector,
    ]
}

/// DaemonSet.
pub fn daemon_set(v: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&v["spec"], &v["status"]);
    let (names, images) = containers(&spec["template"]["spec"]);
    vec![
        meta::name(v).into(),
        int(&status["desiredNumberScheduled"]),
        int(&status["currentNumberScheduled"]),
        int(&status["numberReady"]),
        int(&status["updatedNumberScheduled"]),
        int(&status["numberAvailable"]),
        label_map(&spec["template"]["spec"]["nodeSelector"]),
        age(v, now),
        names,
        images,
        selector(&spec["selector"]),
    ]
}

/// StatefulSet.
pub fn stateful_set(v: &Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = containers(&v["spec"]["template"]["spec"]);
    let ready = v["status"]["readyReplicas"].as_int().unwrap_or(0);
    let wanted = v["spec"]["replicas"].as_int().unwrap_or(0);
    vec![meta::name(v).into(), format!("{ready}/{wanted}").into(), age(v, now), names, images]
}

/// Job.
pub fn job(v: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&v["spec"], &v["status"]);
    let done = status["succeeded"].as_int().unwrap_or(0);
    let completions = match (spec["completions"].as_int(), spec["parallelism"].as_int()) {
        (Some(n), _) => format!("{done}/{n}"),
        (None, Some(p)) if p > 1 => format!("{done}/1 of {p}"),
        _ => format!("{done}/1"),
    };
    let start = status["startTime"].as_str().and_then(time::parse);
    let end = status["completionTime"].as_str().and_then(time::parse);
    let duration = match start {
        None => String::new(),
        Some(s) => time::human_duration(end.unwrap_or(now).as_second() - s.as_second()),
    };
    let holds = |kind: &str| meta::condition(v, kind).is_some_and(|c| c["status"].text() == "True");
    let state = if holds("Complete") {
        "Complete"
    } else if holds("Failed") {
        "Failed"
    } else if meta::deletion_timestamp(v).is_some() {
        "Terminating"
    } else if holds("Suspended") {
        "Suspended"
    } else if holds("FailureTarget") {
        "FailureTarget"
    } else if holds("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    let (names, images) = containers(&spec["template"]["spec"]);
    vec![
        meta::name(v).into(),
        state.into(),
        completions.into(),
        duration.into(),
        age(v, now),
        names,
        images,
        selector(&spec["selector"]),
    ]
}

/// CronJob.
pub fn cron_job(v: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &v["spec"];
    let job = &spec["jobTemplate"]["spec"];
    let (names, images) = containers(&job["template"]["spec"]);
    let last = match v["status"]["lastScheduleTime"].as_str() {
        Some(t) => time::age(Some(t), now),
        None => "<none>".to_owned(),
    };
    let suspend = if spec["suspend"].as_bool() == Some(true) { "True" } else { "False" };
    vec![
        meta::name(v).into(),
        spec["schedule"].clone(),
        or(&spec["timeZone"], "<none>"),
        suspend.into(),
        Value::Int(v["status"]["active"].items().len() as i64),
        last.into(),
        age(v, now),
        names,
        images,
        selector(&job["selector"]),
    ]
}

/// PodTemplate.
pub fn pod_template(v: &Value, _: Timestamp) -> Vec<Value> {
    let (names, images) = containers(&v["template"]["spec"]);
    vec![meta::name(v).into(), names, images, label_map(&v["template"]["metadata"]["labels"])]
}

/// ControllerRevision.
pub fn controller_revision(v: &Value, now: Timestamp) -> Vec<Value> {
    let owner = match meta::controller(v) {
        Some(o) => {
            let kind = o["kind"].text().to_lowercase();
            let (group, _) = crate::catalog::split_api_version(o["apiVersion"].text());
            let dot = if group.is_empty() { "" } else { "." };
            format!("{kind}{dot}{group}/{}", o["name"].text())
        }
        None => "<none>".to_owned(),
    };
    vec![meta::name(v).into(), owner.into(), int(&v["revision"]), age(v, now)]
}
