//! Readiness, and the small HTTP server behind `/healthz`, `/livez`, `/readyz` and `/metrics`.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use parking_lot::Mutex;

use crate::context::Context;

/// What keeps a daemon from being ready, by name. A daemon with nothing missing is ready.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<Vec<&'static str>>>);

impl Health {
    /// `part` is not ready yet, or no longer.
    pub fn missing(&self, part: &'static str) {
        let mut parts = self.0.lock();
        if !parts.contains(&part) {
            parts.push(part);
        }
    }

    /// `part` is ready.
    pub fn ready(&self, part: &'static str) {
        self.0.lock().retain(|missing| *missing != part);
    }

    /// The parts that are not ready.
    #[must_use]
    pub fn lacks(&self) -> Vec<&'static str> {
        self.0.lock().clone()
    }
}

/// Serves health and metrics on `address` as a part of the daemon.
///
/// # Errors
/// When the address is taken or is not loopback.
pub async fn start(address: &str, ctx: &Context) -> anyhow::Result<()> {
    let listener = crate::serve::bind(address, false).await?;
    let context = ctx.clone();
    let service = tower::service_fn(move |request: Request<Incoming>| {
        let answer = answer(request.uri().path(), &context);
        async move { Ok::<_, Infallible>(answer) }
    });
    ctx.tasks.part("health", crate::serve::serve(listener, None, service, ctx.clone()));
    Ok(())
}

fn answer(path: &str, ctx: &Context) -> Response<Full<Bytes>> {
    let (code, body) = match path {
        "/healthz" | "/livez" => (StatusCode::OK, "ok".to_owned()),
        "/readyz" => {
            let lacks = ctx.health.lacks();
            if lacks.is_empty() {
                (StatusCode::OK, "ok".to_owned())
            } else {
                (StatusCode::INTERNAL_SERVER_ERROR, format!("not ready: {}\n", lacks.join(", ")))
            }
        }
        "/metrics" => (StatusCode::OK, ctx.metrics.render()),
        _ => (StatusCode::NOT_FOUND, "not found\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    let text = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}
