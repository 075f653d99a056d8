//! What every cluster begins with: namespaces, roles and bindings, priority classes, the `kubernetes` Service.
//!
//! The objects are data in `deploy/manifests`; the Service and its endpoints say where this server is.

use std::net::SocketAddr;
use std::sync::Arc;

use api::error::ApiError;
use api::object::{Map, Value};
use auth::User;

use crate::registry::Api;
use crate::registry::create::Track;
use crate::registry::update::Change;
use crate::request::{Action, Request, WriteOptions};

const MANIFESTS: [&str; 3] = [
    include_str!("../../../deploy/manifests/bootstrap.jsonl"),
    include_str!("../../../deploy/manifests/rbac.jsonl"),
    include_str!("../../../deploy/manifests/components.jsonl"),
];
/// Who owns what the server writes by itself.
pub(crate) const MANAGER: &str = "kube-apiserver";
/// Upstream's part that keeps flow control has a name of its own.
const FLOW_MANAGER: &str = "api-priority-and-fairness-config-producer-v1";
const FLOW_GROUP: &str = "flowcontrol.apiserver.k8s.io";
const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

/// Creates what is missing.
pub(crate) async fn create(api: &Arc<Api>, advertised: SocketAddr) -> anyhow::Result<()> {
    for line in MANIFESTS.iter().flat_map(|text| text.lines()).filter(|l| !l.is_empty()) {
        let object = parse(line)?;
        ensure(api, object.clone()).await?;
        reconcile(api, &object).await?;
    }
    ensure(api, cidr(api)).await?;
    ensure(api, service(api, advertised)?).await?;
    if advertised.ip().is_loopback() || advertised.ip().is_unspecified() {
        // Nothing but this machine reaches us, so there is nothing to tell pods.
        tracing::info!(%advertised, "the kubernetes Service has no endpoint: set `advertise`");
        return Ok(());
    }
    endpoints(api, advertised).await
}

fn parse(line: &str) -> anyhow::Result<Value> {
    api::codec::json::parse(line.as_bytes())
        .map_err(|error| anyhow::anyhow!("manifest {line:.60}: {error}"))
}

fn request(api: &Api, object: &Value) -> anyhow::Result<Request> {
    let (version, kind) = api::meta::type_meta(object);
    let (group, version) = api::catalog::split_api_version(version);
    let catalog = api.catalog.load();
    let resource = catalog
        .find_kind(group, version, kind)
        .cloned()
        .ok_or_else(|| anyhow::anyhow!("manifest of unknown kind {kind}"))?;
    Ok(Request {
        user: Arc::new(User::authenticated("system:apiserver", &[auth::identity::MASTERS])),
        resource,
        subresource: String::new(),
        namespace: api::meta::namespace(object).to_owned(),
        name: api::meta::name(object).to_owned(),
        action: Action::Get { version: String::new() },
    })
}

fn options() -> WriteOptions {
    WriteOptions { manager: MANAGER.into(), manager_given: true, ..WriteOptions::default() }
}

/// Creates an object unless one of its name is there.
async fn ensure(api: &Arc<Api>, object: Value) -> anyhow::Result<()> {
    let request = request(api, &object)?;
    if api.shelf(&request.resource).get(&request.key()).is_some() {
        return Ok(());
    }
    let mut options = options();
    if request.resource.group == FLOW_GROUP {
        FLOW_MANAGER.clone_into(&mut options.manager);
    }
    let mut warnings = Vec::new();
    match api.insert(&request, object, &Track::Update(&options), false, &mut warnings).await {
        Ok(_) | Err(ApiError::AlreadyExists { .. }) => Ok(()),
        Err(error) => {
            let kind = &request.resource.kind;
            Err(anyhow::anyhow!("{kind} {}/{}: {error}", request.namespace, request.name))
        }
    }
}

/// Gives roles and bindings of ours back what they lost: rules, subjects, labels and annotations. What somebody added
/// stays, and an object that says `autoupdate: false` is left alone.
async fn reconcile(api: &Arc<Api>, wanted: &Value) -> anyhow::Result<()> {
    let request = request(api, wanted)?;
    if request.resource.group != RBAC_GROUP {
        return Ok(());
    }
    let change = |old: Option<&Value>| {
        let old = old.ok_or_else(|| request.not_found())?;
        Ok(Change::to(restored(old, wanted)))
    };
    let options = options();
    let track = Track::Update(&options);
    api.modify(&request, change, &track, false, Vec::new())
        .await
        .map_err(|error| anyhow::anyhow!("{} {}: {error}", request.resource.kind, request.name))?;
    Ok(())
}

/// An object of ours with everything that it should have. Pure.
fn restored(old: &Value, wanted: &Value) -> Value {
    let mut object = old.clone();
    if api::meta::annotation(old, "rbac.authorization.kubernetes.io/autoupdate") == Some("false") {
        return object;
    }
    for field in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][field].members() {
            object.set_at(&["metadata", field, key], value.clone());
        }
    }
    // The rules of an aggregated role belong to the controller.
    let lists =
        if wanted.has("aggregationRule") { &["subjects"][..] } else { &["rules", "subjects"] };
    for list in lists {
        let mut items = object[*list].items().to_vec();
        let missing = wanted[*list].items().iter().filter(|item| !items.contains(item)).cloned();
        let missing: Vec<Value> = missing.collect();
        if !missing.is_empty() {
            items.extend(missing);
            object.set(list, Value::Array(items));
        }
    }
    object
}

fn cidr(api: &Api) -> Value {
    let mut object = head("networking.k8s.io/v1", "ServiceCIDR", "", "kubernetes");
    let range = api.network.range.to_string();
    object.set_at(&["spec", "cidrs"], Value::Array(vec![range.into()]));
    object
}

fn head(version: &str, kind: &str, namespace: &str, name: &str) -> Value {
    let mut object = Value::Object(Map::default());
    object.set("apiVersion", version);
    object.set("kind", kind);
    object.set_at(&["metadata", "name"], name);
    if !namespace.is_empty() {
        object.set_at(&["metadata", "namespace"], namespace);
    }
    object
}

fn service(api: &Api, advertised: SocketAddr) -> anyhow::Result<Value> {
    let mut object = head("v1", "Service", "default", "kubernetes");
    object.set_at(&["metadata", "labels", "component"], "apiserver");
    object.set_at(&["metadata", "labels", "provider"], "kubernetes");
    object.set_at(&["spec", "clusterIP"], api.network.first().to_string());
    let port = format!(
        r#"[{{"name":"https","port":443,"protocol":"TCP","targetPort":{}}}]"#,
        advertised.port()
    );
    object.set_at(&["spec", "ports"], parse(&port)?);
    Ok(object)
}

/// The Endpoints and EndpointSlice of the `kubernetes` Service, which no controller keeps.
async fn endpoints(api: &Arc<Api>, advertised: SocketAddr) -> anyhow::Result<()> {
    let (ip, port) = (advertised.ip(), advertised.port());
    let ports = format!(r#"[{{"name":"https","port":{port},"protocol":"TCP"}}]"#);
    let mut endpoints = head("v1", "Endpoints", "default", "kubernetes");
    endpoints.set_at(&["metadata", "labels", "endpointslice.kubernetes.io/skip-mirror"], "true");
    endpoints
        .set("subsets", parse(&format!(r#"[{{"addresses":[{{"ip":"{ip}"}}],"ports":{ports}}}]"#))?);
    replace(api, endpoints).await?;
    let mut slice = head("discovery.k8s.io/v1", "EndpointSlice", "default", "kubernetes");
    slice.set_at(&["metadata", "labels", "kubernetes.io/service-name"], "kubernetes");
    slice.set("addressType", if ip.is_ipv4() { "IPv4" } else { "IPv6" });
    slice.set(
        "endpoints",
        parse(&format!(r#"[{{"addresses":["{ip}"],"conditions":{{"ready":true}}}}]"#))?,
    );
    slice.set("ports", parse(&ports)?);
    replace(api, slice).await
}

/// Creates an object, or makes the one there the same.
async fn replace(api: &Arc<Api>, object: Value) -> anyhow::Result<()> {
    ensure(api, object.clone()).await?;
    let request = request(api, &object)?;
    let change = |old: Option<&Value>| {
        let mut wanted = object.clone();
        if let Some(metadata) = old.and_then(|o| o.get("metadata")) {
            wanted.set("metadata", metadata.clone());
        }
        Ok(Change::to(wanted))
    };
    let options = options();
    let track = Track::Update(&options);
    api.modify(&request, change, &track, false, Vec::new())
        .await
        .map_err(|error| anyhow::anyhow!("{}: {error}", request.name))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_get_back_what_they_lost_and_keep_what_they_gained() {
        let object = |text: &str| parse(text).unwrap();
        let wanted = object(
            r#"{"metadata":{"labels":{"a":"b"}},"rules":[{"verbs":["get"]},{"verbs":["list"]}]}"#,
        );
        let cases = [
            (r#"{"metadata":{},"rules":[{"verbs":["get"]}]}"#, "b", 2),
            (
                r#"{"metadata":{},"rules":[{"verbs":["get"]},{"verbs":["list"]},{"verbs":["*"]}]}"#,
                "b",
                3,
            ),
            (
                r#"{"metadata":{"annotations":{"rbac.authorization.kubernetes.io/autoupdate":"false"}},"rules":[]}"#,
                "",
                0,
            ),
        ];
        for (old, label, rules) in cases {
            let restored = restored(&object(old), &wanted);
            assert_eq!(restored["metadata"]["labels"]["a"].text(), label, "{old}");
            assert_eq!(restored["rules"].items().len(), rules, "{old}");
        }
    }
}
