//! `serviceaccounts/token`: signs a bound token (TokenRequest).

use api::error::{ApiError, FieldErrors};
use api::object::Value;
use auth::token::{Bound, Claims, Reference};

use crate::admission::node_restriction;
use crate::registry::{Api, decode};
use crate::request::{Action, Body, Object, Outcome, Request, WriteOptions};

const MINUTES_10: i64 = 600;
const YEAR: i64 = 365 * 86400;
const LIFE_DEFAULT_S: i64 = 3600;
const LIFE_MAX_S: i64 = 1 << 32;

/// Answers `create` of a token.
pub(crate) async fn create(api: &Api, request: &Request) -> Result<Outcome, ApiError> {
    let Action::Create { body, options } = &request.action else {
        return Err(ApiError::MethodNotAllowed);
    };
    let mut warnings = Vec::new();
    let mut asked = read(api, body, options, &mut warnings)?;
    let account = api
        .find(&request.resource, &request.namespace, &request.name)
        .await?
        .ok_or_else(|| request.not_found())?
        .parse();
    api::defaults::apply(&mut asked, &row(api));
    if let Some(spec) = asked.get_mut("spec") {
        spec.default_to("expirationSeconds", LIFE_DEFAULT_S);
    }
    allow_node(api, request, &asked).await?;
    let now = api.clock.now();
    let writer = api::patch::apply::Writer { manager: &options.manager, subresource: "token", now };
    api::patch::apply::track_update(None, &mut asked, &row(api), writer);
    check(&asked)?;
    let life_s = asked.int_at(&["spec", "expirationSeconds"]).unwrap_or(LIFE_DEFAULT_S).min(YEAR);
    let audiences = audiences(api, &asked);
    let mut bound = Bound {
        namespace: request.namespace.clone(),
        serviceaccount: Reference {
            name: request.name.clone(),
            uid: api::meta::uid(&account).to_owned(),
        },
        ..Bound::default()
    };
    bind(api, request, &asked, &mut bound).await?;
    let claims = Claims {
        aud: audiences.clone(),
        exp: now.as_second() + life_s,
        iat: now.as_second(),
        iss: api.authenticator.signer.issuer().to_owned(),
        jti: uuid::Uuid::new_v4().to_string(),
        kubernetes: bound,
        nbf: now.as_second(),
        sub: format!("system:serviceaccount:{}:{}", request.namespace, request.name),
    };
    let token = api
        .authenticator
        .signer
        .sign(&claims)
        .map_err(|error| ApiError::Internal(error.to_string()))?;
    let expires = now.checked_add(jiff::SignedDuration::from_secs(life_s)).unwrap_or(now);
    let audiences = audiences.iter().map(|a| Value::from(a.as_str())).collect();
    asked.set_at(&["spec", "audiences"], Value::Array(audiences));
    asked.set_at(&["spec", "expirationSeconds"], life_s);
    asked.set_at(&["status", "token"], token);
    asked.set_at(&["status", "expirationTimestamp"], api::time::format(expires));
    if asked.at(&["spec", "boundObjectRef"]).is_none_or(Value::is_empty) {
        asked.set_at(&["spec", "boundObjectRef"], Value::Null);
    }
    asked.set_at(&["metadata", "uid"], uuid::Uuid::new_v4().to_string());
    asked.set_at(&["metadata", "name"], request.name.as_str());
    asked.set_at(&["metadata", "namespace"], request.namespace.as_str());
    asked.set_at(&["metadata", "creationTimestamp"], api::time::format(now));
    let kind = Some(("authentication.k8s.io".to_owned(), "TokenRequest".to_owned()));
    let object = Object { json: asked.to_bytes().into(), kind };
    Ok(Outcome::Object { object, created: true, warnings })
}

/// A node asks for tokens of the pods that run on it, and for no others.
async fn allow_node(api: &Api, request: &Request, asked: &Value) -> Result<(), ApiError> {
    let Some(node) = request.user.node() else {
        return Ok(());
    };
    let name = asked["spec"]["boundObjectRef"]["name"].text().to_owned();
    let pods = api.resource("", "v1", "pods");
    let pod = api.find(&pods, &request.namespace, &name).await?.map(|entry| entry.parse());
    node_restriction::token(asked, pod.as_ref(), node).map_err(|message| ApiError::Forbidden {
        resource: request.resource.resource_name(),
        name: request.name.clone(),
        message,
        causes: Vec::new(),
    })
}

/// Whom the token is for: those asked for, or ourselves.
fn audiences(api: &Api, asked: &Value) -> Vec<String> {
    let named = asked.at(&["spec", "audiences"]).map(Value::items).unwrap_or_default();
    let named: Vec<String> = named.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    if named.is_empty() { api.authenticator.audiences.clone() } else { named }
}

/// The row of the kind that this subresource takes.
fn row(api: &Api) -> std::sync::Arc<api::catalog::Resource> {
    crate::registry::subresource::kind_row(api, "authentication.k8s.io", "v1", "TokenRequest")
}

fn read(
    api: &Api,
    body: &Body,
    options: &WriteOptions,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    decode::object(body, &row(api), options.validation, warnings)
}

fn check(asked: &Value) -> Result<(), ApiError> {
    let mut errors = FieldErrors::new();
    let field = "spec.expirationSeconds";
    let life_s = asked.int_at(&["spec", "expirationSeconds"]).unwrap_or(LIFE_DEFAULT_S);
    if life_s < MINUTES_10 {
        errors.invalid(field, life_s, "may not specify a duration less than 10 minutes");
    }
    if life_s > LIFE_MAX_S {
        errors.invalid(field, life_s, "may not specify a duration larger than 2^32 seconds");
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid("authentication.k8s.io", "TokenRequest", "", errors))
}

/// Binds the token to the object that the request names, if that is there.
async fn bind(
    api: &Api,
    request: &Request,
    asked: &Value,
    bound: &mut Bound,
) -> Result<(), ApiError> {
    let reference = asked.at(&["spec", "boundObjectRef"]).filter(|r| !r.is_empty());
    let Some(reference) = reference else { return Ok(()) };
    let kind = reference.str_at(&["kind"]).unwrap_or("");
    let name = reference.str_at(&["name"]).unwrap_or("");
    let uid = reference.str_at(&["uid"]).unwrap_or("");
    let plural = match kind {
        "Pod" => "pods",
        "Secret" => "secrets",
        "Node" => "nodes",
        other => {
            let version = reference.str_at(&["apiVersion"]).unwrap_or("");
            let (group, version) = api::catalog::split_api_version(version);
            return Err(ApiError::BadRequest(format!(
                "cannot bind token to object of type {group}/{version}, Kind={other}"
            )));
        }
    };
    let resource = api.resource("", "v1", plural);
    let found = api.find(&resource, &request.namespace, name).await?;
    let object = found
        .ok_or_else(|| ApiError::NotFound {
            resource: resource.resource_name(),
            name: name.to_owned(),
        })?
        .parse();
    let found = api::meta::uid(&object);
    if !uid.is_empty() && uid != found {
        return Err(ApiError::Conflict {
            resource: resource.resource_name(),
            name: name.to_owned(),
            message: format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The \
                 object might have been deleted and then recreated"
            ),
        });
    }
    let reference = Reference { name: name.to_owned(), uid: found.to_owned() };
    match plural {
        "pods" => {
            let account = object.str_at(&["spec", "serviceAccountName"]).unwrap_or("");
            if account != request.name {
                return Err(ApiError::BadRequest(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    request.name
                )));
            }
            bound.node = node_of(api, &object).await?;
            bound.pod = Some(reference);
        }
        "secrets" => bound.secret = Some(reference),
        _ => bound.node = Some(reference),
    }
    Ok(())
}

async fn node_of(api: &Api, pod: &Value) -> Result<Option<Reference>, ApiError> {
    let Some(name) = pod.str_at(&["spec", "nodeName"]).filter(|n| !n.is_empty()) else {
        return Ok(None);
    };
    let node = api.find(&api.resource("", "v1", "nodes"), "", name).await?;
    let uid = node.map(|n| api::meta::uid(&n.parse()).to_owned()).unwrap_or_default();
    Ok(Some(Reference { name: name.to_owned(), uid }))
}
