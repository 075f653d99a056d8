//! Where things lie below a cluster's data directory.

use std::path::{Path, PathBuf};

/// A cluster's data directory.
#[derive(Debug, Clone)]
pub(crate) struct Layout(PathBuf);

impl Layout {
    /// The directory given, or the usual one: /var/lib/ironclad for root, else below the home directory.
    pub(crate) fn new(given: Option<&Path>) -> Self {
        if let Some(given) = given {
            // Daemons and containerd are told absolute paths.
            let absolute = std::path::absolute(given).unwrap_or_else(|_| given.to_owned());
            return Self(absolute);
        }
        if nix::unistd::geteuid().is_root() {
            return Self("/var/lib/ironclad".into());
        }
        let home = std::env::home_dir().unwrap_or_else(|| "/tmp".into());
        Self(home.join(".local/share/ironclad"))
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.0
    }

    /// Certificates and keys.
    pub(crate) fn pki(&self) -> PathBuf {
        self.0.join("pki")
    }

    /// The store's log and state.
    pub(crate) fn store(&self) -> PathBuf {
        self.0.join("store")
    }

    /// The node agent's files, containerd's among them.
    pub(crate) fn node(&self) -> PathBuf {
        self.0.join("node")
    }

    /// The cgroup of this cluster's pods: Kubernetes' own name in the usual directory, else one per directory, so that
    /// clusters side by side keep out of each other's way.
    pub(crate) fn cgroup_root(&self) -> String {
        const USUAL: &str = "/var/lib/ironclad";
        let name = self.0.display().to_string();
        if name == USUAL {
            return "kubepods".to_owned();
        }
        format!("kubepods-{}", name.trim_matches('/').replace('/', "-"))
    }

    /// The kubeconfig of the cluster's administrator.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.0.join("admin.kubeconfig")
    }

    /// The number of the process that runs the cluster.
    pub(crate) fn pid(&self) -> PathBuf {
        self.0.join("ironclad.pid")
    }

    /// What the process logs when it was started with --detach.
    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("ironclad.log")
    }

    /// The running cluster's process, if it is one.
    pub(crate) fn running(&self) -> Option<nix::unistd::Pid> {
        let text = std::fs::read_to_string(self.pid()).ok()?;
        let pid: i32 = text.trim().parse().ok()?;
        // The number may have been given to another program since, or to what is left of a killed one, which has no
        // program any more.
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        let name = program.file_name()?.to_str()?;
        name.starts_with("ironclad").then_some(nix::unistd::Pid::from_raw(pid))
    }
}
