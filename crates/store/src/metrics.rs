//! The store's metrics, under etcd's names where dashboards and alerts look for them.
//!
//! They are read from the member when somebody asks for them, so that requests pay nothing.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use daemon::metrics::Metrics;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;

use crate::engine::Engine;

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
}

fn in_use(engine: &Engine) -> u64 {
    engine.applied.read().mvcc.bytes() as u64
}

fn size(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
