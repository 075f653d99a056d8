//! Real clusters that tests start, kill and look at from outside.
//!
//! [`machine`] says what the machine lacks and gives a test file its own network; [`Cluster`] is `ironclad up` in a
//! directory of its own; [`Seen`] waits, on watches, for what should come about; [`load`] asks a Service without pause
//! and counts what goes wrong.

pub mod apart;
pub mod clients;
pub mod etcd;
pub mod lab;
pub mod load;
pub mod machine;
pub mod members;
mod seen;
pub mod servers;
pub mod source;
pub mod vm;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, bail, ensure};

pub use seen::{Seen, container, name, ready, uid};

/// A cluster of one machine in a directory of its own, stopped and removed when dropped.
#[derive(Debug)]
pub struct Cluster {
    dir: tempfile::TempDir,
    port: u16,
    node: bool,
}

/// The built program of this name, beside the test's own.
///
/// # Errors
/// When it has not been built: `cargo build --bins` does.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let dir = own.ancestors().nth(2).context("the test's directory")?;
    let path = dir.join(name);
    if !path.exists() {
        bail!("{} is not built: cargo build --workspace --bins", path.display());
    }
    Ok(path)
}

impl Cluster {
    /// A directory for a control plane without a node, whose API is at a free port of the loopback interface.
    ///
    /// # Errors
    /// When no directory or port can be had.
    pub fn new() -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        Ok(Self { dir: tempfile::tempdir()?, port: listener.local_addr()?.port(), node: false })
    }

    /// A directory for a whole cluster in the network namespace of the test.
    ///
    /// # Errors
    /// When no directory can be had.
    pub fn with_node() -> anyhow::Result<Self> {
        Ok(Self { dir: tempfile::tempdir()?, port: 6443, node: true })
    }

    /// Where its API is, without a scheme.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its data directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts it and waits until the API answers and the node, if any, is ready.
    ///
    /// # Errors
    /// With all that the command printed, when it did not come up.
    pub fn up(&self) -> anyhow::Result<()> {
        if self.node {
            return self.ironclad(&["up", "--detach", "--node-name", "n1"]).map(drop);
        }
        let listen = format!("127.0.0.1:{}", self.port);
        self.ironclad(&["up", "--no-node", "--detach", "--api-listen", &listen]).map(drop)
    }

    /// Kills the process as a power cut would.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&self) -> anyhow::Result<()> {
        let pid = std::fs::read_to_string(self.dir().join("ironclad.pid")).context("no pid")?;
        let status = Command::new("kill").args(["-9", pid.trim()]).status()?;
        anyhow::ensure!(status.success(), "kill -9 {}", pid.trim());
        while Path::new("/proc").join(pid.trim()).join("exe").exists() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Ok(())
    }

    /// Stops it and removes every trace.
    ///
    /// # Errors
    /// With what the command printed.
    pub fn purge(&self) -> anyhow::Result<()> {
        self.ironclad(&["down", "--purge"]).map(drop)
    }

    fn ironclad(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let output = Command::new(program("ironclad")?)
            .args(arguments)
            .arg("--data-dir")
            .arg(self.dir())
            .output()?;
        if !output.status.success() {
            bail!(
                "{arguments:?}: {}\n{}",
                String::from_utf8_lossy(&output.stderr),
                self.log().unwrap_or_default()
            );
        }
        Ok(output)
    }

    /// What it has logged.
    ///
    /// # Errors
    /// When there is no log.
    pub fn log(&self) -> anyhow::Result<String> {
        std::fs::read_to_string(self.dir().join("ironclad.log")).context("read the log")
    }

    /// Refuses a log with an error or warning that contains none of `expected`.
    ///
    /// # Errors
    /// With the lines that nobody expected.
    pub fn check_log(&self, expected: &[&str]) -> anyhow::Result<()> {
        check_log(&self.log()?, expected)
    }

    /// A client of its administrator.
    ///
    /// # Errors
    /// When its certificates cannot be read.
    pub fn client(&self) -> anyhow::Result<client::Client> {
        connect(&format!("https://127.0.0.1:{}", self.port), &self.dir().join("pki"))
    }

    /// Looks at it from now on.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn seen(&self) -> anyhow::Result<Seen> {
        Seen::start(self.client()?).await
    }

    /// What a container has printed.
    ///
    /// # Errors
    /// When there is no log of it.
    pub fn printed(&self, pod: &serde_json::Value, container: &str) -> anyhow::Result<String> {
        printed(&self.dir().join("node/logs"), pod, container)
    }
}

/// Refuses a log with an error or warning that contains none of `expected`.
///
/// # Errors
/// With the lines that nobody expected.
pub fn check_log(log: &str, expected: &[&str]) -> anyhow::Result<()> {
    let level = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
    let bad = |line: &&str| {
        matches!(level(line).as_deref(), Some("ERROR" | "WARN"))
            && !expected.iter().any(|text| line.contains(text))
    };
    let bad: Vec<&str> = log.lines().filter(bad).collect();
    ensure!(bad.is_empty(), "unexpected in the log:\n{}", bad.join("\n"));
    Ok(())
}

/// What a container has printed, by the logs below `dir`.
///
/// # Errors
/// When there is no log of it.
pub fn printed(dir: &Path, pod: &serde_json::Value, container: &str) -> anyhow::Result<String> {
    let of = |key: &str| pod["metadata"][key].as_str().unwrap_or_default();
    let pod = format!("{}_{}_{}", of("namespace"), of("name"), of("uid"));
    let path = dir.join(pod).join(container).join("0.log");
    let log = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    // Each line: time, stream, whether it is whole, text.
    let text = log.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
    Ok(text.collect::<Vec<_>>().join("\n"))
}

/// A client of the administrator whose certificates are in `pki`.
///
/// # Errors
/// When they cannot be read.
pub fn connect(url: &str, pki: &Path) -> anyhow::Result<client::Client> {
    daemon::tls::install_provider();
    let read = |name: &str| std::fs::read_to_string(pki.join(name)).context(name.to_owned());
    let tls = daemon::tls::ClientTls {
        ca: read("ca.crt")?,
        identity: Some((read("admin.crt")?, read("admin.key")?)),
        server_name: None,
    };
    Ok(client::Client::new(daemon::channel::connect(url, Some(&tls))?, "test"))
}

/// Nodes that run nothing, as `ironclad simulate nodes` plays them; they stop when dropped, and stay registered.
#[derive(Debug)]
pub struct Fleet(Child);

impl Fleet {
    /// Starts them for the cluster that has its administrator's kubeconfig in `dir`, with options of the command.
    ///
    /// # Errors
    /// When the program is not built.
    pub fn start(dir: &Path, options: &[&str]) -> anyhow::Result<Self> {
        let fleet = Command::new(program("ironclad")?)
            .args(["simulate", "nodes", "--keep", "--data-dir", &dir.display().to_string()])
            .args(options)
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self(fleet))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let _gone = self.0.kill().and_then(|()| self.0.wait());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("IRONCLAD_TEST_LOG").is_some() {
            eprintln!("{}", self.log().unwrap_or_default());
        }
        if let Err(error) = self.purge() {
            eprintln!("cluster not stopped: {error:#}");
        }
    }
}

/// What a process takes of the memory.
///
/// # Errors
/// When it does not run.
pub fn resident_mib(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
    Ok(kib.parse::<u64>()? >> 10)
}
