//! What Deployments, Jobs and pods do on a real node: rollouts under load, restarts, probes, runs to an end, and all
//! that a pod is made of.
#![allow(clippy::disallowed_methods)] // a test as a whole, which measures itself

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use client::transport::{Delete, Scope};
use client::{Kind, Patch};
use integration_tests::load::{Load, fetch};
use integration_tests::{Cluster, Seen, container, machine, name, ready, uid};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

const IMAGE: &str = "ironclad/demo:0.1.0";
/// The least number of requests that makes a load steady.
const REQUESTS_MIN: u64 = 200;
/// How many answers in a row must be the new page for the old pods to be called gone.
const SAME_ANSWERS_MIN: usize = 20;
/// How soon after its verdict a pod must be out of its Services.
const OUT_MAX: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    machine::run(vec![
        ("root_node_rolls_out_without_a_failed_request", || machine::block_on(rollout())),
        ("root_node_restarts_what_ends", || machine::block_on(restarts())),
        ("root_node_probes_decide_about_restart_and_service", || machine::block_on(probes())),
        ("root_node_starts_containers_in_order", || machine::block_on(order())),
        ("root_node_gives_pods_env_and_volumes", || machine::block_on(contents())),
        ("root_node_runs_jobs_to_their_end", || machine::block_on(jobs())),
        ("root_node_gives_claims_volumes", || machine::block_on(claims())),
        ("root_node_is_measured_and_scales_by_use", || machine::block_on(scaled_by_use())),
    ])
}

fn deployment(name: &str, replicas: u32, more: &Value) -> Value {
    let mut container = json!({
        "name": "web", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
        "env": [
            {"name": "GREETING", "value": "one"},
            {"name": "DRAIN_SECONDS", "value": "2"},
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8080}, "periodSeconds": 1},
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [container], "terminationGracePeriodSeconds": 5},
            },
        },
    })
}

fn pod(name: &str, mut spec: Value) -> Value {
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            container["image"] = json!(IMAGE);
            container["imagePullPolicy"] = json!("IfNotPresent");
        }
    }
    spec["terminationGracePeriodSeconds"] = json!(2);
    let labels = json!({"app": name});
    json!({"metadata": {"name": name, "namespace": "default", "labels": labels}, "spec": spec})
}

/// Makes a Service of port 80 in front of the pods of `app`, and returns its address.
async fn service(seen: &Seen, app: &str) -> anyhow::Result<String> {
    let ports = json!([{"port": 80, "targetPort": 8080}]);
    seen.create::<Service>(json!({
        "metadata": {"name": app, "namespace": "default"},
        "spec": {"selector": {"app": app}, "ports": ports},
    }))
    .await?;
    let service = seen.until("the Service", |s| s.one::<Service>("default", app)).await?;
    Ok(format!("{}:80", service["spec"]["clusterIP"].as_str().context("no cluster IP")?))
}

/// Waits until the address answers, which is some milliseconds after the first pod is ready.
async fn answers(address: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = fetch(address, "/").await {
        ensure!(Instant::now() < deadline, "{address}: {error:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Waits until every pod behind the address answers with this page. A rollout is complete when its last old pod is
/// told to stop; that pod leaves the Service some milliseconds later, and until then answers as before.
async fn answers_only(address: &str, page: &str) -> anyhow::Result<()> {
    let (deadline, page) = (Instant::now() + Duration::from_secs(10), format!("\r\n\r\n{page}\n"));
    let mut same = 0;
    while same < SAME_ANSWERS_MIN {
        let answer = fetch(address, "/").await?;
        same = if answer.contains(&page) { same + 1 } else { 0 };
        ensure!(Instant::now() < deadline, "wanted {page:?}, still answers {answer:?}");
    }
    Ok(())
}

async fn rollout() -> anyhow::Result<()> {
    let cluster = Cluster::with_node()?;
    cluster.up()?;
    let seen = cluster.seen().await?;
    seen.create::<Deployment>(deployment("web", 3, &Value::Null)).await?;
    let address = service(&seen, "web").await?;
    let first = seen.ready_pods("web", 3).await?;
    answers(&address).await?;
    let load = Load::start(&address);

    seen.merge::<Deployment>("web", json!({"spec": {"replicas": 5}})).await?;
    let more = seen.ready_pods("web", 5).await?;
    ensure!(first.iter().all(|old| more.iter().any(|p| uid(p) == uid(old))), "pods were replaced");
    seen.merge::<Deployment>("web", json!({"spec": {"replicas": 3}})).await?;
    seen.rolled_out("web").await?;

    // Another environment, then another name of the image: each a new revision.
    let old = seen.one::<Deployment>("default", "web").context("no Deployment")?;
    let env = json!([{"op": "replace", "path": "/spec/template/spec/containers/0/env/0/value", "value": "two"}]);
    seen.client.patch::<Deployment>("default", "web", "", Patch::Json(env)).await?;
    seen.rolled_out("web").await?;
    answers_only(&address, "two").await?;
    let image = json!([{
        "op": "replace", "path": "/spec/template/spec/containers/0/image",
        "value": format!("docker.io/{IMAGE}"),
    }]);
    seen.client.patch::<Deployment>("default", "web", "", Patch::Json(image)).await?;
    let deployment = seen.rolled_out("web").await?;
    ensure!(deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "3");

    // As `kubectl rollout undo --to-revision=1` does it: the template of then is put back.
    let template = &old["spec"]["template"];
    let undo = json!([{"op": "replace", "path": "/spec/template", "value": template}]);
    seen.client.patch::<Deployment>("default", "web", "", Patch::Json(undo)).await?;
    let deployment = seen.rolled_out("web").await?;
    answers_only(&address, "one").await?;
    ensure!(deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "4");
    let sets = seen.all::<ReplicaSet>();
    ensure!(sets.len() == 3, "a known template makes no new ReplicaSet: {sets:#?}");

    let answered = load.stop().await?;
    println!("{answered} requests during three rollouts, none failed");
    ensure!(answered >= REQUESTS_MIN, "only {answered} requests");
    cluster.check_log(&[])
}

async fn restarts() -> anyhow::Result<()> {
    let cluster = Cluster::with_node()?;
    cluster.up()?;
    let seen = cluster.seen().await?;
    seen.create::<Deployment>(deployment("web", 2, &Value::Null)).await?;
    let pods = seen.ready_pods("web", 2).await?;

    let victim = &pods[0];
    let id = container(victim, "web")["containerID"].as_str().context("no container")?;
    machine::kill(&machine::container_processes(id)?)?;
    let again = seen
        .until("the killed container runs again", |seen| {
            let pod = seen.one::<Pod>("default", name(victim))?;
            (container(&pod, "web")["restartCount"] == 1 && ready(&pod)).then_some(pod)
        })
        .await?;
    ensure!(uid(&again) == uid(victim), "the pod was replaced");
    let ended = &container(&again, "web")["lastState"]["terminated"];
    ensure!(ended["exitCode"] == 137 && ended["reason"] == "Error", "{ended}");
    ensure!(container(&again, "web")["containerID"] != id, "the same container");

    seen.client.delete::<Pod>("default", name(&pods[1]), Delete::default()).await?;
    let pods = seen
        .until("the deleted pod is replaced", |seen| {
            let now = seen.pods("web");
            let gone = now.iter().all(|p| uid(p) != uid(&pods[1]));
            (gone && now.len() == 2 && now.iter().all(ready)).then_some(now)
        })
        .await?;
    ensure!(pods.iter().any(|p| uid(p) == uid(victim)), "the other pod was replaced too");
    cluster.check_log(&[])
}

/// The command of a probe that asks whether a file of volume `switch` is there.
fn switch(file: &str) -> Value {
    json!({"command": ["/demo", "cat", format!("/switch/{file}")]})
}

async fn probes() -> anyhow::Result<()> {
    let cluster = Cluster::with_node()?;
    cluster.up()?;
    let seen = cluster.seen().await?;
    let scratch = tempfile::tempdir()?;
    let file = |name: &str| scratch.path().join(name);
    std::fs::write(file("live"), "")?;
    std::fs::write(file("ready"), "")?;
    let probe =
        |name: &str| json!({"exec": switch(name), "periodSeconds": 1, "failureThreshold": 1});
    let spec = json!({
        "containers": [{
            "name": "web",
            "readinessProbe": probe("ready"),
            "livenessProbe": probe("live"),
            "volumeMounts": [{"name": "switch", "mountPath": "/switch"}],
        }],
        "volumes": [{"name": "switch", "hostPath": {"path": scratch.path(), "type": "Directory"}}],
    });
    seen.create::<Pod>(pod("web", spec)).await?;
    let address = service(&seen, "web").await?;
    seen.ready_pods("web", 1).await?;
    answers(&address).await?;

    std::fs::remove_file(file("ready"))?;
    seen.until("the pod is not ready", |seen| {
        let pod = seen.one::<Pod>("default", "web")?;
        (!ready(&pod)).then_some(())
    })
    .await?;
    let verdict = Instant::now();
    let served = |seen: &Seen| {
        let slices = seen.all::<EndpointSlice>();
        let mut endpoints = slices
            .iter()
            .filter(|s| s["metadata"]["labels"]["kubernetes.io/service-name"] == "web")
            .filter_map(|s| s["endpoints"].as_array())
            .flatten();
        endpoints.any(|e| e["conditions"]["ready"] == true)
    };
    seen.until("the pod is out of its slice", |seen| (!served(seen)).then_some(())).await?;
    let took = verdict.elapsed();
    println!("out of the EndpointSlice {took:?} after the verdict");
    ensure!(took < OUT_MAX, "out of the EndpointSlice only after {took:?}");
    while fetch(&address, "/").await.is_ok() {
        ensure!(verdict.elapsed() < OUT_MAX, "still served after {:?}", verdict.elapsed());
    }
    std::fs::write(file("ready"), "")?;
    seen.until("the pod is served again", |seen| served(seen).then_some(())).await?;
    let pod = seen.one::<Pod>("default", "web").context("no pod")?;
    ensure!(container(&pod, "web")["restartCount"] == 0, "an unready container was restarted");

    std::fs::remove_file(file("live"))?;
    let restarted = |seen: &Seen| {
        let pod = seen.one::<Pod>("default", "web")?;
        (container(&pod, "web")["restartCount"].as_u64() > Some(0)).then_some(pod)
    };
    seen.until("the container is restarted", restarted).await?;
    std::fs::write(file("live"), "")?;
    seen.ready_pods("web", 1).await?;
    cluster.check_log(&[])
}

async fn order() -> anyhow::Result<()> {
    let cluster = Cluster::with_node()?;
    cluster.up()?;
    let seen = cluster.seen().await?;
    let state = json!([{"name": "state", "mountPath": "/state"}]);
    // Each step fails unless the ones before it are done: the sidecar is not started before `first` has written, `second`
    // reaches the sidecar, and the container sees what both have left.
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [
            {"name": "first", "command": ["/demo", "write", "/state/first", "1"], "volumeMounts": state},
            {
                "name": "side", "restartPolicy": "Always", "volumeMounts": state,
                "env": [{"name": "GREETING_FILE", "value": "/state/first"}, {"name": "DRAIN_SECONDS", "value": "0"}],
                "startupProbe": {"exec": {"command": ["/demo", "cat", "/state/first"]}, "periodSeconds": 1},
            },
            {"name": "second", "command": ["/demo", "get", "127.0.0.1:8080", "/"], "volumeMounts": state},
        ],
        "containers": [
            {"name": "main", "command": ["/demo", "get", "127.0.0.1:8080", "/"], "volumeMounts": state},
        ],
        "volumes": [{"name": "state", "emptyDir": {}}],
    });
    seen.create::<Pod>(pod("steps", spec)).await?;
    let pod = seen
        .until("the pod has ended", |seen| {
            let pod = seen.one::<Pod>("default", "steps")?;
            matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")).then_some(pod)
        })
        .await?;
    ensure!(pod["status"]["phase"] == "Succeeded", "{}", pod["status"]);
    for step in ["second", "main"] {
        let text = cluster.printed(&pod, step)?;
        ensure!(text.contains("\n1\n"), "{step}: {text}");
    }
    let side = &container(&pod, "side")["state"]["terminated"];
    ensure!(side["exitCode"] == 0, "the sidecar is ended after the last container: {pod:#}");

    // An init container that fails is tried again, and nothing after it starts.
    let spec = json!({
        "initContainers": [{"name": "never", "command": ["/demo", "exit", "3"]}],
        "containers": [{"name": "main"}],
    });
    seen.create::<Pod>(self::pod("stuck", spec)).await?;
    let stuck = seen
        .until("the init container is tried again", |seen| {
            let pod = seen.one::<Pod>("default", "stuck")?;
            (container(&pod, "never")["restartCount"] == 1).then_some(pod)
        })
        .await?;
    ensure!(stuck["status"]["phase"] == "Pending", "{}", stuck["status"]);
    let waiting = &container(&stuck, "main")["state"]["waiting"]["reason"];
    ensure!(waiting == "PodInitializing", "{waiting}");
    cluster.check_log(&[])
}

/// A pod with all the ways to be told something.
fn full() -> Value {
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    json!({
        "restartPolicy": "Never",
        "initContainers": [
            {"name": "env", "command": ["/demo", "env"],
                "envFrom": [{"prefix": "MAP_", "configMapRef": {"name": "settings"}}],
                "env": [
                    {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
                    {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "password", "key": "word"}}},
                    {"name": "NODE", "valueFrom": field("spec.nodeName")},
                    {"name": "IP", "valueFrom": field("status.podIP")},
                    {"name": "BOTH", "value": "$(COLOUR)-$(WORD)"},
                ]},
            {"name": "write", "command": ["/demo", "write", "/empty/note", "kept"],
                "volumeMounts": [{"name": "empty", "mountPath": "/empty"}]},
        ],
        "containers": [{"name": "files",
            "command": ["/demo", "cat", "/map/colour", "/secret/word", "/about/labels", "/empty/note", "/token/token"],
            "volumeMounts": [
                {"name": "map", "mountPath": "/map"}, {"name": "secret", "mountPath": "/secret"},
                {"name": "about", "mountPath": "/about"}, {"name": "empty", "mountPath": "/empty"},
                {"name": "token", "mountPath": "/token"},
            ]}],
        "volumes": [
            {"name": "map", "configMap": {"name": "settings"}},
            {"name": "secret", "secret": {"secretName": "password"}},
            {"name": "about", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"name": "empty", "emptyDir": {"medium": "Memory"}},
            {"name": "token", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "audience": "vault", "expirationSeconds": 3600}},
            ]}},
        ],
    })
}

async fn contents() -> anyhow::Result<()> {
    let cluster = Cluster::with_node()?;
    cluster.up()?;
    let seen = cluster.seen().await?;
    let meta = |name: &str| json!({"name": name, "namespace": "default"});
    let map = json!({"metadata": meta("settings"), "data": {"colour": "blue", "shape": "round"}});
    seen.create::<ConfigMap>(map).await?;
    let secret = json!({"metadata": meta("password"), "stringData": {"word": "sesame"}});
    seen.create::<Secret>(secret).await?;
    seen.create::<Pod>(pod("full", full())).await?;
    let pod = seen
        .until("the pod has ended", |seen| {
            let pod = seen.one::<Pod>("default", "full")?;
            matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")).then_some(pod)
        })
        .await?;
    ensure!(pod["status"]["phase"] == "Succeeded", "{}", pod["status"]);
    let env = cluster.printed(&pod, "env")?;
    let ip = format!("IP={}", pod["status"]["podIP"].as_str().context("no address")?);
    for line in
        ["MAP_shape=round", "COLOUR=blue", "WORD=sesame", "NODE=n1", &ip, "BOTH=blue-sesame"]
    {
        ensure!(env.lines().any(|l| l == line), "{line} is not in {env}");
    }
    ensure!(env.contains("KUBERNETES_SERVICE_HOST=10.96.0.1"), "{env}");
    let files = cluster.printed(&pod, "files")?;
    ensure!(files.starts_with("bluesesameapp=\"full\""), "{files}");
    ensure!(files.contains("kept") && files.contains("ey"), "no note or no token: {files}");
    let left = cluster.dir().join("node/pods").join(uid(&pod)).join("volumes");
    // Volumes stay until the pod is deleted, and no longer.
    seen.client.delete::<Pod>("default", "full", Delete::default()).await?;
    seen.until("the pod is gone", |s| s.one::<Pod>("default", "full").is_none().then_some(()))
        .await?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while left.exists() {
        ensure!(Instant::now() < deadline, "{} is left", left.display());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cluster.check_log(&[])
}

/// A Job whose one container runs `command`.
fn job(command: &[&str], more: &Value) -> Value {
    let container = json!({"name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": command});
    let pod = json!({
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container],
    });
    let mut spec = json!({"template": {"spec": pod}});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    spec
}

fn holds(object: &Value, condition: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|c| c["type"] == condition && c["status"] == "True")
}

fn pods_of(seen: &Seen, job: &str) -> Vec<Value> {
    let mut pods = seen.all::<Pod>();
    pods.retain(|pod| pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] == job);
    pods
}

async fn jobs() -> anyhow::Result<()> {
    let cluster = Cluster::with_node()?;
    cluster.up()?;
    let seen = cluster.seen().await?;
    let meta = |name: &str| json!({"name": name, "namespace": "default"});

    let more = json!({"completions": 3, "parallelism": 2, "completionMode": "Indexed"});
    let spec = job(&["/demo", "env"], &more);
    seen.create::<Job>(json!({"metadata": meta("each"), "spec": spec})).await?;
    let never = json!({"backoffLimit": 0});
    let spec = job(&["/demo", "exit", "3"], &never);
    seen.create::<Job>(json!({"metadata": meta("never"), "spec": spec})).await?;
    let spec = job(&["/demo", "sleep", "3600"], &json!({}));
    seen.create::<Job>(json!({"metadata": meta("long"), "spec": spec})).await?;
    let template = json!({"spec": job(&["/demo", "echo", "tick"], &json!({}))});
    let spec = json!({"schedule": "@every 1s", "jobTemplate": template});
    seen.create::<CronJob>(json!({"metadata": meta("tick"), "spec": spec})).await?;

    let ended = |name: &'static str, condition: &'static str| {
        move |seen: &Seen| seen.one::<Job>("default", name).filter(|job| holds(job, condition))
    };
    let each = seen.until("every index has succeeded", ended("each", "Complete")).await?;
    ensure!(each["status"]["completedIndexes"] == "0-2", "{}", each["status"]);
    ensure!(each["status"]["succeeded"] == 3, "{}", each["status"]);
    let pods = pods_of(&seen, "each");
    for index in 0..3 {
        let label = "batch.kubernetes.io/job-completion-index";
        let text = index.to_string();
        let own = pods.iter().find(|p| p["metadata"]["labels"][label] == text);
        let pod = own.with_context(|| format!("no pod of index {index}"))?;
        let env = cluster.printed(pod, "main")?;
        for line in [format!("JOB_COMPLETION_INDEX={index}"), format!("HOSTNAME=each-{index}")] {
            ensure!(env.lines().any(|l| l == line), "{line} is not in {env}");
        }
    }
    let failed = seen.until("the failing one has failed", ended("never", "Failed")).await?;
    ensure!(failed["status"]["failed"] == 1, "{}", failed["status"]);

    // A pod that runs is not held back by what it carries for a Job that is gone.
    seen.until("the long one runs", |seen| {
        let pods = pods_of(seen, "long");
        pods.iter().any(|pod| pod["status"]["phase"] == "Running").then_some(())
    })
    .await?;
    let all_of_it = || Delete { propagation: "Background", ..Delete::default() };
    seen.client.delete::<Job>("default", "long", all_of_it()).await?;
    let gone = |seen: &Seen| pods_of(seen, "long").is_empty().then_some(());
    seen.until("the pods of the deleted Job are gone", gone).await?;

    seen.until("the CronJob has had success", |seen| {
        let cron = seen.one::<CronJob>("default", "tick")?;
        cron["status"]["lastSuccessfulTime"].is_string().then_some(())
    })
    .await?;
    seen.client.delete::<CronJob>("default", "tick", all_of_it()).await?;
    seen.until("its Jobs and their pods go with it", |seen| {
        let of = |object: &Value| name(object).starts_with("tick-");
        let left = seen.all::<Job>().iter().any(of) || seen.all::<Pod>().iter().any(of);
        (!left).then_some(())
    })
    .await?;
    cluster.check_log(&[])
}

/// What pods use is known without anything installed, and a HorizontalPodAutoscaler goes by it.
async fn scaled_by_use() -> anyhow::Result<()> {
    let cluster = Cluster::with_node()?;
    cluster.up()?;
    let seen = cluster.seen().await?;
    let requests = json!({"resources": {"requests": {"memory": "1Mi", "cpu": "10m"}}});
    seen.create::<Deployment>(deployment("web", 1, &requests)).await?;
    seen.ready_pods("web", 1).await?;
    let measured = |resource: &str| Kind {
        group: "metrics.k8s.io".into(),
        version: "v1beta1".into(),
        resource: resource.into(),
    };
    let everything = Scope::default();
    let (nodes, _) = seen.client.list_raw(&measured("nodes"), &everything).await?;
    let node: Value = serde_json::from_slice(&nodes.first().context("no node measured")?.json)?;
    ensure!(node["usage"]["memory"].as_str().is_some_and(|m| m.ends_with("Ki")), "{node}");
    let of_web =
        Scope { namespace: "default".into(), labels: "app=web".into(), ..Scope::default() };
    let (pods, _) = seen.client.list_raw(&measured("pods"), &of_web).await?;
    ensure!(pods.len() == 1, "{} pods measured", pods.len());
    let pod: Value = serde_json::from_slice(&pods[0].json)?;
    ensure!(pod["containers"][0]["name"] == "web" && pod["window"].is_string(), "{pod}");

    // Any process uses more than a kilobyte: as many as may be.
    let metric = json!({"type": "Resource", "resource":
        {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Ki"}}});
    seen.create::<HorizontalPodAutoscaler>(json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "minReplicas": 1, "maxReplicas": 3, "metrics": [metric],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        },
    }))
    .await?;
    seen.ready_pods("web", 3).await?;
    let scaler = |wanted: i64| {
        let seen = &seen;
        async move {
            let what = format!("the status says {wanted}");
            seen.until(&what, |s| {
                let scaler = s.one::<HorizontalPodAutoscaler>("default", "web")?;
                let status = &scaler["status"];
                let is = status["currentReplicas"] == wanted && status["desiredReplicas"] == wanted;
                is.then_some(scaler)
            })
            .await
        }
    };
    let status = scaler(3).await?["status"].clone();
    let mut limited = status["conditions"].as_array().into_iter().flatten();
    let limited = limited.find(|c| c["type"] == "ScalingLimited");
    ensure!(limited.is_some_and(|c| c["reason"] == "TooManyReplicas"), "{status}");
    // And down again, by another goal.
    let goal = json!([{"op": "replace", "path": "/spec/metrics/0/resource/target/averageValue", "value": "10Gi"}]);
    seen.client.patch::<HorizontalPodAutoscaler>("default", "web", "", Patch::Json(goal)).await?;
    scaler(1).await?;
    seen.ready_pods("web", 1).await?;
    cluster.check_log(&[])
}

/// A claim just works: a directory of the node that outlives its pods and the cluster's process, and goes with the claim.
async fn claims() -> anyhow::Result<()> {
    let cluster = Cluster::with_node()?;
    cluster.up()?;
    let mut seen = cluster.seen().await?;
    let claim =
        json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Mi"}}});
    seen.until("the default storage class", |s| s.one::<StorageClass>("", "local-path")).await?;
    seen.create::<PersistentVolumeClaim>(json!({
        "metadata": {"name": "data", "namespace": "default"}, "spec": claim,
    }))
    .await?;
    let one_shot = |name: &str, command: &[&str], volume: Value| {
        let mut volume = volume;
        volume["name"] = json!("v");
        let command: Vec<&str> = std::iter::once("/demo").chain(command.iter().copied()).collect();
        pod(
            name,
            json!({
                "restartPolicy": "Never", "volumes": [volume],
                "securityContext": {"runAsUser": 1000, "fsGroup": 2000},
                "containers": [{"name": "c", "command": command,
                    "volumeMounts": [{"name": "v", "mountPath": "/data"}]}],
            }),
        )
    };
    let named = || json!({"persistentVolumeClaim": {"claimName": "data"}});
    seen.create::<Pod>(one_shot("writes", &["write", "/data/note", "kept"], named())).await?;
    seen.ended("writes").await?;
    let volume = seen
        .until("the volume is bound", |s| {
            let volumes = s.all::<PersistentVolume>();
            volumes.into_iter().find(|v| v["status"]["phase"] == "Bound")
        })
        .await?;
    let path = volume["spec"]["local"]["path"].as_str().context("no path")?.to_owned();
    ensure!(std::fs::read_to_string(format!("{path}/note"))? == "kept");
    let bound = seen.one::<PersistentVolumeClaim>("default", "data").context("no claim")?;
    ensure!(bound["status"]["capacity"]["storage"] == "10Mi", "{bound}");

    cluster.kill()?;
    cluster.up()?;
    seen = cluster.seen().await?;
    seen.create::<Pod>(one_shot("reads", &["cat", "/data/note"], named())).await?;
    let reader = seen.ended("reads").await?;
    ensure!(cluster.printed(&reader, "c")?.contains("kept"));

    // One that lives as long as its pod.
    let own = json!({"ephemeral": {"volumeClaimTemplate": {"spec": claim}}});
    seen.create::<Pod>(one_shot("own", &["write", "/data/note", "mine"], own)).await?;
    seen.ended("own").await?;
    let volumes = |s: &Seen| s.all::<PersistentVolume>().len();
    ensure!(volumes(&seen) == 2, "{} volumes", volumes(&seen));
    seen.client.delete::<Pod>("default", "own", Delete::default()).await?;
    seen.until("its volume goes with the pod", |s| (volumes(s) == 1).then_some(())).await?;

    // The claim is held by its pods, and takes the directory with it.
    seen.client.delete::<PersistentVolumeClaim>("default", "data", Delete::default()).await?;
    for name in ["writes", "reads"] {
        seen.client.delete::<Pod>("default", name, Delete::default()).await?;
    }
    seen.until("the volume is gone", |s| (volumes(s) == 0).then_some(())).await?;
    ensure!(!std::path::Path::new(&path).exists(), "{path} is still there");
    cluster.check_log(&[])
}
