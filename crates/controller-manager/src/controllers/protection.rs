//! Claims and volumes that are being deleted are let go when nobody uses them any more.

use std::sync::Arc;

use client::transport::Object;
use client::{Action, Cache, Controller, Key, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::json;

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";

/// Index of pods: the claims they hold, as `namespace/name`.
pub fn claims_of(pod: &Pod) -> Vec<String> {
    let ended = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    if matches!(ended, Some("Succeeded" | "Failed")) {
        return Vec::new();
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let names = volumes.filter_map(|volume| {
        let named = volume.persistent_volume_claim.as_ref().map(|c| c.claim_name.clone());
        // An ephemeral volume has a claim named after pod and volume.
        named.or_else(|| volume.ephemeral.as_ref().map(|_| format!("{pod_name}-{}", volume.name)))
    });
    names.map(|name| format!("{namespace}/{name}")).collect()
}

/// Drops `finalizer` from an object that is being deleted and still has it.
fn let_go<T: Object>(object: &T, finalizer: &str) -> Plan {
    let metadata = object.metadata();
    let all = metadata.finalizers.clone().unwrap_or_default();
    if metadata.deletion_timestamp.is_none() || !all.iter().any(|f| f == finalizer) {
        return Plan::new();
    }
    let rest: Vec<String> = all.into_iter().filter(|f| f != finalizer).collect();
    Plan::new().push(Action::merge_if_unchanged(object, json!({"metadata": {"finalizers": rest}})))
}

/// Lets go of claims that no pod holds.
#[derive(Debug)]
pub struct ClaimProtection;

impl Controller for ClaimProtection {
    const NAME: &'static str = "persistentvolumeclaim-protection";
    type Seen = (Arc<PersistentVolumeClaim>, bool);
    const WAKES: &'static [Wake] = &[
        Wake::own("PersistentVolumeClaim"),
        Wake::keys("Pod", |_, changed| {
            let pods = [changed.old_as::<Pod>(), changed.new_as::<Pod>()];
            let held = pods.into_iter().flatten().flat_map(claims_of);
            held.filter_map(|claim| {
                claim.split_once('/').map(|(namespace, name)| Key::new(namespace, name))
            })
            .collect()
        }),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<Self::Seen> {
        let claim = cache.at::<PersistentVolumeClaim>(key)?;
        let held =
            !cache.find::<Pod>("claim", &format!("{}/{}", key.namespace, key.name)).is_empty();
        Some((claim, held))
    }

    fn reconcile((claim, held): &Self::Seen, _: Timestamp) -> Plan {
        if *held { Plan::new() } else { let_go(&**claim, CLAIM) }
    }
}

/// Lets go of volumes that no claim is bound to.
#[derive(Debug)]
pub struct VolumeProtection;

impl Controller for VolumeProtection {
    const NAME: &'static str = "persistentvolume-protection";
    type Seen = Arc<PersistentVolume>;
    const WAKES: &'static [Wake] = &[Wake::own("PersistentVolume")];

    fn observe(cache: &Cache, key: &Key) -> Option<Self::Seen> {
        cache.at::<PersistentVolume>(key)
    }

    fn reconcile(volume: &Self::Seen, _: Timestamp) -> Plan {
        let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
        if phase == Some("Bound") { Plan::new() } else { let_go(&**volume, VOLUME) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_goes_when_it_is_deleted_and_no_pod_holds_it() {
        let claim = |deleting: bool| -> Arc<PersistentVolumeClaim> {
            let mut value =
                json!({"metadata": {"name": "c", "namespace": "ns", "finalizers": [CLAIM, "x/y"]}});
            if deleting {
                value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            Arc::new(serde_json::from_value(value).unwrap())
        };
        for (deleting, held, wanted) in [(true, false, 1), (true, true, 0), (false, false, 0)] {
            let plan = ClaimProtection::reconcile(&(claim(deleting), held), Timestamp::UNIX_EPOCH);
            assert_eq!(plan.actions.len(), wanted, "deleting {deleting} held {held}");
        }
    }

    #[test]
    fn a_bound_volume_stays() {
        let volume = |phase: &str| -> Arc<PersistentVolume> {
            let value = json!({"metadata": {"name": "v", "finalizers": [VOLUME],
                "deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": phase}});
            Arc::new(serde_json::from_value(value).unwrap())
        };
        let plan = |phase| VolumeProtection::reconcile(&volume(phase), Timestamp::UNIX_EPOCH);
        assert!(plan("Bound").is_empty());
        assert!(!plan("Released").is_empty());
    }

    #[test]
    fn a_pod_holds_claims_until_it_has_ended() {
        let pod = |phase: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "p", "namespace": "ns"},
                "spec": {"containers": [], "volumes": [
                    {"name": "a", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "e", "ephemeral": {}}]},
                "status": {"phase": phase}
            }))
            .unwrap()
        };
        assert_eq!(claims_of(&pod("Running")), ["ns/c", "ns/p-e"]);
        assert!(claims_of(&pod("Succeeded")).is_empty());
    }
}
