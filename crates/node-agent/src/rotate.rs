//! Keeps container logs within bounds: a log that has grown too large is moved aside, and the
//! oldest of those that were are removed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use daemon::Context;
use jiff::Timestamp;

use crate::pod::State;
use crate::runtime::Runtime;

const PERIOD: Duration = Duration::from_secs(10);
/// A log larger than this is moved aside.
const LOG_BYTES_MAX: u64 = 10 << 20;
/// Files kept of one log, the present one included.
const FILES_MAX: usize = 5;

/// Looks after the logs below `root` until shutdown.
pub(crate) async fn run(root: PathBuf, runtime: Runtime, ctx: Context) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = ctx.shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(PERIOD) => {}
        }
        let (dir, looking) = (root.clone(), ctx.tasks.clone());
        let large = looking.blocking(move || large(&dir)).await.unwrap_or_default();
        if large.is_empty() {
            continue;
        }
        let pods = match runtime.pods().await {
            Ok(pods) => pods,
            Err(error) => {
                tracing::warn!(%error, "logs not rotated");
                continue;
            }
        };
        for run in pods.values().flat_map(|pod| &pod.containers) {
            let path = Path::new(&run.log_path);
            if run.state != State::Running || !large.iter().any(|log| log == path) {
                continue;
            }
            if let Err(error) = rotate(path, ctx.clock.now()) {
                tracing::warn!(%error, log = run.log_path, "log not moved aside");
            } else if let Err(error) = runtime.reopen_log(&run.id).await {
                tracing::warn!(%error, log = run.log_path, "log not begun anew");
            }
        }
    }
}

/// The logs that have grown too large: `<pod>/<container>/<run>.log`.
fn large(root: &Path) -> Vec<PathBuf> {
    let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for container in entries(root).flat_map(|pod| entries(&pod.path())) {
        for log in entries(&container.path()) {
            let path = log.path();
            let size = log.metadata().map_or(0, |metadata| metadata.len());
            if path.extension().is_some_and(|e| e == "log") && size > LOG_BYTES_MAX {
                found.push(path);
            }
        }
    }
    found
}

/// Moves a log aside under the time's name, and removes the oldest of its kind.
fn rotate(log: &Path, now: Timestamp) -> io::Result<()> {
    let stamp = now.strftime("%Y%m%d-%H%M%S");
    let name = log.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Some(dir) = log.parent() else { return Ok(()) };
    let prefix = format!("{name}.");
    let mut old: Vec<PathBuf> = std::fs::read_dir(dir)?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect();
    old.sort();
    // Room for the present log and the one moved aside now.
    let kept = FILES_MAX - 2;
    for path in &old[..old.len().saturating_sub(kept)] {
        std::fs::remove_file(path)?;
    }
    std::fs::rename(log, dir.join(format!("{prefix}{stamp}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_files_of_a_log_go() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..6 {
            let log = dir.path().join("0.log");
            std::fs::write(&log, format!("{i}")).unwrap();
            rotate(&log, Timestamp::from_second(1_000_000 + i).unwrap()).unwrap();
        }
        std::fs::write(dir.path().join("0.log"), "now").unwrap();
        let mut names: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(names.len(), FILES_MAX, "{names:?}");
        assert!(names.contains(&"0.log.19700112-134645".to_owned()), "{names:?}");
    }
}
