//! Removes the directories of `local-path` volumes that are deleted, and only then lets the volumes go.

use std::io;
use std::path::{Path, PathBuf};

use client::queue::Queue;
use client::{Cache, Client, Error, Key, Patch, Select};
use daemon::Context;
use k8s_openapi::api::core::v1::PersistentVolume;
use serde_json::json;

use super::claim::PROVISIONER;

/// The finalizer that waits for us, and the label by which we find what is ours.
const FINALIZER: &str = PROVISIONER;
const NODE: &str = "ironclad.io/node";

/// Looks after the volumes on node `name`.
///
/// # Errors
/// Never before shutdown; the form is that of a part.
pub async fn run(client: Client, name: String, ctx: Context) -> anyhow::Result<()> {
    let ours = Select::<PersistentVolume>::all().labels(&format!("{NODE}={name}"));
    let cache = Cache::builder(client.clone()).kind::<PersistentVolume>(ours).start(&ctx);
    let queue = Queue::<Key>::new(ctx.clock.clone());
    let heard = queue.clone();
    cache.on_change::<PersistentVolume>(move |change| heard.add(change.key.clone()));
    tokio::select! {
        () = ctx.shutdown.cancelled() => return Ok(()),
        () = cache.synced() => {}
    }
    cache.keys("PersistentVolume").into_iter().for_each(|key| queue.add(key));
    loop {
        let key = tokio::select! {
            () = ctx.shutdown.cancelled() => return Ok(()),
            key = queue.next() => key,
        };
        match cache.at::<PersistentVolume>(&key) {
            Some(volume) if is_going(&volume) => match reclaim(&client, &volume, &ctx).await {
                Ok(()) => queue.forget(&key),
                Err(error) => {
                    tracing::info!(volume = key.name, %error, "volume was not removed, trying again");
                    queue.retry(&key);
                }
            },
            _ => queue.forget(&key),
        }
        queue.done(&key);
    }
}

/// Whether a volume waits for us only: it is deleted, and no claim has it any more.
fn is_going(volume: &PersistentVolume) -> bool {
    let bound = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let waits = volume.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER);
    volume.metadata.deletion_timestamp.is_some() && waits && !bound
}

/// The directory to remove; none where what is in it is to be retained, or where the path is not one of ours.
fn directory(volume: &PersistentVolume) -> Option<PathBuf> {
    let spec = volume.spec.as_ref()?;
    if spec.persistent_volume_reclaim_policy.as_deref() != Some("Delete") {
        return None;
    }
    let path = PathBuf::from(&spec.local.as_ref()?.path);
    let name = volume.metadata.name.as_deref()?;
    let own = name.starts_with("pvc-")
        && path.is_absolute()
        && path.file_name().is_some_and(|last| last == name)
        && path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    own.then_some(path)
}

async fn reclaim(client: &Client, volume: &PersistentVolume, ctx: &Context) -> Result<(), Error> {
    if let Some(path) = directory(volume) {
        let removed = ctx.tasks.blocking(move || remove(&path)).await;
        let failed = |error: &dyn std::fmt::Display| Error::Transport(format!("remove: {error}"));
        removed.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
    }
    let rest: Vec<&String> =
        volume.metadata.finalizers.iter().flatten().filter(|f| *f != FINALIZER).collect();
    let change = json!({"metadata": {
        "finalizers": rest, "uid": volume.metadata.uid, "resourceVersion": volume.metadata.resource_version,
    }});
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    match client.patch::<PersistentVolume>("", name, "", Patch::Merge(change)).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(path: &str, policy: &str) -> PersistentVolume {
        let volume = json!({
            "metadata": {"name": "pvc-1", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FINALIZER]},
            "spec": {"local": {"path": path}, "persistentVolumeReclaimPolicy": policy},
            "status": {"phase": "Released"},
        });
        serde_json::from_value(volume).unwrap()
    }

    #[test]
    fn only_our_own_directories_are_removed() {
        assert_eq!(directory(&volume("/base/pvc-1", "Delete")), Some("/base/pvc-1".into()));
        for path in ["/base", "/base/pvc-2", "/base/../pvc-1", "pvc-1", "/"] {
            assert_eq!(directory(&volume(path, "Delete")), None, "{path}");
        }
        assert_eq!(directory(&volume("/base/pvc-1", "Retain")), None);
    }

    #[test]
    fn a_bound_volume_waits_for_its_claim() {
        let mut volume = volume("/base/pvc-1", "Delete");
        assert!(is_going(&volume));
        volume.status.as_mut().unwrap().phase = Some("Bound".into());
        assert!(!is_going(&volume));
    }
}
