//! The way to a node's agent: the one call that does not go through the hub.

use std::collections::HashMap;
use std::sync::Arc;

use api::error::ApiError;
use api::object::Value;
use daemon::Channel;
use daemon::tls::ClientTls;
use parking_lot::Mutex;
use wire::apiserver::node_client::NodeClient;

use crate::registry::Api;
use crate::request::Request;
use crate::storage::cache::Cache;

/// A client of one agent.
pub(crate) type Agent = NodeClient<Channel>;

/// Agents whose connection is kept.
const CHANNELS_MAX: usize = 4096;
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Finds and calls node agents.
#[derive(Debug)]
pub(crate) struct Nodes {
    cache: Arc<Cache>,
    tls: Option<ClientTls>,
    /// Agents in this process, by node name.
    local: Arc<Mutex<HashMap<String, Channel>>>,
    remote: Mutex<HashMap<String, Channel>>,
}

/// Where a process that is the whole cluster puts its own agent.
#[derive(Debug, Clone, Default)]
pub struct LocalAgents(Arc<Mutex<HashMap<String, Channel>>>);

impl LocalAgents {
    /// Reaches the agent of `node` through `channel` from now on.
    pub fn insert(&self, node: &str, channel: Channel) {
        self.0.lock().insert(node.to_owned(), channel);
    }
}

impl Nodes {
    /// Reaches agents over TLS with our certificate, or in this process.
    pub(crate) fn new(cache: Arc<Cache>, tls: Option<ClientTls>, local: &LocalAgents) -> Self {
        Self { cache, tls, local: local.0.clone(), remote: Mutex::default() }
    }

    /// A client of the agent on `node`.
    ///
    /// # Errors
    /// 404 for a node that is not there, 500 for one that says no address.
    pub(crate) fn client(&self, node: &str) -> Result<Agent, ApiError> {
        let channel = match self.local.lock().get(node).cloned() {
            Some(channel) => channel,
            None => self.remote(node)?,
        };
        Ok(NodeClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    fn remote(&self, node: &str) -> Result<Channel, ApiError> {
        let entry = self.cache.shelf("minions").get(node).ok_or_else(|| ApiError::NotFound {
            resource: api::error::ResourceName::new("", "nodes"),
            name: node.to_owned(),
        })?;
        let object = entry.parse();
        let addresses = object.at(&["status", "addresses"]).map(Value::items).unwrap_or_default();
        let internal = addresses.iter().find(|a| a.str_at(&["type"]) == Some("InternalIP"));
        let host = internal.and_then(|a| a.str_at(&["address"])).ok_or_else(|| {
            ApiError::Internal(format!("no preferred addresses found for node {node:?}"))
        })?;
        let port = object
            .int_at(&["status", "daemonEndpoints", "kubeletEndpoint", "Port"])
            .filter(|port| *port > 0)
            .unwrap_or(10250);
        let url = format!("https://{host}:{port}");
        if let Some(channel) = self.remote.lock().get(&url) {
            return Ok(channel.clone());
        }
        let channel = daemon::channel::connect(&url, self.tls.as_ref())
            .map_err(|error| ApiError::Internal(format!("{error:#}")))?;
        let mut remote = self.remote.lock();
        if remote.len() >= CHANNELS_MAX {
            remote.clear();
        }
        remote.insert(url, channel.clone());
        Ok(channel)
    }
}

/// Where a container runs.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) node: String,
    pub(crate) uid: String,
    /// Empty where only the pod was asked for.
    pub(crate) container: String,
}

impl Api {
    /// Where a pod's container runs: the one named, or the only one where the name is empty; with none asked for, where
    /// the pod itself is.
    ///
    /// # Errors
    /// 404 without the pod, 400 without the container or before the pod has a node.
    pub(crate) async fn place(
        &self,
        request: &Request,
        container: Option<&str>,
    ) -> Result<Place, ApiError> {
        let place = self.whereabouts(request, container).await?;
        if place.node.is_empty() {
            return Err(ApiError::BadRequest(format!(
                "pod {} does not have a host assigned",
                request.name
            )));
        }
        Ok(place)
    }

    /// The same for a pod that may not have a node yet; the node's name is empty then.
    ///
    /// # Errors
    /// 404 without the pod, 400 without the container.
    pub(crate) async fn whereabouts(
        &self,
        request: &Request,
        container: Option<&str>,
    ) -> Result<Place, ApiError> {
        let found = self.find(&request.resource, &request.namespace, &request.name).await?;
        let pod = found.ok_or_else(|| request.not_found())?.parse();
        let container = match container {
            Some(wanted) => container_of(&pod, &request.name, wanted)?,
            None => String::new(),
        };
        let node = pod.str_at(&["spec", "nodeName"]).unwrap_or("").to_owned();
        Ok(Place { node, uid: api::meta::uid(&pod).to_owned(), container })
    }
}

fn container_of(pod: &Value, pod_name: &str, wanted: &str) -> Result<String, ApiError> {
    let names: Vec<&str> = ["initContainers", "containers", "ephemeralContainers"]
        .iter()
        .flat_map(|list| pod.at(&["spec", list]).map(Value::items).unwrap_or_default())
        .filter_map(|c| c.str_at(&["name"]))
        .collect();
    let main = pod.at(&["spec", "containers"]).map(Value::items).unwrap_or_default();
    match (wanted, main) {
        ("", [only]) => Ok(only.str_at(&["name"]).unwrap_or("").to_owned()),
        ("", _) => Err(ApiError::BadRequest(format!(
            "a container name must be specified for pod {pod_name}, choose one of: [{}]",
            names.join(" ")
        ))),
        (name, _) if names.contains(&name) => Ok(name.to_owned()),
        (name, _) => {
            Err(ApiError::BadRequest(format!("container {name} is not valid for pod {pod_name}")))
        }
    }
}

/// What an agent's failure is for the client.
pub(crate) fn agent_error(status: &tonic::Status) -> ApiError {
    match status.code() {
        tonic::Code::NotFound => ApiError::Unexpected(status.message().to_owned()),
        tonic::Code::InvalidArgument | tonic::Code::FailedPrecondition => {
            ApiError::BadRequest(status.message().to_owned())
        }
        _ => ApiError::Internal(format!("node agent: {}", status.message())),
    }
}
