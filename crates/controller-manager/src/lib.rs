//! All controllers, leader elected.
//!
//! A controller is two functions, `observe` and `reconcile`, and a list of what wakes it (`client::Controller`); the
//! list of them is in [`run`]. Two that work on all kinds run loops of their own: [`controllers::garbage`] and
//! [`controllers::namespace`]. [`pods`] is what several of them need to know of pods, [`revisions`] the history that
//! DaemonSets and StatefulSets keep.

use anyhow::Context as _;
use client::cache::{namespace_of, owner_uids};
use client::controller;
use client::lease::{Election, lead};
use client::{Cache, Client, Executor, Recorder, Select};
use daemon::{Channel, Context};
use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet,
};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
    ReplicationController, ResourceQuota, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::storage::v1::StorageClass;
use tokio_util::sync::CancellationToken;

mod config;
pub mod controllers;
pub mod pods;
pub mod revisions;

pub use config::{Config, Signing};

use controllers::aggregation::RoleAggregation;
use controllers::cronjob::CronJobs;
use controllers::csr::CertificateSigning;
use controllers::daemonset::DaemonSets;
use controllers::deployment::Deployments;
use controllers::disruption::Disruptions;
use controllers::endpoints::EndpointsObjects;
use controllers::endpointslice::EndpointSlices;
use controllers::endpointslice::mirroring::EndpointsMirror;
use controllers::ephemeral::EphemeralVolumes;
use controllers::eviction::PodEviction;
use controllers::ipam::{NodeRanges, PodRange, range_of};
use controllers::job::Jobs;
use controllers::job::strays::StrayPods;
use controllers::nodes::{NodeLifecycle, Pulses};
use controllers::protection::{ClaimProtection, VolumeProtection, claims_of};
use controllers::replicaset::{ReplicaSets, ReplicationControllers};
use controllers::serviceaccount::{RootCas, ServiceAccounts};
use controllers::servicecidr::ServiceCidrs;
use controllers::statefulset::StatefulSets;
use controllers::volumes::{VolumeBinder, VolumeReclaim};

const COMPONENT: &str = "kube-controller-manager";

/// Runs the controllers over a socket to the API server.
///
/// # Errors
/// When the configuration cannot be used.
pub async fn run(config: Config, ctx: Context) -> anyhow::Result<()> {
    let tls = config.tls.client()?.context("tls.ca: the API server's authority is needed")?;
    let channel = daemon::channel::connect(&config.server, Some(&tls))?;
    let ca = tls.ca.clone();
    start(&config, channel, &ca, ctx).await
}

/// Runs the controllers over `channel`; `ca` is published to every namespace.
///
/// # Errors
/// When the configuration cannot be used.
pub async fn start(
    config: &Config,
    channel: Channel,
    ca: &str,
    ctx: Context,
) -> anyhow::Result<()> {
    PodRange::parse(&config.pod_cidr)?.publish();
    controllers::serviceaccount::publish(ca);
    controllers::volumes::publish(&config.local_path);
    controllers::csr::publish(config.signing.authority()?);
    let client = Client::new(channel, COMPONENT);
    if !config.leader_elect {
        work(client, ctx.clone(), ctx.shutdown.clone()).await;
        return Ok(());
    }
    let identity = format!("{}_{}", hostname(), std::process::id());
    let election = Election::new("kube-system", "kube-controller-manager", identity);
    let inner = ctx.clone();
    let leader = client.clone();
    lead(&client, &election, &ctx, move |leading| work(leader.clone(), inner.clone(), leading))
        .await;
    Ok(())
}

fn hostname() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/hostname");
    read.map_or_else(|_| "controller-manager".into(), |name| name.trim().to_owned())
}

/// All controllers, until `leading` ends.
async fn work(client: Client, ctx: Context, leading: CancellationToken) {
    // The watches end with leadership.
    let inner = Context { shutdown: leading.clone(), ..ctx };
    let cache = cache(&client, &inner);
    let executor =
        Executor::new(client.clone(), Recorder::start(client.clone(), COMPONENT, "", &inner));
    Pulses::listen(&cache, &inner.clock);
    macro_rules! start {
        ($($controller:ty),* $(,)?) => {
            tokio::join!($(
                controller::run::<$controller>(
                    cache.clone(), executor.clone(), inner.clone(), leading.clone()
                )
            ),*,
                controllers::quota::run(client.clone(), cache.clone(), leading.clone()),
                controllers::autoscaler::run(
                    client.clone(), cache.clone(), executor.clone(), inner.clone(), leading.clone()
                ),
                controllers::csr::approve(
                    client.clone(), cache.clone(), inner.clone(), leading.clone()
                ),
                controllers::volumes::create_class(client.clone(), cache.clone()),
                controllers::podgc::run(
                    client.clone(), cache.clone(), executor.clone(), inner.clone(), leading.clone()
                ),
                controllers::bootstrap::run(
                    client.clone(), executor.clone(), inner.clone(), leading.clone()
                ),
                controllers::garbage::run(client.clone(), inner.clone(), leading.clone()),
                controllers::namespace::run(client.clone(), cache.clone(), inner.clone(), leading.clone()),
            )
        };
    }
    let _ended = start!(
        Deployments,
        ReplicaSets,
        ReplicationControllers,
        DaemonSets,
        StatefulSets,
        Jobs,
        CronJobs,
        Disruptions,
        StrayPods,
        EndpointSlices,
        EndpointsObjects,
        EndpointsMirror,
        ServiceAccounts,
        RootCas,
        ServiceCidrs,
        NodeRanges,
        NodeLifecycle,
        PodEviction,
        ClaimProtection,
        VolumeProtection,
        RoleAggregation,
        CertificateSigning,
        VolumeBinder,
        VolumeReclaim,
        EphemeralVolumes,
    );
}

/// The kinds that controllers read, and how they find them.
fn cache(client: &Client, ctx: &Context) -> Cache {
    let orphans = |pod: &Pod| -> Vec<String> {
        let owned =
            pod.metadata.owner_references.iter().flatten().any(|o| o.controller == Some(true));
        if owned { Vec::new() } else { pod.metadata.namespace.iter().cloned().collect() }
    };
    let node = |pod: &Pod| -> Vec<String> {
        pod.spec.iter().filter_map(|s| s.node_name.clone()).collect()
    };
    let service = |slice: &EndpointSlice| -> Vec<String> {
        let labels = slice.metadata.labels.as_ref();
        let name = labels.and_then(|l| l.get("kubernetes.io/service-name"));
        let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
        name.map(|name| format!("{namespace}/{name}")).into_iter().collect()
    };
    Cache::builder(client.clone())
        .kind::<Deployment>(Select::all())
        .kind::<ReplicaSet>(
            Select::all().index("owner", owner_uids).index("namespace", namespace_of),
        )
        .kind::<ReplicationController>(Select::all().index("namespace", namespace_of))
        .kind::<DaemonSet>(Select::all().index("namespace", namespace_of))
        .kind::<StatefulSet>(Select::all().index("namespace", namespace_of))
        .kind::<PodDisruptionBudget>(Select::all().index("namespace", namespace_of))
        .kind::<CronJob>(Select::all())
        .kind::<Job>(Select::all().index("owner", owner_uids).index("namespace", namespace_of))
        .kind::<ControllerRevision>(
            Select::all().index("owner", owner_uids).index("namespace", namespace_of),
        )
        .kind::<Pod>(
            Select::all()
                .index("owner", owner_uids)
                .index("namespace", namespace_of)
                .index("orphans", orphans)
                .index("node", node)
                .index("claim", claims_of),
        )
        .kind::<Service>(Select::all().index("namespace", namespace_of))
        .kind::<EndpointSlice>(Select::all().index("service", service))
        .kind::<Endpoints>(Select::all())
        .kind::<Namespace>(Select::all())
        .kind::<ServiceAccount>(Select::all())
        .kind::<ConfigMap>(Select::all().fields("metadata.name=kube-root-ca.crt"))
        .kind::<Node>(Select::all().index("range", range_of))
        .kind::<PersistentVolumeClaim>(Select::all().index("namespace", namespace_of))
        .kind::<PersistentVolume>(Select::all().index("claim", controllers::volumes::claim_of))
        .kind::<ServiceCIDR>(Select::all())
        .kind::<IPAddress>(Select::all())
        .kind::<StorageClass>(Select::all())
        .kind::<ClusterRole>(Select::all())
        .kind::<ResourceQuota>(Select::all())
        .kind::<HorizontalPodAutoscaler>(Select::all())
        .kind::<CertificateSigningRequest>(Select::all())
        .kind::<Lease>(Select::all().namespace("kube-node-lease").project(&["spec.renewTime"]))
        .start(ctx)
}
