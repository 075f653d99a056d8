//! Generic ephemeral volumes: a claim for each, owned by its pod (KEP-1698).

use std::sync::Arc;

use client::act::controlled_by;
use client::{Action, Cache, Controller, Key, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

/// A pod, and the claims that are there under the names of its volumes.
#[derive(Debug)]
pub struct Seen {
    pod: Arc<Pod>,
    claims: Vec<Arc<PersistentVolumeClaim>>,
}

/// Makes the claims of ephemeral volumes.
#[derive(Debug)]
pub struct EphemeralVolumes;

fn volumes(pod: &Pod) -> impl Iterator<Item = &k8s_openapi::api::core::v1::Volume> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.filter(|volume| volume.ephemeral.is_some())
}

fn claim_name(pod: &Pod, volume: &str) -> String {
    format!("{}-{volume}", pod.metadata.name.as_deref().unwrap_or_default())
}

impl Controller for EphemeralVolumes {
    const NAME: &'static str = "ephemeral-volume";
    type Seen = Seen;
    const WAKES: &'static [Wake] = &[Wake::own("Pod"), Wake::owner_of("PersistentVolumeClaim")];

    fn observe(cache: &Cache, key: &Key) -> Option<Seen> {
        let pod = cache.at::<Pod>(key)?;
        let names = volumes(&pod).map(|volume| claim_name(&pod, &volume.name));
        let names: Vec<String> = names.collect();
        if names.is_empty() || pod.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let claim = |name: &String| cache.get::<PersistentVolumeClaim>(&key.namespace, name);
        Some(Seen { claims: names.iter().filter_map(claim).collect(), pod })
    }

    fn reconcile(seen: &Seen, _: Timestamp) -> Plan {
        let pod = &*seen.pod;
        let mut plan = Plan::new();
        for volume in volumes(pod) {
            let name = claim_name(pod, &volume.name);
            match seen.claims.iter().find(|c| c.metadata.name.as_ref() == Some(&name)) {
                Some(claim) if !owned(claim, pod) => {
                    let message = format!(
                        "PVC {}/{name} was not created for pod {}/{} (pod is not owner)",
                        pod.metadata.namespace.as_deref().unwrap_or_default(),
                        pod.metadata.namespace.as_deref().unwrap_or_default(),
                        pod.metadata.name.as_deref().unwrap_or_default(),
                    );
                    let reason = "EphemeralVolumeCreationFailed";
                    plan = plan.push(Action::event(pod, "Warning", reason, message));
                }
                Some(_) => {}
                None => plan = plan.maybe(claim(pod, volume, name).map(|c| Action::create(&c))),
            }
        }
        plan
    }
}

fn owned(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    let mut owners = claim.metadata.owner_references.iter().flatten();
    owners.any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref())
}

fn claim(
    pod: &Pod,
    volume: &k8s_openapi::api::core::v1::Volume,
    name: String,
) -> Option<PersistentVolumeClaim> {
    let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
    let mut claim = PersistentVolumeClaim {
        metadata: template.metadata.clone().unwrap_or_default(),
        spec: Some(template.spec.clone()),
        ..PersistentVolumeClaim::default()
    };
    claim.metadata.name = Some(name);
    claim.metadata.namespace.clone_from(&pod.metadata.namespace);
    claim.metadata.owner_references = Some(vec![controlled_by(pod)]);
    Some(claim)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Arc<Pod> {
        let template =
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"accessModes": ["ReadWriteOnce"]}});
        let pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {"containers": [],
            "volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": template}}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn each_ephemeral_volume_has_a_claim_of_its_own() {
        let plan = EphemeralVolumes::reconcile(
            &Seen { pod: pod(), claims: vec![] },
            Timestamp::UNIX_EPOCH,
        );
        let client::act::Op::Create { body, .. } = &plan.actions[0].op else { panic!("{plan:?}") };
        assert_eq!(body["metadata"]["name"], "p-v");
        assert_eq!(body["metadata"]["ownerReferences"][0]["uid"], "u");
        let made: Arc<PersistentVolumeClaim> = serde_json::from_value(body.clone()).unwrap();
        let again = Seen { pod: pod(), claims: vec![made.clone()] };
        assert!(EphemeralVolumes::reconcile(&again, Timestamp::UNIX_EPOCH).is_empty());
        let mut foreign = (*made).clone();
        foreign.metadata.owner_references = None;
        let taken = Seen { pod: pod(), claims: vec![Arc::new(foreign)] };
        let plan = EphemeralVolumes::reconcile(&taken, Timestamp::UNIX_EPOCH);
        assert_eq!(plan.actions[0].to_string(), "event p EphemeralVolumeCreationFailed");
    }
}
