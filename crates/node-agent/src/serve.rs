//! What the API server asks of this node: logs, exec, attach, port-forward, stats.
//!
//! Finds the container a request means and moves bytes. Who may ask has been decided before: the
//! API server is the only caller.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use daemon::Context;
use futures::Stream;
use jiff::{SignedDuration, Timestamp};
use nix::sched::{CloneFlags, setns};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use wire::apiserver as pb;
use wire::apiserver::node_server::{Node, NodeServer};

use crate::attach::Attached;
use crate::images;
use crate::logs::{Ask, Reader};
use crate::pod::spec::NodeFacts;
use crate::pod::{Container, RuntimePod, State};
use crate::runtime::{Error, Runtime};
use crate::stats::{self, NodeUsage, Sample};
use crate::tasks::{Command, Process};

/// How often a followed log is looked at.
const FOLLOW_PERIOD: Duration = Duration::from_millis(100);
/// How many looks at an idle log pass between looks at its container.
const LOOKS_PER_CHECK: u32 = 10;
/// How long output may go on after its command has ended.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
const STREAM_MESSAGES_MAX: usize = 16;
const CHUNK_BYTES: usize = 32 << 10;

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Sender<T> = mpsc::Sender<Result<T, Status>>;

/// The node service of one agent. Clones share it.
#[derive(Clone, Debug)]
pub struct NodeService {
    runtime: Runtime,
    ctx: Context,
    scratch: PathBuf,
    node: String,
    /// Makes names of commands unique beside the process id.
    commands: Arc<AtomicU64>,
    last: Arc<Mutex<Option<Sample>>>,
}

impl NodeService {
    /// A service over `runtime`; `scratch` is a directory for the streams of commands.
    #[must_use]
    pub fn new(runtime: Runtime, ctx: Context, scratch: PathBuf, node: &NodeFacts) -> Self {
        let (commands, last, node) = (Arc::default(), Arc::default(), node.name.clone());
        Self { runtime, ctx, scratch, node, commands, last }
    }

    /// As a gRPC service.
    #[must_use]
    pub fn server(self) -> NodeServer<Self> {
        NodeServer::new(self)
    }

    async fn pod(&self, namespace: &str, name: &str, uid: &str) -> Result<RuntimePod, Status> {
        let missing = || Status::not_found(format!("pod {name:?} not found on this node"));
        if !uid.is_empty() {
            let pod = self.runtime.pod(uid).await.map_err(failed)?;
            return if pod.sandboxes.is_empty() { Err(missing()) } else { Ok(pod) };
        }
        let pods = self.runtime.pods().await.map_err(failed)?;
        let newest = pods
            .into_values()
            .filter(|pod| pod.namespace == namespace && pod.name == name)
            .max_by_key(|pod| pod.sandboxes.first().map(|s| s.created_at));
        newest.ok_or_else(missing)
    }

    async fn running(&self, start: &pb::exec_input::Start) -> Result<Container, Status> {
        let pod = self.pod(&start.namespace, &start.pod, &start.uid).await?;
        let container = chosen(&pod, &start.pod, &start.container, false)?;
        if container.state != State::Running {
            let text = format!("container {} is not running", container.name);
            return Err(Status::failed_precondition(text));
        }
        Ok(container.clone())
    }

    async fn sample(&self) -> Result<Sample, Status> {
        let containers = self.runtime.usage().await.map_err(failed)?;
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let node = NodeUsage::parse(&read("/proc/stat"), &read("/proc/meminfo"));
        Ok(Sample { at: self.ctx.clock.now(), node, containers })
    }
}

fn failed(error: Error) -> Status {
    if error.not_found { Status::not_found(error.message) } else { Status::internal(error.message) }
}

/// The container a request means; the only one where it names none.
fn chosen<'a>(
    pod: &'a RuntimePod,
    pod_name: &str,
    name: &str,
    previous: bool,
) -> Result<&'a Container, Status> {
    let mut names: Vec<&str> = pod.containers.iter().map(|c| c.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let name = match (name, names.as_slice()) {
        ("", [only]) => *only,
        ("", several) => {
            let text = format!(
                "a container name must be specified for pod {pod_name}, choose \
                one of: [{}]",
                several.join(" ")
            );
            return Err(Status::invalid_argument(text));
        }
        (name, _) => name,
    };
    let found = if previous { pod.previous(name) } else { pod.latest(name) };
    found.ok_or_else(|| {
        Status::invalid_argument(if previous {
            format!("previous terminated container {name:?} in pod {pod_name:?} not found")
        } else {
            format!("container {name:?} in pod {pod_name:?} is waiting to start: ContainerCreating")
        })
    })
}

fn ask(request: &pb::LogsRequest, now: Timestamp) -> Result<Ask, Status> {
    let mut since = None;
    if !request.since_time.is_empty() {
        let invalid = || Status::invalid_argument("sinceTime is not a time");
        since = Some(api::time::parse(&request.since_time).ok_or_else(invalid)?);
    } else if let Some(seconds) = request.since_seconds {
        since = now.checked_sub(SignedDuration::from_secs(seconds)).ok();
    }
    let count = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
    Ok(Ask {
        since,
        tail_lines: count(request.tail_lines),
        limit_bytes: count(request.limit_bytes),
        timestamps: request.timestamps,
    })
}

/// Sends a log until its end, or as long as its container runs when it is followed.
async fn send_log(
    service: NodeService,
    mut reader: Reader,
    follow: Option<(String, String)>,
    send: &Sender<pb::LogChunk>,
) -> Result<(), Status> {
    let (mut idle, mut ended) = (0, false);
    loop {
        let read = service.ctx.tasks.blocking(move || {
            let piece = reader.piece();
            (reader, piece)
        });
        let (back, piece) = read.await.map_err(|e| Status::internal(e.to_string()))?;
        reader = back;
        let piece = piece.map_err(|e| Status::internal(format!("read the log: {e}")))?;
        if !piece.is_empty() {
            idle = 0;
            if send.send(Ok(pb::LogChunk { data: piece.into() })).await.is_err() {
                return Ok(()); // nobody listens any more
            }
            continue;
        }
        let Some((uid, id)) = &follow else { return Ok(()) };
        if reader.done() || ended {
            return Ok(());
        }
        idle += 1;
        if idle % LOOKS_PER_CHECK == 0 {
            let pod = service.runtime.pod(uid).await.map_err(failed)?;
            // Once more to the end: it may have written just before it ended.
            ended = !pod.containers.iter().any(|c| c.id == *id && c.state == State::Running);
            continue;
        }
        tokio::select! {
            () = send.closed() => return Ok(()),
            () = service.ctx.shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(FOLLOW_PERIOD) => {}
        }
    }
}

fn stdout(data: Bytes) -> pb::ExecOutput {
    pb::ExecOutput { output: Some(pb::exec_output::Output::Stdout(data)) }
}

fn stderr(data: Bytes) -> pb::ExecOutput {
    pb::ExecOutput { output: Some(pb::exec_output::Output::Stderr(data)) }
}

/// Copies a pipe into the answer until it ends or nobody listens.
async fn copy_out(
    pipe: Option<pipe::Receiver>,
    wrap: fn(Bytes) -> pb::ExecOutput,
    send: Sender<pb::ExecOutput>,
) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) => return,
            Ok(n) => {
                if send.send(Ok(wrap(Bytes::copy_from_slice(&buffer[..n])))).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "output of a command");
                return;
            }
        }
    }
}

/// Hands input to a command until the caller ends it; then stays until cancelled.
async fn copy_in(
    process: &mut Process,
    input: &mut Streaming<pb::ExecInput>,
) -> Result<(), Status> {
    use pb::exec_input::Input;
    let broken = |error: anyhow::Error| Status::internal(format!("{error:#}"));
    while let Some(message) = input.message().await? {
        match message.input {
            Some(Input::Stdin(data)) => {
                let Some(stdin) = &mut process.stdin else { continue };
                if let Err(error) = stdin.write_all(&data).await {
                    tracing::debug!(%error, "input of a command");
                    process.stdin = None;
                }
            }
            Some(Input::StdinClosed(_)) if process.stdin.is_some() => {
                process.close_stdin().await.map_err(broken)?;
            }
            Some(Input::Resize(size)) => {
                let (width, height) = (size.width, size.height);
                process.resize(width, height).await.map_err(broken)?;
            }
            _ => {}
        }
    }
    if process.stdin.is_some() {
        process.close_stdin().await.map_err(broken)?;
    }
    Ok(())
}

/// Runs a command to its end.
async fn run_command(
    service: NodeService,
    mut process: Process,
    start: pb::exec_input::Start,
    mut input: Streaming<pb::ExecInput>,
    send: Sender<pb::ExecOutput>,
) {
    let out = start.stdout.then(|| process.stdout.take()).flatten();
    let err = start.stderr.then(|| process.stderr.take()).flatten();
    let tasks = &service.ctx.tasks;
    let mut copies = [
        tasks.job(copy_out(out, stdout, send.clone())),
        tasks.job(copy_out(err, stderr, send.clone())),
    ];
    let waiting = process.waiter();
    let mut waiting = std::pin::pin!(waiting);
    let mut open = true;
    let code = loop {
        tokio::select! {
            code = &mut waiting => break code,
            end = copy_in(&mut process, &mut input), if open => {
                open = false;
                if let Err(status) = end {
                    // The caller went away: so does the command.
                    break Err(anyhow::anyhow!("{}", status.message()));
                }
            }
            () = send.closed() => break Err(anyhow::anyhow!("nobody listens any more")),
            () = service.ctx.shutdown.cancelled() => break Err(anyhow::anyhow!("shutting down")),
        }
    };
    if code.is_ok() {
        let drained = futures::future::join_all(&mut copies);
        if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            tracing::debug!("output goes on after its command");
        }
    }
    process.finish().await;
    for copy in &copies {
        copy.abort();
    }
    let last = match code {
        Ok(code) => Ok(pb::ExecOutput { output: Some(pb::exec_output::Output::ExitCode(code)) }),
        Err(error) => Err(Status::internal(format!("{error:#}"))),
    };
    // Whoever has gone needs no answer.
    drop(send.send(last).await);
}

/// Moves input to a container and its output back, until either says that it is over.
async fn relay(
    mut attached: Attached,
    mut input: Streaming<pb::ExecInput>,
    send: &Sender<pb::ExecOutput>,
) {
    let mut open = true;
    let end = loop {
        tokio::select! {
            message = input.message(), if open => match message {
                Ok(Some(message)) => {
                    let Some(next) = message.input else { continue };
                    match attached.pass(next).await {
                        Ok(true) => {}
                        Ok(false) => break Ok(()),
                        Err(error) => break Err(error),
                    }
                }
                Ok(None) => open = false,
                Err(_) => return, // the caller went away
            },
            output = attached.next() => match output {
                Ok(Some(output)) => {
                    if send.send(Ok(pb::ExecOutput { output: Some(output) })).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            },
        }
    };
    if let Err(error) = end {
        drop(send.send(Err(Status::internal(format!("{error:#}")))).await);
    }
}

/// Connects to a port inside the network namespace of process `pid`.
async fn dial(pid: u32, port: u16) -> Result<tokio::net::TcpStream, Status> {
    let (told, answer) = tokio::sync::oneshot::channel();
    // A thread of its own: it enters another namespace and must not come back into a pool.
    let thread = std::thread::Builder::new().name("port-forward".to_owned()).spawn(move || {
        let connect = || {
            let netns = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
            let stream = std::net::TcpStream::connect_timeout(&v4, DIAL_TIMEOUT)
                .or_else(|_| std::net::TcpStream::connect_timeout(&v6, DIAL_TIMEOUT))?;
            stream.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(stream)
        };
        drop(told.send(connect()));
    });
    thread.map_err(|e| Status::internal(e.to_string()))?;
    let refused = |e: std::io::Error| {
        Status::unavailable(format!("failed to connect to localhost:{port} inside the pod: {e}"))
    };
    let stream = answer.await.map_err(|e| Status::internal(e.to_string()))?.map_err(refused)?;
    tokio::net::TcpStream::from_std(stream).map_err(refused)
}

async fn forward(
    stream: tokio::net::TcpStream,
    mut input: Streaming<pb::PortForwardInput>,
    send: Sender<pb::PortForwardOutput>,
) {
    use pb::port_forward_input::Input;
    let (mut read, mut write) = stream.into_split();
    let inward = async {
        while let Ok(Some(message)) = input.message().await {
            match message.input {
                Some(Input::Data(data)) if write.write_all(&data).await.is_err() => return,
                Some(Input::Closed(_)) => break,
                _ => {}
            }
        }
        if let Err(error) = write.shutdown().await {
            tracing::debug!(%error, "end of a forwarded connection");
        }
        // The other direction decides when it is over.
        std::future::pending::<()>().await;
    };
    let outward = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match read.read(&mut buffer).await {
                Ok(0) => return,
                Ok(n) => {
                    let data = Bytes::copy_from_slice(&buffer[..n]);
                    if send.send(Ok(pb::PortForwardOutput { data })).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    drop(send.send(Err(Status::unavailable(error.to_string()))).await);
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = inward => {}
        () = outward => {}
        () = send.closed() => {}
    }
}

async fn first<T>(input: &mut Streaming<T>) -> Result<T, Status> {
    input.message().await?.ok_or_else(|| Status::invalid_argument("a start message comes first"))
}

fn exec_start(message: pb::ExecInput) -> Result<pb::exec_input::Start, Status> {
    match message.input {
        Some(pb::exec_input::Input::Start(start)) => Ok(start),
        _ => Err(Status::invalid_argument("a start message comes first")),
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    type LogsStream = Out<pb::LogChunk>;
    type ExecStream = Out<pb::ExecOutput>;
    type AttachStream = Out<pb::ExecOutput>;
    type PortForwardStream = Out<pb::PortForwardOutput>;

    async fn logs(
        &self,
        request: Request<pb::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let request = request.into_inner();
        let pod = self.pod(&request.namespace, &request.pod, &request.uid).await?;
        let container = chosen(&pod, &request.pod, &request.container, request.previous)?;
        let follow =
            (request.follow && !request.previous).then(|| (pod.uid.clone(), container.id.clone()));
        let ask = ask(&request, self.ctx.clock.now())?;
        let path = PathBuf::from(&container.log_path);
        let opened = self.ctx.tasks.blocking(move || Reader::open(&path, ask)).await;
        let reader = opened
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(|e| Status::not_found(format!("failed to open the log: {e}")))?;
        let (send, receive) = mpsc::channel(STREAM_MESSAGES_MAX);
        let service = self.clone();
        self.ctx.tasks.job(async move {
            if let Err(status) = send_log(service, reader, follow, &send).await {
                drop(send.send(Err(status)).await);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn exec(
        &self,
        request: Request<Streaming<pb::ExecInput>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let mut input = request.into_inner();
        let start = exec_start(first(&mut input).await?)?;
        let container = self.running(&start).await?;
        let command = Command {
            container: container.id,
            args: start.command.clone(),
            stdin: start.stdin,
            tty: start.tty,
        };
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        let id = format!("exec-{}-{number}", std::process::id());
        let process = Process::start(self.runtime.channel(), &command, &id, &self.scratch)
            .await
            .map_err(|e| Status::internal(format!("{e:#}")))?;
        let (send, receive) = mpsc::channel(STREAM_MESSAGES_MAX);
        self.ctx.tasks.job(run_command(self.clone(), process, start, input, send));
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn attach(
        &self,
        request: Request<Streaming<pb::ExecInput>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut input = request.into_inner();
        let start = exec_start(first(&mut input).await?)?;
        let container = self.running(&start).await?;
        let attached = Attached::start(&self.runtime, &container.id, start.stdin)
            .await
            .map_err(|e| Status::internal(format!("{e:#}")))?;
        let (send, receive) = mpsc::channel(STREAM_MESSAGES_MAX);
        let shutdown = self.ctx.shutdown.clone();
        self.ctx.tasks.job(async move {
            tokio::select! {
                () = relay(attached, input, &send) => {}
                () = send.closed() => {}
                () = shutdown.cancelled() => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn port_forward(
        &self,
        request: Request<Streaming<pb::PortForwardInput>>,
    ) -> Result<Response<Self::PortForwardStream>, Status> {
        let mut input = request.into_inner();
        let Some(pb::port_forward_input::Input::Start(start)) = first(&mut input).await?.input
        else {
            return Err(Status::invalid_argument("a start message comes first"));
        };
        let port = u16::try_from(start.port)
            .map_err(|_| Status::invalid_argument(format!("{} is no port", start.port)))?;
        let pod = self.pod(&start.namespace, &start.pod, &start.uid).await?;
        let sandbox = pod.sandboxes.first().filter(|s| s.ready);
        let sandbox = sandbox.ok_or_else(|| Status::failed_precondition("pod is not running"))?;
        let pid = self.runtime.pid(&sandbox.id).await.map_err(failed)?;
        let stream = dial(pid, port).await?;
        let (send, receive) = mpsc::channel(STREAM_MESSAGES_MAX);
        self.ctx.tasks.job(forward(stream, input, send));
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn stats(
        &self,
        request: Request<pb::StatsRequest>,
    ) -> Result<Response<pb::StatsReply>, Status> {
        let sample = self.sample().await?;
        let before = self.last.lock().replace(sample.clone());
        let (body, kind) = match request.into_inner().page.as_str() {
            "summary" => {
                let page = stats::summary(&self.node, &sample, before.as_ref());
                (page.to_string(), "application/json")
            }
            "resource" | "cadvisor" => {
                (stats::resource_metrics(&sample), "text/plain; version=0.0.4; charset=utf-8")
            }
            page => return Err(Status::not_found(format!("no page {page:?}"))),
        };
        Ok(Response::new(pb::StatsReply { body: body.into(), content_type: kind.to_owned() }))
    }

    async fn load_image(
        &self,
        request: Request<Streaming<pb::LoadImageInput>>,
    ) -> Result<Response<pb::LoadImageReply>, Status> {
        let images = load(self, request.into_inner()).await?;
        tracing::info!(images = images.join(" "), "images loaded");
        Ok(Response::new(pb::LoadImageReply { images }))
    }
}

/// Receives an archive into a file, since it may be larger than memory, and imports it.
async fn load(
    service: &NodeService,
    mut input: Streaming<pb::LoadImageInput>,
) -> Result<Vec<String>, Status> {
    let broken = |e: std::io::Error| Status::internal(format!("keep the archive: {e}"));
    let number = service.commands.fetch_add(1, Ordering::Relaxed);
    std::fs::create_dir_all(&service.scratch).map_err(broken)?;
    let path = service.scratch.join(format!("image-{}-{number}.tar", std::process::id()));
    let mut options = tokio::fs::OpenOptions::new();
    let open = options.read(true).write(true).create_new(true).open(&path).await;
    let mut file = open.map_err(broken)?;
    // Nobody else needs its name, and so it is gone whatever happens.
    std::fs::remove_file(&path).map_err(broken)?;
    while let Some(message) = input.message().await? {
        if let Some(pb::load_image_input::Input::Data(data)) = message.input {
            file.write_all(&data).await.map_err(broken)?;
        }
    }
    file.flush().await.map_err(broken)?;
    let file = file.into_std().await;
    let read = service.ctx.tasks.blocking(move || images::Archive::open(file));
    let archive = read.await.map_err(|e| Status::internal(e.to_string()))?;
    let archive = archive.map_err(|e| Status::invalid_argument(format!("{e:#}")))?;
    images::import(service.runtime.channel(), &archive)
        .await
        .map_err(|e| Status::internal(format!("{e:#}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> pb::LogsRequest {
        pb::LogsRequest::default()
    }

    #[test]
    fn a_time_goes_before_seconds() {
        let now: Timestamp = "2024-01-01T00:01:00Z".parse().unwrap();
        let asked = pb::LogsRequest { since_seconds: Some(10), tail_lines: Some(3), ..request() };
        let got = ask(&asked, now).unwrap();
        assert_eq!(got.since, "2024-01-01T00:00:50Z".parse().ok());
        assert_eq!(got.tail_lines, Some(3));
        let asked = pb::LogsRequest { since_time: "2023-01-01T00:00:00Z".into(), ..asked };
        assert_eq!(ask(&asked, now).unwrap().since, "2023-01-01T00:00:00Z".parse().ok());
        let asked = pb::LogsRequest { since_time: "yesterday".into(), ..request() };
        assert!(ask(&asked, now).is_err());
    }

    #[test]
    fn a_pod_without_the_container_says_so() {
        let status = chosen(&RuntimePod::default(), "web", "c", true).unwrap_err();
        let want = "previous terminated container \"c\" in pod \"web\" not found";
        assert_eq!(status.message(), want);
    }
}
