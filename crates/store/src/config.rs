//! The store's settings.

use daemon::tls::TlsFiles;
use serde::{Deserialize, Serialize};

/// Settings of one member.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The member's name in lists.
    pub name: String,
    /// Where log, snapshots and state are.
    pub data_dir: String,
    /// Where clients come in.
    pub client: Client,
    /// Bytes that keys and values may take before writes are refused.
    pub quota_bytes: u64,
    /// Entries after which a snapshot is made (or 64 MiB of log).
    pub snapshot_entries: u64,
    /// Seconds after which an idle watcher is told how far it is, if it asked for that.
    pub watch_progress_s: u64,
    /// Seconds after its last use when the token of a user ends.
    pub auth_token_ttl_s: u64,
}

/// The clients' side.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Client {
    /// Address and port; empty for none, when the store lives inside another process.
    pub listen: String,
    /// `none` (on loopback only) or `files`.
    pub tls: String,
    /// The certificate, its key, and the authority that clients' certificates must come from.
    pub files: TlsFiles,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "default".into(),
            data_dir: "/var/lib/ironclad/store".into(),
            client: Client::default(),
            quota_bytes: 8 << 30,
            snapshot_entries: 100_000,
            watch_progress_s: 600,
            auth_token_ttl_s: 300,
        }
    }
}

impl Default for Client {
    fn default() -> Self {
        Self { listen: "127.0.0.1:2379".into(), tls: "none".into(), files: TlsFiles::default() }
    }
}

impl daemon::Config for Config {
    fn check(&mut self) -> anyhow::Result<()> {
        if self.data_dir.is_empty() {
            anyhow::bail!("data_dir is empty");
        }
        match self.client.tls.as_str() {
            "none" => {}
            "files" if !self.client.files.cert.is_empty() && !self.client.files.key.is_empty() => {}
            "files" => anyhow::bail!("client.tls is files, so client.files needs cert and key"),
            other => anyhow::bail!("client.tls is {other:?}, but may be none or files"),
        }
        Ok(())
    }
}
