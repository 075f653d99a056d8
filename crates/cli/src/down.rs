//! `ironclad down`: stops the cluster of a data directory; with `--purge` nothing of it is left.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};

use crate::layout::Layout;

/// How long the process may take to end by itself.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Arguments of `down`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the cluster keeps everything [default: /var/lib/ironclad for root]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Also stop its containers and remove its data, mounts, interfaces and rules
    #[arg(long)]
    purge: bool,
}

/// Runs the command.
pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    let layout = Layout::new(args.data_dir.as_deref());
    match layout.running() {
        None => crate::say!("No cluster runs from {}.", layout.dir().display()),
        Some(pid) => {
            kill(pid, Signal::SIGTERM).with_context(|| format!("stop process {pid}"))?;
            let steps = STOP_TIMEOUT.as_millis() / 50;
            let gone = (0..steps).any(|_| {
                std::thread::sleep(Duration::from_millis(50));
                layout.running().is_none()
            });
            if !gone {
                bail!("process {pid} has not ended after {STOP_TIMEOUT:?}");
            }
            crate::say!("Stopped the cluster (process {pid}).");
        }
    }
    if args.purge {
        crate::cluster::purge(&layout)?;
        crate::say!("Removed {}.", layout.dir().display());
    }
    Ok(())
}
