//! What the tests need of the machine: abilities, a network of their own, and a look at what lies around.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};

/// A test by its name. It gets a runtime of its own, in a network namespace without a way out.
pub type Test = (&'static str, fn() -> anyhow::Result<()>);

/// Runs tests that need a machine on which pods can run. Where it cannot, they are listed as ignored, and what it lacks
/// is said.
#[must_use]
pub fn run(tests: Vec<Test>) -> ExitCode {
    run_lacking(&lacks(), tests)
}

/// The same for tests with needs of their own.
#[must_use]
pub fn run_lacking(lacks: &[&str], tests: Vec<Test>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share cgroups and our network namespace.
    arguments.test_threads = Some(1);
    if !lacks.is_empty() {
        eprintln!("lacking: {}", lacks.join(", "));
    } else if !arguments.list
        && let Err(error) = own_network()
    {
        eprintln!("no network namespace: {error:#}");
        return ExitCode::FAILURE;
    }
    let trials = tests.into_iter().map(|(name, test)| {
        let run = move || test().map_err(|error| Failed::from(format!("{error:#}")));
        Trial::test(name, run).with_ignored_flag(!lacks.is_empty())
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// Runs the async body of a test.
///
/// # Errors
/// Those of the body.
pub fn block_on<F: Future<Output = anyhow::Result<()>>>(body: F) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(body)
}

/// The directory that cargo builds into.
fn target() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let marked = own.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists());
    marked.unwrap_or(Path::new("target")).to_owned()
}

/// Where the static programs of our images are built.
#[must_use]
pub fn images() -> PathBuf {
    target().join(format!("{}-unknown-linux-gnu/release", std::env::consts::ARCH))
}

/// What this machine lacks of these.
#[must_use]
pub fn lacks_of(needs: &[&str]) -> Vec<&'static str> {
    lacks().into_iter().filter(|what| needs.contains(what)).collect()
}

/// What this machine lacks to run pods.
#[must_use]
pub fn lacks() -> Vec<&'static str> {
    let paths = std::env::var("PATH").unwrap_or_default();
    let found = |name: &str| paths.split(':').any(|dir| Path::new(dir).join(name).exists());
    let images = images();
    let has = [
        (nix::unistd::geteuid().is_root(), "root"),
        (found("containerd") && found("runc"), "containerd and runc"),
        (Path::new("/usr/lib/cni/ptp").exists(), "CNI plugins"),
        (found("ip") && found("nft"), "iproute2 and nftables"),
        (
            images.join("ironclad-pause").exists() && images.join("ironclad-demo").exists(),
            "static pause and demo images",
        ),
    ];
    has.into_iter().filter(|(has, _)| !has).map(|(_, what)| what).collect()
}

/// Puts this process, and all that it starts, into a network namespace that has only loopback. It is gone when the last
/// of them ends.
fn own_network() -> anyhow::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("unshare")?;
    output("ip", &["link", "set", "lo", "up"]).map(drop)
}

/// What a program prints.
///
/// # Errors
/// When it fails, with what it said.
pub fn output(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).output().context(program.to_owned())?;
    if !output.status.success() {
        bail!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Gives the namespace an uplink that leads nowhere, as a machine with a network has: an address and a default route.
///
/// # Errors
/// When the kernel refuses.
pub fn uplink(address: &str, gateway: &str) -> anyhow::Result<()> {
    let range = format!("{address}/24");
    for words in [
        &["link", "add", "uplink", "type", "veth", "peer", "name", "nowhere"][..],
        &["addr", "add", &range, "dev", "uplink"],
        &["link", "set", "uplink", "up"],
        &["link", "set", "nowhere", "up"],
        &["route", "add", "default", "via", gateway],
    ] {
        output("ip", words)?;
    }
    Ok(())
}

/// The numbers of all processes.
pub fn processes() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The program of a process with its arguments; empty once it has ended.
#[must_use]
pub fn command_line(pid: i32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

/// The processes of a container.
///
/// # Errors
/// When it has none.
pub fn container_processes(id: &str) -> anyhow::Result<Vec<i32>> {
    let id = id.rsplit('/').next().unwrap_or(id);
    let groups = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup"));
    let pids: Vec<i32> = processes().filter(|p| groups(p).is_ok_and(|g| g.contains(id))).collect();
    ensure!(!id.is_empty() && !pids.is_empty(), "container {id:?} has no process");
    Ok(pids)
}

/// Kills processes as the kernel does when memory runs out.
///
/// # Errors
/// When one is gone already.
pub fn kill(pids: &[i32]) -> anyhow::Result<()> {
    for pid in pids {
        let pid = nix::unistd::Pid::from_raw(*pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).context("kill")?;
    }
    Ok(())
}

/// What of a cluster can be seen on the machine. Everything else that goes on here is left out, so that two looks can be
/// compared.
///
/// # Errors
/// When a tool fails.
pub fn traces(data_dir: &Path) -> anyhow::Result<BTreeSet<String>> {
    let dir = data_dir.display().to_string();
    let mut traces = BTreeSet::new();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    traces.extend(mounts.lines().filter(|l| l.contains(&dir)).map(|l| format!("mount {l}")));
    let own = std::fs::read_link("/proc/self/ns/net")?;
    for pid in processes().filter(|pid| *pid != nix::unistd::getpid().as_raw()) {
        let ours = std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|n| n == own);
        let line = command_line(pid);
        if ours && !line.is_empty() || line.contains(&dir) {
            traces.insert(format!("process {pid} {line}"));
        }
    }
    for (what, program, arguments) in [
        ("interface", "ip", &["-o", "link"][..]),
        ("address", "ip", &["-o", "addr"]),
        ("route", "ip", &["route", "show", "table", "all"]),
        ("rule", "nft", &["list", "ruleset"]),
    ] {
        let text = output(program, arguments)?;
        traces.extend(text.lines().map(|line| format!("{what} {line}")));
    }
    if data_dir.exists() {
        let files = std::fs::read_dir(data_dir)?.flatten();
        traces.extend(files.map(|entry| format!("file {}", entry.path().display())));
    }
    Ok(traces)
}

/// The cgroups whose path names one of `names` (uids of pods, ids of containers).
#[must_use]
pub fn cgroups(names: &[String]) -> Vec<PathBuf> {
    fn visit(dir: &Path, names: &[String], depth: usize, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if depth == 0 || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            if names.iter().any(|wanted| name.contains(wanted.as_str())) {
                found.push(entry.path());
            }
            visit(&entry.path(), names, depth - 1, found);
        }
    }
    // Hierarchy, root, quality of service, pod, container.
    const DEPTH: usize = 5;
    let mut found = Vec::new();
    visit(Path::new("/sys/fs/cgroup"), names, DEPTH, &mut found);
    found
}

/// The network namespaces that are mounted somewhere, by inode.
///
/// # Errors
/// When the mounts cannot be read.
pub fn mounted_networks() -> anyhow::Result<BTreeSet<String>> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let roots = mounts.lines().filter_map(|line| line.split(' ').nth(3));
    Ok(roots.filter(|root| root.starts_with("net:")).map(str::to_owned).collect())
}
