//! Writes pod statuses to the API server, many in one call, the newest of each pod only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use client::transport::{Client, Key, Kind, status_patch};
use daemon::{Backoff, Context};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, watch};

use crate::pod::{name, namespace, uid};
use crate::worker::Inbox;

const BATCH_MAX: usize = 100;
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

struct Pending {
    key: Key,
    patch: Value,
    inbox: Arc<Inbox>,
}

struct State {
    /// By uid.
    pending: Mutex<BTreeMap<String, Pending>>,
    /// Uids that are being written.
    writing: watch::Sender<Vec<String>>,
    wake: Notify,
}

/// Where statuses go. Clones share it.
#[derive(Clone)]
pub(crate) struct Reporter(Arc<State>);

impl Reporter {
    /// Starts writing as a part of `ctx`.
    pub(crate) fn start(client: Client, ctx: &Context) -> Self {
        let (pending, writing, wake) = (Mutex::default(), watch::Sender::default(), Notify::new());
        let reporter = Self(Arc::new(State { pending, writing, wake }));
        let (state, shutdown) = (reporter.0.clone(), ctx.shutdown.clone());
        ctx.tasks.part("status", async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = state.write_all(&client) => {}
            }
            Ok(())
        });
        reporter
    }

    /// Writes `patch` to the pod's status soon.
    pub(crate) fn put(&self, pod: &Pod, patch: Value, inbox: Arc<Inbox>) {
        let mut pending = self.0.pending.lock();
        let key = Key::new(namespace(pod), name(pod));
        let fresh = match pending.remove(uid(pod)) {
            Some(old) => Pending { patch: merged(old.patch, patch), ..old },
            None => Pending { key, patch, inbox },
        };
        pending.insert(uid(pod).to_owned(), fresh);
        drop(pending);
        self.0.wake.notify_one();
    }

    /// Returns when what was put for pod `uid` has been tried.
    pub(crate) async fn flushed(&self, uid: &str) {
        let mut writing = self.0.writing.subscribe();
        let done = async {
            loop {
                let waits = self.0.pending.lock().contains_key(uid);
                if !waits && !writing.borrow_and_update().iter().any(|u| u == uid) {
                    return;
                }
                if writing.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(FLUSH_TIMEOUT, done).await.is_err() {
            tracing::warn!(pod = uid, "last status of a pod is not written");
        }
    }
}

/// The later patch on top of the earlier one; both have only a status, one level deep.
fn merged(mut earlier: Value, later: Value) -> Value {
    let empty = Map::new();
    if let Some(status) = earlier["status"].as_object_mut() {
        let fields = later["status"].as_object().unwrap_or(&empty);
        status.extend(fields.iter().map(|(field, value)| (field.clone(), value.clone())));
    } else {
        earlier = json!({"status": later["status"]});
    }
    earlier
}

impl State {
    async fn write_all(&self, client: &Client) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        loop {
            let batch = self.batch();
            if batch.is_empty() {
                self.wake.notified().await;
                continue;
            }
            self.writing.send_replace(batch.iter().map(|(uid, _)| uid.clone()).collect());
            let kind = Kind::of::<Pod>();
            let items = batch.iter().map(|(uid, p)| status_patch(&kind, &p.key, uid, "", &p.patch));
            match client.update_status(items.collect()).await {
                Ok(results) => {
                    backoff.reset();
                    for ((_, pending), result) in batch.iter().zip(results) {
                        if let Err(error) = result {
                            refused(pending, &error);
                        }
                    }
                    self.writing.send_replace(Vec::new());
                }
                Err(error) => {
                    tracing::warn!(%error, pods = batch.len(), "statuses not written yet");
                    self.put_back(batch);
                    self.writing.send_replace(Vec::new());
                    tokio::time::sleep(backoff.delay()).await;
                }
            }
        }
    }

    fn batch(&self) -> Vec<(String, Pending)> {
        let mut pending = self.pending.lock();
        std::iter::from_fn(|| pending.pop_first()).take(BATCH_MAX).collect()
    }

    fn put_back(&self, batch: Vec<(String, Pending)>) {
        let mut pending = self.pending.lock();
        for (uid, old) in batch {
            let fresh = match pending.remove(&uid) {
                Some(newer) => Pending { patch: merged(old.patch, newer.patch), ..newer },
                None => old,
            };
            pending.insert(uid, fresh);
        }
    }
}

fn refused(pending: &Pending, error: &client::Error) {
    if error.is_not_found() || error.is_conflict() {
        tracing::debug!(pod = %pending.key, %error, "status of a pod that is gone");
        return;
    }
    tracing::warn!(pod = %pending.key, %error, "status refused");
    // The worker states it again, in full, at its next look.
    pending.inbox.unsaid.store(true, Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_fields_win_and_the_others_stay() {
        let merged = merged(
            json!({"status": {"phase": "Pending", "podIP": "10.0.0.1"}}),
            json!({"status": {"phase": "Running"}}),
        );
        assert_eq!(merged, json!({"status": {"phase": "Running", "podIP": "10.0.0.1"}}));
    }
}
