//! The container runtime: CRI over its unix socket, translated to the agent's own types.
//!
//! The only file that names CRI types. What the agent must find again after a restart is kept in
//! labels and annotations, under the names the kubelet uses.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::{SubscribeRequest, tasks_client::TasksClient};
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use prost::Message;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use wire::cri;
use wire::cri::image_service_client::ImageServiceClient;
use wire::cri::runtime_service_client::RuntimeServiceClient;

use crate::images::ours;
use crate::pod::resources::Limits;
use crate::pod::spec::{ContainerWish, Mount, Propagation, SandboxWish, Seccomp, Security};
use crate::pod::{Container, RuntimePod, Sandbox, State};

const CALL_TIMEOUT: Duration = Duration::from_secs(120);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
const PULL_TIMEOUT: Duration = Duration::from_secs(600);
const REPLY_BYTES_MAX: usize = 32 << 20;
const STOP_SLACK: Duration = Duration::from_secs(60);

const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";
const FINGERPRINT: &str = "io.kubernetes.container.hash";
const RESTARTS: &str = "io.kubernetes.container.restartCount";
const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";

/// Why the runtime did not do as asked.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Whether the thing asked about is not there.
    pub not_found: bool,
    /// The runtime's words.
    pub message: String,
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        // containerd answers some lookups of what is gone with Unknown.
        let not_found = status.code() == Code::NotFound || status.message().contains("not found");
        let message = format!("rpc error: code = {:?} desc = {}", status.code(), status.message());
        Self { not_found, message }
    }
}

/// The result of a call.
pub type Result<T> = std::result::Result<T, Error>;

/// An image the node has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The digest of its configuration.
    pub id: String,
    /// Its tags, then its digests.
    pub names: Vec<String>,
    /// Its size.
    pub bytes: u64,
    /// The user it runs as where the pod says nothing: a number, or a name.
    pub user: std::result::Result<i64, String>,
}

/// What a container uses at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Labels of the container: pod and container names.
    pub pod: String,
    /// Namespace of its pod.
    pub namespace: String,
    /// Uid of its pod.
    pub uid: String,
    /// Its name.
    pub container: String,
    /// When this was read, in nanoseconds since the epoch.
    pub at_ns: i64,
    /// Processor time so far.
    pub cpu_ns: u64,
    /// Memory that cannot be taken back.
    pub working_set_bytes: u64,
}

/// What the runtime is, and whether it can run pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// `containerd://1.6.20`
    pub version: String,
    /// Why it cannot run pods; empty when it can.
    pub trouble: String,
}

/// Something that happened in the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A container's main process has ended.
    Exit {
        /// Its id.
        container: String,
    },
    /// The kernel killed something of a container for want of memory.
    Oom {
        /// Its id.
        container: String,
    },
}

/// A channel to the socket at `path`, connected when first used.
#[must_use]
pub fn channel(path: &Path) -> Channel {
    let path: PathBuf = path.to_owned();
    let endpoint = Endpoint::from_static("http://containerd.invalid");
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    }))
}

/// Whether a CRI runtime answers on `channel`.
pub async fn answers(channel: &Channel) -> bool {
    let mut client = RuntimeServiceClient::new(channel.clone());
    let call = client.version(cri::VersionRequest::default());
    matches!(tokio::time::timeout(PROBE_TIMEOUT, call).await, Ok(Ok(_)))
}

/// The runtime. Clones share a connection.
#[derive(Clone, Debug)]
pub struct Runtime {
    channel: Channel,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

fn timed<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

fn soon<T>(message: T) -> Request<T> {
    timed(message, CALL_TIMEOUT)
}

/// A missing thing is as good as one that was just removed.
fn gone_is_fine<T>(result: std::result::Result<T, Status>) -> Result<()> {
    match result.map_err(Error::from) {
        Err(error) if !error.not_found => Err(error),
        _ => Ok(()),
    }
}

impl Runtime {
    /// The runtime behind `channel`.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        let runtime = RuntimeServiceClient::new(channel.clone());
        let images = ImageServiceClient::new(channel.clone());
        Self {
            runtime: runtime.max_decoding_message_size(REPLY_BYTES_MAX),
            images: images.max_decoding_message_size(REPLY_BYTES_MAX),
            channel,
        }
    }

    /// The connection itself, for containerd's own services.
    #[must_use]
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// What the runtime is and whether it is well.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn health(&self) -> Result<Health> {
        let mut client = self.runtime.clone();
        let version = client.version(soon(cri::VersionRequest::default())).await?.into_inner();
        let status = client.status(soon(cri::StatusRequest::default())).await?.into_inner();
        let conditions = status.status.unwrap_or_default().conditions;
        let bad = conditions.iter().filter(|c| !c.status);
        let trouble: Vec<String> =
            bad.map(|c| format!("{}: {} {}", c.r#type, c.reason, c.message)).collect();
        let version = format!("{}://{}", version.runtime_name, version.runtime_version);
        Ok(Health { version, trouble: trouble.join("; ") })
    }

    /// Everything the runtime has, by pod uid.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn pods(&self) -> Result<BTreeMap<String, RuntimePod>> {
        self.observe(HashMap::new()).await
    }

    /// What the runtime has of one pod.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn pod(&self, uid: &str) -> Result<RuntimePod> {
        let labels = HashMap::from([(POD_UID.to_owned(), uid.to_owned())]);
        Ok(self.observe(labels).await?.remove(uid).unwrap_or_default())
    }

    async fn observe(
        &self,
        labels: HashMap<String, String>,
    ) -> Result<BTreeMap<String, RuntimePod>> {
        let (mut one, mut two) = (self.runtime.clone(), self.runtime.clone());
        let filter = cri::PodSandboxFilter { label_selector: labels.clone(), ..Default::default() };
        let sandboxes =
            one.list_pod_sandbox(soon(cri::ListPodSandboxRequest { filter: Some(filter) }));
        let filter = cri::ContainerFilter { label_selector: labels, ..Default::default() };
        let containers =
            two.list_containers(soon(cri::ListContainersRequest { filter: Some(filter) }));
        let (sandboxes, containers) = tokio::join!(sandboxes, containers);
        let (sandboxes, containers) =
            (sandboxes?.into_inner().items, containers?.into_inner().containers);
        let sandboxes = try_join_all(sandboxes.iter().map(|s| self.sandbox_status(&s.id)));
        let containers = try_join_all(
            containers.iter().map(|c| self.container_status(&c.id, &c.pod_sandbox_id)),
        );
        let (sandboxes, containers) = tokio::join!(sandboxes, containers);
        let mut pods: BTreeMap<String, RuntimePod> = BTreeMap::new();
        let mut of = |labels: &HashMap<String, String>| -> String {
            let uid = labels.get(POD_UID).cloned().unwrap_or_default();
            let pod = pods.entry(uid.clone()).or_default();
            pod.uid.clone_from(&uid);
            pod.name = labels.get(POD_NAME).cloned().unwrap_or_default();
            pod.namespace = labels.get(POD_NAMESPACE).cloned().unwrap_or_default();
            uid
        };
        let sandboxes: Vec<_> =
            sandboxes?.into_iter().flatten().map(|(labels, s)| (of(&labels), s)).collect();
        let containers: Vec<_> =
            containers?.into_iter().flatten().map(|(labels, c)| (of(&labels), c)).collect();
        for (uid, sandbox) in sandboxes {
            pods.entry(uid).or_default().sandboxes.push(sandbox);
        }
        for (uid, container) in containers {
            pods.entry(uid).or_default().containers.push(container);
        }
        pods.remove(""); // not ours
        for pod in pods.values_mut() {
            pod.sandboxes.sort_by_key(|s| std::cmp::Reverse((s.attempt, s.created_at)));
            pod.containers.sort_by_key(|c| std::cmp::Reverse((c.attempt, c.created_at)));
        }
        Ok(pods)
    }

    async fn sandbox_status(&self, id: &str) -> Result<Option<(HashMap<String, String>, Sandbox)>> {
        let request =
            cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let status = match self.runtime.clone().pod_sandbox_status(soon(request)).await {
            Ok(reply) => reply.into_inner().status,
            Err(status) => match Error::from(status) {
                error if error.not_found => None,
                error => return Err(error),
            },
        };
        let Some(status) = status else { return Ok(None) };
        let network = status.network.clone().unwrap_or_default();
        let more = network.additional_ips.into_iter().map(|ip| ip.ip);
        let ips = std::iter::once(network.ip).chain(more).filter(|ip| !ip.is_empty()).collect();
        let sandbox = Sandbox {
            id: status.id.clone(),
            attempt: status.metadata.as_ref().map_or(0, |m| m.attempt),
            ready: status.state() == cri::PodSandboxState::SandboxReady,
            created_at: time(status.created_at).unwrap_or(Timestamp::UNIX_EPOCH),
            ips,
        };
        Ok(Some((status.labels, sandbox)))
    }

    async fn container_status(
        &self,
        id: &str,
        sandbox: &str,
    ) -> Result<Option<(HashMap<String, String>, Container)>> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let status = match self.runtime.clone().container_status(soon(request)).await {
            Ok(reply) => reply.into_inner().status,
            Err(status) => match Error::from(status) {
                error if error.not_found => None,
                error => return Err(error),
            },
        };
        let Some(status) = status else { return Ok(None) };
        let labels = status.labels.clone();
        let sandbox_id = sandbox.to_owned();
        Ok(Some((labels, Container { sandbox_id, ..container(status) })))
    }

    /// Makes the sandbox of a pod and returns its id.
    ///
    /// # Errors
    /// When it cannot be made, mostly because of its network.
    pub async fn run_sandbox(&self, wish: &SandboxWish) -> Result<String> {
        let request = cri::RunPodSandboxRequest {
            config: Some(sandbox_config(wish)),
            runtime_handler: wish.handler.clone(),
        };
        Ok(self.runtime.clone().run_pod_sandbox(soon(request)).await?.into_inner().pod_sandbox_id)
    }

    /// Ends all processes of a sandbox and gives its addresses back.
    ///
    /// # Errors
    /// When the runtime fails; not when the sandbox is gone.
    pub async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_fine(self.runtime.clone().stop_pod_sandbox(soon(request)).await)
    }

    /// Removes a stopped sandbox and its containers.
    ///
    /// # Errors
    /// When the runtime fails; not when the sandbox is gone.
    pub async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_fine(self.runtime.clone().remove_pod_sandbox(soon(request)).await)
    }

    /// Makes a container in sandbox `sandbox` and returns its id.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub async fn create_container(
        &self,
        sandbox: &str,
        wish: &ContainerWish,
        of: &SandboxWish,
    ) -> Result<String> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(container_config(wish, of)),
            sandbox_config: Some(sandbox_config(of)),
        };
        Ok(self.runtime.clone().create_container(soon(request)).await?.into_inner().container_id)
    }

    /// Starts a container.
    ///
    /// # Errors
    /// When its process cannot be started.
    pub async fn start_container(&self, id: &str) -> Result<()> {
        let request = cri::StartContainerRequest { container_id: id.to_owned() };
        self.runtime.clone().start_container(soon(request)).await?;
        Ok(())
    }

    /// Asks a container's process to end, and kills it after `grace`.
    ///
    /// # Errors
    /// When the runtime fails; not when the container is gone.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout };
        let request = timed(request, grace + STOP_SLACK);
        gone_is_fine(self.runtime.clone().stop_container(request).await)
    }

    /// Removes a container that has ended.
    ///
    /// # Errors
    /// When the runtime fails; not when the container is gone.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let request = cri::RemoveContainerRequest { container_id: id.to_owned() };
        gone_is_fine(self.runtime.clone().remove_container(soon(request)).await)
    }

    /// Makes a container's log go to a new file of the same name.
    ///
    /// # Errors
    /// When the runtime fails.
    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        let request = cri::ReopenContainerLogRequest { container_id: id.to_owned() };
        self.runtime.clone().reopen_container_log(soon(request)).await?;
        Ok(())
    }

    /// Runs a command in a container to its end: exit code and output.
    ///
    /// # Errors
    /// When it cannot be run, or takes longer than `timeout`.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<(i32, Vec<u8>)> {
        let request = cri::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.to_vec(),
            timeout: i64::try_from(timeout.as_secs().max(1)).unwrap_or(i64::MAX),
        };
        let request = timed(request, timeout + PROBE_TIMEOUT);
        let reply = self.runtime.clone().exec_sync(request).await?.into_inner();
        Ok((reply.exit_code, [reply.stdout, reply.stderr].concat()))
    }

    /// Where the runtime serves a container's own streams: its input, with `output` its output as well.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn attach(&self, id: &str, tty: bool, output: bool) -> Result<String> {
        let request = cri::AttachRequest {
            container_id: id.to_owned(),
            stdin: true,
            tty,
            stdout: output,
            stderr: output && !tty,
        };
        Ok(self.runtime.clone().attach(soon(request)).await?.into_inner().url)
    }

    /// How a container was made: whether it has input and a terminal, and whether its input ends with the first that
    /// is attached.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn terminal(&self, id: &str) -> Result<(bool, bool, bool)> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let reply = self.runtime.clone().container_status(soon(request)).await?.into_inner();
        let info = reply.info.get("info").map_or("", String::as_str);
        let info: serde_json::Value = serde_json::from_str(info).unwrap_or_default();
        let flag = |name: &str| info["config"][name].as_bool().unwrap_or(false);
        Ok((flag("stdin"), flag("tty"), flag("stdin_once")))
    }

    /// The directory of CNI configurations and the sandboxes' image, as the runtime is configured.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn configured(&self) -> Result<(String, String)> {
        let request = soon(cri::StatusRequest { verbose: true });
        let reply = self.runtime.clone().status(request).await?.into_inner();
        let config = reply.info.get("config").map_or("", String::as_str);
        let config: serde_json::Value = serde_json::from_str(config).unwrap_or_default();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        Ok((text(&config["cni"]["confDir"]), text(&config["sandboxImage"])))
    }

    /// The process id of a container's or sandbox's main process, on the node.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn pid(&self, id: &str) -> Result<u32> {
        let request = containerd_client::services::v1::GetRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        };
        let mut request = ours(request, None);
        request.set_timeout(CALL_TIMEOUT);
        let reply = TasksClient::new(self.channel.clone()).get(request).await?.into_inner();
        reply.process.map(|p| p.pid).filter(|pid| *pid != 0).ok_or_else(|| Error {
            not_found: true,
            message: format!("container {id} does not run"),
        })
    }

    /// The image called `name`, where the node has it.
    ///
    /// # Errors
    /// When the runtime fails.
    pub async fn image(&self, name: &str) -> Result<Option<Image>> {
        let spec = cri::ImageSpec { image: name.to_owned(), ..Default::default() };
        let request = cri::ImageStatusRequest { image: Some(spec), verbose: false };
        let reply = self.images.clone().image_status(soon(request)).await?.into_inner();
        Ok(reply.image.map(image))
    }

    /// All images of the node.
    ///
    /// # Errors
    /// When the runtime fails.
    pub async fn images(&self) -> Result<Vec<Image>> {
        let request = cri::ListImagesRequest::default();
        let reply = self.images.clone().list_images(soon(request)).await?.into_inner();
        Ok(reply.images.into_iter().map(image).collect())
    }

    /// Fetches an image from its registry, as `user` with `password` where given.
    ///
    /// # Errors
    /// When it cannot be had.
    pub async fn pull(&self, name: &str, login: Option<(String, String)>) -> Result<String> {
        let auth = login.map(|(username, password)| cri::AuthConfig {
            username,
            password,
            ..Default::default()
        });
        let spec = cri::ImageSpec { image: name.to_owned(), ..Default::default() };
        let request = cri::PullImageRequest { image: Some(spec), auth, sandbox_config: None };
        let request = timed(request, PULL_TIMEOUT);
        Ok(self.images.clone().pull_image(request).await?.into_inner().image_ref)
    }

    /// Removes an image.
    ///
    /// # Errors
    /// When the runtime fails; not when the image is gone.
    pub async fn remove_image(&self, name: &str) -> Result<()> {
        let spec = cri::ImageSpec { image: name.to_owned(), ..Default::default() };
        let request = cri::RemoveImageRequest { image: Some(spec) };
        gone_is_fine(self.images.clone().remove_image(soon(request)).await)
    }

    /// What every running container uses.
    ///
    /// # Errors
    /// When the runtime fails.
    pub async fn usage(&self) -> Result<Vec<Usage>> {
        let request = cri::ListContainerStatsRequest::default();
        let reply = self.runtime.clone().list_container_stats(soon(request)).await?.into_inner();
        Ok(reply.stats.into_iter().map(usage).collect())
    }

    /// What happens in the runtime from the time the stream is first polled. containerd answers
    /// a subscription only with its first event, so there is nothing to await here.
    pub fn events(&self) -> impl futures::Stream<Item = Result<Event>> + Send + Unpin + use<> {
        let filters = ["exit", "oom"].map(|topic| format!("topic==\"/tasks/{topic}\""));
        let mut client = EventsClient::new(self.channel.clone());
        let subscribe = async move {
            let request = ours(SubscribeRequest { filters: filters.to_vec() }, None);
            client.subscribe(request).await.map(tonic::Response::into_inner)
        };
        let stream = futures::stream::once(subscribe).try_flatten();
        Box::pin(stream.filter_map(|envelope| async move {
            match envelope {
                Ok(envelope) => event(&envelope).map(Ok),
                Err(status) => Some(Err(status.into())),
            }
        }))
    }

    /// Kills and removes every pod whose logs are below `logs`, for a node that is being taken apart.
    ///
    /// # Errors
    /// When the runtime fails.
    pub async fn remove_everything(&self, logs: &Path) -> Result<()> {
        let pods = self.pods().await?;
        let ours = |pod: &&RuntimePod| {
            pod.containers.iter().all(|c| Path::new(&c.log_path).starts_with(logs))
        };
        for pod in pods.values().filter(ours) {
            for container in &pod.containers {
                self.stop_container(&container.id, Duration::ZERO).await?;
                self.remove_container(&container.id).await?;
            }
            for sandbox in &pod.sandboxes {
                self.stop_sandbox(&sandbox.id).await?;
                self.remove_sandbox(&sandbox.id).await?;
            }
        }
        Ok(())
    }
}

fn event(envelope: &containerd_client::types::Envelope) -> Option<Event> {
    let any = envelope.event.as_ref()?;
    match envelope.topic.as_str() {
        "/tasks/exit" => {
            let exit = containerd_client::events::TaskExit::decode(any.value.as_slice()).ok()?;
            // The end of an exec carries the exec's id.
            let main = exit.id == exit.container_id;
            main.then_some(Event::Exit { container: exit.container_id })
        }
        "/tasks/oom" => {
            let oom = containerd_client::events::TaskOom::decode(any.value.as_slice()).ok()?;
            Some(Event::Oom { container: oom.container_id })
        }
        _ => None,
    }
}

fn time(nanoseconds: i64) -> Option<Timestamp> {
    let time = Timestamp::from_nanosecond(i128::from(nanoseconds)).ok();
    time.filter(|_| nanoseconds > 0)
}

fn container(status: cri::ContainerStatus) -> Container {
    let state = match status.state() {
        cri::ContainerState::ContainerCreated => State::Created,
        cri::ContainerState::ContainerRunning => State::Running,
        cri::ContainerState::ContainerExited => State::Exited,
        cri::ContainerState::ContainerUnknown => State::Unknown,
    };
    let note = |key: &str| status.annotations.get(key).cloned().unwrap_or_default();
    let message_path = note(MESSAGE_PATH);
    let termination_file = status.mounts.iter().find(|m| m.container_path == message_path);
    let metadata = status.metadata.clone().unwrap_or_default();
    Container {
        name: status.labels.get(CONTAINER_NAME).cloned().unwrap_or(metadata.name),
        sandbox_id: String::new(),
        attempt: note(RESTARTS).parse().unwrap_or(metadata.attempt),
        state,
        created_at: time(status.created_at).unwrap_or(Timestamp::UNIX_EPOCH),
        started_at: time(status.started_at),
        finished_at: time(status.finished_at),
        exit_code: status.exit_code,
        fingerprint: note(FINGERPRINT),
        grace_s: note(GRACE).parse().ok(),
        termination_file: termination_file.map(|m| m.host_path.clone()).unwrap_or_default(),
        termination_policy: note(MESSAGE_POLICY),
        image: status.image.map(|image| image.image).unwrap_or_default(),
        image_id: status.image_ref,
        id: status.id,
        reason: status.reason,
        message: status.message,
        log_path: status.log_path,
    }
}

fn image(image: cri::Image) -> Image {
    Image {
        id: image.id,
        names: [image.repo_tags, image.repo_digests].concat(),
        bytes: image.size,
        user: image.uid.map(|uid| uid.value).ok_or(image.username),
    }
}

fn usage(stats: cri::ContainerStats) -> Usage {
    let labels = stats.attributes.map(|a| a.labels).unwrap_or_default();
    let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
    let (cpu, memory) = (stats.cpu.unwrap_or_default(), stats.memory.unwrap_or_default());
    Usage {
        pod: label(POD_NAME),
        namespace: label(POD_NAMESPACE),
        uid: label(POD_UID),
        container: label(CONTAINER_NAME),
        at_ns: cpu.timestamp,
        cpu_ns: cpu.usage_core_nano_seconds.map_or(0, |v| v.value),
        working_set_bytes: memory.working_set_bytes.map_or(0, |v| v.value),
    }
}

fn int(value: i64) -> cri::Int64Value {
    cri::Int64Value { value }
}

fn pod_labels(wish: &SandboxWish) -> HashMap<String, String> {
    [(POD_NAME, &wish.name), (POD_NAMESPACE, &wish.namespace), (POD_UID, &wish.uid)]
        .map(|(key, value)| (key.to_owned(), value.clone()))
        .into()
}

fn namespaces(wish: &SandboxWish) -> cri::NamespaceOption {
    let node_or = |host: bool, other| if host { cri::NamespaceMode::Node } else { other };
    let pid = if wish.share_pid { cri::NamespaceMode::Pod } else { cri::NamespaceMode::Container };
    cri::NamespaceOption {
        network: node_or(wish.host_network, cri::NamespaceMode::Pod).into(),
        pid: node_or(wish.host_pid, pid).into(),
        ipc: node_or(wish.host_ipc, cri::NamespaceMode::Pod).into(),
        target_id: String::new(),
    }
}

fn sandbox_config(wish: &SandboxWish) -> cri::PodSandboxConfig {
    let mut labels: HashMap<String, String> = wish.labels.clone().into_iter().collect();
    labels.extend(pod_labels(wish));
    let security = cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(wish)),
        run_as_user: wish.security.user.map(int),
        run_as_group: wish.security.user.and(wish.security.group).map(int),
        supplemental_groups: wish.security.groups.clone(),
        privileged: wish.security.privileged,
        seccomp: seccomp(&wish.security),
        ..Default::default()
    };
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: wish.name.clone(),
            uid: wish.uid.clone(),
            namespace: wish.namespace.clone(),
            attempt: wish.attempt,
        }),
        hostname: if wish.host_network { String::new() } else { wish.hostname.clone() },
        log_directory: wish.log_dir.clone(),
        dns_config: wish.dns.as_ref().map(|dns| cri::DnsConfig {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        }),
        port_mappings: wish.host_ports.iter().map(port).collect(),
        labels,
        annotations: wish.annotations.clone().into_iter().collect(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: wish.cgroup_parent.clone(),
            security_context: Some(security),
            sysctls: wish.sysctls.clone().into_iter().collect(),
            ..Default::default()
        }),
    }
}

fn port(port: &crate::pod::spec::HostPort) -> cri::PortMapping {
    let protocol = match port.protocol.as_str() {
        "UDP" => cri::Protocol::Udp,
        "SCTP" => cri::Protocol::Sctp,
        _ => cri::Protocol::Tcp,
    };
    cri::PortMapping {
        protocol: protocol.into(),
        container_port: port.container_port,
        host_port: port.host_port,
        host_ip: port.host_ip.clone(),
    }
}

fn seccomp(security: &Security) -> Option<cri::SecurityProfile> {
    use cri::security_profile::ProfileType;
    let (form, file) = match &security.seccomp {
        Seccomp::Unconfined => (ProfileType::Unconfined, String::new()),
        Seccomp::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        Seccomp::Localhost(file) => (ProfileType::Localhost, file.clone()),
    };
    Some(cri::SecurityProfile { profile_type: form.into(), localhost_ref: file })
}

fn limits(limits: &Limits) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources {
        cpu_period: limits.cpu_period_us,
        cpu_quota: limits.cpu_quota_us,
        cpu_shares: limits.cpu_shares,
        memory_limit_in_bytes: limits.memory_bytes,
        oom_score_adj: limits.oom_score_adj,
        ..Default::default()
    }
}

fn mount(mount: &Mount) -> cri::Mount {
    let propagation = match mount.propagation {
        Propagation::Private => cri::MountPropagation::PropagationPrivate,
        Propagation::FromHost => cri::MountPropagation::PropagationHostToContainer,
        Propagation::BothWays => cri::MountPropagation::PropagationBidirectional,
    };
    cri::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        readonly: mount.read_only,
        propagation: propagation.into(),
        ..Default::default()
    }
}

fn container_config(wish: &ContainerWish, of: &SandboxWish) -> cri::ContainerConfig {
    let mut labels = pod_labels(of);
    labels.insert(CONTAINER_NAME.to_owned(), wish.name.clone());
    let annotations = [
        (FINGERPRINT, wish.fingerprint.clone()),
        (RESTARTS, wish.attempt.to_string()),
        (GRACE, wish.grace_s.to_string()),
        (MESSAGE_PATH, wish.message_path.clone()),
        (MESSAGE_POLICY, wish.message_policy.clone()),
    ];
    let security = &wish.security;
    let context = cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: security.add_capabilities.clone(),
            drop_capabilities: security.drop_capabilities.clone(),
        }),
        privileged: security.privileged,
        namespace_options: Some(match &wish.target_id {
            Some(id) => cri::NamespaceOption {
                pid: cri::NamespaceMode::Target.into(),
                target_id: id.clone(),
                ..namespaces(of)
            },
            None => namespaces(of),
        }),
        run_as_user: security.user.map(int),
        run_as_group: security.user.and(security.group).map(int),
        run_as_username: security.user_name.clone(),
        readonly_rootfs: security.read_only_root,
        supplemental_groups: security.groups.clone(),
        no_new_privs: security.no_new_privileges,
        masked_paths: security.masked_paths.clone(),
        readonly_paths: security.read_only_paths.clone(),
        seccomp: seccomp(security),
        apparmor: None,
    };
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: wish.name.clone(), attempt: wish.attempt }),
        image: Some(cri::ImageSpec { image: wish.image_id.clone(), ..Default::default() }),
        command: wish.command.clone(),
        args: wish.args.clone(),
        working_dir: wish.working_dir.clone(),
        envs: wish
            .env
            .iter()
            .map(|(key, value)| cri::KeyValue { key: key.clone(), value: value.clone() })
            .collect(),
        mounts: wish.mounts.iter().map(mount).collect(),
        devices: Vec::new(),
        labels,
        annotations: annotations.map(|(key, value)| (key.to_owned(), value)).into(),
        log_path: wish.log_path.clone(),
        stdin: wish.stdin,
        stdin_once: wish.stdin_once,
        tty: wish.tty,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(limits(&wish.limits)),
            security_context: Some(context),
        }),
    }
}
