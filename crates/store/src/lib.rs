//! Replicated key-value store that speaks etcd v3.
//!
//! A request comes in through [`etcd`], becomes an operation ([`mvcc::Op`]) and is asked of the [`engine`]. It is
//! replicated by [`node`] and made durable by [`log`] (both in [`replica`]), [`applied`] to the state ([`mvcc`]), told to
//! watchers ([`watch`]) and answered; [`threads`] do it. [`state`] and [`snapshot`] keep what memory and log do not.
//! `mvcc`, `watch`, `node`, `members`, `applied` and `lessor` are pure, and `replica` is but for its log.

pub mod applied;
pub mod auth;
pub mod backup;
pub mod block;
pub mod bootstrap;
pub mod compactor;
pub mod config;
pub mod engine;
pub mod etcd;
pub mod import;
pub mod join;
pub mod lessor;
pub mod log;
pub mod members;
pub mod metrics;
pub mod mvcc;
pub mod node;
mod open;
pub mod password;
pub mod peer;
pub mod recovery;
pub mod replace;
pub mod replica;
pub mod snapshot;
pub mod state;
pub mod threads;
pub mod tokens;
pub mod tools;
pub mod watch;

pub use config::Config;
pub use open::{Store, open};

/// Runs a member until shutdown.
///
/// # Errors
/// When its data cannot be used, its address is taken, or the disk fails.
pub async fn run(config: Config, ctx: daemon::Context) -> anyhow::Result<()> {
    let store = open(&config, &ctx).await?;
    let tls = match config.client.tls.as_str() {
        "files" => config.client.files.server()?.map(|tls| tls.config()).transpose()?,
        _ => None,
    };
    let listener = daemon::serve::bind(&config.client.listen, tls.is_some()).await?;
    tracing::info!(address = %listener.local_addr()?, "serving clients");
    metrics::register(&ctx.metrics, store.engine());
    let (engine, metrics) = (store.engine().clone(), ctx.metrics.clone());
    let service = etcd::web::Front::new(store.routes(), engine, metrics);
    ctx.tasks.part("client", daemon::serve::serve(listener, tls, service, ctx.clone()));
    ctx.shutdown.cancelled().await;
    ctx.tasks.join().await
}
