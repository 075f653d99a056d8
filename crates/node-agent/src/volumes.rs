//! stub
#![allow(missing_docs)]
use crate::pod::{
    Waiting,
    env::Sources,
    spec::{Mount, NodeFacts},
};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
pub struct Volumes {
    root: PathBuf,
}
impl Volumes {
    pub fn new(root: PathBuf, _c: client::Client, _k: daemon::Clock) -> Self {
        Self { root }
    }
    pub fn dir(&self, uid: &str) -> PathBuf {
        self.root.join(uid)
    }
    pub async fn prepare(
        &self,
        pod: &Pod,
        _n: &NodeFacts,
        _s: &Sources,
    ) -> Result<BTreeMap<String, PathBuf>, String> {
        std::fs::create_dir_all(self.dir(crate::pod::uid(pod))).map_err(|e| e.to_string())?;
        Ok(BTreeMap::new())
    }
    pub fn mounts(
        &self,
        _p: &Pod,
        _c: &Container,
        _m: &BTreeMap<String, PathBuf>,
        _e: &[(String, String)],
    ) -> Result<Vec<Mount>, Waiting> {
        Ok(Vec::new())
    }
    pub fn remove(&self, uid: &str) -> std::io::Result<()> {
        match std::fs::remove_dir_all(self.dir(uid)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}
pub fn needs(pod: &Pod) -> (BTreeSet<String>, BTreeSet<String>) {
    let n = crate::pod::env::needs(pod);
    (n.config_maps, n.secrets)
}
pub fn changes(_pod: &Pod) -> bool {
    false
}
