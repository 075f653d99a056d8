//! Settings of the scheduler.

use daemon::tls::TlsFiles;
use serde::{Deserialize, Serialize};

/// Settings of `ironclad-scheduler`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// URL of the API server.
    pub server: String,
    /// Our certificate and the server's authority.
    pub tls: TlsFiles,
    /// Pods that name this scheduler are ours.
    pub scheduler_name: String,
    /// Whether work waits until this process holds the lease; off where there is only one.
    pub leader_elect: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: "https://127.0.0.1:6443".into(),
            tls: TlsFiles::default(),
            scheduler_name: "default-scheduler".into(),
            leader_elect: true,
        }
    }
}

impl daemon::Config for Config {}
