//! The garbage collector: dependents go when their owners are gone, before them, or are let go.
//!
//! One graph of all objects by uid, kept by a watch of every kind's metadata; [`Graph::decide`] is pure. Specified by
//! <https://kubernetes.io/docs/concepts/architecture/garbage-collection/>.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use client::transport::{Delete, Scope};
use client::{Client, Key, Kind, Patch};
use daemon::{Backoff, Context};
use futures::StreamExt as _;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use wire::apiserver as pb;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
/// How often the list of kinds is read again.
const KINDS_EVERY: Duration = Duration::from_secs(30);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(30);
/// Kinds that come and go by the thousand and own nothing.
const IGNORED: [&str; 2] = ["events", "leases"];

/// The metadata that matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    deletion_timestamp: Option<String>,
    finalizers: Vec<String>,
    owner_references: Vec<Owner>,
}

#[derive(Debug, Default, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Owner {
    uid: String,
    block_owner_deletion: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Partial {
    metadata: Meta,
}

/// One object.
#[derive(Debug, Clone)]
struct Node {
    kind: Kind,
    key: Key,
    deleting: bool,
    finalizers: Vec<String>,
    owners: Vec<Owner>,
}

impl Node {
    fn waits_for(&self, finalizer: &str) -> bool {
        self.deleting && self.finalizers.iter().any(|f| f == finalizer)
    }
}

/// What is to be done about an object.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// Delete it, with this propagation policy.
    Delete { kind: Kind, key: Key, uid: String, propagation: &'static str },
    /// Take a finalizer off.
    Unfinalize { kind: Kind, key: Key, uid: String, finalizers: Vec<String> },
    /// Take owners off.
    Disown { kind: Kind, key: Key, uid: String, owners: Vec<String> },
}

/// All objects and who owns whom.
#[derive(Debug, Default)]
struct Graph {
    nodes: HashMap<String, Node>,
    dependents: HashMap<String, BTreeSet<String>>,
    dirty: BTreeSet<String>,
}

impl Graph {
    fn put(&mut self, uid: &str, node: Node) {
        self.unlink(uid);
        for owner in &node.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.to_owned());
            self.dirty.insert(owner.uid.clone());
        }
        self.nodes.insert(uid.to_owned(), node);
        self.dirty.insert(uid.to_owned());
    }

    fn remove(&mut self, uid: &str) {
        self.unlink(uid);
        if let Some(node) = self.nodes.remove(uid) {
            self.dirty.extend(node.owners.into_iter().map(|o| o.uid));
        }
        self.dirty.extend(self.dependents.get(uid).into_iter().flatten().cloned());
    }

    fn unlink(&mut self, uid: &str) {
        for owner in self.nodes.get(uid).map(|n| n.owners.clone()).unwrap_or_default() {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }

    fn children(&self, uid: &str) -> impl Iterator<Item = (&String, &Node)> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| self.nodes.get_key_value(uid))
    }

    /// What to do about one object.
    fn decide(&self, uid: &str) -> Vec<Step> {
        let Some(node) = self.nodes.get(uid) else { return Vec::new() };
        if node.waits_for(ORPHAN) {
            return self.let_go(uid, node);
        }
        if node.waits_for(FOREGROUND) {
            return self.before(uid, node);
        }
        if node.deleting || node.owners.is_empty() {
            return Vec::new();
        }
        let (there, gone): (Vec<&Owner>, Vec<&Owner>) =
            node.owners.iter().partition(|o| self.nodes.contains_key(&o.uid));
        let (leaving, staying): (Vec<&Owner>, Vec<&Owner>) =
            there.into_iter().partition(|o| self.nodes[&o.uid].waits_for(FOREGROUND));
        let (kind, key, uid) = (node.kind.clone(), node.key.clone(), uid.to_owned());
        if !staying.is_empty() {
            let owners: Vec<String> =
                gone.iter().chain(&leaving).map(|owner| owner.uid.clone()).collect();
            if owners.is_empty() {
                return Vec::new();
            }
            return vec![Step::Disown { kind, key, uid, owners }];
        }
        let waits = !leaving.is_empty() && self.children(&uid).next().is_some();
        let propagation = if waits { "Foreground" } else { "Background" };
        vec![Step::Delete { kind, key, uid, propagation }]
    }

    /// The dependents lose this owner, then it goes.
    fn let_go(&self, uid: &str, node: &Node) -> Vec<Step> {
        let mut steps: Vec<Step> = self
            .children(uid)
            .map(|(child, n)| Step::Disown {
                kind: n.kind.clone(),
                key: n.key.clone(),
                uid: child.clone(),
                owners: vec![uid.to_owned()],
            })
            .collect();
        if steps.is_empty() {
            steps.push(without(uid, node, ORPHAN));
        }
        steps
    }

    /// The dependents that block it go first, then it goes.
    fn before(&self, uid: &str, node: &Node) -> Vec<Step> {
        let blocking = self
            .children(uid)
            .any(|(_, child)| child.owners.iter().any(|o| o.uid == uid && o.block_owner_deletion));
        if blocking { Vec::new() } else { vec![without(uid, node, FOREGROUND)] }
    }
}

fn without(uid: &str, node: &Node, finalizer: &str) -> Step {
    let finalizers = node.finalizers.iter().filter(|f| *f != finalizer).cloned().collect();
    Step::Unfinalize {
        kind: node.kind.clone(),
        key: node.key.clone(),
        uid: uid.to_owned(),
        finalizers,
    }
}

/// Collects until `leading` ends.
pub async fn run(client: Client, ctx: Context, leading: CancellationToken) {
    let graph = Arc::new(Mutex::new(Graph::default()));
    let woken = Arc::new(Notify::new());
    let mut followed: BTreeMap<Kind, Arc<Mutex<bool>>> = BTreeMap::new();
    let mut refresh = tokio::time::interval(KINDS_EVERY);
    loop {
        tokio::select! {
            () = leading.cancelled() => return,
            _ = refresh.tick() => match client.resources().await {
                Ok(kinds) => for kind in collectable(kinds) {
                    if followed.contains_key(&kind) {
                        continue;
                    }
                    let synced = Arc::new(Mutex::new(false));
                    followed.insert(kind.clone(), synced.clone());
                    let follower = Follower {
                        client: client.clone(),
                        kind,
                        graph: graph.clone(),
                        woken: woken.clone(),
                        synced,
                    };
                    ctx.tasks.job(follower.run(leading.clone()));
                },
                Err(error) => {
                    tracing::info!(%error, "kinds could not be read, trying again");
                    refresh.reset_after(daemon::jitter(Duration::from_secs(1)));
                }
            },
            () = woken.notified() => {
                // An owner whose kind has not been read yet would look as if it were gone.
                if followed.values().all(|synced| *synced.lock()) && !followed.is_empty() {
                    collect(&client, &graph, &woken, &ctx).await;
                }
            }
        }
    }
}

/// The kinds whose objects can be collected, each in one version.
fn collectable(kinds: Vec<pb::ResourceKind>) -> Vec<Kind> {
    let mut seen = BTreeSet::new();
    kinds
        .into_iter()
        .filter(|k| ["delete", "list", "watch"].iter().all(|v| k.verbs.iter().any(|w| w == v)))
        .filter_map(|k| k.resource)
        .filter(|r| !IGNORED.contains(&r.resource.as_str()))
        .filter(|r| seen.insert((r.group.clone(), r.resource.clone())))
        .map(|r| Kind { group: r.group, version: r.version, resource: r.resource })
        .collect()
}

/// Takes what has changed and does what follows.
async fn collect(client: &Client, graph: &Mutex<Graph>, woken: &Arc<Notify>, ctx: &Context) {
    let steps: Vec<(String, Vec<Step>)> = {
        let mut graph = graph.lock();
        let dirty = std::mem::take(&mut graph.dirty);
        dirty.into_iter().map(|uid| (graph.decide(&uid), uid)).map(|(s, uid)| (uid, s)).collect()
    };
    let mut failed = Vec::new();
    for (uid, steps) in steps {
        for step in steps {
            tracing::debug!(?step, "collecting");
            if let Err(error) = act(client, &step).await
                && !error.is_not_found()
            {
                tracing::info!(?step, %error, "could not collect, trying again");
                failed.push(uid.clone());
            }
        }
    }
    if !failed.is_empty() {
        graph.lock().dirty.extend(failed);
        let woken = woken.clone();
        ctx.tasks.job(async move {
            tokio::time::sleep(daemon::jitter(Duration::from_secs(1))).await;
            woken.notify_one();
        });
    }
}

async fn act(client: &Client, step: &Step) -> Result<(), client::Error> {
    match step {
        Step::Delete { kind, key, uid, propagation } => {
            let how = Delete { uid: uid.clone(), propagation, ..Delete::default() };
            client.delete_raw(kind, key, how).await?;
        }
        Step::Unfinalize { kind, key, uid, finalizers } => {
            let patch = Patch::Merge(json!({"metadata": {"uid": uid, "finalizers": finalizers}}));
            client.patch_raw(kind, key, "", patch).await?;
        }
        Step::Disown { kind, key, uid, owners } => {
            let object = client.get_raw(kind, &key.namespace, &key.name).await?;
            let value: serde_json::Value = serde_json::from_slice(&object.json).unwrap_or_default();
            let left: Vec<&serde_json::Value> = value["metadata"]["ownerReferences"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|o| !owners.iter().any(|uid| o["uid"] == *uid))
                .collect();
            let version = &value["metadata"]["resourceVersion"];
            let metadata = json!({"uid": uid, "resourceVersion": version, "ownerReferences": left});
            let patch = Patch::Merge(json!({ "metadata": metadata }));
            client.patch_raw(kind, key, "", patch).await?;
        }
    }
    Ok(())
}

/// Follows one kind.
struct Follower {
    client: Client,
    kind: Kind,
    graph: Arc<Mutex<Graph>>,
    woken: Arc<Notify>,
    synced: Arc<Mutex<bool>>,
}

impl Follower {
    async fn run(self, leading: CancellationToken) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
        loop {
            tokio::select! {
                () = leading.cancelled() => return,
                end = self.session(&mut backoff) => if let Err(error) = end {
                    tracing::debug!(kind = %self.kind, %error, "watch ended, trying again");
                },
            }
            tokio::select! {
                () = leading.cancelled() => return,
                () = tokio::time::sleep(backoff.delay()) => {}
            }
        }
    }

    /// One watch from the present state on.
    async fn session(&self, backoff: &mut Backoff) -> Result<(), client::Error> {
        let projection =
            ["deletionTimestamp", "finalizers", "ownerReferences"].map(|f| format!("metadata.{f}"));
        let scope = Scope { projection: projection.into(), ..Scope::default() };
        let mut events = self.client.watch_raw(&self.kind, &scope, 0).await?;
        let mut seen = Some(BTreeSet::new());
        while let Some(event) = events.next().await {
            let Ok(event) = event else { return Ok(()) };
            backoff.reset();
            if event.initial_done {
                self.forget_others(seen.take());
                *self.synced.lock() = true;
                self.woken.notify_one();
                continue;
            }
            let kind = event.r#type();
            let Some(object) = event.object.filter(|o| !o.uid.is_empty()) else { continue };
            let mut graph = self.graph.lock();
            if kind == pb::watch_event::Type::Deleted {
                graph.remove(&object.uid);
            } else {
                if let Some(seen) = &mut seen {
                    seen.insert(object.uid.clone());
                }
                graph.put(&object.uid, self.node(&object));
            }
            drop(graph);
            self.woken.notify_one();
        }
        Ok(())
    }

    fn node(&self, object: &pb::Object) -> Node {
        let partial: Partial = serde_json::from_slice(&object.json).unwrap_or_default();
        Node {
            kind: self.kind.clone(),
            key: Key::new(object.namespace.clone(), object.name.clone()),
            deleting: partial.metadata.deletion_timestamp.is_some(),
            finalizers: partial.metadata.finalizers,
            owners: partial.metadata.owner_references,
        }
    }

    /// What a new watch does not show any more went while nobody watched.
    fn forget_others(&self, seen: Option<BTreeSet<String>>) {
        let Some(seen) = seen else { return };
        let mut graph = self.graph.lock();
        let gone: Vec<String> = graph
            .nodes
            .iter()
            .filter(|(uid, node)| node.kind == self.kind && !seen.contains(*uid))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in gone {
            graph.remove(&uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, owners: &[(&str, bool)], finalizer: Option<&str>) -> Node {
        Node {
            kind: Kind { group: String::new(), version: "v1".into(), resource: "pods".into() },
            key: Key::new("ns", name),
            deleting: finalizer.is_some(),
            finalizers: finalizer.into_iter().map(str::to_owned).collect(),
            owners: owners
                .iter()
                .map(|(uid, block)| Owner { uid: (*uid).into(), block_owner_deletion: *block })
                .collect(),
        }
    }

    fn steps(graph: &Graph, uid: &str) -> Vec<String> {
        let name = |step: &Step| match step {
            Step::Delete { key, propagation, .. } => format!("delete {} {propagation}", key.name),
            Step::Unfinalize { key, .. } => format!("unfinalize {}", key.name),
            Step::Disown { key, owners, .. } => format!("disown {} {}", key.name, owners.join(",")),
        };
        graph.decide(uid).iter().map(name).collect()
    }

    #[test]
    fn a_dependent_goes_with_its_last_owner() {
        let mut graph = Graph::default();
        graph.put("owner", node("owner", &[], None));
        graph.put("child", node("child", &[("owner", true)], None));
        assert!(steps(&graph, "child").is_empty());
        graph.remove("owner");
        assert!(graph.dirty.contains("child"));
        assert_eq!(steps(&graph, "child"), ["delete child Background"]);
    }

    #[test]
    fn a_dependent_with_another_owner_only_forgets_the_one_that_is_gone() {
        let mut graph = Graph::default();
        graph.put("b", node("b", &[], None));
        graph.put("child", node("child", &[("a", false), ("b", false)], None));
        assert_eq!(steps(&graph, "child"), ["disown child a"]);
    }

    #[test]
    fn in_the_foreground_the_owner_waits_for_those_who_block_it() {
        let mut graph = Graph::default();
        graph.put("owner", node("owner", &[], Some(FOREGROUND)));
        graph.put("child", node("child", &[("owner", true)], None));
        assert!(steps(&graph, "owner").is_empty());
        assert_eq!(steps(&graph, "child"), ["delete child Background"]);
        graph.remove("child");
        assert_eq!(steps(&graph, "owner"), ["unfinalize owner"]);
    }

    #[test]
    fn orphans_are_let_go_first() {
        let mut graph = Graph::default();
        graph.put("owner", node("owner", &[], Some(ORPHAN)));
        graph.put("child", node("child", &[("owner", true)], None));
        assert_eq!(steps(&graph, "owner"), ["disown child owner"]);
        graph.put("child", node("child", &[], None));
        assert_eq!(steps(&graph, "owner"), ["unfinalize owner"]);
    }
}
