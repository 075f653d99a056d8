//! The REST front: adapts HTTP to [`crate::request`], and answers back. Knows no kind.

use std::convert::Infallible;
use std::sync::Arc;

use api::error::ApiError;
use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request as HttpRequest, Response, StatusCode, header};
use http_body_util::Full;
use tonic::body::Body as HttpBody;

use crate::layers::authenticate::impersonate;
use crate::layers::rbac::Attributes;
use crate::registry::Api;
use crate::request::{Action, Body, Request};

mod body;
mod discovery;
mod gather;
pub(crate) mod negotiate;
pub(crate) mod options;
pub(crate) mod path;
pub(crate) mod portforward;
mod proxy;
pub(crate) mod query;
mod render;
pub(crate) mod session;
pub(crate) mod spdy;
mod streams;
pub(crate) mod upgrade;
mod watch;

pub(crate) use body::Bodies;
use body::Room;
use negotiate::Accepted;
use path::{ResourcePath, Target};
use query::Query;

pub(crate) type HttpResponse = Response<HttpBody>;

/// Answers one request.
pub(crate) async fn serve(
    api: Arc<Api>,
    ctx: daemon::Context,
    request: HttpRequest<HttpBody>,
) -> Result<HttpResponse, Infallible> {
    let (mut parts, mut body) = request.into_parts();
    let accept = parts.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let result = answer(&api, &ctx, &mut parts, &mut body, accept.as_deref()).await;
    if result.is_err() && !parts.headers.contains_key(header::EXPECT) {
        body::skip(body).await;
    }
    Ok(result.unwrap_or_else(|error| render::error(&error, accept.as_deref())))
}

async fn answer(
    api: &Arc<Api>,
    ctx: &daemon::Context,
    parts: &mut Parts,
    body: &mut HttpBody,
    accept: Option<&str>,
) -> Result<HttpResponse, ApiError> {
    let user = api.authenticator.user(parts)?;
    let path = parts.uri.path().to_owned();
    let target = path::parse(&path);
    let query = Query::new(parts.uri.query().unwrap_or(""));
    let method = parts.method.as_str().to_ascii_lowercase();
    let ask = match &target {
        Target::Resource(path) => {
            attributes(path, verb_of(&parts.method, path, &query).unwrap_or(&method))
        }
        _ => Attributes { verb: &method, path: &path, ..Attributes::default() },
    };
    let user = impersonate(user, &parts.headers, &api.authorizer, &ask)?;
    if let Target::Resource(path) = target {
        return resource(api, ctx, parts, body, user, path, accept).await;
    }
    api.authorizer.check(&user, &ask)?;
    match &target {
        Target::Groups { .. } | Target::Group(_) | Target::Version { .. } => {
            discovery::answer(api, &target, accept)
        }
        _ => discovery::other(api, ctx, &path, parts.uri.query().unwrap_or("")),
    }
}

#[allow(clippy::too_many_arguments)] // what an HTTP request consists of
async fn resource(
    api: &Arc<Api>,
    ctx: &daemon::Context,
    parts: &mut Parts,
    body: &mut HttpBody,
    user: Arc<auth::User>,
    path: ResourcePath,
    accept: Option<&str>,
) -> Result<HttpResponse, ApiError> {
    let found = api.catalog.load().find(&path.group, &path.version, &path.resource).cloned();
    let query = Query::new(parts.uri.query().unwrap_or(""));
    let method = parts.method.clone();
    let Some(row) = found else {
        let verb = verb_of(&method, &path, &query).unwrap_or("");
        api.authorizer.check(&user, &attributes(&path, verb))?;
        return Err(ApiError::NoSuchPath);
    };
    let mut request = Request {
        user,
        resource: row,
        subresource: path.subresource.clone(),
        namespace: path.namespace.clone(),
        name: path.name.clone(),
        action: Action::Get { version: String::new() },
    };
    if streams::is_stream(&request) {
        let api = api.clone();
        return streams::answer(api, ctx, parts, std::mem::take(body), request, &path, &query)
            .await;
    }
    let verb = verb_of(&method, &path, &query).ok_or(ApiError::MethodNotAllowed)?;
    let began = api.clock.monotonic();
    let answer = perform(api, ctx, parts, body, &mut request, verb, &query, accept).await;
    let code = answer.as_ref().map_or_else(|error| error.status().0, |r| r.status().as_u16());
    let took = api.clock.monotonic().saturating_sub(began);
    api.metrics.answered(&request, verb, code, took);
    answer
}

/// Authorizes and runs a request for a resource.
#[allow(clippy::too_many_arguments)] // what an HTTP request consists of
async fn perform(
    api: &Arc<Api>,
    ctx: &daemon::Context,
    parts: &Parts,
    body: &mut HttpBody,
    request: &mut Request,
    verb: &'static str,
    query: &Query,
    accept: Option<&str>,
) -> Result<HttpResponse, ApiError> {
    // One object is meant where a selector says so by name.
    let selector = query.text("fieldSelector");
    let pinned = matches!(verb, "list" | "watch" | "deletecollection")
        .then(|| api::selector::FieldSelector::parse(&selector).ok())
        .flatten();
    let pinned = pinned.as_ref().and_then(|fields| fields.pinned("metadata.name"));
    let mut ask = Attributes { verb, ..request.attributes() };
    ask.name = if ask.name.is_empty() { pinned.unwrap_or("") } else { ask.name };
    api.authorizer.check(&request.user, &ask)?;
    let accepted = negotiate::accept(accept)?;
    let mut room = api.bodies.room();
    request.action = action(verb, parts, body, &mut room, query).await?;
    let deprecated = Some(request.resource.deprecation.to_string());
    let deprecated: Vec<String> = deprecated.filter(|d| !d.is_empty()).into_iter().collect();
    match api.run(request.clone()).await {
        Ok(outcome) => finish(api, ctx, request, outcome, accepted, query, deprecated),
        Err(error) => {
            let mut response = render::error(&error, accept);
            render::warn(&mut response, &deprecated);
            Ok(response)
        }
    }
}

fn finish(
    api: &Arc<Api>,
    ctx: &daemon::Context,
    request: &Request,
    outcome: crate::request::Outcome,
    accepted: Accepted,
    query: &Query,
    warnings: Vec<String>,
) -> Result<HttpResponse, ApiError> {
    match outcome {
        crate::request::Outcome::Watch(watcher) => {
            watch::answer(api, ctx, *watcher, accepted, warnings)
        }
        outcome => render::outcome(api, request, outcome, accepted, query, warnings),
    }
}

/// The verb of a request by its method, path and query.
fn verb_of(method: &Method, path: &ResourcePath, query: &Query) -> Option<&'static str> {
    let one = !path.name.is_empty();
    Some(match *method {
        Method::GET if path.watch => "watch",
        Method::GET if one => "get",
        Method::GET if query.flag("watch") => "watch",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT if one => "update",
        Method::PATCH if one => "patch",
        Method::DELETE if one => "delete",
        Method::DELETE => "deletecollection",
        _ => return None,
    })
}

async fn action(
    verb: &str,
    parts: &Parts,
    body: &mut HttpBody,
    room: &mut Room<'_>,
    query: &Query,
) -> Result<Action, ApiError> {
    let content = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    Ok(match verb {
        "get" => Action::Get { version: query.text("resourceVersion") },
        "list" => Action::List(options::list(query)?),
        "watch" => Action::Watch(options::watch(query)?),
        "create" => {
            let options = options::write(parts, query)?;
            let format = negotiate::content(content)?;
            Action::Create {
                body: Body { bytes: room.read(std::mem::take(body)).await?, format },
                options,
            }
        }
        "update" => {
            let options = options::write(parts, query)?;
            let format = negotiate::content(content)?;
            Action::Update {
                body: Body { bytes: room.read(std::mem::take(body)).await?, format },
                options,
            }
        }
        "patch" => {
            let (kind, format) = negotiate::patch(content)?;
            let mut options = options::write(parts, query)?;
            if kind == crate::request::PatchType::Apply && !options.manager_given {
                options.manager.clear();
            }
            let force = query.flag("force");
            if force && kind != crate::request::PatchType::Apply {
                let mut errors = api::error::FieldErrors::new();
                errors.forbidden("force", "may not be specified for non-apply patch");
                return Err(ApiError::invalid("meta.k8s.io", "PatchOptions", "", errors));
            }
            let bytes = room.read(std::mem::take(body)).await?;
            Action::Patch { kind, body: Body { bytes, format }, force, options }
        }
        "delete" => {
            Action::Delete(options::delete(query, room.read(std::mem::take(body)).await?, content)?)
        }
        "deletecollection" => Action::DeleteCollection {
            list: options::list(query)?,
            options: options::delete(query, room.read(std::mem::take(body)).await?, content)?,
        },
        _ => return Err(ApiError::MethodNotAllowed),
    })
}

/// A response with a body of known length.
pub(crate) fn full(
    code: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> HttpResponse {
    let mut response = Response::new(HttpBody::new(Full::new(body.into())));
    *response.status_mut() = code;
    let value = header::HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

/// What somebody wants who does `verb` at this path.
fn attributes<'a>(path: &'a ResourcePath, verb: &'a str) -> Attributes<'a> {
    Attributes {
        verb,
        group: &path.group,
        resource: &path.resource,
        subresource: &path.subresource,
        namespace: &path.namespace,
        name: &path.name,
        path: "",
    }
}
