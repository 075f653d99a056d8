//! What the server serves, in the forms clients discover it: plain, aggregated, OpenAPI, health, version, keys.

use std::sync::Arc;

use api::catalog::{Group, Resource};
use api::error::ApiError;
use api::object::{Map, Value};
use http::StatusCode;

use super::negotiate::{self, Form};
use super::path::Target;
use super::query::Query;
use super::{HttpResponse, full};
use crate::registry::Api;
use crate::request::Format;

/// The Kubernetes version whose API this is.
pub(crate) const KUBERNETES_MINOR: &str = "36";

fn object(fields: &[(&str, Value)]) -> Value {
    let mut value = Value::Object(Map::default());
    for (key, field) in fields {
        value.set(key, field.clone());
    }
    value
}

fn texts<T: AsRef<str>>(items: &[T]) -> Value {
    Value::Array(items.iter().map(|s| Value::from(s.as_ref())).collect())
}

fn reply(value: &Value, format: Format) -> HttpResponse {
    match format {
        Format::Yaml => full(StatusCode::OK, "application/yaml", api::codec::yaml::encode(value)),
        _ => full(StatusCode::OK, "application/json", value.to_bytes()),
    }
}

/// `/api…` and `/apis…` above the resources.
pub(crate) fn answer(
    api: &Arc<Api>,
    target: &Target,
    accept: Option<&str>,
) -> Result<HttpResponse, ApiError> {
    // Discovery has no protobuf form here; clients that prefer it take JSON as well.
    let plain = negotiate::Accepted { format: Format::Json, form: Form::Plain };
    let accepted = negotiate::accept(accept).unwrap_or(plain);
    let catalog = api.catalog.load();
    if let (Form::Discovery { beta }, Target::Groups { legacy }) = (accepted.form, target) {
        return Ok(aggregated(&catalog, *legacy, beta));
    }
    let value = match target {
        Target::Groups { legacy: true } => legacy_versions(),
        Target::Groups { legacy: false } => {
            let groups = catalog.groups().iter().filter(|g| !g.name.is_empty());
            object(&[
                ("kind", "APIGroupList".into()),
                ("apiVersion", "v1".into()),
                ("groups", Value::Array(groups.map(group).collect())),
            ])
        }
        Target::Group(name) => {
            let found = catalog.groups().iter().find(|g| g.name == *name && !g.name.is_empty());
            let mut value = group(found.ok_or(ApiError::NoSuchPath)?);
            value.set("kind", "APIGroup");
            value.set("apiVersion", "v1");
            value
        }
        Target::Version { group, version } if catalog.has_version(group, version) => {
            let mut list: Vec<Value> = Vec::new();
            for resource in catalog.of_version(group, version) {
                plain_rows(resource, &mut list);
            }
            list.sort_by(|a, b| a.str_at(&["name"]).cmp(&b.str_at(&["name"])));
            let mut value = object(&[
                ("kind", "APIResourceList".into()),
                ("groupVersion", api::catalog::api_version(group, version).into()),
                ("resources", Value::Array(list)),
            ]);
            if !group.is_empty() {
                value.set("apiVersion", "v1");
            }
            value
        }
        _ => return Err(ApiError::NoSuchPath),
    };
    Ok(reply(&value, accepted.format))
}

fn legacy_versions() -> Value {
    let address = object(&[("clientCIDR", "0.0.0.0/0".into()), ("serverAddress", "".into())]);
    object(&[
        ("kind", "APIVersions".into()),
        ("versions", texts(&["v1"])),
        ("serverAddressByClientCIDRs", Value::Array(vec![address])),
    ])
}

fn group(group: &Group) -> Value {
    let version = |version: &str| {
        object(&[
            ("groupVersion", api::catalog::api_version(&group.name, version).into()),
            ("version", version.into()),
        ])
    };
    let versions: Vec<Value> = group.versions.iter().map(|v| version(v)).collect();
    object(&[
        ("name", group.name.as_ref().into()),
        ("preferredVersion", versions.first().cloned().unwrap_or(Value::Null)),
        ("versions", Value::Array(versions)),
    ])
}

/// A resource and its subresources as the plain list has them.
fn plain_rows(resource: &Resource, list: &mut Vec<Value>) {
    let mut row = object(&[
        ("name", resource.plural.as_ref().into()),
        ("singularName", resource.singular.as_ref().into()),
        ("namespaced", Value::Bool(resource.namespaced)),
        ("kind", resource.kind.as_ref().into()),
        ("verbs", texts(&resource.verbs)),
    ]);
    if !resource.short_names.is_empty() {
        row.set("shortNames", texts(&resource.short_names));
    }
    if !resource.categories.is_empty() {
        row.set("categories", texts(&resource.categories));
    }
    if resource.stored {
        row.set(
            "storageVersionHash",
            hash(&format!(
                "{}/{}/{}",
                resource.storage_group, resource.storage_version, resource.kind
            )),
        );
    }
    list.push(row);
    for sub in &resource.subresources {
        let mut row = object(&[
            ("name", format!("{}/{}", resource.plural, sub.name).into()),
            ("singularName", "".into()),
            ("namespaced", Value::Bool(resource.namespaced)),
            ("kind", sub.kind.as_ref().into()),
            ("verbs", texts(&sub.verbs)),
        ]);
        if !sub.version.is_empty() {
            row.set("group", sub.group.as_ref());
            row.set("version", sub.version.as_ref());
        }
        list.push(row);
    }
}

/// A short stable digest of a text (FNV-1a), as base64.
fn hash(text: &str) -> String {
    let mut state: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in text.bytes() {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{state:016X}")
}

fn aggregated(catalog: &api::Catalog, legacy: bool, beta: bool) -> HttpResponse {
    let version = if beta { "v2beta1" } else { "v2" };
    let groups = catalog.groups().iter().filter(|g| g.name.is_empty() == legacy);
    let items = groups.map(|group| {
        let versions = group.versions.iter().map(|version| {
            let mut rows: Vec<&Arc<Resource>> = catalog.of_version(&group.name, version).collect();
            rows.sort_by(|a, b| a.plural.cmp(&b.plural));
            let rows = rows.into_iter().map(|r| aggregated_row(r));
            object(&[
                ("version", version.as_ref().into()),
                ("resources", Value::Array(rows.collect())),
                ("freshness", "Current".into()),
            ])
        });
        let versions = Value::Array(versions.collect());
        let mut metadata = object(&[]);
        if !legacy {
            metadata.set("name", group.name.as_ref());
        }
        object(&[("metadata", metadata), ("versions", versions)])
    });
    let value = object(&[
        ("kind", "APIGroupDiscoveryList".into()),
        ("apiVersion", format!("apidiscovery.k8s.io/{version}").into()),
        ("metadata", object(&[])),
        ("items", Value::Array(items.collect())),
    ]);
    let content = if beta {
        "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"
    } else {
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    };
    full(StatusCode::OK, content, value.to_bytes())
}

fn aggregated_row(resource: &Resource) -> Value {
    let kind = |group: &str, version: &str, kind: &str| {
        object(&[("group", group.into()), ("version", version.into()), ("kind", kind.into())])
    };
    let own = |name: &str| {
        if resource.custom {
            kind(&resource.group, &resource.version, name)
        } else {
            kind("", "", name)
        }
    };
    let mut row = object(&[
        ("resource", resource.plural.as_ref().into()),
        ("responseKind", own(&resource.kind)),
        ("scope", if resource.namespaced { "Namespaced" } else { "Cluster" }.into()),
        ("singularResource", resource.singular.as_ref().into()),
        ("verbs", texts(&resource.verbs)),
    ]);
    if !resource.short_names.is_empty() {
        row.set("shortNames", texts(&resource.short_names));
    }
    if !resource.categories.is_empty() {
        row.set("categories", texts(&resource.categories));
    }
    let subresources = resource.subresources.iter().map(|sub| {
        let response = if sub.version.is_empty() {
            own(&sub.kind)
        } else {
            kind(&sub.group, &sub.version, &sub.kind)
        };
        object(&[
            ("subresource", sub.name.as_ref().into()),
            ("responseKind", response),
            ("verbs", texts(&sub.verbs)),
        ])
    });
    let subresources: Vec<Value> = subresources.collect();
    if !subresources.is_empty() {
        row.set("subresources", Value::Array(subresources));
    }
    row
}

/// Paths that are no part of the resource tree.
pub(crate) fn other(
    api: &Arc<Api>,
    ctx: &daemon::Context,
    path: &str,
    query: &str,
) -> Result<HttpResponse, ApiError> {
    let query = Query::new(query);
    let text = |text: String| full(StatusCode::OK, "text/plain; charset=utf-8", text);
    let missing =
        || full(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n");
    let path = path.trim_end_matches('/');
    if let Some(response) = health(ctx, path, &query) {
        return Ok(response);
    }
    Ok(match path {
        "" => reply(&object(&[("paths", texts(&paths(&api.catalog.load())))]), Format::Json),
        "/version" => reply(&version(), Format::Json),
        "/metrics" => {
            let catalog = api.catalog.load();
            for row in catalog.all().iter().filter(|row| row.stored) {
                let objects = api.shelf(row).len();
                api.metrics.stored(row.resource_name().to_string(), objects);
            }
            text(ctx.metrics.render())
        }
        "/openid/v1/jwks" => {
            let keys = serde_json::to_vec(&api.authenticator.signer.jwks());
            let keys = keys.map_err(|error| ApiError::Internal(error.to_string()))?;
            full(StatusCode::OK, "application/jwk-set+json", keys)
        }
        "/.well-known/openid-configuration" => {
            let issuer = api.authenticator.signer.issuer();
            reply(
                &object(&[
                    ("issuer", issuer.into()),
                    ("jwks_uri", format!("{issuer}/openid/v1/jwks").into()),
                    ("response_types_supported", texts(&["id_token"])),
                    ("subject_types_supported", texts(&["public"])),
                    ("id_token_signing_alg_values_supported", texts(&["RS256"])),
                ]),
                Format::Json,
            )
        }
        "/openapi/v2" => full(StatusCode::OK, "application/json", api.swagger()),
        "/openapi/v3" => {
            let catalog = api.catalog.load();
            let hash = |path: &str| hash(&format!("{}/{path}", catalog.all().len()));
            reply(&api::openapi::index(&catalog, &hash), Format::Json)
        }
        _ => match path.strip_prefix("/openapi/v3/").map(super::path::parse) {
            Some(Target::Version { group, version }) => {
                let catalog = api.catalog.load();
                if !catalog.has_version(&group, &version) {
                    return Ok(missing());
                }
                reply(&api::openapi::document(&catalog, &group, &version), Format::Json)
            }
            _ => missing(),
        },
    })
}

fn version() -> Value {
    object(&[
        ("major", "1".into()),
        ("minor", KUBERNETES_MINOR.into()),
        ("emulationMajor", "1".into()),
        ("emulationMinor", KUBERNETES_MINOR.into()),
        ("minCompatibilityMajor", "1".into()),
        ("minCompatibilityMinor", "35".into()),
        (
            "gitVersion",
            format!("v1.{KUBERNETES_MINOR}.0+ironclad-{}", env!("CARGO_PKG_VERSION")).into(),
        ),
        ("gitCommit", "".into()),
        ("gitTreeState", "".into()),
        ("buildDate", "".into()),
        ("goVersion", "".into()),
        ("compiler", "rustc".into()),
        ("platform", "linux/amd64".into()),
    ])
}

fn paths(catalog: &api::Catalog) -> Vec<String> {
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ]
    .map(str::to_owned)
    .into();
    for group in catalog.groups().iter().filter(|g| !g.name.is_empty()) {
        paths.push(format!("/apis/{}", group.name));
        paths.extend(group.versions.iter().map(|v| format!("/apis/{}/{v}", group.name)));
    }
    paths.sort();
    paths
}

/// `/healthz`, `/livez`, `/readyz`, and each check below them.
fn health(ctx: &daemon::Context, path: &str, query: &Query) -> Option<HttpResponse> {
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let endpoint = parts.next().filter(|e| matches!(*e, "healthz" | "livez" | "readyz"))?;
    let lacks = ctx.health.lacks();
    let mut checks = vec!["ping", "etcd"];
    if endpoint == "readyz" {
        checks.extend(["informer-sync", "shutdown"]);
    }
    let plain = "text/plain; charset=utf-8";
    if let Some(check) = parts.next() {
        return Some(match checks.contains(&check) {
            true if lacks.contains(&check) => {
                full(StatusCode::INTERNAL_SERVER_ERROR, plain, "internal server error: not ready\n")
            }
            true => full(StatusCode::OK, plain, "ok"),
            false => full(StatusCode::NOT_FOUND, plain, "404 page not found\n"),
        });
    }
    let excluded = query.all("exclude");
    let failed: Vec<&&str> = checks
        .iter()
        .filter(|check| lacks.contains(*check) && !excluded.iter().any(|e| e == **check))
        .collect();
    if failed.is_empty() && query.get("verbose").is_none() {
        return Some(full(StatusCode::OK, plain, "ok"));
    }
    let mut body = String::new();
    for check in &checks {
        let line = if excluded.iter().any(|e| e == check) {
            format!("[+]{check} excluded: ok\n")
        } else if failed.contains(&check) {
            format!("[-]{check} failed: not ready\n")
        } else {
            format!("[+]{check} ok\n")
        };
        body.push_str(&line);
    }
    let (code, end) = if failed.is_empty() {
        (StatusCode::OK, "passed")
    } else {
        (StatusCode::INTERNAL_SERVER_ERROR, "failed")
    };
    body.push_str(&format!("{endpoint} check {end}\n"));
    Some(full(code, plain, body))
}
