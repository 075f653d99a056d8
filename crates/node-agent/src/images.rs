//! Images without a registry: packs static binaries as OCI archives and imports archives into
//! containerd.
//!
//! Packing is pure. Importing writes the blobs under a lease, so that nothing collects them before
//! the image that needs them exists; unpacking is left to the first container that uses the image.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use containerd_client::services::v1 as pb;
use containerd_client::types::Descriptor;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tonic::transport::Channel;
use tonic::{Code, Request};

/// containerd's namespace for Kubernetes.
pub const NAMESPACE: &str = "k8s.io";
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
const CHUNK_BYTES: usize = 1 << 20;
const METADATA_BYTES_MAX: u64 = 4 << 20;
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const NAME_ANNOTATION: &str = "io.containerd.image.name";
const SHORT_NAME_ANNOTATION: &str = "org.opencontainers.image.ref.name";

/// The pause image, as the private containerd's configuration names it.
pub const PAUSE_IMAGE: &str = concat!("docker.io/ironclad/pause:", env!("CARGO_PKG_VERSION"));
/// The demo web server's image.
pub const DEMO_IMAGE: &str = concat!("docker.io/ironclad/demo:", env!("CARGO_PKG_VERSION"));

/// An image: named roots among blobs.
#[derive(Debug, Default)]
pub struct Archive {
    /// Blobs by digest (`sha256:…`).
    pub blobs: BTreeMap<String, Blob>,
    /// Names and the manifests or indexes they stand for.
    pub roots: Vec<(String, Root)>,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Media type of the blob.
    pub media_type: String,
    /// Its digest.
    pub digest: String,
}

/// The bytes of a blob: in memory, or where they are in an archive, which may be larger than memory.
#[derive(Debug, Clone)]
pub enum Blob {
    /// The bytes themselves.
    Memory(Vec<u8>),
    /// A part of a file.
    Part(Arc<File>, Range<u64>),
}

impl Blob {
    fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Part(_, range) => range.end - range.start,
        }
    }

    /// At most `max` bytes from `offset` on.
    fn piece(&self, offset: u64, max: usize) -> std::io::Result<Vec<u8>> {
        let left = usize::try_from(self.len().saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut piece = vec![0; left.min(max)];
        match self {
            Self::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                piece.copy_from_slice(&bytes[start..start + left.min(max)]);
            }
            Self::Part(file, range) => file.read_exact_at(&mut piece, range.start + offset)?,
        }
        Ok(piece)
    }

    /// All of a blob that is metadata; empty for one that is too large for that.
    fn metadata(&self) -> std::io::Result<Vec<u8>> {
        if self.len() > METADATA_BYTES_MAX { Ok(Vec::new()) } else { self.piece(0, usize::MAX) }
    }

    fn digest(&self) -> std::io::Result<String> {
        let (mut hash, mut offset) = (Sha256::new(), 0);
        while offset < self.len() {
            let piece = self.piece(offset, CHUNK_BYTES)?;
            offset += piece.len() as u64;
            hash.update(piece);
        }
        Ok(digest_text(&hash.finalize()))
    }
}

fn digest_text(hash: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("sha256:");
    for byte in hash {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

/// Makes an image named `name` of one static program.
///
/// # Errors
/// When the program is not a static ELF binary of this machine's kind.
pub fn pack(name: &str, program: &[u8], entrypoint: &str) -> anyhow::Result<Archive> {
    ensure!(program.starts_with(b"\x7fELF"), "{name}: not an ELF binary");
    ensure!(!needs_loader(program), "{name}: not static; build it with target-feature=+crt-static");
    let layer = layer(entrypoint, program).context("pack layer")?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let layer_digest = digest_text(&Sha256::digest(&layer));
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Entrypoint": [format!("/{entrypoint}")],
            "Env": ["PATH=/bin"],
            "WorkingDir": "/",
            "User": "65534:65534",
        },
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        "history": [{"created_by": "ironclad", "created": "1970-01-01T00:00:00Z"}],
    });
    let mut archive = Archive::default();
    let config = archive.add(config.to_string().into_bytes());
    let layer = archive.add(layer);
    let manifest = manifest(&archive, &config, &[(layer, LAYER_TYPE)]);
    let digest = archive.add(manifest.to_string().into_bytes());
    let root = Root { media_type: MANIFEST_TYPE.to_owned(), digest };
    archive.roots.push((full_name(name), root));
    Ok(archive)
}

fn manifest(archive: &Archive, config: &str, layers: &[(String, &str)]) -> Value {
    let describe = |digest: &str, media_type: &str| {
        let size = archive.blobs.get(digest).map_or(0, Blob::len);
        json!({"mediaType": media_type, "digest": digest, "size": size})
    };
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": describe(config, CONFIG_TYPE),
        "layers": layers.iter().map(|(digest, kind)| describe(digest, kind)).collect::<Vec<_>>(),
    })
}

/// Whether an ELF binary names a program interpreter (a PT_INTERP header).
fn needs_loader(program: &[u8]) -> bool {
    let u16_at =
        |at: usize| program.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
    let u64_at = |at: usize| {
        let bytes = program.get(at..at + 8).and_then(|b| <[u8; 8]>::try_from(b).ok());
        usize::try_from(bytes.map_or(0, u64::from_le_bytes)).unwrap_or(0)
    };
    let (start, size, count) = (u64_at(0x20), usize::from(u16_at(0x36)), u16_at(0x38));
    (0..usize::from(count)).any(|i| u16_at(start.saturating_add(i * size)) == 3)
}

fn layer(entrypoint: &str, program: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut put = |path: &str, kind: tar::EntryType, mode: u32, body: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(body.len() as u64);
        header.set_mtime(0);
        tar.append_data(&mut header, path, body)
    };
    for (folder, mode) in
        [("dev/", 0o755), ("etc/", 0o755), ("proc/", 0o755), ("sys/", 0o755), ("tmp/", 0o1777)]
    {
        put(folder, tar::EntryType::Directory, mode, &[])?;
    }
    let passwd = b"root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n";
    put("etc/passwd", tar::EntryType::Regular, 0o644, passwd)?;
    put("etc/group", tar::EntryType::Regular, 0o644, b"root:x:0:\nnobody:x:65534:\n")?;
    put(entrypoint, tar::EntryType::Regular, 0o755, program)?;
    tar.into_inner()
}

/// An image reference with its registry and tag spelt out, as the runtime stores it.
#[must_use]
pub fn full_name(name: &str) -> String {
    let (head, rest) = name.split_once('/').unwrap_or(("", name));
    let has_host = head.contains(['.', ':']) || head == "localhost";
    let full = match (has_host, head) {
        (true, _) => name.to_owned(),
        (false, "") => format!("docker.io/library/{rest}"),
        (false, _) => format!("docker.io/{name}"),
    };
    let last = full.rsplit('/').next().unwrap_or_default();
    if last.contains([':', '@']) { full } else { format!("{full}:latest") }
}

impl Archive {
    fn add(&mut self, blob: Vec<u8>) -> String {
        let digest = digest_text(&Sha256::digest(&blob));
        self.blobs.insert(digest.clone(), Blob::Memory(blob));
        digest
    }

    /// Reads an archive: an OCI layout, or what `docker save` writes. The blobs stay in the file.
    ///
    /// # Errors
    /// When it is neither, or a blob does not have the digest it is named by.
    pub fn open(file: File) -> anyhow::Result<Self> {
        let file = Arc::new(file);
        let (mut archive, mut files) = (Self::default(), HashMap::new());
        let mut reader = file.as_ref();
        reader.seek(SeekFrom::Start(0)).context("read archive")?;
        for entry in tar::Archive::new(reader).entries_with_seek().context("read archive")? {
            // What the library says of it quotes the bytes.
            let entry = entry.map_err(|_| anyhow!("this is no tar archive, or a damaged one"))?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let path = entry.path().context("read archive")?.to_string_lossy().into_owned();
            let path = path.trim_start_matches("./").to_owned();
            let start = entry.raw_file_position();
            let blob = Blob::Part(file.clone(), start..start + entry.size());
            files.insert(path, blob);
        }
        for (path, blob) in &files {
            let Some(hex) = path.strip_prefix("blobs/sha256/") else { continue };
            let digest = blob.digest().with_context(|| format!("read {path} in the archive"))?;
            ensure!(digest == format!("sha256:{hex}"), "archive: {path} is damaged");
            archive.blobs.insert(digest, blob.clone());
        }
        if files.contains_key("index.json") {
            archive.oci_roots(&files)?;
        } else if files.contains_key("manifest.json") {
            archive.docker_roots(&files)?;
        } else {
            bail!("archive: neither index.json nor manifest.json in it");
        }
        Ok(archive)
    }

    fn oci_roots(&mut self, files: &HashMap<String, Blob>) -> anyhow::Result<()> {
        let index: Value = serde_json::from_slice(&files["index.json"].metadata()?)
            .context("archive: index.json")?;
        for item in index["manifests"].as_array().into_iter().flatten() {
            let names = &item["annotations"];
            let name = names[NAME_ANNOTATION].as_str().or(names[SHORT_NAME_ANNOTATION].as_str());
            let Some(name) = name else { continue };
            let digest = item["digest"].as_str().unwrap_or_default().to_owned();
            ensure!(self.blobs.contains_key(&digest), "archive: {name} lacks its manifest");
            let media_type = item["mediaType"].as_str().unwrap_or(MANIFEST_TYPE).to_owned();
            self.roots.push((full_name(name), Root { media_type, digest }));
        }
        ensure!(!self.roots.is_empty(), "archive: no image in it has a name");
        Ok(())
    }

    fn docker_roots(&mut self, files: &HashMap<String, Blob>) -> anyhow::Result<()> {
        let items: Value = serde_json::from_slice(&files["manifest.json"].metadata()?)
            .context("archive: manifest.json")?;
        for item in items.as_array().into_iter().flatten() {
            let mut take = |path: &Value| -> anyhow::Result<String> {
                let path = path.as_str().unwrap_or_default();
                let missing = || format!("archive: {path} is missing");
                let blob = files.get(path).with_context(missing)?;
                let digest = blob.digest().with_context(|| format!("read {path}"))?;
                self.blobs.insert(digest.clone(), blob.clone());
                Ok(digest)
            };
            let config = take(&item["Config"])?;
            let layers = item["Layers"].as_array().into_iter().flatten();
            let layers = layers
                .map(|layer| Ok((take(layer)?, LAYER_TYPE)))
                .collect::<anyhow::Result<Vec<_>>>()?;
            let manifest = manifest(self, &config, &layers);
            let digest = self.add(manifest.to_string().into_bytes());
            for name in item["RepoTags"].as_array().into_iter().flatten() {
                let media_type = MANIFEST_TYPE.to_owned();
                let root = Root { media_type, digest: digest.clone() };
                self.roots.push((full_name(name.as_str().unwrap_or_default()), root));
            }
        }
        ensure!(!self.roots.is_empty(), "archive: no image in it has a name");
        Ok(())
    }

    /// Writes the archive as an OCI layout.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn write(&self, out: impl std::io::Write) -> std::io::Result<()> {
        let manifests: Vec<Value> = self
            .roots
            .iter()
            .map(|(name, root)| {
                json!({
                    "mediaType": root.media_type,
                    "digest": root.digest,
                    "size": self.blobs.get(&root.digest).map_or(0, Blob::len),
                    "annotations": {(NAME_ANNOTATION): name},
                })
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests});
        let layout = json!({"imageLayoutVersion": "1.0.0"});
        let mut files = vec![
            ("oci-layout".to_owned(), layout.to_string().into_bytes()),
            ("index.json".to_owned(), index.to_string().into_bytes()),
        ];
        for (digest, blob) in &self.blobs {
            let path = format!("blobs/{}", digest.replacen(':', "/", 1));
            files.push((path, blob.piece(0, usize::MAX)?));
        }
        let mut tar = tar::Builder::new(out);
        for (path, body) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(body.len() as u64);
            header.set_mtime(0);
            tar.append_data(&mut header, path, body.as_slice())?;
        }
        tar.into_inner().map(drop)
    }

    /// What a blob refers to, as containerd's collector wants it labelled.
    fn labels(&self, digest: &str) -> HashMap<String, String> {
        // What cannot be read or parsed refers to nothing; writing it will say why.
        let blob = self.blobs.get(digest).and_then(|b| b.metadata().ok()).unwrap_or_default();
        let parsed: Value = serde_json::from_slice(&blob).unwrap_or(Value::Null);
        let mut labels = HashMap::new();
        let mut refer = |label: String, item: &Value| {
            if let Some(digest) = item["digest"].as_str().filter(|d| self.blobs.contains_key(*d)) {
                labels.insert(format!("containerd.io/gc.ref.content.{label}"), digest.to_owned());
            }
        };
        refer("config".to_owned(), &parsed["config"]);
        for (i, layer) in parsed["layers"].as_array().into_iter().flatten().enumerate() {
            refer(format!("l.{i}"), layer);
        }
        for (i, manifest) in parsed["manifests"].as_array().into_iter().flatten().enumerate() {
            refer(format!("m.{i}"), manifest);
        }
        labels
    }
}

/// A request in containerd's namespace for Kubernetes, under `lease` where given.
pub(crate) fn ours<T>(message: T, lease: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("containerd-namespace", tonic::metadata::MetadataValue::from_static(NAMESPACE));
    if let Some(lease) = lease.and_then(|lease| lease.parse().ok()) {
        metadata.insert("containerd-lease", lease);
    }
    request
}

fn namespaced<T>(message: T, lease: Option<&str>) -> Request<T> {
    let mut request = ours(message, lease);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// Packs the static binary at `path` and imports it as `name`, unless that very image is there.
///
/// # Errors
/// When the binary is missing or not static, or containerd refuses.
pub async fn ensure_packed(channel: &Channel, name: &str, path: &Path) -> anyhow::Result<()> {
    let program =
        tokio::fs::read(path).await.with_context(|| format!("read {}", path.display()))?;
    let file = path.file_name().and_then(|name| name.to_str()).unwrap_or("program");
    let entrypoint = file.strip_prefix("ironclad-").unwrap_or(file);
    let archive = pack(name, &program, entrypoint)?;
    for (name, root) in &archive.roots {
        if present(channel, name).await?.as_deref() != Some(&root.digest) {
            import(channel, &archive).await?;
        }
    }
    Ok(())
}

/// The digest of the image called `name`, where there is one.
async fn present(channel: &Channel, name: &str) -> anyhow::Result<Option<String>> {
    let mut images = pb::images_client::ImagesClient::new(channel.clone());
    let request = pb::GetImageRequest { name: name.to_owned() };
    match images.get(namespaced(request, None)).await {
        Ok(reply) => Ok(reply.into_inner().image.and_then(|i| i.target).map(|t| t.digest)),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status).context("look for image"),
    }
}

/// Imports an archive; returns the names of its images.
///
/// # Errors
/// When containerd refuses.
pub async fn import(channel: &Channel, archive: &Archive) -> anyhow::Result<Vec<String>> {
    let mut leases = pb::leases_client::LeasesClient::new(channel.clone());
    let id = format!("ironclad-import-{:016x}", rand::random::<u64>());
    let create = pb::CreateRequest { id: id.clone(), ..Default::default() };
    leases.create(namespaced(create, None)).await.context("create lease")?;
    let written = write_all(channel, archive, &id).await;
    let delete = pb::DeleteRequest { id, sync: false };
    if let Err(status) = leases.delete(namespaced(delete, None)).await {
        tracing::warn!(%status, "lease of an image import stays behind");
    }
    written?;
    Ok(archive.roots.iter().map(|(name, _)| name.clone()).collect())
}

async fn write_all(channel: &Channel, archive: &Archive, lease: &str) -> anyhow::Result<()> {
    // Children before parents: a label must not refer to what is not there yet.
    let rank = |digest: &str| {
        let labels = archive.labels(digest);
        let index = labels.keys().any(|label| label.contains(".content.m."));
        (!labels.is_empty(), index)
    };
    let mut digests: Vec<&String> = archive.blobs.keys().collect();
    digests.sort_by_key(|digest| rank(digest));
    for digest in digests {
        write_blob(channel, archive, digest, lease).await?;
    }
    let mut images = pb::images_client::ImagesClient::new(channel.clone());
    for (name, root) in &archive.roots {
        let size = archive.blobs.get(&root.digest).map_or(0, Blob::len);
        let image = pb::Image {
            name: name.clone(),
            target: Some(Descriptor {
                media_type: root.media_type.clone(),
                digest: root.digest.clone(),
                size: i64::try_from(size).context("image too large")?,
                ..Default::default()
            }),
            ..Default::default()
        };
        let create = pb::CreateImageRequest { image: Some(image.clone()), ..Default::default() };
        match images.create(namespaced(create, Some(lease))).await {
            Ok(_) => {}
            Err(status) if status.code() == Code::AlreadyExists => {
                let update = pb::UpdateImageRequest { image: Some(image), ..Default::default() };
                images.update(namespaced(update, Some(lease))).await.context("update image")?;
            }
            Err(status) => return Err(status).context("create image"),
        }
    }
    Ok(())
}

async fn write_blob(
    channel: &Channel,
    archive: &Archive,
    digest: &str,
    lease: &str,
) -> anyhow::Result<()> {
    let Some(blob) = archive.blobs.get(digest).cloned() else { return Ok(()) };
    let total = i64::try_from(blob.len()).context("blob too large")?;
    let (reference, expected) = (format!("ironclad-{digest}"), digest.to_owned());
    let labels = archive.labels(digest);
    let mut end = Some(pb::WriteContentRequest {
        action: pb::WriteAction::Commit.into(),
        r#ref: reference.clone(),
        total,
        expected: expected.clone(),
        offset: total,
        labels,
        ..Default::default()
    });
    let mut offset = 0;
    let (unread, unreadable) = std::sync::mpsc::channel();
    // Made as they are sent: a blob may be larger than memory. One that cannot be read ends early, without its commit.
    let messages = std::iter::from_fn(move || {
        if offset == total {
            return end.take();
        }
        let read = blob.piece(u64::try_from(offset).ok()?, CHUNK_BYTES);
        let data = read.map_err(|error| unread.send(error)).ok()?;
        let (start, length) = (offset, i64::try_from(data.len()).ok()?);
        offset += length;
        Some(pb::WriteContentRequest {
            action: pb::WriteAction::Write.into(),
            r#ref: reference.clone(),
            total,
            expected: expected.clone(),
            offset: start,
            data,
            ..Default::default()
        })
    });
    let mut content = pb::content_client::ContentClient::new(channel.clone());
    let write = async {
        let request = namespaced(tokio_stream::iter(messages), Some(lease));
        let mut replies = content.write(request).await?.into_inner();
        while replies.message().await?.is_some() {}
        Ok::<_, tonic::Status>(())
    };
    match write.await {
        Ok(()) => unreadable.try_recv().map_or(Ok(()), |error| Err(error).context("read blob")),
        Err(status) if status.code() == Code::AlreadyExists => Ok(()),
        Err(status) => Err(status).context("write blob"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake_program() -> Vec<u8> {
        let mut program = vec![0; 64];
        program[..4].copy_from_slice(b"\x7fELF");
        program
    }

    #[test]
    fn an_archive_survives_writing_and_reading() {
        let packed = pack("ironclad/demo:1", &fake_program(), "demo").unwrap();
        let file = tempfile::tempfile().unwrap();
        packed.write(&file).unwrap();
        let read = Archive::open(file).unwrap();
        assert_eq!(read.roots, packed.roots);
        assert!(read.blobs.keys().eq(packed.blobs.keys()));
        for (read, packed) in read.blobs.values().zip(packed.blobs.values()) {
            assert_eq!(read.piece(0, usize::MAX).unwrap(), packed.piece(0, usize::MAX).unwrap());
        }
        let labels = read.labels(&read.roots[0].1.digest);
        assert_eq!(labels.len(), 2, "config and one layer: {labels:?}");
    }

    #[test]
    fn what_docker_saves_is_read() {
        let file = tempfile::tempfile().unwrap();
        let mut tar = tar::Builder::new(&file);
        let manifest =
            json!([{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l/layer.tar"]}]);
        for (path, body) in
            [("c.json", "{}"), ("l/layer.tar", "x"), ("manifest.json", &manifest.to_string())]
        {
            let mut header = tar::Header::new_gnu();
            header.set_size(body.len() as u64);
            tar.append_data(&mut header, path, body.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap();
        let read = Archive::open(file).unwrap();
        assert_eq!(read.roots[0].0, "docker.io/library/a:1");
        assert_eq!(read.labels(&read.roots[0].1.digest).len(), 2);
        assert_eq!(read.blobs.len(), 3);
    }

    #[test]
    fn names_are_spelt_out() {
        for (short, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("ironclad/demo:1", "docker.io/ironclad/demo:1"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ] {
            assert_eq!(full_name(short), full);
        }
    }

    #[test]
    fn a_dynamic_binary_is_refused() {
        let mut program = fake_program();
        program.resize(200, 0);
        program[0x20] = 64; // program headers start here
        program[0x36] = 56;
        program[0x38] = 1;
        program[64] = 3;
        let error = pack("x", &program, "x").unwrap_err();
        assert!(error.to_string().contains("not static"), "{error}");
    }
}
