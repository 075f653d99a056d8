//! How one daemon reaches another: a gRPC transport that is a TLS socket, or a call in memory.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::Context as _;
use http::{Request, Response};
use tonic::body::Body;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceBuilder, ServiceExt};

use crate::tls::ClientTls;

/// The error of a transport.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A call that never reached the other side, or whose answer never came back.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct TransportError(BoxError);

/// A transport for generated gRPC clients, whatever is behind it.
pub type Channel = BoxCloneSyncService<Request<Body>, Response<Body>, TransportError>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the other side has to show that it lives, and how long it may take.
#[derive(Debug, Clone, Copy)]
pub struct Pulse {
    /// From one question to the next.
    pub every: Duration,
    /// From a question to its answer; the connection is given up then.
    pub timeout: Duration,
}

const PULSE: Pulse = Pulse { every: Duration::from_secs(10), timeout: Duration::from_secs(20) };

/// A channel to `url` (`https://host:port`, or `http://` on loopback), made when first used and
/// again whenever it breaks.
///
/// # Errors
/// When the URL or the certificates cannot be used.
pub fn connect(url: &str, tls: Option<&ClientTls>) -> anyhow::Result<Channel> {
    connect_with(url, tls, PULSE)
}

/// As [`connect`], for those who have to notice sooner that nobody is there.
///
/// # Errors
/// When the URL or the certificates cannot be used.
pub fn connect_with(url: &str, tls: Option<&ClientTls>, pulse: Pulse) -> anyhow::Result<Channel> {
    let mut endpoint = Endpoint::from_shared(url.to_owned())
        .with_context(|| format!("endpoint {url:?}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(pulse.every)
        .keep_alive_timeout(pulse.timeout)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    if let Some(tls) = tls {
        let mut config =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(tls.ca.as_bytes()));
        if let Some((cert, key)) = &tls.identity {
            config = config.identity(Identity::from_pem(cert.as_bytes(), key.as_bytes()));
        }
        if let Some(name) = &tls.server_name {
            config = config.domain_name(name.clone());
        }
        endpoint = endpoint.tls_config(config).with_context(|| format!("TLS towards {url}"))?;
    }
    let wrap = |error: tonic::transport::Error| TransportError(error.into());
    let channel = ServiceBuilder::new().map_err(wrap).service(endpoint.connect_lazy());
    Ok(BoxCloneSyncService::new(channel))
}

/// A channel that calls `routes` directly, with `caller` as an extension of every request.
pub fn in_memory<S, E>(routes: S, caller: E) -> Channel
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
    E: Clone + Send + Sync + 'static,
{
    let service = routes
        .map_request(move |mut request: Request<Body>| {
            request.extensions_mut().insert(caller.clone());
            request
        })
        .map_err(|never: Infallible| match never {});
    BoxCloneSyncService::new(service)
}
