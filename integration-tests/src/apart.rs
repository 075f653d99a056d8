//! The daemons of a machine as processes of their own, started as the systemd units start them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::{machine, program};

/// The daemons, in the order in which they are started.
pub const DAEMONS: [&str; 7] =
    ["store", "apiserver", "scheduler", "controller-manager", "proxy", "dns", "node-agent"];
/// The machine's own address in its namespace, and the way out of it.
const ADDRESS: &str = "192.0.2.2";
const GATEWAY: &str = "192.0.2.1";
const NODE: &str = "n1";

/// Daemons below one directory; killed, and their traces removed, when dropped.
pub struct Apart {
    dir: tempfile::TempDir,
    running: BTreeMap<&'static str, Child>,
}

/// A file of the project.
#[must_use]
pub fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

impl Apart {
    /// Makes certificates and configuration files, as docs/operations.md says.
    ///
    /// # Errors
    /// When a program or file is missing.
    pub fn prepare() -> anyhow::Result<Self> {
        machine::uplink(ADDRESS, GATEWAY)?;
        let apart = Self { dir: tempfile::tempdir()?, running: BTreeMap::new() };
        let pki = apart.etc().join("pki").display().to_string();
        let pki_program = program("ironclad-pki")?.display().to_string();
        let node = format!("{NODE}={ADDRESS}");
        machine::output(&pki_program, &[&pki, ADDRESS, "10.96.0.1", "--node", &node])?;
        for kind in ["crt", "key"] {
            let from = apart.etc().join(format!("pki/node-{NODE}.{kind}"));
            std::fs::copy(from, apart.etc().join(format!("pki/node.{kind}")))?;
        }
        for daemon in DAEMONS {
            let file = format!("{daemon}.toml");
            let text = std::fs::read_to_string(project("deploy/config").join(&file))?;
            std::fs::write(apart.etc().join(&file), apart.moved(&text))?;
        }
        Ok(apart)
    }

    fn etc(&self) -> PathBuf {
        self.dir.path().join("etc")
    }

    /// The same text for daemons that live below our directory and where cargo builds.
    fn moved(&self, text: &str) -> String {
        let images = machine::images().display().to_string();
        text.replace("/etc/ironclad", &self.etc().display().to_string())
            .replace("/var/lib/ironclad", &self.dir.path().join("var").display().to_string())
            .replace("/usr/lib/ironclad/images", &images)
    }

    /// Starts a daemon with the command of its unit.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self, daemon: &'static str) -> anyhow::Result<()> {
        self.start_as(daemon, daemon, &[]).map(drop)
    }

    /// Starts a daemon under a name of its own, so that there can be several, with more settings; returns its process.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_as(
        &mut self,
        name: &'static str,
        daemon: &str,
        settings: &[&str],
    ) -> anyhow::Result<u32> {
        let unit = project("deploy/systemd").join(format!("ironclad-{daemon}.service"));
        let unit = self.moved(&std::fs::read_to_string(&unit)?);
        let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/"));
        let mut words = line.context("no ExecStart")?.split(' ');
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join(format!("{name}.log")))?;
        let child = Command::new(program(words.next().context("no program")?)?)
            .args(words)
            .args(settings.iter().flat_map(|setting| ["--set", setting]))
            .env("IRONCLAD_APISERVER__ADVERTISE", ADDRESS)
            .env("IRONCLAD_NODE_AGENT__NODE_NAME", NODE)
            .env("IRONCLAD_NODE_AGENT__NODE_IP", ADDRESS)
            .env("IRONCLAD_PROXY__NODE_NAME", NODE)
            .env("IRONCLAD_PROXY__NODE_IP", ADDRESS)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context(name)?;
        let pid = child.id();
        self.running.insert(name, child);
        Ok(pid)
    }

    /// Kills a daemon as a power cut would.
    ///
    /// # Errors
    /// When it does not run any more.
    pub fn kill(&mut self, daemon: &'static str) -> anyhow::Result<()> {
        let mut child = self.running.remove(daemon).context("not started")?;
        ensure!(child.try_wait()?.is_none(), "{daemon} has ended by itself:\n{}", self.log(daemon));
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Asks a daemon to stop, as systemd would, and waits until it has.
    ///
    /// # Errors
    /// When it does not run any more, or ends with an error.
    pub fn stop(&mut self, daemon: &'static str) -> anyhow::Result<()> {
        let mut child = self.running.remove(daemon).context("not started")?;
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let status = child.wait()?;
        ensure!(status.success(), "{daemon} ended with {status}:\n{}", self.log(daemon));
        Ok(())
    }

    /// Refuses if a daemon has ended that nobody killed.
    ///
    /// # Errors
    /// With its log.
    pub fn all_run(&mut self) -> anyhow::Result<()> {
        for daemon in DAEMONS {
            let child = self.running.get_mut(daemon).context(daemon)?;
            ensure!(child.try_wait()?.is_none(), "{daemon} has ended:\n{}", self.log(daemon));
        }
        Ok(())
    }

    /// What a daemon has logged.
    #[must_use]
    pub fn log(&self, daemon: &str) -> String {
        let path = self.dir.path().join(format!("{daemon}.log"));
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Writes the administrator's kubeconfig where `ironclad --data-dir` looks for it; returns that directory.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig(&self) -> anyhow::Result<PathBuf> {
        let text = |file: &str| -> anyhow::Result<String> {
            Ok(STANDARD.encode(std::fs::read(self.etc().join("pki").join(file))?))
        };
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "ironclad",
            "clusters": [{"name": "ironclad", "cluster": {
                "server": "https://127.0.0.1:6443", "certificate-authority-data": text("ca.crt")?,
            }}],
            "users": [{"name": "admin", "user": {
                "client-certificate-data": text("admin.crt")?, "client-key-data": text("admin.key")?,
            }}],
            "contexts": [{"name": "ironclad", "context": {"cluster": "ironclad", "user": "admin"}}],
        });
        let dir = self.dir.path().join("var");
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("admin.kubeconfig"), config.to_string())?;
        Ok(dir)
    }

    /// A client of the administrator.
    ///
    /// # Errors
    /// When its certificates cannot be read.
    pub fn client(&self) -> anyhow::Result<client::Client> {
        crate::connect("https://127.0.0.1:6443", &self.etc().join("pki"))
    }

    /// Looks at the cluster from now on.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn seen(&self) -> anyhow::Result<crate::Seen> {
        crate::Seen::start(self.client()?).await
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            // It may have ended in the meantime, which is as good.
            let _gone = child.kill().and_then(|()| child.wait());
        }
        let var = self.dir.path().join("var").display().to_string();
        let purged = program("ironclad").and_then(|ironclad| {
            machine::output(
                &ironclad.display().to_string(),
                &["down", "--purge", "--data-dir", &var],
            )
        });
        if let Err(error) = purged {
            eprintln!("not removed: {error:#}");
        }
    }
}
