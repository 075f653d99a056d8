//! The cgroups pods live in, in both versions of the kernel's interface.
//!
//! Pods are below one root, by quality of service: `<root>/pod<uid>` (Guaranteed),
//! `<root>/burstable/pod<uid>`, `<root>/besteffort/pod<uid>`. runc makes the containers' own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const MOUNT: &str = "/sys/fs/cgroup";
const PERIOD_US: i64 = 100_000;

/// What a pod as a whole may use; none is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// CPU shares, 1024 for one core.
    pub cpu_shares: Option<i64>,
    /// CPU time in thousandths of a core.
    pub cpu_milli: Option<i64>,
    /// Memory in bytes.
    pub memory_bytes: Option<i64>,
}

/// Whether this machine has the unified hierarchy only.
#[must_use]
pub fn is_v2() -> bool {
    Path::new(MOUNT).join("cgroup.controllers").exists()
}

/// Makes the cgroup at `path` (below the mount) in every hierarchy and sets its limits.
///
/// # Errors
/// When the kernel refuses; a limit whose controller is missing is passed over.
pub fn make(path: &str, limits: &Limits) -> io::Result<()> {
    if is_v2() {
        return make_v2(path, limits);
    }
    for controller in ["cpu", "cpuset", "memory", "pids"] {
        let root = Path::new(MOUNT).join(controller);
        if !root.exists() {
            continue;
        }
        let dir = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(&dir)?;
        if controller == "cpuset" {
            inherit_cpuset(&root, &dir)?;
        }
    }
    let file = |controller: &str, name: &str| {
        Path::new(MOUNT).join(controller).join(path.trim_start_matches('/')).join(name)
    };
    set(&file("cpu", "cpu.shares"), limits.cpu_shares.map(|v| v.to_string()))?;
    let quota = limits.cpu_milli.map(|milli| (milli * PERIOD_US / 1000).max(1000).to_string());
    set(&file("cpu", "cpu.cfs_quota_us"), quota)?;
    set(&file("memory", "memory.limit_in_bytes"), limits.memory_bytes.map(|v| v.to_string()))
}

/// Removes the cgroup at `path` and all below it from every hierarchy.
///
/// # Errors
/// When processes are left in it.
pub fn remove(path: &str) -> io::Result<()> {
    places(path)?.iter().try_for_each(|dir| remove_tree(dir))
}

/// Removes what is empty of the cgroup at `path`: other clusters of this machine may have the same root.
///
/// # Errors
/// When the hierarchies cannot be read.
pub fn prune(path: &str) -> io::Result<()> {
    for dir in places(path)? {
        match remove_tree(&dir) {
            Err(error) if error.kind() != io::ErrorKind::ResourceBusy => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The processes in the cgroup at `path` and all below it.
///
/// # Errors
/// When the hierarchies cannot be read.
pub fn processes(path: &str) -> io::Result<Vec<i32>> {
    fn gather(dir: &Path, found: &mut Vec<i32>) {
        // Groups go away while we look, and their processes with them.
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                gather(&entry.path(), found);
            }
        }
    }
    let mut found = Vec::new();
    places(path)?.iter().for_each(|dir| gather(dir, &mut found));
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// The directories of the cgroup at `path`, one in each hierarchy that has it.
fn places(path: &str) -> io::Result<Vec<PathBuf>> {
    let path = path.trim_start_matches('/');
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let mut roots = vec![PathBuf::from(MOUNT)];
    if !is_v2() {
        roots = fs::read_dir(MOUNT)?.flatten().map(|entry| entry.path()).collect();
    }
    Ok(roots.iter().map(|root| root.join(path)).filter(|dir| dir.is_dir()).collect())
}

/// Removes all it can, then says what it could not.
fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut below = Ok(());
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            below = below.and(remove_tree(&entry.path()));
        }
    }
    below?;
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn make_v2(path: &str, limits: &Limits) -> io::Result<()> {
    let mut dir = PathBuf::from(MOUNT);
    for part in path.split('/').filter(|part| !part.is_empty()) {
        for controller in ["+cpu", "+memory", "+pids", "+cpuset"] {
            // A parent without the controller cannot hand it down: then there is no such limit.
            if let Err(error) = fs::write(dir.join("cgroup.subtree_control"), controller) {
                tracing::debug!(dir = %dir.display(), controller, %error, "no such controller");
            }
        }
        dir.push(part);
        fs::create_dir_all(&dir)?;
    }
    // The kernel's weights 1..10000 for shares 2..262144.
    let weight =
        limits.cpu_shares.map(|s| (1 + (s.clamp(2, 262_144) - 2) * 9999 / 262_142).to_string());
    set(&dir.join("cpu.weight"), weight)?;
    let quota =
        limits.cpu_milli.map(|m| format!("{} {PERIOD_US}", (m * PERIOD_US / 1000).max(1000)));
    set(&dir.join("cpu.max"), quota)?;
    set(&dir.join("memory.max"), limits.memory_bytes.map(|v| v.to_string()))
}

fn set(file: &Path, value: Option<String>) -> io::Result<()> {
    match value {
        Some(value) if file.exists() => fs::write(file, value),
        _ => Ok(()),
    }
}

/// A new cpuset has no processors until it is given its parent's.
fn inherit_cpuset(root: &Path, dir: &Path) -> io::Result<()> {
    let below: Vec<&Path> = dir.ancestors().take_while(|at| *at != root).collect();
    for at in below.iter().rev() {
        let Some(parent) = at.parent() else { continue };
        for name in ["cpuset.cpus", "cpuset.mems"] {
            let (file, from) = (at.join(name), parent.join(name));
            if !file.exists() || !fs::read_to_string(&file)?.trim().is_empty() {
                continue;
            }
            fs::write(file, fs::read_to_string(from)?.trim())?;
        }
    }
    Ok(())
}
