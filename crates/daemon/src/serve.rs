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

use crate::authority::Mended;
use crate::context::Context;
use crate::gathered::Gathered;
use crate::tls::{PeerCertificates, PeerNamed};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be without a request, and a request without the end of its head: as long as upstream
/// keeps idle connections, on which clients rely who come back.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams that one HTTP/2 connection may have open.
const STREAMS_MAX: u32 = 10_000;

/// What a client may send ahead on one stream, and on all of a connection.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// What waits on one stream for a client that reads slowly.
const STREAM_SEND_BYTES_MAX: usize = 128 << 10;
/// What is kept of an HTTP/1.1 request whose headers are not all there.
const HEADER_BYTES_MAX: usize = 64 << 10;

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
/// Requests carry [`PeerAddress`], [`PeerCertificates`] and [`PeerNamed`] as extensions.
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
    let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
        .await
        .context("TLS handshake took too long")?;
    let stream = match shaken {
        Ok(stream) => stream,
        // Who only looks whether the port is open says nothing and goes.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
        Err(error) => {
            tracing::info!(%peer, %error, "TLS handshake failed");
            return Ok(());
        }
    };
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
    let named = PeerNamed::default();
    let service = service.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(PeerAddress(peer));
        request.extensions_mut().insert(certificates.clone());
        request.extensions_mut().insert(named.clone());
        request
    });
    let service = TowerToHyperService::new(service);
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(STREAM_SEND_BYTES_MAX)
        .keep_alive_interval(Some(Duration::from_secs(30)));
    let served = builder
        .serve_connection_with_upgrades(TokioIo::new(Gathered::new(Mended::new(io))), service);
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// A call of method POST for `/`, whose last header is `authority` as it is on the wire.
    fn call(stream: u8, authority: &[u8]) -> Vec<u8> {
        let length = u8::try_from(3 + authority.len()).unwrap();
        let ends = 0x4 | 0x1;
        let head = [0, 0, length, 1, ends, 0, 0, 0, stream, 0x83, 0x86, 0x84];
        [&head[..], authority].concat()
    }

    #[tokio::test]
    async fn a_call_that_names_a_whole_url_as_its_authority_is_answered() {
        let ctx = Context::new(CancellationToken::new());
        let answer = |request: Request<Incoming>| async move {
            let authority = request.uri().authority().map(ToString::to_string);
            Ok::<_, Infallible>(Response::new(authority.unwrap_or_default()))
        };
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let service = tower::service_fn(answer);
        let served = http(server, peer, PeerCertificates::default(), service, ctx.clone());
        let asked = async {
            let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
            let literal = [&[0x41, 9][..], b"http://a1"].concat();
            let sent = [
                &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
                &settings,
                &call(1, &literal),
                // The first entry of the table that both ends keep.
                &call(3, &[0x80 | 62]),
            ];
            client.write_all(&sent.concat()).await.unwrap();
            let mut bodies = Vec::new();
            while bodies.len() < 2 {
                let mut head = [0; 9];
                client.read_exact(&mut head).await.unwrap();
                let mut body = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
                client.read_exact(&mut body).await.unwrap();
                assert_ne!(head[3], 3, "the call was reset");
                if head[3] == 0 {
                    bodies.push(String::from_utf8(body).unwrap());
                }
            }
            drop(client);
            bodies
        };
        let (_, bodies) = tokio::join!(served, asked);
        assert_eq!(bodies, ["http---a1", "http---a1"]);
    }
}
