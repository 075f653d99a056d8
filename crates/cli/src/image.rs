//! `ironclad image load`: images from an archive into the nodes' runtimes, without a registry.

use std::io::{Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use client::transport::Scope;
use flate2::read::GzDecoder;
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use wire::apiserver::LoadImageInput;
use wire::apiserver::load_image_input::Input;

use crate::target::{Session, Target, block};

const CHUNK_BYTES: usize = 1 << 20;
const MESSAGES_QUEUED: usize = 4;

/// The `image` commands.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Image {
    /// Load the images of an archive
    Load(Load),
}

/// Arguments of `image load`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The archive is what `docker save`, `podman save` or `skopeo copy … oci-archive:` writes,
also compressed by gzip.

Examples:
  ironclad image load web.tar
  docker save web:1 | ironclad image load -
  ironclad image load web.tar.gz --node node-a"
)]
pub(crate) struct Load {
    #[command(flatten)]
    target: Target,
    /// The archive; - reads standard input
    #[arg(required = true, value_name = "FILE|-")]
    files: Vec<PathBuf>,
    /// Only into this node [default: every node]
    #[arg(long, value_name = "NAME")]
    node: Vec<String>,
}

/// Runs `image load`.
pub(crate) fn main(Image::Load(args): &Image) -> anyhow::Result<()> {
    block(async {
        let session = Session::open(&args.target)?;
        let mut nodes = args.node.clone();
        if nodes.is_empty() {
            let found = session.list("nodes", &Scope::default()).await?;
            nodes.extend(found.iter().map(|node| api::meta::name(node).to_owned()));
        }
        if nodes.is_empty() {
            bail!("the cluster has no nodes");
        }
        for path in &args.files {
            let file = open(path)?;
            for node in &nodes {
                let file = file.try_clone().context("read the archive")?;
                let images = load(&session, file, node)
                    .await
                    .with_context(|| format!("load {} into node {node}", path.display()))?;
                for image in images {
                    crate::say!("{image} loaded into node {node}");
                }
            }
        }
        Ok(())
    })
}

/// The archive as a file that can be read again for every node.
fn open(path: &Path) -> anyhow::Result<std::fs::File> {
    if path.as_os_str() != "-" {
        return std::fs::File::open(path).with_context(|| format!("read {}", path.display()));
    }
    let mut file = tempfile::tempfile().context("keep standard input")?;
    std::io::copy(&mut std::io::stdin().lock(), &mut file).context("read standard input")?;
    Ok(file)
}

/// The archive's bytes, uncompressed.
fn plain(mut file: std::fs::File) -> std::io::Result<Box<dyn Read + Send>> {
    let mut magic = [0; 2];
    file.seek(SeekFrom::Start(0))?;
    let read = file.read(&mut magic)?;
    file.seek(SeekFrom::Start(0))?;
    if read == 2 && magic == [0x1f, 0x8b] {
        return Ok(Box::new(GzDecoder::new(file)));
    }
    Ok(Box::new(file))
}

async fn load(session: &Session, file: std::fs::File, node: &str) -> anyhow::Result<Vec<String>> {
    let (send, pieces) = mpsc::channel::<Bytes>(MESSAGES_QUEUED);
    let mut archive = plain(file).context("read the archive")?;
    let reading = tokio::task::spawn_blocking(move || {
        loop {
            let mut piece = Vec::new();
            archive.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut piece)?;
            // Whoever receives says itself why it stopped.
            if piece.is_empty() || send.blocking_send(piece.into()).is_err() {
                return Ok::<_, std::io::Error>(());
            }
        }
    });
    let message = |input| LoadImageInput { input: Some(input) };
    let first = futures::stream::iter([message(Input::Node(node.to_owned()))]);
    let rest = ReceiverStream::new(pieces).map(move |piece| message(Input::Data(piece)));
    let reply = session.nodes().load_image(first.chain(rest)).await;
    reading.await?.context("read the archive")?;
    Ok(reply.map_err(client::Error::from)?.into_inner().images)
}
