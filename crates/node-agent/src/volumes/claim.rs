//! Volumes behind claims: what the claim is bound to, as a path of this node.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};

use client::{Client, Error};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};

use super::fill::Kind;
use crate::pod::{name, namespace, uid};

/// Whose volumes are directories that the agent makes and removes.
pub(crate) const PROVISIONER: &str = "ironclad.io/local-path";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// The claim that a volume stands for: one it names, or the one made for it.
pub(super) fn named(pod: &Pod, volume: &Volume) -> Option<String> {
    let named = volume.persistent_volume_claim.as_ref().map(|c| c.claim_name.clone());
    named.or_else(|| volume.ephemeral.as_ref().map(|_| format!("{}-{}", name(pod), volume.name)))
}

/// Whether a pod may only read what its claim gives it.
pub(super) fn is_read_only(volume: &Volume) -> bool {
    volume.persistent_volume_claim.as_ref().and_then(|c| c.read_only) == Some(true)
}

/// What is behind a claim.
///
/// # Errors
/// When it is not bound, or to something that this node does not offer.
pub(super) async fn resolve(
    client: &Client,
    pod: &Pod,
    volume: &Volume,
    claim: &str,
) -> Result<Kind, String> {
    let said = |error: Error| error.to_string();
    let of_claim =
        client.get::<PersistentVolumeClaim>(namespace(pod), claim).await.map_err(said)?;
    if volume.ephemeral.is_some() {
        let mut owners = of_claim.metadata.owner_references.iter().flatten();
        if !owners.any(|owner| owner.uid == uid(pod)) {
            return Err(format!(
                "PVC {claim:?} was not created for pod {:?} (pod is not owner)",
                name(pod)
            ));
        }
    }
    let phase = of_claim.status.as_ref().and_then(|s| s.phase.as_deref());
    let volume = of_claim.spec.and_then(|s| s.volume_name).filter(|name| !name.is_empty());
    let (Some("Bound"), Some(volume)) = (phase, volume) else {
        return Err(format!("PVC {claim:?} is not bound"));
    };
    behind(&client.get::<PersistentVolume>("", &volume).await.map_err(said)?)
}

/// The path of a volume.
fn behind(volume: &PersistentVolume) -> Result<Kind, String> {
    let annotations = volume.metadata.annotations.as_ref();
    let by = annotations.and_then(|a| a.get(PROVISIONED_BY)).map(String::as_str);
    let spec = volume.spec.as_ref();
    if spec.and_then(|s| s.volume_mode.as_deref()) == Some("Block") {
        return Err("block volumes are not offered by this node".to_owned());
    }
    if let Some(local) = spec.and_then(|s| s.local.as_ref()) {
        return Ok(Kind::Local { path: local.path.clone(), ours: by == Some(PROVISIONER) });
    }
    if let Some(host) = spec.and_then(|s| s.host_path.as_ref()) {
        return Ok(Kind::Host {
            path: host.path.clone(),
            of: host.type_.clone().unwrap_or_default(),
        });
    }
    Err("this kind of persistent volume is not offered by this node".to_owned())
}

/// A directory of this node as a volume; one of ours is made where it is missing.
pub(super) fn local(path: &str, ours: bool, group: Option<u32>) -> io::Result<PathBuf> {
    let at = PathBuf::from(path);
    if ours && !at.exists() {
        fs::create_dir_all(&at)?;
        // Whoever the pod runs as may write.
        fs::set_permissions(&at, fs::Permissions::from_mode(0o777))?;
    }
    let found = fs::metadata(&at)
        .map_err(|error| io::Error::new(error.kind(), format!("path {path:?}: {error}")))?;
    match group {
        // What has the group already was given it before.
        Some(group) if found.gid() != group => give(&at, group)?,
        _ => {}
    }
    Ok(at)
}

/// Gives everything below `at` to a group, `at` itself last: only then is all done.
fn give(at: &Path, group: u32) -> io::Result<()> {
    let found = fs::symlink_metadata(at)?;
    if found.is_dir() {
        for entry in fs::read_dir(at)? {
            give(&entry?.path(), group)?;
        }
    }
    lchown(at, None, Some(group))?;
    if found.is_symlink() {
        return Ok(());
    }
    let more = if found.is_dir() { 0o2070 } else { 0o060 };
    fs::set_permissions(at, fs::Permissions::from_mode(found.mode() | more))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_volume_is_a_path() {
        let volume = |spec| -> PersistentVolume {
            let by = json!({PROVISIONED_BY: PROVISIONER});
            serde_json::from_value(json!({"metadata": {"annotations": by}, "spec": spec})).unwrap()
        };
        let local = behind(&volume(json!({"local": {"path": "/x"}})));
        assert_eq!(local, Ok(Kind::Local { path: "/x".into(), ours: true }));
        let host = behind(&volume(json!({"hostPath": {"path": "/y"}})));
        assert_eq!(host, Ok(Kind::Host { path: "/y".into(), of: String::new() }));
        assert!(behind(&volume(json!({"nfs": {"server": "s", "path": "/"}}))).is_err());
    }

    #[test]
    fn our_directories_are_made_and_those_of_others_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/pvc-1").display().to_string();
        assert!(local(&path, false, None).is_err());
        let made = local(&path, true, None).unwrap();
        assert_eq!(fs::metadata(made).unwrap().mode() & 0o777, 0o777);
    }
}
