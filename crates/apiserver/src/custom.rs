//! Custom resources: follows the definitions and keeps the catalog in step with them.

use std::sync::Arc;

use api::object::Value;
use daemon::Context;

use crate::registry::Api;

const SHELF: &str = "apiextensions.k8s.io/customresourcedefinitions";
const QUEUE: &str = "crdEstablishing";

/// Reads the definitions there are, and follows them as a part of the daemon.
pub(crate) fn start(api: &Arc<Api>, ctx: &Context) {
    refresh(api);
    let (api, shutdown) = (api.clone(), ctx.shutdown.clone());
    ctx.tasks.part("custom resources", async move {
        let mut changed = api.cache.shelf(SHELF).follow();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                more = changed.changed() => if more.is_err() { return Ok(()) },
            }
            api.metrics.queued(QUEUE, 1);
            refresh(&api);
            api.metrics.queued(QUEUE, 0);
        }
    });
}

fn refresh(api: &Api) {
    let definitions: Vec<Value> =
        api.cache.shelf(SHELF).list("", "").into_iter().map(|(_, e)| e.parse()).collect();
    let rows: Vec<_> = definitions.iter().flat_map(api::crd::resources).collect();
    let catalog = api.catalog.load().with_custom(rows);
    api.catalog.store(Arc::new(catalog));
}
