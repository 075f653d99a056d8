//! The store's metrics, under etcd's names where dashboards and alerts look for them.
//!
//! They are read from the member when somebody asks for them, so that requests pay nothing.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use daemon::metrics::Metrics;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::engine::Engine;

/// What is counted as it happens.
#[derive(Debug)]
pub struct Figures {
    /// Changes of who leads, as this member saw them.
    pub leader_changes: Counter,
    /// Proposals that wait for their answer here.
    pub pending: Gauge,
    /// Proposals that were never answered by the state.
    pub failed: Counter,
    /// Seconds that the log took to sync.
    pub syncs: Histogram,
    /// Seconds that a round took to be written to the state.
    pub rounds: Histogram,
}

impl Default for Figures {
    fn default() -> Self {
        // From a millisecond to eight seconds, as in etcd.
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 14));
        Self {
            leader_changes: Counter::default(),
            pending: Gauge::default(),
            failed: Counter::default(),
            syncs: seconds(),
            rounds: seconds(),
        }
    }
}

/// Counts a proposal as long as somebody waits for it.
#[derive(Debug)]
pub struct Pending<'a>(&'a Figures);

impl Figures {
    /// A proposal begins to wait.
    #[must_use]
    pub fn waits(&self) -> Pending<'_> {
        self.pending.inc();
        Pending(self)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.pending.dec();
    }
}

/// A number that is looked up when it is wanted.
struct Reading {
    engine: Arc<Engine>,
    look: fn(&Engine) -> i64,
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reading")
    }
}

impl EncodeMetric for Reading {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&(self.look)(&self.engine))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// Adds a member's metrics to the process's.
pub fn register(registry: &Metrics, engine: &Arc<Engine>) {
    let read = |look: fn(&Engine) -> i64| Reading { engine: engine.clone(), look };
    let has_leader = read(|e| i64::from(e.leader.load(Ordering::Relaxed) != 0));
    registry.register("etcd_server_has_leader", "Whether somebody leads", has_leader);
    let is_leader = read(|e| i64::from(e.leader.load(Ordering::Relaxed) == e.identity.member));
    registry.register("etcd_server_is_leader", "Whether this member leads", is_leader);
    let is_learner = read(|e| {
        i64::from(e.members.borrow().get(e.identity.member).is_some_and(|m| m.is_learner))
    });
    registry.register("etcd_server_is_learner", "Whether this member only listens", is_learner);
    let help = "The last entry that is committed";
    let committed = read(|e| size(e.committed.load(Ordering::Relaxed)));
    registry.register("etcd_server_proposals_committed_total", help, committed);
    let help = "The last entry that is applied here";
    let applied = read(|e| size(e.applied.read().mark.index));
    registry.register("etcd_server_proposals_applied_total", help, applied);
    let help = "Bytes that keys and values may take";
    let quota = read(|e| size(e.quota_bytes));
    registry.register("etcd_server_quota_backend_bytes", help, quota);
    let help = "Bytes of the state on disk, or of its keys and values if they are more";
    let total = read(|e| size(e.state.bytes().max(in_use(e))));
    registry.register("etcd_mvcc_db_total_size_in_bytes", help, total);
    let help = "Bytes of keys and values at all revisions that are kept";
    let used = read(|e| size(in_use(e)));
    registry.register("etcd_mvcc_db_total_size_in_use_in_bytes", help, used);
    let help = "Keys that have a history";
    let keys = read(|e| i64::try_from(e.applied.read().mvcc.index().len()).unwrap_or(i64::MAX));
    registry.register("etcd_debugging_mvcc_keys_total", help, keys);
    let revision = read(|e| e.applied.read().mvcc.revision());
    registry.register("etcd_debugging_mvcc_current_revision", "The newest revision", revision);
    let help = "The last compaction; -1 if there was none";
    let compacted = read(|e| e.applied.read().mvcc.compacted());
    registry.register("etcd_debugging_mvcc_compact_revision", help, compacted);
    let watchers = read(|e| i64::try_from(e.hub.lock().len()).unwrap_or(i64::MAX));
    let help = "Watchers that have heard everything";
    registry.register("etcd_debugging_mvcc_watcher_total", help, watchers);
    counted(registry, &engine.figures);
}

fn counted(registry: &Metrics, figures: &Figures) {
    let help = "Changes of who leads that this member saw";
    registry.register("etcd_server_leader_changes_seen", help, figures.leader_changes.clone());
    let help = "Proposals that wait for their answer here";
    registry.register("etcd_server_proposals_pending", help, figures.pending.clone());
    let help = "Proposals that the state never answered";
    registry.register("etcd_server_proposals_failed", help, figures.failed.clone());
    let help = "Seconds that the log took to sync";
    registry.register("etcd_disk_wal_fsync_duration_seconds", help, figures.syncs.clone());
    let help = "Seconds that changes took to be written to the state on disk";
    registry.register("etcd_disk_backend_commit_duration_seconds", help, figures.rounds.clone());
}

fn in_use(engine: &Engine) -> u64 {
    engine.applied.read().mvcc.bytes() as u64
}

fn size(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
