//! Lets the store forget old history: what was newest one interval ago is compacted, as kube-apiserver does it.
//!
//! With several API servers, also kube-apiservers on the same etcd, one of them does it each time.

use std::time::Duration;

use daemon::Context;

use super::etcd::Etcd;

/// Compacts every so often, until shutdown.
pub(crate) async fn run(etcd: Etcd, every: Duration, ctx: Context) {
    let (mut turn, mut revision) = (0, 0);
    loop {
        tokio::select! {
            () = ctx.shutdown.cancelled() => return,
            () = tokio::time::sleep(daemon::jitter(every)) => {}
        }
        match etcd.compact(turn, revision).await {
            Ok((next, now)) => {
                tracing::debug!(revision, turn = next, "compaction");
                (turn, revision) = (next, now);
            }
            Err(error) => tracing::info!(%error, "history was not compacted, trying again later"),
        }
    }
}
