//! The accept loop of every listener: TLS, HTTP/1.1 and HTTP/2 on one port, drained at shutdown.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tower::{Service, ServiceExt};

use crate::context::Context;
use crate::tls::PeerCertificates;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams that one HTTP/2 connection may have open.
const STREAMS_MAX: u32 = 10_000;

/// The address of the other end of the connection, as a request extension.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddress(pub SocketAddr);

/// Binds `address`; a plain-text listener is refused outside loopback.
///
/// # Errors
/// When the address is taken, or not loopback and without TLS.
pub async fn bind(address: &str, tls: bool) -> anyhow::Result<TcpListener> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    let local = listener.local_addr()?;
    if !tls && !local.ip().is_loopback() {
        anyhow::bail!("listen on {local}: plain text is for loopback only; configure TLS");
    }
    Ok(listener)
}

/// Serves `service` on `listener` until shutdown, then lets open requests end for a few seconds.
/// Requests carry [`PeerAddress`] and [`PeerCertificates`] as extensions.
///
/// # Errors
/// Never for a single connection; only when the listener itself breaks.
pub async fn serve<S, B>(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    service: S,
    ctx: Context,
) -> anyhow::Result<()>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<crate::channel::BoxError>,
{
    let acceptor = tls.map(TlsAcceptor::from);
    loop {
        let accepted = tokio::select! {
            () = ctx.shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(pair) => pair,
            Err(error) => {
                // Out of descriptors, most likely: give connections time to end.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, service, ctx2) = (acceptor.clone(), service.clone(), ctx.clone());
        ctx.tasks.job(async move {
            if let Err(error) = connection(stream, peer, acceptor, service, ctx2).await {
                tracing::debug!(%peer, error = format!("{error:#}"), "connection ended");
            }
        });
    }
}

async fn connection<S, B>(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    service: S,
    ctx: Context,
) -> anyhow::Result<()>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<crate::channel::BoxError>,
{
    stream.set_nodelay(true)?;
    let Some(acceptor) = acceptor else {
        return http(stream, peer, PeerCertificates::default(), service, ctx).await;
    };
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
        .await
        .context("TLS handshake took too long")?
        .context("TLS handshake")?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificates =
        PeerCertificates(certificates.iter().map(|c| c.clone().into_owned()).collect());
    http(stream, peer, certificates, service, ctx).await
}

async fn http<I, S, B>(
    io: I,
    peer: SocketAddr,
    certificates: PeerCertificates,
    service: S,
    ctx: Context,
) -> anyhow::Result<()>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<crate::channel::BoxError>,
{
    let service = service.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(PeerAddress(peer));
        request.extensions_mut().insert(certificates.clone());
        request
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .adaptive_window(true)
        .keep_alive_interval(Some(Duration::from_secs(30)));
    let served =
        builder.serve_connection_with_upgrades(TokioIo::new(io), TowerToHyperService::new(service));
    let mut served = std::pin::pin!(served);
    tokio::select! {
        end = served.as_mut() => end.map_err(|error| anyhow::anyhow!(error)),
        () = ctx.shutdown.cancelled() => {
            served.as_mut().graceful_shutdown();
            match tokio::time::timeout(DRAIN_TIMEOUT, served).await {
                Ok(end) => end.map_err(|error| anyhow::anyhow!(error)),
                Err(_) => Ok(()), // streams without end, such as watches
            }
        }
    }
}
