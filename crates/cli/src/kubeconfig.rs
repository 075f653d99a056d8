//! Writes the administrator's kubeconfig, and reads it back.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use auth::pki::Pair;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use daemon::tls::ClientTls;
use serde_json::{Value, json};

/// Writes a kubeconfig for `server`, readable by its owner only.
pub(crate) fn write(path: &Path, server: &str, ca: &str, admin: &Pair) -> anyhow::Result<()> {
    let text = |pem: &str| STANDARD.encode(pem);
    // JSON is YAML; kubectl reads both.
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "ironclad",
            "cluster": {"server": server, "certificate-authority-data": text(ca)}
        }],
        "users": [{
            "name": "admin",
            "user": {
                "client-certificate-data": text(&admin.cert),
                "client-key-data": text(&admin.key)
            }
        }],
        "contexts": [{"name": "ironclad", "context": {"cluster": "ironclad", "user": "admin"}}],
        "current-context": "ironclad"
    });
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("write {}", path.display()))?;
    file.write_all(serde_json::to_string_pretty(&config)?.as_bytes())?;
    Ok(())
}

/// Reads a kubeconfig that [`write`] wrote: the server, and how to reach it.
pub(crate) fn read(path: &Path) -> anyhow::Result<(String, ClientTls)> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let config: Value = serde_json::from_str(&text)
        .with_context(|| format!("{} is not one of `ironclad up`'s kubeconfigs", path.display()))?;
    let cluster = &config["clusters"][0]["cluster"];
    let user = &config["users"][0]["user"];
    let pem = |value: &Value| -> anyhow::Result<String> {
        let bytes = STANDARD.decode(value.as_str().unwrap_or_default())?;
        Ok(String::from_utf8(bytes)?)
    };
    let tls = ClientTls {
        ca: pem(&cluster["certificate-authority-data"])?,
        identity: Some((pem(&user["client-certificate-data"])?, pem(&user["client-key-data"])?)),
        server_name: None,
    };
    let server = cluster["server"].as_str().context("kubeconfig: no server")?;
    Ok((server.to_owned(), tls))
}
