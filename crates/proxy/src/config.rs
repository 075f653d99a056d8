//! Settings of the service proxy.

use std::net::Ipv4Addr;

use anyhow::Context as _;
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
    /// Address this node speaks to Services from; empty for the one the kernel chooses.
    pub node_ip: String,
    /// Address of the cluster's DNS, which this machine then has itself; empty where no DNS runs on the node.
    pub dns_address: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: "https://127.0.0.1:6443".into(),
            tls: TlsFiles::default(),
            node_name: String::new(),
            pod_cidr: "10.244.0.0/16".into(),
            service_cidr: "10.96.0.0/16".into(),
            node_ip: String::new(),
            dns_address: String::new(),
        }
    }
}

impl Config {
    /// `node_ip`, if set.
    pub(crate) fn node_ip(&self) -> anyhow::Result<Option<Ipv4Addr>> {
        optional("node_ip", &self.node_ip)
    }

    /// `dns_address`, if set.
    pub(crate) fn dns_address(&self) -> anyhow::Result<Option<Ipv4Addr>> {
        optional("dns_address", &self.dns_address)
    }
}

fn optional(key: &str, text: &str) -> anyhow::Result<Option<Ipv4Addr>> {
    let address = (!text.is_empty()).then(|| text.parse());
    address.transpose().with_context(|| format!("{key}: {text:?} is no IPv4 address"))
}

impl daemon::Config for Config {
    fn check(&mut self) -> anyhow::Result<()> {
        crate::routes::parse_cidr(&self.pod_cidr).context("pod_cidr")?;
        crate::routes::parse_cidr(&self.service_cidr).context("service_cidr")?;
        self.node_ip()?;
        self.dns_address()?;
        Ok(())
    }
}
