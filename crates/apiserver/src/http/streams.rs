//! Requests that go on to a node's agent: log, exec, attach, port-forward.
//!
//! Exec and attach speak Kubernetes' remote command protocol over WebSocket (`v5.channel.k8s.io`, KEP-4006, and v4):
//! each message begins with the number of its channel.

use std::sync::Arc;

use api::error::ApiError;
use api::object::{Map, Value};
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::request::Parts;
use http::{HeaderValue, StatusCode, header};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use wire::apiserver::exec_input::{Input, Resize, Start};
use wire::apiserver::exec_output::Output;
use wire::apiserver::{ExecInput, ExecOutput, LogsRequest};

use super::path::ResourcePath;
use super::query::Query;
use super::{HttpBody, HttpResponse, full};
use crate::layers::rbac::Attributes;
use crate::nodes::agent_error;
use crate::registry::Api;
use crate::request::Request;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;
/// Messages on their way in one direction of a session.
const MESSAGES_QUEUED: usize = 16;
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

/// Whether a request is answered by a node.
pub(crate) fn is_stream(request: &Request) -> bool {
    request.resource.group.is_empty()
        && request.resource.plural == "pods"
        && matches!(request.subresource.as_str(), "log" | "exec" | "attach" | "portforward")
}

/// Authorizes and answers it.
pub(crate) async fn answer(
    api: Arc<Api>,
    ctx: &daemon::Context,
    parts: &mut Parts,
    _body: HttpBody,
    request: Request,
    _path: &ResourcePath,
    query: &Query,
) -> Result<HttpResponse, ApiError> {
    let verb = if request.subresource == "log" || parts.method == http::Method::GET {
        "get"
    } else {
        "create"
    };
    let ask = Attributes { verb, ..request.attributes() };
    api.authorizer.check(&request.user, &ask)?;
    if request.subresource == "log" {
        return log(&api, &request, query).await;
    }
    if request.subresource == "portforward" {
        return Err(ApiError::Unexpected("port-forward is not served yet".into()));
    }
    session(&api, ctx, parts, &request, query).await
}

async fn log(api: &Api, request: &Request, query: &Query) -> Result<HttpResponse, ApiError> {
    let place = api.place(request, Some(&query.text("container"))).await?;
    let ask = LogsRequest {
        namespace: request.namespace.clone(),
        pod: request.name.clone(),
        uid: place.uid,
        container: place.container,
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        since_seconds: query.int("sinceSeconds")?,
        since_time: query.text("sinceTime"),
        tail_lines: query.int("tailLines")?,
        limit_bytes: query.int("limitBytes")?,
    };
    let mut agent = api.nodes.client(&place.node)?;
    let chunks = agent.logs(ask).await.map_err(|status| agent_error(&status))?.into_inner();
    let frames = chunks.map(|chunk| chunk.map(|chunk| Frame::data(chunk.data)));
    let mut response = http::Response::new(HttpBody::new(StreamBody::new(frames)));
    let text = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    Ok(response)
}

/// Upgrades to WebSocket and connects it with the agent.
async fn session(
    api: &Api,
    ctx: &daemon::Context,
    parts: &mut Parts,
    request: &Request,
    query: &Query,
) -> Result<HttpResponse, ApiError> {
    let (key, protocol) = protocol(parts)?;
    let place = api.place(request, Some(&query.text("container"))).await?;
    let start = Start {
        namespace: request.namespace.clone(),
        pod: request.name.clone(),
        uid: place.uid,
        container: place.container,
        command: query.all("command"),
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        tty: query.flag("tty"),
    };
    let exec = request.subresource == "exec";
    if exec && start.command.is_empty() {
        return Err(ApiError::BadRequest("you must specify at least 1 command".into()));
    }
    let (input, inputs) = mpsc::channel(MESSAGES_QUEUED);
    let first = ExecInput { input: Some(Input::Start(start)) };
    input.send(first).await.map_err(|_| ApiError::Internal("session ended".into()))?;
    let mut agent = api.nodes.client(&place.node)?;
    let stream = ReceiverStream::new(inputs);
    let Some(upgrade) = parts.extensions.remove::<hyper::upgrade::OnUpgrade>() else {
        return Err(ApiError::BadRequest("this connection cannot be upgraded".into()));
    };
    ctx.tasks.job(async move {
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => {
                tracing::debug!(%error, "upgrade failed");
                return;
            }
        };
        let io = TokioIo::new(upgraded);
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        // Clients expect the upgrade first, and then to hear on the error channel what went wrong.
        let outputs = if exec { agent.exec(stream).await } else { agent.attach(stream).await };
        match outputs {
            Ok(outputs) => relay(socket, input, outputs.into_inner()).await,
            Err(status) => {
                let mut message = vec![ERROR];
                message.extend_from_slice(&failure(status.message()));
                // The client may have gone already.
                let _ = socket.send(Message::Binary(message.into())).await;
                let _ = socket.send(goodbye()).await;
            }
        }
    });
    let mut response = full(StatusCode::SWITCHING_PROTOCOLS, "text/plain", Bytes::new());
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    Ok(response)
}

/// The key and the protocol of a WebSocket handshake.
fn protocol(parts: &Parts) -> Result<(String, &'static str), ApiError> {
    let text = |name: header::HeaderName| {
        parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned()
    };
    let key = text(header::SEC_WEBSOCKET_KEY);
    let offered = text(header::SEC_WEBSOCKET_PROTOCOL);
    if !text(header::UPGRADE).eq_ignore_ascii_case("websocket") || key.is_empty() {
        return Err(ApiError::BadRequest(
            "Upgrade request required: exec and attach are served over WebSocket".into(),
        ));
    }
    let protocol = PROTOCOLS.into_iter().find(|p| offered.split(',').any(|o| o.trim() == *p));
    let Some(protocol) = protocol else {
        return Err(ApiError::BadRequest(format!(
            "unable to upgrade: none of the protocols {offered:?} is served, only {PROTOCOLS:?}"
        )));
    };
    Ok((key, protocol))
}

/// Moves messages both ways until the command ends or the client goes.
async fn relay<S>(
    socket: WebSocketStream<S>,
    input: mpsc::Sender<ExecInput>,
    mut outputs: tonic::Streaming<ExecOutput>,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut send, mut receive) = socket.split();
    let mut input = Some(input);
    loop {
        tokio::select! {
            message = receive.next() => match message {
                Some(Ok(message)) => {
                    let (Some(sender), Some(next)) = (&input, from_client(&message)) else {
                        if matches!(message, Message::Close(_)) {
                            return;
                        }
                        continue;
                    };
                    if sender.send(ExecInput { input: Some(next) }).await.is_err() {
                        input = None;
                    }
                }
                Some(Err(_)) | None => return,
            },
            output = outputs.next() => {
                let (channel, data, last) = match output {
                    Some(Ok(ExecOutput { output: Some(output) })) => to_client(output),
                    Some(Ok(ExecOutput { output: None })) => continue,
                    Some(Err(status)) => (ERROR, failure(status.message()), true),
                    None => (ERROR, exit_status(0), true),
                };
                let mut message = Vec::with_capacity(data.len() + 1);
                message.push(channel);
                message.extend_from_slice(&data);
                if send.send(Message::Binary(message.into())).await.is_err() {
                    return;
                }
                if last {
                    // The client may have closed first.
                    let _ = send.send(goodbye()).await;
                    return;
                }
            }
        }
    }
}

/// The end of a session that went as it should; clients take any other code for a failure.
fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() }))
}

fn from_client(message: &Message) -> Option<Input> {
    let data: Bytes = match message {
        Message::Binary(data) => data.clone(),
        Message::Text(text) => Bytes::from(Utf8Bytes::clone(text).as_str().to_owned()),
        _ => return None,
    };
    let (channel, data) = (*data.first()?, data.slice(1..));
    match channel {
        STDIN => Some(Input::Stdin(data)),
        RESIZE => {
            let size = api::codec::json::parse(&data).ok()?;
            let side = |key: &str| size.int_at(&[key]).and_then(|n| u32::try_from(n).ok());
            Some(Input::Resize(Resize { width: side("Width")?, height: side("Height")? }))
        }
        CLOSE if data.first() == Some(&STDIN) => Some(Input::StdinClosed(true)),
        _ => None,
    }
}

fn to_client(output: Output) -> (u8, Vec<u8>, bool) {
    match output {
        Output::Stdout(data) => (STDOUT, data.to_vec(), false),
        Output::Stderr(data) => (STDERR, data.to_vec(), false),
        Output::ExitCode(code) => (ERROR, exit_status(code), true),
    }
}

/// The Status that ends a session.
fn exit_status(code: i32) -> Vec<u8> {
    let mut status = Value::Object(Map::default());
    status.set("metadata", Value::Object(Map::default()));
    if code == 0 {
        status.set("status", "Success");
        return status.to_bytes();
    }
    status.set("status", "Failure");
    status.set("reason", "NonZeroExitCode");
    status
        .set("message", format!("command terminated with non-zero exit code: exit status {code}"));
    let mut cause = Value::Object(Map::default());
    cause.set("reason", "ExitCode");
    cause.set("message", code.to_string());
    status.set_at(&["details", "causes"], Value::Array(vec![cause]));
    status.to_bytes()
}

fn failure(message: &str) -> Vec<u8> {
    let message = format!("error executing command in container: {message}");
    ApiError::Internal(message).to_status().to_bytes()
}
