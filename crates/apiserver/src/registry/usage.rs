//! The resource metrics API (`metrics.k8s.io`): what nodes and pods use just now, asked of the node agents.
//!
//! Nothing is stored. Processor use is the difference of two readings; the first question about a node takes two, a moment
//! apart. Readings are kept for a while, so that many who ask cost a node no more than one. Nodes that do not answer are left
//! out, as upstream's metrics server leaves them out.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use api::catalog::Resource;
use api::error::ApiError;
use api::object::{Map, Value};
use futures::StreamExt as _;
use parking_lot::Mutex;
use wire::apiserver::StatsRequest;

use super::list::Filter;
use super::{Api, shelf_key};
use crate::request::{Action, List, Object, Outcome, Request};
use crate::storage::entry::Entry;

pub(crate) const GROUP: &str = "metrics.k8s.io";
/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(10);
/// How old the reading before may be, so that the difference still means `just now`.
const WINDOW_MAX: Duration = Duration::from_secs(90);
/// Between the two readings that a first question takes.
const MOMENT: Duration = Duration::from_secs(1);
const NODE_TIMEOUT: Duration = Duration::from_secs(3);
/// How many nodes are asked at a time.
const NODES_MAX: usize = 32;

/// What a node and its containers have used up to a moment.
#[derive(Clone, Debug, Default)]
struct Reading {
    /// Our clock.
    at: Duration,
    node: Used,
    /// By pod uid: container and what it has used.
    pods: HashMap<String, Vec<(String, Used)>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Used {
    cpu_ns: i64,
    memory_bytes: i64,
}

/// Two readings of one node, and the time of the second.
#[derive(Debug)]
struct Pair {
    before: Reading,
    after: Reading,
    timestamp: String,
}

type Slot = Arc<tokio::sync::Mutex<Option<Arc<Pair>>>>;

/// The last readings of each node.
#[derive(Debug, Default)]
pub(crate) struct Readings(Mutex<HashMap<String, Slot>>);

impl Reading {
    /// From the page `stats/summary`.
    fn parse(page: &[u8], at: Duration) -> Option<Self> {
        let page = api::codec::json::parse(page).ok()?;
        let used = |of: &Value| Used {
            cpu_ns: of.int_at(&["cpu", "usageCoreNanoSeconds"]).unwrap_or(0),
            memory_bytes: of.int_at(&["memory", "workingSetBytes"]).unwrap_or(0),
        };
        let items = |of: &'_ Value, name: &str| -> Vec<Value> {
            of.at(&[name]).map(Value::items).unwrap_or_default().to_vec()
        };
        let pods = items(&page, "pods").into_iter().filter_map(|pod| {
            let containers = items(&pod, "containers");
            let containers =
                containers.iter().filter_map(|c| Some((c.str_at(&["name"])?.to_owned(), used(c))));
            Some((pod.str_at(&["podRef", "uid"])?.to_owned(), containers.collect()))
        });
        Some(Self { at, node: used(page.at(&["node"])?), pods: pods.collect() })
    }
}

impl Pair {
    fn window(&self) -> Duration {
        self.after.at.saturating_sub(self.before.at)
    }

    /// What is used now, where something was used before.
    fn usage(&self, before: Option<&Used>, after: &Used) -> Option<Value> {
        let window_s = self.window().as_secs_f64();
        let cpu_ns = (after.cpu_ns - before?.cpu_ns).max(0) as f64 / window_s;
        let mut usage = Value::Object(Map::default());
        usage.set("cpu", format!("{}n", cpu_ns as i64));
        usage.set("memory", format!("{}Ki", after.memory_bytes / 1024));
        Some(usage)
    }

    fn node(&self) -> Option<Value> {
        self.usage(Some(&self.before.node), &self.after.node)
    }

    /// The containers of a pod that ran all the time; none while one of them has been read only once.
    fn pod(&self, uid: &str) -> Option<Value> {
        let before = self.before.pods.get(uid)?;
        let containers = self.after.pods.get(uid)?.iter().map(|(name, after)| {
            let before = before.iter().find(|(n, _)| n == name).map(|(_, used)| used);
            let mut container = Value::Object(Map::default());
            container.set("name", name.as_str());
            container.set("usage", self.usage(before, after)?);
            Some(container)
        });
        containers.collect::<Option<Vec<Value>>>().map(Value::Array)
    }
}

impl Api {
    /// Answers GET and LIST of node and pod metrics.
    pub(crate) async fn used(&self, request: &Request) -> Result<Outcome, ApiError> {
        let revision = self.catch_up().await?;
        let of_nodes = !request.resource.namespaced;
        let (labels, fields) = match &request.action {
            Action::List(options) => (options.labels.as_str(), options.fields.as_str()),
            _ => ("", ""),
        };
        let subjects = self.resource("", "v1", if of_nodes { "nodes" } else { "pods" });
        // An entry keeps what its own kind's selectors look at.
        let filter = Filter::new(&subjects, labels, fields)?;
        let single = matches!(request.action, Action::Get { .. });
        let found: Vec<Arc<Entry>> = if single {
            let key = shelf_key(&subjects, &request.namespace, &request.name);
            self.shelf(&subjects).get(&key).into_iter().collect()
        } else {
            let prefix = match request.namespace.as_str() {
                namespace if of_nodes || namespace.is_empty() => String::new(),
                namespace => format!("{namespace}/"),
            };
            self.shelf(&subjects).list(&prefix, "").into_iter().map(|(_, entry)| entry).collect()
        };
        let found: Vec<Value> =
            found.iter().filter(|entry| filter.passes(entry)).map(|entry| entry.parse()).collect();
        let node_of = |object: &Value| {
            let path: &[&str] =
                if of_nodes { &["metadata", "name"] } else { &["spec", "nodeName"] };
            object.str_at(path).unwrap_or_default().to_owned()
        };
        let nodes: BTreeSet<String> = found.iter().map(node_of).filter(|n| !n.is_empty()).collect();
        let read = futures::stream::iter(nodes).map(|node| async move {
            let pair = self.read_node(&node).await?;
            Some((node, pair))
        });
        let read: HashMap<String, Arc<Pair>> =
            read.buffer_unordered(NODES_MAX).filter_map(std::future::ready).collect().await;
        let measured = found.iter().filter_map(|subject| {
            measured(&request.resource, subject, read.get(&node_of(subject))?)
        });
        let mut items = measured.map(|object| object.to_bytes().into());
        if single {
            let json = items.next().ok_or_else(|| request.not_found())?;
            let object = Object { json, kind: None };
            return Ok(Outcome::Object { object, created: false, warnings: Vec::new() });
        }
        let (items, continue_token) = (items.collect(), String::new());
        Ok(Outcome::List(List { revision, items, continue_token, remaining: None }))
    }

    /// Two readings of a node, the second of just now; none if it does not answer.
    async fn read_node(&self, node: &str) -> Option<Arc<Pair>> {
        let slot = self.readings.0.lock().entry(node.to_owned()).or_default().clone();
        let mut slot = slot.lock().await;
        let now = self.clock.monotonic();
        let last = slot.take();
        let before = match last {
            Some(pair) if now.saturating_sub(pair.after.at) < FRESH => {
                *slot = Some(pair.clone());
                return Some(pair);
            }
            Some(pair) if now.saturating_sub(pair.after.at) < WINDOW_MAX => pair.after.clone(),
            _ => {
                let first = self.ask_node(node).await;
                if first.is_none() {
                    self.readings.0.lock().remove(node);
                }
                let first = first?;
                tokio::time::sleep(MOMENT).await;
                first
            }
        };
        let after = self.ask_node(node).await?;
        let timestamp = api::time::format(self.clock.now());
        let pair = Arc::new(Pair { before, after, timestamp });
        *slot = Some(pair.clone());
        Some(pair)
    }

    async fn ask_node(&self, node: &str) -> Option<Reading> {
        let ask = StatsRequest { page: "summary".to_owned(), node: node.to_owned() };
        let mut agent = self.nodes.client(node).ok()?;
        let reply = tokio::time::timeout(NODE_TIMEOUT, agent.stats(ask)).await;
        match reply {
            Ok(Ok(reply)) => Reading::parse(&reply.into_inner().body, self.clock.monotonic()),
            Ok(Err(status)) => {
                tracing::debug!(node, %status, "the node's use was not told");
                None
            }
            Err(_) => None,
        }
    }
}

/// The metrics of one node or pod.
fn measured(resource: &Resource, subject: &Value, pair: &Pair) -> Option<Value> {
    let mut object = Value::Object(Map::default());
    object.set("apiVersion", resource.api_version());
    object.set("kind", resource.kind.as_ref());
    let mut metadata = Value::Object(Map::default());
    for field in ["name", "namespace", "labels"] {
        if let Some(value) = subject.at(&["metadata", field]) {
            metadata.set(field, value.clone());
        }
    }
    metadata.set("creationTimestamp", pair.timestamp.as_str());
    object.set("metadata", metadata);
    object.set("timestamp", pair.timestamp.as_str());
    object.set("window", format!("{:.3}s", pair.window().as_secs_f64()));
    if resource.namespaced {
        object.set("containers", pair.pod(subject.str_at(&["metadata", "uid"])?)?);
    } else {
        object.set("usage", pair.node()?);
    }
    Some(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(at_s: u64, cpu_ns: i64) -> Reading {
        let page = format!(
            r#"{{"node":{{"cpu":{{"usageCoreNanoSeconds":{cpu_ns}}},"memory":{{"workingSetBytes":2048}}}},
            "pods":[{{"podRef":{{"uid":"u"}},"containers":[
              {{"name":"c","cpu":{{"usageCoreNanoSeconds":{cpu_ns}}},"memory":{{"workingSetBytes":1024}}}}]}}]}}"#
        );
        Reading::parse(page.as_bytes(), Duration::from_secs(at_s)).unwrap()
    }

    #[test]
    fn processor_use_is_the_difference_of_two_readings() {
        let pair = Pair {
            before: reading(10, 1_000_000_000),
            after: reading(14, 3_000_000_000),
            timestamp: String::new(),
        };
        let usage = pair.node().unwrap();
        assert_eq!(usage.str_at(&["cpu"]), Some("500000000n"));
        assert_eq!(usage.str_at(&["memory"]), Some("2Ki"));
        let containers = pair.pod("u").unwrap();
        assert_eq!(containers.items()[0].str_at(&["usage", "memory"]), Some("1Ki"));
        assert!(pair.pod("other").is_none());
    }

    #[test]
    fn a_container_that_was_read_once_is_not_measured() {
        let mut before = reading(10, 0);
        before.pods.get_mut("u").unwrap().clear();
        let pair = Pair { before, after: reading(14, 1), timestamp: String::new() };
        assert!(pair.pod("u").is_none());
    }
}
