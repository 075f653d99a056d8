//! Commands run beside a container's main process, by containerd's own services.
//!
//! A command is a second process of the
//! container's task, with FIFOs for its streams.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, GetContainerRequest, KillRequest,
    ResizePtyRequest, StartRequest, WaitRequest,
};
use nix::sys::stat::Mode;
use serde_json::Value;
use tokio::net::unix::pipe;
use tonic::transport::Channel;

use crate::images::ours;

const CALL_TIMEOUT: Duration = Duration::from_secs(15);
const SIGKILL: u32 = 9;

/// A command to run in a container.
#[derive(Clone, Debug)]
pub struct Command {
    /// The container.
    pub container: String,
    /// The command.
    pub args: Vec<String>,
    /// Whether it gets input.
    pub stdin: bool,
    /// Whether it gets a terminal.
    pub tty: bool,
}

/// A command that runs. Ended and cleaned up by [`Process::finish`].
#[derive(Debug)]
pub struct Process {
    channel: Channel,
    container: String,
    exec: String,
    dir: PathBuf,
    /// Where its input is written; dropped and then [`Process::close_stdin`] to end it.
    pub stdin: Option<pipe::Sender>,
    /// Its output.
    pub stdout: Option<pipe::Receiver>,
    /// Its error output; none with a terminal.
    pub stderr: Option<pipe::Receiver>,
}

impl Process {
    /// Starts a command. `id` is unique on this node, `dir` a directory for its FIFOs.
    ///
    /// # Errors
    /// When the container does not run, or the command cannot be started.
    pub async fn start(
        channel: &Channel,
        command: &Command,
        id: &str,
        dir: &Path,
    ) -> anyhow::Result<Self> {
        let spec = exec_spec(channel, command).await?;
        let dir = dir.join(id);
        std::fs::create_dir_all(&dir).context("make the directory of streams")?;
        let fifo = |name: &str, wanted: bool| -> anyhow::Result<String> {
            if !wanted {
                return Ok(String::new());
            }
            let path = dir.join(name);
            nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).context("make a FIFO")?;
            Ok(path.to_string_lossy().into_owned())
        };
        let stdin = fifo("in", command.stdin)?;
        let stdout = fifo("out", true)?;
        let stderr = fifo("err", !command.tty)?;
        let reader = |path: &str| pipe::OpenOptions::new().open_receiver(path);
        let mut process = Self {
            channel: channel.clone(),
            container: command.container.clone(),
            exec: id.to_owned(),
            dir: dir.clone(),
            stdin: None,
            stdout: Some(reader(&stdout).context("open output")?),
            stderr: None,
        };
        if !command.tty {
            process.stderr = Some(reader(&stderr).context("open error output")?);
        }
        if command.stdin {
            // Read-write, since opening to write alone fails while nobody reads yet.
            let open = pipe::OpenOptions::new().read_write(true).open_sender(&stdin);
            process.stdin = Some(open.context("open input")?);
        }
        let request = ExecProcessRequest {
            container_id: command.container.clone(),
            stdin,
            stdout,
            stderr,
            terminal: command.tty,
            spec: Some(spec),
            exec_id: id.to_owned(),
        };
        match process.launch(request).await {
            Ok(()) => Ok(process),
            Err(error) => {
                process.finish().await;
                Err(error)
            }
        }
    }

    async fn launch(&self, request: ExecProcessRequest) -> anyhow::Result<()> {
        let mut tasks = TasksClient::new(self.channel.clone());
        let call = tasks.exec(ours(request, None));
        tokio::time::timeout(CALL_TIMEOUT, call).await.context("no answer in time")??;
        let (container_id, exec_id) = (self.container.clone(), self.exec.clone());
        let call = tasks.start(ours(StartRequest { container_id, exec_id }, None));
        tokio::time::timeout(CALL_TIMEOUT, call).await.context("no answer in time")??;
        Ok(())
    }

    /// Waits for its end; returns the exit code.
    ///
    /// # Errors
    /// When containerd goes away.
    pub async fn wait(&self) -> anyhow::Result<i32> {
        self.waiter().await
    }

    /// Waits for its end; resolves to the exit code, or an error when containerd goes away. Borrows
    /// nothing, so that input can be handed to it meanwhile.
    pub fn waiter(&self) -> impl Future<Output = anyhow::Result<i32>> + Send + use<> {
        let (container_id, exec_id) = (self.container.clone(), self.exec.clone());
        let mut tasks = TasksClient::new(self.channel.clone());
        async move {
            let request = WaitRequest { container_id, exec_id };
            let reply = tasks.wait(ours(request, None)).await?.into_inner();
            Ok(i32::try_from(reply.exit_status).unwrap_or(-1))
        }
    }

    /// Ends its input.
    ///
    /// # Errors
    /// When containerd refuses.
    pub async fn close_stdin(&mut self) -> anyhow::Result<()> {
        self.stdin = None;
        let (container_id, exec_id) = (self.container.clone(), self.exec.clone());
        let mut tasks = TasksClient::new(self.channel.clone());
        let request = CloseIoRequest { container_id, exec_id, stdin: true };
        let call = tasks.close_io(ours(request, None));
        tokio::time::timeout(CALL_TIMEOUT, call).await.context("no answer in time")??;
        Ok(())
    }

    /// Tells its terminal a new size.
    ///
    /// # Errors
    /// When containerd refuses.
    pub async fn resize(&self, width: u32, height: u32) -> anyhow::Result<()> {
        let (container_id, exec_id) = (self.container.clone(), self.exec.clone());
        let mut tasks = TasksClient::new(self.channel.clone());
        let request = ResizePtyRequest { container_id, exec_id, width, height };
        let call = tasks.resize_pty(ours(request, None));
        tokio::time::timeout(CALL_TIMEOUT, call).await.context("no answer in time")??;
        Ok(())
    }

    /// Kills it if it still runs, and removes what it left.
    pub async fn finish(self) {
        let mut tasks = TasksClient::new(self.channel.clone());
        let (container_id, exec_id) = (self.container.clone(), self.exec.clone());
        let (id, exec) = (container_id.clone(), exec_id.clone());
        let kill = KillRequest { container_id: id, exec_id: exec, signal: SIGKILL, all: false };
        let ended = async {
            if tasks.kill(ours(kill, None)).await.is_ok()
                && let Err(error) = self.wait().await
            {
                tracing::debug!(%error, "killed command");
            }
            tasks.delete_process(ours(DeleteProcessRequest { container_id, exec_id }, None)).await
        };
        if let Ok(Err(status)) = tokio::time::timeout(CALL_TIMEOUT, ended).await
            && status.code() != tonic::Code::NotFound
        {
            tracing::debug!(%status, "command not cleaned up");
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::debug!(%error, dir = %self.dir.display(), "streams not removed");
        }
    }
}

/// The process part of the container's OCI spec, with our command in it.
async fn exec_spec(channel: &Channel, command: &Command) -> anyhow::Result<prost_types::Any> {
    let request = GetContainerRequest { id: command.container.clone() };
    let mut containers = ContainersClient::new(channel.clone());
    let call = containers.get(ours(request, None));
    let reply = tokio::time::timeout(CALL_TIMEOUT, call).await.context("no answer in time")??;
    let container = reply.into_inner().container.context("no container")?;
    let spec = container.spec.context("a container without spec")?;
    let spec: Value = serde_json::from_slice(&spec.value).context("read the container's spec")?;
    let mut process = spec["process"].clone();
    process["args"] = Value::from(command.args.clone());
    process["terminal"] = Value::from(command.tty);
    if command.tty
        && let Some(env) = process["env"].as_array_mut()
    {
        env.retain(|v| !v.as_str().is_some_and(|v| v.starts_with("TERM=")));
        env.push(Value::from("TERM=xterm"));
    }
    Ok(prost_types::Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
        value: process.to_string().into_bytes(),
    })
}
