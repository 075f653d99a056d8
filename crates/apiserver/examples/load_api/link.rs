//! Connections to an API server: TLS 1.3, HTTP/2, the administrator's certificate.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;

/// Where the server is, and how one proves who one is.
#[derive(Clone)]
pub(crate) struct Target {
    /// `host:port`.
    address: String,
    tls: TlsConnector,
}

/// Some connections; each request says which it goes by.
pub(crate) struct Links {
    target: Target,
    links: Vec<SendRequest<Full<Bytes>>>,
    // They end with this.
    _drivers: JoinSet<()>,
}

impl Target {
    /// The server at `address`, with the certificates that `ironclad-pki` wrote to `pki`.
    pub(crate) fn new(address: &str, pki: &Path) -> anyhow::Result<Self> {
        daemon::tls::install_provider();
        let file = |name: &str| std::fs::read(pki.join(name)).context(name.to_owned());
        let mut roots = rustls::RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(&file("ca.crt")?) {
            roots.add(authority?)?;
        }
        let chain =
            CertificateDer::pem_slice_iter(&file("admin.crt")?).collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&file("admin.key")?)?;
        let mut config =
            rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
                .with_root_certificates(roots)
                .with_client_auth_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { address: address.to_owned(), tls: Arc::new(config).into() })
    }

    /// As many connections.
    pub(crate) async fn connect(&self, count: usize) -> anyhow::Result<Links> {
        let (mut links, mut drivers) = (Vec::new(), JoinSet::new());
        for _ in 0..count.max(1) {
            let tcp = TcpStream::connect(&self.address).await.context("connect")?;
            tcp.set_nodelay(true)?;
            let host = self.address.rsplit_once(':').context("host:port")?.0.to_owned();
            let tls = self.tls.connect(ServerName::try_from(host)?, tcp).await.context("TLS")?;
            let (link, connection) = Builder::new(TokioExecutor::new())
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .handshake(TokioIo::new(tls))
                .await?;
            drivers.spawn(async move {
                if let Err(error) = connection.await {
                    eprintln!("a connection ended: {error}");
                }
            });
            links.push(link);
        }
        Ok(Links { target: self.clone(), links, _drivers: drivers })
    }
}

impl Links {
    /// Sends a request by connection `by`, counted round; returns with the answer's head.
    pub(crate) async fn open(
        &self,
        by: usize,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        let content = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.target.address))
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, content)
            .body(Full::new(body))?;
        let mut link = self.links[by % self.links.len()].clone();
        link.ready().await?;
        Ok(link.send_request(request).await?)
    }

    /// Sends a request and reads the answer to its end; how long that was. Anything but success is an error.
    pub(crate) async fn ask(
        &self,
        by: usize,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<usize> {
        let mut answer = self.open(by, method, path, body).await?;
        let code = answer.status();
        if !code.is_success() {
            let text = answer.into_body().collect().await?.to_bytes();
            anyhow::bail!("{path}: {code}: {}", String::from_utf8_lossy(&text));
        }
        let mut bytes = 0;
        while let Some(frame) = answer.body_mut().frame().await {
            bytes += frame?.data_ref().map_or(0, Bytes::len);
        }
        Ok(bytes)
    }

    /// Follows a watch: `each` is called with every chunk, until it says that it has enough.
    pub(crate) async fn watch(
        &self,
        by: usize,
        path: &str,
        started: tokio::sync::oneshot::Sender<()>,
        mut each: impl FnMut(&[u8]) -> bool,
    ) -> anyhow::Result<()> {
        let mut answer = self.open(by, Method::GET, path, Bytes::new()).await?;
        ensure!(answer.status().is_success(), "{path}: {}", answer.status());
        // Who started it may have given up.
        let _ = started.send(());
        while let Some(frame) = answer.body_mut().frame().await {
            if let Some(chunk) = frame?.data_ref()
                && !each(chunk)
            {
                return Ok(());
            }
        }
        anyhow::bail!("{path}: the watch ended")
    }
}
