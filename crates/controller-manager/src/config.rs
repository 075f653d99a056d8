//! Settings of the controller manager.

use anyhow::Context as _;
use auth::pki::{Authority, Pair};
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
    /// Where nodes keep the volumes of the built-in storage class `local-path`; empty: there is no such class.
    pub local_path: String,
    /// The authority with which requests for certificates are signed.
    pub signing: Signing,
}

/// Files of an authority; empty where nothing is to be signed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Signing {
    /// Its certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
}

impl Signing {
    /// The authority, if there is one.
    ///
    /// # Errors
    /// When its files cannot be read.
    pub fn authority(&self) -> anyhow::Result<Option<Authority>> {
        if self.cert.is_empty() && self.key.is_empty() {
            return Ok(None);
        }
        let read = |what: &str, path: &str| {
            std::fs::read_to_string(path).with_context(|| format!("signing.{what}: read {path:?}"))
        };
        let pair = Pair { cert: read("cert", &self.cert)?, key: read("key", &self.key)? };
        Ok(Some(Authority::load(&pair).context("signing: read the authority")?))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: "https://127.0.0.1:6443".into(),
            tls: TlsFiles::default(),
            pod_cidr: "10.244.0.0/16".into(),
            leader_elect: true,
            local_path: "/var/lib/ironclad/local-path".into(),
            signing: Signing::default(),
        }
    }
}

impl daemon::Config for Config {
    fn check(&mut self) -> anyhow::Result<()> {
        crate::controllers::ipam::PodRange::parse(&self.pod_cidr).map(|_| ())
    }
}
