//! `ironclad status`, and waiting for a cluster to become ready.

use std::path::PathBuf;
use std::time::Duration;

use client::Client;
use client::transport::Scope;
use k8s_openapi::api::core::v1::{Node, Pod};

use crate::kubeconfig;
use crate::layout::Layout;
use crate::target::channel;

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the cluster keeps everything [default: /var/lib/ironclad for root]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    let layout = Layout::new(args.data_dir.as_deref());
    let Some(pid) = layout.running() else {
        crate::say!("No cluster runs from {}. Start one: ironclad up", layout.dir().display());
        return Ok(());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (server, _) = kubeconfig::read(&layout.kubeconfig())?;
        let client = connect(&layout)?;
        let (nodes, _) = client.list::<Node>(&Scope::default()).await?;
        let (pods, _) = client.list::<Pod>(&Scope::default()).await?;
        crate::say!("process     {pid}");
        crate::say!("data        {}", layout.dir().display());
        crate::say!("API         {server}");
        crate::say!("kubeconfig  {}", layout.kubeconfig().display());
        for node in &nodes {
            let ready = if is_ready(node) { "Ready" } else { "NotReady" };
            crate::say!(
                "node        {} {ready}",
                node.metadata.name.as_deref().unwrap_or_default()
            );
        }
        let running = pods
            .iter()
            .filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running"));
        crate::say!("pods        {} of {} running", running.count(), pods.len());
        Ok(())
    })
}

/// A client for the cluster of a data directory, as its administrator.
pub(crate) fn connect(layout: &Layout) -> anyhow::Result<Client> {
    Ok(Client::new(channel(layout)?, "ironclad"))
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Returns once the API answers and, if wanted, a node is ready; tells what it waits for.
pub(crate) async fn wait(layout: &Layout, want_node: bool) -> anyhow::Result<()> {
    let mut told = "";
    loop {
        let waiting = match probe(layout, want_node).await {
            Ok(None) => return Ok(()),
            Ok(Some(what)) => what,
            // Not there yet: no file, or nobody listens.
            Err(_) => "the API server",
        };
        if waiting != told {
            crate::say!("waiting for {waiting} …");
            told = waiting;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What the cluster still lacks.
async fn probe(layout: &Layout, want_node: bool) -> anyhow::Result<Option<&'static str>> {
    if layout.running().is_none() {
        return Ok(Some("the process"));
    }
    let client = connect(layout)?;
    let (nodes, _) = client.list::<Node>(&Scope::default()).await?;
    Ok((want_node && !nodes.iter().any(is_ready)).then_some("the node"))
}
