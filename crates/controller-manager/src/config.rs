//! Settings of the controller manager.

use daemon::tls::TlsFiles;
use serde::{Deserialize, Serialize};

/// Settings of `ironclad-controller-manager`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// URL of the API server.
    pub server: String,
    /// Our certificate and the server's authority.
    pub tls: TlsFiles,
    /// Range of pod addresses, dealt out to nodes.
    pub pod_cidr: String,
    /// Whether work waits until this process holds the lease; off where there is only one.
    pub leader_elect: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: "https://127.0.0.1:6443".into(),
            tls: TlsFiles::default(),
            pod_cidr: "10.244.0.0/16".into(),
            leader_elect: true,
        }
    }
}

impl daemon::Config for Config {
    fn check(&mut self) -> anyhow::Result<()> {
        crate::controllers::ipam::PodRange::parse(&self.pod_cidr).map(|_| ())
    }
}
