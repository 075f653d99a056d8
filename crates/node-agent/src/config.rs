//! Settings of the node agent.

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use daemon::tls::TlsFiles;
use k8s_openapi::api::core::v1::Taint;
use serde::{Deserialize, Serialize};

use crate::node::Settings;

/// An address that is never reached; asking the way to it tells our own.
const ELSEWHERE: &str = "203.0.113.1:9";

/// Settings of `ironclad-node-agent`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// URL of the API server.
    pub server: String,
    /// Our certificate and the server's authority.
    pub tls: TlsFiles,
    /// Where the API server reaches us, for logs, exec and the like.
    pub listen: String,
    /// Our certificate there, and the authority that the API server's certificate comes from.
    pub serving: TlsFiles,
    /// The node's name; empty for the machine's.
    pub node_name: String,
    /// The node's address; empty for that of the way out.
    pub node_ip: String,
    /// Labels the node is registered with.
    pub labels: BTreeMap<String, String>,
    /// Taints the node is registered with, as `key=value:Effect`.
    pub taints: Vec<String>,
    /// How many pods the node takes.
    pub pods_max: u32,
    /// Address of the cluster's DNS; empty for none.
    pub cluster_dns: String,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// Everything of ours is below here.
    pub data_dir: PathBuf,
    /// Where logs of pods go; empty for `pods` in `data_dir`.
    pub log_dir: String,
    /// Cgroup of all pods.
    pub cgroup_root: String,
    /// The socket of a containerd to use; empty for one of our own.
    pub containerd_address: String,
    /// The containerd program, for one of our own.
    pub containerd_program: String,
    /// Where the CNI plugins are.
    pub cni_bin_dir: PathBuf,
    /// Where the CNI configuration goes; empty for our own containerd's.
    pub cni_conf_dir: String,
    /// Directory of the static programs `ironclad-pause` and `ironclad-demo`; empty for that of
    /// our own program.
    pub images_dir: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: "https://127.0.0.1:6443".into(),
            tls: TlsFiles::default(),
            listen: "0.0.0.0:10250".into(),
            serving: TlsFiles::default(),
            node_name: String::new(),
            node_ip: String::new(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            pods_max: 110,
            cluster_dns: String::new(),
            cluster_domain: "cluster.local".into(),
            data_dir: "/var/lib/ironclad/node".into(),
            log_dir: String::new(),
            cgroup_root: "kubepods".into(),
            containerd_address: String::new(),
            containerd_program: "containerd".into(),
            cni_bin_dir: "/usr/lib/cni".into(),
            cni_conf_dir: String::new(),
            images_dir: String::new(),
        }
    }
}

impl daemon::Config for Config {
    fn check(&mut self) -> anyhow::Result<()> {
        if self.pods_max == 0 {
            bail!("pods_max: must be at least 1");
        }
        if !self.node_ip.is_empty() {
            self.node_ip
                .parse::<IpAddr>()
                .with_context(|| format!("node_ip {:?}", self.node_ip))?;
        }
        for text in &self.taints {
            taint(text)?;
        }
        self.port().map(drop)
    }
}

fn taint(text: &str) -> anyhow::Result<Taint> {
    let wrong = || format!("taints: {text:?} is not key=value:Effect");
    let (head, effect) = text.rsplit_once(':').with_context(wrong)?;
    if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        bail!("taints: {text:?}: no such effect");
    }
    let (key, value) = head.split_once('=').unwrap_or((head, ""));
    Ok(Taint {
        key: key.to_owned(),
        value: (!value.is_empty()).then(|| value.to_owned()),
        effect: effect.to_owned(),
        time_added: None,
    })
}

impl Config {
    fn port(&self) -> anyhow::Result<u16> {
        let port = self.listen.rsplit(':').next().and_then(|port| port.parse().ok());
        port.with_context(|| format!("listen {:?}: no port", self.listen))
    }

    /// The node's name.
    #[must_use]
    pub fn name(&self) -> String {
        if !self.node_name.is_empty() {
            return self.node_name.clone();
        }
        let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        own.trim().to_lowercase()
    }

    /// The directory of pod logs.
    #[must_use]
    pub fn logs(&self) -> String {
        if self.log_dir.is_empty() {
            self.data_dir.join("logs").display().to_string()
        } else {
            self.log_dir.clone()
        }
    }

    /// Where a static program is.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        if !self.images_dir.is_empty() {
            return PathBuf::from(&self.images_dir).join(name);
        }
        let own = std::env::current_exe().unwrap_or_default();
        own.parent().map(|dir| dir.join(name)).unwrap_or_default()
    }

    /// What the node is to the cluster.
    ///
    /// # Errors
    /// When a setting cannot be used.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let ip = if self.node_ip.is_empty() { own_address() } else { self.node_ip.clone() };
        Ok(Settings {
            name: self.name(),
            ips: vec![ip],
            labels: self.labels.clone(),
            taints: self.taints.iter().map(|text| taint(text)).collect::<Result<_, _>>()?,
            port: self.port()?,
            pods_max: i64::from(self.pods_max),
            cluster_dns: self.cluster_dns.clone(),
            cluster_domain: self.cluster_domain.clone(),
            cgroup_root: self.cgroup_root.clone(),
            log_dir: self.logs(),
            data_dir: self.data_dir.clone(),
        })
    }
}

/// The address this machine sends from. Nothing is sent to find it.
fn own_address() -> String {
    let asked = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect(ELSEWHERE)?;
        socket.local_addr()
    });
    asked.map_or_else(|_| "127.0.0.1".to_owned(), |address| address.ip().to_string())
}

#[cfg(test)]
mod tests {
    use daemon::Config as _;

    use super::*;

    #[test]
    fn taints_are_checked() {
        let mut config = Config { taints: vec!["a=b:NoSchedule".into()], ..Config::default() };
        config.check().unwrap();
        assert_eq!(config.settings().unwrap().taints[0].value.as_deref(), Some("b"));
        config.taints = vec!["a=b:Never".into()];
        assert!(config.check().is_err());
    }
}
