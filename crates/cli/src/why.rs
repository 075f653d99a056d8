//! `ironclad why`: asks the scheduler's own rules why a pod is where it is, or nowhere.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use client::Key;
use client::transport::Scope;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use scheduler::world::World;

use crate::target::{Session, Target, block};

/// Arguments of `why`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ironclad why pod/web-0
  ironclad why -n shop cart-7d4b9

Reads the cluster as it is now, and changes nothing.")]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// The pod
    #[arg(value_name = "POD | pod/POD")]
    pod: String,
}

pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    let name = match args.pod.split_once('/') {
        None => args.pod.as_str(),
        Some(("pod" | "pods" | "po", name)) => name,
        Some((kind, _)) => {
            bail!("a {kind} has no node; ask for one of its pods: ironclad get pods")
        }
    };
    block(async {
        let session = Session::open(&args.target)?;
        let client = &session.client;
        let key = Key::new(session.namespace.as_str(), name);
        let pod: Pod = client.get(&key.namespace, &key.name).await?;
        let everything = Scope::default();
        let (nodes, _) = client.list::<Node>(&everything).await.context("list nodes")?;
        let (pods, _) = client.list::<Pod>(&everything).await.context("list pods")?;
        let (namespaces, _) =
            client.list::<Namespace>(&everything).await.context("list namespaces")?;
        let (budgets, _) =
            client.list::<PodDisruptionBudget>(&everything).await.context("list budgets")?;
        let mut world = World::new("");
        let never = Duration::ZERO;
        for namespace in &namespaces {
            world.namespace_changed(&Key::of(&namespace.metadata), Some(namespace), never);
        }
        for budget in &budgets {
            world.budget_changed(&Key::of(&budget.metadata), Some(budget));
        }
        for class in client.list::<StorageClass>(&everything).await?.0 {
            world.class_changed(&Key::of(&class.metadata), Some(&class), never);
        }
        for volume in client.list::<PersistentVolume>(&everything).await?.0 {
            world.volume_changed(&Key::of(&volume.metadata), Some(&volume), never);
        }
        for claim in client.list::<PersistentVolumeClaim>(&everything).await?.0 {
            world.claim_changed(&Key::of(&claim.metadata), Some(&claim), never);
        }
        for node in nodes {
            world.node_changed(&Key::of(&node.metadata), None, Some(&Arc::new(node)), never);
        }
        for pod in &pods {
            world.pod_changed(&Key::of(&pod.metadata), None, Some(pod), never);
        }
        let gates = pod.spec.as_ref().and_then(|s| s.scheduling_gates.as_deref());
        for gate in gates.unwrap_or_default() {
            say!(
                "It waits behind the scheduling gate {:?}: whoever set it has to take it away.",
                gate.name
            );
        }
        let ask = world.snapshot.ask(&pod);
        super::tell(&scheduler::why::why(&ask, &mut world.snapshot).to_string());
        Ok(())
    })
}
