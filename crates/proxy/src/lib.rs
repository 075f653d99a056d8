//! Service virtual addresses on one node.
//!
//! [`model`] turns Services and EndpointSlices into what this node has to do, and [`ruleset`] into rules and the changes
//! between them, purely; [`nft`] writes each change into the kernel in one transaction, [`conntrack`] forgets flows to
//! pods that are gone, and [`routes`] sees to it that the kernel lets packets get that far.

use std::time::Duration;

use anyhow::Context as _;
use client::{Cache, Client, Select};
use daemon::{Backoff, Channel, Context};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

mod config;
pub mod conntrack;
pub mod model;
mod netlink;
pub mod nft;
pub mod routes;
pub mod ruleset;

pub use config::Config;
use model::{Model, PodNetwork};

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(30);
/// Changes that come within this time are written together.
const GATHER: Duration = Duration::from_millis(5);

/// Runs the proxy over a socket to the API server.
///
/// # Errors
/// When the configuration cannot be used.
pub async fn run(config: Config, ctx: Context) -> anyhow::Result<()> {
    let tls = config.tls.client()?.context("tls.ca: the API server's authority is needed")?;
    let channel = daemon::channel::connect(&config.server, Some(&tls))?;
    start(&config, channel, ctx).await
}

/// Runs the proxy over `channel`.
///
/// # Errors
/// When the kernel cannot be made to forward packets.
pub async fn start(config: &Config, channel: Channel, ctx: Context) -> anyhow::Result<()> {
    let (base, prefix) = routes::parse_cidr(&config.pod_cidr)?;
    let pods = PodNetwork { base, prefix };
    routes::forward()?;
    routes::services(routes::parse_cidr(&config.service_cidr)?, config.node_ip()?, &ctx).await?;
    if let Some(address) = config.dns_address()? {
        routes::own_address(address, &ctx).await?;
    }
    let cache = Cache::builder(Client::new(channel, "kube-proxy"))
        .kind::<Service>(Select::all())
        .kind::<EndpointSlice>(Select::all())
        .start(&ctx);
    let mut changes = cache.changes();
    tokio::select! {
        () = ctx.shutdown.cancelled() => return Ok(()),
        () = cache.synced() => {}
    }
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
    let mut written: Option<Model> = None;
    while !ctx.shutdown.is_cancelled() {
        changes.mark_unchanged();
        let model = Model::new(&cache.list(), &cache.list(), &config.node_name);
        let wait = if written.as_ref() == Some(&model) {
            None
        } else {
            let (old, next) = (written.take(), model.clone());
            let result = ctx.tasks.blocking(move || write(old.as_ref(), &next, pods)).await;
            match result.map_err(anyhow::Error::from).and_then(|r| r) {
                Ok(()) => {
                    tracing::debug!(fronts = model.fronts.len(), "rules written");
                    written = Some(model);
                    backoff.reset();
                    None
                }
                Err(error) => {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "rules not written, trying again"
                    );
                    Some(backoff.delay())
                }
            }
        };
        let changed = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => {
                    // A closed channel means that the cache is gone, and we with it.
                    let _ = changes.changed().await;
                    tokio::time::sleep(GATHER).await;
                }
            }
        };
        tokio::select! {
            () = ctx.shutdown.cancelled() => {}
            () = changed => {}
        }
    }
    Ok(())
}

/// Brings the kernel from `old` to `new`. Where the past is not known, as after a start or a failure, the whole table is
/// replaced at once; else only what differs is sent.
///
/// # Errors
/// When the kernel refuses; its rules are then as they were.
pub fn write(old: Option<&Model>, new: &Model, pods: PodNetwork) -> anyhow::Result<()> {
    let rules = ruleset::ruleset(new);
    match old {
        None => nft::rebuild(&rules, pods)?,
        Some(old) => nft::apply(&ruleset::diff(&ruleset::ruleset(old), &rules), pods)?,
    }
    match conntrack::forget(&conntrack::changed(old, new), new) {
        Ok(0) => {}
        Ok(flows) => tracing::debug!(flows, "stale flows forgotten"),
        // The rules stand; the flows end by themselves once their clients pause.
        Err(error) => tracing::warn!(error = format!("{error:#}"), "stale flows not forgotten"),
    }
    Ok(())
}
