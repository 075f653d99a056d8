//! Which volume fits a claim: pure.

use std::sync::Arc;

use api::quantity::Quantity;
use client::Key;
use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec,
    PersistentVolumeSpec,
};

use crate::pods::selects;

/// What a claim asks for, in bytes.
pub(super) fn asked_bytes(spec: &PersistentVolumeClaimSpec) -> i64 {
    let requests = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    let storage = requests.and_then(|r| r.get("storage"));
    storage.and_then(|q| Quantity::parse(&q.0).ok()).map_or(0, Quantity::value)
}

fn capacity_bytes(spec: &PersistentVolumeSpec) -> i64 {
    let storage = spec.capacity.as_ref().and_then(|c| c.get("storage"));
    storage.and_then(|q| Quantity::parse(&q.0).ok()).map_or(0, Quantity::value)
}

/// Whether a reference means this claim; without a uid it is meant for whoever has the name.
pub(super) fn refers(reference: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && reference
            .uid
            .as_ref()
            .is_none_or(|uid| uid.is_empty() || Some(uid) == claim.metadata.uid.as_ref())
}

/// The claim that a volume is for.
pub(super) fn claim_key(volume: &PersistentVolume) -> Option<Key> {
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    Some(Key::new(part(&reference.namespace), part(&reference.name)))
}

/// Why a volume is not what the claim asks for; none if it is.
pub(super) fn mismatch(
    volume: &PersistentVolumeSpec,
    claim: &PersistentVolumeClaimSpec,
) -> Option<&'static str> {
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".to_owned());
    let modes = volume.access_modes.as_deref().unwrap_or_default();
    if capacity_bytes(volume) < asked_bytes(claim) {
        Some("requested PV is too small")
    } else if volume.storage_class_name.clone().unwrap_or_default()
        != claim.storage_class_name.clone().unwrap_or_default()
    {
        Some("storageClassName does not match")
    } else if mode(&volume.volume_mode) != mode(&claim.volume_mode) {
        Some("incompatible volumeMode")
    } else if !claim.access_modes.iter().flatten().all(|wanted| modes.contains(wanted)) {
        Some("incompatible accessMode")
    } else {
        None
    }
}

/// The volume that fits best: one that waits for this very claim, else the smallest.
pub(super) fn best<'a>(
    volumes: &'a [Arc<PersistentVolume>],
    claim: &PersistentVolumeClaim,
    reserved_only: bool,
) -> Option<&'a Arc<PersistentVolume>> {
    let wanted = claim.spec.as_ref()?;
    let fits = |volume: &&Arc<PersistentVolume>| {
        let Some(spec) = &volume.spec else { return false };
        volume.metadata.deletion_timestamp.is_none() && mismatch(spec, wanted).is_none()
    };
    let reserved = |volume: &&Arc<PersistentVolume>| {
        let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
        reference.is_some_and(|reference| refers(reference, claim))
    };
    if let Some(own) = volumes.iter().filter(fits).find(reserved) {
        return Some(own);
    }
    if reserved_only {
        return None;
    }
    let free = |volume: &&Arc<PersistentVolume>| {
        volume.spec.as_ref().is_some_and(|s| s.claim_ref.is_none())
            && volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Available")
            && (wanted.selector.is_none()
                || selects(wanted.selector.as_ref(), volume.metadata.labels.as_ref()))
    };
    let size = |volume: &&Arc<PersistentVolume>| {
        (volume.spec.as_ref().map_or(0, capacity_bytes), volume.metadata.name.clone())
    };
    volumes.iter().filter(fits).filter(free).min_by_key(size)
}
