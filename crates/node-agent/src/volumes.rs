//! The volumes of pods on this node: made, kept up to date, mounted, removed.
//!
//! What is in a volume is decided in `fill`, how it changes at once is `atomic`. A pod's volumes are
//! below `<root>/<uid>/volumes`, under the names the kubelet gives them.

pub mod atomic;
mod claim;
pub mod fill;
pub mod reclaim;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use client::{Client, Key};
use daemon::Clock;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    Container, Pod, ServiceAccount, ServiceAccountTokenProjection, Volume, VolumeMount,
};
use nix::mount::{MsFlags, mount};
use parking_lot::Mutex;

use crate::containerd::unmount_below;
use crate::pod::env::{self, Sources, expand};
use crate::pod::spec::{Mount, NodeFacts, Propagation};
use crate::pod::{Waiting, name, namespace, uid};
use fill::{Kind, Tokens, fs_group};

const TOKEN_SECONDS: i64 = 3600;
/// A token is replaced once it is this old, however long it lives.
const TOKEN_AGE_MOST: SignedDuration = SignedDuration::from_hours(24);

/// A token, and when it is to be replaced.
#[derive(Clone, Debug)]
struct Token {
    text: Vec<u8>,
    until: Timestamp,
}

/// The volumes of all pods of this node. Clones share them.
#[derive(Clone, Debug)]
pub struct Volumes {
    root: PathBuf,
    client: Client,
    clock: Clock,
    /// Tokens by pod uid, then by volume and path.
    tokens: Arc<Mutex<HashMap<String, HashMap<String, Token>>>>,
    /// Where volumes behind claims are, by pod uid and volume: what is mounted stays, and needs no API server.
    claimed: Arc<Mutex<HashMap<String, HashMap<String, PathBuf>>>>,
}

/// The ConfigMaps and Secrets a pod refers to anywhere, optional or not.
#[must_use]
pub fn needs(pod: &Pod) -> (BTreeSet<String>, BTreeSet<String>) {
    let env::Needs { mut config_maps, mut secrets } = env::needs(pod);
    let Some(spec) = &pod.spec else { return (config_maps, secrets) };
    secrets.extend(spec.image_pull_secrets.iter().flatten().map(|r| r.name.clone()));
    for volume in spec.volumes.iter().flatten() {
        config_maps.extend(volume.config_map.iter().map(|v| v.name.clone()));
        secrets.extend(volume.secret.iter().filter_map(|v| v.secret_name.clone()));
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            config_maps.extend(source.config_map.iter().map(|v| v.name.clone()));
            secrets.extend(source.secret.iter().map(|v| v.name.clone()));
        }
    }
    (config_maps, secrets)
}

/// Whether a pod has volumes that follow changes in the cluster.
#[must_use]
pub fn changes(pod: &Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.into_iter().any(is_given)
}

/// Whether a volume's files come from the cluster; such volumes are mounted read-only.
fn is_given(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some()
}

impl Volumes {
    /// Volumes below `root`, with tokens fetched through `client`.
    #[must_use]
    pub fn new(root: PathBuf, client: Client, clock: Clock) -> Self {
        Self { root, client, clock, tokens: Arc::default(), claimed: Arc::default() }
    }

    /// The directory of a pod.
    #[must_use]
    pub fn dir(&self, uid: &str) -> PathBuf {
        self.root.join(uid)
    }

    /// Makes a pod's volumes, or brings them up to date; returns where each is.
    ///
    /// # Errors
    /// Which volume failed and why, as `FailedMount` events say it.
    pub async fn prepare(
        &self,
        pod: &Pod,
        node: &NodeFacts,
        sources: &Sources,
    ) -> Result<BTreeMap<String, PathBuf>, String> {
        let mut made = BTreeMap::new();
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let failed = |error: String| {
                format!("MountVolume.SetUp failed for volume {:?} : {error}", volume.name)
            };
            if let Some(claim) = claim::named(pod, volume) {
                let path = self.claimed(pod, volume, &claim).await.map_err(failed)?;
                made.insert(volume.name.clone(), path);
                continue;
            }
            let tokens = self.tokens(pod, volume).await.map_err(failed)?;
            let kind = fill::kind(pod, volume, node, sources, &tokens).map_err(failed)?;
            let path = self.make(pod, volume, kind).map_err(|e| failed(e.to_string()))?;
            made.insert(volume.name.clone(), path);
        }
        Ok(made)
    }

    /// The path behind a claim.
    async fn claimed(&self, pod: &Pod, volume: &Volume, claim: &str) -> Result<PathBuf, String> {
        let known = self.claimed.lock().get(uid(pod)).and_then(|of| of.get(&volume.name).cloned());
        if let Some(path) = known {
            return Ok(path);
        }
        let kind = claim::resolve(&self.client, pod, volume, claim).await?;
        let path = self.make(pod, volume, kind).map_err(|error| error.to_string())?;
        let mut all = self.claimed.lock();
        all.entry(uid(pod).to_owned()).or_default().insert(volume.name.clone(), path.clone());
        Ok(path)
    }

    fn make(&self, pod: &Pod, volume: &Volume, kind: Kind) -> io::Result<PathBuf> {
        let plugin = match &kind {
            Kind::Host { path, of } => return host_path(path, of),
            Kind::Local { path, ours } => return claim::local(path, *ours, fs_group(pod)),
            Kind::Empty { .. } => "empty-dir",
            Kind::Files(_) if volume.config_map.is_some() => "configmap",
            Kind::Files(_) if volume.secret.is_some() => "secret",
            Kind::Files(_) if volume.downward_api.is_some() => "downward-api",
            Kind::Files(_) => "projected",
        };
        let volumes = self.dir(uid(pod)).join("volumes");
        let dir = volumes.join(format!("kubernetes.io~{plugin}")).join(&volume.name);
        match kind {
            Kind::Files(files) => {
                let stamp = self.clock.now().strftime("%Y_%m_%d_%H_%M_%S.%9f").to_string();
                atomic::write(&dir, &files, fs_group(pod), &stamp)?;
            }
            Kind::Empty { memory, bytes } if !dir.exists() || (memory && !is_mounted(&dir)?) => {
                empty(&dir, memory, bytes, fs_group(pod))?;
            }
            _ => {}
        }
        Ok(dir)
    }

    /// The mounts of a container; `made` is what [`Volumes::prepare`] returned, `env` its
    /// variables, for `subPathExpr`.
    ///
    /// # Errors
    /// When a mount names no volume, or its sub-path is not usable.
    pub fn mounts(
        &self,
        pod: &Pod,
        container: &Container,
        made: &BTreeMap<String, PathBuf>,
        env: &[(String, String)],
    ) -> Result<Vec<Mount>, Waiting> {
        let volumes = || pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let failed =
            |message: String| Waiting { reason: "CreateContainerConfigError".to_owned(), message };
        let mut mounts = Vec::new();
        for wanted in container.volume_mounts.iter().flatten() {
            let missing = || failed(format!("volume {:?} not found in the pod", wanted.name));
            let base = made.get(&wanted.name).ok_or_else(missing)?;
            let volume = volumes().find(|v| v.name == wanted.name);
            let given = volume.is_some_and(is_given);
            let only_read = given || volume.is_some_and(claim::is_read_only);
            let path = sub_path(base, wanted, env, given).map_err(|error| {
                failed(format!(
                    "failed to prepare subPath for volumeMount {:?} of container {:?}: {error}",
                    wanted.name, container.name
                ))
            })?;
            mounts.push(Mount {
                host_path: path.to_string_lossy().into_owned(),
                container_path: wanted.mount_path.clone(),
                read_only: only_read || wanted.read_only == Some(true),
                propagation: match wanted.mount_propagation.as_deref() {
                    Some("HostToContainer") => Propagation::FromHost,
                    Some("Bidirectional") => Propagation::BothWays,
                    _ => Propagation::Private,
                },
            });
        }
        Ok(mounts)
    }

    /// Removes everything of a pod. Repeating it is harmless.
    ///
    /// # Errors
    /// When something is still in use.
    pub fn remove(&self, uid: &str) -> io::Result<()> {
        self.tokens.lock().remove(uid);
        self.claimed.lock().remove(uid);
        // A strange uid must never name the root, nor leave it.
        let mut parts = Path::new(uid).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("uid {uid:?}")));
        }
        let dir = self.dir(uid);
        unmount_below(&dir).map_err(io::Error::other)?;
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    async fn tokens(&self, pod: &Pod, volume: &Volume) -> Result<Tokens, String> {
        let mut tokens = Tokens::new();
        for wanted in fill::tokens(volume) {
            let key = format!("{}/{}", volume.name, wanted.path);
            let now = self.clock.now();
            let held =
                self.tokens.lock().get(uid(pod)).and_then(|of_pod| of_pod.get(&key).cloned());
            let token = match held.filter(|token| now < token.until) {
                Some(token) => token,
                None => {
                    let token = self.fetch(pod, wanted, now).await?;
                    let mut all = self.tokens.lock();
                    all.entry(uid(pod).to_owned()).or_default().insert(key, token.clone());
                    token
                }
            };
            tokens.insert(wanted.path.clone(), token.text);
        }
        Ok(tokens)
    }

    async fn fetch(
        &self,
        pod: &Pod,
        wanted: &ServiceAccountTokenProjection,
        now: Timestamp,
    ) -> Result<Token, String> {
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref());
        let account = account.filter(|name| !name.is_empty()).unwrap_or("default");
        let seconds = wanted.expiration_seconds.unwrap_or(TOKEN_SECONDS);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(wanted.audience.iter().cloned().collect()),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(name(pod).to_owned()),
                    uid: Some(uid(pod).to_owned()),
                }),
            }),
            ..TokenRequest::default()
        };
        let key = Key::new(namespace(pod), account);
        let reply = self.client.post::<ServiceAccount, _, TokenRequest>(&key, "token", &request);
        let reply = reply.await.map_err(|error| format!("failed to fetch token: {error}"))?;
        let status = reply.status.unwrap_or_default();
        let (Some(text), Some(expires)) = (status.token, status.expiration_timestamp) else {
            return Err("failed to fetch token: the answer has none".to_owned());
        };
        let life = expires.0.duration_since(now);
        let life = (life * 4 / 5).min(TOKEN_AGE_MOST);
        let until = now.checked_add(life).map_err(|error| error.to_string())?;
        Ok(Token { text: text.into_bytes(), until })
    }
}

fn is_mounted(dir: &Path) -> io::Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let dir = dir.to_string_lossy();
    Ok(mounts.lines().any(|line| line.split(' ').nth(1) == Some(&dir)))
}

fn empty(dir: &Path, memory: bool, bytes: Option<i64>, group: Option<u32>) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    if memory {
        let options = bytes.map(|bytes| format!("size={bytes}"));
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), dir, Some("tmpfs"), flags, options.as_deref())?;
    }
    let setgid = if group.is_some() { 0o2000 } else { 0 };
    if group.is_some() {
        chown(dir, None, group)?;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777 | setgid))
}

/// Checks that a path of the node is of the type asked for, and makes it where that says so.
fn host_path(path: &str, of: &str) -> io::Result<PathBuf> {
    let at = PathBuf::from(path);
    if !at.is_absolute() || at.components().any(|part| part == Component::ParentDir) {
        let text = format!("{path} is not an absolute path");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    match of {
        "DirectoryOrCreate" if !at.exists() => {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(&at)?;
        }
        "FileOrCreate" if !at.exists() => {
            fs::write(&at, "")?;
            fs::set_permissions(&at, fs::Permissions::from_mode(0o644))?;
        }
        _ => {}
    }
    let kind = fs::metadata(&at).map(|m| m.file_type());
    let (wanted, fits) = match of {
        "" => return Ok(at),
        "Directory" | "DirectoryOrCreate" => ("a directory", kind.is_ok_and(|k| k.is_dir())),
        "File" | "FileOrCreate" => ("a file", kind.is_ok_and(|k| k.is_file())),
        "Socket" => ("a socket file", kind.is_ok_and(|k| k.is_socket())),
        "CharDevice" => ("a character device", kind.is_ok_and(|k| k.is_char_device())),
        "BlockDevice" => ("a block device", kind.is_ok_and(|k| k.is_block_device())),
        other => return Err(io::Error::other(format!("{other} is an invalid volume type"))),
    };
    if fits {
        return Ok(at);
    }
    Err(io::Error::other(format!("hostPath type check failed: {path} is not {wanted}")))
}

/// Where a mount's sub-path is on the node. It stays below the volume whatever links are in it.
fn sub_path(
    base: &Path,
    wanted: &VolumeMount,
    env: &[(String, String)],
    given: bool,
) -> Result<PathBuf, String> {
    let below = match (&wanted.sub_path_expr, &wanted.sub_path) {
        (Some(text), _) if !text.is_empty() => expand(text, env),
        (_, Some(path)) if !path.is_empty() => path.clone(),
        _ => return Ok(base.to_owned()),
    };
    let inside = Path::new(&below).components().all(|part| matches!(part, Component::Normal(_)));
    if !inside {
        return Err(format!("subPath {below:?} must be a relative path without \"..\""));
    }
    let base = base.canonicalize().map_err(|error| error.to_string())?;
    let mut at = base.clone();
    for part in Path::new(&below).components() {
        at.push(part);
        if at.symlink_metadata().is_err() {
            if given {
                return Err(format!("{below:?} is not in the volume"));
            }
            fs::create_dir(&at).map_err(|error| error.to_string())?;
        }
        at = at.canonicalize().map_err(|error| error.to_string())?;
        if !at.starts_with(&base) {
            return Err(format!("subPath {below:?} leads out of the volume"));
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use testkit::fake_api::FakeApi;

    use super::*;

    fn pod(volumes: Value, mounts: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "d", "uid": "u1"},
            "spec": {"volumes": volumes, "containers": [{"name": "c", "volumeMounts": mounts}]},
        }))
        .unwrap()
    }

    fn volumes(root: &Path) -> Volumes {
        let client = Client::new(FakeApi::new().channel(), "node-agent");
        Volumes::new(root.to_owned(), client, Clock::manual(Timestamp::UNIX_EPOCH))
    }

    fn sources() -> Sources {
        let map = serde_json::from_value(json!({"data": {"k": "v"}})).unwrap();
        Sources { config_maps: [("cm".to_owned(), map)].into(), ..Sources::default() }
    }

    #[tokio::test]
    async fn volumes_are_made_mounted_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let volumes = volumes(root.path());
        let pod = pod(
            json!([{"name": "e", "emptyDir": {}}, {"name": "m", "configMap": {"name": "cm"}},
                {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]),
            json!([{"name": "e", "mountPath": "/e", "subPathExpr": "$(A)/x"},
                {"name": "m", "mountPath": "/k", "subPath": "k"},
                {"name": "t", "mountPath": "/t"}]),
        );
        let node = NodeFacts::default();
        let made = volumes.prepare(&pod, &node, &sources()).await.unwrap();
        assert_eq!(fs::read_to_string(made["m"].join("k")).unwrap(), "v");
        assert_eq!(fs::read_to_string(made["t"].join("token")).unwrap(), "a-token");
        assert_eq!(volumes.prepare(&pod, &node, &sources()).await.unwrap(), made);
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let env = [("A".to_owned(), "sub".to_owned())];
        let mounts = volumes.mounts(&pod, container, &made, &env).unwrap();
        assert!(mounts[0].host_path.ends_with("kubernetes.io~empty-dir/e/sub/x"));
        assert_eq!(fs::read_to_string(&mounts[1].host_path).unwrap(), "v");
        let read_only: Vec<bool> = mounts.iter().map(|m| m.read_only).collect();
        assert_eq!(read_only, [false, true, true]);
        volumes.remove("u1").unwrap();
        volumes.remove("u1").unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_fails_names_its_volume() {
        let root = tempfile::tempdir().unwrap();
        let pod = pod(json!([{"name": "m", "configMap": {"name": "no"}}]), json!([]));
        let made = volumes(root.path()).prepare(&pod, &NodeFacts::default(), &sources()).await;
        let want = "MountVolume.SetUp failed for volume \"m\" : configmap \"no\" not found";
        assert_eq!(made, Err(want.to_owned()));
    }

    #[test]
    fn sub_paths_stay_inside() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", root.path().join("out")).unwrap();
        let asked = |path: &str| {
            let mount = VolumeMount { sub_path: Some(path.to_owned()), ..Default::default() };
            sub_path(root.path(), &mount, &[], false)
        };
        for path in ["../x", "/etc", "a/../../x", "out/passwd"] {
            assert!(asked(path).is_err(), "{path}");
        }
        assert!(asked("a/b").is_ok());
    }

    #[test]
    fn a_removal_never_leaves_its_root() {
        let root = tempfile::tempdir().unwrap();
        let kept = root.path().join("kept");
        fs::write(&kept, "x").unwrap();
        let volumes = volumes(&root.path().join("pods"));
        for uid in ["", "..", "../kept", "a/b"] {
            assert!(volumes.remove(uid).is_err(), "{uid}");
        }
        assert!(kept.exists());
    }

    #[test]
    fn host_paths_are_what_they_must_be() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name).to_string_lossy().into_owned();
        assert!(host_path(&at("new"), "DirectoryOrCreate").is_ok());
        assert!(host_path(&at("new"), "Directory").is_ok());
        let error = host_path(&at("new"), "File").unwrap_err().to_string();
        assert!(error.ends_with("is not a file"), "{error}");
        assert!(host_path(&at("file"), "FileOrCreate").is_ok());
        assert!(host_path("relative", "").is_err());
    }
}
