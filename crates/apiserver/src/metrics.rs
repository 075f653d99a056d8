//! What the API server counts, under the names that upstream's dashboards look for.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::request::Request;

/// Upper bounds of the duration buckets, in seconds.
const BUCKETS_S: [f64; 16] =
    [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stored {
    resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Queue {
    name: &'static str,
}

/// Counters of the API server.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    requests: Family<Answered, Counter>,
    durations: Family<Kind, Histogram, fn() -> Histogram>,
    objects: Family<Stored, Gauge>,
    queues: Family<Queue, Gauge>,
}

impl Metrics {
    /// Registers the counters.
    pub(crate) fn new(registry: &daemon::Metrics) -> Self {
        let metrics = Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(BUCKETS_S)),
            objects: Family::default(),
            queues: Family::default(),
        };
        let requests = metrics.requests.clone();
        registry.register("apiserver_request", "Requests answered", requests);
        let help = "Seconds from a request's head to its answer's";
        registry.register("apiserver_request_duration_seconds", help, metrics.durations.clone());
        let help = "Objects there are, by resource";
        registry.register("apiserver_storage_objects", help, metrics.objects.clone());
        let help = "Changes that a part of the server has not seen to yet";
        registry.register("workqueue_depth", help, metrics.queues.clone());
        metrics
    }

    /// Counts an answer to a request for a resource.
    pub(crate) fn answered(&self, request: &Request, verb: &str, code: u16, took: Duration) {
        let scope = match (request.name.is_empty(), request.namespace.is_empty()) {
            (false, _) => "resource",
            (true, false) => "namespace",
            (true, true) => "cluster",
        };
        // The kinds of verbs are few, whatever clients send.
        let verb = match verb {
            "get" => "GET",
            "list" => "LIST",
            "watch" => "WATCH",
            "create" => "POST",
            "update" => "PUT",
            "patch" => "PATCH",
            "delete" => "DELETE",
            "deletecollection" => "DELETECOLLECTION",
            _ => "other",
        };
        let row = &request.resource;
        let kind = Kind {
            verb,
            group: row.group.to_string(),
            version: row.version.to_string(),
            resource: row.plural.to_string(),
            // Nothing that is not in the catalog becomes a label.
            subresource: row
                .subresource(&request.subresource)
                .map(|s| s.name.to_string())
                .unwrap_or_default(),
            scope,
        };
        self.durations.get_or_create(&kind).observe(took.as_secs_f64());
        let Kind { verb, group, version, resource, subresource, scope } = kind;
        let answered = Answered { verb, group, version, resource, subresource, scope, code };
        self.requests.get_or_create(&answered).inc();
    }

    /// Notes how much a part of the server has before it.
    pub(crate) fn queued(&self, name: &'static str, depth: i64) {
        self.queues.get_or_create(&Queue { name }).set(depth);
    }

    /// Notes how many objects of a resource there are.
    pub(crate) fn stored(&self, resource: String, objects: usize) {
        let objects = i64::try_from(objects).unwrap_or(i64::MAX);
        self.objects.get_or_create(&Stored { resource }).set(objects);
    }
}
