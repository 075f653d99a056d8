//! The certificates and keys of a cluster in one directory, made where they are missing.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::identity::MASTERS;
use crate::pki::{Authority, LEAF_LIFE, Pair, PkiError, Subject};
use crate::token::{Signer, TokenError};

/// Why the directory could not be completed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A file.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A certificate.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The token key.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// The users that are parts of a cluster, by file name.
pub const COMPONENTS: [(&str, &str, Option<&str>); 5] = [
    ("admin", "kubernetes-admin", Some(MASTERS)),
    ("scheduler", "system:kube-scheduler", None),
    ("controller-manager", "system:kube-controller-manager", None),
    ("proxy", "system:kube-proxy", None),
    ("dns", "system:serviceaccount:kube-system:dns", None),
];

/// Names under which every API server serves.
pub const API_HOSTS: [&str; 6] = [
    "localhost",
    "127.0.0.1",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// A directory of certificates and keys.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    authority: Authority,
    now: i64,
}

impl Cluster {
    /// Opens `dir`, making it and its authority and token key where they are missing. `now` is in Unix seconds.
    ///
    /// # Errors
    /// When a file cannot be read or written or holds something else.
    pub fn open(dir: &Path, now: i64) -> Result<Self, ClusterError> {
        fs::create_dir_all(dir).map_err(|e| at(dir, e))?;
        fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(|e| at(dir, e))?;
        let authority = match read_pair(dir, "ca")? {
            Some(pair) => Authority::load(&pair)?,
            None => {
                let authority = Authority::generate("ironclad-ca", now)?;
                write_pair(dir, "ca", authority.pair())?;
                authority
            }
        };
        let cluster = Self { dir: dir.to_owned(), authority, now };
        let key = cluster.path("sa.key");
        if !key.exists() {
            write(&key, &Signer::generate_key()?)?;
        }
        Ok(cluster)
    }

    /// A file of the directory.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// The authority's certificate as PEM.
    #[must_use]
    pub fn ca(&self) -> &str {
        &self.authority.pair().cert
    }

    /// The certificate of `name`, issued for `subject` if there is none yet. A server whose hosts may have changed
    /// asks with `renew`.
    ///
    /// # Errors
    /// When it cannot be made or written.
    pub fn pair(&self, name: &str, subject: &Subject, renew: bool) -> Result<Pair, ClusterError> {
        if !renew && let Some(pair) = read_pair(&self.dir, name)? {
            return Ok(pair);
        }
        let pair = self.authority.issue(subject, self.now, LEAF_LIFE)?;
        write_pair(&self.dir, name, &pair)?;
        Ok(pair)
    }

    /// The certificates of all [`COMPONENTS`], as files.
    ///
    /// # Errors
    /// When one cannot be made or written.
    pub fn components(&self) -> Result<(), ClusterError> {
        for (file, user, group) in COMPONENTS {
            self.pair(file, &Subject::client(user, group), false)?;
        }
        Ok(())
    }
}

fn at(path: &Path, error: std::io::Error) -> ClusterError {
    ClusterError::File { path: path.to_owned(), error }
}

fn read_pair(dir: &Path, name: &str) -> Result<Option<Pair>, ClusterError> {
    let (cert, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    if !cert.exists() || !key.exists() {
        return Ok(None);
    }
    Ok(Some(Pair {
        cert: fs::read_to_string(&cert).map_err(|e| at(&cert, e))?,
        key: fs::read_to_string(&key).map_err(|e| at(&key, e))?,
    }))
}

fn write_pair(dir: &Path, name: &str, pair: &Pair) -> Result<(), ClusterError> {
    write(&dir.join(format!("{name}.key")), &pair.key)?;
    write(&dir.join(format!("{name}.crt")), &pair.cert)
}

/// Writes a file that only its owner reads, whole or not at all.
fn write(path: &Path, text: &str) -> Result<(), ClusterError> {
    let temporary = path.with_extension("new");
    let result = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    result.map_err(|e| at(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = Cluster::open(dir.path(), 1_790_000_000).unwrap();
        first.components().unwrap();
        let second = Cluster::open(dir.path(), 1_790_000_001).unwrap();
        assert_eq!(first.ca(), second.ca());
        let admin = Subject::client("x", None);
        assert_eq!(
            first.pair("admin", &admin, false).unwrap(),
            second.pair("admin", &admin, false).unwrap()
        );
        let mode = fs::metadata(first.path("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
