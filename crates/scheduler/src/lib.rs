//! Decides which node a pod runs on.
//!
//! [`place::place`] is the decision: the nodes that pass all [`filters`], the best of them by [`scores`], seen in a
//! [`snapshot`] that is kept up to date event by event; if there is none, [`preempt`] says who would have to go.
//! [`mod@ask`] is a pod as all of these see it, [`near`] and [`spread`] are the rules about other pods. [`queue`] says
//! whose turn it is, [`world`] which news concerns whom. [`bind`] is the shell: it places what waits, binds in
//! batches, and says why a pod has no place. [`mod@why`] explains at length.

use anyhow::Context as _;
use client::lease::{Election, lead};
use client::{Cache, Client, Recorder, Select};
use daemon::{Channel, Context};
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use tokio_util::sync::CancellationToken;

pub mod ask;
pub mod bind;
mod config;
pub mod filters;
pub mod near;
pub mod place;
pub mod preempt;
pub mod queue;
pub mod scores;
pub mod snapshot;
pub mod spread;
pub mod volumes;
pub mod why;
pub mod world;

pub use config::Config;

/// Runs the scheduler over a socket to the API server.
///
/// # Errors
/// When the configuration cannot be used.
pub async fn run(config: Config, ctx: Context) -> anyhow::Result<()> {
    let tls = config.tls.client()?.context("tls.ca: the API server's authority is needed")?;
    let channel = daemon::channel::connect(&config.server, Some(&tls))?;
    start(&config, channel, ctx).await
}

/// Runs the scheduler over `channel`.
///
/// # Errors
/// None at present; failures are tried again.
pub async fn start(config: &Config, channel: Channel, ctx: Context) -> anyhow::Result<()> {
    let client = Client::new(channel, "kube-scheduler");
    let name = config.scheduler_name.clone();
    if !config.leader_elect {
        work(client, name, ctx.clone(), ctx.shutdown.clone()).await;
        return Ok(());
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let identity = format!("{}_{}", host.trim(), std::process::id());
    let election = Election::new("kube-system", "kube-scheduler", identity);
    let (leader, inner) = (client.clone(), ctx.clone());
    lead(&client, &election, &ctx, move |leading| {
        work(leader.clone(), name.clone(), inner.clone(), leading)
    })
    .await;
    Ok(())
}

async fn work(client: Client, name: String, ctx: Context, leading: CancellationToken) {
    // The watches end with leadership.
    let inner = Context { shutdown: leading.clone(), ..ctx };
    let cache = Cache::builder(client.clone())
        .kind::<Node>(Select::all())
        .kind::<Pod>(Select::all())
        .kind::<Namespace>(Select::all())
        .kind::<PodDisruptionBudget>(Select::all())
        .kind::<PersistentVolumeClaim>(Select::all())
        .kind::<PersistentVolume>(Select::all())
        .kind::<StorageClass>(Select::all())
        .start(&inner);
    let events = Recorder::start(client.clone(), &name, "", &inner);
    bind::run(client, cache, events, name, inner, leading).await;
}
