//! TLS settings as daemons state them, and the rustls configurations made of them.

use std::any::Any;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, bail};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};

/// Files of one side of a TLS connection. Empty paths mean: not used.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsFiles {
    /// The authority that the other side's certificate must come from.
    pub ca: String,
    /// Our certificate chain.
    pub cert: String,
    /// Its key.
    pub key: String,
}

/// What a client presents and whom it trusts, as PEM text.
#[derive(Debug, Clone)]
pub struct ClientTls {
    /// Authorities.
    pub ca: String,
    /// Certificate chain and key.
    pub identity: Option<(String, String)>,
    /// The name to expect in the server's certificate where it is not the URL's host.
    pub server_name: Option<String>,
}

/// What a server presents, and which clients it takes, as PEM text.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// Certificate chain.
    pub cert: String,
    /// Its key.
    pub key: String,
    /// Authorities of client certificates.
    pub client_ca: Option<String>,
    /// Whether a client without a certificate is turned away at once.
    pub client_required: bool,
}

/// The certificates that the client of this connection proved, leaf first; empty without one.
#[derive(Debug, Clone, Default)]
pub struct PeerCertificates(pub Arc<[CertificateDer<'static>]>);

/// What a service has read from the client's certificates, kept for all requests of the connection, as whose extension it
/// comes. What that is only the service knows.
#[derive(Debug, Clone, Default)]
pub struct PeerNamed(Arc<OnceLock<Box<dyn Any + Send + Sync>>>);

impl PeerNamed {
    /// What is kept, made by `make` at the first request; none if it was of another type then.
    pub fn get_or_make<T: Clone + Send + Sync + 'static>(
        &self,
        make: impl FnOnce() -> T,
    ) -> Option<T> {
        self.0.get_or_init(|| Box::new(make())).downcast_ref().cloned()
    }
}

fn read(path: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(Path::new(path)).with_context(|| format!("read {path}"))
}

impl TlsFiles {
    /// Reads a client's side; `None` where nothing is configured.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn client(&self) -> anyhow::Result<Option<ClientTls>> {
        if self.ca.is_empty() {
            return Ok(None);
        }
        let identity =
            if self.cert.is_empty() { None } else { Some((read(&self.cert)?, read(&self.key)?)) };
        Ok(Some(ClientTls { ca: read(&self.ca)?, identity, server_name: None }))
    }

    /// Reads a server's side; `None` where nothing is configured.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn server(&self) -> anyhow::Result<Option<ServerTls>> {
        if self.cert.is_empty() {
            return Ok(None);
        }
        let client_ca = if self.ca.is_empty() { None } else { Some(read(&self.ca)?) };
        let client_required = client_ca.is_some();
        let (cert, key) = (read(&self.cert)?, read(&self.key)?);
        Ok(Some(ServerTls { cert, key, client_ca, client_required }))
    }
}

/// Makes aws-lc the process's one crypto provider. Harmless when repeated.
pub fn install_provider() {
    // A second daemon in the same process finds it installed.
    let _already = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Makes the crypto provider draw its first random number, before which it measures the machine for some 50 ms. A server that
/// does this beside its other preparations does not keep its first client waiting.
pub fn prepare_random() {
    install_provider();
    let random = rustls::crypto::CryptoProvider::get_default().map(|p| p.secure_random);
    if let Some(Err(error)) = random.map(|random| random.fill(&mut [0; 1])) {
        tracing::warn!(?error, "no random numbers yet");
    }
}

impl ServerTls {
    /// The rustls form, offering HTTP/2 and HTTP/1.1.
    ///
    /// # Errors
    /// When the PEM text holds no usable certificate or key.
    pub fn config(&self) -> anyhow::Result<Arc<ServerConfig>> {
        install_provider();
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(self.cert.as_bytes())
                .collect::<Result<_, _>>()
                .context("server certificate")?;
        if chain.is_empty() {
            bail!("server certificate: no CERTIFICATE block");
        }
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).context("server key")?;
        let builder = ServerConfig::builder();
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                for cert in CertificateDer::pem_slice_iter(ca.as_bytes()) {
                    roots.add(cert.context("client authority")?).context("client authority")?;
                }
                let verifier = WebPkiClientVerifier::builder(Arc::new(roots));
                let verifier =
                    if self.client_required { verifier } else { verifier.allow_unauthenticated() };
                builder.with_client_cert_verifier(verifier.build().context("client authority")?)
            }
        };
        let mut config = builder.with_single_cert(chain, key).context("server certificate")?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}
