//! Calls counted as go-grpc-prometheus does it, by service, method and code: what etcd's dashboards draw.

use std::sync::Arc;

use bytes::Bytes;
use daemon::metrics::Metrics;
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt as _;
use http_body_util::combinators::MapFrame;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::{Code, Status};

const UNARY: &str = "unary";
const STREAM: &str = "bidi_stream";
const DOWN: &str = "server_stream";

/// Every method, those that are called most first.
const METHODS: &[(&str, &str, &str)] = &[
    ("etcdserverpb.KV", "Put", UNARY),
    ("etcdserverpb.KV", "Txn", UNARY),
    ("etcdserverpb.KV", "Range", UNARY),
    ("etcdserverpb.KV", "DeleteRange", UNARY),
    ("etcdserverpb.KV", "Compact", UNARY),
    ("etcdserverpb.Watch", "Watch", STREAM),
    ("etcdserverpb.Lease", "LeaseKeepAlive", STREAM),
    ("etcdserverpb.Lease", "LeaseGrant", UNARY),
    ("etcdserverpb.Lease", "LeaseRevoke", UNARY),
    ("etcdserverpb.Lease", "LeaseTimeToLive", UNARY),
    ("etcdserverpb.Lease", "LeaseLeases", UNARY),
    ("etcdserverpb.Maintenance", "Status", UNARY),
    ("etcdserverpb.Maintenance", "Snapshot", DOWN),
    ("etcdserverpb.Maintenance", "Alarm", UNARY),
    ("etcdserverpb.Maintenance", "Hash", UNARY),
    ("etcdserverpb.Maintenance", "HashKV", UNARY),
    ("etcdserverpb.Maintenance", "Defragment", UNARY),
    ("etcdserverpb.Maintenance", "MoveLeader", UNARY),
    ("etcdserverpb.Maintenance", "Downgrade", UNARY),
    ("etcdserverpb.Cluster", "MemberList", UNARY),
    ("etcdserverpb.Cluster", "MemberAdd", UNARY),
    ("etcdserverpb.Cluster", "MemberRemove", UNARY),
    ("etcdserverpb.Cluster", "MemberUpdate", UNARY),
    ("etcdserverpb.Cluster", "MemberPromote", UNARY),
    ("etcdserverpb.Auth", "Authenticate", UNARY),
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Called {
    grpc_method: &'static str,
    grpc_service: &'static str,
    grpc_type: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ended {
    grpc_code: &'static str,
    grpc_method: &'static str,
    grpc_service: &'static str,
    grpc_type: &'static str,
}

/// The counters of every method. Those of calls that go well are at hand; only failures are looked up.
#[derive(Debug)]
pub(super) struct Calls {
    started: Vec<Counter>,
    fine: Vec<Counter>,
    ended: Family<Ended, Counter>,
    received: Counter,
    sent: Counter,
}

impl Calls {
    pub(super) fn new(registry: &Metrics) -> Arc<Self> {
        let begun = Family::<Called, Counter>::default();
        let ended = Family::<Ended, Counter>::default();
        registry.register("grpc_server_started", "Calls that began", begun.clone());
        registry.register("grpc_server_handled", "Calls that ended, by their end", ended.clone());
        let (received, sent) = (Counter::default(), Counter::default());
        let help = "Bytes of the messages that clients sent";
        registry.register("etcd_network_client_grpc_received_bytes", help, received.clone());
        let help = "Bytes of the messages that clients were sent";
        registry.register("etcd_network_client_grpc_sent_bytes", help, sent.clone());
        let started = METHODS.iter().map(|&(grpc_service, grpc_method, grpc_type)| {
            let counter = begun.get_or_create(&Called { grpc_method, grpc_service, grpc_type });
            counter.clone()
        });
        let started = started.collect();
        let fine = (0..METHODS.len()).map(|i| ended.get_or_create(&end(i, Code::Ok)).clone());
        let fine = fine.collect();
        Arc::new(Self { started, fine, ended, received, sent })
    }

    /// Counts the begin of a call by its path; which method it is, if it is one that is counted.
    pub(super) fn begin(&self, path: &str) -> Option<usize> {
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        let method = METHODS.iter().position(|m| m.1 == method && m.0 == service)?;
        self.started[method].inc();
        Some(method)
    }

    /// A request whose bytes are counted as they come in.
    pub(super) fn hears<B: HttpBody<Data = Bytes>>(
        &self,
        request: Request<B>,
    ) -> Request<MapFrame<B, impl FnMut(Frame<Bytes>) -> Frame<Bytes> + Send + 'static + use<B>>>
    {
        let received = self.received.clone();
        request.map(|body| body.map_frame(move |frame| counted(frame, &received)))
    }

    /// Counts the end of a call; that of a stream, and the bytes of all, when they have come.
    pub(super) fn end(self: &Arc<Self>, method: usize, response: Response<Body>) -> Response<Body> {
        let ends = match Status::from_header_map(response.headers()) {
            None if METHODS[method].2 != UNARY => Some(StreamEnd(self.fine[method].clone())),
            None => {
                self.fine[method].inc();
                None
            }
            Some(status) => {
                self.ended.get_or_create(&end(method, status.code())).inc();
                return response;
            }
        };
        let sent = self.sent.clone();
        response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _until_the_body_is_dropped = &ends;
                counted(frame, &sent)
            }))
        })
    }
}

fn counted(frame: Frame<Bytes>, bytes: &Counter) -> Frame<Bytes> {
    if let Some(data) = frame.data_ref() {
        bytes.inc_by(data.len() as u64);
    }
    frame
}

/// Counts a stream that went well when it is dropped.
struct StreamEnd(Counter);

impl Drop for StreamEnd {
    fn drop(&mut self) {
        self.0.inc();
    }
}

fn end(method: usize, code: Code) -> Ended {
    let (grpc_service, grpc_method, grpc_type) = METHODS[method];
    Ended { grpc_code: name(code), grpc_method, grpc_service, grpc_type }
}

/// A code as Go writes it.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use super::*;

    /// A stream that says nothing and does not end.
    struct Open;

    impl HttpBody for Open {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Pending
        }
    }

    #[test]
    fn calls_are_counted_by_how_they_end() {
        let registry = Metrics::default();
        let calls = Calls::new(&registry);
        let answer = || Response::new(Body::empty());
        let put = calls.begin("/etcdserverpb.KV/Put").unwrap();
        drop(calls.end(put, answer()));
        drop(calls.end(put, Status::not_found("no").into_http::<Body>()));
        let watch = calls.begin("/etcdserverpb.Watch/Watch").unwrap();
        let stream = calls.end(watch, Response::new(Body::new(Open)));
        assert_eq!(calls.begin("/etcdserverpb.KV/Nothing"), None);
        let says = |line: &str| registry.render().contains(line);
        let labels = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 1";
        assert!(says(&format!("grpc_server_started_total{{{labels}")));
        for code in ["OK", "NotFound"] {
            assert!(says(&format!("grpc_server_handled_total{{grpc_code=\"{code}\",{labels}")));
        }
        let ended = |n: u32| {
            says(&format!(
                "grpc_code=\"OK\",grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"}} {n}"
            ))
        };
        assert!(ended(0));
        drop(stream);
        assert!(ended(1));
    }
}
