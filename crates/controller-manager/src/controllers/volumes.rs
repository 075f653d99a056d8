//! Claims and volumes find each other, and volumes that are let go are reclaimed.
//!
//! The built-in provisioner [`PROVISIONER`] makes a volume of a directory on the node that the scheduler chose; the node's agent
//! makes the directory, and removes it before it takes the finalizer [`FINALIZER`] off. Provisioners of others are told by
//! annotations, as upstream tells them. Nothing here touches a disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::{Action, Cache, Client, Controller, Key, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use parking_lot::RwLock;
use serde_json::json;

mod matching;

use matching::{best, claim_key, mismatch, refers};

/// Our provisioner's name in storage classes.
pub const PROVISIONER: &str = "ironclad.io/local-path";
/// The node's agent still has to remove the directory.
const FINALIZER: &str = "ironclad.io/local-path";
/// The label by which the node's agent finds its volumes.
const NODE: &str = "ironclad.io/node";
const BOUND: &str = "pv.kubernetes.io/bind-completed";
const BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const OLD_STORAGE_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
const IS_DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
const STATIC: &str = "kubernetes.io/no-provisioner";
/// How long a volume is let go before it is deleted: claims and volumes are seen by two watches.
const RELEASED_FOR: Duration = Duration::from_secs(5);

static BASE: RwLock<String> = RwLock::new(String::new());

/// Volumes of [`PROVISIONER`] are directories below `base` from now on.
pub fn publish(base: &str) {
    base.clone_into(&mut BASE.write());
}

/// Index of volumes: the claim each is for, as `namespace/name`.
pub fn claim_of(volume: &PersistentVolume) -> Vec<String> {
    claim_key(volume).map(|key| key.to_string()).into_iter().collect()
}

/// Makes the class `local-path`, the default one where there is no other, unless it is there.
pub async fn create_class(client: Client, cache: Cache) {
    if BASE.read().is_empty() {
        return;
    }
    cache.synced().await;
    let classes = cache.list::<StorageClass>();
    if classes.iter().any(|class| class.provisioner == PROVISIONER) {
        return;
    }
    let is_default = if classes.iter().any(|class| is_default(class)) { "false" } else { "true" };
    let class = json!({
        "metadata": {"name": "local-path", "annotations": {IS_DEFAULT: is_default}},
        "provisioner": PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    });
    let class: StorageClass = serde_json::from_value(class).expect("a class as written above");
    match client.create(&class).await {
        Ok(_) => tracing::info!("storage class local-path created"),
        Err(error) if error.is_already_exists() => {}
        Err(error) => tracing::warn!(%error, "the storage class local-path was not created"),
    }
}

fn annotation<'a>(of: &'a BTreeMap<String, String>, name: &str) -> Option<&'a str> {
    of.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

fn is_default(class: &StorageClass) -> bool {
    let annotations = class.metadata.annotations.as_ref();
    annotations.and_then(|a| annotation(a, IS_DEFAULT)) == Some("true")
}

/// A claim, and what could fulfil it.
#[derive(Debug)]
pub struct SeenClaim {
    claim: Arc<PersistentVolumeClaim>,
    /// The volume that it names.
    named: Option<Arc<PersistentVolume>>,
    /// All volumes, where it names none.
    volumes: Vec<Arc<PersistentVolume>>,
    class: Option<Arc<StorageClass>>,
    default_class: Option<String>,
    base: String,
}

/// Binds claims.
#[derive(Debug)]
pub struct VolumeBinder;

impl Controller for VolumeBinder {
    const NAME: &'static str = "persistentvolume-binder";
    type Seen = SeenClaim;
    const WAKES: &'static [Wake] = &[
        Wake::own("PersistentVolumeClaim"),
        Wake::keys("PersistentVolume", |cache, changed| {
            let volume = changed.any_as::<PersistentVolume>();
            if let Some(key) = volume.and_then(claim_key) {
                return vec![key];
            }
            unbound(cache)
        }),
        Wake::keys("StorageClass", |cache, _| unbound(cache)),
    ];
    // Two claims must not be given one volume.
    const KEYS_MAX: usize = 1;

    fn observe(cache: &Cache, key: &Key) -> Option<SeenClaim> {
        let claim = cache.at::<PersistentVolumeClaim>(key)?;
        let spec = claim.spec.clone().unwrap_or_default();
        let name = spec.volume_name.filter(|name| !name.is_empty());
        let named = name.as_ref().and_then(|name| cache.get::<PersistentVolume>("", name));
        let volumes = if name.is_some() { Vec::new() } else { cache.list::<PersistentVolume>() };
        let class = spec.storage_class_name.filter(|name| !name.is_empty());
        let class = class.and_then(|name| cache.get::<StorageClass>("", &name));
        // The newest of several counts.
        let classes = cache.list::<StorageClass>();
        let defaults = classes.iter().filter(|class| is_default(class));
        let newest =
            defaults.max_by_key(|class| class.metadata.creation_timestamp.as_ref().map(|t| t.0));
        let default_class = newest.and_then(|class| class.metadata.name.clone());
        Some(SeenClaim { claim, named, volumes, class, default_class, base: BASE.read().clone() })
    }

    fn reconcile(seen: &SeenClaim, _: Timestamp) -> Plan {
        let claim = &*seen.claim;
        let spec = claim.spec.clone().unwrap_or_default();
        let annotations = claim.metadata.annotations.clone().unwrap_or_default();
        if annotation(&annotations, BOUND).is_some() {
            return keep_bound(seen);
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Plan::new();
        }
        if let (None, Some(default)) = (&spec.storage_class_name, &seen.default_class) {
            let change = json!({"spec": {"storageClassName": default}});
            return Plan::new().push(Action::merge_if_unchanged(claim, change));
        }
        if spec.volume_name.is_some_and(|name| !name.is_empty()) {
            return match &seen.named {
                Some(volume) => bind_named(claim, volume),
                None => pending(claim),
            };
        }
        let waits = seen.class.as_ref().is_some_and(|class| {
            class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
        });
        let selected = annotation(&annotations, SELECTED_NODE);
        if let Some(volume) = best(&seen.volumes, claim, waits) {
            return bind(claim, volume, true);
        }
        if waits && selected.is_none() {
            let message = "waiting for first consumer to be created before binding";
            return pending(claim).push(event(claim, "Normal", "WaitForFirstConsumer", message));
        }
        provision(seen, selected)
    }
}

/// The claims that still look for a volume.
fn unbound(cache: &Cache) -> Vec<Key> {
    let claims = cache.list::<PersistentVolumeClaim>();
    let open = claims
        .iter()
        .filter(|claim| claim.metadata.annotations.as_ref().is_none_or(|a| !a.contains_key(BOUND)));
    open.map(|claim| Key::of(&claim.metadata)).collect()
}

fn event(
    claim: &PersistentVolumeClaim,
    severity: &'static str,
    reason: &str,
    message: &str,
) -> Action {
    Action::event(claim, severity, reason, message)
}

fn phase(claim: &PersistentVolumeClaim, phase: &str) -> Option<Action> {
    let held = claim.status.as_ref().and_then(|s| s.phase.as_deref());
    (held != Some(phase)).then(|| Action::status(claim, json!({"phase": phase})))
}

fn pending(claim: &PersistentVolumeClaim) -> Plan {
    Plan::new().maybe(phase(claim, "Pending"))
}

/// A claim that was bound stays so, or is lost with its volume.
fn keep_bound(seen: &SeenClaim) -> Plan {
    let claim = &*seen.claim;
    let lost = |reason: &str, message: &str| {
        let lost = phase(claim, "Lost");
        let told = lost.as_ref().map(|_| event(claim, "Warning", reason, message));
        Plan::new().maybe(lost).maybe(told)
    };
    let Some(volume) = &seen.named else {
        let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
        return lost("ClaimLost", message);
    };
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    match reference {
        Some(reference) if !refers(reference, claim) => {
            let message = "Two claims are bound to the same volume, this one is bound incorrectly";
            lost("ClaimMisbound", message)
        }
        _ => bind(claim, volume, false),
    }
}

/// Binds a claim to the volume that its author named.
fn bind_named(claim: &PersistentVolumeClaim, volume: &Arc<PersistentVolume>) -> Plan {
    let (Some(of_volume), Some(of_claim)) = (&volume.spec, &claim.spec) else {
        return pending(claim);
    };
    match &of_volume.claim_ref {
        Some(reference) if !refers(reference, claim) => {
            let message = format!(
                "volume {:?} already bound to a different claim.",
                of_claim.volume_name.clone().unwrap_or_default()
            );
            pending(claim).push(event(claim, "Warning", "FailedBinding", &message))
        }
        _ => match mismatch(of_volume, of_claim) {
            Some(why) => {
                let name = of_claim.volume_name.clone().unwrap_or_default();
                let message = format!("Cannot bind to requested volume {name:?}: {why}");
                pending(claim).push(event(claim, "Warning", "VolumeMismatch", &message))
            }
            None => bind(claim, volume, false),
        },
    }
}

/// What is missing until claim and volume are bound to each other, volume first. `ours` says that it was we who chose.
fn bind(claim: &PersistentVolumeClaim, volume: &Arc<PersistentVolume>, ours: bool) -> Plan {
    let mut plan = Plan::new();
    let (Some(of_volume), Some(of_claim)) = (&volume.spec, &claim.spec) else { return plan };
    let reference = of_volume.claim_ref.clone();
    if reference.as_ref().and_then(|r| r.uid.as_ref()) != claim.metadata.uid.as_ref() {
        let meta = &claim.metadata;
        let mut change = json!({"spec": {"claimRef": {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": meta.namespace,
            "name": meta.name, "uid": meta.uid, "resourceVersion": meta.resource_version,
        }}});
        if reference.is_none() {
            change["metadata"] = json!({"annotations": {BY_CONTROLLER: "yes"}});
        }
        plan = plan.push(Action::merge_if_unchanged(&**volume, change));
    }
    let annotations = claim.metadata.annotations.clone().unwrap_or_default();
    if of_claim.volume_name != volume.metadata.name || !annotations.contains_key(BOUND) {
        let mut change = json!({
            "metadata": {"annotations": {BOUND: "yes"}},
            "spec": {"volumeName": volume.metadata.name},
        });
        if ours {
            change["metadata"]["annotations"][BY_CONTROLLER] = json!("yes");
        }
        // The status follows when this is seen.
        return plan.push(Action::merge_if_unchanged(claim, change));
    }
    let status = json!({
        "phase": "Bound",
        "accessModes": of_volume.access_modes,
        "capacity": of_volume.capacity,
    });
    if client::act::merged_is_same(&json!(claim.status), &status) {
        return plan;
    }
    plan.push(Action::status(claim, status))
}

/// Makes a volume, or tells whose work that is.
fn provision(seen: &SeenClaim, selected: Option<&str>) -> Plan {
    let claim = &*seen.claim;
    let spec = claim.spec.clone().unwrap_or_default();
    let Some(name) = spec.storage_class_name.clone().filter(|name| !name.is_empty()) else {
        let message = "no persistent volumes available for this claim and no storage class is set";
        return pending(claim).push(event(claim, "Normal", "FailedBinding", message));
    };
    let Some(class) = &seen.class else {
        let message = format!("storageclass.storage.k8s.io {name:?} not found");
        return pending(claim).push(event(claim, "Warning", "ProvisioningFailed", &message));
    };
    match (class.provisioner.as_str(), selected) {
        (STATIC, _) => {
            let message = "no persistent volumes available for this claim, and its storage class provisions none";
            pending(claim).push(event(claim, "Normal", "FailedBinding", message))
        }
        (PROVISIONER, Some(node)) => pending(claim).push(Action::create(&local(seen, class, node))),
        (PROVISIONER, None) => {
            let message = format!(
                "storage class {name:?}: volumes of {PROVISIONER} are on a node, so that volumeBindingMode must be WaitForFirstConsumer"
            );
            pending(claim).push(event(claim, "Warning", "ProvisioningFailed", &message))
        }
        (other, _) => {
            let held = claim.metadata.annotations.clone().unwrap_or_default();
            let message = format!(
                "Waiting for a volume to be created either by the external provisioner '{other}' or manually by the \
                 system administrator. If volume creation is delayed, please verify that the provisioner is running \
                 and correctly registered."
            );
            let told = event(claim, "Normal", "ExternalProvisioning", &message);
            let plan = pending(claim);
            if annotation(&held, STORAGE_PROVISIONER) == Some(other) {
                return plan.push(told);
            }
            let change = json!({"metadata": {"annotations": {STORAGE_PROVISIONER: other, OLD_STORAGE_PROVISIONER: other}}});
            plan.push(Action::merge(claim, change)).push(told)
        }
    }
}

/// A directory of a node as a volume for the claim.
fn local(seen: &SeenClaim, class: &StorageClass, node: &str) -> PersistentVolume {
    let claim = &*seen.claim;
    let meta = &claim.metadata;
    let spec = claim.spec.clone().unwrap_or_default();
    let name = format!("pvc-{}", meta.uid.as_deref().unwrap_or_default());
    let requests = spec.resources.and_then(|r| r.requests).unwrap_or_default();
    let volume = json!({
        "metadata": {
            "name": name,
            "labels": {NODE: node},
            "annotations": {PROVISIONED_BY: PROVISIONER},
            "finalizers": [FINALIZER],
        },
        "spec": {
            "capacity": {"storage": requests.get("storage")},
            "accessModes": spec.access_modes,
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": meta.namespace,
                "name": meta.name, "uid": meta.uid, "resourceVersion": meta.resource_version},
            "storageClassName": class.metadata.name,
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "volumeMode": "Filesystem",
            "local": {"path": format!("{}/{name}", seen.base)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
            ]}]}},
        },
    });
    serde_json::from_value(volume).expect("a volume as written above")
}

/// A volume and the claim that it is for.
#[derive(Debug)]
pub struct SeenVolume {
    volume: Arc<PersistentVolume>,
    claim: Option<Arc<PersistentVolumeClaim>>,
}

/// Says how volumes are, and reclaims those whose claims are gone.
#[derive(Debug)]
pub struct VolumeReclaim;

impl Controller for VolumeReclaim {
    const NAME: &'static str = "persistentvolume-reclaim";
    type Seen = SeenVolume;
    const WAKES: &'static [Wake] = &[
        Wake::own("PersistentVolume"),
        Wake::keys("PersistentVolumeClaim", |cache, changed| {
            let volumes = cache.find::<PersistentVolume>("claim", &changed.key.to_string());
            volumes.iter().map(|volume| Key::of(&volume.metadata)).collect()
        }),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<SeenVolume> {
        let volume = cache.at::<PersistentVolume>(key)?;
        let claim = claim_key(&volume).and_then(|key| cache.at::<PersistentVolumeClaim>(&key));
        Some(SeenVolume { volume, claim })
    }

    fn reconcile(seen: &SeenVolume, now: Timestamp) -> Plan {
        let volume = &*seen.volume;
        let Some(spec) = &volume.spec else { return Plan::new() };
        let reserved =
            spec.claim_ref.as_ref().and_then(|r| r.uid.as_ref()).filter(|uid| !uid.is_empty());
        let claim = seen.claim.as_ref();
        let same = claim.filter(|claim| claim.metadata.uid.as_ref() == reserved);
        match (reserved, same) {
            (None, _) => set_phase(volume, "Available", ""),
            (Some(_), Some(claim)) => {
                let name = claim.spec.as_ref().and_then(|s| s.volume_name.as_ref());
                match name {
                    Some(name)
                        if Some(name) != volume.metadata.name.as_ref() && !name.is_empty() =>
                    {
                        other_taken(volume)
                    }
                    _ => set_phase(volume, "Bound", ""),
                }
            }
            (Some(_), None) => released(volume, now),
        }
    }
}

fn set_phase(volume: &PersistentVolume, phase: &str, message: &str) -> Plan {
    let status = volume.status.as_ref();
    let held = status.and_then(|s| s.phase.as_deref()).unwrap_or_default();
    let said = status.and_then(|s| s.message.as_deref()).unwrap_or_default();
    if held == phase && said == message {
        return Plan::new();
    }
    let message = Some(message).filter(|m| !m.is_empty());
    Plan::new().push(Action::status(volume, json!({"phase": phase, "message": message})))
}

/// The claim was given another volume: this one is free again.
fn other_taken(volume: &PersistentVolume) -> Plan {
    let annotations = volume.metadata.annotations.clone().unwrap_or_default();
    if annotation(&annotations, PROVISIONED_BY) == Some(PROVISIONER) {
        return Plan::new().push(Action::delete(volume));
    }
    let change = if annotations.contains_key(BY_CONTROLLER) {
        json!({"metadata": {"annotations": {BY_CONTROLLER: null}}, "spec": {"claimRef": null}})
    } else {
        json!({"spec": {"claimRef": {"uid": null, "resourceVersion": null}}})
    };
    Plan::new().push(Action::merge_if_unchanged(volume, change))
}

fn released(volume: &PersistentVolume, now: Timestamp) -> Plan {
    let status = volume.status.as_ref();
    let is_released = status.and_then(|s| s.phase.as_deref()) == Some("Released");
    let failed = status.and_then(|s| s.phase.as_deref()) == Some("Failed");
    if !is_released && !failed {
        return set_phase(volume, "Released", "");
    }
    let annotations = volume.metadata.annotations.clone().unwrap_or_default();
    let by = annotation(&annotations, PROVISIONED_BY);
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    match (policy.unwrap_or("Retain"), by) {
        ("Delete", Some(PROVISIONER)) if volume.metadata.deletion_timestamp.is_none() => {
            let since =
                status.and_then(|s| s.last_phase_transition_time.as_ref()).map_or(now, |t| t.0);
            let age = Duration::try_from(now.duration_since(since)).unwrap_or_default();
            if age < RELEASED_FOR {
                return Plan::new().requeue_after(RELEASED_FOR.saturating_sub(age));
            }
            Plan::new().push(Action::delete(volume))
        }
        // Provisioners of others look after what they made.
        ("Retain", _) | ("Delete", Some(_)) => Plan::new(),
        (policy, _) if !failed => {
            let what = if policy == "Recycle" { "recycler" } else { "deleter" };
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            let message = format!(
                "error getting {what} volume plugin for volume {name:?}: no volume plugin matched"
            );
            let told = Action::event(volume, "Warning", "VolumeFailedDelete", message.clone());
            set_phase(volume, "Failed", &message).push(told)
        }
        _ => Plan::new(),
    }
}

#[cfg(test)]
mod tests;
