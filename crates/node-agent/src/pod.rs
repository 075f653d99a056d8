//! What the agent knows of a pod besides its spec, as plain values; the decisions are below.
//!
//! `sync` says what to do next, `status` what to report; `spec` turns a pod into what the runtime
//! is asked for, `env` its variables, `resources` its share of the machine. None of them does I/O.

pub mod backoff;
pub mod env;
pub mod login;
pub mod probe;
pub mod resources;
pub mod spec;
pub mod status;
pub mod sync;

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod, PodSpec};

/// What the runtime has of one pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuntimePod {
    /// Its name, from the runtime's labels.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid.
    pub uid: String,
    /// Its sandboxes, newest first.
    pub sandboxes: Vec<Sandbox>,
    /// Its containers, newest first.
    pub containers: Vec<Container>,
}

/// The namespaces of a pod, held open by the pause process.
#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    /// The runtime's id.
    pub id: String,
    /// How many there were before.
    pub attempt: u32,
    /// Whether it runs.
    pub ready: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// Addresses; empty on the host's network.
    pub ips: Vec<String>,
}

/// The state of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made but not started.
    Created,
    /// Its process runs.
    Running,
    /// Its process has ended.
    Exited,
    /// The runtime does not know.
    Unknown,
}

/// One run of one container.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// The runtime's id.
    pub id: String,
    /// The name in the pod.
    pub name: String,
    /// The sandbox it runs in.
    pub sandbox_id: String,
    /// How many runs there were before.
    pub attempt: u32,
    /// What it is doing.
    pub state: State,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its process started.
    pub started_at: Option<Timestamp>,
    /// When its process ended.
    pub finished_at: Option<Timestamp>,
    /// How its process ended.
    pub exit_code: i32,
    /// The runtime's reason for the state.
    pub reason: String,
    /// The runtime's words about it, or the termination message.
    pub message: String,
    /// The image as asked for.
    pub image: String,
    /// The image's id or digest.
    pub image_id: String,
    /// Fingerprint of the spec it was made from.
    pub fingerprint: String,
    /// Grace in seconds it was promised, for pods that the API server no longer knows.
    pub grace_s: Option<i64>,
    /// Its log file.
    pub log_path: String,
    /// The file on the node that holds its termination message.
    pub termination_file: String,
    /// `File` or `FallbackToLogsOnError`.
    pub termination_policy: String,
}

/// Something that keeps a container from running, as its status says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Such as `ErrImagePull`.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// What the agent itself remembers of a pod between two looks at it.
#[derive(Clone, Debug, Default)]
pub struct Local {
    /// Back-off of each container, by name.
    pub backoff: HashMap<String, backoff::Backoff>,
    /// Probe verdicts, by container id.
    pub probes: HashMap<String, probe::Verdicts>,
    /// What failed when a container was last started, by name.
    pub waiting: BTreeMap<String, Waiting>,
    /// Containers whose start failed are not tried again before, by name.
    pub not_before: BTreeMap<String, Timestamp>,
    /// Containers that are being stopped, by id.
    pub stopping: HashMap<String, Timestamp>,
    /// Why the sandbox cannot be made.
    pub sandbox_error: Option<String>,
    /// The pod must go for a reason of the node's: phase Failed with this reason and message.
    pub evicted: Option<(String, String)>,
    /// When the agent first saw the pod.
    pub start_time: Option<Timestamp>,
}

/// Which of a pod's lists a container is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next.
    Init,
    /// An init container that is kept running.
    Sidecar,
    /// An app container.
    App,
    /// Added to a running pod to look at it; runs once.
    Ephemeral,
}

/// The containers that were added to a running pod, in the form of all others.
#[must_use]
pub fn ephemeral_containers(spec: &PodSpec) -> Vec<ContainerSpec> {
    // All fields but the target's name are those of a container.
    let plain = |c| serde_json::to_value(c).and_then(serde_json::from_value).ok();
    spec.ephemeral_containers.iter().flatten().filter_map(plain).collect()
}

/// A pod's own containers in the order they start: init, then app.
pub fn containers(spec: &PodSpec) -> impl Iterator<Item = (Role, &ContainerSpec)> {
    let init = spec.init_containers.iter().flatten().map(|c| (init_role(c), c));
    init.chain(spec.containers.iter().map(|c| (Role::App, c)))
}

fn init_role(container: &ContainerSpec) -> Role {
    if container.restart_policy.as_deref() == Some("Always") { Role::Sidecar } else { Role::Init }
}

impl RuntimePod {
    /// The latest run of a container.
    #[must_use]
    pub fn latest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The run before the latest.
    #[must_use]
    pub fn previous(&self, name: &str) -> Option<&Container> {
        self.containers.iter().filter(|c| c.name == name).nth(1)
    }

    /// Whether any container may still have a process.
    #[must_use]
    pub fn running(&self) -> bool {
        self.containers.iter().any(|c| matches!(c.state, State::Running | State::Unknown))
    }
}

/// The restart policy of a pod, `Always` where none is given.
#[must_use]
pub fn restart_policy(spec: &PodSpec) -> &str {
    spec.restart_policy.as_deref().unwrap_or("Always")
}

/// The uid of a pod.
#[must_use]
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// The namespace of a pod.
#[must_use]
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

/// The name of a pod.
#[must_use]
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// Whether a pod uses the node's network.
#[must_use]
pub fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}
