//! What a member answers to plain HTTP beside gRPC on its clients' port, as etcd does for probes and scrapers: `/health`,
//! `/livez`, `/readyz` and each of their checks, `/version` and `/metrics`.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use daemon::channel::BoxError;
use daemon::metrics::Metrics;
use futures::future::{BoxFuture, Either};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{HeaderValue, Method, Request, Response, StatusCode, header};
use wire::etcdserverpb::AlarmType;

use super::{Routes, VERSION};
use crate::engine::Engine;

/// How the content of gRPC calls begins to call itself.
const GRPC: &[u8] = b"application/grpc";

/// The gRPC services and what is beside them.
#[derive(Clone)]
pub struct Front {
    routes: Routes,
    engine: Arc<Engine>,
    metrics: Metrics,
}

impl Front {
    /// These services of this member.
    #[must_use]
    pub fn new(routes: Routes, engine: Arc<Engine>, metrics: Metrics) -> Self {
        Self { routes, engine, metrics }
    }
}

impl<B> Service<Request<B>> for Front
where
    B: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError> + Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<
        BoxFuture<'static, Result<Self::Response, Infallible>>,
        <Routes as Service<Request<B>>>::Future,
    >;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        <Routes as Service<Request<B>>>::poll_ready(&mut self.routes, cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Some(page) = Page::at(request.uri().path()) else {
            let grpc = request.headers().get(header::CONTENT_TYPE);
            if grpc.is_some_and(|kind| kind.as_bytes().starts_with(GRPC)) {
                return Either::Right(self.routes.call(request));
            }
            let missing = answer(StatusCode::NOT_FOUND, "404 page not found\n");
            return Either::Left(Box::pin(std::future::ready(Ok(missing))));
        };
        let (method, asked) = (request.method().clone(), Asked::of(request.uri().query()));
        let (engine, metrics) = (self.engine.clone(), self.metrics.clone());
        Either::Left(Box::pin(async move {
            if method != Method::GET {
                let mut refused = answer(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
                refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
                return Ok(refused);
            }
            Ok(match page {
                Page::Health => health(&asked, &alarms(&engine), read(&engine, &asked).await),
                Page::Live(only) => checks(&asked, &[("serializable_read", Ok(()))], only),
                Page::Ready(only) => checks(&asked, &readiness(&engine, &asked, only).await, only),
                Page::Version => {
                    let text = format!(
                        "{{\"etcdserver\":\"{VERSION}\",\"etcdcluster\":\"{VERSION}\",\
                         \"storage\":\"{VERSION}\"}}"
                    );
                    answer(StatusCode::OK, &text)
                }
                Page::Metrics => answer(StatusCode::OK, &metrics.render()),
            })
        }))
    }
}

/// What the pages check, as etcd calls it.
const LIVE: [&str; 1] = ["serializable_read"];
const READY: [&str; 3] = ["data_corruption", "serializable_read", "linearizable_read"];

#[derive(Debug, Clone, Copy)]
enum Page {
    Health,
    /// All checks, or one.
    Live(Option<&'static str>),
    Ready(Option<&'static str>),
    Version,
    Metrics,
}

impl Page {
    fn at(path: &str) -> Option<Self> {
        match path {
            "/health" => Some(Self::Health),
            "/version" => Some(Self::Version),
            "/metrics" => Some(Self::Metrics),
            _ => Self::check_at(path),
        }
    }

    fn check_at(path: &str) -> Option<Self> {
        let path = path.strip_prefix('/')?;
        let (page, check) = path.split_once('/').unwrap_or((path, ""));
        let (page, names): (fn(_) -> Self, _) = match page {
            "livez" => (Self::Live, &LIVE[..]),
            "readyz" => (Self::Ready, &READY[..]),
            _ => return None,
        };
        if check.is_empty() {
            return Some(page(None));
        }
        names.iter().find(|name| **name == check).map(|name| page(Some(name)))
    }
}

/// What is asked behind the question mark.
#[derive(Debug, Default)]
struct Asked {
    excluded: Vec<String>,
    serializable: bool,
    verbose: bool,
}

impl Asked {
    fn of(query: Option<&str>) -> Self {
        let mut asked = Self::default();
        for part in query.unwrap_or_default().split('&') {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            match name {
                "exclude" => asked.excluded.push(value.to_owned()),
                "serializable" => asked.serializable = value == "true",
                "verbose" => asked.verbose = true,
                _ => {}
            }
        }
        asked
    }

    fn excludes(&self, name: &str) -> bool {
        self.excluded.iter().any(|excluded| excluded == name)
    }
}

fn alarms(engine: &Engine) -> Vec<AlarmType> {
    engine.applied.read().mvcc.alarms().map(|(_, alarm)| alarm).collect()
}

/// Whether a read would be answered; one that is serializable is.
async fn read(engine: &Engine, asked: &Asked) -> Result<(), String> {
    if asked.serializable {
        return Ok(());
    }
    if engine.leader.load(Ordering::Relaxed) == 0 {
        return Err("RAFT NO LEADER".to_owned());
    }
    engine.turn().await.map_err(|refusal| format!("RANGE ERROR:{refusal}"))
}

async fn readiness(
    engine: &Engine,
    asked: &Asked,
    only: Option<&str>,
) -> [(&'static str, Result<(), String>); 3] {
    let corrupt = alarms(engine).contains(&AlarmType::Corrupt);
    let corruption = if corrupt { Err("alarm activated: CORRUPT".to_owned()) } else { Ok(()) };
    // What is not asked for must not keep the others waiting.
    let [.., last] = READY;
    let wanted = only.map_or_else(|| !asked.excludes(last), |only| only == last);
    let linearizable = if wanted { read(engine, &Asked::default()).await } else { Ok(()) };
    let [first, second, last] = READY;
    [(first, corruption), (second, Ok(())), (last, linearizable)]
}

/// etcd's old answer: the first thing that is wrong.
fn health(asked: &Asked, alarms: &[AlarmType], read: Result<(), String>) -> Response<Body> {
    let alarm = alarms.iter().find(|alarm| !asked.excludes(alarm.as_str_name()));
    let alarm = alarm.map_or(Ok(()), |alarm| Err(format!("ALARM {}", alarm.as_str_name())));
    // Reasons are words of ours, whose quoted form is also JSON's.
    match alarm.and(read) {
        Ok(()) => answer(StatusCode::OK, "{\"health\":\"true\",\"reason\":\"\"}"),
        Err(reason) => {
            let text = format!("{{\"health\":\"false\",\"reason\":{reason:?}}}\n");
            answer(StatusCode::SERVICE_UNAVAILABLE, &text)
        }
    }
}

/// The answer of newer versions: every check on a line, if one failed or they are asked for. Only one of them, if its own
/// page is asked for.
fn checks(
    asked: &Asked,
    checks: &[(&str, Result<(), String>)],
    only: Option<&str>,
) -> Response<Body> {
    let mut text = String::new();
    let mut code = StatusCode::OK;
    let counts = |name: &str| only.map_or_else(|| !asked.excludes(name), |only| only == name);
    for (name, result) in checks.iter().filter(|(name, _)| counts(name)) {
        match result {
            Ok(()) => text.push_str(&format!("[+]{name} ok\n")),
            Err(reason) => {
                code = StatusCode::SERVICE_UNAVAILABLE;
                text.push_str(&format!("[-]{name} failed: {reason}\n"));
            }
        }
    }
    match code {
        StatusCode::OK if asked.verbose => answer(code, &format!("{text}ok\n")),
        StatusCode::OK => answer(code, "ok\n"),
        _ => answer(code, &text),
    }
}

fn answer(code: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::new(text.to_owned()));
    *response.status_mut() = code;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_excluded_does_not_count() {
        let (full, fine) = ([AlarmType::Nospace], Ok(()));
        let code = |query: &str, read: &Result<(), String>| {
            health(&Asked::of(Some(query)), &full, read.clone()).status().as_u16()
        };
        assert_eq!(code("", &fine), 503);
        assert_eq!(code("exclude=NOSPACE", &fine), 200);
        assert_eq!(code("exclude=CORRUPT&verbose", &fine), 503);
        assert_eq!(code("exclude=NOSPACE", &Err("RAFT NO LEADER".into())), 503);
        let failed = [("a", Ok(())), ("b", Err("why".to_owned()))];
        let code = |query, only| checks(&Asked::of(query), &failed, only).status().as_u16();
        assert_eq!(code(None, None), 503);
        assert_eq!(code(Some("exclude=b"), None), 200);
        assert_eq!(code(None, Some("a")), 200);
        assert_eq!(code(None, Some("b")), 503);
    }

    #[test]
    fn every_check_has_a_page() {
        let found = |path| Page::at(path).is_some();
        assert!(found("/readyz") && found("/readyz/data_corruption") && found("/livez/"));
        assert!(found("/livez/serializable_read") && !found("/livez/linearizable_read"));
        assert!(!found("/") && !found("") && !found("/etcdserverpb.KV/Put"));
    }
}
