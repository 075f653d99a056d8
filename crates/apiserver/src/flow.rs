//! Flow schemas say in their status whether the priority level they name exists.
//!
//! Follows both kinds and writes what changed, as upstream's consumer of the configuration does. Requests are not
//! queued by these objects yet.

use std::sync::Arc;

use api::error::ApiError;
use api::object::Value;
use auth::User;
use daemon::Context;

use crate::registry::Api;
use crate::request::{Action, Body, FieldValidation, Format, PatchType, Request, WriteOptions};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const SCHEMAS: &str = "flowschemas";
const LEVELS: &str = "prioritylevelconfigurations";
const MANAGER: &str = "api-priority-and-fairness-config-consumer-v1";
const QUEUE: &str = "priority_and_fairness_config_queue";

/// Keeps the conditions as a part of the daemon.
pub(crate) fn start(api: &Arc<Api>, ctx: &Context) {
    let (api, shutdown) = (api.clone(), ctx.shutdown.clone());
    ctx.tasks.part("flow schemas", async move {
        let (mut schemas, mut levels) =
            (api.cache.shelf(SCHEMAS).follow(), api.cache.shelf(LEVELS).follow());
        loop {
            // What changes from here on wakes us again.
            schemas.mark_unchanged();
            levels.mark_unchanged();
            update(&api).await;
            api.metrics.queued(QUEUE, 0);
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                more = schemas.changed() => if more.is_err() { return Ok(()) },
                more = levels.changed() => if more.is_err() { return Ok(()) },
            }
            api.metrics.queued(QUEUE, 1);
        }
    });
}

async fn update(api: &Api) {
    let levels = api.cache.shelf(LEVELS);
    for (_, entry) in api.cache.shelf(SCHEMAS).list("", "") {
        let schema = entry.parse();
        let wanted = schema["spec"]["priorityLevelConfiguration"]["name"].text();
        let Some(condition) = condition(&schema, levels.get(wanted).is_some()) else { continue };
        match write(api, &schema, condition).await {
            // Whoever changed or removed it wakes us again.
            Ok(()) | Err(ApiError::NotFound { .. } | ApiError::Conflict { .. }) => {}
            Err(error) => {
                let name = api::meta::name(&schema);
                tracing::warn!(name, %error, "the status of a flow schema was not written");
            }
        }
    }
}

/// The condition that a schema should have and has not. Pure; its time is set by the writer.
fn condition(schema: &Value, level_exists: bool) -> Option<Value> {
    let level = schema["spec"]["priorityLevelConfiguration"]["name"].text();
    let about =
        format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?}");
    let (status, reason, message) = if level_exists {
        ("False", "Found", format!("{about} and it exists"))
    } else {
        ("True", "NotFound", format!("{about} but there is no such object"))
    };
    let mut wanted = Value::object();
    for (key, text) in
        [("type", "Dangling"), ("status", status), ("reason", reason), ("message", &message)]
    {
        wanted.set(key, text);
    }
    let has = api::meta::condition(schema, "Dangling")
        .is_some_and(|found| wanted.members().all(|(key, value)| found.get(key) == Some(value)));
    (!has).then_some(wanted)
}

async fn write(api: &Api, schema: &Value, mut condition: Value) -> Result<(), ApiError> {
    condition.set("lastTransitionTime", api::time::format(api.clock.now()));
    let name = api::meta::name(schema);
    let mut body = Value::object();
    body.set("apiVersion", format!("{GROUP}/v1"));
    body.set("kind", "FlowSchema");
    body.set_at(&["metadata", "name"], name);
    body.set_at(&["metadata", "uid"], api::meta::uid(schema));
    body.set_at(&["status", "conditions"], vec![condition]);
    let options = WriteOptions {
        dry_run: false,
        manager: MANAGER.into(),
        manager_given: true,
        validation: FieldValidation::Ignore,
    };
    let body = Body { bytes: body.to_bytes().into(), format: Format::Json };
    let request = Request {
        user: Arc::new(User::authenticated("system:apiserver", &[auth::identity::MASTERS])),
        resource: api.resource(GROUP, "v1", SCHEMAS),
        subresource: "status".into(),
        namespace: String::new(),
        name: name.to_owned(),
        action: Action::Patch { kind: PatchType::Apply, body, force: true, options },
    };
    api.run(request).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_written_once_and_again_when_the_level_comes_or_goes() {
        let mut schema = Value::object();
        schema.set_at(&["spec", "priorityLevelConfiguration", "name"], "low");
        let found = condition(&schema, true).unwrap();
        assert_eq!((found["status"].text(), found["reason"].text()), ("False", "Found"));
        schema.set_at(&["status", "conditions"], vec![found]);
        assert_eq!(condition(&schema, true), None);
        let missing = condition(&schema, false).unwrap();
        assert_eq!((missing["status"].text(), missing["reason"].text()), ("True", "NotFound"));
    }
}
