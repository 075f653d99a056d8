//! Named tasks, none of them orphans: a part that ends before its daemon ends the daemon.
#![allow(clippy::disallowed_methods)] // the one place that spawns

use std::sync::Arc;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The tasks of one daemon. Clones share them.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    shutdown: CancellationToken,
    failure: Arc<Mutex<Option<anyhow::Error>>>,
}

impl Tasks {
    /// No tasks yet; `shutdown` is cancelled by the first part that fails.
    #[must_use]
    pub fn new(shutdown: CancellationToken) -> Self {
        Self { tracker: TaskTracker::new(), shutdown, failure: Arc::default() }
    }

    /// Spawns a part of the daemon, which runs until shutdown. If it ends earlier, with an error,
    /// a panic or without one, the daemon ends.
    pub fn part<F>(&self, name: &'static str, part: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let (shutdown, failure) = (self.shutdown.clone(), self.failure.clone());
        self.tracker.spawn(async move {
            let end = std::panic::AssertUnwindSafe(part).catch_unwind().await;
            if shutdown.is_cancelled() && !matches!(end, Err(_) | Ok(Err(_))) {
                return;
            }
            let error = match end {
                Ok(Ok(())) => anyhow::anyhow!("{name} ended by itself"),
                Ok(Err(error)) => error.context(name),
                Err(_) => anyhow::anyhow!("{name} panicked"),
            };
            failure.lock().get_or_insert(error);
            shutdown.cancel();
        });
    }

    /// Spawns a job that may end at any time, such as one connection or one call.
    pub fn job<F>(&self, job: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(job)
    }

    /// Runs blocking work (disk, subprocess) off the async threads.
    pub fn blocking<T, F>(&self, work: F) -> tokio::task::JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.tracker.spawn_blocking(work)
    }

    /// Waits for all tasks to end after shutdown, and returns the first failure of a part.
    ///
    /// # Errors
    /// What the part that failed first returned.
    pub async fn join(&self) -> anyhow::Result<()> {
        self.tracker.close();
        self.tracker.wait().await;
        self.failure.lock().take().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_ends_early_ends_the_daemon() {
        let token = CancellationToken::new();
        let tasks = Tasks::new(token.clone());
        tasks.part("loop", async { Ok(()) });
        token.cancelled().await;
        let error = tasks.join().await.unwrap_err();
        assert_eq!(error.to_string(), "loop ended by itself");
    }

    #[tokio::test]
    async fn a_panic_is_a_failure_and_not_the_end_of_the_process() {
        let token = CancellationToken::new();
        let tasks = Tasks::new(token.clone());
        tasks.part("loop", async { panic!("planted") });
        token.cancelled().await;
        assert!(tasks.join().await.is_err());
    }
}
