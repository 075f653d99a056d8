//! The API server: the only writer of cluster state.
//!
//! A request comes in by REST ([`http`]) or gRPC ([`grpc`]); both make it a [`request::Request`]. [`layers`] say who
//! asks and whether they may; [`registry`] runs the verb, the same for every kind; [`admission`] may change or refuse
//! what is written; [`hooks`] are the few kinds that do more than be stored. [`storage`] is the store behind its etcd
//! API, with the watch cache in front. [`bootstrap`] creates what every cluster begins with.
//!
//! [`run`] serves on a socket; [`open`] is the same in parts, for a process that is the whole cluster.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use api::catalog::Catalog;
use arc_swap::ArcSwap;
use auth::token::{Signer, static_tokens};
use daemon::{Channel, Context};
use tokio::sync::oneshot;
use tonic::body::Body;
use tower::ServiceExt as _;

mod admission;
mod bootstrap;
mod config;
mod custom;
mod flow;
mod grpc;
mod hooks;
mod http;
mod layers;
mod metrics;
mod nodes;
#[doc(hidden)]
pub mod outside;
mod registry;
mod request;
mod storage;

pub use config::{Config, StoreConfig, TokenConfig};
pub use nodes::LocalAgents;

use registry::Api;

/// Objects are trees of small allocations that live as long as one request: in glibc's allocator they cost a create a
/// quarter of its processor time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A running API server, to be served on sockets and called in memory.
#[derive(Clone)]
pub struct Server {
    api: Arc<Api>,
    ctx: Context,
    routes: tonic::service::Routes,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server")
    }
}

/// Serves until shutdown.
///
/// # Errors
/// When the configuration cannot be used or the store cannot be reached.
pub async fn run(config: Config, ctx: Context) -> anyhow::Result<()> {
    let url = config.store.endpoints.split(',').next().unwrap_or_default().trim().to_owned();
    let tls = config.store.tls.client()?;
    let store = daemon::channel::connect(&url, tls.as_ref())?;
    let listener = daemon::serve::bind(&config.listen, true).await?;
    ctx.tasks.blocking(daemon::tls::prepare_random);
    let server = open(&config, store, &LocalAgents::default(), &ctx).await?;
    server.serve(&config, listener).await
}

/// Connects to the store, fills the cache and creates what is missing. `local` are agents in this process.
///
/// # Errors
/// When the configuration cannot be used or the store cannot be reached.
pub async fn open(
    config: &Config,
    store: Channel,
    local: &LocalAgents,
    ctx: &Context,
) -> anyhow::Result<Server> {
    ctx.health.missing("etcd");
    let catalog = match config.metrics_api {
        true => Catalog::builtin().with_metrics(),
        false => Catalog::builtin(),
    };
    let etcd = storage::etcd::Etcd::new(store);
    let mut prefixes: Vec<String> =
        catalog.all().iter().filter(|r| r.stored).map(|r| r.storage_prefix.to_string()).collect();
    prefixes.push("ironclad".into());
    let cache = Arc::new(storage::cache::Cache::new(prefixes));
    let (loaded, is_loaded) = oneshot::channel();
    let follow = storage::feed::follow(etcd.clone(), cache.clone(), loaded, ctx.clone());
    ctx.tasks.part("watch cache", follow);
    is_loaded.await.context("the watch cache was not filled")?;
    let key = std::fs::read_to_string(&config.tokens.key)
        .with_context(|| format!("tokens.key: read {:?}", config.tokens.key))?;
    let signer = Arc::new(Signer::load(&key, &config.tokens.issuer)?);
    let tokens = match config.tokens.file.as_str() {
        "" => std::collections::BTreeMap::new(),
        file => static_tokens(
            &std::fs::read_to_string(file)
                .with_context(|| format!("tokens.file: read {file:?}"))?,
        )?,
    };
    let authenticator = layers::authenticate::Authenticator {
        cache: cache.clone(),
        audiences: vec![config.tokens.issuer.clone()],
        signer,
        tokens,
        clock: ctx.clock.clone(),
    };
    let api = Arc::new(Api {
        catalog: ArcSwap::from_pointee(catalog),
        authorizer: Arc::new(layers::authorize::Authorizer::new(cache.clone())),
        authenticator,
        network: hooks::service::Network::parse(&config.service_cidr, &config.node_ports)?,
        nodes: nodes::Nodes::new(cache.clone(), config.node.client()?, local),
        newest: storage::feed::Newest::start(etcd.clone(), ctx),
        cache,
        etcd,
        clock: ctx.clock.clone(),
        leases: registry::commit::Leases::default(),
        metrics: metrics::Metrics::new(&ctx.metrics),
        bodies: http::Bodies::default(),
        swagger: registry::Swagger::default(),
        readings: registry::usage::Readings::default(),
    });
    bootstrap::create(&api, advertised(config)?).await.context("create the first objects")?;
    custom::start(&api, ctx);
    if config.store.compaction_interval_s > 0 {
        let every = Duration::from_secs(config.store.compaction_interval_s);
        ctx.tasks.job(storage::compact::run(api.etcd.clone(), every, ctx.clone()));
    }
    flow::start(&api, ctx);
    ctx.health.ready("etcd");
    let service = grpc::Service { api: api.clone(), ctx: ctx.clone() };
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(wire::DESCRIPTORS)
        .build_v1()?;
    let (reporter, health) = tonic_health::server::health_reporter();
    let node = wire::apiserver::node_server::NodeServer::new(service.clone());
    let objects = wire::apiserver::objects_server::ObjectsServer::new(service);
    reporter.set_serving::<wire::apiserver::objects_server::ObjectsServer<grpc::Service>>().await;
    let routes = tonic::service::Routes::new(objects).add_service(node);
    let routes = routes.add_service(reflection).add_service(health).prepare();
    Ok(Server { api, ctx: ctx.clone(), routes })
}

/// The address under which pods reach this server.
fn advertised(config: &Config) -> anyhow::Result<SocketAddr> {
    let listen: SocketAddr = config.listen.parse().context("listen")?;
    if config.advertise.is_empty() {
        return Ok(listen);
    }
    if let Ok(address) = config.advertise.parse::<SocketAddr>() {
        return Ok(address);
    }
    let ip = config.advertise.parse().context("advertise: no IP address")?;
    Ok(SocketAddr::new(ip, listen.port()))
}

impl Server {
    /// Serves REST and gRPC on `listener` until shutdown.
    ///
    /// # Errors
    /// When the certificates cannot be used or the listener breaks.
    pub async fn serve(
        self,
        config: &Config,
        listener: tokio::net::TcpListener,
    ) -> anyhow::Result<()> {
        let mut tls =
            config.tls.server()?.context("tls.cert: the API server needs a certificate")?;
        // A client may identify itself by a token instead.
        tls.client_required = false;
        let (api, ctx, routes) = (self.api, self.ctx.clone(), self.routes);
        let service = tower::service_fn(move |request: ::http::Request<hyper::body::Incoming>| {
            front(api.clone(), ctx.clone(), routes.clone(), request.map(Body::new))
        });
        daemon::serve::serve(listener, Some(tls.config()?), service, self.ctx).await
    }

    /// A channel to the gRPC API in memory, for a component that is `user`.
    #[must_use]
    pub fn channel(&self, user: auth::User) -> Channel {
        daemon::channel::in_memory(self.routes.clone(), Arc::new(user))
    }
}

/// Both doors: what is gRPC goes to the services, with its user; everything else is REST.
async fn front(
    api: Arc<Api>,
    ctx: Context,
    routes: tonic::service::Routes,
    request: ::http::Request<Body>,
) -> Result<::http::Response<Body>, std::convert::Infallible> {
    let grpc = request
        .headers()
        .get(::http::header::CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
    if !grpc {
        return http::serve(api, ctx, request).await;
    }
    let (mut parts, body) = request.into_parts();
    match api.authenticator.user(&parts) {
        Ok(user) => parts.extensions.insert(user),
        Err(error) => {
            return Ok(tonic::Status::unauthenticated(error.message()).into_http());
        }
    };
    routes.oneshot(::http::Request::from_parts(parts, body)).await
}
