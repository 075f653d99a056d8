//! The whole agent on a real, private containerd against an API server in memory: pods run, are
//! restarted, probed, adopted after a crash and deleted, and nothing is left. Needs root,
//! containerd, runc, CNI plugins and the static images; what a machine lacks is listed as ignored.
#![allow(clippy::disallowed_methods)] // a test as a whole, which measures itself

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use daemon::{Clock, Context};
use libtest_mimic::{Arguments, Failed, Trial};
use node_agent::{Config, images};
use serde_json::{Value, json};
use testkit::fake_api::FakeApi;
use tokio_util::sync::CancellationToken;

const CNI_BIN: &str = "/usr/lib/cni";
const PATIENCE: Duration = Duration::from_secs(30);
const GROUP: &str = "ironclad-agent-test";

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let lacks = lacks();
    let trial = Trial::test("root_containerd_agent_runs_pods", || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(whole()).map_err(|error| Failed::from(format!("{error:#}")))
    });
    if !lacks.is_empty() {
        eprintln!("lacking: {}", lacks.join(", "));
    }
    libtest_mimic::run(&arguments, vec![trial.with_ignored_flag(!lacks.is_empty())]).exit();
}

/// Where the static images, built beforehand, are.
fn programs() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    let target = exe.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists());
    let triple = format!("{}-unknown-linux-gnu/release", std::env::consts::ARCH);
    target.unwrap_or(Path::new("target")).join(triple)
}

fn lacks() -> Vec<&'static str> {
    let mut lacks = Vec::new();
    let paths = std::env::var("PATH").unwrap_or_default();
    let found = |name: &str| paths.split(':').any(|dir| Path::new(dir).join(name).exists());
    if !nix::unistd::geteuid().is_root() {
        lacks.push("root");
    }
    if !found("containerd") || !found("runc") {
        lacks.push("containerd and runc");
    }
    if !Path::new(CNI_BIN).join("ptp").exists() {
        lacks.push("CNI plugins");
    }
    if !programs().join("ironclad-pause").exists() || !programs().join("ironclad-demo").exists() {
        lacks.push("static pause and demo images");
    }
    lacks
}

fn config(scratch: &Path) -> Config {
    Config {
        node_name: "n1".into(),
        node_ip: "192.0.2.1".into(),
        data_dir: scratch.to_owned(),
        cgroup_root: GROUP.into(),
        images_dir: programs().display().to_string(),
        ..Config::default()
    }
}

async fn whole() -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let config = config(&scratch.path().join("node"));
    let outcome = scenario(&config).await;
    if outcome.is_err() {
        let log = std::fs::read_to_string(config.data_dir.join("containerd/containerd.log"));
        let log = log.unwrap_or_default();
        let errors = log.lines().filter(|line| line.contains("level=error"));
        errors.take(10).for_each(|line| eprintln!("{line}"));
    }
    let purged = node_agent::purge(&config).await;
    outcome?;
    purged?;
    ensure!(!config.data_dir.exists(), "files are left");
    let groups = Path::new("/sys/fs/cgroup/memory").join(GROUP);
    ensure!(!groups.exists(), "cgroups are left");
    Ok(())
}

struct Running {
    ctx: Context,
}

impl Running {
    async fn start(config: &Config, api: &FakeApi) -> anyhow::Result<Self> {
        let ctx = Context::new(CancellationToken::new());
        node_agent::start(config, api.channel(), &ctx).await?;
        Ok(Self { ctx })
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.ctx.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.ctx.tasks.join()).await.context("does not end")?
    }
}

fn pod(name: &str, container: Value) -> Value {
    let mut container = container;
    container["name"] = json!("demo");
    container["image"] = json!(images::DEMO_IMAGE);
    container["imagePullPolicy"] = json!("IfNotPresent");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "spec": {
            "nodeName": "n1", "restartPolicy": "Always", "terminationGracePeriodSeconds": 5,
            "containers": [container],
        },
        "status": {"phase": "Pending"},
    })
}

fn look(api: &FakeApi, name: &str) -> Value {
    api.get("", "pods", "default", name).unwrap_or_default()
}

fn ready(pod: &Value) -> bool {
    let list = pod["status"]["conditions"].as_array();
    list.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

async fn until(
    api: &FakeApi,
    name: &str,
    what: &str,
    done: impl Fn(&Value) -> bool,
) -> anyhow::Result<Value> {
    let waited = tokio::time::timeout(PATIENCE, api.until(|api| done(&look(api, name)))).await;
    ensure!(waited.is_ok(), "{what}: {:#}\n{:#?}", look(api, name), events(api));
    Ok(look(api, name))
}

fn events(api: &FakeApi) -> Vec<String> {
    let events = api.all("", "events");
    events.iter().map(|e| format!("{} {}", e["reason"], e["message"])).collect()
}

async fn scenario(config: &Config) -> anyhow::Result<()> {
    let api = FakeApi::new();
    let agent = Running::start(config, &api).await?;
    let registered = api.until(|api| api.get("", "nodes", "", "n1").is_some());
    tokio::time::timeout(PATIENCE, registered).await.context("node does not register")?;
    let mut node = api.get("", "nodes", "", "n1").unwrap_or_default();
    node["spec"] = json!({"podCIDR": "10.213.11.0/24", "podCIDRs": ["10.213.11.0/24"]});
    api.put("", "nodes", node);

    let clock = Clock::system();
    let probe = json!({"httpGet": {"path": "/readyz", "port": 8080}, "periodSeconds": 1});
    api.put("", "pods", pod("web", json!({"readinessProbe": probe})));
    let web = until(&api, "web", "web gets ready", ready).await?;
    println!("first pod ready after {:?}", clock.monotonic());
    let clock = Clock::system();
    api.put("", "pods", pod("second", json!({})));
    until(&api, "second", "second runs", |p| p["status"]["phase"] == "Running").await?;
    println!("second pod running after {:?}", clock.monotonic());
    ensure!(
        web["status"]["podIP"].as_str().is_some_and(|ip| ip.starts_with("10.213.11.")),
        "{web}"
    );

    killed(&api, 1).await.context("kill")?;
    let pid = config.data_dir.join("containerd/containerd.pid");
    let pid: i32 = std::fs::read_to_string(pid)?.trim().parse()?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
    // Ends while containerd is away; the back-off of its second end is 10 s.
    killed(&api, 2).await.context("kill without containerd")?;
    crashing(&api).await.context("crash")?;

    ending(&api).await.context("end")?;
    refused(&api).await.context("refuse")?;

    // A new agent finds everything as it was.
    agent.stop().await?;
    let before = look(&api, "web")["status"]["containerStatuses"].clone();
    let agent = Running::start(config, &api).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = look(&api, "web")["status"]["containerStatuses"].clone();
    ensure!(before == after, "adoption changed\n{before:#}\nto\n{after:#}");

    for name in ["web", "second", "crash", "done", "late", "noimage", "noconfig"] {
        let mut pod = look(&api, name);
        let now = clock.now();
        pod["metadata"]["deletionTimestamp"] = json!(now.to_string());
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(1);
        api.put("", "pods", pod);
    }
    for name in ["web", "second", "crash", "done", "late", "noimage", "noconfig"] {
        until(&api, name, "is gone", Value::is_null).await?;
    }
    let runtime = node_agent::runtime::Runtime::new(node_agent::runtime::channel(
        &node_agent::private_containerd(config).socket(),
    ));
    for _ in 0..100 {
        if runtime.pods().await?.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(runtime.pods().await?.is_empty(), "pods are left: {:#?}", runtime.pods().await?);
    agent.stop().await?;
    for dir in ["pods", "logs"] {
        let left: Vec<_> =
            std::fs::read_dir(config.data_dir.join(dir))?.flatten().map(|e| e.path()).collect();
        ensure!(left.is_empty(), "left: {left:?}");
    }
    Ok(())
}

/// A container whose process is killed comes back, at once the first time.
async fn killed(api: &FakeApi, times: u32) -> anyhow::Result<()> {
    let status = look(api, "second");
    let id = status["status"]["containerStatuses"][0]["containerID"].as_str().unwrap_or_default();
    let id = id.trim_start_matches("containerd://").to_owned();
    let processes = std::fs::read_dir("/proc")?.flatten();
    let pid =
        processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).find(|pid| {
            let group = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            !id.is_empty() && group.contains(&id)
        });
    let pid = nix::unistd::Pid::from_raw(pid.context("no process")?);
    let clock = Clock::system();
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
    let back = until(api, "second", "comes back", |p| {
        let container = &p["status"]["containerStatuses"][0];
        container["restartCount"] == times && !container["state"]["running"].is_null()
    })
    .await?;
    println!("restarted after {:?}", clock.monotonic());
    let last = &back["status"]["containerStatuses"][0]["lastState"]["terminated"];
    ensure!(last["exitCode"] == 137 && last["reason"] == "Error", "{last}");
    Ok(())
}

/// A container that keeps failing waits in CrashLoopBackOff.
async fn crashing(api: &FakeApi) -> anyhow::Result<()> {
    api.put("", "pods", pod("crash", json!({"args": ["exit", "3"]})));
    let seen = until(api, "crash", "backs off", |p| {
        p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    })
    .await?;
    let container = &seen["status"]["containerStatuses"][0];
    ensure!(container["lastState"]["terminated"]["exitCode"] == 3, "{container:#}");
    ensure!(seen["status"]["phase"] == "Running", "{seen:#}");
    Ok(())
}

/// Pods that are not restarted come to their end, by themselves or at their deadline.
async fn ending(api: &FakeApi) -> anyhow::Result<()> {
    let mut done = pod("done", json!({"args": ["echo", "bye"]}));
    done["spec"]["restartPolicy"] = json!("Never");
    let mut late = pod("late", json!({"args": ["sleep", "60"]}));
    late["spec"]["activeDeadlineSeconds"] = json!(1);
    late["spec"]["terminationGracePeriodSeconds"] = json!(1);
    api.put("", "pods", done);
    api.put("", "pods", late);
    let done = until(api, "done", "succeeds", |p| p["status"]["phase"] == "Succeeded").await?;
    let ended = &done["status"]["containerStatuses"][0]["state"]["terminated"];
    ensure!(ended["reason"] == "Completed" && ended["exitCode"] == 0, "{done:#}");
    let late = until(api, "late", "fails", |p| p["status"]["phase"] == "Failed").await?;
    ensure!(late["status"]["reason"] == "DeadlineExceeded", "{late:#}");
    Ok(())
}

/// What keeps a container from starting shows as its reason to wait.
async fn refused(api: &FakeApi) -> anyhow::Result<()> {
    let mut noimage = pod("noimage", json!({}));
    noimage["spec"]["containers"][0]["image"] = json!("ironclad/nothing:1");
    noimage["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    let missing =
        json!({"name": "X", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "k"}}});
    api.put("", "pods", noimage);
    api.put("", "pods", pod("noconfig", json!({"env": [missing]})));
    let waits = |reason: &'static str| {
        move |p: &Value| p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
    };
    until(api, "noimage", "says why", waits("ErrImageNeverPull")).await?;
    let reason = "CreateContainerConfigError";
    let pod = until(api, "noconfig", "says why", waits(reason)).await?;
    let text = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"];
    ensure!(text == "configmap \"no\" not found", "{text}");
    Ok(())
}
