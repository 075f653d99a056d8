//! The store's settings.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use daemon::tls::TlsFiles;
use serde::{Deserialize, Serialize};

use crate::bootstrap::{self, Named};
use crate::compactor::Keep;

/// Settings of one member.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The member's name in lists, and in `initial_cluster`.
    pub name: String,
    /// Where log, snapshots and state are.
    pub data_dir: String,
    /// The members of a new cluster, or of the one to join: `a=https://host:2380,b=…`; empty: this one alone.
    pub initial_cluster: String,
    /// `new`, or `existing` for a member that was added to a running cluster. Only read when there is no data yet.
    pub initial_cluster_state: String,
    /// Keeps clusters apart that have the same addresses: their ids are derived from it.
    pub initial_cluster_token: String,
    /// The clients' side.
    pub client: Client,
    /// The side of the other members.
    pub peer: Peer,
    /// Bytes that keys and values may take before writes are refused.
    pub quota_bytes: u64,
    /// History that goes by itself.
    pub auto_compaction: AutoCompaction,
    /// Free bytes on the disk below which writes are refused, so that none is cut short.
    pub disk_reserve_bytes: u64,
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
    /// URLs under which clients reach this member, comma-separated; empty: `listen`'s.
    pub advertise: String,
    /// `none` (on loopback only) or `files`.
    pub tls: String,
    /// The certificate, its key, and the authority that clients' certificates must come from.
    pub files: TlsFiles,
}

/// History that goes by itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoCompaction {
    /// `off`, `periodic` or `revision`.
    pub mode: String,
    /// How much stays: seconds if periodic, else revisions.
    pub retention: u64,
}

/// The side of the other members.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Peer {
    /// Address and port; empty for none: a member that stays alone.
    pub listen: String,
    /// URLs under which other members reach this one, comma-separated; empty: `listen`'s.
    pub advertise: String,
    /// `none` (on loopback only) or `files`.
    pub tls: String,
    /// The certificate shown to other members, its key, and the authority that theirs must come from.
    pub files: TlsFiles,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "default".into(),
            data_dir: "/var/lib/ironclad/store".into(),
            initial_cluster: String::new(),
            initial_cluster_state: "new".into(),
            initial_cluster_token: "etcd-cluster".into(),
            client: Client::default(),
            peer: Peer::default(),
            quota_bytes: 8 << 30,
            auto_compaction: AutoCompaction::default(),
            disk_reserve_bytes: 64 << 20,
            snapshot_entries: 100_000,
            watch_progress_s: 600,
            auth_token_ttl_s: 300,
        }
    }
}

impl Default for AutoCompaction {
    fn default() -> Self {
        Self { mode: "off".into(), retention: 3600 }
    }
}

impl AutoCompaction {
    /// How much history is kept.
    ///
    /// # Errors
    /// When the mode is unknown or nothing would be kept.
    pub fn keep(&self) -> anyhow::Result<Keep> {
        match self.mode.as_str() {
            "off" => return Ok(Keep::All),
            "periodic" | "revision" => {}
            other => {
                bail!("auto_compaction.mode is {other:?}, but may be off, periodic or revision")
            }
        }
        ensure!(self.retention > 0, "auto_compaction.retention is 0: nothing would be kept");
        if self.mode == "periodic" {
            return Ok(Keep::Time(Duration::from_secs(self.retention)));
        }
        Ok(Keep::Revisions(i64::try_from(self.retention).context("auto_compaction.retention")?))
    }
}

impl Default for Client {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:2379".into(),
            advertise: String::new(),
            tls: "none".into(),
            files: TlsFiles::default(),
        }
    }
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            listen: String::new(),
            advertise: String::new(),
            tls: "none".into(),
            files: TlsFiles::default(),
        }
    }
}

impl Client {
    /// Where clients reach this member.
    ///
    /// # Errors
    /// When an advertised URL is none.
    pub fn urls(&self) -> anyhow::Result<Vec<String>> {
        advertised(&self.advertise, &self.tls, &self.listen).context("client.advertise")
    }
}

impl Peer {
    /// Where other members reach this one.
    ///
    /// # Errors
    /// When an advertised URL is none.
    pub fn urls(&self) -> anyhow::Result<Vec<String>> {
        advertised(&self.advertise, &self.tls, &self.listen).context("peer.advertise")
    }
}

impl Config {
    /// The members that the cluster begins with, or those of the cluster to join.
    ///
    /// # Errors
    /// When the list is none, or says something else of this member than its own settings.
    pub fn first_members(&self) -> anyhow::Result<Vec<Named>> {
        let itself = Named { name: self.name.clone(), urls: self.peer.urls()? };
        if self.initial_cluster.is_empty() {
            return Ok(vec![itself]);
        }
        let all = bootstrap::parse(&self.initial_cluster).context("initial_cluster")?;
        let Some(named) = all.iter().find(|named| named.name == self.name) else {
            bail!("initial_cluster does not name this member, {:?}", self.name);
        };
        ensure!(
            named.urls == itself.urls,
            "initial_cluster has {} at {}, but peer.advertise is {}",
            self.name,
            named.urls.join(","),
            itself.urls.join(",")
        );
        Ok(all)
    }
}

impl daemon::Config for Config {
    fn check(&mut self) -> anyhow::Result<()> {
        ensure!(!self.data_dir.is_empty(), "data_dir is empty");
        self.auto_compaction.keep()?;
        check_tls("client", &self.client.tls, &self.client.files)?;
        check_tls("peer", &self.peer.tls, &self.peer.files)?;
        if self.peer.tls == "files" {
            ensure!(
                !self.peer.files.ca.is_empty(),
                "peer.tls is files, so peer.files needs ca: members are known by it"
            );
        }
        match self.initial_cluster_state.as_str() {
            "new" => {}
            "existing" if !self.initial_cluster.is_empty() => {}
            "existing" => bail!("initial_cluster_state is existing, so initial_cluster is needed"),
            other => bail!("initial_cluster_state is {other:?}, but may be new or existing"),
        }
        self.client.urls()?;
        if self.peer.listen.is_empty() {
            ensure!(self.initial_cluster.is_empty(), "initial_cluster is set, but not peer.listen");
            return Ok(());
        }
        self.first_members().map(drop)
    }
}

fn advertised(advertise: &str, tls: &str, listen: &str) -> anyhow::Result<Vec<String>> {
    if advertise.is_empty() {
        let scheme = if tls == "files" { "https" } else { "http" };
        let itself = (!listen.is_empty()).then(|| format!("{scheme}://{listen}"));
        return Ok(itself.into_iter().collect());
    }
    Ok(bootstrap::urls(advertise)?)
}

fn check_tls(side: &str, tls: &str, files: &TlsFiles) -> anyhow::Result<()> {
    match tls {
        "none" => {}
        "files" if !files.cert.is_empty() && !files.key.is_empty() => {}
        "files" => bail!("{side}.tls is files, so {side}.files needs cert and key"),
        other => bail!("{side}.tls is {other:?}, but may be none or files"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use daemon::Config as _;

    use super::*;

    fn refusal(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::default();
        change(&mut config);
        config.check().map_or_else(|error| format!("{error:#}"), |()| "none".to_owned())
    }

    #[test]
    fn what_does_not_fit_together_is_refused_by_name() {
        assert_eq!(refusal(|_| {}), "none");
        assert_eq!(
            refusal(|c| c.initial_cluster = "default=http://127.0.0.1:2380".into()),
            "initial_cluster is set, but not peer.listen"
        );
        let listening = |c: &mut Config| c.peer.listen = "127.0.0.1:2380".into();
        assert_eq!(refusal(listening), "none");
        assert_eq!(
            refusal(|c| {
                listening(c);
                c.initial_cluster = "a=http://127.0.0.1:1".into();
            }),
            "initial_cluster does not name this member, \"default\""
        );
        assert_eq!(
            refusal(|c| {
                listening(c);
                c.initial_cluster = "default=http://127.0.0.1:1".into();
            }),
            "initial_cluster has default at http://127.0.0.1:1, but peer.advertise is \
             http://127.0.0.1:2380"
        );
        assert_eq!(
            refusal(|c| c.initial_cluster_state = "old".into()),
            "initial_cluster_state is \"old\", but may be new or existing"
        );
        assert_eq!(
            refusal(|c| {
                c.peer.tls = "files".into();
                (c.peer.files.cert, c.peer.files.key) = ("c".into(), "k".into());
            }),
            "peer.tls is files, so peer.files needs ca: members are known by it"
        );
        assert_eq!(
            refusal(|c| c.client.advertise = "host".into()),
            "client.advertise: \"host\" is not a URL of the form https://host:port"
        );
    }
}
