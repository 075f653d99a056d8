//! Settings of the API server.

use daemon::tls::TlsFiles;
use serde::{Deserialize, Serialize};

/// Settings of `ironclad-apiserver`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address and port of the API.
    pub listen: String,
    /// Address under which pods reach this server (endpoint of the `kubernetes` Service); empty: `listen`'s.
    pub advertise: String,
    /// Certificate, key, and the authority of client certificates.
    pub tls: TlsFiles,
    /// The store.
    pub store: StoreConfig,
    /// Range of Services' cluster IPs.
    pub service_cidr: String,
    /// Range of node ports.
    pub node_ports: String,
    /// Service-account tokens.
    pub tokens: TokenConfig,
    /// Serve `metrics.k8s.io` from the node agents; false where a metrics server is registered for it.
    pub metrics_api: bool,
    /// Certificate with which node agents are called, and their authority.
    pub node: TlsFiles,
}

/// Where the store is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// URLs of an etcd v3 store, comma-separated.
    pub endpoints: String,
    /// Certificates towards it, for `https` URLs.
    pub tls: TlsFiles,
    /// Seconds after which history is forgotten, 0 for never; watches and pages that begin before it are too old.
    pub compaction_interval_s: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            endpoints: "http://127.0.0.1:2379".into(),
            tls: TlsFiles::default(),
            compaction_interval_s: 300,
        }
    }
}

/// How tokens are signed and known.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenConfig {
    /// File of the key that signs service-account tokens (PKCS#8 PEM, RSA).
    pub key: String,
    /// Who issues them.
    pub issuer: String,
    /// File of static tokens: `token,user,uid[,"group,…"]`; empty for none.
    pub file: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:6443".into(),
            advertise: String::new(),
            tls: TlsFiles::default(),
            store: StoreConfig::default(),
            service_cidr: "10.96.0.0/16".into(),
            node_ports: "30000-32767".into(),
            tokens: TokenConfig::default(),
            metrics_api: true,
            node: TlsFiles::default(),
        }
    }
}

impl Default for TokenConfig {
    fn default() -> Self {
        Self {
            key: String::new(),
            issuer: "https://kubernetes.default.svc.cluster.local".into(),
            file: String::new(),
        }
    }
}

impl daemon::Config for Config {
    fn check(&mut self) -> anyhow::Result<()> {
        crate::hooks::service::Network::parse(&self.service_cidr, &self.node_ports)?;
        anyhow::ensure!(
            self.listen.parse::<std::net::SocketAddr>().is_ok(),
            "listen: {:?} is no address and port like 0.0.0.0:6443",
            self.listen
        );
        Ok(())
    }
}
