//! Every daemon as a process of its own, started as its systemd unit starts it; each is killed in turn, the rest go on,
//! and what changed meanwhile takes effect when it is back.
#![allow(clippy::disallowed_methods)] // a test as a whole

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use client::transport::Delete;
use integration_tests::apart::{Apart, DAEMONS};
use integration_tests::load::{Load, fetch};
use integration_tests::{Seen, check_log, container, machine, name, ready, uid};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use serde_json::{Value, json};

/// How long the kernel's rules and the DNS may lag behind the API once their daemons run.
const CATCH_UP_MAX: Duration = Duration::from_secs(20);
const ASK_TIMEOUT: Duration = Duration::from_millis(500);
/// How long nobody leads after a leader that said goodbye: less than its lease would have held.
const HANDOVER_MAX: Duration = Duration::from_secs(10);
/// What daemons may complain of while another is dead.
const EXPECTED: &[&str] = &["store did not answer", "store is not available", "tcp connect error"];

fn main() -> ExitCode {
    machine::run(vec![
        ("root_node_daemons_apart_outlive_each_other", || machine::block_on(whole())),
        ("root_node_one_of_two_controller_managers_leads", || machine::block_on(leaders())),
    ])
}

fn deployment(name: &str, replicas: u32) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"terminationGracePeriodSeconds": 3, "containers": [{
                    "name": "web", "image": "ironclad/demo:0.1.0", "imagePullPolicy": "IfNotPresent",
                    "env": [{"name": "DRAIN_SECONDS", "value": "2"}],
                    "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8080}, "periodSeconds": 1},
                }]},
            },
        },
    })
}

/// Asks once, with little patience: to a Service whose rules are not there yet, a connection is made by nobody.
async fn ask(address: &str) -> anyhow::Result<String> {
    tokio::time::timeout(ASK_TIMEOUT, fetch(address, "/")).await.context("no answer")?
}

async fn scale(seen: &Seen, name: &str, replicas: u32) -> anyhow::Result<()> {
    seen.merge::<Deployment>(name, json!({"spec": {"replicas": replicas}})).await
}

async fn service(seen: &Seen, name: &str, app: &str) -> anyhow::Result<String> {
    seen.create::<Service>(json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"app": app}, "ports": [{"port": 80, "targetPort": 8080}]},
    }))
    .await?;
    let service = seen.until("the Service", |seen| seen.one::<Service>("default", name)).await?;
    Ok(service["spec"]["clusterIP"].as_str().context("no cluster IP")?.to_owned())
}

async fn soon<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + CATCH_UP_MAX;
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() > deadline => return Err(error.context(what.to_owned())),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// The address of a Service as the cluster's DNS knows it, asked by hand (RFC 1035).
fn resolve(service: &str) -> anyhow::Result<Ipv4Addr> {
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in [service, "default", "svc", "cluster", "local"] {
        query.push(u8::try_from(label.len())?);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    socket.send_to(&query, "10.96.0.10:53")?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).context("no answer")?;
    ensure!(length > query.len() && answer[7] > 0, "no such name: {:?}", &answer[..length]);
    // The answer's one record ends with the address.
    let data = &answer[length - 4..length];
    Ok(Ipv4Addr::new(data[0], data[1], data[2], data[3]))
}

fn ids(pods: &[Value]) -> Vec<(String, String)> {
    let id = |p: &Value| container(p, "web")["containerID"].as_str().unwrap_or("").to_owned();
    let mut ids: Vec<_> = pods.iter().map(|p| (uid(p).to_owned(), id(p))).collect();
    ids.sort();
    ids
}

async fn whole() -> anyhow::Result<()> {
    let mut apart = Apart::prepare()?;
    for daemon in DAEMONS {
        apart.start(daemon)?;
        if daemon == "proxy" {
            // It gives the machine the address that the DNS server listens at. systemd would start that one again.
            soon("the DNS server's address", async || {
                let addresses = machine::output("ip", &["addr"])?;
                ensure!(addresses.contains("10.96.0.10"), "none");
                Ok(())
            })
            .await?;
        }
    }
    let seen = soon("the API server answers", async || apart.seen().await).await?;
    seen.until("the node is ready", |seen| seen.one::<Node>("", "n1").filter(ready)).await?;
    seen.create::<Deployment>(deployment("web", 2)).await?;
    seen.create::<Deployment>(deployment("solo", 1)).await?;
    let address = format!("{}:80", service(&seen, "web", "web").await?);
    seen.ready_pods("web", 2).await?;
    seen.ready_pods("solo", 1).await?;
    soon("the Service answers", async || ask(&address).await).await?;
    let load = Load::start(&address);

    scheduler(&mut apart, &seen).await.context("scheduler")?;
    controllers(&mut apart, &seen).await.context("controller-manager")?;
    node_agent(&mut apart, &seen).await.context("node-agent")?;
    proxy(&mut apart, &seen).await.context("proxy")?;
    dns(&mut apart, &seen).await.context("dns")?;
    hub(&mut apart, &seen, "apiserver").await.context("apiserver")?;
    hub(&mut apart, &seen, "store").await.context("store")?;

    apart.all_run()?;
    let answered = load.stop().await?;
    println!("{answered} requests while each daemon was dead once, none failed");
    for daemon in DAEMONS {
        check_log(&apart.log(daemon), EXPECTED).context(daemon)?;
    }
    Ok(())
}

/// Without a scheduler a pod waits for its node.
async fn scheduler(apart: &mut Apart, seen: &Seen) -> anyhow::Result<()> {
    apart.kill("scheduler")?;
    scale(seen, "web", 3).await?;
    seen.until("a third pod waits", |seen| {
        let pods = seen.pods("web");
        (pods.len() == 3 && pods.iter().any(|p| p["spec"]["nodeName"].is_null())).then_some(())
    })
    .await?;
    apart.start("scheduler")?;
    seen.ready_pods("web", 3).await.map(drop)
}

/// Without controllers a deleted pod is not replaced.
async fn controllers(apart: &mut Apart, seen: &Seen) -> anyhow::Result<()> {
    apart.kill("controller-manager")?;
    let pods = seen.pods("solo");
    let lost = pods.first().context("no pod")?;
    seen.client.delete::<Pod>("default", name(lost), Delete::default()).await?;
    seen.until("the pod is gone", |seen| {
        let pods = seen.all::<Pod>();
        pods.iter().all(|p| uid(p) != uid(lost)).then_some(())
    })
    .await?;
    ensure!(seen.pods("solo").is_empty(), "replaced by nobody");
    apart.start("controller-manager")?;
    seen.ready_pods("solo", 1).await.map(drop)
}

/// Without an agent nothing starts, and what runs goes on; the agent adopts it.
async fn node_agent(apart: &mut Apart, seen: &Seen) -> anyhow::Result<()> {
    let before = ids(&seen.pods("web"));
    apart.kill("node-agent")?;
    scale(seen, "solo", 2).await?;
    seen.until("a second pod has its node", |seen| {
        let pods = seen.pods("solo");
        (pods.len() == 2 && pods.iter().all(|p| p["spec"]["nodeName"] == "n1")).then_some(())
    })
    .await?;
    ensure!(seen.pods("solo").iter().filter(|p| ready(p)).count() == 1, "started by nobody");
    apart.start("node-agent")?;
    seen.ready_pods("solo", 2).await?;
    let after = seen.ready_pods("web", 3).await?;
    ensure!(ids(&after) == before, "other containers: {before:?}, then {:?}", ids(&after));
    for pod in &after {
        ensure!(container(pod, "web")["restartCount"] == 0, "restarted: {pod:#}");
    }
    Ok(())
}

/// Without a proxy the rules stay as they are.
async fn proxy(apart: &mut Apart, seen: &Seen) -> anyhow::Result<()> {
    apart.kill("proxy")?;
    let address = format!("{}:80", service(seen, "solo", "solo").await?);
    let early = ask(&address).await;
    ensure!(early.is_err(), "served by nobody");
    apart.start("proxy")?;
    soon("the new Service answers", async || ask(&address).await).await.map(drop)
}

async fn dns(apart: &mut Apart, seen: &Seen) -> anyhow::Result<()> {
    soon("a name is known", async || resolve("web")).await?;
    apart.kill("dns")?;
    let address = service(seen, "named", "web").await?;
    ensure!(resolve("web").is_err(), "answered by nobody");
    apart.start("dns")?;
    let found = soon("the new name is known", async || resolve("named")).await?;
    ensure!(found.to_string() == address, "{found} for {address}");
    Ok(())
}

/// Without the API server or its store the node goes on by itself, and restarts what ends.
async fn hub(apart: &mut Apart, seen: &Seen, daemon: &'static str) -> anyhow::Result<()> {
    let pods = seen.ready_pods("solo", 2).await?;
    // One that has not ended yet is started again without a wait.
    let fresh = pods.iter().find(|p| container(p, "web")["restartCount"] == 0);
    let victim = fresh.context("no pod")?;
    let status = container(victim, "web");
    let (id, restarts) = (status["containerID"].clone(), status["restartCount"].as_u64());
    let before = ids(&seen.pods("web"));
    apart.kill(daemon)?;
    ensure!(scale(seen, "web", 5).await.is_err(), "a write without {daemon}");
    machine::kill(&machine::container_processes(id.as_str().context("no id")?)?)?;
    let ip = victim["status"]["podIP"].as_str().context("no address")?;
    soon("the container runs again", async || ask(&format!("{ip}:8080")).await).await?;
    apart.start(daemon)?;
    soon("a write", async || scale(seen, "web", 4).await).await?;
    seen.rolled_out("web").await?;
    seen.until("the restart is told", |seen| {
        let pod = seen.one::<Pod>("default", name(victim))?;
        let told = container(&pod, "web")["restartCount"].as_u64() > restarts;
        (told && ready(&pod)).then_some(())
    })
    .await?;
    // Everybody is back once a new Service answers; a pod that ended earlier would be missed too late.
    let address = format!("{}:80", service(seen, &format!("after-{daemon}"), "web").await?);
    soon("the new Service answers", async || ask(&address).await).await?;
    scale(seen, "web", 3).await?;
    seen.rolled_out("web").await?;
    let after = ids(&seen.pods("web"));
    ensure!(after == before, "other containers: {before:?}, then {after:?}");
    Ok(())
}

/// Two of a kind: one works; the other takes over, at once if it was told goodbye, else when the lease has run out.
async fn leaders() -> anyhow::Result<()> {
    const ELECT: &[&str] = &["leader_elect=true"];
    let mut apart = Apart::prepare()?;
    apart.start("store")?;
    apart.start("apiserver")?;
    let mut pids = BTreeMap::new();
    for name in ["first", "second"] {
        pids.insert(name, apart.start_as(name, "controller-manager", ELECT)?);
    }
    let seen = soon("the API server answers", async || apart.seen().await).await?;
    let leader = async |pids: &BTreeMap<&'static str, u32>| {
        seen.until("one of the two leads", |seen| {
            let lease = seen.one::<Lease>("kube-system", "kube-controller-manager")?;
            let holder = lease["spec"]["holderIdentity"].as_str()?;
            let ours = |pid: &u32| holder.ends_with(&format!("_{pid}"));
            pids.iter().find(|(_, pid)| ours(pid)).map(|(name, _)| *name)
        })
        .await
    };
    let pods = async |count: usize| {
        seen.until("as many pods as wanted", |s| (s.pods("web").len() == count).then_some(())).await
    };
    let old = leader(&pids).await?;
    seen.create::<Deployment>(deployment("web", 1)).await?;
    pods(1).await?;

    apart.kill(old)?;
    pids.remove(old);
    scale(&seen, "web", 3).await?;
    let new = leader(&pids).await?;
    ensure!(new != old, "a dead leader");
    pods(3).await?;

    pids.insert(old, apart.start_as(old, "controller-manager", ELECT)?);
    apart.stop(new)?;
    pids.remove(new);
    let asked = Instant::now();
    scale(&seen, "web", 2).await?;
    pods(2).await?;
    println!("the other acted {:?} after a goodbye", asked.elapsed());
    ensure!(asked.elapsed() < HANDOVER_MAX, "only after {:?}", asked.elapsed());
    Ok(())
}
