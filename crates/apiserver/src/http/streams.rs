//! Requests that go on to a node's agent or a pod: log, exec, attach, port-forward, proxy.

use std::sync::Arc;

use api::error::{ApiError, FieldErrors};
use futures::StreamExt as _;
use http::request::Parts;
use http::{HeaderValue, header};
use http_body::Frame;
use http_body_util::StreamBody;
use wire::apiserver::LogsRequest;

use super::path::ResourcePath;
use super::query::Query;
use super::{HttpBody, HttpResponse, portforward, proxy, session, verb_of};
use crate::layers::rbac::Attributes;
use crate::nodes::agent_error;
use crate::registry::Api;
use crate::request::Request;

/// Whether a request is answered by a node or a pod.
pub(crate) fn is_stream(request: &Request) -> bool {
    request.resource.group.is_empty()
        && match request.resource.plural.as_ref() {
            "pods" => matches!(
                request.subresource.as_str(),
                "log" | "exec" | "attach" | "portforward" | "proxy"
            ),
            "services" | "nodes" => request.subresource == "proxy",
            _ => false,
        }
}

/// Authorizes and answers it.
pub(crate) async fn answer(
    api: Arc<Api>,
    ctx: &daemon::Context,
    parts: &mut Parts,
    body: HttpBody,
    request: Request,
    path: &ResourcePath,
    query: &Query,
) -> Result<HttpResponse, ApiError> {
    let verb = match (request.subresource.as_str(), &parts.method) {
        ("log", _) | (_, &http::Method::GET | &http::Method::HEAD | &http::Method::OPTIONS) => {
            "get"
        }
        ("proxy", method) => verb_of(method, path, query).ok_or(ApiError::MethodNotAllowed)?,
        _ => "create",
    };
    let ask = Attributes { verb, ..request.attributes() };
    api.authorizer.check(&request.user, &ask)?;
    match request.subresource.as_str() {
        "log" => log(&api, &request, query).await,
        "portforward" => portforward::answer(&api, ctx, parts, &request, query).await,
        "proxy" => proxy::answer(&api, ctx, parts, body, &request).await,
        _ => session::answer(&api, ctx, parts, &request, query).await,
    }
}

async fn log(api: &Api, request: &Request, query: &Query) -> Result<HttpResponse, ApiError> {
    check_log(request, query)?;
    let place = api.whereabouts(request, Some(&query.text("container"))).await?;
    if place.node.is_empty() {
        let mut response = http::Response::new(HttpBody::empty());
        *response.status_mut() = http::StatusCode::NO_CONTENT;
        return Ok(response);
    }
    let ask = LogsRequest {
        namespace: request.namespace.clone(),
        pod: request.name.clone(),
        uid: place.uid,
        container: place.container,
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        since_seconds: query.int("sinceSeconds")?,
        since_time: query.text("sinceTime"),
        tail_lines: query.int("tailLines")?,
        limit_bytes: query.int("limitBytes")?,
    };
    let mut agent = api.nodes.client(&place.node)?;
    let chunks = agent.logs(ask).await.map_err(|status| agent_error(&status))?.into_inner();
    let frames = chunks.map(|chunk| chunk.map(|chunk| Frame::data(chunk.data)));
    let mut response = http::Response::new(HttpBody::new(StreamBody::new(frames)));
    let text = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    Ok(response)
}

/// The part of a log that is asked for.
fn check_log(request: &Request, query: &Query) -> Result<(), ApiError> {
    let mut errors = FieldErrors::new();
    if let Some(lines) = query.int("tailLines")?.filter(|lines| *lines < 0) {
        errors.invalid("tailLines", lines, "must be greater than or equal to 0");
    }
    if let Some(bytes) = query.int("limitBytes")?.filter(|bytes| *bytes < 1) {
        errors.invalid("limitBytes", bytes, "must be greater than 0");
    }
    match (query.int("sinceSeconds")?, query.get("sinceTime").filter(|t| !t.is_empty())) {
        (Some(_), Some(_)) => {
            errors.forbidden("[]", "at most one of `sinceTime` or `sinceSeconds` may be specified")
        }
        (Some(s), None) if s < 1 => errors.invalid("sinceSeconds", s, "must be greater than 0"),
        _ => {}
    }
    if query.get("stream").is_some_and(|stream| !stream.is_empty()) {
        errors.forbidden("stream", "may not be specified");
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid("", "PodLogOptions", &request.name, errors))
}
