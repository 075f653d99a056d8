//! From HTTP to a stream of bytes or messages: WebSocket, and SPDY/3.1 for clients older than it.

use std::pin::Pin;
use std::task::{Context, Poll};

use api::error::ApiError;
use bytes::{Buf as _, Bytes};
use futures::{Sink as _, Stream as _};
use http::request::Parts;
use http::{HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{HttpResponse, full};

/// Clients send some 32 KiB at a time.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";

pub(crate) type Io = TokioIo<hyper::upgrade::Upgraded>;
pub(crate) type Socket = WebSocketStream<Io>;

/// How a client wants to go on, and by which protocol.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Door {
    WebSocket { key: String, protocol: &'static str },
    Spdy { protocol: &'static str },
}

/// Reads the wish from a request's headers. The protocols are in the order of our preference.
pub(crate) fn door(
    parts: &Parts,
    websocket: &[&'static str],
    spdy: &[&'static str],
) -> Result<Door, ApiError> {
    let text = |name: &str| {
        let values = parts.headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
        values.collect::<Vec<_>>().join(",")
    };
    let choose = |served: &[&'static str], offered: &str| {
        let found = served.iter().find(|p| offered.split(',').any(|o| o.trim() == **p));
        found.copied().ok_or_else(|| {
            let offered: Vec<&str> = offered.split(',').map(str::trim).collect();
            ApiError::BadRequest(format!(
                "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, \
                 server accepts {served:?}"
            ))
        })
    };
    let upgrade = text("upgrade").to_ascii_lowercase();
    let key = text("sec-websocket-key");
    match upgrade.as_str() {
        "websocket" if !key.is_empty() => {
            let protocol = choose(websocket, &text("sec-websocket-protocol"))?;
            Ok(Door::WebSocket { key, protocol })
        }
        "spdy/3.1" => Ok(Door::Spdy { protocol: choose(spdy, &text(STREAM_PROTOCOL))? }),
        _ => Err(ApiError::BadRequest("Upgrade request required".into())),
    }
}

/// The promise of an upgraded connection.
pub(crate) fn promised(parts: &mut Parts) -> Result<OnUpgrade, ApiError> {
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    upgrade.ok_or_else(|| ApiError::BadRequest("this connection cannot be upgraded".into()))
}

/// The connection once it is upgraded; a client that goes away before is of no further interest.
pub(crate) async fn upgraded(upgrade: OnUpgrade) -> Option<Io> {
    match upgrade.await {
        Ok(upgraded) => Some(TokioIo::new(upgraded)),
        Err(error) => {
            tracing::debug!(%error, "upgrade failed");
            None
        }
    }
}

pub(crate) async fn socket(io: Io) -> Socket {
    WebSocketStream::from_raw_socket(io, Role::Server, Some(websocket_config())).await
}

/// How much a client may have under way in one message.
pub(crate) fn websocket_config() -> WebSocketConfig {
    let bytes = Some(MESSAGE_BYTES_MAX);
    WebSocketConfig::default().max_message_size(bytes).max_frame_size(bytes)
}

impl Door {
    /// The answer that switches protocols.
    pub(crate) fn response(&self) -> HttpResponse {
        let mut response = full(StatusCode::SWITCHING_PROTOCOLS, "text/plain", Bytes::new());
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_TYPE);
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        match self {
            Self::WebSocket { key, protocol } => {
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                let protocol = HeaderValue::from_static(protocol);
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
                if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
                    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
                }
            }
            Self::Spdy { protocol } => {
                headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
                headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
            }
        }
        response
    }
}

/// The bytes of a WebSocket's binary messages, as one stream.
pub(crate) struct Tunnel {
    socket: Socket,
    /// What is left of the message read last.
    left: Bytes,
}

impl Tunnel {
    pub(crate) fn new(socket: Socket) -> Self {
        Self { socket, left: Bytes::new() }
    }
}

/// A connection that was closed, in whatever way, is at its end.
fn ended(error: Error) -> std::io::Error {
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => std::io::ErrorKind::BrokenPipe.into(),
        Error::Io(error) => error,
        error => std::io::Error::other(error),
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        while self.left.is_empty() {
            match std::task::ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                None | Some(Ok(Message::Close(_))) => return Poll::Ready(Ok(())),
                Some(Ok(Message::Binary(data))) => self.left = data,
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(ended(error))),
            }
        }
        let count = self.left.len().min(into.remaining());
        into.put_slice(&self.left[..count]);
        self.left.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        std::task::ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(ended)?;
        let message = Message::Binary(Bytes::copy_from_slice(bytes));
        Pin::new(&mut self.socket).start_send(message).map_err(ended)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(ended)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(headers: &[(&'static str, &'static str)]) -> Result<Door, u16> {
        let mut request = http::Request::builder();
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let parts = request.body(()).unwrap().into_parts().0;
        door(&parts, &["v5", "v4"], &["v4"]).map_err(|error| error.status().0)
    }

    #[test]
    fn the_best_protocol_that_both_know_is_spoken() {
        let key = ("sec-websocket-key", "k");
        let socket = [("upgrade", "websocket"), key, ("sec-websocket-protocol", "v4, v5")];
        assert_eq!(asked(&socket), Ok(Door::WebSocket { key: "k".into(), protocol: "v5" }));
        let (stream, old) = (STREAM_PROTOCOL, ("upgrade", "SPDY/3.1"));
        let spdy = [old, (stream, "v9"), (stream, "v4")];
        assert_eq!(asked(&spdy), Ok(Door::Spdy { protocol: "v4" }));
        assert_eq!(asked(&[old, (stream, "v1")]), Err(400));
        assert_eq!(asked(&[]), Err(400));
        assert_eq!(asked(&[("upgrade", "websocket")]), Err(400));
    }
}
