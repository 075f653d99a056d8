//! The history of a template as ControllerRevisions: which there are, which one is the template of now, and which may
//! go. What DaemonSets and StatefulSets have in common; pure.
//!
//! `kubectl rollout history` and `undo` read them: `data` is a strategic patch that puts the template in place.

use std::collections::BTreeSet;
use std::sync::Arc;

use client::act::controlled_by;
use client::transport::Object;
use client::{Action, Plan};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::{Value, json};

use crate::pods::template_hash;

/// The label of a revision's hash, on the revision and on its pods.
pub const HASH: &str = "controller-revision-hash";

/// The newest revision of an owner.
#[derive(Debug, Clone, PartialEq)]
pub struct Newest {
    /// Its name.
    pub name: String,
    /// Its hash.
    pub hash: String,
}

/// The patch that puts a template in place.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// The template that a revision holds.
#[must_use]
pub fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.get("spec")?.get("template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// The hash of a revision.
#[must_use]
pub fn hash(revision: &ControllerRevision) -> &str {
    let labels = revision.metadata.labels.as_ref();
    labels.and_then(|l| l.get(HASH)).map_or("", String::as_str)
}

/// The hash of the revision that a pod was made from.
#[must_use]
pub fn hash_of(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|l| l.get(HASH)).map_or("", String::as_str)
}

/// Makes the template of now the newest revision: finds it among `revisions` (the owner's own), renumbers it if it is
/// an older one, or creates it. `None`: the name is taken by something else (`taken`), count a collision.
pub fn sync<T: Object>(
    plan: Plan,
    owner: &T,
    of: &PodTemplateSpec,
    revisions: &[Arc<ControllerRevision>],
    collisions: Option<i32>,
    taken: impl Fn(&str) -> bool,
) -> (Plan, Option<Newest>) {
    let highest = revisions.iter().map(|r| r.revision).max().unwrap_or(0);
    let wanted = data(of);
    let same = |r: &&Arc<ControllerRevision>| r.data.as_ref().is_some_and(|d| d.0 == wanted);
    if let Some(known) = revisions.iter().filter(same).max_by_key(|r| r.revision) {
        let plan = if known.revision == highest {
            plan
        } else {
            plan.push(Action::merge(&**known, json!({"revision": highest + 1})))
        };
        let name = known.metadata.name.clone().unwrap_or_default();
        return (plan, Some(Newest { name, hash: hash(known).to_owned() }));
    }
    let hash = template_hash(of, collisions);
    let meta = owner.metadata();
    let name = format!("{}-{hash}", meta.name.as_deref().unwrap_or_default());
    if taken(&name) {
        return (plan, None);
    }
    let mut revision = ControllerRevision { revision: highest + 1, ..Default::default() };
    revision.data = Some(RawExtension(wanted));
    revision.metadata.name = Some(name.clone());
    revision.metadata.namespace.clone_from(&meta.namespace);
    let mut labels = of.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
    labels.insert(HASH.to_owned(), hash.clone());
    revision.metadata.labels = Some(labels);
    revision.metadata.annotations.clone_from(&meta.annotations);
    if let Some(annotations) = &mut revision.metadata.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    revision.metadata.owner_references = Some(vec![controlled_by(owner)]);
    (plan.push(Action::create(&revision)), Some(Newest { name, hash }))
}

/// Deletes the oldest revisions beyond `limit` that no pod needs: those whose hashes are not `live`.
pub fn prune(
    plan: Plan,
    revisions: &[Arc<ControllerRevision>],
    live: &BTreeSet<&str>,
    limit: Option<i32>,
) -> Plan {
    let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
    let mut old: Vec<_> = revisions.iter().filter(|r| !live.contains(hash(r))).collect();
    old.sort_by_key(|r| r.revision);
    let extra = old.len().saturating_sub(limit);
    plan.each(old.into_iter().take(extra), |revision| Action::delete(&**revision))
}
