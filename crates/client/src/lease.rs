//! Leader election on a coordination.k8s.io Lease, as Kubernetes' own components do it.
//!
//! ```ignore
//! let election = Election::new("kube-system", "ironclad-scheduler", identity);
//! lease::lead(&client, &election, &ctx, |leading| async move { … until leading.cancelled() … }).await;
//! ```
//!
//! The work is started whenever the lease is held, with a token that is cancelled when it is lost,
//! and awaited before the lease is sought again. At shutdown the lease is given back, so that the
//! next leader need not wait for it to run out. Foreign clocks are not trusted: another holder's
//! lease runs out when it has not changed for its duration on our clock.

use std::time::Duration;

use daemon::{Context, jitter};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::transport::{Client, Error, Patch};

/// What is sought and by whom.
#[derive(Clone, Debug)]
pub struct Election {
    /// Namespace of the lease.
    pub namespace: String,
    /// Name of the lease.
    pub name: String,
    /// Who we are; unique per process.
    pub identity: String,
    /// How long a lease holds without renewal.
    pub duration: Duration,
    /// How long the holder tries to renew before it gives up.
    pub deadline: Duration,
    /// How often it is renewed or sought.
    pub period: Duration,
}

impl Election {
    /// An election with upstream's times: 15 s, 10 s, 2 s.
    #[must_use]
    pub fn new(namespace: &str, name: &str, identity: String) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity,
            duration: Duration::from_secs(15),
            deadline: Duration::from_secs(10),
            period: Duration::from_secs(2),
        }
    }
}

/// What to do about a lease.
#[derive(Debug, PartialEq)]
enum Step {
    /// There is none: make one.
    Create(Box<Lease>),
    /// It is ours or has run out: patch it.
    Take(Value),
    /// Somebody else holds it.
    Wait,
}

/// What was last seen of a foreign lease, and when it last changed on our clock.
#[derive(Debug, Default)]
struct Observed {
    spec: Option<LeaseSpec>,
    since: Duration,
}

impl Observed {
    fn look(&mut self, lease: &Lease, monotonic: Duration) {
        if self.spec != lease.spec {
            self.spec.clone_from(&lease.spec);
            self.since = monotonic;
        }
    }

    fn age(&self, monotonic: Duration) -> Duration {
        monotonic.saturating_sub(self.since)
    }
}

fn decide(lease: Option<&Lease>, age: Duration, election: &Election, now: Timestamp) -> Step {
    let seconds = i32::try_from(election.duration.as_secs()).unwrap_or(i32::MAX);
    let Some(lease) = lease else {
        return Step::Create(Box::new(Lease {
            metadata: ObjectMeta {
                name: Some(election.name.clone()),
                namespace: Some(election.namespace.clone()),
                ..Default::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(election.identity.clone()),
                lease_duration_seconds: Some(seconds),
                acquire_time: Some(MicroTime(now)),
                renew_time: Some(MicroTime(now)),
                lease_transitions: Some(0),
                ..Default::default()
            }),
        }));
    };
    let spec = lease.spec.clone().unwrap_or_default();
    let holder = spec.holder_identity.unwrap_or_default();
    let mut change = json!({
        "holderIdentity": election.identity,
        "leaseDurationSeconds": seconds,
        "renewTime": MicroTime(now),
    });
    if holder != election.identity {
        let held = u64::try_from(spec.lease_duration_seconds.unwrap_or(seconds)).unwrap_or(0);
        if !holder.is_empty() && age < Duration::from_secs(held) {
            return Step::Wait;
        }
        change["acquireTime"] = json!(MicroTime(now));
        change["leaseTransitions"] = json!(spec.lease_transitions.unwrap_or(0) + 1);
    }
    let version = &lease.metadata.resource_version;
    Step::Take(json!({"metadata": {"resourceVersion": version}, "spec": change}))
}

/// Leads whenever it can: runs `work` while the lease is held, until shutdown.
pub async fn lead<F, W>(client: &Client, election: &Election, ctx: &Context, mut work: F)
where
    F: FnMut(CancellationToken) -> W,
    W: Future<Output = ()> + Send + 'static,
{
    while !ctx.shutdown.is_cancelled() {
        if !acquire(client, election, ctx).await {
            break;
        }
        tracing::info!(lease = election.name, identity = election.identity, "leading");
        let leading = ctx.shutdown.child_token();
        let working = ctx.tasks.job(work(leading.clone()));
        hold(client, election, ctx).await;
        leading.cancel();
        if let Err(error) = working.await {
            tracing::error!(lease = election.name, %error, "the leader's work failed");
        }
        if !ctx.shutdown.is_cancelled() {
            tracing::warn!(lease = election.name, "lost the lease");
        }
    }
    release(client, election).await;
}

/// Seeks the lease; false at shutdown.
async fn acquire(client: &Client, election: &Election, ctx: &Context) -> bool {
    let mut observed = Observed::default();
    loop {
        match attempt(client, election, ctx, &mut observed).await {
            Ok(true) => return true,
            Ok(false) => {}
            Err(error) => tracing::debug!(lease = election.name, %error, "cannot seek the lease"),
        }
        tokio::select! {
            () = ctx.shutdown.cancelled() => return false,
            () = tokio::time::sleep(jitter(election.period)) => {}
        }
    }
}

/// Renews the lease until it is lost or the daemon ends.
async fn hold(client: &Client, election: &Election, ctx: &Context) {
    let mut renewed = ctx.clock.monotonic();
    let mut observed = Observed::default();
    loop {
        tokio::select! {
            () = ctx.shutdown.cancelled() => return,
            () = tokio::time::sleep(jitter(election.period)) => {}
        }
        let left = election.deadline.saturating_sub(ctx.clock.monotonic().saturating_sub(renewed));
        let started = ctx.clock.monotonic();
        let attempt = attempt(client, election, ctx, &mut observed);
        match tokio::time::timeout(left, attempt).await {
            Ok(Ok(true)) => renewed = started,
            Ok(Ok(false)) => return,
            Ok(Err(error)) => {
                tracing::info!(lease = election.name, %error, "cannot renew the lease");
            }
            Err(_) => {}
        }
        if ctx.clock.monotonic().saturating_sub(renewed) >= election.deadline {
            return;
        }
    }
}

/// One attempt to take or renew; false when somebody else holds it.
async fn attempt(
    client: &Client,
    election: &Election,
    ctx: &Context,
    observed: &mut Observed,
) -> Result<bool, Error> {
    let lease = match client.get::<Lease>(&election.namespace, &election.name).await {
        Ok(lease) => Some(lease),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(error),
    };
    let monotonic = ctx.clock.monotonic();
    if let Some(lease) = &lease {
        observed.look(lease, monotonic);
    }
    let result = match decide(lease.as_ref(), observed.age(monotonic), election, ctx.clock.now()) {
        Step::Wait => return Ok(false),
        Step::Create(lease) => client.create(&*lease).await.map(drop),
        Step::Take(patch) => {
            let (ns, name) = (&election.namespace, &election.name);
            client.patch::<Lease>(ns, name, "", Patch::Merge(patch)).await.map(drop)
        }
    };
    match result {
        Ok(()) => Ok(true),
        // Another was quicker; look again in a moment.
        Err(error) if error.is_conflict() || error.is_already_exists() => Ok(false),
        Err(error) => Err(error),
    }
}

async fn release(client: &Client, election: &Election) {
    let given_back = async {
        let lease = client.get::<Lease>(&election.namespace, &election.name).await?;
        let holder = lease.spec.as_ref().and_then(|s| s.holder_identity.as_ref());
        if holder == Some(&election.identity) {
            let version = &lease.metadata.resource_version;
            let patch = json!({
                "metadata": {"resourceVersion": version},
                "spec": {"holderIdentity": "", "leaseDurationSeconds": 1},
            });
            let (ns, name) = (&election.namespace, &election.name);
            client.patch::<Lease>(ns, name, "", Patch::Merge(patch)).await?;
        }
        Ok::<(), Error>(())
    };
    match tokio::time::timeout(election.period, given_back).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(lease = election.name, %error, "lease not given back"),
        Err(_) => tracing::debug!(lease = election.name, "lease not given back in time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str) -> Lease {
        serde_json::from_value(json!({
            "metadata": {"name": "l", "namespace": "n", "resourceVersion": "4"},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "leaseTransitions": 2},
        }))
        .unwrap()
    }

    fn take(lease: &Lease, age_s: u64) -> Step {
        let election = Election::new("n", "l", "me".to_owned());
        decide(Some(lease), Duration::from_secs(age_s), &election, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_held_lease_is_waited_for_until_it_runs_out() {
        assert_eq!(take(&lease("other"), 14), Step::Wait);
        let Step::Take(patch) = take(&lease("other"), 15) else { panic!("it has run out") };
        assert_eq!(patch["spec"]["leaseTransitions"], 3);
        assert_eq!(patch["metadata"]["resourceVersion"], "4");
    }

    #[test]
    fn our_own_lease_is_renewed_without_a_transition() {
        let Step::Take(patch) = take(&lease("me"), 0) else { panic!("it is ours") };
        assert!(patch["spec"].get("leaseTransitions").is_none());
        assert!(matches!(take(&lease(""), 0), Step::Take(_)), "given back");
    }

    #[test]
    fn age_counts_from_the_last_change_we_saw() {
        let mut observed = Observed::default();
        observed.look(&lease("other"), Duration::from_secs(100));
        observed.look(&lease("other"), Duration::from_secs(110));
        assert_eq!(observed.age(Duration::from_secs(112)), Duration::from_secs(12));
        observed.look(&lease("third"), Duration::from_secs(113));
        assert_eq!(observed.age(Duration::from_secs(113)), Duration::ZERO);
    }
}
