//! Three members of a store on machines of their own, as far as a kernel can pretend: each in a network namespace of its own,
//! with a small disk of its own, and one switch between them and the test.
//!
//! Nothing has to be cleaned up to be gone. Namespaces have no names, mounts are in a mount namespace of the test, and all
//! that is started dies with whoever started it.
#![allow(clippy::disallowed_methods)] // of tests only

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use daemon::channel::Pulse;
use daemon::tls::ClientTls;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;

use crate::{machine, program};

/// Members of the cluster.
pub const MEMBERS: usize = 3;
/// What a member's disk holds, and what it wants to keep free.
const DISK: &str = "size=96m";
const RESERVE_BYTES: u64 = 16 << 20;
/// Entries after which a member makes a snapshot: few, so that one that was away gets one.
const SNAPSHOT_ENTRIES: u64 = 60;
/// The test's own address on the switch; the members' follow it.
const OWN: &str = "10.77.0.1/24";
/// Clients notice by then that a member is silent.
const PULSE: Pulse = Pulse { every: Duration::from_secs(1), timeout: Duration::from_secs(2) };
/// How long a namespace or a process may take to come or go.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which way a member does not reach the other members any more, or is not reached by them. Clients reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Neither way.
    Both,
    /// It hears nothing.
    Deaf,
    /// It is not heard.
    Mute,
}

/// The machines.
pub struct Lab {
    dir: tempfile::TempDir,
    nodes: Vec<Node>,
}

struct Node {
    /// Keeps the network namespace.
    holder: Child,
    store: Option<Child>,
}

/// A program that dies with the thread that starts it, which must be one that stays.
fn bound(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

impl Lab {
    /// Machines on which no member runs yet. The caller's thread, and those it starts from now on, have mounts of their own.
    ///
    /// # Errors
    /// When the kernel refuses, or a program is missing.
    pub fn build() -> anyhow::Result<Self> {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).context("unshare")?;
        machine::output("mount", &["--make-rprivate", "/"])?;
        for words in [
            &["link", "add", "switch", "type", "bridge"][..],
            &["addr", "add", OWN, "dev", "switch"],
            &["link", "set", "switch", "up"],
        ] {
            machine::output("ip", words)?;
        }
        let mut lab = Self { dir: tempfile::tempdir()?, nodes: Vec::new() };
        let pki = lab.dir.path().join("pki").display().to_string();
        let named: Vec<String> = (0..MEMBERS).map(|at| format!("m{at}={}", address(at))).collect();
        let nodes = named.iter().flat_map(|node| ["--node", node.as_str()]);
        let words: Vec<&str> = [pki.as_str()].into_iter().chain(nodes).collect();
        machine::output(&program("ironclad-pki")?.display().to_string(), &words)?;
        for at in 0..MEMBERS {
            lab.add(at)?;
        }
        Ok(lab)
    }

    fn add(&mut self, at: usize) -> anyhow::Result<()> {
        let holder = bound("unshare").args(["--net", "sleep", "infinity"]).spawn()?;
        self.nodes.push(Node { holder, store: None });
        let own = std::fs::read_link("/proc/self/ns/net")?;
        let pid = self.nodes[at].holder.id().to_string();
        let deadline = Instant::now() + PATIENCE;
        while std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|ns| ns == own) {
            ensure!(Instant::now() < deadline, "no network namespace");
            std::thread::sleep(Duration::from_millis(5));
        }
        let port = format!("port{at}");
        for words in [
            &["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &pid][..],
            &["link", "set", &port, "master", "switch", "up"],
        ] {
            machine::output("ip", words)?;
        }
        let range = format!("{}/24", address(at));
        for words in [
            &["link", "set", "lo", "up"][..],
            &["addr", "add", &range, "dev", "eth0"],
            &["link", "set", "eth0", "up"],
        ] {
            self.inside(at, "ip", words)?;
        }
        let disk = self.disk(at).display().to_string();
        std::fs::create_dir(&disk)?;
        machine::output("mount", &["-t", "tmpfs", "-o", DISK, "disk", &disk]).map(drop)
    }

    /// Runs a program on a machine.
    fn inside(&self, at: usize, program: &str, words: &[&str]) -> anyhow::Result<String> {
        let place = self.namespace(at);
        let all: Vec<&str> = [&place, program].into_iter().chain(words.iter().copied()).collect();
        machine::output("nsenter", &all)
    }

    fn namespace(&self, at: usize) -> String {
        format!("--net=/proc/{}/ns/net", self.nodes[at].holder.id())
    }

    fn disk(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("m{at}"))
    }

    fn log_file(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("m{at}.log"))
    }

    /// What a member said, in all its lives.
    ///
    /// # Errors
    /// When it never ran.
    pub fn log(&self, at: usize) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.log_file(at))?)
    }

    /// A channel to a member, for a client that notices soon when nobody is there.
    ///
    /// # Errors
    /// When the certificates cannot be read.
    pub fn channel(&self, at: usize) -> anyhow::Result<daemon::Channel> {
        let read = |name: &str| std::fs::read_to_string(self.dir.path().join("pki").join(name));
        let tls = ClientTls {
            ca: read("ca.crt")?,
            identity: Some((read("admin.crt")?, read("admin.key")?)),
            server_name: None,
        };
        let url = format!("https://{}:2379", address(at));
        daemon::channel::connect_with(&url, Some(&tls), PULSE)
    }

    /// Starts a member that does not run.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self, at: usize) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.log_file(at))?;
        let child = bound("nsenter")
            .arg(self.namespace(at))
            .arg(program("ironclad-store")?)
            .args(self.settings(at).iter().flat_map(|setting| ["--set", setting.as_str()]))
            .stderr(log)
            .spawn()?;
        self.nodes[at].store = Some(child);
        Ok(())
    }

    fn settings(&self, at: usize) -> Vec<String> {
        let pki = self.dir.path().join("pki").display().to_string();
        let all = (0..MEMBERS).map(|at| format!("m{at}=https://{}:2380", address(at)));
        let mut settings = vec![
            format!("name=m{at}"),
            format!("data_dir={}", self.disk(at).join("data").display()),
            format!("initial_cluster={}", all.collect::<Vec<_>>().join(",")),
            format!("disk_reserve_bytes={RESERVE_BYTES}"),
            format!("snapshot_entries={SNAPSHOT_ENTRIES}"),
        ];
        for (side, port) in [("client", 2379), ("peer", 2380)] {
            settings.extend([
                format!("{side}.listen={}:{port}", address(at)),
                format!("{side}.tls=files"),
                format!("{side}.files.ca={pki}/ca.crt"),
                format!("{side}.files.cert={pki}/node-m{at}.crt"),
                format!("{side}.files.key={pki}/node-m{at}.key"),
            ]);
        }
        settings
    }

    /// Sends a signal to a member.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, at: usize, signal: Signal) -> anyhow::Result<()> {
        let store = self.nodes[at].store.as_ref().context("it does not run")?;
        let pid = nix::unistd::Pid::from_raw(i32::try_from(store.id())?);
        Ok(nix::sys::signal::kill(pid, signal)?)
    }

    /// Kills a member as `kill -9` does, unless it has ended.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&mut self, at: usize) -> anyhow::Result<()> {
        let Some(mut store) = self.nodes[at].store.take() else { return Ok(()) };
        store.kill()?;
        store.wait()?;
        Ok(())
    }

    /// How a member ended, if it has, by itself.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ended(&mut self, at: usize) -> anyhow::Result<Option<ExitStatus>> {
        let Some(store) = &mut self.nodes[at].store else { return Ok(None) };
        let status = store.try_wait()?;
        if status.is_some() {
            self.nodes[at].store = None;
        }
        Ok(status)
    }

    /// Cuts a member off from the others.
    ///
    /// # Errors
    /// When nftables refuses.
    pub fn cut(&self, at: usize, cut: Cut) -> anyhow::Result<()> {
        let others = (0..MEMBERS).filter(|other| *other != at).map(address);
        let others = others.collect::<Vec<_>>().join(", ");
        let mut rules = String::from("table inet chaos {\n");
        for (chain, field, cuts) in [
            ("input", "saddr", [Cut::Both, Cut::Deaf]),
            ("output", "daddr", [Cut::Both, Cut::Mute]),
        ] {
            if cuts.contains(&cut) {
                rules += &format!(
                    "chain {chain} {{ type filter hook {chain} priority 0; \
                     ip {field} {{ {others} }} drop; }}\n"
                );
            }
        }
        rules += "}\n";
        let mut nft = Command::new("nsenter")
            .args([&self.namespace(at), "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()?;
        nft.stdin.take().context("no input")?.write_all(rules.as_bytes())?;
        ensure!(nft.wait()?.success(), "nft refuses:\n{rules}");
        Ok(())
    }

    /// Joins a member to the others again.
    ///
    /// # Errors
    /// When nftables refuses.
    pub fn join(&self, at: usize) -> anyhow::Result<()> {
        self.inside(at, "nft", &["delete", "table", "inet", "chaos"]).map(drop)
    }

    /// Takes all that is free on a member's disk but for so many bytes.
    ///
    /// # Errors
    /// When the disk cannot be asked.
    pub fn fill(&self, at: usize, left_bytes: u64) -> anyhow::Result<()> {
        let disk = self.disk(at);
        let free = nix::sys::statvfs::statvfs(&disk)?;
        let free = free.blocks_available() * free.fragment_size();
        let bytes = free.saturating_sub(left_bytes).to_string();
        let file = disk.join("filler").display().to_string();
        // The member writes too, so there may be less by now; then it is full, which is as well.
        let filled = machine::output("fallocate", &["-l", &bytes, &file]);
        ensure!(filled.is_ok() || left_bytes == 0, "{filled:?}");
        Ok(())
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// When nothing was taken.
    pub fn free(&self, at: usize) -> anyhow::Result<()> {
        let file = self.disk(at).join("filler");
        if file.exists() { Ok(std::fs::remove_file(file)?) } else { Ok(()) }
    }

    /// Bytes below which a member says that its disk is full.
    #[must_use]
    pub fn reserve_bytes() -> u64 {
        RESERVE_BYTES
    }
}

fn address(at: usize) -> String {
    format!("10.77.0.{}", at + 11)
}

impl Drop for Lab {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            for child in node.store.iter_mut().chain([&mut node.holder]) {
                // Whoever has ended is gone already.
                let _ended = child.kill();
                let _reaped = child.wait();
            }
        }
        for at in 0..self.nodes.len() {
            let disk = self.disk(at).display().to_string();
            if let Err(error) = machine::output("umount", &["--lazy", &disk]) {
                eprintln!("{error:#}");
            }
        }
    }
}
