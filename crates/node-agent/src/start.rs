//! Starts sandboxes and containers: images, volumes, environment, then the runtime, then hooks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use client::transport::Object;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{ConfigMap, Container as ContainerSpec, Pod, Secret, Service};
use parking_lot::Mutex;

use crate::pod::env::{Sources, environment, expand};
use crate::pod::login::login;
use crate::pod::spec::{self, Mount, SandboxWish};
use crate::pod::{Role, Waiting, host_network, namespace, uid};
use crate::runtime::Image;
use crate::worker::{Shared, about};

const CONFIG_RETRY: SignedDuration = SignedDuration::from_secs(5);
/// How long to wait for news of an object that has been read before.
const REREAD_TIMEOUT: Duration = Duration::from_secs(1);
const PULL_RETRY_FIRST_S: i64 = 10;
const PULL_RETRY_MOST_S: i64 = 300;

/// Why a container did not start, and when to try again.
pub(crate) struct Failure {
    pub(crate) waiting: Waiting,
    pub(crate) wait: SignedDuration,
}

impl Failure {
    fn new(reason: &str, message: impl Into<String>) -> Self {
        let waiting = Waiting { reason: reason.to_owned(), message: message.into() };
        Self { waiting, wait: CONFIG_RETRY }
    }
}

impl From<Waiting> for Failure {
    fn from(waiting: Waiting) -> Self {
        Self { waiting, wait: CONFIG_RETRY }
    }
}

/// Where a container is to run.
pub(crate) struct Place<'a> {
    pub(crate) sandbox: &'a str,
    /// The container whose processes it sees.
    pub(crate) target_id: Option<String>,
    /// The pod's addresses.
    pub(crate) ips: Vec<String>,
}

/// Starts what belongs to one pod.
pub(crate) struct Starter {
    shared: Arc<Shared>,
    /// Failed pulls in a row, by image.
    pulls: BTreeMap<String, u32>,
    config_maps: Known<ConfigMap>,
    secrets: Known<Secret>,
}

/// What a pod refers to as it was read last, by name.
type Known<T> = Mutex<BTreeMap<String, T>>;

impl Starter {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let (config_maps, secrets) = (Known::default(), Known::default());
        Self { shared, pulls: BTreeMap::new(), config_maps, secrets }
    }

    /// Makes a pod's sandbox; reason and text of an event where that fails.
    pub(crate) async fn sandbox(
        &self,
        pod: &Arc<Pod>,
        attempt: u32,
    ) -> Result<String, (&'static str, String)> {
        let wish = spec::sandbox(pod, &self.shared.node, attempt);
        std::fs::create_dir_all(&wish.log_dir)
            .map_err(|error| ("FailedCreatePodSandBox", format!("{}: {error}", wish.log_dir)))?;
        self.volumes(pod, Vec::new()).await.map_err(|error| ("FailedMount", error))?;
        self.shared.runtime.run_sandbox(&wish).await.map_err(|error| {
            let text = format!("Failed to create pod sandbox: {error}");
            ("FailedCreatePodSandBox", text)
        })
    }

    /// Makes a pod's volumes, or brings them up to date.
    pub(crate) async fn volumes(
        &self,
        pod: &Arc<Pod>,
        ips: Vec<String>,
    ) -> Result<BTreeMap<String, PathBuf>, String> {
        let sources = self.sources(pod, ips).await?;
        self.shared.volumes.prepare(pod, &self.shared.node, &sources).await
    }

    /// Reads what a pod refers to.
    async fn sources(&self, pod: &Pod, pod_ips: Vec<String>) -> Result<Sources, String> {
        let (config_maps, secrets) = crate::volumes::needs(pod);
        let namespace = namespace(pod);
        let shared = &self.shared;
        let mut sources = Sources { pod_ips, ..Sources::default() };
        for name in config_maps {
            let map = self.read(&self.config_maps, namespace, &name).await?;
            sources.config_maps.extend(map.map(|map| (name, map)));
        }
        for name in secrets {
            let secret = self.read(&self.secrets, namespace, &name).await?;
            sources.secrets.extend(secret.map(|secret| (name, secret)));
        }
        sources.services = shared
            .cache
            .list::<Service>()
            .into_iter()
            .filter(|s| {
                let of = s.metadata.namespace.as_deref();
                of == Some(namespace)
                    || (of == Some("default") && s.metadata.name.as_deref() == Some("kubernetes"))
            })
            .collect();
        Ok(sources)
    }

    /// An object as it is now, or as it was where the API server does not answer: what ended is started again without it.
    async fn read<T: Object>(
        &self,
        known: &Known<T>,
        namespace: &str,
        name: &str,
    ) -> Result<Option<T>, String> {
        let old = known.lock().get(name).cloned();
        let reading = self.shared.client.get::<T>(namespace, name);
        let limit = if old.is_some() { REREAD_TIMEOUT } else { Duration::MAX };
        match tokio::time::timeout(limit, reading).await {
            Ok(Ok(new)) => {
                known.lock().insert(name.to_owned(), new.clone());
                Ok(Some(new))
            }
            Ok(Err(error)) if error.is_not_found() => {
                known.lock().remove(name);
                Ok(None)
            }
            Ok(Err(error)) if error.is_forbidden() || old.is_none() => Err(error.to_string()),
            Ok(Err(_)) | Err(_) => Ok(old),
        }
    }

    /// Starts a container in a sandbox.
    pub(crate) async fn container(
        &mut self,
        pod: &Arc<Pod>,
        role: Role,
        container: &ContainerSpec,
        attempt: u32,
        place: Place<'_>,
    ) -> Result<(), Failure> {
        let Place { sandbox, target_id, ips } = place;
        let image = self.image(pod, container).await?;
        let config_error = |text: String| Failure::new("CreateContainerConfigError", text);
        let sources = self.sources(pod, ips.clone()).await.map_err(config_error)?;
        let shared = self.shared.clone();
        let prepared = shared.volumes.prepare(pod, &shared.node, &sources).await;
        let volumes = prepared.map_err(config_error)?;
        let env = environment(pod, container, &shared.node, &sources)?;
        let mut wish = spec::container(pod, container, &shared.node, attempt, &image.user)?;
        wish.image_id = image.id;
        wish.target_id = target_id;
        let words = |list: Option<&Vec<String>>| {
            list.into_iter().flatten().map(|word| expand(word, &env)).collect()
        };
        wish.command = words(container.command.as_ref());
        wish.args = words(container.args.as_ref());
        wish.mounts = shared.volumes.mounts(pod, container, &volumes, &env)?;
        let of = spec::sandbox(pod, &shared.node, 0);
        self.own_files(pod, container, &of, &ips, &mut wish).map_err(|error| {
            Failure::new("CreateContainerError", format!("files of the container: {error}"))
        })?;
        wish.env = env;
        let id = shared
            .runtime
            .create_container(sandbox, &wish, &of)
            .await
            .map_err(|error| Failure::new("CreateContainerError", error.to_string()))?;
        let where_ = about(pod, Some(&container.name));
        let text = format!("Created container: {}", container.name);
        shared.events.record(where_.clone(), "Normal", "Created", text);
        shared
            .runtime
            .start_container(&id)
            .await
            .map_err(|error| Failure::new("RunContainerError", error.to_string()))?;
        let text = format!("Started container {}", container.name);
        shared.events.record(where_, "Normal", "Started", text);
        if role != Role::Init {
            self.post_start(pod, container, &id, &ips).await;
        }
        Ok(())
    }

    async fn post_start(&self, pod: &Pod, container: &ContainerSpec, id: &str, ips: &[String]) {
        let hook = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref());
        let Some(hook) = hook else { return };
        let ip = ips.first().map_or("127.0.0.1", String::as_str);
        let ran = crate::probing::hook(&self.shared.runtime, id, hook, container, ip).await;
        if let Err(error) = ran {
            let place = about(pod, Some(&container.name));
            let text = format!("PostStartHook failed: {error}");
            self.shared.events.record(place, "Warning", "FailedPostStartHook", text);
            if let Err(error) =
                self.shared.runtime.stop_container(id, Duration::from_secs(30)).await
            {
                tracing::warn!(container = id, %error, "container with a failed hook not stopped");
            }
        }
    }

    /// The termination message file and /etc/hosts of a container.
    fn own_files(
        &self,
        pod: &Pod,
        container: &ContainerSpec,
        of: &SandboxWish,
        ips: &[String],
        wish: &mut spec::ContainerWish,
    ) -> std::io::Result<()> {
        let dir = self.shared.volumes.dir(uid(pod));
        let messages = dir.join("containers").join(&container.name);
        std::fs::create_dir_all(&messages)?;
        let message = messages.join(wish.attempt.to_string());
        std::fs::write(&message, "")?;
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        std::fs::set_permissions(&message, open)?;
        wish.mounts.push(Mount {
            host_path: message.display().to_string(),
            container_path: wish.message_path.clone(),
            ..Mount::default()
        });
        if !wish.mounts.iter().any(|mount| mount.container_path == "/etc/hosts") {
            let hosts = dir.join("etc-hosts");
            std::fs::write(&hosts, self.hosts(pod, of, ips))?;
            wish.mounts.push(Mount {
                host_path: hosts.display().to_string(),
                container_path: "/etc/hosts".to_owned(),
                ..Mount::default()
            });
        }
        Ok(())
    }

    fn hosts(&self, pod: &Pod, of: &SandboxWish, ips: &[String]) -> String {
        let mut text = if host_network(pod) {
            let own = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
            format!("# Kubernetes-managed hosts file (host network).\n{own}")
        } else {
            let mut text = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n\
                ::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
                fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
                .to_owned();
            let full = spec::fqdn(pod, &self.shared.node);
            let names = full.map_or(of.hostname.clone(), |f| format!("{f}\t{}", of.hostname));
            for ip in ips {
                text.push_str(&format!("{ip}\t{names}\n"));
            }
            text
        };
        let aliases = pod.spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten());
        let lines: Vec<String> = aliases
            .map(|alias| {
                format!(
                    "{}\t{}",
                    alias.ip,
                    alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")
                )
            })
            .collect();
        if !lines.is_empty() {
            text.push_str("\n# Entries added by HostAliases.\n");
            text.push_str(&lines.join("\n"));
            text.push('\n');
        }
        text
    }

    /// The pull secrets of a pod that exist; without them a pull may still succeed.
    async fn pull_secrets(&self, pod: &Pod) -> Vec<Secret> {
        let named = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
        let mut secrets = Vec::new();
        for reference in named {
            match self.shared.client.get::<Secret>(namespace(pod), &reference.name).await {
                Ok(secret) => secrets.push(secret),
                Err(error) => {
                    let text = format!(
                        "Unable to retrieve some image pull secrets ({}); attempting to pull the \
                         image may not succeed.",
                        reference.name
                    );
                    tracing::debug!(%error, secret = reference.name, "no pull secret");
                    let place = about(pod, None);
                    let reason = "FailedToRetrieveImagePullSecret";
                    self.shared.events.record(place, "Warning", reason, text);
                }
            }
        }
        secrets
    }

    /// Has a container's image on the node.
    async fn image(&mut self, pod: &Pod, container: &ContainerSpec) -> Result<Image, Failure> {
        let name = container.image.clone().unwrap_or_default();
        let policy = container.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
        let place = about(pod, Some(&container.name));
        let (runtime, events) = (&self.shared.runtime, &self.shared.events);
        let inspect = |error: crate::runtime::Error| {
            Failure::new("ImageInspectError", format!("Failed to inspect image {name:?}: {error}"))
        };
        let present = runtime.image(&name).await.map_err(inspect)?;
        match (present, policy) {
            (Some(image), "IfNotPresent" | "Never") => {
                let text = format!("Container image {name:?} already present on machine");
                events.record(place, "Normal", "Pulled", text);
                return Ok(image);
            }
            (None, "Never") => {
                let text =
                    format!("Container image {name:?} is not present with pull policy of Never");
                events.record(place, "Warning", "ErrImageNeverPull", text.clone());
                return Err(Failure::new("ErrImageNeverPull", text));
            }
            _ => {}
        }
        events.record(place.clone(), "Normal", "Pulling", format!("Pulling image {name:?}"));
        let begun = self.shared.ctx.clock.monotonic();
        let login = login(&name, &self.pull_secrets(pod).await);
        if let Err(error) = runtime.pull(&name, login).await {
            let text = format!("Failed to pull image {name:?}: {error}");
            events.record(place, "Warning", "Failed", text);
            let failures = self.pulls.entry(name.clone()).or_default();
            let wait = PULL_RETRY_FIRST_S.saturating_mul(1 << (*failures).min(8));
            *failures += 1;
            let mut failure = Failure::new("ErrImagePull", error.to_string());
            failure.wait = SignedDuration::from_secs(wait.min(PULL_RETRY_MOST_S));
            return Err(failure);
        }
        self.pulls.remove(&name);
        let took = self.shared.ctx.clock.monotonic().saturating_sub(begun);
        let image = runtime.image(&name).await.map_err(inspect)?;
        let missing = || Failure::new("ErrImagePull", format!("image {name:?} is gone again"));
        let image = image.ok_or_else(missing)?;
        let took = format!("{:.3}s", took.as_secs_f64());
        let text = format!(
            "Successfully pulled image {name:?} in {took} ({took} including waiting). \
             Image size: {} bytes.",
            image.bytes
        );
        events.record(place, "Normal", "Pulled", text);
        Ok(image)
    }
}
