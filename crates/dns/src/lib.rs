//! Cluster DNS.
//!
//! [`zone`] says what the names of Services, their endpoints and pods mean, purely; [`serve`] answers packets with it and
//! asks other servers about other names. The watches feed the zone one changed Service at a time.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use client::{Cache, Client, Executor, Recorder, Select};
use daemon::{Backoff, Channel, Context};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::{Mutex, RwLock};

mod config;
mod metrics;
mod publish;
pub mod serve;
pub mod zone;

pub use config::Config;
pub use metrics::Metrics;
use zone::{Owner, Zone};

const SERVICE_OF: &str = "service";
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(30);

/// Runs the DNS server with a socket to the API server.
///
/// # Errors
/// When the configuration cannot be used.
pub async fn run(config: Config, ctx: Context) -> anyhow::Result<()> {
    let tls = config.tls.client()?.context("tls.ca: the API server's authority is needed")?;
    let channel = daemon::channel::connect(&config.server, Some(&tls))?;
    start(&config, channel, ctx).await
}

/// Runs the DNS server with `channel` to the API server, until shutdown.
///
/// # Errors
/// When the address cannot be bound.
pub async fn start(config: &Config, channel: Channel, ctx: Context) -> anyhow::Result<()> {
    let zone = Arc::new(RwLock::new(Zone::new(&config.domain)));
    let client = Client::new(channel, "kube-dns");
    let cache = Cache::builder(client.clone())
        .kind::<Namespace>(Select::all().project(&["metadata.name"]))
        .kind::<Service>(Select::all())
        .kind::<EndpointSlice>(Select::all().index(SERVICE_OF, service_of))
        .start(&ctx);
    let mut changes = cache.changes();
    let dirty = watch(&cache);
    tokio::select! {
        () = ctx.shutdown.cancelled() => return Ok(()),
        () = cache.synced() => {}
    }
    changes.mark_unchanged();
    mark_all(&cache, &dirty);
    update(&cache, &dirty, &zone);
    let metrics = Metrics::new(&ctx.metrics);
    let listen = config.address()?;
    let address = serve::start(listen, zone.clone(), config.upstreams()?, metrics, &ctx).await?;
    tracing::info!(%address, domain = config.domain, "names are served");
    if config.publish {
        let executor = Executor::new(client, Recorder::silent());
        ctx.tasks.part("DNS Service", publish(cache.clone(), executor, address, ctx.clone()));
    }
    loop {
        tokio::select! {
            () = ctx.shutdown.cancelled() => return Ok(()),
            changed = changes.changed() => {
                if changed.is_err() {
                    return Ok(()); // the cache is gone, and we with it
                }
                update(&cache, &dirty, &zone);
            }
        }
    }
}

/// Keeps the Service of `address` there: made at the start, and again if somebody deletes it.
async fn publish(
    cache: Cache,
    executor: Executor,
    address: SocketAddr,
    ctx: Context,
) -> anyhow::Result<()> {
    let mut changes = cache.changes();
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
    let mut first = true;
    loop {
        let mut wait = None;
        changes.mark_unchanged();
        if first || cache.get::<Service>(publish::NAMESPACE, publish::NAME).is_none() {
            let done = executor.run(publish::plan(address)).await;
            if let Some(error) = done.error {
                tracing::warn!(%error, "Service of the cluster's DNS not written, trying again");
                wait = Some(backoff.delay());
            } else {
                cache.reached(&done.expect).await;
                first = false;
                backoff.reset();
            }
        }
        let changed = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                // A closed channel means that the cache is gone, and we with it.
                None => drop(changes.changed().await),
            }
        };
        tokio::select! {
            () = ctx.shutdown.cancelled() => return Ok(()),
            () = changed => {}
        }
    }
}

/// Owners whose records are to be made again; at most as many as there are Services and namespaces.
type Dirty = Arc<Mutex<BTreeSet<Owner>>>;

/// Index function: namespace and name of the Service whose endpoints a slice has.
fn service_of(slice: &EndpointSlice) -> Vec<String> {
    let labels = slice.metadata.labels.as_ref();
    let name = labels.and_then(|labels| labels.get("kubernetes.io/service-name"));
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    name.map(|name| format!("{namespace}/{name}")).into_iter().collect()
}

/// Notes whose records each change touches.
fn watch(cache: &Cache) -> Dirty {
    let dirty = Dirty::default();
    let services = dirty.clone();
    cache.on_change::<Service>(move |change| {
        services.lock().insert((change.key.namespace.to_string(), change.key.name.to_string()));
    });
    let namespaces = dirty.clone();
    cache.on_change::<Namespace>(move |change| {
        namespaces.lock().insert((change.key.name.to_string(), String::new()));
    });
    let slices = dirty.clone();
    cache.on_change::<EndpointSlice>(move |change| {
        let both = [change.old_as::<EndpointSlice>(), change.new_as::<EndpointSlice>()];
        for path in both.into_iter().flatten().flat_map(service_of) {
            if let Some((namespace, name)) = path.split_once('/') {
                slices.lock().insert((namespace.to_owned(), name.to_owned()));
            }
        }
    });
    dirty
}

/// What came before the listeners did is looked at as well.
fn mark_all(cache: &Cache, dirty: &Dirty) {
    let mut dirty = dirty.lock();
    for key in cache.keys("Service") {
        dirty.insert((key.namespace.to_string(), key.name.to_string()));
    }
    for key in cache.keys("Namespace") {
        dirty.insert((key.name.to_string(), String::new()));
    }
}

fn update(cache: &Cache, dirty: &Dirty, zone: &RwLock<Zone>) {
    let owners = std::mem::take(&mut *dirty.lock());
    for (namespace, name) in owners {
        if name.is_empty() {
            let exists = cache.get::<Namespace>("", &namespace).is_some();
            zone.write().set_namespace(&namespace, exists);
            continue;
        }
        let service = cache.get::<Service>(&namespace, &name);
        let slices = cache.find::<EndpointSlice>(SERVICE_OF, &format!("{namespace}/{name}"));
        let slices: Vec<&EndpointSlice> = slices.iter().map(AsRef::as_ref).collect();
        zone.write().set_service(&namespace, &name, service.as_deref(), &slices);
    }
}
