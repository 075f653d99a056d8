//! The way to a node's agent: the one call that does not go through the hub.

use std::collections::HashMap;
use std::sync::Arc;

use api::error::ApiError;
use api::object::Value;
use daemon::Channel;
use daemon::tls::ClientTls;
use parking_lot::Mutex;
use wire::apiserver::node_client::NodeClient;

use crate::storage::cache::Cache;

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
    pub(crate) fn client(&self, node: &str) -> Result<NodeClient<Channel>, ApiError> {
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
