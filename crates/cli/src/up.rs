//! `ironclad up`: all daemons in one process, and the wait until the node is ready.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use daemon::Context;
use daemon::telemetry::{Format, Log};
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::cluster;
use crate::layout::Layout;
use crate::status;

/// How long --detach waits for the cluster.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// Arguments of `up`.
#[derive(Debug, Clone, clap::Args)]
#[allow(clippy::struct_excessive_bools)] // a command line
pub(crate) struct Args {
    /// Where the cluster keeps everything [default: /var/lib/ironclad for root]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Return once the node is ready; the cluster goes on in the background
    #[arg(long)]
    detach: bool,
    /// A control plane without a node on this machine
    #[arg(long)]
    pub(crate) no_node: bool,
    /// Only the store and the API server
    #[arg(long)]
    pub(crate) api_only: bool,
    /// Range of the Services' addresses
    #[arg(long, value_name = "CIDR", default_value = "10.96.0.0/16")]
    pub(crate) service_cidr: String,
    /// Range of the pods' addresses
    #[arg(long, value_name = "CIDR", default_value = "10.244.0.0/16")]
    pub(crate) pod_cidr: String,
    /// Address and port of the API
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:6443")]
    pub(crate) api_listen: SocketAddr,
    /// An etcd v3 store to use in place of our own: URLs, comma-separated
    #[arg(long, value_name = "URL,…")]
    pub(crate) store_endpoints: Option<String>,
    /// A containerd to use in place of one of our own
    #[arg(long, value_name = "SOCKET")]
    pub(crate) containerd_address: Option<PathBuf>,
    /// File of static tokens: token,user,uid[,"group,…"]
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Name of this node [default: the machine's]
    #[arg(long, value_name = "NAME")]
    pub(crate) node_name: Option<String>,
    /// What is logged, as a tracing filter
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
}

/// Runs the command.
pub(crate) fn main(args: Args) -> anyhow::Result<()> {
    let layout = Layout::new(args.data_dir.as_deref());
    if let Some(pid) = layout.running() {
        if args.detach {
            println!(
                "The cluster in {} is running already (process {pid}).",
                layout.dir().display()
            );
            return Ok(());
        }
        bail!("the cluster in {} is running already (process {pid})", layout.dir().display());
    }
    std::fs::create_dir_all(layout.dir())
        .with_context(|| format!("create {}", layout.dir().display()))?;
    if args.detach { detach(&args, &layout) } else { run(&args, &layout) }
}

fn run(args: &Args, layout: &Layout) -> anyhow::Result<()> {
    // What is drawn on a terminal and what is logged would be drawn over each other.
    let drawn = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
    let file = if drawn { layout.log().display().to_string() } else { String::new() };
    daemon::telemetry::start(&Log { filter: args.log.clone(), format: Format::Text, file })?;
    daemon::tls::install_provider();
    std::fs::write(layout.pid(), format!("{}\n", std::process::id()))
        .with_context(|| format!("write {}", layout.pid().display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let ctx = Context::new(CancellationToken::new());
        let stop = ctx.shutdown.clone();
        ctx.tasks.job(async move {
            tokio::select! {
                () = daemon::signalled() => stop.cancel(),
                () = stop.cancelled() => {}
            }
        });
        let board = Board::new(&ctx.clock);
        let wants_node = !args.no_node && !args.api_only;
        ctx.tasks.job(board.clone().show(layout.clone(), wants_node, ctx.child()));
        cluster::run(args, layout, &board, ctx).await
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    // Gone already if `down --purge` was quicker.
    let _ = std::fs::remove_file(layout.pid());
    ended
}

/// Starts ourselves again in a session of our own, and waits until the cluster is ready.
fn detach(args: &Args, layout: &Layout) -> anyhow::Result<()> {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(layout.log())
        .with_context(|| format!("open {}", layout.log().display()))?;
    let own = std::env::args_os().skip(1).filter(|arg| arg != "--detach");
    let mut command = Command::new(std::env::current_exe()?);
    command.args(own).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // A group of its own: what stops our terminal does not stop the cluster.
    command.process_group(0);
    let mut child = command.spawn().context("start the cluster")?;
    let want_node = !args.no_node && !args.api_only;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let ended = async {
            loop {
                if let Some(status) = child.try_wait()? {
                    return anyhow::Ok(status);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            ready = tokio::time::timeout(READY_TIMEOUT, status::wait(layout, want_node)) => match ready {
                Ok(ready) => ready,
                Err(_) => bail!("not ready after {READY_TIMEOUT:?}; see {}", layout.log().display()),
            },
            ended = ended => {
                bail!("the cluster ended at once ({}); see {}", ended?, layout.log().display())
            }
        }
    })?;
    println!("The cluster is ready. Try:\n  export KUBECONFIG={}", layout.kubeconfig().display());
    println!("  kubectl get nodes");
    Ok(())
}
