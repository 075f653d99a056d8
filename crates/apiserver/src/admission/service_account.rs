//! ServiceAccount: every pod runs as an account that exists, with its token mounted.

use api::error::ApiError;
use api::object::{Map, Value};

use super::Review;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long a mounted token is good for; the odd seconds are upstream's, by which it tells these tokens from others.
const TOKEN_LIFE_S: i64 = 3607;

/// Names the account and mounts its token.
pub(super) async fn mutate(review: &mut Review<'_>) -> Result<(), ApiError> {
    if !review.creates("", "pods") {
        return Ok(());
    }
    if api::meta::annotation(review.object, "kubernetes.io/config.mirror").is_some() {
        return check_mirror(review);
    }
    let name = match review.object.str_at(&["spec", "serviceAccountName"]) {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => "default".to_owned(),
    };
    review.object.set_at(&["spec", "serviceAccountName"], name.as_str());
    review.object.set_at(&["spec", "serviceAccount"], name.as_str());
    let api = review.api;
    let accounts = api.resource("", "v1", "serviceaccounts");
    let namespace = &review.request.namespace;
    let found = match api.shelf(&accounts).get(&format!("{namespace}/{name}")) {
        Some(entry) => Some(entry),
        None => api.stored(&accounts, namespace, &name).await?,
    };
    let Some(account) = found.map(|entry| entry.tree()) else {
        return Err(review.forbidden(format!(
            "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
        )));
    };
    if review.object.at(&["spec", "imagePullSecrets"]).is_none_or(Value::is_empty)
        && let Some(secrets) = account.get("imagePullSecrets").filter(|s| !s.is_empty())
    {
        review.object.set_at(&["spec", "imagePullSecrets"], secrets.clone());
    }
    let wanted = review
        .object
        .bool_at(&["spec", "automountServiceAccountToken"])
        .or_else(|| account.bool_at(&["automountServiceAccountToken"]))
        .unwrap_or(true);
    if wanted {
        mount(review.object);
    }
    Ok(())
}

/// A mirror shows what a node runs anyway: it has no rights of its own.
fn check_mirror(review: &Review<'_>) -> Result<(), ApiError> {
    let spec = &review.object["spec"];
    if !spec["serviceAccountName"].text().is_empty() {
        return Err(review.forbidden("a mirror pod may not reference service accounts"));
    }
    let volumes = spec["volumes"].items();
    if volumes.iter().any(|v| v.has("secret")) {
        return Err(review.forbidden("a mirror pod may not reference secrets"));
    }
    let projects =
        |v: &Value| v["projected"]["sources"].items().iter().any(|s| s.has("serviceAccountToken"));
    if volumes.iter().any(projects) {
        return Err(
            review.forbidden("a mirror pod may not use ServiceAccountToken volume projections")
        );
    }
    Ok(())
}

fn object(fields: &[(&str, Value)]) -> Value {
    let mut value = Value::Object(Map::default());
    for (key, field) in fields {
        value.set(key, field.clone());
    }
    value
}

/// Mounts the token in every container that has nothing at its place yet.
fn mount(pod: &mut Value) {
    let volumes = pod.at(&["spec", "volumes"]).map(Value::items).unwrap_or_default();
    let own = volumes.iter().filter_map(|v| v.str_at(&["name"]));
    let present = own.into_iter().find(|n| n.starts_with("kube-api-access-")).map(str::to_owned);
    let name =
        present.clone().unwrap_or_else(|| api::name::generate("kube-api-access-", rand::random()));
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        let Some(containers) = pod.at_mut(&["spec", list]) else { continue };
        for container in containers.items_mut() {
            let mounts = container.get("volumeMounts").map(Value::items).unwrap_or_default();
            if mounts.iter().any(|m| m.str_at(&["mountPath"]) == Some(MOUNT_PATH)) {
                continue;
            }
            let mut mounts = mounts.to_vec();
            mounts.push(object(&[
                ("name", Value::from(name.as_str())),
                ("readOnly", Value::Bool(true)),
                ("mountPath", Value::from(MOUNT_PATH)),
            ]));
            container.set("volumeMounts", Value::Array(mounts));
            mounted = true;
        }
    }
    if mounted && present.is_none() {
        let mut volumes =
            pod.at(&["spec", "volumes"]).map(Value::items).unwrap_or_default().to_vec();
        volumes.push(volume(&name));
        pod.set_at(&["spec", "volumes"], Value::Array(volumes));
    }
}

/// Token, authority and namespace in one projected volume.
fn volume(name: &str) -> Value {
    let token = object(&[(
        "serviceAccountToken",
        object(&[("expirationSeconds", Value::from(TOKEN_LIFE_S)), ("path", Value::from("token"))]),
    )]);
    let item = object(&[("key", Value::from("ca.crt")), ("path", Value::from("ca.crt"))]);
    let authority = object(&[(
        "configMap",
        object(&[("name", Value::from("kube-root-ca.crt")), ("items", Value::Array(vec![item]))]),
    )]);
    let field = object(&[
        ("apiVersion", Value::from("v1")),
        ("fieldPath", Value::from("metadata.namespace")),
    ]);
    let item = object(&[("path", Value::from("namespace")), ("fieldRef", field)]);
    let namespace = object(&[("downwardAPI", object(&[("items", Value::Array(vec![item]))]))]);
    let projected = object(&[
        ("sources", Value::Array(vec![token, authority, namespace])),
        ("defaultMode", Value::from(0o644_i64)),
    ]);
    object(&[("name", Value::from(name)), ("projected", projected)])
}
