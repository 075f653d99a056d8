//! A container's own streams, which belong to the runtime: its streaming server hands them out over WebSocket.
//!
//! Input and output are two sessions, since a WebSocket of the protocol that containerd 1.6 speaks cannot end the
//! input alone: ending the session of the input does.

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use wire::apiserver::exec_input::Input;
use wire::apiserver::exec_output::Output;

use crate::runtime::Runtime;

const PROTOCOL: &str = "v4.channel.k8s.io";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

type Socket = WebSocketStream<TcpStream>;

/// The streams of a running container.
#[derive(Debug)]
pub(crate) struct Attached {
    output: Socket,
    input: Option<Socket>,
    /// Whether the end of the input is the container's as well. Otherwise it is the session's.
    ends_input: bool,
}

impl Attached {
    /// Attaches to a container; to its input where that is wanted and there is one.
    pub(crate) async fn start(runtime: &Runtime, id: &str, stdin: bool) -> anyhow::Result<Self> {
        let (has_input, tty, once) = runtime.terminal(id).await?;
        let output = connect(&runtime.attach(id, tty, false).await?).await?;
        let input = match stdin && has_input {
            true => Some(connect(&runtime.attach(id, tty, true).await?).await?),
            false => None,
        };
        Ok(Self { output, input, ends_input: once && !tty })
    }

    /// The next piece of output; none at the end.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Output>> {
        loop {
            let data = match self.output.next().await {
                None | Some(Ok(Message::Close(_))) => return Ok(None),
                Some(Ok(Message::Binary(data))) => data,
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(error).context("output of a container"),
            };
            match data.first() {
                // An empty message says that the session has begun.
                Some(_) if data.len() == 1 => {}
                Some(&STDOUT) => return Ok(Some(Output::Stdout(data.slice(1..)))),
                Some(&STDERR) => return Ok(Some(Output::Stderr(data.slice(1..)))),
                Some(&ERROR) => return end(&data[1..]).map(|()| None),
                _ => {}
            }
        }
    }

    /// Passes input on; false when the session is over with it.
    pub(crate) async fn pass(&mut self, input: Input) -> anyhow::Result<bool> {
        let (socket, channel, data) = match input {
            Input::Stdin(data) => (self.input.as_mut(), STDIN, data),
            Input::Resize(size) => {
                let text = format!("{{\"Width\":{},\"Height\":{}}}", size.width, size.height);
                (Some(&mut self.output), RESIZE, text.into())
            }
            Input::StdinClosed(_) => {
                let Some(mut input) = self.input.take() else { return Ok(true) };
                input.close(None).await.context("end the input")?;
                return Ok(self.ends_input);
            }
            Input::Start(_) => return Ok(true),
        };
        if let Some(socket) = socket {
            let message = [&[channel], data.as_ref()].concat();
            socket.send(Message::Binary(Bytes::from(message))).await.context("input")?;
        }
        Ok(true)
    }
}

/// What the Status that ends a session says.
fn end(status: &[u8]) -> anyhow::Result<()> {
    let status: serde_json::Value = serde_json::from_slice(status).context("end of a session")?;
    let message = status["message"].as_str().unwrap_or_default();
    ensure!(status["status"] != "Failure", "{message}");
    Ok(())
}

async fn connect(url: &str) -> anyhow::Result<Socket> {
    let address = url.strip_prefix("http://").and_then(|rest| rest.split('/').next());
    let address = address.with_context(|| format!("the runtime's streams are at {url:?}"))?;
    let stream = TcpStream::connect(address).await.context("connect to the runtime's streams")?;
    stream.set_nodelay(true)?;
    let mut request = url.replacen("http://", "ws://", 1).into_client_request()?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    let (socket, _) = tokio_tungstenite::client_async(request, stream)
        .await
        .context("open the runtime's stream")?;
    Ok(socket)
}
