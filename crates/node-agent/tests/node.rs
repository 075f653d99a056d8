//! A node on a real, private containerd against an API server in memory: it registers, gets its
//! range, becomes Ready, keeps its Lease. Needs root, containerd, runc and CNI plugins; what a
//! machine lacks is listed as ignored.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use client::{Cache, Client, Select};
use daemon::Context;
use k8s_openapi::api::core::v1::Node;
use libtest_mimic::{Arguments, Failed, Trial};
use node_agent::containerd::{Containerd, unmount_below};
use node_agent::node::{self, Settings};
use node_agent::runtime::Runtime;
use serde_json::{Value, json};
use testkit::fake_api::FakeApi;
use tokio_util::sync::CancellationToken;

const CNI_BIN: &str = "/usr/lib/cni";
const PATIENCE: Duration = Duration::from_secs(20);

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let lacks = lacks();
    let trial = Trial::test("root_containerd_node_registers_and_becomes_ready", || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(whole()).map_err(|error| Failed::from(format!("{error:#}")))
    });
    if !lacks.is_empty() {
        eprintln!("lacking: {}", lacks.join(", "));
    }
    libtest_mimic::run(&arguments, vec![trial.with_ignored_flag(!lacks.is_empty())]).exit();
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
    lacks
}

async fn whole() -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let dir = scratch.path().join("containerd");
    let containerd = Containerd::new(&dir, "containerd", Path::new(CNI_BIN));
    let ctx = Context::new(CancellationToken::new());
    let outcome = ready(&containerd, scratch.path(), &ctx).await;
    ctx.shutdown.cancel();
    let ended = tokio::time::timeout(PATIENCE, ctx.tasks.join()).await;
    let stopped = containerd.stop(true).await;
    unmount_below(scratch.path())?;
    outcome?;
    stopped?;
    ended.context("parts do not end")?
}

fn condition(node: &Value, kind: &str) -> (String, String) {
    let list = node["status"]["conditions"].as_array();
    let held = list.into_iter().flatten().find(|c| c["type"] == kind);
    let text = |field: &str| held.map_or("", |c| c[field].as_str().unwrap_or_default()).to_owned();
    (text("status"), text("message"))
}

async fn until(api: &FakeApi, what: &str, done: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    let seen = |api: &FakeApi| api.get("", "nodes", "", "n1").unwrap_or_default();
    let waited = tokio::time::timeout(PATIENCE, api.until(|api| done(&seen(api)))).await;
    ensure!(waited.is_ok(), "{what}: {}", seen(api));
    Ok(seen(api))
}

async fn ready(containerd: &Containerd, scratch: &Path, ctx: &Context) -> anyhow::Result<()> {
    let api = FakeApi::new();
    let runtime = Runtime::new(containerd.start().await?);
    let client = Client::new(api.channel(), "node-agent");
    let cache = Cache::builder(client.clone())
        .kind(Select::<Node>::all().fields("metadata.name=n1"))
        .start(ctx);
    let settings = Settings {
        name: "n1".to_owned(),
        ips: vec!["192.0.2.1".to_owned()],
        pods_max: 110,
        port: 10250,
        data_dir: scratch.to_owned(),
        ..Settings::default()
    };
    let (cni, state) = (containerd.cni_dir(), containerd.cni_state_dir());
    ctx.tasks.part("node", node::run(settings, runtime, client, cache, cni, state, ctx.clone()));
    let node = until(&api, "registers", |node| !node["metadata"]["uid"].is_null()).await?;
    ensure!(condition(&node, "Ready").0 == "False", "{node}");
    ensure!(node["status"]["capacity"]["pods"] == "110", "{node}");

    let mut given = node;
    given["spec"] = json!({"podCIDR": "10.213.9.0/24", "podCIDRs": ["10.213.9.0/24"]});
    api.put("", "nodes", given);
    let node = until(&api, "is Ready", |node| condition(node, "Ready").0 == "True").await?;
    let info = &node["status"]["nodeInfo"];
    let version = info["containerRuntimeVersion"].as_str().unwrap_or_default();
    ensure!(version.starts_with("containerd://"), "{info}");
    ensure!(node["spec"]["podCIDR"] == "10.213.9.0/24", "{node}");
    let lease = api.get("coordination.k8s.io", "leases", "kube-node-lease", "n1");
    let lease = lease.context("no lease")?;
    ensure!(lease["spec"]["holderIdentity"] == "n1", "{lease}");

    // Settled: nothing is written while nothing changes.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = api.revision();
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(api.revision() == before, "{} writes", api.revision() - before);
    Ok(())
}
