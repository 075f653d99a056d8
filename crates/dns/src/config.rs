//! Settings of the cluster's DNS.

use std::net::SocketAddr;

use anyhow::Context as _;
use daemon::tls::TlsFiles;
use serde::{Deserialize, Serialize};

/// Settings of `ironclad-dns`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// URL of the API server.
    pub server: String,
    /// Our certificate and the server's authority.
    pub tls: TlsFiles,
    /// Address and port served over UDP and TCP; the address must be one of this machine's (`ironclad-proxy` adds it).
    pub listen: String,
    /// Whether the Service `kube-dns` in `kube-system` is to be kept at the address of `listen`.
    pub publish: bool,
    /// The cluster's domain.
    pub domain: String,
    /// Servers asked about other names, as `address` or `address:port`; empty for those of `resolv_conf`.
    pub upstream: Vec<String>,
    /// Where this machine's own servers are listed; empty for none.
    pub resolv_conf: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: "https://127.0.0.1:6443".into(),
            tls: TlsFiles::default(),
            listen: "10.96.0.10:53".into(),
            publish: true,
            domain: "cluster.local".into(),
            upstream: Vec::new(),
            resolv_conf: "/etc/resolv.conf".into(),
        }
    }
}

impl Config {
    /// Where we listen.
    ///
    /// # Errors
    /// Says what the text should be.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        self.listen.parse().with_context(|| {
            format!("listen: {:?} is no address and port such as 10.96.0.10:53", self.listen)
        })
    }

    /// The servers that other names are asked of, never ourselves.
    ///
    /// # Errors
    /// When one of `upstream` cannot be read.
    pub fn upstreams(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let own = self.address()?;
        let mut found = Vec::new();
        for text in &self.upstream {
            found.push(server(text).with_context(|| format!("upstream: {text:?} is no address"))?);
        }
        if self.upstream.is_empty() && !self.resolv_conf.is_empty() {
            found = match std::fs::read_to_string(&self.resolv_conf) {
                Ok(text) => servers(&text),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
                Err(error) => {
                    return Err(error).with_context(|| format!("read {}", self.resolv_conf));
                }
            };
        }
        found.retain(|server| {
            let same_address =
                server.ip() == own.ip() || (own.ip().is_unspecified() && server.ip().is_loopback());
            !(same_address && server.port() == own.port())
        });
        Ok(found)
    }
}

fn server(text: &str) -> Option<SocketAddr> {
    const PORT: u16 = 53;
    let address = text.parse().map(|ip| SocketAddr::new(ip, PORT));
    address.or_else(|_| text.parse()).ok()
}

/// The servers that a `resolv.conf` names.
fn servers(text: &str) -> Vec<SocketAddr> {
    let lines = text.lines().map(str::split_whitespace);
    lines
        .filter_map(
            |mut words| {
                if words.next() == Some("nameserver") { server(words.next()?) } else { None }
            },
        )
        .collect()
}

impl daemon::Config for Config {
    fn check(&mut self) -> anyhow::Result<()> {
        let ip = self.address()?.ip();
        let special = ip.is_unspecified() || ip.is_loopback();
        anyhow::ensure!(
            !(self.publish && special),
            "publish: pods cannot reach {ip}; listen at an address of the Services' range, or set publish=false"
        );
        self.upstreams()?;
        anyhow::ensure!(!self.domain.trim_matches('.').is_empty(), "domain: must not be empty");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_from_resolv_conf() {
        let text = "# one\nsearch a b\nnameserver 192.0.2.1\nnameserver fd00::1\nnameserver x\n";
        let found: Vec<String> = servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[fd00::1]:53"]);
    }

    #[test]
    fn we_do_not_ask_ourselves() {
        let config = Config {
            listen: "0.0.0.0:53".into(),
            upstream: vec!["127.0.0.1".into(), "192.0.2.1:5353".into()],
            ..Config::default()
        };
        assert_eq!(config.upstreams().unwrap(), ["192.0.2.1:5353".parse().unwrap()]);
    }

    #[test]
    fn a_bad_address_is_named() {
        for (listen, key) in [("here", "listen:"), ("127.0.0.1:53", "publish:")] {
            let mut config = Config { listen: listen.into(), ..Config::default() };
            let error = daemon::Config::check(&mut config).unwrap_err();
            assert!(error.to_string().starts_with(key), "{error}");
        }
    }
}
