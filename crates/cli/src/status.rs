//! `ironclad status`, and waiting for a cluster to become ready.

use std::path::PathBuf;
use std::time::Duration;

use client::Client;
use client::transport::Scope;
use k8s_openapi::api::core::v1::{Node, Pod};

use wire::apiserver::StatsRequest;
use wire::apiserver::node_client::NodeClient;

use crate::board::{NodeLine, PodLine, nodes_line, pods_line, restarts_line};
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
        let client = Client::new(channel(&layout)?, "ironclad");
        let (nodes, _) = client.list::<Node>(&Scope::default()).await?;
        let (pods, _) = client.list::<Pod>(&Scope::default()).await?;
        crate::say!("process     {pid}");
        crate::say!("data        {}", layout.dir().display());
        crate::say!("API         {server}");
        crate::say!("kubeconfig  {}", layout.kubeconfig().display());
        let nodes: Vec<NodeLine> = nodes.iter().map(NodeLine::from).collect();
        let pods: Vec<PodLine> = pods.iter().map(PodLine::from).collect();
        crate::say!("{}", nodes_line(&nodes));
        crate::say!("{}", pods_line(&pods));
        if let Some(restarted) = restarts_line(&pods) {
            crate::say!("{restarted}");
        }
        Ok(())
    })
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
    let channel = channel(layout)?;
    let client = Client::new(channel.clone(), "ironclad");
    let (nodes, _) = client.list::<Node>(&Scope::default()).await?;
    if !want_node {
        return Ok(None);
    }
    let Some(node) = nodes.iter().map(NodeLine::from).find(|node| node.ready) else {
        return Ok(Some("the node"));
    };
    // It may only have been ready when the cluster was stopped: an agent that answers is there.
    let ask = StatsRequest { page: "resource".to_owned(), node: node.name };
    let answered = NodeClient::new(channel).stats(ask).await.is_ok();
    Ok((!answered).then_some("the node"))
}
