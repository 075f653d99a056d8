//! Runs the pods of one node on containerd.
//!
//! - `pod` decides, purely: what to do next (`sync`), what to report (`status`), what to ask of the
//!   runtime (`spec`, `env`, `resources`).
//! - `agent` has one `worker` per pod, which looks, asks `pod`, and acts: `start` starts what
//!   belongs to a pod, `probes` and `probing` probe it, `report` writes its status.
//! - `volumes` makes what pods mount. `cgroup` bounds pods, `cni` tells plugins their network.
//! - `runtime` is the only file that knows CRI; `containerd` runs a private one; `images` packs and
//!   imports images; `tasks` runs commands in containers.
//! - `node` registers the node and keeps its status; `serve` has logs, exec, attach, port-forward
//!   and stats for the API server.

mod agent;
mod attach;
pub mod cgroup;
pub mod cni;
mod config;
pub mod containerd;
pub mod images;
pub mod logs;
pub mod node;
pub mod pod;
mod probes;
pub mod probing;
mod report;
mod rotate;
pub mod runtime;
pub mod serve;
mod start;
pub mod stats;
pub mod tasks;
mod termination;
pub mod volumes;
mod worker;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use client::{Cache, Client, Recorder, Select};
use daemon::tls::PeerCertificates;
use daemon::{Channel, Context};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use tonic::{Request, Status};
use wire::apiserver::node_server::NodeServer;

pub use config::Config;

use crate::agent::Agent;
use crate::containerd::Containerd;
use crate::node::Machine;
use crate::runtime::Runtime;
use crate::serve::NodeService;
use crate::worker::Shared;

/// How often, and how long after one another, killed processes are looked for until they have ended.
const PURGE_ROUNDS_MAX: u32 = 100;
const PURGE_ROUND: Duration = Duration::from_millis(20);
/// Users that may ask us for logs, exec and the like, beside the group `system:masters`.
const CALLERS: &[&str] = &["kube-apiserver", "kube-apiserver-kubelet-client"];

/// Runs the agent over sockets: to the API server, and for it.
///
/// # Errors
/// When the configuration cannot be used or containerd cannot be started.
pub async fn run(config: Config, ctx: Context) -> anyhow::Result<()> {
    let tls = config.tls.client()?.context("tls.ca: the API server's authority is needed")?;
    let channel = daemon::channel::connect(&config.server, Some(&tls))?;
    let serving = config.serving.server()?.context("serving.cert: a certificate is needed")?;
    anyhow::ensure!(serving.client_ca.is_some(), "serving.ca: callers' authority is needed");
    let listener = daemon::serve::bind(&config.listen, true).await?;
    let service = start(&config, channel, &ctx).await?;
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<NodeServer<NodeService>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(wire::DESCRIPTORS)
        .build_v1()
        .context("describe services")?;
    let routes = tonic::service::Routes::new(tonic::service::interceptor::InterceptedService::new(
        service,
        only_callers,
    ));
    let routes = routes.add_service(health).add_service(reflection);
    daemon::serve::serve(listener, Some(serving.config()?), routes, ctx).await
}

/// Lets only the API server in.
#[allow(clippy::result_large_err)] // the form of an interceptor
fn only_callers(request: Request<()>) -> Result<Request<()>, Status> {
    let certificates = request.extensions().get::<PeerCertificates>();
    let user = certificates
        .and_then(|certificates| certificates.0.first())
        .and_then(|leaf| auth::identity::User::from_certificate(leaf));
    let may = user.is_some_and(|user| {
        CALLERS.contains(&user.name.as_str()) || user.in_group(auth::identity::MASTERS)
    });
    if may { Ok(request) } else { Err(Status::permission_denied("only the API server may ask")) }
}

/// The private containerd of an agent with this data directory.
#[must_use]
pub fn private_containerd(config: &Config) -> Containerd {
    let dir = config.data_dir.join("containerd");
    Containerd::new(&dir, &config.containerd_program, &config.cni_bin_dir)
}

/// Removes every trace of an agent that does not run any more: its pods, its containerd, mounts,
/// cgroups and files.
///
/// # Errors
/// When something of it cannot be removed.
pub async fn purge(config: &Config) -> anyhow::Result<()> {
    if config.containerd_address.is_empty() {
        private_containerd(config).stop(true).await?;
    } else {
        leave(config).await.context("leave containerd")?;
    }
    end_pods(config).await.context("remove cgroups")?;
    containerd::unmount_below(&config.data_dir)?;
    match std::fs::remove_dir_all(&config.data_dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", config.data_dir.display()))
        }
        _ => Ok(()),
    }
}

/// Takes what is ours out of a containerd that is not: pods and the network's configuration.
async fn leave(config: &Config) -> anyhow::Result<()> {
    let channel = runtime::channel(Path::new(&config.containerd_address));
    if !runtime::answers(&channel).await {
        tracing::warn!(socket = config.containerd_address, "containerd is gone, with our pods");
        return Ok(());
    }
    let runtime = Runtime::new(channel);
    runtime.remove_everything(Path::new(&config.logs())).await?;
    cni::remove(&cni_dir(config, &runtime).await?).context("remove the network's configuration")
}

/// Where the CNI configuration goes: where containerd reads it, unless we are told otherwise.
async fn cni_dir(config: &Config, runtime: &Runtime) -> anyhow::Result<PathBuf> {
    if !config.cni_conf_dir.is_empty() {
        return Ok(PathBuf::from(&config.cni_conf_dir));
    }
    let (dir, _) = runtime.configured().await?;
    Ok(PathBuf::from(if dir.is_empty() { "/etc/cni/net.d" } else { &dir }))
}

/// Removes the cgroups of our pods, and kills what is in them: a container whose shim was killed has nobody else to do
/// it. Other clusters of this machine may have pods below the same root.
async fn end_pods(config: &Config) -> anyhow::Result<()> {
    let pods = match std::fs::read_dir(config.data_dir.join("pods")) {
        Ok(pods) => {
            pods.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).context("list pods"),
    };
    let root = &config.cgroup_root;
    for uid in pods {
        for class in ["", "burstable/", "besteffort/"] {
            let path = format!("/{root}/{class}pod{uid}");
            for _ in 0..PURGE_ROUNDS_MAX {
                let pids = cgroup::processes(&path)?;
                for pid in &pids {
                    // It may have ended in the meantime, which is as good.
                    let _gone = kill(Pid::from_raw(*pid), Signal::SIGKILL);
                }
                if pids.is_empty() {
                    break;
                }
                tokio::time::sleep(PURGE_ROUND).await;
            }
            cgroup::remove(&path).with_context(|| path.clone())?;
        }
    }
    Ok(cgroup::prune(&format!("/{root}"))?)
}

/// Starts the agent over `channel` as parts of `ctx`, and returns the service that the API server
/// calls.
///
/// # Errors
/// When containerd cannot be started or its images cannot be made.
pub async fn start(
    config: &Config,
    channel: Channel,
    ctx: &Context,
) -> anyhow::Result<NodeServer<NodeService>> {
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("create {}", config.data_dir.display()))?;
    let settings = config.settings()?;
    let (runtime, cni) = runtime(config).await?;
    if config.containerd_address.is_empty() {
        ctx.tasks.part("containerd", private_containerd(config).keep(ctx.clone()));
    }
    let client = Client::new(channel, "kubelet");
    let name = settings.name.clone();
    let cache = Cache::builder(client.clone())
        .kind::<Pod>(Select::all().fields(&format!("spec.nodeName={name}")))
        .kind::<Node>(Select::all().fields(&format!("metadata.name={name}")))
        .kind::<Service>(Select::all())
        .start(ctx);
    let facts = node::facts(&settings, &Machine::read(&config.data_dir));
    let pods = config.data_dir.join("pods");
    let shared = Shared {
        events: Recorder::start(client.clone(), "kubelet", &name, ctx),
        reporter: report::Reporter::start(client.clone(), ctx),
        volumes: volumes::Volumes::new(pods, client.clone(), ctx.clock.clone()),
        client: client.clone(),
        cache: cache.clone(),
        runtime: runtime.clone(),
        ctx: ctx.clone(),
        node: facts.clone(),
        owners: Mutex::new(HashMap::new()),
    };
    Agent::start(Arc::new(shared), ctx);
    let state = config.data_dir.join("containerd/cni/state");
    let keeper =
        node::run(settings, runtime.clone(), client.clone(), cache, cni, state, ctx.clone());
    ctx.tasks.part("node", keeper);
    let reclaim = volumes::reclaim::run(client.clone(), name.clone(), ctx.clone());
    ctx.tasks.part("volumes", reclaim);
    let logs = PathBuf::from(config.logs());
    ctx.tasks.part("log rotation", rotate::run(logs, runtime.clone(), ctx.clone()));
    let scratch = config.data_dir.join("exec");
    Ok(NodeService::new(runtime, ctx.clone(), scratch, &facts).server())
}

/// The runtime with our images in it, and where its CNI configuration goes.
async fn runtime(config: &Config) -> anyhow::Result<(Runtime, PathBuf)> {
    let own = private_containerd(config);
    let given = Path::new(&config.containerd_address);
    let channel = if config.containerd_address.is_empty() {
        own.start().await?
    } else {
        runtime::channel(given)
    };
    for (image, program) in
        [(images::PAUSE_IMAGE, "ironclad-pause"), (images::DEMO_IMAGE, "ironclad-demo")]
    {
        let path = config.program(program);
        if path.exists() {
            images::ensure_packed(&channel, image, &path).await?;
        } else {
            tracing::warn!(path = %path.display(), image, "no such program: the image is not made");
        }
    }
    let runtime = Runtime::new(channel.clone());
    if config.containerd_address.is_empty() && config.cni_conf_dir.is_empty() {
        return Ok((runtime, own.cni_dir()));
    }
    // A containerd of others has its own idea of a pause image, which it could not pull without a registry.
    let (_, pause) = runtime.configured().await?;
    let program = config.program("ironclad-pause");
    if !pause.is_empty() && program.exists() && runtime.image(&pause).await?.is_none() {
        images::ensure_packed(&channel, &pause, &program).await?;
    }
    let cni = cni_dir(config, &runtime).await?;
    Ok((runtime, cni))
}
