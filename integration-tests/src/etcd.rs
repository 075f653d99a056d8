//! A real etcd, to compare with or to learn from, and a store beside it. Both are alone and end when dropped.
#![allow(clippy::disallowed_methods)] // of tests only

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;
use wire::etcdserverpb::RangeRequest;
use wire::etcdserverpb::kv_client::KvClient;

use crate::members::soon;
use crate::program;

/// Whether this machine has etcd and etcdctl.
#[must_use]
pub fn is_here() -> bool {
    let runs = |name: &str, word: &str| Command::new(name).arg(word).output().is_ok();
    runs("etcd", "--version") && runs("etcdctl", "version")
}

/// A process that is killed when dropped.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Free ports of the loopback interface.
///
/// # Errors
/// When none can be had.
pub fn ports<const COUNT: usize>() -> anyhow::Result<[u16; COUNT]> {
    // All are held at the same time, so that no port comes twice.
    let mut held = Vec::new();
    let mut ports = [0; COUNT];
    for port in &mut ports {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}

/// Starts an etcd with its data below `dir`, and says where it is once it answers.
///
/// # Errors
/// When it does not.
pub async fn etcd(dir: &Path) -> anyhow::Result<(Running, String)> {
    let [client, peer] = ports()?;
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let child = Command::new("etcd")
        .arg("--data-dir")
        .arg(dir.join("etcd"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(dir.join("etcd.log"))?)
        .spawn()
        .context("etcd")?;
    let running = Running(child);
    soon("etcd answers", async || answers(&client).await).await?;
    Ok((running, client))
}

/// Starts a store with a setting that says where its data is, and says where it will be. Its log is `store.log` in `dir`.
///
/// # Errors
/// When it cannot be started.
pub fn store(dir: &Path, data: &str) -> anyhow::Result<(Running, String)> {
    let [port] = ports()?;
    let listen = format!("client.listen=127.0.0.1:{port}");
    let child = Command::new(program("ironclad-store")?)
        .args(["--set", data, "--set", &listen])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(dir.join("store.log"))?)
        .spawn()?;
    Ok((Running(child), format!("http://127.0.0.1:{port}")))
}

/// Whether a server answers a read.
///
/// # Errors
/// When it does not.
pub async fn answers(endpoint: &str) -> anyhow::Result<()> {
    let mut client = KvClient::new(daemon::channel::connect(endpoint, None)?);
    client.range(RangeRequest { key: "x".into(), ..RangeRequest::default() }).await?;
    Ok(())
}
