//! `ironclad exec` and `attach`: a terminal or pipes into a container.

use std::os::fd::AsFd as _;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use wire::apiserver::exec_input::{Input, Resize, Start};
use wire::apiserver::exec_output::Output;
use wire::apiserver::{ExecInput, ExecOutput};

use crate::target::{Session, Target, block, default_container};

const CHUNK_BYTES: usize = 32 << 10;
const MESSAGES_QUEUED: usize = 16;

/// Arguments of `exec`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ironclad exec web-0 -- env
  ironclad exec -it deploy/web -c app -- sh
  echo hello | ironclad exec -i web-0 -- cat

The exit code is the command's.")]
pub(crate) struct Exec {
    #[command(flatten)]
    common: Common,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Arguments of `attach`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ironclad attach -it shell")]
pub(crate) struct Attach {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    target: Target,
    /// A pod's name, or kind/name of what has pods
    #[arg(value_name = "POD | KIND/NAME")]
    object: String,
    /// The container [default: the first]
    #[arg(long, short)]
    container: Option<String>,
    /// Pass standard input on
    #[arg(long, short = 'i')]
    stdin: bool,
    /// Standard input is a terminal
    #[arg(long, short)]
    tty: bool,
}

/// The terminal, passing every key on; as it was before when dropped.
struct Raw(Termios);

impl Raw {
    fn start() -> anyhow::Result<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(stdin.as_fd()).context("read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw).context("set up the terminal")?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, &self.0) {
            eprintln!("the terminal could not be set back: {error}");
        }
    }
}

/// Runs `exec`.
pub(crate) fn exec(args: &Exec) -> anyhow::Result<ExitCode> {
    block(run(&args.common, Some(&args.command)))
}

/// Runs `attach`.
pub(crate) fn attach(args: &Attach) -> anyhow::Result<ExitCode> {
    block(run(&args.common, None))
}

async fn run(args: &Common, command: Option<&Vec<String>>) -> anyhow::Result<ExitCode> {
    let session = Session::open(&args.target)?;
    let pod = session.pod(std::slice::from_ref(&args.object)).await?;
    let phase = pod.str_at(&["status", "phase"]).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        bail!("cannot exec into a container in a completed pod; current phase is {phase}");
    }
    let terminal = isatty(std::io::stdin().as_fd());
    let tty = args.tty && args.stdin && terminal;
    if args.tty && args.stdin && !terminal {
        eprintln!("Unable to use a TTY - input is not a terminal or the right kind of file");
    }
    let start = Start {
        namespace: api::meta::namespace(&pod).to_owned(),
        pod: api::meta::name(&pod).to_owned(),
        uid: String::new(),
        container: default_container(&pod, args.container.as_deref()),
        command: command.cloned().unwrap_or_default(),
        stdin: args.stdin,
        stdout: true,
        stderr: !tty,
        tty: tty || (args.tty && !args.stdin),
    };
    let (send, inputs) = mpsc::channel(MESSAGES_QUEUED);
    send.send(message(Input::Start(start))).await.context("start")?;
    let _raw = if tty { Some(Raw::start()?) } else { None };
    let mut nodes = session.nodes();
    let stream = ReceiverStream::new(inputs);
    let outputs = match command {
        Some(_) => nodes.exec(stream).await,
        None => nodes.attach(stream).await,
    };
    let outputs = outputs.map_err(client::Error::from)?.into_inner();
    let ctx = daemon::Context::new(tokio_util::sync::CancellationToken::new());
    if args.stdin {
        ctx.tasks.job(pass_input(send.clone()));
    }
    if tty {
        ctx.tasks.job(pass_size(send.clone()));
    }
    // Kept open, since the end of the messages is the end of the session.
    let code = show(outputs).await;
    drop(send);
    code
}

fn message(input: Input) -> ExecInput {
    ExecInput { input: Some(input) }
}

async fn pass_input(send: mpsc::Sender<ExecInput>) {
    let (mut stdin, mut buffer) = (tokio::io::stdin(), vec![0; CHUNK_BYTES]);
    loop {
        let input = match stdin.read(&mut buffer).await {
            Ok(0) | Err(_) => Input::StdinClosed(true),
            Ok(n) => Input::Stdin(buffer[..n].to_vec().into()),
        };
        let last = matches!(input, Input::StdinClosed(_));
        if send.send(message(input)).await.is_err() || last {
            return;
        }
    }
}

/// Tells the size of the terminal, now and whenever it changes.
async fn pass_size(send: mpsc::Sender<ExecInput>) {
    let Ok(mut changed) = signal(SignalKind::window_change()) else { return };
    loop {
        if let Ok(size) = tcgetwinsize(std::io::stdin().as_fd()) {
            let (width, height) = (size.ws_col.into(), size.ws_row.into());
            if send.send(message(Input::Resize(Resize { width, height }))).await.is_err() {
                return;
            }
        }
        if changed.recv().await.is_none() {
            return;
        }
    }
}

async fn show(mut outputs: tonic::Streaming<ExecOutput>) -> anyhow::Result<ExitCode> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    while let Some(output) = outputs.message().await.map_err(client::Error::from)? {
        match output.output {
            Some(Output::Stdout(data)) => {
                stdout.write_all(&data).await?;
                stdout.flush().await?;
            }
            Some(Output::Stderr(data)) => {
                stderr.write_all(&data).await?;
                stderr.flush().await?;
            }
            Some(Output::ExitCode(0)) | None => {}
            Some(Output::ExitCode(code)) => {
                eprintln!("command terminated with exit code {code}");
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
