//! Port-forward: connections to ports of a pod, each a pair of streams for data and for what went wrong.
//!
//! The streams are SPDY's, inside a WebSocket as kubectl does it, or bare as it did before; or the channels of a plain
//! WebSocket, two for each port that the query names.

use std::collections::HashMap;
use std::sync::Arc;

use api::error::ApiError;
use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{SinkExt as _, StreamExt as _};
use http::request::Parts;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::tungstenite::Message;
use wire::apiserver::PortForwardInput;
use wire::apiserver::port_forward_input::{Input, Start};

use super::HttpResponse;
use super::query::Query;
use super::spdy::{self, Stream};
use super::upgrade::{self, Door, Socket, Tunnel};
use crate::nodes::{Agent, Place};
use crate::registry::Api;
use crate::request::Request;

const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const WEBSOCKET: [&str; 3] = [TUNNEL, "v4.channel.k8s.io", "portforward.k8s.io"];
const SPDY: [&str; 1] = ["portforward.k8s.io"];
const FRAMES_QUEUED: usize = 16;
/// Ports that one plain WebSocket may name; each needs two channel numbers.
const PORTS_MAX: usize = 100;

/// The pod whose ports are meant, and its node's agent.
#[derive(Clone)]
struct Target {
    agent: Agent,
    namespace: String,
    pod: String,
    uid: String,
}

/// Upgrades the connection and serves it.
pub(crate) async fn answer(
    api: &Arc<Api>,
    ctx: &daemon::Context,
    parts: &mut Parts,
    request: &Request,
    query: &Query,
) -> Result<HttpResponse, ApiError> {
    let Place { node, uid, .. } = api.place(request, None).await?;
    let door = upgrade::door(parts, &WEBSOCKET, &SPDY)?;
    let target = Target {
        agent: api.nodes.client(&node)?,
        namespace: request.namespace.clone(),
        pod: request.name.clone(),
        uid,
    };
    let plain = matches!(&door, Door::WebSocket { protocol, .. } if *protocol != TUNNEL);
    let ports = if plain { ports(query)? } else { Vec::new() };
    let promised = upgrade::promised(parts)?;
    let response = door.response();
    ctx.tasks.job(async move {
        let Some(io) = upgrade::upgraded(promised).await else { return };
        let ended = match door {
            Door::Spdy { .. } => spdy::serve(io, |streams| pairs(target, streams)).await,
            Door::WebSocket { protocol: TUNNEL, .. } => {
                let tunnel = Tunnel::new(upgrade::socket(io).await);
                spdy::serve(tunnel, |streams| pairs(target, streams)).await
            }
            Door::WebSocket { .. } => {
                channels(upgrade::socket(io).await, &ports, &target).await;
                Ok(())
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "port-forward ended");
        }
    });
    Ok(response)
}

pub(crate) fn ports(query: &Query) -> Result<Vec<u16>, ApiError> {
    let texts = query.all("ports");
    let texts: Vec<&str> =
        texts.iter().flat_map(|t| t.split(',')).filter(|t| !t.is_empty()).collect();
    if texts.is_empty() || texts.len() > PORTS_MAX {
        return Err(ApiError::BadRequest(format!(
            "query parameter \"ports\" is required, with at most {PORTS_MAX} ports"
        )));
    }
    texts.into_iter().map(port).collect()
}

fn port(text: &str) -> Result<u16, ApiError> {
    let bad = || ApiError::BadRequest(format!("unable to parse {text:?} as a port"));
    text.parse().ok().filter(|port| *port > 0).ok_or_else(bad)
}

/// Where bytes for one stream of the client go.
struct Out {
    lane: Lane,
    frames: mpsc::Sender<Vec<u8>>,
}

#[derive(Clone, Copy)]
enum Lane {
    Stream(u32),
    Channel(u8),
}

impl Out {
    /// Whether there is still somebody to hear it.
    async fn send(&self, bytes: &[u8]) -> bool {
        let frame = match self.lane {
            Lane::Stream(id) => spdy::data(id, bytes, false),
            Lane::Channel(number) => [&[number], bytes].concat(),
        };
        self.frames.send(frame).await.is_ok()
    }

    /// Ends the stream. A channel has no end of its own.
    async fn end(&self) {
        if let Lane::Stream(id) = self.lane {
            // The client may have gone.
            let _gone = self.frames.send(spdy::data(id, &[], true)).await;
        }
    }
}

impl Stream {
    fn out(&self) -> Out {
        Out { lane: Lane::Stream(self.id), frames: self.frames.clone() }
    }
}

/// Serves pairs of streams with the same request number, until the client opens no more and all have ended.
async fn pairs(target: Target, mut streams: mpsc::Receiver<Stream>) {
    let mut waiting: HashMap<String, Stream> = HashMap::new();
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            stream = streams.recv() => {
                let Some(stream) = stream else { return };
                let request = stream.header("requestid").to_owned();
                match (waiting.remove(&request), stream.header("streamtype")) {
                    (Some(error), "data") if error.header("streamtype") == "error" => {
                        running.push(pair(target.clone(), stream, error));
                    }
                    (Some(data), "error") if data.header("streamtype") == "data" => {
                        running.push(pair(target.clone(), data, stream));
                    }
                    _ => {
                        waiting.insert(request, stream);
                    }
                }
            }
            Some(()) = running.next() => {}
        }
    }
}

async fn pair(target: Target, stream: Stream, error: Stream) {
    let (data, said) = (stream.out(), error.out());
    match port(stream.header("port")) {
        Ok(port) => forward(target, port, stream.input, data, said).await,
        Err(error) => {
            said.send(error.message().as_bytes()).await;
            said.end().await;
            data.end().await;
        }
    }
}

/// One connection to a port, from beginning to end.
async fn forward(target: Target, port: u16, input: mpsc::Receiver<Bytes>, data: Out, error: Out) {
    let (pod, uid) = (target.pod.clone(), target.uid.clone());
    if let Err(status) = connection(target, port, input, &data).await {
        let text =
            format!("error forwarding port {port} to pod {pod}, uid {uid}: {}", status.message());
        error.send(text.as_bytes()).await;
    }
    error.end().await;
    data.end().await;
}

async fn connection(
    mut target: Target,
    port: u16,
    input: mpsc::Receiver<Bytes>,
    data: &Out,
) -> Result<(), tonic::Status> {
    let start = Start {
        namespace: target.namespace,
        pod: target.pod,
        uid: target.uid,
        port: u32::from(port),
    };
    let message = |input| PortForwardInput { input: Some(input) };
    let first = futures::stream::iter([message(Input::Start(start))]);
    let rest = ReceiverStream::new(input).map(move |bytes| message(Input::Data(bytes)));
    // The end of the messages is the end of what the client sends.
    let mut output = target.agent.port_forward(first.chain(rest)).await?.into_inner();
    while let Some(piece) = output.message().await? {
        if !data.send(&piece.data).await {
            return Ok(());
        }
    }
    Ok(())
}

/// A plain WebSocket: channel 2n is the data of port n, 2n+1 its errors; each begins with the port's number.
async fn channels(socket: Socket, ports: &[u16], target: &Target) {
    let (mut send, mut receive) = socket.split();
    let (frames, mut outgoing) = mpsc::channel::<Vec<u8>>(FRAMES_QUEUED);
    let (mut inputs, mut running) = (Vec::new(), FuturesUnordered::new());
    for (number, port) in (0_u8..).step_by(2).zip(ports) {
        let (sender, input) = mpsc::channel(FRAMES_QUEUED);
        let out = |number| Out { lane: Lane::Channel(number), frames: frames.clone() };
        let (data, error) = (out(number), out(number + 1));
        let (target, port) = (target.clone(), *port);
        running.push(async move {
            if data.send(&port.to_le_bytes()).await && error.send(&port.to_le_bytes()).await {
                forward(target, port, input, data, error).await;
            }
        });
        inputs.push(sender);
    }
    drop(frames);
    let reading = async {
        while let Some(Ok(message)) = receive.next().await {
            let data = match message {
                Message::Binary(data) => data,
                Message::Close(_) => return,
                _ => continue,
            };
            let channel = data.first().copied().unwrap_or(u8::MAX);
            if let (0, Some(input)) = (channel % 2, inputs.get(usize::from(channel / 2))) {
                // A connection that has ended takes no more.
                let _ended = input.send(data.slice(1..)).await;
            }
        }
    };
    let writing = async {
        while let Some(frame) = outgoing.recv().await {
            if send.send(Message::Binary(frame.into())).await.is_err() {
                return;
            }
        }
        let _gone = send.close().await;
    };
    let working = async { while running.next().await.is_some() {} };
    tokio::select! {
        () = reading => {}
        ((), ()) = futures::future::join(writing, working) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_in_either_form() {
        let read = |text: &str| ports(&Query::new(text)).map_err(|error| error.status().0);
        assert_eq!(read("ports=80&ports=81,82"), Ok(vec![80, 81, 82]));
        for bad in ["", "ports=", "ports=0", "ports=x", "ports=70000"] {
            assert_eq!(read(bad), Err(400), "{bad}");
        }
    }
}
