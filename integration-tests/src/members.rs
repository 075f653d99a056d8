//! Members of a store as processes of their own, which reach each other over mutual TLS.
#![allow(clippy::disallowed_methods)] // of tests only

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::{machine, program};

/// How long anything may take that has to happen: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Some members below one directory; killed when dropped.
pub struct Members {
    dir: tempfile::TempDir,
    all: Vec<Member>,
}

struct Member {
    client: u16,
    peer: u16,
    settings: Vec<String>,
    child: Option<Child>,
}

impl Members {
    /// Certificates and places for so many members, none of which runs yet.
    ///
    /// # Errors
    /// When no port or directory can be had.
    pub fn prepare(count: usize) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        authority(&dir.path().join("pki"))?;
        // All are held at the same time, so that no port comes twice.
        let held: Vec<_> = (0..count * 2)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0"))
            .collect::<Result<_, _>>()?;
        let ports: Vec<u16> =
            held.iter().map(|l| Ok(l.local_addr()?.port())).collect::<std::io::Result<_>>()?;
        let member = |ports: &[u16]| Member {
            client: ports[0],
            peer: ports[1],
            settings: Vec::new(),
            child: None,
        };
        Ok(Self { dir, all: ports.chunks(2).map(member).collect() })
    }

    /// Another authority, with certificates like those of the first, and their directory.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn authority(&self, name: &str) -> anyhow::Result<PathBuf> {
        let pki = self.dir.path().join(name);
        authority(&pki)?;
        Ok(pki)
    }

    /// Where clients reach a member.
    #[must_use]
    pub fn endpoint(&self, at: usize) -> String {
        format!("http://127.0.0.1:{}", self.all[at].client)
    }

    /// Where all clients come in, for etcdctl.
    #[must_use]
    pub fn endpoints(&self) -> String {
        let running = (0..self.all.len()).filter(|at| self.all[*at].child.is_some());
        running.map(|at| self.endpoint(at)).collect::<Vec<_>>().join(",")
    }

    /// Where the others reach a member.
    #[must_use]
    pub fn peer_url(&self, at: usize) -> String {
        format!("https://127.0.0.1:{}", self.all[at].peer)
    }

    /// A member's name.
    #[must_use]
    pub fn name(at: usize) -> String {
        format!("m{at}")
    }

    /// Starts a member for the first time: `new` or `existing`, in a cluster of these.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn begin(&mut self, at: usize, state: &str, cluster: &[usize]) -> anyhow::Result<()> {
        self.begin_known_by(at, state, cluster, "pki")
    }

    /// The same for a member whose certificates are in this directory of [`Members::authority`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn begin_known_by(
        &mut self,
        at: usize,
        state: &str,
        cluster: &[usize],
        pki: &str,
    ) -> anyhow::Result<()> {
        let named = cluster.iter().map(|at| format!("{}={}", Self::name(*at), self.peer_url(*at)));
        let pki = |file: &str| self.dir.path().join(pki).join(file).display().to_string();
        let member = &self.all[at];
        self.all[at].settings = vec![
            format!("name={}", Self::name(at)),
            format!("data_dir={}", self.dir.path().join(Self::name(at)).display()),
            format!("client.listen=127.0.0.1:{}", member.client),
            format!("peer.listen=127.0.0.1:{}", member.peer),
            "peer.tls=files".to_owned(),
            format!("peer.files.ca={}", pki("ca.crt")),
            format!("peer.files.cert={}", pki("node-m.crt")),
            format!("peer.files.key={}", pki("node-m.key")),
            format!("initial_cluster={}", named.collect::<Vec<_>>().join(",")),
            format!("initial_cluster_state={state}"),
        ];
        self.start(at)
    }

    /// Starts a member again.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self, at: usize) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.log_file(at))?;
        let settings = self.all[at].settings.iter();
        let child = Command::new(program("ironclad-store")?)
            .args(settings.flat_map(|setting| ["--set", setting.as_str()]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.all[at].child = Some(child);
        Ok(())
    }

    /// Settings that a member gets when it is started again.
    pub fn tell(&mut self, at: usize, settings: &[String]) {
        self.all[at].settings.extend_from_slice(settings);
    }

    /// A member's own certificate and key and its authority: `node-m` below this directory.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.dir.path().join("pki")
    }

    /// What a running member takes of the memory.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resident_mib(&self, at: usize) -> anyhow::Result<u64> {
        let child = self.all[at].child.as_ref().context("it does not run")?;
        crate::resident_mib(child.id())
    }

    /// Kills a member as a power cut would.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, at: usize) -> anyhow::Result<()> {
        let mut child = self.all[at].child.take().context("it does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Removes the data of a member that does not run.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn lose(&self, at: usize) -> anyhow::Result<()> {
        Ok(std::fs::remove_dir_all(self.dir.path().join(Self::name(at)))?)
    }

    /// Asks a member to end.
    ///
    /// # Errors
    /// When it does not run.
    pub fn terminate(&self, at: usize) -> anyhow::Result<()> {
        let child = self.all[at].child.as_ref().context("it does not run")?;
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
        Ok(nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?)
    }

    /// How a member ended, which it does soon.
    ///
    /// # Errors
    /// When it goes on.
    pub async fn ended(&mut self, at: usize) -> anyhow::Result<ExitStatus> {
        let mut child = self.all[at].child.take().context("it does not run")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                self.all[at].child = Some(child);
                anyhow::bail!("{} does not end", Self::name(at));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn log_file(&self, at: usize) -> std::path::PathBuf {
        self.dir.path().join(format!("{}.log", Self::name(at)))
    }

    /// What a member said.
    ///
    /// # Errors
    /// When it never ran.
    pub fn log(&self, at: usize) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.log_file(at))?)
    }

    /// Refuses logs with an error or warning that contains none of `expected`.
    ///
    /// # Errors
    /// With the lines that nobody expected.
    pub fn check_logs(&self, expected: &[&str]) -> anyhow::Result<()> {
        for at in 0..self.all.len() {
            if Path::exists(&self.log_file(at)) {
                crate::check_log(&self.log(at)?, expected).context(Self::name(at))?;
            }
        }
        Ok(())
    }
}

fn authority(pki: &Path) -> anyhow::Result<()> {
    let (program, pki) = (program("ironclad-pki")?, pki.display().to_string());
    let words = [pki.as_str(), "127.0.0.1", "10.96.0.1", "--node", "m=127.0.0.1"];
    machine::output(&program.display().to_string(), &words).map(drop)
}

impl Drop for Members {
    fn drop(&mut self) {
        for member in &mut self.all {
            if let Some(mut child) = member.child.take() {
                // Whoever has ended is gone already.
                let _ended = child.kill();
                let _reaped = child.wait();
            }
        }
        if std::thread::panicking() {
            eprintln!("the members' logs were in {}", self.dir.path().display());
        }
    }
}

/// Looks until it is so.
///
/// # Errors
/// The last one, when it is not so in time.
pub async fn soon<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() > deadline => return Err(error.context(what.to_owned())),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// The columns of etcdctl's simple tables.
///
/// # Errors
/// When it fails, or says nothing.
pub fn etcdctl(endpoints: &str, words: &[&str]) -> anyhow::Result<Vec<Vec<String>>> {
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={endpoints}"))
        .args(words)
        .output()
        .context("etcdctl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "etcdctl {words:?}: {said}");
    let text = String::from_utf8(output.stdout)?;
    let columns = |line: &str| line.split(", ").map(|word| word.trim().to_owned()).collect();
    Ok(text.lines().map(columns).collect())
}
