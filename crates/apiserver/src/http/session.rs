//! Exec and attach: Kubernetes' remote command protocol over WebSocket (`v5.channel.k8s.io`, KEP-4006, and v4), where
//! each message begins with the number of its channel, and over SPDY's streams for clients older than that.

use api::error::ApiError;
use api::object::{Map, Value};
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::request::Parts;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use wire::apiserver::exec_input::{Input, Resize, Start};
use wire::apiserver::exec_output::Output;
use wire::apiserver::{ExecInput, ExecOutput};

use super::HttpResponse;
use super::query::Query;
use super::spdy::{self, Stream};
use super::upgrade::{self, Door, Socket};
use crate::nodes::Agent;
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
/// How long a client may take to open its streams.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest message about a terminal's size.
const RESIZE_BYTES_MAX: usize = 4 << 10;
const WEBSOCKET: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
const SPDY: [&str; 1] = ["v4.channel.k8s.io"];

/// A command, or a container to attach to, and the agent that has it.
struct Remote {
    agent: Agent,
    start: Start,
    exec: bool,
}

/// Upgrades the connection and connects it with the agent.
pub(crate) async fn answer(
    api: &Api,
    ctx: &daemon::Context,
    parts: &mut Parts,
    request: &Request,
    query: &Query,
) -> Result<HttpResponse, ApiError> {
    let place = api.place(request, Some(&query.text("container"))).await?;
    let door = upgrade::door(parts, &WEBSOCKET, &SPDY)?;
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
    let remote = Remote { agent: api.nodes.client(&place.node)?, start, exec };
    let promised = upgrade::promised(parts)?;
    let response = door.response();
    ctx.tasks.job(async move {
        let Some(io) = upgrade::upgraded(promised).await else { return };
        match door {
            Door::WebSocket { .. } => websocket(upgrade::socket(io).await, remote).await,
            Door::Spdy { .. } => {
                if let Err(error) = spdy::serve(io, |streams| lanes(remote, streams)).await {
                    tracing::debug!(%error, "session ended");
                }
            }
        }
    });
    Ok(response)
}

impl Remote {
    /// Starts it; what is sent becomes its input.
    async fn run(
        mut self,
    ) -> Result<(mpsc::Sender<ExecInput>, tonic::Streaming<ExecOutput>), tonic::Status> {
        let (input, inputs) = mpsc::channel(MESSAGES_QUEUED);
        let first = futures::stream::iter([message(Input::Start(self.start))]);
        let stream = first.chain(ReceiverStream::new(inputs));
        let outputs = if self.exec {
            self.agent.exec(stream).await?
        } else {
            self.agent.attach(stream).await?
        };
        Ok((input, outputs.into_inner()))
    }
}

fn message(input: Input) -> ExecInput {
    ExecInput { input: Some(input) }
}

/// The next piece of output as its channel, data, and whether it is the last.
async fn next(outputs: &mut tonic::Streaming<ExecOutput>) -> (u8, Bytes, bool) {
    loop {
        return match outputs.next().await {
            Some(Ok(ExecOutput { output: None })) => continue,
            Some(Ok(ExecOutput { output: Some(Output::Stdout(data)) })) => (STDOUT, data, false),
            Some(Ok(ExecOutput { output: Some(Output::Stderr(data)) })) => (STDERR, data, false),
            Some(Ok(ExecOutput { output: Some(Output::ExitCode(code)) })) => {
                (ERROR, exit_status(code).into(), true)
            }
            Some(Err(status)) => (ERROR, failure(status.message()).into(), true),
            None => (ERROR, exit_status(0).into(), true),
        };
    }
}

/// Moves messages both ways until the command ends or the client goes.
async fn websocket(socket: Socket, remote: Remote) {
    let (mut send, mut receive) = socket.split();
    // Clients expect the upgrade first, and then to hear on the error channel what went wrong.
    let (input, mut outputs) = match remote.run().await {
        Ok(started) => started,
        Err(status) => {
            let said = [&[ERROR], failure(status.message()).as_slice()].concat();
            // The client may have gone already.
            let _gone = send.send(Message::Binary(said.into())).await;
            let _gone = send.send(goodbye()).await;
            return;
        }
    };
    let mut input = Some(input);
    loop {
        tokio::select! {
            received = receive.next() => {
                let Some(Ok(received)) = received else { return };
                if matches!(received, Message::Close(_)) {
                    return;
                }
                if let (Some(sender), Some(next)) = (&input, from_client(&received))
                    && sender.send(message(next)).await.is_err()
                {
                    input = None;
                }
            }
            (channel, data, last) = next(&mut outputs) => {
                let piece = [&[channel], data.as_ref()].concat();
                if send.send(Message::Binary(piece.into())).await.is_err() {
                    return;
                }
                if last {
                    // The client may have closed first.
                    let _gone = send.send(goodbye()).await;
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

/// What a message of a client means, if anything.
pub(crate) fn from_client(message: &Message) -> Option<Input> {
    let data: Bytes = match message {
        Message::Binary(data) => data.clone(),
        Message::Text(text) => Bytes::from(Utf8Bytes::clone(text).as_str().to_owned()),
        _ => return None,
    };
    let (channel, data) = (*data.first()?, data.slice(1..));
    match channel {
        STDIN => Some(Input::Stdin(data)),
        RESIZE => resize(&data),
        CLOSE if data.first() == Some(&STDIN) => Some(Input::StdinClosed(true)),
        _ => None,
    }
}

fn resize(data: &[u8]) -> Option<Input> {
    let size = api::codec::json::parse(data).ok()?;
    let side = |key: &str| size.int_at(&[key]).and_then(|n| u32::try_from(n).ok());
    Some(Input::Resize(Resize { width: side("Width")?, height: side("Height")? }))
}

/// Waits for the client's streams and moves their data both ways until the command ends.
async fn lanes(remote: Remote, mut opened: mpsc::Receiver<Stream>) {
    let start = &remote.start;
    let wanted: Vec<&str> = [
        ("error", true),
        ("stdin", start.stdin),
        ("stdout", start.stdout),
        ("stderr", start.stderr && !start.tty),
        ("resize", start.tty),
    ]
    .into_iter()
    .filter_map(|(name, wanted)| wanted.then_some(name))
    .collect();
    let mut streams: Vec<Stream> = Vec::new();
    let has = |streams: &[Stream], name: &str| {
        streams.iter().any(|stream| stream.header("streamtype") == name)
    };
    while !wanted.iter().all(|name| has(&streams, name)) {
        match tokio::time::timeout(STREAMS_TIMEOUT, opened.recv()).await {
            Ok(Some(stream)) => streams.push(stream),
            Ok(None) | Err(_) => return,
        }
    }
    let out: Vec<(String, u32)> =
        streams.iter().map(|s| (s.header("streamtype").to_owned(), s.id)).collect();
    let Some(frames) = streams.first().map(|stream| stream.frames.clone()) else { return };
    let id = |name: &str| out.iter().find(|(kind, _)| kind == name).map(|(_, id)| *id);
    let working = async {
        match remote.run().await {
            Err(status) => send(&frames, id("error"), &failure(status.message())).await,
            Ok((input, mut outputs)) => {
                let reading = streams.into_iter().map(|stream| pass(stream, input.clone()));
                let reading = futures::future::join_all(reading);
                // The input stays open until the end: its end would be the session's.
                let writing = async {
                    loop {
                        let (channel, data, last) = next(&mut outputs).await;
                        let name = match channel {
                            STDOUT => "stdout",
                            STDERR => "stderr",
                            _ => "error",
                        };
                        send(&frames, id(name), &data).await;
                        if last {
                            return;
                        }
                    }
                };
                let reading = async {
                    reading.await;
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = writing => {}
                    () = reading => {}
                }
                drop(input);
            }
        }
    };
    working.await;
    for (_, id) in &out {
        // The client may have gone.
        let _gone = frames.send(spdy::data(*id, &[], true)).await;
    }
}

async fn send(frames: &mpsc::Sender<Vec<u8>>, stream: Option<u32>, data: &[u8]) {
    if let Some(id) = stream {
        // The client may have gone; then the session ends by itself.
        let _gone = frames.send(spdy::data(id, data, false)).await;
    }
}

/// Passes what a stream carries on to the command.
async fn pass(mut stream: Stream, input: mpsc::Sender<ExecInput>) {
    let resizes = stream.header("streamtype") == "resize";
    if !resizes && stream.header("streamtype") != "stdin" {
        return;
    }
    let mut line = Vec::new();
    while let Some(data) = stream.input.recv().await {
        if !resizes {
            if input.send(message(Input::Stdin(data))).await.is_err() {
                return;
            }
            continue;
        }
        // One JSON value on each line, however they are cut into frames.
        line.extend_from_slice(&data);
        while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            let rest = line.split_off(end + 1);
            let size = resize(&std::mem::replace(&mut line, rest));
            if let Some(size) = size
                && input.send(message(size)).await.is_err()
            {
                return;
            }
        }
        if line.len() > RESIZE_BYTES_MAX {
            return;
        }
    }
    if !resizes {
        // The command may have ended.
        let _ended = input.send(message(Input::StdinClosed(true))).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_of_a_client_mean_input() {
        let read = |bytes: &'static [u8]| from_client(&Message::Binary(Bytes::from_static(bytes)));
        assert_eq!(read(b"\0ab"), Some(Input::Stdin(Bytes::from_static(b"ab"))));
        let size = Resize { width: 80, height: 24 };
        assert_eq!(read(b"\x04{\"Width\":80,\"Height\":24}"), Some(Input::Resize(size)));
        assert_eq!(read(b"\xff\0"), Some(Input::StdinClosed(true)));
        for nothing in [&b""[..], b"\x01x", b"\x04{", b"\x04{\"Width\":-1,\"Height\":2}", b"\xff"] {
            assert_eq!(read(nothing), None, "{nothing:?}");
        }
    }

    #[test]
    fn the_exit_code_is_in_the_status() {
        let text = |code| String::from_utf8(exit_status(code)).unwrap();
        assert!(text(0).contains(r#""status":"Success""#));
        assert!(
            text(3).contains(r#""causes":[{"message":"3","reason":"ExitCode"}]"#),
            "{}",
            text(3)
        );
    }
}
