//! The garbage collector: dependents go when their owners are gone, before them, or are let go.
//!
//! One graph of all objects by uid, kept by a watch of every kind's metadata; [`Graph::decide`] is pure. An owner that the
//! graph does not know may only not have been seen yet: nothing goes before the API server was asked. Specified by
//! <https://kubernetes.io/docs/concepts/architecture/garbage-collection/>.

mod owners;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

use owners::{Kinds, Unsettled};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
/// How often the list of kinds is read again if no definition changes, and how long after one did.
const KINDS_EVERY: Duration = Duration::from_secs(30);
const KINDS_AFTER: Duration = Duration::from_millis(100);
/// Where kinds come from.
const DEFINITIONS: &str = "customresourcedefinitions";
/// How many of the objects that went are remembered.
const GONE_MAX: usize = 20_000;
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
    api_version: String,
    kind: String,
    name: String,
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
    /// Delete it, with this propagation policy, if it is true that the owners are gone.
    Delete { kind: Kind, key: Key, uid: String, propagation: &'static str, gone: Vec<Owner> },
    /// Take a finalizer off.
    Unfinalize { kind: Kind, key: Key, uid: String, finalizers: Vec<String> },
    /// Take owners off, if it is true that those in `gone` are.
    Disown { kind: Kind, key: Key, uid: String, owners: Vec<String>, gone: Vec<Owner> },
}

/// All objects and who owns whom.
#[derive(Debug, Default)]
struct Graph {
    nodes: HashMap<String, Node>,
    dependents: HashMap<String, BTreeSet<String>>,
    dirty: BTreeSet<String>,
    gone: HashSet<String>,
    gone_order: VecDeque<String>,
}

impl Graph {
    /// Owners of an object that are not in sight; those that were seen to go need not be asked for.
    fn missing<'n>(&self, node: &'n Node) -> (Vec<&'n Owner>, Vec<Owner>) {
        let there = |owner: &&Owner| {
            let found = self.nodes.get(&owner.uid).map(|owner| owner.key.namespace.as_str());
            found.is_some_and(|namespace| namespace.is_empty() || *namespace == node.key.namespace)
        };
        let (there, missing): (Vec<&Owner>, Vec<&Owner>) = node.owners.iter().partition(there);
        (there, missing.into_iter().cloned().collect())
    }

    /// Those that nobody has seen go.
    fn unsure(&self, missing: &[Owner]) -> Vec<Owner> {
        missing.iter().filter(|owner| !self.gone.contains(&owner.uid)).cloned().collect()
    }

    fn put(&mut self, uid: &str, node: Node) {
        self.unlink(uid);
        // An owner that it no longer has may have waited for just that.
        let before = self.nodes.get(uid).map(|old| old.owners.clone()).unwrap_or_default();
        self.dirty.extend(before.into_iter().map(|owner| owner.uid));
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
            self.gone.insert(uid.to_owned());
            self.gone_order.push_back(uid.to_owned());
            if self.gone_order.len() > GONE_MAX
                && let Some(oldest) = self.gone_order.pop_front()
            {
                self.gone.remove(&oldest);
            }
        }
        self.dirty.extend(self.dependents.get(uid).into_iter().flatten().cloned());
    }

    /// Removes the objects of a kind that `stay` does not name.
    fn retain(&mut self, kind: &Kind, stay: impl Fn(&str) -> bool) {
        let of_kind = self.nodes.iter().filter(|(_, node)| node.kind == *kind);
        let gone: Vec<String> =
            of_kind.map(|(uid, _)| uid.clone()).filter(|uid| !stay(uid)).collect();
        for uid in gone {
            self.remove(&uid);
        }
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
        let (there, missing) = self.missing(node);
        let gone = self.unsure(&missing);
        let (leaving, staying): (Vec<&Owner>, Vec<&Owner>) =
            there.into_iter().partition(|o| self.nodes[&o.uid].waits_for(FOREGROUND));
        let (kind, key, uid) = (node.kind.clone(), node.key.clone(), uid.to_owned());
        if !staying.is_empty() {
            let owners: Vec<String> =
                missing.iter().chain(leaving).map(|owner| owner.uid.clone()).collect();
            if owners.is_empty() {
                return Vec::new();
            }
            return vec![Step::Disown { kind, key, uid, owners, gone }];
        }
        let waits = !leaving.is_empty() && self.children(&uid).next().is_some();
        let propagation = if waits { "Foreground" } else { "Background" };
        vec![Step::Delete { kind, key, uid, propagation, gone }]
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
                gone: Vec::new(),
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

/// What the collector's tasks share.
#[derive(Debug)]
struct Shared {
    client: Client,
    graph: Mutex<Graph>,
    kinds: Kinds,
    /// There is something to collect, perhaps.
    woken: Notify,
    /// The list of kinds is old.
    outdated: Notify,
}

/// A kind that is watched.
#[derive(Debug)]
struct Followed {
    synced: Arc<AtomicBool>,
    end: CancellationToken,
}

/// Collects until `leading` ends.
pub async fn run(client: Client, ctx: Context, leading: CancellationToken) {
    let shared = Arc::new(Shared {
        client,
        graph: Mutex::default(),
        kinds: Kinds::default(),
        woken: Notify::new(),
        outdated: Notify::new(),
    });
    let mut followed: BTreeMap<Kind, Followed> = BTreeMap::new();
    let mut refresh = tokio::time::interval(KINDS_EVERY);
    loop {
        tokio::select! {
            () = leading.cancelled() => return,
            _ = refresh.tick() => match shared.client.resources().await {
                Ok(kinds) => {
                    shared.kinds.set(&kinds);
                    follow(&shared, collectable(kinds), &mut followed, &ctx, &leading);
                }
                Err(error) => {
                    tracing::info!(%error, "kinds could not be read, trying again");
                    refresh.reset_after(daemon::jitter(Duration::from_secs(1)));
                }
            },
            () = shared.outdated.notified() => refresh.reset_after(KINDS_AFTER),
            () = shared.woken.notified() => {
                let synced = |f: &Followed| f.synced.load(Ordering::Acquire);
                if followed.values().all(synced) && !followed.is_empty() {
                    collect(&shared, &ctx).await;
                }
            }
        }
    }
}

/// Watches the kinds there are, and no others.
fn follow(
    shared: &Arc<Shared>,
    kinds: BTreeSet<Kind>,
    followed: &mut BTreeMap<Kind, Followed>,
    ctx: &Context,
    leading: &CancellationToken,
) {
    followed.retain(|kind, old| {
        if !kinds.contains(kind) {
            old.end.cancel();
            shared.graph.lock().retain(kind, |_| false);
            shared.woken.notify_one();
        }
        kinds.contains(kind)
    });
    for kind in kinds {
        followed.entry(kind).or_insert_with_key(|kind| {
            let (synced, end) = (Arc::<AtomicBool>::default(), leading.child_token());
            let follower =
                Follower { shared: shared.clone(), kind: kind.clone(), synced: synced.clone() };
            ctx.tasks.job(follower.run(end.clone()));
            Followed { synced, end }
        });
    }
}

/// The kinds whose objects can be collected, each in one version.
fn collectable(kinds: Vec<pb::ResourceKind>) -> BTreeSet<Kind> {
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
async fn collect(shared: &Arc<Shared>, ctx: &Context) {
    let steps: Vec<(String, Vec<Step>)> = {
        let mut graph = shared.graph.lock();
        let dirty = std::mem::take(&mut graph.dirty);
        dirty.into_iter().map(|uid| (graph.decide(&uid), uid)).map(|(s, uid)| (uid, s)).collect()
    };
    let mut failed = Vec::new();
    for (uid, steps) in steps {
        for step in steps {
            tracing::debug!(?step, "collecting");
            match act(shared, &step).await {
                Ok(()) => continue,
                Err(Unsettled::Refused(error)) if error.is_not_found() => continue,
                Err(Unsettled::Refused(error)) => {
                    tracing::info!(?step, %error, "could not collect, trying again");
                }
                Err(Unsettled::UnknownKind) => {
                    tracing::debug!(?step, "an owner is of a kind that is not served");
                    shared.outdated.notify_one();
                }
            }
            failed.push(uid.clone());
        }
    }
    if !failed.is_empty() {
        shared.graph.lock().dirty.extend(failed);
        let shared = shared.clone();
        ctx.tasks.job(async move {
            tokio::time::sleep(daemon::jitter(Duration::from_secs(1))).await;
            shared.woken.notify_one();
        });
    }
}

async fn act(shared: &Shared, step: &Step) -> Result<(), Unsettled> {
    let client = &shared.client;
    if let Step::Delete { key, gone, .. } | Step::Disown { key, gone, .. } = step {
        for owner in gone {
            if shared.kinds.is_there(client, owner, &key.namespace).await? {
                // The graph hears of it in its time.
                return Ok(());
            }
        }
    }
    match step {
        Step::Delete { kind, key, uid, propagation, .. } => {
            let how = Delete { uid: uid.clone(), propagation, ..Delete::default() };
            client.delete_raw(kind, key, how).await?;
        }
        Step::Unfinalize { kind, key, uid, finalizers } => {
            let patch = Patch::Merge(json!({"metadata": {"uid": uid, "finalizers": finalizers}}));
            client.patch_raw(kind, key, "", patch).await?;
        }
        Step::Disown { kind, key, uid, owners, .. } => {
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
    shared: Arc<Shared>,
    kind: Kind,
    synced: Arc<AtomicBool>,
}

impl Follower {
    async fn run(self, end: CancellationToken) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
        loop {
            tokio::select! {
                () = end.cancelled() => return,
                done = self.session(&mut backoff) => if let Err(error) = done {
                    tracing::debug!(kind = %self.kind, %error, "watch ended, trying again");
                },
            }
            tokio::select! {
                () = end.cancelled() => return,
                () = tokio::time::sleep(backoff.delay()) => {}
            }
        }
    }

    /// One watch from the present state on.
    async fn session(&self, backoff: &mut Backoff) -> Result<(), client::Error> {
        let projection =
            ["deletionTimestamp", "finalizers", "ownerReferences"].map(|f| format!("metadata.{f}"));
        let scope = Scope { projection: projection.into(), ..Scope::default() };
        let mut events = self.shared.client.watch_raw(&self.kind, &scope, 0).await?;
        let mut seen = Some(BTreeSet::new());
        while let Some(event) = events.next().await {
            let Ok(event) = event else { return Ok(()) };
            backoff.reset();
            if event.initial_done {
                if let Some(seen) = seen.take() {
                    // What a new watch does not show any more went while nobody watched.
                    self.shared.graph.lock().retain(&self.kind, |uid| seen.contains(uid));
                }
                self.synced.store(true, Ordering::Release);
                self.shared.woken.notify_one();
                continue;
            }
            let kind = event.r#type();
            let Some(object) = event.object.filter(|o| !o.uid.is_empty()) else { continue };
            let mut graph = self.shared.graph.lock();
            if kind == pb::watch_event::Type::Deleted {
                graph.remove(&object.uid);
            } else {
                if let Some(seen) = &mut seen {
                    seen.insert(object.uid.clone());
                }
                graph.put(&object.uid, self.node(&object));
            }
            drop(graph);
            self.shared.woken.notify_one();
            if self.kind.resource == DEFINITIONS {
                self.shared.outdated.notify_one();
            }
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
                .map(|(uid, block)| Owner {
                    uid: (*uid).into(),
                    block_owner_deletion: *block,
                    ..Owner::default()
                })
                .collect(),
        }
    }

    fn steps(graph: &Graph, uid: &str) -> Vec<String> {
        let name = |step: &Step| match step {
            Step::Delete { key, propagation, gone, .. } if gone.is_empty() => {
                format!("delete {} {propagation}", key.name)
            }
            Step::Delete { key, gone, .. } => {
                format!("ask for {}, delete {}", gone[0].uid, key.name)
            }
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
    fn an_owner_that_was_never_seen_is_asked_for() {
        let mut graph = Graph::default();
        graph.put("child", node("child", &[("owner", true)], None));
        assert_eq!(steps(&graph, "child"), ["ask for owner, delete child"]);
        // One of another namespace is none.
        let mut elsewhere = node("owner", &[], None);
        elsewhere.key = Key::new("other", "owner");
        graph.put("owner", elsewhere);
        assert_eq!(steps(&graph, "child"), ["ask for owner, delete child"]);
        let mut cluster = node("owner", &[], None);
        cluster.key = Key::new("", "owner");
        graph.put("owner", cluster);
        assert!(steps(&graph, "child").is_empty());
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
        graph.dirty.clear();
        graph.put("child", node("child", &[], None));
        // Nothing else may ever happen to the owner.
        assert!(graph.dirty.contains("owner"));
        assert_eq!(steps(&graph, "owner"), ["unfinalize owner"]);
    }
}
