//! The conditions of a Job's status. Pure.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::JobStatus;
use serde_json::{Value, json};

/// The conditions of a status, changed.
pub(super) struct Conditions {
    pub(super) all: Vec<Value>,
    at: String,
}

impl Conditions {
    pub(super) fn new(status: &JobStatus, now: Timestamp) -> Self {
        let all = status.conditions.iter().flatten().map(|c| json!(c)).collect();
        Self { all, at: now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string() }
    }

    /// Sets one; whether it was otherwise.
    pub(super) fn set(&mut self, kind: &str, status: &str, reason: &str, message: &str) -> bool {
        let same = |c: &Value| c["type"] == kind && c["status"] == status;
        if self.all.iter().any(same) {
            return false;
        }
        self.all.retain(|c| c["type"] != kind);
        self.all.push(json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastProbeTime": self.at, "lastTransitionTime": self.at,
        }));
        true
    }
}
