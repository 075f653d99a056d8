//! A cluster that tests can start, kill and look at from outside.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, bail};

/// A control plane without a node, in a directory of its own, stopped and removed when dropped.
#[derive(Debug)]
pub struct Cluster {
    dir: tempfile::TempDir,
    port: u16,
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
    /// A directory for a cluster whose API is at a free port of the loopback interface.
    ///
    /// # Errors
    /// When no directory or port can be had.
    pub fn new() -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        Ok(Self { dir: tempfile::tempdir()?, port: listener.local_addr()?.port() })
    }

    /// Its data directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts it and waits until the API answers.
    ///
    /// # Errors
    /// With all that the command printed, when it did not come up.
    pub fn up(&self) -> anyhow::Result<()> {
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

    fn ironclad(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let output = Command::new(program("ironclad")?)
            .args(arguments)
            .arg("--data-dir")
            .arg(self.dir())
            .output()?;
        if !output.status.success() {
            let log = std::fs::read_to_string(self.dir().join("ironclad.log")).unwrap_or_default();
            bail!("{arguments:?}: {}\n{log}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(output)
    }

    /// A client of its administrator.
    ///
    /// # Errors
    /// When its certificates cannot be read.
    pub fn client(&self) -> anyhow::Result<client::Client> {
        daemon::tls::install_provider();
        let read = |name: &str| std::fs::read_to_string(self.dir().join("pki").join(name));
        let tls = daemon::tls::ClientTls {
            ca: read("ca.crt")?,
            identity: Some((read("admin.crt")?, read("admin.key")?)),
            server_name: None,
        };
        let url = format!("https://127.0.0.1:{}", self.port);
        Ok(client::Client::new(daemon::channel::connect(&url, Some(&tls))?, "test"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.ironclad(&["down", "--purge"]) {
            eprintln!("cluster not stopped: {error:#}");
        }
    }
}
