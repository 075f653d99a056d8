//! The proxy subresource: plain HTTP to a pod, to a pod behind a Service, or to a node's statistics.

use api::error::ApiError;
use api::object::Value;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use rand::seq::IndexedRandom as _;
use std::time::Duration;
use tokio::net::TcpStream;
use wire::apiserver::StatsRequest;

use super::{HttpBody, HttpResponse, full};
use crate::nodes::agent_error;
use crate::registry::Api;
use crate::request::Request;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Headers about one connection, which mean nothing to the next.
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Answers a request whose path goes on after `proxy`.
pub(crate) async fn answer(
    api: &Api,
    ctx: &daemon::Context,
    parts: &mut Parts,
    body: HttpBody,
    request: &Request,
) -> Result<HttpResponse, ApiError> {
    let namespaced = request.resource.namespaced;
    let Some(rest) = rest(parts.uri.path(), if namespaced { 7 } else { 5 }) else {
        return Ok(slash(&parts.uri, &parts.method));
    };
    if request.resource.plural == "nodes" {
        return statistics(api, request, rest).await;
    }
    let (name, port) = split(&request.name)?;
    let found = api.find(&request.resource, &request.namespace, name).await?;
    let missing =
        || ApiError::NotFound { resource: request.resource.resource_name(), name: name.to_owned() };
    let object = found.ok_or_else(missing)?.parse();
    let address = if request.resource.plural == "pods" {
        pod_address(&object, port)?
    } else {
        let slices = api.cache.shelf("endpointslices");
        let slices = slices.list(&format!("{}/", request.namespace), "");
        let slices: Vec<Value> = slices.into_iter().map(|(_, entry)| entry.parse()).collect();
        let all = service_addresses(&object, port, &slices)?;
        let one = all.choose(&mut rand::rng()).cloned();
        one.ok_or_else(|| no_endpoints(name))?
    };
    let query = parts.uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let uri = format!("/{rest}{query}");
    forward(ctx, parts, body, &address, &uri).await
}

/// What follows the first `count` segments of a path, as it was written; none without the slash that ends them.
fn rest(path: &str, count: usize) -> Option<&str> {
    path.splitn(count + 2, '/').nth(count + 1)
}

/// Relative links of a page work only below a slash.
fn slash(uri: &Uri, method: &Method) -> HttpResponse {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return full(StatusCode::NOT_FOUND, "text/plain", "the path ends in proxy/\n");
    }
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let mut response = full(StatusCode::MOVED_PERMANENTLY, "text/plain", "");
    if let Ok(value) = HeaderValue::from_str(&format!("{}/{query}", uri.path())) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    response
}

/// `name`, `name:port`, or `http:name:port`.
fn split(text: &str) -> Result<(&str, &str), ApiError> {
    match text.split(':').collect::<Vec<_>>().as_slice() {
        [name] => Ok((name, "")),
        [name, port] | ["" | "http", name, port] => Ok((name, port)),
        ["https", ..] => Err(ApiError::BadRequest("proxying to https is not offered".to_owned())),
        _ => Err(ApiError::BadRequest(format!("invalid name {text:?}"))),
    }
}

fn items<'a>(value: &'a Value, path: &[&str]) -> &'a [Value] {
    value.at(path).map(Value::items).unwrap_or_default()
}

fn joined(ip: &str, port: i64) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

fn pod_address(pod: &Value, port: &str) -> Result<String, ApiError> {
    let ip = pod.str_at(&["status", "podIP"]).filter(|ip| !ip.is_empty());
    let ip = ip.ok_or_else(|| ApiError::BadRequest("address not allowed".to_owned()))?;
    let ports: Vec<&Value> =
        items(pod, &["spec", "containers"]).iter().flat_map(|c| items(c, &["ports"])).collect();
    let port = match port {
        "" => ports.first().and_then(|p| p.int_at(&["containerPort"])).unwrap_or(80),
        text => {
            let named = ports.iter().find(|p| p.str_at(&["name"]) == Some(text));
            let named = named.and_then(|p| p.int_at(&["containerPort"]));
            named.or_else(|| text.parse::<u16>().ok().map(i64::from)).ok_or_else(|| {
                ApiError::BadRequest(format!("no port {text:?} in pod {}", api::meta::name(pod)))
            })?
        }
    };
    Ok(joined(ip, port))
}

fn no_endpoints(name: &str) -> ApiError {
    ApiError::Unavailable(format!("no endpoints available for service {name:?}"))
}

/// The ready addresses behind a Service's port, which is given by name or number.
fn service_addresses(
    service: &Value,
    port: &str,
    slices: &[Value],
) -> Result<Vec<String>, ApiError> {
    let name = api::meta::name(service);
    let mut wanted = port;
    if let Ok(number) = port.parse::<i64>() {
        let ports = items(service, &["spec", "ports"]);
        let found =
            ports.iter().find(|p| p.int_at(&["port"]) == Some(number)).ok_or_else(|| {
                ApiError::Unavailable(format!(
                    "no service port {number} found for service {name:?}"
                ))
            })?;
        wanted = found.str_at(&["name"]).unwrap_or("");
    }
    let mut found = Vec::new();
    let own =
        slices.iter().filter(|s| api::meta::label(s, "kubernetes.io/service-name") == Some(name));
    for slice in own {
        let target = items(slice, &["ports"])
            .iter()
            .find(|p| p.str_at(&["name"]).unwrap_or("") == wanted)
            .and_then(|p| p.int_at(&["port"]));
        let Some(target) = target else { continue };
        for endpoint in items(slice, &["endpoints"]) {
            if endpoint.bool_at(&["conditions", "ready"]) != Some(false) {
                let first = items(endpoint, &["addresses"]).first();
                found.extend(first.map(|ip| joined(ip.text(), target)));
            }
        }
    }
    if found.is_empty() { Err(no_endpoints(name)) } else { Ok(found) }
}

/// Sends the request on and its answer back.
async fn forward(
    ctx: &daemon::Context,
    parts: &Parts,
    body: HttpBody,
    address: &str,
    uri: &str,
) -> Result<HttpResponse, ApiError> {
    let unreachable = |error: &dyn std::fmt::Display| {
        ApiError::Unavailable(format!("error trying to reach service: {error}"))
    };
    let connect = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let stream = connect
        .map_err(|_| unreachable(&format!("dial tcp {address}: i/o timeout")))?
        .map_err(|error| unreachable(&format!("dial tcp {address}: {error}")))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unreachable(&error))?;
    ctx.tasks.job(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "proxied connection");
        }
    });
    let mut onward = http::Request::new(body);
    *onward.method_mut() = parts.method.clone();
    *onward.uri_mut() = uri.parse().map_err(|_| ApiError::BadRequest("invalid path".into()))?;
    onward.headers_mut().clone_from(&parts.headers);
    let headers = onward.headers_mut();
    HOP_BY_HOP.iter().for_each(|name| drop(headers.remove(*name)));
    // Whoever is behind it must not learn how the caller proved itself.
    headers.remove(header::AUTHORIZATION);
    if let Ok(host) = HeaderValue::from_str(address) {
        headers.insert(header::HOST, host);
    }
    let original = [("x-forwarded-uri", parts.uri.path()), ("x-forwarded-proto", "https")];
    for (name, value) in original {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    let answer = sender.send_request(onward).await.map_err(|error| unreachable(&error))?;
    let (mut head, body) = answer.into_parts();
    HOP_BY_HOP.iter().for_each(|name| drop(head.headers.remove(*name)));
    Ok(http::Response::from_parts(head, HttpBody::new(body)))
}

/// The pages of a node that its agent has.
async fn statistics(api: &Api, request: &Request, rest: &str) -> Result<HttpResponse, ApiError> {
    let page = match rest {
        "stats/summary" => "summary",
        "metrics/resource" => "resource",
        "metrics/cadvisor" => "cadvisor",
        _ => return Ok(full(StatusCode::NOT_FOUND, "text/plain", "404 page not found\n")),
    };
    let node = request.name.split(':').next().unwrap_or_default().to_owned();
    let ask = StatsRequest { page: page.to_owned(), node: node.clone() };
    let reply = api.nodes.client(&node)?.stats(ask).await;
    let reply = reply.map_err(|status| agent_error(&status))?.into_inner();
    let mut response = full(StatusCode::OK, "text/plain", reply.body);
    if let Ok(kind) = HeaderValue::from_str(&reply.content_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        api::codec::json::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_path_goes_on_as_it_was_written() {
        let path = "/api/v1/namespaces/a/pods/p/proxy";
        assert_eq!(rest(path, 7), None);
        assert_eq!(rest(&format!("{path}/"), 7), Some(""));
        assert_eq!(rest(&format!("{path}/a%20b//c/"), 7), Some("a%20b//c/"));
        assert_eq!(rest("/api/v1/nodes/n/proxy/stats/summary", 5), Some("stats/summary"));
    }

    #[test]
    fn names_carry_ports() {
        for (text, want) in [
            ("a", ("a", "")),
            ("a:80", ("a", "80")),
            ("http:a:web", ("a", "web")),
            ("a:", ("a", "")),
        ] {
            assert_eq!(split(text).unwrap(), want);
        }
        assert!(split("https:a:443").is_err());
        assert!(split("a:b:c:d").is_err());
    }

    #[test]
    fn a_pod_is_reached_at_its_port() {
        let pod = value(
            r#"{"status":{"podIP":"fd00::1"},"spec":{"containers":[{"ports":[{"name":"web",
            "containerPort":8080}]}]}}"#,
        );
        assert_eq!(pod_address(&pod, "").unwrap(), "[fd00::1]:8080");
        assert_eq!(pod_address(&pod, "web").unwrap(), "[fd00::1]:8080");
        assert_eq!(pod_address(&pod, "81").unwrap(), "[fd00::1]:81");
        assert!(pod_address(&pod, "none").is_err());
        assert!(pod_address(&value("{}"), "").is_err());
    }

    #[test]
    fn a_service_is_reached_at_its_ready_pods() {
        let service =
            value(r#"{"metadata":{"name":"s"},"spec":{"ports":[{"name":"web","port":80}]}}"#);
        let slice = value(
            r#"{"metadata":{"labels":{"kubernetes.io/service-name":"s"}},
            "ports":[{"name":"web","port":8080}],"endpoints":[{"addresses":["10.0.0.1"]},
            {"addresses":["10.0.0.2"],"conditions":{"ready":false}}]}"#,
        );
        let reach = |port| service_addresses(&service, port, std::slice::from_ref(&slice));
        assert_eq!(reach("80").unwrap(), ["10.0.0.1:8080"]);
        assert_eq!(reach("web").unwrap(), ["10.0.0.1:8080"]);
        assert_eq!(reach("").unwrap_err().status().0, 503);
        assert_eq!(reach("81").unwrap_err().status().0, 503);
    }
}
