//! A private containerd, run as a child that outlives us.
//!
//! It lives in its own process group with its log in a file, and is found again by its socket, so a
//! killed agent leaves running containers alone and adopts them at its next start. Only
//! [`Containerd::stop`] ends it.

use std::fmt::Write as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use daemon::{Backoff, Context};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tonic::transport::Channel;

use crate::images;

const CONFIG: &str = "config.toml";
const START_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is seen to that containerd runs.
const WATCH_PERIOD: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(20);

/// Where a private containerd lives.
#[derive(Debug, Clone)]
pub struct Containerd {
    /// Everything of it is below here.
    pub dir: PathBuf,
    /// Where the CNI plugins are.
    pub cni_bin_dir: PathBuf,
    /// The `containerd` program.
    pub program: String,
}

impl Containerd {
    /// A containerd whose files are below `dir`.
    #[must_use]
    pub fn new(dir: &Path, program: &str, cni_bin_dir: &Path) -> Self {
        let (dir, cni_bin_dir) = (dir.to_owned(), cni_bin_dir.to_owned());
        Self { dir, cni_bin_dir, program: program.to_owned() }
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    /// Where its CNI configuration is read from.
    #[must_use]
    pub fn cni_dir(&self) -> PathBuf {
        self.dir.join("cni/net.d")
    }

    /// Where the CNI plugins keep what they handed out.
    #[must_use]
    pub fn cni_state_dir(&self) -> PathBuf {
        self.dir.join("cni/state")
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("containerd.pid")
    }

    fn config(&self) -> String {
        let path = |p: PathBuf| format!("{:?}", p.display().to_string());
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _infallible = write!(
            text,
            r#"version = 2
root = {root}
state = {state}
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]

[grpc]
  address = {socket}

[ttrpc]
  address = {ttrpc}

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {bin}
    conf_dir = {conf}
    max_conf_num = 1

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"#,
            root = path(self.dir.join("root")),
            state = path(self.dir.join("state")),
            socket = path(self.socket()),
            ttrpc = path(self.dir.join("containerd.sock.ttrpc")),
            pause = images::PAUSE_IMAGE,
            bin = path(self.cni_bin_dir.clone()),
            conf = path(self.cni_dir()),
        );
        text
    }

    /// Adopts the containerd behind the socket, or starts one, and waits until it answers.
    ///
    /// # Errors
    /// When it cannot be started or does not answer in time.
    #[allow(clippy::zombie_processes)] // it outlives us; `stop` waits for it
    pub async fn start(&self) -> anyhow::Result<Channel> {
        let channel = crate::runtime::channel(&self.socket());
        if crate::runtime::answers(&channel).await {
            tracing::info!(socket = %self.socket().display(), "containerd adopted");
            return Ok(channel);
        }
        if let Some(pid) = self.pid() {
            reap(pid);
        }
        for dir in [self.dir.clone(), self.cni_dir(), self.cni_state_dir()] {
            std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let config = self.dir.join(CONFIG);
        std::fs::write(&config, self.config()).context("write containerd's configuration")?;
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("containerd.log"))
            .context("open containerd's log")?;
        let mut child = std::process::Command::new(&self.program)
            .arg("--config")
            .arg(&config)
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().context("open containerd's log")?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", self.program))?;
        std::fs::write(self.pid_file(), child.id().to_string()).context("write containerd.pid")?;
        let mut waited = Duration::ZERO;
        while !crate::runtime::answers(&channel).await {
            if let Some(status) = child.try_wait().context("wait for containerd")? {
                bail!("containerd ended ({status}); see {}/containerd.log", self.dir.display());
            }
            if waited > START_TIMEOUT {
                bail!("containerd does not answer; see {}/containerd.log", self.dir.display());
            }
            tokio::time::sleep(POLL).await;
            waited += POLL;
        }
        tracing::info!(pid = child.id(), "containerd started");
        Ok(channel)
    }

    /// Starts containerd again whenever it is gone, until shutdown.
    ///
    /// # Errors
    /// Never before shutdown; the form is that of a part.
    pub async fn keep(self, ctx: Context) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        loop {
            let gone = self.pid().is_none_or(|pid| !self.is_ours(pid));
            let wait = if gone {
                let started = self.start().await;
                match started {
                    Ok(_) => tracing::warn!("containerd was gone and is started again"),
                    Err(error) => tracing::error!(error = format!("{error:#}"), "no containerd"),
                }
                backoff.delay()
            } else {
                WATCH_PERIOD
            };
            tokio::select! {
                () = ctx.shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn pid(&self) -> Option<i32> {
        std::fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()
    }

    /// Ends containerd. With `purge`, every pod is killed first and every trace removed: shims,
    /// mounts, network namespaces, addresses and files.
    ///
    /// # Errors
    /// When something of it cannot be removed.
    pub async fn stop(&self, purge: bool) -> anyhow::Result<()> {
        // A containerd that was killed is started once more: only it knows all that its pods have.
        if purge && self.dir.join(CONFIG).exists() {
            let removed = match self.start().await {
                Ok(channel) => {
                    let runtime = crate::runtime::Runtime::new(channel);
                    runtime.remove_everything(Path::new("")).await.map_err(anyhow::Error::from)
                }
                Err(error) => Err(error),
            };
            if let Err(error) = removed {
                let error = format!("{error:#}");
                tracing::warn!(error, "pods could not all be removed in good order");
            }
        }
        self.end_process().await?;
        if purge {
            self.kill_shims().await;
            unmount_below(&self.dir)?;
            match std::fs::remove_dir_all(&self.dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {}", self.dir.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn end_process(&self) -> anyhow::Result<()> {
        let Some(pid) = self.pid().filter(|pid| self.is_ours(*pid)) else { return Ok(()) };
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            if kill(Pid::from_raw(pid), signal).is_err() {
                break;
            }
            let mut waited = Duration::ZERO;
            while self.is_ours(pid) && waited < STOP_TIMEOUT {
                reap(pid);
                tokio::time::sleep(POLL).await;
                waited += POLL;
            }
            if !self.is_ours(pid) {
                break;
            }
        }
        std::fs::remove_file(self.pid_file()).context("remove containerd.pid")
    }

    /// Whether process `pid` is our containerd: the number may have been given to another since.
    fn is_ours(&self, pid: i32) -> bool {
        let config = self.dir.join(CONFIG).display().to_string();
        command_line(pid).contains(&config)
    }

    /// Kills the shims that still serve our containerd.
    async fn kill_shims(&self) {
        let socket = self.socket().display().to_string();
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let shims: Vec<i32> = pids
            .filter(|pid| {
                let words = command_line(*pid);
                words.first().is_some_and(|w| w.contains("containerd-shim"))
                    && words.contains(&socket)
            })
            .collect();
        for pid in &shims {
            tracing::warn!(pid, "shim left behind is killed");
            // It may have ended in the meantime, which is as good.
            let _gone = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        if !shims.is_empty() {
            tokio::time::sleep(POLL * 5).await;
        }
    }
}

/// Collects a process that has ended, where it is our own child.
fn reap(pid: i32) {
    // It may be another's child, or still run: both are no concern here.
    let _other = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
}

fn command_line(pid: i32) -> Vec<String> {
    let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = text.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Unmounts whatever is mounted below `dir`, innermost first.
///
/// # Errors
/// When a mount cannot be removed.
pub fn unmount_below(dir: &Path) -> anyhow::Result<()> {
    let dir = match dir.canonicalize() {
        Ok(dir) => dir,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("resolve {}", dir.display())),
    };
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("read mounts")?;
    let mounts = table.lines().filter_map(|line| line.split(' ').nth(4));
    let mut points: Vec<String> = mounts.map(|point| point.replace("\\040", " ")).collect();
    points.retain(|point| Path::new(point).starts_with(&dir));
    points.reverse();
    for point in points {
        nix::mount::umount2(point.as_str(), nix::mount::MntFlags::MNT_DETACH)
            .with_context(|| format!("unmount {point}"))?;
    }
    Ok(())
}
