//! Settings of the service proxy.

use daemon::tls::TlsFiles;
use serde::{Deserialize, Serialize};

/// Settings of `ironclad-proxy`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// URL of the API server.
    pub server: String,
    /// Our certificate and the server's authority.
    pub tls: TlsFiles,
    /// The node this runs on.
    pub node_name: String,
    /// Range of the cluster's pods; what they send out of it gets the node's address.
    pub pod_cidr: String,
    /// Range of the Services' addresses.
    pub service_cidr: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: "https://127.0.0.1:6443".into(),
            tls: TlsFiles::default(),
            node_name: String::new(),
            pod_cidr: "10.244.0.0/16".into(),
            service_cidr: "10.96.0.0/16".into(),
        }
    }
}

impl daemon::Config for Config {
    fn check(&mut self) -> anyhow::Result<()> {
        crate::routes::parse_cidr(&self.pod_cidr)?;
        crate::routes::parse_cidr(&self.service_cidr)?;
        Ok(())
    }
}
