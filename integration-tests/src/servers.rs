//! API servers over one store, as processes of their own, and a REST client that can also behave badly.
#![allow(clippy::disallowed_methods)] // of tests only

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::members::soon;
use crate::{machine, program};

/// How long a client waits for an answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// What a client of these takes on one stream before it reads: the least there is by default.
const WINDOW_BYTES: u32 = 65_535;

/// A store and some API servers below one directory; killed when dropped.
pub struct Servers {
    dir: tempfile::TempDir,
    /// The store's port for clients and for members, then one for each server.
    ports: Vec<u16>,
    store: Option<Child>,
    servers: Vec<Option<Child>>,
    /// What else the servers are told, as `key=value`.
    pub settings: Vec<String>,
}

impl Servers {
    /// Certificates and places for so many servers, none of which runs yet.
    ///
    /// # Errors
    /// When no port or directory can be had.
    pub fn prepare(count: usize) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let pki = dir.path().join("pki").display().to_string();
        machine::output(&program("ironclad-pki")?.display().to_string(), &[&pki])?;
        // All are held at the same time, so that no port comes twice.
        let held: Vec<_> = (0..count + 2)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0"))
            .collect::<Result<_, _>>()?;
        let ports: Vec<u16> =
            held.iter().map(|l| Ok(l.local_addr()?.port())).collect::<std::io::Result<_>>()?;
        let servers = (0..count).map(|_| None).collect();
        Ok(Self { dir, ports, store: None, servers, settings: Vec::new() })
    }

    /// The same, with all of them started and ready.
    ///
    /// # Errors
    /// When one does not come up.
    pub async fn start(count: usize) -> anyhow::Result<Self> {
        let mut servers = Self::prepare(count)?;
        servers.start_store()?;
        for at in 0..count {
            servers.start_server(at)?;
            servers.ready(at).await?;
        }
        Ok(servers)
    }

    fn spawn(&self, daemon: &str, name: &str, settings: &[String]) -> anyhow::Result<Child> {
        let log = self.dir.path().join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(log)?;
        let child = Command::new(program(daemon)?)
            .args(settings.iter().flat_map(|setting| ["--set", setting.as_str()]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(child)
    }

    /// Starts the store, for the first time or again.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_store(&mut self) -> anyhow::Result<()> {
        let settings = [
            "name=store".to_owned(),
            format!("data_dir={}", self.dir.path().join("data").display()),
            format!("client.listen=127.0.0.1:{}", self.ports[0]),
            format!("peer.listen=127.0.0.1:{}", self.ports[1]),
            format!("initial_cluster=store=http://127.0.0.1:{}", self.ports[1]),
        ];
        self.store = Some(self.spawn("ironclad-store", "store", &settings)?);
        Ok(())
    }

    /// Starts a server, for the first time or again.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_server(&mut self, at: usize) -> anyhow::Result<()> {
        let pki = |file: &str| self.dir.path().join("pki").join(file).display().to_string();
        let mut settings = vec![
            format!("listen={}", self.address(at)),
            format!("store.endpoints=http://127.0.0.1:{}", self.ports[0]),
            format!("tokens.key={}", pki("sa.key")),
        ];
        for side in ["tls", "node"] {
            settings.push(format!("{side}.ca={}", pki("ca.crt")));
            settings.push(format!("{side}.cert={}", pki("apiserver.crt")));
            settings.push(format!("{side}.key={}", pki("apiserver.key")));
        }
        settings.extend(self.settings.iter().cloned());
        let child = self.spawn("ironclad-apiserver", &format!("server{at}"), &settings)?;
        self.servers[at] = Some(child);
        Ok(())
    }

    /// Waits until a server is ready.
    ///
    /// # Errors
    /// With what it said, when it does not become so.
    pub async fn ready(&self, at: usize) -> anyhow::Result<()> {
        let ready = async || {
            let (code, _) = self.rest(at).await?.ask(Method::GET, "/readyz", "").await?;
            ensure!(code == 200, "{code}");
            Ok(())
        };
        let log = || self.log(&format!("server{at}")).unwrap_or_default();
        soon("the server is ready", ready).await.with_context(log)
    }

    /// Kills the store as a power cut would.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_store(&mut self) -> anyhow::Result<()> {
        end(self.store.take())
    }

    /// Kills a server as a power cut would.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_server(&mut self, at: usize) -> anyhow::Result<()> {
        end(self.servers[at].take())
    }

    /// Where a server listens.
    #[must_use]
    pub fn address(&self, at: usize) -> String {
        format!("127.0.0.1:{}", self.ports[2 + at])
    }

    /// The memory that a server has.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resident_mib(&self, at: usize) -> anyhow::Result<u64> {
        let pid = self.servers[at].as_ref().context("it does not run")?.id();
        crate::resident_mib(pid)
    }

    /// What a daemon said: `store`, `server0`, `server1` ….
    ///
    /// # Errors
    /// When it never ran.
    pub fn log(&self, name: &str) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.dir.path().join(format!("{name}.log")))?)
    }

    /// How to reach a server as the administrator.
    ///
    /// # Errors
    /// When the certificates cannot be used.
    pub fn target(&self, at: usize, alpn: &str) -> anyhow::Result<Target> {
        Target::new(&self.address(at), &self.dir.path().join("pki"), "admin", alpn)
    }

    /// A connection of the administrator to a server.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn rest(&self, at: usize) -> anyhow::Result<Rest> {
        self.target(at, "h2")?.rest().await
    }
}

fn end(child: Option<Child>) -> anyhow::Result<()> {
    let mut child = child.context("it does not run")?;
    child.kill()?;
    child.wait()?;
    Ok(())
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in self.servers.iter_mut().chain([&mut self.store]) {
            // Whoever has ended is gone already.
            let _ended = child.take().map(|child| end(Some(child)));
        }
    }
}

/// Where a server is, and as whom one comes.
#[derive(Clone)]
pub struct Target {
    address: String,
    tls: TlsConnector,
}

impl Target {
    /// An address, and the certificate of this name below `pki` to show there.
    ///
    /// # Errors
    /// When the certificates cannot be used.
    pub fn new(address: &str, pki: &Path, name: &str, alpn: &str) -> anyhow::Result<Self> {
        daemon::tls::install_provider();
        let file = |name: &str| std::fs::read(pki.join(name));
        let mut roots = rustls::RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(&file("ca.crt")?) {
            roots.add(authority?)?;
        }
        let chain = file(&format!("{name}.crt"))?;
        let chain = CertificateDer::pem_slice_iter(&chain).collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&file(&format!("{name}.key"))?)?;
        let mut config = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        Ok(Self { address: address.to_owned(), tls: Arc::new(config).into() })
    }

    /// A connection on which nothing has been said.
    ///
    /// # Errors
    /// When the server does not take it.
    pub async fn dial(&self) -> anyhow::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(&self.address).await?;
        Ok(self.tls.connect(ServerName::try_from("127.0.0.1")?, tcp).await?)
    }

    /// A connection for requests.
    ///
    /// # Errors
    /// When the server does not take it.
    pub async fn rest(&self) -> anyhow::Result<Rest> {
        let made = async {
            let mut builder = Builder::new(TokioExecutor::new());
            builder.initial_stream_window_size(WINDOW_BYTES);
            let (link, connection) = builder.handshake(TokioIo::new(self.dial().await?)).await?;
            // Its end is seen by whoever asks next.
            tokio::spawn(connection);
            Ok(Rest { address: self.address.clone(), link })
        };
        tokio::time::timeout(ANSWER_TIMEOUT, made).await.context("no connection in time")?
    }
}

/// A connection to a server.
#[derive(Clone)]
pub struct Rest {
    address: String,
    link: SendRequest<Full<Bytes>>,
}

impl Rest {
    /// Sends a request; the answer's body is still to be read.
    ///
    /// # Errors
    /// When no answer begins in time.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Response<Incoming>> {
        let content = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.address))
            .header("content-type", content)
            .body(Full::new(body.into()))?;
        let mut link = self.link.clone();
        let answer = async {
            link.ready().await?;
            link.send_request(request).await
        };
        Ok(tokio::time::timeout(ANSWER_TIMEOUT, answer).await.context("no answer in time")??)
    }

    /// Sends a request and reads the answer: its code, and its body if that is JSON.
    ///
    /// # Errors
    /// When there is no answer in time.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<(u16, Value)> {
        let answer = self.open(method, path, body).await?;
        let code = answer.status().as_u16();
        let body = tokio::time::timeout(ANSWER_TIMEOUT, answer.into_body().collect());
        let body = body.await.context("half an answer")??.to_bytes();
        Ok((code, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }
}

/// The events of a watch, one by one.
pub struct Events {
    body: Incoming,
    read: Vec<u8>,
}

impl Events {
    /// Begins a watch; its code if that is not 200.
    ///
    /// # Errors
    /// When no answer begins in time.
    pub async fn watch(rest: &Rest, path: &str) -> anyhow::Result<Self> {
        let answer = rest.open(Method::GET, path, "").await?;
        ensure!(answer.status() == 200, "{path}: {}", answer.status());
        Ok(Self { body: answer.into_body(), read: Vec::new() })
    }

    /// The next event.
    ///
    /// # Errors
    /// When the watch has ended.
    pub async fn next(&mut self) -> anyhow::Result<Value> {
        loop {
            if let Some(end) = self.read.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            let frame = self.body.frame().await.context("the watch ended")??;
            self.read.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        }
    }
}
